//! The control packet: 24 octets, and what authenticates them. Read RFC 5880 sections 4.1 and 6.8.6.

use std::{fmt, num::NonZeroU8, num::NonZeroU32, time::Duration};

use crate::Discard;

/// The mandatory section of a control packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender's session went down the last time.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender asks for a packet with [`Self::is_final`].
    pub poll: bool,
    /// The sender answers a poll.
    pub is_final: bool,
    /// The sender's forwarding goes on without its control plane.
    pub control_plane_independent: bool,
    /// The sender wants no periodic packets.
    pub demand: bool,
    /// How many packets may be missed. 0 is discarded on receipt.
    pub detect_multiplier: NonZeroU8,
    /// The sender's name for the session.
    pub my_discriminator: NonZeroU32,
    /// The receiver's name for the session, as far as the sender knows it.
    pub your_discriminator: Option<NonZeroU32>,
    /// Microseconds on the wire, at most 4294 s.
    pub desired_min_tx: Duration,
    /// Likewise; zero: send none.
    pub required_min_rx: Duration,
    /// Likewise, for echo packets.
    pub required_min_echo_rx: Duration,
}

/// The state of a session (RFC 5880 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// 0: held down on purpose.
    AdminDown,
    /// 1: the peer was not heard lately.
    Down,
    /// 2: the peer is heard, and does not hear us yet as far as we know.
    Init,
    /// 3: both sides hear each other.
    Up,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdminDown => "AdminDown",
            Self::Down => "Down",
            Self::Init => "Init",
            Self::Up => "Up",
        })
    }
}

/// Why a session is not up (RFC 5880 section 4.1). We send 0, 1, 3 and 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Diagnostic {
    /// 0.
    None,
    /// 1.
    ControlDetectionTimeExpired,
    /// 2.
    EchoFunctionFailed,
    /// 3.
    NeighborSignaledSessionDown,
    /// 4.
    ForwardingPlaneReset,
    /// 5.
    PathDown,
    /// 6.
    ConcatenatedPathDown,
    /// 7.
    AdministrativelyDown,
    /// 8.
    ReverseConcatenatedPathDown,
    /// 9 to 31.
    Other(u8),
}

impl Diagnostic {
    fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::ControlDetectionTimeExpired => 1,
            Self::EchoFunctionFailed => 2,
            Self::NeighborSignaledSessionDown => 3,
            Self::ForwardingPlaneReset => 4,
            Self::PathDown => 5,
            Self::ConcatenatedPathDown => 6,
            Self::AdministrativelyDown => 7,
            Self::ReverseConcatenatedPathDown => 8,
            Self::Other(code) => code & DIAGNOSTIC_MASK,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::None,
            1 => Self::ControlDetectionTimeExpired,
            2 => Self::EchoFunctionFailed,
            3 => Self::NeighborSignaledSessionDown,
            4 => Self::ForwardingPlaneReset,
            5 => Self::PathDown,
            6 => Self::ConcatenatedPathDown,
            7 => Self::AdministrativelyDown,
            8 => Self::ReverseConcatenatedPathDown,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no diagnostic",
            Self::ControlDetectionTimeExpired => "control detection time expired",
            Self::EchoFunctionFailed => "echo function failed",
            Self::NeighborSignaledSessionDown => "neighbor signaled session down",
            Self::ForwardingPlaneReset => "forwarding plane reset",
            Self::PathDown => "path down",
            Self::ConcatenatedPathDown => "concatenated path down",
            Self::AdministrativelyDown => "administratively down",
            Self::ReverseConcatenatedPathDown => "reverse concatenated path down",
            Self::Other(code) => return write!(f, "diagnostic {code}"),
        })
    }
}

/// A packet as it came: well-formed, and believed by nobody yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    packet: Packet,
    /// All of the packet, as long as it says that it is.
    octets: &'a [u8],
    authenticated: bool,
}

pub(crate) const LENGTH: usize = 24;
const LENGTH_OCTET: u8 = 24;
const VERSION: u8 = 1;

const DIAGNOSTIC_MASK: u8 = 0x1f;
const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
pub(crate) const AUTHENTICATION_PRESENT: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

impl Packet {
    /// The payload of a datagram without authentication.
    pub fn encode(&self) -> [u8; LENGTH] {
        let state = match self.state {
            State::AdminDown => 0,
            State::Down => 1,
            State::Init => 2,
            State::Up => 3,
        };
        let flags = [
            (self.poll, POLL),
            (self.is_final, FINAL),
            (self.control_plane_independent, CONTROL_PLANE_INDEPENDENT),
            (self.demand, DEMAND),
        ];
        let flags: u8 = flags.into_iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
        let words = [
            self.my_discriminator.get(),
            self.your_discriminator.map_or(0, NonZeroU32::get),
            microseconds(self.desired_min_tx),
            microseconds(self.required_min_rx),
            microseconds(self.required_min_echo_rx),
        ];
        let mut out = [0; LENGTH];
        out[0] = VERSION << 5 | self.diagnostic.code();
        out[1] = state << 6 | flags;
        out[2] = self.detect_multiplier.get();
        out[3] = LENGTH_OCTET;
        for (octets, word) in out[4..].chunks_exact_mut(4).zip(words) {
            octets.copy_from_slice(&word.to_be_bytes());
        }
        out
    }
}

impl<'a> Received<'a> {
    /// Reads the payload of a datagram.
    ///
    /// Octets beyond the length that the packet declares are ignored.
    ///
    /// # Errors
    /// One of the first six of [`Discard`], checked in the order of RFC 5880 section 6.8.6.
    pub fn read(payload: &'a [u8]) -> Result<Self, Discard> {
        let packet: &[u8; LENGTH] = payload.first_chunk().ok_or(Discard::Length)?;
        if packet[0] >> 5 != VERSION {
            return Err(Discard::Version);
        }
        let authenticated = packet[1] & AUTHENTICATION_PRESENT != 0;
        let shortest = if authenticated { LENGTH + 2 } else { LENGTH };
        let octets = payload.get(..usize::from(packet[3])).ok_or(Discard::Length)?;
        if octets.len() < shortest {
            return Err(Discard::Length);
        }
        let detect_multiplier = NonZeroU8::new(packet[2]).ok_or(Discard::ZeroDetectMultiplier)?;
        if packet[1] & MULTIPOINT != 0 {
            return Err(Discard::Multipoint);
        }
        let word = |at: usize| {
            u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
        };
        let my_discriminator = NonZeroU32::new(word(4)).ok_or(Discard::ZeroMyDiscriminator)?;
        let your_discriminator = NonZeroU32::new(word(8));
        let state = match packet[1] >> 6 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        };
        if your_discriminator.is_none() && matches!(state, State::Init | State::Up) {
            return Err(Discard::ZeroYourDiscriminator);
        }
        let packet = Packet {
            diagnostic: Diagnostic::from_code(packet[0] & DIAGNOSTIC_MASK),
            state,
            poll: packet[1] & POLL != 0,
            is_final: packet[1] & FINAL != 0,
            control_plane_independent: packet[1] & CONTROL_PLANE_INDEPENDENT != 0,
            demand: packet[1] & DEMAND != 0,
            detect_multiplier,
            my_discriminator,
            your_discriminator,
            desired_min_tx: Duration::from_micros(word(12).into()),
            required_min_rx: Duration::from_micros(word(16).into()),
            required_min_echo_rx: Duration::from_micros(word(20).into()),
        };
        Ok(Self { packet, octets, authenticated })
    }

    /// What it says.
    pub fn packet(&self) -> &Packet {
        &self.packet
    }

    /// All of it, if it says that it is authenticated; then it has 26 octets at least.
    pub(crate) fn signed(&self) -> Option<&'a [u8]> {
        self.authenticated.then_some(self.octets)
    }
}

fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Up, polling, as FRR sends it for 300 ms x 3.
    const UP: [u8; 24] = [
        0x20, 0xe0, 3, 24, 0, 0, 0, 7, 0, 0, 0, 9, 0, 4, 0x93, 0xe0, 0, 4, 0x93, 0xe0, 0, 0, 0xc3,
        0x50,
    ];

    fn decode(payload: &[u8]) -> Result<Packet, Discard> {
        Received::read(payload).map(|received| *received.packet())
    }

    #[test]
    fn reads_and_writes_the_octets_of_the_rfc() {
        let packet = Packet {
            diagnostic: Diagnostic::None,
            state: State::Up,
            poll: true,
            is_final: false,
            control_plane_independent: false,
            demand: false,
            detect_multiplier: NonZeroU8::new(3).unwrap(),
            my_discriminator: NonZeroU32::new(7).unwrap(),
            your_discriminator: NonZeroU32::new(9),
            desired_min_tx: Duration::from_millis(300),
            required_min_rx: Duration::from_millis(300),
            required_min_echo_rx: Duration::from_millis(50),
        };
        assert_eq!(packet.encode(), UP);
        assert_eq!(decode(&UP), Ok(packet));
        let padded = [&UP[..], &[0; 8]].concat();
        assert_eq!(decode(&padded), Ok(packet));
    }

    #[test]
    fn every_diagnostic_is_read_and_written() {
        for code in 0..32 {
            let mut bytes = UP;
            bytes[0] |= code;
            let packet = decode(&bytes).unwrap();
            assert_eq!(packet.encode(), bytes);
            assert_eq!(matches!(packet.diagnostic, Diagnostic::Other(_)), code > 8);
        }
    }

    #[test]
    fn discards_what_the_rfc_discards() {
        let changed = |changes: &[(usize, u8)]| {
            let mut bytes = UP.to_vec();
            for &(at, octet) in changes {
                bytes[at] = octet;
            }
            bytes
        };
        let cases = [
            ("empty", vec![], Discard::Length),
            ("23 octets", UP[..23].to_vec(), Discard::Length),
            ("says 23", changed(&[(3, 23)]), Discard::Length),
            ("says 25 and has 24", changed(&[(3, 25)]), Discard::Length),
            ("authenticated in 24", changed(&[(1, 0xc4)]), Discard::Length),
            (
                "authenticated in 25",
                [&changed(&[(1, 0xc4), (3, 25)])[..], &[5]].concat(),
                Discard::Length,
            ),
            ("version 0", changed(&[(0, 0)]), Discard::Version),
            ("version 2", changed(&[(0, 0x40)]), Discard::Version),
            ("multiplier 0", changed(&[(2, 0)]), Discard::ZeroDetectMultiplier),
            ("multipoint", changed(&[(1, 0xc1)]), Discard::Multipoint),
            ("no sender", changed(&[(7, 0)]), Discard::ZeroMyDiscriminator),
            ("Up to nobody", changed(&[(11, 0)]), Discard::ZeroYourDiscriminator),
            ("Init to nobody", changed(&[(11, 0), (1, 0x80)]), Discard::ZeroYourDiscriminator),
        ];
        for (name, bytes, error) in cases {
            assert_eq!(decode(&bytes), Err(error), "{name}");
        }
        for state in [0x00, 0x40] {
            let bytes = changed(&[(11, 0), (1, state)]);
            assert_eq!(decode(&bytes).unwrap().your_discriminator, None);
        }
    }

    #[test]
    fn long_intervals_saturate() {
        let packet = decode(&UP).unwrap();
        let slow = Packet { required_min_rx: Duration::from_secs(5000), ..packet };
        assert_eq!(slow.encode()[16..20], [0xff; 4]);
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..64),
                (prop::collection::vec(any::<u8>(), 24), 0..4u8).prop_map(|(mut bytes, state)| {
                    bytes[0] = 0x20 | bytes[0] & DIAGNOSTIC_MASK;
                    bytes[1] = state << 6 | bytes[1] & (POLL | FINAL | DEMAND);
                    bytes[3] = LENGTH_OCTET;
                    bytes
                }),
            ],
        ) {
            if let Ok(packet) = decode(&bytes) {
                // What is sent says exactly how long it is, and is not authenticated by itself.
                let mut expected = bytes[..LENGTH].to_vec();
                expected[1] &= !AUTHENTICATION_PRESENT;
                expected[3] = LENGTH_OCTET;
                prop_assert_eq!(&packet.encode()[..], &expected[..]);
            }
        }
    }
}
