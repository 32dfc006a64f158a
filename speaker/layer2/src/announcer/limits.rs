//! How much is answered and reported, so that nobody who floods the segment keeps this node busy, and
//! nobody who was here before a flood is left without an answer because of it.

use std::time::{Duration, Instant};

use pnet::util::MacAddr;

use self::askers::{Askers, Standing};
use super::Watch;
use crate::pace::{Bucket, Rate};

mod askers;

/// All answers together, but for [`RESERVED`].
const ANSWERS: Rate = Rate { interval: Duration::from_micros(250), burst: 800 };

/// More answers, for neighbors only.
const RESERVED: Rate = Rate { interval: Duration::from_millis(1), burst: 200 };

/// All answers to probes together.
const PROBES: Rate = Rate { interval: Duration::from_micros(50), burst: 6000 };

/// The answers to probes for one address.
const PROBES_OF_ONE: Rate = Rate { interval: Duration::from_millis(10), burst: 12 };

/// What is reported of all owned addresses together.
const HEARD: Rate = Rate { interval: Duration::from_millis(5), burst: 200 };

/// What is reported of one owned address.
const HEARD_OF_ONE: Rate = Rate { interval: Duration::from_millis(100), burst: 1 };

#[derive(Debug, Default)]
pub(super) struct Limits {
    answers: Bucket,
    reserved: Bucket,
    probes: Bucket,
    heard: Bucket,
    askers: Askers,
}

impl Limits {
    /// Whether one that asks for one of `owned` addresses is answered.
    pub(super) fn admit(&mut self, asker: MacAddr, owned: usize, now: Instant) -> bool {
        let Some(standing) = self.askers.admit(asker, owned, now) else { return false };
        let answered = self.answers.take(ANSWERS, now);
        match (standing, answered) {
            (Standing::Neighbor, answered) => answered || self.reserved.take(RESERVED, now),
            (Standing::Stranger, true) => {
                self.askers.note(asker, now);
                true
            }
            (Standing::Stranger, false) => {
                self.askers.distrust(now);
                false
            }
        }
    }

    /// Whether a probe is answered. One that is not lets the prober take the address, so it is
    /// limited by address and not by source: a speaker that has lost sight of this node probes for
    /// everything here at once, and again soon after.
    pub(super) fn admit_probe(&mut self, watch: &mut Watch, now: Instant) -> bool {
        watch.probes.take(PROBES_OF_ONE, now) && self.probes.take(PROBES, now)
    }

    /// Whether what a station says of an owned address is reported.
    pub(super) fn report(&mut self, watch: &mut Watch, now: Instant) -> bool {
        watch.heard.take(HEARD_OF_ONE, now) && self.heard.take(HEARD, now)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tests::epoch;

    /// A station of its own for each number.
    fn station(kind: u8, number: u32) -> MacAddr {
        let [a, b, c, d] = number.to_be_bytes();
        MacAddr::new(kind, a, b, c, d, 0)
    }

    fn neighbor(number: u32) -> MacAddr {
        station(0x02, number)
    }

    fn forged(number: u32) -> MacAddr {
        station(0x06, number)
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Lets `senders` ask 50,000 times a second from `from` on for `time`; how many are answered.
    /// Before each of them `meanwhile` may do something.
    fn flood(
        limits: &mut Limits,
        senders: u32,
        from: Instant,
        time: Duration,
        mut meanwhile: impl FnMut(&mut Limits, Instant),
    ) -> usize {
        let frames = u32::try_from(time.as_micros() / 20).unwrap();
        let answered = (0..frames).filter(|n| {
            let now = from + Duration::from_micros(20) * *n;
            meanwhile(limits, now);
            limits.admit(forged(n % senders), 100, now)
        });
        answered.count()
    }

    #[test]
    fn a_flood_from_ever_new_sources_takes_no_memory() {
        let (mut limits, now) = (Limits::default(), epoch());
        let admitted = (0..20_000_u32).filter(|n| limits.admit(forged(*n), 1, now)).count();
        assert_eq!(admitted, 800, "all strangers together");
        assert!(limits.askers.kept() <= Askers::MOST);
    }

    #[test]
    fn who_was_here_before_a_flood_is_answered_in_it() {
        // When the neighbor asked before, in seconds; the flood begins after a minute.
        let cases: [(&str, &[u64], u32, bool); 6] = [
            ("lately, against a few senders", &[48], 64, true),
            ("lately, against 4,096 senders", &[48], 4096, true),
            ("lately, against ever new senders", &[48], u32::MAX, true),
            ("once, long ago", &[0], 4096, true),
            ("every ten seconds", &[5, 15, 25, 35, 45, 55], 4096, true),
            ("for the first time just before the flood", &[55], 4096, false),
        ];
        for (name, before, senders, all_answered) in cases {
            let (mut limits, start) = (Limits::default(), epoch());
            for second in before {
                assert!(limits.admit(neighbor(1), 100, start + ms(second * 1000)), "{name}");
            }
            let begin = start + ms(60_000);
            let mut unanswered = 0;
            // Not in step with the flood.
            let pace = Duration::from_micros(20_130);
            let mut due = begin + pace;
            let answers = flood(&mut limits, senders, begin, ms(5000), |limits, now| {
                if now >= due {
                    unanswered += usize::from(!limits.admit(neighbor(1), 100, now));
                    due += pace;
                }
            });
            assert_eq!(unanswered == 0, all_answered, "{name}: {unanswered} of 248 unanswered");
            assert!(answers <= 20_800, "{name}: {answers}");
            assert!(limits.askers.kept() <= Askers::MOST, "{name}");
        }
    }

    #[test]
    fn nobody_becomes_a_neighbor_by_a_flood_however_long_it_is() {
        let (mut limits, start) = (Limits::default(), epoch());
        flood(&mut limits, 4096, start, ms(30_000), |_, _| {});
        assert_eq!(limits.askers.neighbors(), 0);
        // When it is over they have to wait as everybody has.
        let after = start + ms(41_000);
        assert!(limits.admit(forged(1), 100, after));
        limits.admit(forged(2), 100, after + ms(9000));
        assert_eq!(limits.askers.neighbors(), 0);
        limits.admit(forged(2), 100, after + ms(10_000));
        assert_eq!(limits.askers.neighbors(), 1);
    }

    #[test]
    fn a_flood_in_the_name_of_a_neighbor_leaves_the_others_theirs() {
        let (mut limits, start) = (Limits::default(), epoch());
        for number in 0..10 {
            limits.admit(neighbor(number), 100, start);
        }
        let begin = start + ms(20_000);
        let mut answered = BTreeMap::<_, usize>::new();
        for tick in 0..5000_u64 {
            let now = begin + ms(tick);
            for _ in 0..10 {
                *answered.entry(0).or_default() += usize::from(limits.admit(neighbor(0), 1, now));
            }
            if tick % 100 == 0 {
                for number in 1..10 {
                    let admitted = limits.admit(neighbor(number), 1, now);
                    *answered.entry(number).or_default() += usize::from(admitted);
                }
            }
        }
        assert!(answered[&0] <= 100 + 250, "50 a second: {}", answered[&0]);
        assert!((1..10).all(|number| answered[&number] == 50), "{answered:?}");
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A neighbor asks.
        Neighbor(u32),
        /// So many forged senders, of so many names, ask in the same moment; after a second without
        /// them the names are others.
        Flood { names: u32, times: u32 },
        /// Milliseconds.
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..8_u32).prop_map(Step::Neighbor),
            3 => (1..10_000_u32, 1..3000_u32).prop_map(|(names, times)| Step::Flood { names, times }),
            2 => (0..40_u64).prop_map(Step::Pass),
            1 => (900..15_000_u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn neighbors_are_answered_and_the_whole_is_bounded_whatever_others_do(
            steps in proptest::collection::vec(step(), 1..120),
        ) {
            let (mut limits, start) = (Limits::default(), epoch());
            for number in 0..8 {
                prop_assert!(limits.admit(neighbor(number), 10, start));
            }
            let begin = start + ms(10_000);
            let (mut now, mut answers) = (begin, 0_usize);
            let (mut generation, mut name) = (0_u32, 0_u32);
            let mut asked = BTreeMap::<u32, Instant>::new();
            for step in steps {
                match step {
                    // At the pace that one source may keep for ever.
                    Step::Neighbor(number) => {
                        if asked.get(&number).is_none_or(|last| now >= *last + ms(20)) {
                            asked.insert(number, now);
                            prop_assert!(limits.admit(neighbor(number), 10, now), "{}", number);
                            answers += 1;
                        }
                    }
                    Step::Flood { names, times } => {
                        for _ in 0..times {
                            name = (name + 1) % names;
                            let sender = forged(generation * 10_000 + name);
                            answers += usize::from(limits.admit(sender, 10, now));
                        }
                    }
                    Step::Pass(time) => {
                        now += ms(time);
                        generation += u32::from(time >= 900);
                    }
                }
                prop_assert!(limits.askers.kept() <= Askers::MOST);
                let elapsed = usize::try_from((now - begin).as_millis()).unwrap();
                prop_assert!(answers <= 1000 + 5 * elapsed, "{} in {} ms", answers, elapsed);
            }
        }
    }
}
