//! Services as kube-proxy would program them on a node, in its nftables mode and with
//! `externalTrafficPolicy: Cluster`, as far as traffic from outside notices: the address and the
//! node port lead to one of the backends, chosen at random, and the node's own address stands in
//! for the client's. No session affinity, no source ranges, no cluster IP.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use crate::Namespace;

const TABLE: &str = "berth-services";

/// A transport protocol of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its load balancer addresses, of one or both families.
    pub addresses: Vec<IpAddr>,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The port at those addresses.
    pub port: u16,
    /// The port at every address of the node, if the Service has one.
    pub node_port: Option<u16>,
    /// Where the traffic goes, of one or both families; a family without any is left alone.
    pub backends: Vec<SocketAddr>,
}

/// Replaces the Services of an earlier call in this namespace by `services`, in one transaction.
///
/// # Errors
/// When `nft` does not take the rules.
pub fn program(node: &Namespace, services: &[Service]) -> Result<()> {
    node.run_with_input(&["nft", "-f", "-"], &ruleset(services))
        .context("programming the Services of a node")
        .map(drop)
}

#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// What nft calls it, as a table's family and as the protocol of an address.
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn holds(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

fn ruleset(services: &[Service]) -> String {
    let mut text = String::new();
    for family in [Family::V4, Family::V6] {
        let name = family.name();
        let redirections: String =
            services.iter().map(|service| redirections(family, service)).collect();
        // Adding before deleting makes the deletion succeed whether or not the table was there.
        let _ = write!(
            text,
            "add table {name} {TABLE}\ndelete table {name} {TABLE}\ntable {name} {TABLE} {{\n\
             chain services {{\n{redirections}}}\n\
             chain prerouting {{\ntype nat hook prerouting priority dstnat;\njump services\n}}\n\
             chain output {{\ntype nat hook output priority -100;\njump services\n}}\n\
             chain postrouting {{\ntype nat hook postrouting priority srcnat;\n\
             ct status dnat masquerade\n}}\n}}\n"
        );
    }
    text
}

fn redirections(family: Family, service: &Service) -> String {
    let backends: Vec<_> =
        service.backends.iter().filter(|backend| family.holds(backend.ip())).collect();
    if backends.is_empty() {
        return String::new();
    }
    let name = family.name();
    let protocol = match service.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let elements: Vec<_> = backends
        .iter()
        .enumerate()
        .map(|(index, backend)| format!("{index} : {} . {}", backend.ip(), backend.port()))
        .collect();
    let target = format!(
        "dnat {name} to numgen random mod {} map {{ {} }}",
        backends.len(),
        elements.join(", ")
    );
    let mut text = String::new();
    for address in service.addresses.iter().filter(|address| family.holds(**address)) {
        let port = service.port;
        let _ = writeln!(text, "{name} daddr {address} {protocol} dport {port} {target}");
    }
    if let Some(port) = service.node_port {
        let _ = writeln!(text, "fib daddr type local {protocol} dport {port} {target}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(addresses: &[&str], backends: &[&str]) -> Service {
        Service {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30080),
            backends: backends.iter().map(|b| b.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn each_family_gets_its_own_addresses_and_backends() {
        let service = service(
            &["192.0.2.10", "2001:db8::10"],
            &["10.1.1.2:8080", "10.1.2.2:8080", "[fd01::2]:81"],
        );
        assert_eq!(
            redirections(Family::V4, &service),
            "ip daddr 192.0.2.10 tcp dport 80 dnat ip to numgen random mod 2 \
             map { 0 : 10.1.1.2 . 8080, 1 : 10.1.2.2 . 8080 }\n\
             fib daddr type local tcp dport 30080 dnat ip to numgen random mod 2 \
             map { 0 : 10.1.1.2 . 8080, 1 : 10.1.2.2 . 8080 }\n"
        );
        assert_eq!(
            redirections(Family::V6, &service),
            "ip6 daddr 2001:db8::10 tcp dport 80 dnat ip6 to numgen random mod 1 \
             map { 0 : fd01::2 . 81 }\n\
             fib daddr type local tcp dport 30080 dnat ip6 to numgen random mod 1 \
             map { 0 : fd01::2 . 81 }\n"
        );
    }

    #[test]
    fn a_family_without_backends_has_no_rules() {
        let service = service(&["192.0.2.10", "2001:db8::10"], &["10.1.1.2:8080"]);
        assert_eq!(redirections(Family::V6, &service), "");
    }
}
