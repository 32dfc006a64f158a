//! IPAddressPool.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

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
    #[schemars(schema_with = "crate::schema::addresses")]
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
    /// Which of its free addresses the pool gives out next. An addition of Berth.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allocation_order: AllocationOrder,
    /// For how long an address that a Service gave up is not given to another one that did not
    /// ask for it, such as "10m". An addition of Berth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "duration(self) >= duration('0s')", "message": "below zero",
    }]))]
    pub reuse_after: Option<Duration>,
    /// Whose Services may share an address of the pool. An addition of Berth.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sharing_scope: SharingScope,
    /// The most addresses of the pool that the Services of one namespace may hold. An addition of
    /// Berth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647i64))]
    pub max_addresses_per_namespace: Option<u32>,
    /// What happens to a change (or removal) of the pool that would take addresses away from
    /// Services. An addition of Berth.
    #[serde(default, skip_serializing_if = "is_default")]
    pub removal_policy: RemovalPolicy,
}

/// Which of its free addresses a pool gives out next.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllocationOrder {
    /// The lowest one of the first entry that has one.
    #[default]
    Lowest,
    /// Any one, so that an address that was given up is rarely the next to be given out.
    Random,
}

/// Whose Services may share an address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SharingScope {
    /// Those of any namespace that use the same sharing key.
    #[default]
    Cluster,
    /// Those of one namespace.
    Namespace,
}

/// What happens to a change of a pool that would take addresses away from Services.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RemovalPolicy {
    /// It is made, with a warning that names the Services.
    #[default]
    Warn,
    /// The webhook refuses it.
    Refuse,
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
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
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

/// How full a pool is, and whether it is accepted. Written by the controller.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolStatus {
    /// IPv4 addresses in use.
    #[serde(default, rename = "assignedIPv4")]
    #[schemars(skip_serializing_if = "is_zero")]
    pub assigned_ipv4: i64,
    /// IPv6 addresses in use.
    #[serde(default, rename = "assignedIPv6")]
    #[schemars(skip_serializing_if = "is_zero")]
    pub assigned_ipv6: i64,
    /// IPv4 addresses that are still free.
    #[serde(default, rename = "availableIPv4")]
    #[schemars(skip_serializing_if = "is_zero")]
    pub available_ipv4: i64,
    /// IPv6 addresses that are still free; for a pool of more than 2^63 - 1 addresses as many as
    /// the field can hold.
    #[serde(default, rename = "availableIPv6")]
    #[schemars(skip_serializing_if = "is_zero")]
    pub available_ipv6: i64,
    /// What is made of the object: one condition of type Accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

fn auto_assign_default() -> bool {
    true
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}
