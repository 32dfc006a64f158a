//! BFDProfile.

use k8s_openapi::api::core::v1::SecretReference;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::AcceptanceStatus;

/// How a BGP session is watched by BFD (RFC 5880).
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "metallb.io",
    version = "v1beta1",
    kind = "BFDProfile",
    plural = "bfdprofiles",
    namespaced,
    status = "AcceptanceStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Timers and modes of the BFD sessions of the BGPPeers that name this profile.",
    printcolumn(name = "Passive Mode", type_ = "boolean", json_path = ".spec.passiveMode"),
    printcolumn(
        name = "Transmit Interval",
        type_ = "integer",
        json_path = ".spec.transmitInterval"
    ),
    printcolumn(name = "Receive Interval", type_ = "integer", json_path = ".spec.receiveInterval"),
    printcolumn(name = "Multiplier", type_ = "integer", json_path = ".spec.detectMultiplier")
)]
#[serde(rename_all = "camelCase")]
pub struct BFDProfileSpec {
    /// Shortest time between two control packets that we can receive, in milliseconds. 300 when
    /// unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 60000))]
    pub receive_interval: Option<u32>,
    /// Shortest time between two control packets that we want to send, in milliseconds. 300 when
    /// unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 60000))]
    pub transmit_interval: Option<u32>,
    /// After how many missing packets the session is down. 3 when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 255))]
    pub detect_multiplier: Option<u32>,
    /// Shortest time between two echo packets, in milliseconds. 50 when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 60000))]
    pub echo_interval: Option<u32>,
    /// Send echo packets. Not for IPv6 and not over several hops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo_mode: Option<bool>,
    /// Wait for the peer's first packet instead of sending the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive_mode: Option<bool>,
    /// Smallest TTL that a packet of a peer several hops away may arrive with. 254 when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 254))]
    pub minimum_ttl: Option<u32>,
    /// See [`BFDAuthentication`], whose description is the one in the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<BFDAuthentication>,
}

/// Authenticate the packets of the session (RFC 5880 section 6.7); the peer has to do the same.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BFDAuthentication {
    /// See [`BFDAuthenticationType`], whose description is the one in the schema.
    #[serde(rename = "type")]
    pub kind: BFDAuthenticationType,
    /// Identifies the key in every packet.
    #[serde(rename = "keyID")]
    #[schemars(range(min = 0, max = 255))]
    pub key_id: u8,
    /// Secret with the key: of type "kubernetes.io/basic-auth", in the namespace that Berth runs
    /// in, the key under "password": up to 16 bytes for MD5, up to 20 for SHA1.
    #[schemars(schema_with = "crate::schema::secret_reference")]
    pub secret: SecretReference,
}

/// How a packet is authenticated. A meticulous kind has another sequence number in every packet, so
/// that none can be played back.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum BFDAuthenticationType {
    KeyedMD5,
    MeticulousKeyedMD5,
    KeyedSHA1,
    MeticulousKeyedSHA1,
}
