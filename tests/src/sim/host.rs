//! A host on the segment: it asks who has an address and believes what Linux would believe.
//!
//! The frames are read and written byte by byte on purpose, so that a mistake in the product's own
//! codec is not shared by its judge.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

pub type Mac = [u8; 6];

/// A client with its neighbour table.
#[derive(Debug)]
pub struct Host {
    pub mac: Mac,
    pub v4: [u8; 4],
    pub v6: [u8; 16],
    /// Who it believes has an address.
    pub table: BTreeMap<IpAddr, Mac>,
}

/// What a frame says about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Says {
    pub address: IpAddr,
    pub mac: Mac,
    /// Sent to this host alone, as the answer to its question.
    pub answer: bool,
    /// Replaces what is known already.
    pub overrides: bool,
}

impl Host {
    pub fn new(number: u8) -> Self {
        let mut v6 = [0; 16];
        v6[..2].copy_from_slice(&[0xfe, 0x80]);
        v6[15] = number;
        Self { mac: [2, 0, 0, 0, 9, number], v4: [10, 0, 0, number], v6, table: BTreeMap::new() }
    }

    /// The question for an address: an ARP request, or a solicitation to its group.
    pub fn ask(&self, address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(v4) => {
                let mut frame = ethernet([0xff; 6], self.mac, 0x0806);
                frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
                frame.extend(self.mac);
                frame.extend(self.v4);
                frame.extend([0; 6]);
                frame.extend(v4.octets());
                frame
            }
            IpAddr::V6(v6) => {
                let target = v6.octets();
                let mut group = [0; 16];
                group[..2].copy_from_slice(&[0xff, 0x02]);
                group[11..13].copy_from_slice(&[1, 0xff]);
                group[13..].copy_from_slice(&target[13..]);
                let to = [0x33, 0x33, 0xff, target[13], target[14], target[15]];
                let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
                body.extend(target);
                body.extend([1, 1]);
                body.extend(self.mac);
                let sum = checksum(&self.v6, &group, &body);
                body[2..4].copy_from_slice(&sum.to_be_bytes());
                let mut frame = ethernet(to, self.mac, 0x86dd);
                frame.extend([0x60, 0, 0, 0, 0, 32, 58, 255]);
                frame.extend(self.v6);
                frame.extend(group);
                frame.extend(body);
                frame
            }
        }
    }

    /// Takes a frame in, as Linux with its default settings does: an unasked announcement changes
    /// an entry that exists and makes none.
    pub fn hear(&mut self, frame: &[u8]) {
        let Some(says) = read(frame) else { return };
        let mine = frame[..6] == self.mac;
        match self.table.entry(says.address) {
            Entry::Occupied(mut known) if says.overrides => {
                known.insert(says.mac);
            }
            Entry::Vacant(unknown) if mine && says.answer => {
                unknown.insert(says.mac);
            }
            Entry::Occupied(_) | Entry::Vacant(_) => {}
        }
    }
}

/// Reads an ARP packet or a neighbour advertisement; anything else says nothing.
pub fn read(frame: &[u8]) -> Option<Says> {
    match frame.get(12..14)? {
        [0x08, 0x06] => {
            let arp = frame.get(14..42)?;
            let address: [u8; 4] = arp[14..18].try_into().ok()?;
            Some(Says {
                address: IpAddr::from(address),
                mac: arp[8..14].try_into().ok()?,
                answer: arp[6..8] == [0, 2],
                overrides: true,
            })
        }
        [0x86, 0xdd] => {
            let packet = frame.get(14..)?;
            let body = packet.get(40..72)?;
            let target: [u8; 16] = body[8..24].try_into().ok()?;
            if packet[6] != 58 || packet[7] != 255 || body[0] != 136 || body[24..26] != [2, 1] {
                return None;
            }
            let flags = body[4];
            Some(Says {
                address: IpAddr::from(target),
                mac: body[26..32].try_into().ok()?,
                answer: flags & 0x40 != 0,
                overrides: flags & 0x20 != 0,
            })
        }
        _ => None,
    }
}

/// True for a question (request or solicitation); gratuitous requests are no question.
pub fn is_question(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x06]) => {
            frame.len() >= 42 && frame[20..22] == [0, 1] && frame[28..32] != frame[38..42]
        }
        Some([0x86, 0xdd]) => frame.get(54) == Some(&135),
        _ => false,
    }
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes()].concat()
}

/// RFC 4443 section 2.3, over the pseudo header of RFC 8200.
fn checksum(source: &[u8; 16], destination: &[u8; 16], body: &[u8]) -> u16 {
    let length = u32::try_from(body.len()).expect("a short packet");
    let pseudo = [&source[..], destination, &length.to_be_bytes(), &[0, 0, 0, 58], body].concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}
