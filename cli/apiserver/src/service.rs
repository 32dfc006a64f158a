//! What the API server decides about a Service: defaults, cluster addresses and node ports, the
//! fields that a change of type takes away, and the rules of its spec and status. See
//! <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/service-v1/>.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    ops::RangeInclusive,
};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    builtin::{items_mut, set_default},
    error::Cause,
};

/// Cluster addresses and node ports in use.
#[derive(Debug)]
pub(crate) struct Allocator {
    networks: Vec<IpNet>,
    node_ports: RangeInclusive<u16>,
    addresses: BTreeSet<IpAddr>,
    /// How many ports of Services use a node port: two with different protocols may.
    ports_used: BTreeMap<u16, usize>,
}

/// The families of `spec.ipFamilies`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Allocator {
    /// `networks` holds at most one network of each family, the primary family first.
    pub(crate) fn new(networks: Vec<IpNet>, node_ports: RangeInclusive<u16>) -> Self {
        Self { networks, node_ports, addresses: BTreeSet::new(), ports_used: BTreeMap::new() }
    }

    /// Takes note of a stored change.
    pub(crate) fn replace(&mut self, old: Option<&Value>, new: Option<&Value>) {
        if let Some(service) = old {
            for address in cluster_addresses(service) {
                self.addresses.remove(&address);
            }
            for port in node_ports(service) {
                if let Entry::Occupied(mut count) = self.ports_used.entry(port) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
            }
        }
        if let Some(service) = new {
            self.addresses.extend(cluster_addresses(service));
            for port in node_ports(service) {
                *self.ports_used.entry(port).or_default() += 1;
            }
        }
    }

    fn free_address(&self, family: Family) -> Option<IpAddr> {
        let network = self.networks.iter().find(|network| family.is_of(network.addr()))?;
        let nth = |n: u128| {
            let address = match network.network() {
                IpAddr::V4(first) => {
                    IpAddr::V4(u32::from(first).checked_add(u32::try_from(n).ok()?)?.into())
                }
                IpAddr::V6(first) => IpAddr::V6(u128::from(first).checked_add(n)?.into()),
            };
            (network.contains(&address) && address != network.broadcast()).then_some(address)
        };
        // One past the highest in use; only when the range is used up to its end, the first gap.
        let highest = self.addresses.range(network.network()..=network.broadcast()).next_back();
        let past = highest.map_or(1, |highest| distance(network.network(), *highest) + 1);
        nth(past).or_else(|| (1..).map_while(nth).find(|address| !self.addresses.contains(address)))
    }

    fn free_node_port(&self, chosen: &BTreeSet<u16>) -> Option<u16> {
        self.node_ports
            .clone()
            .find(|port| !self.ports_used.contains_key(port) && !chosen.contains(port))
    }
}

impl Family {
    fn is_of(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn parse(name: &Value) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| name == family.name())
    }
}

/// Brings a Service that is to be stored into its final form.
///
/// # Errors
/// Every rule that the Service breaks.
pub(crate) fn complete(
    new: &mut Value,
    old: Option<&Value>,
    allocator: &Allocator,
) -> Result<(), Vec<Cause>> {
    set_defaults(&mut new["spec"]);
    if let Some(old) = old {
        carry_over(new, old);
    } else {
        new["status"] = json!({});
    }
    drop_what_the_type_excludes(new);
    let mut causes = validate(&new["spec"]);
    if let Some(old) = old {
        causes.extend(validate_change(&new["spec"], &old["spec"]));
    }
    if !causes.is_empty() {
        return Err(causes);
    }
    let causes: Vec<_> = [
        allocate_addresses(&mut new["spec"], old, allocator),
        allocate_node_ports(&mut new["spec"], old, allocator),
    ]
    .into_iter()
    .filter_map(Result::err)
    .collect();
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}

/// Brings the status of a Service into its final form.
///
/// # Errors
/// Every rule that the status breaks.
pub(crate) fn complete_status(new: &mut Value) -> Result<(), Vec<Cause>> {
    let mut causes = Vec::new();
    let is_load_balancer = new["spec"]["type"] == "LoadBalancer";
    if new["status"]["loadBalancer"].is_null() {
        new["status"]["loadBalancer"] = json!({});
    }
    let at = "status.loadBalancer.ingress";
    let load_balancer = &mut new["status"]["loadBalancer"];
    if !is_load_balancer && load_balancer["ingress"].as_array().is_some_and(|all| !all.is_empty()) {
        causes.push(Cause::forbidden(at, "may only be used when `spec.type` is 'LoadBalancer'"));
    }
    for (index, entry) in items_mut(load_balancer, "ingress").enumerate() {
        let at = format!("{at}[{index}]");
        match entry.get("ip").and_then(Value::as_str) {
            Some(ip) if ip.parse::<IpAddr>().is_err() && canonical(ip).is_none() => {
                let rule = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                causes.push(Cause::invalid(format!("{at}.ip"), &entry["ip"], rule));
            }
            Some(_) => set_default(entry, "ipMode", "VIP"),
            None if entry.get("ipMode").is_some() => {
                let rule = "may not be specified when `ip` is not set";
                causes.push(Cause::forbidden(format!("{at}.ipMode"), rule));
            }
            None => {}
        }
        let modes = [json!("VIP"), json!("Proxy")];
        if let Some(mode) = entry.get("ipMode").filter(|mode| !modes.contains(mode)) {
            causes.push(Cause::unsupported(format!("{at}.ipMode"), mode, &modes));
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}

/// What is said about addresses of a status that other software may read in another way.
pub(crate) fn status_warnings(service: &Value) -> Vec<String> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
    ingress
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, entry)| {
            let written = entry["ip"].as_str()?;
            let canonical = canonical(written)?.to_string();
            (canonical != written).then(|| {
                format!(
                    "status.loadBalancer.ingress[{index}].ip: non-standard IP address \
                     {written:?} will be considered invalid in a future Kubernetes release: use \
                     {canonical:?}"
                )
            })
        })
        .collect()
}

/// Reads an address as Kubernetes does, which takes leading zeros for decimal.
fn canonical(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let octets: Vec<u8> = text.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    <[u8; 4]>::try_from(octets).ok().map(IpAddr::from)
}

fn set_defaults(spec: &mut Value) {
    if !spec.is_object() {
        *spec = json!({});
    }
    set_default(spec, "type", "ClusterIP");
    set_default(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        set_default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    for port in items_mut(spec, "ports") {
        set_default(port, "protocol", "TCP");
        if matches!(&port["targetPort"], Value::Null) || port["targetPort"] == 0 {
            port["targetPort"] = port["port"].clone();
        }
    }
    if is_exposed(spec) {
        set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if has_cluster_address(spec) {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    if spec["type"] == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
    // A client that knows one of the two fields only has set the other with it.
    let first = spec["clusterIPs"][0].clone();
    match spec["clusterIP"].as_str() {
        None | Some("") if first.is_string() => spec["clusterIP"] = first,
        Some(address) if !address.is_empty() && first.is_null() => {
            spec["clusterIPs"] = json!([address]);
        }
        _ => {}
    }
}

/// Gives a client that wrote the object without them the values that were allocated before.
fn carry_over(new: &mut Value, old: &Value) {
    let (spec, old) = (&mut new["spec"], &old["spec"]);
    let (same_need, had) = (has_cluster_address(spec), has_cluster_address(old));
    if same_need && had {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let cleared = spec[field].is_null() || spec[field] == "" || spec[field] == json!([]);
            if cleared && !old[field].is_null() {
                spec[field] = old[field].clone();
            }
        }
        // The address was changed or removed through the one field that old clients know.
        if spec["clusterIPs"] == old["clusterIPs"] && spec["clusterIP"] != old["clusterIP"] {
            spec["clusterIPs"] = json!([spec["clusterIP"]]);
        }
    }
    if !is_exposed(spec) || !is_exposed(old) {
        return;
    }
    for port in items_mut(spec, "ports") {
        let was = old["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|was| was["port"] == port["port"] && was["protocol"] == port["protocol"]);
        if let Some(was) = was.filter(|was| !was["nodePort"].is_null()) {
            set_default(port, "nodePort", was["nodePort"].clone());
        }
    }
    if !old["healthCheckNodePort"].is_null() {
        set_default(spec, "healthCheckNodePort", old["healthCheckNodePort"].clone());
    }
}

fn drop_what_the_type_excludes(service: &mut Value) {
    let spec = &service["spec"];
    let (exposed, addressed) = (is_exposed(spec), has_cluster_address(spec));
    let is_load_balancer = spec["type"] == "LoadBalancer";
    let checks_health = is_load_balancer && spec["externalTrafficPolicy"] == "Local";
    let mut remove = |fields: &[&str]| {
        if let Some(spec) = service["spec"].as_object_mut() {
            spec.retain(|field, _| !fields.contains(&field.as_str()));
        }
    };
    if !addressed {
        remove(&["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
        remove(&["internalTrafficPolicy"]);
    }
    if !is_load_balancer {
        remove(&["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if !checks_health {
        remove(&["healthCheckNodePort"]);
    }
    if !exposed {
        remove(&["externalTrafficPolicy"]);
        for port in items_mut(&mut service["spec"], "ports") {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
    }
    if !is_load_balancer || service["status"]["loadBalancer"].is_null() {
        service["status"]["loadBalancer"] = json!({});
    }
}

fn validate(spec: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (field, allowed) in [
        ("type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"][..]),
        ("sessionAffinity", &["ClientIP", "None"]),
        ("externalTrafficPolicy", &["Cluster", "Local"]),
        ("internalTrafficPolicy", &["Cluster", "Local"]),
        ("ipFamilyPolicy", &["SingleStack", "PreferDualStack", "RequireDualStack"]),
    ] {
        let value = &spec[field];
        if !value.is_null() && !allowed.iter().any(|allowed| value == allowed) {
            let allowed: Vec<_> = allowed.iter().map(|&name| json!(name)).collect();
            causes.push(Cause::unsupported(format!("spec.{field}"), value, &allowed));
        }
    }
    let empty = Vec::new();
    let ports = spec["ports"].as_array().unwrap_or(&empty);
    let needs_ports = spec["type"] != "ExternalName" && spec["clusterIP"] != "None";
    if needs_ports && ports.is_empty() {
        causes.push(Cause::required("spec.ports", ""));
    }
    if spec["type"] == "ExternalName" && spec["externalName"].as_str().is_none_or(str::is_empty) {
        causes.push(Cause::required("spec.externalName", ""));
    }
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        let name = port["name"].as_str().unwrap_or_default();
        if ports.len() > 1 && name.is_empty() {
            causes.push(Cause::required(format!("{at}.name"), ""));
        } else if !name.is_empty() && !names.insert(name) {
            causes.push(Cause::duplicate(format!("{at}.name"), &port["name"]));
        }
        if !port["port"].as_u64().is_some_and(|port| (1..=65535).contains(&port)) {
            let rule = "must be between 1 and 65535, inclusive";
            causes.push(Cause::invalid(format!("{at}.port"), &port["port"], rule));
        }
        let protocols = [json!("SCTP"), json!("TCP"), json!("UDP")];
        if !protocols.contains(&port["protocol"]) {
            let at = format!("{at}.protocol");
            causes.push(Cause::unsupported(at, &port["protocol"], &protocols));
        }
        if !numbers.insert((port["port"].as_u64(), port["protocol"].as_str())) {
            causes.push(Cause::duplicate(at, port));
        }
    }
    causes
}

fn validate_change(new: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (kept, before) = (&new["clusterIPs"], &old["clusterIPs"]);
    if has_cluster_address(new) && has_cluster_address(old) && kept[0] != before[0] {
        causes.push(Cause::invalid("spec.clusterIPs[0]", kept, "may not change once set"));
    }
    let both = new["type"] == "LoadBalancer" && old["type"] == "LoadBalancer";
    if both && new["loadBalancerClass"] != old["loadBalancerClass"] {
        let rule = "may not change once set";
        causes.push(Cause::invalid("spec.loadBalancerClass", &new["loadBalancerClass"], rule));
    }
    causes
}

fn allocate_addresses(
    spec: &mut Value,
    old: Option<&Value>,
    allocator: &Allocator,
) -> Result<(), Cause> {
    if !has_cluster_address(spec) {
        return Ok(());
    }
    set_default(spec, "ipFamilyPolicy", "SingleStack");
    let families = families(spec, old, allocator)?;
    let names: Vec<_> = families.iter().map(|family| family.name()).collect();
    spec["ipFamilies"] = json!(names);
    if spec["clusterIP"] == "None" {
        spec["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    let held: BTreeSet<_> = old.into_iter().flat_map(cluster_addresses).collect();
    let mut addresses = Vec::new();
    for (index, family) in families.iter().enumerate() {
        let at = format!("spec.clusterIPs[{index}]");
        let written = spec["clusterIPs"][index].as_str().filter(|text| !text.is_empty());
        let address = match written {
            None => allocator
                .free_address(*family)
                .ok_or_else(|| Cause::invalid(at, &json!(""), "the service range is used up"))?,
            Some(written) => {
                let refused = |rule: &str| Cause::invalid(at.clone(), &json!(written), rule);
                let address: IpAddr =
                    written.parse().map_err(|_| refused("must be a valid IP address"))?;
                if held.contains(&address) {
                    addresses.push(address);
                    continue;
                }
                if !allocator.networks.iter().any(|network| network.contains(&address)) {
                    return Err(refused("the provided IP is not in the valid range"));
                }
                if allocator.addresses.contains(&address) {
                    return Err(refused("provided IP is already allocated"));
                }
                address
            }
        };
        addresses.push(address);
    }
    spec["clusterIP"] = json!(addresses.first());
    spec["clusterIPs"] = json!(addresses);
    Ok(())
}

/// The families that policy, families and addresses of a Service ask for together.
fn families(
    spec: &Value,
    old: Option<&Value>,
    allocator: &Allocator,
) -> Result<Vec<Family>, Cause> {
    let offered: Vec<_> =
        allocator.networks.iter().map(|network| Family::of(network.addr())).collect();
    let policy = &spec["ipFamilyPolicy"];
    let mut wanted: Vec<_> =
        spec["ipFamilies"].as_array().into_iter().flatten().filter_map(Family::parse).collect();
    if wanted.is_empty() {
        wanted = cluster_addresses(spec).into_iter().map(Family::of).collect();
    }
    if wanted.is_empty() {
        wanted.extend(offered.first());
    }
    if let Some(missing) = wanted.iter().find(|family| !offered.contains(family)) {
        let rule = "not configured on this cluster";
        return Err(Cause::invalid("spec.ipFamilies", &json!(missing.name()), rule));
    }
    if policy == "SingleStack" {
        // Single stack after dual stack gives the second family up; anything else contradicts.
        let was_dual = old.is_some_and(|old| old["spec"]["ipFamilyPolicy"] != "SingleStack");
        if wanted.len() > 1 && !was_dual {
            let rule = "must be RequireDualStack or PreferDualStack when multiple 'ipFamilies' \
                        are specified";
            return Err(Cause::invalid("spec.ipFamilyPolicy", policy, rule));
        }
        wanted.truncate(1);
    } else if wanted.len() == 1 {
        let other = offered.iter().find(|family| !wanted.contains(family));
        if other.is_none() && policy == "RequireDualStack" {
            let rule = "this cluster is not configured for dual-stack services";
            return Err(Cause::invalid("spec.ipFamilyPolicy", policy, rule));
        }
        wanted.extend(other);
    }
    Ok(wanted)
}

fn allocate_node_ports(
    spec: &mut Value,
    old: Option<&Value>,
    allocator: &Allocator,
) -> Result<(), Cause> {
    if !is_exposed(spec) {
        return Ok(());
    }
    let held: BTreeSet<_> = old.into_iter().flat_map(node_ports).collect();
    let used_up = |at: &str| Cause::invalid(at, &json!(0), "the range of node ports is used up");
    let mut chosen = BTreeSet::new();
    let wants_ports = spec["type"] == "NodePort" || spec["allocateLoadBalancerNodePorts"] == true;
    for (index, port) in items_mut(spec, "ports").enumerate() {
        let at = format!("spec.ports[{index}].nodePort");
        let written = port["nodePort"].as_u64().filter(|number| *number != 0);
        match written.map(u16::try_from) {
            Some(Ok(number)) if held.contains(&number) || chosen.contains(&number) => {}
            Some(Ok(number)) if allocator.ports_used.contains_key(&number) => {
                let rule = "provided port is already allocated";
                return Err(Cause::invalid(at, &port["nodePort"], rule));
            }
            Some(Ok(number)) if allocator.node_ports.contains(&number) => {
                chosen.insert(number);
            }
            Some(_) => {
                let range = &allocator.node_ports;
                let rule = format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    range.start(),
                    range.end()
                );
                return Err(Cause::invalid(at, &port["nodePort"], &rule));
            }
            None if wants_ports => {
                let number = allocator.free_node_port(&chosen).ok_or_else(|| used_up(&at))?;
                chosen.insert(number);
                port["nodePort"] = json!(number);
            }
            None => {
                if let Some(port) = port.as_object_mut() {
                    port.remove("nodePort");
                }
            }
        }
    }
    let checks_health = spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local";
    if checks_health && spec["healthCheckNodePort"].as_u64().is_none_or(|port| port == 0) {
        let at = "spec.healthCheckNodePort";
        let number = allocator.free_node_port(&chosen).ok_or_else(|| used_up(at))?;
        spec["healthCheckNodePort"] = json!(number);
    }
    Ok(())
}

fn is_exposed(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" || spec["type"] == "NodePort"
}

fn has_cluster_address(spec: &Value) -> bool {
    spec["type"] != "ExternalName"
}

fn cluster_addresses(service: &Value) -> Vec<IpAddr> {
    let spec = service.get("spec").unwrap_or(service);
    let written = spec["clusterIPs"].as_array().into_iter().flatten();
    written.filter_map(|address| address.as_str()?.parse().ok()).collect()
}

fn node_ports(service: &Value) -> Vec<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .map(|port| &port["nodePort"])
        .chain([&service["spec"]["healthCheckNodePort"]])
        .filter_map(|number| u16::try_from(number.as_u64()?).ok())
        .filter(|number| *number != 0)
        .collect()
}

fn distance(from: IpAddr, to: IpAddr) -> u128 {
    let number = |address| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    number(to).saturating_sub(number(from))
}
