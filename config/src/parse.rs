//! All objects of one moment together: [`Config::parse`].
//!
//! Who wins when two objects exclude each other: one that is as it was in the last configuration
//! over one that changed or is new, and among those the older over the younger. An object that
//! is in error keeps its last good form where it has one, so that nothing that was announced
//! goes away by a slip of the pen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{
    BgpAdvertisement, Config, ConfigError, Labels, NodeAddress, ObjectRef, Password, Peer, Pool,
    PoolName, Resources, advertisement,
    advertisement::PoolSelection,
    bfd_profile,
    community::Aliases,
    error::{Fault, Rule},
    peer::{self, Missing, References},
    pool::{self, Claims},
};

pub(crate) const POOL: &str = "IPAddressPool";
pub(crate) const L2_ADVERTISEMENT: &str = "L2Advertisement";
pub(crate) const BGP_ADVERTISEMENT: &str = "BGPAdvertisement";
pub(crate) const BGP_PEER: &str = "BGPPeer";
pub(crate) const BFD_PROFILE: &str = "BFDProfile";
pub(crate) const COMMUNITY: &str = "Community";

/// The good forms of the objects that a configuration was made from. They are read again when
/// the next form of the same object is in error, with the Nodes and Namespaces of that moment.
#[derive(Clone, Default, PartialEq)]
pub struct Sources {
    pools: BTreeMap<String, Arc<crds::IPAddressPoolSpec>>,
    l2_advertisements: BTreeMap<String, Arc<crds::L2AdvertisementSpec>>,
    bgp_advertisements: BTreeMap<String, Arc<crds::BGPAdvertisementSpec>>,
    peers: BTreeMap<String, Arc<crds::BGPPeerSpec>>,
    aliases: Aliases,
    passwords: BTreeMap<String, Password>,
}

/// Without the objects: BGPPeers may hold passwords.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Sources {
    pub(crate) fn password(&self, secret: &str) -> Option<&Password> {
        self.passwords.get(secret)
    }
}

impl Config {
    /// The configuration that `resources` make, and all that is wrong with them.
    ///
    /// `last` is the configuration in force until now; without it, an object in error is left
    /// out. Objects that are being deleted count until they are gone.
    pub fn parse(resources: &Resources, last: Option<&Self>) -> (Self, Vec<ConfigError>) {
        parse(resources, last, None)
    }
}

/// `candidate`: an object that is about to be written, to be taken as the youngest of all, and
/// whose references to what is not there yet are no fault of anybody.
pub(crate) fn parse(
    resources: &Resources,
    last: Option<&Config>,
    candidate: Option<&ObjectRef>,
) -> (Config, Vec<ConfigError>) {
    let empty = Config::default();
    let mut parser = Parser {
        resources,
        last: last.unwrap_or(&empty),
        candidate,
        missing: if candidate.is_some() { Missing::NotYet } else { Missing::Fault },
        config: Config::default(),
        errors: Vec::new(),
    };
    parser.bfd_profiles();
    parser.communities();
    parser.pools();
    parser.peers();
    parser.l2_advertisements();
    parser.bgp_advertisements();
    parser.reserved();
    parser.errors.sort_by_cached_key(ConfigError::object);
    (parser.config, parser.errors)
}

struct Parser<'a> {
    resources: &'a Resources,
    last: &'a Config,
    candidate: Option<&'a ObjectRef>,
    missing: Missing,
    config: Config,
    errors: Vec<ConfigError>,
}

/// A pool that is new or has other addresses than before.
struct Contender<'a> {
    name: &'a str,
    pool: Pool,
    spec: Arc<crds::IPAddressPoolSpec>,
    kept: Option<(Pool, Arc<crds::IPAddressPoolSpec>)>,
}

impl<'a> Parser<'a> {
    fn bfd_profiles(&mut self) {
        let resources = self.resources;
        for (name, profile) in self.by_age(BFD_PROFILE, &resources.bfd_profiles, |p| &p.metadata) {
            if self.config.bfd_profiles.contains_key(name) {
                self.error(BFD_PROFILE, name, Fault::new("metadata.name", Rule::NameTaken));
                continue;
            }
            let parsed = match bfd_profile::parse(name, &profile.spec) {
                Ok(parsed) => Some(parsed),
                Err(faults) => {
                    self.errors(BFD_PROFILE, name, faults);
                    self.last.bfd_profiles.get(name).cloned()
                }
            };
            self.config.bfd_profiles.extend(parsed.map(|profile| (name.to_owned(), profile)));
        }
        for name in self.unreadable(BFD_PROFILE) {
            let kept = self.last.bfd_profiles.get(name).cloned();
            self.config.bfd_profiles.extend(kept.map(|profile| (name.to_owned(), profile)));
        }
    }

    fn communities(&mut self) {
        let resources = self.resources;
        // Which names it defined is not known, but what uses them keeps its last good form.
        self.unreadable(COMMUNITY);
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, object) in self.by_age(COMMUNITY, &resources.communities, |c| &c.metadata) {
            for (i, alias) in object.spec.communities.iter().enumerate() {
                let fault = |member: &str, rule| {
                    Fault::new(format!("spec.communities[{i}].{member}"), rule)
                };
                if let Some(&owner) = owners.get(alias.name.as_str()) {
                    let rule = Rule::AliasTaken(alias.name.clone(), owner.to_owned());
                    self.error(COMMUNITY, name, fault("name", rule));
                    continue;
                }
                owners.insert(&alias.name, name);
                let community = match alias.value.parse() {
                    Ok(community) => Some(community),
                    Err(crate::NotACommunity) => {
                        let rule = Rule::Community(alias.value.clone());
                        self.error(COMMUNITY, name, fault("value", rule));
                        self.last.sources.aliases.get(&alias.name).copied()
                    }
                };
                let community = community.map(|community| (alias.name.clone(), community));
                self.config.sources.aliases.extend(community);
            }
        }
    }

    fn pools(&mut self) {
        let (mut settled, mut open) = (Vec::new(), Vec::new());
        let (resources, last) = (self.resources, self.last);
        let mut names = BTreeSet::new();
        let kept = |name: &str| {
            let spec = last.sources.pools.get(name)?;
            let pool = pool::parse(name, spec, &resources.namespaces).ok()?;
            Some((pool, Arc::clone(spec)))
        };
        for (name, object) in self.by_age(POOL, &resources.pools, |p| &p.metadata) {
            if name.is_empty() {
                self.error(POOL, name, Fault::new("metadata.name", Rule::NoName));
                continue;
            }
            if !names.insert(name) {
                self.error(POOL, name, Fault::new("metadata.name", Rule::NameTaken));
                continue;
            }
            match pool::parse(name, &object.spec, &resources.namespaces) {
                Ok(pool) => {
                    let spec = Arc::new(object.spec.clone());
                    if last.pools.get(name).is_some_and(|last| last.ranges == pool.ranges) {
                        settled.push((pool, spec));
                    } else {
                        open.push(Contender { name, pool, spec, kept: kept(name) });
                    }
                }
                Err(faults) => {
                    self.errors(POOL, name, faults);
                    settled.extend(kept(name));
                }
            }
        }
        settled.extend(self.unreadable(POOL).into_iter().filter_map(kept));
        self.settle_pools(settled, open);
    }

    /// Lets the contenders have what is free, the older first. One that cannot have it goes back
    /// to its last form, and those before it that are in the way of that do as well. The last
    /// forms of all are not in each other's way, so this ends.
    fn settle_pools(
        &mut self,
        mut settled: Vec<(Pool, Arc<crds::IPAddressPoolSpec>)>,
        open: Vec<Contender<'a>>,
    ) {
        let mut claims = Claims::default();
        for (pool, _) in &settled {
            claims.add(&pool.name, &pool.ranges);
        }
        let mut standing: BTreeMap<String, Contender<'a>> = BTreeMap::new();
        let mut refused = Vec::new();
        for contender in open {
            let faults = claims.faults(&contender.pool.ranges);
            if faults.is_empty() {
                claims.add(contender.name, &contender.pool.ranges);
                standing.insert(contender.name.to_owned(), contender);
                continue;
            }
            let mut back = vec![(contender, faults)];
            while let Some((contender, faults)) = back.pop() {
                let Some((pool, spec)) = contender.kept else {
                    refused.push(contender);
                    continue;
                };
                self.errors(POOL, contender.name, faults);
                let in_the_way = claims.owners(&pool.ranges);
                let in_the_way = in_the_way.iter().filter_map(|name| standing.remove(name));
                let in_the_way: Vec<_> = in_the_way.collect();
                for other in &in_the_way {
                    claims.remove(&other.pool.ranges);
                }
                claims.add(&pool.name, &pool.ranges);
                settled.push((pool, spec));
                back.extend(in_the_way.into_iter().map(|other| {
                    let faults = claims.faults(&other.pool.ranges);
                    (other, faults)
                }));
            }
        }
        settled.extend(standing.into_values().map(|contender| (contender.pool, contender.spec)));
        // Some of what stood against these has gone back meanwhile.
        for contender in refused {
            let faults = claims.faults(&contender.pool.ranges);
            if faults.is_empty() {
                claims.add(contender.name, &contender.pool.ranges);
                settled.push((contender.pool, contender.spec));
            } else {
                self.errors(POOL, contender.name, faults);
            }
        }
        for (pool, spec) in settled {
            self.config.sources.pools.insert(pool.name.to_string(), spec);
            self.config.pools.insert(pool.name.clone(), pool);
        }
        let readable = self.resources.pools.iter().filter_map(|pool| pool.metadata.name.as_deref());
        let unreadable = self.resources.unreadable.keys().filter(|object| object.kind == POOL);
        self.config.left_out_pools = readable
            .chain(unreadable.map(|object| object.name.as_str()))
            .filter(|name| !self.config.pools.contains_key(*name))
            .map(PoolName::from)
            .collect();
    }

    fn peers(&mut self) {
        let (resources, last) = (self.resources, self.last);
        let mut peers = self.by_age(BGP_PEER, &resources.bgp_peers, |p| &p.metadata);
        peers.sort_by_key(|(name, peer)| !is_source(&last.sources.peers, name, &peer.spec));
        let profiles: BTreeSet<String> = self.config.bfd_profiles.keys().cloned().collect();
        let references = References {
            nodes: &resources.nodes,
            secrets: &resources.secrets,
            profiles: &profiles,
            last: None,
            missing: self.missing,
        };
        let with_last = References { last: Some(last), ..references };
        let kept = |parser: &Self, name: &str| {
            let spec = last.sources.peers.get(name)?;
            let peer = peer::parse(name, spec, &with_last).ok()?;
            Some((parser.only_session(peer).ok()?, Arc::clone(spec)))
        };
        for (name, object) in peers {
            if self.config.peers.contains_key(name) {
                self.error(BGP_PEER, name, Fault::new("metadata.name", Rule::NameTaken));
                continue;
            }
            let form = peer::parse(name, &object.spec, &references)
                .and_then(|peer| self.only_session(peer))
                .map(|peer| (peer, Arc::new(object.spec.clone())));
            let form = match form {
                Ok(form) => Some(form),
                Err(faults) => {
                    self.errors(BGP_PEER, name, faults);
                    kept(self, name)
                }
            };
            if let Some((peer, spec)) = form {
                self.add_peer(peer, spec);
            }
        }
        for name in self.unreadable(BGP_PEER) {
            if let Some((peer, spec)) = kept(self, name) {
                self.add_peer(peer, spec);
            }
        }
    }

    /// The peer, if no other one is the same session from the same node.
    fn only_session(&self, peer: Peer) -> Result<Peer, Vec<Fault>> {
        let no_nodes_known = self.resources.nodes.is_empty();
        let same = self.config.peers.values().filter(|other| other.same_session(&peer));
        let mut same = same.filter_map(|other| {
            let node = other.nodes.intersection(&peer.nodes).next();
            (node.is_some() || no_nodes_known).then_some((other, node))
        });
        let Some((other, node)) = same.next() else { return Ok(peer) };
        let rule = Rule::DuplicateSession {
            other: other.name.to_string(),
            address: peer.address.to_string(),
            node: node.map(ToString::to_string),
        };
        let field = match peer.address {
            crate::PeerAddress::Address(_) => "spec.peerAddress",
            crate::PeerAddress::Interface(_) => "spec.interface",
        };
        Err(vec![Fault::new(field, rule)])
    }

    fn add_peer(&mut self, peer: Peer, spec: Arc<crds::BGPPeerSpec>) {
        let secret = spec.password_secret.as_ref().and_then(|secret| secret.name.clone());
        if let (Some(secret), Some(password)) = (secret, &peer.password) {
            self.config.sources.passwords.insert(secret, password.clone());
        }
        // A profile that is gone stays as long as a peer in its last good form needs it.
        if let Some(name) = &peer.bfd_profile
            && !self.config.bfd_profiles.contains_key(name)
            && let Some(profile) = self.last.bfd_profiles.get(name)
        {
            self.config.bfd_profiles.insert(name.clone(), profile.clone());
        }
        self.config.sources.peers.insert(peer.name.to_string(), spec);
        self.config.peers.insert(peer.name.clone(), peer);
    }

    fn l2_advertisements(&mut self) {
        let (resources, last) = (self.resources, self.last);
        let labels = pool_labels(resources);
        let objects = self.by_age(L2_ADVERTISEMENT, &resources.l2_advertisements, |a| &a.metadata);
        let unreadable = self.unreadable(L2_ADVERTISEMENT).into_iter().map(|name| (name, None));
        let objects = objects.into_iter().map(|(name, object)| (name, Some(&object.spec)));
        let mut objects: Vec<_> = objects.chain(unreadable).collect();
        objects.sort_by_key(|&(name, _)| name);
        for (name, spec) in objects {
            let parse = |spec| advertisement::parse_l2(name, spec, &resources.nodes);
            let form = match spec.map(|spec| (parse(spec), spec)) {
                Some((Ok(form), spec)) => Some((form, Arc::new(spec.clone()))),
                wrong => {
                    let faults = wrong.and_then(|(form, _)| form.err());
                    self.errors(L2_ADVERTISEMENT, name, faults.unwrap_or_default());
                    let kept = last.sources.l2_advertisements.get(name);
                    kept.and_then(|spec| Some((parse(spec).ok()?, Arc::clone(spec))))
                }
            };
            let Some(((advertisement, selection), spec)) = form else { continue };
            let advertisement = Arc::new(advertisement);
            for pool in selected(&mut self.config.pools, &selection, &labels) {
                advertisement::attach_l2(&mut pool.l2_advertisements, &advertisement);
            }
            self.config.sources.l2_advertisements.insert(name.to_owned(), spec);
        }
    }

    fn bgp_advertisements(&mut self) {
        let (resources, last) = (self.resources, self.last);
        let labels = pool_labels(resources);
        let mut objects =
            self.by_age(BGP_ADVERTISEMENT, &resources.bgp_advertisements, |a| &a.metadata);
        objects.sort_by_key(|(name, object)| {
            !is_source(&last.sources.bgp_advertisements, name, &object.spec)
        });
        let aliases = self.config.sources.aliases.clone();
        let mut known = last.sources.aliases.clone();
        known.extend(aliases.iter().map(|(name, community)| (name.clone(), *community)));
        let unreadable = self.unreadable(BGP_ADVERTISEMENT).into_iter().map(|name| (name, None));
        let objects = objects.into_iter().map(|(name, object)| (name, Some(&object.spec)));
        for (name, spec) in objects.chain(unreadable) {
            let parse = |spec, aliases| {
                advertisement::parse_bgp(name, spec, &resources.nodes, aliases, self.missing)
            };
            let form = spec.map_or(Err(Vec::new()), |spec| Ok((parse(spec, &aliases)?, spec)));
            let kept = last.sources.bgp_advertisements.get(name);
            let kept = kept.and_then(|spec| Some((parse(spec, &known).ok()?, spec)));
            self.attach_bgp(name, form, kept, &labels);
        }
        // Names that are gone stay known to the advertisements that keep their last good form.
        let Sources { bgp_advertisements, aliases, .. } = &mut self.config.sources;
        for text in bgp_advertisements.values().flat_map(|spec| &spec.communities) {
            if let Some(community) = known.get(text) {
                aliases.entry(text.clone()).or_insert(*community);
            }
        }
        for pool in self.config.pools.values_mut() {
            pool.bgp_advertisements.sort_by(|a, b| a.name.cmp(&b.name));
        }
    }

    /// The written form where nothing stands against it, else the last good one where nothing
    /// stands against that, else whichever can be read, without the pools that it cannot be for:
    /// a pool that was changed must not take the routes of other pools away.
    fn attach_bgp(
        &mut self,
        name: &str,
        form: Result<((BgpAdvertisement, PoolSelection), &crds::BGPAdvertisementSpec), Vec<Fault>>,
        kept: Option<((BgpAdvertisement, PoolSelection), &Arc<crds::BGPAdvertisementSpec>)>,
        labels: &BTreeMap<&str, &Labels>,
    ) {
        let mut refused_pools = BTreeMap::new();
        let form = match form {
            Ok((form, spec)) => {
                refused_pools = self.refused_pools(&form, labels);
                let faults = refused_pools.values().flatten().cloned().collect();
                self.errors(BGP_ADVERTISEMENT, name, faults);
                Some((form, spec))
            }
            Err(faults) => {
                self.errors(BGP_ADVERTISEMENT, name, faults);
                None
            }
        };
        let mut source = kept.as_ref().map(|(_, spec)| Arc::clone(spec));
        let (advertisement, selection) = if let Some((form, spec)) = &form
            && refused_pools.is_empty()
        {
            source = Some(Arc::new((*spec).clone()));
            form.clone()
        } else {
            let kept = kept.map(|(kept, _)| (self.refused_pools(&kept, labels), kept));
            match (form, kept) {
                (_, Some((refused, kept))) if refused.is_empty() => {
                    refused_pools = refused;
                    kept
                }
                (Some((form, _)), _) => form,
                (None, Some((refused, kept))) => {
                    refused_pools = refused;
                    kept
                }
                (None, None) => return,
            }
        };
        let advertisement = Arc::new(advertisement);
        for pool in selected(&mut self.config.pools, &selection, labels) {
            if !refused_pools.contains_key(&pool.name) {
                pool.bgp_advertisements.push(Arc::clone(&advertisement));
            }
        }
        let source = source.map(|spec| (name.to_owned(), spec));
        self.config.sources.bgp_advertisements.extend(source);
    }

    fn reserved(&mut self) {
        for (node, addresses) in &self.resources.node_addresses {
            for NodeAddress { address, kind } in addresses {
                let holder = (node.clone(), kind.clone());
                self.config.reserved.nodes.entry(*address).or_insert(holder);
            }
        }
        let ranges = self.resources.service_ranges.values().flatten();
        self.config.reserved.service_ranges = ranges.copied().collect();
    }

    fn refused_pools(
        &self,
        (advertisement, selection): &(BgpAdvertisement, PoolSelection),
        labels: &BTreeMap<&str, &Labels>,
    ) -> BTreeMap<PoolName, Vec<Fault>> {
        let Config { pools, peers, bfd_profiles, .. } = &self.config;
        pools
            .iter()
            .filter(|(name, _)| selection.selects(name, labels_of(name, labels)))
            .map(|(name, pool)| {
                (name.clone(), advertisement::pool_faults(advertisement, pool, peers, bfd_profiles))
            })
            .filter(|(_, faults)| !faults.is_empty())
            .collect()
    }

    /// Objects with their names: the candidate last, before it those without a date, before
    /// those the younger after the older.
    fn by_age<T>(
        &self,
        kind: &'static str,
        objects: &'a [T],
        metadata: impl Fn(&'a T) -> &'a ObjectMeta,
    ) -> Vec<(&'a str, &'a T)> {
        let mut objects: Vec<_> = objects
            .iter()
            .map(|object| {
                let metadata = metadata(object);
                let name = metadata.name.as_deref().unwrap_or_default();
                let is_candidate = self.candidate.is_some_and(|c| c.kind == kind && c.name == name);
                let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
                ((is_candidate, created.is_none(), created, name), object)
            })
            .collect();
        objects.sort_by_key(|&(age, _)| age);
        objects.into_iter().map(|((.., name), object)| (name, object)).collect()
    }

    /// Reports the objects of a kind that cannot be read, and names them.
    fn unreadable(&mut self, kind: &'static str) -> Vec<&'a str> {
        let unreadable = self.resources.unreadable.iter();
        let of_kind: Vec<_> = unreadable.filter(|(object, _)| object.kind == kind).collect();
        for (object, message) in &of_kind {
            self.error(
                kind,
                &object.name,
                Fault::new("spec", Rule::Unreadable(message.to_string())),
            );
        }
        of_kind.into_iter().map(|(object, _)| object.name.as_str()).collect()
    }

    fn errors(&mut self, kind: &'static str, name: &str, faults: Vec<Fault>) {
        for fault in faults {
            self.error(kind, name, fault);
        }
    }

    fn error(&mut self, kind: &'static str, name: &str, fault: Fault) {
        let object = ObjectRef { kind, name: name.to_owned() };
        self.errors.push(ConfigError::new(object, fault));
    }
}

fn is_source<S: PartialEq>(sources: &BTreeMap<String, Arc<S>>, name: &str, spec: &S) -> bool {
    sources.get(name).is_some_and(|source| **source == *spec)
}

fn pool_labels(resources: &Resources) -> BTreeMap<&str, &Labels> {
    let pools = resources.pools.iter().map(|pool| &pool.metadata);
    pools.filter_map(|m| Some((m.name.as_deref()?, m.labels.as_ref()?))).collect()
}

fn labels_of<'a>(pool: &str, labels: &BTreeMap<&str, &'a Labels>) -> &'a Labels {
    const NONE: &Labels = &Labels::new();
    labels.get(pool).copied().unwrap_or(NONE)
}

fn selected<'a>(
    pools: &'a mut BTreeMap<PoolName, Pool>,
    selection: &'a PoolSelection,
    labels: &'a BTreeMap<&str, &Labels>,
) -> impl Iterator<Item = &'a mut Pool> {
    pools
        .iter_mut()
        .filter(|(name, _)| selection.selects(name, labels_of(name, labels)))
        .map(|(_, pool)| pool)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        AddressRange, Secret,
        fixture::{created, errors, hostname, object, pool, resources, with_nodes},
    };

    fn good(resources: &Resources) -> Config {
        let (config, errors) = Config::parse(resources, None);
        assert_eq!(errors, []);
        config
    }

    fn peer(name: &str, changes: Value) -> Value {
        let mut spec = json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1" });
        spec.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        object("BGPPeer", name, spec)
    }

    fn bgp(name: &str, spec: Value) -> Value {
        object("BGPAdvertisement", name, spec)
    }

    fn l2(name: &str, spec: Value) -> Value {
        object("L2Advertisement", name, spec)
    }

    fn ranges(config: &Config) -> Vec<(String, Vec<String>)> {
        let printed = |pool: &Pool| pool.ranges.iter().map(ToString::to_string).collect();
        config.pools.iter().map(|(name, pool)| (name.to_string(), printed(pool))).collect()
    }

    fn bgp_names(config: &Config, pool: &str) -> Vec<String> {
        config.pools[pool].bgp_advertisements.iter().map(|a| a.name.clone()).collect()
    }

    #[test]
    fn one_bad_object_does_not_block_the_others() {
        let resources = resources(&[
            pool("bad", &["nonsense"]),
            pool("good", &["192.0.2.0/24"]),
            l2("bad", json!({ "ipAddressPools": ["x", "x"] })),
            l2("good", json!({})),
            bgp("bad", json!({ "aggregationLength": 33 })),
            bgp("good", json!({})),
            peer("bad", json!({ "peerAddress": "x" })),
            peer("good", json!({})),
            object("BFDProfile", "bad", json!({ "minimumTtl": 0 })),
            object("BFDProfile", "good", json!({})),
            object("Community", "bad", json!({ "communities": [{ "name": "x", "value": "y" }] })),
        ]);
        let (config, errors) = Config::parse(&resources, None);
        assert_eq!(config.pools.keys().map(|n| &**n).collect::<Vec<_>>(), ["good"]);
        assert_eq!(config.peers.keys().map(|n| &**n).collect::<Vec<_>>(), ["good"]);
        assert_eq!(config.bfd_profiles.keys().collect::<Vec<_>>(), ["good"]);
        assert_eq!(config.pools["good"].l2_advertisements.len(), 1);
        assert_eq!(bgp_names(&config, "good"), ["good"]);
        let objects: Vec<String> =
            errors.iter().map(|error| format!("{} {}", error.object(), error.field())).collect();
        assert_eq!(
            objects,
            [
                "BFDProfile \"bad\" spec.minimumTtl",
                "BGPAdvertisement \"bad\" spec.aggregationLength",
                "BGPPeer \"bad\" spec.peerAddress",
                "Community \"bad\" spec.communities[0].value",
                "IPAddressPool \"bad\" spec.addresses[0]",
                "L2Advertisement \"bad\" spec.ipAddressPools[1]",
            ]
        );
    }

    #[test]
    fn of_two_pools_that_overlap_the_older_is_in_force() {
        let a = pool("a", &["192.0.2.0/24"]);
        let b = pool("b", &["192.0.2.128/25", "198.51.100.0/24"]);
        let in_error = |resources: &Resources| {
            let (config, errors) = Config::parse(resources, None);
            assert_eq!(errors.len(), 1);
            assert_eq!(config.pools.len(), 1);
            errors[0].object().name
        };
        let (a1, b2) = (created(a.clone(), 1), created(b.clone(), 2));
        assert_eq!(in_error(&resources(&[a1.clone(), b2.clone()])), "b");
        assert_eq!(in_error(&resources(&[b2, a1])), "b");
        assert_eq!(in_error(&resources(&[created(a.clone(), 2), created(b.clone(), 1)])), "a");
        assert_eq!(in_error(&resources(&[created(b.clone(), 1), created(a.clone(), 1)])), "b");
        // One without a date is not stored yet.
        assert_eq!(in_error(&resources(&[a, created(b, 1)])), "a");
    }

    #[test]
    fn a_pool_in_error_keeps_its_last_good_form() {
        let last =
            good(&resources(&[pool("a", &["192.0.2.0/24"]), pool("b", &["198.51.100.0/24"])]));
        let resources = resources(&[pool("a", &["nonsense"]), pool("b", &["203.0.113.0/24"])]);
        let (config, errors) = Config::parse(&resources, Some(&last));
        assert_eq!(
            ranges(&config),
            [
                ("a".to_owned(), vec!["192.0.2.0/24".to_owned()]),
                ("b".to_owned(), vec!["203.0.113.0/24".to_owned()]),
            ]
        );
        assert_eq!(errors.len(), 1);
        // And again: the last good form is not the form of last time.
        let (again, errors) = Config::parse(&resources, Some(&config));
        assert_eq!((again, errors.len()), (config, 1));
    }

    #[test]
    fn a_pool_that_is_gone_is_gone() {
        let last = good(&resources(&[pool("a", &["192.0.2.0/24"])]));
        let (config, errors) = Config::parse(&Resources::default(), Some(&last));
        assert_eq!((config, errors), (Config::default(), vec![]));
    }

    #[test]
    fn a_pool_that_changed_yields_to_one_that_did_not_even_if_older() {
        let a = |addresses| created(pool("a", addresses), 1);
        let b = created(pool("b", &["198.51.100.0/24"]), 2);
        let last = good(&resources(&[a(&["192.0.2.0/24"]), b.clone()]));
        let (config, errors) =
            Config::parse(&resources(&[a(&["192.0.2.0/24", "198.51.100.8/29"]), b]), Some(&last));
        assert_eq!(ranges(&config), ranges(&last));
        assert_eq!(
            errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["IPAddressPool \"a\": spec.addresses[1]: 198.51.100.8/29 overlaps with \
              198.51.100.0/24, which is already in pool \"b\""]
        );
    }

    #[test]
    fn pools_can_swap_their_addresses() {
        let last =
            good(&resources(&[pool("a", &["192.0.2.0/24"]), pool("b", &["198.51.100.0/24"])]));
        let swapped = resources(&[pool("a", &["198.51.100.0/24"]), pool("b", &["192.0.2.0/24"])]);
        let (config, errors) = Config::parse(&swapped, Some(&last));
        assert_eq!(errors, []);
        assert_eq!(config.pools["a"].ranges, last.pools["b"].ranges);
    }

    /// The older pool may have what the younger gives up, unless the younger cannot move.
    #[test]
    fn a_pool_that_cannot_move_keeps_its_place_against_all() {
        let last = good(&resources(&[
            created(pool("a", &["192.0.2.0/26"]), 1),
            created(pool("b", &["192.0.2.64/26"]), 2),
            created(pool("c", &["192.0.2.128/26"]), 3),
        ]));
        let (config, errors) = Config::parse(
            &resources(&[
                created(pool("a", &["192.0.2.64/26"]), 1),
                created(pool("b", &["192.0.2.128/26"]), 2),
                created(pool("c", &["192.0.2.128/26"]), 3),
            ]),
            Some(&last),
        );
        assert_eq!(ranges(&config), ranges(&last));
        let objects: Vec<String> = errors.iter().map(|e| e.object().name).collect();
        assert_eq!(objects, ["a", "b"]);
    }

    #[test]
    fn what_is_given_back_goes_to_who_was_refused_for_it() {
        let last = good(&resources(&[
            created(pool("a", &["192.0.2.0/26"]), 1),
            created(pool("c", &["192.0.2.64/26"]), 3),
            created(pool("d", &["192.0.2.192/26"]), 4),
        ]));
        // c cannot move to d's place, so a cannot have that of c, so b can have the rest.
        let (config, errors) = Config::parse(
            &resources(&[
                created(pool("a", &["192.0.2.100-192.0.2.191"]), 1),
                created(pool("b", &["192.0.2.128/26"]), 2),
                created(pool("c", &["192.0.2.192/26"]), 3),
                created(pool("d", &["192.0.2.192/26"]), 4),
            ]),
            Some(&last),
        );
        assert_eq!(
            errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "IPAddressPool \"a\": spec.addresses[0]: 192.0.2.100-192.0.2.191 overlaps with \
                 192.0.2.64/26, which is already in pool \"c\"",
                "IPAddressPool \"c\": spec.addresses[0]: 192.0.2.192/26 overlaps with \
                 192.0.2.192/26, which is already in pool \"d\"",
            ]
        );
        let mut expected = ranges(&last);
        expected.insert(1, ("b".to_owned(), vec!["192.0.2.128/26".to_owned()]));
        assert_eq!(ranges(&config), expected);
    }

    #[test]
    fn advertisements_reach_the_pools_they_select_once() {
        let mut labelled = pool("b", &["198.51.100.0/24"]);
        labelled["metadata"]["labels"] = json!({ "tier": "front" });
        let by_label = json!([{ "matchLabels": { "tier": "front" } }]);
        let config = good(&resources(&[
            pool("a", &["192.0.2.0/24"]),
            labelled,
            bgp("all", json!({})),
            bgp("both", json!({ "ipAddressPools": ["b"], "ipAddressPoolSelectors": by_label })),
            bgp("name", json!({ "ipAddressPools": ["a", "unknown"] })),
            bgp("label", json!({ "ipAddressPoolSelectors": by_label })),
            bgp("none", json!({ "ipAddressPools": ["unknown"] })),
        ]));
        assert_eq!(bgp_names(&config, "a"), ["all", "name"]);
        assert_eq!(bgp_names(&config, "b"), ["all", "both", "label"]);
    }

    #[test]
    fn an_advertisement_in_error_keeps_its_last_good_form_with_the_nodes_of_now() {
        let all = [pool("a", &["192.0.2.0/24"]), l2("l", json!({ "interfaces": ["eth0"] }))];
        let last = good(&with_nodes(resources(&all), &["n1"]));
        let bad = [pool("a", &["192.0.2.0/24"]), l2("l", json!({ "nodeSelectors": [{}, {}] }))];
        let (config, errors) =
            Config::parse(&with_nodes(resources(&bad), &["n1", "n2"]), Some(&last));
        assert_eq!(errors.len(), 1);
        let kept = &config.pools["a"].l2_advertisements[0];
        assert_eq!(kept.interfaces, crate::InterfaceMatch::Only(["eth0".to_owned()].into()));
        assert_eq!(kept.nodes.len(), 2);
    }

    #[test]
    fn an_alias_that_is_gone_leaves_the_routes_as_they_are() {
        let pool = pool("a", &["192.0.2.0/24"]);
        let advertisement = bgp("b", json!({ "communities": ["blackhole"] }));
        let alias = json!({ "communities": [{ "name": "blackhole", "value": "65535:666" }] });
        let community = object("Community", "c", alias);
        let last = good(&resources(&[pool.clone(), advertisement.clone(), community]));
        let without = resources(&[pool, advertisement]);
        let (config, errors) = Config::parse(&without, Some(&last));
        assert_eq!(config.pools, last.pools);
        assert_eq!(errors[0].field(), "spec.communities[0]");
        // Not only once, and still reported.
        assert_eq!(Config::parse(&without, Some(&config)), (config, errors));
    }

    #[test]
    fn an_object_that_cannot_be_read_keeps_its_last_good_form() {
        let objects = [
            ("IPAddressPool", pool("a", &["192.0.2.0/24"])),
            ("L2Advertisement", l2("l", json!({ "interfaces": ["eth0"] }))),
            ("BGPAdvertisement", bgp("b", json!({ "communities": ["x"] }))),
            ("BGPPeer", peer("router", json!({ "bfdProfile": "fast" }))),
            ("BFDProfile", object("BFDProfile", "fast", json!({}))),
            (
                "Community",
                object(
                    "Community",
                    "c",
                    json!({ "communities": [{ "name": "x", "value": "1:1" }] }),
                ),
            ),
        ];
        let all = resources(&objects.clone().map(|(_, object)| object));
        let last = good(&all);
        for (index, (kind, lost)) in objects.iter().enumerate() {
            let mut rest = objects.to_vec();
            rest.remove(index);
            let rest: Vec<Value> = rest.into_iter().map(|(_, object)| object).collect();
            let mut resources = resources(&rest);
            let name = lost["metadata"]["name"].as_str().unwrap();
            let lost = ObjectRef { kind, name: name.to_owned() };
            resources.unreadable.insert(lost.clone(), "spec.x is 7".to_owned());
            let (config, errors) = Config::parse(&resources, Some(&last));
            assert_eq!(config, last, "{kind}");
            let error = errors.iter().find(|error| error.object() == lost).unwrap();
            assert_eq!(error.rule(), &Rule::Unreadable("spec.x is 7".to_owned()));
            // Without a last form it is left out.
            let (config, _) = Config::parse(&resources, None);
            assert_eq!(config.left_out_pools.contains("a"), *kind == POOL, "{kind}");
        }
    }

    #[test]
    fn an_alias_is_defined_once() {
        let alias = |value| json!({ "communities": [{ "name": "x", "value": value }] });
        let first = created(object("Community", "b", alias("1:1")), 1);
        let second = created(object("Community", "a", alias("2:2")), 2);
        let (config, errors) = Config::parse(
            &resources(&[
                pool("p", &["192.0.2.0/24"]),
                bgp("all", json!({ "communities": ["x"] })),
                second,
                first,
            ]),
            None,
        );
        let communities = &config.pools["p"].bgp_advertisements[0].communities;
        assert_eq!(communities.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1:1"]);
        assert_eq!(
            errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["Community \"a\": spec.communities[0].name: the name \"x\" is already defined in \
              Community \"b\""]
        );
    }

    #[test]
    fn a_secret_or_profile_that_is_gone_leaves_the_session_as_it_is() {
        let peer =
            peer("router", json!({ "bfdProfile": "fast", "passwordSecret": { "name": "key" } }));
        let mut before = resources(&[peer.clone(), object("BFDProfile", "fast", json!({}))]);
        let secret =
            Secret { kind: "kubernetes.io/basic-auth".to_owned(), password: Some("x".to_owned()) };
        before.secrets.insert("key".to_owned(), secret);
        let last = good(&before);
        let without = resources(&[peer]);
        let (config, errors) = Config::parse(&without, Some(&last));
        assert_eq!((&config.peers, &config.bfd_profiles), (&last.peers, &last.bfd_profiles));
        let fields: Vec<_> = errors.iter().map(ConfigError::field).collect();
        assert_eq!(fields, ["spec.passwordSecret", "spec.bfdProfile"]);
        // Not only once.
        assert_eq!(Config::parse(&without, Some(&config)).0.peers, last.peers);
        // Without a last form there is nothing to go on with.
        assert!(Config::parse(&without, None).0.peers.is_empty());
    }

    #[test]
    fn two_sessions_to_one_place_need_two_nodes() {
        let on = |name: &str, node: &str| peer(name, json!({ "nodeSelectors": [hostname(node)] }));
        let apart = resources(&[on("a", "n1"), on("b", "n2")]);
        assert_eq!(errors(&with_nodes(apart.clone(), &["n1", "n2"]), None), Vec::<String>::new());
        assert_eq!(
            errors(&apart, None),
            ["BGPPeer \"b\": spec.peerAddress: BGPPeer \"a\" already is the session with \
              192.0.2.1"]
        );
        assert_eq!(
            errors(&with_nodes(resources(&[on("a", "n1"), peer("b", json!({}))]), &["n1"]), None),
            ["BGPPeer \"b\": spec.peerAddress: BGPPeer \"a\" already is the session with \
              192.0.2.1 on node \"n1\""]
        );
        for different in [
            json!({ "vrf": "red" }),
            json!({ "peerPort": 1179 }),
            json!({ "peerAddress": "192.0.2.2" }),
            json!({ "peerAddress": "192.0.2.2", "myASN": 64510, "routerID": "192.0.2.9" }),
        ] {
            let both = resources(&[peer("a", json!({})), peer("b", different.clone())]);
            assert_eq!(errors(&both, None), Vec::<String>::new(), "{different}");
        }
    }

    #[test]
    fn a_pool_too_small_for_an_advertisement_takes_no_other_routes_away() {
        let wide = pool("wide", &["192.0.2.0/24"]);
        let advertisement = bgp("all", json!({ "aggregationLength": 24 }));
        let last = good(&resources(&[wide.clone(), advertisement.clone()]));
        let both = resources(&[wide, advertisement, pool("small", &["198.51.100.0/26"])]);
        let (config, errors) = Config::parse(&both, Some(&last));
        assert_eq!(bgp_names(&config, "wide"), ["all"]);
        assert_eq!(bgp_names(&config, "small"), Vec::<String>::new());
        assert_eq!(
            errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["BGPAdvertisement \"all\": spec.aggregationLength: the aggregation length 24 of \
              BGPAdvertisement \"all\" is shorter than the prefix length 26 of 198.51.100.0/26 in \
              pool \"small\", so that addresses outside of the pool would be announced; use 26 \
              or more"]
        );
    }

    #[test]
    fn an_advertisement_that_became_too_wide_stays_as_it_was() {
        let pool = pool("p", &["192.0.2.0/26"]);
        let last = good(&resources(&[pool.clone(), bgp("all", json!({ "localPref": 7 }))]));
        let wide = bgp("all", json!({ "aggregationLength": 24 }));
        let (config, errors) = Config::parse(&resources(&[pool, wide]), Some(&last));
        assert_eq!(config, last);
        assert_eq!(errors.len(), 1);
    }

    #[test]
    fn one_route_has_one_local_preference() {
        let with = |a: Value, b: Value| {
            let objects = [
                pool("p", &["192.0.2.0/24", "2001:db8::/64"]),
                created(bgp("a", a), 1),
                created(bgp("b", b), 2),
            ];
            errors(&with_nodes(resources(&objects), &["n1", "n2"]), None).len()
        };
        let (low, high) = (json!({ "localPref": 1 }), json!({ "localPref": 2 }));
        assert_eq!(with(low.clone(), low.clone()), 0);
        assert_eq!(with(low.clone(), high.clone()), 1);
        let changed = |name: &str, value: Value| {
            let mut changed = high.clone();
            changed[name] = value;
            changed
        };
        // The IPv6 routes would still be the same.
        assert_eq!(with(low.clone(), changed("aggregationLength", 24.into())), 1);
        let both = json!({ "localPref": 2, "aggregationLength": 24, "aggregationLengthV6": 64 });
        assert_eq!(with(low.clone(), both), 0);
        assert_eq!(with(low.clone(), changed("peers", json!(["x"]))), 1);
        assert_eq!(
            with(json!({ "localPref": 1, "peers": ["y"] }), changed("peers", json!(["x"]))),
            0
        );
        assert_eq!(with(low.clone(), changed("serviceSelectors", json!([{}]))), 0);
        let on = |name| json!([hostname(name)]);
        assert_eq!(with(low.clone(), changed("nodeSelectors", on("n1"))), 1);
        assert_eq!(
            with(
                json!({ "localPref": 1, "nodeSelectors": on("n2") }),
                changed("nodeSelectors", on("n1"))
            ),
            0
        );
    }

    #[test]
    fn echo_is_not_for_ipv6() {
        let objects = |addresses: &[&str], peers: Value| {
            resources(&[
                pool("p", addresses),
                bgp("all", json!({ "peers": peers })),
                peer("router", json!({ "bfdProfile": "echo" })),
                object("BFDProfile", "echo", json!({ "echoMode": true })),
            ])
        };
        assert_eq!(errors(&objects(&["192.0.2.0/24"], json!([])), None), Vec::<String>::new());
        assert_eq!(
            errors(&objects(&["2001:db8::/64"], json!(["other"])), None),
            Vec::<String>::new()
        );
        assert_eq!(
            errors(&objects(&["2001:db8::/64"], json!([])), None),
            ["BGPAdvertisement \"all\": spec.peers: pool \"p\", which BGPAdvertisement \"all\" \
              announces to BGPPeer \"router\", has IPv6 addresses, and BFDProfile \"echo\" of that \
              peer has echoMode, which is for IPv4 only; turn echoMode off, or leave the peer or \
              the pool out of the advertisement"]
        );
    }

    #[test]
    fn debug_output_holds_no_password() {
        let config = good(&resources(&[peer("router", json!({ "password": "hunter2" }))]));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    fn any_pools() -> impl Strategy<Value = Vec<(u8, u8, u8, u8)>> {
        proptest::collection::vec((0..6u8, 0..32u8, 0..12u8, 0..10u8), 0..6)
    }

    /// Some pools; every tenth is nonsense.
    fn pools_of(pools: &[(u8, u8, u8, u8)]) -> Resources {
        let mut objects = BTreeMap::new();
        for &(name, first, length, luck) in pools {
            let range = if luck == 0 {
                "nonsense".to_owned()
            } else {
                format!("192.0.2.{first}-192.0.2.{}", first + length)
            };
            let name = format!("p{name}");
            objects.insert(name.clone(), created(pool(&name, &[&range]), luck));
        }
        resources(&objects.into_values().collect::<Vec<_>>())
    }

    proptest! {
        /// Whatever is written, in any number of steps: no two pools overlap, a pool without an
        /// error is as written, and one that was there stays with an error or without.
        #[test]
        fn pools_stay_disjoint_and_in_force(
            steps in proptest::collection::vec(any_pools(), 1..5)
        ) {
            let mut last = Config::default();
            for step in &steps {
                let resources = pools_of(step);
                let (config, errors) = Config::parse(&resources, Some(&last));
                let all: Vec<AddressRange> =
                    config.pools.values().flat_map(|pool| pool.ranges.clone()).collect();
                for (i, a) in all.iter().enumerate() {
                    prop_assert!(!all[i + 1..].iter().any(|b| a.overlaps(b)));
                }
                for object in &resources.pools {
                    let name = object.metadata.name.as_deref().unwrap();
                    let now = config.pools.get(name).map(|pool| &pool.ranges);
                    let before = last.pools.get(name).map(|pool| &pool.ranges);
                    if errors.iter().any(|error| error.object().name == name) {
                        prop_assert_eq!(now, before);
                    } else {
                        let range: AddressRange = object.spec.addresses[0].parse().unwrap();
                        prop_assert_eq!(now, Some(&vec![range]));
                    }
                }
                prop_assert_eq!(&Config::parse(&resources, Some(&last)), &(config.clone(), errors));
                last = config;
            }
        }

        #[test]
        fn nothing_written_makes_the_parser_panic(
            texts in proptest::collection::vec("\\PC{0,12}", 8),
            number in any::<i32>(),
            unsigned in any::<u32>(),
        ) {
            let t = |i: usize| texts[i].clone();
            let resources = resources(&[
                object("IPAddressPool", &t(0), json!({
                    "addresses": [t(1), format!("{}-{}", t(2), t(3))],
                    "serviceAllocation": { "priority": i64::from(number) << 20, "namespaces": [t(4)] },
                })),
                pool("p", &["0.0.0.0/0", "::/0"]),
                l2(&t(5), json!({ "preferredNodeSelectors": [
                    { "weight": number, "preference": { "matchLabels": { (t(6)): t(7) } } },
                ] })),
                bgp(&t(1), json!({
                    "aggregationLength": number, "aggregationLengthV6": number,
                    "localPref": unsigned, "communities": [t(0), format!("{}:{}", t(1), t(2))],
                })),
                peer(&t(2), json!({
                    "holdTime": t(3), "keepaliveTime": format!("{unsigned}h"),
                    "connectTime": format!("{number}s"), "routerID": t(4), "password": t(5),
                })),
                object("BFDProfile", &t(3), json!({ "detectMultiplier": unsigned })),
                object("Community", &t(4), json!({ "communities": [{ "name": t(5), "value": t(6) }] })),
            ]);
            let (config, _) = Config::parse(&with_nodes(resources.clone(), &["n"]), None);
            let _ = Config::parse(&resources, Some(&config));
        }
    }
}
