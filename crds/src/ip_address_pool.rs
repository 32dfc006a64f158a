//! IPAddressPool.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which addresses there are and which Services may have them.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "metallb.io",
    version = "v1beta1",
    kind = "IPAddressPool",
    plural = "ipaddresspools",
    namespaced,
    status = "IPAddressPoolStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Addresses that Services of type LoadBalancer can be given.",
    printcolumn(name = "Auto Assign", type_ = "boolean", json_path = ".spec.autoAssign"),
    printcolumn(name = "Avoid Buggy IPs", type_ = "boolean", json_path = ".spec.avoidBuggyIPs"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses")
)]
#[serde(rename_all = "camelCase")]
// Required of who writes a pool, but one without it must still be readable, to be reported.
#[schemars(extend("required" = ["addresses"]))]
pub struct IPAddressPoolSpec {
    /// The addresses of the pool: CIDR prefixes ("192.0.2.0/28", host bits are ignored) and
    /// ranges with both ends included ("192.0.2.16-192.0.2.31"), IPv4 and IPv6 as you like. No
    /// address may be in two entries or two pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Whether a Service that names no pool can be given an address of this one.
    #[serde(default = "auto_assign_default")]
    pub auto_assign: bool,
    /// Leave out IPv4 addresses that end in .0 or .255: some old devices drop traffic to them.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    /// Which Services the pool is for; without it, for all. A pool with this part serves the
    /// Services that it admits before any other pool does, and no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,
}

/// Which Services a pool is for, and how eagerly it is used for them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// Among several pools that admit a Service the lowest priority is used first; 0 and unset
    /// come last.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i64,
    /// Only Services of these namespaces (or of those that namespaceSelectors match).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Only Services of namespaces with labels that one of these selects (or of those named in
    /// namespaces).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::label_selectors")]
    pub namespace_selectors: Vec<LabelSelector>,
    /// Only Services with labels that one of these selects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::label_selectors")]
    pub service_selectors: Vec<LabelSelector>,
}

/// How full a pool is. Written by the controller.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolStatus {
    /// IPv4 addresses in use.
    #[serde(rename = "assignedIPv4")]
    pub assigned_ipv4: i64,
    /// IPv6 addresses in use.
    #[serde(rename = "assignedIPv6")]
    pub assigned_ipv6: i64,
    /// IPv4 addresses that are still free.
    #[serde(rename = "availableIPv4")]
    pub available_ipv4: i64,
    /// IPv6 addresses that are still free; for a pool of more than 2^63 - 1 addresses as many as
    /// the field can hold.
    #[serde(rename = "availableIPv6")]
    pub available_ipv6: i64,
}

fn auto_assign_default() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}
