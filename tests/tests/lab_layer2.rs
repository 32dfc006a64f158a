//! Who answers for an address when things go wrong: the speaker as it is shipped, on the real kernel,
//! one test for each fault. Run with `--test-threads=1`: times are measured. `--nocapture` shows the
//! figures. As an ordinary user it runs in a user namespace.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use netlab::{Namespace, wait_for};
use serde_json::json;
use tests::lab::{
    Answers, Capture, DEVICE, Form, LIMIT, Pings, Policy, Stage, arping, neighbour, node_mac,
    on_stage, on_stage_with,
};

const POOL: [&str; 2] = ["10.0.0.200-10.0.0.239", "fd00:a::200-fd00:a::2ff"];
/// How many addresses of each family a test plays with.
const EACH: u8 = 6;
/// A take-over at the default of 40 ms and 4 misses takes 160 to 240 ms; the rest is room for a
/// busy machine.
const OUTAGE: Duration = Duration::from_millis(600);
/// As long as heartbeats or the segment are disturbed: many times the life of a silent peer.
const DISTURBED: Duration = Duration::from_secs(5);
const DRAIN: &str = "berth.io/drain";
/// The user that the DaemonSet runs the speaker as.
const NOBODY: u32 = 65532;
/// Heartbeats, for a filter of the switch.
const HEARTBEATS: &str = "udp dport 7946";

#[test]
fn heartbeats_that_are_cut_move_nothing() {
    on_stage(|stage| undisturbed_by(stage, &format!("{HEARTBEATS} drop")));
}

#[test]
fn a_fifth_of_the_heartbeats_lost_moves_nothing() {
    let rule = format!("{HEARTBEATS} numgen random mod 100 < 20 drop");
    on_stage(|stage| undisturbed_by(stage, &rule));
}

#[test]
fn one_way_loss_of_heartbeats_moves_nothing() {
    let rule = format!("{HEARTBEATS} ip saddr 10.0.0.11 drop");
    on_stage(|stage| undisturbed_by(stage, &rule));
}

/// While the switch does what `rule` says every address stays where it is, and is answered for.
fn undisturbed_by(stage: &mut Stage, rule: &str) -> Result<()> {
    let addresses = expose(stage)?;
    let before = owners(stage, &addresses)?;
    let capture = Capture::start(&stage.client)?;
    let pings = Pings::start(&stage.client, &addresses[0])?;
    stage.filter(rule)?;
    sleep(DISTURBED);
    stage.filter("")?;
    sleep(Duration::from_secs(1));
    let answers = pings.stop()?;
    tell(rule, answers);
    let vetoes = stage.nodes_metric("berth_layer2_vetoes_total")?;
    println!("{vetoes} vetoes");
    let moved = announced_by_others(&capture.stop(), &before);
    ensure!(moved.is_empty(), "moved: {moved:?}");
    assert_eq!(owners(stage, &addresses)?, before);
    ensure!(answers.lost <= 1, "{answers:?}");
    Ok(())
}

#[test]
fn a_killed_speaker_is_replaced_and_nothing_moves_back() {
    on_stage(|stage| {
        let addresses = expose(stage)?;
        let address = &addresses[0];
        let killed = stage.owner(address)?;
        let capture = Capture::start(&stage.client)?;
        let pings = Pings::start(&stage.client, address)?;
        drop(stage.node(killed).speaker.take());
        let heir = wait_for("another node announces", LIMIT, || {
            let mac = neighbour(&stage.client, address)?.mac.context("no MAC address")?;
            (1..=3).find(|n| *n != killed && node_mac(*n) == mac).context("not yet")
        })?;
        pings.wait_for_more()?;
        let answers = pings.stop()?;
        tell(&format!("the speaker of n{killed} is killed, n{heir} takes {address}"), answers);
        // The node itself goes on forwarding.
        ensure!(answers.lost <= 1, "{answers:?}");
        drop(capture);

        let after = owners(stage, &addresses)?;
        let capture = Capture::start(&stage.client)?;
        stage.start_speakers()?;
        sleep(Duration::from_secs(3));
        let moved = announced_by_others(&capture.stop(), &after);
        ensure!(moved.is_empty(), "moved back: {moved:?}");
        assert_eq!(owners(stage, &addresses)?, after);
        Ok(())
    });
}

#[test]
fn a_dead_node_is_replaced_while_the_api_server_is_away() {
    on_stage(|stage| {
        let addresses = expose(stage)?;
        stage.api.set_available(false);
        let address = &addresses[1];
        let dead = stage.owner(address)?;
        let pings = Pings::start(&stage.client, address)?;
        let capture = Capture::start(&stage.client)?;
        let since = Instant::now();
        stage.kill_node(dead)?;
        pings.wait_for_more()?;
        let answers = pings.stop()?;
        tell(&format!("n{dead}, the owner of {address}, dies without the API server"), answers);
        println!("what the client heard, in ms since the link was cut:");
        for (at, frame) in capture.stop_and_time() {
            let at = at.saturating_duration_since(since).as_secs_f64() * 1000.0;
            println!("{at:>9.3} {} is at {} ({:?})", frame.address, frame.mac, frame.form);
        }
        ensure!(answers.longest_gap <= OUTAGE, "{answers:?}");
        stage.api.set_available(true);
        Ok(())
    });
}

#[test]
fn a_speaker_starts_without_the_api_server_and_takes_up_what_it_had() {
    on_stage(|stage| {
        let addresses = expose(stage)?;
        let before = owners(stage, &addresses)?;
        // Long enough for what is remembered to be written.
        sleep(Duration::from_secs(3));
        stage.api.set_available(false);
        for number in 1..=3 {
            drop(stage.node(number).speaker.take());
        }
        let since = Instant::now();
        for number in 1..=3 {
            stage.start_speaker(number)?;
        }
        for address in &addresses {
            wait_for(&format!("{address} is answered for"), LIMIT, || stage.owner(address))?;
        }
        println!("all answer {:?} after the start without an API server", since.elapsed());
        assert_eq!(owners(stage, &addresses)?, before, "everybody has what was theirs");
        stage.api.set_available(true);
        stage.start_speakers()?;
        assert_eq!(owners(stage, &addresses)?, before);
        stage.unexpose("s0")?;
        wait_for("what is deleted is let go", LIMIT, || {
            ensure!(stage.owner(&addresses[0]).is_err());
            Ok(())
        })
    });
}

#[test]
fn a_rolling_restart_ends_where_it_began() {
    on_stage(|stage| {
        let addresses = expose(stage)?;
        let before = owners(stage, &addresses)?;
        let pings = Pings::start(&stage.client, &addresses[0])?;
        for number in 1..=3 {
            stage.node(number).stop_speaker()?;
            stage.start_speakers()?;
            wait_for("it has its addresses back", LIMIT, || {
                let now = owners(stage, &addresses)?;
                ensure!(now == before, "{now:?}, before {before:?}");
                Ok(())
            })?;
        }
        let answers = pings.stop()?;
        tell("rolling restart", answers);
        ensure!(answers.lost <= 1, "{answers:?}");
        Ok(())
    });
}

#[test]
fn a_drained_node_hands_over_and_gets_nothing_back() {
    on_stage(|stage| {
        let addresses = expose(stage)?;
        let drained = stage.owner(&addresses[0])?;
        let pings = Pings::start(&stage.client, &addresses[0])?;
        stage.annotate(drained, DRAIN, Some("true"))?;
        wait_for("the drained node owns nothing", LIMIT, || {
            let now = owners(stage, &addresses)?;
            ensure!(now.values().all(|owner| *owner != drained), "{now:?}");
            Ok(())
        })?;
        pings.wait_for_more()?;
        let answers = pings.stop()?;
        tell(&format!("n{drained} is drained"), answers);
        ensure!(answers.lost <= 1, "{answers:?}");
        let after = owners(stage, &addresses)?;
        stage.annotate(drained, DRAIN, None)?;
        sleep(Duration::from_secs(2));
        assert_eq!(owners(stage, &addresses)?, after);
        Ok(())
    });
}

#[test]
fn both_sides_of_a_split_are_served_and_one_answers_after_it() {
    on_stage(|stage| {
        let addresses = expose(stage)?;
        let owners = owners(stage, &addresses)?;
        // The client stays with n1.
        let (address, far) = owners.iter().find(|(_, owner)| **owner != 1).context("all at n1")?;
        let far_side = format!(
            "iifname {{ \"client-{DEVICE}\", \"router-{DEVICE}\", \"n1-{DEVICE}\" }} \
             oifname {{ \"n2-{DEVICE}\", \"n3-{DEVICE}\" }} drop\n\
             iifname {{ \"n2-{DEVICE}\", \"n3-{DEVICE}\" }} \
             oifname {{ \"client-{DEVICE}\", \"router-{DEVICE}\", \"n1-{DEVICE}\" }} drop"
        );
        let pings = Pings::start(&stage.client, address)?;
        stage.filter(&far_side)?;
        pings.wait_for_more()?;
        let answers = pings.stop()?;
        tell(&format!("n{far}, the owner of {address}, is on the other side"), answers);
        ensure!(answers.longest_gap <= OUTAGE, "{answers:?}");
        assert_eq!(stage.owner(address)?, 1);

        stage.filter("")?;
        let healed = Instant::now();
        for address in &addresses {
            one_answers(stage, address)?;
        }
        println!("one answers for each of them {:?} after the heal, heard out", healed.elapsed());
        let pings = Pings::start(&stage.client, address)?;
        pings.wait_for_more()?;
        let answers = pings.stop()?;
        ensure!(answers.lost <= 1, "{answers:?}");
        Ok(())
    });
}

#[test]
fn an_address_that_a_foreign_host_has_is_not_announced() {
    on_stage(|stage| {
        let stranger = stage.stranger("stranger")?;
        stranger.ip(&format!("address add 10.0.0.200/24 dev {DEVICE}"))?;
        stranger.ip(&format!("address add fd00:a::200/64 dev {DEVICE} nodad"))?;
        let theirs = mac_of(&stranger)?;
        expose(stage)?;
        let capture = Capture::start(&stage.client)?;
        wait_for("an Event tells of it", LIMIT, || conflict_events(stage, &theirs))?;
        sleep(Duration::from_secs(2));
        let heard = capture.stop();
        for address in ["10.0.0.200", "fd00:a::200"] {
            let ours = heard
                .iter()
                .find(|frame| frame.address.to_string() == address && frame.mac != theirs);
            ensure!(ours.is_none(), "{ours:?}");
        }
        // When the other has gone it is announced.
        stranger.ip(&format!("link set {DEVICE} down"))?;
        for address in ["10.0.0.200", "fd00:a::200"] {
            stage.wait_for_owner(address, |_| true)?;
        }
        Ok(())
    });
}

#[test]
fn an_owner_defends_its_address_and_says_who_wants_it() {
    on_stage(|stage| {
        let addresses = expose(stage)?;
        let owner = stage.owner(&addresses[0])?;
        let stranger = stage.stranger("stranger")?;
        let theirs = mac_of(&stranger)?;
        stranger.ip(&format!("address add {}/24 dev {DEVICE}", addresses[0]))?;
        // The announcements of its coming are over by then.
        sleep(Duration::from_secs(6));
        let capture = Capture::start(&stage.client)?;
        // It tells everybody that it has the address, ten times.
        arping(&stranger, &format!("-U -c 10 -w 11 {}", addresses[0]))?;
        let defended = capture.stop().into_iter().filter(|frame| {
            frame.address.to_string() == addresses[0]
                && frame.mac == node_mac(owner)
                && frame.form == Form::GratuitousRequest
        });
        let defended = defended.count();
        println!("{defended} announcements against 10 of the stranger's");
        // RFC 5227 section 2.4: no more than one each 10 s.
        ensure!((1..=2).contains(&defended), "{defended}");
        wait_for("an Event tells of it", LIMIT, || conflict_events(stage, &theirs))?;
        wait_for("the status tells of it", LIMIT, || conflict_condition(stage, &theirs))?;
        stranger.ip(&format!("link set {DEVICE} down"))?;
        stage.wait_for_owner(&addresses[0], |now| now == owner)?;
        Ok(())
    });
}

#[test]
fn a_node_without_the_named_interface_is_no_candidate() {
    on_stage(|stage| {
        stage.node(1).namespace.ip(&format!("link set {DEVICE} down"))?;
        stage.node(1).namespace.ip(&format!("link set {DEVICE} name uplink"))?;
        stage.node(1).namespace.ip("link set uplink up")?;
        stage.announce("near", &POOL, "L2Advertisement", json!({ "interfaces": [DEVICE] }))?;
        let addresses = services(stage)?;
        let owners = owners(stage, &addresses)?;
        ensure!(owners.values().all(|owner| *owner != 1), "{owners:?}");
        // The interface goes under the owner: another one has it.
        let pings = Pings::start(&stage.client, &addresses[0])?;
        let owner = owners[&addresses[0]];
        let node = stage.node(owner).namespace.clone();
        for step in ["down", "name uplink"] {
            node.ip(&format!("link set {DEVICE} {step}"))?;
        }
        pings.wait_for_more()?;
        let answers = pings.stop()?;
        tell(&format!("n{owner} loses the named interface"), answers);
        ensure!(answers.longest_gap <= OUTAGE, "{answers:?}");
        Ok(())
    });
}

#[test]
fn half_an_hour_of_unreachability_detection_loses_nothing() {
    on_stage(|stage| {
        let addresses = expose(stage)?;
        for family in ["ipv4", "ipv6"] {
            // 30 s reachable and 5 s of delay before the probe, made 0.5 s and 1 s: 60 rounds of the
            // half hour take 90 s, of which a third is waited for here.
            let of = |what: &str| format!("net.{family}.neigh.{DEVICE}.{what}");
            stage.client.sysctl(&of("base_reachable_time_ms"), 500)?;
            stage.client.sysctl(&of("delay_first_probe_time"), 1)?;
        }
        let played: Vec<_> = [&addresses[0], &addresses[1]].into();
        let requests = "metallb_layer2_requests_received";
        let before = stage.nodes_metric(requests)?;
        let pings: Result<Vec<_>> =
            played.iter().map(|address| Pings::start(&stage.client, address)).collect();
        let pings = pings?;
        sleep(Duration::from_secs(30));
        for (pings, address) in pings.into_iter().zip(&played) {
            let answers = pings.stop()?;
            tell(&format!("unreachability detection of {address}"), answers);
            ensure!(answers.lost <= 1, "{answers:?}");
        }
        let asked = stage.nodes_metric(requests)? - before;
        println!("the client's kernel asked {asked} times");
        ensure!(asked >= 20.0, "it asked only {asked} times");
        Ok(())
    });
}

#[test]
fn solicitations_pass_a_switch_that_snoops() {
    on_stage(|stage| behind_a_switch_that_snoops(stage, 2));
}

/// There a member that has seen another's report keeps its own back, and all candidates are members.
#[test]
fn solicitations_pass_a_switch_that_snoops_by_mldv1() {
    on_stage(|stage| behind_a_switch_that_snoops(stage, 1));
}

/// The switch asks for members by this version of MLD, and passes on to those alone that it knows.
fn behind_a_switch_that_snoops(stage: &mut Stage, version: u8) -> Result<()> {
    let addresses = expose(stage)?;
    let all = owners(stage, &addresses)?;
    let v6: Vec<_> = addresses.iter().filter(|address| address.contains(':')).collect();
    let switch = stage.lan.namespace().clone();
    switch.ip(&format!(
        "link set br0 type bridge mcast_snooping 1 mcast_querier 1 mcast_mld_version {version}"
    ))?;
    // It floods until its first question has had its time (RFC 3810 section 9.3, 10 s), and by then
    // it has heard who answers it. An owner's own reports follow within 75 s of the last.
    let learnt = Duration::from_secs(90);
    let since = Instant::now();
    let port = |owner: u8| format!("n{owner}-{DEVICE}");
    wait_for("the switch knows each owner's port", learnt, || {
        let members = switch.run(&["bridge", "mdb", "show"])?;
        for address in &v6 {
            let (group, port) = (group_of(address)?, port(all[*address]));
            let known = members.lines().any(|line| line.contains(&group) && line.contains(&port));
            ensure!(known, "{port} is no member of {group}: {members}");
        }
        Ok(())
    })?;
    println!("MLDv{version}: the switch knows all owners after {:?}", since.elapsed());
    sleep(Duration::from_secs(14).saturating_sub(since.elapsed()));
    for address in &v6 {
        stage.wait_for_owner(address, |owner| owner == all[*address])?;
    }
    // The others have kept theirs back, as far as the switch knows: whoever takes over has to tell it.
    for address in &v6 {
        let group = group_of(address)?;
        for other in (1..=3).filter(|number| *number != all[*address]) {
            let (port, known) = (port(other), switch.run(&["bridge", "mdb", "show"])?);
            if known.lines().any(|line| line.contains(&group) && line.contains(&port)) {
                let del = ["bridge", "mdb", "del", "dev", "br0", "port", &port, "grp", &group];
                switch.run(&del)?;
            }
        }
    }
    let address = v6.first().context("IPv6")?;
    let owner = all[*address];
    let pings = Pings::start(&stage.client, address)?;
    stage.kill_node(owner)?;
    stage.wait_for_owner(address, |heir| heir != owner)?;
    pings.wait_for_more()?;
    let answers = pings.stop()?;
    tell(&format!("n{owner} dies behind a switch that snoops by MLDv{version}"), answers);
    ensure!(answers.longest_gap <= OUTAGE, "{answers:?}");
    for address in v6 {
        let heir = stage.wait_for_owner(address, |heir| heir != owner)?;
        let members = switch.run(&["bridge", "mdb", "show"])?;
        let (group, port) = (group_of(address)?, port(heir));
        let known = members.lines().any(|line| line.contains(&group) && line.contains(&port));
        ensure!(known, "{port} is no member of {group}: {members}");
    }
    Ok(())
}

/// The solicited-node group of an IPv6 address (RFC 4291 section 2.7.1).
fn group_of(address: &str) -> Result<String> {
    let [.., high, low] = address.parse::<std::net::Ipv6Addr>()?.segments();
    Ok(std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low).to_string())
}

/// As the DaemonSet runs it: not root, nothing but CAP_NET_RAW in reach, and that from the program's
/// file.
#[test]
fn a_speaker_that_is_not_root_has_the_capability_of_its_program() {
    on_stage(|stage| {
        let users = std::fs::read_to_string("/proc/self/uid_map")?;
        let mapped = users.split_whitespace().nth(2).context("a count of users")?;
        if mapped.parse::<u32>()? <= NOBODY {
            println!("skipped: this user namespace has no other user to be");
            return Ok(());
        }
        let addresses = expose(stage)?;
        for number in 2..=3 {
            drop(stage.node(number).speaker.take());
        }
        let (folder, speaker) = (stage.directory().join("nobody"), stage.node(1).speaker.take());
        let speaker = speaker.context("it runs")?;
        let program = folder.join("berth-speaker");
        for folder in [folder.clone(), folder.join("run")] {
            std::fs::create_dir_all(&folder)?;
            std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY))?;
        }
        std::fs::copy(format!("/proc/{}/exe", speaker.pid()), &program)?;
        let kubeconfig = folder.join("kubeconfig");
        std::fs::copy(stage.directory().join("kubeconfig"), &kubeconfig)?;
        std::os::unix::fs::chown(&kubeconfig, Some(NOBODY), Some(NOBODY))?;
        let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", speaker.pid()))?;
        let mut arguments: Vec<_> = arguments.split_terminator('\0').map(str::to_owned).collect();
        let run = arguments.iter().position(|word| word == "--run-dir").context("--run-dir")?;
        arguments[run + 1] = folder.join("run").to_string_lossy().into_owned();
        drop(speaker);

        let node = stage.node(1).namespace.clone();
        let start = |name: &str| {
            let mut command = node.command("setpriv");
            let user = format!("--reuid={NOBODY}");
            command.args([&*user, "--regid=65532", "--clear-groups", "--inh-caps=-all"]);
            command.args(["--bounding-set=-all,+net_raw", "--"]).arg(&program);
            command.args(&arguments[1..]);
            command.env("KUBECONFIG", &kubeconfig);
            node.spawn(name, command)
        };
        // A copy that has lost what the file had says what to do.
        let mut lost = start("lost")?;
        let status = wait_for("it ends", LIMIT, || lost.ended()?.context("it runs"))?;
        ensure!(
            !status.success() && lost.log_tail(100).contains("setcap cap_net_raw=p"),
            "{status}"
        );

        let permitted = "cap_net_raw,cap_net_bind_service=p";
        node.run(&["setcap", permitted, &program.to_string_lossy()])?;
        let speaker = start("nobody")?;
        for address in &addresses {
            stage.wait_for_owner(address, |owner| owner == 1)?;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", speaker.pid()))?;
        for expected in [
            "Uid:\t65532\t65532\t65532\t65532",
            "CapPrm:\t0000000000002000",
            "CapEff:\t0000000000002000",
            "CapBnd:\t0000000000002000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            ensure!(status.contains(expected), "{expected} is not in {status}");
        }
        wait_for("it remembers", LIMIT, || {
            let kept = std::fs::read_dir(folder.join("run"))?.next().context("nothing is kept")?;
            println!("kept in {}", kept?.path().display());
            Ok(())
        })
    });
}

#[test]
fn a_speaker_with_another_key_is_counted_and_not_believed() {
    on_stage(|stage| {
        let addresses = expose(stage)?;
        let before = owners(stage, &addresses)?;
        let folder = stage.directory().to_owned();
        stage.node(3).set_key(&folder, "another key altogether")?;
        wait_for("heartbeats are refused", LIMIT, || {
            let refused = stage.metric(1, "berth_speaker_heartbeats_refused_total")?;
            ensure!(refused >= 10.0, "{refused} so far");
            Ok(())
        })?;
        // Alone with its key it asks the segment, and is told that the addresses are served.
        sleep(Duration::from_secs(4));
        assert_eq!(owners(stage, &addresses)?, before);
        // When all have the new one they agree again, without a restart.
        for number in 1..=2 {
            stage.node(number).set_key(&folder, "another key altogether")?;
        }
        wait_for("all hear each other again", LIMIT, || {
            let live = stage.nodes_metric("berth_speaker_live_peers")?;
            ensure!(live >= 6.0, "{live} of 6");
            Ok(())
        })?;
        assert_eq!(owners(stage, &addresses)?, before);
        Ok(())
    });
}

#[test]
fn the_fast_profile_is_faster() {
    on_stage_with(&["--heartbeat-profile", "fast"], |stage| {
        let addresses = expose(stage)?;
        let dead = stage.owner(&addresses[0])?;
        let pings = Pings::start(&stage.client, &addresses[0])?;
        stage.kill_node(dead)?;
        pings.wait_for_more()?;
        let answers = pings.stop()?;
        tell("a node dies, fast profile", answers);
        ensure!(answers.longest_gap <= OUTAGE / 2, "{answers:?}");
        Ok(())
    });
}

/// The pool, its advertisement, and the Services of [`services`].
fn expose(stage: &Stage) -> Result<Vec<String>> {
    stage.announce("near", &POOL, "L2Advertisement", json!({}))?;
    services(stage)
}

/// Dual-stack Services `s0`, `s1` and so on; their addresses, IPv4 and IPv6 in turn.
fn services(stage: &Stage) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for number in 0..EACH {
        let pair = [format!("10.0.0.{}", 200 + number), format!("fd00:a::2{number:02}")];
        let addresses = pair.each_ref().map(String::as_str);
        stage.expose(&format!("s{number}"), &addresses, Policy::Cluster, &[1, 2, 3])?;
        all.extend(pair);
    }
    Ok(all)
}

/// Who answers for each address, once somebody does.
fn owners(stage: &Stage, addresses: &[String]) -> Result<BTreeMap<String, u8>> {
    addresses
        .iter()
        .map(|address| {
            let owner =
                wait_for(&format!("somebody has {address}"), LIMIT, || stage.owner(address))?;
            Ok((address.clone(), owner))
        })
        .collect()
}

/// Addresses that were told to be at another node than `owners` says, and where.
fn announced_by_others(
    heard: &[tests::lab::Heard],
    owners: &BTreeMap<String, u8>,
) -> BTreeSet<(IpAddr, String)> {
    heard
        .iter()
        .filter(|frame| {
            let owner = owners.get(&frame.address.to_string());
            owner.is_some_and(|owner| node_mac(*owner) != frame.mac)
        })
        .map(|frame| (frame.address, frame.mac.clone()))
        .collect()
}

/// Until exactly one station answers for an address, heard out for two seconds.
fn one_answers(stage: &Stage, address: &str) -> Result<()> {
    if address.contains(':') {
        return stage.wait_for_owner(address, |_| true).map(drop);
    }
    wait_for(&format!("exactly one answers for {address}"), LIMIT, || {
        let macs = arping(&stage.client, &format!("-b -c 2 -w 3 {address}"))?;
        ensure!(macs.len() == 1, "{macs:?}");
        Ok(())
    })
}

/// An Event of a Service tells of a conflict and names the station, and where it was heard.
fn conflict_events(stage: &Stage, mac: &str) -> Result<()> {
    let station = format!("{mac} on interface {DEVICE}");
    let events = stage.api.list("events.k8s.io/v1", "Event", Some("default"))?;
    let told = events.iter().any(|event| {
        event["reason"] == "AddressConflict"
            && event["note"].as_str().is_some_and(|note| note.contains(&station))
    });
    ensure!(told, "{} Events, none of them", events.len());
    Ok(())
}

/// So does the condition of a Service's status.
fn conflict_condition(stage: &Stage, mac: &str) -> Result<()> {
    let station = format!("{mac} on interface {DEVICE}");
    let statuses =
        stage.api.list("metallb.io/v1beta1", "ServiceL2Status", Some("metallb-system"))?;
    let told = statuses.iter().any(|status| {
        let message = status["status"]["conditions"][0]["message"].as_str();
        message.is_some_and(|message| message.contains(&station))
    });
    ensure!(told, "none of {statuses:?}");
    Ok(())
}

fn mac_of(host: &Namespace) -> Result<String> {
    let path = format!("/sys/class/net/{DEVICE}/address");
    Ok(host.run(&["cat", &path])?.trim().to_owned())
}

fn tell(what: &str, answers: Answers) {
    println!(
        "{what}: longest gap {} ms, {} of {} pings lost",
        answers.longest_gap.as_millis(),
        answers.lost,
        answers.sent
    );
}
