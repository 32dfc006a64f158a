//! The decoder by itself, for the fuzz target `bgp_message`. Not part of the interface.

use crate::{
    attribute::{AsNumbers, SessionKind},
    message::{Message, Reader},
    received::Sender,
};

/// Reads a byte stream to its end or its first error; returns the messages that were understood.
///
/// # Panics
/// If an OPEN that was understood is not understood when it is written again.
pub fn decode(bytes: &[u8], internal: bool, four_octet_as: bool) -> usize {
    let kind = if internal { SessionKind::Internal } else { SessionKind::External };
    let as_numbers = if four_octet_as { AsNumbers::FourOctets } else { AsNumbers::TwoOctets };
    let mut reader = Reader::default();
    reader.set_sender(Sender { kind, as_numbers });
    reader.push(bytes);
    let mut count = 0;
    while let Ok(Some(message)) = reader.next() {
        count += 1;
        if let Message::Open(open) = message {
            let mut again = Reader::default();
            again.push(&open.encode());
            let again = again.next();
            assert!(matches!(again, Ok(Some(Message::Open(_)))), "{open:?}: {again:?}");
        }
    }
    count
}
