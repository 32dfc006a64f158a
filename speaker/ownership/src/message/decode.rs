//! Reading datagrams. Nothing that arrives makes it panic.

use std::net::IpAddr;

use super::{
    Age, BUCKETS, Beat, Body, Flags, Header, MAX_INTERFACE, MAX_LENGTH, MAX_NAME, MAX_STATIONS,
    MAX_TAGS, Malformed, Notice, Occasion, PREAMBLE, Row, Sighting, fits, kind,
};
use crate::{Claim, NodeName};

/// Reads a datagram.
///
/// # Errors
/// If it is not exactly one of the forms above.
pub(crate) fn decode(octets: &[u8]) -> Result<(Header, Body), Malformed> {
    if octets.len() > MAX_LENGTH {
        return Err(Malformed::Length);
    }
    let mut reader = Reader { left: octets };
    if reader.array()? != PREAMBLE {
        return Err(Malformed::Preamble);
    }
    let header = Header {
        incarnation: reader.number()?,
        receiver: reader.number()?,
        sequence: reader.number()?,
    };
    if header.incarnation == 0 {
        return Err(Malformed::Value);
    }
    let body = reader.body()?;
    if reader.left.is_empty() { Ok((header, body)) } else { Err(Malformed::Length) }
}

struct Reader<'a> {
    left: &'a [u8],
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> Result<&[u8], Malformed> {
        let (taken, left) = self.left.split_at_checked(length).ok_or(Malformed::Length)?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, left) = self.left.split_first_chunk().ok_or(Malformed::Length)?;
        self.left = left;
        Ok(*taken)
    }

    fn octet(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn name(&mut self, most: usize) -> Result<&str, Malformed> {
        let length = usize::from(self.octet()?);
        let name = str::from_utf8(self.take(length)?).map_err(|_| Malformed::Value)?;
        if fits(name, most) { Ok(name) } else { Err(Malformed::Value) }
    }

    fn node(&mut self) -> Result<NodeName, Malformed> {
        Ok(self.name(MAX_NAME)?.into())
    }

    fn address(&mut self) -> Result<IpAddr, Malformed> {
        match self.octet()? {
            4 => Ok(self.array::<4>()?.into()),
            6 => Ok(self.array::<16>()?.into()),
            _ => Err(Malformed::Value),
        }
    }

    fn counted<T>(
        &mut self,
        most: usize,
        read: impl Fn(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = usize::from(self.octet()?);
        if count > most {
            return Err(Malformed::Value);
        }
        (0..count).map(|_| read(self)).collect()
    }

    fn all<T>(
        &mut self,
        read: impl Fn(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let mut items = Vec::new();
        while !self.left.is_empty() {
            items.push(read(self)?);
        }
        Ok(items)
    }

    fn body(&mut self) -> Result<Body, Malformed> {
        Ok(match self.octet()? {
            kind::BEAT => Body::Beat(self.beat()?),
            kind::CLAIMS => Body::Claims(self.rows()?),
            kind::DIGEST => Body::Digest(self.digest()?),
            kind::YIELD => Body::Yield(self.rows()?),
            kind::HANDOVER => Body::Handover(self.occasion()?, self.rows()?),
            kind::REFUSAL => Body::Refusal(self.rows()?),
            kind::DEAD => Body::Dead(self.all(Self::notice)?),
            kind::ALIVE => Body::Alive(self.all(Self::notice)?),
            kind::WIRE => Body::Wire(self.all(Self::sighting)?),
            kind::GIVE_BACK => Body::GiveBack(self.all(Self::address)?),
            _ => return Err(Malformed::Value),
        })
    }

    fn beat(&mut self) -> Result<Beat, Malformed> {
        let flags = self.octet()?;
        if flags & !Flags::ALL != 0 {
            return Err(Malformed::Value);
        }
        Ok(Beat {
            flags: Flags(flags),
            owned: u32::from_be_bytes(self.array()?),
            version: self.number()?,
            hash: self.number()?,
            age: self.octet()?,
            stations: self.counted(MAX_STATIONS, |reader| {
                Ok((reader.name(MAX_INTERFACE)?.to_owned(), reader.array()?))
            })?,
            ages: self.counted(MAX_TAGS, |reader| {
                let [a, b, c, d] = reader.array()?;
                let tag = u32::from_be_bytes([a, b, c, d]) >> 4;
                Ok(Age { tag, halves: d & 15 })
            })?,
            unsteady: self.counted(MAX_TAGS, |reader| {
                let tag = u32::from_be_bytes(reader.array()?);
                if tag >> 28 == 0 { Ok(tag) } else { Err(Malformed::Value) }
            })?,
        })
    }

    fn rows(&mut self) -> Result<Vec<Row>, Malformed> {
        let lives =
            self.counted(usize::from(u8::MAX), |reader| Ok((reader.node()?, reader.number()?)))?;
        self.all(|reader| {
            let address = reader.address()?;
            let epoch = reader.number()?;
            let place = usize::from(reader.octet()?);
            let (owner, incarnation) = lives.get(place).ok_or(Malformed::Value)?;
            if epoch == 0 {
                return Err(Malformed::Value);
            }
            let claim = Claim { epoch, owner: owner.clone(), incarnation: *incarnation };
            Ok(Row { address, claim })
        })
    }

    fn digest(&mut self) -> Result<Box<[u64; BUCKETS]>, Malformed> {
        let mut buckets = Box::new([0; BUCKETS]);
        for bucket in buckets.iter_mut() {
            *bucket = self.number()?;
        }
        Ok(buckets)
    }

    fn occasion(&mut self) -> Result<Occasion, Malformed> {
        match self.octet()? {
            0 => Ok(Occasion::Departure),
            1 => Ok(Occasion::Restart),
            2 => Ok(Occasion::GiveBack),
            3 => Ok(Occasion::Rebalance),
            _ => Err(Malformed::Value),
        }
    }

    fn notice(&mut self) -> Result<Notice, Malformed> {
        let node = self.node()?;
        let (incarnation, sequence) = (self.number()?, self.number()?);
        if incarnation == 0 {
            return Err(Malformed::Value);
        }
        Ok(Notice { node, incarnation, sequence })
    }

    fn sighting(&mut self) -> Result<Sighting, Malformed> {
        let (address, epoch) = (self.address()?, self.number()?);
        let mac = match self.octet()? {
            0 => None,
            1 => Some(self.array()?),
            _ => return Err(Malformed::Value),
        };
        Ok(Sighting { address, epoch, mac })
    }
}
