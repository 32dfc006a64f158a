//! A router that reads what a session sends, with a codec that is not ours.
//!
//! Every message is decoded by netgauze-bgp-pkt and applied to a table; whatever was wanted, and
//! however it changed, the table must end up as the wanted routes and nothing else.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use bgp::{Action, Event, Family, PeerAsn, Route, Session, SessionConfig, StateKind, StopReason};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netgauze_bgp_pkt::{
    BgpMessage,
    path_attribute::{MpReach, MpUnreach, PathAttributeValue},
    update::BgpUpdateMessage,
    wire::deserializer::BgpParsingContext,
};
use netgauze_parse_utils::{reader::SliceReader, traits::ParseFromWithOneInput};
use proptest::prelude::*;

/// What a router knows of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Learned {
    next_hop: IpAddr,
    as_path: Vec<u32>,
    as4_path: Option<Vec<u32>>,
    local_pref: Option<u32>,
    communities: BTreeSet<u32>,
    large_communities: BTreeSet<(u32, u32, u32)>,
}

/// The other end of a session.
#[derive(Debug, Default)]
struct Router {
    table: BTreeMap<IpNet, Learned>,
    /// Each with the number of routes that came before it.
    end_of_rib: Vec<(Family, usize)>,
    updates: usize,
    context: BgpParsingContext,
}

impl Router {
    fn new(kind: PeerKind) -> Self {
        let mut context = BgpParsingContext::default();
        context.set_asn4(kind.four_octet_as);
        Self { context, ..Self::default() }
    }

    fn perform(&mut self, actions: &[Action]) {
        for action in actions {
            if let Action::Send(bytes) = action {
                self.read(bytes);
            }
        }
    }

    fn read(&mut self, mut bytes: &[u8]) {
        let mut announced = false;
        while !bytes.is_empty() {
            let length = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
            assert!(length <= 4096, "{length} octets");
            let (message, rest) = bytes.split_at(length);
            let mut reader = SliceReader::new(message);
            match BgpMessage::parse(&mut reader, &mut self.context).unwrap() {
                BgpMessage::Update(update) => {
                    self.updates += 1;
                    self.update(&update, &mut announced);
                }
                BgpMessage::Open(_)
                | BgpMessage::Notification(_)
                | BgpMessage::KeepAlive
                | BgpMessage::RouteRefresh(_) => announced = false,
            }
            bytes = rest;
        }
    }

    fn update(&mut self, update: &BgpUpdateMessage, announced: &mut bool) {
        let mut learned = Learned {
            next_hop: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            as_path: Vec::new(),
            as4_path: None,
            local_pref: None,
            communities: BTreeSet::new(),
            large_communities: BTreeSet::new(),
        };
        let mut reached: Vec<IpNet> =
            update.nlri().iter().map(|nlri| IpNet::V4(nlri.network().address())).collect();
        let mut withdrawn: Vec<IpNet> = update
            .withdraw_routes()
            .iter()
            .map(|nlri| IpNet::V4(nlri.network().address()))
            .collect();
        let parts = [!reached.is_empty(), !withdrawn.is_empty()];
        let mut multiprotocol = 0;
        for (position, attribute) in update.path_attributes().iter().enumerate() {
            match attribute.value() {
                PathAttributeValue::Origin(_) => {}
                PathAttributeValue::AsPath(path) => learned.as_path = path.clone().into(),
                PathAttributeValue::As4Path(path) => {
                    let numbers =
                        path.segments().iter().flat_map(|part| part.as_numbers().to_vec());
                    learned.as4_path = Some(numbers.collect());
                }
                PathAttributeValue::NextHop(hop) => learned.next_hop = IpAddr::V4(hop.next_hop()),
                PathAttributeValue::LocalPreference(preference) => {
                    learned.local_pref = Some(preference.metric());
                }
                PathAttributeValue::Communities(communities) => {
                    learned.communities = communities
                        .communities()
                        .iter()
                        .map(|community| community.value())
                        .collect();
                }
                PathAttributeValue::LargeCommunities(communities) => {
                    learned.large_communities = communities
                        .communities()
                        .iter()
                        .map(|c| (c.global_admin(), c.local_data1(), c.local_data2()))
                        .collect();
                }
                PathAttributeValue::MpReach(MpReach::Ipv6Unicast {
                    next_hop_global, nlri, ..
                }) => {
                    assert_eq!(position, 0, "MP_REACH_NLRI comes first");
                    multiprotocol += 1;
                    learned.next_hop = IpAddr::V6(*next_hop_global);
                    reached.extend(nlri.iter().map(|nlri| IpNet::V6(nlri.network().address())));
                }
                PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                    assert_eq!(position, 0, "MP_UNREACH_NLRI comes first");
                    multiprotocol += 1;
                    withdrawn.extend(nlri.iter().map(|nlri| IpNet::V6(nlri.network().address())));
                }
                other => panic!("an attribute that we never send: {other:?}"),
            }
        }
        let parts = parts.into_iter().filter(|part| *part).count() + multiprotocol;
        assert!(parts <= 1, "withdrawn routes, NLRI and MP_* do not mix: {update:?}");
        if reached.is_empty() && withdrawn.is_empty() {
            let family = if multiprotocol == 0 { Family::Ipv4Unicast } else { Family::Ipv6Unicast };
            self.end_of_rib.push((family, self.table.len()));
            return;
        }
        assert!(withdrawn.is_empty() || !*announced, "withdraws come before announcements");
        *announced |= !reached.is_empty();
        for prefix in withdrawn {
            assert!(self.table.remove(&prefix).is_some(), "{prefix} was never announced");
        }
        for prefix in reached {
            self.table.insert(prefix, learned.clone());
        }
    }
}

/// What the peer of a test is like.
#[derive(Debug, Clone, Copy)]
struct PeerKind {
    internal: bool,
    four_octet_as: bool,
    ipv6: bool,
    next_hop_v6: bool,
    local_asn: u32,
}

const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const PLAIN: PeerKind = PeerKind {
    internal: false,
    four_octet_as: true,
    ipv6: true,
    next_hop_v6: true,
    local_asn: 64512,
};

impl PeerKind {
    fn session(self) -> Session {
        let peer = if self.internal { PeerAsn::Internal } else { PeerAsn::Number(65001) };
        Session::new(SessionConfig::new(self.local_asn, peer, NEXT_HOP_V4), 7)
    }

    fn open(self) -> Vec<u8> {
        let asn = if self.internal { self.local_asn } else { 65001 };
        let mut capabilities = vec![1, 4, 0, 1, 0, 1, 2, 0];
        if self.ipv6 {
            capabilities.extend([1, 4, 0, 2, 0, 1]);
        }
        if self.four_octet_as {
            capabilities.extend([65, 4]);
            capabilities.extend(asn.to_be_bytes());
        }
        let length = u8::try_from(capabilities.len()).unwrap();
        let [high, low] = u16::try_from(asn).unwrap_or(23456).to_be_bytes();
        let fixed = [4, high, low, 0, 90, 192, 0, 2, 1, length + 2, 2, length];
        message(1, &[&fixed[..], &capabilities].concat())
    }

    /// What the router must have learned of these routes.
    fn expected(self, wanted: &BTreeSet<Route>) -> BTreeMap<IpNet, Learned> {
        let as_path = match (self.internal, self.four_octet_as) {
            (true, _) => vec![],
            (false, false) if self.local_asn > 65535 => vec![23456],
            (false, _) => vec![self.local_asn],
        };
        let as4_path = (as_path == [23456]).then(|| vec![self.local_asn]);
        wanted
            .iter()
            .filter(|route| route.prefix.addr().is_ipv4() || (self.ipv6 && self.next_hop_v6))
            .map(|route| {
                let learned = Learned {
                    next_hop: match route.prefix {
                        IpNet::V4(_) => IpAddr::V4(NEXT_HOP_V4),
                        IpNet::V6(_) => IpAddr::V6(NEXT_HOP_V6),
                    },
                    as_path: as_path.clone(),
                    as4_path: as4_path.clone(),
                    local_pref: self.internal.then(|| route.local_pref.unwrap_or(100)),
                    communities: route.communities.clone(),
                    large_communities: route.large_communities.clone(),
                };
                (route.prefix.trunc(), learned)
            })
            .collect()
    }

    fn families(self) -> Vec<Family> {
        if self.ipv6 {
            vec![Family::Ipv4Unicast, Family::Ipv6Unicast]
        } else {
            vec![Family::Ipv4Unicast]
        }
    }

    /// Brings the session up; what it sends goes to a new router.
    fn connect(self, session: &mut Session, now: Instant) -> Router {
        let mut router = Router::new(self);
        let local_v6 = self.next_hop_v6.then_some(NEXT_HOP_V6);
        let connected = Event::Connected { local_v4: Some(NEXT_HOP_V4), local_v6 };
        router.perform(&session.handle(connected, now));
        router.perform(&session.handle(Event::Received(&self.open()), now));
        router.perform(&session.handle(Event::Received(&message(4, &[])), now));
        assert_eq!(session.state(), StateKind::Established);
        router
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap();
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

/// The tests count from here; none of them looks at the clock again.
#[expect(clippy::disallowed_methods, reason = "std has no other way to make an Instant")]
fn some_time() -> Instant {
    Instant::now()
}

fn plain_route(prefix: IpNet) -> Route {
    Route {
        prefix,
        local_pref: None,
        communities: BTreeSet::new(),
        large_communities: BTreeSet::new(),
    }
}

fn a_hundred_thousand(prefix: impl Fn(u32) -> IpNet) -> BTreeSet<Route> {
    (0..100_000).map(prefix).map(plain_route).collect()
}

/// 5 octets an IPv4 host route and 17 an IPv6 one: the messages are as full as they can be.
#[test]
fn a_hundred_thousand_routes_take_few_messages() {
    let v4 = |host| IpNet::V4(Ipv4Net::from(Ipv4Addr::from_bits(0x0a00_0000 + host)));
    let v6_base = u128::from(0x2001_0db8_u32) << 96;
    let v6 = |host| IpNet::V6(Ipv6Net::from(Ipv6Addr::from_bits(v6_base + u128::from(host))));
    let now = some_time();
    for (wanted, most) in [(a_hundred_thousand(v4), 130), (a_hundred_thousand(v6), 430)] {
        let mut session = PLAIN.session();
        session.handle(Event::Start, now);
        session.handle(Event::Advertise(wanted.clone()), now);
        let mut router = PLAIN.connect(&mut session, now);
        assert_eq!(router.table.len(), 100_000);
        assert!(router.updates <= most, "{} messages announce", router.updates);
        let ends = [(Family::Ipv4Unicast, 100_000), (Family::Ipv6Unicast, 100_000)];
        assert_eq!(router.end_of_rib, ends);
        // One more, one fewer: two small messages.
        let mut changed = wanted.clone();
        changed.pop_last();
        changed.insert(plain_route("203.0.113.1/32".parse().unwrap()));
        router.updates = 0;
        router.perform(&session.handle(Event::Advertise(changed), now + Duration::from_secs(1)));
        assert_eq!(router.updates, 2);
        router.updates = 0;
        let reason = StopReason::AdministrativeShutdown { text: None };
        router.perform(&session.handle(Event::Stop { reason }, now));
        assert!(router.updates <= most, "{} messages withdraw", router.updates);
        assert_eq!(router.table.len(), 0);
    }
}

fn a_route() -> impl Strategy<Value = Route> {
    // Few addresses, so that routes do come back, and host bits that must not matter.
    let v4 = (0..6u32, 24..=32u8).prop_map(|(host, length)| {
        IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + host), length).unwrap())
    });
    let v6 = (0..6u16, prop::sample::select(vec![48, 64, 127, 128])).prop_map(|(host, length)| {
        let address = Ipv6Addr::new(0x2001, 0xdb8, host, 0, 0, 0, 0, host);
        IpNet::V6(Ipv6Net::new(address, length).unwrap())
    });
    let prefix = prop_oneof![v4, v6];
    let communities = prop::collection::btree_set(0..4u32, 0..3);
    let large = prop::collection::btree_set((0..2u32, 0..2u32, Just(7)), 0..3);
    (prefix, prop::option::of(99..102u32), communities, large).prop_map(
        |(prefix, local_pref, communities, large_communities)| Route {
            prefix,
            local_pref,
            communities,
            large_communities,
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Advertise(BTreeSet<Route>),
    Refresh(u8),
    Reconnect,
    Wait(u64),
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::btree_set(a_route(), 0..12).prop_map(Step::Advertise),
        1 => (1..3u8).prop_map(Step::Refresh),
        1 => Just(Step::Reconnect),
        4 => (0..15u64).prop_map(Step::Wait),
    ]
}

fn a_peer() -> impl Strategy<Value = PeerKind> {
    (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![64512, 4_200_000_001]),
    )
        .prop_map(|(internal, four_octet_as, ipv6, next_hop_v6, local_asn)| PeerKind {
            internal,
            // Inside one AS a peer that cannot write its own number does not come up.
            four_octet_as: four_octet_as || internal,
            ipv6,
            next_hop_v6,
            local_asn,
        })
}

proptest! {
    #[test]
    fn the_router_ends_with_the_wanted_routes(
        peer in a_peer(),
        steps in prop::collection::vec(a_step(), 0..20),
    ) {
        let mut now = some_time();
        let mut session = peer.session();
        session.handle(Event::Start, now);
        let mut router = peer.connect(&mut session, now);
        let mut wanted = None;
        for step in steps {
            match step {
                Step::Advertise(routes) => {
                    wanted = Some(routes.clone());
                    router.perform(&session.handle(Event::Advertise(routes), now));
                }
                Step::Refresh(afi) => {
                    let request = message(5, &[0, afi, 0, 1]);
                    router.perform(&session.handle(Event::Received(&request), now));
                }
                Step::Reconnect => {
                    session.handle(Event::Closed, now);
                    now = session.poll_timeout().unwrap();
                    session.handle_timeout(now);
                    router = peer.connect(&mut session, now);
                }
                Step::Wait(milliseconds) => {
                    now += Duration::from_millis(milliseconds);
                    router.perform(&session.handle_timeout(now));
                }
            }
        }
        now += Duration::from_millis(10);
        router.perform(&session.handle_timeout(now));
        let expected = wanted.as_ref().map(|wanted| peer.expected(wanted)).unwrap_or_default();
        prop_assert_eq!(session.stats().advertised_prefixes, expected.len());
        prop_assert_eq!(&router.table, &expected);
        let announced = if wanted.is_some() { peer.families() } else { vec![] };
        let ended: Vec<Family> = router.end_of_rib.iter().map(|(family, _)| *family).collect();
        prop_assert_eq!(ended, announced, "once a family, and only when the routes are known");
        let held_back: BTreeSet<IpNet> =
            session.held_back().into_keys().map(|prefix| prefix.trunc()).collect();
        let missing: BTreeSet<IpNet> = wanted
            .iter()
            .flatten()
            .map(|route| route.prefix.trunc())
            .filter(|prefix| !expected.contains_key(prefix))
            .collect();
        prop_assert_eq!(held_back, missing);
    }
}
