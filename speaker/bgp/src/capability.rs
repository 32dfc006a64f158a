//! The capabilities of an OPEN (RFC 5492): what we offer and what we read in a peer's.

use std::{collections::BTreeSet, time::Duration};

use crate::{Family, OpenError};

/// The capabilities of one side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Capabilities {
    /// 1, RFC 4760 section 8: the families that we know. `None` where the side does not know the
    /// extension at all, and so speaks IPv4 unicast alone.
    pub(crate) multiprotocol: Option<BTreeSet<Family>>,
    /// 2, RFC 2918.
    pub(crate) route_refresh: bool,
    /// 64, RFC 4724: a peer's restart time, whole seconds up to 4095. Not offered by us.
    pub(crate) restart_time: Option<Duration>,
    /// 65, RFC 6793: the side's AS number.
    pub(crate) four_octet_as: Option<u32>,
    /// 70, RFC 7313.
    pub(crate) enhanced_route_refresh: bool,
}

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_AS: u8 = 65;
const ENHANCED_ROUTE_REFRESH: u8 = 70;

pub(crate) const SAFI_UNICAST: u8 = 1;

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
    /// What we offer, as the value of one capabilities parameter.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for family in self.multiprotocol.iter().flatten() {
            out.extend([MULTIPROTOCOL, 4]);
            out.extend(family.afi().to_be_bytes());
            out.extend([0, SAFI_UNICAST]);
        }
        if self.route_refresh {
            out.extend([ROUTE_REFRESH, 0]);
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
            (GRACEFUL_RESTART, &[high, low, ..]) => {
                // The upper four bits are flags.
                let seconds = u16::from_be_bytes([high, low]) & 0x0fff;
                self.restart_time = Some(Duration::from_secs(seconds.into()));
            }
            (ROUTE_REFRESH, _) => self.route_refresh = true,
            (ENHANCED_ROUTE_REFRESH, _) => self.enhanced_route_refresh = true,
            _ => {}
        }
        Ok(())
    }
}
