//! Messages: framing, OPEN, KEEPALIVE, NOTIFICATION and ROUTE-REFRESH; UPDATEs that we receive are
//! read in `received`.
//!
//! Read RFC 4271 sections 4 and 6, RFC 9072 and RFC 7313 section 3.2.

use std::{fmt, net::Ipv4Addr};

use crate::{
    Family, HeaderError, Notification, OpenError, ProtocolError, RouteRefreshError,
    capability::{Capabilities, SAFI_UNICAST},
    received::{ReceivedUpdate, Sender},
};

/// RFC 4271 section 4.1. Extended messages (RFC 8654) are not offered.
pub(crate) const MAX_MESSAGE: usize = 4096;
const HEADER: usize = 19;
const MARKER: usize = 16;
/// UPDATE without its header: the two lengths.
pub(crate) const UPDATE_OVERHEAD: usize = HEADER + 4;

const VERSION: u8 = 4;
/// RFC 6793 section 2: stands for an AS number that does not fit into two octets.
pub(crate) const AS_TRANS: u16 = 23456;
const CAPABILITIES_PARAMETER: u8 = 2;
/// RFC 9072 section 2: as the type of the first parameter it announces two-octet lengths.
const EXTENDED_LENGTH: u8 = 255;

/// The types of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    /// 1.
    Open,
    /// 2.
    Update,
    /// 3.
    Notification,
    /// 4.
    Keepalive,
    /// 5, RFC 2918.
    RouteRefresh,
}

impl MessageType {
    const ALL: [Self; 5] =
        [Self::Open, Self::Update, Self::Notification, Self::Keepalive, Self::RouteRefresh];

    /// As on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Update => 2,
            Self::Notification => 3,
            Self::Keepalive => 4,
            Self::RouteRefresh => 5,
        }
    }

    /// Whether a message of this type can be this long. ROUTE-REFRESH is judged by its subtype.
    fn allows(self, length: usize) -> bool {
        match self {
            Self::Open => length >= 29,
            Self::Update => length >= UPDATE_OVERHEAD,
            Self::Notification => length >= 21,
            Self::Keepalive => length == HEADER,
            Self::RouteRefresh => true,
        }
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "OPEN",
            Self::Update => "UPDATE",
            Self::Notification => "NOTIFICATION",
            Self::Keepalive => "KEEPALIVE",
            Self::RouteRefresh => "ROUTE-REFRESH",
        })
    }
}

/// A message from the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Open(Open),
    Update(ReceivedUpdate),
    Notification(Notification),
    Keepalive,
    /// `None`: of a family or a subtype that we do not know.
    RouteRefresh(Option<RouteRefresh>),
}

impl Message {
    pub(crate) fn kind(&self) -> MessageType {
        match self {
            Self::Open(_) => MessageType::Open,
            Self::Update(_) => MessageType::Update,
            Self::Notification(_) => MessageType::Notification,
            Self::Keepalive => MessageType::Keepalive,
            Self::RouteRefresh(_) => MessageType::RouteRefresh,
        }
    }

    /// Reads a whole message; the header was checked.
    fn parse(kind: MessageType, message: &[u8], sender: Sender) -> Result<Self, ProtocolError> {
        let body = &message[HEADER..];
        Ok(match kind {
            MessageType::Open => Self::Open(Open::parse(body)?),
            MessageType::Update => Self::Update(ReceivedUpdate::parse(body, sender)?),
            MessageType::Notification => Self::Notification(Notification {
                code: body[0],
                subcode: body[1],
                data: body[2..].to_vec(),
            }),
            MessageType::Keepalive => Self::Keepalive,
            MessageType::RouteRefresh => Self::RouteRefresh(RouteRefresh::parse(message)?),
        })
    }
}

/// Cuts a byte stream into messages. Holds less than one message between two calls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
    /// Where the next message starts in `buffer`.
    start: usize,
    /// What the OPENs told of who writes.
    sender: Sender,
}

impl Reader {
    pub(crate) fn set_sender(&mut self, sender: Sender) {
        self.sender = sender;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message. After an error the stream has no boundaries any more.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, ProtocolError> {
        let bytes = &self.buffer[self.start..];
        // Judged from the first octet on: whatever else speaks on this port may never send 16.
        if bytes.iter().take(MARKER).any(|&octet| octet != 0xff) {
            return Err(HeaderError::NotSynchronized.into());
        }
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let declared = u16::from_be_bytes([header[MARKER], header[MARKER + 1]]);
        let length = usize::from(declared);
        if !(HEADER..=MAX_MESSAGE).contains(&length) {
            return Err(HeaderError::BadLength(declared).into());
        }
        let code = header[HEADER - 1];
        let kind = MessageType::ALL
            .into_iter()
            .find(|kind| kind.code() == code)
            .ok_or(HeaderError::BadType(code))?;
        if !kind.allows(length) {
            return Err(HeaderError::BadLength(declared).into());
        }
        let Some(message) = bytes.get(..length) else { return Ok(None) };
        let message = Message::parse(kind, message, self.sender)?;
        self.start += length;
        Ok(Some(message))
    }
}

fn frame(kind: MessageType, body: &[&[u8]]) -> Vec<u8> {
    let length = HEADER + body.iter().map(|part| part.len()).sum::<usize>();
    let mut out = Vec::with_capacity(length);
    out.extend([0xff; MARKER]);
    out.extend(length_octets(length));
    out.push(kind.code());
    for part in body {
        out.extend_from_slice(part);
    }
    out
}

fn length_octets(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("nothing that we send exceeds 4096 octets").to_be_bytes()
}

/// A KEEPALIVE.
pub(crate) fn keepalive() -> Vec<u8> {
    frame(MessageType::Keepalive, &[])
}

/// A NOTIFICATION; data that does not fit is cut off.
pub(crate) fn notification(notification: &Notification) -> Vec<u8> {
    let fits = notification.data.len().min(MAX_MESSAGE - HEADER - 2);
    let head = [notification.code, notification.subcode];
    frame(MessageType::Notification, &[&head, &notification.data[..fits]])
}

/// An UPDATE of encoded parts that fit together.
pub(crate) fn update(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let withdrawn_length = length_octets(withdrawn.len());
    let attributes_length = length_octets(attributes.len());
    let parts = [&withdrawn_length, withdrawn, &attributes_length, attributes, nlri];
    frame(MessageType::Update, &parts)
}

/// An OPEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Open {
    /// The two-octet field; the number itself may be in the capabilities.
    pub(crate) my_as: u16,
    /// Seconds.
    pub(crate) hold_time: u16,
    pub(crate) identifier: Ipv4Addr,
    pub(crate) capabilities: Capabilities,
}

impl Open {
    pub(crate) fn asn(&self) -> u32 {
        self.capabilities.four_octet_as.unwrap_or_else(|| self.my_as.into())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let capabilities = self.capabilities.encode();
        let mut parameters = Vec::new();
        if !capabilities.is_empty() {
            let length = u8::try_from(capabilities.len()).expect("we offer 42 octets at most");
            parameters.extend([CAPABILITIES_PARAMETER, length]);
            parameters.extend(capabilities);
        }
        let length = u8::try_from(parameters.len()).expect("we offer 44 octets at most");
        frame(
            MessageType::Open,
            &[
                &[VERSION],
                &self.my_as.to_be_bytes(),
                &self.hold_time.to_be_bytes(),
                &self.identifier.octets(),
                &[length],
                &parameters,
            ],
        )
    }

    fn parse(body: &[u8]) -> Result<Self, OpenError> {
        let (fixed, parameters) =
            body.split_first_chunk::<10>().ok_or(OpenError::MalformedParameters)?;
        let &[version, as_high, as_low, hold_high, hold_low, a, b, c, d, length] = fixed;
        if version != VERSION {
            return Err(OpenError::UnsupportedVersion(version));
        }
        Ok(Self {
            my_as: u16::from_be_bytes([as_high, as_low]),
            hold_time: u16::from_be_bytes([hold_high, hold_low]),
            identifier: Ipv4Addr::new(a, b, c, d),
            capabilities: parse_parameters(length, parameters)?,
        })
    }
}

/// The optional parameters, in the form of RFC 4271 or in the extended one of RFC 9072.
fn parse_parameters(length: u8, bytes: &[u8]) -> Result<Capabilities, OpenError> {
    let (extended, mut bytes) = match bytes {
        [EXTENDED_LENGTH, high, low, rest @ ..] if length != 0 => {
            if rest.len() != usize::from(u16::from_be_bytes([*high, *low])) {
                return Err(OpenError::MalformedParameters);
            }
            (true, rest)
        }
        _ if bytes.len() == usize::from(length) => (false, bytes),
        _ => return Err(OpenError::MalformedParameters),
    };
    let mut capabilities = Capabilities::default();
    while let Some((&kind, rest)) = bytes.split_first() {
        let (length, rest) = match rest {
            [high, low, rest @ ..] if extended => (u16::from_be_bytes([*high, *low]), rest),
            [length, rest @ ..] if !extended => (u16::from(*length), rest),
            _ => return Err(OpenError::MalformedParameters),
        };
        let (value, rest) =
            rest.split_at_checked(length.into()).ok_or(OpenError::MalformedParameters)?;
        if kind != CAPABILITIES_PARAMETER {
            return Err(OpenError::UnsupportedParameter(kind));
        }
        capabilities.read(value)?;
        bytes = rest;
    }
    Ok(capabilities)
}

/// A ROUTE-REFRESH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RouteRefresh {
    pub(crate) family: Family,
    pub(crate) subtype: RefreshSubtype,
}

/// RFC 7313 section 3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefreshSubtype {
    /// 0: send this family again.
    Request,
    /// 1, BoRR: the whole family follows.
    Begin,
    /// 2, EoRR: what was not sent again is gone.
    End,
}

impl RefreshSubtype {
    const ALL: [Self; 3] = [Self::Request, Self::Begin, Self::End];

    fn code(self) -> u8 {
        match self {
            Self::Request => 0,
            Self::Begin => 1,
            Self::End => 2,
        }
    }
}

impl RouteRefresh {
    pub(crate) fn encode(self) -> Vec<u8> {
        let rest = [self.subtype.code(), SAFI_UNICAST];
        frame(MessageType::RouteRefresh, &[&self.family.afi().to_be_bytes(), &rest])
    }

    /// `None` for a family or a subtype that we do not know: to be ignored.
    fn parse(message: &[u8]) -> Result<Option<Self>, ProtocolError> {
        match &message[HEADER..] {
            &[afi_high, afi_low, code, safi] => {
                let family = Family::from_codes(u16::from_be_bytes([afi_high, afi_low]), safi);
                let subtype = RefreshSubtype::ALL.into_iter().find(|known| known.code() == code);
                Ok(family.zip(subtype).map(|(family, subtype)| Self { family, subtype }))
            }
            [_, _, 1 | 2, ..] => {
                Err(RouteRefreshError::InvalidLength { message: message.to_vec() }.into())
            }
            _ => {
                let length = u16::from_be_bytes(length_octets(message.len()));
                Err(HeaderError::BadLength(length).into())
            }
        }
    }
}
