//! ExaBGP, which keeps no table: what it tells the process beside it is collected in a file, one
//! JSON object a line, and read as a history.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use netlab::Process;
use serde_json::Value;

use super::{Daemon, Dialling, Route, RouterConfig, Site, elements, number};

const EVENTS: &str = "events.json";

#[derive(Debug)]
pub(super) struct ExaBgp;

/// What follows from all events so far.
#[derive(Debug, Default)]
struct History {
    up: BTreeSet<IpAddr>,
    /// By the neighbour and the prefix.
    routes: BTreeMap<(IpAddr, String), Route>,
    resets: BTreeMap<IpAddr, String>,
}

impl Daemon for ExaBgp {
    fn configure(&self, site: &Site, config: &RouterConfig<'_>) -> Result<()> {
        site.write("exabgp.conf", &configuration(site, config))
    }

    fn run(&self, site: &Site) -> Result<Vec<Process>> {
        site.write(EVENTS, "")?;
        let mut command = site.namespace.command("exabgp");
        command.arg(site.file("exabgp.conf"));
        command.env("exabgp.daemon.user", "root").env("exabgp.daemon.drop", "false");
        // Its command line would want pipes in a folder of the machine.
        command.env("exabgp.api.cli", "false").env("exabgp.log.level", "INFO");
        let listens = || {
            let sockets = site.namespace.run(&["ss", "-Htln", "sport", "=", ":179"])?;
            ensure!(!sockets.trim().is_empty(), "nobody listens");
            Ok(())
        };
        Ok(vec![site.spawn("exabgp", command, listens)?])
    }

    fn ask(&self, _: &Site, question: &str) -> Result<String> {
        anyhow::bail!("ExaBGP answers no questions, not even {question}");
    }

    fn version(&self, site: &Site) -> Result<String> {
        let text = site.namespace.run(&["exabgp", "--version"])?;
        let line = text.lines().next().unwrap_or_default();
        Ok(line.replace(" :", ""))
    }

    fn established(&self, site: &Site) -> Result<BTreeSet<IpAddr>> {
        Ok(history(site)?.up)
    }

    fn routes(&self, site: &Site, prefix: &IpNet) -> Result<Vec<Route>> {
        let prefix = prefix.to_string();
        let routes = history(site)?.routes.into_iter();
        Ok(routes.filter(|((_, of), _)| *of == prefix).map(|(_, route)| route).collect())
    }

    fn prefixes(&self, site: &Site, neighbour: IpAddr) -> Result<u64> {
        let routes = history(site)?.routes;
        Ok(u64::try_from(routes.keys().filter(|(from, _)| *from == neighbour).count())?)
    }

    fn last_reset(&self, site: &Site, neighbour: IpAddr) -> Result<String> {
        Ok(history(site)?.resets.remove(&neighbour).unwrap_or_default())
    }
}

fn history(site: &Site) -> Result<History> {
    let mut history = History::default();
    for line in fs::read_to_string(site.file(EVENTS))?.lines() {
        // The last one may not be written to its end.
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        history.take_in(&event).with_context(|| line.to_owned())?;
    }
    Ok(history)
}

impl History {
    fn take_in(&mut self, event: &Value) -> Result<()> {
        let neighbour = &event["neighbor"];
        let peer = neighbour["address"]["peer"].as_str().unwrap_or_default();
        let Ok(from) = peer.parse::<IpAddr>() else { return Ok(()) };
        match (event["type"].as_str(), neighbour["state"].as_str()) {
            (Some("state"), Some("up")) => drop(self.up.insert(from)),
            (Some("state"), Some("down")) => {
                self.up.remove(&from);
                self.routes.retain(|(of, _), _| *of != from);
                let reason = neighbour["reason"].as_str().unwrap_or_default();
                self.resets.entry(from).or_default().push_str(reason);
            }
            (Some("notification"), _) => {
                let said = neighbour["notification"].to_string();
                self.resets.insert(from, said);
            }
            (Some("update"), _) => self.update(from, &neighbour["message"]["update"])?,
            _ => {}
        }
        Ok(())
    }

    fn update(&mut self, from: IpAddr, update: &Value) -> Result<()> {
        let families = |part: &str| update[part].as_object().cloned().unwrap_or_default();
        for prefixes in families("withdraw").values() {
            for prefix in elements(prefixes).filter_map(|entry| entry["nlri"].as_str()) {
                self.routes.remove(&(from, prefix.to_owned()));
            }
        }
        for by_next_hop in families("announce").values() {
            for (next_hop, prefixes) in by_next_hop.as_object().into_iter().flatten() {
                let next_hop: IpAddr = next_hop.parse()?;
                for prefix in elements(prefixes).filter_map(|entry| entry["nlri"].as_str()) {
                    let route = route(from, &update["attribute"])?;
                    let key = (from, prefix.to_owned());
                    // A second next hop of one and the same UPDATE is the link-local one.
                    let hops = match self.routes.remove(&key) {
                        Some(old) if !old.next_hops.contains(&next_hop) => {
                            let is_local = |hop: &IpAddr| hop.to_string().starts_with("fe80");
                            let old = old.next_hops.into_iter();
                            old.filter(|hop| is_local(hop) != is_local(&next_hop)).collect()
                        }
                        _ => Vec::new(),
                    };
                    let next_hops = hops.into_iter().chain([next_hop]).collect();
                    self.routes.insert(key, Route { next_hops, ..route });
                }
            }
        }
        Ok(())
    }
}

fn route(from: IpAddr, attributes: &Value) -> Result<Route> {
    let numbers = |value: &Value| elements(value).filter_map(number).collect::<Vec<_>>();
    let community = |value: &Value| {
        let [high, low] = numbers(value)[..] else { anyhow::bail!("no community: {value}") };
        Ok((u16::try_from(high)?, u16::try_from(low)?))
    };
    let large = |value: &Value| {
        let [global, first, second] = numbers(value)[..] else {
            anyhow::bail!("no large community: {value}");
        };
        Ok((global, first, second))
    };
    let extended = elements(&attributes["extended-community"]);
    let extended = extended.filter_map(|value| value["string"].as_str());
    Ok(Route {
        from,
        next_hops: Vec::new(),
        as_path: numbers(&attributes["as-path"]),
        med: number(&attributes["med"]),
        local_pref: number(&attributes["local-preference"]),
        communities: elements(&attributes["community"]).map(community).collect::<Result<_>>()?,
        large_communities: elements(&attributes["large-community"])
            .map(large)
            .collect::<Result<_>>()?,
        extended_communities: extended.map(|text| text.replace("target:", "rt:")).collect(),
        stale: false,
    })
}

fn configuration(site: &Site, config: &RouterConfig<'_>) -> String {
    let RouterConfig { asn, node_asn, .. } = config;
    let passive = match config.dialling {
        Dialling::Nodes => "passive true; listen 179;",
        Dialling::Router => "passive false;",
    };
    let password = config.password.map(|key| format!("md5-password \"{key}\";"));
    let mut text = format!(
        "process collector {{ run /bin/sh -c \"cat >> {}\"; encoder json; }}\n{}\n\
         template {{ neighbor node {{\n router-id 10.0.0.1; local-as {asn}; peer-as {node_asn};\n \
         {passive} {}\n {}\n family {{ ipv4 unicast; ipv6 unicast; }}\n \
         api {{ processes [ collector ]; neighbor-changes; \
         receive {{ parsed; update; notification; }} }}\n}} }}\n",
        site.file(EVENTS).display(),
        config.lines.join("\n"),
        password.unwrap_or_default(),
        config.neighbour_lines.join("\n "),
    );
    for neighbour in &site.sessions {
        text += &format!(
            "neighbor {} {{ inherit node; local-address {}; }}\n",
            neighbour.address,
            neighbour.transport.router()
        );
    }
    text
}
