//! Schemas of the Kubernetes types that our kinds embed, in the form in which an API server wants
//! them: structural, atomic where Kubernetes treats them as one value, and described.
//!
//! See the Kubernetes documentation on "Specifying a structural schema" and "Merge strategy".

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// One `metav1.LabelSelector`.
pub fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Labels that an object must have; all parts must hold, and the empty \
                        selector matches everything.",
        "type": "object",
        "properties": {
            "matchLabels": {
                "description": "Labels that must be present with exactly these values.",
                "type": "object",
                "additionalProperties": { "type": "string" },
            },
            "matchExpressions": {
                "description": "Requirements on labels; all must hold.",
                "type": "array",
                "items": requirement(&json!({
                    "description": "At least one value for In and NotIn, none for Exists and \
                                    DoesNotExist.",
                    "type": "array",
                    "items": { "type": "string" },
                    "x-kubernetes-list-type": "atomic",
                }), &["key", "operator"]),
                "x-kubernetes-list-type": "atomic",
            },
        },
        "x-kubernetes-map-type": "atomic",
    })
}

/// A list of `metav1.LabelSelector`.
pub fn label_selectors(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": label_selector(generator) })
}

/// The node selectors of BGPPeer v1beta1: stricter than a `metav1.LabelSelector`, every
/// requirement names at least one value.
pub fn node_selectors_v1beta1(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "description": "Labels that a node must have; all parts must hold.",
            "type": "object",
            "properties": {
                "matchLabels": {
                    "description": "Labels that must be present with exactly these values.",
                    "type": "object",
                    "additionalProperties": { "type": "string" },
                },
                "matchExpressions": {
                    "description": "Requirements on labels; all must hold.",
                    "type": "array",
                    "items": requirement(&json!({
                        "description": "Values to compare with, at least one.",
                        "type": "array",
                        "items": { "type": "string" },
                        "minItems": 1,
                    }), &["key", "operator", "values"]),
                },
            },
        },
    })
}

/// A `corev1.SecretReference`.
pub fn secret_reference(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "name": { "description": "Name of the Secret.", "type": "string" },
            "namespace": {
                "description": "Namespace of the Secret; only the one that Berth runs in is read.",
                "type": "string",
            },
        },
        "x-kubernetes-map-type": "atomic",
    })
}

/// A list of `metav1.Condition`, one a type.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "description": "One statement about the component.",
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": {
                    "description": "When the condition last changed.",
                    "type": "string",
                    "format": "date-time",
                },
                "message": {
                    "description": "Details for people; may be empty.",
                    "type": "string",
                    "maxLength": 32768,
                },
                "observedGeneration": {
                    "description": "Generation of the object that the condition was seen at.",
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                },
                "reason": {
                    "description": "Why, as one word for programs.",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "status": {
                    "description": "Whether the condition holds.",
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                },
                "type": {
                    "description": "What is stated.",
                    "type": "string",
                    "maxLength": 316,
                    "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?\
                                (([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
                },
            },
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

fn requirement(values: &Value, required: &[&str]) -> Value {
    json!({
        "description": "One requirement on one label.",
        "type": "object",
        "required": required,
        "properties": {
            "key": { "description": "Name of the label.", "type": "string" },
            "operator": {
                "description": "In, NotIn, Exists or DoesNotExist.",
                "type": "string",
            },
            "values": values,
        },
    })
}
