//! Why a Service does not have what it asks for, what else it should know, and how what it holds
//! changed: in the users' words, each with a reason that programs may rely on.

use std::{fmt, net::IpAddr, sync::Arc};

use config::{NodeName, PoolName};
use ipnet::IpNet;

use crate::{
    allocator::Conflict,
    service::{Families, Family, FamilyError, RequestError},
};

/// Why a Service does not have what it asks for, or why it lost what it had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no IPAddressPool")]
    NoPools,
    #[error(transparent)]
    Families(#[from] FamilyError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the requested addresses {} do not fit: the Service is {families}", list(.requested))]
    RequestedFamilies { requested: Vec<IpAddr>, families: Families },
    #[error("address {address} is in no IPAddressPool")]
    InNoPool { address: IpAddr },
    #[error(
        "the requested address {address} is in IPAddressPool {pool:?}, but the annotation \
         metallb.io/address-pool asks for {requested:?}"
    )]
    InOtherPool { address: IpAddr, pool: PoolName, requested: Box<str> },
    #[error("the annotation metallb.io/address-pool asks for {pool:?}, which does not exist")]
    UnknownPool { pool: Box<str> },
    #[error(
        "the annotation metallb.io/address-pool names more than two IPAddressPools; one, or one \
         for IPv4 and one for IPv6, is possible"
    )]
    TooManyPools,
    #[error(
        "IPAddressPool {pool:?} is in error and gives nothing out; see its status. Nobody else \
         gets what it gave out before"
    )]
    PoolInError { pool: PoolName },
    #[error(
        "IPAddressPool {pool:?} is not for this Service: its spec.serviceAllocation names other \
         namespaces or labels"
    )]
    NotAdmitted { pool: PoolName },
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error(
        "the namespace holds as many addresses of IPAddressPool {pool:?} as its \
         spec.maxAddressesPerNamespace allows ({limit})"
    )]
    Quota { pool: PoolName, limit: u32 },
    #[error("IPAddressPool {} has no {family} address left{left}", names(.pools))]
    PoolExhausted { pools: Vec<PoolName>, family: Family, left: Left },
    #[error("no IPAddressPool serves this Service automatically (autoAssign, serviceAllocation)")]
    NoPoolServes,
    #[error(
        "no available IPs: no IPAddressPool for this Service has an {family} address left{left}"
    )]
    Exhausted { family: Family, left: Left },
    #[error("address {address} does not fit: the Service is {families}")]
    HeldFamily { address: IpAddr, families: Families },
    #[error("the status holds a second {family} address, {address}")]
    HeldTwice { address: IpAddr, family: Family },
    #[error("the Service is being deleted")]
    BeingDeleted,
}

impl Refusal {
    /// A stable name of the variant: in the JSON of `berth plan`, in conditions and as a label of
    /// metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoPools => "NoPools",
            Self::Families(FamilyError::NoClusterIp) => "NoClusterIP",
            Self::Families(FamilyError::NotEnoughClusterIps) => "NotEnoughClusterIPs",
            Self::Request(_) => "InvalidRequest",
            Self::RequestedFamilies { .. } => "RequestedFamilies",
            Self::InNoPool { .. } => "AddressInNoPool",
            Self::InOtherPool { .. } => "AddressInOtherPool",
            Self::UnknownPool { .. } => "UnknownPool",
            Self::TooManyPools => "TooManyPools",
            Self::PoolInError { .. } => "PoolInError",
            Self::NotAdmitted { .. } => "PoolNotForService",
            Self::Conflict(Conflict::Taken { .. }) => "AddressInUse",
            Self::Conflict(Conflict::OtherKey { .. }) => "SharedUnderOtherKey",
            Self::Conflict(Conflict::OtherBackends { .. }) => "SharedByOtherBackends",
            Self::Conflict(Conflict::OtherNamespace { .. }) => "SharedByOtherNamespace",
            Self::Conflict(Conflict::Port { .. }) => "SharedPortInUse",
            Self::Quota { .. } => "NamespaceQuota",
            Self::PoolExhausted { .. } => "PoolExhausted",
            Self::NoPoolServes => "NoPoolServes",
            Self::Exhausted { .. } => "Exhausted",
            Self::HeldFamily { .. } => "HeldFamily",
            Self::HeldTwice { .. } => "HeldTwice",
            Self::BeingDeleted => "BeingDeleted",
        }
    }
}

/// What is left in exhausted pools, but not for a Service that takes any address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// Says whose the reserved addresses are.
    pub reserved: Option<Arc<str>>,
    /// A pool of which the namespace has all that it may have.
    pub quota: Option<PoolName>,
    /// Some addresses are in their cool-down.
    pub cooling: bool,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reserved) = &self.reserved {
            write!(f, "; {reserved}")?;
        }
        if let Some(pool) = &self.quota {
            write!(
                f,
                "; of IPAddressPool {pool:?} the namespace has all that \
                 spec.maxAddressesPerNamespace allows"
            )?;
        }
        if self.cooling {
            f.write_str("; freed addresses are given out again after spec.reuseAfter")?;
        }
        Ok(())
    }
}

/// What a Service should be told about an address that it has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    NodeAddress {
        address: IpAddr,
        node: NodeName,
        /// `InternalIP` or `ExternalIP`.
        kind: Arc<str>,
    },
    ServiceRange {
        address: IpAddr,
        range: IpNet,
    },
}

impl Note {
    /// A stable name of the variant.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NodeAddress { .. } => "NodeAddress",
            Self::ServiceRange { .. } => "ServiceRange",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeAddress { address, node, kind } => {
                write!(f, "address {address} is the {kind} of node {node}")
            }
            Self::ServiceRange { address, range } => {
                write!(f, "address {address} is inside {range}, the range of cluster IPs")
            }
        }
    }
}

/// How the addresses of a Service differ from those that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It has what it had.
    Kept,
    /// It had nothing.
    Assigned,
    /// It has what it had and more.
    Extended,
    /// It lost an address, and has another or the rest.
    Reassigned,
    /// It had something and has nothing.
    Released,
    /// It had nothing and has nothing.
    None,
}

impl Change {
    /// The order of the addresses does not matter.
    pub fn between(before: &[IpAddr], after: &[IpAddr]) -> Self {
        let all_kept = before.iter().all(|address| after.contains(address));
        let all_old = after.iter().all(|address| before.contains(address));
        match (before, after) {
            ([], []) => Self::None,
            ([], _) => Self::Assigned,
            (_, []) => Self::Released,
            _ if all_kept && all_old => Self::Kept,
            _ if all_kept => Self::Extended,
            _ => Self::Reassigned,
        }
    }
}

/// As in the JSON of `berth plan`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kept => "kept",
            Self::Assigned => "assigned",
            Self::Extended => "extended",
            Self::Reassigned => "reassigned",
            Self::Released => "released",
            Self::None => "none",
        })
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

fn names(pools: &[PoolName]) -> String {
    pools.iter().map(|pool| format!("{pool:?}")).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ip, ips, key, tcp};

    #[test]
    fn a_change_is_named_by_what_stays() {
        for (before, after, expected) in [
            (&[][..], &[][..], "none"),
            (&[], &["192.0.2.1"], "assigned"),
            (&["192.0.2.1"], &["192.0.2.1"], "kept"),
            (&["2001:db8::1", "192.0.2.1"], &["192.0.2.1", "2001:db8::1"], "kept"),
            (&["2001:db8::1"], &["192.0.2.1", "2001:db8::1"], "extended"),
            (&["192.0.2.1"], &["192.0.2.2"], "reassigned"),
            (&["192.0.2.1", "2001:db8::1"], &["192.0.2.1"], "reassigned"),
            (&["192.0.2.1"], &["192.0.2.2", "2001:db8::1"], "reassigned"),
            (&["192.0.2.1"], &[], "released"),
        ] {
            let change = Change::between(&ips(before), &ips(after));
            assert_eq!(change.to_string(), expected, "{before:?} {after:?}");
        }
    }

    #[test]
    fn refusals_are_said_in_the_users_words() {
        let address = ip("192.0.2.1");
        let reserved = Some("2 of its addresses belong to nodes".into());
        let cases = [
            (
                Refusal::RequestedFamilies {
                    requested: ips(&["192.0.2.1", "2001:db8::1"]),
                    families: Families::One(Family::V6),
                },
                "RequestedFamilies",
                "the requested addresses 192.0.2.1, 2001:db8::1 do not fit: the Service is IPv6",
            ),
            (
                Refusal::Exhausted {
                    family: Family::V4,
                    left: Left { reserved, quota: Some("a".into()), cooling: true },
                },
                "Exhausted",
                "no available IPs: no IPAddressPool for this Service has an IPv4 address left; \
                 2 of its addresses belong to nodes; of IPAddressPool \"a\" the namespace has all \
                 that spec.maxAddressesPerNamespace allows; freed addresses are given out again \
                 after spec.reuseAfter",
            ),
            (
                Refusal::PoolExhausted {
                    pools: vec!["a".into(), "b".into()],
                    family: Family::V6,
                    left: Left::default(),
                },
                "PoolExhausted",
                "IPAddressPool \"a\" or \"b\" has no IPv6 address left",
            ),
            (
                Refusal::Conflict(Conflict::Port { address, port: tcp(80), by: key("a") }),
                "SharedPortInUse",
                "port TCP/80 of the shared address 192.0.2.1 is in use by Service default/a",
            ),
        ];
        for (refusal, reason, text) in cases {
            assert_eq!(refusal.to_string(), text);
            assert_eq!(refusal.reason(), reason);
        }
    }
}
