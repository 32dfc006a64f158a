//! The speaker as it is shipped, and routers that restart, freeze, answer garbage, break the rules
//! of BGP one by one, or do not want to talk: what the speaker says to each, octet by octet, and
//! that no other session notices. Run with `--test-threads=1`: times are measured. `--nocapture`
//! shows the figures.
#![allow(clippy::unwrap_used)]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use netlab::{Signal, wait_for};
use serde_json::{Value, json};
use tests::{
    lab::{
        LIMIT, Router, RouterConfig, RouterKind, Stage, Transport, announce_far, custom, node_name,
        on_stage, peer_spec, wait_for_routes,
    },
    raw_peer::{
        Connection, KEEPALIVE, NOTIFICATION, OPEN, Open, ROUTE_REFRESH, RawPeer, UPDATE,
        capabilities_parameter, keepalive, message, message_with, update,
    },
};

const ALL: [u8; 3] = [1, 2, 3];
const EXTERNAL: RouterConfig<'_> = RouterConfig::EXTERNAL;
/// The AS number of raw peers.
const THEIR_AS: u32 = EXTERNAL.asn;
/// The first of the ports that raw peers listen on, one each.
const PORTS: u16 = 10_000;
const MARKER: [u8; 16] = [0xff; 16];

/// How far a session has come when its peer breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    OpenSent,
    OpenConfirm,
    Established,
}

/// What a peer says, and the NOTIFICATION that it gets for it.
#[derive(Debug, Clone)]
struct Case {
    name: &'static str,
    at: At,
    says: Vec<u8>,
    hears: (u8, u8, Vec<u8>),
    /// In the speaker's own OPEN.
    our_asn: u32,
}

impl Case {
    fn new(name: &'static str, at: At, says: Vec<u8>, code: u8, subcode: u8, data: &[u8]) -> Self {
        Self { name, at, says, hears: (code, subcode, data.to_vec()), our_asn: EXTERNAL.node_asn }
    }

    /// In seconds: the shortest there is where the peer falls silent, and out of the way elsewhere.
    fn hold_time(&self) -> u16 {
        if self.says.is_empty() { 3 } else { 90 }
    }
}

/// RFC 4271 section 6.1, and whatever else speaks on a port.
fn headers() -> Vec<Case> {
    use At::{Established, OpenSent};
    let length = |kind: u8, length: u16| message_with(MARKER, length, kind, &[0; 4096]);
    let mut one_bit = MARKER;
    one_bit[15] = 0xfe;
    // A record of TLS 1.0 that holds a ClientHello (RFC 8446 section 5.1).
    let tls = [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[0x5a; 194]].concat();
    vec![
        Case::new("no marker", OpenSent, message_with([0; 16], 29, OPEN, &[0; 10]), 1, 1, &[]),
        Case::new("one bit", OpenSent, message_with(one_bit, 29, OPEN, &[0; 10]), 1, 1, &[]),
        Case::new("HTTP", OpenSent, b"GET / HTTP/1.1\r\nHost: router\r\n\r\n".to_vec(), 1, 1, &[]),
        Case::new("TLS", OpenSent, tls, 1, 1, &[]),
        Case::new("SSH", OpenSent, b"SSH-2.0-router\r\n".to_vec(), 1, 1, &[]),
        Case::new("one octet", OpenSent, vec![0x2a], 1, 1, &[]),
        Case::new("length 0", OpenSent, length(OPEN, 0), 1, 2, &[0, 0]),
        Case::new("length 18", OpenSent, length(KEEPALIVE, 18), 1, 2, &[0, 18]),
        Case::new("length 4097", OpenSent, length(OPEN, 4097), 1, 2, &[0x10, 0x01]),
        Case::new("length 65535", Established, length(UPDATE, 65535), 1, 2, &[0xff, 0xff]),
        Case::new("OPEN of 28", OpenSent, length(OPEN, 28), 1, 2, &[0, 28]),
        Case::new("UPDATE of 22", Established, length(UPDATE, 22), 1, 2, &[0, 22]),
        Case::new("KEEPALIVE of 20", Established, length(KEEPALIVE, 20), 1, 2, &[0, 20]),
        Case::new("NOTIFICATION of 20", Established, length(NOTIFICATION, 20), 1, 2, &[0, 20]),
        Case::new(
            "ROUTE-REFRESH of 22",
            Established,
            message(ROUTE_REFRESH, &[0, 1, 0]),
            1,
            2,
            &[0, 22],
        ),
        Case::new("type 0", OpenSent, message(0, &[]), 1, 3, &[0]),
        Case::new("type 6", Established, message(6, &[]), 1, 3, &[6]),
        Case::new("type 255", Established, message(255, &[1, 2, 3]), 1, 3, &[255]),
    ]
}

/// RFC 4271 section 6.2, RFC 5492 section 5, RFC 6286, RFC 7607.
fn opens() -> Vec<Case> {
    use At::OpenSent;
    let open = Open::new(THEIR_AS);
    let identifier = |octets: [u8; 4]| Open { identifier: octets.into(), ..open.clone() }.encode();
    let hold = |hold_time| Open { hold_time, ..open.clone() }.encode();
    let parameters = |octets: &[u8]| Open { parameters: octets.to_vec(), ..open.clone() }.encode();
    let version = |version| Open { version, ..open.clone() }.encode();
    let asn = |asn| Open::new(asn).encode();
    // AFI 25, SAFI 65 (VPLS): none of ours.
    let foreign = capabilities_parameter(&[1, 4, 0, 25, 0, 65, 65, 4, 0, 0, 0xfc, 1]);
    let ours = [1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1];
    let twin = identifier([10, 0, 0, 11]);
    vec![
        Case::new("version 3", OpenSent, version(3), 2, 1, &[0, 4]),
        Case::new("version 5", OpenSent, version(5), 2, 1, &[0, 4]),
        Case::new("another AS", OpenSent, asn(64999), 2, 2, &[]),
        Case::new("AS 0", OpenSent, asn(0), 2, 2, &[]),
        Case::new("identifier 0", OpenSent, identifier([0; 4]), 2, 3, &[]),
        Case {
            our_asn: THEIR_AS,
            ..Case::new("our identifier, within an AS", OpenSent, twin, 2, 3, &[])
        },
        Case::new("parameter 1", OpenSent, parameters(&[1, 2, 0, 0]), 2, 4, &[]),
        Case::new("parameters too long", OpenSent, parameters(&[2, 200, 0, 0]), 2, 0, &[]),
        Case::new("hold time 1", OpenSent, hold(1), 2, 6, &[]),
        Case::new("hold time 2", OpenSent, hold(2), 2, 6, &[]),
        Case::new("hold time 0", OpenSent, hold(0), 2, 6, &[]),
        Case::new("no family of ours", OpenSent, parameters(&foreign), 2, 7, &ours),
    ]
}

/// RFC 6608: each type of message where it has no place; and silence, RFC 4271 section 6.5.
fn places() -> Vec<Case> {
    use At::{Established, OpenConfirm, OpenSent};
    let empty = update(&[], &[], &[]);
    let open = Open::new(THEIR_AS).encode();
    let refresh = message(ROUTE_REFRESH, &[0, 1, 0, 1]);
    vec![
        Case::new("KEEPALIVE in OpenSent", OpenSent, keepalive(), 5, 1, &[KEEPALIVE]),
        Case::new("UPDATE in OpenSent", OpenSent, empty.clone(), 5, 1, &[UPDATE]),
        Case::new("REFRESH in OpenSent", OpenSent, refresh.clone(), 5, 1, &[ROUTE_REFRESH]),
        Case::new("UPDATE in OpenConfirm", OpenConfirm, empty, 5, 2, &[UPDATE]),
        Case::new("OPEN in OpenConfirm", OpenConfirm, open.clone(), 5, 2, &[OPEN]),
        Case::new("REFRESH in OpenConfirm", OpenConfirm, refresh, 5, 2, &[ROUTE_REFRESH]),
        Case::new("OPEN in Established", Established, open, 5, 3, &[OPEN]),
        Case::new("silence in OpenConfirm", OpenConfirm, Vec::new(), 4, 0, &[]),
        Case::new("silence in Established", Established, Vec::new(), 4, 0, &[]),
    ]
}

/// RFC 4271 section 6.3 as RFC 7606 left it, and RFC 7313 section 5.
fn updates() -> Vec<Case> {
    use At::Established;
    let refresh = message(ROUTE_REFRESH, &[0, 1, 1, 1, 0]);
    vec![
        Case::new(
            "withdrawn routes too long",
            Established,
            message(UPDATE, &[0, 9, 0, 0]),
            3,
            1,
            &[],
        ),
        Case::new("attributes too long", Established, message(UPDATE, &[0, 0, 0, 9]), 3, 1, &[]),
        Case::new(
            "a prefix of 33 bits",
            Established,
            update(&[], &[], &[33, 1, 2, 3, 4, 5]),
            3,
            10,
            &[],
        ),
        Case::new("half a prefix", Established, update(&[], &[], &[24, 198, 51]), 3, 10, &[]),
        Case::new("half a withdrawal", Established, update(&[32, 1], &[], &[]), 3, 10, &[]),
        Case::new("a long begin of refresh", Established, refresh.clone(), 7, 1, &refresh),
    ]
}

/// What a broken rule is answered with: exactly that NOTIFICATION, and then a FIN. One session
/// for each rule, all of one speaker and at one time, beside a session with a good router that
/// stands through all of it.
#[test]
fn every_broken_rule_has_its_notification() {
    on_stage(|stage| {
        let router = good_router(stage)?;
        let cases: Vec<_> = [headers(), opens(), places(), updates()].concat();
        let mut peers = Vec::new();
        for (port, case) in (PORTS..).zip(&cases) {
            peers.push(RawPeer::listen(&stage.router, ([10, 0, 0, 1], port).into())?);
            let config = RouterConfig { node_asn: case.our_asn, ..EXTERNAL };
            let hold_time = format!("{}s", case.hold_time());
            apply_raw(stage, port, config, json!({"holdTime": hold_time}))?;
        }
        let wrong: Vec<_> = thread::scope(|scope| {
            let play = |(peer, case)| scope.spawn(move || play(peer, case));
            let threads: Vec<_> = peers.iter().zip(&cases).map(play).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect()
        });
        for error in &wrong {
            println!("{error:#}");
        }
        ensure!(wrong.is_empty(), "{} of {} cases", wrong.len(), cases.len());
        println!("{} broken rules, each with its NOTIFICATION", cases.len());
        router.check_undisturbed(stage)
    });
}

fn play(peer: &RawPeer, case: &Case) -> Result<()> {
    let hears = || -> Result<()> {
        let mut connection = peer.accept()?;
        let open = Open { hold_time: case.hold_time(), ..Open::new(THEIR_AS) };
        match case.at {
            At::OpenSent => drop(connection.expect(OPEN)?),
            At::OpenConfirm => drop(connection.open(&open)?),
            At::Established => {
                connection.establish(&open)?;
                connection.check_established()?;
            }
        }
        connection.send(&case.says)?;
        let said = connection.until_closed()?;
        let last = said.last().context("closed without a word")?.notification()?;
        ensure!(last == case.hears, "heard {last:02x?}, not {:02x?}", case.hears);
        let notifications = said.iter().filter(|message| message.kind == NOTIFICATION).count();
        ensure!(notifications == 1, "{said:02x?}");
        Ok(())
    };
    hears().with_context(|| case.name)
}

/// RFC 7606: where the routes of an UPDATE can be told, nothing that is wrong with its attributes
/// ends the session.
#[test]
fn malformed_attributes_end_no_session() {
    /// Flags of well-known and of optional transitive attributes.
    const WELL_KNOWN: u8 = 0x40;
    const OPTIONAL: u8 = 0xc0;
    const ORIGIN: &[u8] = &[WELL_KNOWN, 1, 1, 0];
    const PATH: &[u8] = &[WELL_KNOWN, 2, 6, 2, 1, 0, 0, 0xfc, 1];
    const HOP: &[u8] = &[WELL_KNOWN, 3, 4, 10, 0, 0, 1];
    const PREFIX: &[u8] = &[24, 198, 51, 100];
    let good = [ORIGIN, PATH, HOP].concat();
    let beside = |attribute: &[u8]| [&good[..], attribute].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing wrong", good.clone()),
        ("no attributes", Vec::new()),
        ("no ORIGIN", [PATH, HOP].concat()),
        ("no AS_PATH", [ORIGIN, HOP].concat()),
        ("no NEXT_HOP", [ORIGIN, PATH].concat()),
        ("ORIGIN 3", [&[WELL_KNOWN, 1, 1, 3], PATH, HOP].concat()),
        ("ORIGIN of 2 octets", [&[WELL_KNOWN, 1, 2, 0, 0], PATH, HOP].concat()),
        ("ORIGIN of 0 octets", [&[WELL_KNOWN, 1, 0], PATH, HOP].concat()),
        ("ORIGIN optional", [&[OPTIONAL, 1, 1, 0], PATH, HOP].concat()),
        (
            "AS_PATH of an unknown kind",
            [ORIGIN, &[WELL_KNOWN, 2, 6, 9, 1, 0, 0, 0, 1], HOP].concat(),
        ),
        ("AS_PATH overrun", [ORIGIN, &[WELL_KNOWN, 2, 6, 2, 9, 0, 0, 0, 1], HOP].concat()),
        ("AS_PATH of one octet", [ORIGIN, &[WELL_KNOWN, 2, 1, 2], HOP].concat()),
        ("AS_PATH with our AS", [ORIGIN, &[WELL_KNOWN, 2, 6, 2, 1, 0, 0, 0xfc, 0], HOP].concat()),
        ("NEXT_HOP of 3 octets", [ORIGIN, PATH, &[WELL_KNOWN, 3, 3, 10, 0, 0]].concat()),
        ("NEXT_HOP 0.0.0.0", [ORIGIN, PATH, &[WELL_KNOWN, 3, 4, 0, 0, 0, 0]].concat()),
        ("MED of 3 octets", beside(&[0x80, 4, 3, 0, 0, 1])),
        ("LOCAL_PREF of 5 octets", beside(&[WELL_KNOWN, 5, 5, 0, 0, 0, 0, 100])),
        ("ATOMIC_AGGREGATE of 1 octet", beside(&[WELL_KNOWN, 6, 1, 0])),
        ("AGGREGATOR of 5 octets", beside(&[OPTIONAL, 7, 5, 0, 1, 10, 0, 0])),
        ("communities of 3 octets", beside(&[OPTIONAL, 8, 3, 0, 0, 1])),
        ("communities of 0 octets", beside(&[OPTIONAL, 8, 0])),
        ("ORIGINATOR_ID of 3 octets", beside(&[0x80, 9, 3, 0, 0, 1])),
        ("CLUSTER_LIST of 3 octets", beside(&[0x80, 10, 3, 0, 0, 1])),
        ("extended communities of 7 octets", beside(&[OPTIONAL, 16, 7, 0, 2, 0, 0, 0, 0, 1])),
        (
            "large communities of 11 octets",
            beside(&[OPTIONAL, 32, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ),
        ("an attribute twice", beside(ORIGIN)),
        ("an unknown well-known attribute", beside(&[WELL_KNOWN, 200, 1, 0])),
        ("an unknown optional attribute", beside(&[OPTIONAL, 201, 2, 1, 2])),
        ("the last attribute overruns the list", beside(&[OPTIONAL, 8, 200, 0, 0])),
        ("half an attribute's header", beside(&[OPTIONAL])),
        ("an extended length of one octet", beside(&[OPTIONAL | 0x10, 8, 0])),
    ];
    on_stage(|stage| {
        let router = good_router(stage)?;
        let peer = RawPeer::listen(&stage.router, ([10, 0, 0, 1], PORTS).into())?;
        apply_raw(stage, PORTS, EXTERNAL, json!({}))?;
        let mut connection = peer.accept()?;
        connection.establish(&Open::new(THEIR_AS))?;
        for (name, attributes) in &cases {
            connection.send(&update(&[], attributes, PREFIX))?;
            connection.check_established().with_context(|| (*name).to_owned())?;
        }
        println!("{} UPDATEs, and the session stands", cases.len());
        // What a peer says at the end is not answered, whatever is in it: text that is no UTF-8 and
        // claims to be longer than the message (RFC 9003 section 2).
        connection.send(&message(NOTIFICATION, &[6, 2, 200, 0xff, 0xfe, 0x1b, b'[']))?;
        let said = connection.until_closed()?;
        ensure!(said.is_empty(), "{said:02x?}");
        router.check_undisturbed(stage)
    });
}

/// A peer that hangs up after every OPEN, one that never says anything, and one that answers as a
/// web server does: each is called again, less and less often, and the good one notices nothing.
#[test]
fn peers_that_do_not_want_to_talk_meet_back_off() {
    /// The first waits are 1, 2, 4 and 8 s, each reduced by up to a quarter.
    const CALLS: usize = 5;
    on_stage(|stage| {
        let router = good_router(stage)?;
        let address = |port| ([10, 0, 0, 1], port).into();
        let resetter = RawPeer::listen(&stage.router, address(PORTS))?;
        let mute = RawPeer::listen(&stage.router, address(PORTS + 1))?;
        let web = RawPeer::listen(&stage.router, address(PORTS + 2))?;
        for port in PORTS..PORTS + 3 {
            apply_raw(stage, port, EXTERNAL, json!({}))?;
        }
        let calls = |peer: &RawPeer, answer: &dyn Fn(Connection) -> Result<()>| {
            let mut times = Vec::new();
            for _ in 0..CALLS {
                let mut connection = peer.accept_within(3 * LIMIT)?;
                times.push(Instant::now());
                connection.expect(OPEN)?;
                answer(connection)?;
            }
            let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            Ok::<_, anyhow::Error>(waits)
        };
        let (reset, answered, silence) = thread::scope(|scope| {
            let reset = scope.spawn(|| {
                calls(&resetter, &|mut connection| {
                    connection.send(&Open::new(THEIR_AS).encode())?;
                    connection.reset()
                })
            });
            let answered = scope.spawn(|| {
                calls(&web, &|mut connection| {
                    connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
                    connection.until_closed().map(drop)
                })
            });
            let silence = scope.spawn(|| {
                let mut connection = mute.accept()?;
                let since = Instant::now();
                connection.expect(OPEN)?;
                connection.wait_at_most(3 * LIMIT)?;
                let said = connection.until_closed()?;
                let [last] = &said[..] else { return Err(anyhow!("{said:02x?}")) };
                ensure!(last.notification()? == (4, 0, vec![]), "{last:02x?}");
                Ok(since.elapsed())
            });
            (reset.join().unwrap(), answered.join().unwrap(), silence.join().unwrap())
        });
        for (who, waits) in [("hangs up", reset?), ("speaks HTTP", answered?)] {
            println!("a peer that {who} was called again after {waits:.1?}");
            for (wait, least) in waits.iter().zip([0.75, 1.5, 3.0, 6.0]) {
                ensure!(*wait >= Duration::from_secs_f64(least), "{waits:?}");
            }
        }
        println!("a peer that says nothing was given up after {:.1?}", silence?);
        router.check_undisturbed(stage)
    });
}

/// A router that sends all it has, as one does whose filter was forgotten: nothing of it is kept, and
/// the session goes on.
#[test]
fn a_hundred_thousand_routes_leaked_to_us() {
    const ROUTES: u32 = 100_000;
    const A_MESSAGE: usize = 800;
    /// What may be left of them, in KiB.
    const MORE: u64 = 16 * 1024;
    /// For a hold time of 9 s; the rest is room for a busy machine.
    const SILENCE: Duration = Duration::from_secs(6);
    on_stage(|stage| {
        let peer = RawPeer::listen(&stage.router, ([10, 0, 0, 1], 179).into())?;
        announce_far(stage, peer_spec(EXTERNAL, Transport::V4), json!({}))?;
        let mut connection = peer.accept()?;
        let source = connection.from()?;
        connection.establish(&Open::new(THEIR_AS))?;
        connection.check_established()?;
        let number = ALL.into_iter().find(|number| Transport::V4.node(*number) == source);
        let node = stage.node(number.context("a node calls")?);
        let pid = node.speaker.as_ref().context("it runs")?.pid();
        let before = resident(pid)?;
        let attributes =
            [&[0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfc, 1][..], &[0x40, 3, 4, 10, 0, 0, 1]];
        let prefixes: Vec<_> = (0..ROUTES).map(|n| (0x0b00_0000 + n).to_be_bytes()).collect();
        for some in prefixes.chunks(A_MESSAGE) {
            let nlri: Vec<_> =
                some.iter().flat_map(|octets| [&[32], &octets[..]].concat()).collect();
            connection.send(&update(&[], &attributes.concat(), &nlri))?;
        }
        let (since, mut heard, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        while since.elapsed() < 2 * SILENCE {
            let message = connection.hear()?.context("the speaker has closed the connection")?;
            ensure!(message.kind != NOTIFICATION, "{message:02x?}");
            longest = longest.max(heard.elapsed());
            heard = Instant::now();
            connection.send(&keepalive())?;
        }
        connection.check_established()?;
        let more = resident(pid)?.saturating_sub(before);
        println!("{ROUTES} routes: {more} KiB more, at most {longest:?} between messages");
        ensure!(more <= MORE, "{before} KiB before, {more} more");
        ensure!(longest <= SILENCE, "{longest:?}");
        stage.check_speakers()
    });
}

/// What a process has in memory, in KiB (proc_pid_status(5)).
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.and_then(|line| line.split_whitespace().next()).context("VmRSS")?.parse()?)
}

/// The port of a router that restarts opens some time after the old sessions are gone.
#[test]
fn router_restarted() {
    on_stage(|stage| {
        let mut router = Router::start(stage, RouterKind::Bird, EXTERNAL)?;
        announce_far(stage, peer_spec(EXTERNAL, Transport::V4), json!({}))?;
        wait_for_routes(stage, &ALL)?;
        for away in [0, 2, 8] {
            router.stop()?;
            wait_for_routes(stage, &[])?;
            thread::sleep(Duration::from_secs(away));
            router.run()?;
            let since = Instant::now();
            wait_for_routes(stage, &ALL)?;
            println!(
                "away for {away} s: sessions and routes back {:?} after its port opened",
                since.elapsed()
            );
        }
        Ok(())
    });
}

/// A frozen router answers nothing while its kernel goes on accepting connections.
#[test]
fn router_frozen_and_thawed() {
    on_stage(|stage| {
        let router = Router::start(stage, RouterKind::Bird, EXTERNAL)?;
        let mut spec = peer_spec(EXTERNAL, Transport::V4);
        spec["holdTime"] = json!("3s");
        announce_far(stage, spec, json!({}))?;
        wait_for_routes(stage, &ALL)?;
        let up = || stage.nodes_metric("metallb_bgp_session_up");
        ensure!(up()? == 3.0, "{} sessions", up()?);
        router.signal(Signal::Stop)?;
        let since = Instant::now();
        wait_for("the hold time is over on every node", LIMIT, || {
            ensure!(up()? == 0.0, "{} sessions", up()?);
            Ok(())
        })?;
        println!("frozen: all sessions down after {:?}", since.elapsed());
        router.signal(Signal::Continue)?;
        let since = Instant::now();
        wait_for("all sessions are up again", LIMIT, || {
            ensure!(up()? == 3.0, "{} sessions", up()?);
            Ok(())
        })?;
        wait_for_routes(stage, &ALL)?;
        println!("thawed: all back after {:?}", since.elapsed());
        Ok(())
    });
}

/// A BIRD that all nodes announce to, and that remembers since when its sessions are up.
struct GoodRouter {
    router: Router,
    sessions: String,
}

fn good_router(stage: &Stage) -> Result<GoodRouter> {
    let router = Router::start(stage, RouterKind::Bird, EXTERNAL)?;
    announce_far(stage, peer_spec(EXTERNAL, Transport::V4), json!({}))?;
    wait_for_routes(stage, &ALL)?;
    let sessions = router.ask("show protocols")?;
    Ok(GoodRouter { router, sessions })
}

impl GoodRouter {
    fn check_undisturbed(&self, stage: &mut Stage) -> Result<()> {
        let now = self.router.ask("show protocols")?;
        ensure!(now == self.sessions, "before:\n{}now:\n{now}", self.sessions);
        wait_for_routes(stage, &ALL)?;
        stage.check_speakers()
    }
}

/// A BGPPeer for node 1 and a raw peer on a port of the router, with more or other fields.
fn apply_raw(stage: &Stage, port: u16, config: RouterConfig<'_>, fields: Value) -> Result<()> {
    let mut spec = peer_spec(config, Transport::V4);
    spec["peerPort"] = json!(port);
    spec["nodeSelectors"] = json!([{"matchLabels": {"kubernetes.io/hostname": node_name(1)}}]);
    for (field, value) in fields.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    stage.apply(&custom("BGPPeer", &format!("raw-{port}"), spec))
}
