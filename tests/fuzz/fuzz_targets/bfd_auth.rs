//! Datagrams that an authenticated peer sent, changed, cut, repeated and mixed with others on the
//! way. What was changed is never believed, and of a meticulous kind nothing is believed twice while
//! the session remembers.
#![no_main]

use std::{
    collections::BTreeSet,
    num::{NonZeroU8, NonZeroU32},
    time::{Duration, Instant},
};

use bfd::{
    Action, Authentication, AuthenticationKind, Event, Received, Role, Session, Settings, Timing,
};
use libfuzzer_sys::fuzz_target;

const KINDS: [AuthenticationKind; 4] = [
    AuthenticationKind::KeyedMd5,
    AuthenticationKind::MeticulousKeyedMd5,
    AuthenticationKind::KeyedSha1,
    AuthenticationKind::MeticulousKeyedSha1,
];

fn session(discriminator: u32, kind: AuthenticationKind, secret: &[u8]) -> Session {
    let interval = Duration::from_millis(100);
    let timing = Timing {
        desired_min_tx: interval,
        required_min_rx: interval,
        detect_multiplier: NonZeroU8::new(3).expect("not 0"),
    };
    let authentication = Some(Authentication::new(kind, 1, secret).expect("short enough"));
    let settings = Settings { role: Role::Active, timing, authentication };
    let discriminator = NonZeroU32::new(discriminator).expect("not 0");
    Session::new(discriminator, settings, discriminator.get().into())
}

fn sent(actions: Vec<Action>) -> impl Iterator<Item = Vec<u8>> {
    actions.into_iter().filter_map(|action| match action {
        Action::Send(payload) => Some(payload),
        Action::StateChanged { .. } => None,
    })
}

fuzz_target!(|data: &[u8]| {
    let [first, data @ ..] = data else { return };
    let kind = KINDS[usize::from(first % 4)];
    let meticulous = first % 2 == 1;
    let mut now = Instant::now();
    let mut ours = session(1, kind, b"right");
    // The peer, and one that has another key.
    let mut theirs = [session(2, kind, b"right"), session(2, kind, b"wrong")];
    ours.handle(Event::Start, now);
    let mut genuine: Vec<Vec<u8>> = Vec::new();
    let mut forged: Vec<Vec<u8>> = Vec::new();
    for (place, end) in theirs.iter_mut().enumerate() {
        let first = sent(end.handle(Event::Start, now));
        if place == 0 { genuine.extend(first) } else { forged.extend(first) }
    }
    // Since the session forgot the peer's sequence numbers the last time.
    let mut believed: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut forgets_at = now;

    for act in data.chunks_exact(4) {
        let [what, place, octet, wait] = *act else { continue };
        let Some(end) = theirs.get_mut(usize::from(what >> 7)) else { continue };
        let of = if what >> 7 == 0 { &mut genuine } else { &mut forged };
        let mut payload = match what & 3 {
            // Time passes, and both ends do what is due.
            0 => {
                now += Duration::from_millis(u64::from(wait) * 4);
                of.extend(sent(end.handle_timeout(now)));
                for answer in sent(ours.handle_timeout(now)) {
                    if let Ok(received) = Received::read(&answer) {
                        of.extend(sent(end.handle(Event::Received(received), now)));
                    }
                }
                continue;
            }
            // The newest, an earlier one.
            1 => of.last().cloned().unwrap_or_default(),
            _ => of.get(usize::from(place) % of.len().max(1)).cloned().unwrap_or_default(),
        };
        if what & 3 == 3 && !payload.is_empty() {
            let at = usize::from(place) % payload.len();
            payload[at] ^= octet;
            payload.truncate(payload.len() - usize::from(wait & 3));
        }
        let Ok(received) = Received::read(&payload) else { continue };
        let before = ours.counters().received;
        ours.handle(Event::Received(received), now);
        if ours.counters().received > before {
            assert!(genuine.contains(&payload), "nobody with the key sent it");
            if now >= forgets_at {
                believed.clear();
            }
            forgets_at = now + 2 * ours.detection_time();
            assert!(believed.insert(payload) || !meticulous, "it was believed before");
        }
    }
});
