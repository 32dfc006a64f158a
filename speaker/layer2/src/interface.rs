//! The interfaces of a node, as far as answering for an address is concerned.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

/// The kernel's index of an interface; it survives a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceIndex(pub u32);

/// An interface that may answer at all. The caller leaves out loopback, enslaved ports and whatever
/// the user has excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's index.
    pub index: InterfaceIndex,
    /// The name that advertisements select by.
    pub name: String,
    /// The address that answers carry.
    pub mac: [u8; 6],
    /// Administratively up and with carrier.
    pub up: bool,
    /// The subnets connected to it.
    pub networks: Vec<IpNet>,
    /// Its link-local address, the source of its neighbor advertisements; without one they are sent
    /// from the address they are about.
    pub link_local: Option<Ipv6Addr>,
    /// The gateways of the routes by way of it.
    pub gateways: Vec<IpAddr>,
    /// Whether neighbors resolve addresses on it (neither NOARP nor point-to-point).
    pub arp: bool,
}

impl Interface {
    /// Whether frames may be exchanged on it now.
    pub(crate) fn speaks(&self) -> bool {
        self.up && self.arp
    }

    /// Whether one of its subnets holds an address.
    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// The interfaces on which an address is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceMatch {
    /// Those with a subnet that holds the address; every interface if none has.
    All,
    /// Those of these names. Thousands of addresses have the same.
    Only(Arc<[String]>),
}

impl InterfaceMatch {
    /// The interfaces among `interfaces` on which `address` is announced now. A subnet decides even
    /// while its interface is down: an address must not wander to a foreign segment with the
    /// carrier. A link-local address means another station on every link, so it is announced nowhere.
    pub(crate) fn places<'a>(
        &self,
        address: IpAddr,
        interfaces: impl Iterator<Item = &'a Interface> + Clone,
    ) -> impl Iterator<Item = &'a Interface> {
        let nowhere = match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        let anywhere = !interfaces.clone().any(|interface| interface.holds(address));
        interfaces.filter(move |interface| {
            interface.speaks()
                && !nowhere
                && match self {
                    Self::All => anywhere || interface.holds(address),
                    Self::Only(names) => names.contains(&interface.name),
                }
        })
    }
}
