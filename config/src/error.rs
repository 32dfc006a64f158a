//! What can be wrong with a configuration: one variant a rule, in the user's words.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::{
    AddressRange,
    selector::{self, SelectorError},
};

/// The object that an error is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRef {
    pub kind: &'static str,
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.name)
    }
}

/// One broken rule, with the object and the field that break it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    object: ObjectRef,
    field: String,
    rule: Box<Rule>,
}

impl ConfigError {
    pub(crate) fn new(object: ObjectRef, fault: Fault) -> Self {
        Self { object, field: fault.field, rule: Box::new(fault.rule) }
    }

    /// The object that has to be changed.
    pub fn object(&self) -> ObjectRef {
        self.object.clone()
    }

    /// Path of the field in the object, such as `spec.addresses[1]`.
    pub fn field(&self) -> &str {
        &self.field
    }

    pub fn rule(&self) -> &Rule {
        &self.rule
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.rule)
    }
}

impl std::error::Error for ConfigError {}

/// A [`ConfigError`] before it is known of which object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub field: String,
    pub rule: Rule,
}

impl Fault {
    pub fn new(field: impl Into<String>, rule: Rule) -> Self {
        Self { field: field.into(), rule }
    }

    /// A fault of a label selector, at the path of that selector.
    pub fn of_selector(field: &str, error: SelectorError) -> Self {
        Self::new(format!("{field}.{}", error.field), Rule::Selector(error.rule))
    }
}

/// The rules, one variant each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    // Of every kind
    #[error("the object has no name")]
    NoName,
    #[error("another object of this kind has the same name")]
    NameTaken,
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("resource must be created in {0} namespace")]
    WrongNamespace(String),
    #[error("{0:?} is given twice; remove one")]
    Duplicate(String),
    #[error("this selector is given twice; remove one")]
    DuplicateSelector,
    #[error(transparent)]
    Selector(#[from] selector::SelectorRule),

    // IPAddressPool
    #[error("the pool has no addresses; give a prefix or a range")]
    NoAddresses,
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("{range} overlaps with {other}, which is already in {}", pool_words(pool.as_deref()))]
    Overlap {
        range: AddressRange,
        other: AddressRange,
        /// `None`: the same pool.
        pool: Option<String>,
    },

    #[error(
        "removalPolicy is Refuse, and {} would lose addresses of the pool: {}; set removalPolicy \
         to Warn first",
        service_count(*count), list(services, *count)
    )]
    AddressesHeld {
        /// The first of them.
        services: Vec<String>,
        /// How many there are.
        count: usize,
    },

    // Advertisements
    #[error("weight {0} is not within 1 to 100")]
    Weight(i32),
    #[error("{length} is not within {min} to {max}")]
    AggregationLength { length: i32, min: u8, max: u8 },
    #[error(
        "the aggregation length {length} of BGPAdvertisement {advertisement:?} is shorter than \
         the prefix length {prefix_length} of {range} in pool {pool:?}, so that addresses outside \
         of the pool would be announced; use {prefix_length} or more"
    )]
    AggregationTooWide {
        advertisement: String,
        length: u8,
        prefix_length: u8,
        range: AddressRange,
        pool: String,
    },
    #[error(
        "serviceSelectors only go with the default aggregation lengths (32 and 128); remove one \
         of the two"
    )]
    AggregationWithSelectors,
    #[error(
        "{0:?} is neither a community nor the name of one; write \"A:B\" with numbers up to \
         65535, \"large:A:B:C\" with numbers up to 4294967295, \"rt:A:B\" or \"soo:A:B\" with an \
         AS number or an IPv4 address and a number (six octets in all), \"ext:0x\" with 16 \
         hexadecimal digits, or define the name in a Community"
    )]
    Community(String),
    #[error("the name {0:?} is already defined in Community {1:?}")]
    AliasTaken(String, String),
    #[error(
        "BGPAdvertisement {advertisement:?} has localPref {preference}, and {other:?} has \
         {other_preference} for the same routes of pool {pool:?} from the same nodes to the same \
         peers; make them equal, or keep the two apart"
    )]
    LocalPreference {
        advertisement: String,
        preference: u32,
        other: String,
        other_preference: u32,
        pool: String,
    },
    #[error(
        "BGPAdvertisement {advertisement:?} gives the same routes of pool {pool:?} from the same \
         nodes to the same peers another {attribute} than {other:?}; make them equal, or keep the \
         two apart"
    )]
    RouteAttribute {
        advertisement: String,
        other: String,
        pool: String,
        /// `med` or `asPathPrepend`.
        attribute: &'static str,
    },
    #[error(
        "pool {pool:?}, which BGPAdvertisement {advertisement:?} announces to BGPPeer {peer:?}, \
         has IPv6 addresses, and BFDProfile {profile:?} of that peer has echoMode, which is for \
         IPv4 only; turn echoMode off, or leave the peer or the pool out of the advertisement"
    )]
    EchoOverIpv6 { advertisement: String, pool: String, peer: String, profile: String },

    // BGPPeer
    #[error("our AS number is missing")]
    NoMyAsn,
    #[error("the AS number of the peer is missing; set peerASN or dynamicASN")]
    NoPeerAsn,
    #[error("both peerASN and dynamicASN are set; remove one")]
    TwoPeerAsns,
    #[error("the peer has no address; set peerAddress or interface")]
    NoPeerAddress,
    #[error("both peerAddress and interface are set; remove one")]
    TwoPeerAddresses,
    #[error("{0:?} is not an IP address")]
    Address(String),
    #[error("{0:?} is not a router ID; write it like an IPv4 address")]
    RouterId(String),
    #[error("{text:?} is {error}")]
    Duration { text: String, error: crds::DurationError },
    #[error("{0} is not 0 and not within 3s to 65535s")]
    HoldTime(String),
    #[error("{keepalive} is more than the hold time {hold}")]
    KeepaliveTime { keepalive: String, hold: String },
    #[error("{0} is not a whole number of seconds within 1s to 65535s")]
    ConnectTime(String),
    #[error("the peer is of our own AS {0}, so ebgpMultiHop has no meaning; remove it")]
    MultiHopWithinAs(u32),
    #[error(
        "ttlSecurityHops already says how far away the peer may be, and sends with the highest \
         TTL; remove ebgpMultiHop"
    )]
    MultiHopWithTtlSecurity,
    #[error("{0} is more than 10m, the longest time between two announcements of a prefix")]
    AdvertisementInterval(String),
    #[error("{0} is not a whole number of seconds within 1s to 4095s")]
    RestartTime(String),
    #[error("there is no key for it; name a Secret in passwordSecret")]
    TcpAoWithoutKey,
    #[error("both password and passwordSecret are set; remove one")]
    TwoPasswords,
    #[error("there is no Secret {0:?} in the namespace that Berth runs in")]
    NoSecret(String),
    #[error("Secret {name:?} is of type {kind:?}; only kubernetes.io/basic-auth is read")]
    SecretType { name: String, kind: String },
    #[error("Secret {0:?} has no key \"password\"")]
    SecretWithoutPassword(String),
    #[error("the password is longer than 80 bytes, which TCP MD5 does not allow")]
    PasswordLength,
    #[error("there is no BFDProfile {0:?}")]
    NoBfdProfile(String),
    #[error("BGPPeer {other:?} already is the session with {address}{}", on_node(node.as_deref()))]
    DuplicateSession {
        other: String,
        address: String,
        /// One of the nodes that would hold both; `None` while no node is known.
        node: Option<String>,
    },

    // BFDProfile
    #[error("{value} is not within {min} to {max}")]
    OutOfRange { value: u32, min: u32, max: u32 },
    #[error("no Secret is named; name the Secret that holds the key")]
    NoKeySecret,
    #[error(
        "the key in Secret {secret:?} is longer than {max} bytes, which is all that this type of \
         authentication has; give both sides a shorter one"
    )]
    KeyLength { secret: String, max: usize },
    #[error("failed to delete BFDProfile {profile}, used by BGPPeer {peer}")]
    ProfileInUse { profile: String, peer: String },
}

/// Why a text is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error(
        "{0:?} is neither a prefix such as 192.0.2.0/28 nor a range such as 192.0.2.1-192.0.2.9"
    )]
    Syntax(String),
    #[error("{address} is an address without a prefix length; write {}", IpNet::from(*address))]
    NoPrefixLength { address: IpAddr },
    #[error("{0} and {1} are of different families; both ends have to be IPv4 or both IPv6")]
    Families(IpAddr, IpAddr),
    #[error("{0} comes after {1}; swap the two ends")]
    Reversed(IpAddr, IpAddr),
}

impl Rule {
    /// A word for programs, in CamelCase, the same in every version: the `rule` of `berth plan` and
    /// the reason of the condition Accepted.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoName => "NoName",
            Self::NameTaken => "NameTaken",
            Self::Unreadable(_) => "Unreadable",
            Self::WrongNamespace(_) => "WrongNamespace",
            Self::Duplicate(_) => "Duplicate",
            Self::DuplicateSelector => "DuplicateSelector",
            Self::Selector(rule) => rule.name(),
            Self::NoAddresses => "NoAddresses",
            Self::Range(error) => error.name(),
            Self::Overlap { .. } => "Overlap",
            Self::AddressesHeld { .. } => "AddressesHeld",
            Self::Weight(_) => "Weight",
            Self::AggregationLength { .. } => "AggregationLength",
            Self::AggregationTooWide { .. } => "AggregationTooWide",
            Self::AggregationWithSelectors => "AggregationWithSelectors",
            Self::Community(_) => "Community",
            Self::AliasTaken(..) => "AliasTaken",
            Self::LocalPreference { .. } => "LocalPreference",
            Self::RouteAttribute { .. } => "RouteAttribute",
            Self::EchoOverIpv6 { .. } => "EchoOverIpv6",
            Self::NoMyAsn => "NoMyAsn",
            Self::NoPeerAsn => "NoPeerAsn",
            Self::TwoPeerAsns => "TwoPeerAsns",
            Self::NoPeerAddress => "NoPeerAddress",
            Self::TwoPeerAddresses => "TwoPeerAddresses",
            Self::Address(_) => "Address",
            Self::RouterId(_) => "RouterId",
            Self::Duration { .. } => "Duration",
            Self::HoldTime(_) => "HoldTime",
            Self::KeepaliveTime { .. } => "KeepaliveTime",
            Self::ConnectTime(_) => "ConnectTime",
            Self::MultiHopWithinAs(_) => "MultiHopWithinAs",
            Self::MultiHopWithTtlSecurity => "MultiHopWithTtlSecurity",
            Self::AdvertisementInterval(_) => "AdvertisementInterval",
            Self::RestartTime(_) => "RestartTime",
            Self::TcpAoWithoutKey => "TcpAoWithoutKey",
            Self::TwoPasswords => "TwoPasswords",
            Self::NoSecret(_) => "NoSecret",
            Self::SecretType { .. } => "SecretType",
            Self::SecretWithoutPassword(_) => "SecretWithoutPassword",
            Self::PasswordLength => "PasswordLength",
            Self::NoBfdProfile(_) => "NoBfdProfile",
            Self::DuplicateSession { .. } => "DuplicateSession",
            Self::OutOfRange { .. } => "OutOfRange",
            Self::NoKeySecret => "NoKeySecret",
            Self::KeyLength { .. } => "KeyLength",
            Self::ProfileInUse { .. } => "ProfileInUse",
        }
    }
}

impl RangeError {
    fn name(&self) -> &'static str {
        match self {
            Self::Syntax(_) => "RangeSyntax",
            Self::NoPrefixLength { .. } => "NoPrefixLength",
            Self::Families(..) => "RangeFamilies",
            Self::Reversed(..) => "RangeReversed",
        }
    }
}

/// "1 Service", "12 Services".
pub(crate) fn service_count(count: usize) -> String {
    if count == 1 { "1 Service".to_owned() } else { format!("{count} Services") }
}

/// The first of `count` things, and how many more there are.
pub(crate) fn list(first: &[String], count: usize) -> String {
    let named = first.join(", ");
    match count - first.len() {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn pool_words(pool: Option<&str>) -> String {
    pool.map_or_else(|| "this pool".to_owned(), |pool| format!("pool {pool:?}"))
}

fn on_node(node: Option<&str>) -> String {
    node.map_or_else(String::new, |node| format!(" on node {node:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reasons of conditions have to match the pattern that `metav1.Condition` prescribes.
    #[test]
    fn names_are_words_for_programs() {
        let rules = [
            Rule::NoName,
            Rule::Selector(selector::SelectorRule::DuplicateExpression),
            Rule::Range(RangeError::Syntax(String::new())),
            Rule::EchoOverIpv6 {
                advertisement: String::new(),
                pool: String::new(),
                peer: String::new(),
                profile: String::new(),
            },
        ];
        for rule in rules {
            let name = rule.name();
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()), "{name}");
        }
    }

    #[test]
    fn lists_are_cut_off() {
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(list(&names, 2), "a, b");
        assert_eq!(list(&names, 5), "a, b and 3 more");
        assert_eq!((service_count(1), service_count(2)), ("1 Service".into(), "2 Services".into()));
    }
}
