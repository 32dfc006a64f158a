use std::{net::Ipv4Addr, sync::Arc};

use bfd::State;
use bgp::{Negotiated, Notification, Stats};
use config::Password;

use super::*;
use crate::{
    fixture::{parse, resources},
    io::bfd::BfdStatus,
    planner::SessionSpec,
};

const ME: &str = "n1";
const PASSWORD: &str = "tr0ub4dor";

fn peer() -> PeerName {
    "tor".into()
}

/// Of a session that connects for the first time.
pub fn view(since: Instant) -> SessionView {
    let config = parse(resources(), &[]);
    let mut peer = config.peers["tor"].clone();
    peer.password = Some(Password(PASSWORD.to_owned()));
    let spec = SessionSpec { peer, router_id: Ipv4Addr::new(10, 0, 0, 1), bfd: None };
    SessionView {
        spec: Arc::new(spec),
        state: StateKind::Connect,
        since,
        stats: Stats::default(),
        negotiated: None,
        gate: BfdGate::Open,
        bfd: None,
        held_back: None,
        problem: None,
    }
}

pub fn establish(view: &mut SessionView, since: Instant) {
    view.state = StateKind::Established;
    (view.since, view.stats.established_since) = (since, Some(since));
    view.stats.established += 1;
    view.problem = None;
    view.negotiated = Some(Negotiated {
        peer_asn: 64_512,
        peer_router_id: Ipv4Addr::new(10, 1, 0, 1),
        hold_time: Duration::from_secs(9),
        keepalive_time: Duration::from_secs(3),
        families: [Family::Ipv4Unicast].into(),
        four_octet_as: true,
        route_refresh: false,
        enhanced_route_refresh: false,
        extended_next_hop: false,
        graceful_restart: None,
    });
}

pub fn lose(view: &mut SessionView, since: Instant, reason: ResetReason) {
    view.state = StateKind::Idle;
    (view.since, view.stats.established_since) = (since, None);
    view.stats.flaps += 1;
    view.stats.last_reset = Some(reason.clone());
    view.stats.last_loss = Some(reason);
    view.negotiated = None;
}

fn shutdown() -> ResetReason {
    ResetReason::NotificationReceived(Notification { code: 6, subcode: 2, data: Vec::new() })
}

fn moment(instant: Instant) -> Moment {
    Moment { instant, time: Timestamp::from_second(1000).unwrap() }
}

fn told(view: &SessionView, now: Instant) -> SessionTold {
    SessionTold::of(ME, &peer(), view, None, moment(now))
}

/// Type, status and reason of each.
fn conditions_of(view: &SessionView) -> String {
    let told = told(view, view.since);
    let words = told.status.conditions.iter();
    words.map(|c| format!("{}={}/{}", c.type_, c.status, c.reason)).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_session_is_told_with_what_was_agreed_on() {
    let start = Instant::now();
    let mut view = view(start);
    establish(&mut view, start + Duration::from_secs(5));
    view.stats.advertised_prefixes = 2;
    (view.stats.received_prefixes, view.stats.received_withdrawals) = (5, 1);
    view.stats.sent.keepalive = 7;
    let status = told(&view, start + Duration::from_secs(65)).status;
    let date = Time(Timestamp::from_second(940).unwrap());
    assert_eq!(status.since, Some(date), "in the API's clock");
    assert_eq!((status.node.as_deref(), status.peer.as_deref()), (Some("n1"), Some("tor")));
    assert_eq!(status.bgp_status.as_deref(), Some("Established"));
    assert_eq!(status.bfd_status.as_deref(), Some("N/A"));
    assert_eq!((status.local_asn, status.peer_asn), (Some(64_513), Some(64_512)));
    assert_eq!(status.peer_address.as_deref(), Some("10.1.0.1"));
    assert_eq!(status.router_id.as_deref(), Some("10.0.0.1"));
    assert_eq!(status.peer_router_id.as_deref(), Some("10.1.0.1"));
    assert_eq!(status.hold_time.unwrap().as_str(), "9s");
    assert_eq!(status.keepalive_time.unwrap().as_str(), "3s");
    assert_eq!(status.families, ["IPv4 unicast"]);
    assert_eq!(status.capabilities, ["IPv4 unicast", "four-octet AS numbers"]);
    assert_eq!(status.prefixes, Some(BGPPrefixCounts { sent: 2, received: 4 }));
    assert_eq!(status.messages.unwrap().sent.keepalive, 7);
}

#[test]
fn why_it_was_lost_stays_while_nobody_answers() {
    let start = Instant::now();
    let mut view = view(start);
    establish(&mut view, start);
    lose(&mut view, start, shutdown());
    let words = "the peer ended the session: Cease: Administrative Shutdown (6/2)";
    for (reset, expected) in [
        (shutdown(), words),
        (ResetReason::ConnectFailed, words),
        (ResetReason::ConnectTimedOut, words),
        (ResetReason::BfdDown, "BFD lost the peer"),
    ] {
        view.stats.last_reset = Some(reset);
        let status = told(&view, start).status;
        assert_eq!(status.last_reset.as_deref(), Some(expected));
        assert_eq!(status.conditions[0].message, expected);
    }
    view.stats = Stats { last_reset: Some(ResetReason::ConnectFailed), ..Stats::default() };
    let status = told(&view, start).status;
    assert_eq!(status.last_reset.as_deref(), Some("the peer could not be connected"));
}

#[test]
fn what_is_wrong_is_a_condition() {
    let start = Instant::now();
    let new = view(start);
    let mut up = new.clone();
    establish(&mut up, start);
    let with = |of: &SessionView, change: &dyn Fn(&mut SessionView)| {
        let mut view = of.clone();
        change(&mut view);
        conditions_of(&view)
    };
    let up_is = |more: &str| format!("Established=True/Established{more}");
    let new_is = |more: &str| format!("Established=False/NotYet{more}");
    assert_eq!(conditions_of(&new), new_is(""));
    assert_eq!(conditions_of(&up), up_is(""));
    assert_eq!(with(&up, &|v| lose(v, start, shutdown())), "Established=False/Lost");
    let refused = |v: &mut SessionView| {
        v.problem = Some("Connection refused".to_owned());
        v.stats.last_reset = Some(ResetReason::ConnectFailed);
    };
    assert_eq!(with(&new, &refused), new_is(" CannotConnect=True/ConnectFailed"));
    let silent = |v: &mut SessionView| v.stats.last_reset = Some(ResetReason::ConnectTimedOut);
    assert_eq!(with(&new, &silent), new_is(" CannotConnect=True/NoAnswer"));
    assert_eq!(with(&up, &silent), up_is(""), "it could after all");
    for (gate, more) in [
        (BfdGate::Waiting, " BfdNotUp=True/Waiting"),
        (BfdGate::Overdue, " BfdNotUp=True/Overdue"),
        (BfdGate::Open, ""),
    ] {
        assert_eq!(with(&up, &|v| v.gate = gate), up_is(more));
    }
    let unsendable = BfdStatus { problem: Some("no port".to_owned()), ..BfdStatus::default() };
    let no_bfd = with(&up, &|v| v.bfd = Some(unsendable.clone()));
    assert_eq!(no_bfd, up_is(" BfdNotUp=True/CannotSend"));
    let prefix: IpNet = "2001:db8::1/128".parse().unwrap();
    for (why, reason) in [
        (HeldBack::FamilyNotConfigured, "FamilyNotConfigured"),
        (HeldBack::FamilyNotNegotiated, "FamilyNotNegotiated"),
        (HeldBack::NoNextHop, "NoNextHop"),
        (HeldBack::AttributesTooLong, "AttributesTooLong"),
    ] {
        let held = with(&up, &|v| v.held_back = Some((3, prefix, why)));
        assert_eq!(held, up_is(&format!(" RoutesHeldBack=True/{reason}")));
    }

    let mut both = new;
    refused(&mut both);
    both.held_back = Some((3, prefix, HeldBack::NoNextHop));
    let conditions = told(&both, start).status.conditions;
    assert_eq!(
        conditions[1].message,
        "3 prefixes are not announced to this peer; of 2001:db8::1/128: this node has no address \
         of its family towards the peer that could be the next hop"
    );
    assert_eq!(conditions[2].message, "the peer at 10.1.0.1, port 179: Connection refused");
}

#[test]
fn times_stay_while_what_they_are_of_does() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let tell = |view: &SessionView, before: Option<&SessionTold>, seconds: u64| {
        let time = Timestamp::from_second(1000 + i64::try_from(seconds).unwrap()).unwrap();
        SessionTold::of(ME, &peer(), view, before, Moment { instant: at(seconds), time })
    };
    let mut view = view(start);
    let new = tell(&view, None, 0);
    // The node's clock is set meanwhile: what has not changed is not another.
    let odd = Moment { instant: at(5), time: Timestamp::from_second(9000).unwrap() };
    assert_eq!(SessionTold::of(ME, &peer(), &view, Some(&new), odd), new);

    view.state = StateKind::Idle;
    view.since = at(10);
    let idle = tell(&view, Some(&new), 10);
    let second = |time: &Option<Time>| time.as_ref().unwrap().0.as_second();
    assert_eq!((second(&idle.status.since), idle.takes.since.as_second()), (1010, 1000));
    assert_eq!(idle.takes, new.takes, "no other routes are taken");
    establish(&mut view, at(20));
    let up = tell(&view, Some(&idle), 21);
    assert_eq!((second(&up.status.since), up.takes.since.as_second()), (1020, 1020));
    let transition = |told: &SessionTold| told.status.conditions[0].last_transition_time.0;
    assert_eq!(transition(&idle).as_second(), 1000);
    assert_eq!(transition(&up).as_second(), 1021);

    // Lost and back between two looks.
    lose(&mut view, at(30), shutdown());
    establish(&mut view, at(31));
    let back = tell(&view, Some(&up), 32);
    assert_eq!((back.takes.since.as_second(), back.status.flaps), (1031, Some(1)));
}

#[test]
fn a_session_takes_what_it_can_send() {
    let start = Instant::now();
    let mut view = view(start);
    let v4: [IpNet; 2] = ["192.0.2.1/32", "192.0.2.2/32"].map(|text| text.parse().unwrap());
    let v6: IpNet = "2001:db8::1/128".parse().unwrap();
    let taken = |view: &SessionView| {
        let takes = told(view, start).takes;
        [&v4[0], &v4[1], &v6].map(|prefix| takes.prefix(prefix))
    };
    assert_eq!(taken(&view), [false; 3]);
    establish(&mut view, start);
    assert_eq!(taken(&view), [true, true, false]);
    view.negotiated.as_mut().unwrap().families.insert(Family::Ipv6Unicast);
    assert_eq!(taken(&view), [true; 3]);
    view.held_back = Some((9, v6, HeldBack::NoNextHop));
    assert_eq!(taken(&view), [true, true, false]);
    view.held_back = Some((1, v4[0], HeldBack::AttributesTooLong));
    assert_eq!(taken(&view), [false, true, true]);
    view.held_back = None;
    view.gate = BfdGate::Waiting;
    assert_eq!(taken(&view), [false; 3]);
    view.gate = BfdGate::Overdue;
    assert_eq!(taken(&view), [true; 3]);
}

#[test]
fn events_tell_of_changes_and_not_too_often() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut notes = SessionNotes::default();
    let mut view = view(start);
    let mut take = |view: &SessionView, seconds| {
        let told = notes.take(ME, &[(peer(), view.clone())].into(), at(seconds));
        let told: Vec<_> = told.into_iter().map(|note| (note.kind, note.text)).collect();
        (told, notes.poll_timeout().map(|due| due - start))
    };
    let session = "BGP session of node \"n1\" with 10.1.0.1";
    let reason = "the peer ended the session: Cease: Administrative Shutdown (6/2)";
    assert_eq!(take(&view, 0), (vec![], None), "that it is not there yet is nothing to tell");
    establish(&mut view, start);
    let up = (SessionNoteKind::Up, format!("{session} is Established"));
    assert_eq!(take(&view, 1), (vec![up], None));
    assert_eq!(take(&view, 2), (vec![], None));
    lose(&mut view, start, shutdown());
    let later = Some(Duration::from_secs(31));
    assert_eq!(take(&view, 3), (vec![], later), "not so soon");
    establish(&mut view, start);
    assert_eq!(take(&view, 4), (vec![], later));
    let text = format!(
        "{session} was lost and is Established again: {reason} (session 2 of this speaker)"
    );
    assert_eq!(take(&view, 31), (vec![(SessionNoteKind::Down, text)], None));
    lose(&mut view, start, shutdown());
    let text = format!("{session} was lost: {reason} (session 2 of this speaker)");
    assert_eq!(take(&view, 90), (vec![(SessionNoteKind::Down, text)], None));
    assert_eq!(take(&view, 91), (vec![], None));
    assert_eq!(notes.take(ME, &BTreeMap::new(), at(200)), []);
    assert!(notes.0.is_empty(), "a session that is gone is forgotten");
}

#[test]
fn no_password_is_told() {
    let start = Instant::now();
    let mut view = view(start);
    establish(&mut view, start);
    lose(&mut view, start, shutdown());
    view.problem = Some("Connection refused".to_owned());
    view.bfd = Some(BfdStatus { state: State::Init, ..BfdStatus::default() });
    let told = told(&view, start);
    let note = SessionNotes::default().take(ME, &[(peer(), view.clone())].into(), start);
    assert!(!note.is_empty());
    let status = serde_json::to_string(&told.status).unwrap();
    assert!(status.contains("\"bfdStatus\":\"Init\""), "{status}");
    for text in [status, format!("{told:?}"), format!("{note:?}"), format!("{view:?}")] {
        assert!(!text.contains(PASSWORD), "{text}");
    }
}
