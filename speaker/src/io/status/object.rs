//! ServiceL2Status, ServiceBGPStatus and BGPSessionState as the API has them.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use bgp::StateKind;
use config::{PeerName, ServiceKey};
use crds::{
    AddressInfo, AddressStep, BGPPeerState, BGPSessionStateStatus, InterfaceInfo,
    ServiceBGPStatusStatus, ServiceL2StatusStatus,
};
use ipnet::IpNet;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::{Value, json};

use super::sessions::Takes;
use crate::{
    status::{BgpStatus, Layer2Status},
    view::Few,
};

/// The condition of a ServiceL2Status.
const ANNOUNCED: &str = "Announced";
/// What a ServiceBGPStatus says of every state but Established, so that a peer that is away and is
/// tried again and again is no reason to write.
const DOWN: &str = "Down";

/// Those of a BGPSessionState that may be missing.
const SESSION_FIELDS: [&str; 8] = [
    "vrf",
    "lastReset",
    "peerASN",
    "peerRouterID",
    "holdTime",
    "keepaliveTime",
    "capabilities",
    "families",
];

/// The status of one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Status {
    Layer2(ServiceL2StatusStatus),
    Bgp(ServiceBGPStatusStatus),
    Session(Box<BGPSessionStateStatus>),
}

/// Whether two statuses say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    whole: u64,
    but_for_numbers: u64,
    but_for_small: u64,
}

/// How much one status differs from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    None,
    /// Messages were counted, or a peer that is away was tried again.
    Numbers,
    /// An address was seen to answer, or is not yet; a session came or went that a Service is
    /// announced in, which is told of the session too; it has more or fewer prefixes.
    Small,
    Great,
}

impl Digest {
    pub fn news(self, before: Self) -> News {
        if self == before {
            News::None
        } else if self.but_for_numbers == before.but_for_numbers {
            News::Numbers
        } else if self.but_for_small == before.but_for_small {
            News::Small
        } else {
            News::Great
        }
    }
}

impl Status {
    pub fn layer2(me: &str, service: &ServiceKey, told: &Layer2Status) -> Self {
        layer2(me, service, told)
    }

    /// `takes` says what a peer's session takes; `None` where it has not begun.
    pub fn bgp<'a>(
        me: &str,
        service: &ServiceKey,
        told: &BgpStatus,
        takes: impl Fn(&PeerName) -> Option<&'a Takes>,
    ) -> Self {
        bgp(me, service, told, takes)
    }

    /// Of all but times and who saw an address, which may be another at any moment.
    pub fn digest(&self) -> Digest {
        let mut plain = self.clone();
        plain.set_since(Timestamp::UNIX_EPOCH);
        if let Self::Layer2(status) = &mut plain {
            status.addresses.iter_mut().for_each(|address| address.seen_by = None);
        }
        let whole = plain.hash();
        let but_for_numbers = match &mut plain {
            Self::Layer2(_) | Self::Bgp(_) => whole,
            Self::Session(status) => {
                status.messages = None;
                if status.bgp_status.as_deref() != Some(&*StateKind::Established.to_string()) {
                    (status.bgp_status, status.since) = (None, None);
                }
                plain.hash()
            }
        };
        match &mut plain {
            Self::Layer2(status) => {
                for address in &mut status.addresses {
                    if address.state == AddressStep::Seen {
                        address.state = AddressStep::Announced;
                    }
                }
            }
            Self::Bgp(status) => status.peer_states.clear(),
            Self::Session(status) => status.prefixes = None,
        }
        Digest { whole, but_for_numbers, but_for_small: plain.hash() }
    }

    fn hash(&self) -> u64 {
        let text = match self {
            Self::Layer2(status) => serde_json::to_vec(status),
            Self::Bgp(status) => serde_json::to_vec(status),
            Self::Session(status) => serde_json::to_vec(status),
        };
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        hasher.hash_one(text.expect("made of texts and lists"))
    }

    /// Whether the condition is True; without one it is.
    pub fn announced(&self) -> bool {
        announced(self).is_none_or(|condition| condition.status == "True")
    }

    pub fn set_since(&mut self, since: Timestamp) {
        match self {
            Self::Layer2(status) => {
                for condition in &mut status.conditions {
                    condition.last_transition_time = Time(since);
                }
            }
            // A session's conditions have times of their own.
            Self::Bgp(_) | Self::Session(_) => {}
        }
    }

    /// The merge patch that makes the status of any older object this one.
    pub fn patch(&self) -> Value {
        let (status, optional) = match self {
            Self::Layer2(status) => (
                serde_json::to_value(status),
                &["node", "interfaces", "addresses", "conditions"][..],
            ),
            Self::Bgp(status) => (serde_json::to_value(status), &["peers", "peerStates"][..]),
            Self::Session(status) => (serde_json::to_value(status), &SESSION_FIELDS[..]),
        };
        let mut status = status.expect("made of texts and lists");
        for field in optional {
            if status.get(field).is_none() {
                status[field] = Value::Null;
            }
        }
        json!({ "status": status })
    }
}

/// What the condition said, and since when; without one the beginning of time.
pub fn announced_since(status: &Status) -> (bool, Timestamp) {
    let since = announced(status).map(|condition| condition.last_transition_time.0);
    (status.announced(), since.unwrap_or(Timestamp::UNIX_EPOCH))
}

fn announced(status: &Status) -> Option<&Condition> {
    match status {
        Status::Layer2(status) => {
            status.conditions.iter().find(|condition| condition.type_ == ANNOUNCED)
        }
        Status::Bgp(_) | Status::Session(_) => None,
    }
}

fn layer2(me: &str, service: &ServiceKey, told: &Layer2Status) -> Status {
    let info = |address: &crate::status::AddressStatus| AddressInfo {
        address: address.address.to_string(),
        state: address.step,
        seen_by: address.seen_by.as_deref().map(str::to_owned),
        reason: address.reason.map(str::to_owned),
    };
    let answered = told.addresses.iter().any(|address| address.answers());
    let trouble: Vec<_> = told.addresses.iter().filter(|told| told.reason.is_some()).collect();
    let missing = told.addresses.iter().find(|address| !address.answers());
    let worst = missing.or_else(|| trouble.first().copied());
    let lines = trouble.iter().map(|told| {
        let foreign = told.foreign.as_ref().map(|foreign| format!(": {foreign}"));
        let foreign = foreign.unwrap_or_default();
        let reason = told.reason.unwrap_or_default();
        format!("{}: {:?} ({reason}{foreign})", told.address, told.step)
    });
    Status::Layer2(ServiceL2StatusStatus {
        // For whoever knows MetalLB's fields alone this is the node that answers.
        node: answered.then(|| me.to_owned()),
        service_name: Some(service.name.to_string()),
        service_namespace: Some(service.namespace.to_string()),
        interfaces: told
            .interfaces
            .iter()
            .map(|name| InterfaceInfo { name: Some(name.clone()) })
            .collect(),
        addresses: told.addresses.iter().map(info).collect(),
        conditions: vec![Condition {
            type_: ANNOUNCED.to_owned(),
            status: if missing.is_none() { "True" } else { "False" }.to_owned(),
            reason: worst.and_then(|told| told.reason).unwrap_or(ANNOUNCED).to_owned(),
            message: lines.collect::<Vec<_>>().join("; "),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        }],
    })
}

fn bgp<'a>(
    me: &str,
    service: &ServiceKey,
    told: &BgpStatus,
    takes: impl Fn(&PeerName) -> Option<&'a Takes>,
) -> Status {
    let state = |(peer, prefixes): &(PeerName, Few<IpNet>)| {
        let takes = takes(peer);
        let established = takes.is_some_and(|takes| takes.established);
        let taken = prefixes.iter().filter(|prefix| takes.is_some_and(|t| t.prefix(prefix)));
        BGPPeerState {
            name: peer.to_string(),
            session: Some(match established {
                true => StateKind::Established.to_string(),
                false => DOWN.to_owned(),
            }),
            prefixes: taken.map(ToString::to_string).collect(),
            since: takes.map(|takes| Time(takes.since)),
        }
    };
    Status::Bgp(ServiceBGPStatusStatus {
        node: Some(me.to_owned()),
        service_name: Some(service.name.to_string()),
        service_namespace: Some(service.namespace.to_string()),
        peers: told.peers.iter().map(|(peer, _)| peer.to_string()).collect(),
        peer_states: told.peers.iter().map(state).collect(),
    })
}
