//! Path attributes and prefixes on the wire, as we send them.
//!
//! Read RFC 4271 sections 4.3 and 5, RFC 4760 sections 3 and 4, RFC 2545 section 3, RFC 8950, RFC
//! 6793 section 4.2, RFC 1997, RFC 4360 and RFC 8092.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    Attributes, Family,
    capability::SAFI_UNICAST,
    message::{AS_TRANS, MAX_MESSAGE, UPDATE_OVERHEAD, update},
};

/// What is the same for all routes of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Where the peer sends the packets of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextHop {
    V4(Ipv4Addr),
    V6 { global: Ipv6Addr, link_local: Option<Ipv6Addr> },
}

pub(crate) const ORIGIN: u8 = 1;
pub(crate) const AS_PATH: u8 = 2;
pub(crate) const NEXT_HOP: u8 = 3;
pub(crate) const MULTI_EXIT_DISC: u8 = 4;
pub(crate) const LOCAL_PREF: u8 = 5;
pub(crate) const COMMUNITIES: u8 = 8;
pub(crate) const MP_REACH_NLRI: u8 = 14;
pub(crate) const MP_UNREACH_NLRI: u8 = 15;
pub(crate) const EXTENDED_COMMUNITIES: u8 = 16;
pub(crate) const AS4_PATH: u8 = 17;
pub(crate) const LARGE_COMMUNITIES: u8 = 32;

pub(crate) const OPTIONAL: u8 = 0x80;
pub(crate) const TRANSITIVE: u8 = 0x40;
pub(crate) const EXTENDED_LENGTH: u8 = 0x10;

const ORIGIN_IGP: u8 = 0;
const AS_SEQUENCE: u8 = 2;
/// One octet counts the AS numbers of a segment.
const MAX_SEGMENT: usize = 255;

/// LOCAL_PREF of iBGP routes that ask for none.
const DEFAULT_LOCAL_PREF: u32 = 100;

/// Flags, type and a two-octet length.
const MAX_HEADER: usize = 4;
/// AFI, SAFI.
const MP_UNREACH_FIXED: usize = 3;
/// AFI, SAFI, length of the next hop, a reserved octet.
const MP_REACH_FIXED: usize = 5;
/// A global and a link-local address.
const MAX_NEXT_HOP: usize = 32;
/// A /128.
const MAX_PREFIX: usize = 17;

impl PathContext {
    /// The attributes as they count towards this peer: what comes to the same can be sent together,
    /// and need not be sent again.
    pub(crate) fn on_the_wire(&self, attributes: &Arc<Attributes>) -> Arc<Attributes> {
        let (local_pref, as_path_prepend) = match self.kind {
            SessionKind::Internal => (Some(attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)), 0),
            SessionKind::External => (None, attributes.as_path_prepend),
        };
        if (attributes.local_pref, attributes.as_path_prepend) == (local_pref, as_path_prepend) {
            return Arc::clone(attributes);
        }
        Arc::new(Attributes { local_pref, as_path_prepend, ..Attributes::clone(attributes) })
    }

    /// Whether a message can hold the attributes and one prefix of either family.
    pub(crate) fn fits(&self, attributes: &Attributes) -> bool {
        let reach = MAX_HEADER + MP_REACH_FIXED + MAX_NEXT_HOP + MAX_PREFIX;
        UPDATE_OVERHEAD + reach + self.encode(attributes, None).len() <= MAX_MESSAGE
    }

    /// All attributes but MP_REACH_NLRI, in ascending order of type. NEXT_HOP is for the NLRI field
    /// alone (RFC 4760 section 3).
    pub(crate) fn encode(&self, attributes: &Attributes, next_hop: Option<Ipv4Addr>) -> Vec<u8> {
        let Attributes {
            local_pref,
            med,
            as_path_prepend,
            communities,
            extended_communities,
            large_communities,
        } = attributes;
        let path_length = 1 + usize::from(*as_path_prepend);
        let mut out = Vec::new();
        push(&mut out, TRANSITIVE, ORIGIN, &[ORIGIN_IGP]);
        push(&mut out, TRANSITIVE, AS_PATH, &self.as_path(path_length));
        if let Some(next_hop) = next_hop {
            push(&mut out, TRANSITIVE, NEXT_HOP, &next_hop.octets());
        }
        if let Some(med) = med {
            push(&mut out, OPTIONAL, MULTI_EXIT_DISC, &med.to_be_bytes());
        }
        if let Some(local_pref) = local_pref {
            push(&mut out, TRANSITIVE, LOCAL_PREF, &local_pref.to_be_bytes());
        }
        let communities = communities.iter().flat_map(|community| community.to_be_bytes());
        push_list(&mut out, COMMUNITIES, communities);
        let extended = extended_communities.iter().flat_map(|community| community.to_be_bytes());
        push_list(&mut out, EXTENDED_COMMUNITIES, extended);
        if let Some(as4_path) = self.as4_path(path_length) {
            push(&mut out, OPTIONAL | TRANSITIVE, AS4_PATH, &as4_path);
        }
        let large = large_communities
            .iter()
            .flat_map(|&(global, local1, local2)| [global, local1, local2])
            .flat_map(u32::to_be_bytes);
        push_list(&mut out, LARGE_COMMUNITIES, large);
        out
    }

    /// Our AS on eBGP, empty on iBGP.
    fn as_path(&self, length: usize) -> Vec<u8> {
        match (self.kind, self.as_numbers) {
            (SessionKind::Internal, AsNumbers::TwoOctets | AsNumbers::FourOctets) => Vec::new(),
            (SessionKind::External, AsNumbers::FourOctets) => {
                sequence(&self.local_asn.to_be_bytes(), length)
            }
            (SessionKind::External, AsNumbers::TwoOctets) => {
                sequence(&two_octets(self.local_asn).to_be_bytes(), length)
            }
        }
    }

    /// The real path, beside an AS_PATH that cannot hold it (RFC 6793 section 4.2.2).
    fn as4_path(&self, length: usize) -> Option<Vec<u8>> {
        let hidden = self.kind == SessionKind::External
            && self.as_numbers == AsNumbers::TwoOctets
            && u16::try_from(self.local_asn).is_err();
        hidden.then(|| sequence(&self.local_asn.to_be_bytes(), length))
    }
}

/// An AS number where only two octets are.
pub(crate) fn two_octets(asn: u32) -> u16 {
    u16::try_from(asn).unwrap_or(AS_TRANS)
}

/// One AS number as often as `length` says.
fn sequence(asn: &[u8], mut length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while length > 0 {
        let count = u8::try_from(length.min(MAX_SEGMENT)).unwrap_or(u8::MAX);
        out.extend([AS_SEQUENCE, count]);
        out.extend(asn.repeat(count.into()));
        length -= usize::from(count);
    }
    out
}

/// An UPDATE that announces encoded prefixes of a family; the attributes are without their next
/// hop. MP_REACH_NLRI comes first, so that a router finds it whatever it thinks of the rest (RFC
/// 7606 section 5.1).
pub(crate) fn announcement(
    context: &PathContext,
    attributes: &Attributes,
    family: Family,
    next_hop: NextHop,
    nlri: &[u8],
) -> Vec<u8> {
    match next_hop {
        NextHop::V4(address) => update(&[], &context.encode(attributes, Some(address)), nlri),
        NextHop::V6 { global, link_local } => {
            let mut value = Vec::with_capacity(MAX_MESSAGE);
            value.extend(family.afi().to_be_bytes());
            value.extend([SAFI_UNICAST, if link_local.is_some() { 32 } else { 16 }]);
            value.extend(global.octets());
            value.extend(link_local.iter().flat_map(Ipv6Addr::octets));
            value.push(0);
            value.extend_from_slice(nlri);
            let mut out = Vec::new();
            push(&mut out, OPTIONAL, MP_REACH_NLRI, &value);
            out.extend(context.encode(attributes, None));
            update(&[], &out, &[])
        }
    }
}

/// What an announcement takes beside its prefixes, at most.
pub(crate) fn announcement_overhead(
    context: &PathContext,
    attributes: &Attributes,
    next_hop: NextHop,
) -> usize {
    UPDATE_OVERHEAD
        + match next_hop {
            NextHop::V4(address) => context.encode(attributes, Some(address)).len(),
            NextHop::V6 { link_local, .. } => {
                let addresses = if link_local.is_some() { 32 } else { 16 };
                MAX_HEADER + MP_REACH_FIXED + addresses + context.encode(attributes, None).len()
            }
        }
}

/// An UPDATE that withdraws encoded prefixes of a family, in the form that announces them.
pub(crate) fn withdrawal(family: Family, form: Form, withdrawn: &[u8]) -> Vec<u8> {
    match form {
        Form::Plain => update(withdrawn, &[], &[]),
        Form::Multiprotocol => {
            let mut value = Vec::with_capacity(MAX_MESSAGE);
            value.extend(family.afi().to_be_bytes());
            value.push(SAFI_UNICAST);
            value.extend_from_slice(withdrawn);
            let mut out = Vec::new();
            push(&mut out, OPTIONAL, MP_UNREACH_NLRI, &value);
            update(&[], &out, &[])
        }
    }
}

/// What a withdrawal takes beside its prefixes, at most.
pub(crate) fn withdrawal_overhead(form: Form) -> usize {
    UPDATE_OVERHEAD
        + match form {
            Form::Plain => 0,
            Form::Multiprotocol => MAX_HEADER + MP_UNREACH_FIXED,
        }
}

/// End-of-RIB of a family (RFC 4724 section 2).
pub(crate) fn end_of_rib(family: Family) -> Vec<u8> {
    let form = match family {
        Family::Ipv4Unicast => Form::Plain,
        Family::Ipv6Unicast => Form::Multiprotocol,
    };
    withdrawal(family, form, &[])
}

/// Where in an UPDATE the prefixes of a family stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In the fields of RFC 4271.
    Plain,
    /// In MP_REACH_NLRI and MP_UNREACH_NLRI.
    Multiprotocol,
}

impl NextHop {
    pub(crate) fn form(self) -> Form {
        match self {
            Self::V4(_) => Form::Plain,
            Self::V6 { .. } => Form::Multiprotocol,
        }
    }
}

fn push_list(out: &mut Vec<u8>, kind: u8, value: impl Iterator<Item = u8>) {
    let value: Vec<u8> = value.collect();
    if !value.is_empty() {
        push(out, OPTIONAL | TRANSITIVE, kind, &value);
    }
}

fn push(out: &mut Vec<u8>, flags: u8, kind: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend([flags, kind, length]),
        Err(_) => {
            // Longer than any message: only ever measured, never sent.
            let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
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
