//! BGPPeer: v1beta2, which is stored, and [`v1beta1`], which is only served.
//!
//! A peer written in v1beta1 is carried over whole. Read through v1beta1, a peer loses every field
//! that this version does not know.

use k8s_openapi::{
    api::core::v1::SecretReference,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// `peerPort` when it is not given (RFC 4271 section 8.1.2).
pub const DEFAULT_BGP_PORT: u16 = 179;

/// A router to talk BGP to.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "metallb.io",
    version = "v1beta2",
    kind = "BGPPeer",
    plural = "bgppeers",
    namespaced,
    status = "BGPPeerStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A router that nodes announce addresses to by BGP.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.peerAddress"),
    printcolumn(name = "ASN", type_ = "string", json_path = ".spec.peerASN"),
    printcolumn(name = "BFD Profile", type_ = "string", json_path = ".spec.bfdProfile"),
    printcolumn(name = "Multi Hops", type_ = "string", json_path = ".spec.ebgpMultiHop")
)]
#[serde(rename_all = "camelCase")]
pub struct BGPPeerSpec {
    /// Our AS number.
    #[serde(rename = "myASN")]
    #[schemars(range(min = 0, max = 4_294_967_295i64))]
    pub my_asn: u32,
    /// The peer's AS number. Either this or dynamicASN.
    #[serde(default, rename = "peerASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295i64))]
    pub peer_asn: Option<u32>,
    /// See [`DynamicASN`], whose description is the one in the schema.
    #[serde(default, rename = "dynamicASN", skip_serializing_if = "Option::is_none")]
    pub dynamic_asn: Option<DynamicASN>,
    /// Show the peer this AS number instead of myASN.
    #[serde(default, rename = "localASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295i64))]
    pub local_asn: Option<u32>,
    /// IP address of the peer. Either this or interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_address: Option<String>,
    /// Interface of the node that the peer is found on, without an address of its own
    /// (unnumbered). Either this or peerAddress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Our IP address of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<String>,
    /// TCP port of the peer.
    #[serde(default = "peer_port_default")]
    #[schemars(range(min = 1, max = 16384))]
    pub peer_port: u16,
    /// Hold time to propose: after so long without a message the session is down. 0 (never) or at
    /// least 3 s; 90 s when unset, or three times keepaliveTime when that is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_time: Option<Duration>,
    /// Time between two KEEPALIVE messages, at most holdTime; a third of holdTime when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive_time: Option<Duration>,
    /// Time between two attempts to connect, in whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [
        {
            "rule": "duration(self).getSeconds() >= 1 && duration(self).getSeconds() <= 65535",
            "message": "connect time should be between 1 seconds to 65535",
        },
        {
            "rule": "duration(self).getMilliseconds() % 1000 == 0",
            "message": "connect time should contain a whole number of seconds",
        },
    ]))]
    pub connect_time: Option<Duration>,
    /// BGP identifier to show, in the form of an IPv4 address. Without it, one of the node's
    /// addresses.
    #[serde(default, rename = "routerID", skip_serializing_if = "Option::is_none")]
    pub router_id: Option<String>,
    /// Nodes that talk to the peer, by their labels; one selector that matches is enough. Without
    /// it, every node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::label_selectors")]
    pub node_selectors: Vec<LabelSelector>,
    /// TCP MD5 password (RFC 2385) of the session. Better kept in a Secret, see passwordSecret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Secret with the TCP MD5 password: of type "kubernetes.io/basic-auth", in the namespace
    /// that Berth runs in, the password under the key "password".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::secret_reference")]
    pub password_secret: Option<SecretReference>,
    /// Name of the BFDProfile that watches the session. Without it, the session has no BFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd_profile: Option<String>,
    /// Keep the routes while the session restarts (RFC 4724). Cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self == oldSelf",
        "message": "EnableGracefulRestart cannot be changed after creation",
    }]))]
    pub enable_graceful_restart: Option<bool>,
    /// The peer is of another AS and more than one hop away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ebgp_multi_hop: bool,
    /// Reach the peer through this VRF of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf: Option<String>,
    /// No longer of any effect; dualStackAddressFamily took its place.
    #[serde(default, rename = "disableMP")]
    pub disable_mp: bool,
    /// Announce both IPv4 and IPv6 over the session, whichever of the two it runs over.
    #[serde(default)]
    pub dual_stack_address_family: bool,
}

impl Default for BGPPeerSpec {
    fn default() -> Self {
        Self {
            my_asn: 0,
            peer_asn: None,
            dynamic_asn: None,
            local_asn: None,
            peer_address: None,
            interface: None,
            source_address: None,
            peer_port: DEFAULT_BGP_PORT,
            hold_time: None,
            keepalive_time: None,
            connect_time: None,
            router_id: None,
            node_selectors: Vec::new(),
            password: None,
            password_secret: None,
            bfd_profile: None,
            enable_graceful_restart: None,
            ebgp_multi_hop: false,
            vrf: None,
            disable_mp: false,
            dual_stack_address_family: false,
        }
    }
}

/// Take the peer's AS number from the session: "internal" accepts only ours, "external" any but
/// ours. Either this or peerASN.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum DynamicASN {
    /// It is ours.
    Internal,
    /// It is any but ours.
    External,
}

/// Nothing is reported here.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct BGPPeerStatus {}

/// BGPPeer as it was first.
pub mod v1beta1 {
    use std::collections::BTreeMap;

    use super::{
        BGPPeerStatus, CustomResource, Deserialize, Duration, JsonSchema, LabelSelector,
        LabelSelectorRequirement, Serialize,
    };

    /// A router to talk BGP to.
    #[derive(
        CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq,
    )]
    #[kube(
        group = "metallb.io",
        version = "v1beta1",
        kind = "BGPPeer",
        plural = "bgppeers",
        namespaced,
        status = "BGPPeerStatus",
        derive = "PartialEq",
        derive = "Default",
        doc = "A router that nodes announce addresses to by BGP.",
        storage = false,
        deprecated = "v1beta1 is deprecated, please use v1beta2",
        printcolumn(name = "Address", type_ = "string", json_path = ".spec.peerAddress"),
        printcolumn(name = "ASN", type_ = "string", json_path = ".spec.peerASN"),
        printcolumn(name = "BFD Profile", type_ = "string", json_path = ".spec.bfdProfile"),
        printcolumn(name = "Multi Hops", type_ = "string", json_path = ".spec.ebgpMultiHop")
    )]
    #[serde(rename_all = "camelCase")]
    pub struct BGPPeerSpec {
        /// Our AS number.
        #[serde(rename = "myASN")]
        #[schemars(range(min = 0, max = 4_294_967_295i64))]
        pub my_asn: u32,
        /// The peer's AS number.
        #[serde(rename = "peerASN")]
        #[schemars(range(min = 0, max = 4_294_967_295i64))]
        pub peer_asn: u32,
        /// IP address of the peer.
        pub peer_address: String,
        /// Our IP address of the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub source_address: Option<String>,
        /// TCP port of the peer; 0 and unset mean 179.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(range(min = 0, max = 16384))]
        pub peer_port: Option<u16>,
        /// Hold time to propose: after so long without a message the session is down. 0 (never,
        /// also when unset) or at least 3 s.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub hold_time: Option<Duration>,
        /// Time between two KEEPALIVE messages, at most holdTime.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub keepalive_time: Option<Duration>,
        /// BGP identifier to show, in the form of an IPv4 address.
        #[serde(default, rename = "routerID", skip_serializing_if = "Option::is_none")]
        pub router_id: Option<String>,
        /// Nodes that talk to the peer, by their labels; one selector that matches is enough.
        /// Without it, every node.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(schema_with = "crate::schema::node_selectors_v1beta1")]
        pub node_selectors: Vec<NodeSelector>,
        /// TCP MD5 password (RFC 2385) of the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub password: Option<String>,
        /// Name of the BFDProfile that watches the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub bfd_profile: Option<String>,
        /// The peer is of another AS and more than one hop away.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub ebgp_multi_hop: bool,
    }

    /// Nodes by their labels; all parts must hold.
    #[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
    #[serde(rename_all = "camelCase")]
    pub struct NodeSelector {
        /// Labels that must be present with exactly these values.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub match_labels: BTreeMap<String, String>,
        /// Requirements on labels.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub match_expressions: Vec<MatchExpression>,
    }

    /// One requirement on one label.
    #[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
    #[serde(rename_all = "camelCase")]
    pub struct MatchExpression {
        /// Name of the label.
        pub key: String,
        /// In, NotIn, Exists or DoesNotExist.
        pub operator: String,
        /// Values to compare with.
        pub values: Vec<String>,
    }

    impl From<NodeSelector> for LabelSelector {
        fn from(selector: NodeSelector) -> Self {
            Self {
                match_labels: Some(selector.match_labels).filter(|labels| !labels.is_empty()),
                match_expressions: Some(selector.match_expressions)
                    .filter(|expressions| !expressions.is_empty())
                    .map(|expressions| expressions.into_iter().map(Into::into).collect()),
            }
        }
    }

    impl From<LabelSelector> for NodeSelector {
        fn from(selector: LabelSelector) -> Self {
            Self {
                match_labels: selector.match_labels.unwrap_or_default(),
                match_expressions: selector
                    .match_expressions
                    .unwrap_or_default()
                    .into_iter()
                    .map(Into::into)
                    .collect(),
            }
        }
    }

    impl From<MatchExpression> for LabelSelectorRequirement {
        fn from(expression: MatchExpression) -> Self {
            Self {
                key: expression.key,
                operator: expression.operator,
                values: Some(expression.values),
            }
        }
    }

    impl From<LabelSelectorRequirement> for MatchExpression {
        fn from(requirement: LabelSelectorRequirement) -> Self {
            Self {
                key: requirement.key,
                operator: requirement.operator,
                values: requirement.values.unwrap_or_default(),
            }
        }
    }
}

impl From<v1beta1::BGPPeer> for BGPPeer {
    fn from(peer: v1beta1::BGPPeer) -> Self {
        let spec = peer.spec;
        Self {
            metadata: peer.metadata,
            spec: BGPPeerSpec {
                my_asn: spec.my_asn,
                peer_asn: Some(spec.peer_asn),
                peer_address: Some(spec.peer_address),
                source_address: spec.source_address,
                peer_port: match spec.peer_port {
                    None | Some(0) => DEFAULT_BGP_PORT,
                    Some(port) => port,
                },
                hold_time: spec.hold_time.or_else(no_time),
                keepalive_time: spec.keepalive_time.or_else(no_time),
                router_id: spec.router_id,
                node_selectors: spec.node_selectors.into_iter().map(Into::into).collect(),
                password: spec.password,
                bfd_profile: spec.bfd_profile,
                ebgp_multi_hop: spec.ebgp_multi_hop,
                ..BGPPeerSpec::default()
            },
            status: peer.status,
        }
    }
}

impl From<BGPPeer> for v1beta1::BGPPeer {
    fn from(peer: BGPPeer) -> Self {
        let spec = peer.spec;
        Self {
            metadata: peer.metadata,
            spec: v1beta1::BGPPeerSpec {
                my_asn: spec.my_asn,
                peer_asn: spec.peer_asn.unwrap_or_default(),
                peer_address: spec.peer_address.unwrap_or_default(),
                source_address: spec.source_address,
                peer_port: Some(spec.peer_port),
                hold_time: spec.hold_time.or_else(no_time),
                keepalive_time: spec.keepalive_time.or_else(no_time),
                router_id: spec.router_id,
                node_selectors: spec.node_selectors.into_iter().map(Into::into).collect(),
                password: spec.password,
                bfd_profile: spec.bfd_profile,
                ebgp_multi_hop: spec.ebgp_multi_hop,
            },
            status: peer.status,
        }
    }
}

/// v1beta1 has no absent times: one that is not written is zero.
#[expect(clippy::unnecessary_wraps, reason = "the signature that Option::or_else calls")]
fn no_time() -> Option<Duration> {
    Some(Duration::from(std::time::Duration::ZERO))
}

fn peer_port_default() -> u16 {
    DEFAULT_BGP_PORT
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole_v1beta1() -> serde_json::Value {
        json!({
            "apiVersion": "metallb.io/v1beta1",
            "kind": "BGPPeer",
            "metadata": { "name": "router", "namespace": "metallb-system", "labels": { "a": "b" } },
            "spec": {
                "myASN": 64500,
                "peerASN": 64501,
                "peerAddress": "192.0.2.1",
                "sourceAddress": "192.0.2.2",
                "peerPort": 1179,
                "holdTime": "1m30s",
                "keepaliveTime": "30s",
                "routerID": "192.0.2.2",
                "nodeSelectors": [
                    {
                        "matchLabels": { "rack": "1" },
                        "matchExpressions": [
                            { "key": "zone", "operator": "In", "values": ["a", "b"] },
                        ],
                    },
                ],
                "password": "secret",
                "bfdProfile": "fast",
                "ebgpMultiHop": true,
            },
        })
    }

    #[test]
    fn all_that_v1beta1_knows_survives_the_way_there_and_back() {
        let old: v1beta1::BGPPeer = serde_json::from_value(whole_v1beta1()).unwrap();
        let new = BGPPeer::from(old.clone());
        let mut expected = whole_v1beta1();
        expected["apiVersion"] = "metallb.io/v1beta2".into();
        expected["spec"]["disableMP"] = false.into();
        expected["spec"]["dualStackAddressFamily"] = false.into();
        assert_eq!(serde_json::to_value(&new).unwrap(), expected);
        assert_eq!(v1beta1::BGPPeer::from(new), old);
    }

    #[test]
    fn what_v1beta1_does_not_know_is_lost() {
        let known = BGPPeerSpec {
            my_asn: 64500,
            peer_asn: Some(64501),
            peer_address: Some("192.0.2.1".to_owned()),
            hold_time: Some("9s".into()),
            keepalive_time: Some("3s".into()),
            ..BGPPeerSpec::default()
        };
        let all = BGPPeerSpec {
            dynamic_asn: Some(DynamicASN::External),
            local_asn: Some(64502),
            interface: Some("eth1".to_owned()),
            connect_time: Some("10s".into()),
            password_secret: Some(SecretReference::default()),
            enable_graceful_restart: Some(true),
            vrf: Some("red".to_owned()),
            disable_mp: true,
            dual_stack_address_family: true,
            ..known.clone()
        };
        let back = BGPPeer::from(v1beta1::BGPPeer::from(BGPPeer::new("router", all)));
        assert_eq!(back.spec, known);
    }

    #[test]
    fn times_that_are_not_written_in_v1beta1_are_zero() {
        let old: v1beta1::BGPPeerSpec = serde_json::from_value(
            json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1" }),
        )
        .unwrap();
        let new = BGPPeer::from(v1beta1::BGPPeer::new("router", old)).spec;
        assert_eq!(new.hold_time.unwrap().as_str(), "0s");
        assert_eq!(new.keepalive_time.unwrap().as_str(), "0s");
        assert_eq!(new.peer_port, DEFAULT_BGP_PORT);
    }
}
