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
    time::Instant,
};

use config::{AddressRange, Config, Pool, Resources, Selector, ServiceAllocation};
use controller::{
    allocator::{Allocator, Assignment, Tenant},
    controller::{Action, Controller, Event, Settings, WriteResult},
    plan::{Decision, plan},
    service::{Families, Family, Port, Protocol, Service, ServiceKey, Sharing},
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
        let mut trace = AllocatorTrace::default();
        for (index, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            match trace.step(step) {
                Step::Skipped => tally.skipped += 1,
                Step::Done(error) => {
                    let result = trace.compare(step, error);
                    let failed = result.is_err();
                    tally.take(id, result.map_err(|why| format!("step {index}: {why}")));
                    // What follows rests on the state after this step.
                    if failed {
                        break;
                    }
                }
            }
        }
    }
    tally.finish("allocator_traces (steps)");
}

#[derive(Default)]
struct AllocatorTrace {
    allocator: Allocator,
    config: Config,
    overlap: bool,
    /// Services in pools that were left out.
    strangers: BTreeSet<String>,
    /// What was assigned, to be asked for again when the pools change.
    tenants: BTreeMap<String, (ServiceKey, config::Labels, Sharing, BTreeSet<Port>)>,
}

enum Step {
    Skipped,
    Done(Option<String>),
}

impl AllocatorTrace {
    fn step(&mut self, step: &Value) -> Step {
        let input = &step["input"];
        let name = input["svcKey"].as_str().unwrap_or_default().to_owned();
        match step["op"].as_str().unwrap() {
            "SetPools" => {
                let (pools, dropped) = without_overlap(&input["pools"]["ByName"], &[]);
                self.overlap = dropped;
                self.config = Config { pools, ..Config::default() };
                let old = std::mem::replace(&mut self.allocator, Allocator::new(&self.config));
                let tenants = self.tenants.clone();
                for (name, (key, ..)) in tenants {
                    let held = old.assignment(&key).map(|held| held.addresses.clone());
                    if held.is_none_or(|held| self.assign(&name, &held).is_some()) {
                        self.tenants.remove(&name);
                    }
                }
                Step::Done(None)
            }
            "Unassign" => {
                if let Some((key, ..)) = self.tenants.remove(&name) {
                    self.allocator.release(&key);
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
                    Some((key, ..)) if key != self.tenants[&name].0 => {
                        self.allocator.release(&key);
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
                if let Some((key, ..)) = self.tenants.get(&name) {
                    // A Service that has addresses gets no others by asking again.
                    let held = self.allocator.assignment(key).unwrap();
                    let fits = held.addresses.iter().all(|a| families.contain(Family::of(*a)));
                    return Step::Done((!fits).then(|| "wrong family".to_owned()));
                }
                self.introduce(&name, input);
                let tenant = self.tenant(&name);
                let found = match (op, pool) {
                    ("AllocateFromPool", Some(pool)) => self
                        .allocator
                        .pool(pool)
                        .filter(|pool| pool.admits(&tenant.key.namespace, tenant.labels))
                        .and_then(|_| self.allocator.find_in(tenant, pool, families)),
                    _ => self.allocator.find(tenant, families),
                };
                let error = match found {
                    Some(found) => self.assign(&name, &found.addresses),
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
        let labels = serde_json::from_value(metadata["labels"].clone()).unwrap_or_default();
        let text = |field: &str| input[field].as_str().unwrap_or_default().to_owned();
        let sharing = Sharing { key: text("sharingKey"), backend: text("backendKey") };
        let ports = input["ports"].as_array().into_iter().flatten().map(port).collect();
        self.tenants.insert(name.to_owned(), (key, labels, sharing, ports));
    }

    fn tenant(&self, name: &str) -> Tenant<'_> {
        let (key, labels, sharing, ports) = &self.tenants[name];
        Tenant { key, labels, sharing, ports }
    }

    /// Assigns exactly these addresses; what is in the way, if anything.
    fn assign(&mut self, name: &str, addresses: &[IpAddr]) -> Option<String> {
        let (key, labels, sharing, ports) = self.tenants[name].clone();
        let tenant = Tenant { key: &key, labels: &labels, sharing: &sharing, ports: &ports };
        let mut pools = BTreeSet::new();
        for address in addresses {
            let Some(pool) = self.allocator.pool_of(*address) else {
                return Some("not in a pool".to_owned());
            };
            if !pool.admits(&key.namespace, &labels) {
                return Some("pool does not admit the Service".to_owned());
            }
            if let Err(conflict) = self.allocator.check(tenant, *address) {
                return Some(conflict.to_string());
            }
            pools.insert(pool.name.clone());
        }
        let families: BTreeSet<Family> = addresses.iter().map(|a| Family::of(*a)).collect();
        if pools.len() != 1 || families.len() != addresses.len() {
            return Some("not one address of each family in one pool".to_owned());
        }
        let pool = pools.pop_first().unwrap();
        self.allocator.assign(tenant, Assignment { pool, addresses: addresses.to_vec() });
        None
    }

    fn compare(&self, step: &Value, error: Option<String>) -> Result<(), String> {
        let mut held = BTreeMap::new();
        for (name, (key, ..)) in &self.tenants {
            if let Some(assignment) = self.allocator.assignment(key) {
                held.insert(name.clone(), assignment.clone());
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
                    let same_pool = self.overlap || expected["Pool"] == *held.pool;
                    same_pool && addresses(&expected["IPs"]) == held.addresses
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
            let plan = plan(config, &BTreeMap::from([(service.key.clone(), service.clone())]));
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
    let lost = decision.and_then(|decision| decision.lost.as_ref());
    if let Some(patch) = &patch {
        notices = status::written_notices(service, &service.seen, &patch.result, lost);
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
            return patch.is_none();
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
            self.handle(Event::ResourcesChanged(Box::new(resources)));
            if !std::mem::replace(&mut self.synced, true) {
                self.handle(Event::Synced);
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
            if let Some(held) = held.filter(|held| held.addresses != service.seen.addresses) {
                service.seen.addresses = held.addresses;
                service.seen.pool = Some(held.pool.to_string());
            }
            self.handle(Event::ServiceApplied(Box::new(service)));
        }
        let held = self.held(&key);
        let expect = &step["expect"];
        let same = held.as_ref().map_or("", |held| &*held.pool) == expect["pool"]
            && held.map(|held| held.addresses).unwrap_or_default() == addresses(&expect["ips"]);
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
                Action::PatchService { key, .. } => {
                    self.written = true;
                    self.version += 1;
                    let resource_version = self.version.to_string();
                    let result = WriteResult::Written { resource_version };
                    self.handle(Event::WriteDone { key, result });
                }
                Action::PublishEvent { notice, .. } => self.reasons.push(notice.reason),
                Action::PatchPoolStatus { .. } | Action::PatchConfigurationState { .. } => {}
            }
        }
    }
}

fn service(object: &Value, name: &str) -> Service {
    let mut object = object.clone();
    object["metadata"]["name"] = json!(name);
    Service::new(&serde_json::from_value(object).unwrap(), None).unwrap()
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
