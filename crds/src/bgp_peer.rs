//! BGPPeer: v1beta2, which is stored, and [`v1beta1`], which is only served. Between the two:
//! [`convert`](crate::convert).

use k8s_openapi::{
    api::core::v1::SecretReference, apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AcceptanceStatus, Duration};

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
    status = "AcceptanceStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A router that nodes announce addresses to by BGP.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.peerAddress"),
    printcolumn(name = "ASN", type_ = "string", json_path = ".spec.peerASN"),
    printcolumn(name = "BFD Profile", type_ = "string", json_path = ".spec.bfdProfile"),
    printcolumn(name = "Multi Hops", type_ = "string", json_path = ".spec.ebgpMultiHop")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.peerASN) && self.peerASN != 0) != has(self.dynamicASN)",
        "message": "exactly one of peerASN and dynamicASN has to be set",
    },
    {
        "rule": "(has(self.peerAddress) && self.peerAddress != '') != \
                 (has(self.interface) && self.interface != '')",
        "message": "exactly one of peerAddress and interface has to be set",
    },
    {
        "rule": "!has(self.keepaliveTime) || (has(self.holdTime) ? \
                 duration(self.keepaliveTime) <= duration(self.holdTime) : \
                 duration(self.keepaliveTime) == duration('0s') || \
                 (duration(self.keepaliveTime) >= duration('1s') && \
                 duration(self.keepaliveTime) <= duration('21845s')))",
        "message": "keepaliveTime is more than holdTime, or a third of no hold time within 3s to \
                    65535s",
    },
    {
        "rule": "!has(self.ebgpMultiHop) || !self.ebgpMultiHop || !has(self.peerASN) || \
                 self.peerASN != self.myASN",
        "message": "the peer is of our own AS, so ebgpMultiHop has no meaning",
    },
    {
        "rule": "!has(self.password) || self.password == '' || !has(self.passwordSecret) || \
                 !has(self.passwordSecret.name) || self.passwordSecret.name == ''",
        "message": "both password and passwordSecret are set; remove one",
    },
    {
        "rule": "!has(self.tcpAO) || (has(self.password) && self.password != '') || \
                 (has(self.passwordSecret) && has(self.passwordSecret.name) && \
                 self.passwordSecret.name != '')",
        "message": "tcpAO has no key; name a Secret in passwordSecret",
    },
    {
        "rule": "!has(self.ttlSecurityHops) || !has(self.ebgpMultiHop) || !self.ebgpMultiHop",
        "message": "ttlSecurityHops says how far the peer is; remove ebgpMultiHop",
    },
]))]
pub struct BGPPeerSpec {
    /// Our AS number.
    #[serde(rename = "myASN")]
    #[schemars(range(min = 1, max = 4_294_967_295i64))]
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
    #[schemars(schema_with = "crate::schema::address")]
    pub peer_address: Option<String>,
    /// Interface of the node that the peer is found on, without an address of its own
    /// (unnumbered). Either this or peerAddress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub interface: Option<String>,
    /// Our IP address of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::address")]
    pub source_address: Option<String>,
    /// TCP port of the peer.
    #[serde(default = "peer_port_default")]
    #[schemars(range(min = 1, max = 16384))]
    pub peer_port: u16,
    /// Hold time to propose: after so long without a message the session is down. 0 (never) or at
    /// least 3 s; 90 s when unset, or three times keepaliveTime when that is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::hold_time")]
    pub hold_time: Option<Duration>,
    /// Time between two KEEPALIVE messages, at most holdTime; a third of holdTime when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::keepalive_time")]
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
    #[schemars(schema_with = "crate::schema::router_id")]
    pub router_id: Option<String>,
    /// Nodes that talk to the peer, by their labels; one selector that matches is enough. Without
    /// it, every node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::label_selectors")]
    pub node_selectors: Vec<LabelSelector>,
    /// TCP MD5 password (RFC 2385) of the session. Better kept in a Secret, see passwordSecret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
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
    /// Wait for the peer to connect instead of connecting to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passive: bool,
    /// The peer is at most so many hops away: 1 for one on the same network. Packets that came
    /// further are dropped (RFC 5082), and the peer has to do the same. Not with ebgpMultiHop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 254))]
    pub ttl_security_hops: Option<u8>,
    /// LOCAL_PREF of the routes that no BGPAdvertisement gives one, for a peer of our own AS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295i64))]
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC of the routes that no BGPAdvertisement gives one; lower is preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295i64))]
    pub med: Option<u32>,
    /// How many more times our AS number is put before the path of the routes for which no
    /// BGPAdvertisement says so; for a peer of another AS.
    #[serde(default, skip_serializing_if = "crate::is_zero")]
    #[schemars(range(min = 0, max = 10))]
    pub as_path_prepend: u8,
    /// Time between two announcements of the same prefix; 0 when unset. A withdrawal waits for
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::min_advertisement_interval")]
    pub min_advertisement_interval: Option<Duration>,
    /// With enableGracefulRestart: how long the peer keeps the routes while the session restarts,
    /// in whole seconds; 15 s when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::restart_time")]
    pub graceful_restart_time: Option<Duration>,
    /// With bfdProfile: announce nothing until BFD is up, at most for 10 s. True when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd_strict: Option<bool>,
    /// See [`TcpAO`], whose description is the one in the schema.
    #[serde(default, rename = "tcpAO", skip_serializing_if = "Option::is_none")]
    pub tcp_ao: Option<TcpAO>,
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
            passive: false,
            ttl_security_hops: None,
            local_pref: None,
            med: None,
            as_path_prepend: 0,
            min_advertisement_interval: None,
            graceful_restart_time: None,
            bfd_strict: None,
            tcp_ao: None,
        }
    }
}

/// Authenticate the session by the TCP Authentication Option (RFC 5925) instead of TCP MD5, where
/// the kernel of the node has it. The key is that of passwordSecret.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TcpAO {
    /// Identifies the key in what we send; the peer's receive ID.
    #[serde(rename = "sendID")]
    #[schemars(range(min = 0, max = 255))]
    pub send_id: u8,
    /// Identifies the key in what we receive; the peer's send ID.
    #[serde(rename = "receiveID")]
    #[schemars(range(min = 0, max = 255))]
    pub receive_id: u8,
    /// See [`TcpAOAlgorithm`], whose description is the one in the schema.
    pub algorithm: TcpAOAlgorithm,
}

/// How packets are authenticated (RFC 5926): HMAC-SHA-1-96 or AES-128-CMAC-96.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpAOAlgorithm {
    #[serde(rename = "HMACSHA1")]
    HmacSha1,
    #[serde(rename = "AESCMAC128")]
    AesCmac128,
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

/// BGPPeer as it was first.
pub mod v1beta1 {
    use super::{
        AcceptanceStatus, CustomResource, Deserialize, Duration, JsonSchema, LabelSelector,
        Serialize,
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
        status = "AcceptanceStatus",
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
    // What only v1beta2 can say is not seen by these rules: without a peerASN there may be a
    // dynamicASN, without a peerAddress an interface, without a holdTime a default.
    #[schemars(extend("x-kubernetes-validations" = [
        {
            "rule": "!has(self.keepaliveTime) || !has(self.holdTime) || \
                     duration(self.holdTime) == duration('0s') || \
                     duration(self.keepaliveTime) <= duration(self.holdTime)",
            "message": "keepaliveTime is more than holdTime",
        },
        {
            "rule": "!has(self.ebgpMultiHop) || !self.ebgpMultiHop || self.peerASN != self.myASN",
            "message": "the peer is of our own AS, so ebgpMultiHop has no meaning",
        },
    ]))]
    pub struct BGPPeerSpec {
        /// Our AS number.
        #[serde(rename = "myASN")]
        #[schemars(range(min = 1, max = 4_294_967_295i64))]
        pub my_asn: u32,
        /// The peer's AS number.
        #[serde(rename = "peerASN")]
        #[schemars(range(min = 0, max = 4_294_967_295i64))]
        pub peer_asn: u32,
        /// IP address of the peer.
        #[schemars(schema_with = "crate::schema::address")]
        pub peer_address: String,
        /// Our IP address of the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(schema_with = "crate::schema::address")]
        pub source_address: Option<String>,
        /// TCP port of the peer; 0 and unset mean 179.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(range(min = 0, max = 16384))]
        pub peer_port: Option<u16>,
        /// Hold time to propose: after so long without a message the session is down. 0 (never,
        /// also when unset) or at least 3 s.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(schema_with = "crate::schema::hold_time")]
        pub hold_time: Option<Duration>,
        /// Time between two KEEPALIVE messages, at most holdTime.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(schema_with = "crate::schema::keepalive_time")]
        pub keepalive_time: Option<Duration>,
        /// BGP identifier to show, in the form of an IPv4 address.
        #[serde(default, rename = "routerID", skip_serializing_if = "Option::is_none")]
        #[schemars(schema_with = "crate::schema::router_id")]
        pub router_id: Option<String>,
        /// Nodes that talk to the peer, by their labels; one selector that matches is enough.
        /// Without it, every node.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(schema_with = "crate::schema::label_selectors")]
        pub node_selectors: Vec<LabelSelector>,
        /// TCP MD5 password (RFC 2385) of the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(max = 80))]
        pub password: Option<String>,
        /// Name of the BFDProfile that watches the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub bfd_profile: Option<String>,
        /// The peer is of another AS and more than one hop away.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub ebgp_multi_hop: bool,
    }
}

fn peer_port_default() -> u16 {
    DEFAULT_BGP_PORT
}
