//! BGPAdvertisement.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::AcceptanceStatus;

/// `aggregationLength` when it is not given: a route for each IPv4 address.
pub const DEFAULT_AGGREGATION_LENGTH: i32 = 32;
/// `aggregationLengthV6` when it is not given: a route for each IPv6 address.
pub const DEFAULT_AGGREGATION_LENGTH_V6: i32 = 128;

/// Which pools are announced by BGP, to whom and with which attributes.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "metallb.io",
    version = "v1beta1",
    kind = "BGPAdvertisement",
    plural = "bgpadvertisements",
    namespaced,
    status = "AcceptanceStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Announces the addresses of pools to BGP peers.",
    printcolumn(name = "IPAddressPools", type_ = "string", json_path = ".spec.ipAddressPools"),
    printcolumn(
        name = "IPAddressPool Selectors",
        type_ = "string",
        json_path = ".spec.ipAddressPoolSelectors"
    ),
    printcolumn(name = "Peers", type_ = "string", json_path = ".spec.peers"),
    printcolumn(
        name = "Node Selectors",
        type_ = "string",
        json_path = ".spec.nodeSelectors",
        priority = 10
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.serviceSelectors) || size(self.serviceSelectors) == 0 || \
             ((!has(self.aggregationLength) || self.aggregationLength == 32) && \
             (!has(self.aggregationLengthV6) || self.aggregationLengthV6 == 128))",
    "message": "serviceSelectors and aggregationLength are mutually exclusive, can only be used \
                together with default aggregationLength (32) and aggregationLengthV6 (128)",
}]))]
pub struct BGPAdvertisementSpec {
    /// Length of the prefix that is announced for an IPv4 address: 32 announces the address
    /// alone, a smaller number the whole prefix around it. Not shorter than any prefix of the
    /// pools.
    #[serde(default = "aggregation_length_default")]
    #[schemars(range(min = 1, max = 32))]
    pub aggregation_length: i32,
    /// The same for IPv6.
    #[serde(default = "aggregation_length_v6_default", rename = "aggregationLengthV6")]
    #[schemars(range(min = 0, max = 128))]
    pub aggregation_length_v6: i32,
    /// LOCAL_PREF of the routes, for peers of our own AS; higher is preferred, 0 leaves it unset.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    #[schemars(range(min = 0, max = 4_294_967_295i64))]
    pub local_pref: u32,
    /// MULTI_EXIT_DISC of the routes; lower is preferred. Without it, the peer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295i64))]
    pub med: Option<u32>,
    /// How many more times our AS number is put before the path of the routes, for peers of another
    /// AS, which makes them less preferred. 0: as the peer says.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    #[schemars(range(min = 0, max = 10))]
    pub as_path_prepend: u8,
    /// Tell the peers how many ready endpoints a Service has on the node, by a link-bandwidth
    /// community of 1 Gbit/s for each, so that they share the traffic out accordingly.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub weight_by_endpoints: bool,
    /// Go on announcing a Service that has lost its last endpoint in the cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_last_announcement: bool,
    /// Wait before the routes of a Service are announced again that went more than three times in
    /// a minute. They are always withdrawn at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damping: bool,
    /// Communities of the routes: "64500:100", "large:64500:1:2", "rt:64500:100" and
    /// "soo:64500:100" (route target and origin, of an AS number or an IPv4 address),
    /// "ext:0x0002fbf400000064", a name such as "no-export" or "blackhole", or the name of an alias
    /// that a Community object defines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::communities")]
    pub communities: Vec<String>,
    /// Names of the pools to announce, besides those that ipAddressPoolSelectors match. With
    /// neither, every pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub ip_address_pools: Vec<String>,
    /// Pools to announce by their labels; one selector that matches is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::label_selectors")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,
    /// Nodes that may announce, by their labels; one selector that matches is enough. Without
    /// it, every node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::label_selectors")]
    pub node_selectors: Vec<LabelSelector>,
    /// Names of the BGPPeers to announce to. Without it, every peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub peers: Vec<String>,
    /// Services to announce, by their labels; one selector that matches is enough. Without it,
    /// every Service. Only with the default aggregation lengths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::label_selectors")]
    pub service_selectors: Vec<LabelSelector>,
}

impl Default for BGPAdvertisementSpec {
    fn default() -> Self {
        Self {
            aggregation_length: DEFAULT_AGGREGATION_LENGTH,
            aggregation_length_v6: DEFAULT_AGGREGATION_LENGTH_V6,
            local_pref: 0,
            med: None,
            as_path_prepend: 0,
            weight_by_endpoints: false,
            keep_last_announcement: false,
            damping: false,
            communities: Vec::new(),
            ip_address_pools: Vec::new(),
            ip_address_pool_selectors: Vec::new(),
            node_selectors: Vec::new(),
            peers: Vec::new(),
            service_selectors: Vec::new(),
        }
    }
}

fn aggregation_length_default() -> i32 {
    DEFAULT_AGGREGATION_LENGTH
}

fn aggregation_length_v6_default() -> i32 {
    DEFAULT_AGGREGATION_LENGTH_V6
}
