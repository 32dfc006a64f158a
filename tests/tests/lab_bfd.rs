//! The speaker's BFD engine against BIRD and FRR, and against itself, on the real kernel. Run with
//! `--test-threads=1`: times are measured. `--nocapture` shows the figures.
#![allow(clippy::unwrap_used)]

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bfd::{Diagnostic, Discard, State};
use config::BfdProfile;
use crds::BFDAuthenticationType;
use netlab::wait_for;
use speaker::io::{
    bfd::{BfdSpec, Farewell},
    packet::{Priority, raise_priority},
};
use tests::{
    bfd_stage::{
        Distance, Sighting, Stage, Tap, authentication, has_frr, on_stage, profile, spec,
        wait_until, wait_until_up,
    },
    lab::LIMIT,
};

/// BIRD's side of every session by cable, at 100 ms x 3.
const TIMES: &str = "min rx interval 100 ms; min tx interval 100 ms; idle tx interval 1 s; \
                     multiplier 3;";

/// A session of BIRD with each address of the node, and what it does on the interface.
fn bird(interface: &str) -> String {
    format!(
        "interface \"eth0\" {{ {interface} }};\n\
         neighbor 10.0.0.11 dev \"eth0\";\n\
         neighbor fd00:a::11 dev \"eth0\";\n\
         neighbor {} dev \"eth0\";\n",
        Stage::NODE
    )
}

/// FRR's likewise.
fn frr() -> String {
    let link_local = format!("{} local-address {}", Stage::NODE, Stage::ROUTER);
    let peers = ["10.0.0.11", "fd00:a::11 local-address fd00:a::1", &link_local];
    peers
        .map(|peer| {
            format!(
                " peer {peer} interface eth0\n  detect-multiplier 3\n  receive-interval 100\n  \
                 transmit-interval 100\n  no shutdown\n"
            )
        })
        .concat()
}

#[test]
fn sessions_come_up_over_ipv4_ipv6_and_link_local_addresses() {
    let up = |stage: &Stage, with: &str| -> Result<()> {
        let engine = Stage::engine(&stage.node)?;
        let tap = Tap::start(&stage.router)?;
        for remote in ["10.0.0.1", "fd00:a::1", Stage::ROUTER] {
            let begin = Instant::now();
            let session = engine.open(spec(remote));
            wait_until_up(&session)?;
            let took = begin.elapsed();
            // Both sides have agreed on the fast intervals.
            let fast = wait_until("it is fast", &session, |status| {
                status.detection_time == Duration::from_millis(300)
            })?;
            ensure!(fast.transmit_interval == Some(Duration::from_millis(100)), "{fast:?}");
            ensure!(fast.was_up() && fast.failures() == 0, "{fast:?}");
            println!("{with}: {remote}: Up after {took:?}");
        }
        // Long enough for figures.
        sleep(Duration::from_secs(3));
        drop(engine);
        let all = tap.stop("10.0.0.11");
        check_the_wire(&all, 3784, 255)?;
        let fast = all.iter().filter(|packet| packet.payload[1] == 0xc0);
        let times: Vec<_> = fast.map(|packet| packet.at).collect();
        let mut gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps.sort();
        let (least, most) = (gaps[0], gaps[gaps.len() - 1]);
        println!("{with}: {} packets Up, {least:?} to {most:?} apart", times.len());
        let middle = gaps[gaps.len() / 2];
        ensure!((75..=105).contains(&middle.as_millis()), "{gaps:?}");
        Ok(())
    };
    on_stage(Distance::Cable, |stage| {
        let router = stage.bird(&bird(TIMES))?;
        up(stage, &router.version()?)
    });
    if has_frr() {
        on_stage(Distance::Cable, |stage| {
            let router = stage.frr(&frr())?;
            up(stage, &router.version()?)
        });
    }
}

/// RFC 5881 sections 4 and 5; DSCP CS6; the flags of asynchronous mode.
fn check_the_wire(packets: &[Sighting], port: u16, hops: u8) -> Result<()> {
    let first = packets.first().context("packets were sent")?;
    for packet in packets {
        ensure!(packet.hops == hops && packet.class == 0xc0, "{packet:?}");
        ensure!(packet.ports.0 >= 49152 && packet.ports.1 == port, "{packet:?}");
        ensure!(packet.ports == first.ports, "another port than {:?}: {packet:?}", first.ports);
        let up = packet.payload[1] & 0xc0 == 0xc0;
        ensure!(!up || [0xc0, 0xe0, 0xd0].contains(&packet.payload[1]), "{packet:?}");
    }
    Ok(())
}

#[test]
fn sessions_come_up_over_a_router_as_far_as_the_ttl_allows() {
    let far = |remote: &str, local: &str, minimum_ttl| BfdSpec {
        local: Some(local.parse().unwrap()),
        multihop: true,
        profile: BfdProfile { minimum_ttl, ..profile(100, 3) },
        ..spec(remote)
    };
    let pairs = [("10.2.0.1", "10.1.0.11"), ("fd00:c::1", "fd00:b::11")];
    on_stage(Distance::Hop, |stage| {
        // BIRD sends with the kernel's usual TTL, 64.
        let router = stage.bird(&format!(
            "multihop {{ {TIMES} }};\n\
             neighbor 10.1.0.11 local 10.2.0.1 multihop on;\n\
             neighbor fd00:b::11 local fd00:c::1 multihop on;\n"
        ))?;
        let tap = Tap::start(&stage.router)?;
        let engine = Stage::engine(&stage.node)?;
        for (remote, local) in pairs {
            let session = engine.open(far(remote, local, 254));
            let refused = wait_until("packets are refused", &session, |status| {
                status.counters.discarded.contains_key(&Discard::Hops)
            })?;
            ensure!(refused.state == State::Down, "{refused:?}");
            engine.change(&remote.into(), BfdProfile { minimum_ttl: 63, ..profile(100, 3) });
            wait_until_up(&session)?;
            println!("{}: {remote} over a router: Up", router.version()?);
        }
        drop(engine);
        check_the_wire(&tap.stop("10.1.0.11"), 4784, 254)
    });
    if has_frr() {
        on_stage(Distance::Hop, |stage| {
            let peers = pairs.map(|(remote, local)| {
                format!(
                    " peer {local} multihop local-address {remote}\n  detect-multiplier 3\n  \
                     receive-interval 100\n  transmit-interval 100\n  no shutdown\n"
                )
            });
            let router = stage.frr(&peers.concat())?;
            let engine = Stage::engine(&stage.node)?;
            for (remote, local) in pairs {
                wait_until_up(&engine.open(far(remote, local, 254)))?;
                println!("{}: {remote} over a router: Up", router.version()?);
            }
            Ok(())
        });
    }
}

#[test]
fn only_who_has_the_key_is_believed() {
    use BFDAuthenticationType::{KeyedMD5, KeyedSHA1, MeticulousKeyedMD5, MeticulousKeyedSHA1};
    on_stage(Distance::Cable, |stage| {
        let with = |words: &str| {
            bird(&format!("{TIMES} authentication {words}; password \"right\" {{ id 1; }};"))
        };
        let router = stage.bird(&with("keyed md5"))?;
        let engine = Stage::engine(&stage.node)?;
        for (kind, words) in [
            (KeyedMD5, "keyed md5"),
            (MeticulousKeyedMD5, "meticulous keyed md5"),
            (KeyedSHA1, "keyed sha1"),
            (MeticulousKeyedSHA1, "meticulous keyed sha1"),
        ] {
            router.reconfigure_bird(&with(words))?;
            let keyed = |key| BfdSpec {
                profile: BfdProfile {
                    authentication: authentication(kind, key),
                    ..profile(100, 3)
                },
                ..spec("10.0.0.1")
            };
            let right = keyed("right");
            let session = engine.open(right.clone());
            wait_until_up(&session)?;
            sleep(Duration::from_secs(2));
            let status = session.borrow().clone();
            ensure!(status.counters.down == 0, "{status:?}");
            println!("{}: {words}: Up, {:?}", router.version()?, status.counters);
            for (profile, reason) in [
                (keyed("wrong").profile, Discard::Digest),
                (profile(100, 3), Discard::Authenticated),
            ] {
                engine.change(&right.peer, profile);
                let down = |state| state == State::Down;
                wait_until("the session is Down", &session, |status| down(status.state))?;
                sleep(Duration::from_secs(2));
                let status = wait_until("it stays Down", &session, |status| down(status.state))?;
                ensure!(status.diagnostic == Diagnostic::ControlDetectionTimeExpired, "{status:?}");
                let refused = status.counters.discarded.get(&reason).copied().unwrap_or_default();
                ensure!(refused > 0, "{reason:?}: {status:?}");
            }
            engine.change(&right.peer, right.profile);
            wait_until_up(&session)?;
            engine.close(&right.peer, Farewell::Silent);
        }
        Ok(())
    });
}

/// Each side changes its intervals and its multiplier while a hundredth of the packets is lost.
#[test]
fn intervals_change_without_a_flap() {
    on_stage(Distance::Cable, |stage| {
        let times = |milliseconds, multiplier| {
            bird(&format!(
                "min rx interval {milliseconds} ms; min tx interval {milliseconds} ms; \
                 multiplier {multiplier};"
            ))
        };
        let router = stage.bird(&times(100, 3))?;
        let engine = Stage::engine(&stage.node)?;
        let session = engine.open(spec("10.0.0.1"));
        wait_until_up(&session)?;
        stage.lose(&stage.node, 1)?;
        stage.lose(&stage.router, 1)?;
        let mut theirs = (100, 3);
        for milliseconds in [300, 50, 1000, 100] {
            for multiplier in [3, 5] {
                engine.change(&"10.0.0.1".into(), profile(milliseconds, multiplier));
                wait_until("they have agreed", &session, |status| {
                    let slower = Duration::from_millis(milliseconds.max(theirs.0));
                    status.detection_time == slower * theirs.1
                        && status.transmit_interval == Some(slower)
                })?;
            }
            theirs = (milliseconds, 4);
            router.reconfigure_bird(&times(theirs.0, theirs.1))?;
            wait_until("they have agreed", &session, |status| {
                status.detection_time == Duration::from_millis(theirs.0) * theirs.1
            })?;
            println!("{}: {milliseconds} ms on both sides", router.version()?);
        }
        let status = wait_until_up(&session)?;
        ensure!((status.counters.up, status.counters.down) == (1, 0), "{status:?}");
        Ok(())
    });
}

#[test]
fn a_dead_router_is_noticed_within_the_detection_time() {
    for _ in 0..5 {
        on_stage(Distance::Cable, |stage| {
            let router = stage.bird(&bird(TIMES))?;
            let engine = Stage::engine(&stage.node)?;
            let session = engine.open(spec("10.0.0.1"));
            wait_until("it is fast", &session, |status| {
                status.state == State::Up && status.detection_time == Duration::from_millis(300)
            })?;
            // Their second interval goes by without anything special.
            sleep(Duration::from_millis(777));
            let tap = Tap::start(&stage.node)?;
            sleep(Duration::from_millis(250));
            let killed = Instant::now();
            router.kill();
            let down =
                wait_until("the session is Down", &session, |status| status.state == State::Down)?;
            ensure!(down.diagnostic == Diagnostic::ControlDetectionTimeExpired, "{down:?}");
            ensure!(down.failures() == 1, "{down:?}");
            let heard = tap.stop("10.0.0.1");
            let last = heard.last().context("it was heard")?.at;
            let (after, ratio) = (
                down.since.duration_since(killed),
                down.since.duration_since(last).as_secs_f64() / 0.3,
            );
            println!("100 ms x 3: Down {after:?} after the kill, {ratio:.3} of the detection time");
            // A BIRD that is late itself was heard earlier: the lower bound is wider than 200.
            ensure!((150..=330).contains(&after.as_millis()), "{after:?} after the kill");
            ensure!((0.9..=1.1).contains(&ratio), "{ratio} of the detection time");
            Ok(())
        });
    }
}

#[test]
fn who_is_passive_waits_to_be_called() {
    let passive = |remote| BfdSpec {
        profile: BfdProfile { passive_mode: true, ..profile(100, 3) },
        ..spec(remote)
    };
    on_stage(Distance::Cable, |stage| {
        let engine = Stage::engine(&stage.node)?;
        let tap = Tap::start(&stage.router)?;
        let session = engine.open(passive("10.0.0.1"));
        sleep(Duration::from_secs(2));
        let said = tap.stop("10.0.0.11");
        ensure!(said.is_empty(), "{said:?}");
        let router = stage.bird(&bird(TIMES))?;
        wait_until_up(&session)?;
        // The other way round.
        router.reconfigure_bird(&bird(&format!("{TIMES} passive;")))?;
        wait_until_up(&engine.open(spec("fd00:a::1")))?;
        Ok(())
    });
}

#[test]
fn a_session_that_ends_on_purpose_says_so() {
    if !has_frr() {
        return;
    }
    on_stage(Distance::Cable, |stage| {
        let router = stage.frr(&frr())?;
        let engine = Stage::engine(&stage.node)?;
        let session = engine.open(spec("10.0.0.1"));
        wait_until_up(&session)?;
        // Theirs.
        let peer = ["configure terminal", "bfd", "peer 10.0.0.11 interface eth0"];
        router.ask(&[&peer[..], &["shutdown"]].concat())?;
        let down = wait_until("it is Down", &session, |status| status.state == State::Down)?;
        ensure!(down.remote_state == State::AdminDown, "{down:?}");
        ensure!((down.counters.down, down.failures()) == (1, 0), "{down:?}");
        router.ask(&[&peer[..], &["no shutdown"]].concat())?;
        wait_until_up(&session)?;
        // Ours, told for a detection time and then no more. It is 1 s x 3 once it is AdminDown.
        let tap = Tap::start(&stage.router)?;
        engine.close(&"10.0.0.1".into(), Farewell::AdminDown);
        wait_for("FRR knows", LIMIT, || {
            let shown = router.ask(&["show bfd peers json"])?;
            ensure!(shown.contains("neighbor signaled session down"), "{shown}");
            Ok(())
        })?;
        ensure!(session.has_changed().is_err(), "who watched knows that it is over");
        sleep(Duration::from_secs(4));
        let said = tap.stop("10.0.0.11");
        let last: Vec<_> = said.iter().filter(|packet| packet.payload[1] >> 6 == 0).collect();
        ensure!((3..=6).contains(&last.len()), "{last:?}");
        ensure!(last.iter().all(|packet| packet.payload[0] == 0x27), "{last:?}");
        let spoke = last[last.len() - 1].at - last[0].at;
        ensure!(spoke < Duration::from_millis(3100), "it spoke for {spoke:?}");
        Ok(())
    });
}

/// What a stranger says from far away, or with another name, is counted and changes nothing.
#[test]
fn what_must_be_discarded_is() {
    on_stage(Distance::Cable, |stage| {
        let _router = stage.bird(&bird(TIMES))?;
        let engine = Stage::engine(&stage.node)?;
        let session = engine.open(spec("10.0.0.1"));
        wait_until_up(&session)?;
        let socket = stage.router.inside(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        // Down, from a session 7 that knows none of ours: it would end the session.
        let mut packet = [0; 24];
        packet[..8].copy_from_slice(&[0x20, 0x40, 3, 24, 0, 0, 0, 7]);
        for ttl in [64, 254] {
            socket.set_ttl(ttl)?;
            socket.send_to(&packet, "10.0.0.11:3784")?;
        }
        // To a session that there is not, and none at all.
        socket.set_ttl(255)?;
        packet[8..12].copy_from_slice(&[1, 2, 3, 4]);
        socket.send_to(&packet, "10.0.0.11:3784")?;
        socket.send_to(&[], "10.0.0.11:3784")?;
        let status = wait_until("they are counted", &session, |status| {
            status.counters.discarded.get(&Discard::Hops) == Some(&2)
        })?;
        ensure!(status.state == State::Up && status.counters.down == 0, "{status:?}");
        // The first again, from next door: the peer may have started anew.
        packet[8..12].fill(0);
        socket.send_to(&packet, "10.0.0.11:3784")?;
        wait_until("it is believed", &session, |status| status.counters.down == 1)?;
        wait_until_up(&session)?;
        Ok(())
    });
}

#[test]
fn a_lost_link_and_a_taken_port_are_got_over() {
    on_stage(Distance::Cable, |stage| {
        let socket = stage.node.inside(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 3784))?))?;
        let engine = Stage::engine(&stage.node)?;
        let other = Stage::engine(&stage.router)?;
        let back = other.open(spec("10.0.0.11"));
        let session = engine.open(spec("10.0.0.1"));
        let status = wait_until("it says why", &session, |status| status.problem.is_some())?;
        let problem = status.problem.unwrap();
        ensure!(
            problem.contains("UDP port 3784") && problem.contains("another program"),
            "{problem}"
        );
        drop(socket);
        let status = wait_until_up(&session)?;
        ensure!(status.problem.is_none(), "{status:?}");
        wait_until_up(&back)?;

        // A peer with another port shares the session, and is not needed by the first.
        let second = engine.open(BfdSpec { peer: "second".into(), ..spec("10.0.0.1") });
        wait_until_up(&second)?;
        engine.close(&"second".into(), Farewell::AdminDown);
        stage.node.ip("link set eth0 down")?;
        let down = wait_until("it is Down", &session, |status| status.state == State::Down)?;
        ensure!(down.failures() == 1, "the second peer's end was none: {down:?}");
        stage.node.ip("link set eth0 up")?;
        wait_until_up(&session)?;

        let nowhere = engine.open(BfdSpec { interface: None, ..spec(Stage::ROUTER) });
        let status = wait_until("it says why", &nowhere, |status| status.problem.is_some())?;
        ensure!(status.problem.unwrap().contains("needs the interface"), "what is missing");
        Ok(())
    });
}

/// Eight programs that want a processor each, for ten seconds: with the thread's priority no session
/// is lost at 50 ms x 3.
#[test]
fn a_busy_machine_takes_no_session_down() {
    let priority = std::thread::spawn(raise_priority).join().unwrap();
    if !matches!(priority, Ok(Priority::RealTime)) {
        println!("no real-time priority for us ({priority:?}): not played");
        return;
    }
    on_stage(Distance::Cable, |stage| {
        let (engine, other) = (Stage::engine(&stage.node)?, Stage::engine(&stage.router)?);
        let fast = |remote| BfdSpec { profile: profile(50, 3), ..spec(remote) };
        let sessions: Vec<_> = [("10.0.0.1", "10.0.0.11"), ("fd00:a::1", "fd00:a::11")]
            .into_iter()
            .flat_map(|(there, here)| [engine.open(fast(there)), other.open(fast(here))])
            .collect();
        sessions.iter().try_for_each(|session| wait_until_up(session).map(drop))?;
        let mut hogs = Vec::new();
        for number in 0..8 {
            let mut command = stage.node.command("timeout");
            command.args(["20", "sh", "-c", "while :; do :; done"]);
            hogs.push(stage.node.spawn(&format!("hog{number}"), command)?);
        }
        sleep(Duration::from_secs(10));
        drop(hogs);
        for session in sessions {
            let status = session.borrow().clone();
            println!("50 ms x 3 beside 8 hogs: {:?}", status.counters);
            ensure!(status.state == State::Up && status.counters.down == 0, "{status:?}");
            ensure!(status.counters.received > 100, "{status:?}");
        }
        Ok(())
    });
}
