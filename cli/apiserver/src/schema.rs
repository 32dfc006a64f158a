//! Structural schemas of CustomResourceDefinitions: pruning, defaults and validation. See
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/>.
//!
//! CEL rules (`x-kubernetes-validations`) are not evaluated.

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::Cause;

/// Removes what the schema does not name, then fills in defaults; returns the removed fields.
///
/// An explicit null stays only where the schema says `nullable`; elsewhere it gives way to the
/// default.
pub(crate) fn prune_and_default(schema: &Value, value: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    shape(schema, value, "", &mut unknown);
    unknown
}

/// Everything that the schema refuses in a value, as fields below `at`.
pub(crate) fn validate(schema: &Value, value: &Value, at: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    check(schema, value, at, &mut causes);
    causes
}

fn shape(schema: &Value, value: &mut Value, at: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let properties = schema["properties"].as_object();
            let additional = &schema["additionalProperties"];
            let keeps_unknown = schema["x-kubernetes-preserve-unknown-fields"] == true;
            if properties.is_some() || !additional.is_null() {
                map.retain(|name, _| {
                    let known = keeps_unknown
                        || !additional.is_null()
                        || properties.is_some_and(|properties| properties.contains_key(name));
                    if !known {
                        unknown.push(join(at, name));
                    }
                    known
                });
            }
            default_properties(properties, map);
            for (name, item) in map.iter_mut() {
                let below = properties.and_then(|p| p.get(name)).unwrap_or(additional);
                if below.is_object() {
                    shape(below, item, &join(at, name), unknown);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                shape(&schema["items"], item, &format!("{at}[{index}]"), unknown);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn default_properties(properties: Option<&Map<String, Value>>, map: &mut Map<String, Value>) {
    for (name, schema) in properties.into_iter().flatten() {
        if map.get(name) == Some(&Value::Null) && schema["nullable"] != true {
            map.remove(name);
        }
        if let Some(default) = schema.get("default").filter(|_| !map.contains_key(name)) {
            map.insert(name.clone(), default.clone());
        }
    }
}

fn check(schema: &Value, value: &Value, at: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if !has_type(schema, value) {
        let wanted = schema["type"].as_str().unwrap_or("integer or string");
        causes.push(Cause::invalid(at, value, &format!("{at} in body must be of type {wanted}")));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        causes.push(Cause::unsupported(at, value, allowed));
    }
    match value {
        Value::Object(map) => check_object(schema, map, at, causes),
        Value::Array(items) => {
            check_length(schema, ("minItems", "maxItems"), value, items.len(), at, causes);
            for (index, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{at}[{index}]"), causes);
            }
        }
        Value::String(text) => check_text(schema, value, text, at, causes),
        Value::Number(_) => check_number(schema, value, at, causes),
        Value::Null | Value::Bool(_) => {}
    }
    check_combinations(schema, value, at, causes);
}

fn has_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_string() || value.is_i64() || value.is_u64();
    }
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    }
}

fn check_object(schema: &Value, map: &Map<String, Value>, at: &str, causes: &mut Vec<Cause>) {
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            causes.push(Cause::required(join(at, name), ""));
        }
    }
    for (name, value) in map {
        let known = schema["properties"].get(name);
        let known = known.unwrap_or_else(|| &schema["additionalProperties"]);
        check(known, value, &join(at, name), causes);
    }
}

fn check_text(schema: &Value, value: &Value, text: &str, at: &str, causes: &mut Vec<Cause>) {
    check_length(schema, ("minLength", "maxLength"), value, text.chars().count(), at, causes);
    if let Some(pattern) = schema["pattern"].as_str()
        && !Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
    {
        causes.push(Cause::invalid(at, value, &format!("{at} in body should match '{pattern}'")));
    }
    if schema["format"] == "date-time" && text.parse::<jiff::Timestamp>().is_err() {
        let rule = format!("{at} in body must be of type date-time: {value}");
        causes.push(Cause::invalid(at, value, &rule));
    }
}

fn check_number(schema: &Value, value: &Value, at: &str, causes: &mut Vec<Cause>) {
    let number = value.as_f64().unwrap_or_default();
    let formats = [("int32", f64::from(i32::MIN), f64::from(i32::MAX))];
    for (format, least, most) in formats {
        if schema["format"] == format && !(least..=most).contains(&number) {
            let rule = format!("{at} in body must be of type {format}: {value}");
            causes.push(Cause::invalid(at, value, &rule));
        }
    }
    if let Some(least) = schema["minimum"].as_f64().filter(|least| number < *least) {
        let rule = format!("{at} in body should be greater than or equal to {least}");
        causes.push(Cause::invalid(at, value, &rule));
    }
    if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
        let rule = format!("{at} in body should be less than or equal to {most}");
        causes.push(Cause::invalid(at, value, &rule));
    }
}

fn check_length(
    schema: &Value,
    (least, most): (&str, &str),
    value: &Value,
    length: usize,
    at: &str,
    causes: &mut Vec<Cause>,
) {
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    if let Some(least) = schema[least].as_u64().filter(|least| length < *least) {
        let rule = format!("{at} in body should have at least {least} items or characters");
        causes.push(Cause::invalid(at, value, &rule));
    }
    if let Some(most) = schema[most].as_u64().filter(|most| length > *most) {
        let rule = format!("{at} in body should have at most {most} items or characters");
        causes.push(Cause::invalid(at, value, &rule));
    }
}

fn check_combinations(schema: &Value, value: &Value, at: &str, causes: &mut Vec<Cause>) {
    let matching = |list: &str| {
        let list = schema[list].as_array()?;
        Some(list.iter().filter(|schema| validate(schema, value, at).is_empty()).count())
    };
    for schema in schema["allOf"].as_array().into_iter().flatten() {
        check(schema, value, at, causes);
    }
    if matching("anyOf") == Some(0) {
        let rule = format!("{at} in body must validate at least one schema (anyOf)");
        causes.push(Cause::invalid(at, value, &rule));
    }
    if matching("oneOf").is_some_and(|matching| matching != 1) {
        let rule = format!("{at} in body must validate one and only one schema (oneOf)");
        causes.push(Cause::invalid(at, value, &rule));
    }
}

fn join(at: &str, name: &str) -> String {
    match at {
        "" => name.to_owned(),
        at => format!("{at}.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object", "required": ["spec"],
            "properties": {"spec": {
                "type": "object", "required": ["addresses"],
                "properties": {
                    "addresses": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[0-9./]+$"}},
                    "autoAssign": {"type": "boolean", "default": true},
                    "port": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 16384},
                    "mode": {"type": "string", "enum": ["internal", "external"]},
                    "note": {"type": "string", "nullable": true},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "target": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                },
            }},
        })
    }

    #[test]
    fn prunes_and_defaults() {
        let mut value = json!({"spec": {
            "addresses": [], "autoAssign": null, "note": null, "odd": 1, "port": null,
            "any": {"x": {"y": 1}}, "labels": {"a": "b"},
        }});
        assert_eq!(prune_and_default(&schema(), &mut value), ["spec.odd"]);
        assert_eq!(
            value,
            json!({"spec": {"addresses": [], "autoAssign": true, "note": null,
                            "any": {"x": {"y": 1}}, "labels": {"a": "b"}}})
        );
    }

    #[test]
    fn refusals_name_the_field() {
        for (spec, wanted) in [
            (json!({"addresses": ["10.0.0.0/8"], "target": "http", "port": 179}), vec![]),
            (json!({}), vec!["spec.addresses: Required value"]),
            (json!({"addresses": []}), vec!["spec.addresses: Invalid value: []"]),
            (json!({"addresses": "x"}), vec!["spec.addresses: Invalid value: \"x\""]),
            (json!({"addresses": ["x"]}), vec!["spec.addresses[0]: Invalid value: \"x\""]),
            (json!({"addresses": ["1"], "port": 0}), vec!["spec.port: Invalid value: 0"]),
            (json!({"addresses": ["1"], "port": 16385}), vec!["spec.port: Invalid value: 16385"]),
            (json!({"addresses": ["1"], "port": 1.5}), vec!["spec.port: Invalid value: 1.5"]),
            (json!({"addresses": ["1"], "mode": "x"}), vec!["spec.mode: Unsupported value: \"x\""]),
            (
                json!({"addresses": ["1"], "labels": {"a": 1}}),
                vec!["spec.labels.a: Invalid value: 1"],
            ),
            (json!({"addresses": ["1"], "target": true}), vec!["spec.target: Invalid value: true"]),
        ] {
            let causes = validate(&schema(), &json!({"spec": spec}), "");
            assert_eq!(causes.len(), wanted.len(), "{causes:?}");
            for (cause, wanted) in causes.iter().zip(wanted) {
                assert!(cause.to_string().starts_with(wanted), "{cause}");
            }
        }
    }
}
