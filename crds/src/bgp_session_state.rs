//! BGPSessionState: what a node's speaker knows of one BGP session.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// Nothing is wanted here.
#[derive(
    CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "metallb.io",
    version = "v1beta1",
    kind = "BGPSessionState",
    plural = "bgpsessionstates",
    namespaced,
    status = "BGPSessionStateStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Tells how one node's session with one BGP peer is.",
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "Peer", type_ = "string", json_path = ".status.peer"),
    printcolumn(name = "VRF", type_ = "string", json_path = ".status.vrf"),
    printcolumn(name = "BGP", type_ = "string", json_path = ".status.bgpStatus"),
    printcolumn(name = "BFD", type_ = "string", json_path = ".status.bfdStatus")
)]
pub struct BGPSessionStateSpec {}

/// How a session is. Written by the speaker of the node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BGPSessionStateStatus {
    /// The node that holds the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [
        { "rule": "self == oldSelf", "message": "Value is immutable" },
    ]))]
    pub node: Option<String>,
    /// Name of the BGPPeer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [
        { "rule": "self == oldSelf", "message": "Value is immutable" },
    ]))]
    pub peer: Option<String>,
    /// The VRF that the session runs in; none: the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub vrf: Option<String>,
    /// State of the session: Idle, Connect, Active, OpenSent, OpenConfirm or Established.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp_status: Option<String>,
    /// State of the BFD session that watches it: AdminDown, Down, Init or Up; N/A without a
    /// bfdProfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd_status: Option<String>,
    /// Since when the session is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Why the session went down last, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reset: Option<String>,
    /// The AS number that the peer is shown.
    #[serde(default, rename = "localASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295i64))]
    pub local_asn: Option<u32>,
    /// The AS number that the peer has shown.
    #[serde(default, rename = "peerASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295i64))]
    pub peer_asn: Option<u32>,
    /// IP address of the peer, with %INTERFACE where it is link-local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_address: Option<String>,
    /// Our BGP identifier in this session.
    #[serde(default, rename = "routerID", skip_serializing_if = "Option::is_none")]
    pub router_id: Option<String>,
    /// BGP identifier of the peer.
    #[serde(default, rename = "peerRouterID", skip_serializing_if = "Option::is_none")]
    pub peer_router_id: Option<String>,
    /// Hold time that was negotiated; 0s: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_time: Option<Duration>,
    /// Time between two KEEPALIVE messages of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive_time: Option<Duration>,
    /// The capabilities that both sides have, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// The address families that routes are exchanged in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<String>,
    /// How many prefixes there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<BGPPrefixCounts>,
    /// How many messages there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<BGPMessages>,
    /// How often the session was lost after it had been Established.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub flaps: Option<i64>,
    /// Established, and what keeps the session from doing what is asked of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Prefixes of a session.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BGPPrefixCounts {
    /// Those that the peer has from us now.
    #[schemars(range(min = 0))]
    pub sent: i64,
    /// What the peer has announced less what it has withdrawn, since the session is Established;
    /// none of it is used.
    #[schemars(range(min = 0))]
    pub received: i64,
}

/// Messages of a session since the speaker started.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BGPMessages {
    /// By us.
    pub sent: BGPMessageCounts,
    /// From the peer.
    pub received: BGPMessageCounts,
}

/// Messages by their type.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BGPMessageCounts {
    /// OPEN.
    #[schemars(range(min = 0))]
    pub open: i64,
    /// UPDATE.
    #[schemars(range(min = 0))]
    pub update: i64,
    /// NOTIFICATION.
    #[schemars(range(min = 0))]
    pub notification: i64,
    /// KEEPALIVE.
    #[schemars(range(min = 0))]
    pub keepalive: i64,
    /// ROUTE-REFRESH.
    #[schemars(range(min = 0))]
    pub route_refresh: i64,
}
