//! Payloads of BFD datagrams, one after another, into a session. What can be read is written back
//! as it was, but for bits that have no meaning.
#![no_main]

use std::{
    num::{NonZeroU8, NonZeroU32},
    time::{Duration, Instant},
};

use bfd::{Event, Packet, Role, Session, SessionConfig, Timing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let interval = Duration::from_millis(50);
    let config = SessionConfig {
        discriminator: NonZeroU32::MIN,
        role: Role::Active,
        timing: Timing {
            desired_min_tx: interval,
            required_min_rx: interval,
            detect_multiplier: NonZeroU8::MIN,
        },
    };
    let mut now = Instant::now();
    let mut session = Session::new(config, 7);
    session.handle(Event::Start, now);
    // An octet is the length of the payload after it; 0 lets time pass.
    let mut data = data;
    while let [length, rest @ ..] = data {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        if *length == 0 {
            now = now.max(session.poll_timeout().unwrap_or(now));
            session.handle_timeout(now);
        } else if let Ok(packet) = Packet::decode(payload) {
            assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
            session.handle(Event::Received(packet), now);
        }
        data = rest;
    }
});
