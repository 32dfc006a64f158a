//! What we announce, as ServiceL2Status, ServiceBGPStatus and Events: values only.
//!
//! `io/status.rs` makes the API objects equal to the newest value.

use std::{fmt, net::IpAddr, sync::Arc};

use config::{NodeName, PeerName};
pub use crds::AddressStep as Step;
use ipnet::IpNet;
use ownership::{AddressState, Mac, Proof};

use crate::{
    plan::{Refusal, ServicePlan},
    view::{Few, ServiceKey},
};

/// What this node does for one Service, and what it has to tell of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceStatus {
    /// `None`: somebody else tells, or nobody has to.
    pub layer2: Option<Layer2Status>,
    /// `None`: no peer gets its routes from this node.
    pub bgp: Option<BgpStatus>,
}

/// One ServiceBGPStatus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BgpStatus {
    /// Those that get the routes from this node, with the prefixes, both in order.
    pub peers: Few<(PeerName, Few<IpNet>)>,
    /// The Service's addresses that are in pools with a BGPAdvertisement.
    pub addresses: Box<[IpAddr]>,
}

impl ServiceStatus {
    /// The addresses that this node answers for.
    pub fn answered(&self) -> impl Iterator<Item = IpAddr> {
        let addresses = self.layer2.iter().flat_map(|layer2| &layer2.addresses);
        addresses.filter(|address| address.answers()).map(|address| address.address)
    }
}

/// One ServiceL2Status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer2Status {
    /// What the first address that this node answers for is answered on, in order; empty: every
    /// interface.
    pub interfaces: Arc<[String]>,
    /// In order. Those that other nodes tell of are missing.
    pub addresses: Box<[AddressStatus]>,
}

impl Layer2Status {
    /// An address is announced, and nobody has said yet whether it is seen to answer.
    pub fn awaits_proof(&self) -> bool {
        self.addresses.iter().any(|told| told.step == Step::Announced && told.reason.is_none())
    }
}

/// How far the way of one address to the clients is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressStatus {
    pub address: IpAddr,
    pub step: Step,
    /// Who asked the segment for it last.
    pub seen_by: Option<NodeName>,
    /// Why it is not further; a word of [`crate::plan::Refusal::reason`] or one of those below.
    pub reason: Option<&'static str>,
    /// Who else has it.
    pub foreign: Option<Box<Foreign>>,
}

/// A station that is no node of the cluster and has one of its addresses, or claims to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    pub mac: Mac,
    pub seen: SeenAt,
}

/// Where a station was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenAt {
    /// On this interface of this node.
    Interface(Box<str>),
    /// By the speaker of another node.
    Node(NodeName),
}

impl Foreign {
    /// Whether there is something to say `now` that was not said `before`: another station, or none
    /// any more, or on which of this node's interfaces it is.
    pub(crate) fn is_news(before: Option<&Self>, now: Option<&Self>) -> bool {
        match (before, now) {
            (None, None) => false,
            (None, Some(_)) | (Some(_), None) => true,
            (Some(before), Some(now)) => {
                let nearer = match (&before.seen, &now.seen) {
                    (SeenAt::Node(_), SeenAt::Interface(_)) => true,
                    (SeenAt::Node(_) | SeenAt::Interface(_), SeenAt::Node(_))
                    | (SeenAt::Interface(_), SeenAt::Interface(_)) => false,
                };
                before.mac != now.mac || nearer
            }
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = self.mac.map(|octet| format!("{octet:02x}")).join(":");
        match &self.seen {
            SeenAt::Interface(name) => write!(f, "{mac} on interface {name}"),
            SeenAt::Node(name) => write!(f, "{mac}, as node {name} saw"),
        }
    }
}

impl AddressStatus {
    /// Whether clients get an answer from this node.
    pub fn answers(&self) -> bool {
        match self.step {
            Step::Announced | Step::Seen => true,
            Step::Allocated | Step::Conflict | Step::Owned => false,
        }
    }
}

/// Another station has the address, or claims to.
const ADDRESS_CONFLICT: &str = "addressConflict";
/// The node has no interface that works, or hears no other node.
const NODE_ISOLATED: &str = "nodeIsolated";
/// The node answers until another one does.
const HANDING_OVER: &str = "handingOver";
/// Another speaker asked for the address and got no answer.
const NO_ANSWER_SEEN: &str = "noAnswerSeen";

impl AddressStatus {
    /// What this node tells of an address; `None`: nothing.
    pub(crate) fn of(address: IpAddr, me: &NodeName, state: &AddressState) -> Option<Self> {
        use ownership::Stage;
        let foreign = conflict(me, state);
        let told = |step, seen_by: Option<&NodeName>, reason| {
            let foreign = foreign.clone().map(Box::new);
            Some(Self { address, step, seen_by: seen_by.cloned(), reason, foreign })
        };
        match state.stage {
            Stage::Idle | Stage::Listening | Stage::Probing => {
                foreign.as_ref().and_then(|_| told(Step::Conflict, None, Some(ADDRESS_CONFLICT)))
            }
            Stage::Fenced => told(Step::Owned, None, Some(NODE_ISOLATED)),
            Stage::HandingOver => told(Step::Announced, None, Some(HANDING_OVER)),
            Stage::Owner => {
                let contested = state.conflict.as_ref().map(|_| ADDRESS_CONFLICT);
                match &state.proof {
                    Proof::NotYet => told(Step::Announced, None, contested),
                    Proof::Seen { by } => told(Step::Seen, Some(by), contested),
                    Proof::Wrong { by, .. } => {
                        told(Step::Announced, Some(by), Some(ADDRESS_CONFLICT))
                    }
                    Proof::Silent { by } => {
                        told(Step::Announced, Some(by), contested.or(Some(NO_ANSWER_SEEN)))
                    }
                }
            }
        }
    }

    pub(crate) fn unanswered(address: IpAddr, reason: &'static str) -> Self {
        let reason = Some(reason);
        Self { address, step: Step::Allocated, seen_by: None, reason, foreign: None }
    }
}

/// The foreign station that this node has to tell of: the owner does, or whoever found it before
/// there was one.
pub(crate) fn conflict(me: &NodeName, state: &AddressState) -> Option<Foreign> {
    let mine = state.owner.as_ref().is_none_or(|owner| owner == me);
    let heard = state.conflict.as_ref().map(|stranger| Foreign {
        mac: stranger.mac,
        seen: SeenAt::Interface(stranger.interface.clone()),
    });
    let seen = match &state.proof {
        Proof::Wrong { mac, by } if state.stage.answers() => {
            Some(Foreign { mac: *mac, seen: SeenAt::Node(by.clone()) })
        }
        Proof::Wrong { .. } | Proof::NotYet | Proof::Seen { .. } | Proof::Silent { .. } => None,
    };
    heard.or(seen).filter(|_| mine)
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub about: Subject,
    pub kind: NoteKind,
    pub text: String,
}

/// Of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Service { key: ServiceKey, uid: Box<str> },
    Node(NodeName),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { key, .. } => write!(f, "Service {key}"),
            Self::Node(name) => write!(f, "Node {name}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteKind {
    /// MetalLB's Event `nodeAssigned`.
    NodeAssigned,
    /// MetalLB's Event `announceFailed`.
    AnnounceFailed,
    /// A foreign station has an address.
    AddressConflict,
    /// It has it no longer.
    ConflictGone,
    /// The node is drained: nothing is left that it answers for.
    Drained,
    /// The annotation that drains a node says something else.
    DrainUnknown,
    /// Why a Service is not announced: for the log, since every node would send the same Event.
    NotAnnounced,
}

impl Note {
    /// Told once when announcing begins, never on a mere re-plan.
    pub(crate) fn begun(
        me: &NodeName,
        service: &Subject,
        before: &ServiceStatus,
        now: &ServiceStatus,
    ) -> impl Iterator<Item = Self> {
        let answers = |status: &ServiceStatus| status.answered().next().is_some();
        let layer2 = (answers(now) && !answers(before)).then_some("layer2");
        let bgp = (now.bgp.is_some() && before.bgp.is_none()).then_some("bgp");
        layer2.into_iter().chain(bgp).map(move |protocol| Self {
            about: service.clone(),
            kind: NoteKind::NodeAssigned,
            text: format!("announcing from node {me:?} with protocol {protocol:?}"),
        })
    }

    /// Told when neither protocol announces a Service and the reasons are new.
    /// And what of it is not announced to a peer that others of its routes go to.
    pub(crate) fn refused(
        service: &Subject,
        plan: &ServicePlan,
    ) -> impl Iterator<Item = Self> + use<> {
        let mut texts = Vec::new();
        if let (Err(layer2), Some(bgp)) = (&plan.layer2, plan.bgp_refusal()) {
            texts.push(format!("by layer 2: {layer2}; by BGP: {bgp}"));
        }
        if let Some(plan) = plan.routes() {
            let families = plan
                .refused
                .iter()
                .filter(|(_, refusal)| matches!(refusal, Refusal::PeerWithoutFamily { .. }));
            texts.extend(families.map(|(_, refusal)| format!("by BGP: {refusal}")));
            texts.extend(plan.overruled.iter().map(ToString::to_string));
        }
        let about = service.clone();
        texts.into_iter().map(move |text| Self {
            about: about.clone(),
            kind: NoteKind::NotAnnounced,
            text,
        })
    }

    /// A foreign station has an address, or has it no longer.
    pub(crate) fn conflict(
        service: &Subject,
        address: IpAddr,
        foreign: Option<&Foreign>,
        answers: bool,
    ) -> Self {
        let Some(foreign) = foreign else {
            return Self {
                about: service.clone(),
                kind: NoteKind::ConflictGone,
                text: format!("nobody else has address {address} any more"),
            };
        };
        let text = if answers {
            format!(
                "a station that is no node of the cluster ({foreign}) announces address {address} \
                 too; take the address from it, or from the pool"
            )
        } else {
            format!(
                "address {address} is not announced, because a station that is no node of the \
                 cluster ({foreign}) has it; take the address from it, or from the pool"
            )
        };
        Self { about: service.clone(), kind: NoteKind::AddressConflict, text }
    }
}

#[cfg(test)]
mod tests {
    use ownership::{Stage, Stranger};

    use super::*;

    #[test]
    fn a_station_is_news_when_it_is_another_or_its_interface_becomes_known() {
        let at = |last, seen| Some(Foreign { mac: [2, 0, 0, 0, 0, last], seen });
        let eth0 = |last| at(last, SeenAt::Interface("eth0".into()));
        let eth1 = |last| at(last, SeenAt::Interface("eth1".into()));
        let n2 = |last| at(last, SeenAt::Node("n2".into()));
        for (before, now, news) in [
            (None, None, false),
            (None, n2(9), true),
            (n2(9), n2(9), false),
            (n2(9), eth0(9), true),
            (eth0(9), eth1(9), false),
            (eth0(9), n2(9), false),
            (eth0(9), eth0(8), true),
            (eth0(9), None, true),
        ] {
            let told = Foreign::is_news(before.as_ref(), now.as_ref());
            assert_eq!(told, news, "{before:?}, then {now:?}");
        }
    }

    #[test]
    fn every_state_has_its_step() {
        let me = NodeName::from("n1");
        let by = || NodeName::from("n2");
        let mac = [2, 0, 0, 0, 0, 9];
        let stranger = || Some(Stranger { mac, interface: "eth0".into() });
        let (owner, other) = (Some(NodeName::from("n1")), Some(by()));
        for (owner, stage, conflict, proof, expected) in [
            (None, Stage::Idle, None, Proof::NotYet, None),
            (other.clone(), Stage::Idle, None, Proof::NotYet, None),
            (other, Stage::Idle, stranger(), Proof::NotYet, None),
            (None, Stage::Probing, None, Proof::NotYet, None),
            (
                None,
                Stage::Idle,
                stranger(),
                Proof::NotYet,
                Some("Conflict - addressConflict 02:00:00:00:00:09 on interface eth0"),
            ),
            (owner.clone(), Stage::Fenced, None, Proof::NotYet, Some("Owned - nodeIsolated")),
            (
                owner.clone(),
                Stage::HandingOver,
                None,
                Proof::NotYet,
                Some("Announced - handingOver"),
            ),
            (owner.clone(), Stage::Owner, None, Proof::NotYet, Some("Announced - -")),
            (owner.clone(), Stage::Owner, None, Proof::Seen { by: by() }, Some("Seen n2 -")),
            (
                owner.clone(),
                Stage::Owner,
                stranger(),
                Proof::Seen { by: by() },
                Some("Seen n2 addressConflict 02:00:00:00:00:09 on interface eth0"),
            ),
            (
                owner.clone(),
                Stage::Owner,
                None,
                Proof::Silent { by: by() },
                Some("Announced n2 noAnswerSeen"),
            ),
            (
                owner,
                Stage::Owner,
                None,
                Proof::Wrong { by: by(), mac },
                Some("Announced n2 addressConflict 02:00:00:00:00:09, as node n2 saw"),
            ),
        ] {
            let state = AddressState { owner, stage, epoch: 1, conflict, proof };
            let told = AddressStatus::of(IpAddr::from([10, 0, 0, 9]), &me, &state);
            let told = told.map(|told| {
                let seen_by = told.seen_by.as_deref().unwrap_or("-");
                let foreign = told.foreign.map(|foreign| format!(" {foreign}"));
                let foreign = foreign.unwrap_or_default();
                format!("{:?} {seen_by} {}{foreign}", told.step, told.reason.unwrap_or("-"))
            });
            assert_eq!(told.as_deref(), expected, "{state:?}");
        }
    }
}
