//! Who stands on an address, and which addresses are shared under one key.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::Id;
use crate::service::{Port, Sharing};

/// Who stands on one address.
#[derive(Debug, Clone)]
pub enum Tenancy {
    /// A Service that shares with nobody.
    Alone(Id),
    /// Services with one key, at least one.
    Shared(Box<Shared>),
}

#[derive(Debug, Clone)]
pub struct Shared {
    pub sharing: Arc<Sharing>,
    pub users: BTreeSet<Id>,
    pub ports: BTreeMap<Port, Id>,
}

impl Tenancy {
    pub fn users(&self) -> impl Iterator<Item = Id> {
        let (alone, shared) = match self {
            Self::Alone(user) => (Some(*user), None),
            Self::Shared(shared) => (None, Some(&shared.users)),
        };
        alone.into_iter().chain(shared.into_iter().flatten().copied())
    }
}

/// Addresses that Services with this key and backend may share; where a pool's `sharingScope` is
/// Namespace, only those of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    pub sharing: Arc<Sharing>,
    pub namespace: Option<Arc<str>>,
}

#[derive(Debug, Clone, Default)]
pub struct Group {
    /// Pool, range, address: the order in which they are tried.
    pub members: BTreeSet<(u32, usize, u128)>,
    /// On how many of the members a port is in use.
    used: BTreeMap<Port, usize>,
}

impl Group {
    /// One of `ports` that is in use on every member: thousands of Services with one key and one
    /// port must not look at each other's addresses in turn.
    pub fn full_port(&self, ports: &[Port]) -> Option<Port> {
        ports.iter().copied().find(|port| self.is_full(*port))
    }

    pub fn is_full(&self, port: Port) -> bool {
        self.used.get(&port).copied().unwrap_or_default() == self.members.len()
    }

    pub fn enter(&mut self, at: (u32, usize, u128), ports: &[Port]) {
        self.members.insert(at);
        for port in ports {
            *self.used.entry(*port).or_default() += 1;
        }
    }

    /// `last`: nobody of the group is left on the address.
    pub fn leave(&mut self, at: (u32, usize, u128), ports: &[Port], last: Last) {
        for port in ports {
            if let Some(count) = self.used.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.used.remove(port);
                }
            }
        }
        match last {
            Last::Yes => {
                self.members.remove(&at);
            }
            Last::No => {}
        }
    }

    /// The pools that have members.
    pub fn pools(&self) -> impl Iterator<Item = u32> {
        let mut next = self.members.first();
        std::iter::from_fn(move || {
            let (pool, _, _) = *next?;
            next = self.members.range((pool + 1, 0, 0)..).next();
            Some(pool)
        })
    }
}

/// Whether the one who leaves an address was the last on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    Yes,
    No,
}
