//! Path attributes and prefixes on the wire.
//!
//! Read RFC 4271 sections 4.3 and 5, RFC 4760 sections 3 and 4, RFC 6793 section 4.2, RFC 1997 and
//! RFC 8092.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

use crate::{Family, capability::SAFI_UNICAST, message::AS_TRANS};

/// What is the same for all routes of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathContext {
    pub(crate) local_asn: u32,
    pub(crate) kind: SessionKind,
    pub(crate) as_numbers: AsNumbers,
}

/// Whether the peer is in our AS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionKind {
    Internal,
    External,
}

/// How wide an AS number is in AS_PATH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AsNumbers {
    TwoOctets,
    FourOctets,
}

/// The attributes that differ between the routes of a session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attributes {
    /// `None` on eBGP.
    pub(crate) local_pref: Option<u32>,
    pub(crate) communities: BTreeSet<u32>,
    pub(crate) large_communities: BTreeSet<(u32, u32, u32)>,
}

const ORIGIN: u8 = 1;
const AS_PATH: u8 = 2;
const NEXT_HOP: u8 = 3;
const LOCAL_PREF: u8 = 5;
const COMMUNITIES: u8 = 8;
const MP_REACH_NLRI: u8 = 14;
const MP_UNREACH_NLRI: u8 = 15;
const AS4_PATH: u8 = 17;
const LARGE_COMMUNITIES: u8 = 32;

const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
const EXTENDED_LENGTH: u8 = 0x10;

const ORIGIN_IGP: u8 = 0;
const AS_SEQUENCE: u8 = 2;

/// Flags, type and a two-octet length.
pub(crate) const MAX_ATTRIBUTE_HEADER: usize = 4;
/// AFI, SAFI.
pub(crate) const MP_UNREACH_OVERHEAD: usize = 3;
/// AFI, SAFI, length of the next hop, an IPv6 next hop, a reserved octet.
pub(crate) const MP_REACH_OVERHEAD: usize = 5 + 16;

impl PathContext {
    /// All attributes of IPv4 routes, in ascending order of type.
    pub(crate) fn ipv4(&self, attributes: &Attributes, next_hop: Ipv4Addr) -> Vec<u8> {
        self.encode(attributes, Some(next_hop))
    }

    /// The attributes that follow the MP_REACH_NLRI of routes. NEXT_HOP is not among them: it is
    /// for the NLRI field alone (RFC 4760 section 3).
    pub(crate) fn multiprotocol(&self, attributes: &Attributes) -> Vec<u8> {
        self.encode(attributes, None)
    }

    fn encode(&self, attributes: &Attributes, next_hop: Option<Ipv4Addr>) -> Vec<u8> {
        let mut out = Vec::new();
        push(&mut out, TRANSITIVE, ORIGIN, &[ORIGIN_IGP]);
        push(&mut out, TRANSITIVE, AS_PATH, &self.as_path());
        if let Some(next_hop) = next_hop {
            push(&mut out, TRANSITIVE, NEXT_HOP, &next_hop.octets());
        }
        if let Some(local_pref) = attributes.local_pref {
            push(&mut out, TRANSITIVE, LOCAL_PREF, &local_pref.to_be_bytes());
        }
        if !attributes.communities.is_empty() {
            let value: Vec<u8> = attributes
                .communities
                .iter()
                .flat_map(|community| community.to_be_bytes())
                .collect();
            push(&mut out, OPTIONAL | TRANSITIVE, COMMUNITIES, &value);
        }
        if let Some(as4_path) = self.as4_path() {
            push(&mut out, OPTIONAL | TRANSITIVE, AS4_PATH, &as4_path);
        }
        if !attributes.large_communities.is_empty() {
            let value: Vec<u8> = attributes
                .large_communities
                .iter()
                .flat_map(|&(global, local1, local2)| [global, local1, local2])
                .flat_map(u32::to_be_bytes)
                .collect();
            push(&mut out, OPTIONAL | TRANSITIVE, LARGE_COMMUNITIES, &value);
        }
        out
    }

    /// Our AS on eBGP, empty on iBGP.
    fn as_path(&self) -> Vec<u8> {
        match (self.kind, self.as_numbers) {
            (SessionKind::Internal, AsNumbers::TwoOctets | AsNumbers::FourOctets) => Vec::new(),
            (SessionKind::External, AsNumbers::FourOctets) => {
                sequence(&self.local_asn.to_be_bytes())
            }
            (SessionKind::External, AsNumbers::TwoOctets) => {
                sequence(&two_octets(self.local_asn).to_be_bytes())
            }
        }
    }

    /// The real path, beside an AS_PATH that cannot hold it (RFC 6793 section 4.2.2).
    fn as4_path(&self) -> Option<Vec<u8>> {
        let hidden = self.kind == SessionKind::External
            && self.as_numbers == AsNumbers::TwoOctets
            && u16::try_from(self.local_asn).is_err();
        hidden.then(|| sequence(&self.local_asn.to_be_bytes()))
    }
}

/// An AS number where only two octets are.
pub(crate) fn two_octets(asn: u32) -> u16 {
    u16::try_from(asn).unwrap_or(AS_TRANS)
}

fn sequence(one_as: &[u8]) -> Vec<u8> {
    [&[AS_SEQUENCE, 1], one_as].concat()
}

/// MP_REACH_NLRI for encoded prefixes.
pub(crate) fn mp_reach(family: Family, next_hop: IpAddr, nlri: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(MP_REACH_OVERHEAD + nlri.len());
    value.extend(family.afi().to_be_bytes());
    value.push(SAFI_UNICAST);
    match next_hop {
        IpAddr::V4(address) => {
            value.push(4);
            value.extend(address.octets());
        }
        IpAddr::V6(address) => {
            value.push(16);
            value.extend(address.octets());
        }
    }
    value.push(0);
    value.extend_from_slice(nlri);
    let mut out = Vec::with_capacity(MAX_ATTRIBUTE_HEADER + value.len());
    push(&mut out, OPTIONAL, MP_REACH_NLRI, &value);
    out
}

/// MP_UNREACH_NLRI for encoded prefixes; without any it is the End-of-RIB of the family.
pub(crate) fn mp_unreach(family: Family, withdrawn: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(MP_UNREACH_OVERHEAD + withdrawn.len());
    value.extend(family.afi().to_be_bytes());
    value.push(SAFI_UNICAST);
    value.extend_from_slice(withdrawn);
    let mut out = Vec::with_capacity(MAX_ATTRIBUTE_HEADER + value.len());
    push(&mut out, OPTIONAL, MP_UNREACH_NLRI, &value);
    out
}

fn push(out: &mut Vec<u8>, flags: u8, kind: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend([flags, kind, length]),
        Err(_) => {
            let length = u16::try_from(value.len()).expect("an attribute fits into a message");
            out.extend([flags | EXTENDED_LENGTH, kind]);
            out.extend(length.to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

/// Octets of a prefix as NLRI.
pub(crate) fn prefix_octets(prefix: &IpNet) -> usize {
    1 + usize::from(prefix.prefix_len()).div_ceil(8)
}

/// Appends the length in bits and as many octets of the address as it takes.
pub(crate) fn push_prefix(out: &mut Vec<u8>, prefix: &IpNet) {
    let octets = usize::from(prefix.prefix_len()).div_ceil(8);
    out.push(prefix.prefix_len());
    match prefix.network() {
        IpAddr::V4(address) => out.extend(&address.octets()[..octets]),
        IpAddr::V6(address) => out.extend(&address.octets()[..octets]),
    }
}

/// Whether the octets are a list of IPv4 prefixes.
pub(crate) fn are_ipv4_prefixes(mut bytes: &[u8]) -> bool {
    while let Some((&bits, rest)) = bytes.split_first() {
        match rest.get(usize::from(bits).div_ceil(8)..) {
            Some(rest) if u32::from(bits) <= Ipv4Addr::BITS => bytes = rest,
            Some(_) | None => return false,
        }
    }
    true
}

/// Whether the octets are a list of attributes, whatever is in them.
pub(crate) fn are_attributes(mut bytes: &[u8]) -> bool {
    loop {
        let (length, rest) = match bytes {
            [] => return true,
            [flags, _, high, low, rest @ ..] if flags & EXTENDED_LENGTH != 0 => {
                (u16::from_be_bytes([*high, *low]), rest)
            }
            [flags, _, length, rest @ ..] if flags & EXTENDED_LENGTH == 0 => {
                (u16::from(*length), rest)
            }
            _ => return false,
        };
        match rest.get(length.into()..) {
            Some(rest) => bytes = rest,
            None => return false,
        }
    }
}
