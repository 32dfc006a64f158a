//! ServiceL2Status and ServiceBGPStatus as the API has them.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use config::ServiceKey;
use crds::{AddressInfo, InterfaceInfo, ServiceBGPStatusStatus, ServiceL2StatusStatus};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::{Value, json};

use super::books::Kind;
use crate::status::{BgpStatus, Layer2Status, ServiceStatus};

/// The condition of a ServiceL2Status.
const ANNOUNCED: &str = "Announced";

/// The status of one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Status {
    Layer2(ServiceL2StatusStatus),
    Bgp(ServiceBGPStatusStatus),
}

impl Status {
    /// `None`: there is to be no such object.
    pub fn of(kind: Kind, me: &str, service: &ServiceKey, status: &ServiceStatus) -> Option<Self> {
        match kind {
            Kind::Layer2 => status.layer2.as_ref().map(|told| layer2(me, service, told)),
            Kind::Bgp => status.bgp.as_ref().map(|told| bgp(me, service, told)),
        }
    }

    /// Of all but times and who saw an address, which may be another at any moment.
    pub fn digest(&self) -> u64 {
        let mut plain = self.clone();
        plain.set_since(Timestamp::UNIX_EPOCH);
        if let Self::Layer2(status) = &mut plain {
            status.addresses.iter_mut().for_each(|address| address.seen_by = None);
        }
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        hasher.hash_one(plain.patch().to_string())
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
            Self::Bgp(_) => {}
        }
    }

    /// The merge patch that makes the status of any older object this one.
    pub fn patch(&self) -> Value {
        let (status, optional) = match self {
            Self::Layer2(status) => (
                serde_json::to_value(status),
                &["node", "interfaces", "addresses", "conditions"][..],
            ),
            Self::Bgp(status) => (serde_json::to_value(status), &["peers"][..]),
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
        Status::Bgp(_) => None,
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
        format!("{}: {:?} ({})", told.address, told.step, told.reason.unwrap_or_default())
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

fn bgp(me: &str, service: &ServiceKey, told: &BgpStatus) -> Status {
    Status::Bgp(ServiceBGPStatusStatus {
        node: Some(me.to_owned()),
        service_name: Some(service.name.to_string()),
        service_namespace: Some(service.namespace.to_string()),
        peers: told.peers.iter().map(ToString::to_string).collect(),
    })
}
