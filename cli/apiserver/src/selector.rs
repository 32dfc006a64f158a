//! Label and field selectors in the text form of query parameters. See
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api>.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{ApiError, path};

/// All requirements of a `labelSelector` and a `fieldSelector`; empty matches everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Selector {
    labels: Vec<(String, Requirement)>,
    fields: Vec<(String, Requirement)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Requirement {
    Exists,
    Absent,
    In(BTreeSet<String>),
    /// An object without the label matches too.
    NotIn(BTreeSet<String>),
}

impl Selector {
    /// Reads both texts; `selectable` are the fields that the kind offers besides name and
    /// namespace.
    ///
    /// # Errors
    /// 400 naming the term that cannot be read or the field that is not selectable.
    pub(crate) fn parse(labels: &str, fields: &str, selectable: &[&str]) -> Result<Self, ApiError> {
        let unreadable = |what: &str, term: &str| {
            ApiError::bad_request(format!("unable to parse {what} selector requirement {term:?}"))
        };
        let labels = terms(labels)
            .map(|term| requirement(term).ok_or_else(|| unreadable("label", term)))
            .collect::<Result<_, _>>()?;
        let fields: Vec<_> = terms(fields)
            .map(|term| comparison(term).ok_or_else(|| unreadable("field", term)))
            .collect::<Result<_, _>>()?;
        let always = ["metadata.name", "metadata.namespace"];
        match fields.iter().find(|(f, _)| !always.contains(&&**f) && !selectable.contains(&&**f)) {
            Some((field, _)) => {
                Err(ApiError::bad_request(format!("field label not supported: {field}")))
            }
            None => Ok(Self { labels, fields }),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|(key, wanted)| wanted.admits(labels[key.as_str()].as_str()))
            && self.fields.iter().all(|(field, wanted)| {
                // An unset field compares as the empty text.
                let text = match path::get(object, field) {
                    Some(Value::String(text)) => text.clone(),
                    Some(Value::Null) | None => String::new(),
                    Some(other) => other.to_string(),
                };
                wanted.admits(Some(&text))
            })
    }
}

impl Requirement {
    fn admits(&self, value: Option<&str>) -> bool {
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
        }
    }
}

/// Splits at the commas that are not inside parentheses.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
}

fn requirement(term: &str) -> Option<(String, Requirement)> {
    if let Some(parsed) = comparison(term) {
        return Some(parsed);
    }
    if let Some(key) = term.strip_prefix('!') {
        return is_key(key.trim()).then(|| (key.trim().to_owned(), Requirement::Absent));
    }
    let Some((head, list)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) else {
        return is_key(term).then(|| (term.to_owned(), Requirement::Exists));
    };
    let (key, operator) = head.trim().rsplit_once(char::is_whitespace)?;
    let values = list.split(',').map(|value| value.trim().to_owned()).collect();
    let wanted = match operator {
        "in" => Requirement::In(values),
        "notin" => Requirement::NotIn(values),
        _ => return None,
    };
    is_key(key.trim()).then(|| (key.trim().to_owned(), wanted))
}

fn comparison(term: &str) -> Option<(String, Requirement)> {
    let (key, value, make): (_, _, fn(BTreeSet<String>) -> Requirement) =
        if let Some((key, value)) = term.split_once("!=") {
            (key, value, Requirement::NotIn)
        } else if let Some((key, value)) = term.split_once("==") {
            (key, value, Requirement::In)
        } else {
            let (key, value) = term.split_once('=')?;
            (key, value, Requirement::In)
        };
    let key = key.trim();
    is_key(key).then(|| (key.to_owned(), make(BTreeSet::from([value.trim().to_owned()]))))
}

fn is_key(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels() {
        let object = json!({"metadata": {"labels": {"app": "web", "metallb.io/node": "n1"}}});
        for (selector, wanted) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app!=web", false),
            ("app=web,metallb.io/node=n2", false),
            ("app in (web, db),metallb.io/node", true),
            ("app notin (web,db)", false),
            ("other notin (web)", true),
            ("other!=x", true),
            ("!other", true),
            ("! app", false),
            ("other", false),
        ] {
            let parsed = Selector::parse(selector, "", &[]).unwrap();
            assert_eq!(parsed.matches(&object), wanted, "{selector}");
        }
        for wrong in ["=web", "app in web", "app within (a)", "a b", "!"] {
            assert!(Selector::parse(wrong, "", &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields() {
        let object = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}});
        for (selector, wanted) in [
            ("metadata.name=a", true),
            ("metadata.name!=a", false),
            ("metadata.namespace=", true),
            ("spec.nodeName=n1,metadata.name=a", true),
            ("spec.nodeName=", false),
        ] {
            let parsed = Selector::parse("", selector, &["spec.nodeName"]).unwrap();
            assert_eq!(parsed.matches(&object), wanted, "{selector}");
        }
        let error = Selector::parse("", "spec.x=1", &["spec.nodeName"]).unwrap_err();
        assert_eq!((error.code, &*error.message), (400, "field label not supported: spec.x"));
    }
}
