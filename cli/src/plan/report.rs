//! What the daemons would do with an [`Input`], as the value that is printed.
//!
//! There is no rule here: `Config::parse`, `config::admit`, `controller::plan` and `speaker::plan`
//! decide.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use config::{Config, ConfigError, Existing, Operation, Resources, Rule, ServiceKey, admit};
use controller::{
    plan::{Change, Decision, Outcome, Plan, plan},
    service::{Role, Service},
};
use serde::{Serialize, Serializer};

use super::{
    announce::{Announcement, Facts, Unannounced},
    assumed::after_apply,
    input::{Input, Key, Kind, Settings, candidate},
    read::ReadError,
};

/// The JSON of `berth plan`, field by field; documented in `docs/plan.md`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub valid: bool,
    pub errors: Vec<Fault>,
    pub services: Vec<Planned>,
    pub pools: Vec<Usage>,
    pub announcements: Vec<Announcement>,
    pub unannounced: Vec<Unannounced>,
    /// What users should know all the same; for people only.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// Where an input is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Manifests by themselves, in which people leave out what the cluster makes.
    Files,
    /// A cluster: what it does not show is not there.
    Cluster,
}

/// A rule that an object breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub field: String,
    pub rule: &'static str,
    pub message: String,
}

/// What becomes of a Service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planned {
    pub namespace: String,
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub pool: Option<String>,
    #[serde(serialize_with = "as_text")]
    pub change: Change,
    pub pending: Option<Pending>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pending {
    pub reason: &'static str,
    pub message: String,
}

/// What becomes of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub name: String,
    #[serde(rename = "assignedIPv4")]
    pub assigned_v4: i64,
    #[serde(rename = "assignedIPv6")]
    pub assigned_v6: i64,
    #[serde(rename = "availableIPv4")]
    pub available_v4: i64,
    #[serde(rename = "availableIPv6")]
    pub available_v6: i64,
}

impl Report {
    /// True when there is neither an error nor a Service that waits.
    pub fn is_good(&self) -> bool {
        self.valid && self.services.iter().all(|service| service.pending.is_none())
    }
}

/// What daemons make of `input` that start with it.
///
/// # Errors
/// When an object of Kubernetes itself has not the form of its kind.
pub fn report(
    input: &Input,
    source: Source,
    settings: &Settings,
    now: Instant,
) -> Result<Report, ReadError> {
    let facts = Facts::new(input, |_| source == Source::Files)?;
    let resources = input.resources(settings)?;
    let services = input.services(settings)?;
    let mut faults = Vec::new();
    for (key, _) in input.ours().filter(|(key, _)| key.namespace != settings.namespace) {
        let rule = Rule::WrongNamespace(settings.namespace.clone());
        faults.push(Fault::of(key, "metadata.namespace", &rule));
    }
    Ok(decide(&resources, None, &services, facts, settings, faults, now))
}

/// What the webhook and the controller of a cluster that is as `live` make of it when `files` are
/// applied there, one after the other.
///
/// # Errors
/// When an object of Kubernetes itself has not the form of its kind.
pub fn report_applied(
    live: &Input,
    files: &Input,
    settings: &Settings,
    now: Instant,
) -> Result<Report, ReadError> {
    let (in_force, _) = Config::parse(&live.resources(settings)?, None);
    let held = held(&plan(&in_force, &live.services(settings)?, now));
    let after = live.with_applied(files);
    let mut resources = after.resources(settings)?;
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    for (key, object) in files.ours() {
        let Kind::Ours(kind) = key.kind else { continue };
        let old = live.get(key);
        let candidate = match candidate(kind, &after_apply(old, object)) {
            Ok(candidate) => candidate,
            Err(message) => {
                faults.push(Fault::of(key, "spec", &Rule::Unreadable(message)));
                continue;
            }
        };
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        let namespace = &settings.namespace;
        let existing = Existing { resources: &resources, held: &held, namespace };
        match admit(operation, &candidate, &existing) {
            Ok(said) => {
                warnings.extend(said.iter().map(|said| format!("{}: {said}", candidate.object())));
                if key.namespace == *namespace {
                    candidate.put_into(&mut resources);
                }
            }
            Err(errors) => {
                let refused =
                    errors.iter().map(|error| Fault::of(key, error.field(), error.rule()));
                faults.extend(refused);
            }
        }
    }
    let services = after.services(settings)?;
    let facts = Facts::new(&after, |service| live.get(service).is_none())?;
    let mut report = decide(&resources, Some(&in_force), &services, facts, settings, faults, now);
    report.warnings.splice(0..0, warnings);
    Ok(report)
}

fn decide(
    resources: &Resources,
    last: Option<&Config>,
    services: &BTreeMap<ServiceKey, Service>,
    facts: Facts,
    settings: &Settings,
    mut faults: Vec<Fault>,
    now: Instant,
) -> Report {
    let (config, errors) = Config::parse(resources, last);
    faults.extend(errors.iter().map(|error| Fault::of_config(error, settings)));
    faults.sort();
    faults.dedup();
    let plan = plan(&config, services, now);
    let mut report = Report {
        valid: faults.is_empty(),
        errors: faults,
        services: Vec::new(),
        pools: usage(&plan),
        announcements: Vec::new(),
        unannounced: Vec::new(),
        warnings: Vec::new(),
    };
    for (key, service) in services {
        let decision = plan.decision(key);
        report.services.extend(planned(service, decision));
        let notes = decision.map(|decision| decision.notes.as_slice()).unwrap_or_default();
        report.warnings.extend(notes.iter().map(|note| format!("Service {key}: {note}")));
    }
    let held = |key: &ServiceKey| {
        let assignment = plan.decision(key).and_then(|decision| decision.outcome.assignment());
        assignment.map(|held| held.addresses().to_vec()).unwrap_or_default()
    };
    (report.announcements, report.unannounced) = facts.announced(&config, held, settings);
    report
}

impl Fault {
    fn of(key: &Key, field: &str, rule: &Rule) -> Self {
        let kind = match key.kind {
            Kind::Ours(kind) => kind,
            Kind::Service => "Service",
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::Secret => "Secret",
            Kind::ServiceCidr => "ServiceCIDR",
            Kind::EndpointSlice => "EndpointSlice",
        };
        Self {
            kind: kind.to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            field: field.to_owned(),
            rule: rule.name(),
            message: rule.to_string(),
        }
    }

    fn of_config(error: &ConfigError, settings: &Settings) -> Self {
        let object = error.object();
        Self {
            kind: object.kind.to_owned(),
            namespace: settings.namespace.clone(),
            name: object.name,
            field: error.field().to_owned(),
            rule: error.rule().name(),
            message: error.rule().to_string(),
        }
    }
}

/// Services that are ours, and those that were and are not LoadBalancers any more.
fn planned(service: &Service, decision: Option<&Decision>) -> Option<Planned> {
    let outcome = match service.role {
        Role::Ours => decision.map(|decision| &decision.outcome),
        Role::NotLoadBalancer if !service.seen.addresses.is_empty() => None,
        Role::NotLoadBalancer | Role::OtherClass => return None,
    };
    let assignment = outcome.and_then(Outcome::assignment);
    let addresses = assignment.map(|held| held.addresses().to_vec()).unwrap_or_default();
    Some(Planned {
        namespace: service.key.namespace.to_string(),
        name: service.key.name.to_string(),
        change: Change::between(&service.seen.addresses, &addresses),
        addresses,
        pool: assignment.map(|held| held.pool_annotation()),
        pending: match outcome {
            Some(Outcome::Pending { refusal, .. }) => {
                Some(Pending { reason: refusal.reason(), message: refusal.to_string() })
            }
            Some(Outcome::Assigned(_) | Outcome::NotOurs) | None => None,
        },
    })
}

fn usage(plan: &Plan) -> Vec<Usage> {
    let pools = plan.allocator().counters().map(|(name, counters)| Usage {
        name: name.to_string(),
        assigned_v4: counters.assigned_v4,
        assigned_v6: counters.assigned_v6,
        available_v4: counters.available_v4,
        available_v6: counters.available_v6,
    });
    pools.collect()
}

fn held(plan: &Plan) -> BTreeMap<IpAddr, Vec<ServiceKey>> {
    let mut held: BTreeMap<IpAddr, Vec<ServiceKey>> = BTreeMap::new();
    for (address, key) in plan.held() {
        held.entry(address).or_default().push(key.clone());
    }
    held
}

fn as_text<S: Serializer>(change: &Change, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(change)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{announce::Way, read::objects};

    fn settings() -> Settings {
        Settings {
            namespace: "metallb-system".to_owned(),
            lb_class: None,
            ignore_exclude_label: false,
        }
    }

    fn input(objects_of: &[Value]) -> Input {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects_of}).to_string();
        Input::new(objects("a", list.as_bytes()).unwrap(), &settings()).unwrap()
    }

    fn of_files(objects: &[Value]) -> Report {
        report(&input(objects), Source::Files, &settings(), Instant::now()).unwrap()
    }

    fn applied(live: &[Value], files: &[Value]) -> Report {
        report_applied(&input(live), &input(files), &settings(), Instant::now()).unwrap()
    }

    fn pool(name: &str, spec: Value) -> Value {
        json!({"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
               "metadata": {"name": name}, "spec": spec})
    }

    fn service(name: &str, spec: Value) -> Value {
        let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
        json_patch::merge(&mut service["spec"], &spec);
        service
    }

    fn holding(name: &str, address: &str) -> Value {
        let mut service = service(name, json!({"clusterIPs": ["10.0.0.1"]}));
        service["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": address}]}});
        service
    }

    /// `name addresses change reason`, a line each.
    fn services(report: &Report) -> Vec<String> {
        let line = |service: &Planned| {
            let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
            let reason = service.pending.as_ref().map_or("", |pending| pending.reason);
            let line =
                format!("{} {} {} {reason}", service.name, addresses.join(","), service.change);
            line.trim_end().to_owned()
        };
        report.services.iter().map(line).collect()
    }

    fn faults(report: &Report) -> Vec<String> {
        let line = |fault: &Fault| format!("{} {} {}", fault.name, fault.field, fault.rule);
        report.errors.iter().map(line).collect()
    }

    /// Anything that JSON can be, of the names that matter more often than not.
    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~]{0,12}".prop_map(Value::from),
            Just(json!("192.0.2.0/30")),
            Just(json!("LoadBalancer")),
        ];
        let name = prop_oneof![
            Just("addresses".to_owned()),
            Just("ip".to_owned()),
            Just("ports".to_owned()),
            Just("type".to_owned()),
            "[a-zA-Z]{1,6}",
        ];
        leaf.prop_recursive(3, 16, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(name.clone(), inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn no_object_makes_it_panic(
            of_pool in anything(), of_peer in anything(), of_service in anything(),
            metadata in anything(), status in anything(),
        ) {
            let of = |kind: &str, version: &str, spec: &Value| {
                json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec})
            };
            let mut service = of("Service", "v1", &of_service);
            service["status"] = json!({"loadBalancer": {"ingress": [status]}});
            let mut labelled = of("IPAddressPool", "metallb.io/v1beta1", &of_pool);
            labelled["metadata"]["labels"] = metadata;
            let all = json!({"apiVersion": "v1", "kind": "List", "items": [
                service, labelled, of("BGPPeer", "metallb.io/v1beta1", &of_peer),
                of("L2Advertisement", "metallb.io/v1beta1", &of_pool),
                of("EndpointSlice", "discovery.k8s.io/v1", &of_pool),
                of("Node", "v1", &of_peer), of("ServiceCIDR", "networking.k8s.io/v1", &of_pool),
            ]});
            let read = objects("a", all.to_string().as_bytes())
                .and_then(|objects| Input::new(objects, &settings()));
            if let Ok(input) = read {
                let _ = report(&input, Source::Cluster, &settings(), Instant::now());
                let _ = report(&input, Source::Files, &settings(), Instant::now());
                let _ = report_applied(&input, &input, &settings(), Instant::now());
            }
        }
    }

    #[test]
    fn every_change_has_its_word() {
        let mut dual = holding("extended", "192.0.2.2");
        dual["spec"]["clusterIPs"] = json!(["10.0.0.2", "fd00::2"]);
        dual["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
        let mut moved = holding("moved", "192.0.2.3");
        moved["metadata"]["annotations"] = json!({"metallb.io/loadBalancerIPs": "192.0.2.9"});
        let mut no_longer = holding("released", "192.0.2.4");
        no_longer["spec"]["type"] = json!("ClusterIP");
        let mut foreign = holding("foreign", "192.0.2.5");
        foreign["spec"]["loadBalancerClass"] = json!("example.com/other");
        let report = of_files(&[
            pool("v4", json!({"addresses": ["192.0.2.1-192.0.2.9"]})),
            pool("v6", json!({"addresses": ["2001:db8::/120"]})),
            holding("kept", "192.0.2.1"),
            dual,
            moved,
            no_longer,
            foreign,
            service("new", json!({})),
            service("none", json!({"loadBalancerIP": "198.51.100.1"})),
            service("plain", json!({"type": "ClusterIP"})),
        ]);
        assert_eq!(
            services(&report),
            [
                "extended 192.0.2.2,2001:db8:: extended",
                "kept 192.0.2.1 kept",
                "moved 192.0.2.9 reassigned",
                "new 192.0.2.3 assigned",
                "none  none AddressInNoPool",
                "released  released",
            ]
        );
        assert!(report.valid && !report.is_good());
        let used: Vec<_> = report.pools.iter().map(|pool| pool.assigned_v4).collect();
        assert_eq!(used, [4, 0]);
    }

    #[test]
    fn the_json_has_exactly_the_documented_fields() {
        let report = of_files(&[
            pool("v4", json!({"addresses": ["192.0.2.1/32"]})),
            pool("bad", json!({"addresses": ["nonsense"]})),
            service("a", json!({})),
            service("b", json!({})),
        ]);
        let mut json = serde_json::to_value(&report).unwrap();
        let message = json["errors"][0]["message"].take();
        assert!(message.as_str().unwrap().contains("nonsense"));
        let pending = json["services"][1]["pending"]["message"].take();
        assert!(pending.is_string());
        assert_eq!(
            json,
            json!({
                "valid": false,
                "errors": [{"kind": "IPAddressPool", "namespace": "metallb-system", "name": "bad",
                            "field": "spec.addresses[0]", "rule": "RangeSyntax", "message": null}],
                "services": [
                    {"namespace": "default", "name": "a", "addresses": ["192.0.2.1"], "pool": "v4",
                     "change": "assigned", "pending": null},
                    {"namespace": "default", "name": "b", "addresses": [], "pool": null,
                     "change": "none", "pending": {"reason": "Exhausted", "message": null}},
                ],
                "pools": [
                    {"name": "bad", "assignedIPv4": 0, "assignedIPv6": 0, "availableIPv4": 0,
                     "availableIPv6": 0},
                    {"name": "v4", "assignedIPv4": 1, "assignedIPv6": 0, "availableIPv4": 0,
                     "availableIPv6": 0},
                ],
                "announcements": [],
                "unannounced": [
                    {"service": "default/a", "address": "192.0.2.1", "node": null,
                     "protocol": "layer2", "reason": "noMatchingAdvertisement"},
                    {"service": "default/b", "address": null, "node": null,
                     "protocol": "layer2", "reason": "noIPAllocated"},
                ],
            })
        );
    }

    fn node(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    }

    fn advertisement(spec: Value) -> Value {
        json!({"apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisement",
               "metadata": {"name": "all"}, "spec": spec})
    }

    fn slice(service: &str, node: &str, ready: bool) -> Value {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
               "metadata": {"name": format!("{service}-x"),
                            "labels": {"kubernetes.io/service-name": service}},
               "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.0.1"], "nodeName": node,
                                                     "conditions": {"ready": ready}}]})
    }

    /// `service address node`, a line each.
    fn announced(report: &Report) -> Vec<String> {
        let line = |one: &Announcement| format!("{} {} {}", one.service, one.address, one.node);
        report.announcements.iter().map(line).collect()
    }

    /// `service node reason`, a line each.
    fn unannounced(report: &Report) -> Vec<String> {
        let line = |one: &Unannounced| {
            let node = one.node.as_deref().unwrap_or("-");
            format!("{} {node} {}", one.service, one.reason)
        };
        report.unannounced.iter().map(line).collect()
    }

    #[test]
    fn announcements_are_spread_evenly_and_every_node_has_its_reason() {
        let mut objects = vec![
            pool("v4", json!({"addresses": ["192.0.2.0/27"]})),
            advertisement(json!({"interfaces": ["eth1", "eth0"]})),
        ];
        objects.extend(["n1", "n2", "n3"].map(node));
        objects.extend((0..30).map(|number| service(&format!("s{number:02}"), json!({}))));
        let report = of_files(&objects);
        assert_eq!((report.announcements.len(), report.unannounced.len()), (30, 60));
        for node in ["n1", "n2", "n3"] {
            let share = report.announcements.iter().filter(|one| one.node == node).count();
            assert_eq!(share, 10, "{node}");
        }
        let interfaces = Some(vec!["eth0".to_owned(), "eth1".to_owned()]);
        let way = Way::Layer2 { interfaces };
        assert!(report.announcements.iter().all(|one| one.way == way));
        assert!(report.unannounced.iter().all(|one| one.reason == "notOwner"));
    }

    #[test]
    fn what_is_not_announced_has_a_reason_for_every_node() {
        let local = json!({"externalTrafficPolicy": "Local"});
        let mut excluded = node("n2");
        excluded["metadata"]["labels"] =
            json!({"node.kubernetes.io/exclude-from-external-load-balancers": ""});
        let mut objects = vec![
            pool("v4", json!({"addresses": ["192.0.2.0/31"]})),
            advertisement(json!({})),
            node("n1"),
            excluded,
            node("n3"),
            service("a", local),
            slice("a", "n1", true),
            service("b", json!({})),
            slice("b", "n1", false),
            service("c", json!({})),
        ];
        let report = of_files(&objects);
        assert_eq!(announced(&report), ["default/a 192.0.2.0 n1"]);
        assert_eq!(
            unannounced(&report),
            [
                "default/a n2 nodeLabeledExcludeBalancers",
                "default/a n3 noLocalEndpoints",
                "default/b n1 noEndpoints",
                "default/b n2 noEndpoints",
                "default/b n3 noEndpoints",
                "default/c n1 noIPAllocated",
                "default/c n2 noIPAllocated",
                "default/c n3 noIPAllocated",
            ]
        );
        let overridden = Settings { ignore_exclude_label: true, ..settings() };
        let report =
            super::report(&input(&objects), Source::Files, &overridden, Instant::now()).unwrap();
        assert_eq!(unannounced(&report)[0], "default/a n2 noLocalEndpoints");

        objects.truncate(6);
        objects.push(service("d", json!({})));
        objects.push(slice("d", "n3", true));
        objects[2]["metadata"]["annotations"] = json!({"berth.io/drain": "true"});
        let report = of_files(&objects);
        let expected = ["default/a 192.0.2.0 n3", "default/d 192.0.2.1 n3"];
        assert_eq!(announced(&report), expected, "n1 is drained");
    }

    #[test]
    fn every_node_and_peer_has_its_routes_or_its_reason() {
        let ours = |kind: &str, name: &str, spec: Value| {
            let version = if kind == "BGPPeer" { "v1beta2" } else { "v1beta1" };
            json!({"apiVersion": format!("metallb.io/{version}"), "kind": kind,
                   "metadata": {"name": name}, "spec": spec})
        };
        let mut objects = vec![
            pool("both", json!({"addresses": ["192.0.2.0/31", "2001:db8::/127"]})),
            ours(
                "BGPAdvertisement",
                "all",
                json!({
                "localPref": 7, "communities": ["large:1:2:3", "no-export", "rt:65000:1"]}),
            ),
            ours(
                "BGPAdvertisement",
                "wide",
                json!({
                "peers": ["b"], "aggregationLength": 31, "aggregationLengthV6": 127, "med": 5}),
            ),
            ours(
                "BGPPeer",
                "a",
                json!({
                "myASN": 64500, "peerASN": 64501, "peerAddress": "198.51.100.1"}),
            ),
            ours(
                "BGPPeer",
                "b",
                json!({
                "myASN": 64500, "peerASN": 64501, "peerAddress": "198.51.100.2",
                "asPathPrepend": 2, "dualStackAddressFamily": true}),
            ),
            node("n1"),
            node("n2"),
            service(
                "s",
                json!({"ipFamilyPolicy": "RequireDualStack",
                                "externalTrafficPolicy": "Local"}),
            ),
            slice("s", "n1", true),
        ];
        let report = of_files(&objects);
        let value = serde_json::to_value(&report.announcements).unwrap();
        assert_eq!(
            value[0],
            json!({"service": "default/s", "address": "192.0.2.0", "protocol": "bgp", "node": "n1",
                   "peer": "a", "prefix": "192.0.2.0/32", "localPref": 7, "med": null,
                   "asPathPrepend": 0,
                   "communities": ["65535:65281", "large:1:2:3", "rt:65000:1"]})
        );
        let routes: Vec<String> = value
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                let peer = one["peer"].as_str().unwrap();
                format!("{peer} {} {}", one["prefix"].as_str().unwrap(), one["med"])
            })
            .collect();
        assert_eq!(
            routes,
            [
                "a 192.0.2.0/32 null",
                "b 192.0.2.0/31 5",
                "b 192.0.2.0/32 null",
                "b 2001:db8::/127 5",
                "b 2001:db8::/128 null",
            ]
        );
        let line = |one: &Unannounced| {
            let peer = one.peer.as_deref().unwrap_or("-");
            format!(
                "{} {} {peer} {}",
                one.address.unwrap(),
                one.node.as_deref().unwrap(),
                one.reason
            )
        };
        assert_eq!(
            report.unannounced.iter().map(line).collect::<Vec<_>>(),
            [
                "192.0.2.0 n2 - noLocalEndpoints",
                "2001:db8:: n1 a peerWithoutFamily",
                "2001:db8:: n2 - noLocalEndpoints",
            ]
        );
        objects[5]["metadata"]["annotations"] = json!({"berth.io/drain": "true"});
        let report = of_files(&objects);
        assert!(report.announcements.is_empty());
        assert_eq!(line(&report.unannounced[0]), "192.0.2.0 n1 - nodeDrained");
    }

    #[test]
    fn services_without_endpoints_are_assumed_to_have_some_where_nobody_can_tell() {
        let live = [
            pool("v4", json!({"addresses": ["192.0.2.0/28"]})),
            advertisement(json!({})),
            node("n1"),
            holding("old", "192.0.2.9"),
        ];
        assert_eq!(announced(&of_files(&live)), ["default/old 192.0.2.9 n1"]);
        let alone = report(&input(&live), Source::Cluster, &settings(), Instant::now()).unwrap();
        assert_eq!(unannounced(&alone), ["default/old n1 noEndpoints"]);
        let report = applied(&live, &[service("new", json!({}))]);
        assert_eq!(announced(&report), ["default/new 192.0.2.0 n1"]);
        assert_eq!(unannounced(&report), ["default/old n1 noEndpoints"]);
        let told = [service("new", json!({})), slice("new", "n1", false)];
        assert_eq!(announced(&applied(&live, &told)), [""; 0]);
    }

    #[test]
    fn objects_elsewhere_are_errors_because_nobody_reads_them() {
        let mut elsewhere = pool("a", json!({"addresses": ["192.0.2.0/24"]}));
        elsewhere["metadata"]["namespace"] = json!("default");
        let report = of_files(&[elsewhere, service("web", json!({}))]);
        assert_eq!(faults(&report), ["a metadata.namespace WrongNamespace"]);
        assert_eq!(report.errors[0].namespace, "default");
        assert_eq!(services(&report), ["web  none NoPools"]);
    }

    #[test]
    fn what_is_applied_is_judged_as_by_the_webhook() {
        let live = [
            pool("a", json!({"addresses": ["192.0.2.0/28"], "removalPolicy": "Refuse"})),
            holding("web", "192.0.2.9"),
        ];
        let smaller = pool("a", json!({"addresses": ["192.0.2.0/29"], "removalPolicy": "Refuse"}));
        let report = applied(&live, &[smaller]);
        assert_eq!(faults(&report), ["a spec.addresses AddressesHeld"]);
        assert_eq!(services(&report), ["web 192.0.2.9 kept"], "what is refused is not written");

        let smaller = pool("a", json!({"addresses": ["192.0.2.0/29"], "removalPolicy": "Warn"}));
        let live = [pool("a", json!({"addresses": ["192.0.2.0/28"]})), holding("web", "192.0.2.9")];
        let report = applied(&live, &[smaller]);
        assert_eq!(faults(&report), [""; 0]);
        assert!(report.warnings[0].starts_with("IPAddressPool \"a\": "), "{:?}", report.warnings);
        assert_eq!(services(&report), ["web 192.0.2.0 reassigned"]);
    }

    #[test]
    fn new_services_come_after_all_that_are_there() {
        let live = [pool("a", json!({"addresses": ["192.0.2.1-192.0.2.2"]})), {
            let mut waiting = holding("z-old", "192.0.2.1");
            waiting["status"] = json!({});
            waiting
        }];
        let report = applied(&live, &[service("a-new", json!({})), service("b-new", json!({}))]);
        assert_eq!(
            services(&report),
            ["a-new 192.0.2.2 assigned", "b-new  none Exhausted", "z-old 192.0.2.1 assigned"]
        );
        let mut files = live.to_vec();
        files.extend([service("a-new", json!({})), service("b-new", json!({}))]);
        assert_eq!(services(&of_files(&files)), services(&report), "in files alone as well");
    }

    #[test]
    fn an_object_in_error_keeps_its_form_in_the_cluster() {
        let live = [pool("a", json!({"addresses": ["192.0.2.0/28"]})), holding("web", "192.0.2.9")];
        let unreadable = pool("a", json!({"addresses": 7}));
        let report = applied(&live, &[unreadable]);
        assert_eq!(faults(&report), ["a spec Unreadable"]);
        assert_eq!(services(&report), ["web 192.0.2.9 kept"]);
    }

    #[test]
    fn a_service_that_is_applied_keeps_what_it_holds() {
        let live = [pool("a", json!({"addresses": ["192.0.2.0/28"]})), holding("web", "192.0.2.9")];
        let report = applied(&live, &[service("web", json!({"ports": [{"port": 81}]}))]);
        assert_eq!(services(&report), ["web 192.0.2.9 kept"]);
        let report = applied(&live, &[service("web", json!({"type": "ClusterIP"}))]);
        assert_eq!(services(&report), ["web  released"]);
    }
}
