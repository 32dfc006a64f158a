//! A refused request, as the `metav1.Status` that clients read. Codes and reasons are those of
//! <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/>.

use std::fmt;

use serde_json::{Value, json};

use crate::resource::Resource;

/// A refused request.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, such as `NotFound`, `Conflict` or `Invalid`.
    pub reason: &'static str,
    /// What the user is told.
    pub message: String,
    details: Value,
}

/// What is wrong with one field of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cause {
    reason: &'static str,
    field: String,
    message: String,
}

impl Cause {
    pub(crate) fn required(field: impl Into<String>, hint: &str) -> Self {
        let message = match hint {
            "" => "Required value".to_owned(),
            hint => format!("Required value: {hint}"),
        };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    pub(crate) fn invalid(field: impl Into<String>, value: &Value, rule: &str) -> Self {
        let message = format!("Invalid value: {value}: {rule}");
        Self { reason: "FieldValueInvalid", field: field.into(), message }
    }

    pub(crate) fn forbidden(field: impl Into<String>, rule: &str) -> Self {
        let message = format!("Forbidden: {rule}");
        Self { reason: "FieldValueForbidden", field: field.into(), message }
    }

    pub(crate) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        let message = format!("Duplicate value: {value}");
        Self { reason: "FieldValueDuplicate", field: field.into(), message }
    }

    pub(crate) fn unsupported(field: impl Into<String>, value: &Value, allowed: &[Value]) -> Self {
        let allowed: Vec<_> = allowed.iter().map(Value::to_string).collect();
        let message =
            format!("Unsupported value: {value}: supported values: {}", allowed.join(", "));
        Self { reason: "FieldValueNotSupported", field: field.into(), message }
    }

    fn field_conflict(manager: &str, field: String) -> Self {
        let message = format!("conflict with {manager:?}");
        Self { reason: "FieldManagerConflict", field, message }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    fn about(resource: &Resource, name: &str, code: u16, reason: &'static str, text: &str) -> Self {
        let message = format!("{} {name:?} {text}", resource.qualified_plural());
        let details = json!({"name": name, "group": resource.group, "kind": resource.plural});
        Self { details, ..Self::new(code, reason, message) }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        Self::about(resource, name, 404, "NotFound", "not found")
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub(crate) fn not_acceptable() -> Self {
        Self::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        )
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::about(resource, name, 409, "AlreadyExists", "already exists")
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            resource.qualified_plural()
        );
        Self { message, ..Self::about(resource, name, 409, "Conflict", "") }
    }

    pub(crate) fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and \
             try again",
        )
    }

    /// A server-side apply that would take fields from other managers: `(manager, field)`.
    pub(crate) fn apply_conflict(conflicts: Vec<(String, String)>) -> Self {
        let plural = if conflicts.len() == 1 { "conflict" } else { "conflicts" };
        let causes: Vec<_> = conflicts
            .into_iter()
            .map(|(manager, field)| Cause::field_conflict(&manager, field))
            .collect();
        let listed: Vec<_> =
            causes.iter().map(|cause| format!("{}: {}", cause.message, cause.field)).collect();
        let message = format!("Apply failed with {} {plural}: {}", causes.len(), listed.join(", "));
        Self { details: details_of(&causes), ..Self::new(409, "Conflict", message) }
    }

    pub(crate) fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    pub(crate) fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(crate) fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let listed: Vec<_> = causes.iter().map(Cause::to_string).collect();
        let listed = match listed.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {listed}", resource.qualified_kind());
        let mut details = details_of(causes);
        details["name"] = json!(name);
        details["group"] = json!(resource.group);
        details["kind"] = json!(resource.kind);
        Self { details, ..Self::new(422, "Invalid", message) }
    }

    pub(crate) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    pub(crate) fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let why = format!("is forbidden: {why}");
        Self::about(resource, name, 403, "Forbidden", &why)
    }

    pub(crate) fn denied(message: &str) -> Self {
        Self::new(
            403,
            "Forbidden",
            format!("admission of metallb.io denied the request: {message}"),
        )
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    pub(crate) fn future_resource_version(wanted: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        let details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        });
        Self { details, ..Self::new(504, "Timeout", message) }
    }

    /// The `metav1.Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.message, self.code, self.reason)
    }
}

impl std::error::Error for ApiError {}

fn details_of(causes: &[Cause]) -> Value {
    let causes: Vec<_> = causes
        .iter()
        .map(
            |cause| json!({"reason": cause.reason, "field": cause.field, "message": cause.message}),
        )
        .collect();
    json!({ "causes": causes })
}
