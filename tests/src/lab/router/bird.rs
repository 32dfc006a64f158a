//! BIRD 2, asked by `birdc`, which answers in text.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use netlab::Process;

use super::{Daemon, Dialling, Route, RouterConfig, Site, as_path};

#[derive(Debug)]
pub(super) struct Bird;

impl Daemon for Bird {
    fn configure(&self, site: &Site, config: &RouterConfig<'_>) -> Result<()> {
        site.write("bird.conf", &configuration(site, config))
    }

    fn run(&self, site: &Site) -> Result<Vec<Process>> {
        let mut command = site.namespace.command("bird");
        command.arg("-f").arg("-c").arg(site.file("bird.conf"));
        command.arg("-s").arg(site.file("ctl")).arg("-P").arg(site.file("pid"));
        Ok(vec![site.spawn("bird", command, || self.ask(site, "show status"))?])
    }

    fn ask(&self, site: &Site, question: &str) -> Result<String> {
        let mut program = vec!["birdc".to_owned(), "-s".to_owned()];
        program.push(site.file("ctl").to_string_lossy().into_owned());
        program.extend(question.split_whitespace().map(str::to_owned));
        site.namespace.run(&program)
    }

    fn version(&self, site: &Site) -> Result<String> {
        // "BIRD 2.0.12 ready." is its greeting.
        let answer = self.ask(site, "show status")?;
        Ok(answer.split(" ready").next().unwrap_or_default().to_owned())
    }

    fn established(&self, site: &Site) -> Result<BTreeSet<IpAddr>> {
        let shown = self.ask(site, "show protocols")?;
        let up = shown.lines().filter(|line| line.contains("Established"));
        let names: Vec<_> = up.filter_map(|line| line.split_whitespace().next()).collect();
        let sessions = site.sessions.iter().filter(|n| names.contains(&n.name.as_str()));
        Ok(sessions.map(|neighbour| neighbour.address).collect())
    }

    fn routes(&self, site: &Site, prefix: &IpNet) -> Result<Vec<Route>> {
        let shown = self.ask(site, &format!("show route all where net = {prefix}"))?;
        let mut routes: Vec<Route> = Vec::new();
        for line in shown.lines() {
            // `203.0.113.10/32 unicast [n1 21:38:37.307] * (100) [AS64512i]`, and without the
            // prefix for the second path on.
            if let Some((_, rest)) = line.split_once("unicast [") {
                let name = rest.split_whitespace().next().unwrap_or_default();
                let neighbour = site.sessions.iter().find(|n| n.name == name);
                let from = neighbour.with_context(|| format!("whose is {line}?"))?.address;
                let preference = rest.split_once('(').map_or("", |(_, rest)| rest);
                let stale = preference.split(')').next().is_some_and(|p| p.ends_with('s'));
                routes.push(Route { from, stale, ..empty() });
            }
            let Some((key, value)) = line.trim().split_once(": ") else { continue };
            let Some(route) = routes.last_mut() else { continue };
            match key {
                "BGP.as_path" => route.as_path = as_path(value),
                "BGP.next_hop" => {
                    let hops = value.split_whitespace().map(str::parse);
                    route.next_hops = hops.collect::<Result<_, _>>()?;
                }
                "BGP.med" => route.med = Some(value.parse()?),
                "BGP.local_pref" => route.local_pref = Some(value.parse()?),
                "BGP.community" => {
                    route.communities = tuples(value)
                        .map(|parts| super::community(&parts.join(":")))
                        .collect::<Result<_>>()?;
                }
                "BGP.large_community" => {
                    route.large_communities = tuples(value)
                        .map(|parts| super::large_community(&parts.join(":")))
                        .collect::<Result<_>>()?;
                }
                "BGP.ext_community" => {
                    route.extended_communities = tuples(value).map(|p| p.join(":")).collect();
                }
                _ => {}
            }
        }
        Ok(routes)
    }

    fn prefixes(&self, site: &Site, neighbour: IpAddr) -> Result<u64> {
        // `Routes: 2 imported, 0 exported, 2 preferred`, for each family.
        let shown = self.session(site, neighbour)?;
        let lines = shown.lines().filter_map(|line| line.trim().strip_prefix("Routes:"));
        let counts = lines.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(counts.sum())
    }

    fn last_reset(&self, site: &Site, neighbour: IpAddr) -> Result<String> {
        let shown = self.session(site, neighbour)?;
        let error = shown.lines().find_map(|line| line.trim().strip_prefix("Last error:"));
        Ok(error.unwrap_or_default().trim().to_owned())
    }
}

impl Bird {
    /// All about the session with a node.
    fn session(&self, site: &Site, neighbour: IpAddr) -> Result<String> {
        let session = site.sessions.iter().find(|session| session.address == neighbour);
        let name = &session.with_context(|| format!("a session with {neighbour}"))?.name;
        self.ask(site, &format!("show protocols all {name}"))
    }
}

fn empty() -> Route {
    Route {
        from: IpAddr::from([0; 4]),
        next_hops: Vec::new(),
        as_path: Vec::new(),
        med: None,
        local_pref: None,
        communities: BTreeSet::new(),
        large_communities: BTreeSet::new(),
        extended_communities: BTreeSet::new(),
        stale: false,
    }
}

/// The parts of each `(a,b)` or `(a, b, c)`.
fn tuples(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let insides = text.split('(').skip(1).filter_map(|rest| rest.split(')').next());
    insides.map(|inside| inside.split(',').map(str::trim).collect())
}

fn configuration(site: &Site, config: &RouterConfig<'_>) -> String {
    let RouterConfig { asn, node_asn, .. } = config;
    let password = config.password.map(|key| format!("password \"{key}\";")).unwrap_or_default();
    let passive = match config.dialling {
        Dialling::Nodes => "passive on;",
        Dialling::Router => "connect delay time 0; connect retry time 1;",
    };
    let mut text =
        "router id 10.0.0.1;\nlog stderr all;\nprotocol device { scan time 1; }\n".to_owned();
    for family in ["ipv4", "ipv6"] {
        text += &format!(
            "protocol kernel {{ merge paths on; {family} {{ import none; \
             export where source = RTS_BGP; }}; }}\n"
        );
    }
    if !config.bfd_lines.is_empty() {
        text += &format!("protocol bfd {{\n{}\n}}\n", config.bfd_lines.join("\n"));
    }
    text += &config.lines.join("\n");
    for neighbour in &site.sessions {
        let own = neighbour.transport.router();
        let address = neighbour.address;
        // Unless it says so itself: `direct` and `multihop` exclude each other.
        let lines = config.neighbour_lines.join("\n");
        let direct = if lines.contains("multihop") { "" } else { "direct;" };
        text += &format!(
            "\nprotocol bgp {} {{\nlocal {own} as {asn}; neighbor {address} as {node_asn};\n\
             {direct} {passive} error wait time 1,2; {password}\n{lines}\n\
             ipv4 {{ import all; export none; }};\n\
             ipv6 {{ import all; export none; }};\n}}\n",
            neighbour.name
        );
    }
    text
}
