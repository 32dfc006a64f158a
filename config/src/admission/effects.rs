//! What a write does to others: contradictions that it makes, addresses that it takes from
//! Services, names that it takes from objects which use them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crds::RemovalPolicy;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Candidate, Existing};
use crate::{
    AddressRange, Config, ConfigError, ObjectRef, Pool, Resources, ServiceKey,
    error::{self, Fault, Rule},
    is_buggy,
    parse::{self, BFD_PROFILE, BGP_PEER, COMMUNITY, POOL},
    pool::Claims,
};

/// How many things of a kind a message names.
const NAMED: usize = 10;

pub(super) fn admit_deletion(
    candidate: &Candidate,
    existing: &Existing<'_>,
) -> Result<Vec<String>, Vec<ConfigError>> {
    let object = candidate.object();
    let resources = existing.resources;
    match candidate {
        Candidate::Pool(pool) => {
            let lost =
                lost_addresses(&object, pool, None, existing).map_err(|error| vec![error])?;
            let l2 = resources.l2_advertisements.iter().filter_map(|advertisement| {
                let names = advertisement.spec.ip_address_pools.contains(&object.name);
                names.then(|| format!("L2Advertisement {:?}", name(&advertisement.metadata.name)))
            });
            let bgp = resources.bgp_advertisements.iter().filter_map(|advertisement| {
                let names = advertisement.spec.ip_address_pools.contains(&object.name);
                names.then(|| format!("BGPAdvertisement {:?}", name(&advertisement.metadata.name)))
            });
            Ok(lost.into_iter().chain(still_named(l2.chain(bgp).collect())).collect())
        }
        Candidate::BgpPeer(_) => {
            let users = resources.bgp_advertisements.iter().filter_map(|advertisement| {
                let names = advertisement.spec.peers.contains(&object.name);
                names.then(|| format!("BGPAdvertisement {:?}", name(&advertisement.metadata.name)))
            });
            Ok(still_named(users.collect()).into_iter().collect())
        }
        Candidate::BfdProfile(_) => profile_in_use(&object, resources).map(|()| Vec::new()),
        Candidate::Community(community) => Ok(lost_aliases(community, None, resources)),
        Candidate::L2Advertisement(_) | Candidate::BgpAdvertisement(_) => Ok(Vec::new()),
    }
}

/// The errors of others that are there only because of the candidate, told of the candidate.
///
/// `of_others` are the errors of all other objects with the candidate written.
pub(super) fn contradictions(
    candidate: &Candidate,
    of_others: Vec<ConfigError>,
    existing: &Existing<'_>,
) -> Vec<ConfigError> {
    let object = candidate.object();
    let of_others = of_others.into_iter();
    let mut mine: Vec<(ConfigError, String)> = of_others
        .filter_map(|error| {
            let field = my_field(candidate, error.rule())?;
            Some((error, field))
        })
        .collect();
    if !mine.is_empty() {
        let (_, before) = parse::parse(existing.resources, None, Some(&object));
        mine.retain(|(error, _)| !before.iter().any(|other| same_contradiction(error, other)));
    }
    let told = |(error, field): (ConfigError, String)| {
        ConfigError::new(object.clone(), Fault::new(field, error.rule().clone()))
    };
    mine.into_iter().map(told).collect()
}

/// Takes away what has lost against another object already and is not in force: it must not keep
/// the winner from being changed. Says whether there was any such object.
pub(super) fn clear_of_losers(
    resources: &mut Resources,
    existing: &Existing<'_>,
    candidate: &ObjectRef,
) -> bool {
    let (_, before) = parse::parse(existing.resources, None, None);
    let lost = |rule: &Rule| {
        matches!(
            rule,
            Rule::Overlap { pool: Some(_), .. }
                | Rule::DuplicateSession { .. }
                | Rule::AliasTaken(..)
        )
    };
    let losers: BTreeSet<ObjectRef> = before
        .iter()
        .filter(|error| lost(error.rule()))
        .map(ConfigError::object)
        .filter(|object| object != candidate)
        .collect();
    let stays = |kind: &'static str, metadata: &ObjectMeta| {
        let name = metadata.name.clone().unwrap_or_default();
        !losers.contains(&ObjectRef { kind, name })
    };
    resources.pools.retain(|pool| stays(POOL, &pool.metadata));
    resources.bgp_peers.retain(|peer| stays(BGP_PEER, &peer.metadata));
    resources.communities.retain(|community| stays(COMMUNITY, &community.metadata));
    !losers.is_empty()
}

/// Which field of the candidate has its part in a contradiction; `None` where it has none.
fn my_field(candidate: &Candidate, rule: &Rule) -> Option<String> {
    let object = candidate.object();
    let is = |kind: &str, name: &str| object.kind == kind && object.name == name;
    match (rule, candidate) {
        (Rule::AggregationTooWide { pool, range, .. }, Candidate::Pool(spec)) if is(POOL, pool) => {
            let index = spec.spec.addresses.iter().position(|text| text.parse() == Ok(*range));
            index.map(|index| format!("spec.addresses[{index}]"))
        }
        (Rule::LocalPreference { pool, .. } | Rule::RouteAttribute { pool, .. }, _)
            if is(POOL, pool) =>
        {
            Some("spec".to_owned())
        }
        (Rule::EchoOverIpv6 { pool, peer, profile, .. }, _) => {
            let field = if is(POOL, pool) {
                "spec.addresses"
            } else if is(BGP_PEER, peer) {
                "spec.bfdProfile"
            } else if is(BFD_PROFILE, profile) {
                "spec.echoMode"
            } else {
                return None;
            };
            Some(field.to_owned())
        }
        _ => None,
    }
}

/// True when both tell of the same objects and rule, be it with other numbers.
fn same_contradiction(a: &ConfigError, b: &ConfigError) -> bool {
    a.object() == b.object()
        && a.field() == b.field()
        && match (a.rule(), b.rule()) {
            (
                Rule::AggregationTooWide { pool: a, .. },
                Rule::AggregationTooWide { pool: b, .. },
            ) => a == b,
            (
                Rule::LocalPreference { pool: a, other: other_a, .. },
                Rule::LocalPreference { pool: b, other: other_b, .. },
            ) => (a, other_a) == (b, other_b),
            (a, b) => a == b,
        }
}

/// What is said of the Services that hold addresses of the old form of a pool, and not of its new
/// form (`None`: it is deleted).
pub(super) fn lost_addresses(
    object: &ObjectRef,
    old: &crds::IPAddressPool,
    new: Option<(&crds::IPAddressPool, Option<&Pool>)>,
    existing: &Existing<'_>,
) -> Result<Option<String>, ConfigError> {
    let parsed = new.and_then(|(_, parsed)| parsed);
    let losers = losers(&old.spec, parsed, existing.held);
    let count = losers.len();
    if count == 0 {
        return Ok(None);
    }
    let refuse = RemovalPolicy::Refuse;
    let policy = new.map_or(old.spec.removal_policy, |(new, _)| new.spec.removal_policy);
    let first = losers.into_iter().take(NAMED);
    let services = first.map(|(service, address)| format!("{service} ({address})")).collect();
    if old.spec.removal_policy == refuse || policy == refuse {
        let field = if new.is_some() { "spec.addresses" } else { "metadata.name" };
        let rule = Rule::AddressesHeld { services, count };
        return Err(ConfigError::new(object.clone(), Fault::new(field, rule)));
    }
    Ok(Some(format!(
        "{} will lose the addresses of {object} and get others where there are any: {}",
        error::service_count(count),
        error::list(&services, count)
    )))
}

/// Services that hold an address of `old` and may not have it of `new`, each with the first of
/// those. Which labels a Service has is not known here: a pool that is for other Services than
/// before is noticed by namespace only.
fn losers(
    old: &crds::IPAddressPoolSpec,
    new: Option<&Pool>,
    held: &BTreeMap<IpAddr, Vec<ServiceKey>>,
) -> BTreeMap<ServiceKey, IpAddr> {
    let mut kept = Claims::default();
    if let Some(new) = new {
        kept.add("", &new.ranges);
    }
    let may_stay = |service: &ServiceKey, address: IpAddr| {
        let range = AddressRange { first: address, last: address };
        kept.conflict(&range).is_some()
            && new.is_some_and(|new| {
                !(new.avoid_buggy_ips && is_buggy(address))
                    && new.allocation.as_ref().is_none_or(|allocation| {
                        allocation.any_namespace
                            || allocation.namespaces.contains(&*service.namespace)
                    })
            })
    };
    let mut losers = BTreeMap::new();
    let ranges = old.addresses.iter().filter_map(|text| text.parse::<AddressRange>().ok());
    for range in ranges {
        for (&address, services) in held.range(range.first..=range.last) {
            if old.avoid_buggy_ips && is_buggy(address) {
                continue;
            }
            for service in services.iter().filter(|service| !may_stay(service, address)) {
                losers.entry(service.clone()).or_insert(address);
            }
        }
    }
    losers
}

/// Addresses of a pool that are somebody's already.
pub(super) fn reserved(pool: &Pool, config: &Config) -> Vec<String> {
    let nodes = &config.reserved.nodes;
    let mut of_nodes = Vec::new();
    for range in &pool.ranges {
        let found = nodes.range(range.first..=range.last);
        of_nodes.extend(
            found.map(|(address, (node, kind))| format!("{address} ({kind} of Node {node:?})")),
        );
    }
    let ranges = config.reserved.service_ranges.iter().filter(|net| {
        let net = AddressRange { first: net.network(), last: net.broadcast() };
        pool.ranges.iter().any(|range| range.overlaps(&net))
    });
    let ranges: Vec<String> =
        ranges.map(|net: &IpNet| format!("{net} (the cluster's Service range)")).collect();
    let count = of_nodes.len() + ranges.len();
    let first: Vec<String> = ranges.into_iter().chain(of_nodes).take(NAMED).collect();
    if count == 0 {
        return Vec::new();
    }
    vec![format!(
        "spec.addresses has addresses that are in use by the cluster itself, which only Services \
         that ask for them are given while the pool has others: {}",
        error::list(&first, count)
    )]
}

/// Names that a Community defines no longer and BGPAdvertisements still use.
pub(super) fn lost_aliases(
    old: &crds::Community,
    new: Option<&crds::Community>,
    resources: &Resources,
) -> Vec<String> {
    let names = |community: &crds::Community| -> BTreeSet<String> {
        community.spec.communities.iter().map(|alias| alias.name.clone()).collect()
    };
    let others = resources.communities.iter().filter(|c| c.metadata.name != old.metadata.name);
    let defined: BTreeSet<String> = others.chain(new).flat_map(names).collect();
    let lost: BTreeSet<String> = names(old).difference(&defined).cloned().collect();
    let users: Vec<String> = resources
        .bgp_advertisements
        .iter()
        .filter(|a| a.spec.communities.iter().any(|text| lost.contains(text)))
        .map(|a| format!("BGPAdvertisement {:?}", name(&a.metadata.name)))
        .collect();
    still_named(users).into_iter().collect()
}

/// A BFDProfile stays while a BGPPeer needs it.
fn profile_in_use(object: &ObjectRef, resources: &Resources) -> Result<(), Vec<ConfigError>> {
    let peers = resources.bgp_peers.iter();
    let users = peers.filter(|peer| peer.spec.bfd_profile.as_deref() == Some(&object.name));
    let errors: Vec<ConfigError> = users
        .map(|peer| {
            let rule = Rule::ProfileInUse {
                profile: object.name.clone(),
                peer: name(&peer.metadata.name).to_owned(),
            };
            ConfigError::new(object.clone(), Fault::new("metadata.name", rule))
        })
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn still_named(mut users: Vec<String>) -> Option<String> {
    let count = users.len();
    users.truncate(NAMED);
    (count > 0).then(|| format!("still named by {}", error::list(&users, count)))
}

fn name(name: &Option<String>) -> &str {
    name.as_deref().unwrap_or_default()
}
