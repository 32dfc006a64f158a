//! The kinds of the API group `metallb.io`: Rust types and the CustomResourceDefinitions made
//! from them.
//!
//! Types, schemas and the conversion between the versions of BGPPeer; what the fields mean
//! together is the business of `config`. Kinds stand at the root in the version that is stored;
//! [`v1beta1`] holds the older form of BGPPeer.
//!
//! Field names, defaults, ranges and printer columns are those that users of MetalLB know: a
//! manifest written for it is accepted as it stands.

#![allow(clippy::duplicated_attributes, reason = "several printer columns have the same type")]

mod bfd_profile;
mod bgp_advertisement;
mod bgp_peer;
mod bgp_session_state;
mod community;
mod conversion;
mod definition;
mod duration;
mod ip_address_pool;
mod l2_advertisement;
mod schema;
mod status;

pub use bfd_profile::{BFDAuthentication, BFDAuthenticationType, BFDProfile, BFDProfileSpec};
pub use bgp_advertisement::{
    BGPAdvertisement, BGPAdvertisementSpec, DEFAULT_AGGREGATION_LENGTH,
    DEFAULT_AGGREGATION_LENGTH_V6,
};
pub use bgp_peer::{
    BGPPeer, BGPPeerSpec, DEFAULT_BGP_PORT, DynamicASN, TcpAO, TcpAOAlgorithm, v1beta1,
};
pub use bgp_session_state::{
    BGPMessageCounts, BGPMessages, BGPPrefixCounts, BGPSessionState, BGPSessionStateSpec,
    BGPSessionStateStatus,
};
pub use community::{Community, CommunityAlias, CommunitySpec};
pub use conversion::{V1BETA2_FIELDS, convert};
pub use definition::{all, file_name, to_yaml};
pub use duration::{Duration, DurationError};
pub use ip_address_pool::{
    AllocationOrder, IPAddressPool, IPAddressPoolSpec, IPAddressPoolStatus, RemovalPolicy,
    ServiceAllocation, SharingScope,
};
pub use l2_advertisement::{L2Advertisement, L2AdvertisementSpec, PreferredNodeSelector};
pub use status::{
    AcceptanceStatus, AddressInfo, AddressStep, BGPPeerState, ConfigurationResult,
    ConfigurationState, ConfigurationStateSpec, ConfigurationStateStatus, InterfaceInfo,
    ServiceBGPStatus, ServiceBGPStatusSpec, ServiceBGPStatusStatus, ServiceL2Status,
    ServiceL2StatusSpec, ServiceL2StatusStatus,
};

/// The API group of every kind here.
pub const GROUP: &str = "metallb.io";

/// For fields that a number of 0 leaves unset.
fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}
