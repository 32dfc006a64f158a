//! The rules of every object, whatever its kind: its form, its metadata, and which of its parts a
//! request may write.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::{
    ApiError,
    api::{Part, Target, UnknownFields, WriteOptions},
    builtin::BuiltIn,
    convert,
    error::Cause,
    resource::{Resource, Schema, Subresources},
    schema,
};

/// What kind of request a body came with: it decides with which code a wrong body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Put,
    Patch,
    Apply,
}

/// Brings a written object into the form that is compared with the old one: typed for built-in
/// kinds, pruned and with defaults for ours. Also returns warnings about unknown fields.
pub(crate) fn shape(
    resource: &Resource,
    mut object: Value,
    options: WriteOptions<'_>,
    request: Request,
) -> Result<(Value, Vec<String>), ApiError> {
    let refused = |error: serde_json::Error| {
        let message = format!(
            "{} in version {:?} cannot be handled as a {}: {error}",
            resource.kind, resource.version, resource.kind
        );
        match request {
            Request::Put => ApiError::bad_request(message),
            Request::Patch | Request::Apply => ApiError::unprocessable(message),
        }
    };
    let (shaped, unknown) = match &resource.schema {
        Schema::BuiltIn(kind) => {
            let object = convert::to_stored(resource, object).map_err(refused)?;
            let typed = kind.typed(object.clone()).map_err(refused)?;
            let mut unknown = Vec::new();
            missing_from(&object, &typed, "", &mut unknown);
            (typed, unknown)
        }
        Schema::Custom(custom) => {
            let metadata = take_metadata(&mut object);
            let typed: ObjectMeta = serde_json::from_value(metadata.clone()).map_err(refused)?;
            let typed = serde_json::to_value(typed).map_err(refused)?;
            let mut unknown = Vec::new();
            missing_from(&metadata, &typed, "metadata", &mut unknown);
            unknown.extend(schema::prune_and_default(&custom.open_api, &mut object));
            put_metadata(&mut object, typed);
            (object, unknown)
        }
    };
    let named: Vec<_> = unknown.iter().map(|field| format!("unknown field {field:?}")).collect();
    match (request, options.unknown_fields) {
        _ if named.is_empty() => Ok((shaped, named)),
        (Request::Apply, _) => Err(ApiError::internal(format!(
            "failed to create typed patch object: .{}: field not declared in schema",
            unknown.join(", .")
        ))),
        (Request::Put, UnknownFields::Refuse) => Err(ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
            resource.kind,
            resource.version,
            resource.kind,
            named.join(", ")
        ))),
        (Request::Patch, UnknownFields::Refuse) => {
            Err(ApiError::unprocessable(format!("strict decoding error: {}", named.join(", "))))
        }
        (Request::Put | Request::Patch, UnknownFields::Warn) => Ok((shaped, named)),
        (Request::Put | Request::Patch, UnknownFields::Ignore) => Ok((shaped, Vec::new())),
    }
}

/// Takes from the old object all that this path does not write.
pub(crate) fn keep_what_is_not_written(target: Target<'_>, old: &Value, new: &mut Value) {
    let keep = |new: &mut Value, field: &str| {
        if let Some(object) = new.as_object_mut() {
            match old.get(field) {
                Some(value) => object.insert(field.to_owned(), value.clone()),
                None => object.remove(field),
            };
        }
    };
    match (target.part, target.resource.subresources) {
        (Part::Main, Subresources::None) => {}
        (Part::Main, Subresources::Status) => keep(new, "status"),
        (Part::Status, _) => {
            let status = new.get("status").cloned();
            let metadata = new["metadata"].clone();
            *new = old.clone();
            keep_status(new, status);
            // The status of the kinds of Kubernetes takes metadata along, ours does not.
            if target.resource.built_in().is_some() {
                new["metadata"] = metadata;
            } else {
                new["metadata"]["managedFields"] = metadata["managedFields"].clone();
            }
        }
    }
    let Some(metadata) = new["metadata"].as_object_mut() else { return };
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "name",
        "namespace",
        "resourceVersion",
    ] {
        match old["metadata"].get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

fn keep_status(object: &mut Value, status: Option<Value>) {
    if let Some(object) = object.as_object_mut() {
        match status {
            Some(status) => object.insert("status".to_owned(), status),
            None => object.remove("status"),
        };
    }
}

pub(crate) fn check_kind(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    if !object.is_object() || object.get("metadata").is_some_and(|metadata| !metadata.is_object()) {
        return Err(ApiError::bad_request("the object and its metadata must be JSON objects"));
    }
    let wanted = [("apiVersion", resource.api_version()), ("kind", resource.kind.clone())];
    for (field, wanted) in wanted {
        match object.get(field).and_then(Value::as_str) {
            Some(found) if found == wanted => {}
            None if resource.built_in().is_some() => {}
            Some(_) if resource.built_in().is_none() && field == "kind" => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let cause = Cause::invalid(field, &object[field], &format!("must be {wanted}"));
                return Err(ApiError::invalid(resource, name, &[cause]));
            }
            found => {
                return Err(ApiError::bad_request(format!(
                    "{field} of the object is {:?}, the request is for {wanted:?}",
                    found.unwrap_or_default()
                )));
            }
        }
    }
    Ok(())
}

/// An object may repeat the name and the namespace of its path, but not contradict them.
pub(crate) fn check_place(target: Target<'_>, object: &Value) -> Result<(), ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if !name.is_empty() && !target.name.is_empty() && name != target.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    if !namespace.is_empty() && namespace != target.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

pub(crate) fn check_configuration(
    target: Target<'_>,
    configuration: &Value,
) -> Result<(), ApiError> {
    for field in ["apiVersion", "kind"] {
        if configuration[field].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::bad_request(format!("an applied object must have {field}")));
        }
    }
    check_kind(target.resource, configuration)?;
    if !configuration["metadata"]["managedFields"].is_null() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    check_place(target, configuration)
}

pub(crate) fn check_preconditions(
    resource: &Resource,
    name: &str,
    stored: &Value,
    uid: Option<&str>,
    resource_version: Option<&str>,
) -> Result<(), ApiError> {
    for (what, wanted, found) in [
        ("UID", uid, &stored["metadata"]["uid"]),
        ("ResourceVersion", resource_version, &stored["metadata"]["resourceVersion"]),
    ] {
        let found = found.as_str().unwrap_or_default();
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: \
                 {found}"
            );
            return Err(ApiError::conflict(resource, name, &why));
        }
    }
    Ok(())
}

pub(crate) fn check_metadata(resource: &Resource, name: &str) -> Vec<Cause> {
    let is_label = |text: &str| {
        !text.is_empty()
            && text.len() <= 63
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    let (valid, rule) = match resource.built_in() {
        Some(BuiltIn::Service) => (
            is_label(name) && name.starts_with(|first: char| first.is_ascii_lowercase()),
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start \
             with an alphabetic character, and end with an alphanumeric character",
        ),
        Some(BuiltIn::Namespace) => (
            is_label(name),
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or \
             '-', and must start and end with an alphanumeric character",
        ),
        _ => (
            name.len() <= 253 && name.split('.').all(|part| part.len() > 63 || is_label(part)),
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
             '-' or '.', and must start and end with an alphanumeric character",
        ),
    };
    if valid { Vec::new() } else { vec![Cause::invalid("metadata.name", &json!(name), rule)] }
}

pub(crate) fn check_finalizers(old: &Value, new: &Value) -> Vec<Cause> {
    if old["metadata"]["deletionTimestamp"].is_null() {
        return Vec::new();
    }
    let before = old["metadata"]["finalizers"].as_array();
    let after = new["metadata"]["finalizers"].as_array().into_iter().flatten();
    let added: Vec<_> = after
        .filter(|finalizer| !before.is_some_and(|before| before.contains(finalizer)))
        .map(Value::to_string)
        .collect();
    if added.is_empty() {
        return Vec::new();
    }
    let rule = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers {}",
        added.join(", ")
    );
    vec![Cause::forbidden("metadata.finalizers", &rule)]
}

pub(crate) fn has_generation(resource: &Resource) -> bool {
    resource.built_in().is_none_or(BuiltIn::has_generation)
}

/// All that is neither metadata nor status.
pub(crate) fn wanted_state(object: &Value) -> Vec<(&String, &Value)> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(|(field, _)| !matches!(field.as_str(), "metadata" | "status")).collect()
}

/// Every field of one value that another does not have, without nulls.
fn missing_from(written: &Value, kept: &Value, at: &str, missing: &mut Vec<String>) {
    match (written, kept) {
        (Value::Object(written), Value::Object(kept)) => {
            for (name, value) in written.iter().filter(|(_, value)| !value.is_null()) {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                match kept.get(name) {
                    Some(kept) => missing_from(value, kept, &at, missing),
                    // Written under this name, kept under another.
                    None if at == "stringData" => {}
                    None => missing.push(at),
                }
            }
        }
        (Value::Array(written), Value::Array(kept)) => {
            for (index, (written, kept)) in written.iter().zip(kept).enumerate() {
                missing_from(written, kept, &format!("{at}[{index}]"), missing);
            }
        }
        _ => {}
    }
}

pub(crate) fn take_metadata(object: &mut Value) -> Value {
    let metadata = object.as_object_mut().and_then(|object| object.remove("metadata"));
    metadata.unwrap_or_else(|| json!({}))
}

pub(crate) fn put_metadata(object: &mut Value, metadata: Value) {
    object["metadata"] = metadata;
}

pub(crate) fn without_metadata(object: &Value) -> Value {
    let mut object = object.clone();
    take_metadata(&mut object);
    object["metadata"] = json!({});
    object
}

pub(crate) fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

pub(crate) fn timestamp(now: Timestamp) -> Value {
    json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
