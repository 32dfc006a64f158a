use config::Resources;
use serde_json::{Value, json};

use super::*;
use crate::{
    fixture::{meta, node, object, parse, resources, service, slice},
    plan::{Announcements, Options, announcements_of, plan},
    view::Cluster,
};

struct Case {
    config: config::Config,
    cluster: Cluster,
    options: Options,
}

impl Case {
    /// Pool `routed` with these advertisements and these changes of the peer `tor`.
    fn new(ads: &[Value], peer: &Value) -> Self {
        Self::with(|all| {
            let ad = |(number, spec): (usize, &Value)| {
                let mut spec = spec.clone();
                spec["ipAddressPools"] = json!(["routed"]);
                object(json!({"metadata": meta(&format!("ad-{number}")), "spec": spec}))
            };
            all.bgp_advertisements = ads.iter().enumerate().map(ad).collect();
            let mut spec = serde_json::to_value(&all.bgp_peers[0].spec).unwrap();
            for (name, value) in peer.as_object().unwrap() {
                spec[name] = value.clone();
            }
            all.bgp_peers[0].spec = object(spec);
        })
    }

    fn with(change: impl FnOnce(&mut Resources)) -> Self {
        let mut all = resources();
        change(&mut all);
        let nodes: Vec<_> = [("n1", "10.0.0.1"), ("n2", "10.0.0.2")]
            .map(|(name, address)| node(name, address, &Value::Null))
            .into();
        let mut cluster = Cluster::default();
        for node in &nodes {
            cluster.apply_node(node);
        }
        cluster.apply_slice(&slice("a", &["n1"]));
        Self { config: parse(all, &nodes), cluster, options: Options::default() }
    }

    fn context<'a>(&'a self, me: &'a config::NodeName) -> Context<'a> {
        Context { me, config: &self.config, cluster: &self.cluster, options: &self.options }
    }

    fn plan_of(&self, key: &ServiceKey, before: Option<&ServicePlan>) -> ServicePlan {
        let me = "n1".into();
        let service = &self.cluster.services[key];
        announcements_of(key, service, before, self.context(&me), &mut Choices::default())
    }

    fn plan(&mut self, addresses: &[&str], more: &Value) -> ServicePlan {
        let key = self.cluster.apply_service(&service("a", addresses, more)).unwrap();
        self.plan_of(&key, None)
    }

    fn whole(&self) -> Announcements {
        plan(self.context(&"n1".into()))
    }
}

const V4: &str = "203.0.113.7";
const V6: &str = "2001:db8::7";

fn only(plan: &ServicePlan) -> &Route {
    let [route] = plan.bgp.as_ref().unwrap().routes("tor") else { panic!("{:?}", plan.bgp) };
    route
}

fn prefixes(plan: &BgpPlan, peer: &str) -> Vec<String> {
    plan.routes(peer).iter().map(|route| route.prefix.to_string()).collect()
}

#[test]
fn communities_of_all_kinds_are_united() {
    let ads = [
        json!({"communities": ["65000:1", "no-export", "rt:65000:7"], "localPref": 7}),
        json!({"communities": ["65000:1", "large:1:2:3"], "localPref": 7}),
        json!({"aggregationLength": 24, "aggregationLengthV6": 64, "communities": ["65000:9"]}),
    ];
    let mut case = Case::new(&ads, &json!({}));
    let plan = case.plan(&[V4], &json!({}));
    let bgp = plan.bgp.as_ref().unwrap();
    assert_eq!(prefixes(bgp, "tor"), ["203.0.113.0/24", "203.0.113.7/32"]);
    let attributes = &bgp.routes("tor")[1].attributes;
    assert_eq!(attributes.communities, [65_000 << 16 | 1, 0xffff_ff01].into());
    assert_eq!(attributes.large_communities, [(1, 2, 3)].into());
    assert_eq!(attributes.extended_communities, [0x0002_fde8_0000_0007].into());
    assert_eq!(attributes.local_pref, Some(7));
    assert_eq!(bgp.routes("tor")[0].attributes.communities, [65_000 << 16 | 9].into());
    assert_eq!((&*bgp.overruled, &*bgp.refused, bgp.damping), (&[][..], &[][..], Damped::No));
}

#[test]
fn what_an_advertisement_leaves_open_is_as_the_peer_says() {
    let peer = json!({"localPref": 50, "med": 5, "asPathPrepend": 2});
    for (ad, expected) in [
        (json!({}), (Some(50), Some(5), 2)),
        (json!({"localPref": 70}), (Some(70), Some(5), 2)),
        (json!({"med": 0}), (Some(50), Some(0), 2)),
        (json!({"asPathPrepend": 1}), (Some(50), Some(5), 1)),
    ] {
        let plan = Case::new(&[ad], &peer).plan(&[V4], &json!({}));
        let Attributes { local_pref, med, as_path_prepend, .. } = *only(&plan).attributes;
        assert_eq!((local_pref, med, as_path_prepend), expected);
    }
    let plan = Case::new(&[json!({})], &json!({})).plan(&[V4], &json!({}));
    assert_eq!(*only(&plan).attributes, Attributes::default());
}

#[test]
fn of_what_cannot_be_united_the_most_preferred_is_announced_and_both_are_named() {
    // With serviceSelectors; without, the configuration is refused.
    let ad = |more: Value| {
        let mut ad = json!({"serviceSelectors": [{}]});
        ad.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ad
    };
    let ads = [
        ad(json!({"med": 9, "communities": ["1:1"]})),
        ad(json!({"med": 5, "asPathPrepend": 3, "communities": ["1:2"]})),
        ad(json!({"med": 9, "communities": ["1:3"]})),
    ];
    let plan = Case::new(&ads, &json!({})).plan(&[V4], &json!({}));
    let attributes = &only(&plan).attributes;
    assert_eq!((attributes.med, attributes.as_path_prepend), (Some(9), 0));
    assert_eq!(attributes.communities, [1 << 16 | 1, 1 << 16 | 3].into());
    let told: Vec<String> = plan.bgp.unwrap().overruled.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["BGPAdvertisements \"ad-0\" and \"ad-1\" give 203.0.113.7/32 different attributes; the \
          first is preferred, so what the second says is not announced; make them equal, or keep \
          the two apart"]
    );
}

#[test]
fn two_local_preferences_for_a_route_are_refused() {
    let ads = [
        json!({"localPref": 1, "serviceSelectors": [{}], "peers": ["tor"]}),
        json!({"localPref": 2}),
        json!({"localPref": 3, "peers": ["other"]}),
    ];
    for (ads, conflict) in [(&ads[..2], true), (&ads[..1], false)] {
        let plan = Case::new(ads, &json!({})).plan(&[V4], &json!({}));
        let refusal = plan.bgp.as_ref().err();
        assert_eq!(matches!(refusal, Some(Refusal::LocalPrefConflict(_))), conflict, "{refusal:?}");
    }
    let apart = [ads[0].clone(), ads[2].clone()];
    let plan = Case::new(&apart, &json!({})).plan(&[V4], &json!({}));
    assert_eq!(only(&plan).attributes.local_pref, Some(1));
}

#[test]
fn a_peer_gets_the_families_of_its_session() {
    for (peer, expected, refused) in [
        (json!({}), vec!["203.0.113.7/32"], Some(V6)),
        (json!({"dualStackAddressFamily": true}), vec!["203.0.113.7/32", "2001:db8::7/128"], None),
        (json!({"peerAddress": "2001:db8:1::1"}), vec!["2001:db8::7/128"], Some(V4)),
        (
            json!({"peerAddress": null, "interface": "eth1"}),
            vec!["203.0.113.7/32", "2001:db8::7/128"],
            None,
        ),
    ] {
        let plan = Case::new(&[json!({})], &peer).plan(&[V4, V6], &json!({}));
        let bgp = plan.bgp.unwrap();
        assert_eq!(prefixes(&bgp, "tor"), expected, "{peer}");
        let told = bgp.refused.first().map(|(_, refusal)| refusal.to_string());
        let names = |text: &str| refused.is_some_and(|address| text.contains(address));
        assert_eq!(told.as_deref().map(names), refused.map(|_| true), "{told:?}");
    }
    let plan = Case::new(&[json!({})], &json!({})).plan(&[V6], &json!({}));
    assert!(plan.routes().is_none());
    let refusal = plan.bgp_refusal().unwrap();
    assert_eq!(
        (refusal.reason(), refusal.to_string().as_str()),
        (
            "peerWithoutFamily",
            "BGPPeer \"tor\" is reached over IPv4, so 2001:db8::7/128 is not announced to it; set \
             its dualStackAddressFamily"
        )
    );
}

#[test]
fn the_weight_is_the_number_of_ready_endpoints_on_the_node() {
    let float = |octets: u64| f32::from_bits(u32::try_from(octets & 0xffff_ffff).unwrap());
    for (on_n1, asn, expected) in [(3, 64_513, 3.0), (1, 64_513, 1.0), (0, 4_200_000_001, 1.0)] {
        let ad = json!({"weightByEndpoints": true});
        let mut case = Case::new(&[ad, json!({})], &json!({"localASN": asn}));
        let mut nodes = vec!["n1"; on_n1];
        nodes.push("n2");
        case.cluster.apply_slice(&slice("a", &nodes));
        case.plan(&[V4], &json!({}));
        let whole = case.whole();
        let attributes = &whole.bgp["tor"][&"203.0.113.7/32".parse().unwrap()];
        let communities: Vec<u64> = attributes.extended_communities.iter().copied().collect();
        let [community] = communities[..] else { panic!("{communities:?}") };
        let asn = if asn > 65535 { 23456 } else { asn };
        assert_eq!(community >> 32, 0x4004 << 16 | asn);
        assert!((float(community) / BANDWIDTH - expected).abs() < f32::EPSILON);
    }
}

#[test]
fn endpoints_that_are_about_to_end_do_not_count_and_those_of_the_other_family_neither() {
    let mut case = Case::new(&[json!({"weightByEndpoints": true})], &json!({}));
    let endpoint = |conditions: Value| json!({"addresses": ["10.244.0.9"], "nodeName": "n1", "conditions": conditions});
    let with = |name: &str, family: &str, endpoints: Vec<Value>| {
        object::<k8s_openapi::api::discovery::v1::EndpointSlice>(json!({
            "metadata": {"name": name, "namespace": "default",
                         "labels": {"kubernetes.io/service-name": "a"}},
            "addressType": family, "endpoints": endpoints,
        }))
    };
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    let four = vec![endpoint(json!({"ready": true})), endpoint(json!({})), endpoint(leaving)];
    case.cluster.apply_slice(&with("a-x", "IPv4", four));
    case.cluster.apply_slice(&with("a-y", "IPv6", vec![endpoint(json!({})); 5]));
    assert_eq!(only(&case.plan(&[V4], &json!({}))).endpoints, Some(2));
    let key = ServiceKey::new("default", "a");
    assert_eq!(case.cluster.ready_endpoints(&key, "n1", V6.parse().unwrap()), 5);
    assert_eq!(case.cluster.ready_endpoints(&key, "n2", V6.parse().unwrap()), 0);
}

#[test]
fn the_last_announcement_is_kept_where_that_is_asked_for() {
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let ads = [
        json!({"keepLastAnnouncement": true, "communities": ["1:1"]}),
        json!({"aggregationLength": 24}),
    ];
    for policy in [&json!({}), &local] {
        let mut case = Case::new(&ads, &json!({}));
        let before = case.plan(&[V4], policy);
        let key = ServiceKey::new("default", "a");
        assert_eq!(before.bgp.as_ref().unwrap().routes("tor").len(), 2);

        case.cluster.apply_slice(&slice("a", &[]));
        let kept = case.plan_of(&key, Some(&before));
        assert_eq!(only(&kept).prefix.to_string(), "203.0.113.7/32");
        assert_eq!(only(&case.plan_of(&key, Some(&kept))), only(&kept), "and stays");
        let never = case.plan_of(&key, None);
        assert!(matches!(never.bgp, Err(Refusal::NoEndpoint | Refusal::NoLocalEndpoint(_))));
        // Elsewhere there is one again.
        case.cluster.apply_slice(&slice("a", &["n2"]));
        let now = case.plan_of(&key, Some(&kept));
        assert_eq!(now.routes().is_some(), policy == &json!({}));
        // An address that it did not have then was never announced.
        case.cluster.apply_slice(&slice("a", &[]));
        case.cluster.apply_service(&service("a", &["203.0.113.8"], policy));
        assert!(case.plan_of(&key, Some(&kept)).bgp.is_err());
    }
}

#[test]
fn services_of_one_prefix_share_its_route() {
    let ads = [
        json!({"serviceSelectors": [{"matchLabels": {"app": "a"}}], "med": 5,
               "communities": ["1:1"], "weightByEndpoints": true}),
        json!({"serviceSelectors": [{"matchLabels": {"app": "b"}}], "med": 5,
               "communities": ["1:2"], "weightByEndpoints": true}),
        json!({"serviceSelectors": [{"matchLabels": {"app": "c"}}], "med": 9,
               "communities": ["1:3"], "weightByEndpoints": true}),
    ];
    let mut case = Case::new(&ads, &json!({}));
    for name in ["a", "b", "c"] {
        let labelled = json!({"metadata": {"labels": {"app": name}}});
        case.cluster.apply_service(&service(name, &[V4], &labelled));
        case.cluster.apply_slice(&slice(name, &["n1", "n1"]));
    }
    let whole = case.whole();
    let attributes = &whole.bgp["tor"][&"203.0.113.7/32".parse().unwrap()];
    assert_eq!(attributes.med, Some(5));
    assert_eq!(attributes.communities, [1 << 16 | 1, 1 << 16 | 2].into());
    let four = link_bandwidth(64_513, 4);
    assert_eq!(attributes.extended_communities, [four].into(), "one for both");
}

proptest::proptest! {
    /// In whatever order Services come, their common route is the same.
    #[test]
    fn joining_knows_no_order(
        given in proptest::collection::vec((0..3u32, 0..2u8, 0..3u32, 0..9u32), 1..6),
        turn in 0..6usize,
    ) {
        let case = Case::new(&[json!({})], &json!({}));
        let peer = &case.config.peers["tor"];
        let route = |(local_pref, as_path_prepend, med, community): &(u32, u8, u32, u32)| Route {
            prefix: "203.0.113.7/32".parse().unwrap(),
            attributes: Arc::new(Attributes {
                local_pref: Some(*local_pref).filter(|value| *value > 0),
                as_path_prepend: *as_path_prepend,
                med: Some(*med).filter(|value| *value > 0),
                communities: [*community].into(),
                ..Attributes::default()
            }),
            endpoints: u16::try_from(*community).ok().filter(|value| *value > 4),
        };
        let mut routes: Vec<Route> = given.iter().map(route).collect();
        let before = joined(routes.iter(), peer);
        let turn = turn % routes.len();
        routes.rotate_left(turn);
        proptest::prop_assert_eq!(&joined(routes.iter(), peer), &before);
        routes.reverse();
        proptest::prop_assert_eq!(joined(routes.iter(), peer), before);
    }
}
