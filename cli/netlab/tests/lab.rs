//! The lab on the real kernel: needs root (or a user namespace around it), nft, ping, curl, python3.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use netlab::nft::{self, Protocol, Service};
use netlab::{End, Lab, Namespace, Process, Signal, connect, wait_for};

const LIMIT: Duration = Duration::from_secs(10);

fn end<'a>(namespace: &'a Namespace, addresses: &'a [&'a str]) -> End<'a> {
    End { namespace, device: "eth0", mac: None, addresses }
}

fn pings(from: &Namespace, address: &str) -> Result<()> {
    from.run(&["ping", "-c", "1", "-W", "1", address]).map(drop)
}

/// A web server that answers every path with its own name.
fn backend(namespace: &Namespace) -> Process {
    let program = "
import http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())
Server(('::', 8080), Handler).serve_forever()";
    let mut command = namespace.command("python3");
    command.args(["-c", program, namespace.name()]);
    namespace.spawn("backend", command).unwrap()
}

fn fetch(from: &Namespace, url: &str) -> Result<String> {
    from.run(&["curl", "-sS", "--max-time", "2", url])
}

#[test]
fn hosts_on_a_switch_reach_each_other_until_one_is_unplugged() {
    let lab = Lab::new().unwrap();
    let switch = lab.switch("lan").unwrap();
    let (a, b) = (lab.namespace("a").unwrap(), lab.namespace("b").unwrap());
    switch.plug(end(&a, &["10.0.0.1/24", "fd00::1/64"])).unwrap();
    let port = End { mac: Some("02:00:00:00:00:0b"), ..end(&b, &["10.0.0.2/24", "fd00::2/64"]) };
    switch.plug(port).unwrap();
    wait_for("IPv4 is there", LIMIT, || pings(&a, "10.0.0.2")).unwrap();
    wait_for("IPv6 is there", LIMIT, || pings(&a, "fd00::2")).unwrap();
    assert!(b.run(&["ip", "link", "show", "eth0"]).unwrap().contains("02:00:00:00:00:0b"));

    switch.unplug(port).unwrap();
    assert!(b.run(&["ip", "link", "show", "eth0"]).unwrap().contains("NO-CARRIER"));
    assert!(pings(&a, "10.0.0.2").is_err());
    switch.replug(port).unwrap();
    wait_for("the plug is back in", LIMIT, || pings(&a, "10.0.0.2")).unwrap();
    lab.close().unwrap();
}

#[test]
fn labs_side_by_side_may_use_the_same_names_and_addresses() {
    let labs = [Lab::new().unwrap(), Lab::new().unwrap()];
    let names: Vec<_> = labs
        .iter()
        .map(|lab| {
            let (a, b) = (lab.namespace("a").unwrap(), lab.namespace("b").unwrap());
            connect(end(&a, &["10.0.0.1/24"]), end(&b, &["10.0.0.2/24"])).unwrap();
            wait_for("they are connected", LIMIT, || pings(&a, "10.0.0.2")).unwrap();
            a.full_name().to_owned()
        })
        .collect();
    assert_ne!(names[0], names[1]);
    for lab in labs {
        lab.close().unwrap();
    }
    let left = Command::new("ip").args(["netns", "list"]).output().unwrap().stdout;
    let left = String::from_utf8(left).unwrap();
    assert!(names.iter().all(|name| !left.contains(name)), "{left}");
}

#[test]
fn what_a_killed_lab_left_is_removed_by_the_next() {
    // Above the highest process id that Linux gives out (2^22).
    let orphan = "berth-4999999-0-n1";
    Command::new("ip").args(["netns", "add", orphan]).status().unwrap();
    Lab::new().unwrap().close().unwrap();
    assert!(!Path::new("/run/netns").join(orphan).exists());
}

#[test]
fn a_process_lives_exactly_as_long_as_its_value() {
    let lab = Lab::new().unwrap();
    let namespace = lab.namespace("a").unwrap();
    let mut command = namespace.command("sleep");
    command.arg("1000");
    // The starting thread ends at once; the process must not.
    let started = std::thread::scope(|scope| {
        scope.spawn(|| namespace.spawn("sleeper", command)).join().unwrap()
    });
    let mut process = started.unwrap();
    let proc = format!("/proc/{}", process.pid());
    let state = || std::fs::read_to_string(format!("{proc}/stat")).unwrap();
    wait_for("the chain of programs ends in sleep", LIMIT, || {
        ensure!(state().contains("(sleep)"), state());
        Ok(())
    })
    .unwrap();
    process.check_running().unwrap();

    process.signal(Signal::Stop).unwrap();
    wait_for("it is frozen", LIMIT, || {
        ensure!(state().contains("(sleep) T"), state());
        Ok(())
    })
    .unwrap();
    process.kill();
    assert!(!Path::new(&proc).exists());
    lab.close().unwrap();
}

#[test]
fn a_command_is_killed_with_whoever_started_it() {
    let lab = Lab::new().unwrap();
    let namespace = lab.namespace("a").unwrap();
    let mut sleeper = namespace.command("sleep");
    sleeper.arg("1000");
    // A shell in the place of a program with a lab that gets SIGKILL.
    let mut owner = Command::new("sh");
    owner.args(["-c", "\"$@\" & echo $!; exec sleep 1000", "sh"]);
    owner.arg(sleeper.get_program()).args(sleeper.get_args());
    let log = lab.directory().join("owner.log");
    let owner = Process::start("owner", owner, &log).unwrap();
    let inside = || namespace.run(&["ip", "netns", "pids", namespace.full_name()]);
    wait_for("the command runs inside", LIMIT, || {
        let pid = std::fs::read_to_string(&log)?;
        ensure!(!pid.is_empty() && inside()?.contains(pid.trim()));
        Ok(())
    })
    .unwrap();
    let pid = std::fs::read_to_string(&log).unwrap();
    owner.kill();
    wait_for("the command has ended too", LIMIT, || {
        ensure!(!inside()?.contains(pid.trim()));
        Ok(())
    })
    .unwrap();
    lab.close().unwrap();
}

#[test]
fn a_process_that_ends_is_reported_with_its_log() {
    let lab = Lab::new().unwrap();
    let namespace = lab.namespace("a").unwrap();
    let mut command = namespace.command("sh");
    command.args(["-c", "echo no such luck >&2; exit 7"]);
    let mut process = namespace.spawn("unlucky", command).unwrap();
    let error = wait_for("it has ended", LIMIT, || match process.check_running() {
        Ok(()) => anyhow::bail!("still there"),
        Err(error) => Ok(error.to_string()),
    });
    let error = error.unwrap();
    assert!(error.contains("unlucky in a has ended (exit status: 7)"), "{error}");
    assert!(error.contains("no such luck"), "{error}");
    lab.close().unwrap();
}

#[test]
fn closing_a_lab_ends_processes_that_nobody_holds() {
    let lab = Lab::new().unwrap();
    let namespace = lab.namespace("a").unwrap();
    let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
    let pid = namespace.run(&["sh", "-c", script]).unwrap();
    let status = format!("/proc/{}/status", pid.trim());
    assert!(Path::new(&status).exists());
    lab.close().unwrap();
    wait_for("it is gone or waits to be collected", LIMIT, || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        ensure!(status.is_empty() || status.contains("State:\tZ"), status);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_service_is_reached_by_its_address_and_its_node_port() {
    let lab = Lab::new().unwrap();
    let switch = lab.switch("lan").unwrap();
    let (client, node) = (lab.namespace("client").unwrap(), lab.namespace("node").unwrap());
    switch.plug(end(&client, &["10.0.0.9/24", "fd00::9/64"])).unwrap();
    switch.plug(end(&node, &["10.0.0.1/24", "fd00::1/64"])).unwrap();
    node.forward().unwrap();
    let mut backends = Vec::new();
    for number in 1..=2 {
        let pod = lab.namespace(&format!("pod{number}")).unwrap();
        let device = format!("pod{number}");
        let (v4, v6) = (format!("10.244.{number}"), format!("fd44:0:0:{number}:"));
        let gateways = [format!("{v4}.1/24"), format!("{v6}:1/64")];
        let addresses = [format!("{v4}.2/24"), format!("{v6}:2/64")];
        connect(
            End { device: &device, ..end(&node, &gateways.each_ref().map(String::as_str)) },
            end(&pod, &addresses.each_ref().map(String::as_str)),
        )
        .unwrap();
        pod.add_route("default", &format!("{v4}.1")).unwrap();
        pod.add_route("default", &format!("{v6}:1")).unwrap();
        let process = backend(&pod);
        wait_for("the backend listens", LIMIT, || fetch(&node, &format!("http://{v4}.2:8080/")))
            .unwrap();
        backends.push((process, format!("{v4}.2:8080"), format!("[{v6}:2]:8080")));
    }
    let service = Service {
        addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
        protocol: Protocol::Tcp,
        port: 80,
        node_port: Some(30080),
        backends: backends
            .iter()
            .flat_map(|(_, v4, v6)| [v4.parse().unwrap(), v6.parse().unwrap()])
            .collect(),
    };
    // No speaker here: the addresses lead to the node by routes.
    client.add_route("192.0.2.10/32", "10.0.0.1").unwrap();
    client.add_route("2001:db8::10/128", "fd00::1").unwrap();
    nft::program(&node, std::slice::from_ref(&service)).unwrap();
    nft::program(&node, &[service]).unwrap();
    for url in [
        "http://192.0.2.10/",
        "http://[2001:db8::10]/",
        "http://10.0.0.1:30080/",
        "http://[fd00::1]:30080/",
    ] {
        let mut seen = std::collections::BTreeSet::new();
        // One of two at random: 60 misses in a row do not happen.
        for _ in 0..60 {
            seen.insert(fetch(&client, url).unwrap());
            if seen.len() == 2 {
                break;
            }
        }
        assert_eq!(Vec::from_iter(seen), ["pod1", "pod2"], "{url}");
    }
    nft::program(&node, &[]).unwrap();
    assert!(fetch(&client, "http://192.0.2.10/").is_err());
    lab.close().unwrap();
}
