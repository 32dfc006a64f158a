//! OPENs: ours, the peer's, and what both agree on.

use super::*;
use crate::{Family, GracefulRestart, NegotiatedRestart, Start};

#[test]
fn the_open_on_the_wire() {
    let now = some_time();
    let mut session = Session::new(config(), 1);
    drive(&mut session, Event::Start, now);
    let actions = drive(&mut session, connected(), now);
    let expected = [
        &[0xff; 16][..],
        &[0, 53, 1],
        &[4, 0xfc, 0x00, 0, 90, 192, 0, 2, 2, 24],
        &[2, 22],
        &[1, 4, 0, 1, 0, 1],
        &[1, 4, 0, 2, 0, 1],
        &[2, 0],
        &[65, 4, 0, 0, 0xfc, 0x00],
        &[70, 0],
    ]
    .concat();
    assert_eq!(actions, [Action::Send(expected), Action::StateChanged(StateKind::OpenSent)]);

    let four_octets = SessionConfig { local_asn: 4_200_000_001, ..config() };
    let mut session = Session::new(four_octets, 1);
    drive(&mut session, Event::Start, now);
    let actions = drive(&mut session, connected(), now);
    let [Action::Send(open), _] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(open[20..22], [0x5b, 0xa0], "AS_TRANS");
    assert_eq!(open[45..51], [65, 4, 0xfa, 0x56, 0xea, 0x01], "the AS number itself");
}

#[test]
fn both_encodings_of_optional_parameters_are_read() {
    let capabilities = [&MP_IPV4[..], &MP_IPV6, &[65, 4, 0, 0, 0xfc, 0x01]].concat();
    let one = parameter(&capabilities);
    let many =
        [parameter(&MP_IPV4), parameter(&MP_IPV6), parameter(&[65, 4, 0, 0, 0xfc, 0x01])].concat();
    let extended = [&[255, 0, 21, 2, 0, 18][..], &capabilities].concat();
    // More than the one-octet form can hold: 280 octets of a capability that nobody knows.
    let unknown = [&[200, 138][..], &[0; 138], &[201, 138], &[0; 138]].concat();
    let value = [&capabilities[..], &unknown].concat();
    let value_length = u16::try_from(value.len()).unwrap();
    let parameters = [&[2][..], &value_length.to_be_bytes(), &value].concat();
    let total = u16::try_from(parameters.len()).unwrap();
    let long = [&[255][..], &total.to_be_bytes(), &parameters].concat();
    for (name, parameters) in [("one", one), ("many", many), ("extended", extended), ("long", long)]
    {
        let (mut session, now) = in_state(StateKind::OpenSent);
        drive(&mut session, Event::Received(&open(90, &parameters)), now);
        let negotiated = session.negotiated().unwrap_or_else(|| panic!("{name}"));
        assert_eq!(negotiated.families, BTreeSet::from(Family::ALL), "{name}");
        assert!(negotiated.four_octet_as && !negotiated.route_refresh, "{name}");
        assert_eq!(negotiated.peer_router_id, PEER_ID);
    }
}

#[test]
fn a_peer_that_declines_gets_a_plainer_open() {
    let (mut session, mut at) = in_state(StateKind::Connect);
    let mut offers = Vec::new();
    for refusal in [[2, 7], [2, 7], [2, 4], [2, 4], [6, 5]] {
        let actions = drive(&mut session, connected(), at);
        let [Action::Send(open), _] = &actions[..] else { panic!("{actions:?}") };
        offers.push(open[28]);
        drive(&mut session, Event::Received(&message(3, &refusal)), at);
        at = session.poll_timeout().unwrap();
        drive_timeout(&mut session, at);
    }
    assert_eq!(offers, [24, 20, 20, 0, 0], "all, the essential ones twice, none");
}

#[test]
fn all_that_can_be_offered() {
    let restart = GracefulRestart {
        restart_time: Duration::from_secs(15),
        notification: true,
        start: Start::Forwarding,
    };
    let all =
        SessionConfig { extended_next_hop: true, graceful_restart: Some(restart), ..config() };
    let expected = [
        &[2, 42][..],
        &MP_IPV4,
        &MP_IPV6,
        &[2, 0],
        &[5, 6, 0, 1, 0, 1, 0, 2],
        // R, N and 15 s; F of both families.
        &[64, 10, 0xc0, 15, 0, 1, 1, 0x80, 0, 2, 1, 0x80],
        &[65, 4, 0, 0, 0xfc, 0x00],
        &[70, 0],
    ]
    .concat();
    let now = some_time();
    let mut session = Session::new(all.clone(), 1);
    session.handle(Event::Start, now);
    let actions = session.handle(connected(), now);
    let [Action::Send(open), _] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(open[29..], expected);

    // The peer has it all too, and more that nobody asked for.
    let others = [
        &[6, 0][..],
        &[9, 1, 3],
        &[69, 4, 0, 1, 1, 3],
        &[71, 7, 0, 1, 1, 0x80, 0, 0, 60],
        &[73, 2, 0, 0],
        &[74, 0],
        &[1, 4, 0x40, 4, 0, 71],
    ]
    .concat();
    let mut theirs = [&expected[2..], &others].concat();
    let own_asn = theirs.windows(2).position(|head| head == [65, 4]).unwrap() + 5;
    theirs[own_asn] = 0x01;
    let (session, _) = opened(all.clone(), &theirs);
    let negotiated = session.negotiated().unwrap();
    assert!(negotiated.extended_next_hop && negotiated.enhanced_route_refresh);
    assert_eq!(
        negotiated.graceful_restart,
        Some(NegotiatedRestart {
            restart_time: Duration::from_secs(15),
            peer_restart_time: Duration::from_secs(15),
            peer_restarted: true,
            notification: true,
        })
    );
    assert_eq!(
        negotiated.capabilities(),
        [
            "IPv4 unicast",
            "IPv6 unicast",
            "four-octet AS numbers",
            "route refresh",
            "enhanced route refresh",
            "extended next hop",
            "graceful restart",
            "graceful restart with NOTIFICATIONs",
        ]
    );
    // The last of several counts; reserved bits and what is no tuple mean nothing.
    let twice = [64, 2, 0xc0, 99, 64, 5, 0x30, 120, 0, 1, 1];
    let (session, _) = opened(all, &[&MP_IPV4[..], &twice, &[64, 1, 0]].concat());
    let negotiated = session.negotiated().unwrap();
    let restart = negotiated.graceful_restart.unwrap();
    assert_eq!(restart.peer_restart_time, Duration::from_secs(120));
    assert!(!restart.peer_restarted && !restart.notification && !negotiated.extended_next_hop);
}

/// A session in OpenConfirm with a peer that offers these capabilities.
fn opened(config: SessionConfig, capabilities: &[u8]) -> (Session, Instant) {
    let (mut session, now) = with_config(config, StateKind::OpenSent);
    session.handle(Event::Received(&open(90, &parameter(capabilities))), now);
    assert_eq!(session.state(), StateKind::OpenConfirm, "{:?}", session.stats().last_reset);
    (session, now)
}

/// The peer's OPEN would do for IPv4, but that is not what is configured.
#[test]
fn capabilities_are_not_given_up_for_families_that_need_them() {
    let ipv6 = SessionConfig { families: BTreeSet::from([Family::Ipv6Unicast]), ..config() };
    let (mut session, mut now) = with_config(ipv6, StateKind::Connect);
    for expected in [18, 14, 14, 14] {
        let actions = drive(&mut session, connected(), now);
        let [Action::Send(open), _] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(open[28], expected);
        session.handle(Event::Received(&message(3, &[2, 4])), now);
        now = session.poll_timeout().unwrap();
        session.handle_timeout(now);
    }
}
