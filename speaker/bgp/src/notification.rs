//! NOTIFICATION messages: what they say, in words, and those that end a session on purpose.
//!
//! Read RFC 4271 section 4.5, RFC 4486, RFC 8538 section 3.1, RFC 9003 and RFC 9384.

use std::fmt;

use crate::StopReason;

/// Why one side ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// Details; their form depends on the code.
    pub data: Vec<u8>,
}

pub(crate) const MESSAGE_HEADER: u8 = 1;
pub(crate) const OPEN: u8 = 2;
pub(crate) const UPDATE: u8 = 3;
pub(crate) const HOLD_TIMER_EXPIRED: u8 = 4;
pub(crate) const FINITE_STATE_MACHINE: u8 = 5;
pub(crate) const CEASE: u8 = 6;
pub(crate) const ROUTE_REFRESH: u8 = 7;
pub(crate) const SEND_HOLD_TIMER_EXPIRED: u8 = 8;

const ADMINISTRATIVE_SHUTDOWN: u8 = 2;
const PEER_DECONFIGURED: u8 = 3;
const ADMINISTRATIVE_RESET: u8 = 4;
const CONNECTION_REJECTED: u8 = 5;
const OTHER_CONFIGURATION_CHANGE: u8 = 6;
const CONNECTION_COLLISION: u8 = 7;
const HARD_RESET: u8 = 9;
const BFD_DOWN: u8 = 10;

/// One length octet bounds the text (RFC 9003 section 2).
const MAX_TEXT: usize = 255;

impl Notification {
    pub(crate) fn new(code: u8, subcode: u8, data: Vec<u8>) -> Self {
        Self { code, subcode, data }
    }

    /// Cease/5: we are not ready for the connection, or take none.
    pub(crate) fn connection_rejected() -> Self {
        Self::new(CEASE, CONNECTION_REJECTED, Vec::new())
    }

    /// Cease/7: there is another connection.
    pub(crate) fn connection_collision() -> Self {
        Self::new(CEASE, CONNECTION_COLLISION, Vec::new())
    }

    /// Cease/10.
    pub(crate) fn bfd_down() -> Self {
        Self::new(CEASE, BFD_DOWN, Vec::new())
    }

    /// The same inside a Hard Reset, which ends a session for good although both sides have the N
    /// bit.
    pub(crate) fn into_hard_reset(self) -> Self {
        Self::new(CEASE, HARD_RESET, [&[self.code, self.subcode], &self.data[..]].concat())
    }

    /// What a Hard Reset wraps; a bare one is legal too.
    pub fn hard_reset(&self) -> Option<Self> {
        let (&[code, subcode], data) = self.data.split_first_chunk()?;
        let wraps = self.code == CEASE && self.subcode == HARD_RESET;
        wraps.then(|| Self::new(code, subcode, data.to_vec()))
    }

    /// The shutdown communication, made safe to log: whatever could steer a terminal or hide text
    /// is replaced. `None` where the NOTIFICATION carries none, or one that is longer than itself.
    pub fn text(&self) -> Option<String> {
        if self.code != CEASE
            || !matches!(self.subcode, ADMINISTRATIVE_SHUTDOWN | ADMINISTRATIVE_RESET)
        {
            return None;
        }
        let (&length, rest) = self.data.split_first()?;
        let text = rest.get(..usize::from(length)).filter(|text| !text.is_empty())?;
        Some(String::from_utf8_lossy(text).chars().map(printable).collect())
    }

    /// 2/4: the peer does not know an optional parameter, as capabilities are one.
    pub(crate) fn declines_parameters(&self) -> bool {
        self.code == OPEN && self.subcode == 4
    }

    /// 2/7: the peer asks for other capabilities.
    pub(crate) fn declines_capabilities(&self) -> bool {
        self.code == OPEN && self.subcode == 7
    }

    /// A Cease that asks for no patience: not "maximum number of prefixes", not "out of resources".
    pub(crate) fn is_clean_close(&self) -> bool {
        let inner = self.hard_reset();
        let Self { code, subcode, .. } = inner.as_ref().unwrap_or(self);
        *code == CEASE && !matches!(subcode, 1 | 8)
    }
}

fn printable(c: char) -> char {
    // Line and paragraph separators and the bidirectional controls reorder or break a log line.
    let steers =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || steers { char::REPLACEMENT_CHARACTER } else { c }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match names(self.code, self.subcode) {
            (code, Some(subcode)) => write!(f, "{code}: {subcode}")?,
            (code, None) => f.write_str(code)?,
        }
        write!(f, " ({}/{})", self.code, self.subcode)?;
        if let Some(text) = self.text() {
            write!(f, ", saying \"{text}\"")?;
        }
        // One level: whoever nests them has nothing more to say.
        match self.hard_reset() {
            Some(inner) if inner.subcode != HARD_RESET => write!(f, " because of {inner}"),
            Some(_) | None => Ok(()),
        }
    }
}

/// The registered names of code and subcode.
fn names(code: u8, subcode: u8) -> (&'static str, Option<&'static str>) {
    let (name, subcodes): (_, &[&str]) = match code {
        MESSAGE_HEADER => (
            "Message Header Error",
            &["Connection Not Synchronized", "Bad Message Length", "Bad Message Type"],
        ),
        OPEN => (
            "OPEN Message Error",
            &[
                "Unsupported Version Number",
                "Bad Peer AS",
                "Bad BGP Identifier",
                "Unsupported Optional Parameter",
                "Authentication Failure",
                "Unacceptable Hold Time",
                "Unsupported Capability",
                "",
                "",
                "",
                "Role Mismatch",
            ],
        ),
        UPDATE => (
            "UPDATE Message Error",
            &[
                "Malformed Attribute List",
                "Unrecognized Well-known Attribute",
                "Missing Well-known Attribute",
                "Attribute Flags Error",
                "Attribute Length Error",
                "Invalid ORIGIN Attribute",
                "AS Routing Loop",
                "Invalid NEXT_HOP Attribute",
                "Optional Attribute Error",
                "Invalid Network Field",
                "Malformed AS_PATH",
            ],
        ),
        HOLD_TIMER_EXPIRED => ("Hold Timer Expired", &[]),
        FINITE_STATE_MACHINE => (
            "Finite State Machine Error",
            &[
                "Unexpected Message in OpenSent State",
                "Unexpected Message in OpenConfirm State",
                "Unexpected Message in Established State",
            ],
        ),
        CEASE => (
            "Cease",
            &[
                "Maximum Number of Prefixes Reached",
                "Administrative Shutdown",
                "Peer De-configured",
                "Administrative Reset",
                "Connection Rejected",
                "Other Configuration Change",
                "Connection Collision Resolution",
                "Out of Resources",
                "Hard Reset",
                "BFD Down",
            ],
        ),
        ROUTE_REFRESH => ("ROUTE-REFRESH Message Error", &["Invalid Message Length"]),
        SEND_HOLD_TIMER_EXPIRED => ("Send Hold Timer Expired", &[]),
        _ => ("Unknown Error", &[]),
    };
    let index = usize::from(subcode).checked_sub(1);
    (name, index.and_then(|index| subcodes.get(index)).copied().filter(|name| !name.is_empty()))
}

impl From<&StopReason> for Notification {
    fn from(reason: &StopReason) -> Self {
        match reason {
            StopReason::AdministrativeShutdown { text } => Self::new(
                CEASE,
                ADMINISTRATIVE_SHUTDOWN,
                text.as_deref().map(communication).unwrap_or_default(),
            ),
            StopReason::Restart => Self::new(CEASE, ADMINISTRATIVE_SHUTDOWN, Vec::new()),
            StopReason::PeerDeconfigured => Self::new(CEASE, PEER_DECONFIGURED, Vec::new()),
            StopReason::ConfigurationChange => {
                Self::new(CEASE, OTHER_CONFIGURATION_CHANGE, Vec::new())
            }
        }
    }
}

/// The length octet and as many whole characters as fit.
fn communication(text: &str) -> Vec<u8> {
    let end = (0..=text.len().min(MAX_TEXT)).rfind(|&end| text.is_char_boundary(end)).unwrap_or(0);
    let length = u8::try_from(end).expect("the text was cut to 255 octets");
    let mut data = vec![length];
    data.extend_from_slice(&text.as_bytes()[..end]);
    data
}
