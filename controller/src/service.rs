//! The view: everything that is read of a `v1.Service`, parsed once.
//!
//! The only pure file of this crate that sees Kubernetes' own types. What a user wrote wrongly is
//! kept as an error beside what was right, so that the plan can say why it refuses.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

pub use config::{PackedLabels, ServiceKey};
use k8s_openapi::{
    api::core::v1::{self, LoadBalancerIngress, ServiceSpec, ServiceStatus},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use serde_json::{Value, json};

use crate::allocator::{Id, Tenant};

/// Prefix of the annotations that Berth and MetalLB share.
const PREFIX: &str = "metallb.io/";
/// The prefix of MetalLB before 0.14, still accepted; the other one wins.
const DEPRECATED_PREFIX: &str = "metallb.universe.tf/";

pub const ADDRESS_POOL: &str = "address-pool";
pub const LOAD_BALANCER_IPS: &str = "loadBalancerIPs";
pub const ALLOW_SHARED_IP: &str = "allow-shared-ip";
/// Written by the controller: the pool that the addresses of a Service are from.
pub const ALLOCATED_FROM_POOL: &str = "metallb.io/ip-allocated-from-pool";
/// The type of the condition that says why a Service does not have what it asks for; there only
/// while that is so.
pub const ADDRESS_ASSIGNED: &str = "metallb.io/AddressAssigned";
/// What MetalLB wrote before 0.14; taken away with the next write.
pub const DEPRECATED_ALLOCATED_FROM_POOL: &str = "metallb.universe.tf/ip-allocated-from-pool";

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Which addresses a Service must have, from its cluster IPs and its `ipFamilyPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    One(Family),
    /// One of each, or none.
    Both,
    /// One of each; failing that one of `first`, failing that one of the other.
    PreferBoth {
        first: Family,
    },
}

impl Families {
    pub fn contain(self, family: Family) -> bool {
        match self {
            Self::One(one) => one == family,
            Self::Both | Self::PreferBoth { .. } => true,
        }
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(family) => family.fmt(f),
            Self::Both | Self::PreferBoth { .. } => f.write_str("dual stack"),
        }
    }
}

/// Why the families of a Service are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FamilyError {
    #[error("the Service has no cluster IP, which decides the address family")]
    NoClusterIp,
    #[error("spec.ipFamilyPolicy is RequireDualStack, but the Service has only one cluster IP")]
    NotEnoughClusterIps,
}

/// What is wrong with the addresses that a Service asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error(
        "spec.loadBalancerIP and the annotation metallb.io/loadBalancerIPs are both set; use one"
    )]
    Twice,
    #[error("{field} contains {text:?}, which is not an IP address")]
    NotAnAddress { field: &'static str, text: String },
    #[error(
        "{field} contains {count} addresses; one, or one IPv4 and one IPv6 address, is possible"
    )]
    TooMany { field: &'static str, count: usize },
    #[error("{field} contains two {family} addresses; one of each family is possible")]
    SameFamily { field: &'static str, family: Family },
}

/// Whether a Service is for this controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Ours,
    /// Of type LoadBalancer, but its `loadBalancerClass` is somebody else's: never touched.
    OtherClass,
    /// Of another type: what we ever gave it is taken back.
    NotLoadBalancer,
}

/// Transport protocol of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// One port of a Service as its clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub protocol: Protocol,
    pub number: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        write!(f, "{protocol}/{}", self.number)
    }
}

/// Who may stand on the same address: both parts must be equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sharing {
    /// The annotation `allow-shared-ip`, not empty.
    pub key: Box<str>,
    /// Empty for `externalTrafficPolicy: Cluster`, else the selector: Services of policy Local
    /// only share an address when the same Pods stand behind it.
    pub backend: Box<str>,
}

/// What `status.loadBalancer` and the annotations say now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenStatus {
    /// In the order of the status.
    pub addresses: Vec<IpAddr>,
    /// True when the status holds something that we would not write: a host name, text that is no
    /// address, another `ipMode`.
    pub foreign: bool,
    /// The annotation `metallb.io/ip-allocated-from-pool`.
    pub pool: Option<String>,
    /// Whether the pool annotation of MetalLB before 0.14 is there.
    pub deprecated_pool: bool,
    /// The condition [`ADDRESS_ASSIGNED`].
    pub condition: Option<Box<SeenCondition>>,
    /// The conditions of others, as they are: a patch replaces the whole list.
    pub other_conditions: Vec<Value>,
}

/// A condition of the controller's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenCondition {
    pub status: String,
    pub reason: String,
    pub message: String,
    /// `lastTransitionTime`, as it is written; empty: not known.
    pub since: String,
}

/// A Service as the controller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub key: ServiceKey,
    pub uid: String,
    pub resource_version: String,
    /// Seconds since 1970; `None` sorts first.
    pub created: Option<i64>,
    /// A deletion timestamp is set: it keeps what it has and gets nothing new.
    pub deleting: bool,
    pub role: Role,
    pub labels: PackedLabels,
    pub families: Result<Families, FamilyError>,
    /// Sorted IPv4 before IPv6; empty: any address will do.
    pub requested: Result<Vec<IpAddr>, RequestError>,
    /// The annotation `address-pool`.
    pub requested_pool: Option<String>,
    /// `None`: shares with nobody.
    pub sharing: Option<Arc<Sharing>>,
    /// Sorted, each once.
    pub ports: Box<[Port]>,
    pub seen: SeenStatus,
    /// Annotations in use whose prefix is deprecated.
    pub deprecated_annotations: Vec<String>,
}

impl Service {
    /// Reads `object`; `class` is what `--lb-class` says. `None` when the object has no name.
    pub fn new(object: &v1::Service, class: Option<&str>) -> Option<Self> {
        let metadata = &object.metadata;
        let default_spec = ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default_spec);
        let empty = BTreeMap::new();
        let annotations = Annotations(metadata.annotations.as_ref().unwrap_or(&empty));
        let default_status = ServiceStatus::default();
        let status = object.status.as_ref().unwrap_or(&default_status);

        Some(Self {
            key: ServiceKey::new(
                metadata.namespace.as_deref().unwrap_or_default(),
                metadata.name.as_deref()?,
            ),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            deleting: metadata.deletion_timestamp.is_some(),
            role: role(spec, class),
            labels: PackedLabels::new(metadata.labels.iter().flatten()),
            families: families(spec),
            requested: requested(spec, annotations),
            requested_pool: annotations
                .value(ADDRESS_POOL)
                .filter(|pool| !pool.is_empty())
                .map(str::to_owned),
            sharing: annotations
                .value(ALLOW_SHARED_IP)
                .filter(|key| !key.is_empty())
                .map(|key| Arc::new(Sharing { key: key.into(), backend: backend(spec).into() })),
            ports: ports(spec),
            seen: seen(status, annotations.0),
            deprecated_annotations: annotations.deprecated(),
        })
    }

    /// What the allocator must know.
    pub fn tenant(&self, id: Id) -> Tenant<'_> {
        Tenant {
            id,
            key: &self.key,
            labels: &self.labels,
            sharing: self.sharing.as_ref(),
            ports: &self.ports,
        }
    }

    /// The order in which Services are served: the oldest first, then by name.
    pub fn rank(&self) -> Rank {
        Rank { created: self.created, key: self.key.clone() }
    }
}

/// Place in the order of service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    created: Option<i64>,
    pub key: ServiceKey,
}

#[derive(Clone, Copy)]
struct Annotations<'a>(&'a BTreeMap<String, String>);

impl<'a> Annotations<'a> {
    fn value(self, name: &str) -> Option<&'a str> {
        [PREFIX, DEPRECATED_PREFIX]
            .iter()
            .find_map(|prefix| self.0.get(&format!("{prefix}{name}")))
            .map(String::as_str)
    }

    fn deprecated(self) -> Vec<String> {
        if self.0.is_empty() {
            return Vec::new();
        }
        [ADDRESS_POOL, LOAD_BALANCER_IPS, ALLOW_SHARED_IP]
            .iter()
            .map(|name| format!("{DEPRECATED_PREFIX}{name}"))
            .filter(|name| self.0.contains_key(name))
            .collect()
    }
}

fn role(spec: &ServiceSpec, class: Option<&str>) -> Role {
    if spec.type_.as_deref() != Some("LoadBalancer") {
        Role::NotLoadBalancer
    } else if spec.load_balancer_class.as_deref() == class {
        Role::Ours
    } else {
        Role::OtherClass
    }
}

fn families(spec: &ServiceSpec) -> Result<Families, FamilyError> {
    let texts = match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(all), _) if !all.is_empty() => all.as_slice(),
        (_, Some(one)) => std::slice::from_ref(one),
        (_, None) => &[],
    };
    // "None" of a headless Service is no address and counts as absent.
    let cluster_ips: Vec<Family> =
        texts.iter().filter_map(|text| text.parse().ok()).map(Family::of).collect();
    let both = Family::ALL.iter().all(|family| cluster_ips.contains(family));
    let policy = spec.ip_family_policy.as_deref();
    match cluster_ips.first() {
        None => Err(FamilyError::NoClusterIp),
        Some(_) if both && policy == Some("PreferDualStack") => {
            let preferred = spec.ip_families.as_ref().and_then(|families| families.first());
            let first =
                if preferred.is_some_and(|f| f == "IPv6") { Family::V6 } else { Family::V4 };
            Ok(Families::PreferBoth { first })
        }
        Some(_) if both => Ok(Families::Both),
        Some(_) if policy == Some("RequireDualStack") => Err(FamilyError::NotEnoughClusterIps),
        Some(family) => Ok(Families::One(*family)),
    }
}

fn requested(
    spec: &ServiceSpec,
    annotations: Annotations<'_>,
) -> Result<Vec<IpAddr>, RequestError> {
    let annotation = annotations.value(LOAD_BALANCER_IPS).filter(|text| !text.is_empty());
    let field = spec.load_balancer_ip.as_deref().filter(|text| !text.is_empty());
    let (field, texts) = match (annotation, field) {
        (None, None) => return Ok(Vec::new()),
        (Some(_), Some(_)) => return Err(RequestError::Twice),
        (Some(list), None) => {
            ("metallb.io/loadBalancerIPs", list.split(',').map(str::trim).collect())
        }
        (None, Some(one)) => ("spec.loadBalancerIP", vec![one]),
    };
    if texts.len() > 2 {
        return Err(RequestError::TooMany { field, count: texts.len() });
    }
    let mut addresses = texts
        .into_iter()
        .map(|text| {
            text.parse().map_err(|_| RequestError::NotAnAddress { field, text: shortened(text) })
        })
        .collect::<Result<Vec<IpAddr>, _>>()?;
    addresses.sort();
    match addresses.as_slice() {
        [a, b] if Family::of(*a) == Family::of(*b) => {
            Err(RequestError::SameFamily { field, family: Family::of(*a) })
        }
        _ => Ok(addresses),
    }
}

/// Annotations may be 256 KiB long; a message need not.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 64;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn backend(spec: &ServiceSpec) -> String {
    if spec.external_traffic_policy.as_deref() != Some("Local") {
        return String::new();
    }
    let pairs = spec.selector.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

fn ports(spec: &ServiceSpec) -> Box<[Port]> {
    let port = |port: &v1::ServicePort| {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(_) => return None,
        };
        Some(Port { protocol, number: u16::try_from(port.port).ok()? })
    };
    let mut ports: Vec<Port> = spec.ports.iter().flatten().filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.into()
}

fn seen(status: &ServiceStatus, annotations: &BTreeMap<String, String>) -> SeenStatus {
    let balancer = status.load_balancer.as_ref();
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ours = |condition: &&Condition| condition.type_ == ADDRESS_ASSIGNED;
    let condition = conditions.iter().find(ours).map(|condition| {
        Box::new(SeenCondition {
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            since: condition.last_transition_time.0.to_string(),
        })
    });
    let others = conditions.iter().filter(|condition| !ours(condition));
    let addresses: Vec<IpAddr> =
        ingress.iter().filter_map(|entry| entry.ip.as_deref()?.parse().ok()).collect();
    // The API server fills in `ipMode: VIP` where it is absent.
    let ordinary = |entry: &LoadBalancerIngress| {
        entry.hostname.is_none() && entry.ip_mode.as_deref().is_none_or(|mode| mode == "VIP")
    };
    SeenStatus {
        foreign: addresses.len() != ingress.len() || !ingress.iter().all(ordinary),
        addresses,
        pool: annotations.get(ALLOCATED_FROM_POOL).cloned(),
        deprecated_pool: annotations.contains_key(DEPRECATED_ALLOCATED_FROM_POOL),
        condition,
        other_conditions: others.map(|condition| json!(condition)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(manifest: Value) -> Service {
        Service::new(&serde_json::from_value(manifest).unwrap(), None).unwrap()
    }

    fn with_spec(spec: Value) -> Service {
        view(json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec}))
    }

    fn with_annotations(annotations: Value, spec: Value) -> Service {
        view(json!({"metadata": {"name": "web", "annotations": annotations}, "spec": spec}))
    }

    #[test]
    fn an_object_without_a_name_is_not_a_service() {
        assert_eq!(Service::new(&v1::Service::default(), None), None);
    }

    #[test]
    fn class_and_type_decide_the_role() {
        let cases = [
            (json!({}), None, Role::NotLoadBalancer),
            (json!({"type": "ClusterIP"}), Some("berth"), Role::NotLoadBalancer),
            (json!({"type": "LoadBalancer"}), None, Role::Ours),
            (json!({"type": "LoadBalancer"}), Some("berth"), Role::OtherClass),
            (json!({"type": "LoadBalancer", "loadBalancerClass": "x"}), None, Role::OtherClass),
            (json!({"type": "LoadBalancer", "loadBalancerClass": "x"}), Some("x"), Role::Ours),
        ];
        for (spec, class, expected) in cases {
            let object = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec}));
            let service = Service::new(&object.unwrap(), class).unwrap();
            assert_eq!(service.role, expected, "{spec} {class:?}");
        }
    }

    #[test]
    fn cluster_ips_and_policy_decide_the_families() {
        let cases = [
            (json!({}), Err(FamilyError::NoClusterIp)),
            (json!({"clusterIP": "None", "clusterIPs": ["None"]}), Err(FamilyError::NoClusterIp)),
            (json!({"clusterIP": "10.0.0.1"}), Ok(Families::One(Family::V4))),
            (json!({"clusterIPs": ["fd00::1"]}), Ok(Families::One(Family::V6))),
            (json!({"clusterIPs": ["10.0.0.1", "fd00::1"]}), Ok(Families::Both)),
            (
                json!({"clusterIPs": ["fd00::1", "10.0.0.1"], "ipFamilies": ["IPv6", "IPv4"],
                       "ipFamilyPolicy": "PreferDualStack"}),
                Ok(Families::PreferBoth { first: Family::V6 }),
            ),
            (
                json!({"clusterIPs": ["10.0.0.1"], "ipFamilyPolicy": "PreferDualStack"}),
                Ok(Families::One(Family::V4)),
            ),
            (
                json!({"clusterIPs": ["10.0.0.1"], "ipFamilyPolicy": "RequireDualStack"}),
                Err(FamilyError::NotEnoughClusterIps),
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(with_spec(spec.clone()).families, expected, "{spec}");
        }
    }

    #[test]
    fn requested_addresses() {
        let ips = |text: &str, spec: Value| {
            with_annotations(json!({"metallb.io/loadBalancerIPs": text}), spec).requested
        };
        let field = "metallb.io/loadBalancerIPs";
        assert_eq!(ips("", json!({})), Ok(vec![]));
        assert_eq!(ips("192.0.2.1", json!({})), Ok(vec!["192.0.2.1".parse().unwrap()]));
        assert_eq!(
            ips(" 2001:DB8::1 , 192.0.2.1 ", json!({})),
            Ok(vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]),
        );
        assert_eq!(
            ips("192.0.2.1,192.0.2.2", json!({})),
            Err(RequestError::SameFamily { field, family: Family::V4 })
        );
        assert_eq!(
            ips(&["192.0.2.1"; 1000].join(","), json!({})),
            Err(RequestError::TooMany { field, count: 1000 })
        );
        assert_eq!(
            ips("192.0.2.1", json!({"loadBalancerIP": "192.0.2.1"})),
            Err(RequestError::Twice)
        );
        assert_eq!(
            ips(&"ä".repeat(100), json!({})),
            Err(RequestError::NotAnAddress { field, text: format!("{}…", "ä".repeat(64)) })
        );
        assert!(with_spec(json!({"loadBalancerIP": "010.1.0.1"})).requested.is_err());
    }

    #[test]
    fn stable_annotations_win_over_deprecated_ones() {
        let service = with_annotations(
            json!({"metallb.io/address-pool": "new", "metallb.universe.tf/address-pool": "old",
                   "metallb.universe.tf/allow-shared-ip": "key"}),
            json!({}),
        );
        assert_eq!(service.requested_pool.as_deref(), Some("new"));
        assert_eq!(service.sharing.map(|sharing| sharing.key.clone()), Some("key".into()));
        assert_eq!(
            service.deprecated_annotations,
            ["metallb.universe.tf/address-pool", "metallb.universe.tf/allow-shared-ip"]
        );
    }

    #[test]
    fn only_policy_local_has_a_backend_key() {
        let selector = json!({"app": "web", "tier": "front"});
        let backend = |policy: &str| {
            let spec = json!({"selector": selector, "externalTrafficPolicy": policy});
            let service = with_annotations(json!({"metallb.io/allow-shared-ip": "key"}), spec);
            service.sharing.unwrap().backend.to_string()
        };
        assert_eq!(backend("Cluster"), "");
        assert_eq!(backend("Local"), "app=web,tier=front");
        assert_eq!(with_spec(json!({"externalTrafficPolicy": "Local"})).sharing, None);
    }

    #[test]
    fn the_status_is_read_and_strange_entries_are_noted() {
        let seen = |ingress: Value| {
            view(json!({"metadata": {"name": "a"},
                        "status": {"loadBalancer": {"ingress": ingress}}}))
            .seen
        };
        assert!(!seen(json!([{"ip": "192.0.2.1"}])).foreign);
        assert!(!seen(json!([{"ip": "192.0.2.1", "ipMode": "VIP"}])).foreign);
        assert!(seen(json!([{"ip": "192.0.2.1", "ipMode": "Proxy"}])).foreign);
        assert!(seen(json!([{"ip": "192.0.2.1"}, {"hostname": "lb.example"}])).foreign);
        assert!(seen(json!([{"ip": "nonsense"}])).foreign);
    }

    #[test]
    fn our_condition_is_told_from_those_of_others() {
        let condition = |kind: &str| {
            json!({"type": kind, "status": "False", "reason": "Because", "message": "of that",
                   "lastTransitionTime": "2026-01-02T03:04:05Z"})
        };
        let conditions = [condition("LoadBalancerPortsError"), condition(ADDRESS_ASSIGNED)];
        let seen =
            view(json!({"metadata": {"name": "a"}, "status": {"conditions": conditions}})).seen;
        let expected = SeenCondition {
            status: "False".to_owned(),
            reason: "Because".to_owned(),
            message: "of that".to_owned(),
            since: "2026-01-02T03:04:05Z".to_owned(),
        };
        assert_eq!(seen.condition.as_deref(), Some(&expected));
        assert_eq!(seen.other_conditions, [condition("LoadBalancerPortsError")]);
    }
}
