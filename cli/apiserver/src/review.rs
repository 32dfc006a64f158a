//! The questions that a server for metrics asks about its clients: who has this token
//! (`authentication.k8s.io`), and may they do that (`authorization.k8s.io`)?
//!
//! This server asks nobody who they are, so every token is that of one administrator, and everybody
//! may do everything; only questions that make no sense are refused, as by a real API server.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    ApiError,
    api::{Outcome, WriteOptions, Written},
    builtin::BuiltIn,
    error::Cause,
    object::{Request, shape},
    resource::Resource,
};

/// The question with its answer as `status`; nothing is stored.
///
/// # Errors
/// 400 or 422 when the question is incomplete.
pub(crate) fn answer(
    resource: &Resource,
    question: &Value,
    options: WriteOptions<'_>,
) -> Result<Written, ApiError> {
    let (mut object, warnings) = shape(resource, question.clone(), options, Request::Put)?;
    let spec = &object["spec"];
    object["status"] = match resource.built_in() {
        Some(BuiltIn::TokenReview) => {
            if spec["token"].as_str().is_none_or(str::is_empty) {
                let message = "token is required for TokenReview in authentication";
                return Err(ApiError::bad_request(message));
            }
            let groups = ["system:masters", "system:authenticated"];
            json!({"authenticated": true, "user": {"username": "system:admin", "groups": groups}})
        }
        _ => {
            let causes = access_causes(spec);
            if !causes.is_empty() {
                return Err(ApiError::invalid(resource, "", &causes));
            }
            json!({"allowed": true, "reason": "this server allows everything"})
        }
    };
    Ok(Written { object: Arc::new(object), outcome: Outcome::Created, warnings })
}

fn access_causes(spec: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if spec["resourceAttributes"].is_null() == spec["nonResourceAttributes"].is_null() {
        let rule = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        causes.push(Cause::invalid("spec.resourceAttributes", &spec["resourceAttributes"], rule));
    }
    if spec["user"].as_str().is_none_or(str::is_empty)
        && spec["groups"].as_array().is_none_or(Vec::is_empty)
    {
        let rule = "at least one of user or group must be specified";
        causes.push(Cause::invalid("spec.user", &spec["user"], rule));
    }
    causes
}
