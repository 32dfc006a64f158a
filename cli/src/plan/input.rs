//! Objects by kind, namespace and name, and what the configuration and the plan are made from.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use apiserver::Schemas;
use config::{Candidate, NodeAddress, ObjectRef, Resources, Rule, ServiceKey};
use controller::service::{Family, Service};
use ipnet::IpNet;
use k8s_openapi::{
    ByteString, Metadata,
    api::{
        core::v1::{self, Namespace, Node, Secret},
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    assumed::{after_apply, give_cluster_ips},
    read::{Object, ReadError},
};

/// Where Services without a namespace are.
const DEFAULT_NAMESPACE: &str = "default";
/// The ServiceCIDR that the API server makes of its flags: its first range is of the family that
/// Services get who do not ask for one.
const FIRST_RANGE: &str = "kubernetes";
/// What every Namespace is labelled with by the API server.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Our kinds that are configuration, and the versions that are served.
const OURS: [(&str, &[&str]); 6] = [
    ("IPAddressPool", &["v1beta1"]),
    ("L2Advertisement", &["v1beta1"]),
    ("BGPAdvertisement", &["v1beta1"]),
    ("BGPPeer", &["v1beta1", "v1beta2"]),
    ("BFDProfile", &["v1beta1"]),
    ("Community", &["v1beta1"]),
];
/// Our kinds that are results.
const RESULTS: [&str; 4] =
    ["ServiceL2Status", "ServiceBGPStatus", "BGPSessionState", "ConfigurationState"];

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(Schemas::default);

/// What Berth is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the custom resources live.
    pub namespace: String,
    /// `--lb-class` of the controller and of the speakers.
    pub lb_class: Option<String>,
    /// `--ignore-exclude-lb` of the speakers.
    pub ignore_exclude_label: bool,
}

/// The kinds that the plan is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Of `metallb.io`, under this name.
    Ours(&'static str),
    Service,
    Namespace,
    Node,
    Secret,
    ServiceCidr,
    EndpointSlice,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    /// Empty for kinds without one.
    pub namespace: String,
    pub name: String,
}

impl Key {
    /// `namespace/name`, or the name alone.
    fn path(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }
}

/// Objects of the kinds above, each at most once.
#[derive(Debug, Clone, Default)]
pub struct Input {
    objects: BTreeMap<Key, Object>,
    /// How many objects of other kinds there were, by kind.
    pub ignored: BTreeMap<String, usize>,
}

impl Input {
    /// # Errors
    /// An object without a name, or one that is there twice.
    pub fn new(objects: Vec<Object>, settings: &Settings) -> Result<Self, ReadError> {
        let mut input = Self::default();
        for mut object in objects {
            let kind = match class(object.text("/apiVersion"), object.text("/kind")) {
                Class::Read(kind) => kind,
                Class::Result => continue,
                Class::Other => {
                    *input.ignored.entry(object.text("/kind").to_owned()).or_default() += 1;
                    continue;
                }
            };
            let key = Key {
                kind,
                namespace: namespace_of(kind, &object, settings),
                name: object.text("/metadata/name").to_owned(),
            };
            if key.name.is_empty() {
                let kind = object.text("/kind");
                let message = match object.value.pointer("/metadata/name") {
                    None | Some(Value::Null | Value::String(_)) => {
                        format!("{kind} without a metadata.name")
                    }
                    Some(other) => format!(
                        "the metadata.name of this {kind} is {other}, which is no text; put it in \
                         quotes"
                    ),
                };
                return Err(ReadError::new(&object.place, message));
            }
            if let Some(first) = input.objects.get(&key) {
                let message = format!(
                    "{} {} is already in {}; remove one of the two",
                    object.text("/kind"),
                    key.path(),
                    first.place
                );
                return Err(ReadError::new(&object.place, message));
            }
            if !key.namespace.is_empty() {
                object.value["metadata"]["namespace"] = json!(key.namespace);
            }
            input.objects.insert(key, object);
        }
        Ok(input)
    }

    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// The configuration objects, in the order of kind, namespace and name.
    pub fn ours(&self) -> impl Iterator<Item = (&Key, &Object)> {
        self.objects.iter().filter(|(key, _)| matches!(key.kind, Kind::Ours(_)))
    }

    /// Everything as it is after `files` were applied, except for our own kinds, which are for the
    /// webhook to admit one by one.
    pub fn with_applied(&self, files: &Self) -> Self {
        let mut applied = self.clone();
        for (key, new) in &files.objects {
            if !matches!(key.kind, Kind::Ours(_)) {
                applied.put(key, after_apply(self.get(key), new));
            }
        }
        applied
    }

    pub fn put(&mut self, key: &Key, object: Object) {
        self.objects.insert(key.clone(), object);
    }

    /// The names of the Secrets that BGPPeers and BFDProfiles read their keys from.
    pub fn named_secrets(&self) -> BTreeSet<String> {
        let fields = ["/spec/passwordSecret/name", "/spec/authentication/secret/name"];
        let names = self.ours().flat_map(|(_, object)| fields.map(|field| object.text(field)));
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// What an API server would say to misspelt fields, object by object.
    pub fn unknown_fields(&self) -> Vec<String> {
        let of_object = |(key, object): (&Key, &Object)| {
            let named = format!("{} {}", object.text("/kind"), key.path());
            let shaped = SCHEMAS.shaped(object.value.clone());
            let unknown = shaped.map(|(_, unknown)| unknown).unwrap_or_default();
            unknown.into_iter().map(move |unknown| format!("{named}: {unknown}"))
        };
        self.objects.iter().flat_map(of_object).collect()
    }

    /// What the configuration is made from; objects of ours in other namespaces are left out.
    ///
    /// # Errors
    /// When an object of Kubernetes itself has not the form of its kind.
    pub fn resources(&self, settings: &Settings) -> Result<Resources, ReadError> {
        let mut resources = Resources::default();
        for (key, object) in &self.objects {
            match key.kind {
                Kind::Ours(kind) if key.namespace == settings.namespace => {
                    match candidate(kind, object) {
                        Ok(candidate) => drop(candidate.put_into(&mut resources)),
                        Err(message) => {
                            let named = ObjectRef { kind, name: key.name.clone() };
                            resources.unreadable.insert(named, message);
                        }
                    }
                }
                Kind::Secret if key.namespace == settings.namespace => {
                    resources.secrets.insert(key.name.clone(), secret(object)?);
                }
                Kind::Ours(_) | Kind::Secret => {}
                // Users write Services and seldom the Namespaces that they are in.
                Kind::Service => {
                    resources
                        .namespaces
                        .entry(key.namespace.clone())
                        .or_default()
                        .insert(NAME_LABEL.to_owned(), key.namespace.clone());
                }
                Kind::Namespace => {
                    let namespace: Namespace = typed(object)?;
                    let mut labels = namespace.metadata.labels.unwrap_or_default();
                    labels.insert(NAME_LABEL.to_owned(), key.name.clone());
                    resources.namespaces.insert(key.name.clone(), labels);
                }
                Kind::Node => {
                    let node: Node = typed(object)?;
                    let labels = node.metadata.labels.clone().unwrap_or_default();
                    let name = config::NodeName::from(key.name.as_str());
                    resources.nodes.insert(name.clone(), labels);
                    resources.node_addresses.insert(name, node_addresses(&node));
                }
                Kind::ServiceCidr => {
                    let ranges = service_ranges(object)?;
                    resources.service_ranges.insert(key.name.clone(), ranges);
                }
                Kind::EndpointSlice => {}
            }
        }
        Ok(resources)
    }

    /// All Services as the controller sees them. One without a time of creation is yet to be
    /// created, and so is younger than all others.
    ///
    /// # Errors
    /// When one has not the form of a Service.
    pub fn services(
        &self,
        settings: &Settings,
    ) -> Result<BTreeMap<ServiceKey, Service>, ReadError> {
        let families = self.cluster_families()?;
        let mut services = BTreeMap::new();
        for (key, object) in self.objects.iter().filter(|(key, _)| key.kind == Kind::Service) {
            let mut service: v1::Service = typed(object)?;
            service.metadata.namespace = Some(key.namespace.clone());
            give_cluster_ips(&mut service, &families);
            let view = Service::new(&service, settings.lb_class.as_deref());
            if let Some(mut view) = view {
                view.created = view.created.or(Some(i64::MAX));
                services.insert(view.key.clone(), view);
            }
        }
        Ok(services)
    }

    /// All objects of one kind of Kubernetes itself, with the name and namespace that count.
    ///
    /// # Errors
    /// When one has not the form of its kind.
    pub fn all<T>(&self, kind: Kind) -> Result<Vec<T>, ReadError>
    where
        T: DeserializeOwned + Metadata<Ty = ObjectMeta>,
    {
        let all = self.objects.iter().filter(|(key, _)| key.kind == kind);
        all.map(|(key, object)| {
            let mut typed: T = typed(object)?;
            let metadata = typed.metadata_mut();
            metadata.name = Some(key.name.clone());
            metadata.namespace = Some(key.namespace.clone()).filter(|name| !name.is_empty());
            Ok(typed)
        })
        .collect()
    }

    /// The families of cluster IPs, the primary one first.
    fn cluster_families(&self) -> Result<Vec<Family>, ReadError> {
        let mut ranges: Vec<(&Key, &Object)> =
            self.objects.iter().filter(|(key, _)| key.kind == Kind::ServiceCidr).collect();
        ranges.sort_by_key(|(key, _)| key.name != FIRST_RANGE);
        let mut families = Vec::new();
        for (_, object) in ranges {
            families.extend(service_ranges(object)?.iter().map(|range| Family::of(range.addr())));
        }
        if families.is_empty() { Ok(Family::ALL.to_vec()) } else { Ok(families) }
    }
}

/// An object of ours in its typed form.
///
/// # Errors
/// Why it has not the form of its kind.
pub fn candidate(kind: &'static str, object: &Object) -> Result<Candidate, String> {
    let api_version = object.text("/apiVersion");
    let version = api_version.split_once('/').map_or(api_version, |(_, version)| version);
    let served = OURS.iter().find(|(ours, _)| *ours == kind).map_or(&[][..], |(_, served)| *served);
    if !served.contains(&version) {
        return Err(format!(
            "there is no version {api_version:?} of it; use metallb.io/{}",
            served.last().unwrap_or(&"v1beta1")
        ));
    }
    let shaped = SCHEMAS.shaped(object.value.clone());
    let shaped = shaped.map_or_else(|| object.value.clone(), |(shaped, _)| shaped);
    match Candidate::from_json(&shaped) {
        Ok(Some(candidate)) => Ok(candidate),
        Ok(None) => Err(format!("{kind} is no kind of configuration")),
        Err(error) => Err(match error.rule() {
            Rule::Unreadable(message) => message.clone(),
            rule => rule.to_string(),
        }),
    }
}

enum Class {
    Read(Kind),
    /// What the daemons write.
    Result,
    Other,
}

fn class(api_version: &str, kind: &str) -> Class {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    match (group, kind) {
        ("", "Service") => Class::Read(Kind::Service),
        ("", "Namespace") => Class::Read(Kind::Namespace),
        ("", "Node") => Class::Read(Kind::Node),
        ("", "Secret") => Class::Read(Kind::Secret),
        ("networking.k8s.io", "ServiceCIDR") => Class::Read(Kind::ServiceCidr),
        ("discovery.k8s.io", "EndpointSlice") => Class::Read(Kind::EndpointSlice),
        (crds::GROUP, kind) if RESULTS.contains(&kind) => Class::Result,
        (crds::GROUP, kind) => {
            let ours = OURS.iter().find(|(ours, _)| *ours == kind);
            ours.map_or(Class::Other, |(ours, _)| Class::Read(Kind::Ours(ours)))
        }
        _ => Class::Other,
    }
}

fn namespace_of(kind: Kind, object: &Object, settings: &Settings) -> String {
    let default = match kind {
        Kind::Namespace | Kind::Node | Kind::ServiceCidr => return String::new(),
        Kind::Ours(_) | Kind::Secret => &settings.namespace,
        Kind::Service | Kind::EndpointSlice => DEFAULT_NAMESPACE,
    };
    let given = Some(object.text("/metadata/namespace")).filter(|given| !given.is_empty());
    given.unwrap_or(default).to_owned()
}

fn typed<T: DeserializeOwned>(object: &Object) -> Result<T, ReadError> {
    T::deserialize(&object.value).map_err(|error| {
        let named = format!("{} {}", object.text("/kind"), object.text("/metadata/name"));
        ReadError::new(&object.place, format!("{named} cannot be read: {error}"))
    })
}

fn secret(object: &Object) -> Result<config::Secret, ReadError> {
    let secret: Secret = typed(object)?;
    let plain = secret.string_data.and_then(|mut data| data.remove("password"));
    let stored = secret.data.and_then(|mut data| data.remove("password"));
    let text = |ByteString(bytes)| String::from_utf8_lossy(&bytes).into_owned();
    Ok(config::Secret {
        kind: secret.type_.unwrap_or_else(|| "Opaque".to_owned()),
        password: plain.or_else(|| stored.map(text)).map(config::Password),
    })
}

fn node_addresses(node: &Node) -> BTreeSet<NodeAddress> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"))
        .filter_map(|address| {
            let kind = address.type_.as_str().into();
            Some(NodeAddress { address: address.address.parse().ok()?, kind })
        })
        .collect()
}

fn service_ranges(object: &Object) -> Result<Vec<IpNet>, ReadError> {
    let range: ServiceCIDR = typed(object)?;
    let texts = range.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
    let parse = |text: &String| {
        text.parse().map_err(|_| {
            let message =
                format!("ServiceCIDR {}: {text:?} is no prefix", object.text("/metadata/name"));
            ReadError::new(&object.place, message)
        })
    };
    texts.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::read::objects;

    fn settings() -> Settings {
        Settings {
            namespace: "metallb-system".to_owned(),
            lb_class: None,
            ignore_exclude_label: false,
        }
    }

    fn input(yaml: &str) -> Input {
        Input::new(objects("a.yaml", yaml.as_bytes()).unwrap(), &settings()).unwrap()
    }

    fn refused(yaml: &str) -> String {
        let objects = objects("a.yaml", yaml.as_bytes()).unwrap();
        let input = match Input::new(objects, &settings()) {
            Ok(input) => input,
            Err(error) => return error.to_string(),
        };
        let error = input.resources(&settings()).err();
        let error = error.or_else(|| input.services(&settings()).err());
        error.map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn other_kinds_are_counted() {
        let found = input(
            "{apiVersion: apps/v1, kind: Deployment}\n---\n{apiVersion: apps/v1, kind: Deployment}\n\
             ---\n{apiVersion: v1, kind: ConfigMap}\n---\n{apiVersion: metallb.io/v1beta1, kind: \
             AddressPool, metadata: {name: a}}\n---\n{apiVersion: metallb.io/v1beta1, kind: \
             ServiceL2Status}\n",
        );
        let ignored = [("AddressPool", 1), ("ConfigMap", 1), ("Deployment", 2)];
        assert_eq!(found.ignored, ignored.map(|(kind, count)| (kind.to_owned(), count)).into());
        assert_eq!(found.objects.len(), 0);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        for (yaml, expected) in [
            (
                "{apiVersion: v1, kind: Service}",
                "a.yaml: document 1, line 1: Service without a metadata.name",
            ),
            (
                "{apiVersion: v1, kind: Service, metadata: {name: no}}",
                "a.yaml: document 1, line 1: the metadata.name of this Service is false, which is \
                 no text; put it in quotes",
            ),
            (
                "{apiVersion: v1, kind: Service, metadata: {name: a}}\n---\n\
                 {apiVersion: v1, kind: Service, metadata: {name: a, namespace: default}}",
                "a.yaml: document 2, line 3: Service default/a is already in a.yaml: document 1, \
                 line 1; remove one of the two",
            ),
            (
                "{apiVersion: metallb.io/v1beta1, kind: BGPPeer, metadata: {name: a}}\n---\n\
                 {apiVersion: metallb.io/v1beta2, kind: BGPPeer, metadata: {name: a}}",
                "a.yaml: document 2, line 3: BGPPeer metallb-system/a is already in a.yaml: \
                 document 1, line 1; remove one of the two",
            ),
            (
                "{apiVersion: v1, kind: Node, metadata: {name: a}}\n---\n\
                 {apiVersion: v1, kind: Node, metadata: {name: a}}",
                "a.yaml: document 2, line 3: Node a is already in a.yaml: document 1, line 1; \
                 remove one of the two",
            ),
            (
                "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: 7}}",
                "a.yaml: document 1, line 1: Service a cannot be read: ",
            ),
            (
                "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: a}, \
                 spec: {cidrs: [x]}}",
                "a.yaml: document 1, line 1: ServiceCIDR a: \"x\" is no prefix",
            ),
        ] {
            let found = refused(yaml);
            assert!(found.starts_with(expected), "{yaml}: {found:?}");
        }
    }

    #[test]
    fn objects_of_ours_that_cannot_be_read_are_for_the_configuration_to_report() {
        let found = input(
            "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: a}, spec: 7}\n\
             ---\n{apiVersion: metallb.io/v9, kind: BGPPeer, metadata: {name: b}}\n---\n\
             {apiVersion: metallb.io/v1beta1, kind: Community, metadata: {name: c, namespace: x}, \
             spec: 7}\n",
        );
        let unreadable = found.resources(&settings()).unwrap().unreadable;
        let named: Vec<String> = unreadable.keys().map(ToString::to_string).collect();
        assert_eq!(named, ["BGPPeer \"b\"", "IPAddressPool \"a\""]);
        assert_eq!(
            unreadable.values().next().unwrap(),
            "there is no version \"metallb.io/v9\" of it; use metallb.io/v1beta2"
        );
    }

    #[test]
    fn namespaces_and_nodes_have_what_the_controller_asks_for() {
        let found = input(
            "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}}\n---\n\
             {apiVersion: v1, kind: Namespace, metadata: {name: team, labels: {a: b}}}\n---\n\
             {apiVersion: v1, kind: Node, metadata: {name: one}, status: {addresses: [{type: \
             InternalIP, address: 192.0.2.1}, {type: Hostname, address: one}]}}\n---\n\
             {apiVersion: v1, kind: Secret, metadata: {name: s}, type: kubernetes.io/basic-auth, \
             stringData: {password: x}}\n---\n\
             {apiVersion: v1, kind: Secret, metadata: {name: t}, data: {password: eQ==}}\n",
        );
        let resources = found.resources(&settings()).unwrap();
        let labels = |name: &str| resources.namespaces[name].clone();
        assert_eq!(labels("shop"), [(NAME_LABEL.to_owned(), "shop".to_owned())].into());
        assert_eq!(labels("team").len(), 2);
        assert_eq!(resources.node_addresses["one"].len(), 1);
        let password = |name: &str| resources.secrets[name].password.clone().unwrap().0.clone();
        assert_eq!((password("s"), password("t")), ("x".to_owned(), "y".to_owned()));
    }
}
