//! Which node announces what: `speaker::plan` over the objects of an [`Input`], and where each
//! address is first when every node lives. What goes to BGP peers is in [`bgp`].

mod bgp;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use config::{Config, NodeName, ServiceKey};
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service},
    discovery::v1::{Endpoint, EndpointSlice},
};
use ownership::Candidates;
use serde::Serialize;
use speaker::{
    plan::{Context, Options, Refusal, plan, refusal_at},
    view::Cluster,
};

use super::{
    input::{Input, Key, Kind, Settings},
    read::ReadError,
};

const LAYER2: &str = "layer2";
const BGP: &str = "bgp";
/// How an EndpointSlice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A node that announces an address of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Announcement {
    pub service: String,
    pub address: IpAddr,
    pub protocol: &'static str,
    pub node: String,
    #[serde(flatten)]
    pub way: Way,
}

/// How.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Way {
    Layer2 {
        /// The only ones on which it does; `None`: any that suits the address.
        interfaces: Option<Vec<String>>,
    },
    Bgp {
        peer: String,
        prefix: IpNet,
        local_pref: Option<u32>,
        med: Option<u32>,
        as_path_prepend: u8,
        /// Of all kinds, as they are written in a BGPAdvertisement.
        communities: Vec<String>,
    },
}

/// A node that does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unannounced {
    pub service: String,
    /// `None`: the Service has none.
    pub address: Option<IpAddr>,
    /// `None`: there are no nodes.
    pub node: Option<String>,
    pub protocol: &'static str,
    /// The BGPPeer that does not get it; `None`: no peer of the node does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    pub reason: &'static str,
    /// The same for people.
    #[serde(skip)]
    pub message: String,
}

/// What announcements are made from.
#[derive(Debug)]
pub struct Facts {
    nodes: Vec<Node>,
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
}

impl Facts {
    /// A Service without an EndpointSlice counts as served on every node if `is_assumed` says so.
    ///
    /// # Errors
    /// When an object has not the form of its kind.
    pub fn new(input: &Input, is_assumed: impl Fn(&Key) -> bool) -> Result<Self, ReadError> {
        let nodes: Vec<Node> = input.all(Kind::Node)?;
        let services: Vec<Service> = input.all(Kind::Service)?;
        let mut slices: Vec<EndpointSlice> = input.all(Kind::EndpointSlice)?;
        let of_services: BTreeSet<_> = slices.iter().filter_map(service_of).collect();
        let nowhere_served = services.iter().filter(|service| {
            let namespace = service.metadata.namespace.clone().unwrap_or_default();
            let name = service.metadata.name.clone().unwrap_or_default();
            !of_services.contains(&(namespace.clone(), name.clone()))
                && is_assumed(&Key { kind: Kind::Service, namespace, name })
        });
        let assumed: Vec<_> =
            nowhere_served.map(|service| served_everywhere(service, &nodes)).collect();
        slices.extend(assumed);
        Ok(Self { nodes, services, slices })
    }

    /// What is announced when Services have the addresses that `held` says.
    pub fn announced(
        self,
        config: &Config,
        held: impl Fn(&ServiceKey) -> Vec<IpAddr>,
        settings: &Settings,
    ) -> (Vec<Announcement>, Vec<Unannounced>) {
        let cluster = self.cluster(held);
        let options = Options {
            lb_class: settings.lb_class.clone(),
            ignore_exclude_label: settings.ignore_exclude_label,
            drain_on_taints: false,
        };
        // Nobody in particular: layer 2 is planned alike by all.
        let me = NodeName::default();
        let context = Context { me: &me, config, cluster: &cluster, options: &options };
        let wanted = plan(context).layer2;
        let placed = place(&wanted, context);
        let routed = bgp::routed(context);
        let mut all = (Vec::new(), Vec::new());
        for (key, service) in &cluster.services {
            let of_service = OfService {
                key,
                service,
                context,
                wanted: &wanted,
                placed: &placed,
                routed: &routed,
            };
            of_service.tell(&mut all.0, &mut all.1);
        }
        all
    }

    fn cluster(self, held: impl Fn(&ServiceKey) -> Vec<IpAddr>) -> Cluster {
        let mut cluster = Cluster::default();
        for node in &self.nodes {
            cluster.apply_node(node);
        }
        for slice in &self.slices {
            cluster.apply_slice(slice);
        }
        for mut service in self.services {
            let metadata = &service.metadata;
            let key = ServiceKey::new(
                metadata.namespace.as_deref().unwrap_or_default(),
                metadata.name.as_deref().unwrap_or_default(),
            );
            let ingress = held(&key).into_iter().map(|address| LoadBalancerIngress {
                ip: Some(address.to_string()),
                ..LoadBalancerIngress::default()
            });
            let ingress = Some(ingress.collect());
            let status = service.status.get_or_insert_default();
            status.load_balancer = Some(LoadBalancerStatus { ingress });
            cluster.apply_service(&service);
        }
        cluster
    }
}

/// The first placement. A drained node has only what no other one can have.
fn place(
    wanted: &BTreeMap<IpAddr, Arc<Candidates>>,
    context: Context<'_>,
) -> BTreeMap<IpAddr, NodeName> {
    let all: BTreeSet<NodeName> = context.cluster.nodes.keys().cloned().collect();
    let staying = all.iter().filter(|node| !context.is_drained(node)).cloned().collect();
    let mut placed = ownership::place(wanted, &staying);
    let left = wanted.iter().filter(|(address, _)| !placed.contains_key(*address));
    let left = left.map(|(address, candidates)| (*address, Arc::clone(candidates))).collect();
    placed.extend(ownership::place(&left, &all));
    placed
}

struct OfService<'a> {
    key: &'a ServiceKey,
    service: &'a speaker::view::Service,
    context: Context<'a>,
    wanted: &'a BTreeMap<IpAddr, Arc<Candidates>>,
    placed: &'a BTreeMap<IpAddr, NodeName>,
    routed: &'a BTreeMap<NodeName, bgp::Routed<'a>>,
}

impl OfService<'_> {
    fn tell(&self, announced: &mut Vec<Announcement>, unannounced: &mut Vec<Unannounced>) {
        let nodes = || self.context.cluster.nodes.keys();
        if self.service.class.as_deref() != self.context.options.lb_class.as_deref() {
            return;
        }
        if self.service.addresses.is_empty() {
            let nodes = nodes().map(Some).chain(nodes().next().is_none().then_some(None));
            unannounced.extend(nodes.map(|node| self.not(None, node, &Refusal::NoAddress)));
        }
        for address in &self.service.addresses {
            let by_layer2 = !self.is_for_bgp_alone(*address);
            for node in nodes() {
                if by_layer2 {
                    self.tell_layer2(node, *address, announced, unannounced);
                }
                if let Some(routed) = self.routed.get(node) {
                    routed.tell(self.key, *address, announced, unannounced);
                }
            }
            if by_layer2 && nodes().next().is_none() {
                let why = self.refusal(&NodeName::default(), *address);
                unannounced.extend(why.map(|why| self.not(Some(*address), None, &why)));
            }
        }
    }

    fn tell_layer2(
        &self,
        node: &NodeName,
        address: IpAddr,
        announced: &mut Vec<Announcement>,
        unannounced: &mut Vec<Unannounced>,
    ) {
        let refusal = self.refusal(node, address).or_else(|| {
            let owner = self.placed.get(&address).filter(|owner| *owner != node)?;
            Some(Refusal::NotOwner(owner.clone()))
        });
        match refusal {
            Some(why) => unannounced.push(self.not(Some(address), Some(node), &why)),
            None => announced.push(Announcement {
                service: self.key.to_string(),
                address,
                protocol: LAYER2,
                node: node.to_string(),
                way: Way::Layer2 { interfaces: self.interfaces(node, address) },
            }),
        }
    }

    fn refusal(&self, node: &NodeName, address: IpAddr) -> Option<Refusal> {
        refusal_at(node, address, self.key, self.service, self.context)
    }

    fn interfaces(&self, node: &NodeName, address: IpAddr) -> Option<Vec<String>> {
        let names = self.wanted.get(&address)?.interfaces.get(node)?;
        Some(names.iter().cloned().collect())
    }

    /// Then there is nothing to say about layer 2.
    fn is_for_bgp_alone(&self, address: IpAddr) -> bool {
        let pool = self.context.config.pools.values().find(|pool| pool.contains(address));
        pool.is_some_and(|pool| {
            pool.l2_advertisements.is_empty() && !pool.bgp_advertisements.is_empty()
        })
    }

    fn not(
        &self,
        address: Option<IpAddr>,
        node: Option<&NodeName>,
        refusal: &Refusal,
    ) -> Unannounced {
        Unannounced {
            service: self.key.to_string(),
            address,
            node: node.map(ToString::to_string),
            protocol: LAYER2,
            peer: None,
            reason: refusal.reason(),
            message: refusal.to_string(),
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<(String, String)> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some((slice.metadata.namespace.clone()?, service.clone()))
}

fn served_everywhere(service: &Service, nodes: &[Node]) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let on = |node: Option<String>| Endpoint {
        addresses: vec![String::new()],
        node_name: node,
        ..Endpoint::default()
    };
    let mut slice = EndpointSlice::default();
    slice.metadata.labels = Some([(SERVICE_LABEL.to_owned(), name.clone())].into());
    slice.metadata.name = Some(name);
    slice.metadata.namespace.clone_from(&service.metadata.namespace);
    slice.endpoints = nodes.iter().map(|node| on(node.metadata.name.clone())).collect();
    if slice.endpoints.is_empty() {
        slice.endpoints.push(on(None));
    }
    slice
}
