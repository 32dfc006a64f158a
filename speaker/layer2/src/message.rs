//! The datagram with which speakers agree on owners: one form for the beat and for news.
//!
//! It is not sealed here; the caller's transport vouches for the sender. All numbers are big
//! endian.
//!
//! ```text
//! octets  field
//! 3       "BTH"
//! 1       version, 1
//! 1       standing: 0 listening, 1 ready, 2 leaving
//! 8       incarnation of the sender
//! 8       sequence within the incarnation
//! 4       number of addresses the sender answers for
//! 1 ..35  span: 0, or 1 and two addresses: between them, both included, the sender answers for
//!         none but those in the rows
//! rest    rows: address, 1 octet of state (0 held, 1 offered, 2 released), 8 octets of epoch
//! ```
//!
//! An address is one octet, 4 or 6, and its 4 or 16 octets.

use std::net::IpAddr;
use std::ops::RangeInclusive;

/// Datagrams fit every segment unfragmented, with room for a seal.
pub(crate) const MAX_LENGTH: usize = 1200;

const PREAMBLE: [u8; 4] = *b"BTH\x01";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) standing: Standing,
    pub(crate) incarnation: u64,
    pub(crate) sequence: u64,
    pub(crate) claimed: u32,
    pub(crate) span: Option<RangeInclusive<IpAddr>>,
    pub(crate) rows: Vec<Row>,
}

/// What may be expected of a speaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has just started and claims nothing yet.
    Listening,
    /// It claims what falls to it.
    Ready,
    /// It ends and takes nothing any more.
    Leaving,
}

/// What the sender says of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) address: IpAddr,
    pub(crate) state: ClaimState,
    /// At least 1.
    pub(crate) epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClaimState {
    /// It answers and means to go on.
    Held,
    /// It answers until somebody else does.
    Offered,
    /// It does not answer.
    Released,
}

impl ClaimState {
    pub(crate) fn answers(self) -> bool {
        match self {
            Self::Held | Self::Offered => true,
            Self::Released => false,
        }
    }
}

/// Why a datagram cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// It ends in the middle of a field.
    Truncated,
    /// Another protocol or version.
    Preamble,
    /// A value that its field does not have.
    Value,
}

impl Message {
    /// How many octets are left for rows.
    pub(crate) fn room(&self) -> usize {
        MAX_LENGTH.saturating_sub(self.encode().len())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut octets = PREAMBLE.to_vec();
        octets.push(match self.standing {
            Standing::Listening => 0,
            Standing::Ready => 1,
            Standing::Leaving => 2,
        });
        octets.extend(self.incarnation.to_be_bytes());
        octets.extend(self.sequence.to_be_bytes());
        octets.extend(self.claimed.to_be_bytes());
        octets.push(u8::from(self.span.is_some()));
        for end in self.span.iter().flat_map(|span| [span.start(), span.end()]) {
            encode_address(*end, &mut octets);
        }
        for row in &self.rows {
            encode_address(row.address, &mut octets);
            octets.push(match row.state {
                ClaimState::Held => 0,
                ClaimState::Offered => 1,
                ClaimState::Released => 2,
            });
            octets.extend(row.epoch.to_be_bytes());
        }
        octets
    }

    pub(crate) fn decode(octets: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { left: octets };
        if reader.array()? != PREAMBLE {
            return Err(Malformed::Preamble);
        }
        let standing = match reader.octet()? {
            0 => Standing::Listening,
            1 => Standing::Ready,
            2 => Standing::Leaving,
            _ => return Err(Malformed::Value),
        };
        let incarnation = u64::from_be_bytes(reader.array()?);
        let sequence = u64::from_be_bytes(reader.array()?);
        let claimed = u32::from_be_bytes(reader.array()?);
        let span = match reader.octet()? {
            0 => None,
            1 => Some(reader.address()?..=reader.address()?),
            _ => return Err(Malformed::Value),
        };
        if span.as_ref().is_some_and(RangeInclusive::is_empty) {
            return Err(Malformed::Value);
        }
        let mut rows = Vec::new();
        while !reader.left.is_empty() {
            rows.push(reader.row()?);
        }
        Ok(Self { standing, incarnation, sequence, claimed, span, rows })
    }
}

impl Row {
    /// How many octets a row about `address` takes.
    pub(crate) fn length(address: IpAddr) -> usize {
        let octets = match address {
            IpAddr::V4(_) => 4,
            IpAddr::V6(_) => 16,
        };
        1 + octets + 1 + 8
    }
}

fn encode_address(address: IpAddr, octets: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            octets.push(4);
            octets.extend(address.octets());
        }
        IpAddr::V6(address) => {
            octets.push(6);
            octets.extend(address.octets());
        }
    }
}

struct Reader<'a> {
    left: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, left) = self.left.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.left = left;
        Ok(*array)
    }

    fn octet(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[octet]| octet)
    }

    fn address(&mut self) -> Result<IpAddr, Malformed> {
        match self.octet()? {
            4 => self.array::<4>().map(IpAddr::from),
            6 => self.array::<16>().map(IpAddr::from),
            _ => Err(Malformed::Value),
        }
    }

    fn row(&mut self) -> Result<Row, Malformed> {
        let address = self.address()?;
        let state = match self.octet()? {
            0 => ClaimState::Held,
            1 => ClaimState::Offered,
            2 => ClaimState::Released,
            _ => return Err(Malformed::Value),
        };
        let epoch = u64::from_be_bytes(self.array()?);
        if epoch == 0 { Err(Malformed::Value) } else { Ok(Row { address, state, epoch }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_wire_format_is_as_written_above() {
        let message = Message {
            standing: Standing::Ready,
            incarnation: 7,
            sequence: 0x0102,
            claimed: 1,
            span: Some("192.0.2.1".parse().unwrap()..="2001:db8::1".parse().unwrap()),
            rows: vec![Row {
                address: "192.0.2.10".parse().unwrap(),
                state: ClaimState::Offered,
                epoch: 3,
            }],
        };
        #[rustfmt::skip]
        let octets = [
            b'B', b'T', b'H', 1, 1,
            0, 0, 0, 0, 0, 0, 0, 7,
            0, 0, 0, 0, 0, 0, 1, 2,
            0, 0, 0, 1,
            1, 4, 192, 0, 2, 1, 6, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            4, 192, 0, 2, 10, 1, 0, 0, 0, 0, 0, 0, 0, 3,
        ];
        assert_eq!(message.encode(), octets);
        assert_eq!(Message::decode(&octets), Ok(message));
        for length in 0..octets.len() {
            let read = Message::decode(&octets[..length]);
            assert_eq!(read.is_ok(), length == 48, "{length} octets: {read:?}");
        }
        for (at, octet, reason) in [
            (3, 2, Malformed::Preamble),
            (4, 3, Malformed::Value),
            (25, 2, Malformed::Value),
            (26, 5, Malformed::Value),
            (53, 3, Malformed::Value),
            (61, 0, Malformed::Value),
        ] {
            let mut broken = octets;
            broken[at] = octet;
            assert_eq!(Message::decode(&broken), Err(reason), "octet {at}");
        }
    }

    proptest! {
        #[test]
        fn whatever_can_be_read_is_written_the_same(
            mut octets in proptest::collection::vec(any::<u8>(), 0..120),
            preamble in any::<bool>(),
        ) {
            if preamble && octets.len() > 4 {
                octets[..4].copy_from_slice(&PREAMBLE);
                octets[4] %= 3;
            }
            if let Ok(message) = Message::decode(&octets) {
                prop_assert_eq!(message.encode(), octets);
            }
        }
    }
}
