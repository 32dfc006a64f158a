//! The speaker as it is shipped and routers as Debian ships them: sessions, routes and what
//! routers make of them. Run with `--test-threads=1`: times are measured. As an ordinary user it
//! runs in a user namespace, without the routers that want users of their own. `--nocapture` shows
//! the figures.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bgp::{Attributes, Event, PeerAsn, SessionConfig, StateKind, StopReason};
use ipnet::IpNet;
use netlab::{Namespace, wait_for};
use serde_json::{Value, json};
use tests::{
    bare_speaker::BareSpeaker,
    lab::{
        FAR, LIMIT, NAMESPACE, Pings, Policy, Route, Router, RouterConfig, RouterKind, Stage,
        Transport, Wiretap, announce_far, custom, gateways, node_name, on_stage, on_stage_with,
        peer_spec, wait_for_announcers, wait_for_routes,
    },
    raw_peer::{Open, RawPeer, UPDATE, capabilities_parameter},
};

const BGP: &str = "ServiceBGPStatus";
const PEER: &str = "metallb.io/v1beta2";
const ALL: [u8; 3] = [1, 2, 3];
const EXTERNAL: RouterConfig<'_> = RouterConfig::EXTERNAL;
const BOTH: [Transport; 2] = [Transport::V4, Transport::V6];

/// Both families over a session of each, on eBGP and on iBGP, with all attributes as they were
/// asked for; the routes go when they are withdrawn, and the router hears why a session ends.
#[test]
fn sessions_and_routes_with_every_router() {
    on_stage(|stage| {
        let attributes = json!({
            "communities": ["64512:100", "no-export", "large:64512:1:2", "rt:64512:7"],
            "localPref": 250, "med": 30, "asPathPrepend": 2,
        });
        announce_far(stage, peer_spec(EXTERNAL, Transport::V4), attributes)?;
        stage.api.delete(PEER, "BGPPeer", NAMESPACE, "router")?;
        for kind in RouterKind::ALL {
            if !kind.is_available() {
                println!("{kind:?}: skipped, it is not installed or may not run here");
                continue;
            }
            for asn in [64513, 64512] {
                let config = RouterConfig { asn, transports: &BOTH, ..EXTERNAL };
                every_route_is_there(stage, kind, config).with_context(|| format!("{kind:?}"))?;
            }
        }
        Ok(())
    });
}

fn every_route_is_there(
    stage: &mut Stage,
    kind: RouterKind,
    config: RouterConfig<'_>,
) -> Result<()> {
    let mut router = Router::start(stage, kind, config)?;
    let since = Instant::now();
    let name = |transport: Transport| format!("{kind:?}-{transport:?}").to_lowercase();
    for transport in BOTH {
        let mut spec = peer_spec(config, transport);
        spec["connectTime"] = json!("1s");
        stage.apply(&custom("BGPPeer", &name(transport), spec))?;
    }
    let ends = |transport: Transport| ALL.map(|number| transport.node(number));
    let neighbours: BTreeSet<_> = BOTH.into_iter().flat_map(ends).collect();
    router.wait_for_established(&neighbours)?;
    let established = since.elapsed();
    for address in FAR {
        let family = if address.contains(':') { Transport::V6 } else { Transport::V4 };
        wait_for(&format!("six paths to {address}"), LIMIT, || {
            let routes = router.routes(address)?;
            let from: BTreeSet<_> = routes.iter().map(|route| route.from).collect();
            ensure!(routes.len() == 6 && from == neighbours, "{routes:#?}");
            routes.iter().try_for_each(|route| check(route, config, family))
        })?;
    }
    let side = if config.asn == config.node_asn { "iBGP" } else { "eBGP" };
    println!(
        "{} {side}: IPv4 and IPv6 over IPv4 and over IPv6, established after {established:?}, \
         routes after {:?}",
        router.version()?,
        since.elapsed()
    );

    stage.set_endpoints("far", &[])?;
    for address in FAR {
        wait_for(&format!("no path to {address}"), LIMIT, || {
            let routes = router.routes(address)?;
            ensure!(routes.is_empty(), "{routes:#?}");
            Ok(())
        })?;
    }
    stage.set_endpoints("far", &[1, 2])?;
    for transport in BOTH {
        stage.api.delete(PEER, "BGPPeer", NAMESPACE, &name(transport))?;
    }
    router.wait_for_established(&BTreeSet::new())?;
    let node = Transport::V4.node(1);
    // RFC 4486: subcode 3.
    let wanted: &[&str] = match kind {
        RouterKind::Bird => &["Received: Peer de-configured"],
        RouterKind::Frr => &["0603"],
        RouterKind::GoBgp => &["peer deconfigured"],
        RouterKind::ExaBgp => &["\"code\":6", "\"subcode\":3"],
        RouterKind::OpenBgpd => &["Cease, peer unconfigured"],
    };
    wait_for("the router was told that it is no peer any more", LIMIT, || {
        let said = router.last_reset(node)?;
        ensure!(wanted.iter().all(|part| said.contains(part)), "{said:?}");
        Ok(())
    })?;
    router.stop()
}

fn check(route: &Route, config: RouterConfig<'_>, family: Transport) -> Result<()> {
    let is_internal = config.asn == config.node_asn;
    let number = ALL.into_iter().find(|n| BOTH.iter().any(|t| t.node(*n) == route.from));
    let own = family.node(number.context("it is of a node")?);
    ensure!(route.next_hops.first() == Some(&own), "next hop of {route:#?}");
    // Once, and twice more; not within an AS, where it would look like a loop.
    let as_path = if is_internal { Vec::new() } else { vec![config.node_asn; 3] };
    ensure!(route.as_path == as_path, "AS path of {route:#?}");
    ensure!(!is_internal || route.local_pref == Some(250), "local preference of {route:#?}");
    ensure!(route.med == Some(30), "MED of {route:#?}");
    let communities = BTreeSet::from([(64512, 100), (65535, 65281)]);
    ensure!(route.communities == communities, "communities of {route:#?}");
    let large = BTreeSet::from([(64512, 1, 2)]);
    ensure!(route.large_communities == large, "large communities of {route:#?}");
    let extended = BTreeSet::from(["rt:64512:7".to_owned()]);
    ensure!(route.extended_communities == extended, "extended communities of {route:#?}");
    ensure!(!route.stale, "{route:#?}");
    Ok(())
}

#[test]
fn routes_come_and_go_with_bird() {
    on_stage(|stage| routes_reach_the_kernel(stage, RouterKind::Bird, "Administrative shutdown"));
}

#[test]
fn routes_come_and_go_with_frr() {
    if !RouterKind::Frr.is_available() {
        println!("skipped: FRR is not installed, or may not become the user frr here");
        return;
    }
    on_stage(|stage| routes_reach_the_kernel(stage, RouterKind::Frr, "0602"));
}

/// `ceased` is how the router calls an administrative shutdown.
fn routes_reach_the_kernel(stage: &mut Stage, kind: RouterKind, ceased: &str) -> Result<()> {
    let mut router = Router::start(stage, kind, EXTERNAL)?;
    let mut since = Instant::now();
    let mut tell = |what: &str| {
        println!("{what}: {} ms", since.elapsed().as_millis());
        since = Instant::now();
    };
    announce_far(stage, peer_spec(EXTERNAL, Transport::V4), json!({}))?;
    wait_for_routes(stage, &ALL)?;
    tell("three next hops of both families in the kernel");
    wait_for_announcers(stage, BGP, "far", &ALL.map(node_name).into())?;

    tell("statuses");
    stage.set_endpoints("far", &[])?;
    wait_for_routes(stage, &[])?;
    tell("withdrawn with the last endpoint");
    wait_for_announcers(stage, BGP, "far", &BTreeSet::new())?;
    stage.expose("far", &FAR, Policy::Local, &[1, 2])?;
    wait_for_routes(stage, &[1, 2])?;
    tell("policy Local, endpoints on n1 and n2");
    stage.set_endpoints("far", &[2])?;
    wait_for_routes(stage, &[2])?;
    tell("the endpoint of n1 goes");
    stage.expose("far", &FAR, Policy::Cluster, &[2])?;
    wait_for_routes(stage, &ALL)?;

    tell("policy Cluster again");
    stage.node(3).stop_speaker()?;
    wait_for_routes(stage, &[1, 2])?;
    tell("n3's speaker gets SIGTERM: withdrawn");
    wait_for("the router got a Cease, administrative shutdown", LIMIT, || {
        let reset = router.last_reset(Transport::V4.node(3))?;
        ensure!(reset.contains(ceased), "{reset}");
        Ok(())
    })?;
    stage.start_speakers()?;
    wait_for_routes(stage, &ALL)?;

    tell("n3's speaker is back");
    router.restart()?;
    wait_for_routes(stage, &ALL)?;
    tell("the router restarts: routes back");
    stage.unexpose("far")?;
    wait_for_routes(stage, &[])?;
    tell("withdrawn with the Service");
    wait_for_announcers(stage, BGP, "far", &BTreeSet::new())
}

#[test]
fn md5_right_wrong_missing_rotated() {
    on_stage(|stage| {
        let secret = |password: &str| {
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/basic-auth",
                "metadata": {"name": "router", "namespace": NAMESPACE},
                "stringData": {"password": password},
            })
        };
        let with = |password| RouterConfig { password: Some(password), ..EXTERNAL };
        let router = Router::start(stage, RouterKind::Bird, with("s3cret"))?;
        stage.apply(&secret("wr0ng"))?;
        let mut plain = peer_spec(EXTERNAL, Transport::V4);
        plain["passwordSecret"] = Value::Null;
        let mut signed = plain.clone();
        signed["passwordSecret"] = json!({"name": "router"});
        announce_far(stage, signed.clone(), json!({}))?;
        // RFC 2385: what is signed wrongly is dropped without a word.
        let drops_more = |what: &str| {
            let before = md5_failures(&stage.router)?;
            wait_for(&format!("segments are dropped, {what}"), LIMIT, || {
                let dropped = md5_failures(&stage.router)? - before;
                ensure!(dropped >= 3, "{dropped} so far");
                Ok(())
            })?;
            ensure!(router.established()?.is_empty(), "{:?}", router.established());
            ensure!(gateways(&stage.router, FAR[0])?.is_empty());
            Ok(())
        };
        drops_more("signed with another password")?;
        let since = Instant::now();
        stage.apply(&secret("s3cret"))?;
        wait_for_routes(stage, &ALL)?;
        println!("with the right password: routes after {:?}", since.elapsed());

        stage.apply(&custom("BGPPeer", "router", plain))?;
        wait_for_routes(stage, &[])?;
        drops_more("not signed")?;
        stage.apply(&custom("BGPPeer", "router", signed))?;
        wait_for_routes(stage, &ALL)?;

        // Both sides within one moment: there is no second key to overlap with.
        let since = Instant::now();
        stage.apply(&secret("r0tated"))?;
        router.rewrite(with("r0tated"))?;
        router.ask("configure")?;
        wait_for("all sessions stand on the new password", LIMIT, || {
            let up = router.established()?;
            ensure!(up == ALL.map(|number| Transport::V4.node(number)).into(), "{up:?}");
            let signed_now = stage.router.run(&["ss", "-tnH", "sport", "=", ":179"])?;
            ensure!(signed_now.matches("ESTAB").count() == 3, "{signed_now}");
            Ok(())
        })?;
        wait_for_routes(stage, &ALL)?;
        println!("rotated on both sides: routes back after {:?}", since.elapsed());
        for node in &mut stage.nodes {
            let log = node.speaker.as_ref().context("it runs")?.log_tail(10_000);
            for password in ["s3cret", "wr0ng", "r0tated"] {
                ensure!(!log.contains(password), "a password is in {log}");
            }
        }
        Ok(())
    });
}

/// RFC 2918: what was sent is sent again, as often as the router asks.
#[test]
fn route_refresh_resends_everything() {
    if !RouterKind::Frr.is_available() {
        println!("skipped: FRR is not installed, or may not become the user frr here");
        return;
    }
    on_stage(|stage| {
        let router = Router::start(stage, RouterKind::Frr, EXTERNAL)?;
        announce_far(stage, peer_spec(EXTERNAL, Transport::V4), json!({}))?;
        wait_for_routes(stage, &ALL)?;
        let node = Transport::V4.node(1);
        let received = || -> Result<u64> {
            let shown = router.ask(&format!("show bgp neighbors {node} json"))?;
            let shown: Value = serde_json::from_str(&shown)?;
            let count = &shown[node.to_string()]["messageStats"]["updatesRecv"];
            count.as_u64().context("updatesRecv")
        };
        for _ in 0..3 {
            let before = received()?;
            router.ask(&format!("clear bgp ipv4 unicast {node} soft in"))?;
            router.ask(&format!("clear bgp ipv6 unicast {node} soft in"))?;
            wait_for("both families come again", LIMIT, || {
                let now = received()?;
                ensure!(now >= before + 2, "{before} UPDATEs before, now {now}");
                Ok(())
            })?;
            println!("{} UPDATEs for a refresh of each family", received()? - before);
            wait_for_routes(stage, &ALL)?;
        }
        Ok(())
    });
}

/// RFC 6793: what does not fit into two octets goes beside it.
#[test]
fn four_octet_as_numbers_with_an_old_speaker() {
    const WIDE: u32 = 4_200_000_001;
    on_stage(|stage| {
        for (asn, two_octets) in [(WIDE, 23456), (64512, 64512_u16)] {
            let peer = RawPeer::listen(&stage.router, "10.0.0.1:179".parse()?)?;
            let mut spec = peer_spec(RouterConfig { node_asn: asn, ..EXTERNAL }, Transport::V4);
            spec["nodeSelectors"] = on_node(1);
            announce_far(stage, spec, json!({}))?;
            let mut connection = peer.accept()?;
            let capabilities = [1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1];
            let parameters = capabilities_parameter(&capabilities);
            let old = Open { parameters, ..Open::new(64513) };
            let theirs = connection.establish(&old)?;
            ensure!(theirs.body[1..3] == two_octets.to_be_bytes(), "{theirs:02x?}");
            ensure!(theirs.capabilities()?[&65] == [asn.to_be_bytes()], "{theirs:02x?}");
            let mut prefixes = 0;
            while prefixes < 2 {
                let attributes = connection.expect(UPDATE)?.attributes()?;
                // End-of-RIB has no path.
                let Some(path) = attributes.get(&2) else { continue };
                // One AS_SEQUENCE of one number (RFC 4271 section 4.3).
                ensure!(path[..] == [&[2, 1], &two_octets.to_be_bytes()[..]].concat(), "{path:?}");
                let wide = (asn == WIDE).then(|| [&[2, 1], &asn.to_be_bytes()[..]].concat());
                ensure!(attributes.get(&17) == wide.as_ref(), "AS4_PATH in {attributes:?}");
                prefixes += 1;
            }
            println!("AS {asn} towards two octets: {two_octets}");
            stage.api.delete(PEER, "BGPPeer", NAMESPACE, "router")?;
            let farewell = connection.until_closed()?;
            let farewell = farewell.last().context("a NOTIFICATION")?.notification()?;
            ensure!(farewell == (6, 3, vec![]), "{farewell:?}");
        }
        Ok(())
    });
}

/// RFC 8326: routers are told first, turn away without a loss, and only then are the routes
/// withdrawn and the session closed, with words for the router's log.
#[test]
fn drain_loses_nothing() {
    const GRACEFUL_SHUTDOWN: (u16, u16) = (65535, 0);
    if !RouterKind::Frr.is_available() {
        println!("skipped: FRR is not installed, or may not become the user frr here");
        return;
    }
    on_stage_with(&["--bgp-drain-time=2"], |stage| {
        let router = Router::start(stage, RouterKind::Frr, EXTERNAL)?;
        announce_far(stage, peer_spec(EXTERNAL, Transport::V4), json!({}))?;
        wait_for_routes(stage, &ALL)?;
        stage.client.add_route("203.0.113.0/24", "10.0.0.1")?;
        stage.client.add_route("2001:db8:113::/64", "fd00:a::1")?;
        // Whichever node a flow is on, it is drained once.
        for number in ALL {
            let node = Transport::V4.node(number);
            let pings = FAR.map(|address| Pings::start(&stage.client, address));
            let wiretap = Wiretap::start(stage, &format!("tcp port 179 and host {node}"))?;
            let since = Instant::now();
            stage.annotate(number, "berth.io/drain", Some("true"))?;
            for address in FAR {
                wait_for(&format!("{address} of n{number} is about to go"), LIMIT, || {
                    let routes = router.routes(address)?;
                    let of_node = routes.iter().find(|route| route.from == node);
                    let route = of_node.context("it is gone already")?;
                    ensure!(route.communities.contains(&GRACEFUL_SHUTDOWN), "{route:#?}");
                    ensure!(route.local_pref == Some(0), "FRR does not honour it: {route:#?}");
                    Ok(())
                })?;
            }
            let told = since.elapsed();
            let others: Vec<_> = ALL.into_iter().filter(|other| *other != number).collect();
            wait_for_routes(stage, &others)?;
            wait_for("the session is closed", LIMIT, || {
                ensure!(!router.established()?.contains(&node), "it is up");
                let said = router.last_reset(node)?;
                ensure!(said.contains("0602"), "{said}");
                Ok(())
            })?;
            println!(
                "n{number}: the router is told after {told:?}, left after {:?}",
                since.elapsed()
            );
            for pings in pings {
                let pings = pings?;
                pings.wait_for_more()?;
                let answers = pings.stop()?;
                println!("{} of {} pings lost", answers.lost, answers.sent);
                // None is what is meant; one is room for a scheduler that is busy elsewhere.
                ensure!(answers.lost <= 1, "{answers:?}");
            }
            let decoded = wiretap.decode()?;
            if number == 1 {
                println!("what was said meanwhile:\n{decoded}");
            }
            stage.annotate(number, "berth.io/drain", None)?;
            wait_for_routes(stage, &ALL)?;
        }
        let log = router.log()?;
        ensure!(log.contains("node is drained"), "{log}");
        Ok(())
    });
}

/// The engine alone, for the API cannot be given as many Services in the time of a test.
#[test]
fn a_hundred_thousand_routes() {
    const ROUTES: u32 = 100_000;
    // RFC 4271 section 4.3: 5 octets each, in messages of 4096.
    const UPDATES: u64 = 130;
    on_stage(|stage| {
        for kind in [RouterKind::Bird, RouterKind::Frr] {
            if !kind.is_available() {
                println!("{kind:?}: skipped, it is not installed or may not run here");
                continue;
            }
            let mut router = Router::start(stage, kind, EXTERNAL)?;
            let node = Transport::V4.node(1);
            let config = SessionConfig::new(64512, PeerAsn::Number(64513), [10, 0, 0, 11].into());
            let host = &stage.nodes[0].namespace;
            let mut speaker = BareSpeaker::new(host, "10.0.0.1:179".parse()?, config, None);
            let prefix =
                |number: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0b00_0000 + number)));
            let attributes = Arc::new(Attributes::default());
            speaker.tell(Event::Start)?;
            let announced = (0..ROUTES).map(|n| (prefix(n), Some(Arc::clone(&attributes))));
            speaker.change(announced.collect())?;
            speaker.tell(Event::Complete)?;
            let is_up =
                |speaker: &BareSpeaker| Ok(speaker.session().state() == StateKind::Established);
            speaker.run_until(LIMIT, is_up)?;
            let since = Instant::now();
            let has = |count: u64| {
                let router = &router;
                let mut asked = Instant::now();
                move |speaker: &BareSpeaker| {
                    // Asking costs the router more than taking in routes.
                    if !speaker.is_written() || asked.elapsed() < Duration::from_millis(50) {
                        return Ok(false);
                    }
                    let now = router.prefixes(node)?;
                    asked = Instant::now();
                    Ok(now == count)
                }
            };
            speaker.run_until(6 * LIMIT, has(ROUTES.into()))?;
            let updates = speaker.session().stats().sent.update;
            println!(
                "{}: {ROUTES} routes after {:?}, {updates} UPDATEs",
                router.version()?,
                since.elapsed()
            );
            ensure!(updates <= UPDATES, "{updates} UPDATEs");
            let since = Instant::now();
            speaker.change((0..ROUTES).map(|n| (prefix(n), None)).collect())?;
            speaker.run_until(6 * LIMIT, has(0))?;
            let withdrawals = speaker.session().stats().sent.update - updates;
            println!("withdrawn after {:?}, {withdrawals} UPDATEs", since.elapsed());
            ensure!(withdrawals <= UPDATES, "{withdrawals} UPDATEs");
            speaker.tell(Event::Stop { reason: StopReason::PeerDeconfigured })?;
            router.stop()?;
        }
        Ok(())
    });
}

/// `spec.nodeSelectors` of one node.
fn on_node(number: u8) -> Value {
    json!([{"matchLabels": {"kubernetes.io/hostname": node_name(number)}}])
}

/// Segments that were dropped for their TCP MD5 signature, wrong or missing (proc_pid_net(5)).
fn md5_failures(host: &Namespace) -> Result<u64> {
    let text = host.run(&["cat", "/proc/net/netstat"])?;
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("TcpExt:")).collect();
    let [names, values] = lines[..] else { anyhow::bail!("{text}") };
    let pairs = names.split_whitespace().zip(values.split_whitespace());
    let failures = pairs.filter(|(name, _)| ["TCPMD5NotFound", "TCPMD5Failure"].contains(name));
    Ok(failures.filter_map(|(_, value)| value.parse::<u64>().ok()).sum())
}
