//! Replays conformance cases of MetalLB's allocator and controller from the folder that
//! `BERTH_VECTORS` names; without it there is nothing to do.
//!
//! A case that ends otherwise must stand in `docs/differences.md`, its id in backquotes. Fixtures
//! with overlapping pools, which no configuration of ours can hold, are replayed on their largest
//! parts without overlap.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Instant,
};

use config::{AddressRange, Config, Pool, Resources, Selector, ServiceAllocation};
use controller::{
    allocator::{Allocator, Assignment, Id, Part, Parts, Scope, Search, Tenant},
    controller::{Action, Controller, Event, Settings, WriteResult},
    plan::{Decision, plan},
    service::{Families, Family, PackedLabels, Port, Protocol, Service, ServiceKey, Sharing},
    status,
};
use ipnet::IpNet;
use serde_json::{Value, json};

/// What became of the cases of one file.
#[derive(Default)]
struct Tally {
    passed: usize,
    skipped: usize,
    failed: Vec<(String, String)>,
}

impl Tally {
    fn take(&mut self, id: &str, result: Result<(), String>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(why) => self.failed.push((id.to_owned(), why)),
        }
    }

    /// Prints the counts; panics when a failed case is no intended difference.
    fn finish(self, file: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/differences.md");
        let differences = fs::read_to_string(path).unwrap_or_default();
        let (intended, wrong): (Vec<_>, Vec<_>) =
            self.failed.iter().partition(|(id, _)| differences.contains(&format!("`{id}`")));
        println!(
            "{file}: {} passed, {} skipped, {} intended differences, {} wrong",
            self.passed,
            self.skipped,
            intended.len(),
            wrong.len()
        );
        for (id, why) in &wrong {
            println!("  {id}: {why}");
        }
        assert!(wrong.is_empty(), "{file}: {} cases went wrong", wrong.len());
    }
}

fn cases(file: &str) -> Option<Value> {
    let folder = std::env::var_os("BERTH_VECTORS")?;
    let text = fs::read_to_string(Path::new(&folder).join(file)).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

#[test]
fn allocator_traces() {
    let Some(file) = cases("allocator_traces.json") else { return };
    let mut tally = Tally::default();
    for case in file["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let mut trace = AllocatorTrace::new();
        for (index, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let before = trace.clone();
            match trace.step(step) {
                Step::Skipped => tally.skipped += 1,
                Step::Done(error) => {
                    let result = trace.compare(step, error);
                    let failed = result.is_err();
                    tally.take(id, result.map_err(|why| format!("step {index}: {why}")));
                    // What follows rests on the state after this step.
                    if failed && step["expect"]["error"].is_null() {
                        break;
                    }
                    if failed {
                        trace = before;
                    }
                }
            }
        }
    }
    tally.finish("allocator_traces (steps)");
}

#[derive(Clone)]
struct AllocatorTrace {
    now: Instant,
    allocator: Allocator,
    config: Config,
    overlap: bool,
    /// Services in pools that were left out.
    strangers: BTreeSet<String>,
    /// What was assigned, to be asked for again when the pools change.
    tenants: BTreeMap<String, Asker>,
}

/// A Service as far as the allocator knows it.
#[derive(Clone)]
struct Asker {
    id: Id,
    key: ServiceKey,
    labels: PackedLabels,
    sharing: Option<Arc<Sharing>>,
    ports: Vec<Port>,
}

impl Asker {
    fn tenant(&self) -> Tenant<'_> {
        Tenant {
            id: self.id,
            key: &self.key,
            labels: &self.labels,
            sharing: self.sharing.as_ref(),
            ports: &self.ports,
        }
    }
}

enum Step {
    Skipped,
    Done(Option<String>),
}

impl AllocatorTrace {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            allocator: Allocator::default(),
            config: Config::default(),
            overlap: false,
            strangers: BTreeSet::new(),
            tenants: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Value) -> Step {
        let input = &step["input"];
        let name = input["svcKey"].as_str().unwrap_or_default().to_owned();
        match step["op"].as_str().unwrap() {
            "SetPools" => {
                let (pools, dropped) = without_overlap(&input["pools"]["ByName"], &[]);
                self.overlap = dropped;
                self.config = Config { pools, ..Config::default() };
                let old = std::mem::replace(&mut self.allocator, Allocator::new(&self.config, 0));
                for (name, mut asker) in std::mem::take(&mut self.tenants) {
                    let held = addresses_of(old.parts(asker.id));
                    asker.id = self.allocator.register(&asker.key);
                    self.tenants.insert(name.clone(), asker);
                    if held.is_empty() || self.assign(&name, &held).is_some() {
                        self.tenants.remove(&name);
                    }
                }
                Step::Done(None)
            }
            "Unassign" => {
                if let Some(asker) = self.tenants.remove(&name) {
                    self.allocator.release(asker.id, self.now);
                }
                Step::Done(None)
            }
            "Assign" => {
                let before = self.tenants.get(&name).cloned();
                self.introduce(&name, input);
                let error = self.assign(&name, &addresses(&input["request"]));
                match before {
                    Some(before) if error.is_some() => {
                        self.tenants.insert(name, before);
                    }
                    // The trace moves a Service to another namespace, which no cluster can.
                    Some(asker) if asker.id != self.tenants[&name].id => {
                        self.allocator.release(asker.id, self.now);
                    }
                    None if error.is_some() => {
                        self.tenants.remove(&name);
                    }
                    Some(_) | None => {}
                }
                Step::Done(error)
            }
            op @ ("Allocate" | "AllocateFromPool") => {
                let pool = input["pool"].as_str();
                let unknown = pool.is_some_and(|pool| !self.config.pools.contains_key(pool));
                if self.overlap && unknown && pool != Some("nonexistentpool") {
                    self.strangers.insert(name);
                    return Step::Skipped;
                }
                let families = families(input);
                if let Some(asker) = self.tenants.get(&name) {
                    // A Service that has addresses gets no others by asking again.
                    let held = addresses_of(self.allocator.parts(asker.id));
                    let fits = held.iter().all(|a| families.contain(Family::of(*a)));
                    return Step::Done((!fits).then(|| "wrong family".to_owned()));
                }
                self.introduce(&name, input);
                let tenant = self.tenants[&name].tenant();
                let named = pool.map(|pool| self.allocator.pool_id(pool));
                let found = match (op, named) {
                    ("AllocateFromPool", Some(None)) => None,
                    ("AllocateFromPool", Some(Some(pool))) => {
                        let admitted = self.allocator.admits(pool, tenant);
                        admitted
                            .then(|| self.find(tenant, Scope::Named(&[pool]), families))
                            .flatten()
                    }
                    _ => self.find(tenant, Scope::Automatic, families),
                };
                let error = match found {
                    Some(found) => self.assign(&name, &addresses_of(found)),
                    None => Some("no address".to_owned()),
                };
                if error.is_some() {
                    self.tenants.remove(&name);
                }
                Step::Done(error)
            }
            other => panic!("unknown step {other}"),
        }
    }

    fn introduce(&mut self, name: &str, input: &Value) {
        let metadata = &input["svc"]["metadata"];
        let key = ServiceKey::new(metadata["namespace"].as_str().unwrap_or_default(), name);
        let labels: config::Labels =
            serde_json::from_value(metadata["labels"].clone()).unwrap_or_default();
        let text = |field: &str| input[field].as_str().unwrap_or_default().into();
        let sharing = Sharing { key: text("sharingKey"), backend: text("backendKey") };
        let ports: BTreeSet<Port> =
            input["ports"].as_array().into_iter().flatten().map(port).collect();
        let asker = Asker {
            id: self.allocator.register(&key),
            key,
            labels: PackedLabels::new(&labels),
            sharing: (!sharing.key.is_empty()).then(|| Arc::new(sharing)),
            ports: ports.into_iter().collect(),
        };
        self.tenants.insert(name.to_owned(), asker);
    }

    fn find(&self, tenant: Tenant<'_>, scope: Scope<'_>, families: Families) -> Option<Parts> {
        Search::new(&self.allocator, tenant, scope, Parts::default()).find(families)
    }

    /// Assigns exactly these addresses; what is in the way, if anything.
    fn assign(&mut self, name: &str, addresses: &[IpAddr]) -> Option<String> {
        let asker = self.tenants[name].clone();
        let tenant = asker.tenant();
        let mut parts = Parts::default();
        for address in addresses {
            let Some(pool) = self.allocator.pool_of(*address) else {
                return Some("not in a pool".to_owned());
            };
            if !self.allocator.admits(pool, tenant) {
                return Some("pool does not admit the Service".to_owned());
            }
            if let Err(conflict) = self.allocator.check(tenant, *address) {
                return Some(conflict.to_string());
            }
            parts.set(Part { address: *address, pool });
        }
        if parts.iter().count() != addresses.len() {
            return Some("not one address of each family".to_owned());
        }
        self.allocator.assign(tenant, parts, self.now);
        None
    }

    fn compare(&self, step: &Value, error: Option<String>) -> Result<(), String> {
        let mut held = BTreeMap::new();
        for (name, asker) in &self.tenants {
            if let Some(assignment) = self.allocator.assignment(self.allocator.parts(asker.id)) {
                held.insert(name.clone(), assignment);
            }
        }
        let mut variants = vec![&step["expect"]];
        variants.extend(step["variants"].as_array().into_iter().flatten());
        let same = |expected: &Value| {
            let mut allocated = expected["after"]["allocated"].as_object().unwrap().clone();
            allocated.retain(|name, _| !self.strangers.contains(name));
            expected["error"].is_null() == error.is_none()
                && allocated.len() == held.len()
                && held.iter().all(|(name, held)| {
                    let expected = &allocated[name.as_str()];
                    let same_pool = self.overlap || expected["Pool"] == held.pool_annotation();
                    same_pool && addresses(&expected["IPs"]) == held.addresses()
                })
                && (self.overlap || self.same_counters(&expected["after"]["counters"]))
        };
        if variants.iter().any(|expected| same(expected)) {
            return Ok(());
        }
        let counters: Vec<_> = self.allocator.counters().collect();
        Err(format!("{step} but {error:?} {held:?} {counters:?}"))
    }

    fn same_counters(&self, expected: &Value) -> bool {
        self.allocator.counters().all(|(pool, counters)| {
            let expected = &expected[&**pool];
            expected.is_null()
                || (expected["AssignedIPv4"] == counters.assigned_v4
                    && expected["AssignedIPv6"] == counters.assigned_v6
                    && expected["AvailableIPv4"] == counters.available_v4
                    && expected["AvailableIPv6"] == counters.available_v6)
        })
    }
}

#[test]
fn controller_mutation() {
    let Some(file) = cases("controller_mutation.json") else { return };
    let configs = [&["pool5"][..], &["pool1", "pool3"]].map(|without| {
        let (pools, _) = without_overlap(&file["pools"]["ByName"], without);
        Config { pools, ..Config::default() }
    });
    let mut tally = Tally::default();
    for case in file["cases"].as_array().unwrap() {
        if case["svc"].is_null() {
            tally.skipped += 1;
            continue;
        }
        let service = service(&case["svc"], "test");
        let mut seen = Vec::new();
        let same = configs.iter().any(|config| {
            let plan = plan(
                config,
                &BTreeMap::from([(service.key.clone(), service.clone())]),
                Instant::now(),
            );
            let decision = plan.decision(&service.key);
            let result = mutation(&service, decision);
            let same = same_mutation(case, &service, &result);
            seen.push(result);
            same
        });
        let result = if same { Ok(()) } else { Err(format!("{case} but {seen:?}")) };
        tally.take(case["id"].as_str().unwrap(), result);
    }
    tally.finish("controller_mutation");
}

/// What is written, and the reasons of the Events.
fn mutation(
    service: &Service,
    decision: Option<&Decision>,
) -> (Option<status::ServicePatch>, Vec<&'static str>) {
    let patch = status::service_patch(service, decision);
    let mut notices = Vec::new();
    let lost = decision.and_then(|decision| decision.lost.as_deref());
    if let Some(patch) = &patch {
        let notes = decision.map_or(&[][..], |decision| &decision.notes);
        notices = status::written_notices(service, &service.seen, &patch.result, lost, notes);
    }
    notices.extend(
        decision.and_then(|decision| status::refusal_notice(&service.key, &decision.outcome)),
    );
    (patch, notices.into_iter().map(|notice| notice.reason).collect())
}

fn same_mutation(
    case: &Value,
    service: &Service,
    (patch, reasons): &(Option<status::ServicePatch>, Vec<&'static str>),
) -> bool {
    let mut variants = vec![&case["expect"]];
    variants.extend(case["variants"].as_array().into_iter().flatten());
    let same_write = variants.iter().any(|expected| {
        if expected["statusWritten"] == false {
            return !patch.as_ref().is_some_and(|patch| writes_addresses(&patch.body));
        }
        let shown = patch.as_ref().map_or(&service.seen, |patch| &patch.result);
        let pool = &expected["annotations"]["metallb.io/ip-allocated-from-pool"];
        patch.is_some()
            && ingress(&expected["status"]) == shown.addresses
            && pool.as_str() == shown.pool.as_deref()
    });
    let same_events = case["event_variants"].as_array().unwrap().iter().any(|events| {
        let expected: Vec<&str> =
            events.as_array().unwrap().iter().map(|e| e["reason"].as_str().unwrap()).collect();
        expected == *reasons
    });
    same_write && same_events
}

#[test]
fn controller_traces() {
    let Some(file) = cases("controller_traces.json") else { return };
    let mut tally = Tally::default();
    for case in file["cases"].as_array().unwrap() {
        let mut trace = ControllerTrace::new();
        for (index, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let result = trace.step(step).map_err(|why| format!("step {index}: {why}"));
            tally.take(case["id"].as_str().unwrap(), result);
        }
    }
    tally.finish("controller_traces (steps)");
}

struct ControllerTrace {
    controller: Controller,
    now: Instant,
    synced: bool,
    version: u64,
    /// Since the last step that sets a Service.
    written: bool,
    reasons: Vec<&'static str>,
}

impl ControllerTrace {
    fn new() -> Self {
        Self {
            controller: Controller::new(Settings::default()),
            now: Instant::now(),
            synced: false,
            version: 0,
            written: false,
            reasons: Vec::new(),
        }
    }

    fn step(&mut self, step: &Value) -> Result<(), String> {
        let input = &step["input"];
        if step["op"] == "SetPools" {
            let Some(pools) = input["pools"]["ByName"].as_object() else { return Ok(()) };
            let pools = pools.iter().map(|(name, pool)| {
                serde_json::from_value(json!({
                    "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
                    "metadata": {"name": name}, "spec": {"addresses": pool["CIDR"]},
                }))
                .unwrap()
            });
            let resources = Resources { pools: pools.collect(), ..Resources::default() };
            self.handle(Event::ResourcesChanged(Arc::new(resources)));
            if !std::mem::replace(&mut self.synced, true) {
                self.handle(Event::Synced);
                self.handle(Event::Leading);
            }
            return Ok(());
        }
        let name = input["key"].as_str().unwrap();
        let key = ServiceKey::new("", name);
        if input["svc"].is_null() {
            self.handle(Event::ServiceDeleted(key.clone()));
        } else {
            self.version += 1;
            let resource_version = self.version.to_string();
            let mut service = Service { resource_version, ..service(&input["svc"], name) };
            // The traces leave out what the last write put into the status.
            let held = self.held(&key);
            if let Some(held) = held.filter(|held| held.addresses() != service.seen.addresses) {
                service.seen.addresses = held.addresses().to_vec();
                service.seen.pool = Some(held.pool_annotation());
            }
            self.handle(Event::ServiceApplied(Box::new(service)));
        }
        let held = self.held(&key);
        let expect = &step["expect"];
        let same = held.as_ref().map(Assignment::pool_annotation).unwrap_or_default()
            == expect["pool"]
            && held.map(|held| held.addresses().to_vec()).unwrap_or_default()
                == addresses(&expect["ips"]);
        if input["svc"].is_null() {
            // What is written then is for those that waited, and the next step looks at it.
            return if same { Ok(()) } else { Err(step.to_string()) };
        }
        let written = std::mem::take(&mut self.written);
        let reasons = std::mem::take(&mut self.reasons);
        let expected_reasons: Vec<&str> = expect["events"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|event| event["reason"].as_str().unwrap())
            .collect();
        if same && expect["statusWritten"] == written && reasons == expected_reasons {
            Ok(())
        } else {
            Err(format!("{step} but written {written}, events {reasons:?}"))
        }
    }

    fn held(&self, key: &ServiceKey) -> Option<Assignment> {
        self.controller.decision(key)?.outcome.assignment().cloned()
    }

    fn handle(&mut self, event: Event) {
        for action in self.controller.handle(event, self.now) {
            match action {
                Action::PatchService { key, body } => {
                    self.written |= writes_addresses(&body);
                    self.version += 1;
                    let resource_version = self.version.to_string();
                    let result = WriteResult::Written { resource_version };
                    self.handle(Event::WriteDone { key, result });
                }
                Action::PublishEvent { notice, .. } => self.reasons.push(notice.reason),
                Action::PatchStatus { .. } | Action::PatchConfigurationState { .. } => {}
            }
        }
    }
}

/// Whether a patch writes what MetalLB writes; a condition is ours.
fn writes_addresses(body: &Value) -> bool {
    body["status"].get("loadBalancer").is_some() || body["metadata"].get("annotations").is_some()
}

fn service(object: &Value, name: &str) -> Service {
    let mut object = object.clone();
    object["metadata"]["name"] = json!(name);
    Service::new(&serde_json::from_value(object).unwrap(), None).unwrap()
}

fn addresses_of(parts: Parts) -> Vec<IpAddr> {
    parts.iter().map(|part| part.address).collect()
}

fn addresses(list: &Value) -> Vec<IpAddr> {
    list.as_array().into_iter().flatten().map(|a| a.as_str().unwrap().parse().unwrap()).collect()
}

fn ingress(status: &Value) -> Vec<IpAddr> {
    let ingress = status["loadBalancer"]["ingress"].as_array();
    ingress.into_iter().flatten().map(|e| e["ip"].as_str().unwrap().parse().unwrap()).collect()
}

fn port(text: &Value) -> Port {
    let (protocol, number) = text.as_str().unwrap().split_once('/').unwrap();
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => panic!("unknown protocol {other}"),
    };
    Port { protocol, number: number.parse().unwrap() }
}

fn families(input: &Value) -> Families {
    let spec = &input["svc"]["spec"];
    match input["family"].as_str().unwrap() {
        "ipv4" => Families::One(Family::V4),
        "ipv6" => Families::One(Family::V6),
        "dual" if spec["ipFamilyPolicy"] == "PreferDualStack" => {
            let v6 = spec["ipFamilies"][0] == "IPv6";
            Families::PreferBoth { first: if v6 { Family::V6 } else { Family::V4 } }
        }
        "dual" => Families::Both,
        other => panic!("unknown family {other}"),
    }
}

/// The pools, in the order of their names, without those that are named in `without` and those
/// that overlap an earlier one; and whether any of the latter were dropped.
fn without_overlap(by_name: &Value, without: &[&str]) -> (BTreeMap<config::PoolName, Pool>, bool) {
    let mut pools = BTreeMap::<config::PoolName, Pool>::new();
    let mut dropped = false;
    for (name, pool) in by_name.as_object().into_iter().flatten() {
        if without.contains(&name.as_str()) {
            continue;
        }
        // The key is MetalLB's map key; the name is what it reports.
        let name = pool["Name"].as_str().unwrap_or(name);
        let ranges: Vec<AddressRange> = pool["CIDR"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|cidr| {
                let net: IpNet = cidr.as_str().unwrap().parse().unwrap();
                AddressRange { first: net.network(), last: net.broadcast() }
            })
            .collect();
        let overlaps =
            |other: &Pool| other.ranges.iter().any(|a| ranges.iter().any(|b| a.overlaps(b)));
        if pools.values().any(overlaps) {
            dropped = true;
            continue;
        }
        let pool = Pool {
            auto_assign: pool["AutoAssign"] == true,
            avoid_buggy_ips: pool["AvoidBuggyIPs"] == true,
            allocation: allocation(&pool["ServiceAllocations"]),
            ..Pool::new(name, ranges)
        };
        pools.insert(pool.name.clone(), pool);
    }
    (pools, dropped)
}

fn allocation(input: &Value) -> Option<ServiceAllocation> {
    if input.is_null() {
        return None;
    }
    let texts = |field: &str| -> Vec<String> {
        serde_json::from_value(input[field].clone()).unwrap_or_default()
    };
    let selector = |text: &String| {
        let (key, value) = text.split_once('=').unwrap();
        let selector = json!({"matchLabels": {key: value}});
        Selector::parse(&serde_json::from_value(selector).unwrap()).unwrap()
    };
    let namespaces: BTreeSet<String> = texts("Namespaces").into_iter().collect();
    Some(ServiceAllocation {
        priority: i32::try_from(input["Priority"].as_i64().unwrap_or_default()).unwrap(),
        any_namespace: namespaces.is_empty(),
        namespaces,
        service_selectors: texts("ServiceSelectors").iter().map(selector).collect(),
    })
}
