//! The interfaces of this node, their addresses and gateways, from netlink events (rtnetlink(7)). It
//! leaves out what must not answer for an address; which of the rest does is `layer2`'s matter.

mod gateways;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use ipnet::IpNet;
use layer2::{Interface, InterfaceIndex};
use regex_lite::Regex;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use self::gateways::{Family, Gateways, Novelty};

/// The interfaces that never answer for an address, by name.
#[derive(Debug, Clone)]
pub struct Exclude(Vec<Regex>);

/// What is wrong with a list of excluded interfaces.
#[derive(Debug, thiserror::Error)]
pub enum ExcludeError {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("announcedInterfacesToExclude must be a list of regular expressions: {0}")]
    Yaml(String),
    #[error("announcedInterfacesToExclude: {expression:?} is no regular expression: {reason}")]
    Expression { expression: String, reason: regex_lite::Error },
}

impl Exclude {
    /// Reads the file that MetalLB's users know as `/etc/metallb/excludel2.yaml`; the default list if
    /// there is no such file.
    ///
    /// # Errors
    /// When there is one that cannot be used.
    pub fn read(path: &Path) -> Result<Self, ExcludeError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(ExcludeError::Read(error)),
        }
    }

    /// `announcedInterfacesToExclude`, a list of regular expressions that match anywhere in a name
    /// unless they are anchored.
    ///
    /// # Errors
    /// Names the expression that is none.
    pub fn parse(yaml: &str) -> Result<Self, ExcludeError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct File {
            announced_interfaces_to_exclude: Vec<String>,
        }
        let file: File =
            serde_saphyr::from_str(yaml).map_err(|error| ExcludeError::Yaml(error.to_string()))?;
        let expressions = file.announced_interfaces_to_exclude.into_iter();
        let expressions = expressions.map(|expression| {
            Regex::new(&expression)
                .map_err(|reason| ExcludeError::Expression { expression, reason })
        });
        expressions.collect::<Result<_, _>>().map(Self)
    }

    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|expression| expression.is_match(name))
    }
}

/// The list that MetalLB installs: interfaces of containers and of the common pod networks.
impl Default for Exclude {
    fn default() -> Self {
        let expressions = DEFAULT_EXCLUDE.iter().map(|expression| {
            Regex::new(expression).expect("the default list is made of regular expressions")
        });
        Self(expressions.collect())
    }
}

const DEFAULT_EXCLUDE: [&str; 14] = [
    "^docker.*",
    "^cbr.*",
    "^dummy.*",
    "^virbr.*",
    "^lxcbr.*",
    "^veth.*",
    "^lo$",
    "^cali.*",
    "^tunl.*",
    "^flannel.*",
    "^kube-ipvs.*",
    "^cni.*",
    "^nodelocaldns.*",
    "^lxc.*",
];

/// How long netlink is left alone after an error.
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait for a whole list, which takes milliseconds: an answer that an overrun swallowed
/// would never come.
const LIST: Duration = Duration::from_secs(5);

/// Tells `tell` all interfaces that may answer, first at once and then after each change, until it is
/// dropped. What the kernel could not tell in time (an overrun) it asks for again.
pub async fn watch(exclude: Exclude, tell: impl Fn(Vec<Interface>) + Send) {
    let mut told = None;
    loop {
        match follow(&exclude, &tell, &mut told).await {
            Ok(never) => match never {},
            Err(error) => {
                warn!(%error, "cannot follow this node's interfaces; trying again in {RETRY:?}");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("no netlink socket: {0}")]
    Open(#[from] io::Error),
    #[error("the kernel does not list them: {0}")]
    List(#[from] rtnetlink::Error),
    #[error("the kernel did not list them within {LIST:?}")]
    Slow(#[from] tokio::time::error::Elapsed),
    #[error("the netlink socket broke")]
    Closed,
}

async fn follow(
    exclude: &Exclude,
    tell: &(impl Fn(Vec<Interface>) + Send),
    told: &mut Option<Vec<Interface>>,
) -> Result<Infallible, WatchError> {
    // Listening begins before listing, so nothing is missed in between. An event that is older than
    // the list does no harm: those after it lead to the same end.
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    loop {
        let mut table = timeout(LIST, list(&handle)).await??;
        loop {
            let interfaces = table.interfaces(exclude);
            if told.as_ref() != Some(&interfaces) {
                debug!(?interfaces, "the interfaces of this node");
                *told = Some(interfaces.clone());
                tell(interfaces);
            }
            // All that waits is taken in before the next word: a flap of many links is one change.
            let mut next = Some(messages.next().await);
            let mut overrun = false;
            while let Some(message) = next {
                let (message, _) = message.ok_or(WatchError::Closed)?;
                let replaced = message.header.flags & NLM_F_REPLACE != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route))
                        if replaced =>
                    {
                        table.gateways.add(&route, Novelty::Replaced);
                    }
                    NetlinkPayload::InnerMessage(message) => table.apply(message),
                    NetlinkPayload::Overrun(_) => overrun = true,
                    _ => {}
                }
                next = messages.next().now_or_never();
            }
            if overrun {
                warn!("changes of this node's interfaces were lost; listing them again");
                break;
            }
        }
    }
}

async fn list(handle: &Handle) -> Result<Table, rtnetlink::Error> {
    let mut table = Table::default();
    let mut links = pin!(handle.link().get().execute());
    while let Some(link) = links.try_next().await? {
        table.apply(RouteNetlinkMessage::NewLink(link));
    }
    let mut addresses = pin!(handle.address().get().execute());
    while let Some(address) = addresses.try_next().await? {
        table.apply(RouteNetlinkMessage::NewAddress(address));
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        let mut routes = pin!(handle.route().get(all).execute());
        while let Some(route) = routes.try_next().await? {
            table.apply(RouteNetlinkMessage::NewRoute(route));
        }
    }
    Ok(table)
}

/// What the kernel has told, by interface index.
#[derive(Debug, Default)]
struct Table {
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, BTreeMap<IpNet, Usable>>,
    gateways: Gateways,
}

#[derive(Debug)]
struct Link {
    name: String,
    /// None or not six octets on tunnels and other links that are not Ethernet.
    mac: Vec<u8>,
    flags: LinkFlags,
    enslaved: bool,
}

/// Whether duplicate address detection lets the node send from an address (RFC 4862 section 5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usable {
    Yes,
    NotYetOrNever,
}

impl Table {
    fn apply(&mut self, message: RouteNetlinkMessage) {
        match message {
            // The same messages of family AF_BRIDGE are about a port of a bridge, and its end is
            // not the end of the link.
            RouteNetlinkMessage::NewLink(link)
                if link.header.interface_family == AddressFamily::Unspec =>
            {
                if !link.header.flags.contains(LinkFlags::Up) {
                    self.lose_gateways(link.header.index);
                }
                self.links.insert(link.header.index, Link::new(link));
            }
            RouteNetlinkMessage::DelLink(link)
                if link.header.interface_family == AddressFamily::Unspec =>
            {
                self.links.remove(&link.header.index);
                self.addresses.remove(&link.header.index);
                self.lose_gateways(link.header.index);
            }
            RouteNetlinkMessage::NewAddress(address) => {
                if let Some((network, usable)) = network(&address) {
                    let addresses = self.addresses.entry(address.header.index).or_default();
                    addresses.insert(network, usable);
                }
            }
            RouteNetlinkMessage::DelAddress(address) => {
                if let (Some((network, _)), Some(addresses)) =
                    (network(&address), self.addresses.get_mut(&address.header.index))
                {
                    addresses.remove(&network);
                    let is_v4 = |network: &IpNet| matches!(network, IpNet::V4(_));
                    if is_v4(&network) && !addresses.keys().any(is_v4) {
                        self.gateways.remove_by(address.header.index, Family::V4);
                    }
                }
            }
            RouteNetlinkMessage::NewRoute(route) => self.gateways.add(&route, Novelty::Added),
            RouteNetlinkMessage::DelRoute(route) => self.gateways.remove(&route),
            _ => {}
        }
    }

    fn lose_gateways(&mut self, interface: u32) {
        self.gateways.remove_by(interface, Family::V4);
        self.gateways.remove_by(interface, Family::V6);
    }

    /// Those that may answer for an address, in the order of their indexes.
    fn interfaces(&self, exclude: &Exclude) -> Vec<Interface> {
        let links = self.links.iter();
        links.filter_map(|(&index, link)| self.interface(index, link, exclude)).collect()
    }

    fn interface(&self, index: u32, link: &Link, exclude: &Exclude) -> Option<Interface> {
        let skipped = LinkFlags::Loopback | LinkFlags::Noarp;
        if link.enslaved
            || link.flags.intersects(skipped)
            || !link.flags.contains(LinkFlags::Up)
            || exclude.matches(&link.name)
        {
            return None;
        }
        // A bridge that never had a port may have an address of zeroes, which is nobody's.
        let mac = <[u8; 6]>::try_from(link.mac.as_slice()).ok().filter(|mac| *mac != [0; 6])?;
        let addresses = || self.addresses.get(&index).into_iter().flatten();
        let networks = addresses().map(|(network, _)| *network);
        let networks = networks.filter(|network| link_local(network).is_none()).collect();
        let link_local = addresses()
            .filter(|(_, usable)| **usable == Usable::Yes)
            .find_map(|(network, _)| link_local(network));
        Some(Interface {
            index: InterfaceIndex(index),
            name: link.name.clone(),
            mac,
            up: link.flags.contains(LinkFlags::LowerUp),
            networks,
            link_local,
            gateways: self.gateways.by(index),
            arp: link.flags.contains(LinkFlags::Broadcast),
        })
    }
}

impl Link {
    fn new(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self { name: String::new(), mac: Vec::new(), flags, enslaved: false };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Controller(master) => link.enslaved = master != 0,
                _ => {}
            }
        }
        link
    }
}

/// The node's address with the subnet that it is in.
fn network(message: &AddressMessage) -> Option<(IpNet, Usable)> {
    let (mut address, mut local) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            // On a point-to-point link the node's own; the other is the peer's there.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let network = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    let optimistic = flags.contains(AddressFlags::Optimistic);
    let usable = if flags.contains(AddressFlags::Dadfailed)
        || (flags.contains(AddressFlags::Tentative) && !optimistic)
    {
        Usable::NotYetOrNever
    } else {
        Usable::Yes
    };
    Some((network, usable))
}

fn link_local(network: &IpNet) -> Option<Ipv6Addr> {
    match network {
        IpNet::V6(network) if network.addr().is_unicast_link_local() => Some(network.addr()),
        IpNet::V6(_) | IpNet::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteType};

    use super::*;

    const UP: LinkFlags = LinkFlags::Up
        .union(LinkFlags::LowerUp)
        .union(LinkFlags::Broadcast)
        .union(LinkFlags::Running);

    fn link(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ];
        message
    }

    fn address(index: u32, network: &str, flags: AddressFlags) -> AddressMessage {
        let network: IpNet = network.parse().unwrap();
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = network.prefix_len();
        message.attributes =
            vec![AddressAttribute::Address(network.addr()), AddressAttribute::Flags(flags)];
        message
    }

    fn table(messages: impl IntoIterator<Item = RouteNetlinkMessage>) -> Table {
        let mut table = Table::default();
        messages.into_iter().for_each(|message| table.apply(message));
        table
    }

    fn names(table: &Table) -> Vec<String> {
        table.interfaces(&Exclude::default()).into_iter().map(|i| i.name).collect()
    }

    #[test]
    fn the_default_list_excludes_what_containers_use() {
        let exclude = Exclude::default();
        for name in
            ["docker0", "veth12ab", "lo", "cali0", "flannel.1", "cni0", "kube-ipvs0", "lxc_1"]
        {
            assert!(exclude.matches(name), "{name}");
        }
        for name in ["eth0", "ens3", "bond0.100", "br0", "lo1", "enp1s0veth"] {
            assert!(!exclude.matches(name), "{name}");
        }
    }

    #[test]
    fn a_list_of_the_users_own_takes_its_place() {
        let yaml = "announcedInterfacesToExclude: [\"^bond\", 'wg[0-9]$']";
        let exclude = Exclude::parse(yaml).unwrap();
        for (name, excluded) in
            [("bond0", true), ("wg1", true), ("mywg1", true), ("wg1x", false), ("docker0", false)]
        {
            assert_eq!(exclude.matches(name), excluded, "{name}");
        }
        let nothing = Exclude::parse("announcedInterfacesToExclude: []").unwrap();
        assert!(!nothing.matches("lo"));
        let absent = Exclude::read(Path::new("/nonexistent/excludel2.yaml")).unwrap();
        assert!(absent.matches("docker0"));
    }

    #[test]
    fn a_list_that_cannot_be_used_says_why() {
        for (yaml, expected) in [
            ("announcedInterfacesToExclude: ['(']", "\"(\" is no regular expression"),
            ("announcedInterfacesToExclude: eth0", "must be a list"),
            ("interfaces: [eth0]", "announcedInterfacesToExclude"),
        ] {
            let error = Exclude::parse(yaml).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_links_that_may_answer_are_told() {
        let mut enslaved = link(6, "eth6", UP);
        enslaved.attributes.push(LinkAttribute::Controller(9));
        let mut tunnel = link(7, "tun7", UP);
        tunnel.attributes[1] = LinkAttribute::Address(vec![192, 0, 2, 1]);
        let mut bridge = link(9, "br9", UP);
        bridge.attributes[1] = LinkAttribute::Address(vec![0; 6]);
        let mut port = link(1, "eth1", LinkFlags::empty());
        port.header.interface_family = AddressFamily::Bridge;
        let table = table([
            RouteNetlinkMessage::NewLink(link(1, "eth1", UP)),
            RouteNetlinkMessage::NewLink(link(2, "eth2", UP.difference(LinkFlags::Up))),
            RouteNetlinkMessage::NewLink(link(3, "eth3", UP | LinkFlags::Loopback)),
            RouteNetlinkMessage::NewLink(link(4, "eth4", UP | LinkFlags::Noarp)),
            RouteNetlinkMessage::NewLink(link(5, "veth5", UP)),
            RouteNetlinkMessage::NewLink(enslaved),
            RouteNetlinkMessage::NewLink(tunnel),
            RouteNetlinkMessage::NewLink(bridge),
            RouteNetlinkMessage::DelLink(port),
            RouteNetlinkMessage::NewLink(link(8, "eth8", UP.difference(LinkFlags::LowerUp))),
        ]);
        assert_eq!(names(&table), ["eth1", "eth8"]);
        let interfaces = table.interfaces(&Exclude::default());
        assert_eq!(interfaces.iter().map(|i| i.up).collect::<Vec<_>>(), [true, false]);
        assert!(interfaces[0].arp);
    }

    #[test]
    fn addresses_come_and_go_with_their_events() {
        let permanent = AddressFlags::Permanent;
        let mut table = table([
            RouteNetlinkMessage::NewLink(link(1, "eth1", UP)),
            RouteNetlinkMessage::NewAddress(address(1, "192.0.2.7/24", permanent)),
            RouteNetlinkMessage::NewAddress(address(1, "2001:db8::7/64", permanent)),
            RouteNetlinkMessage::NewAddress(address(1, "fe80::7/64", AddressFlags::Tentative)),
        ]);
        let only = |table: &Table| table.interfaces(&Exclude::default()).remove(0);
        let networks = ["192.0.2.7/24", "2001:db8::7/64"].map(|n| n.parse::<IpNet>().unwrap());
        assert_eq!(only(&table).networks, networks);
        assert_eq!(only(&table).link_local, None, "tentative");

        table.apply(RouteNetlinkMessage::NewAddress(address(1, "fe80::7/64", permanent)));
        assert_eq!(only(&table).link_local, Some("fe80::7".parse().unwrap()));
        table.apply(RouteNetlinkMessage::DelAddress(address(1, "192.0.2.7/24", permanent)));
        assert_eq!(only(&table).networks, networks[1..]);

        table.apply(RouteNetlinkMessage::DelLink(link(1, "eth1", UP)));
        table.apply(RouteNetlinkMessage::NewLink(link(1, "eth1", UP)));
        assert_eq!(only(&table).networks, []);
    }

    #[test]
    fn default_routes_end_with_the_link_that_goes_down_and_with_its_last_ipv4_address() {
        let route = || {
            let mut route = RouteMessage::default();
            route.header.address_family = AddressFamily::Inet;
            route.header.table = RouteHeader::RT_TABLE_MAIN;
            route.header.kind = RouteType::Unicast;
            let gateway = RouteAddress::Inet([192, 0, 2, 1].into());
            route.attributes = vec![RouteAttribute::Gateway(gateway), RouteAttribute::Oif(1)];
            RouteNetlinkMessage::NewRoute(route)
        };
        let address = |text| address(1, text, AddressFlags::Permanent);
        let ends: [(&str, RouteNetlinkMessage, usize); 5] = [
            ("carrier", RouteNetlinkMessage::NewLink(link(1, "eth1", UP - LinkFlags::LowerUp)), 1),
            ("down", RouteNetlinkMessage::NewLink(link(1, "eth1", UP - LinkFlags::Up)), 0),
            ("removed", RouteNetlinkMessage::DelLink(link(1, "eth1", UP)), 0),
            ("IPv4", RouteNetlinkMessage::DelAddress(address("192.0.2.7/24")), 0),
            ("IPv6", RouteNetlinkMessage::DelAddress(address("2001:db8::7/64")), 1),
        ];
        for (name, end, left) in ends {
            let mut table = table([
                RouteNetlinkMessage::NewLink(link(1, "eth1", UP)),
                RouteNetlinkMessage::NewAddress(address("192.0.2.7/24")),
                RouteNetlinkMessage::NewAddress(address("2001:db8::7/64")),
                route(),
            ]);
            let gateways = |table: &Table| {
                let interfaces = table.interfaces(&Exclude::default());
                interfaces.iter().map(|interface| interface.gateways.len()).sum::<usize>()
            };
            assert_eq!(gateways(&table), 1);
            table.apply(end);
            table.apply(RouteNetlinkMessage::NewLink(link(1, "eth1", UP)));
            assert_eq!(gateways(&table), left, "{name}");
        }
    }

    #[test]
    fn a_link_that_is_enslaved_or_set_free_or_gets_another_address_is_told_so() {
        let mut port = link(1, "eth1", UP);
        port.attributes.push(LinkAttribute::Controller(9));
        let mut freed = link(1, "eth1", UP);
        freed.attributes.push(LinkAttribute::Controller(0));
        freed.attributes[1] = LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]);
        let mut table = table([RouteNetlinkMessage::NewLink(link(1, "eth1", UP))]);
        assert_eq!(names(&table), ["eth1"]);
        table.apply(RouteNetlinkMessage::NewLink(port));
        assert_eq!(names(&table), [] as [String; 0]);
        table.apply(RouteNetlinkMessage::NewLink(freed));
        assert_eq!(table.interfaces(&Exclude::default())[0].mac, [2, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn a_renamed_link_goes_by_its_new_name() {
        let mut table = table([RouteNetlinkMessage::NewLink(link(1, "eth1", UP))]);
        table.apply(RouteNetlinkMessage::NewLink(link(1, "uplink", UP)));
        assert_eq!(names(&table), ["uplink"]);
    }
}
