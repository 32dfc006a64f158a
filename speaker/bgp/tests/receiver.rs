//! A router that reads what a session sends, with a codec that is not ours.
//!
//! Every message is decoded by netgauze-bgp-pkt and applied to a table; whatever was wanted, and
//! however it changed, the table must end up as the wanted routes and nothing else.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use bgp::{
    Action, Attributes, Changes, Event, Family, Local, PeerAsn, Session, SessionConfig, StateKind,
    StopReason,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netgauze_bgp_pkt::{
    BgpMessage,
    community::ExtendedCommunity,
    iana::RouteRefreshSubcode,
    path_attribute::{MpReach, MpUnreach, PathAttributeValue},
    route_refresh::BgpRouteRefreshMessage,
    update::BgpUpdateMessage,
    wire::deserializer::BgpParsingContext,
};
use netgauze_parse_utils::{WritablePdu, reader::SliceReader, traits::ParseFromWithOneInput};
use proptest::prelude::*;

/// What a router knows of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Learned {
    next_hop: IpAddr,
    link_local: Option<Ipv6Addr>,
    as_path: Vec<u32>,
    as4_path: Option<Vec<u32>>,
    med: Option<u32>,
    local_pref: Option<u32>,
    communities: BTreeSet<u32>,
    extended_communities: BTreeSet<u64>,
    large_communities: BTreeSet<(u32, u32, u32)>,
}

/// The other end of a session.
#[derive(Debug, Default)]
struct Router {
    table: BTreeMap<IpNet, Learned>,
    /// Each with the number of routes that came before it.
    end_of_rib: Vec<(Family, usize)>,
    updates: usize,
    /// The families that are being sent again, each with what was heard of it since.
    refreshing: BTreeMap<Family, BTreeSet<IpNet>>,
    refreshed: usize,
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
                BgpMessage::RouteRefresh(refresh) => self.refresh(&refresh),
                BgpMessage::Open(_) | BgpMessage::Notification(_) | BgpMessage::KeepAlive => {}
            }
            bytes = rest;
        }
    }

    /// RFC 7313 section 4: what is not heard between the markers is gone.
    fn refresh(&mut self, refresh: &BgpRouteRefreshMessage) {
        let family = match refresh.address_type().address_family().into() {
            1u16 => Family::Ipv4Unicast,
            _ => Family::Ipv6Unicast,
        };
        match refresh.operation_type() {
            RouteRefreshSubcode::BeginningOfRouteRefresh => {
                let ended = self.end_of_rib.iter().any(|(ended, _)| *ended == family);
                assert!(ended, "no BoRR before the End-of-RIB");
                let before = self.refreshing.insert(family, BTreeSet::new());
                assert_eq!(before, None, "one at a time");
            }
            RouteRefreshSubcode::EndOfRouteRefresh => {
                let heard = self.refreshing.remove(&family).unwrap();
                self.table
                    .retain(|prefix, _| Family::of(prefix) != family || heard.contains(prefix));
                self.refreshed += 1;
            }
            other => panic!("{other:?}"),
        }
    }

    fn update(&mut self, update: &BgpUpdateMessage, announced: &mut bool) {
        let mut learned = Learned {
            next_hop: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            link_local: None,
            as_path: Vec::new(),
            as4_path: None,
            med: None,
            local_pref: None,
            communities: BTreeSet::new(),
            extended_communities: BTreeSet::new(),
            large_communities: BTreeSet::new(),
        };
        let codes = update.path_attributes().iter().map(|attribute| code(attribute.value()));
        let codes: Vec<u8> = codes.collect();
        let ascending = codes.strip_prefix(&[14]).unwrap_or(&codes);
        assert!(ascending.is_sorted_by(|a, b| a < b), "in ascending order: {codes:?}");
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
                PathAttributeValue::MultiExitDiscriminator(med) => learned.med = Some(med.metric()),
                PathAttributeValue::ExtendedCommunities(communities) => {
                    learned.extended_communities =
                        communities.communities().iter().map(octets).collect();
                }
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
                    next_hop_global,
                    next_hop_local,
                    nlri,
                }) => {
                    assert_eq!(position, 0, "MP_REACH_NLRI comes first");
                    multiprotocol += 1;
                    learned.next_hop = IpAddr::V6(*next_hop_global);
                    learned.link_local = *next_hop_local;
                    reached.extend(nlri.iter().map(|nlri| IpNet::V6(nlri.network().address())));
                }
                PathAttributeValue::MpReach(MpReach::Ipv4Unicast {
                    next_hop,
                    next_hop_local,
                    nlri,
                }) => {
                    assert_eq!(position, 0, "MP_REACH_NLRI comes first");
                    multiprotocol += 1;
                    learned.next_hop = *next_hop;
                    learned.link_local = *next_hop_local;
                    reached.extend(nlri.iter().map(|nlri| IpNet::V4(nlri.network().address())));
                }
                PathAttributeValue::MpUnreach(MpUnreach::Ipv4Unicast { nlri }) => {
                    assert_eq!(position, 0, "MP_UNREACH_NLRI comes first");
                    multiprotocol += 1;
                    withdrawn.extend(nlri.iter().map(|nlri| IpNet::V4(nlri.network().address())));
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
            if let Some(heard) = self.refreshing.get_mut(&Family::of(&prefix)) {
                heard.insert(prefix);
            }
            self.table.insert(prefix, learned.clone());
        }
    }
}

fn code(value: &PathAttributeValue) -> u8 {
    match value {
        PathAttributeValue::Origin(_) => 1,
        PathAttributeValue::AsPath(_) => 2,
        PathAttributeValue::NextHop(_) => 3,
        PathAttributeValue::MultiExitDiscriminator(_) => 4,
        PathAttributeValue::LocalPreference(_) => 5,
        PathAttributeValue::Communities(_) => 8,
        PathAttributeValue::MpReach(_) => 14,
        PathAttributeValue::MpUnreach(_) => 15,
        PathAttributeValue::ExtendedCommunities(_) => 16,
        PathAttributeValue::As4Path(_) => 17,
        PathAttributeValue::LargeCommunities(_) => 32,
        other => panic!("an attribute that we never send: {other:?}"),
    }
}

/// The octets that the codec read, as it writes them itself.
fn octets(community: &ExtendedCommunity) -> u64 {
    let mut bytes = Vec::new();
    community.write(&mut bytes).unwrap();
    u64::from_be_bytes(bytes.try_into().unwrap())
}

/// What the peer of a test is like.
#[derive(Debug, Clone, Copy)]
struct PeerKind {
    internal: bool,
    four_octet_as: bool,
    ipv6: bool,
    extended_next_hop: bool,
    enhanced_refresh: bool,
    local: Local,
    local_asn: u32,
}

const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const PLAIN: PeerKind = PeerKind {
    internal: false,
    four_octet_as: true,
    ipv6: true,
    extended_next_hop: false,
    enhanced_refresh: true,
    local: Local { v4: Some(NEXT_HOP_V4), v6: Some(NEXT_HOP_V6), link_local: None },
    local_asn: 64512,
};

type Wanted = BTreeMap<IpNet, Arc<Attributes>>;

impl PeerKind {
    fn session(self) -> Session {
        let peer = if self.internal { PeerAsn::Internal } else { PeerAsn::Number(65001) };
        let config = SessionConfig::new(self.local_asn, peer, NEXT_HOP_V4);
        let config = SessionConfig { extended_next_hop: true, ..config };
        Session::new(config, 7)
    }

    fn open(self) -> Vec<u8> {
        let asn = if self.internal { self.local_asn } else { 65001 };
        let mut capabilities = vec![1, 4, 0, 1, 0, 1, 2, 0];
        if self.ipv6 {
            capabilities.extend([1, 4, 0, 2, 0, 1]);
        }
        if self.extended_next_hop {
            capabilities.extend([5, 6, 0, 1, 0, 1, 0, 2]);
        }
        if self.enhanced_refresh {
            capabilities.extend([70, 0]);
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

    /// Next hops of IPv6 routes, and of IPv4 routes without an IPv4 one.
    fn over_ipv6(self) -> Option<(IpAddr, Option<Ipv6Addr>)> {
        let Local { v4: _, v6, link_local } = self.local;
        Some((IpAddr::V6(v6.or(link_local)?), link_local))
    }

    fn next_hops(self, prefix: &IpNet) -> Option<(IpAddr, Option<Ipv6Addr>)> {
        match prefix {
            IpNet::V4(_) => {
                let own = self.local.v4.map(|v4| (IpAddr::V4(v4), None));
                own.or_else(|| self.over_ipv6().filter(|_| self.extended_next_hop))
            }
            IpNet::V6(_) => self.over_ipv6().filter(|_| self.ipv6),
        }
    }

    /// What the router must have learned of these routes.
    fn expected(self, wanted: &Wanted) -> BTreeMap<IpNet, Learned> {
        let own = match (self.internal, self.four_octet_as) {
            (true, _) => vec![],
            (false, false) if self.local_asn > 65535 => vec![23456],
            (false, _) => vec![self.local_asn],
        };
        wanted
            .iter()
            .filter_map(|(prefix, attributes)| {
                let (next_hop, link_local) = self.next_hops(prefix)?;
                let count = 1 + usize::from(attributes.as_path_prepend);
                let learned = Learned {
                    next_hop,
                    link_local,
                    as_path: own.repeat(count),
                    as4_path: (own == [23456]).then(|| vec![self.local_asn; count]),
                    med: attributes.med,
                    local_pref: self.internal.then(|| attributes.local_pref.unwrap_or(100)),
                    communities: attributes.communities.clone(),
                    extended_communities: attributes.extended_communities.clone(),
                    large_communities: attributes.large_communities.clone(),
                };
                Some((*prefix, learned))
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
        router.perform(&session.handle(Event::Connected(self.local), now));
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

/// All that waits, in pieces that the room allows.
fn transmit(session: &mut Session, router: &mut Router, now: Instant, room: usize) {
    let mut pieces = 0;
    while session.has_updates() {
        let bytes = session.transmit(now, room);
        assert!(!bytes.is_empty() && bytes.len() <= room, "{} octets", bytes.len());
        router.read(&bytes);
        pieces += 1;
        assert!(pieces < 10_000, "it comes to an end");
    }
}

const WINDOW: usize = 64 * 1024;

/// The n-th host route of a family.
type Host = fn(u32) -> IpNet;

fn many(count: u32, prefix: impl Fn(u32) -> IpNet) -> Changes {
    let attributes = Arc::new(Attributes::default());
    (0..count).map(|host| (prefix(host), Some(Arc::clone(&attributes)))).collect()
}

fn v4(host: u32) -> IpNet {
    IpNet::V4(Ipv4Net::from(Ipv4Addr::from_bits(0x0a00_0000 + host)))
}

fn v6(host: u32) -> IpNet {
    let base = u128::from(0x2001_0db8_u32) << 96;
    IpNet::V6(Ipv6Net::from(Ipv6Addr::from_bits(base + u128::from(host))))
}

fn withdrawn(changes: &Changes) -> Changes {
    changes.keys().map(|prefix| (*prefix, None)).collect()
}

/// 5 octets an IPv4 host route and 17 an IPv6 one: the messages are as full as they can be, also
/// where the connection takes 64 KiB at a time.
#[test]
fn many_routes_take_few_messages() {
    let now = some_time();
    let cases: [(u32, Host, usize); 6] = [
        (1_000, v4, 2),
        (10_000, v4, 13),
        (100_000, v4, 124),
        (1_000, v6, 5),
        (10_000, v6, 43),
        (100_000, v6, 425),
    ];
    for (count, prefix, most) in cases {
        let mut session = PLAIN.session();
        session.handle(Event::Start, now);
        let wanted = many(count, prefix);
        session.handle(Event::Routes(wanted.clone()), now);
        session.handle(Event::Complete, now);
        let mut router = PLAIN.connect(&mut session, now);
        transmit(&mut session, &mut router, now, WINDOW);
        let count = router.table.len();
        assert_eq!(count, wanted.len());
        assert!(router.updates - 2 <= most, "{} messages announce {count}", router.updates);
        let ends = [(Family::Ipv4Unicast, count), (Family::Ipv6Unicast, count)];
        assert_eq!(router.end_of_rib, ends);
        // One more, one fewer: two small messages.
        let later = now + Duration::from_secs(1);
        let (first, _) = wanted.first_key_value().unwrap();
        let mut changes = many(1, |_| "203.0.113.1/32".parse().unwrap());
        changes.insert(*first, None);
        router.updates = 0;
        session.handle(Event::Routes(changes), later);
        transmit(&mut session, &mut router, later, WINDOW);
        assert_eq!(router.updates, 2);
        // Half of them by changes, the rest with the session.
        let later = now + Duration::from_secs(2);
        let mut half = withdrawn(&wanted);
        half.split_off(wanted.keys().nth(count / 2).unwrap());
        router.updates = 0;
        session.handle(Event::Routes(half), later);
        transmit(&mut session, &mut router, later, WINDOW);
        let reason = StopReason::AdministrativeShutdown { text: None };
        router.perform(&session.handle(Event::Stop { reason }, later));
        assert!(router.updates <= most + 2, "{} messages withdraw {count}", router.updates);
        assert_eq!(router.table.len(), 0);
    }
}

#[test]
fn a_thousand_withdrawals_take_two_messages() {
    let now = some_time();
    let mut session = PLAIN.session();
    session.handle(Event::Start, now);
    let wanted = many(1_000, v4);
    session.handle(Event::Routes(wanted.clone()), now);
    let mut router = PLAIN.connect(&mut session, now);
    transmit(&mut session, &mut router, now, WINDOW);
    router.updates = 0;
    let now = now + Duration::from_secs(1);
    session.handle(Event::Routes(withdrawn(&wanted)), now);
    transmit(&mut session, &mut router, now, WINDOW);
    assert_eq!((router.updates, router.table.len()), (2, 0));
}

/// However often its routes change meanwhile, a router that was frozen hears how they ended.
#[test]
fn a_frozen_router_gets_the_final_state() {
    let now = some_time();
    let mut session = PLAIN.session();
    session.handle(Event::Start, now);
    session.handle(Event::Routes(many(10_000, v4)), now);
    let mut router = PLAIN.connect(&mut session, now);
    transmit(&mut session, &mut router, now, WINDOW);
    router.updates = 0;
    let mut last = Changes::new();
    for round in 0..10 {
        let attributes = Arc::new(Attributes { med: Some(round), ..Attributes::default() });
        let flap = |host: u32| (host % 3 != round % 3).then(|| Arc::clone(&attributes));
        last = (0..10_000).map(|host| (v4(host), flap(host))).collect();
        session.handle(Event::Routes(last.clone()), now);
    }
    let now = now + Duration::from_secs(1);
    session.handle_timeout(now);
    transmit(&mut session, &mut router, now, WINDOW);
    let wanted: Wanted = last.into_iter().filter_map(|(p, a)| Some((p, a?))).collect();
    assert_eq!(router.table, PLAIN.expected(&wanted));
    assert!(router.updates <= 5 + 9, "{} messages", router.updates);
}

fn a_prefix() -> impl Strategy<Value = IpNet> {
    // Few addresses, so that routes do come back, and host bits that must not matter.
    let v4 = (0..6u32, 24..=32u8).prop_map(|(host, length)| {
        IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + host), length).unwrap())
    });
    let v6 = (0..6u16, prop::sample::select(vec![48, 64, 127, 128])).prop_map(|(host, length)| {
        let address = Ipv6Addr::new(0x2001, 0xdb8, host, 0, 0, 0, 0, host);
        IpNet::V6(Ipv6Net::new(address, length).unwrap())
    });
    prop_oneof![v4, v6]
}

/// Two-octet and four-octet AS and address specific ones, and opaque ones: those that the codec
/// writes as it read them.
fn an_extended_community() -> impl Strategy<Value = u64> {
    let kinds = prop::sample::select(vec![0x0002_u64, 0x0003, 0x0102, 0x0103, 0x0202, 0x4004]);
    (kinds, 0..4u64).prop_map(|(kind, value)| (kind << 48) | (64512 << 32) | value)
}

/// Mostly one of two, so that what is wanted again is what was sent.
fn attributes() -> impl Strategy<Value = Arc<Attributes>> {
    let few =
        (0..2u32).prop_map(|med| Arc::new(Attributes { med: Some(med), ..Attributes::default() }));
    prop_oneof![2 => few, 1 => any_attributes()]
}

fn any_attributes() -> impl Strategy<Value = Arc<Attributes>> {
    (
        prop::option::of(99..102u32),
        prop::option::weighted(0.2, 0..2u32),
        prop_oneof![4 => Just(0u8), 1 => 0..4u8, 1 => Just(255u8)],
        prop::collection::btree_set(0..4u32, 0..3),
        prop::collection::btree_set(an_extended_community(), 0..2),
        prop::collection::btree_set((0..2u32, 0..2u32, Just(7)), 0..3),
    )
        .prop_map(|(local_pref, med, as_path_prepend, communities, extended, large)| {
            Arc::new(Attributes {
                local_pref,
                med,
                as_path_prepend,
                communities,
                extended_communities: extended,
                large_communities: large,
            })
        })
}

#[derive(Debug, Clone)]
enum Step {
    Change(Changes),
    Complete,
    Refresh(u8),
    Reconnect,
    /// One piece of what waits; the room is small.
    Transmit(usize),
    Wait(u64),
}

fn a_step() -> impl Strategy<Value = Step> {
    let change = (a_prefix(), prop::option::weighted(0.7, attributes()));
    prop_oneof![
        8 => prop::collection::btree_map(a_prefix(), prop::option::weighted(0.7, attributes()), 0..12)
            .prop_map(Step::Change),
        4 => change.prop_map(|change| Step::Change(Changes::from([change]))),
        2 => Just(Step::Complete),
        2 => (1..3u8).prop_map(Step::Refresh),
        1 => Just(Step::Reconnect),
        6 => (0..200usize).prop_map(Step::Transmit),
        2 => Just(Step::Transmit(WINDOW)),
        4 => (0..15u64).prop_map(Step::Wait),
    ]
}

fn a_peer() -> impl Strategy<Value = PeerKind> {
    let local =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(v4, v6, link_local)| Local {
            v4: v4.then_some(NEXT_HOP_V4),
            v6: v6.then_some(NEXT_HOP_V6),
            link_local: link_local.then_some(LINK_LOCAL),
        });
    (any::<[bool; 5]>(), local, prop::sample::select(vec![64512, 4_200_000_001])).prop_map(
        |([internal, four, ipv6, extended_next_hop, enhanced], local, local_asn)| {
            PeerKind {
                internal,
                // Inside one AS a peer that cannot write its own number does not come up.
                four_octet_as: four || internal,
                ipv6,
                extended_next_hop,
                enhanced_refresh: enhanced,
                local,
                local_asn,
            }
        },
    )
}

proptest! {
    /// The slow model is a map of what is wanted.
    #[test]
    fn the_router_ends_with_the_wanted_routes(
        peer in a_peer(),
        steps in prop::collection::vec(a_step(), 0..40),
        room in prop::sample::select(vec![4096, WINDOW]),
    ) {
        let mut now = some_time();
        let mut session = peer.session();
        session.handle(Event::Start, now);
        let mut router = peer.connect(&mut session, now);
        let mut wanted = Wanted::new();
        let mut complete = false;
        let mut refreshes = BTreeSet::new();
        for step in steps {
            match step {
                Step::Change(changes) => {
                    for (prefix, change) in &changes {
                        match change {
                            Some(attributes) => {
                                wanted.insert(prefix.trunc(), Arc::clone(attributes));
                            }
                            None => {
                                wanted.remove(&prefix.trunc());
                            }
                        }
                    }
                    router.perform(&session.handle(Event::Routes(changes), now));
                }
                Step::Complete => {
                    complete = true;
                    router.perform(&session.handle(Event::Complete, now));
                }
                Step::Refresh(afi) => {
                    refreshes.insert(afi);
                    let request = message(5, &[0, afi, 0, 1]);
                    router.perform(&session.handle(Event::Received(&request), now));
                }
                Step::Reconnect => {
                    refreshes.clear();
                    session.handle(Event::Closed, now);
                    now = session.poll_timeout().unwrap();
                    session.handle_timeout(now);
                    router = peer.connect(&mut session, now);
                }
                Step::Transmit(room) => {
                    let bytes = session.transmit(now, room);
                    prop_assert!(bytes.len() <= room);
                    router.read(&bytes);
                }
                Step::Wait(milliseconds) => {
                    now += Duration::from_millis(milliseconds);
                    router.perform(&session.handle_timeout(now));
                }
            }
        }
        now += Duration::from_millis(10);
        router.perform(&session.handle_timeout(now));
        transmit(&mut session, &mut router, now, room);
        let expected = peer.expected(&wanted);
        prop_assert_eq!(session.stats().advertised_prefixes, expected.len());
        prop_assert_eq!(session.stats().wanted_prefixes, wanted.len());
        prop_assert_eq!(&router.table, &expected);
        prop_assert!(router.refreshing.is_empty());
        let asked = refreshes.iter().filter(|afi| peer.ipv6 || **afi == 1).count();
        prop_assert!(!complete || !peer.enhanced_refresh || router.refreshed >= asked);
        let announced = if complete { peer.families() } else { vec![] };
        let ended: Vec<Family> = router.end_of_rib.iter().map(|(family, _)| *family).collect();
        prop_assert_eq!(ended, announced, "once a family, and only when all is known");
        let held_back: BTreeSet<IpNet> = session.held_back().into_keys().collect();
        let missing: BTreeSet<IpNet> =
            wanted.into_keys().filter(|prefix| !expected.contains_key(prefix)).collect();
        prop_assert_eq!(held_back, missing);
    }
}
