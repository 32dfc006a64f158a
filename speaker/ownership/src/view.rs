//! What is known of the cluster: who may own what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::NodeName;

/// Who may own an address. Shared by all addresses of which the same is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidates {
    /// The nodes that may.
    pub nodes: BTreeSet<NodeName>,
    /// The score of nodes that are preferred or shunned; a node that is not named has 0.
    pub preference: BTreeMap<NodeName, i32>,
    /// The interfaces of a node on which alone it may answer, in order; a node that is not named may
    /// on any.
    pub interfaces: BTreeMap<NodeName, Arc<[String]>>,
}

/// What a speaker knows of the cluster: the first is whole, later ones may be changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The highest resource version that it is made from; 0 if none is known.
    pub version: u64,
    /// Whether addresses that are not named are wanted no longer, or as before.
    pub extent: Extent,
    /// Who may own an address; `None` if it is not to be answered for any more.
    pub addresses: BTreeMap<IpAddr, Option<Arc<Candidates>>>,
    /// All other nodes with a speaker, if that has changed.
    pub peers: Option<BTreeSet<NodeName>>,
    /// Whether this node is being drained, if that has changed.
    pub draining: Option<bool>,
}

/// How much of a view is named in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    #[default]
    Whole,
    /// What has changed.
    Changes,
}
