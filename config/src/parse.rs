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
    secret::Secrets,
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
            let secrets = Secrets { now: &resources.secrets, last: None, missing: self.missing };
            let parsed = match bfd_profile::parse(name, &profile.spec, secrets) {
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
            secrets: Secrets { now: &resources.secrets, last: None, missing: self.missing },
            profiles: &profiles,
            last: None,
            missing: self.missing,
        };
        let with_last = References {
            secrets: Secrets { last: Some(last), ..references.secrets },
            last: Some(last),
            ..references
        };
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
mod tests;
