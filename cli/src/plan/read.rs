//! Manifests in, objects out, each with the place where it was found. Knows what an object of the
//! API looks like from outside (`apiVersion`, `kind`, `items`), and nothing of what is in it.

use std::{fmt, sync::Arc};

use serde_json::{Value, json};
use serde_saphyr::{
    Options, Spanned,
    granit_parser::{Event, Parser},
};

/// Larger inputs are refused; 100,000 Services with all their metadata are a third of this.
pub const INPUT_LIMIT: usize = 1024 * 1024 * 1024;
/// A `List` in a `List` in a `List` is nobody's work.
const DEEPEST_LIST: usize = 4;

/// Where an object, or something that should be one, was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Cluster,
    /// A file as it was named, or standard input.
    File {
        source: Arc<str>,
        /// Counted from 1; empty documents count.
        document: usize,
        /// Of the file, counted from 1. That of the document, or of an error in it.
        line: usize,
        /// Indices of the items of a `List`, from the outside in.
        items: Vec<usize>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("the cluster"),
            Self::File { source, document, line, items } => {
                write!(f, "{source}: document {document}, line {line}")?;
                items.iter().try_for_each(|item| write!(f, ", items[{item}]"))
            }
        }
    }
}

/// Input that is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ReadError {
    pub place: Place,
    pub message: String,
}

impl ReadError {
    pub fn new(place: &Place, message: impl Into<String>) -> Self {
        Self { place: place.clone(), message: message.into() }
    }
}

/// One object; `apiVersion` and `kind` are there.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub place: Place,
    pub value: Value,
}

impl Object {
    /// A text at a JSON pointer; empty where there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

/// All objects of one file: YAML with any number of documents, or JSON values one after the other.
/// Lists are taken apart.
///
/// # Errors
/// The first thing that is no object.
pub fn objects(source: &str, bytes: &[u8]) -> Result<Vec<Object>, ReadError> {
    let source: Arc<str> = source.into();
    let file = |document, line| Place::File {
        source: Arc::clone(&source),
        document,
        line,
        items: Vec::new(),
    };
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let line = 1 + good.matches('\n').count();
            let at = file(document_at(&document_starts(&good), line), line);
            return Err(ReadError::new(&at, "this is no text in UTF-8"));
        }
    };
    let documents = match yaml(text) {
        Ok(documents) => documents,
        Err(fault) => concatenated_json(text)
            .ok_or_else(|| ReadError::new(&file(fault.document, fault.line), fault.message))?,
    };
    let mut objects = Vec::new();
    for Document { number, line, value } in documents {
        expand(file(number, line), value, 0, &mut objects)?;
    }
    Ok(objects)
}

/// An object as it is, a list as its items; those of a typed list (`ServiceList`) may leave it to
/// the list to say what they are.
///
/// # Errors
/// The first thing that is no object.
pub fn expand(
    place: Place,
    mut value: Value,
    depth: usize,
    objects: &mut Vec<Object>,
) -> Result<(), ReadError> {
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if !value.is_object() || api_version.is_empty() || kind.is_empty() {
        let missing = "this is no Kubernetes object: apiVersion or kind is missing";
        return Err(ReadError::new(&place, missing));
    }
    let item_kind = kind.strip_suffix("List");
    let (Some(item_kind), Some(items)) = (item_kind, value.get_mut("items")) else {
        objects.push(Object { place, value });
        return Ok(());
    };
    // Go writes an empty list as null.
    if items.is_null() {
        return Ok(());
    }
    let Some(items) = items.as_array_mut() else {
        return Err(ReadError::new(&place, format!("the items of this {kind} are no list")));
    };
    if depth == DEEPEST_LIST {
        return Err(ReadError::new(&place, "there are too many Lists in one another"));
    }
    for (index, mut item) in std::mem::take(items).into_iter().enumerate() {
        let mut at = place.clone();
        if let Place::File { items, .. } = &mut at {
            items.push(index);
        }
        if let Some(fields) = item.as_object_mut().filter(|_| !item_kind.is_empty()) {
            fields.entry("apiVersion").or_insert_with(|| json!(api_version));
            fields.entry("kind").or_insert_with(|| json!(item_kind));
        }
        expand(at, item, depth + 1, objects)?;
    }
    Ok(())
}

struct Document {
    number: usize,
    line: usize,
    value: Value,
}

struct Fault {
    document: usize,
    line: usize,
    message: String,
}

fn yaml(text: &str) -> Result<Vec<Document>, Fault> {
    let starts = document_starts(text);
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple_with_options(text, options())
        .map_err(|error| {
            let line = error.location().map_or(1, |location| index(location.line()));
            let mut message = error.to_string();
            // The place is said once, in the words of this program.
            message.truncate(message.rfind(" at line ").unwrap_or(message.len()));
            Fault { document: document_at(&starts, line), line, message }
        })?;
    let numbered = documents.into_iter().map(|document| {
        let line = index(document.referenced.line());
        Document { number: document_at(&starts, line), line, value: document.value }
    });
    Ok(numbered.collect())
}

/// What `jq` and the like write; no YAML when there is more than one value.
fn concatenated_json(text: &str) -> Option<Vec<Document>> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let (mut documents, mut line) = (Vec::new(), 1);
    loop {
        let rest = &text[values.byte_offset()..];
        let blank = rest.len() - rest.trim_start().len();
        line += rest[..blank].matches('\n').count();
        let before = values.byte_offset() + blank;
        let Some(value) = values.next() else { return Some(documents) };
        documents.push(Document { number: documents.len() + 1, line, value: value.ok()? });
        line += text[before..values.byte_offset()].matches('\n').count();
    }
}

/// The lines on which documents begin, empty ones included: the parser of the very library that
/// reads them says so, and ends where that one does.
fn document_starts(text: &str) -> Vec<usize> {
    Parser::new_from_str(text)
        .map_while(Result::ok)
        .filter(|(event, _)| matches!(event, Event::DocumentStart(..)))
        .map(|(_, span)| span.start.line())
        .collect()
}

fn document_at(starts: &[usize], line: usize) -> usize {
    starts.partition_point(|start| *start <= line).max(1)
}

fn index(line: u64) -> usize {
    usize::try_from(line).unwrap_or(usize::MAX)
}

/// The limits are those of this program's memory, not of what a configuration file usually has:
/// all the Services of a large cluster may come in one file. What bounds aliases and nesting stays.
fn options() -> Options {
    let mut options = Options::default();
    options.with_snippet = false;
    if let Some(budget) = &mut options.budget {
        budget.max_documents = INPUT_LIMIT;
        budget.max_nodes = INPUT_LIMIT;
        budget.max_events = INPUT_LIMIT;
        budget.max_total_scalar_bytes = INPUT_LIMIT;
    }
    options
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        let found = objects("a.yaml", text.as_bytes()).map_err(|error| error.to_string())?;
        let shown = |object: Object| {
            let named = format!("{} {}", object.text("/kind"), object.text("/metadata/name"));
            (named, object.place.to_string())
        };
        Ok(found.into_iter().map(shown).collect())
    }

    fn pair(object: &str, place: &str) -> (String, String) {
        (object.to_owned(), format!("a.yaml: {place}"))
    }

    #[test]
    fn objects_know_their_document_and_line() {
        let text = "\
# a comment first
---
{apiVersion: v1, kind: Service, metadata: {name: a}}
---
---
# with a block that looks like a separator
apiVersion: v1
kind: ConfigMap
metadata: {name: b}
data:
  text: |
    ---
    kind: no
...
---
apiVersion: v1
kind: Node
metadata: {name: c}
";
        assert_eq!(
            read(text).unwrap(),
            [
                pair("Service a", "document 1, line 3"),
                pair("ConfigMap b", "document 3, line 7"),
                pair("Node c", "document 4, line 16"),
            ]
        );
        assert_eq!(read("").unwrap(), []);
        assert_eq!(read("---\n# nothing\n---\n").unwrap(), []);
    }

    #[test]
    fn lists_are_taken_apart() {
        let text = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: a}}
- apiVersion: v1
  kind: ServiceList
  items:
  - metadata: {name: b}
";
        assert_eq!(
            read(text).unwrap(),
            [
                pair("Node a", "document 1, line 1, items[0]"),
                pair("Service b", "document 1, line 1, items[1], items[0]"),
            ]
        );
        let untyped = "{apiVersion: v1, kind: List, items: [{metadata: {name: b}}]}";
        let missing = "this is no Kubernetes object: apiVersion or kind is missing";
        assert_eq!(
            read(untyped).unwrap_err(),
            format!("a.yaml: document 1, line 1, items[0]: {missing}")
        );
        let mut nested = "{apiVersion: v1, kind: Node}".to_owned();
        for _ in 0..8 {
            nested = format!("{{apiVersion: v1, kind: List, items: [{nested}]}}");
        }
        assert!(read(&nested).unwrap_err().contains("too many Lists"));
    }

    #[test]
    fn json_may_be_one_value_or_many() {
        let one = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Node\",\n\t\"metadata\": {\"name\": \
                   \"\\ud83d\\ude00\\/\"}}";
        assert_eq!(read(one).unwrap(), [pair("Node 😀/", "document 1, line 1")]);
        let node = |name| {
            format!(
                "\n{{\"apiVersion\":\"v1\",\"kind\":\"Node\",\n\"metadata\":{{\"name\":\"{name}\"}}}}"
            )
        };
        assert_eq!(
            read(&format!("{}{}", node("a"), node("b"))).unwrap(),
            [pair("Node a", "document 1, line 2"), pair("Node b", "document 2, line 4")]
        );
    }

    #[test]
    fn errors_name_document_and_line_of_the_file() {
        let good = "apiVersion: v1\nkind: Node\n---\n";
        for (text, expected) in [
            ("a: b: c", "document 1, line 1: mapping values are not allowed"),
            ("a: [1\nb: 2", "document 1, line 2: "),
            (
                "apiVersion: v1\nkind: Node\nkind: Pod\n",
                "document 1, line 3: duplicate mapping key",
            ),
            ("a: *nobody", "document 1, line 1: alias references unknown anchor"),
            ("? [a]\n: 1", "document 1, line 1: "),
            ("just text", "document 1, line 1: this is no Kubernetes object"),
            ("- a\n- b\n", "document 1, line 1: this is no Kubernetes object"),
            ("kind: Node\n", "document 1, line 1: this is no Kubernetes object"),
            ("{\"a\": 1} }", "document 1, line 1: "),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.starts_with(&format!("a.yaml: {expected}")), "{text:?}: {found}");
            let second = expected.replacen("document 1", "document 2", 1);
            let (place, rest) = second.split_once("line ").unwrap();
            let (line, rest) = rest.split_once(':').unwrap();
            let line = line.parse::<usize>().unwrap() + 3;
            let found = read(&format!("{good}{text}")).unwrap_err();
            let expected = format!("a.yaml: {place}line {line}:{rest}");
            assert!(found.starts_with(&expected), "{text:?}: {found}, not {expected}");
        }
        assert_eq!(
            objects("a.yaml", b"a: 1\n---\nb: \xff\n").unwrap_err().to_string(),
            "a.yaml: document 2, line 3: this is no text in UTF-8"
        );
    }

    #[test]
    fn aliases_are_followed_but_do_not_explode() {
        let text = "apiVersion: v1\nkind: Node\nmetadata: &m {name: a}\nagain: *m\n";
        assert_eq!(objects("a", text.as_bytes()).unwrap()[0].value["again"]["name"], "a");
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..20 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert!(objects("a", bomb.as_bytes()).is_err());
    }

    #[test]
    fn lists_may_be_empty() {
        for items in ["[]", "null", ""] {
            assert_eq!(read(&format!("apiVersion: v1\nkind: List\nitems: {items}\n")), Ok(vec![]));
        }
        let found = read("apiVersion: v1\nkind: ServiceList\nitems: {a: b}\n").unwrap_err();
        assert!(found.ends_with("line 1: the items of this ServiceList are no list"), "{found}");
    }

    #[test]
    fn nesting_has_an_end() {
        let nested = |depth: usize| {
            let open: String =
                (0..depth).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
            format!("apiVersion: v1\nkind: X\n{open}")
        };
        assert!(objects("a", nested(60).as_bytes()).is_ok());
        assert!(objects("a", nested(5_000).as_bytes()).is_err());
        assert!(objects("a", "[".repeat(100_000).as_bytes()).is_err());
        assert!(objects("a", "{\"a\":".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn more_objects_than_a_configuration_has() {
        let text: String = (0..3_000)
            .map(|i| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n{i}}}\n---\n"))
            .collect();
        let found = objects("a", text.as_bytes()).unwrap();
        let last = found.last().unwrap();
        assert_eq!(last.text("/metadata/name"), "n2999");
        assert_eq!(last.place.to_string(), "a: document 3000, line 11997");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn no_octets_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = objects("a", &bytes);
        }

        #[test]
        fn no_text_of_signs_makes_it_panic(
            text in "([-:?,\\[\\]{}&*!|>'\"%@`#~<= \n\t]|---\n|kind: |items:|List|0x|&a |\\*a){0,60}"
        ) {
            let _ = objects("a", text.as_bytes());
        }
    }
}
