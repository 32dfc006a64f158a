//! The invariants.
//!
//! [`Checker::step`] holds what must be true at every moment, [`at_rest`] what must be true when
//! nothing has gone wrong for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use config::Config;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use speaker::{
    plan::{Context, Options, plan},
    view::Cluster as View,
};

use super::{
    api::{Api, Change, Key},
    cluster::{Cluster, addresses},
    host,
};

/// The annotation with which Services share an address.
pub const SHARE: &str = "metallb.io/allow-shared-ip";

#[derive(Debug, Default)]
pub struct Checker {
    broken: Option<String>,
    read: usize,
    /// What each Service holds and has no reason to lose.
    holds: BTreeMap<Key, BTreeSet<IpAddr>>,
    /// Frames that told of an address.
    pub answers: u64,
}

impl Checker {
    /// Notes a broken rule.
    pub fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// A node sends a frame: it may only tell of addresses that it owns.
    pub fn spoken(&mut self, node: &str, answers: &BTreeSet<IpAddr>, frame: &[u8]) {
        if host::is_question(frame) {
            return;
        }
        if let Some(says) = host::read(frame) {
            self.answers += 1;
            if !answers.contains(&says.address) {
                self.fail(format!("{node} tells of {}, which it does not own", says.address));
            }
        }
    }

    /// What must hold at every moment.
    ///
    /// # Errors
    /// The rule that is broken, in words.
    pub fn step(&mut self, api: &Api) -> Result<(), String> {
        let news: Vec<Change> = api.log[self.read..].to_vec();
        self.read = api.log.len();
        for change in news {
            match change {
                Change::Service(service) => self.service(&service, api),
                Change::ServiceGone(key) => {
                    self.holds.remove(&key);
                }
                Change::Resources(_) => self.holds.clear(),
                Change::Slice(_) | Change::SliceGone(_) | Change::Node(_) | Change::NodeGone(_) => {
                }
            }
        }
        self.broken.take().map_or(Ok(()), Err)
    }

    fn service(&mut self, service: &Service, api: &Api) {
        let key = super::api::key(&service.metadata);
        let now = addresses(service);
        if let Some(before) = self.holds.get(&key)
            && !before.is_subset(&now)
        {
            self.fail(format!("{key:?} was left alone and went from {before:?} to {now:?}"));
        }
        if !now.is_empty() {
            self.holds.insert(key.clone(), now.clone());
        }
        for other in api.services.values() {
            let both = super::api::key(&other.metadata) != key;
            if both && !addresses(other).is_disjoint(&now) && !may_share(service, other) {
                let name = &other.metadata.name;
                self.fail(format!("{key:?} and {name:?} have the same of {now:?}"));
            }
        }
    }
}

fn may_share(a: &Service, b: &Service) -> bool {
    let key = |s: &Service| s.metadata.annotations.as_ref().and_then(|a| a.get(SHARE)).cloned();
    let ports = |s: &Service| -> BTreeSet<i32> {
        let ports = s.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        ports.iter().map(|port| port.port).collect()
    };
    key(a).is_some() && key(a) == key(b) && ports(a).is_disjoint(&ports(b))
}

/// What must hold when nothing has gone wrong for a while and everything is up.
///
/// # Errors
/// The rule that is broken, in words.
pub fn at_rest(cluster: &Cluster) -> Result<(), String> {
    let mut resources = cluster.api.resources.clone();
    resources.nodes = cluster
        .api
        .nodes
        .iter()
        .map(|(name, node)| (name.clone(), node.metadata.labels.clone().unwrap_or_default()))
        .collect();
    let (config, _) = Config::parse(&resources, None);
    let mut view = View::default();
    for node in cluster.api.nodes.values() {
        view.apply_node(node);
    }
    for service in cluster.api.services.values() {
        view.apply_service(service);
    }
    for slice in cluster.api.slices.values() {
        view.apply_slice(slice);
    }
    allocated(cluster, &config)?;
    owned(cluster, &config, &view)?;
    routed(cluster, &config, &view)
}

/// Every address is in a pool, and nobody waits for one that is free.
fn allocated(cluster: &Cluster, config: &Config) -> Result<(), String> {
    for (key, service) in &cluster.api.services {
        let has = addresses(service);
        for address in &has {
            if !config.pools.values().any(|pool| pool.contains(*address)) {
                return Err(format!("{key:?} has {address}, which is in no pool"));
            }
        }
        let wants = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
        if wants == Some("LoadBalancer") && has.is_empty() && !config.pools.is_empty() {
            return Err(format!("{key:?} has no address at rest"));
        }
    }
    Ok(())
}

/// Each address is answered by exactly one live candidate, and everybody knows by whom.
fn owned(cluster: &Cluster, config: &Config, view: &View) -> Result<(), String> {
    let mut wanted = BTreeMap::new();
    for node in cluster.nodes.iter().filter(|node| node.speaker.is_some()) {
        let options = Options::default();
        let context = Context { me: &node.name, config, cluster: view, options: &options };
        wanted.extend(plan(context).layer2);
    }
    let owners = |address: &IpAddr| -> Vec<_> {
        cluster
            .nodes
            .iter()
            .filter(|node| node.speaker.as_ref().is_some_and(|s| s.answers.contains(address)))
            .collect()
    };
    for (address, asked) in &wanted {
        let live: BTreeSet<_> = cluster
            .nodes
            .iter()
            .filter(|node| node.speaker.is_some() && asked.nodes.contains(&node.name))
            .map(|node| &node.name)
            .collect();
        match owners(address)[..] {
            [] if live.is_empty() => {}
            [owner] if live.contains(&owner.name) => {
                for host in &cluster.hosts {
                    let believes = host.table.get(address);
                    if believes != Some(&owner.mac) {
                        return Err(format!(
                            "{address} is {}'s, but host {:?} believes {believes:02x?}",
                            owner.name, host.v4
                        ));
                    }
                }
            }
            [] => return Err(format!("nobody answers for {address}; live: {live:?}")),
            [one] => return Err(format!("{address} is answered by {}, no candidate", one.name)),
            ref many => {
                let names: Vec<_> = many.iter().map(|node| &node.name).collect();
                return Err(format!("{address} is answered by {names:?}"));
            }
        }
    }
    for node in &cluster.nodes {
        let Some(speaker) = &node.speaker else { continue };
        if let Some(address) = speaker.answers.iter().find(|a| !wanted.contains_key(a)) {
            return Err(format!("{} still answers for {address}", node.name));
        }
    }
    Ok(())
}

/// The router has what the plans of the live nodes say, no more and no less.
fn routed(cluster: &Cluster, config: &Config, view: &View) -> Result<(), String> {
    let mut expected: BTreeMap<IpNet, BTreeSet<usize>> = BTreeMap::new();
    for (index, node) in cluster.nodes.iter().enumerate() {
        if node.speaker.is_none() {
            continue;
        }
        let options = Options::default();
        let context = Context { me: &node.name, config, cluster: view, options: &options };
        for prefix in plan(context).bgp.into_values().flat_map(BTreeMap::into_keys) {
            expected.entry(prefix).or_default().insert(index);
        }
    }
    let seen = cluster.router.routes();
    if seen == expected {
        Ok(())
    } else {
        Err(format!("the router has {seen:?}, the plans say {expected:?}"))
    }
}
