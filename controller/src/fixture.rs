//! Pools and Services for the tests of this crate.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use config::{AddressRange, Config, Pool, ServiceAllocation};

use crate::{
    allocator::Assignment,
    service::{
        Families, Family, PackedLabels, Port, Protocol, Role, SeenStatus, Service, ServiceKey,
        Sharing,
    },
};

pub const V4: Families = Families::One(Family::V4);
pub const V6: Families = Families::One(Family::V6);

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

/// Ranges are written `first-last`, or as one address.
pub fn pool(name: &str, ranges: &[&str]) -> Pool {
    let range = |text: &&str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        AddressRange { first: ip(first), last: ip(last) }
    };
    Pool::new(name, ranges.iter().map(range).collect())
}

pub fn pinned(name: &str, ranges: &[&str], priority: i32, namespace: Option<&str>) -> Pool {
    let allocation = ServiceAllocation {
        priority,
        namespaces: namespace.map(str::to_owned).into_iter().collect(),
        any_namespace: namespace.is_none(),
        service_selectors: Vec::new(),
    };
    Pool { allocation: Some(allocation), ..pool(name, ranges) }
}

/// Every address that the pool owns, in the order of its ranges.
pub fn every_address(pool: &Pool) -> Vec<IpAddr> {
    let address = |first: IpAddr, number: u128| match first {
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(number).unwrap().into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    };
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    pool.ranges
        .iter()
        .flat_map(|range| {
            (number(range.first)..=number(range.last)).map(|n| address(range.first, n))
        })
        .filter(|address| pool.contains(*address))
        .collect()
}

pub fn config(pools: impl IntoIterator<Item = Pool>) -> Config {
    let pools = pools.into_iter().map(|pool| (pool.name.clone(), pool)).collect();
    Config { pools, ..Config::default() }
}

pub fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

pub fn tcp(number: u16) -> Port {
    Port { protocol: Protocol::Tcp, number }
}

/// An IPv4 Service of ours in namespace `default` with the port TCP/80 and no wishes.
pub fn service(name: &str) -> Service {
    Service {
        key: key(name),
        uid: format!("uid-of-{name}"),
        resource_version: "1".to_owned(),
        created: None,
        deleting: false,
        role: Role::Ours,
        labels: PackedLabels::default(),
        families: Ok(V4),
        requested: Ok(Vec::new()),
        requested_pool: None,
        sharing: None,
        ports: [tcp(80)].into(),
        seen: SeenStatus::default(),
        deprecated_annotations: Vec::new(),
    }
}

impl Service {
    pub fn in_namespace(self, namespace: &str) -> Self {
        Self { key: ServiceKey::new(namespace, self.key.name), ..self }
    }

    pub fn families(self, families: Families) -> Self {
        Self { families: Ok(families), ..self }
    }

    pub fn requests(self, addresses: &[&str]) -> Self {
        Self { requested: Ok(ips(addresses)), ..self }
    }

    pub fn requests_pool(self, pool: &str) -> Self {
        Self { requested_pool: Some(pool.to_owned()), ..self }
    }

    pub fn shares(self, key: &str, port: u16) -> Self {
        let sharing = Sharing { key: key.into(), backend: "".into() };
        let sharing = (!key.is_empty()).then(|| Arc::new(sharing));
        Self { sharing, ports: [tcp(port)].into(), ..self }
    }

    /// Policy Local with this selector; only of those that share.
    pub fn local(self, backend: &str) -> Self {
        let local = |sharing: &Arc<Sharing>| {
            Arc::new(Sharing { key: sharing.key.clone(), backend: backend.into() })
        };
        Self { sharing: self.sharing.as_ref().map(local), ..self }
    }

    pub fn created(self, second: i64) -> Self {
        Self { created: Some(second), ..self }
    }

    pub fn shows(self, addresses: &[&str], pool: &str) -> Self {
        let pool = (!pool.is_empty()).then(|| pool.to_owned());
        Self { seen: SeenStatus { addresses: ips(addresses), pool, ..self.seen }, ..self }
    }

    /// As the API server shows it once `assignment` is written.
    pub fn showing(self, assignment: Option<&Assignment>) -> Self {
        let seen = SeenStatus {
            addresses: assignment.map(|held| held.addresses().to_vec()).unwrap_or_default(),
            pool: assignment.map(Assignment::pool_annotation),
            ..SeenStatus::default()
        };
        Self { seen, ..self }
    }
}

pub fn services(all: impl IntoIterator<Item = Service>) -> BTreeMap<ServiceKey, Service> {
    all.into_iter().map(|service| (service.key.clone(), service)).collect()
}

pub fn assignment(pool: &str, addresses: &[&str]) -> Assignment {
    let (first, rest) = addresses.split_first().unwrap();
    rest.iter().fold(Assignment::new(ip(first), pool.into()), |all, address| {
        all.with(ip(address), pool.into())
    })
}
