use std::time::Duration;

use config::{BfdAuthentication, Password, Resources, TcpAo, TcpAoAlgorithm};
use serde_json::{Value, json};

use super::*;
use crate::{
    fixture::{meta, node, object, parse, resources, service, slice},
    plan::Options,
    planner::{Event, PlannerConfig},
    view::DRAIN_ANNOTATION,
};

fn spec() -> SessionSpec {
    let config = parse(resources(), &[]);
    SessionSpec {
        peer: config.peers["tor"].clone(),
        router_id: Ipv4Addr::new(10, 0, 0, 1),
        bfd: None,
    }
}

fn profile(interval: u64) -> BfdProfile {
    BfdProfile {
        name: "fast".to_owned(),
        receive_interval: Duration::from_millis(interval),
        transmit_interval: Duration::from_millis(interval),
        detect_multiplier: 3,
        echo_interval: Duration::from_millis(50),
        echo_mode: false,
        passive_mode: false,
        minimum_ttl: 254,
        authentication: Some(BfdAuthentication {
            kind: config::BfdAuthenticationKind::KeyedSHA1,
            key_id: 1,
            key: Password("x".to_owned()),
        }),
    }
}

/// What is altered, how, and what that needs.
type Row = (&'static str, fn(&mut SessionSpec), Change);

#[test]
fn each_field_needs_what_it_needs() {
    use Change::{Attributes, Bfd, Nothing, Reset, Timers};
    let reset = Reset("");
    let rows: [Row; 29] = [
        ("nothing", |_| {}, Nothing),
        ("nodes", |s| s.peer.nodes.clear(), Nothing),
        ("routerID of the same value", |s| s.peer.router_id = Some(s.router_id), Nothing),
        ("name of the profile", |s| s.peer.bfd_profile = Some("x".to_owned()), Nothing),
        ("localPref", |s| s.peer.local_pref = Some(7), Attributes),
        ("med", |s| s.peer.med = Some(7), Attributes),
        ("asPathPrepend", |s| s.peer.as_path_prepend = 7, Attributes),
        ("bfdStrict", |s| s.peer.bfd_strict = false, Bfd),
        ("BFD begins", |s| s.bfd = Some(profile(10)), Bfd),
        ("holdTime", |s| s.peer.hold_time = Duration::from_secs(9), Timers),
        ("keepaliveTime", |s| s.peer.keepalive_time = Duration::from_secs(9), Timers),
        ("connectTime", |s| s.peer.connect_time = Some(Duration::from_secs(9)), Timers),
        (
            "minAdvertisementInterval",
            |s| s.peer.min_advertisement_interval = Duration::from_secs(9),
            Timers,
        ),
        ("gracefulRestartTime", |s| s.peer.restart_time = Duration::from_secs(9), Timers),
        (
            "timers and attributes",
            |s| (s.peer.med, s.peer.hold_time) = (Some(7), Duration::from_secs(9)),
            Timers,
        ),
        ("myASN", |s| s.peer.my_asn = 7, reset),
        ("peerASN", |s| s.peer.peer_asn = PeerAsn::External, reset),
        ("localASN", |s| s.peer.local_asn = Some(7), reset),
        ("peerAddress", |s| s.peer.address = PeerAddress::Interface("x".to_owned()), reset),
        ("peerPort", |s| s.peer.port = 7, reset),
        ("sourceAddress", |s| s.peer.source_address = Some(s.router_id.into()), reset),
        ("vrf", |s| s.peer.vrf = Some("red".to_owned()), reset),
        ("router ID", |s| s.router_id = Ipv4Addr::new(10, 0, 0, 2), reset),
        ("password", |s| s.peer.password = Some(Password("x".to_owned())), reset),
        (
            "tcpAO",
            |s| {
                let algorithm = TcpAoAlgorithm::HmacSha1;
                s.peer.tcp_ao = Some(TcpAo { send_id: 1, receive_id: 1, algorithm });
            },
            reset,
        ),
        ("ebgpMultiHop", |s| s.peer.ebgp_multi_hop = true, reset),
        ("ttlSecurityHops", |s| s.peer.ttl_security_hops = Some(1), reset),
        ("passive", |s| s.peer.passive = true, reset),
        ("dualStackAddressFamily", |s| s.peer.dual_stack_address_family = true, reset),
    ];
    let plain = |change| if let Reset(_) = change { reset } else { change };
    for (field, alter, expected) in rows {
        let (old, mut new) = (spec(), spec());
        alter(&mut new);
        assert_eq!(plain(change(&old, &new)), expected, "{field}");
        assert_eq!(plain(change(&new, &old)), expected, "{field} back");
    }
    let (mut old, mut new) = (spec(), spec());
    (old.bfd, new.bfd) = (Some(profile(10)), Some(profile(20)));
    assert_eq!(change(&old, &new), Bfd);
    new.peer.graceful_restart = true;
    assert_eq!(plain(change(&old, &new)), reset);
}

#[test]
fn what_a_peer_says_is_what_its_session_is() {
    let mut spec = spec();
    assert_eq!(spec.session_config().mode, bgp::Mode::Active);
    assert_eq!(spec.session_config().families, [bgp::Family::Ipv4Unicast].into());
    spec.peer.passive = true;
    spec.peer.local_asn = Some(7);
    spec.peer.address = PeerAddress::Interface("eth1".to_owned());
    spec.peer.min_advertisement_interval = Duration::from_secs(5);
    let config = spec.session_config();
    assert_eq!((config.mode, config.local_asn), (bgp::Mode::Passive, 7));
    assert!(config.extended_next_hop && config.families.len() == 2);
    assert_eq!(config.min_advertisement_interval, Duration::from_secs(5));
}

const DRAIN_TIME: Duration = Duration::from_secs(5);

struct Speaker {
    planner: Planner,
    now: Instant,
    resources: Resources,
}

impl Speaker {
    /// One that announces Service `a` to the peer `tor`.
    fn new(ad: Value) -> (Self, Vec<Action>) {
        let mut resources = resources();
        let mut spec = ad;
        spec["ipAddressPools"] = json!(["routed"]);
        resources.bgp_advertisements[0].spec = object(spec);
        let planner = Planner::new(PlannerConfig {
            me: "n1".into(),
            heartbeat: None,
            options: Options::default(),
            bgp_drain_time: DRAIN_TIME,
        });
        let mut speaker = Self { planner, now: Instant::now(), resources };
        speaker.node(&json!({}));
        let all = Event::Resources(Box::new(speaker.resources.clone()));
        speaker.planner.handle(all, speaker.now);
        let applied = service("a", &["203.0.113.7"], &json!({}));
        speaker.planner.handle(Event::ServiceApplied(Box::new(applied)), speaker.now);
        speaker.planner.handle(Event::SliceApplied(Box::new(slice("a", &["n2"]))), speaker.now);
        speaker.planner.handle(Event::Synced, speaker.now);
        let actions = speaker.settle();
        (speaker, actions)
    }

    fn node(&mut self, more: &Value) -> Vec<Action> {
        let node = node("n1", "10.0.0.1", more);
        self.planner.handle(Event::NodeApplied(Box::new(node)), self.now);
        self.settle()
    }

    fn drain(&mut self, drain: bool) -> Vec<Action> {
        let annotations = if drain { json!({ DRAIN_ANNOTATION: "true" }) } else { json!({}) };
        self.node(&json!({"metadata": {"annotations": annotations}}))
    }

    fn endpoints(&mut self, nodes: &[&str]) -> Vec<Action> {
        let slice = slice("a", nodes);
        self.planner.handle(Event::SliceApplied(Box::new(slice)), self.now);
        self.settle()
    }

    fn change(&mut self, change: impl FnOnce(&mut Resources)) -> Vec<Action> {
        change(&mut self.resources);
        let all = Event::Resources(Box::new(self.resources.clone()));
        self.planner.handle(all, self.now);
        self.settle()
    }

    fn settle(&mut self) -> Vec<Action> {
        let actions = self.planner.handle_timeout(self.now);
        assert!(self.planner.poll_timeout().is_none_or(|due| due > self.now), "all is done");
        actions
    }

    /// Goes to the next deadline.
    fn wait(&mut self) -> (Duration, Vec<Action>) {
        let due = self.planner.poll_timeout().unwrap();
        let waited = due - self.now;
        self.now = due;
        (waited, self.settle())
    }
}

/// What is said to sessions, a line each.
fn said(actions: &[Action]) -> Vec<String> {
    let mut lines = Vec::new();
    for action in actions {
        match action {
            Action::OpenSession(spec) => lines.push(format!("open {}", spec.peer.name)),
            Action::UpdateSession(spec) => lines.push(format!("update {}", spec.peer.name)),
            Action::CloseSession { peer, reason } => lines.push(format!("close {peer} {reason:?}")),
            Action::Complete => lines.push("complete".to_owned()),
            Action::Advertise { peer, changes } => {
                lines.extend(changes.iter().map(|(prefix, to)| match to {
                    None => format!("{peer} -{prefix}"),
                    Some(to) => format!("{peer} +{prefix} {:x?}", to.communities),
                }));
            }
            Action::Wanted(_)
            | Action::ServiceStatus { .. }
            | Action::Note(_)
            | Action::ConfigErrors(_) => {}
        }
    }
    lines
}

const ANNOUNCED: &str = "tor +203.0.113.7/32 {}";
const WITHDRAWN: &str = "tor -203.0.113.7/32";

#[test]
fn all_is_said_and_then_that_it_is_all() {
    let (mut speaker, actions) = Speaker::new(json!({}));
    assert_eq!(said(&actions), ["open tor", ANNOUNCED, "complete"]);
    // Without a timer between the event and the withdrawal.
    assert_eq!(said(&speaker.endpoints(&[])), [WITHDRAWN]);
    assert_eq!(said(&speaker.endpoints(&["n2"])), [ANNOUNCED]);
    assert_eq!(said(&speaker.endpoints(&["n1", "n2"])), [""; 0]);
}

#[test]
fn the_last_local_endpoint_withdraws_in_the_same_turn() {
    let (mut speaker, _) = Speaker::new(json!({}));
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let local = service("a", &["203.0.113.7"], &local);
    speaker.planner.handle(Event::ServiceApplied(Box::new(local)), speaker.now);
    assert_eq!(said(&speaker.settle()), [WITHDRAWN]);
    assert_eq!(said(&speaker.endpoints(&["n1", "n1", "n2"])), [ANNOUNCED]);
    assert_eq!(said(&speaker.endpoints(&["n1", "n2"])), [""; 0]);
    assert_eq!(said(&speaker.endpoints(&["n2"])), [WITHDRAWN]);
    speaker.endpoints(&["n1"]);
    let gone = Event::SliceDeleted { namespace: "default".into(), name: "a-x".into() };
    speaker.planner.handle(gone, speaker.now);
    assert_eq!(said(&speaker.settle()), [WITHDRAWN]);
}

#[test]
fn a_change_of_a_peer_does_what_it_needs_and_no_more() {
    let (mut speaker, _) = Speaker::new(json!({}));
    let other = object(json!({"metadata": meta("other"), "spec": {
        "myASN": 64_999, "peerASN": 64_512, "peerAddress": "10.1.0.2", "routerID": "10.9.9.9"}}));
    let added = speaker.change(|all| all.bgp_peers.push(other));
    assert_eq!(said(&added), ["open other", "other +203.0.113.7/32 {}"]);
    let timers = speaker.change(|all| all.bgp_peers[0].spec.hold_time = Some("9s".into()));
    assert_eq!(said(&timers), ["update tor"]);
    let attributes = speaker.change(|all| all.bgp_peers[0].spec.med = Some(7));
    assert_eq!(said(&attributes), [ANNOUNCED], "with another MED");
    let communities =
        speaker.change(|all| all.bgp_advertisements[0].spec.communities = vec!["1:1".to_owned()]);
    assert_eq!(
        said(&communities),
        ["other +203.0.113.7/32 {10001}", "tor +203.0.113.7/32 {10001}"]
    );
    let port = speaker.change(|all| all.bgp_peers[0].spec.peer_port = 1179);
    assert_eq!(said(&port), ["open tor", "tor +203.0.113.7/32 {10001}"]);
    let gone = speaker.change(|all| drop(all.bgp_peers.remove(0)));
    assert_eq!(said(&gone), ["close tor PeerDeconfigured"]);
}

#[test]
fn a_changed_bfd_profile_is_told_to_the_sessions_that_have_it() {
    let (mut speaker, _) = Speaker::new(json!({}));
    let profile = |interval: u32| {
        object(json!({"metadata": meta("fast"), "spec": {"receiveInterval": interval}}))
    };
    let begun = speaker.change(|all| {
        all.bfd_profiles.push(profile(10));
        all.bgp_peers[0].spec.bfd_profile = Some("fast".to_owned());
    });
    assert_eq!(said(&begun), ["update tor"]);
    let changed = speaker.change(|all| all.bfd_profiles[0] = profile(20));
    let [Action::UpdateSession(spec)] = &changed[..] else { panic!("{changed:?}") };
    assert_eq!(spec.bfd.as_ref().unwrap().receive_interval, Duration::from_millis(20));
}

#[test]
fn of_two_peers_in_one_place_the_first_runs() {
    let (mut speaker, _) = Speaker::new(json!({}));
    let same = object(json!({"metadata": meta("same"), "spec": {
        "myASN": 64_513, "peerASN": 64_512, "peerAddress": "10.1.0.1"}}));
    let actions = speaker.change(|all| all.bgp_peers.push(same));
    assert_eq!(said(&actions), [""; 0]);
    let errors = actions.iter().find_map(|action| match action {
        Action::ConfigErrors(errors) => Some(errors),
        _ => None,
    });
    let error = errors.unwrap()[0].to_string();
    assert!(error.contains("\"same\"") && error.contains("BGPPeer \"tor\" already"), "{error}");
}

#[test]
fn an_unnumbered_peer_has_a_session() {
    let (mut speaker, _) = Speaker::new(json!({}));
    let unnumbered = object(json!({"metadata": meta("port"), "spec": {
        "myASN": 64_513, "dynamicASN": "external", "interface": "eth1"}}));
    let actions = speaker.change(|all| all.bgp_peers.push(unnumbered));
    assert_eq!(said(&actions), ["open port", "port +203.0.113.7/32 {}"]);
}

#[test]
fn a_drained_node_says_so_waits_and_goes() {
    let (mut speaker, _) = Speaker::new(json!({}));
    assert_eq!(said(&speaker.drain(true)), ["tor +203.0.113.7/32 {ffff0000}"]);
    let second = service("b", &["203.0.113.8"], &json!({}));
    speaker.planner.handle(Event::ServiceApplied(Box::new(second)), speaker.now);
    speaker.planner.handle(Event::SliceApplied(Box::new(slice("b", &["n1"]))), speaker.now);
    assert_eq!(said(&speaker.settle()), ["tor +203.0.113.8/32 {ffff0000}"]);
    let (waited, actions) = speaker.wait();
    assert_eq!(waited, DRAIN_TIME);
    let closed = "close tor AdministrativeShutdown { text: Some(\"node is drained\") }";
    assert_eq!(said(&actions), [WITHDRAWN, "tor -203.0.113.8/32", closed]);
    let bgp = |action: &Action| match action {
        Action::ServiceStatus { status, .. } => Some(status.bgp.is_some()),
        _ => None,
    };
    assert_eq!(actions.iter().filter_map(bgp).collect::<Vec<_>>(), [false, false]);
    assert_eq!(said(&speaker.endpoints(&[])), [""; 0]);
    assert_eq!(said(&speaker.endpoints(&["n1"])), [""; 0]);
    let actions = speaker.drain(false);
    assert_eq!(said(&actions), ["open tor", ANNOUNCED, "tor +203.0.113.8/32 {}"]);
    assert_eq!(actions.iter().filter_map(bgp).collect::<Vec<_>>(), [true, true]);
}

#[test]
fn a_drain_that_is_taken_back_closes_nothing() {
    let (mut speaker, _) = Speaker::new(json!({}));
    speaker.drain(true);
    speaker.now += DRAIN_TIME / 2;
    assert_eq!(said(&speaker.drain(false)), [ANNOUNCED]);
    assert_eq!(speaker.planner.bgp.due(), None);
}

#[test]
fn a_drained_node_that_announces_nothing_goes_at_once() {
    let (mut speaker, _) = Speaker::new(json!({}));
    speaker.endpoints(&[]);
    assert_eq!(said(&speaker.drain(true)).len(), 1);
    assert_eq!(speaker.planner.bgp.due(), None);
}

#[test]
fn routes_that_come_and_go_are_held_back_and_come_again() {
    let (mut speaker, _) = Speaker::new(json!({"damping": true}));
    for _ in 0..3 {
        assert_eq!(said(&speaker.endpoints(&[])), [WITHDRAWN]);
        assert_eq!(said(&speaker.endpoints(&["n1"])), [ANNOUNCED]);
    }
    assert_eq!(said(&speaker.endpoints(&[])), [WITHDRAWN], "never late");
    assert_eq!(said(&speaker.endpoints(&["n1"])), [""; 0]);
    assert_eq!(said(&speaker.endpoints(&["n1", "n2"])), [""; 0]);
    let (waited, actions) = speaker.wait();
    assert_eq!(waited, Duration::from_secs(120));
    assert_eq!(said(&actions), [ANNOUNCED]);
    let (mut undamped, _) = Speaker::new(json!({}));
    for _ in 0..9 {
        assert_eq!(said(&undamped.endpoints(&[])), [WITHDRAWN]);
        assert_eq!(said(&undamped.endpoints(&["n1"])), [ANNOUNCED]);
    }
}

#[test]
fn the_last_announcement_stays_until_the_service_goes() {
    let (mut speaker, _) = Speaker::new(json!({"keepLastAnnouncement": true}));
    assert_eq!(said(&speaker.endpoints(&[])), [""; 0]);
    let key = ServiceKey::new("default", "a");
    speaker.planner.handle(Event::ServiceDeleted(key), speaker.now);
    assert_eq!(said(&speaker.settle()), [WITHDRAWN]);
}
