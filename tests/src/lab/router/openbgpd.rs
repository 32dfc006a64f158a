//! OpenBGPD's portable edition, asked by `bgpctl`, which answers in JSON.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use netlab::Process;
use serde_json::Value;

use super::{
    Daemon, Dialling, Route, RouterConfig, Site, as_path, community, elements, is_program,
    large_community, number, texts,
};

/// FRR has a program of the same name elsewhere.
const PROGRAM: &str = "/usr/sbin/bgpd";
/// The home of the user it becomes, as its package has it; it does not start without.
const HOME: &str = "/run/openbgpd";

#[derive(Debug)]
pub(super) struct OpenBgpd;

/// It insists on a user of its own.
pub(super) fn is_available() -> bool {
    let all_ids = fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().last().is_some_and(|count| count != "1"));
    all_ids && Path::new(PROGRAM).exists() && is_program("bgpctl")
}

impl Daemon for OpenBgpd {
    fn configure(&self, site: &Site, config: &RouterConfig<'_>) -> Result<()> {
        site.write("bgpd.conf", &configuration(site, config))?;
        // It reads nothing that others may read: there may be passwords in it.
        let path = site.file("bgpd.conf");
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
    }

    fn run(&self, site: &Site) -> Result<Vec<Process>> {
        fs::create_dir_all(HOME).with_context(|| format!("making {HOME}"))?;
        let mut command = site.namespace.command(PROGRAM);
        command.arg("-d").arg("-f").arg(site.file("bgpd.conf"));
        Ok(vec![site.spawn("bgpd", command, || self.neighbours(site))?])
    }

    fn ask(&self, site: &Site, question: &str) -> Result<String> {
        let socket = socket(site).to_string_lossy().into_owned();
        let mut words = vec!["bgpctl", "-s", &socket];
        words.extend(question.split_whitespace());
        site.namespace.run(&words)
    }

    fn version(&self, site: &Site) -> Result<String> {
        // On standard error.
        let output = site.namespace.command(PROGRAM).arg("-V").output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned())
    }

    fn established(&self, site: &Site) -> Result<BTreeSet<IpAddr>> {
        let all = self.neighbours(site)?;
        let up = elements(&all["neighbors"]).filter(|n| n["state"] == "Established");
        let addresses = up.filter_map(|neighbour| neighbour["remote_addr"].as_str());
        Ok(addresses.map(str::parse).collect::<Result<_, _>>()?)
    }

    fn routes(&self, site: &Site, prefix: &IpNet) -> Result<Vec<Route>> {
        let table: Value =
            serde_json::from_str(&self.ask(site, &format!("-j show rib detail {prefix}"))?)?;
        elements(&table["rib"]).map(route).collect()
    }

    fn prefixes(&self, site: &Site, neighbour: IpAddr) -> Result<u64> {
        let shown = self.neighbour(site, neighbour)?;
        shown["stats"]["prefixes"]["received"].as_u64().context("prefixes received")
    }

    fn last_reset(&self, site: &Site, neighbour: IpAddr) -> Result<String> {
        let shown = self.neighbour(site, neighbour)?;
        let words = ["last_error_received", "last_shutdown_reason", "last_error_sent"];
        Ok(words.map(|key| shown[key].as_str().unwrap_or_default().to_owned()).join(" "))
    }
}

impl OpenBgpd {
    fn neighbours(&self, site: &Site) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask(site, "-j show neighbor")?)?)
    }

    fn neighbour(&self, site: &Site, address: IpAddr) -> Result<Value> {
        let all = self.neighbours(site)?;
        let text = address.to_string();
        let of = elements(&all["neighbors"]).find(|n| n["remote_addr"] == text.as_str());
        of.cloned().with_context(|| format!("a session with {address}"))
    }
}

fn socket(site: &Site) -> PathBuf {
    site.file("ctl")
}

fn route(path: &Value) -> Result<Route> {
    let text = |key: &str| path[key].as_str().unwrap_or_default().to_owned();
    Ok(Route {
        from: path["neighbor"]["remote_addr"].as_str().unwrap_or_default().parse()?,
        next_hops: vec![text("exit_nexthop").parse()?],
        as_path: as_path(&text("aspath")),
        // What was not sent is shown as 0.
        med: number(&path["metric"]).filter(|metric| *metric != 0),
        local_pref: number(&path["localpref"]),
        communities: texts(&path["communities"]).map(community).collect::<Result<_>>()?,
        large_communities: texts(&path["large_communities"])
            .map(large_community)
            .collect::<Result<_>>()?,
        extended_communities: texts(&path["extended_communities"])
            .map(|text| text.replace(' ', ":"))
            .collect(),
        stale: path["stale"] == true,
    })
}

fn configuration(site: &Site, config: &RouterConfig<'_>) -> String {
    let RouterConfig { asn, node_asn, .. } = config;
    let mut text = format!("AS {asn}\nrouter-id 10.0.0.1\nfib-update no\n");
    text += &format!("socket \"{}\"\n", socket(site).display());
    for transport in config.transports {
        text += &format!("listen on {}\n", transport.router());
    }
    text += &config.lines.join("\n");
    for neighbour in &site.sessions {
        text += &format!("\nneighbor {} {{\n remote-as {node_asn}\n", neighbour.address);
        text += " announce IPv4 unicast\n announce IPv6 unicast\n";
        match config.dialling {
            Dialling::Nodes => text += " passive\n",
            Dialling::Router => {}
        }
        if let Some(password) = config.password {
            text += &format!(" tcp md5sig password {password}\n");
        }
        for line in config.neighbour_lines {
            text += &format!(" {line}\n");
        }
        text += "}\n";
    }
    text + "allow from any\n"
}
