//! Writing datagrams: bodies that are made once for all receivers, and what goes before them.

use std::net::IpAddr;

use super::{
    BUCKETS, Beat, HEADER, Header, MAX_INTERFACE, MAX_STATIONS, MAX_TAGS, Notice, Occasion,
    PREAMBLE, ROOM, Sighting, fits, kind,
};
use crate::Claim;

impl Header {
    /// A datagram with a body made by [`Body::encode`] or one of the functions that divide rows.
    pub(crate) fn seal(&self, body: &[u8]) -> Vec<u8> {
        let mut octets = Vec::with_capacity(HEADER + body.len());
        octets.extend(PREAMBLE);
        octets.extend(self.incarnation.to_be_bytes());
        octets.extend(self.receiver.to_be_bytes());
        octets.extend(self.sequence.to_be_bytes());
        octets.extend(body);
        octets
    }
}

impl Beat {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut octets = vec![kind::BEAT, self.flags.0];
        octets.extend(self.owned.to_be_bytes());
        octets.extend(self.version.to_be_bytes());
        octets.extend(self.hash.to_be_bytes());
        octets.push(self.age);
        let stations = self.stations.iter().filter(|(name, _)| fits(name, MAX_INTERFACE));
        counted(&mut octets, stations.take(MAX_STATIONS), |octets, (name, mac)| {
            put_name(octets, name);
            octets.extend(mac);
        });
        counted(&mut octets, self.ages.iter().take(MAX_TAGS), |octets, age| {
            octets.extend((age.tag << 4 | u32::from(age.halves.min(15))).to_be_bytes());
        });
        counted(&mut octets, self.unsteady.iter().take(MAX_TAGS), |octets, tag| {
            octets.extend(tag.to_be_bytes());
        });
        octets
    }
}

/// Bodies of [`Body::Claims`] with all these rows, as few as it takes.
pub(crate) fn claims<'a>(rows: impl IntoIterator<Item = (IpAddr, &'a Claim)>) -> Vec<Vec<u8>> {
    divide_rows(&[kind::CLAIMS], rows)
}

/// Bodies of [`Body::Yield`].
pub(crate) fn yields<'a>(rows: impl IntoIterator<Item = (IpAddr, &'a Claim)>) -> Vec<Vec<u8>> {
    divide_rows(&[kind::YIELD], rows)
}

/// Bodies of [`Body::Handover`].
pub(crate) fn handovers<'a>(
    occasion: Occasion,
    rows: impl IntoIterator<Item = (IpAddr, &'a Claim)>,
) -> Vec<Vec<u8>> {
    let occasion = match occasion {
        Occasion::Departure => 0,
        Occasion::Restart => 1,
        Occasion::GiveBack => 2,
        Occasion::Rebalance => 3,
    };
    divide_rows(&[kind::HANDOVER, occasion], rows)
}

/// Bodies of [`Body::Refusal`].
pub(crate) fn refusals<'a>(rows: impl IntoIterator<Item = (IpAddr, &'a Claim)>) -> Vec<Vec<u8>> {
    divide_rows(&[kind::REFUSAL], rows)
}

/// The body of [`Body::Digest`].
pub(crate) fn digest(buckets: &[u64; BUCKETS]) -> Vec<u8> {
    let mut octets = vec![kind::DIGEST];
    octets.extend(buckets.iter().flat_map(|hash| hash.to_be_bytes()));
    octets
}

/// Bodies of [`Body::Dead`].
pub(crate) fn dead(notices: &[Notice]) -> Vec<Vec<u8>> {
    divide(&[kind::DEAD], notices, put_notice)
}

/// Bodies of [`Body::Alive`].
pub(crate) fn alive(notices: &[Notice]) -> Vec<Vec<u8>> {
    divide(&[kind::ALIVE], notices, put_notice)
}

/// Bodies of [`Body::Wire`].
pub(crate) fn wires(sightings: &[Sighting]) -> Vec<Vec<u8>> {
    divide(&[kind::WIRE], sightings, |octets, sighting| {
        put_address(octets, sighting.address);
        octets.extend(sighting.epoch.to_be_bytes());
        octets.push(u8::from(sighting.mac.is_some()));
        octets.extend(sighting.mac.iter().flatten());
    })
}

/// Bodies of [`Body::GiveBack`].
pub(crate) fn give_backs(addresses: &[IpAddr]) -> Vec<Vec<u8>> {
    divide(&[kind::GIVE_BACK], addresses, |octets, address| put_address(octets, *address))
}

/// Bodies that start alike and hold as many items as there is room for.
fn divide<T>(start: &[u8], items: &[T], put: impl Fn(&mut Vec<u8>, &T)) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    let mut body = start.to_vec();
    for item in items {
        let before = body.len();
        put(&mut body, item);
        if body.len() > ROOM {
            let next = [start, &body[before..]].concat();
            body.truncate(before);
            bodies.push(std::mem::replace(&mut body, next));
        }
    }
    if body.len() > start.len() {
        bodies.push(body);
    }
    bodies
}

fn divide_rows<'a>(
    start: &[u8],
    rows: impl IntoIterator<Item = (IpAddr, &'a Claim)>,
) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    let mut sheet = Sheet::new(start.len());
    for (address, claim) in rows {
        if !sheet.add(address, claim) {
            bodies.push(std::mem::replace(&mut sheet, Sheet::new(start.len())).finish(start));
            sheet.add(address, claim);
        }
    }
    if sheet.count > 0 {
        bodies.push(sheet.finish(start));
    }
    bodies
}

/// One body with rows, in the making.
struct Sheet<'a> {
    lives: Vec<(&'a str, u64)>,
    dictionary: Vec<u8>,
    rows: Vec<u8>,
    count: usize,
    room: usize,
}

impl<'a> Sheet<'a> {
    fn new(start: usize) -> Self {
        let room = ROOM - start - 1;
        Self { lives: Vec::new(), dictionary: Vec::new(), rows: Vec::new(), count: 0, room }
    }

    /// Whether there was room for it.
    fn add(&mut self, address: IpAddr, claim: &'a Claim) -> bool {
        let life = (&*claim.owner, claim.incarnation);
        let place = self.lives.iter().position(|known| *known == life);
        let entry = if place.is_none() { 1 + life.0.len() + 8 } else { 0 };
        let row = 1 + octets_of(address) + 8 + 1;
        let taken = self.dictionary.len() + self.rows.len();
        let Ok(index) = u8::try_from(place.unwrap_or(self.lives.len())) else { return false };
        if taken + entry + row > self.room || index == u8::MAX {
            return false;
        }
        if place.is_none() {
            self.lives.push(life);
            put_name(&mut self.dictionary, life.0);
            self.dictionary.extend(life.1.to_be_bytes());
        }
        put_address(&mut self.rows, address);
        self.rows.extend(claim.epoch.to_be_bytes());
        self.rows.push(index);
        self.count += 1;
        true
    }

    fn finish(self, start: &[u8]) -> Vec<u8> {
        let lives = u8::try_from(self.lives.len()).unwrap_or(u8::MAX);
        [start, &[lives], &self.dictionary, &self.rows].concat()
    }
}

fn counted<T>(octets: &mut Vec<u8>, items: impl Iterator<Item = T>, put: impl Fn(&mut Vec<u8>, T)) {
    let place = octets.len();
    octets.push(0);
    for item in items {
        octets[place] += 1;
        put(octets, item);
    }
}

fn put_name(octets: &mut Vec<u8>, name: &str) {
    octets.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    octets.extend(&name.as_bytes()[..name.len().min(usize::from(u8::MAX))]);
}

fn put_address(octets: &mut Vec<u8>, address: IpAddr) {
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

fn put_notice(octets: &mut Vec<u8>, notice: &Notice) {
    put_name(octets, &notice.node);
    octets.extend(notice.incarnation.to_be_bytes());
    octets.extend(notice.sequence.to_be_bytes());
}

fn octets_of(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 4,
        IpAddr::V6(_) => 16,
    }
}
