//! The identity of an object.

use std::fmt;

/// `metadata.uid`. Kept as a number if it is written as API servers write it (RFC 9562 section 4,
/// in small letters), else as the text that it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Uid(Form);

#[derive(Clone, PartialEq, Eq)]
enum Form {
    /// In octets, as a number would have to lie at multiples of 16.
    Number([u8; 16]),
    Text(Box<str>),
}

impl Uid {
    pub fn new(text: &str) -> Self {
        let number = number_of(text).map(Self::from);
        number
            .filter(|uid| uid.to_string() == text)
            .unwrap_or_else(|| Self(Form::Text(text.into())))
    }
}

impl From<u128> for Uid {
    fn from(number: u128) -> Self {
        Self(Form::Number(number.to_be_bytes()))
    }
}

fn number_of(text: &str) -> Option<u128> {
    u128::from_str_radix(&text.replace('-', ""), 16).ok()
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Text(text) => f.write_str(text),
            Form::Number(number) => {
                for (index, octet) in number.iter().enumerate() {
                    let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
                    write!(f, "{dash}{octet:02x}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_what_went_in() {
        for (text, number) in [
            ("6f1b0e2c-93a4-4c56-8d1e-0123456789ab", true),
            ("00000000-0000-4000-8000-000000000007", true),
            ("6F1B0E2C-93a4-4c56-8d1e-0123456789ab", false),
            ("6f1b0e2c93a44c568d1e0123456789ab", false),
            ("6f1b0e2c-93a4-4c56-8d1e-0123456789abc", false),
            ("+0000000-0000-4000-8000-000000000007", false),
            ("uid-7", false),
            ("", false),
        ] {
            let uid = Uid::new(text);
            assert_eq!(uid.to_string(), text);
            assert_eq!(matches!(uid.0, Form::Number(_)), number, "{text:?}");
        }
    }
}
