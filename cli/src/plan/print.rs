//! A [`Report`] as text: tables for people, JSON for programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use super::{
    announce::{Announcement, Way},
    report::{Planned, Report, Usage},
};

/// Whether the reader is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    None,
    Ansi,
}

/// The whole report, what has to be acted upon first; ends with a line that sums it up.
pub fn table(report: &Report, colours: Colours) -> String {
    let mut text = String::new();
    let mut line = |colour: &str, head: &str, rest: &str| {
        let head = match colours {
            Colours::None => format!("{head}:"),
            Colours::Ansi => format!("\x1b[{colour}m{head}:\x1b[0m"),
        };
        text.push_str(&format!("{head} {rest}\n"));
    };
    for fault in &report.errors {
        let (kind, namespace, name) = (&fault.kind, &fault.namespace, &fault.name);
        let (field, message, rule) = (&fault.field, &fault.message, fault.rule);
        line(RED, "error", &format!("{kind} {namespace}/{name}: {field}: {message} ({rule})"));
    }
    for warning in &report.warnings {
        line(YELLOW, "warning", warning);
    }
    for service in &report.services {
        if let Some(pending) = &service.pending {
            let (message, reason) = (&pending.message, pending.reason);
            let named = format!("Service {}/{}", service.namespace, service.name);
            line(YELLOW, "pending", &format!("{named}: {message} ({reason})"));
        }
    }
    for (named, message, reason) in nowhere(report) {
        line(YELLOW, "unannounced", &format!("{named}: {message} ({reason})"));
    }
    if !report.services.is_empty() {
        text.push_str(&services(&report.services));
    }
    if !report.announcements.is_empty() {
        text.push_str(&announcements(&report.announcements));
    }
    if !report.pools.is_empty() {
        text.push_str(&pools(&report.pools));
    }
    text.push_str(&summary(report));
    text.push('\n');
    text
}

/// The report as documented in `docs/plan.md`.
///
/// # Errors
/// None that a report can cause.
pub fn json(report: &Report) -> serde_json::Result<String> {
    serde_json::to_string_pretty(report).map(|json| json + "\n")
}

const RED: &str = "31";
const YELLOW: &str = "33";

fn services(services: &[Planned]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["Service", "addresses", "pool", "change"]);
    for service in services {
        let addresses: Vec<String> = service.addresses.iter().map(IpAddr::to_string).collect();
        table.add_row([
            format!("{}/{}", service.namespace, service.name),
            addresses.join(", "),
            service.pool.clone().unwrap_or_default(),
            match service.pending {
                None => service.change.to_string(),
                Some(_) => format!("{}, pending", service.change),
            },
        ]);
    }
    format!("{table}\n")
}

/// The addresses that no node announces, with what the last node looked at says to it.
fn nowhere(report: &Report) -> Vec<(String, &str, &str)> {
    let announced: BTreeSet<_> =
        report.announcements.iter().map(|one| (&one.service, one.address)).collect();
    let mut nowhere = BTreeMap::new();
    for one in &report.unannounced {
        // One without an address is pending, which is said already.
        let Some(address) = one.address else { continue };
        if !announced.contains(&(&one.service, address)) {
            nowhere.insert((&one.service, address), (one.message.as_str(), one.reason));
        }
    }
    let line = |((service, address), (message, reason))| {
        (format!("Service {service}, address {address}"), message, reason)
    };
    nowhere.into_iter().map(line).collect()
}

/// A table for each protocol that there is.
fn announcements(announcements: &[Announcement]) -> String {
    let table = |last: &[&str]| {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        let first = ["Service", "address", "announced by", "from node"];
        table.set_header(first.iter().chain(last));
        table
    };
    let mut layer2 = table(&["on interfaces"]);
    let mut bgp = table(&["to peer", "as", "localPref", "communities"]);
    for one in announcements {
        let first = [
            one.service.clone(),
            one.address.to_string(),
            one.protocol.to_owned(),
            one.node.clone(),
        ];
        match &one.way {
            Way::Layer2 { interfaces } => {
                let any = || "any".to_owned();
                let names = interfaces.as_ref().map_or_else(any, |names| names.join(", "));
                layer2.add_row(first.into_iter().chain([names]));
            }
            Way::Bgp { peer, prefix, local_pref, communities, med: _, as_path_prepend: _ } => {
                let local_pref = local_pref.map(|value| value.to_string()).unwrap_or_default();
                let last = [peer.clone(), prefix.to_string(), local_pref, communities.join(", ")];
                bgp.add_row(first.into_iter().chain(last));
            }
        }
    }
    let tables = [layer2, bgp].into_iter().filter(|table| !table.is_empty());
    tables.map(|table| format!("{table}\n")).collect()
}

fn pools(pools: &[Usage]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "IPAddressPool",
        "assigned IPv4",
        "available IPv4",
        "assigned IPv6",
        "available IPv6",
    ]);
    for pool in pools {
        let counts = [pool.assigned_v4, pool.available_v4, pool.assigned_v6, pool.available_v6];
        let counts = counts.iter().map(i64::to_string);
        table.add_row([pool.name.clone()].into_iter().chain(counts));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

fn summary(report: &Report) -> String {
    let count = |count: usize, one: &str| match count {
        0 => format!("no {one}s"),
        1 => format!("1 {one}"),
        many => format!("{many} {one}s"),
    };
    let pending = report.services.iter().filter(|service| service.pending.is_some()).count();
    format!(
        "{}; {}, {} pending",
        count(report.errors.len(), "error"),
        count(report.services.len(), "Service"),
        if pending == 0 { "none".to_owned() } else { pending.to_string() }
    )
}

#[cfg(test)]
mod tests {
    use controller::plan::Change;

    use super::*;
    use crate::plan::{
        announce::Unannounced,
        report::{Fault, Pending},
    };

    fn unannounced(address: &str, reason: &'static str, message: &str) -> Unannounced {
        Unannounced {
            service: "shop/web".to_owned(),
            address: Some(address.parse().unwrap()),
            node: Some("n2".to_owned()),
            protocol: "layer2",
            peer: None,
            reason,
            message: message.to_owned(),
        }
    }

    fn report() -> Report {
        let text = str::to_owned;
        Report {
            valid: false,
            errors: vec![Fault {
                kind: text("BGPPeer"),
                namespace: text("metallb-system"),
                name: text("tor"),
                field: text("spec.myASN"),
                rule: "NoMyAsn",
                message: text("our AS number is missing"),
            }],
            services: vec![
                Planned {
                    namespace: text("shop"),
                    name: text("web"),
                    addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
                    pool: Some(text("v4,v6")),
                    change: Change::Assigned,
                    pending: None,
                },
                Planned {
                    namespace: text("shop"),
                    name: text("mail"),
                    addresses: vec![],
                    pool: None,
                    change: Change::None,
                    pending: Some(Pending { reason: "Exhausted", message: text("nothing left") }),
                },
            ],
            pools: vec![Usage {
                name: text("v4"),
                assigned_v4: 1,
                assigned_v6: 0,
                available_v4: 15,
                available_v6: 0,
            }],
            announcements: vec![Announcement {
                service: text("shop/web"),
                address: "192.0.2.1".parse().unwrap(),
                protocol: "layer2",
                node: text("n1"),
                way: Way::Layer2 { interfaces: Some(vec![text("eth0"), text("eth1")]) },
            }],
            unannounced: vec![
                unannounced("192.0.2.1", "notOwner", "node \"n1\" answers for it"),
                unannounced("2001:db8::1", "noEndpoints", "it has no endpoint"),
            ],
            warnings: vec![text("Service shop/web: beware")],
        }
    }

    #[test]
    fn what_is_wrong_comes_first_and_the_sum_last() {
        let text = table(&report(), Colours::None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "error: BGPPeer metallb-system/tor: spec.myASN: our AS number is missing (NoMyAsn)",
                "warning: Service shop/web: beware",
                "pending: Service shop/mail: nothing left (Exhausted)",
                "unannounced: Service shop/web, address 2001:db8::1: it has no endpoint \
                 (noEndpoints)",
            ]
        );
        assert_eq!(*lines.last().unwrap(), "1 error; 2 Services, 1 pending");
        for part in
            ["shop/web", "192.0.2.1, 2001:db8::1", "v4,v6", "none, pending", "15", "eth0, eth1"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn only_terminals_get_colours() {
        let text = table(&report(), Colours::Ansi);
        assert!(text.starts_with("\x1b[31merror:\x1b[0m BGPPeer"), "{text}");
    }
}
