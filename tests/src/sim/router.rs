//! The far end of the BGP sessions: accepts whoever dials and believes what it is told.
//!
//! Messages are read byte by byte on purpose, so that a mistake in the product's own codec is not
//! shared by its judge.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// One router; a session is known by the number of its node.
#[derive(Debug)]
pub struct Router {
    pub asn: u16,
    sessions: BTreeMap<usize, Session>,
}

#[derive(Debug, Default)]
struct Session {
    buffer: Vec<u8>,
    routes: BTreeSet<IpNet>,
}

impl Router {
    pub fn new(asn: u16) -> Self {
        Self { asn, sessions: BTreeMap::new() }
    }

    /// A node has connected.
    pub fn accept(&mut self, node: usize) {
        self.sessions.insert(node, Session::default());
    }

    /// A connection is gone, and with it its routes.
    pub fn lose(&mut self, node: usize) {
        self.sessions.remove(&node);
    }

    /// Prefixes with the nodes that announce them.
    pub fn routes(&self) -> BTreeMap<IpNet, BTreeSet<usize>> {
        let mut all: BTreeMap<IpNet, BTreeSet<usize>> = BTreeMap::new();
        for (node, session) in &self.sessions {
            for prefix in &session.routes {
                all.entry(*prefix).or_default().insert(*node);
            }
        }
        all
    }

    /// Takes bytes in; returns what the router answers.
    ///
    /// # Errors
    /// Names the message that no router would take.
    pub fn hear(&mut self, node: usize, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let Some(session) = self.sessions.get_mut(&node) else { return Ok(Vec::new()) };
        session.buffer.extend(bytes);
        let mut answer = Vec::new();
        while session.buffer.len() >= 19 {
            if session.buffer[..16] != [0xff; 16] {
                return Err("a message without its marker".into());
            }
            let length = usize::from(u16::from_be_bytes([session.buffer[16], session.buffer[17]]));
            if !(19..=4096).contains(&length) {
                return Err(format!("a message of {length} octets"));
            }
            if session.buffer.len() < length {
                break;
            }
            let message: Vec<u8> = session.buffer.drain(..length).collect();
            match message[18] {
                1 => {
                    answer.extend(open(self.asn));
                    answer.extend(header(4, &[]));
                }
                2 => update(&message[19..], &mut session.routes)
                    .ok_or_else(|| format!("an UPDATE that cannot be read: {message:02x?}"))?,
                3 | 4 => {}
                other => return Err(format!("a message of type {other}")),
            }
        }
        Ok(answer)
    }
}

fn header(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).expect("a short message");
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

/// Version 4, hold time 90 s, both families, four-octet AS numbers.
fn open(asn: u16) -> Vec<u8> {
    let four = u32::from(asn).to_be_bytes();
    let capabilities = [&[1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 65, 4][..], &four].concat();
    let count = u8::try_from(capabilities.len()).expect("a few capabilities");
    let mut body = vec![4];
    body.extend(asn.to_be_bytes());
    body.extend([0, 90, 10, 0, 0, 1, count + 2, 2, count]);
    body.extend(capabilities);
    header(1, &body)
}

fn update(body: &[u8], routes: &mut BTreeSet<IpNet>) -> Option<()> {
    let (withdrawn, rest) = sized(body)?;
    let (mut attributes, announced) = sized(rest)?;
    for prefix in prefixes(withdrawn, false)? {
        routes.remove(&prefix);
    }
    while let [flags, kind, rest @ ..] = attributes {
        let (value, after) = if flags & 0x10 != 0 {
            sized(rest)?
        } else {
            let (length, rest) = rest.split_first()?;
            rest.split_at_checked(usize::from(*length))?
        };
        match kind {
            14 => {
                let next_hop = usize::from(*value.get(3)?);
                let v6 = value.get(1)? == &2;
                routes.extend(prefixes(value.get(5 + next_hop..)?, v6)?);
            }
            15 => {
                for prefix in prefixes(value.get(3..)?, value.get(1)? == &2)? {
                    routes.remove(&prefix);
                }
            }
            _ => {}
        }
        attributes = after;
    }
    routes.extend(prefixes(announced, false)?);
    attributes.is_empty().then_some(())
}

fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(2)?;
    rest.split_at_checked(usize::from(u16::from_be_bytes([length[0], length[1]])))
}

fn prefixes(mut bytes: &[u8], v6: bool) -> Option<Vec<IpNet>> {
    let mut found = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (octets, after) = rest.split_at_checked(usize::from(length.div_ceil(8)))?;
        let mut whole = [0; 16];
        whole.get_mut(..octets.len())?.copy_from_slice(octets);
        found.push(if v6 {
            IpNet::from(Ipv6Net::new(Ipv6Addr::from(whole), *length).ok()?)
        } else {
            let [a, b, c, d, ..] = whole;
            IpNet::from(Ipv4Net::new(Ipv4Addr::new(a, b, c, d), *length).ok()?)
        });
        bytes = after;
    }
    Some(found)
}
