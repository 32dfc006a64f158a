//! The datagrams between speakers.
//!
//! They are not sealed here; the caller's transport vouches for the sender. All numbers are big
//! endian.
//!
//! ```text
//! octets  field
//! 3       "BTH"
//! 1       version, 2
//! 8       incarnation of the sender
//! 8       incarnation of the receiver, as far as the sender knows; 0: unknown
//! 8       sequence within the life of the sender
//! 1       kind
//! rest    the body
//! ```
//!
//! Only the receiver's incarnation differs between the copies of what goes to all, so a body is
//! made once. An address is one octet, 4 or 6, and its 4 or 16 octets; a name is one octet of
//! length and as many octets of UTF-8. Rows of claims come after a dictionary, since they all name
//! the same few lives:
//!
//! ```text
//! 1       number of lives, each a name and 8 octets of incarnation
//! rest    rows: address, 8 octets of epoch, 1 octet: the place of the life in the dictionary
//! ```

use std::net::IpAddr;

pub(crate) use decode::decode;
pub(crate) use encode::{
    alive, claims, dead, digest, give_backs, handovers, refusals, wires, yields,
};

use crate::{Claim, Mac, NodeName};

mod decode;
mod encode;

/// Datagrams fit every segment unfragmented, with room for a seal.
pub(crate) const MAX_LENGTH: usize = 1200;

/// Into how many parts a table is divided when it is compared.
pub(crate) const BUCKETS: usize = 64;

/// More stations are not told.
pub(crate) const MAX_STATIONS: usize = 8;

/// The longest name of an interface (IFNAMSIZ without its end).
const MAX_INTERFACE: usize = 15;

/// The longest name of a node: that of a DNS subdomain (RFC 1123).
const MAX_NAME: usize = 253;

/// More ages or suspects are not told: full meshes are smaller.
const MAX_TAGS: usize = 64;

const PREAMBLE: [u8; 4] = *b"BTH\x02";

const HEADER: usize = 4 + 8 + 8 + 8;

/// How much a body may take, its kind included.
const ROOM: usize = MAX_LENGTH - HEADER;

/// Who speaks, to whom, and when in the life of the one who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) incarnation: u64,
    /// 0: unknown; the datagram is a greeting.
    pub(crate) receiver: u64,
    pub(crate) sequence: u64,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Beat(Beat),
    /// The best claims that the sender knows.
    Claims(Vec<Row>),
    /// The hashes of the buckets of the sender's table; answered with the rows of those that
    /// differ.
    Digest(Box<[u64; BUCKETS]>),
    /// The sender has stopped for these claims of the receiver.
    Yield(Vec<Row>),
    /// The receiver is to claim these; the rows are what it is to go beyond.
    Handover(Occasion, Vec<Row>),
    /// The sender does not take what was handed over to it.
    Refusal(Vec<Row>),
    /// The sender, a watcher, has not heard these lives for too long.
    Dead(Vec<Notice>),
    /// The sender, a watcher, hears these lives.
    Alive(Vec<Notice>),
    /// Who answered for addresses of the receiver.
    Wire(Vec<Sighting>),
    /// The sender had these before it was restarted and would like to have them again.
    GiveBack(Vec<IpAddr>),
}

/// That a speaker lives, and what others go by when they divide addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) flags: Flags,
    /// How many addresses the sender owns.
    pub(crate) owned: u32,
    pub(crate) version: u64,
    /// Of the whole table.
    pub(crate) hash: u64,
    /// For how many seconds addresses have been claimed in this cluster; 255: that or longer.
    pub(crate) age: u8,
    /// Interfaces that can answer; none: the sender is cut off from the segment.
    pub(crate) stations: Vec<(String, Mac)>,
    /// When other nodes were last heard, in a full mesh.
    pub(crate) ages: Vec<Age>,
    /// Nodes that come and go.
    pub(crate) unsteady: Vec<Tag>,
}

/// 28 bits that stand for the name of a node.
pub(crate) type Tag = u32;

/// How long ago a node was last heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Age {
    pub(crate) tag: Tag,
    /// In halves of the time between two beats, rounded down; 15: that or longer, or never.
    pub(crate) halves: u8,
}

/// What may be expected of a speaker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flags(u8);

impl Flags {
    /// It claims nothing yet.
    pub(crate) const LISTENING: Self = Self(1);
    /// It is taking up again what it held in its life before.
    pub(crate) const RESUMING: Self = Self(2);
    /// Its node is being drained.
    pub(crate) const DRAINING: Self = Self(4);
    /// It ends.
    pub(crate) const LEAVING: Self = Self(8);
    /// It is cut off, as far as it can see, and takes nothing.
    pub(crate) const ISOLATED: Self = Self(16);
    /// It beats only to those that watch it.
    pub(crate) const RING: Self = Self(32);
    /// It has no interface that can answer. Not told: its stations say it.
    pub(crate) const MUTED: Self = Self(64);
    const ALL: u8 = 63;

    /// Without what is said in another way.
    pub(crate) fn told(self) -> Self {
        Self(self.0 & Self::ALL)
    }

    pub(crate) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    /// This flag if it holds, else none.
    pub(crate) fn when(self, holds: bool) -> Self {
        if holds { self } else { Self::default() }
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What is claimed, by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) address: IpAddr,
    pub(crate) claim: Claim,
}

/// Why an address is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Occasion {
    /// The owner may not keep it.
    Departure,
    /// The owner is being restarted and will ask for it.
    Restart,
    /// The receiver had it before it was restarted.
    GiveBack,
    /// The owner has more than the receiver.
    Rebalance,
}

/// What a watcher says of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) node: NodeName,
    pub(crate) incarnation: u64,
    /// The last that was heard of it.
    pub(crate) sequence: u64,
}

/// Who answered for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) address: IpAddr,
    /// Of the claim in force when it was asked for.
    pub(crate) epoch: u64,
    /// `None`: nobody.
    pub(crate) mac: Option<Mac>,
}

/// Why a datagram cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// It ends in the middle of a field, or is longer than any that is sent.
    Length,
    /// Another protocol or version.
    Preamble,
    /// A value that its field does not have.
    Value,
}

mod kind {
    pub(super) const BEAT: u8 = 1;
    pub(super) const CLAIMS: u8 = 2;
    pub(super) const DIGEST: u8 = 3;
    pub(super) const YIELD: u8 = 4;
    pub(super) const HANDOVER: u8 = 5;
    pub(super) const REFUSAL: u8 = 6;
    pub(super) const DEAD: u8 = 7;
    pub(super) const ALIVE: u8 = 8;
    pub(super) const WIRE: u8 = 9;
    pub(super) const GIVE_BACK: u8 = 10;
}

fn fits(name: &str, most: usize) -> bool {
    (1..=most).contains(&name.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER_OF_TEST: Header = Header { incarnation: 7, receiver: 9, sequence: 3 };

    fn read(body: &[u8]) -> Body {
        let payload = HEADER_OF_TEST.seal(body);
        assert!(payload.len() <= MAX_LENGTH, "{} octets", payload.len());
        let (header, body) = decode(&payload).unwrap();
        assert_eq!(header, HEADER_OF_TEST);
        body
    }

    fn any_address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(IpAddr::from)
        ]
    }

    fn any_name() -> impl Strategy<Value = NodeName> {
        "[a-z0-9.-]{1,253}".prop_map(|name| NodeName::from(name.as_str()))
    }

    fn any_row() -> impl Strategy<Value = Row> {
        (any_address(), 1..u64::MAX, 0..8_usize, any::<u64>()).prop_map(
            |(address, epoch, owner, incarnation)| {
                let owner = format!("node-{owner}").into();
                Row { address, claim: Claim { epoch, owner, incarnation } }
            },
        )
    }

    fn pairs(rows: &[Row]) -> impl Iterator<Item = (IpAddr, &Claim)> {
        rows.iter().map(|row| (row.address, &row.claim))
    }

    fn any_beat() -> impl Strategy<Value = Beat> {
        let numbers = (0..64_u8, any::<u32>(), any::<u64>(), any::<u64>(), any::<u8>());
        let stations = proptest::collection::vec(("[a-z0-9]{1,15}", any::<Mac>()), 0..=8);
        let ages = proptest::collection::vec((0..1_u32 << 28, 0..16_u8), 0..=64);
        let unsteady = proptest::collection::vec(0..1_u32 << 28, 0..=64);
        (numbers, stations, ages, unsteady).prop_map(|(numbers, stations, ages, unsteady)| {
            let (flags, owned, version, hash, age) = numbers;
            let ages = ages.into_iter().map(|(tag, halves)| Age { tag, halves }).collect();
            Beat { flags: Flags(flags), owned, version, hash, age, stations, ages, unsteady }
        })
    }

    proptest! {
        #[test]
        fn a_beat_is_read_as_it_was_written(beat in any_beat()) {
            prop_assert_eq!(read(&beat.encode()), Body::Beat(beat));
        }

        #[test]
        fn rows_are_divided_and_none_is_lost(rows in proptest::collection::vec(any_row(), 0..300)) {
            let said: Vec<_> = claims(pairs(&rows)).iter().map(|body| read(body)).collect();
            let said: Vec<_> = said.into_iter().flat_map(|body| match body {
                Body::Claims(rows) => rows,
                other => unreachable!("{other:?}"),
            }).collect();
            prop_assert_eq!(&said, &rows);
            let first = rows.first().cloned().into_iter().collect::<Vec<_>>();
            for body in yields(pairs(&first)) {
                prop_assert_eq!(read(&body), Body::Yield(first.clone()));
            }
            for body in refusals(pairs(&first)) {
                prop_assert_eq!(read(&body), Body::Refusal(first.clone()));
            }
            let occasions = [
                Occasion::Departure, Occasion::Restart, Occasion::GiveBack, Occasion::Rebalance,
            ];
            for occasion in occasions {
                for body in handovers(occasion, pairs(&first)) {
                    prop_assert_eq!(read(&body), Body::Handover(occasion, first.clone()));
                }
            }
        }

        #[test]
        fn notices_and_sightings_are_divided_and_none_is_lost(
            notices in proptest::collection::vec((any_name(), 1..u64::MAX, any::<u64>()), 0..30),
            sightings in proptest::collection::vec(
                (any_address(), any::<u64>(), any::<Option<Mac>>()), 0..150),
        ) {
            let notices: Vec<_> = notices.into_iter().map(|(node, incarnation, sequence)| {
                Notice { node, incarnation, sequence }
            }).collect();
            let mut said = Vec::new();
            for body in dead(&notices) {
                let Body::Dead(part) = read(&body) else { unreachable!() };
                said.extend(part);
            }
            prop_assert_eq!(&said, &notices);
            said.clear();
            for body in alive(&notices) {
                let Body::Alive(part) = read(&body) else { unreachable!() };
                said.extend(part);
            }
            prop_assert_eq!(&said, &notices);
            let sightings: Vec<_> = sightings.into_iter().map(|(address, epoch, mac)| {
                Sighting { address, epoch, mac }
            }).collect();
            let mut said = Vec::new();
            for body in wires(&sightings) {
                let Body::Wire(part) = read(&body) else { unreachable!() };
                said.extend(part);
            }
            prop_assert_eq!(&said, &sightings);
            let addresses: Vec<_> = sightings.iter().map(|sighting| sighting.address).collect();
            let mut said = Vec::new();
            for body in give_backs(&addresses) {
                let Body::GiveBack(part) = read(&body) else { unreachable!() };
                said.extend(part);
            }
            prop_assert_eq!(said, addresses);
        }

        #[test]
        fn a_digest_is_read_as_it_was_written(hashes in any::<[u64; 32]>()) {
            let mut buckets = [0; BUCKETS];
            buckets[..32].copy_from_slice(&hashes);
            buckets[32..].copy_from_slice(&hashes);
            prop_assert_eq!(read(&digest(&buckets)), Body::Digest(Box::new(buckets)));
        }

        #[test]
        fn noise_is_refused(octets in proptest::collection::vec(any::<u8>(), 0..1400)) {
            prop_assert!(decode(&octets).is_err());
        }

        #[test]
        fn a_damaged_datagram_is_read_or_refused(
            beat in any_beat(),
            rows in proptest::collection::vec(any_row(), 1..10),
            place in any::<prop::sample::Index>(),
            octet in any::<u8>(),
            kind in 0..12_u8,
        ) {
            for body in [beat.encode(), claims(pairs(&rows)).remove(0)] {
                let mut payload = HEADER_OF_TEST.seal(&body);
                let length = payload.len();
                payload[place.index(length)] = octet;
                let _ = decode(&payload);
                payload[HEADER] = kind;
                let _ = decode(&payload);
                payload.truncate(place.index(length));
                let _ = decode(&payload);
            }
        }

        #[test]
        fn what_can_be_read_can_be_written_again(beat in any_beat(), cut in 0..50_usize) {
            let body = beat.encode();
            let short = &body[..body.len().saturating_sub(cut + 1)];
            prop_assert!(decode(&HEADER_OF_TEST.seal(short)).is_err(), "its end is missing");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        let claim = Claim { epoch: 1, owner: "a".into(), incarnation: 1 };
        let good = claims([("192.0.2.1".parse().unwrap(), &claim)]).remove(0);
        assert!(decode(&HEADER_OF_TEST.seal(&good)).is_ok());
        let place_of = |octet: u8| good.iter().rposition(|known| *known == octet).unwrap();
        // The place in the dictionary, the family of the address, no epoch, no name, no kind.
        let ends = [(good.len() - 1, 1), (12, 5), (place_of(1), 0), (2, 0), (0, 99)];
        for (place, octet) in ends {
            let mut bad = good.clone();
            bad[place] = octet;
            assert!(decode(&HEADER_OF_TEST.seal(&bad)).is_err(), "{place}");
        }
        let unborn = Header { incarnation: 0, ..HEADER_OF_TEST };
        assert_eq!(decode(&unborn.seal(&good)), Err(Malformed::Value));
        assert_eq!(decode(b"BTH\x01"), Err(Malformed::Preamble));
        assert_eq!(decode(&[0; MAX_LENGTH + 1]), Err(Malformed::Length));
        let unknown_flag = [vec![1, 64], Beat::default().encode()[2..].to_vec()].concat();
        assert_eq!(decode(&HEADER_OF_TEST.seal(&unknown_flag)), Err(Malformed::Value));
    }
}
