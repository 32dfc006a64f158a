//! What a Service holds: by name for the outside, by number inside.

use std::net::IpAddr;

use config::PoolName;

use super::free::PerFamily;
use crate::service::Family;

/// What a Service holds: one address, or one of each family, each out of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// IPv4 before IPv6; with one address both places hold it.
    addresses: [IpAddr; 2],
    pool: PoolName,
    /// The pool of the second address where that is another one.
    second_pool: Option<PoolName>,
}

impl Assignment {
    pub fn new(address: IpAddr, pool: PoolName) -> Self {
        Self { addresses: [address; 2], pool, second_pool: None }
    }

    /// With a second address of the other family; as it is if this holds one of that family.
    #[must_use]
    pub fn with(self, address: IpAddr, pool: PoolName) -> Self {
        if self.addresses().iter().any(|held| Family::of(*held) == Family::of(address)) {
            return self;
        }
        let [held, _] = self.addresses;
        let ((first, pool), (second, second_pool)) = if held < address {
            ((held, self.pool), (address, pool))
        } else {
            ((address, pool), (held, self.pool))
        };
        let second_pool = (pool != second_pool).then_some(second_pool);
        Self { addresses: [first, second], pool, second_pool }
    }

    /// One or two, IPv4 before IPv6.
    pub fn addresses(&self) -> &[IpAddr] {
        let [first, second] = &self.addresses;
        if first == second { std::slice::from_ref(first) } else { &self.addresses }
    }

    /// The pools that the addresses are from, IPv4's first; one when both are from the same.
    pub fn pools(&self) -> impl Iterator<Item = &PoolName> {
        std::iter::once(&self.pool).chain(&self.second_pool)
    }

    /// Every address with its pool.
    pub fn parts(&self) -> impl Iterator<Item = (IpAddr, &PoolName)> {
        let second = self.second_pool.as_ref().unwrap_or(&self.pool);
        self.addresses().iter().copied().zip([&self.pool, second])
    }

    /// The annotation `metallb.io/ip-allocated-from-pool`: `pool`, or `v4pool,v6pool`.
    pub fn pool_annotation(&self) -> String {
        match &self.second_pool {
            None => self.pool.to_string(),
            Some(second) => format!("{},{second}", self.pool),
        }
    }
}

/// Number of a Service while it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(pub(super) u32);

impl Id {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An address and the pool that it is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub address: IpAddr,
    pub pool: PoolId,
}

/// Number of a pool: its place in the order of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolId(pub(super) u32);

/// What a Service holds or might hold.
pub type Parts = PerFamily<Option<Part>>;

impl Parts {
    pub fn iter(&self) -> impl Iterator<Item = Part> + use<> {
        self.v4.into_iter().chain(self.v6)
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    pub fn set(&mut self, part: Part) {
        self[Family::of(part.address)] = Some(part);
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self[Family::of(address)].is_some_and(|part| part.address == address)
    }
}

impl FromIterator<Part> for Parts {
    fn from_iter<I: IntoIterator<Item = Part>>(parts: I) -> Self {
        let mut all = Self::default();
        for part in parts {
            all.set(part);
        }
        all
    }
}

impl PoolId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
