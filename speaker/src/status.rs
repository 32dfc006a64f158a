//! What we announce, as ServiceL2Status, ServiceBGPStatus and Events: values only.
//!
//! `io/status.rs` makes the API objects equal to the newest value.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use config::{NodeName, PeerName};
use layer2::InterfaceMatch;

use crate::{plan::ServicePlan, view::ServiceKey};

/// What this node does for one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Answered for by this node on these interfaces (empty: on all); `None`: by another or nobody.
    pub layer2: Option<BTreeSet<String>>,
    /// Peers that get its routes from this node; `None`: nobody does.
    pub bgp: Option<BTreeSet<PeerName>>,
}

impl ServiceStatus {
    pub(crate) fn of(me: &NodeName, plan: &ServicePlan, owned: &BTreeSet<IpAddr>) -> Self {
        let mine = plan.layer2.iter().flatten().find(|(address, wanted)| {
            owned.contains(*address) && wanted.candidates.nodes.contains(me)
        });
        Self {
            layer2: mine.map(|(_, wanted)| match &wanted.interfaces {
                InterfaceMatch::All => BTreeSet::new(),
                InterfaceMatch::Only(names) => names.clone(),
            }),
            bgp: plan.bgp.as_ref().ok().map(BTreeMap::keys).map(|peers| peers.cloned().collect()),
        }
    }
}

/// Something to tell about a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub service: ServiceKey,
    pub uid: String,
    pub kind: NoteKind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteKind {
    /// MetalLB's Event `nodeAssigned`.
    NodeAssigned,
    /// Why a Service is not announced: for the log, since every node would send the same Event.
    NotAnnounced,
}

impl Note {
    /// Told once when announcing begins, never on a mere re-plan.
    pub(crate) fn begun(
        me: &NodeName,
        service: &ServiceKey,
        uid: &str,
        before: &ServiceStatus,
        now: &ServiceStatus,
    ) -> Vec<Self> {
        let layer2 = (now.layer2.is_some() && before.layer2.is_none()).then_some("layer2");
        let bgp = (now.bgp.is_some() && before.bgp.is_none()).then_some("bgp");
        let assigned = |protocol| Self {
            service: service.clone(),
            uid: uid.to_owned(),
            kind: NoteKind::NodeAssigned,
            text: format!("announcing from node {me:?} with protocol {protocol:?}"),
        };
        layer2.into_iter().chain(bgp).map(assigned).collect()
    }

    /// Told when neither protocol announces a Service and the reasons are new.
    pub(crate) fn refused(service: &ServiceKey, uid: &str, plan: &ServicePlan) -> Option<Self> {
        let (Err(layer2), Err(bgp)) = (&plan.layer2, &plan.bgp) else { return None };
        Some(Self {
            service: service.clone(),
            uid: uid.to_owned(),
            kind: NoteKind::NotAnnounced,
            text: format!("by layer 2: {layer2}; by BGP: {bgp}"),
        })
    }
}
