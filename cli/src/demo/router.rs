//! The router: BIRD or FRR as installed, in a namespace of its own. It takes routes from the three nodes by BGP and puts
//! them into the kernel's table with one next hop a node (ECMP). What it knows is read from that table, so that the
//! demo needs no word of either daemon's language.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use netlab::{Namespace, Process};
use serde::Deserialize;

use super::stage::{NODES, ROUTER, node_addresses, node_name, node_with_address};

const ROUTER_ASN: u32 = 64513;
const NODE_ASN: u32 = 64512;
/// Debian and Fedora put FRR's daemons there; they are on nobody's PATH.
const FRR_FOLDERS: [&str; 3] = ["/usr/lib/frr", "/usr/libexec/frr", "/usr/sbin"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// BIRD if it is installed, else FRR, else none
    Auto,
    Bird,
    Frr,
    /// Layer 2 alone
    None,
}

/// A routing daemon that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemon {
    Bird { bird: PathBuf },
    Frr { zebra: PathBuf, bgpd: PathBuf },
}

impl Daemon {
    /// `None` without a complaint when `auto` finds nothing or none is wanted.
    ///
    /// # Errors
    /// When the one that was asked for is not installed.
    pub fn find(choice: Choice) -> anyhow::Result<Option<Self>> {
        let bird = || {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
            folders.map(|folder| folder.join("bird")).find(|path| path.is_file())
        };
        let frr = || {
            FRR_FOLDERS
                .map(Path::new)
                .into_iter()
                .map(|folder| (folder.join("zebra"), folder.join("bgpd")))
                .find(|(zebra, bgpd)| zebra.is_file() && bgpd.is_file())
        };
        let bird = || bird().map(|bird| Self::Bird { bird });
        let frr = || frr().map(|(zebra, bgpd)| Self::Frr { zebra, bgpd });
        match choice {
            Choice::Auto => Ok(bird().or_else(frr)),
            Choice::Bird => bird().map(Some).context("BIRD is not installed (package bird2)"),
            Choice::Frr => frr().map(Some).context("FRR is not installed (package frr)"),
            Choice::None => Ok(None),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Bird { .. } => "BIRD",
            Self::Frr { .. } => "FRR",
        }
    }

    /// Starts it; sessions come up by themselves when the speakers call.
    ///
    /// # Errors
    /// When its files cannot be written or it does not start.
    pub fn start(&self, router: &Namespace, directory: &Path) -> anyhow::Result<Vec<Process>> {
        let folder = directory.join("router");
        fs::create_dir(&folder).context("making the router's folder")?;
        let file = |name: &str| folder.join(name);
        match self {
            Self::Bird { bird } => {
                fs::write(file("bird.conf"), bird_configuration())?;
                let mut command = router.command(bird);
                command.arg("-f").arg("-c").arg(file("bird.conf"));
                command.arg("-s").arg(file("bird.ctl")).arg("-P").arg(file("bird.pid"));
                Ok(vec![router.spawn("bird", command)?])
            }
            Self::Frr { zebra, bgpd } => {
                let daemons =
                    [(zebra, "zebra", String::new()), (bgpd, "bgpd", frr_configuration())];
                for (_, name, text) in &daemons {
                    fs::write(file(&format!("{name}.conf")), text)?;
                }
                // The daemons give up root for a user of their own, which writes its sockets there.
                let owned = Command::new("chown").args(["-R", "frr:"]).arg(&folder).status()?;
                anyhow::ensure!(owned.success(), "giving {} to the user frr", folder.display());
                let mut started = Vec::new();
                for (program, name, _) in daemons {
                    let mut command = router.command(program);
                    command.arg("-f").arg(file(&format!("{name}.conf")));
                    command.arg("-i").arg(file(&format!("{name}.pid")));
                    command.arg("-z").arg(file("zserv.api"));
                    command.arg("--vty_socket").arg(&folder).args(["--log", "stdout"]);
                    started.push(router.spawn(name, command)?);
                }
                Ok(started)
            }
        }
    }
}

fn bird_configuration() -> String {
    let mut text = format!(
        "router id {ROUTER};\nlog stderr all;\nprotocol device {{ scan time 1; }}\n\
         protocol kernel {{ merge paths on; ipv4 {{ import none; export all; }}; }}\n\
         protocol kernel {{ merge paths on; ipv6 {{ import none; export all; }}; }}\n"
    );
    for number in NODES {
        let (name, (address, _)) = (node_name(number), node_addresses(number));
        let _ = writeln!(
            text,
            "protocol bgp {name} {{ local {ROUTER} as {ROUTER_ASN}; neighbor {address} as {NODE_ASN}; passive on;\n\
             ipv4 {{ import all; export none; }}; ipv6 {{ import all; export none; }}; }}"
        );
    }
    text
}

fn frr_configuration() -> String {
    let mut text = format!(
        "frr defaults datacenter\nrouter bgp {ROUTER_ASN}\n bgp router-id {ROUTER}\n no bgp ebgp-requires-policy\n"
    );
    for number in NODES {
        let (address, _) = node_addresses(number);
        let _ =
            writeln!(text, " neighbor {address} remote-as {NODE_ASN}\n neighbor {address} passive");
    }
    for family in ["ipv4", "ipv6"] {
        let _ = writeln!(text, " address-family {family} unicast\n  maximum-paths 16");
        for number in NODES {
            let _ = writeln!(text, "  neighbor {} activate", node_addresses(number).0);
        }
        text.push_str(" exit-address-family\n");
    }
    text
}

/// The nodes that the kernel of the router sends an address to.
///
/// # Errors
/// When the table cannot be read.
pub fn next_hops(router: &Namespace, address: IpAddr) -> anyhow::Result<BTreeSet<u8>> {
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let listing = router.run(&["ip", "-j", family, "route", "show", &address.to_string()])?;
    parse_next_hops(&listing)
}

/// IPv4 lists several next hops of one route, IPv6 may list several routes.
fn parse_next_hops(listing: &str) -> anyhow::Result<BTreeSet<u8>> {
    #[derive(Deserialize)]
    struct Route {
        gateway: Option<IpAddr>,
        via: Option<Via>,
        #[serde(default)]
        nexthops: Vec<Self>,
    }
    /// A gateway of the other family.
    #[derive(Deserialize)]
    struct Via {
        host: IpAddr,
    }
    fn collect(routes: &[Route], nodes: &mut BTreeSet<u8>) {
        for route in routes {
            let gateway = route.gateway.or_else(|| route.via.as_ref().map(|via| via.host));
            nodes.extend(gateway.and_then(node_with_address));
            collect(&route.nexthops, nodes);
        }
    }
    let routes: Vec<Route> = match listing.trim() {
        "" => Vec::new(),
        listing => serde_json::from_str(listing).context("reading the router's table")?,
    };
    let mut nodes = BTreeSet::new();
    collect(&routes, &mut nodes);
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hops_are_read_in_every_form() {
        for (listing, expected) in [
            ("", vec![]),
            ("[]", vec![]),
            (
                r#"[{"dst":"203.0.113.0","gateway":"10.0.0.12","dev":"eth0","protocol":"bird"}]"#,
                vec![2],
            ),
            (
                r#"[{"dst":"203.0.113.0","protocol":"bgp","nexthops":[{"gateway":"10.0.0.11","weight":1},
                    {"gateway":"10.0.0.13","weight":1}]}]"#,
                vec![1, 3],
            ),
            (
                r#"[{"dst":"2001:db8:113::","gateway":"fd00:a::11"},{"dst":"2001:db8:113::","gateway":"fd00:a::12"}]"#,
                vec![1, 2],
            ),
            (r#"[{"dst":"203.0.113.0","via":{"family":"inet6","host":"fd00:a::13"}}]"#, vec![3]),
            (r#"[{"dst":"203.0.113.0","gateway":"192.0.2.1"}]"#, vec![]),
        ] {
            let nodes: Vec<_> = parse_next_hops(listing).unwrap().into_iter().collect();
            assert_eq!(nodes, expected, "{listing}");
        }
    }

    #[test]
    fn both_configurations_name_every_node() {
        for number in NODES {
            let neighbour = format!("neighbor {}", node_addresses(number).0);
            assert!(bird_configuration().contains(&neighbour));
            assert!(frr_configuration().contains(&neighbour));
        }
    }
}
