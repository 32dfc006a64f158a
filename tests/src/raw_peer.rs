//! A BGP peer that is nothing but a socket: it says whatever a test wants said, octet by octet, and
//! hears what comes back. It shares no code with the speaker.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use netlab::{Namespace, wait_for};

use crate::lab::LIMIT;

const HEADER: usize = 19;
/// RFC 4271 section 4.1.
pub const OPEN: u8 = 1;
/// See [`OPEN`].
pub const UPDATE: u8 = 2;
/// See [`OPEN`].
pub const NOTIFICATION: u8 = 3;
/// See [`OPEN`].
pub const KEEPALIVE: u8 = 4;
/// RFC 2918.
pub const ROUTE_REFRESH: u8 = 5;

/// Waits for the speaker to call.
#[derive(Debug)]
pub struct RawPeer {
    listener: TcpListener,
}

/// A connection that the speaker opened.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// One message: its type and what follows the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Such as [`OPEN`].
    pub kind: u8,
    /// Without the 19 octets of the header.
    pub body: Vec<u8>,
}

/// The fields of an OPEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// 4, unless it is a lie.
    pub version: u8,
    /// The two-octet field.
    pub my_as: u16,
    /// Seconds.
    pub hold_time: u16,
    /// The BGP identifier.
    pub identifier: Ipv4Addr,
    /// All optional parameters, encoded.
    pub parameters: Vec<u8>,
}

impl RawPeer {
    /// Listens inside a namespace.
    ///
    /// # Errors
    /// When the address is taken or not its own.
    pub fn listen(host: &Namespace, address: SocketAddr) -> Result<Self> {
        let bind = || TcpListener::bind(address).with_context(|| format!("listening on {address}"));
        let listener = host.inside(bind)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// The next connection.
    ///
    /// # Errors
    /// When the speaker does not call for a long time.
    pub fn accept(&self) -> Result<Connection> {
        self.accept_within(LIMIT)
    }

    /// As [`accept`](Self::accept), with a time of the caller's.
    ///
    /// # Errors
    /// When the speaker does not call in it.
    pub fn accept_within(&self, limit: Duration) -> Result<Connection> {
        let (stream, _) = wait_for("the speaker calls", limit, || Ok(self.listener.accept()?))?;
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Connection { stream, unread: Vec::new() })
    }
}

impl Connection {
    /// The speaker's address.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn from(&self) -> Result<IpAddr> {
        Ok(self.stream.peer_addr()?.ip())
    }

    /// Says something. A speaker that has hung up hears it no more, which is no error here.
    ///
    /// # Errors
    /// When it cannot be written for another reason.
    pub fn send(&mut self, octets: &[u8]) -> Result<()> {
        match self.stream.write_all(octets) {
            Err(error)
                if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
            {
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// The next message; `None` when the speaker closed in order, with a FIN.
    ///
    /// # Errors
    /// When nothing comes for a long time, the connection is reset, or a message is none.
    pub fn hear(&mut self) -> Result<Option<Message>> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            let mut piece = [0; 65536];
            let length = self.stream.read(&mut piece).context("reading from the speaker")?;
            if length == 0 {
                ensure!(self.unread.is_empty(), "closed within a message: {:02x?}", self.unread);
                return Ok(None);
            }
            self.unread.extend_from_slice(&piece[..length]);
        }
    }

    /// The next message that is no KEEPALIVE.
    ///
    /// # Errors
    /// When the speaker closes before, and as [`hear`](Self::hear).
    pub fn next_but_keepalives(&mut self) -> Result<Message> {
        loop {
            let message = self.hear()?.context("the speaker has closed the connection")?;
            if message.kind != KEEPALIVE {
                return Ok(message);
            }
        }
    }

    /// The next message that is no KEEPALIVE, which must be of this type.
    ///
    /// # Errors
    /// When it is another.
    pub fn expect(&mut self, kind: u8) -> Result<Message> {
        let message = self.next_but_keepalives()?;
        ensure!(message.kind == kind, "wanted type {kind}, got {message:02x?}");
        Ok(message)
    }

    /// Is patient for longer than usual from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait_at_most(&self, limit: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(limit))?)
    }

    /// Everything until the speaker closes, without KEEPALIVEs.
    ///
    /// # Errors
    /// As [`hear`](Self::hear).
    pub fn until_closed(&mut self) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        while let Some(message) = self.hear()? {
            if message.kind != KEEPALIVE {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    /// Takes the speaker's OPEN, answers with this one, and confirms: the session is Established
    /// for both when this returns. The speaker's OPEN.
    ///
    /// # Errors
    /// When the speaker does something else.
    pub fn establish(&mut self, open: &Open) -> Result<Message> {
        let theirs = self.open(open)?;
        self.send(&keepalive())?;
        Ok(theirs)
    }

    /// As [`establish`](Self::establish), but does not confirm: the speaker is in OpenConfirm.
    ///
    /// # Errors
    /// When the speaker does something else.
    pub fn open(&mut self, open: &Open) -> Result<Message> {
        let theirs = self.expect(OPEN)?;
        self.send(&open.encode())?;
        let confirmation = self.hear()?.context("the speaker has closed the connection")?;
        ensure!(confirmation.kind == KEEPALIVE, "wanted a KEEPALIVE, got {confirmation:02x?}");
        Ok(theirs)
    }

    /// Asks for all IPv4 routes (RFC 2918) and waits until the speaker has begun to send them
    /// (RFC 7313): it is Established, and has taken in all that was said before.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_established(&mut self) -> Result<()> {
        self.send(&message(ROUTE_REFRESH, &[0, 1, 0, 1]))?;
        loop {
            let heard = self.next_but_keepalives()?;
            match heard.kind {
                ROUTE_REFRESH if heard.body == [0, 1, 2, 1] => return Ok(()),
                ROUTE_REFRESH | UPDATE => {}
                _ => bail!("wanted the end of a refresh, got {heard:02x?}"),
            }
        }
    }

    /// Closes with a RST instead of a FIN.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reset(self) -> Result<()> {
        Ok(socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?)
    }

    fn take_message(&mut self) -> Result<Option<Message>> {
        if self.unread.len() < HEADER {
            return Ok(None);
        }
        ensure!(self.unread.starts_with(&[0xff; 16]), "no marker: {:02x?}", self.unread);
        let length = usize::from(u16::from_be_bytes([self.unread[16], self.unread[17]]));
        ensure!((HEADER..=4096).contains(&length), "a message of {length} octets");
        if self.unread.len() < length {
            return Ok(None);
        }
        let message: Vec<_> = self.unread.drain(..length).collect();
        Ok(Some(Message { kind: message[18], body: message[HEADER..].to_vec() }))
    }
}

impl Open {
    /// An OPEN of a router of today, with multiprotocol IPv4 and IPv6, route refresh of both kinds
    /// and four-octet AS numbers.
    pub fn new(asn: u32) -> Self {
        let mut capabilities = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 70, 0, 65, 4];
        capabilities.extend(asn.to_be_bytes());
        Self {
            version: 4,
            my_as: u16::try_from(asn).unwrap_or(23456),
            hold_time: 9,
            identifier: Ipv4Addr::new(10, 0, 0, 1),
            parameters: capabilities_parameter(&capabilities),
        }
    }

    /// The whole message.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vec![self.version];
        body.extend(self.my_as.to_be_bytes());
        body.extend(self.hold_time.to_be_bytes());
        body.extend(self.identifier.octets());
        body.push(u8::try_from(self.parameters.len()).expect("RFC 9072 is not spoken here"));
        body.extend_from_slice(&self.parameters);
        message(OPEN, &body)
    }
}

impl Message {
    /// Of a NOTIFICATION: code, subcode, data.
    ///
    /// # Errors
    /// When it is none.
    pub fn notification(&self) -> Result<(u8, u8, Vec<u8>)> {
        ensure!(self.kind == NOTIFICATION, "no NOTIFICATION: {self:02x?}");
        let [code, subcode, data @ ..] = &self.body[..] else { bail!("too short: {self:02x?}") };
        Ok((*code, *subcode, data.to_vec()))
    }

    /// Of an OPEN: the values of its capabilities, by code.
    ///
    /// # Errors
    /// When it is none, or has other parameters.
    pub fn capabilities(&self) -> Result<BTreeMap<u8, Vec<Vec<u8>>>> {
        ensure!(self.kind == OPEN, "no OPEN: {self:02x?}");
        let mut found = BTreeMap::<u8, Vec<Vec<u8>>>::new();
        let mut parameters = self.body.get(10..).context("a short OPEN")?;
        while let [kind, length, rest @ ..] = parameters {
            ensure!(*kind == 2, "parameter {kind}");
            let (mut inside, rest) = rest.split_at(usize::from(*length));
            while let [code, length, values @ ..] = inside {
                let (value, others) = values.split_at(usize::from(*length));
                found.entry(*code).or_default().push(value.to_vec());
                inside = others;
            }
            parameters = rest;
        }
        Ok(found)
    }

    /// Of an UPDATE: the values of its path attributes, by type code.
    ///
    /// # Errors
    /// When it is none.
    pub fn attributes(&self) -> Result<BTreeMap<u8, Vec<u8>>> {
        ensure!(self.kind == UPDATE, "no UPDATE: {self:02x?}");
        let counted = |octets: &[u8]| -> Result<(Vec<u8>, Vec<u8>)> {
            let (length, rest) = octets.split_first_chunk::<2>().context("a short UPDATE")?;
            let (part, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
            Ok((part.to_vec(), rest.to_vec()))
        };
        let (_withdrawn, rest) = counted(&self.body)?;
        let (attributes, _announced) = counted(&rest)?;
        let mut found = BTreeMap::new();
        let mut left = &attributes[..];
        while let [flags, code, rest @ ..] = left {
            let (length, rest) = match (flags & 0x10 != 0, rest) {
                (true, [high, low, rest @ ..]) => (u16::from_be_bytes([*high, *low]), rest),
                (false, [length, rest @ ..]) => (u16::from(*length), rest),
                _ => bail!("a short attribute in {self:02x?}"),
            };
            let (value, rest) = rest.split_at(usize::from(length));
            found.insert(*code, value.to_vec());
            left = rest;
        }
        Ok(found)
    }
}

/// A message with a right header.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(HEADER + body.len()).expect("a message has 4096 octets at most");
    message_with([0xff; 16], length, kind, body)
}

/// A message whose header says anything.
pub fn message_with(marker: [u8; 16], length: u16, kind: u8, body: &[u8]) -> Vec<u8> {
    [&marker[..], &length.to_be_bytes(), &[kind], body].concat()
}

/// A KEEPALIVE.
pub fn keepalive() -> Vec<u8> {
    message(KEEPALIVE, &[])
}

/// An UPDATE of encoded parts.
pub fn update(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let length = |part: &[u8]| u16::try_from(part.len()).expect("it fits").to_be_bytes();
    let (withdrawn_length, attributes_length) = (length(withdrawn), length(attributes));
    message(
        UPDATE,
        &[&withdrawn_length, withdrawn, &attributes_length, attributes, announced].concat(),
    )
}

/// The optional parameter that holds capabilities (RFC 5492 section 4).
pub fn capabilities_parameter(capabilities: &[u8]) -> Vec<u8> {
    let length = u8::try_from(capabilities.len()).expect("RFC 9072 is not spoken here");
    [&[2, length], capabilities].concat()
}
