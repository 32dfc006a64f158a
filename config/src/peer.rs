//! BGPPeers: with whom the nodes talk BGP.
//!
//! Timers: RFC 4271 sections 4.2 and 4.4; password: RFC 2385, RFC 5925; hops: RFC 5082.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use crds::TcpAOAlgorithm;

use crate::{
    Config, Labels, NodeName, Password, PeerName,
    error::{Fault, Rule},
    secret::Secrets,
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
/// Enough for a speaker to be replaced, and short for a node that does not come back.
const DEFAULT_RESTART_TIME: Duration = Duration::from_secs(15);
/// What 12 bits hold (RFC 4724 section 3).
const MAX_RESTART_TIME: Duration = Duration::from_secs(4095);
/// A node that does not come back is sent traffic for so long; more is worth a warning.
const LONG_RESTART_TIME: Duration = Duration::from_secs(60);
const MAX_ADVERTISEMENT_INTERVAL: Duration = Duration::from_secs(600);
/// More would only be a longer message: the first few decide.
pub(crate) const MAX_PREPEND: u32 = 10;

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
    /// The peer connects, not we.
    pub passive: bool,
    /// 1..=254: the peer is at most so many hops away (RFC 5082).
    pub ttl_security_hops: Option<u8>,
    /// Of routes that no advertisement gives one.
    pub local_pref: Option<u32>,
    /// Of routes that no advertisement gives one.
    pub med: Option<u32>,
    /// 0..=10: of routes for which no advertisement says so.
    pub as_path_prepend: u8,
    /// 0..=600 s
    pub min_advertisement_interval: Duration,
    /// 1..=4095 s, whole seconds; counts with `graceful_restart` only.
    pub restart_time: Duration,
    /// Nothing is announced before BFD is up; counts with `bfd_profile` only.
    pub bfd_strict: bool,
    /// The key is `password`, which is there.
    pub tcp_ao: Option<TcpAo>,
}

/// How the TCP Authentication Option is used (RFC 5925).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpAo {
    pub send_id: u8,
    pub receive_id: u8,
    pub algorithm: TcpAOAlgorithm,
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
    pub secrets: Secrets<'a>,
    /// Names of the BFDProfiles.
    pub profiles: &'a BTreeSet<String>,
    /// BFDProfiles that there were, to go on with when they are gone.
    pub last: Option<&'a Config>,
    pub missing: Missing,
}

impl References<'_> {
    fn has_profile(&self, name: &str) -> bool {
        self.missing == Missing::NotYet
            || self.profiles.contains(name)
            || self.last.is_some_and(|last| last.bfd_profiles.contains_key(name))
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
    let hops = spec.ttl_security_hops.map(u32::from);
    if let Some(hops) = hops {
        crate::within("spec.ttlSecurityHops", hops, 1, 254, &mut faults);
        if spec.ebgp_multi_hop {
            faults.push(Fault::new("spec.ebgpMultiHop", Rule::MultiHopWithTtlSecurity));
        }
    }
    crate::within(
        "spec.asPathPrepend",
        u32::from(spec.as_path_prepend),
        0,
        MAX_PREPEND,
        &mut faults,
    );
    let min_advertisement_interval = parse_advertisement_interval(spec, &mut faults);
    let restart_time = parse_restart_time(spec, &mut faults);
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
        passive: spec.passive,
        ttl_security_hops: spec.ttl_security_hops,
        local_pref: spec.local_pref,
        med: spec.med,
        as_path_prepend: spec.as_path_prepend,
        min_advertisement_interval,
        restart_time,
        bfd_strict: spec.bfd_strict.unwrap_or(true),
        tcp_ao: spec.tcp_ao.map(|ao| TcpAo {
            send_id: ao.send_id,
            receive_id: ao.receive_id,
            algorithm: ao.algorithm,
        }),
    })
}

/// What the author of a BGPPeer without a fault should know all the same.
pub(crate) fn cautions(spec: &crds::BGPPeerSpec) -> Vec<String> {
    let mut cautions = Vec::new();
    if spec.disable_mp {
        let text = "spec.disableMP has no effect any more; see spec.dualStackAddressFamily";
        cautions.push(text.to_owned());
    }
    let time = spec.graceful_restart_time.as_ref().and_then(|text| text.parse().ok());
    if let Some(time) = time.filter(|time| *time > LONG_RESTART_TIME) {
        cautions.push(format!(
            "spec.gracefulRestartTime: the peer goes on sending traffic for {} to a node that is \
             gone, unless BFD tells it; 1m0s or less is enough for a speaker to be replaced",
            crds::Duration::from(time)
        ));
    }
    cautions
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

fn parse_advertisement_interval(spec: &crds::BGPPeerSpec, faults: &mut Vec<Fault>) -> Duration {
    let field = "spec.minAdvertisementInterval";
    let given = spec.min_advertisement_interval.as_ref();
    let time = crate::parse_duration(field, given, faults).unwrap_or_default();
    if time > MAX_ADVERTISEMENT_INTERVAL {
        let rule = Rule::AdvertisementInterval(crds::Duration::from(time).to_string());
        faults.push(Fault::new(field, rule));
    }
    time
}

fn parse_restart_time(spec: &crds::BGPPeerSpec, faults: &mut Vec<Fault>) -> Duration {
    let field = "spec.gracefulRestartTime";
    let given = spec.graceful_restart_time.as_ref();
    let Some(time) = crate::parse_duration(field, given, faults) else {
        return DEFAULT_RESTART_TIME;
    };
    if time.subsec_nanos() != 0 || !(Duration::from_secs(1)..=MAX_RESTART_TIME).contains(&time) {
        faults.push(Fault::new(field, Rule::RestartTime(crds::Duration::from(time).to_string())));
    }
    time
}

fn parse_password(
    spec: &crds::BGPPeerSpec,
    references: &References<'_>,
    faults: &mut Vec<Fault>,
) -> Option<Password> {
    let secret = spec.password_secret.as_ref().and_then(|secret| given(&secret.name));
    let (field, password) = match (given(&spec.password), secret) {
        (None, None) => {
            if spec.tcp_ao.is_some() {
                faults.push(Fault::new("spec.tcpAO", Rule::TcpAoWithoutKey));
            }
            return None;
        }
        (Some(_), Some(_)) => {
            faults.push(Fault::new("spec.passwordSecret", Rule::TwoPasswords));
            return None;
        }
        (Some(password), None) => ("spec.password", Password(password.to_owned())),
        (None, Some(name)) => match references.secrets.password(name) {
            Ok(password) => ("spec.passwordSecret", password?),
            Err(rule) => {
                faults.push(Fault::new("spec.passwordSecret", rule));
                return None;
            }
        },
    };
    if password.0.len() > MAX_PASSWORD {
        faults.push(Fault::new(field, Rule::PasswordLength));
    }
    Some(password)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Secret, fixture::fields};

    fn secrets() -> BTreeMap<String, Secret> {
        let secret = |kind: &str, password: Option<&str>| Secret {
            kind: kind.to_owned(),
            password: password.map(|text| Password(text.to_owned())),
        };
        BTreeMap::from([
            ("good".to_owned(), secret("kubernetes.io/basic-auth", Some("secret"))),
            ("opaque".to_owned(), secret("Opaque", Some("secret"))),
            ("empty".to_owned(), secret("kubernetes.io/basic-auth", None)),
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
            secrets: Secrets { now: &secrets(), last: None, missing: Missing::Fault },
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
                passive: false,
                ttl_security_hops: None,
                local_pref: None,
                med: None,
                as_path_prepend: 0,
                min_advertisement_interval: Duration::ZERO,
                restart_time: Duration::from_secs(15),
                bfd_strict: true,
                tcp_ao: None,
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
            (json!({ "ttlSecurityHops": 0 }), "spec.ttlSecurityHops", "0 is not within 1 to 254"),
            (
                json!({ "ttlSecurityHops": 1, "ebgpMultiHop": true }),
                "spec.ebgpMultiHop",
                "remove ebgpMultiHop",
            ),
            (json!({ "asPathPrepend": 11 }), "spec.asPathPrepend", "11 is not within 0 to 10"),
            (
                json!({ "minAdvertisementInterval": "601s" }),
                "spec.minAdvertisementInterval",
                "10m1s is more than 10m",
            ),
            (
                json!({ "minAdvertisementInterval": "often" }),
                "spec.minAdvertisementInterval",
                "\"often\" is not a duration",
            ),
            (
                json!({ "gracefulRestartTime": "1h8m16s" }),
                "spec.gracefulRestartTime",
                "1h8m16s is not a whole number of seconds within 1s to 4095s",
            ),
            (json!({ "gracefulRestartTime": "0s" }), "spec.gracefulRestartTime", "within 1s to"),
            (
                json!({ "gracefulRestartTime": "1.5s" }),
                "spec.gracefulRestartTime",
                "a whole number",
            ),
            (
                json!({ "tcpAO": { "sendID": 1, "receiveID": 2, "algorithm": "HMACSHA1" } }),
                "spec.tcpAO",
                "name a Secret in passwordSecret",
            ),
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
            "passive": true, "localPref": 0, "med": 50, "asPathPrepend": 10,
            "minAdvertisementInterval": "500ms", "gracefulRestartTime": "1m30s",
            "bfdStrict": false,
            "tcpAO": { "sendID": 1, "receiveID": 255, "algorithm": "AESCMAC128" },
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
                passive: true,
                ttl_security_hops: None,
                local_pref: Some(0),
                med: Some(50),
                as_path_prepend: 10,
                min_advertisement_interval: Duration::from_millis(500),
                restart_time: Duration::from_secs(90),
                bfd_strict: false,
                tcp_ao: Some(TcpAo {
                    send_id: 1,
                    receive_id: 255,
                    algorithm: TcpAOAlgorithm::AesCmac128,
                }),
            }
        );
    }

    #[test]
    fn passwords_are_never_printed() {
        let peer = parsed(json!({ "password": "hunter2" })).unwrap();
        assert!(!format!("{peer:?}").contains("hunter2"));
    }
}
