//! BGPPeers: with whom the nodes talk BGP.
//!
//! Timers: RFC 4271 sections 4.2 and 4.4; password: RFC 2385.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use crate::{
    Config, Labels, NodeName, PeerName, Secret,
    error::{Fault, Rule},
    selector,
};

/// Proposed when the object names neither of the two timers.
const DEFAULT_HOLD_TIME: Duration = Duration::from_secs(90);
/// RFC 4271 section 4.4.
const KEEPALIVES_PER_HOLD_TIME: u32 = 3;
/// RFC 4271 section 4.2.
const MIN_HOLD_TIME: Duration = Duration::from_secs(3);
/// What 16 bits hold.
const MAX_SECONDS: Duration = Duration::from_secs(65535);
/// Longest TCP MD5 key that Linux takes, in bytes.
const MAX_PASSWORD: usize = 80;
const SECRET_TYPE: &str = "kubernetes.io/basic-auth";

/// A router and how to talk to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: PeerName,
    pub my_asn: u32,
    pub peer_asn: PeerAsn,
    pub address: PeerAddress,
    pub port: u16,
    pub source_address: Option<IpAddr>,
    /// Proposed in the OPEN: 0 or at least 3 s.
    pub hold_time: Duration,
    pub keepalive_time: Duration,
    pub connect_time: Option<Duration>,
    pub router_id: Option<Ipv4Addr>,
    /// Nodes that hold a session with this peer.
    pub nodes: BTreeSet<NodeName>,
    pub password: Option<Password>,
    pub bfd_profile: Option<String>,
    pub ebgp_multi_hop: bool,
    pub graceful_restart: bool,
    pub vrf: Option<String>,
    pub local_asn: Option<u32>,
    pub dual_stack_address_family: bool,
}

/// The AS number that the peer has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAsn {
    Number(u32),
    /// `dynamicASN: internal`: whatever is ours.
    Internal,
    /// `dynamicASN: external`: anything but ours.
    External,
}

/// Where the peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerAddress {
    Address(IpAddr),
    /// Unnumbered: whoever answers on this interface.
    Interface(String),
}

/// A TCP MD5 key; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Interface(interface) => f.write_str(interface),
        }
    }
}

impl Peer {
    /// True when a node that holds both sessions would connect to the same place twice.
    pub(crate) fn same_session(&self, other: &Self) -> bool {
        self.address == other.address && self.port == other.port && self.vrf == other.vrf
    }
}

/// What a BGPPeer may refer to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct References<'a> {
    pub nodes: &'a BTreeMap<NodeName, Labels>,
    pub secrets: &'a BTreeMap<String, Secret>,
    /// Names of the BFDProfiles.
    pub profiles: &'a BTreeSet<String>,
    /// Passwords that Secrets held, and BFDProfiles that there were, to go on with when they are
    /// gone.
    pub last: Option<&'a Config>,
    pub missing: Missing,
}

impl References<'_> {
    fn has_profile(&self, name: &str) -> bool {
        self.missing == Missing::NotYet
            || self.profiles.contains(name)
            || self.last.is_some_and(|last| last.bfd_profiles.contains_key(name))
    }

    fn last_password(&self, secret: &str) -> Option<Password> {
        self.last?.sources.password(secret).cloned()
    }
}

/// What a reference to an object that is not there means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Fault,
    /// The object may still be created: users apply their objects in any order.
    NotYet,
}

/// Values of the fields of `spec` alone and of what they refer to; peers among each other are
/// compared by [`Peer::same_session`].
pub(crate) fn parse(
    name: &str,
    spec: &crds::BGPPeerSpec,
    references: &References<'_>,
) -> Result<Peer, Vec<Fault>> {
    let mut faults = Vec::new();
    if spec.my_asn == 0 {
        faults.push(Fault::new("spec.myASN", Rule::NoMyAsn));
    }
    let peer_asn = parse_asn(spec, &mut faults);
    let address = parse_address(spec, &mut faults);
    let source_address = parse_ip("spec.sourceAddress", given(&spec.source_address), &mut faults);
    let (hold_time, keepalive_time) = parse_timers(spec, &mut faults);
    let connect_time = parse_connect_time(spec, &mut faults);
    let router_id = given(&spec.router_id).and_then(|text| {
        let fault = |_| faults.push(Fault::new("spec.routerID", Rule::RouterId(text.to_owned())));
        text.parse().map_err(fault).ok()
    });
    let selectors = selector::parse_list("spec.nodeSelectors", &spec.node_selectors, &mut faults);
    let password = parse_password(spec, references, &mut faults);
    let bfd_profile = given(&spec.bfd_profile).map(str::to_owned);
    if let Some(profile) = &bfd_profile
        && !references.has_profile(profile)
    {
        faults.push(Fault::new("spec.bfdProfile", Rule::NoBfdProfile(profile.clone())));
    }
    let (Some(peer_asn), Some(address), true) = (peer_asn, address, faults.is_empty()) else {
        return Err(faults);
    };
    Ok(Peer {
        name: name.into(),
        my_asn: spec.my_asn,
        peer_asn,
        address,
        port: if spec.peer_port == 0 { crds::DEFAULT_BGP_PORT } else { spec.peer_port },
        source_address,
        hold_time,
        keepalive_time,
        connect_time,
        router_id,
        nodes: crate::matching_nodes(&selectors, references.nodes),
        password,
        bfd_profile,
        ebgp_multi_hop: spec.ebgp_multi_hop,
        graceful_restart: spec.enable_graceful_restart.unwrap_or(false),
        vrf: given(&spec.vrf).map(str::to_owned),
        local_asn: spec.local_asn.filter(|&asn| asn != 0),
        dual_stack_address_family: spec.dual_stack_address_family,
    })
}

/// Go has no absent texts: an empty one in a manifest means that nothing is given.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn parse_asn(spec: &crds::BGPPeerSpec, faults: &mut Vec<Fault>) -> Option<PeerAsn> {
    let asn = match (spec.peer_asn.filter(|&asn| asn != 0), spec.dynamic_asn) {
        (Some(_), Some(_)) => {
            faults.push(Fault::new("spec.dynamicASN", Rule::TwoPeerAsns));
            return None;
        }
        (None, None) => {
            faults.push(Fault::new("spec.peerASN", Rule::NoPeerAsn));
            return None;
        }
        (Some(asn), None) => PeerAsn::Number(asn),
        (None, Some(crds::DynamicASN::Internal)) => PeerAsn::Internal,
        (None, Some(crds::DynamicASN::External)) => PeerAsn::External,
    };
    if spec.ebgp_multi_hop && asn == PeerAsn::Number(spec.my_asn) {
        faults.push(Fault::new("spec.ebgpMultiHop", Rule::MultiHopWithinAs(spec.my_asn)));
    }
    Some(asn)
}

fn parse_address(spec: &crds::BGPPeerSpec, faults: &mut Vec<Fault>) -> Option<PeerAddress> {
    match (given(&spec.peer_address), given(&spec.interface)) {
        (Some(_), Some(_)) => {
            faults.push(Fault::new("spec.interface", Rule::TwoPeerAddresses));
            None
        }
        (None, None) => {
            faults.push(Fault::new("spec.peerAddress", Rule::NoPeerAddress));
            None
        }
        (Some(text), None) => {
            parse_ip("spec.peerAddress", Some(text), faults).map(PeerAddress::Address)
        }
        (None, Some(interface)) => Some(PeerAddress::Interface(interface.to_owned())),
    }
}

fn parse_ip(field: &str, text: Option<&str>, faults: &mut Vec<Fault>) -> Option<IpAddr> {
    let text = text?;
    let address: Option<IpAddr> = text.parse().ok();
    if address.is_none() {
        faults.push(Fault::new(field, Rule::Address(text.to_owned())));
    }
    address.map(|address| address.to_canonical())
}

/// Hold and keepalive time.
fn parse_timers(spec: &crds::BGPPeerSpec, faults: &mut Vec<Fault>) -> (Duration, Duration) {
    let before = faults.len();
    let hold = crate::parse_duration("spec.holdTime", spec.hold_time.as_ref(), faults);
    let keepalive =
        crate::parse_duration("spec.keepaliveTime", spec.keepalive_time.as_ref(), faults);
    let (hold, keepalive) = match (hold, keepalive) {
        (None, None) => (DEFAULT_HOLD_TIME, DEFAULT_HOLD_TIME / KEEPALIVES_PER_HOLD_TIME),
        (Some(hold), None) => (hold, hold / KEEPALIVES_PER_HOLD_TIME),
        (None, Some(keepalive)) => (keepalive.saturating_mul(KEEPALIVES_PER_HOLD_TIME), keepalive),
        (Some(hold), Some(keepalive)) => (hold, keepalive),
    };
    if faults.len() > before {
        return (hold, keepalive);
    }
    let text = |duration: Duration| crds::Duration::from(duration).to_string();
    if hold != Duration::ZERO && !(MIN_HOLD_TIME..=MAX_SECONDS).contains(&hold) {
        let field = if spec.hold_time.is_some() { "spec.holdTime" } else { "spec.keepaliveTime" };
        faults.push(Fault::new(field, Rule::HoldTime(text(hold))));
    } else if keepalive > hold {
        let rule = Rule::KeepaliveTime { keepalive: text(keepalive), hold: text(hold) };
        faults.push(Fault::new("spec.keepaliveTime", rule));
    }
    (Duration::from_secs(hold.as_secs()), keepalive)
}

fn parse_connect_time(spec: &crds::BGPPeerSpec, faults: &mut Vec<Fault>) -> Option<Duration> {
    let field = "spec.connectTime";
    let time = crate::parse_duration(field, spec.connect_time.as_ref(), faults)?;
    if time.subsec_nanos() != 0 || !(Duration::from_secs(1)..=MAX_SECONDS).contains(&time) {
        faults.push(Fault::new(field, Rule::ConnectTime(crds::Duration::from(time).to_string())));
    }
    Some(time)
}

fn parse_password(
    spec: &crds::BGPPeerSpec,
    references: &References<'_>,
    faults: &mut Vec<Fault>,
) -> Option<Password> {
    let secret = spec.password_secret.as_ref().and_then(|secret| given(&secret.name));
    let (field, password) = match (given(&spec.password), secret) {
        (None, None) => return None,
        (Some(_), Some(_)) => {
            faults.push(Fault::new("spec.passwordSecret", Rule::TwoPasswords));
            return None;
        }
        (Some(password), None) => ("spec.password", Password(password.to_owned())),
        (None, Some(_)) if references.missing == Missing::NotYet => return None,
        (None, Some(name)) => {
            let password = secret_password(name, references.secrets)
                .or_else(|rule| references.last_password(name).ok_or(rule));
            match password {
                Ok(password) => ("spec.passwordSecret", password),
                Err(rule) => {
                    faults.push(Fault::new("spec.passwordSecret", rule));
                    return None;
                }
            }
        }
    };
    if password.0.len() > MAX_PASSWORD {
        faults.push(Fault::new(field, Rule::PasswordLength));
    }
    Some(password)
}

fn secret_password(name: &str, secrets: &BTreeMap<String, Secret>) -> Result<Password, Rule> {
    let secret = secrets.get(name).ok_or_else(|| Rule::NoSecret(name.to_owned()))?;
    if secret.kind != SECRET_TYPE {
        return Err(Rule::SecretType { name: name.to_owned(), kind: secret.kind.clone() });
    }
    secret
        .password
        .clone()
        .filter(|password| !password.is_empty())
        .map(Password)
        .ok_or_else(|| Rule::SecretWithoutPassword(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::fields;

    fn secrets() -> BTreeMap<String, Secret> {
        let secret = |kind: &str, password: Option<&str>| Secret {
            kind: kind.to_owned(),
            password: password.map(str::to_owned),
        };
        BTreeMap::from([
            ("good".to_owned(), secret(SECRET_TYPE, Some("secret"))),
            ("opaque".to_owned(), secret("Opaque", Some("secret"))),
            ("empty".to_owned(), secret(SECRET_TYPE, None)),
        ])
    }

    /// A plain peer with the members of `changes` put in, or taken out where they are null.
    fn parsed(changes: Value) -> Result<Peer, Vec<Fault>> {
        let mut spec = json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1" });
        for (name, value) in changes.as_object().unwrap() {
            if value.is_null() {
                spec.as_object_mut().unwrap().remove(name);
            } else {
                spec[name] = value.clone();
            }
        }
        let references = References {
            nodes: &BTreeMap::from([("n".into(), Labels::new())]),
            secrets: &secrets(),
            profiles: &BTreeSet::from(["fast".to_owned()]),
            last: None,
            missing: Missing::Fault,
        };
        parse("router", &serde_json::from_value(spec).unwrap(), &references)
    }

    #[test]
    fn a_plain_peer_has_the_defaults() {
        assert_eq!(
            parsed(json!({})).unwrap(),
            Peer {
                name: "router".into(),
                my_asn: 64500,
                peer_asn: PeerAsn::Number(64501),
                address: PeerAddress::Address("192.0.2.1".parse().unwrap()),
                port: 179,
                source_address: None,
                hold_time: Duration::from_secs(90),
                keepalive_time: Duration::from_secs(30),
                connect_time: None,
                router_id: None,
                nodes: BTreeSet::from(["n".into()]),
                password: None,
                bfd_profile: None,
                ebgp_multi_hop: false,
                graceful_restart: false,
                vrf: None,
                local_asn: None,
                dual_stack_address_family: false,
            }
        );
        let empty_texts = json!({
            "sourceAddress": "", "interface": "", "routerID": "", "password": "", "vrf": "",
            "bfdProfile": "", "passwordSecret": {}, "nodeSelectors": [],
        });
        assert_eq!(parsed(empty_texts), parsed(json!({})));
    }

    #[test]
    fn timers_complete_each_other() {
        for (hold, keepalive, expected) in [
            (Value::Null, Value::Null, Some((90_000, 30_000))),
            (json!("3m0s"), Value::Null, Some((180_000, 60_000))),
            (Value::Null, json!("10s"), Some((30_000, 10_000))),
            (json!("30s"), json!("5s"), Some((30_000, 5_000))),
            (json!("30s"), json!("30s"), Some((30_000, 30_000))),
            (json!("0s"), Value::Null, Some((0, 0))),
            (json!("0s"), json!("0s"), Some((0, 0))),
            (json!("3s"), Value::Null, Some((3_000, 1_000))),
            (json!("65535s"), Value::Null, Some((65_535_000, 21_845_000))),
            (json!("9.9s"), json!("1s"), Some((9_000, 1_000))),
            (json!("2s"), Value::Null, None),
            (json!("500ms"), Value::Null, None),
            (json!("65536s"), Value::Null, None),
            (Value::Null, json!("1ms"), None),
            (Value::Null, json!("2562047h"), None),
            (json!("30s"), json!("31s"), None),
            (json!("0s"), json!("1s"), None),
            (json!("-30s"), Value::Null, None),
            (json!("soon"), json!("later"), None),
        ] {
            let peer = parsed(json!({ "holdTime": hold, "keepaliveTime": keepalive }));
            let times = peer.map(|p| (p.hold_time.as_millis(), p.keepalive_time.as_millis()));
            assert_eq!(times.ok(), expected, "{hold} {keepalive}");
        }
    }

    #[test]
    fn every_rule_is_told_with_its_field() {
        for (changes, field, words) in [
            (json!({ "myASN": 0 }), "spec.myASN", "our AS number is missing"),
            (json!({ "peerASN": null }), "spec.peerASN", "set peerASN or dynamicASN"),
            (json!({ "peerASN": 0 }), "spec.peerASN", "set peerASN or dynamicASN"),
            (json!({ "dynamicASN": "internal" }), "spec.dynamicASN", "remove one"),
            (json!({ "peerAddress": null }), "spec.peerAddress", "set peerAddress or interface"),
            (json!({ "interface": "eth1" }), "spec.interface", "remove one"),
            (json!({ "peerAddress": "192.0.2.400" }), "spec.peerAddress", "not an IP address"),
            (json!({ "sourceAddress": "here" }), "spec.sourceAddress", "not an IP address"),
            (json!({ "routerID": "2001:db8::1" }), "spec.routerID", "like an IPv4 address"),
            (json!({ "holdTime": "1s" }), "spec.holdTime", "1s is not 0 and not within 3s"),
            (json!({ "keepaliveTime": "100ms" }), "spec.keepaliveTime", "300ms is not 0"),
            (
                json!({ "holdTime": "30s", "keepaliveTime": "1m30s" }),
                "spec.keepaliveTime",
                "1m30s is more than the hold time 30s",
            ),
            (json!({ "holdTime": "1 week" }), "spec.holdTime", "\"1 week\" is not a duration"),
            (json!({ "connectTime": "1500ms" }), "spec.connectTime", "1.5s is not a whole number"),
            (json!({ "connectTime": "0s" }), "spec.connectTime", "within 1s to 65535s"),
            (
                json!({ "peerASN": 64500, "ebgpMultiHop": true }),
                "spec.ebgpMultiHop",
                "the peer is of our own AS 64500",
            ),
            (
                json!({ "password": "x", "passwordSecret": { "name": "good" } }),
                "spec.passwordSecret",
                "both password and passwordSecret",
            ),
            (
                json!({ "passwordSecret": { "name": "none" } }),
                "spec.passwordSecret",
                "there is no Secret \"none\"",
            ),
            (
                json!({ "passwordSecret": { "name": "opaque" } }),
                "spec.passwordSecret",
                "is of type \"Opaque\"",
            ),
            (
                json!({ "passwordSecret": { "name": "empty" } }),
                "spec.passwordSecret",
                "has no key \"password\"",
            ),
            (json!({ "password": "x".repeat(81) }), "spec.password", "longer than 80 bytes"),
            (json!({ "bfdProfile": "slow" }), "spec.bfdProfile", "there is no BFDProfile \"slow\""),
            (json!({ "nodeSelectors": [{}, {}] }), "spec.nodeSelectors[1]", "given twice"),
        ] {
            let faults = parsed(changes.clone()).unwrap_err();
            assert_eq!(fields(&faults), [field], "{changes}");
            let text = faults[0].rule.to_string();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn what_is_given_is_kept() {
        let peer = parsed(json!({
            "peerASN": null, "dynamicASN": "external", "localASN": 64502,
            "peerAddress": null, "interface": "eth1", "peerPort": 1179,
            "sourceAddress": "2001:db8::1", "connectTime": "10s", "routerID": "192.0.2.2",
            "passwordSecret": { "name": "good" }, "bfdProfile": "fast", "ebgpMultiHop": true,
            "enableGracefulRestart": true, "vrf": "red", "dualStackAddressFamily": true,
            "nodeSelectors": [{ "matchLabels": { "no": "node" } }],
        }))
        .unwrap();
        assert_eq!(
            peer,
            Peer {
                name: "router".into(),
                my_asn: 64500,
                peer_asn: PeerAsn::External,
                address: PeerAddress::Interface("eth1".to_owned()),
                port: 1179,
                source_address: Some("2001:db8::1".parse().unwrap()),
                hold_time: Duration::from_secs(90),
                keepalive_time: Duration::from_secs(30),
                connect_time: Some(Duration::from_secs(10)),
                router_id: Some(Ipv4Addr::new(192, 0, 2, 2)),
                nodes: BTreeSet::new(),
                password: Some(Password("secret".to_owned())),
                bfd_profile: Some("fast".to_owned()),
                ebgp_multi_hop: true,
                graceful_restart: true,
                vrf: Some("red".to_owned()),
                local_asn: Some(64502),
                dual_stack_address_family: true,
            }
        );
    }

    #[test]
    fn passwords_are_never_printed() {
        let peer = parsed(json!({ "password": "hunter2" })).unwrap();
        assert!(!format!("{peer:?}").contains("hunter2"));
        assert!(!format!("{:?}", secrets()).contains("\"secret\""));
    }
}
