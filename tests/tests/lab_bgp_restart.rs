//! Graceful restart, GTSM, passive and unnumbered peers: what routers keep, and how they are found.
//! Run with `--test-threads=1`: times are measured. `--nocapture` shows the figures.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use netlab::{End, connect, wait_for};
use serde_json::{Value, json};
use tests::lab::{
    Dialling, FAR, LIMIT, Pings, Router, RouterConfig, RouterKind, Stage, Transport, Wiretap,
    announce_far, gateways, node_name, on_stage, peer_spec, wait_for_routes,
};

const ALL: [u8; 3] = [1, 2, 3];
const EXTERNAL: RouterConfig<'_> = RouterConfig::EXTERNAL;

/// RFC 4724: the router forwards on to a node whose speaker is killed and comes back.
#[test]
fn speaker_killed_and_back() {
    with_frr(|stage| {
        let router = Router::start(stage, RouterKind::Frr, EXTERNAL)?;
        announce_far(stage, restarting("15s"), json!({}))?;
        wait_for_routes(stage, &ALL)?;
        stage.client.add_route("203.0.113.0/24", "10.0.0.1")?;
        stage.client.add_route("2001:db8:113::/64", "fd00:a::1")?;
        for number in ALL {
            let node = Transport::V4.node(number);
            let pings = FAR.map(|address| Pings::start(&stage.client, address));
            let wiretap = Wiretap::start(stage, &format!("tcp port 179 and host {node}"))?;
            let mut monitor = stage.router.command("ip");
            monitor.args(["-ts", "monitor", "route"]);
            let monitor = stage.router.spawn(&format!("monitor-{number}"), monitor)?;
            let since = Instant::now();
            drop(stage.node(number).speaker.take());
            wait_for("the router keeps its routes as stale", LIMIT, || {
                let routes = router.routes(FAR[0])?;
                let of_node = routes.iter().find(|route| route.from == node);
                ensure!(of_node.context("it is gone")?.stale, "{routes:#?}");
                Ok(())
            })?;
            stage.start_speakers()?;
            wait_for("its routes are fresh again", LIMIT, || {
                for address in FAR {
                    let routes = router.routes(address)?;
                    let of_node = routes.iter().find(|route| route.from == node);
                    ensure!(!of_node.context("it is gone")?.stale, "{routes:#?}");
                }
                Ok(())
            })?;
            println!(
                "n{number}'s speaker was killed, and its routes are fresh after {:?}",
                since.elapsed()
            );
            for pings in pings {
                let pings = pings?;
                pings.wait_for_more()?;
                let answers = pings.stop()?;
                println!("{} of {} pings lost", answers.lost, answers.sent);
                ensure!(answers.lost <= 1, "{answers:?}");
            }
            let changes = fs::read_to_string(monitor.log())?;
            // The IPv6 route is seen to go and come back within 0.2 ms, which costs no ping.
            let of_ours: Vec<_> = changes.lines().filter(|line| line.contains(FAR[0])).collect();
            ensure!(of_ours.is_empty(), "the kernel's table changed: {of_ours:#?}");
            let decoded = wiretap.decode()?;
            if number == 1 {
                println!("what was said meanwhile:\n{decoded}");
            }
            wait_for_routes(stage, &ALL)?;
        }
        Ok(())
    });
}

/// A speaker that stays away: the router takes its routes away when the restart time is over.
#[test]
fn speaker_killed_and_not_back() {
    with_frr(|stage| {
        let router = Router::start(stage, RouterKind::Frr, EXTERNAL)?;
        announce_far(stage, restarting("5s"), json!({}))?;
        wait_for_routes(stage, &ALL)?;
        let since = Instant::now();
        drop(stage.node(3).speaker.take());
        wait_for("the router keeps its routes as stale", LIMIT, || {
            let routes = router.routes(FAR[0])?;
            ensure!(routes.iter().any(|route| route.stale), "{routes:#?}");
            Ok(())
        })?;
        wait_for_routes(stage, &[1, 2])?;
        let took = since.elapsed();
        println!("the routes of a speaker that stays away are gone after {took:?}");
        ensure!(took >= Duration::from_secs(4), "that was no graceful restart: {took:?}");
        Ok(())
    });
}

/// RFC 5082: with both sides at it the session stands; a router whose packets come with a TTL of 1
/// is not heard.
#[test]
fn gtsm() {
    with_frr(|stage| {
        let mut spec = peer_spec(EXTERNAL, Transport::V4);
        spec["ttlSecurityHops"] = json!(1);
        let secured = RouterConfig { neighbour_lines: &["ttl-security hops 1"], ..EXTERNAL };
        let mut router = Router::start(stage, RouterKind::Frr, secured)?;
        announce_far(stage, spec, json!({}))?;
        wait_for_routes(stage, &ALL)?;
        let ttls = stage.router.run(&["ss", "-tnHie", "sport", "=", ":179"])?;
        println!("with ttl-security on both sides:\n{ttls}");
        router.stop()?;
        router.rewrite(EXTERNAL)?;
        router.run()?;
        // What would be an established session: the speaker drops all that FRR sends.
        std::thread::sleep(Duration::from_secs(5));
        ensure!(router.established()?.is_empty(), "{:?}", router.established()?);
        Ok(())
    });
}

/// A router that insists on opening the connections.
#[test]
fn passive_peer() {
    on_stage(|stage| {
        let config = RouterConfig { dialling: Dialling::Router, ..EXTERNAL };
        let _router = Router::start(stage, RouterKind::Bird, config)?;
        let mut spec = peer_spec(EXTERNAL, Transport::V4);
        spec["passive"] = json!(true);
        announce_far(stage, spec, json!({}))?;
        wait_for_routes(stage, &ALL)?;
        for node in &stage.nodes {
            let sockets = node.namespace.run(&["ss", "-tnH", "state", "established"])?;
            let called = |line: &str| line.contains(":179 ") && line.contains("10.0.0.1:");
            ensure!(sockets.lines().any(called), "{} called itself: {sockets}", node.name());
        }
        Ok(())
    });
}

/// RFC 8950 over link-local addresses that nobody configured.
#[test]
fn unnumbered_with_frr() {
    with_frr(|stage| {
        const CABLE: &str = "u0";
        let node = stage.node(1).namespace.clone();
        let end = |namespace| End { namespace, device: CABLE, mac: None, addresses: &[] };
        connect(end(&node), end(&stage.router))?;
        let config = RouterConfig {
            transports: &[],
            device_lines: &[
                "interface u0",
                " ipv6 nd ra-interval 2",
                " no ipv6 nd suppress-ra",
                "exit",
            ],
            lines: &[
                "neighbor u0 interface remote-as 64512",
                "address-family ipv4 unicast\n  neighbor u0 activate\n exit-address-family",
                "address-family ipv6 unicast\n  neighbor u0 activate\n exit-address-family",
            ],
            ..EXTERNAL
        };
        let router = Router::start(stage, RouterKind::Frr, config)?;
        let since = Instant::now();
        let spec = json!({"myASN": 64512, "peerASN": 64513, "interface": CABLE, "holdTime": "9s",
                          "nodeSelectors": on_node(1)});
        announce_far(stage, spec, json!({}))?;
        for address in FAR {
            wait_for(
                &format!("the router sends {address} to a link-local address"),
                LIMIT,
                || {
                    let hops = gateways(&stage.router, address)?;
                    let shown = router.ask("show bgp summary json")?;
                    ensure!(
                        hops.len() == 1
                            && hops.iter().all(|hop| hop.to_string().starts_with("fe80")),
                        "{hops:?} {shown}"
                    );
                    Ok(())
                },
            )?;
        }
        println!("unnumbered: routes of both families after {:?}", since.elapsed());
        Ok(())
    });
}

fn with_frr(test: impl FnOnce(&mut Stage) -> Result<()>) {
    if RouterKind::Frr.is_available() {
        on_stage(test);
    } else {
        println!("skipped: FRR is not installed, or may not become the user frr here");
    }
}

fn restarting(time: &str) -> Value {
    let mut spec = peer_spec(EXTERNAL, Transport::V4);
    spec["enableGracefulRestart"] = json!(true);
    spec["gracefulRestartTime"] = json!(time);
    spec
}

/// `spec.nodeSelectors` of one node.
fn on_node(number: u8) -> Value {
    json!([{"matchLabels": {"kubernetes.io/hostname": node_name(number)}}])
}
