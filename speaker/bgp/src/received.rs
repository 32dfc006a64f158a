//! UPDATEs that we receive: routes are not imported, so they are checked, counted and dropped.
//!
//! RFC 7606 keeps the session over nearly everything. It ends only where the fields of an UPDATE
//! cannot be told apart, or where a list of IPv4 prefixes is none. A multiprotocol attribute that
//! cannot be read takes the routes of its family with it (section 2, "AFI/SAFI disable"), and of
//! those we have none.

use std::ops::RangeInclusive;

use crate::{
    Family, UpdateError,
    attribute::{
        AS_PATH, AS4_PATH, AsNumbers, COMMUNITIES, EXTENDED_COMMUNITIES, EXTENDED_LENGTH,
        LARGE_COMMUNITIES, LOCAL_PREF, MP_REACH_NLRI, MP_UNREACH_NLRI, MULTI_EXIT_DISC, NEXT_HOP,
        OPTIONAL, ORIGIN, SessionKind, TRANSITIVE,
    },
};

/// Who wrote an UPDATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sender {
    pub(crate) kind: SessionKind,
    pub(crate) as_numbers: AsNumbers,
}

impl Default for Sender {
    /// As long as nobody has introduced himself, no UPDATE is read to its end.
    fn default() -> Self {
        Self { kind: SessionKind::External, as_numbers: AsNumbers::TwoOctets }
    }
}

/// What is kept of an UPDATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReceivedUpdate {
    /// Prefixes that it announces, unless it is malformed.
    pub(crate) announced: u64,
    /// Prefixes that it withdraws, or that it announces with malformed attributes.
    pub(crate) withdrawn: u64,
    pub(crate) verdict: Verdict,
}

/// What RFC 7606 section 2 has done with an UPDATE; the later, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Sound,
    /// An attribute that no route depends on is passed over.
    AttributeDiscard,
    /// Its routes count as withdrawn.
    TreatAsWithdraw,
}

const ATOMIC_AGGREGATE: u8 = 6;
const AGGREGATOR: u8 = 7;
const ORIGINATOR_ID: u8 = 9;
const CLUSTER_LIST: u8 = 10;
const AS4_AGGREGATOR: u8 = 18;

const IPV4_BITS: u8 = 32;
const IPV6_BITS: u8 = 128;
/// AS_SET, AS_SEQUENCE and the two of confederations.
const SEGMENT_TYPES: RangeInclusive<u8> = 1..=4;

impl ReceivedUpdate {
    pub(crate) fn parse(body: &[u8], sender: Sender) -> Result<Self, UpdateError> {
        let (withdrawn, rest) = counted(body).ok_or(UpdateError::MalformedAttributeList)?;
        let (attributes, nlri) = counted(rest).ok_or(UpdateError::MalformedAttributeList)?;
        let withdrawn =
            count_prefixes(withdrawn, IPV4_BITS).ok_or(UpdateError::InvalidNetworkField)?;
        let announced = count_prefixes(nlri, IPV4_BITS).ok_or(UpdateError::InvalidNetworkField)?;
        let mut path = Path { sender, ..Path::default() };
        path.read(attributes)?;
        let verdict = path.verdict(announced);
        let (announced, withdrawn) = (announced + path.announced, withdrawn + path.withdrawn);
        Ok(match verdict {
            Verdict::Sound | Verdict::AttributeDiscard => Self { announced, withdrawn, verdict },
            Verdict::TreatAsWithdraw => {
                Self { announced: 0, withdrawn: withdrawn + announced, verdict }
            }
        })
    }
}

/// The attributes of an UPDATE, as far as they were read.
#[derive(Debug)]
struct Path {
    sender: Sender,
    seen: [bool; 256],
    worst: Verdict,
    /// In MP_REACH_NLRI, of a family that we know.
    announced: u64,
    /// In MP_UNREACH_NLRI.
    withdrawn: u64,
}

impl Default for Path {
    fn default() -> Self {
        Self {
            sender: Sender::default(),
            seen: [false; 256],
            worst: Verdict::Sound,
            announced: 0,
            withdrawn: 0,
        }
    }
}

impl Path {
    fn read(&mut self, mut bytes: &[u8]) -> Result<(), UpdateError> {
        while !bytes.is_empty() {
            let Some((flags, kind, value, rest)) = next_attribute(bytes) else {
                // RFC 7606 section 4: the list ends here, the fields around it are sound.
                self.worst = Verdict::TreatAsWithdraw;
                return Ok(());
            };
            bytes = rest;
            let seen = &mut self.seen[usize::from(kind)];
            let verdict = if !std::mem::replace(seen, true) {
                self.judge(flags, kind, value)
            } else if matches!(kind, MP_REACH_NLRI | MP_UNREACH_NLRI) {
                return Err(UpdateError::RepeatedAttribute(kind));
            } else {
                Verdict::AttributeDiscard
            };
            self.worst = self.worst.max(verdict);
        }
        Ok(())
    }

    /// One attribute, RFC 7606 section 7.
    fn judge(&mut self, flags: u8, kind: u8, value: &[u8]) -> Verdict {
        let rule = match kind {
            ORIGIN => Rule::well_known(matches!(value, [0..=2])),
            AS_PATH => {
                let sound = is_as_path(value, self.sender.as_numbers);
                Rule::well_known(sound)
            }
            NEXT_HOP => Rule::well_known(value.len() == 4),
            MULTI_EXIT_DISC => Rule::optional(value.len() == 4),
            LOCAL_PREF => self.internal(Rule::well_known(value.len() == 4)),
            ATOMIC_AGGREGATE => Rule::well_known(value.is_empty()).or_discard(),
            AGGREGATOR => {
                let octets = 4 + self.sender.as_numbers.octets();
                Rule::transitive(value.len() == octets).or_discard()
            }
            COMMUNITIES => Rule::transitive(is_list(value, 4)),
            ORIGINATOR_ID => self.internal(Rule::optional(value.len() == 4)),
            CLUSTER_LIST => self.internal(Rule::optional(is_list(value, 4))),
            MP_REACH_NLRI => {
                let announced = reached(value);
                self.announced += announced.unwrap_or_default();
                Rule::optional(announced.is_some())
            }
            MP_UNREACH_NLRI => {
                let withdrawn = unreached(value);
                self.withdrawn += withdrawn.unwrap_or_default();
                Rule::optional(withdrawn.is_some())
            }
            EXTENDED_COMMUNITIES => Rule::transitive(is_list(value, 8)),
            AS4_PATH => {
                let sound = is_as_path(value, AsNumbers::FourOctets);
                Rule::transitive(sound).or_discard()
            }
            AS4_AGGREGATOR => Rule::transitive(value.len() == 8).or_discard(),
            LARGE_COMMUNITIES => Rule::transitive(is_list(value, 12)),
            // One that everybody must know and we do not; all others may come and go.
            _ if flags & OPTIONAL == 0 => return Verdict::TreatAsWithdraw,
            _ => return Verdict::Sound,
        };
        let same_flags = flags & (OPTIONAL | TRANSITIVE) == rule.flags;
        if rule.sound && same_flags { Verdict::Sound } else { rule.otherwise }
    }

    /// What only routers of one AS tell each other; from others it is passed over.
    fn internal(&self, rule: Rule) -> Rule {
        match self.sender.kind {
            SessionKind::Internal => rule,
            SessionKind::External => Rule { sound: false, ..rule }.or_discard(),
        }
    }

    /// Routes need the mandatory attributes (section 3, item d).
    fn verdict(&self, announced: u64) -> Verdict {
        let has = |kinds: &[u8]| kinds.iter().all(|kind| self.seen[usize::from(*kind)]);
        let complete = (announced == 0 || has(&[ORIGIN, AS_PATH, NEXT_HOP]))
            && (self.announced == 0 || has(&[ORIGIN, AS_PATH]));
        if complete { self.worst } else { Verdict::TreatAsWithdraw }
    }
}

/// What an attribute has to be like, and what follows if it is not.
#[derive(Debug, Clone, Copy)]
struct Rule {
    flags: u8,
    sound: bool,
    otherwise: Verdict,
}

impl Rule {
    fn well_known(sound: bool) -> Self {
        Self { flags: TRANSITIVE, sound, otherwise: Verdict::TreatAsWithdraw }
    }

    fn optional(sound: bool) -> Self {
        Self { flags: OPTIONAL, sound, otherwise: Verdict::TreatAsWithdraw }
    }

    fn transitive(sound: bool) -> Self {
        Self { flags: OPTIONAL | TRANSITIVE, sound, otherwise: Verdict::TreatAsWithdraw }
    }

    fn or_discard(self) -> Self {
        Self { otherwise: Verdict::AttributeDiscard, ..self }
    }
}

impl AsNumbers {
    fn octets(self) -> usize {
        match self {
            Self::TwoOctets => 2,
            Self::FourOctets => 4,
        }
    }
}

/// Flags, type and value of the first attribute, and what follows it.
fn next_attribute(bytes: &[u8]) -> Option<(u8, u8, &[u8], &[u8])> {
    let (&[flags, kind], rest) = bytes.split_first_chunk()?;
    let (value, rest) = if flags & EXTENDED_LENGTH == 0 {
        let (&length, rest) = rest.split_first()?;
        rest.split_at_checked(length.into())?
    } else {
        counted(rest)?
    };
    Some((flags, kind, value, rest))
}

/// A part that a two-octet length leads, and what follows it.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u16::from_be_bytes(*length).into())
}

fn is_list(value: &[u8], octets: usize) -> bool {
    !value.is_empty() && value.len().is_multiple_of(octets)
}

fn is_as_path(mut value: &[u8], as_numbers: AsNumbers) -> bool {
    while let Some((&[kind, count], rest)) = value.split_first_chunk() {
        let octets = usize::from(count) * as_numbers.octets();
        match rest.get(octets..) {
            Some(rest) if count > 0 && SEGMENT_TYPES.contains(&kind) => value = rest,
            Some(_) | None => return false,
        }
    }
    value.is_empty()
}

/// The prefixes of an MP_REACH_NLRI; 0 of a family that we do not know, `None` where it cannot be
/// read.
fn reached(value: &[u8]) -> Option<u64> {
    let (&[high, low, safi, length], rest) = value.split_first_chunk()?;
    let (_next_hop, rest) = rest.split_at_checked(length.into())?;
    let (_reserved, nlri) = rest.split_first()?;
    let Some(family) = Family::from_codes(u16::from_be_bytes([high, low]), safi) else {
        return Some(0);
    };
    let addresses = match family {
        Family::Ipv4Unicast => matches!(length, 4 | 16 | 32),
        Family::Ipv6Unicast => matches!(length, 16 | 32),
    };
    if addresses { count_prefixes(nlri, bits(family)) } else { None }
}

/// The same of an MP_UNREACH_NLRI.
fn unreached(value: &[u8]) -> Option<u64> {
    let (&[high, low, safi], withdrawn) = value.split_first_chunk()?;
    match Family::from_codes(u16::from_be_bytes([high, low]), safi) {
        Some(family) => count_prefixes(withdrawn, bits(family)),
        None => Some(0),
    }
}

fn bits(family: Family) -> u8 {
    match family {
        Family::Ipv4Unicast => IPV4_BITS,
        Family::Ipv6Unicast => IPV6_BITS,
    }
}

/// How many prefixes a list holds, if it is one.
fn count_prefixes(mut bytes: &[u8], most_bits: u8) -> Option<u64> {
    let mut count = 0;
    while let Some((&bits, rest)) = bytes.split_first() {
        bytes = rest.get(usize::from(bits).div_ceil(8)..)?;
        if bits > most_bits {
            return None;
        }
        count += 1;
    }
    Some(count)
}
