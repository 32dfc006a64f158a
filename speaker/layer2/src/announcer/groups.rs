//! The solicited-node groups in which addresses are asked for, shared by those that end alike.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use super::Action;
use crate::interface::InterfaceIndex;
use crate::ndp;

#[derive(Debug, Default)]
pub(super) struct Groups {
    /// How many addresses need a membership; zero only until it is settled.
    holders: BTreeMap<(InterfaceIndex, Ipv6Addr), u32>,
    /// Memberships whose holders have changed since they were settled, and whether they were in
    /// force then: an address that goes and one that comes in the same moment cost nothing.
    unsettled: BTreeMap<(InterfaceIndex, Ipv6Addr), Membership>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Membership {
    InForce,
    None,
}

impl Groups {
    /// An address that may be asked for on an interface; there are no groups for IPv4.
    pub(super) fn hold(&mut self, address: IpAddr, interface: InterfaceIndex) {
        if let IpAddr::V6(address) = address {
            let key = (interface, ndp::solicited_node(address));
            let holders = self.holders.entry(key).or_default();
            let before = if *holders > 0 { Membership::InForce } else { Membership::None };
            self.unsettled.entry(key).or_insert(before);
            *holders += 1;
        }
    }

    /// One for which [`hold`](Self::hold) was called before.
    pub(super) fn release(&mut self, address: IpAddr, interface: InterfaceIndex) {
        if let IpAddr::V6(address) = address {
            let key = (interface, ndp::solicited_node(address));
            if let Some(holders) = self.holders.get_mut(&key) {
                self.unsettled.entry(key).or_insert(Membership::InForce);
                *holders -= 1;
            }
        }
    }

    /// What has to be done about the changes: first what makes room.
    pub(super) fn settle(&mut self) -> Vec<Action> {
        let (mut left, mut joined) = (Vec::new(), Vec::new());
        for (key, before) in std::mem::take(&mut self.unsettled) {
            let (interface, group) = key;
            let held = self.holders.get(&key).is_some_and(|&holders| holders > 0);
            if !held {
                self.holders.remove(&key);
            }
            match (before, held) {
                (Membership::InForce, false) => left.push(Action::LeaveGroup { interface, group }),
                (Membership::None, true) => joined.push(Action::JoinGroup { interface, group }),
                (Membership::InForce, true) | (Membership::None, false) => {}
            }
        }
        left.append(&mut joined);
        left
    }
}
