//! Community.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::AcceptanceStatus;

/// Names for BGP communities.
#[derive(
    CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "metallb.io",
    version = "v1beta1",
    kind = "Community",
    plural = "communities",
    namespaced,
    status = "AcceptanceStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Names for BGP communities, to be used in BGPAdvertisements."
)]
#[serde(rename_all = "camelCase")]
pub struct CommunitySpec {
    /// The names and what they stand for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::aliases")]
    pub communities: Vec<CommunityAlias>,
}

/// One name.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CommunityAlias {
    /// The name; unique among all Community objects.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// "A:B" with two numbers up to 65535 (RFC 1997), "large:A:B:C" with three up to 4294967295
    /// (RFC 8092), "rt:A:B" or "soo:A:B" with an AS number or an IPv4 address and a number, or
    /// "ext:0x" and 16 hexadecimal digits (RFC 4360), or a name such as "no-export".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
}
