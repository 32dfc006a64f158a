//! What announcing needs of a Node.

use std::{collections::BTreeSet, net::IpAddr};

use config::Labels;
use k8s_openapi::api::core::v1 as core;

/// Set to `"true"` by whoever wants the addresses of a node elsewhere.
pub const DRAIN_ANNOTATION: &str = "berth.io/drain";
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Taints that are set when the end of a node is decided. A cordon (`unschedulable`) is not among
/// them: it is also set for a look at the node, and says nothing of what runs there.
const ENDING_TAINTS: [&str; 5] = [
    "node.kubernetes.io/out-of-service",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    "node.cloudprovider.kubernetes.io/shutdown",
];
/// What the kubelet says in the condition Ready when its host has told it to shut down.
const SHUTTING_DOWN: &str = "node is shutting down";

/// What is kept of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub labels: Labels,
    /// Condition `NetworkUnavailable` is True.
    pub network_unavailable: bool,
    pub internal_addresses: BTreeSet<IpAddr>,
    pub drain: Drain,
    /// Why the node is about to end: a taint, or what the kubelet says.
    pub ending: Option<&'static str>,
}

/// What [`DRAIN_ANNOTATION`] says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Drain {
    /// It is not there.
    #[default]
    No,
    /// `"true"`
    Yes,
    /// Anything else, which counts as not there.
    Unknown(String),
}

/// Which parts of a Node changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeChange {
    /// What selectors of the configuration are matched with.
    pub labels: bool,
    /// Whether it may announce, as far as its own state goes.
    pub availability: bool,
    pub addresses: bool,
    pub drain: bool,
}

impl NodeChange {
    /// It is new, or gone.
    pub const ALL: Self = Self { labels: true, availability: true, addresses: true, drain: true };

    pub fn any(self) -> bool {
        self != Self::default()
    }
}

impl Node {
    pub(super) fn read(object: &core::Node) -> Self {
        let status = object.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let annotations = object.metadata.annotations.as_ref();
        let addresses = status.and_then(|s| s.addresses.as_deref()).unwrap_or_default();
        Self {
            labels: object.metadata.labels.clone().unwrap_or_default(),
            network_unavailable: conditions
                .iter()
                .any(|c| c.type_ == "NetworkUnavailable" && c.status == "True"),
            internal_addresses: addresses
                .iter()
                .filter(|a| a.type_ == "InternalIP")
                .filter_map(|a| a.address.parse().ok())
                .collect(),
            drain: match annotations.and_then(|all| all.get(DRAIN_ANNOTATION)) {
                None => Drain::No,
                Some(value) if value == "true" => Drain::Yes,
                Some(value) => Drain::Unknown(value.clone()),
            },
            ending: ending(object.spec.as_ref(), conditions),
        }
    }

    /// The well-known label that takes a node out of load balancing, whatever its value.
    pub fn excluded(&self) -> bool {
        self.labels.contains_key(EXCLUDE_LABEL)
    }

    pub(super) fn change_to(&self, new: &Self) -> NodeChange {
        NodeChange {
            labels: self.labels != new.labels,
            availability: (self.network_unavailable, self.excluded())
                != (new.network_unavailable, new.excluded()),
            addresses: self.internal_addresses != new.internal_addresses,
            drain: (&self.drain, self.ending) != (&new.drain, new.ending),
        }
    }
}

fn ending(
    spec: Option<&core::NodeSpec>,
    conditions: &[core::NodeCondition],
) -> Option<&'static str> {
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tainted =
        ENDING_TAINTS.into_iter().find(|known| taints.iter().any(|taint| taint.key == *known));
    let shutting_down = || {
        let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status != "True")?;
        let said = [&ready.reason, &ready.message];
        let mut said = said.into_iter().flatten().map(|text| text.to_ascii_lowercase());
        said.any(|text| text.contains(SHUTTING_DOWN)).then_some(SHUTTING_DOWN)
    };
    tainted.or_else(shutting_down)
}
