//! FRRouting, asked by `vtysh`, which answers in JSON.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path, process::Command};

use anyhow::{Result, ensure};
use ipnet::IpNet;
use netlab::Process;
use serde_json::Value;

use super::{
    Daemon, Dialling, Route, RouterConfig, Site, as_path, community, elements, large_community,
    number, texts,
};

/// Debian's place for FRR's daemons, which are on nobody's PATH.
const PROGRAMS: &str = "/usr/lib/frr";

#[derive(Debug)]
pub(super) struct Frr;

/// zebra insists on users of its own.
pub(super) fn is_available() -> bool {
    let owner = Command::new("chown").args(["frr:", "/proc/self/nothing"]).output();
    // "No such file" is what a chown that knows the user and may use it says.
    let user = owner.is_ok_and(|out| !String::from_utf8_lossy(&out.stderr).contains("invalid"));
    let all_ids = fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().last().is_some_and(|count| count != "1"));
    user && all_ids && ["zebra", "bgpd"].iter().all(|name| Path::new(PROGRAMS).join(name).exists())
}

impl Daemon for Frr {
    fn configure(&self, site: &Site, config: &RouterConfig<'_>) -> Result<()> {
        site.write("zebra.conf", &config.device_lines.join("\n"))?;
        site.write("bgpd.conf", &configuration(site, config))?;
        if !config.bfd_lines.is_empty() {
            site.write("bfdd.conf", &format!("bfd\n{}\n", config.bfd_lines.join("\n")))?;
        }
        // The daemons give up root for a user of their own.
        let owned = Command::new("chown").args(["-R", "frr:"]).arg(&site.folder).status()?;
        ensure!(owned.success(), "giving {} to the user frr", site.folder.display());
        Ok(())
    }

    fn run(&self, site: &Site) -> Result<Vec<Process>> {
        let has_bfd = site.file("bfdd.conf").exists();
        let mut processes = Vec::new();
        for name in ["zebra", "bfdd", "bgpd"] {
            if name == "bfdd" && !has_bfd {
                continue;
            }
            let mut command = site.namespace.command(Path::new(PROGRAMS).join(name));
            command.arg("-f").arg(site.file(&format!("{name}.conf")));
            command.arg("-i").arg(site.file(&format!("{name}.pid")));
            command.arg("-z").arg(site.file("zserv")).arg("--vty_socket").arg(&site.folder);
            if name != "zebra" && has_bfd {
                command.arg("--bfdctl").arg(site.file("bfdd.sock"));
            }
            command.args(["--log", "stdout"]);
            // Sessions that come before bgpd knows zebra's interfaces are reset, or wait for their
            // next hops.
            let (question, wanted) = match name {
                "zebra" => ("show ip route connected", "10.0.0.0/24"),
                "bfdd" => ("show bfd peers json", ""),
                _ => ("show bgp summary", ""),
            };
            processes.push(site.spawn(name, command, || {
                let shown = self.ask(site, question)?;
                ensure!(shown.contains(wanted), "{shown}");
                Ok(())
            })?);
        }
        Ok(processes)
    }

    fn ask(&self, site: &Site, question: &str) -> Result<String> {
        site.namespace.run(&[
            "vtysh",
            "--vty_socket",
            &site.folder.to_string_lossy(),
            "-c",
            question,
        ])
    }

    fn version(&self, site: &Site) -> Result<String> {
        let program = format!("{PROGRAMS}/bgpd");
        let text = site.namespace.run(&[program.as_str(), "--version"])?;
        let version = text.lines().next().and_then(|line| line.split_whitespace().last());
        Ok(format!("FRR {}", version.unwrap_or_default()))
    }

    fn established(&self, site: &Site) -> Result<BTreeSet<IpAddr>> {
        let all = self.json(site, "show bgp neighbors json")?;
        let up = all.as_object().into_iter().flatten();
        let up = up.filter(|(_, neighbour)| neighbour["bgpState"] == "Established");
        Ok(up.filter_map(|(name, _)| name.parse().ok()).collect())
    }

    fn routes(&self, site: &Site, prefix: &IpNet) -> Result<Vec<Route>> {
        let family = if prefix.addr().is_ipv4() { "ipv4" } else { "ipv6" };
        let shown = self.json(site, &format!("show bgp {family} unicast {prefix} json"))?;
        elements(&shown["paths"]).map(route).collect()
    }

    fn prefixes(&self, site: &Site, neighbour: IpAddr) -> Result<u64> {
        let all = self.json(site, &format!("show bgp neighbors {neighbour} json"))?;
        let families = all[neighbour.to_string()]["addressFamilyInfo"].as_object().cloned();
        let families = families.unwrap_or_default();
        Ok(families.values().filter_map(|f| f["acceptedPrefixCounter"].as_u64()).sum())
    }

    fn last_reset(&self, site: &Site, neighbour: IpAddr) -> Result<String> {
        let all = self.json(site, &format!("show bgp neighbors {neighbour} json"))?;
        let shown = &all[neighbour.to_string()];
        let words = ["lastResetDueTo", "lastErrorCodeSubcode", "lastShutdownDescription"];
        let words = words.map(|key| shown[key].as_str().unwrap_or_default().to_owned());
        Ok(words.join(" ").trim().to_owned())
    }
}

impl Frr {
    fn json(&self, site: &Site, question: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask(site, question)?)?)
    }
}

fn route(path: &Value) -> Result<Route> {
    let hops = elements(&path["nexthops"]).filter_map(|hop| hop["ip"].as_str());
    let extended = path["extendedCommunity"]["string"].as_str().unwrap_or_default();
    Ok(Route {
        from: path["peer"]["peerId"].as_str().unwrap_or_default().parse()?,
        next_hops: hops.map(str::parse).collect::<Result<_, _>>()?,
        as_path: as_path(path["aspath"]["string"].as_str().unwrap_or_default()),
        med: number(&path["metric"]),
        local_pref: number(&path["locPrf"]),
        communities: texts(&path["community"]["list"]).map(community).collect::<Result<_>>()?,
        large_communities: texts(&path["largeCommunity"]["list"])
            .map(large_community)
            .collect::<Result<_>>()?,
        extended_communities: extended.split_whitespace().map(str::to_lowercase).collect(),
        stale: path["stale"] == true,
    })
}

fn configuration(site: &Site, config: &RouterConfig<'_>) -> String {
    let RouterConfig { asn, node_asn, .. } = config;
    let mut text = format!(
        "frr defaults datacenter\ndebug bgp neighbor-events\nrouter bgp {asn}\n \
         bgp router-id 10.0.0.1\n no bgp ebgp-requires-policy\n \
         bgp bestpath as-path multipath-relax\n no bgp default ipv4-unicast\n"
    );
    for line in config.lines {
        text += &format!(" {line}\n");
    }
    for neighbour in &site.sessions {
        let neighbor = format!(" neighbor {}", neighbour.address);
        text += &format!("{neighbor} remote-as {node_asn}\n");
        match config.dialling {
            Dialling::Nodes => text += &format!("{neighbor} passive\n"),
            Dialling::Router => text += &format!("{neighbor} timers connect 1\n"),
        }
        if let Some(password) = config.password {
            text += &format!("{neighbor} password {password}\n");
        }
        for line in config.neighbour_lines {
            text += &format!("{neighbor} {line}\n");
        }
    }
    for family in ["ipv4", "ipv6"] {
        text += &format!(" address-family {family} unicast\n  maximum-paths 16\n");
        for neighbour in &site.sessions {
            text += &format!("  neighbor {} activate\n", neighbour.address);
        }
        text += " exit-address-family\n";
    }
    text
}
