//! What the roll and the ring say at once, against what a walk through all peers finds.

use proptest::prelude::*;

use super::*;

/// Something that happens to a peer, by its number.
#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    Remove(u8),
    /// Of its next life?
    Hear(u8, bool),
    Beat(u8, Beat),
    /// By whom?
    Accuse(u8, u8),
    Vouch(u8),
    Overdue,
    Forgive,
    Close,
    Pause(u64),
}

/// More than make a ring.
const NAMES: u8 = 24;

fn any_beat() -> impl Strategy<Value = Beat> {
    let stations = proptest::collection::vec((0..2_u8, 0..6_u8), 0..2);
    (any::<bool>(), stations).prop_map(|(rings, stations)| Beat {
        flags: Flags::RING.when(rings),
        stations: stations
            .into_iter()
            .map(|(interface, last)| (format!("eth{interface}"), [2, 0, 0, 0, 0, last]))
            .collect(),
        ..Beat::default()
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let peer = || 0..NAMES;
    prop_oneof![
        1 => peer().prop_map(Step::Add),
        1 => peer().prop_map(Step::Remove),
        8 => (peer(), proptest::bool::weighted(0.2)).prop_map(|(of, next)| Step::Hear(of, next)),
        4 => (peer(), any_beat()).prop_map(|(of, beat)| Step::Beat(of, beat)),
        4 => (peer(), peer()).prop_map(|(of, by)| Step::Accuse(of, by)),
        2 => peer().prop_map(Step::Vouch),
        4 => Just(Step::Overdue),
        1 => Just(Step::Forgive),
        4 => Just(Step::Close),
        4 => (1..120_u64).prop_map(Step::Pause),
    ]
}

fn name(number: u8) -> NodeName {
    format!("node-{number}").into()
}

impl Peers {
    fn take(&mut self, step: Step, sequence: u64, now: Instant) {
        match step {
            Step::Add(number) => self.add(name(number)),
            Step::Remove(number) => {
                self.remove(&name(number));
            }
            Step::Hear(number, next) => {
                let known = self.get(&name(number)).map_or(0, Peer::incarnation);
                let incarnation = (known + u64::from(next)).max(1);
                self.hear(&name(number), incarnation, sequence, now);
            }
            Step::Beat(number, beat) => {
                self.take_beat(&name(number), beat, now);
            }
            Step::Accuse(number, by) => {
                if let Some(notice) = self.notice(&name(number)) {
                    self.accuse(&name(by), &notice, now);
                }
            }
            Step::Vouch(number) => {
                if let Some(notice) = self.notice(&name(number)) {
                    self.vouch(&Notice { sequence, ..notice }, now);
                }
            }
            Step::Overdue => {
                let due = |peer: &Peer| peer.living()?.deadline.filter(|at| *at <= now);
                let expected: Vec<_> = self
                    .all()
                    .filter(|(_, peer)| due(peer).is_some())
                    .map(|(name, _)| name.clone())
                    .collect();
                // Nobody here says when it heard others.
                assert_eq!(self.overdue(now), expected);
                let me = self.me.clone();
                for name in expected {
                    let notice = self.notice(&name).unwrap();
                    self.accuse(&me, &notice, now);
                }
            }
            Step::Forgive => self.forgive(now),
            Step::Close => self.close_and_compare(now),
            Step::Pause(_) => {}
        }
    }

    /// Closes the ranks, and looks whether it is as if the ring were made anew and everybody asked.
    fn close_and_compare(&mut self, now: Instant) {
        let ring = if self.in_ring() {
            Ring::of(self.living().map(|(name, _)| name.clone()), &self.me)
        } else {
            Ring::default()
        };
        let unchanged = !self.in_ring() && !self.ring.is_used();
        let deadline = |name: &NodeName, life: &Life| match (ring.watches(name), life.deadline) {
            (_, known) if unchanged => known,
            (false, _) => None,
            (true, None) if !life.accusers.contains(&self.me) => Some(now + self.patience()),
            (true, known) => known,
        };
        let deadlines: BTreeMap<_, _> =
            self.living().map(|(name, life)| (name.clone(), deadline(name, life))).collect();
        self.close_ranks(now);
        let found: BTreeMap<_, _> =
            self.living().map(|(name, life)| (name.clone(), life.deadline)).collect();
        assert_eq!(found, deadlines);
        assert_eq!(self.ring.is_used(), ring.is_used());
        assert_eq!(self.ring.watchers(), ring.watchers());
        assert_eq!(self.ring.watched(), ring.watched());
        for number in 0..NAMES {
            assert_eq!(self.ring.after(&name(number)), ring.after(&name(number)));
        }
    }

    fn compare(&self, now: Instant) {
        let deadlines = || self.living().filter_map(|(_, life)| life.deadline);
        assert_eq!(self.next_deadline(), deadlines().min());
        let grace = self.profile.interval * 2 + SLACK;
        let heard = self.living().filter_map(|(_, life)| life.deadline.and(life.heard));
        let late: BTreeSet<_> = heard.map(|heard| heard + grace).collect();
        assert_eq!(self.is_anyone_late(now), late.iter().any(|at| *at <= now));
        assert_eq!(self.next_late(now), late.into_iter().find(|at| *at > now));
        for window in [0, 40, 320, 2_000] {
            let then = now - Duration::from_millis(window);
            let gone = |peer: &&Peer| {
                peer.living().is_none() && peer.departures.back().is_some_and(|at| *at >= then)
            };
            let lost = self.known.values().filter(gone).count();
            assert_eq!(self.lost_since(then), (lost, self.living().count()));
        }
        let rings = self.living().any(|(_, life)| life.flags().has(Flags::RING));
        assert_eq!(self.in_ring(), self.known.len() >= FULL_MESH || rings);
        let unsteady = self.known.values().filter(|peer| peer.is_unsteady(now));
        assert!(self.unsteady(now).eq(unsteady.map(|peer| peer.tag)));
        let silent =
            || self.all().filter(|(_, peer)| peer.living().is_none()).map(|(name, _)| name);
        assert!(self.silent_after(None).eq(silent()));
        for last in 0..6 {
            let mac = [2, 0, 0, 0, 0, last];
            let has = |peer: &Peer| peer.stations.values().any(|known| *known == mac);
            let node = self.all().find(|(_, peer)| has(peer)).map(|(name, _)| name);
            assert_eq!(self.node_of(mac), node);
        }
    }
}

proptest! {
    #[test]
    fn they_agree_whatever_happens(
        few in any::<bool>(),
        steps in proptest::collection::vec(any_step(), 1..150),
    ) {
        #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
        let mut now = Instant::now() + Duration::from_secs(3600);
        let mut peers = Peers::new("me".into(), 1, Profile::DEFAULT);
        for number in 0..if few { 4 } else { 21 } {
            peers.add(name(number));
        }
        for (sequence, step) in (1..).zip(steps) {
            if let Step::Pause(time) = step {
                now += Duration::from_millis(time);
            }
            peers.take(step, sequence, now);
            peers.compare(now);
        }
    }
}
