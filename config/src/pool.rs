//! IPAddressPools: which addresses there are and who may have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use crds::{AllocationOrder, RemovalPolicy, SharingScope};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::{
    BgpAdvertisement, L2Advertisement, Labels, PoolName, RangeError, Selector,
    error::{Fault, Rule},
    selector,
};

/// A pool, with the advertisements that select it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub name: PoolName,
    /// In the order of `spec.addresses`; no two ranges of all pools overlap.
    pub ranges: Vec<AddressRange>,
    pub auto_assign: bool,
    /// IPv4 addresses that end in .0 or .255 are neither handed out nor owned.
    pub avoid_buggy_ips: bool,
    /// `None`: any Service may be served automatically. `Some`: a pinned pool.
    pub allocation: Option<ServiceAllocation>,
    pub order: AllocationOrder,
    /// A freed address is left alone for so long; zero: it can be given out at once.
    pub reuse_after: Duration,
    pub sharing_scope: SharingScope,
    /// Addresses of this pool that one namespace may hold; `None`: any number.
    pub max_addresses_per_namespace: Option<u32>,
    pub removal_policy: RemovalPolicy,
    /// Shared with the other pools that they select.
    pub l2_advertisements: Vec<Arc<L2Advertisement>>,
    pub bgp_advertisements: Vec<Arc<BgpAdvertisement>>,
}

/// First and last address, both included, of one family, `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    pub first: IpAddr,
    pub last: IpAddr,
}

/// Who a pinned pool is for (`spec.serviceAllocation`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceAllocation {
    /// Lower is tried first; 0 is last.
    pub priority: i32,
    /// Named namespaces and those that `namespaceSelectors` match now. Empty with
    /// `any_namespace` set when the object limits no namespace.
    pub namespaces: BTreeSet<String>,
    /// True when neither `namespaces` nor `namespaceSelectors` was given.
    pub any_namespace: bool,
    /// Any of these; empty: every Service.
    pub service_selectors: Vec<Selector>,
}

impl Pool {
    /// A pool for everybody, with the defaults of the API and no advertisement.
    pub fn new(name: impl Into<PoolName>, ranges: Vec<AddressRange>) -> Self {
        Self {
            name: name.into(),
            ranges,
            auto_assign: true,
            avoid_buggy_ips: false,
            allocation: None,
            order: AllocationOrder::default(),
            reuse_after: Duration::ZERO,
            sharing_scope: SharingScope::default(),
            max_addresses_per_namespace: None,
            removal_policy: RemovalPolicy::default(),
            l2_advertisements: Vec::new(),
            bgp_advertisements: Vec::new(),
        }
    }

    /// True when `address` belongs to the pool (an address left out by `avoidBuggyIPs` does not).
    pub fn contains(&self, address: IpAddr) -> bool {
        !(self.avoid_buggy_ips && is_buggy(address))
            && self.ranges.iter().any(|range| range.contains(address))
    }

    /// True when a Service of this namespace and with these labels may have an address of the
    /// pool.
    pub fn admits(&self, namespace: &str, labels: &Labels) -> bool {
        self.allocation.as_ref().is_none_or(|allocation| {
            (allocation.any_namespace || allocation.namespaces.contains(namespace))
                && selector::any_matches(&allocation.service_selectors, labels)
        })
    }
}

impl AddressRange {
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    /// The fewest prefixes that together are the range, in order.
    pub fn prefixes(&self) -> Vec<IpNet> {
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
        }
    }
}

/// A prefix, whose host bits are ignored, or `first-last`; blanks do not matter.
impl FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let syntax = || RangeError::Syntax(text.to_owned());
        let Some((first, last)) = text.split_once('-') else {
            let text = text.trim();
            if let Ok(address) = text.parse() {
                return Err(RangeError::NoPrefixLength { address });
            }
            let prefix: IpNet = text.parse().map_err(|_| syntax())?;
            return Ok(Self { first: prefix.network(), last: prefix.broadcast() });
        };
        let first: IpAddr = first.trim().parse().map_err(|_| syntax())?;
        let last: IpAddr = last.trim().parse().map_err(|_| syntax())?;
        if first.is_ipv4() != last.is_ipv4() {
            return Err(RangeError::Families(first, last));
        }
        if first > last {
            return Err(RangeError::Reversed(first, last));
        }
        Ok(Self { first, last })
    }
}

/// As a prefix where it is one, else as `first-last`.
impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefixes()[..] {
            [prefix] => write!(f, "{prefix}"),
            _ => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// True for IPv4 addresses that end in .0 or .255, which some old hosts refuse to talk to.
pub fn is_buggy(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(v4.octets()[3], 0 | 255),
        IpAddr::V6(_) => false,
    }
}

/// What a pool is made from, besides its advertisements.
///
/// `namespaces` are the labels of every Namespace.
pub(crate) fn parse(
    name: &str,
    spec: &crds::IPAddressPoolSpec,
    namespaces: &BTreeMap<String, Labels>,
) -> Result<Pool, Vec<Fault>> {
    let mut faults = Vec::new();
    let ranges = parse_ranges(&spec.addresses, &mut faults);
    let allocation = spec
        .service_allocation
        .as_ref()
        .map(|allocation| parse_allocation(allocation, namespaces, &mut faults));
    let reuse_after =
        crate::parse_duration("spec.reuseAfter", spec.reuse_after.as_ref(), &mut faults);
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Pool {
        auto_assign: spec.auto_assign,
        avoid_buggy_ips: spec.avoid_buggy_ips,
        allocation,
        order: spec.allocation_order,
        reuse_after: reuse_after.unwrap_or_default(),
        sharing_scope: spec.sharing_scope,
        max_addresses_per_namespace: spec.max_addresses_per_namespace,
        removal_policy: spec.removal_policy,
        ..Pool::new(name, ranges)
    })
}

/// Ranges of all pools that are in force; no two overlap.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims(BTreeMap<IpAddr, (IpAddr, String)>);

impl Claims {
    /// The claimed range that `range` overlaps with, and its pool.
    pub fn conflict(&self, range: &AddressRange) -> Option<(AddressRange, &str)> {
        // The ranges are disjoint, so only the one with the last start can reach into this one.
        let (&first, (last, pool)) = self.0.range(..=range.last).next_back()?;
        let claimed = AddressRange { first, last: *last };
        claimed.overlaps(range).then_some((claimed, pool.as_str()))
    }

    /// The faults that a pool with these ranges would have.
    pub fn faults(&self, ranges: &[AddressRange]) -> Vec<Fault> {
        ranges
            .iter()
            .enumerate()
            .filter_map(|(i, range)| {
                let (other, pool) = self.conflict(range)?;
                let rule = Rule::Overlap { range: *range, other, pool: Some(pool.to_owned()) };
                Some(Fault::new(address_field(i), rule))
            })
            .collect()
    }

    pub fn add(&mut self, pool: &str, ranges: &[AddressRange]) {
        self.0.extend(ranges.iter().map(|range| (range.first, (range.last, pool.to_owned()))));
    }

    /// Takes away what was [added](Self::add).
    pub fn remove(&mut self, ranges: &[AddressRange]) {
        for range in ranges {
            self.0.remove(&range.first);
        }
    }

    /// The pools that claim some of these ranges.
    pub fn owners(&self, ranges: &[AddressRange]) -> BTreeSet<String> {
        let mut owners = BTreeSet::new();
        for range in ranges {
            let before = self.conflict(&AddressRange { first: range.first, last: range.first });
            owners.extend(before.map(|(_, pool)| pool.to_owned()));
            let within = self.0.range(range.first..=range.last);
            owners.extend(within.map(|(_, (_, pool))| pool.clone()));
        }
        owners
    }
}

fn parse_ranges(addresses: &[String], faults: &mut Vec<Fault>) -> Vec<AddressRange> {
    if addresses.is_empty() {
        faults.push(Fault::new("spec.addresses", Rule::NoAddresses));
    }
    let mut ranges = Vec::with_capacity(addresses.len());
    let mut claims = Claims::default();
    for (i, text) in addresses.iter().enumerate() {
        let range: AddressRange = match text.parse() {
            Ok(range) => range,
            Err(error) => {
                faults.push(Fault::new(address_field(i), Rule::Range(error)));
                continue;
            }
        };
        if let Some((other, _)) = claims.conflict(&range) {
            let rule = Rule::Overlap { range, other, pool: None };
            faults.push(Fault::new(address_field(i), rule));
        } else {
            claims.add("", &[range]);
            ranges.push(range);
        }
    }
    ranges
}

fn parse_allocation(
    allocation: &crds::ServiceAllocation,
    namespaces: &BTreeMap<String, Labels>,
    faults: &mut Vec<Fault>,
) -> ServiceAllocation {
    let field = "spec.serviceAllocation";
    let mut admitted =
        crate::unique(&format!("{field}.namespaces"), &allocation.namespaces, faults);
    let namespace_selectors = selector::parse_list(
        &format!("{field}.namespaceSelectors"),
        &allocation.namespace_selectors,
        faults,
    );
    let service_selectors = selector::parse_list(
        &format!("{field}.serviceSelectors"),
        &allocation.service_selectors,
        faults,
    );
    admitted.extend(
        namespaces
            .iter()
            .filter(|(_, labels)| namespace_selectors.iter().any(|s| s.matches(labels)))
            .map(|(name, _)| name.clone()),
    );
    let limit = if allocation.priority < 0 { i32::MIN } else { i32::MAX };
    ServiceAllocation {
        priority: i32::try_from(allocation.priority).unwrap_or(limit),
        namespaces: admitted,
        any_namespace: allocation.namespaces.is_empty()
            && allocation.namespace_selectors.is_empty(),
        service_selectors,
    }
}

fn address_field(index: usize) -> String {
    format!("spec.addresses[{index}]")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::fixture::fields;

    fn range(text: &str) -> AddressRange {
        text.parse().unwrap()
    }

    fn spec(value: serde_json::Value) -> crds::IPAddressPoolSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn ranges_are_read_and_printed() {
        for (text, first, last, printed) in [
            ("192.0.2.0/28", "192.0.2.0", "192.0.2.15", "192.0.2.0/28"),
            ("192.0.2.7/28", "192.0.2.0", "192.0.2.15", "192.0.2.0/28"),
            ("192.0.2.7/32", "192.0.2.7", "192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255", "0.0.0.0/0"),
            ("192.0.2.1-192.0.2.9", "192.0.2.1", "192.0.2.9", "192.0.2.1-192.0.2.9"),
            (" 192.0.2.1 -\t192.0.2.9 ", "192.0.2.1", "192.0.2.9", "192.0.2.1-192.0.2.9"),
            ("192.0.2.4-192.0.2.7", "192.0.2.4", "192.0.2.7", "192.0.2.4/30"),
            ("192.0.2.4-192.0.2.4", "192.0.2.4", "192.0.2.4", "192.0.2.4/32"),
            ("2001:DB8::1/126", "2001:db8::", "2001:db8::3", "2001:db8::/126"),
            ("2001:db8::1-2001:db8::f", "2001:db8::1", "2001:db8::f", "2001:db8::1-2001:db8::f"),
        ] {
            let range = range(text);
            assert_eq!(range.first, first.parse::<IpAddr>().unwrap(), "{text}");
            assert_eq!(range.last, last.parse::<IpAddr>().unwrap(), "{text}");
            assert_eq!(range.to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_the_cure() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (text, error) in [
            ("", RangeError::Syntax(String::new())),
            ("-", RangeError::Syntax("-".to_owned())),
            ("192.0.2.0/33", RangeError::Syntax("192.0.2.0/33".to_owned())),
            ("192.0.2.400/24", RangeError::Syntax("192.0.2.400/24".to_owned())),
            ("192.0.2.1-", RangeError::Syntax("192.0.2.1-".to_owned())),
            ("192.0.2.1-9", RangeError::Syntax("192.0.2.1-9".to_owned())),
            (
                "192.0.2.1-192.0.2.2-192.0.2.3",
                RangeError::Syntax("192.0.2.1-192.0.2.2-192.0.2.3".to_owned()),
            ),
            (
                "192.0.2.0/24-192.0.3.0/24",
                RangeError::Syntax("192.0.2.0/24-192.0.3.0/24".to_owned()),
            ),
            ("192.0.2.1", RangeError::NoPrefixLength { address: ip("192.0.2.1") }),
            ("2001:db8::1", RangeError::NoPrefixLength { address: ip("2001:db8::1") }),
            ("192.0.2.1-2001:db8::1", RangeError::Families(ip("192.0.2.1"), ip("2001:db8::1"))),
            ("192.0.2.9-192.0.2.1", RangeError::Reversed(ip("192.0.2.9"), ip("192.0.2.1"))),
        ] {
            assert_eq!(text.parse::<AddressRange>(), Err(error), "{text}");
        }
        assert_eq!(
            "2001:db8::1".parse::<AddressRange>().unwrap_err().to_string(),
            "2001:db8::1 is an address without a prefix length; write 2001:db8::1/128"
        );
    }

    #[test]
    fn all_faults_of_a_pool_are_found_at_once() {
        let faults = parse(
            "a",
            &spec(json!({
                "addresses": ["nonsense", "192.0.2.0/24", "192.0.2.8-192.0.2.9", "192.0.3.0"],
                "serviceAllocation": {
                    "namespaces": ["x", "y", "x"],
                    "namespaceSelectors": [{}, {}],
                    "serviceSelectors": [
                        { "matchExpressions": [{ "key": "a", "operator": "In" }] },
                    ],
                },
            })),
            &BTreeMap::new(),
        )
        .unwrap_err();
        assert_eq!(
            fields(&faults),
            [
                "spec.addresses[0]",
                "spec.addresses[2]",
                "spec.addresses[3]",
                "spec.serviceAllocation.namespaces[2]",
                "spec.serviceAllocation.namespaceSelectors[1]",
                "spec.serviceAllocation.serviceSelectors[0].matchExpressions[0].values",
            ]
        );
        assert_eq!(
            faults[1].rule.to_string(),
            "192.0.2.8/31 overlaps with 192.0.2.0/24, which is already in this pool"
        );
        let none = parse("a", &spec(json!({ "addresses": [] })), &BTreeMap::new()).unwrap_err();
        assert_eq!(none, [Fault::new("spec.addresses", Rule::NoAddresses)]);
    }

    #[test]
    fn allocation_names_and_selects_namespaces() {
        let namespaces = BTreeMap::from([
            ("red".to_owned(), Labels::from([("team".to_owned(), "red".to_owned())])),
            ("blue".to_owned(), Labels::new()),
        ]);
        let allocation = |value: serde_json::Value| {
            let spec = spec(json!({ "addresses": ["192.0.2.0/24"], "serviceAllocation": value }));
            parse("a", &spec, &namespaces).unwrap()
        };
        let none = Labels::new();
        let web = Labels::from([("app".to_owned(), "web".to_owned())]);

        let pool = allocation(json!({
            "namespaces": ["green"],
            "namespaceSelectors": [{ "matchLabels": { "team": "red" } }],
        }));
        assert!(pool.admits("green", &none) && pool.admits("red", &none));
        assert!(!pool.admits("blue", &none));

        let pool = allocation(json!({ "serviceSelectors": [{ "matchLabels": { "app": "web" } }] }));
        assert!(pool.admits("blue", &web) && !pool.admits("blue", &none));

        let pool = allocation(json!({ "priority": 7 }));
        assert!(pool.admits("blue", &none));
        assert_eq!(pool.allocation.unwrap().priority, 7);

        // A selector that matches no namespace is a limit all the same.
        let pool = allocation(json!({ "namespaceSelectors": [{ "matchLabels": { "x": "y" } }] }));
        assert!(!pool.admits("blue", &none));

        let pool = allocation(json!({ "priority": i64::MAX }));
        assert_eq!(pool.allocation.unwrap().priority, i32::MAX);
    }

    #[test]
    fn buggy_addresses_are_not_in_the_pool() {
        let mut pool = parse(
            "a",
            &spec(
                json!({ "addresses": ["192.0.2.0/23", "2001:db8::/120"], "avoidBuggyIPs": true }),
            ),
            &BTreeMap::new(),
        )
        .unwrap();
        for (address, expected) in [
            ("192.0.2.0", false),
            ("192.0.2.1", true),
            ("192.0.2.255", false),
            ("192.0.3.0", false),
            ("192.0.3.254", true),
            ("2001:db8::", true),
            ("2001:db8::ff", true),
            ("2001:db8::100", false),
        ] {
            assert_eq!(pool.contains(address.parse().unwrap()), expected, "{address}");
        }
        pool.avoid_buggy_ips = false;
        assert!(pool.contains("192.0.2.0".parse().unwrap()));
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..64u32).prop_map(|i| IpAddr::V4((0xC000_0200 + i).into())),
            (0..64u128).prop_map(|i| IpAddr::V6((0x2001_0db8_u128 << 96 | i).into())),
        ]
    }

    fn any_range() -> impl Strategy<Value = AddressRange> {
        (address(), 0..16u8).prop_map(|(first, length)| {
            let last = match first {
                IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + u32::from(length)).into()),
                IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + u128::from(length)).into()),
            };
            AddressRange { first, last }
        })
    }

    /// The model: every address of a range, one by one.
    fn addresses(range: &AddressRange) -> BTreeSet<IpAddr> {
        range.prefixes().iter().flat_map(ipnet_addresses).collect()
    }

    fn ipnet_addresses(prefix: &IpNet) -> Vec<IpAddr> {
        match prefix {
            IpNet::V4(v4) => (u32::from(v4.network())..=u32::from(v4.broadcast()))
                .map(|a| IpAddr::V4(a.into()))
                .collect(),
            IpNet::V6(v6) => (u128::from(v6.network())..=u128::from(v6.broadcast()))
                .map(|a| IpAddr::V6(a.into()))
                .collect(),
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = text.parse::<AddressRange>();
        }

        #[test]
        fn no_text_like_a_range_makes_the_parser_panic(text in "[0-9a-f:./ -]{0,40}") {
            if let Ok(range) = text.parse::<AddressRange>() {
                prop_assert!(range.first <= range.last);
                prop_assert_eq!(range.to_string().parse::<AddressRange>(), Ok(range));
            }
        }

        #[test]
        fn ranges_are_sets_of_addresses(a in any_range(), b in any_range(), x in address()) {
            let (in_a, in_b) = (addresses(&a), addresses(&b));
            prop_assert_eq!(a.contains(x), in_a.contains(&x));
            prop_assert_eq!(a.overlaps(&b), !in_a.is_disjoint(&in_b));
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
            prop_assert_eq!(format!("{}-{}", a.first, a.last).parse(), Ok(a));
        }

        #[test]
        fn claims_know_every_conflict(ranges in proptest::collection::vec(any_range(), 0..12)) {
            let mut claims = Claims::default();
            let mut taken = BTreeSet::new();
            for range in &ranges {
                let mine = addresses(range);
                let conflict = claims.conflict(range);
                prop_assert_eq!(conflict.is_some(), !taken.is_disjoint(&mine));
                if conflict.is_none() {
                    claims.add("p", &[*range]);
                    taken.extend(mine);
                }
            }
        }
    }
}
