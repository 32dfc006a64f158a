//! Custom resources of one moment, turned into one typed value that cannot be wrong.
//!
//! Both daemons, the admission rules and the command line call [`Config::parse`]; nothing here
//! knows a client, a socket or a clock. A wrong object is left out, or keeps its last good form,
//! and every error names its object and field; all other objects apply.

mod admission;
mod advertisement;
mod bfd_profile;
mod community;
mod error;
#[cfg(test)]
mod fixture;
mod parse;
mod peer;
mod pool;
mod secret;
mod selector;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

pub use admission::{Candidate, Existing, Operation, admit};
pub use advertisement::{BgpAdvertisement, InterfaceMatch, L2Advertisement};
pub use bfd_profile::{BfdAuthentication, BfdProfile};
pub use community::{Community, NotACommunity};
pub use crds::{
    AllocationOrder, BFDAuthenticationType as BfdAuthenticationKind, RemovalPolicy, SharingScope,
    TcpAOAlgorithm as TcpAoAlgorithm,
};
pub use error::{ConfigError, ObjectRef, RangeError, Rule};
pub use parse::Sources;
pub use peer::{Peer, PeerAddress, PeerAsn, TcpAo};
pub use pool::{AddressRange, Pool, ServiceAllocation, is_buggy};
pub use secret::{Password, Secret};
pub use selector::{Labels, PackedLabels, Selector, SelectorError, SelectorRule};

use error::Fault;

/// Namespace and name of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceKey {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Name of a Kubernetes Node.
pub type NodeName = Arc<str>;
/// Name of an IPAddressPool.
pub type PoolName = Arc<str>;
/// Name of a BGPPeer.
pub type PeerName = Arc<str>;

/// Everything that the configuration is made from, as read at one moment.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    pub pools: Vec<crds::IPAddressPool>,
    pub l2_advertisements: Vec<crds::L2Advertisement>,
    pub bgp_advertisements: Vec<crds::BGPAdvertisement>,
    pub bgp_peers: Vec<crds::BGPPeer>,
    pub bfd_profiles: Vec<crds::BFDProfile>,
    pub communities: Vec<crds::Community>,
    /// Secrets of the namespace that peers and BFD profiles name: by name, the type and the key
    /// `password`.
    pub secrets: BTreeMap<String, Secret>,
    /// Labels of every Node.
    pub nodes: BTreeMap<NodeName, Labels>,
    /// Labels of every Namespace.
    pub namespaces: BTreeMap<String, Labels>,
    /// The InternalIP and ExternalIP addresses of every Node.
    pub node_addresses: BTreeMap<NodeName, BTreeSet<NodeAddress>>,
    /// The ranges of every ServiceCIDR, by its name; empty where the API server does not tell.
    pub service_ranges: BTreeMap<String, Vec<IpNet>>,
    /// Objects that are there but have not the form of their kind, with what is wrong about it.
    pub unreadable: BTreeMap<ObjectRef, String>,
}

/// An address that a Node is reached at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeAddress {
    pub address: IpAddr,
    /// `InternalIP` or `ExternalIP`.
    pub kind: Arc<str>,
}

/// Addresses that are somebody's already: given to a Service that asks for them, but not to one
/// that takes any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reserved {
    /// The Node that has the address, and its kind.
    pub nodes: BTreeMap<IpAddr, (NodeName, Arc<str>)>,
    /// What cluster IPs are from.
    pub service_ranges: Vec<IpNet>,
}

/// The configuration in force.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    pub pools: BTreeMap<PoolName, Pool>,
    pub peers: BTreeMap<PeerName, Peer>,
    pub bfd_profiles: BTreeMap<String, BfdProfile>,
    /// Pools that exist, but are left out because they are in error.
    pub left_out_pools: BTreeSet<PoolName>,
    pub reserved: Reserved,
    /// What all this was made from.
    pub sources: Sources,
}

/// The nodes that one of `selectors` matches; every node when there is none.
fn matching_nodes(
    selectors: &[Selector],
    nodes: &BTreeMap<NodeName, Labels>,
) -> BTreeSet<NodeName> {
    let matching = nodes.iter().filter(|(_, labels)| selector::any_matches(selectors, labels));
    matching.map(|(name, _)| name.clone()).collect()
}

/// A list of names as a set, with a fault for each that is given again.
fn unique(field: &str, names: &[String], faults: &mut Vec<Fault>) -> BTreeSet<String> {
    let mut set = BTreeSet::new();
    for (i, name) in names.iter().enumerate() {
        if !set.insert(name.clone()) {
            faults.push(Fault::new(format!("{field}[{i}]"), Rule::Duplicate(name.clone())));
        }
    }
    set
}

/// A number of a field that has limits.
fn within(field: &str, value: u32, min: u32, max: u32, faults: &mut Vec<Fault>) -> u32 {
    if !(min..=max).contains(&value) {
        faults.push(Fault::new(field, Rule::OutOfRange { value, min, max }));
    }
    value
}

fn parse_duration(
    field: &str,
    text: Option<&crds::Duration>,
    faults: &mut Vec<Fault>,
) -> Option<Duration> {
    let text = text?;
    match text.parse() {
        Ok(duration) => Some(duration),
        Err(error) => {
            faults.push(Fault::new(field, Rule::Duration { text: text.to_string(), error }));
            None
        }
    }
}
