//! BGP communities and the names that Community objects give them.
//!
//! RFC 1997 (two 16-bit numbers) and RFC 8092 (three 32-bit numbers).

use std::{collections::BTreeMap, fmt, str::FromStr};

/// RFC 1997 or RFC 8092.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Community {
    Standard(u16, u16),
    Large(u32, u32, u32),
}

/// By name.
pub(crate) type Aliases = BTreeMap<String, Community>;

/// The text is not "A:B" or "large:A:B:C" with numbers that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotACommunity;

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(a, b) => write!(f, "{a}:{b}"),
            Self::Large(a, b, c) => write!(f, "large:{a}:{b}:{c}"),
        }
    }
}

impl FromStr for Community {
    type Err = NotACommunity;

    fn from_str(text: &str) -> Result<Self, NotACommunity> {
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            [a, b] => Ok(Self::Standard(number(a)?, number(b)?)),
            ["large", a, b, c] => Ok(Self::Large(number(a)?, number(b)?, number(c)?)),
            _ => Err(NotACommunity),
        }
    }
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
    use super::*;

    #[test]
    fn both_forms_are_read_and_printed() {
        for text in ["0:0", "65535:65535", "large:0:1:4294967295"] {
            assert_eq!(text.parse::<Community>().unwrap().to_string(), text);
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
            "no-export",
        ] {
            assert_eq!(text.parse::<Community>(), Err(NotACommunity), "{text}");
        }
    }
}
