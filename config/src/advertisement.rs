//! L2Advertisements and BGPAdvertisements, as attached to the pools they select.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::{
    AddressRange, BfdProfile, Community, Labels, NodeName, Peer, PeerName, Pool, Selector,
    community::Aliases,
    error::{Fault, Rule},
    peer::{self, Missing},
    selector,
};

/// Announce by ARP and NDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct L2Advertisement {
    pub name: String,
    /// Nodes that may announce: those that `nodeSelectors` match now (all when none is given).
    pub nodes: BTreeSet<NodeName>,
    pub interfaces: InterfaceMatch,
    /// Any of these; empty: every Service.
    pub service_selectors: Vec<Selector>,
    /// Sum of the weights of `preferredNodeSelectors` per node of `nodes`; absent: 0.
    pub preference: BTreeMap<NodeName, i32>,
}

/// On which interfaces an address is answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum InterfaceMatch {
    All,
    /// Exact names.
    Only(BTreeSet<String>),
}

/// Announce by BGP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BgpAdvertisement {
    pub name: String,
    pub nodes: BTreeSet<NodeName>,
    /// 1..=32
    pub aggregation_length: u8,
    /// 0..=128
    pub aggregation_length_v6: u8,
    /// 0: not set.
    pub local_pref: u32,
    pub med: Option<u32>,
    /// 0..=10; 0: as the peer says.
    pub as_path_prepend: u8,
    /// A link-bandwidth community tells how many endpoints are ready on the node.
    pub weight_by_endpoints: bool,
    /// The routes of a Service that lost its last endpoint stay.
    pub keep_last_announcement: bool,
    /// Routes that come and go often are announced late.
    pub damping: bool,
    pub communities: BTreeSet<Community>,
    /// Empty: every peer.
    pub peers: BTreeSet<PeerName>,
    pub service_selectors: Vec<Selector>,
}

impl L2Advertisement {
    /// True when a Service with these labels is announced.
    pub fn selects(&self, service_labels: &Labels) -> bool {
        selector::any_matches(&self.service_selectors, service_labels)
    }
}

impl BgpAdvertisement {
    /// True when a Service with these labels is announced.
    pub fn selects(&self, service_labels: &Labels) -> bool {
        selector::any_matches(&self.service_selectors, service_labels)
    }

    /// True when the peer of this name is announced to.
    pub fn is_for(&self, peer: &str) -> bool {
        self.peers.is_empty() || self.peers.contains(peer)
    }
}

/// Which pools an advertisement is for.
#[derive(Debug, Clone)]
pub(crate) struct PoolSelection {
    names: BTreeSet<String>,
    selectors: Vec<Selector>,
}

impl PoolSelection {
    /// By name or by label; every pool when neither is given.
    pub fn selects(&self, pool: &str, labels: &Labels) -> bool {
        (self.names.is_empty() && self.selectors.is_empty())
            || self.names.contains(pool)
            || self.selectors.iter().any(|selector| selector.matches(labels))
    }

    fn parse(names: &[String], selectors: &[LabelSelector], faults: &mut Vec<Fault>) -> Self {
        Self {
            names: crate::unique("spec.ipAddressPools", names, faults),
            selectors: selector::parse_list("spec.ipAddressPoolSelectors", selectors, faults),
        }
    }
}

pub(crate) fn parse_l2(
    name: &str,
    spec: &crds::L2AdvertisementSpec,
    nodes: &BTreeMap<NodeName, Labels>,
) -> Result<(L2Advertisement, PoolSelection), Vec<Fault>> {
    let mut faults = Vec::new();
    let pools =
        PoolSelection::parse(&spec.ip_address_pools, &spec.ip_address_pool_selectors, &mut faults);
    let selectors = selector::parse_list("spec.nodeSelectors", &spec.node_selectors, &mut faults);
    let service_selectors =
        selector::parse_list("spec.serviceSelectors", &spec.service_selectors, &mut faults);
    let chosen = crate::matching_nodes(&selectors, nodes);
    let preference = parse_preference(&spec.preferred_node_selectors, nodes, &chosen, &mut faults);
    if !faults.is_empty() {
        return Err(faults);
    }
    let interfaces = if spec.interfaces.is_empty() {
        InterfaceMatch::All
    } else {
        InterfaceMatch::Only(spec.interfaces.iter().cloned().collect())
    };
    let advertisement = L2Advertisement {
        name: name.to_owned(),
        nodes: chosen,
        interfaces,
        service_selectors,
        preference,
    };
    Ok((advertisement, pools))
}

/// Adds an advertisement to those of a pool, unless it says nothing that another one does not
/// say. Preferences add up, so an advertisement that has some always says something.
pub(crate) fn attach_l2(
    attached: &mut Vec<Arc<L2Advertisement>>,
    advertisement: &Arc<L2Advertisement>,
) {
    // The nodes last: they are many.
    let says_the_same = |other: &Arc<L2Advertisement>| {
        other.preference.is_empty()
            && advertisement.preference.is_empty()
            && other.interfaces == advertisement.interfaces
            && other.service_selectors == advertisement.service_selectors
            && other.nodes == advertisement.nodes
    };
    if !attached.iter().any(says_the_same) {
        attached.push(Arc::clone(advertisement));
    }
}

pub(crate) fn parse_bgp(
    name: &str,
    spec: &crds::BGPAdvertisementSpec,
    nodes: &BTreeMap<NodeName, Labels>,
    aliases: &Aliases,
    missing: Missing,
) -> Result<(BgpAdvertisement, PoolSelection), Vec<Fault>> {
    let mut faults = Vec::new();
    let pools =
        PoolSelection::parse(&spec.ip_address_pools, &spec.ip_address_pool_selectors, &mut faults);
    let selectors = selector::parse_list("spec.nodeSelectors", &spec.node_selectors, &mut faults);
    let service_selectors =
        selector::parse_list("spec.serviceSelectors", &spec.service_selectors, &mut faults);
    let peers = crate::unique("spec.peers", &spec.peers, &mut faults);
    let communities = parse_communities(&spec.communities, aliases, missing, &mut faults);
    let aggregation_length =
        parse_length("spec.aggregationLength", spec.aggregation_length, 1, 32, &mut faults);
    let aggregation_length_v6 =
        parse_length("spec.aggregationLengthV6", spec.aggregation_length_v6, 0, 128, &mut faults);
    let prepend = u32::from(spec.as_path_prepend);
    crate::within("spec.asPathPrepend", prepend, 0, peer::MAX_PREPEND, &mut faults);
    for (field, length, default) in [
        ("spec.aggregationLength", spec.aggregation_length, crds::DEFAULT_AGGREGATION_LENGTH),
        (
            "spec.aggregationLengthV6",
            spec.aggregation_length_v6,
            crds::DEFAULT_AGGREGATION_LENGTH_V6,
        ),
    ] {
        if length != default && !spec.service_selectors.is_empty() {
            faults.push(Fault::new(field, Rule::AggregationWithSelectors));
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let advertisement = BgpAdvertisement {
        name: name.to_owned(),
        nodes: crate::matching_nodes(&selectors, nodes),
        aggregation_length,
        aggregation_length_v6,
        local_pref: spec.local_pref,
        med: spec.med,
        as_path_prepend: spec.as_path_prepend,
        weight_by_endpoints: spec.weight_by_endpoints,
        keep_last_announcement: spec.keep_last_announcement,
        damping: spec.damping,
        communities,
        peers: peers.into_iter().map(PeerName::from).collect(),
        service_selectors,
    };
    Ok((advertisement, pools))
}

/// What stands against announcing `pool` by `advertisement`, beside those that announce it
/// already.
pub(crate) fn pool_faults(
    advertisement: &BgpAdvertisement,
    pool: &Pool,
    peers: &BTreeMap<PeerName, Peer>,
    profiles: &BTreeMap<String, BfdProfile>,
) -> Vec<Fault> {
    let wide = pool.ranges.iter().filter_map(|range| too_wide(advertisement, pool, range));
    let mut faults: Vec<Fault> = wide.collect();
    let same: Vec<&Arc<BgpAdvertisement>> = pool
        .bgp_advertisements
        .iter()
        .filter(|other| same_routes(advertisement, other, pool))
        .collect();
    if let Some(other) = same.iter().find(|other| other.local_pref != advertisement.local_pref) {
        let rule = Rule::LocalPreference {
            advertisement: advertisement.name.clone(),
            preference: advertisement.local_pref,
            other: other.name.clone(),
            other_preference: other.local_pref,
            pool: pool.name.to_string(),
        };
        faults.push(Fault::new("spec.localPref", rule));
    }
    let other_med = same.iter().find(|other| other.med != advertisement.med);
    let prepend = advertisement.as_path_prepend;
    let other_prepend = same.iter().find(|other| other.as_path_prepend != prepend);
    for (attribute, other) in [("med", other_med), ("asPathPrepend", other_prepend)] {
        let Some(other) = other else { continue };
        let rule = Rule::RouteAttribute {
            advertisement: advertisement.name.clone(),
            other: other.name.clone(),
            pool: pool.name.to_string(),
            attribute,
        };
        faults.push(Fault::new(format!("spec.{attribute}"), rule));
    }
    let echoing = peers.values().filter(|peer| advertisement.is_for(&peer.name)).find_map(|peer| {
        let profile = profiles.get(peer.bfd_profile.as_ref()?)?;
        profile.echo_mode.then(|| (peer.name.to_string(), profile.name.clone()))
    });
    if let Some((peer, profile)) = echoing
        && pool.ranges.iter().any(|range| !range.is_ipv4())
    {
        let rule = Rule::EchoOverIpv6 {
            advertisement: advertisement.name.clone(),
            pool: pool.name.to_string(),
            peer,
            profile,
        };
        faults.push(Fault::new("spec.peers", rule));
    }
    faults
}

fn parse_preference(
    preferred: &[crds::PreferredNodeSelector],
    nodes: &BTreeMap<NodeName, Labels>,
    chosen: &BTreeSet<NodeName>,
    faults: &mut Vec<Fault>,
) -> BTreeMap<NodeName, i32> {
    let mut preference: BTreeMap<NodeName, i32> = BTreeMap::new();
    for (i, term) in preferred.iter().enumerate() {
        let field = format!("spec.preferredNodeSelectors[{i}]");
        if !(1..=100).contains(&term.weight) {
            faults.push(Fault::new(format!("{field}.weight"), Rule::Weight(term.weight)));
        }
        let selector = match Selector::parse(&term.preference) {
            Ok(selector) => selector,
            Err(error) => {
                faults.push(Fault::of_selector(&format!("{field}.preference"), error));
                continue;
            }
        };
        for node in chosen {
            if nodes.get(node).is_some_and(|labels| selector.matches(labels)) {
                let sum = preference.entry(node.clone()).or_default();
                *sum = sum.saturating_add(term.weight);
            }
        }
    }
    preference
}

fn parse_communities(
    texts: &[String],
    aliases: &Aliases,
    missing: Missing,
    faults: &mut Vec<Fault>,
) -> BTreeSet<Community> {
    let mut communities = BTreeSet::new();
    for (i, text) in texts.iter().enumerate() {
        let community = aliases.get(text).copied().or_else(|| text.parse().ok());
        let rule = match community {
            Some(community) if communities.insert(community) => continue,
            Some(_) => Rule::Duplicate(text.clone()),
            // Only a text without a colon can be a name that is still to be defined.
            None if missing == Missing::NotYet && !text.contains(':') => continue,
            None => Rule::Community(text.clone()),
        };
        faults.push(Fault::new(format!("spec.communities[{i}]"), rule));
    }
    communities
}

fn parse_length(field: &str, length: i32, min: u8, max: u8, faults: &mut Vec<Fault>) -> u8 {
    match u8::try_from(length) {
        Ok(length) if (min..=max).contains(&length) => length,
        Ok(_) | Err(_) => {
            faults.push(Fault::new(field, Rule::AggregationLength { length, min, max }));
            max
        }
    }
}

fn too_wide(advertisement: &BgpAdvertisement, pool: &Pool, range: &AddressRange) -> Option<Fault> {
    let (field, length) = if range.is_ipv4() {
        ("spec.aggregationLength", advertisement.aggregation_length)
    } else {
        ("spec.aggregationLengthV6", advertisement.aggregation_length_v6)
    };
    let prefix_length = range.prefixes().iter().map(IpNet::prefix_len).min()?;
    (length < prefix_length).then(|| {
        let rule = Rule::AggregationTooWide {
            advertisement: advertisement.name.clone(),
            length,
            prefix_length,
            range: *range,
            pool: pool.name.to_string(),
        };
        Fault::new(field, rule)
    })
}

/// True when some route of `pool` goes from one node to one peer by both. Advertisements for some
/// Services only are left to be compared when it is known which Services those are.
fn same_routes(a: &BgpAdvertisement, b: &BgpAdvertisement, pool: &Pool) -> bool {
    let has = |ipv4: bool| pool.ranges.iter().any(|range| range.is_ipv4() == ipv4);
    let same_prefixes = (has(true) && a.aggregation_length == b.aggregation_length)
        || (has(false) && a.aggregation_length_v6 == b.aggregation_length_v6);
    let share_peers = a.peers.is_empty() || b.peers.is_empty() || !a.peers.is_disjoint(&b.peers);
    a.service_selectors.is_empty()
        && b.service_selectors.is_empty()
        && same_prefixes
        && share_peers
        && !a.nodes.is_disjoint(&b.nodes)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{fields, hostname, resources, with_nodes};

    fn nodes() -> BTreeMap<NodeName, Labels> {
        with_nodes(resources(&[]), &["n1", "n2"]).nodes
    }

    fn l2(spec: Value) -> Result<L2Advertisement, Vec<Fault>> {
        let spec = serde_json::from_value(spec).unwrap();
        parse_l2("a", &spec, &nodes()).map(|(advertisement, _)| advertisement)
    }

    fn bgp(spec: Value) -> Result<BgpAdvertisement, Vec<Fault>> {
        let spec = serde_json::from_value(spec).unwrap();
        let aliases = Aliases::from([("name".to_owned(), Community::Standard(1, 2))]);
        parse_bgp("a", &spec, &nodes(), &aliases, Missing::Fault)
            .map(|(advertisement, _)| advertisement)
    }

    #[test]
    fn without_limits_an_advertisement_is_for_all() {
        let l2 = l2(json!({})).unwrap();
        assert_eq!(l2.nodes.len(), 2);
        assert_eq!(l2.interfaces, InterfaceMatch::All);
        assert!(l2.selects(&Labels::new()) && l2.preference.is_empty());
        let bgp = bgp(json!({})).unwrap();
        assert_eq!((bgp.aggregation_length, bgp.aggregation_length_v6), (32, 128));
        assert_eq!((bgp.local_pref, bgp.nodes.len()), (0, 2));
        assert!(bgp.selects(&Labels::new()) && bgp.is_for("anybody"));
    }

    #[test]
    fn one_selector_that_matches_is_enough() {
        let spec = json!({
            "nodeSelectors": [hostname("n2"), hostname("n3")],
            "serviceSelectors": [
                { "matchLabels": { "app": "web" } }, { "matchLabels": { "app": "db" } },
            ],
        });
        let advertisement = l2(spec).unwrap();
        assert_eq!(advertisement.nodes, BTreeSet::from(["n2".into()]));
        let app = |name: &str| Labels::from([("app".to_owned(), name.to_owned())]);
        assert!(advertisement.selects(&app("web")) && advertisement.selects(&app("db")));
        assert!(!advertisement.selects(&app("mail")));
    }

    #[test]
    fn weights_add_up_among_the_nodes_that_may_announce() {
        let spec = json!({
            "nodeSelectors": [hostname("n1")],
            "preferredNodeSelectors": [
                { "weight": 60, "preference": hostname("n1") },
                { "weight": 50, "preference": {} },
                { "weight": 100, "preference": hostname("n2") },
            ],
        });
        assert_eq!(l2(spec).unwrap().preference, BTreeMap::from([("n1".into(), 110)]));
    }

    #[test]
    fn faults_are_told_all_at_once() {
        let faults = l2(json!({
            "ipAddressPools": ["x", "x"],
            "ipAddressPoolSelectors": [{}, {}],
            "nodeSelectors": [{}, {}],
            "serviceSelectors": [{}, {}],
            "preferredNodeSelectors": [
                { "weight": 0, "preference": {} },
                { "weight": 101, "preference": { "matchExpressions": [
                    { "key": "a", "operator": "surrounds" },
                ] } },
            ],
        }))
        .unwrap_err();
        assert_eq!(
            fields(&faults),
            [
                "spec.ipAddressPools[1]",
                "spec.ipAddressPoolSelectors[1]",
                "spec.nodeSelectors[1]",
                "spec.serviceSelectors[1]",
                "spec.preferredNodeSelectors[0].weight",
                "spec.preferredNodeSelectors[1].weight",
                "spec.preferredNodeSelectors[1].preference.matchExpressions[0].operator",
            ]
        );
        let faults = bgp(json!({
            "peers": ["x", "x"],
            "communities": ["1:2", "name", "unknown", "1:65536"],
            "aggregationLength": 0,
            "aggregationLengthV6": 129,
            "asPathPrepend": 11,
        }))
        .unwrap_err();
        assert_eq!(
            fields(&faults),
            [
                "spec.peers[1]",
                "spec.communities[1]",
                "spec.communities[2]",
                "spec.communities[3]",
                "spec.aggregationLength",
                "spec.aggregationLengthV6",
                "spec.asPathPrepend",
            ]
        );
    }

    #[test]
    fn aggregation_does_not_go_with_service_selectors() {
        let selectors = || json!([{ "matchLabels": { "app": "web" } }]);
        for (spec, expected) in [
            (json!({ "aggregationLength": 24 }), "spec.aggregationLength"),
            (json!({ "aggregationLengthV6": 64 }), "spec.aggregationLengthV6"),
        ] {
            assert!(bgp(spec.clone()).is_ok());
            let mut with = spec;
            with["serviceSelectors"] = selectors();
            assert_eq!(fields(&bgp(with).unwrap_err()), [expected]);
        }
        let defaults = json!({
            "aggregationLength": 32, "aggregationLengthV6": 128, "serviceSelectors": selectors(),
        });
        assert!(bgp(defaults).is_ok());
    }

    #[test]
    fn an_advertisement_that_says_nothing_new_is_dropped() {
        let base = Arc::new(l2(json!({ "interfaces": ["eth0", "eth1"] })).unwrap());
        let count = |other: Value| {
            let mut attached = vec![base.clone()];
            attach_l2(&mut attached, &Arc::new(l2(other).unwrap()));
            attached.len()
        };
        assert_eq!(count(json!({ "interfaces": ["eth1", "eth0"] })), 1);
        assert_eq!(count(json!({ "interfaces": ["eth0"] })), 2);
        assert_eq!(count(json!({})), 2);
        let both = json!(["eth0", "eth1"]);
        let nodes = json!([hostname("n1")]);
        assert_eq!(count(json!({ "interfaces": both, "nodeSelectors": nodes })), 2);
        let services = json!([{ "matchLabels": { "app": "web" } }]);
        assert_eq!(count(json!({ "interfaces": both, "serviceSelectors": services })), 2);
        let preferred = json!([{ "weight": 1, "preference": {} }]);
        assert_eq!(count(json!({ "interfaces": both, "preferredNodeSelectors": preferred })), 2);
    }
}
