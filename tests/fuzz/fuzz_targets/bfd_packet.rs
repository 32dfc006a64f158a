//! Payloads of BFD datagrams, one after another, into a session. What can be read is written back
//! as it was, but for bits that have no meaning.
#![no_main]

use std::{
    num::{NonZeroU8, NonZeroU32},
    time::{Duration, Instant},
};

use bfd::{Event, Received, Role, Session, Settings, State, Timing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let timing = |milliseconds, multiplier| Timing {
        desired_min_tx: Duration::from_millis(milliseconds),
        required_min_rx: Duration::from_millis(milliseconds),
        detect_multiplier: NonZeroU8::new(multiplier).unwrap_or(NonZeroU8::MIN),
    };
    let settings = Settings { role: Role::Active, timing: timing(50, 1), authentication: None };
    let mut now = Instant::now();
    let mut session = Session::new(NonZeroU32::MIN, settings.clone(), 7);
    session.handle(Event::Start, now);
    // An octet is the length of the payload after it; 0 lets time pass, and what has more octets
    // than any packet changes the intervals.
    let mut data = data;
    while let [length, rest @ ..] = data {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        match *length {
            0 => {
                now = now.max(session.poll_timeout().unwrap_or(now));
                session.handle_timeout(now);
                assert!(session.poll_timeout().is_none_or(|at| at > now), "it is served once");
            }
            250.. => {
                let [milliseconds, multiplier, ..] = payload else { continue };
                let timing = timing(u64::from(*milliseconds) + 10, *multiplier);
                session.handle(Event::Configure(Settings { timing, ..settings.clone() }), now);
            }
            _ => {
                let Ok(received) = Received::read(payload) else { continue };
                let encoded = received.packet().encode();
                let again = Received::read(&encoded).expect("what we write can be read");
                assert_eq!(again.packet(), received.packet());
                let before = session.counters().clone();
                session.handle(Event::Received(received), now);
                let after = session.counters();
                let discarded = after.discarded.values().sum::<u64>();
                let discarded_before = before.discarded.values().sum::<u64>();
                assert_eq!(after.received + discarded, before.received + discarded_before + 1);
            }
        }
        assert!(session.state() != State::AdminDown, "nobody else can stop it");
    }
});
