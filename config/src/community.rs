//! BGP communities and the names that Community objects give them.
//!
//! RFC 1997 (two 16-bit numbers), RFC 4360 and RFC 5668 (extended), RFC 8092 (three 32-bit
//! numbers). The names are those of the registry of well-known communities.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, str::FromStr};

/// Names that are known without a Community object, which may still define them otherwise.
const WELL_KNOWN: [(&str, u16, u16); 9] = [
    ("graceful-shutdown", 65535, 0),
    ("accept-own", 65535, 1),
    ("llgr-stale", 65535, 6),
    ("no-llgr", 65535, 7),
    ("blackhole", 65535, 666),
    ("no-export", 65535, 65281),
    ("no-advertise", 65535, 65282),
    ("no-export-subconfed", 65535, 65283),
    ("no-peer", 65535, 65284),
];
/// Sub-types of RFC 4360 sections 4 and 5, which mean the same with each kind of administrator.
const ROUTE_TARGET: u8 = 2;
const ROUTE_ORIGIN: u8 = 3;
/// Types: whose number the first part is.
const TWO_OCTET_AS: u8 = 0;
const IPV4_ADDRESS: u8 = 1;
const FOUR_OCTET_AS: u8 = 2;

/// RFC 1997, RFC 8092 or RFC 4360.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Community {
    Standard(u16, u16),
    Large(u32, u32, u32),
    /// The eight octets, type and sub-type first.
    Extended(u64),
}

/// By name.
pub(crate) type Aliases = BTreeMap<String, Community>;

/// The text is none of the forms, or has a number that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotACommunity;

/// In the form that is read: route targets and origins with their parts, other extended ones as
/// their octets.
impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Standard(a, b) => write!(f, "{a}:{b}"),
            Self::Large(a, b, c) => write!(f, "large:{a}:{b}:{c}"),
            Self::Extended(octets) => {
                let [kind, sub_type, a, b, c, d, e, g] = octets.to_be_bytes();
                let word = match sub_type {
                    ROUTE_TARGET => "rt",
                    ROUTE_ORIGIN => "soo",
                    _ => return write!(f, "ext:0x{octets:016x}"),
                };
                match kind {
                    TWO_OCTET_AS => {
                        let asn = u16::from_be_bytes([a, b]);
                        write!(f, "{word}:{asn}:{}", u32::from_be_bytes([c, d, e, g]))
                    }
                    IPV4_ADDRESS => {
                        let address = Ipv4Addr::new(a, b, c, d);
                        write!(f, "{word}:{address}:{}", u16::from_be_bytes([e, g]))
                    }
                    // One that fits into two octets would be read as the other type.
                    FOUR_OCTET_AS if (a, b) != (0, 0) => {
                        let asn = u32::from_be_bytes([a, b, c, d]);
                        write!(f, "{word}:{asn}:{}", u16::from_be_bytes([e, g]))
                    }
                    _ => write!(f, "ext:0x{octets:016x}"),
                }
            }
        }
    }
}

impl FromStr for Community {
    type Err = NotACommunity;

    fn from_str(text: &str) -> Result<Self, NotACommunity> {
        if let Some((_, a, b)) = WELL_KNOWN.iter().find(|(name, ..)| *name == text) {
            return Ok(Self::Standard(*a, *b));
        }
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            ["ext", octets] => match octets.strip_prefix("0x") {
                Some(digits) if digits.len() == 16 && !digits.starts_with('+') => {
                    let octets = u64::from_str_radix(digits, 16);
                    octets.map(Self::Extended).map_err(|_| NotACommunity)
                }
                _ => Err(NotACommunity),
            },
            [a, b] => Ok(Self::Standard(number(a)?, number(b)?)),
            ["rt", a, b] => extended(ROUTE_TARGET, a, b),
            ["soo", a, b] => extended(ROUTE_ORIGIN, a, b),
            ["large", a, b, c] => Ok(Self::Large(number(a)?, number(b)?, number(c)?)),
            _ => Err(NotACommunity),
        }
    }
}

fn extended(sub_type: u8, administrator: &str, assigned: &str) -> Result<Community, NotACommunity> {
    let (kind, [a, b, c, d, e, g]) = if let Ok(address) = administrator.parse::<Ipv4Addr>() {
        let ([a, b, c, d], [e, g]) = (address.octets(), number::<u16>(assigned)?.to_be_bytes());
        (IPV4_ADDRESS, [a, b, c, d, e, g])
    } else if let Ok(asn) = number::<u16>(administrator) {
        let ([a, b], [c, d, e, g]) = (asn.to_be_bytes(), number::<u32>(assigned)?.to_be_bytes());
        (TWO_OCTET_AS, [a, b, c, d, e, g])
    } else {
        let asn: u32 = number(administrator)?;
        let ([a, b, c, d], [e, g]) = (asn.to_be_bytes(), number::<u16>(assigned)?.to_be_bytes());
        (FOUR_OCTET_AS, [a, b, c, d, e, g])
    };
    Ok(Community::Extended(u64::from_be_bytes([kind, sub_type, a, b, c, d, e, g])))
}

/// Digits only: `FromStr` of numbers would also take a sign.
fn number<N: FromStr>(text: &str) -> Result<N, NotACommunity> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NotACommunity);
    }
    text.parse().map_err(|_| NotACommunity)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_is_read_and_printed() {
        for text in [
            "0:0",
            "65535:65535",
            "large:0:1:4294967295",
            "rt:64500:4294967295",
            "rt:4200000000:65535",
            "soo:192.0.2.1:65535",
            "ext:0x4004fbf44cee6b28",
            "ext:0x0202000000640001",
        ] {
            assert_eq!(text.parse::<Community>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn extended_communities_have_their_octets() {
        for (text, octets) in [
            ("rt:64500:100", 0x0002_fbf4_0000_0064),
            ("rt:4200000001:100", 0x0202_fa56_ea01_0064),
            ("soo:192.0.2.1:100", 0x0103_c000_0201_0064),
            ("ext:0x0002FBF400000064", 0x0002_fbf4_0000_0064),
        ] {
            assert_eq!(text.parse(), Ok(Community::Extended(octets)), "{text}");
        }
    }

    #[test]
    fn well_known_names_need_no_object() {
        for (name, value) in
            [("no-export", "65535:65281"), ("no-peer", "65535:65284"), ("blackhole", "65535:666")]
        {
            assert_eq!(name.parse::<Community>().unwrap().to_string(), value);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            ":",
            "1",
            "1:",
            ":1",
            "1:65536",
            "-1:1",
            "+1:1",
            "1:2:3",
            "large:1:2",
            "Large:1:2:3",
            "large:1:2:4294967296",
            "1: 2",
            "no-import",
            "No-Export",
            "rt:1",
            "rt:1:4294967296",
            "rt:65536:65536",
            "rt:4294967296:1",
            "rt:192.0.2.1:65536",
            "rt:192.0.2.256:1",
            "rt::1",
            "soo:1:",
            "ext:0x1",
            "ext:0002fbf400000064",
            "ext:0x+002fbf400000064",
            "ext:0x0002fbf40000006g",
        ] {
            assert_eq!(text.parse::<Community>(), Err(NotACommunity), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_as_the_same(octets in any::<u64>(), kind in 0..3u64) {
            for octets in [octets, kind << 56 | 2 << 48 | octets >> 16] {
                let community = Community::Extended(octets);
                prop_assert_eq!(community.to_string().parse(), Ok(community));
            }
        }
    }
}
