//! Rules broken on purpose, outside the core, to see that the checker sees it.
//!
//! What goes over the network is bent on its way; the places of its fields are those that the
//! core's `message.rs` states.

/// Which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// No answer of a cluster's node is heard by who asks.
    NoVeto,
    /// A restart does not make the incarnation higher.
    IncarnationReset,
    /// Announcements are not repeated when the core wants it.
    RepeatIgnored,
    /// Every view says that it is as new as any other.
    VersionsHidden,
    /// Every beat says that the sender's view is older than any other.
    VersionsForged,
    /// A process does not notice that it stood still: its clock did, too.
    PauseHidden,
    /// A recording is changed so that it names the life that it is played to.
    ReceiverForged,
    /// Datagrams of one kind never arrive.
    Without(Kind),
    /// Beats never say this of their sender.
    FlagHidden(Flag),
    /// Beats do not say when others were last heard.
    AgesHidden,
    /// Beats do not say which stations are their sender's.
    StationsHidden,
    /// Claims tell only of the sender's own.
    ThirdRowsHidden,
}

/// Kinds of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Beat = 1,
    Claims = 2,
    Digest = 3,
    Yield = 4,
    Handover = 5,
    Refusal = 6,
    Dead = 7,
    Alive = 8,
    Wire = 9,
    GiveBack = 10,
}

/// Flags of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Flag {
    Listening = 1,
    Resuming = 2,
    Draining = 4,
    Leaving = 8,
    Isolated = 16,
}

const RECEIVER: std::ops::Range<usize> = 12..20;
const KIND: usize = 28;
const FLAGS: usize = 29;
const VERSION: std::ops::Range<usize> = 34..42;
const STATIONS: usize = 51;
/// The length of a row; the addresses of a simulation are IPv4.
const ROW: usize = 1 + 4 + 8 + 1;

/// The kind of a datagram.
pub(super) fn kind(payload: &[u8]) -> u8 {
    payload.get(KIND).copied().unwrap_or_default()
}

/// The datagram as if it had been meant for a life of its receiver.
pub(super) fn readdress(payload: &mut [u8], life: u64) {
    if let Some(receiver) = payload.get_mut(RECEIVER) {
        receiver.copy_from_slice(&life.to_be_bytes());
    }
}

impl Broken {
    /// Whether a datagram arrives, perhaps changed.
    pub(super) fn lets_pass(self, payload: &mut Vec<u8>) -> bool {
        let kind = kind(payload);
        if let Self::Without(without) = self {
            return kind != without as u8;
        }
        if self == Self::ThirdRowsHidden && kind == Kind::Claims as u8 {
            return hide_third_rows(payload);
        }
        if kind != Kind::Beat as u8 {
            return true;
        }
        match self {
            Self::FlagHidden(flag) => payload[FLAGS] &= !(flag as u8),
            Self::VersionsForged => payload[VERSION].copy_from_slice(&1_u64.to_be_bytes()),
            Self::AgesHidden => hide_ages(payload),
            Self::StationsHidden => {
                let ages = payload.split_off(ages(payload));
                payload.truncate(STATIONS);
                payload.push(0);
                payload.extend(ages);
            }
            Self::NoVeto
            | Self::IncarnationReset
            | Self::RepeatIgnored
            | Self::VersionsHidden
            | Self::PauseHidden
            | Self::ReceiverForged
            | Self::ThirdRowsHidden
            | Self::Without(_) => {}
        }
        true
    }
}

/// Where the number of ages is: after the stations, each a name and a MAC address.
fn ages(beat: &[u8]) -> usize {
    (0..beat[STATIONS]).fold(STATIONS + 1, |at, _| at + 1 + usize::from(beat[at]) + 6)
}

/// Says of every node that it was last heard long ago.
fn hide_ages(beat: &mut [u8]) {
    let at = ages(beat);
    let end = at + 1 + 4 * usize::from(beat[at]);
    for age in beat[at + 1..end].chunks_exact_mut(4) {
        age[3] |= 0x0f;
    }
}

/// Leaves the rows of the sender's own life; false if there are none.
fn hide_third_rows(claims: &mut Vec<u8>) -> bool {
    let sender = claims[4..12].to_vec();
    let (mut at, mut own) = (KIND + 2, Vec::new());
    for _ in 0..claims[KIND + 1] {
        let incarnation = at + 1 + usize::from(claims[at]);
        at = incarnation + 8;
        own.push(claims[incarnation..at] == sender);
    }
    let rows = claims.split_off(at);
    for row in rows.chunks_exact(ROW).filter(|row| own[usize::from(row[ROW - 1])]) {
        claims.extend(row);
    }
    claims.len() > at
}
