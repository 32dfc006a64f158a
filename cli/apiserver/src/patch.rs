//! The patches that say what to change: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and
//! strategic merge patch. Server-side apply is in [`crate::apply`]. See
//! <https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/>.

use serde_json::{Map, Value, json};

use crate::{
    ApiError,
    builtin::{BuiltIn, ListKind},
};

/// Applies a JSON patch.
///
/// # Errors
/// 400 when the patch is no JSON patch, 422 when one of its operations fails.
pub(crate) fn json(object: &Value, patch: &Value) -> Result<Value, ApiError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    let mut patched = object.clone();
    json_patch::patch(&mut patched, &operations)
        .map_err(|error| ApiError::unprocessable(error.to_string()))?;
    Ok(patched)
}

/// Applies a JSON merge patch.
pub(crate) fn merge(object: &Value, patch: &Value) -> Value {
    let mut patched = object.clone();
    json_patch::merge(&mut patched, patch);
    patched
}

/// Applies a strategic merge patch with the merge keys of a built-in kind.
pub(crate) fn strategic(kind: BuiltIn, object: &Value, patch: &Value) -> Value {
    let mut patched = object.clone();
    merge_value(kind, &mut patched, patch, &mut Vec::new());
    patched
}

fn merge_value<'a>(kind: BuiltIn, into: &mut Value, patch: &'a Value, path: &mut Vec<&'a str>) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *into = Value::Object(without_directives(patch));
            return;
        }
        Some("delete") => {
            *into = json!({});
            return;
        }
        _ => {}
    }
    if !into.is_object() {
        *into = json!({});
    }
    let Some(map) = into.as_object_mut() else { return };
    if let Some(kept) = patch.get("$retainKeys").and_then(Value::as_array) {
        map.retain(|name, _| kept.iter().any(|kept| kept == name));
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array();
            if let Some(items) = map.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| gone.is_none_or(|gone| !gone.contains(item)));
            }
        } else if name.starts_with('$') {
            continue;
        } else if value.is_null() {
            map.remove(name);
        } else {
            path.push(name);
            let at = map.entry(name).or_insert(Value::Null);
            match value.as_array() {
                Some(items) => merge_list(kind, at, items, path),
                None => merge_value(kind, at, value, path),
            }
            path.pop();
        }
    }
    for (name, order) in patch {
        if let Some(list) = name.strip_prefix("$setElementOrder/")
            && let Some(items) = map.get_mut(list).and_then(Value::as_array_mut)
        {
            path.push(list);
            sort_as(items, order, &kind.patch_list(path));
            path.pop();
        }
    }
}

fn merge_list<'a>(kind: BuiltIn, into: &mut Value, patch: &'a [Value], path: &mut Vec<&'a str>) {
    let list = kind.patch_list(path);
    let replaces = patch.iter().any(|item| item["$patch"] == "replace");
    let mut items = match into {
        Value::Array(items) if list != ListKind::Atomic && !replaces => std::mem::take(items),
        _ => Vec::new(),
    };
    path.push("*");
    for item in patch.iter().filter(|item| item["$patch"] != "replace") {
        match &list {
            ListKind::Atomic => items.push(item.clone()),
            ListKind::Set if items.contains(item) => {}
            ListKind::Set => items.push(item.clone()),
            ListKind::Map(keys) => {
                let found = items.iter().position(|old| same_item(keys, old, item));
                match (found, item["$patch"] == "delete") {
                    (Some(index), true) => {
                        items.remove(index);
                    }
                    (Some(index), false) => merge_value(kind, &mut items[index], item, path),
                    (None, true) => {}
                    (None, false) => {
                        let mut added = json!({});
                        merge_value(kind, &mut added, item, path);
                        items.push(added);
                    }
                }
            }
        }
    }
    path.pop();
    *into = Value::Array(items);
}

fn sort_as(items: &mut [Value], order: &Value, list: &ListKind<'_>) {
    let order = order.as_array().map_or(&[][..], Vec::as_slice);
    // Items that the patch does not know stay behind those that it does.
    items.sort_by_key(|item| {
        let known = order.iter().position(|wanted| match list {
            ListKind::Map(keys) => same_item(keys, wanted, item),
            ListKind::Set | ListKind::Atomic => wanted == item,
        });
        known.unwrap_or(order.len())
    });
}

/// Whether two items of a list are the same one to its keys.
pub(crate) fn same_item(keys: &[(&str, &str)], one: &Value, other: &Value) -> bool {
    keys.iter().all(|(key, default)| {
        let value = |item: &Value| match item.get(key) {
            Some(value) => value.clone(),
            None => json!(default),
        };
        value(one) == value(other)
    })
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(name, _)| !name.starts_with('$'))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategic_merge_of_a_service() {
        let object = json!({"spec": {
            "selector": {"app": "web", "tier": "front"},
            "ports": [{"port": 80, "name": "http", "nodePort": 30000}, {"port": 443, "name": "https"}],
        }, "metadata": {"finalizers": ["a"]}});
        for (patch, wanted) in [
            (
                json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}),
                json!([{"port": 80, "name": "http", "nodePort": 30000, "targetPort": 8080},
                       {"port": 443, "name": "https"}]),
            ),
            (
                json!({"spec": {"$setElementOrder/ports": [{"port": 443}, {"port": 81}],
                       "ports": [{"port": 80, "$patch": "delete"}, {"port": 81}]}}),
                json!([{"port": 443, "name": "https"}, {"port": 81}]),
            ),
            (
                json!({"spec": {"ports": [{"$patch": "replace"}, {"port": 1}]}}),
                json!([{"port": 1}]),
            ),
            (json!({"spec": {"ports": null}}), Value::Null),
        ] {
            let patched = strategic(BuiltIn::Service, &object, &patch);
            assert_eq!(patched["spec"]["ports"], wanted, "{patch}");
        }
        let patch = json!({"spec": {"selector": {"tier": null, "app": "x"}},
            "metadata": {"finalizers": ["b"], "$deleteFromPrimitiveList/finalizers": ["a"]}});
        let patched = strategic(BuiltIn::Service, &object, &patch);
        assert_eq!(patched["spec"]["selector"], json!({"app": "x"}));
        assert_eq!(patched["metadata"]["finalizers"], json!(["b"]));
        let patch = json!({"spec": {"selector": {"$patch": "replace", "only": "this"}}});
        let patched = strategic(BuiltIn::Service, &object, &patch);
        assert_eq!(patched["spec"]["selector"], json!({"only": "this"}));
    }

    #[test]
    fn failed_operations_of_a_json_patch() {
        let object = json!({"a": 1});
        let good =
            json!([{"op": "test", "path": "/a", "value": 1}, {"op": "remove", "path": "/a"}]);
        assert_eq!(json(&object, &good).unwrap(), json!({}));
        let stale = json!([{"op": "test", "path": "/a", "value": 2}]);
        assert_eq!(json(&object, &stale).unwrap_err().code, 422);
        assert_eq!(json(&object, &json!({"op": "test"})).unwrap_err().code, 400);
    }
}
