//! The capabilities of an OPEN (RFC 5492): what we offer and what we read in a peer's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{Family, OpenError};

/// The capabilities of one side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Capabilities {
    /// 1, RFC 4760 section 8: the families that we know. `None` where the side does not know the
    /// extension at all, and so speaks IPv4 unicast alone.
    pub(crate) multiprotocol: Option<BTreeSet<Family>>,
    /// 2, RFC 2918.
    pub(crate) route_refresh: bool,
    /// 5, RFC 8950: IPv4 unicast with IPv6 next hops.
    pub(crate) extended_next_hop: bool,
    /// 64, RFC 4724.
    pub(crate) graceful_restart: Option<RestartCapability>,
    /// 65, RFC 6793: the side's AS number.
    pub(crate) four_octet_as: Option<u32>,
    /// 70, RFC 7313.
    pub(crate) enhanced_route_refresh: bool,
}

/// RFC 4724 section 3 and RFC 8538 section 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RestartCapability {
    /// R: the side has restarted.
    pub(crate) restarted: bool,
    /// N: NOTIFICATIONs end a session gracefully too.
    pub(crate) notification: bool,
    /// Whole seconds up to 4095.
    pub(crate) restart_time: Duration,
    /// The families that the side asks to be kept, each with F: its forwarding survived.
    pub(crate) families: BTreeMap<Family, bool>,
}

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const EXTENDED_NEXT_HOP: u8 = 5;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_AS: u8 = 65;
const ENHANCED_ROUTE_REFRESH: u8 = 70;

pub(crate) const SAFI_UNICAST: u8 = 1;
/// IPv4 unicast, next hops of AFI 2.
const IPV4_OVER_IPV6: [u8; 6] = [0, 1, 0, SAFI_UNICAST, 0, 2];

const RESTARTED: u16 = 0x8000;
const NOTIFICATION: u16 = 0x4000;
const MAX_RESTART_TIME: u16 = 0x0fff;
const FORWARDING_STATE: u8 = 0x80;

impl Family {
    pub(crate) fn afi(self) -> u16 {
        match self {
            Self::Ipv4Unicast => 1,
            Self::Ipv6Unicast => 2,
        }
    }

    pub(crate) fn from_codes(afi: u16, safi: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.afi() == afi && safi == SAFI_UNICAST)
    }
}

impl Capabilities {
    /// What we offer, as the value of one capabilities parameter; 42 octets at most.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for family in self.multiprotocol.iter().flatten() {
            let [high, low] = family.afi().to_be_bytes();
            out.extend([MULTIPROTOCOL, 4, high, low, 0, SAFI_UNICAST]);
        }
        if self.route_refresh {
            out.extend([ROUTE_REFRESH, 0]);
        }
        if self.extended_next_hop {
            out.extend([EXTENDED_NEXT_HOP, 6]);
            out.extend(IPV4_OVER_IPV6);
        }
        if let Some(restart) = &self.graceful_restart {
            restart.encode(&mut out);
        }
        if let Some(asn) = self.four_octet_as {
            out.extend([FOUR_OCTET_AS, 4]);
            out.extend(asn.to_be_bytes());
        }
        if self.enhanced_route_refresh {
            out.extend([ENHANCED_ROUTE_REFRESH, 0]);
        }
        out
    }

    /// Adds the capabilities of one parameter; a peer may spread them over several. Of a capability
    /// that is there twice the last one counts, families add up. Unknown ones are passed over.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), OpenError> {
        while let Some((&[code, length], rest)) = bytes.split_first_chunk() {
            let (value, rest) =
                rest.split_at_checked(length.into()).ok_or(OpenError::MalformedParameters)?;
            self.read_one(code, value)?;
            bytes = rest;
        }
        if bytes.is_empty() { Ok(()) } else { Err(OpenError::MalformedParameters) }
    }

    fn read_one(&mut self, code: u8, value: &[u8]) -> Result<(), OpenError> {
        match (code, value) {
            (MULTIPROTOCOL, &[afi_high, afi_low, _, safi]) => {
                let afi = u16::from_be_bytes([afi_high, afi_low]);
                self.multiprotocol.get_or_insert_default().extend(Family::from_codes(afi, safi));
            }
            (FOUR_OCTET_AS, &[a, b, c, d]) => {
                self.four_octet_as = Some(u32::from_be_bytes([a, b, c, d]));
            }
            (MULTIPROTOCOL | FOUR_OCTET_AS, _) => return Err(OpenError::MalformedParameters),
            (GRACEFUL_RESTART, &[high, low, ref families @ ..]) => {
                let head = u16::from_be_bytes([high, low]);
                self.graceful_restart = Some(RestartCapability::read(head, families));
            }
            (EXTENDED_NEXT_HOP, _) => {
                self.extended_next_hop |= value.chunks(6).any(|tuple| tuple == IPV4_OVER_IPV6);
            }
            (ROUTE_REFRESH, _) => self.route_refresh = true,
            (ENHANCED_ROUTE_REFRESH, _) => self.enhanced_route_refresh = true,
            _ => {}
        }
        Ok(())
    }
}

impl RestartCapability {
    fn encode(&self, out: &mut Vec<u8>) {
        let seconds = u16::try_from(self.restart_time.as_secs()).unwrap_or(u16::MAX);
        let mut head = seconds.min(MAX_RESTART_TIME);
        if self.restarted {
            head |= RESTARTED;
        }
        if self.notification {
            head |= NOTIFICATION;
        }
        let length = 2 + 4 * u8::try_from(self.families.len()).expect("there are two families");
        out.extend([GRACEFUL_RESTART, length]);
        out.extend(head.to_be_bytes());
        for (family, forwarded) in &self.families {
            let [high, low] = family.afi().to_be_bytes();
            let flags = if *forwarded { FORWARDING_STATE } else { 0 };
            out.extend([high, low, SAFI_UNICAST, flags]);
        }
    }

    /// Reserved bits and a tail that is no tuple mean nothing.
    fn read(head: u16, families: &[u8]) -> Self {
        let (tuples, _) = families.as_chunks();
        Self {
            restarted: head & RESTARTED != 0,
            notification: head & NOTIFICATION != 0,
            restart_time: Duration::from_secs((head & MAX_RESTART_TIME).into()),
            families: tuples
                .iter()
                .filter_map(|&[high, low, safi, flags]| {
                    let family = Family::from_codes(u16::from_be_bytes([high, low]), safi)?;
                    Some((family, flags & FORWARDING_STATE != 0))
                })
                .collect(),
        }
    }
}
