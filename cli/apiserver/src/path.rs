//! Places in a JSON object: dotted field names, and the simple JSONPath of printer columns.

use serde_json::Value;

/// The value at a dotted path of plain field names, such as `spec.nodeName`.
pub(crate) fn get<'a>(object: &'a Value, dotted: &str) -> Option<&'a Value> {
    dotted.split('.').try_fold(object, |at, field| at.get(field))
}

/// All values at a printer column's JSONPath: `.a.b`, `['a.b']`, `[0]` and `[*]`.
///
/// Filters (`[?(…)]`) find nothing.
pub(crate) fn find<'a>(object: &'a Value, json_path: &str) -> Vec<&'a Value> {
    let mut found = vec![object];
    let mut rest = json_path;
    while !rest.is_empty() {
        let step;
        (step, rest) = if let Some(bracket) = rest.strip_prefix('[') {
            match bracket.split_once(']') {
                Some((step, rest)) => (step.trim_matches(['\'', '"']), rest),
                None => return Vec::new(),
            }
        } else {
            let name = rest.strip_prefix('.').unwrap_or(rest);
            name.split_at(name.find(['.', '[']).unwrap_or(name.len()))
        };
        found = found.into_iter().flat_map(|at| children(at, step)).collect();
    }
    found
}

fn children<'a>(at: &'a Value, step: &str) -> Vec<&'a Value> {
    match at {
        Value::Object(map) if step == "*" => map.values().collect(),
        Value::Object(map) => map.get(step).into_iter().collect(),
        Value::Array(items) if step == "*" => items.iter().collect(),
        Value::Array(items) => {
            step.parse::<usize>().ok().and_then(|index| items.get(index)).into_iter().collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_paths() {
        let object = json!({"spec": {"a.b": 1, "list": [{"n": 1}, {"n": 2}]}});
        for (path, wanted) in [
            (".spec['a.b']", vec![json!(1)]),
            (".spec.list[1].n", vec![json!(2)]),
            (".spec.list[*].n", vec![json!(1), json!(2)]),
            (".spec.none", vec![]),
            (".spec.list[?(@.n==1)]", vec![]),
            ("", vec![object.clone()]),
        ] {
            let found: Vec<_> = find(&object, path).into_iter().cloned().collect();
            assert_eq!(found, wanted, "{path}");
        }
    }
}
