//! `metav1.Duration`: a length of time in Go's syntax ("90s", "1m30s", "1h0m0s").
//!
//! The text is kept as it was written and read where it is needed, so that one object with a bad
//! value can never make a whole list of objects unreadable. Syntax: the documentation of
//! `ParseDuration` in Go's package `time`.

use std::{borrow::Cow, fmt, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

const NANOS_PER_SEC: u128 = 1_000_000_000;
/// What 64 signed bits of nanoseconds hold, as in Go: about 292 years.
const MAX_NANOS: u128 = i64::MAX as u128;
/// Fractions finer than a nanosecond of the largest unit (an hour) are not looked at.
const MAX_FRACTION_DIGITS: usize = 18;

/// A length of time as written in an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(String);

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationError {
    /// Not in Go's syntax.
    Syntax,
    /// Below zero.
    Negative,
    /// More than 2^63 - 1 nanoseconds.
    TooLong,
}

impl Duration {
    /// The length of time, from 0 to 2^63 - 1 ns.
    pub fn parse(&self) -> Result<time::Duration, DurationError> {
        let (negative, text) = match self.0.as_bytes() {
            [b'-', ..] => (true, &self.0[1..]),
            [b'+', ..] => (false, &self.0[1..]),
            _ => (false, self.0.as_str()),
        };
        let nanos = if text == "0" { 0 } else { parse_nanos(text)? };
        if negative && nanos > 0 {
            return Err(DurationError::Negative);
        }
        u64::try_from(nanos)
            .ok()
            .filter(|_| nanos <= MAX_NANOS)
            .map(time::Duration::from_nanos)
            .ok_or(DurationError::TooLong)
    }

    /// The text as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// In the form that Go prints: "1m30s", "0s", "1.5s".
impl From<time::Duration> for Duration {
    fn from(duration: time::Duration) -> Self {
        let nanos = duration.as_nanos();
        if nanos == 0 {
            return Self("0s".to_owned());
        }
        if nanos < NANOS_PER_SEC {
            let (unit, size) = match nanos {
                ..1_000 => ("ns", 1),
                1_000..1_000_000 => ("µs", 1_000),
                _ => ("ms", 1_000_000),
            };
            return Self(format!("{}{unit}", Decimal { nanos, size }));
        }
        let (hours, minutes) = (nanos / (3600 * NANOS_PER_SEC), nanos / (60 * NANOS_PER_SEC) % 60);
        let seconds = Decimal { nanos: nanos % (60 * NANOS_PER_SEC), size: NANOS_PER_SEC };
        Self(match (hours, minutes) {
            (0, 0) => format!("{seconds}s"),
            (0, _) => format!("{minutes}m{seconds}s"),
            _ => format!("{hours}h{minutes}m{seconds}s"),
        })
    }
}

impl From<&str> for Duration {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => {
                "not a duration; write numbers with units, such as \"90s\" or \"1m30s\""
            }
            Self::Negative => "below zero",
            Self::TooLong => "longer than 292 years",
        })
    }
}

impl std::error::Error for DurationError {}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 64,
            "pattern": "^[+-]?(0|(([0-9]+(\\.[0-9]*)?|\\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$",
        })
    }
}

/// Nanoseconds in a unit, printed without trailing zeros.
struct Decimal {
    nanos: u128,
    size: u128,
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.nanos / self.size)?;
        let (mut rest, mut size) = (self.nanos % self.size, self.size);
        if rest > 0 {
            f.write_str(".")?;
        }
        while rest > 0 {
            size /= 10;
            write!(f, "{}", rest / size)?;
            rest %= size;
        }
        Ok(())
    }
}

/// At most a little more than [`MAX_NANOS`]: more is [`DurationError::TooLong`] at once.
fn parse_nanos(text: &str) -> Result<u128, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Syntax);
    }
    let (mut total, mut rest) = (0u128, text);
    while !rest.is_empty() {
        let (whole, after_whole) = split_at_non_digit(rest);
        let (fraction, after_number) = match after_whole.strip_prefix('.') {
            Some(after_dot) => split_at_non_digit(after_dot),
            None => ("", after_whole),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(DurationError::Syntax);
        }
        let unit_end = after_number
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after_number.len());
        let (unit, after_unit) = after_number.split_at(unit_end);
        let size: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => NANOS_PER_SEC,
            "m" => 60 * NANOS_PER_SEC,
            "h" => 3600 * NANOS_PER_SEC,
            _ => return Err(DurationError::Syntax),
        };
        let whole = if whole.is_empty() { Ok(0) } else { whole.parse::<u64>() };
        let whole = u128::from(whole.map_err(|_| DurationError::TooLong)?) * size;
        let fraction = &fraction[..fraction.len().min(MAX_FRACTION_DIGITS)];
        let scale = (0..fraction.len()).fold(1u128, |scale, _| scale * 10);
        let fraction = fraction.bytes().fold(0, |sum, d| sum * 10 + u128::from(d - b'0'));
        total += whole + fraction * size / scale;
        if total > MAX_NANOS {
            return Err(DurationError::TooLong);
        }
        rest = after_unit;
    }
    Ok(total)
}

fn split_at_non_digit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_syntax_is_read() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("90s", 90_000_000_000),
            ("+90s", 90_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1h0m0s", 3_600_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("3ms2us1ns", 3_002_001),
            ("3µs", 3_000),
            ("3μs", 3_000),
            ("0.3333333333333333333h", 1_200_000_000_000 - 1),
            ("9223372036854775807ns", u64::try_from(i64::MAX).unwrap()),
        ] {
            assert_eq!(
                Duration::from(text).parse(),
                Ok(time::Duration::from_nanos(nanos)),
                "{text}"
            );
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for (text, error) in [
            ("", DurationError::Syntax),
            ("-", DurationError::Syntax),
            (".", DurationError::Syntax),
            (".s", DurationError::Syntax),
            ("3", DurationError::Syntax),
            ("s", DurationError::Syntax),
            ("3 s", DurationError::Syntax),
            ("1d", DurationError::Syntax),
            ("1s-5s", DurationError::Syntax),
            ("1e3s", DurationError::Syntax),
            ("-1s", DurationError::Negative),
            ("9223372036854775808ns", DurationError::TooLong),
            ("2562048h", DurationError::TooLong),
            ("99999999999999999999999s", DurationError::TooLong),
        ] {
            assert_eq!(Duration::from(text).parse(), Err(error), "{text}");
        }
    }

    #[test]
    fn the_printed_form_is_gos_and_reads_back() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (1_100_000, "1.1ms"),
            (1_000_000_000, "1s"),
            (2_200_000_000, "2.2s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (3_661_001_000_000, "1h1m1.001s"),
        ] {
            let duration = time::Duration::from_nanos(nanos);
            assert_eq!(Duration::from(duration).as_str(), text);
            assert_eq!(Duration::from(text).parse(), Ok(duration));
        }
    }
}
