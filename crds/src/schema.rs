//! Schemas of the Kubernetes types that our kinds embed, in the form in which an API server wants
//! them: structural, atomic where Kubernetes treats them as one value, and described. And the
//! rules of single values, so that an API server refuses a bad one with no webhook running.
//!
//! What a rule costs is estimated by the server when the definition is installed, from the longest
//! texts and lists that the schema allows; hence limits, all far beyond what anybody writes. Texts
//! and lists that no rule looks at have none. A list of names is a set, which the server keeps free
//! of duplicates at no cost.
//!
//! See the Kubernetes documentation on "Specifying a structural schema", "Merge strategy" and
//! "Validation rules".

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::Duration;

/// A prefix and its optional DNS domain, as in keys of labels.
const LABEL_KEY: &str = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?\
                         ([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)$";
const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// True when the text is a community (RFC 1997, RFC 8092), or has the form of one of RFC 4360,
/// whose numbers are left to admission.
const IS_COMMUNITY: &str = "(TEXT.matches('^[0-9]+:[0-9]+$') && \
    TEXT.split(':').all(x, int(x) <= 65535)) || \
    (TEXT.matches('^large:[0-9]+:[0-9]+:[0-9]+$') && \
    TEXT.substring(6).split(':').all(x, int(x) <= 4294967295)) || \
    TEXT.matches('^((rt|soo):[0-9.]+:[0-9]+|ext:0x[0-9a-fA-F]{16})$')";
/// True when the text is one of the names that every router knows.
const IS_WELL_KNOWN: &str = "TEXT in ['no-export', 'no-advertise', 'no-export-subconfed', \
    'no-peer', 'graceful-shutdown', 'accept-own', 'llgr-stale', 'no-llgr', 'blackhole']";
const NOT_A_COMMUNITY: &str = "write A:B with numbers up to 65535, large:A:B:C with numbers up to \
    4294967295, rt:A:B, soo:A:B or ext:0x with 16 hexadecimal digits";

/// The entries of an IPAddressPool.
pub fn addresses(_: &mut SchemaGenerator) -> Schema {
    // A list of one element gives that element a name: CEL has no other way.
    let of_range = |rule: &str| {
        format!(
            "self.indexOf('-') < 0 || [self.substring(0, self.indexOf('-')).trim()].all(first, \
             [self.substring(self.indexOf('-') + 1).trim()].all(last, {rule}))"
        )
    };
    // CEL knows no order of addresses; that of IPv4 is the one of their numbers. Two ends that are
    // out of order in IPv6, and entries that overlap, are left to admission.
    let number = |octets: &str| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| format!("int({octets}[{index}])"));
        format!("(({a} * 256 + {b}) * 256 + {c}) * 256 + {d}")
    };
    let in_order = format!(
        "!isIP(first) || !isIP(last) || ip(first).family() != 4 || ip(last).family() != 4 || \
         [first.split('.')].all(a, [last.split('.')].all(b, {} <= {}))",
        number("a"),
        number("b")
    );
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 10_000,
        "items": {
            "type": "string",
            "maxLength": 128,
            "x-kubernetes-validations": [
                {
                    "rule": "!isIP(self.trim())",
                    "message": "an address without a prefix length; write /32 after an IPv4 \
                                address, /128 after an IPv6 address",
                },
                {
                    "rule": format!(
                        "self.indexOf('-') < 0 ? isIP(self.trim()) || isCIDR(self.trim()) : ({})",
                        of_range("isIP(first) && isIP(last)")
                    ),
                    "message": "neither a prefix such as 192.0.2.0/28 nor a range such as \
                                192.0.2.1-192.0.2.9",
                },
                {
                    "rule": of_range(
                        "!isIP(first) || !isIP(last) || ip(first).family() == ip(last).family()",
                    ),
                    "message": "both ends of a range have to be IPv4 or both IPv6",
                },
                {
                    "rule": of_range(&in_order),
                    "message": "the first address of the range comes after the last; swap them",
                },
            ],
        },
    })
}

/// The communities of a BGPAdvertisement; a text without a colon may be the name of one.
pub fn communities(_: &mut SchemaGenerator) -> Schema {
    let is_community = IS_COMMUNITY.replace("TEXT", "self");
    json_schema!({
        "type": "array",
        "maxItems": 1024,
        "items": {
            "type": "string",
            "maxLength": 128,
            "x-kubernetes-validations": [{
                "rule": format!("!self.contains(':') || {is_community}"),
                "message": format!("neither a community nor the name of one; {NOT_A_COMMUNITY}"),
            }],
        },
        "x-kubernetes-list-type": "set",
    })
}

/// The aliases of a Community object.
pub fn aliases(_: &mut SchemaGenerator) -> Schema {
    let is_community = format!("{IS_WELL_KNOWN} || {IS_COMMUNITY}").replace("TEXT", "self.value");
    json_schema!({
        "type": "array",
        "maxItems": 1024,
        "items": {
            "description": "One name.",
            "type": "object",
            "properties": {
                "name": {
                    "description": "The name; unique among all Community objects.",
                    "type": "string",
                    "default": "",
                },
                "value": {
                    "description": "\"A:B\" with two numbers up to 65535 (RFC 1997), \
                                    \"large:A:B:C\" with three up to 4294967295 (RFC 8092), \
                                    \"rt:A:B\" or \"soo:A:B\" with an AS number or an IPv4 address \
                                    and a number, or \"ext:0x\" and 16 hexadecimal digits (RFC \
                                    4360), or a name such as \"no-export\".",
                    "type": "string",
                    "maxLength": 128,
                },
            },
            "x-kubernetes-validations": [{
                "rule": format!("has(self.value) && ({is_community})"),
                "message": format!("value is no community; {NOT_A_COMMUNITY}"),
            }],
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    })
}

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
                "additionalProperties": {
                    "type": "string", "maxLength": 63, "pattern": LABEL_VALUE,
                },
            },
            "matchExpressions": {
                "description": "Requirements on labels; all must hold.",
                "type": "array",
                "maxItems": 64,
                "items": requirement(),
                "x-kubernetes-list-type": "set",
            },
        },
        "x-kubernetes-map-type": "atomic",
    })
}

/// A list of `metav1.LabelSelector`.
pub fn label_selectors(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 4096,
        "items": label_selector(generator),
        "x-kubernetes-list-type": "set",
    })
}

/// An IP address; the empty text means that none is given.
pub fn address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 64,
        "x-kubernetes-validations": [{
            "rule": "self == '' || isIP(self)", "message": "not an IP address",
        }],
    })
}

/// A BGP identifier; the empty text means that none is given.
pub fn router_id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 64,
        "x-kubernetes-validations": [{
            "rule": "self == '' || (isIP(self) && ip(self).family() == 4)",
            "message": "not a router ID; write it like an IPv4 address",
        }],
    })
}

/// A BGP hold time (RFC 4271 section 4.2).
pub fn hold_time(generator: &mut SchemaGenerator) -> Schema {
    with_rule(
        generator,
        "duration(self) == duration('0s') || \
         (duration(self) >= duration('3s') && duration(self) <= duration('65535s'))",
        "not 0 and not within 3s to 65535s",
    )
}

/// The time between two KEEPALIVE messages.
pub fn keepalive_time(generator: &mut SchemaGenerator) -> Schema {
    with_rule(generator, "duration(self) >= duration('0s')", "below zero")
}

/// The time between two announcements of a prefix (RFC 4271 section 9.2.1.1).
pub fn min_advertisement_interval(generator: &mut SchemaGenerator) -> Schema {
    with_rule(
        generator,
        "duration(self) >= duration('0s') && duration(self) <= duration('10m')",
        "not within 0s to 10m",
    )
}

/// A restart time (RFC 4724 section 3).
pub fn restart_time(generator: &mut SchemaGenerator) -> Schema {
    with_rule(
        generator,
        "duration(self) >= duration('1s') && duration(self) <= duration('4095s') && \
         duration(self).getMilliseconds() % 1000 == 0",
        "not a whole number of seconds within 1s to 4095s",
    )
}

fn with_rule(generator: &mut SchemaGenerator, rule: &str, message: &str) -> Schema {
    let mut schema = Duration::json_schema(generator);
    schema.insert(
        "x-kubernetes-validations".to_owned(),
        json!([{ "rule": rule, "message": message }]),
    );
    schema
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

fn requirement() -> Value {
    json!({
        "description": "One requirement on one label.",
        "type": "object",
        "required": ["key", "operator"],
        "properties": {
            "key": {
                "description": "Name of the label.",
                "type": "string",
                "maxLength": 317,
                "pattern": LABEL_KEY,
            },
            "operator": {
                "description": "In, NotIn, Exists or DoesNotExist.",
                "type": "string",
                "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
            },
            "values": {
                "description": "At least one value for In and NotIn, none for Exists and \
                                DoesNotExist.",
                "type": "array",
                "items": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE },
                "x-kubernetes-list-type": "set",
            },
        },
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-validations": [{
            "rule": "(has(self.values) && size(self.values) > 0) == \
                     (self.operator in ['In', 'NotIn'])",
            "message": "In and NotIn need at least one value, Exists and DoesNotExist take none",
        }],
    })
}
