//! The plan in the words of the API: what is written to a Service, a pool and ConfigurationState,
//! and what is told in Events.
//!
//! Compares with what was seen and is silent where nothing differs. Sends nothing.

use std::{collections::BTreeSet, net::IpAddr};

use config::ConfigError;
use serde_json::{Map, Value, json};

use crate::{
    allocator::Counters,
    plan::{Decision, Outcome, Refusal},
    service::{
        ALLOCATED_FROM_POOL, DEPRECATED_ALLOCATED_FROM_POOL, FamilyError, Role, SeenStatus,
        Service, ServiceKey,
    },
};

/// The name of the controller's ConfigurationState.
pub const CONFIGURATION_STATE: &str = "controller";

/// A merge patch for `services/status`: addresses and annotation in one, guarded by the uid and
/// by the version that the decision rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct ServicePatch {
    pub body: Value,
    /// What the Service shows once the patch is stored.
    pub result: SeenStatus,
}

/// An object that an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Regarding {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    /// Empty when not known.
    pub uid: String,
}

impl Regarding {
    pub fn service(service: &Service) -> Self {
        Self {
            api_version: "v1",
            kind: "Service",
            namespace: service.key.namespace.to_string(),
            name: service.key.name.to_string(),
            uid: service.uid.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeKind {
    Normal,
    Warning,
}

/// An Event to publish; reasons are MetalLB's where it has one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    pub kind: NoticeKind,
    pub reason: &'static str,
    pub note: String,
}

impl Notice {
    fn normal(reason: &'static str, note: String) -> Self {
        Self { kind: NoticeKind::Normal, reason, note }
    }

    fn warning(reason: &'static str, note: String) -> Self {
        Self { kind: NoticeKind::Warning, reason, note }
    }
}

/// What must be written so that `service` shows `decision`; `None` when it does already.
pub fn service_patch(service: &Service, decision: Option<&Decision>) -> Option<ServicePatch> {
    let held = match service.role {
        Role::OtherClass => return None,
        Role::NotLoadBalancer => None,
        Role::Ours => decision?.outcome.assignment(),
    };
    let wanted: &[IpAddr] = held.map_or(&[], |held| &held.addresses);
    let pool = held.map(|held| held.pool.to_string());
    let seen = &service.seen;
    let same_addresses = !seen.foreign
        && seen.addresses.len() == wanted.len()
        && wanted.iter().all(|address| seen.addresses.contains(address));
    if same_addresses && seen.pool == pool {
        return None;
    }

    let mut annotations = Map::new();
    annotations.insert(ALLOCATED_FROM_POOL.to_owned(), json!(pool));
    if seen.deprecated_pool {
        annotations.insert(DEPRECATED_ALLOCATED_FROM_POOL.to_owned(), Value::Null);
    }
    let mut metadata = json!({ "annotations": annotations });
    // Without them (objects that no API server stored) there is nothing to guard.
    for (field, value) in [("uid", &service.uid), ("resourceVersion", &service.resource_version)] {
        if !value.is_empty() {
            metadata[field] = json!(value);
        }
    }
    let mut body = json!({ "metadata": metadata });
    if !same_addresses {
        let entry = |address: &IpAddr| json!({ "ip": address.to_string(), "ipMode": "VIP" });
        body["status"]["loadBalancer"] = if wanted.is_empty() {
            Value::Null
        } else {
            json!({ "ingress": wanted.iter().map(entry).collect::<Vec<_>>() })
        };
    }
    let result =
        SeenStatus { addresses: wanted.to_vec(), foreign: false, pool, deprecated_pool: false };
    Some(ServicePatch { body, result })
}

/// What to tell once `after` is stored in place of `before`; `lost` says why something was taken
/// away.
pub fn written_notices(
    service: &Service,
    before: &SeenStatus,
    after: &SeenStatus,
    lost: Option<&Refusal>,
) -> Vec<Notice> {
    let mut notices = Vec::new();
    let key = &service.key;
    match lost {
        // The family of the Service changed: what it lost was of no use any more.
        None | Some(Refusal::HeldFamily { .. }) => {}
        Some(lost @ Refusal::HeldTwice { .. }) => {
            let note = format!("the addresses in the status of {key} cannot be kept: {lost}");
            notices.push(Notice::warning("nolbIPsIPFamily", note));
        }
        Some(lost) => {
            let note = format!("current IP for \"{key}\" is taken back: {lost}");
            notices.push(Notice::normal("ClearAssignment", note));
        }
    }
    if before.addresses != after.addresses && !after.addresses.is_empty() {
        let (kept, new): (Vec<&IpAddr>, Vec<&IpAddr>) =
            after.addresses.iter().partition(|address| before.addresses.contains(address));
        let note = match new.as_slice() {
            [new] if !kept.is_empty() => format!("Assigned additional IP \"{new}\""),
            _ => format!("Assigned IP [{}]", quoted(&after.addresses)),
        };
        notices.push(Notice::normal("IPAllocated", note));
    }
    for annotation in &service.deprecated_annotations {
        notices.push(Notice::warning(
            "deprecatedAnnotation",
            format!("Service uses deprecated annotation {annotation}"),
        ));
    }
    notices
}

fn quoted(addresses: &[IpAddr]) -> String {
    addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(" ")
}

/// What to tell about a request that cannot be met.
pub fn refusal_notice(key: &ServiceKey, outcome: &Outcome) -> Option<Notice> {
    let (refusal, kept) = match outcome {
        Outcome::Pending { refusal, kept } => (refusal, kept),
        Outcome::Assigned(_) | Outcome::NotOurs => return None,
    };
    let note = format!("Failed to allocate IP for \"{key}\": {refusal}");
    let note = match kept {
        Some(kept) => format!("{note}; it keeps [{}]", quoted(&kept.addresses)),
        None => note,
    };
    match refusal {
        Refusal::BeingDeleted => None,
        Refusal::Families(FamilyError::NotEnoughClusterIps) => {
            Some(Notice::warning("not enough clusterips", note))
        }
        Refusal::Families(FamilyError::NoClusterIp) => {
            Some(Notice::warning("noclusterIPsIPFamily", note))
        }
        Refusal::Request(_) if kept.is_some() => Some(Notice::warning("LoadBalancerFailed", note)),
        _ => Some(Notice::warning("AllocationFailed", note)),
    }
}

/// A merge patch for `ipaddresspools/status`.
pub fn pool_status(counters: Counters) -> Value {
    json!({ "status": {
        "assignedIPv4": counters.assigned_v4,
        "assignedIPv6": counters.assigned_v6,
        "availableIPv4": counters.available_v4,
        "availableIPv6": counters.available_v6,
    }})
}

/// `status` of the ConfigurationState; the shell stamps the time of a transition.
pub fn configuration_state(errors: &[ConfigError]) -> Value {
    let messages: BTreeSet<String> = errors.iter().map(ConfigError::to_string).collect();
    let summary = messages.into_iter().collect::<Vec<_>>().join("\n");
    let (result, status, reason) = if errors.is_empty() {
        ("Valid", "True", "Reconciled")
    } else {
        ("Invalid", "False", "ConfigurationError")
    };
    json!({ "status": {
        "result": result,
        "errorSummary": summary,
        "conditions": [{
            "type": "poolReconcilerValid",
            "status": status,
            "reason": reason,
            "message": summary,
        }],
    }})
}
