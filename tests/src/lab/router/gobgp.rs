//! GoBGP, asked by `gobgp`, which answers in JSON.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use netlab::Process;
use serde_json::Value;

use super::{Daemon, Dialling, Route, RouterConfig, Site, elements, number};

/// gRPC, on the namespace's own loopback device.
const API: &str = "127.0.0.1:50051";
/// `BGP_FSM_ESTABLISHED` of its API.
const ESTABLISHED: u64 = 6;

#[derive(Debug)]
pub(super) struct GoBgp;

impl Daemon for GoBgp {
    fn configure(&self, site: &Site, config: &RouterConfig<'_>) -> Result<()> {
        site.write("gobgpd.toml", &configuration(site, config))
    }

    fn run(&self, site: &Site) -> Result<Vec<Process>> {
        let mut command = site.namespace.command("gobgpd");
        command.arg("-f").arg(site.file("gobgpd.toml"));
        command.args([format!("--api-hosts={API}"), "--pprof-disable".to_owned()]);
        let all_known = || {
            let known = elements(&self.neighbours(site)?).count();
            ensure!(known == site.sessions.len(), "{known} neighbours");
            Ok(())
        };
        Ok(vec![site.spawn("gobgpd", command, all_known)?])
    }

    fn ask(&self, site: &Site, question: &str) -> Result<String> {
        let words: Vec<_> = ["gobgp"].into_iter().chain(question.split_whitespace()).collect();
        site.namespace.run(&words)
    }

    fn version(&self, site: &Site) -> Result<String> {
        let text = site.namespace.run(&["gobgpd", "--version"])?;
        Ok(format!("GoBGP {}", text.split_whitespace().last().unwrap_or_default()))
    }

    fn established(&self, site: &Site) -> Result<BTreeSet<IpAddr>> {
        let all = self.neighbours(site)?;
        let up = elements(&all).filter(|n| n["state"]["session_state"] == ESTABLISHED);
        let addresses = up.filter_map(|n| n["state"]["neighbor_address"].as_str());
        Ok(addresses.map(str::parse).collect::<Result<_, _>>()?)
    }

    fn routes(&self, site: &Site, prefix: &IpNet) -> Result<Vec<Route>> {
        let family = if prefix.addr().is_ipv4() { "ipv4" } else { "ipv6" };
        let table: Value =
            serde_json::from_str(&self.ask(site, &format!("global rib -a {family} -j"))?)?;
        elements(&table[prefix.to_string()]).map(route).collect()
    }

    fn prefixes(&self, site: &Site, neighbour: IpAddr) -> Result<u64> {
        let all = self.neighbours(site)?;
        let address = neighbour.to_string();
        let of = elements(&all).find(|n| n["state"]["neighbor_address"] == address.as_str());
        let families = elements(&of.with_context(|| address.clone())?["afi_safis"]);
        Ok(families.filter_map(|family| family["state"]["received"].as_u64()).sum())
    }

    fn last_reset(&self, site: &Site, neighbour: IpAddr) -> Result<String> {
        // Only its log has it: `"Data":{…},"msg":"received notification"`.
        let log = std::fs::read_to_string(
            site.folder.with_file_name(format!("{}-gobgpd.log", site.namespace.name())),
        )?;
        let of_neighbour = |line: &&str| {
            line.contains(&format!("\"Key\":\"{neighbour}\"")) && line.contains("notification")
        };
        Ok(log.lines().rev().find(of_neighbour).unwrap_or_default().to_owned())
    }
}

impl GoBgp {
    fn neighbours(&self, site: &Site) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask(site, "neighbor -j")?)?)
    }
}

fn route(path: &Value) -> Result<Route> {
    // By the type code of the path attribute (IANA's registry of BGP path attributes).
    let attribute = |code: u8| elements(&path["attrs"]).find(move |a| a["type"] == code);
    let part = |code: u8, key: &str| attribute(code).map_or(Value::Null, |a| a[key].clone());
    let hop = attribute(3).or_else(|| attribute(14)).context("a next hop")?;
    let paths = part(2, "as_paths");
    let numbers = elements(&paths).flat_map(|segment| elements(&segment["asns"]));
    let community = |value: &Value| {
        let value = number(value).context("a community")?;
        let low = u16::try_from(value & 0xffff)?;
        Ok((u16::try_from(value >> 16)?, low))
    };
    let large = |value: &Value| {
        let part = |key: &str| number(&value[key]).context("a large community");
        Ok((part("ASN")?, part("LocalData1")?, part("LocalData2")?))
    };
    let extended = |value: &Value| {
        // RFC 4360 section 4: subtype 2 is a route target.
        let kind =
            if value["subtype"] == 2 { "rt".to_owned() } else { value["subtype"].to_string() };
        format!("{kind}:{}", value["value"].as_str().unwrap_or_default())
    };
    Ok(Route {
        from: path["neighbor-ip"].as_str().unwrap_or_default().parse()?,
        next_hops: vec![hop["nexthop"].as_str().unwrap_or_default().parse()?],
        as_path: numbers.filter_map(number).collect(),
        med: number(&part(4, "metric")),
        local_pref: number(&part(5, "value")),
        communities: elements(&part(8, "communities")).map(community).collect::<Result<_>>()?,
        large_communities: elements(&part(32, "value")).map(large).collect::<Result<_>>()?,
        extended_communities: elements(&part(16, "value")).map(extended).collect(),
        stale: path["stale"] == true,
    })
}

fn configuration(site: &Site, config: &RouterConfig<'_>) -> String {
    let RouterConfig { asn, node_asn, .. } = config;
    let own: BTreeSet<_> =
        config.transports.iter().map(|t| format!("\"{}\"", t.router())).collect();
    let own: Vec<_> = own.into_iter().collect();
    let mut text = format!(
        "[global.config]\nas = {asn}\nrouter-id = \"10.0.0.1\"\nlocal-address-list = [{}]\n{}\n",
        own.join(", "),
        config.lines.join("\n"),
    );
    let passive = match config.dialling {
        Dialling::Nodes => "true",
        Dialling::Router => "false",
    };
    let password = config.password.map(|key| format!("auth-password = \"{key}\"\n"));
    for neighbour in &site.sessions {
        text += &format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{}\"\npeer-as = {node_asn}\n\
             {}[neighbors.transport.config]\npassive-mode = {passive}\n{}\n",
            neighbour.address,
            password.as_deref().unwrap_or_default(),
            config.neighbour_lines.join("\n"),
        );
        for family in ["ipv4-unicast", "ipv6-unicast"] {
            text += &format!(
                "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\"\n"
            );
        }
    }
    text
}
