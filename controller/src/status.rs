//! The plan in the words of the API: what is written to a Service, a pool and ConfigurationState,
//! and what is told in Events.
//!
//! Compares with what was seen and is silent where nothing differs. Sends nothing.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use config::{ConfigError, ObjectRef};
use crds::{ConfigurationResult, ConfigurationStateStatus};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use serde_json::{Map, Value, json};

use crate::{
    allocator::{Assignment, Counters},
    plan::{Decision, Note, Outcome, Refusal},
    service::{
        ADDRESS_ASSIGNED, ALLOCATED_FROM_POOL, DEPRECATED_ALLOCATED_FROM_POOL, FamilyError, Role,
        SeenCondition, SeenStatus, Service, ServiceKey,
    },
};

/// The name of the controller's ConfigurationState.
pub const CONFIGURATION_STATE: &str = "controller";
/// In bytes; a condition's message may be 32768 characters long, and nobody reads that.
const LONGEST_MESSAGE: usize = 4096;
/// In bytes; that of the ConfigurationState, as long as its condition's message may be.
const LONGEST_SUMMARY: usize = 32_768;

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
    let wanted: &[IpAddr] = held.map_or(&[], Assignment::addresses);
    let pool = held.map(Assignment::pool_annotation);
    let refusal = match service.role {
        Role::Ours => decision.and_then(|decision| refusal(&decision.outcome)),
        Role::OtherClass | Role::NotLoadBalancer => None,
    };
    let seen = &service.seen;
    let same_condition = says(seen.condition.as_deref(), refusal.as_ref());
    let same_addresses = !seen.foreign
        && seen.addresses.len() == wanted.len()
        && wanted.iter().all(|address| seen.addresses.contains(address));
    if same_addresses && seen.pool == pool && same_condition {
        return None;
    }

    let mut annotations = Map::new();
    if seen.pool != pool || !same_addresses {
        annotations.insert(ALLOCATED_FROM_POOL.to_owned(), json!(pool));
    }
    if seen.deprecated_pool {
        annotations.insert(DEPRECATED_ALLOCATED_FROM_POOL.to_owned(), Value::Null);
    }
    let mut metadata =
        if annotations.is_empty() { json!({}) } else { json!({ "annotations": annotations }) };
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
    let others = &seen.other_conditions;
    let condition = refusal.map(|(reason, message)| {
        let since = seen.condition.as_ref().filter(|seen| seen.status == "False");
        let since = since.map(|seen| seen.since.clone()).unwrap_or_default();
        Box::new(SeenCondition { status: "False".to_owned(), reason, message, since })
    });
    if !same_condition {
        let ours = condition.iter().map(|condition| {
            let SeenCondition { status, reason, message, since } = &**condition;
            let mut value = json!({
                "type": ADDRESS_ASSIGNED, "status": status, "reason": reason, "message": message,
            });
            if !since.is_empty() {
                value["lastTransitionTime"] = json!(since);
            }
            value
        });
        // The patch replaces the list; its guard is the version that it was read at.
        let all: Vec<Value> = others.iter().cloned().chain(ours).collect();
        body["status"]["conditions"] = if all.is_empty() { Value::Null } else { json!(all) };
    }
    let result = SeenStatus {
        addresses: wanted.to_vec(),
        foreign: false,
        pool,
        deprecated_pool: false,
        condition,
        other_conditions: others.clone(),
    };
    Some(ServicePatch { body, result })
}

/// Reason and message of the condition that a Service has while its request is not met.
fn refusal(outcome: &Outcome) -> Option<(String, String)> {
    match outcome {
        Outcome::Assigned(_) | Outcome::NotOurs => None,
        Outcome::Pending { refusal: Refusal::BeingDeleted, .. } => None,
        Outcome::Pending { refusal, kept } => {
            let message = with_kept(refusal.to_string(), kept.as_deref());
            Some((refusal.reason().to_owned(), shortened(message, LONGEST_MESSAGE)))
        }
    }
}

/// Whether the condition that is shown says what it should.
fn says(seen: Option<&SeenCondition>, wanted: Option<&(String, String)>) -> bool {
    match (seen, wanted) {
        (None, None) => true,
        (Some(seen), Some((reason, message))) => {
            seen.status == "False" && seen.reason == *reason && seen.message == *message
        }
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Whether `service` shows already why its request is not met: whoever wrote that told it too.
pub fn is_told(service: &Service, outcome: &Outcome) -> bool {
    let refusal = refusal(outcome);
    refusal.is_some() && says(service.seen.condition.as_deref(), refusal.as_ref())
}

fn with_kept(text: String, kept: Option<&Assignment>) -> String {
    match kept {
        Some(kept) => format!("{text}; it keeps [{}]", quoted(kept.addresses())),
        None => text,
    }
}

/// Cut between characters, to at most `longest` bytes.
fn shortened(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
    }
    text
}

/// What to tell once `after` is stored in place of `before`; `lost` says why something was taken
/// away, `notes` what is odd about what was given.
pub fn written_notices(
    service: &Service,
    before: &SeenStatus,
    after: &SeenStatus,
    lost: Option<&Refusal>,
    notes: &[Note],
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
        notices.extend(notes.iter().map(|note| Notice::warning(note.reason(), note.to_string())));
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
    let note = with_kept(note, kept.as_deref());
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

/// What is said of a custom resource: the condition `Accepted`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    pub reason: &'static str,
    /// Every error of the object, one a line; empty when there is none.
    pub message: String,
}

/// The type of the condition of every custom resource.
pub const ACCEPTED: &str = "Accepted";

impl Acceptance {
    /// Of an object that nothing is wrong with.
    pub const GOOD: Self = Self { reason: ACCEPTED, message: String::new() };

    /// Of every object that something is wrong with.
    pub fn of(errors: &[ConfigError]) -> BTreeMap<ObjectRef, Self> {
        let mut all: BTreeMap<ObjectRef, Self> = BTreeMap::new();
        for error in errors {
            let line = Self::line(error);
            match all.entry(error.object()) {
                Entry::Vacant(entry) => {
                    entry.insert(Self { reason: error.rule().name(), message: line });
                }
                Entry::Occupied(mut entry) => {
                    let message = &mut entry.get_mut().message;
                    if message.len() < LONGEST_MESSAGE {
                        message.push('\n');
                        message.push_str(&line);
                    }
                }
            }
        }
        for acceptance in all.values_mut() {
            let message = std::mem::take(&mut acceptance.message);
            acceptance.message = shortened(message, LONGEST_MESSAGE);
        }
        all
    }

    /// What the message says of one error.
    pub fn line(error: &ConfigError) -> String {
        format!("{}: {}", error.field(), error.rule())
    }

    /// `status` of the condition.
    pub fn status(&self) -> &'static str {
        if self.message.is_empty() { "True" } else { "False" }
    }

    /// Whether `seen` says this of the object's form of `generation`.
    pub fn is_shown(&self, seen: &Condition, generation: Option<i64>) -> bool {
        seen.status == self.status()
            && seen.reason == self.reason
            && seen.message == self.message
            && seen.observed_generation == generation
    }
}

/// A merge patch for the status of a custom resource. `seen` are its conditions, `counters` those
/// of a pool, to be written where they are given. The shell stamps the time of a transition.
pub fn object_status(
    acceptance: &Acceptance,
    generation: Option<i64>,
    seen: &[Condition],
    counters: Option<Counters>,
) -> Value {
    let status = acceptance.status();
    let mut ours = json!({
        "type": ACCEPTED,
        "status": status,
        "reason": acceptance.reason,
        "message": acceptance.message,
    });
    if let Some(generation) = generation {
        ours["observedGeneration"] = json!(generation);
    }
    let old = seen.iter().find(|seen| seen.type_ == ACCEPTED && seen.status == status);
    if let Some(old) = old.filter(|old| old.last_transition_time.0 != Timestamp::UNIX_EPOCH) {
        ours["lastTransitionTime"] = json!(old.last_transition_time);
    }
    let others = seen.iter().filter(|seen| seen.type_ != ACCEPTED).map(|seen| json!(seen));
    let mut status = json!({ "conditions": others.chain([ours]).collect::<Vec<_>>() });
    if let Some(counters) = counters {
        status["assignedIPv4"] = json!(counters.assigned_v4);
        status["assignedIPv6"] = json!(counters.assigned_v6);
        status["availableIPv4"] = json!(counters.available_v4);
        status["availableIPv6"] = json!(counters.available_v6);
    }
    json!({ "status": status })
}

/// What the ConfigurationState says of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSummary {
    pub result: &'static str,
    pub status: &'static str,
    pub reason: &'static str,
    /// Every error, one a line.
    pub summary: String,
}

/// The type of the condition in the controller's ConfigurationState.
pub const POOL_RECONCILER_VALID: &str = "poolReconcilerValid";

impl StateSummary {
    pub fn of(errors: &[ConfigError]) -> Self {
        let messages: BTreeSet<String> = errors.iter().map(ConfigError::to_string).collect();
        let summary = messages.into_iter().collect::<Vec<_>>().join("\n");
        let summary = shortened(summary, LONGEST_SUMMARY);
        let (result, status, reason) = if errors.is_empty() {
            ("Valid", "True", "Reconciled")
        } else {
            ("Invalid", "False", "ConfigurationError")
        };
        Self { result, status, reason, summary }
    }

    /// Whether `seen` says so.
    pub fn is_shown(&self, seen: &ConfigurationStateStatus) -> bool {
        let result = match seen.result {
            Some(ConfigurationResult::Valid) => "Valid",
            Some(ConfigurationResult::Invalid) => "Invalid",
            Some(ConfigurationResult::Unknown) | None => "Unknown",
        };
        let condition = seen.conditions.iter().find(|seen| seen.type_ == POOL_RECONCILER_VALID);
        result == self.result
            && seen.error_summary.as_deref().unwrap_or_default() == self.summary
            && condition.is_some_and(|seen| {
                seen.status == self.status
                    && seen.reason == self.reason
                    && seen.message == self.summary
            })
    }

    /// `status` of the ConfigurationState; the shell stamps the time of a transition.
    pub fn body(&self) -> Value {
        json!({ "status": {
            "result": self.result,
            "errorSummary": self.summary,
            "conditions": [{
                "type": POOL_RECONCILER_VALID,
                "status": self.status,
                "reason": self.reason,
                "message": self.summary,
            }],
        }})
    }
}
