//! The gateways of this node: those of the default routes of the main table, which are hosts on the
//! segment that answer whenever it is well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia,
};

/// The default routes that the kernel has told of, by family and metric.
#[derive(Debug, Default)]
pub struct Gateways(BTreeMap<(Family, u32), BTreeSet<Hop>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// The index of an interface, and a host behind it.
type Hop = (u32, IpAddr);

/// What a new route is to the one of the same metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    Added,
    /// It takes its place (NLM_F_REPLACE); the kernel does not tell the end of the other.
    Replaced,
}

impl Gateways {
    pub fn add(&mut self, route: &RouteMessage, novelty: Novelty) {
        let Some((key, hops)) = default_route(route) else { return };
        let known = self.0.entry(key).or_default();
        match novelty {
            Novelty::Added => {}
            Novelty::Replaced => known.clear(),
        }
        known.extend(hops);
    }

    pub fn remove(&mut self, route: &RouteMessage) {
        let Some((key, hops)) = default_route(route) else { return };
        if let Some(known) = self.0.get_mut(&key) {
            known.retain(|hop| !hops.contains(hop));
        }
    }

    /// The routes by way of an interface are gone. The kernel does not tell the end of each when
    /// the interface goes down, or loses its last IPv4 address.
    pub fn remove_by(&mut self, interface: u32, gone: Family) {
        for ((family, _), hops) in &mut self.0 {
            if *family == gone {
                hops.retain(|(index, _)| *index != interface);
            }
        }
    }

    /// In order, each once.
    pub fn by(&self, interface: u32) -> Vec<IpAddr> {
        let hops = self.0.values().flatten().filter(|(index, _)| *index == interface);
        hops.map(|(_, gateway)| *gateway).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Which default route this is, and where it leads; `None` if it is another route.
fn default_route(route: &RouteMessage) -> Option<((Family, u32), Vec<Hop>)> {
    let RouteMessage { header, attributes, .. } = route;
    let family = match header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let table = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    if header.destination_prefix_length != 0
        || header.source_prefix_length != 0
        || header.kind != RouteType::Unicast
        || table.unwrap_or_else(|| header.table.into()) != u32::from(RouteHeader::RT_TABLE_MAIN)
    {
        return None;
    }
    let (mut metric, mut interface, mut hops) = (0, None, Vec::new());
    for attribute in attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::MultiPath(paths) => {
                hops.extend(
                    paths.iter().filter_map(|path| {
                        Some((path.interface_index, gateway(&path.attributes)?))
                    }),
                );
            }
            _ => {}
        }
    }
    hops.extend(interface.zip(gateway(attributes)));
    Some(((family, metric), hops))
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address))
        | RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address))
        | RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteNextHop;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(family: AddressFamily, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.attributes = attributes;
        message
    }

    fn default_by(gateway: &str, interface: u32, metric: u32) -> RouteMessage {
        let gateway = ip(gateway);
        let family = if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        route(
            family,
            vec![
                RouteAttribute::Gateway(gateway.into()),
                RouteAttribute::Oif(interface),
                RouteAttribute::Priority(metric),
            ],
        )
    }

    #[test]
    fn gateways_come_and_go_with_default_routes() {
        let mut gateways = Gateways::default();
        gateways.add(&default_by("10.0.0.1", 2, 0), Novelty::Added);
        gateways.add(&default_by("10.0.0.1", 2, 100), Novelty::Added);
        gateways.add(&default_by("fe80::1", 2, 1024), Novelty::Added);
        gateways.add(&default_by("10.1.0.1", 3, 50), Novelty::Added);
        assert_eq!(gateways.by(2), [ip("10.0.0.1"), ip("fe80::1")]);
        assert_eq!(gateways.by(3), [ip("10.1.0.1")]);
        gateways.remove(&default_by("10.0.0.1", 2, 0));
        assert_eq!(gateways.by(2), [ip("10.0.0.1"), ip("fe80::1")]);
        gateways.remove(&default_by("10.0.0.1", 2, 100));
        assert_eq!(gateways.by(2), [ip("fe80::1")]);
    }

    #[test]
    fn a_route_that_takes_the_place_of_another_ends_it() {
        let mut gateways = Gateways::default();
        gateways.add(&default_by("10.0.0.1", 2, 0), Novelty::Added);
        gateways.add(&default_by("10.0.0.2", 2, 0), Novelty::Replaced);
        assert_eq!(gateways.by(2), [ip("10.0.0.2")]);
        gateways.add(&default_by("10.0.0.3", 2, 0), Novelty::Added);
        assert_eq!(gateways.by(2), [ip("10.0.0.2"), ip("10.0.0.3")]);
    }

    #[test]
    fn every_path_of_a_route_leads_to_a_gateway() {
        let path = |interface, gateway: RouteAttribute| {
            let mut path = RouteNextHop::default();
            path.interface_index = interface;
            path.attributes = vec![gateway];
            path
        };
        let paths = vec![
            path(2, RouteAttribute::Gateway(ip("10.0.0.1").into())),
            path(3, RouteAttribute::Via(RouteVia::Inet6("fe80::3".parse().unwrap()))),
        ];
        let both = route(AddressFamily::Inet, vec![RouteAttribute::MultiPath(paths)]);
        let mut gateways = Gateways::default();
        gateways.add(&both, Novelty::Added);
        assert_eq!((gateways.by(2), gateways.by(3)), (vec![ip("10.0.0.1")], vec![ip("fe80::3")]));
        gateways.remove_by(2, Family::V4);
        assert_eq!((gateways.by(2), gateways.by(3)), (vec![], vec![ip("fe80::3")]));
        gateways.remove_by(3, Family::V6);
        assert_eq!(gateways.by(3), [ip("fe80::3")], "it is a route of IPv4");
        gateways.remove(&both);
        assert_eq!(gateways.by(3), [] as [IpAddr; 0]);
    }

    #[test]
    fn other_routes_have_no_gateways() {
        let good = default_by("10.0.0.1", 2, 0);
        let but = |change: fn(&mut RouteMessage)| {
            let mut other = good.clone();
            change(&mut other);
            other
        };
        let mut gateways = Gateways::default();
        for other in [
            but(|route| route.header.destination_prefix_length = 24),
            but(|route| route.header.source_prefix_length = 64),
            but(|route| route.header.kind = RouteType::BlackHole),
            but(|route| route.header.table = 100),
            but(|route| route.attributes.push(RouteAttribute::Table(1000))),
            but(|route| route.header.address_family = AddressFamily::Mpls),
            but(|route| route.attributes.retain(|a| !matches!(a, RouteAttribute::Oif(_)))),
        ] {
            gateways.add(&other, Novelty::Added);
            assert_eq!(gateways.by(2), [] as [IpAddr; 0], "{other:?}");
        }
    }
}
