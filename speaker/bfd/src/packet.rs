//! The control packet: 24 octets. Read RFC 5880 sections 4.1 and 6.8.6.

use std::{fmt, num::NonZeroU8, num::NonZeroU32, time::Duration};

use thiserror::Error;

/// A control packet without authentication.
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

/// Why a session is not up (RFC 5880 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Diagnostic {
    /// 0.
    None,
    /// 1.
    ControlDetectionTimeExpired,
    /// 3.
    NeighborSignaledSessionDown,
    /// 7.
    AdministrativelyDown,
    /// All others, up to 31: never sent, only read.
    Other(u8),
}

impl Diagnostic {
    fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::ControlDetectionTimeExpired => 1,
            Self::NeighborSignaledSessionDown => 3,
            Self::AdministrativelyDown => 7,
            Self::Other(code) => code & DIAGNOSTIC_MASK,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::None,
            1 => Self::ControlDetectionTimeExpired,
            3 => Self::NeighborSignaledSessionDown,
            7 => Self::AdministrativelyDown,
            other => Self::Other(other),
        }
    }
}

/// Why a packet is discarded, in the order of RFC 5880 section 6.8.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PacketError {
    /// Fewer than 24 octets, or fewer than it says.
    #[error("the packet has {received} octets and says {declared}")]
    BadLength {
        /// Octets of the payload.
        received: usize,
        /// The Length field; 0 where the payload ends before it.
        declared: u8,
    },
    /// Not version 1.
    #[error("version {0}, not 1")]
    BadVersion(u8),
    /// Detect Mult is 0.
    #[error("a detect multiplier of 0")]
    ZeroDetectMultiplier,
    /// The Multipoint bit is set.
    #[error("the multipoint bit is set")]
    Multipoint,
    /// My Discriminator is 0.
    #[error("the sender has no discriminator")]
    ZeroMyDiscriminator,
    /// Your Discriminator is 0, and the state is neither Down nor AdminDown.
    #[error("no discriminator of ours in state {0}")]
    ZeroYourDiscriminator(State),
    /// The packet is authenticated; no session here is.
    #[error("the packet is authenticated and the session is not")]
    Authenticated,
}

const LENGTH: usize = 24;
const LENGTH_OCTET: u8 = 24;
const VERSION: u8 = 1;

const DIAGNOSTIC_MASK: u8 = 0x1f;
const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION_PRESENT: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

impl Packet {
    /// The payload of the datagram.
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

    /// Reads the payload of a datagram, or says why it must be discarded. Octets beyond the length
    /// that the packet declares are ignored.
    pub fn decode(payload: &[u8]) -> Result<Self, PacketError> {
        let declared = payload.get(3).copied().unwrap_or(0);
        let bad_length = PacketError::BadLength { received: payload.len(), declared };
        let packet: &[u8; LENGTH] = payload.first_chunk().ok_or(bad_length)?;
        let version = packet[0] >> 5;
        if version != VERSION {
            return Err(PacketError::BadVersion(version));
        }
        let authenticated = packet[1] & AUTHENTICATION_PRESENT != 0;
        let shortest = if authenticated { LENGTH + 2 } else { LENGTH };
        if usize::from(declared) < shortest || usize::from(declared) > payload.len() {
            return Err(bad_length);
        }
        let detect_multiplier =
            NonZeroU8::new(packet[2]).ok_or(PacketError::ZeroDetectMultiplier)?;
        if packet[1] & MULTIPOINT != 0 {
            return Err(PacketError::Multipoint);
        }
        let word = |at: usize| {
            u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
        };
        let my_discriminator = NonZeroU32::new(word(4)).ok_or(PacketError::ZeroMyDiscriminator)?;
        let your_discriminator = NonZeroU32::new(word(8));
        let state = match packet[1] >> 6 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        };
        if your_discriminator.is_none() && matches!(state, State::Init | State::Up) {
            return Err(PacketError::ZeroYourDiscriminator(state));
        }
        if authenticated {
            return Err(PacketError::Authenticated);
        }
        Ok(Self {
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
        })
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
        assert_eq!(Packet::decode(&UP), Ok(packet));
        let padded = [&UP[..], &[0; 8]].concat();
        assert_eq!(Packet::decode(&padded), Ok(packet));
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
        let length = |received, declared| PacketError::BadLength { received, declared };
        let cases = [
            ("empty", vec![], length(0, 0)),
            ("23 octets", UP[..23].to_vec(), length(23, 24)),
            ("says 23", changed(&[(3, 23)]), length(24, 23)),
            ("says 25 and has 24", changed(&[(3, 25)]), length(24, 25)),
            ("authenticated in 24", changed(&[(1, 0xc4)]), length(24, 24)),
            ("version 0", changed(&[(0, 0)]), PacketError::BadVersion(0)),
            ("version 2", changed(&[(0, 0x40)]), PacketError::BadVersion(2)),
            ("multiplier 0", changed(&[(2, 0)]), PacketError::ZeroDetectMultiplier),
            ("multipoint", changed(&[(1, 0xc1)]), PacketError::Multipoint),
            ("no sender", changed(&[(7, 0)]), PacketError::ZeroMyDiscriminator),
            ("Up to nobody", changed(&[(11, 0)]), PacketError::ZeroYourDiscriminator(State::Up)),
            (
                "Init to nobody",
                changed(&[(11, 0), (1, 0x80)]),
                PacketError::ZeroYourDiscriminator(State::Init),
            ),
            (
                "authenticated",
                [&changed(&[(1, 0xc4), (3, 28)])[..], &[1, 4, 1, 0]].concat(),
                PacketError::Authenticated,
            ),
        ];
        for (name, bytes, error) in cases {
            assert_eq!(Packet::decode(&bytes), Err(error), "{name}");
        }
        for state in [0x00, 0x40] {
            let bytes = changed(&[(11, 0), (1, state)]);
            assert_eq!(Packet::decode(&bytes).unwrap().your_discriminator, None);
        }
    }

    #[test]
    fn long_intervals_saturate() {
        let packet = Packet::decode(&UP).unwrap();
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
            if let Ok(packet) = Packet::decode(&bytes) {
                // The length may say more than what is read; what is sent says exactly that.
                let mut expected = bytes[..LENGTH].to_vec();
                expected[3] = LENGTH_OCTET;
                prop_assert_eq!(&packet.encode()[..], &expected[..]);
            }
        }
    }
}
