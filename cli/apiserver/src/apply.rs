//! Server-side apply and the field ownership that it rests on (`metadata.managedFields`, in the
//! `FieldsV1` form). See <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.
//!
//! A set of fields is a tree: `f:name` for a field, `k:{…}` for an item of a keyed list, `v:…` for
//! a plain value of a set; an empty tree below a step owns all that is there, and `.` owns an
//! item as such.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{ApiError, builtin::ListKind, patch::same_item, resource::Schema};

/// Who writes, and how.
#[derive(Debug, Clone)]
pub(crate) struct Manager<'a> {
    pub name: &'a str,
    pub operation: Operation,
    pub api_version: String,
    /// Empty for the object itself.
    pub subresource: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Apply,
    Update,
}

/// What to do about fields that another manager owns with another value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnConflict {
    Refuse,
    Take,
}

type Fields = Map<String, Value>;

/// The live object with an applied configuration merged in, and ownership brought up to date.
///
/// # Errors
/// 409 naming every field that another manager owns with another value.
pub(crate) fn apply(
    schema: &Schema,
    live: &Value,
    configuration: &Value,
    manager: &Manager<'_>,
    on_conflict: OnConflict,
) -> Result<Value, ApiError> {
    let applied = all_fields(schema, configuration, &mut Vec::new());
    let differing = changed(schema, live, configuration, &mut Vec::new());
    let mut entries = entries(live);
    let mine = entries.iter().position(|entry| is_of(entry, manager)).unwrap_or(entries.len());
    let before = if mine < entries.len() { fields(&entries.remove(mine)) } else { Fields::new() };
    let mut conflicts = Vec::new();
    let mut elsewhere = Fields::new();
    for entry in &mut entries {
        let owned = fields(entry);
        let taken = intersect(&owned, &differing);
        if on_conflict == OnConflict::Refuse {
            let who = entry["manager"].as_str().unwrap_or_default();
            conflicts.extend(paths(&taken).into_iter().map(|path| (who.to_owned(), path)));
        }
        let kept = subtract(&owned, &taken);
        elsewhere = union(&elsewhere, &kept);
        entry["fieldsV1"] = Value::Object(kept);
    }
    if !conflicts.is_empty() {
        return Err(ApiError::apply_conflict(conflicts));
    }
    let mut merged = live.clone();
    let given_up = subtract(&subtract(&before, &applied), &elsewhere);
    remove(&mut merged, &given_up);
    merge(schema, &mut merged, configuration, &mut Vec::new());
    entries.insert(mine, entry(manager, applied));
    set_entries(&mut merged, entries);
    Ok(merged)
}

/// Gives the fields that differ from the old object to the manager that wrote them.
pub(crate) fn record_update(
    schema: &Schema,
    old: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
) {
    let mut entries = old.map(entries).unwrap_or_default();
    let changed = changed(schema, old.unwrap_or(&Value::Null), new, &mut Vec::new());
    let present = all_fields(schema, new, &mut Vec::new());
    let mine = entries.iter().position(|entry| is_of(entry, manager)).unwrap_or(entries.len());
    let before = if mine < entries.len() { fields(&entries.remove(mine)) } else { Fields::new() };
    for entry in &mut entries {
        let kept = intersect(&subtract(&fields(entry), &changed), &present);
        entry["fieldsV1"] = Value::Object(kept);
    }
    entries.insert(mine, entry(manager, intersect(&union(&before, &changed), &present)));
    set_entries(new, entries);
}

/// Dates the entries whose fields are not those of the old object.
pub(crate) fn date_entries(old: Option<&Value>, new: &mut Value, now: Timestamp) {
    let old = old.map(entries).unwrap_or_default();
    let mut entries = entries(new);
    for entry in &mut entries {
        let same = |other: &&Value| {
            ["manager", "operation", "subresource", "fieldsV1"]
                .iter()
                .all(|&key| other[key] == entry[key])
        };
        entry["time"] = match old.iter().find(same) {
            Some(old) => old["time"].clone(),
            None => json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        };
    }
    set_entries(new, entries);
}

fn entries(object: &Value) -> Vec<Value> {
    object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default()
}

fn set_entries(object: &mut Value, mut entries: Vec<Value>) {
    entries.retain(|entry| entry["fieldsV1"].as_object().is_some_and(|fields| !fields.is_empty()));
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        if !entries.is_empty() {
            metadata.insert("managedFields".to_owned(), Value::Array(entries));
        }
    }
}

fn entry(manager: &Manager<'_>, fields: Fields) -> Value {
    let mut entry = json!({
        "manager": manager.name, "operation": manager.operation.name(),
        "apiVersion": manager.api_version, "fieldsType": "FieldsV1", "fieldsV1": fields,
    });
    if !manager.subresource.is_empty() {
        entry["subresource"] = json!(manager.subresource);
    }
    entry
}

fn is_of(entry: &Value, manager: &Manager<'_>) -> bool {
    entry["manager"] == manager.name
        && entry["operation"] == manager.operation.name()
        && entry["subresource"].as_str().unwrap_or_default() == manager.subresource
}

fn fields(entry: &Value) -> Fields {
    entry["fieldsV1"].as_object().cloned().unwrap_or_default()
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Whether a field of an object has an owner at all.
fn is_owned(path: &[&str], name: &str) -> bool {
    match path {
        [] => !matches!(name, "apiVersion" | "kind"),
        ["metadata"] => {
            matches!(name, "labels" | "annotations" | "finalizers" | "ownerReferences")
        }
        _ => true,
    }
}

fn all_fields<'a>(schema: &Schema, value: &'a Value, path: &mut Vec<&'a str>) -> Fields {
    changed(schema, &Value::Null, value, path)
}

/// The fields of `new` that are not in `old` or have another value there.
fn changed<'a>(schema: &Schema, old: &Value, new: &'a Value, path: &mut Vec<&'a str>) -> Fields {
    let mut fields = Fields::new();
    match new {
        Value::Object(map) => {
            for (name, value) in map {
                let was = old.get(name);
                if was == Some(value) || !is_owned(path, name) {
                    continue;
                }
                path.push(name);
                let below = if is_one_value(schema, value, path) {
                    Some(Fields::new())
                } else {
                    let below = changed(schema, was.unwrap_or(&Value::Null), value, path);
                    (!below.is_empty()).then_some(below)
                };
                path.pop();
                fields.extend(below.map(|below| (format!("f:{name}"), Value::Object(below))));
            }
        }
        Value::Array(items) => {
            let list = schema.list(path);
            path.push("*");
            for item in items {
                let old = old.as_array().into_iter().flatten();
                match &list {
                    ListKind::Atomic => {}
                    ListKind::Set => {
                        if !old.into_iter().any(|old| old == item) {
                            fields.insert(format!("v:{item}"), json!({}));
                        }
                    }
                    ListKind::Map(keys) => {
                        let was = old.into_iter().find(|old| same_item(keys, old, item));
                        let mut below = changed(schema, was.unwrap_or(&Value::Null), item, path);
                        if was.is_none() {
                            below.insert(".".to_owned(), json!({}));
                        }
                        if !below.is_empty() {
                            fields.insert(item_step(keys, item), Value::Object(below));
                        }
                    }
                }
            }
            path.pop();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    fields
}

/// Whether a value has one owner as a whole.
fn is_one_value(schema: &Schema, value: &Value, path: &[&str]) -> bool {
    match value {
        Value::Object(map) => map.is_empty() || schema.is_atomic_map(path),
        Value::Array(items) => items.is_empty() || schema.list(path) == ListKind::Atomic,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

fn item_step(keys: &[(&str, &str)], item: &Value) -> String {
    let key: Map<String, Value> = keys
        .iter()
        .map(|(key, default)| {
            ((*key).to_owned(), item.get(key).cloned().unwrap_or_else(|| json!(default)))
        })
        .collect();
    format!("k:{}", Value::Object(key))
}

fn merge<'a>(schema: &Schema, into: &mut Value, new: &'a Value, path: &mut Vec<&'a str>) {
    match new {
        Value::Object(map) if !is_one_value(schema, new, path) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (name, value) in map {
                path.push(name);
                merge(schema, &mut into[name], value, path);
                path.pop();
            }
        }
        Value::Array(items) if !is_one_value(schema, new, path) => {
            let list = schema.list(path);
            if !into.is_array() {
                *into = json!([]);
            }
            let Some(merged) = into.as_array_mut() else { return };
            path.push("*");
            for item in items {
                let found = merged.iter().position(|old| match &list {
                    ListKind::Map(keys) => same_item(keys, old, item),
                    ListKind::Set | ListKind::Atomic => old == item,
                });
                match found {
                    Some(index) => merge(schema, &mut merged[index], item, path),
                    None => merged.push(item.clone()),
                }
            }
            path.pop();
        }
        // An empty map or list claims the field but takes nothing out of it.
        Value::Object(map) if map.is_empty() && into.is_object() => {}
        _ => *into = new.clone(),
    }
}

fn remove(from: &mut Value, fields: &Fields) {
    for (step, below) in fields {
        let below = below.as_object().cloned().unwrap_or_default();
        match (from.as_object_mut(), step.split_once(':')) {
            (Some(map), Some(("f", name))) if below.is_empty() => {
                map.remove(name);
            }
            (Some(map), Some(("f", name))) => {
                if let Some(inner) = map.get_mut(name) {
                    remove(inner, &below);
                }
            }
            _ => {}
        }
        let Some(items) = from.as_array_mut() else { continue };
        let Some((form, text)) = step.split_once(':') else { continue };
        let Ok(wanted) = serde_json::from_str::<Value>(text) else { continue };
        let is_wanted = |item: &Value| match wanted.as_object() {
            Some(keys) if form == "k" => {
                keys.iter().all(|(key, value)| item.get(key).is_none_or(|found| found == value))
            }
            _ => *item == wanted,
        };
        if form == "v" || below.contains_key(".") {
            items.retain(|item| !is_wanted(item));
        } else if let Some(item) = items.iter_mut().find(|item| is_wanted(item)) {
            remove(item, &below);
        }
    }
}

fn union(one: &Fields, other: &Fields) -> Fields {
    let mut all = one.clone();
    for (step, below) in other {
        match (all.get(step).and_then(Value::as_object), below.as_object()) {
            (Some(mine), Some(theirs)) => {
                let both = Value::Object(union(mine, theirs));
                all.insert(step.clone(), both);
            }
            _ => {
                all.insert(step.clone(), below.clone());
            }
        }
    }
    all
}

fn intersect(one: &Fields, other: &Fields) -> Fields {
    pairs(one, other, |mine, theirs| match (mine.is_empty(), theirs) {
        (true, Some(theirs)) if theirs.is_empty() => Some(Fields::new()),
        (true, _) | (_, None) => None,
        (false, Some(theirs)) => Some(intersect(mine, theirs)).filter(|both| !both.is_empty()),
    })
}

fn subtract(one: &Fields, other: &Fields) -> Fields {
    pairs(one, other, |mine, theirs| match theirs {
        // An empty map or list is a field of its own, not all that could be in it.
        None => Some(mine.clone()),
        Some(theirs) if theirs.is_empty() && !mine.is_empty() => Some(mine.clone()),
        Some(_) if mine.is_empty() => None,
        Some(theirs) => Some(subtract(mine, theirs)).filter(|left| !left.is_empty()),
    })
}

fn pairs(
    one: &Fields,
    other: &Fields,
    combine: impl Fn(&Fields, Option<&Fields>) -> Option<Fields>,
) -> Fields {
    one.iter()
        .filter_map(|(step, mine)| {
            let below = combine(mine.as_object()?, other.get(step).and_then(Value::as_object))?;
            Some((step.clone(), Value::Object(below)))
        })
        .collect()
}

/// The owned fields of a tree as users read them: `.spec.ports[port=80].name`.
fn paths(fields: &Fields) -> Vec<String> {
    let mut found = Vec::new();
    for (step, below) in fields {
        let text = match step.split_once(':') {
            Some(("f", name)) => format!(".{name}"),
            Some(("k", key)) => {
                let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                let key: Vec<_> =
                    key.iter().map(|(name, value)| format!("{name}={value}")).collect();
                format!("[{}]", key.join(","))
            }
            Some((_, value)) => format!("[={value}]"),
            None => String::new(),
        };
        match below.as_object() {
            Some(below) if !below.is_empty() => {
                found.extend(paths(below).into_iter().map(|path| format!("{text}{path}")));
            }
            _ => found.push(text),
        }
    }
    found
}

impl Schema {
    fn list(&self, path: &[&str]) -> ListKind<'_> {
        match (self, path) {
            (Self::BuiltIn(kind), _) => kind.apply_list(path),
            (_, ["metadata", "ownerReferences"]) => ListKind::Map(vec![("uid", "")]),
            (_, ["metadata", "finalizers"]) => ListKind::Set,
            (Self::Custom(custom), _) => {
                let schema = below(&custom.open_api, path);
                match schema["x-kubernetes-list-type"].as_str() {
                    Some("set") => ListKind::Set,
                    Some("map") => {
                        let keys = schema["x-kubernetes-list-map-keys"].as_array();
                        let keys = keys.into_iter().flatten().filter_map(Value::as_str);
                        let default = |key: &str| {
                            schema["items"]["properties"][key]["default"].as_str().unwrap_or("")
                        };
                        ListKind::Map(keys.map(|key| (key, default(key))).collect())
                    }
                    _ => ListKind::Atomic,
                }
            }
        }
    }

    fn is_atomic_map(&self, path: &[&str]) -> bool {
        match self {
            Self::BuiltIn(_) => {
                matches!(path, ["spec", "selector"] | ["involvedObject" | "related"])
            }
            Self::Custom(custom) => {
                below(&custom.open_api, path)["x-kubernetes-map-type"] == "atomic"
            }
        }
    }
}

fn below<'a>(schema: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(schema, |schema, step| match *step {
        "*" => &schema["items"],
        name => match schema["properties"].get(name) {
            Some(property) => property,
            None => &schema["additionalProperties"],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::BuiltIn;

    const SERVICE: Schema = Schema::BuiltIn(BuiltIn::Service);

    fn manager(name: &str, operation: Operation) -> Manager<'_> {
        Manager { name, operation, api_version: "v1".to_owned(), subresource: "" }
    }

    fn applied(live: &Value, configuration: &Value, name: &str) -> Result<Value, ApiError> {
        apply(&SERVICE, live, configuration, &manager(name, Operation::Apply), OnConflict::Refuse)
    }

    #[test]
    fn what_is_no_longer_applied_goes_away_unless_another_owns_it() {
        let first = json!({"metadata": {"labels": {"a": "1", "b": "1"}},
            "spec": {"ports": [{"port": 80, "name": "http"}, {"port": 443, "name": "https"}]}});
        let live = applied(&json!({"metadata": {}}), &first, "one").unwrap();
        let shared = json!({"metadata": {"labels": {"b": "1"}}});
        let live = applied(&live, &shared, "two").unwrap();
        let less = json!({"metadata": {}, "spec": {"ports": [{"port": 80, "targetPort": 8080}]}});
        let live = applied(&live, &less, "one").unwrap();
        assert_eq!(live["metadata"]["labels"], json!({"b": "1"}));
        assert_eq!(live["spec"]["ports"], json!([{"port": 80, "targetPort": 8080}]));
    }

    #[test]
    fn another_value_of_an_owned_field_is_a_conflict() {
        let mut live = json!({"metadata": {}, "spec": {"ports": [{"port": 80, "name": "http"}]}});
        record_update(&SERVICE, None, &mut live, &manager("editor", Operation::Update));
        let same = json!({"spec": {"ports": [{"port": 80, "name": "http"}]}});
        assert!(applied(&live, &same, "one").is_ok());
        let other = json!({"spec": {"ports": [{"port": 80, "name": "web"}]}});
        let error = applied(&live, &other, "one").unwrap_err();
        assert_eq!(
            error.message,
            "Apply failed with 1 conflict: conflict with \"editor\": \
             .spec.ports[port=80,protocol=\"TCP\"].name"
        );
        let one = manager("one", Operation::Apply);
        let taken = apply(&SERVICE, &live, &other, &one, OnConflict::Take).unwrap();
        assert_eq!(taken["spec"]["ports"], json!([{"port": 80, "name": "web"}]));
        let again = json!({"spec": {"ports": [{"port": 80, "name": "x"}]}});
        assert!(applied(&taken, &again, "one").is_ok(), "the field is one's own now");
    }

    #[test]
    fn an_update_takes_the_fields_that_it_changes() {
        let live = applied(&json!({"metadata": {}}), &json!({"spec": {"a": 1, "b": 1}}), "one");
        let live = live.unwrap();
        let mut new = live.clone();
        new["spec"] = json!({"a": 1, "b": 2});
        record_update(&SERVICE, Some(&live), &mut new, &manager("two", Operation::Update));
        let owned: Vec<_> =
            entries(&new).iter().map(|e| (e["manager"].clone(), e["fieldsV1"].clone())).collect();
        assert_eq!(
            owned,
            [
                (json!("one"), json!({"f:spec": {"f:a": {}}})),
                (json!("two"), json!({"f:spec": {"f:b": {}}})),
            ]
        );
    }
}
