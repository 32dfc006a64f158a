//! Which peers live, as far as they can be heard.
//!
//! Up to [`FULL_MESH`] nodes everybody hears everybody; above, each node is watched by a few
//! others on a ring, and what they find counts for all. This module keeps what was heard and comes
//! to verdicts; it neither sends nor touches an address.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::claim::hash_of_name;
use crate::message::{Age, Beat, Flags, Notice, Tag};
use crate::peer::{Change, Heartbeat, Life, News, Paces, Peer, Verdict};
use crate::ring::Ring;
use crate::roll::{Entry, Roll};
use crate::{Claim, Mac, NodeName, Profile};

/// In clusters of at most so many nodes everybody hears everybody.
pub(crate) const FULL_MESH: usize = 20;

/// How many of them must agree that it is dead.
const QUORUM: usize = 2;

/// A beat may be late by this much beside those that are lost.
const SLACK: Duration = Duration::from_millis(10);

/// How soon a verdict that was withheld is looked at again.
const RECONSIDER: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Peers {
    me: NodeName,
    incarnation: u64,
    profile: Profile,
    known: BTreeMap<NodeName, Peer>,
    /// Kept true by `amend`, through which all changes of a peer go.
    roll: Roll,
    ring: Ring,
}

impl Peers {
    pub(crate) fn new(me: NodeName, incarnation: u64, profile: Profile) -> Self {
        Self {
            me,
            incarnation,
            profile,
            known: BTreeMap::new(),
            roll: Roll::default(),
            ring: Ring::default(),
        }
    }

    /// How long a peer may be silent.
    pub(crate) fn patience(&self) -> Duration {
        self.profile.interval * self.profile.misses + SLACK
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Peer> {
        self.known.get(name)
    }

    pub(crate) fn paces(&mut self, name: &str) -> Option<&mut Paces> {
        Some(&mut self.known.get_mut(name)?.paces)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&NodeName, &Peer)> {
        self.known.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(crate) fn living(&self) -> impl Iterator<Item = (&NodeName, &Life)> {
        self.known.iter().filter_map(|(name, peer)| Some((name, peer.living()?)))
    }

    /// The life that a peer lives.
    pub(crate) fn life(&self, name: &str) -> Option<&Life> {
        self.known.get(name)?.living()
    }

    /// Whether a claim is in force: its owner lives, in the life in which it was made.
    pub(crate) fn stands_by(&self, claim: &Claim) -> bool {
        if claim.owner == self.me {
            return claim.incarnation == self.incarnation;
        }
        self.life(&claim.owner).is_some_and(|life| life.incarnation == claim.incarnation)
    }

    pub(crate) fn add(&mut self, name: NodeName) {
        if !self.known.contains_key(&name) {
            let peer = Peer::new(name.clone(), tag(&name));
            self.roll.file(&name, None, Some(Entry::of(&peer)));
            self.known.insert(name, peer);
        }
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Peer> {
        let peer = self.known.remove(name)?;
        self.roll.file(&peer.name, Some(Entry::of(&peer)), None);
        self.roll.move_stations(&peer.name, &peer.stations, &BTreeMap::new());
        Some(peer)
    }

    /// Changes what is known of a peer; `None` if there is no such peer.
    fn amend<R>(&mut self, name: &str, change: impl FnOnce(&mut Peer) -> R) -> Option<R> {
        let peer = self.known.get_mut(name)?;
        let before = Entry::of(peer);
        let result = change(peer);
        self.roll.file(&peer.name, Some(before), Some(Entry::of(peer)));
        Some(result)
    }

    /// The node that a station belongs to, dead or alive; the first if several say so.
    pub(crate) fn node_of(&self, mac: Mac) -> Option<&NodeName> {
        self.roll.node_of(mac)
    }

    /// Takes in that a datagram arrived that was meant for this life of this node.
    pub(crate) fn hear(
        &mut self,
        name: &str,
        incarnation: u64,
        sequence: u64,
        now: Instant,
    ) -> News {
        let patience = self.patience();
        let deadline = self.ring.watches(name).then_some(now + patience);
        let hear = |peer: &mut Peer| {
            let Some(life) = peer.life.as_mut().filter(|life| life.incarnation == incarnation)
            else {
                if peer.living().is_some() {
                    peer.depart(now);
                }
                let returned = peer.life.as_ref().is_some_and(Life::vanished);
                peer.life = Some(Life::new(incarnation, sequence, now));
                peer.heard(now, deadline);
                return if returned { News::Returned } else { News::Born };
            };
            if sequence <= life.sequence {
                return News::Overtaken;
            }
            life.sequence = sequence;
            let news = match life.verdict {
                Verdict::Dead => News::Revived,
                Verdict::Lives if life.silent_since(now, patience) => News::Again,
                Verdict::Lives => News::Lives,
            };
            life.verdict = Verdict::Lives;
            life.accusers.clear();
            peer.heard(now, deadline);
            news
        };
        self.amend(name, hear).unwrap_or(News::Overtaken)
    }

    /// Takes a beat in and returns what it changes.
    pub(crate) fn take_beat(&mut self, name: &str, beat: Beat, now: Instant) -> Change {
        let stations: BTreeMap<_, _> = beat.stations.into_iter().collect();
        let flags = beat.flags | Flags::MUTED.when(stations.is_empty());
        let mut left = None;
        let take = |peer: &mut Peer| {
            let mut change = Change::default();
            if !stations.is_empty() && peer.stations != stations {
                let before = std::mem::replace(&mut peer.stations, stations.clone());
                left = Some((peer.name.clone(), before));
                change.stations = true;
            }
            let Some(life) = &mut peer.life else { return change };
            let before = life.flags();
            change.version = life.version() != beat.version;
            change.resumption = before.has(Flags::RESUMING) != flags.has(Flags::RESUMING);
            change.prospects = change.stations
                || before != flags
                || life.beat.as_ref().is_none_or(|before| before.unsteady != beat.unsteady);
            life.beat = Some(Heartbeat {
                at: now,
                flags,
                owned: beat.owned,
                version: beat.version,
                ages: beat.ages,
                unsteady: beat.unsteady,
            });
            change
        };
        let change = self.amend(name, take).unwrap_or_default();
        if let Some((name, before)) = left {
            self.roll.move_stations(&name, &before, &stations);
        }
        change
    }

    /// What this node says of when it heard the others.
    pub(crate) fn ages(&self, now: Instant) -> Vec<Age> {
        if self.in_ring() {
            return Vec::new();
        }
        let half = self.profile.interval / 2;
        let halves = |life: &Life| {
            let age = now.saturating_duration_since(life.heard?);
            u8::try_from(age.as_nanos() / half.as_nanos().max(1)).ok()
        };
        let age = |peer: &Peer| peer.life.as_ref().and_then(halves).unwrap_or(15).min(15);
        self.known.values().map(|peer| Age { tag: peer.tag, halves: age(peer) }).collect()
    }

    /// When the next verdict is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.roll.next_deadline()
    }

    /// The peers that have been silent for too long and are dead by what this node knows; those
    /// that others heard just now are given more time.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<NodeName> {
        let mut overdue = Vec::new();
        for name in self.roll.due(now) {
            if self.is_heard_by_others(tag(&name), now) {
                self.set_deadline(&name, Some(now + RECONSIDER));
            } else {
                self.set_deadline(&name, None);
                overdue.push(name);
            }
        }
        overdue
    }

    fn set_deadline(&mut self, name: &str, deadline: Option<Instant>) {
        self.amend(name, |peer| {
            if let Some(life) = &mut peer.life {
                life.deadline = deadline;
            }
        });
    }

    /// Whether a peer said a moment ago that it had just heard the one with this tag.
    fn is_heard_by_others(&self, tag: Tag, now: Instant) -> bool {
        self.known.values().filter(|peer| peer.tag != tag).filter_map(Peer::living).any(|life| {
            life.beat.as_ref().is_some_and(|beat| {
                beat.at + self.profile.interval * 3 / 2 >= now
                    && beat.ages.iter().any(|age| age.tag == tag && age.halves < 4)
            })
        })
    }

    /// Notes a verdict and returns whether it is dead now and was not before. In a ring it takes
    /// two watchers, or the only one.
    pub(crate) fn accuse(&mut self, by: &NodeName, notice: &Notice, now: Instant) -> bool {
        let watchers = self.watchers_of(&notice.node);
        let alone = watchers.len() <= 1 || !self.in_ring();
        let counts = watchers.contains(by) || !self.ring.is_used();
        let patience = self.patience();
        let accuse = |peer: &mut Peer| {
            let life = peer.life.as_mut().filter(|life| life.verdict == Verdict::Lives)?;
            let contradicted =
                life.sequence > notice.sequence && !life.silent_since(now, patience - SLACK);
            if life.incarnation != notice.incarnation || contradicted {
                return None;
            }
            if counts {
                life.accusers.insert(by.clone());
            }
            let count = life.accusers.iter().filter(|name| watchers.contains(*name)).count();
            if count >= QUORUM || (alone && !life.accusers.is_empty()) {
                life.verdict = Verdict::Dead;
                life.deadline = None;
                peer.depart(now);
                return Some(());
            }
            None
        };
        self.amend(&notice.node, accuse).flatten().is_some()
    }

    /// Takes in that a watcher hears a life.
    pub(crate) fn vouch(&mut self, notice: &Notice, now: Instant) -> News {
        let watched = self.ring.watches(&notice.node);
        let deadline = watched.then_some(now + self.patience());
        let vouch = |peer: &mut Peer| {
            if notice.incarnation < peer.incarnation() {
                return News::Overtaken;
            }
            let life = peer.life.as_mut().filter(|life| life.incarnation == notice.incarnation);
            let Some(life) = life else {
                if peer.living().is_some() {
                    peer.depart(now);
                }
                // One that was never heard here is not known to be heard here later.
                let life = Life::new(notice.incarnation, notice.sequence, now);
                peer.life = Some(Life { deadline, ..life });
                return News::Born;
            };
            if notice.sequence <= life.sequence {
                return News::Overtaken;
            }
            life.sequence = notice.sequence;
            life.accusers.clear();
            match std::mem::replace(&mut life.verdict, Verdict::Lives) {
                Verdict::Dead => News::Revived,
                Verdict::Lives => News::Lives,
            }
        };
        self.amend(&notice.node, vouch).unwrap_or(News::Overtaken)
    }

    /// What this node has to say of a life that it hears.
    pub(crate) fn notice(&self, name: &str) -> Option<Notice> {
        let peer = self.known.get(name)?;
        let life = peer.life.as_ref()?;
        let (incarnation, sequence) = (life.incarnation, life.sequence);
        Some(Notice { node: peer.name.clone(), incarnation, sequence })
    }

    /// Whether this node watches a peer and does not hear it.
    pub(crate) fn misses(&self, name: &str) -> bool {
        self.ring.watches(name) && self.life(name).is_some_and(|life| life.deadline.is_none())
    }

    /// Whether this node heard a life later than a watcher that calls it dead.
    pub(crate) fn hears_after(&self, notice: &Notice) -> bool {
        let patience = self.patience();
        self.life(&notice.node).is_some_and(|life| {
            life.incarnation == notice.incarnation
                && life.sequence > notice.sequence
                && life.deadline.is_some_and(|deadline| deadline > life.since + patience)
        })
    }

    /// Peers that have already missed a beat or two while nobody may call them dead yet.
    pub(crate) fn is_anyone_late(&self, now: Instant) -> bool {
        self.roll.heard().next().is_some_and(|heard| heard + self.grace() <= now)
    }

    /// When somebody will have missed two beats.
    pub(crate) fn next_late(&self, now: Instant) -> Option<Instant> {
        self.roll.heard().map(|heard| heard + self.grace()).find(|at| *at > now)
    }

    fn grace(&self) -> Duration {
        self.profile.interval * 2 + SLACK
    }

    /// How many died since then, and how many live.
    pub(crate) fn lost_since(&self, then: Instant) -> (usize, usize) {
        (self.roll.departed_since(then), self.roll.living())
    }

    /// Gives everybody as much time as if it had just been heard.
    pub(crate) fn forgive(&mut self, now: Instant) {
        let deadline = now + self.patience();
        for name in self.roll.watched() {
            self.set_deadline(&name, Some(deadline));
        }
    }

    /// Peers that come and go, by what this node saw.
    pub(crate) fn unsteady(&self, now: Instant) -> impl Iterator<Item = Tag> {
        let restless = self.roll.restless().filter_map(|name| self.known.get(name));
        restless.filter(move |peer| peer.is_unsteady(now)).map(|peer| peer.tag)
    }

    /// The nodes that come and go, by what anybody saw who lives.
    pub(crate) fn all_unsteady(&self, now: Instant) -> BTreeSet<Tag> {
        let told = self.living().filter_map(|(_, life)| life.beat.as_ref());
        self.unsteady(now).chain(told.flat_map(|beat| &beat.unsteady).copied()).collect()
    }

    /// Whether each node is watched by a few only. One that does so is followed: whoever beats to
    /// its watchers only must not be taken for dead by all others.
    pub(crate) fn in_ring(&self) -> bool {
        self.known.len() >= FULL_MESH || self.roll.has_ringer()
    }

    /// Finds out anew who watches whom, after the living have changed.
    pub(crate) fn close_ranks(&mut self, now: Instant) {
        let moved = self.roll.take_moved();
        match (self.ring.is_used(), self.in_ring()) {
            (false, false) => {}
            (true, false) => {
                self.ring = Ring::default();
                self.watch(self.known.keys().cloned().collect(), now);
            }
            (false, true) => {
                let living = self.living().map(|(name, _)| name.clone());
                self.ring = Ring::of(living, &self.me);
                self.watch(self.known.keys().cloned().collect(), now);
            }
            (true, true) => {
                let mut concerned = self.ring.watched().clone();
                for name in &moved {
                    self.ring.set(name, self.life(name).is_some());
                }
                self.ring.close(&self.me);
                concerned.extend(self.ring.watched().iter().cloned());
                concerned.extend(moved);
                self.watch(concerned, now);
            }
        }
    }

    /// Starts to watch those among these that are to be watched and stops for the others.
    fn watch(&mut self, names: BTreeSet<NodeName>, now: Instant) {
        let deadline = now + self.patience();
        for name in names {
            let watched = self.ring.watches(&name);
            let me = self.me.clone();
            self.amend(&name, |peer| {
                let life = peer.life.as_mut().filter(|life| life.verdict == Verdict::Lives);
                let Some(life) = life else { return };
                match (watched, life.deadline) {
                    (false, _) => life.deadline = None,
                    (true, None) if !life.accusers.contains(&me) => life.deadline = Some(deadline),
                    (true, _) => {}
                }
            });
        }
    }

    /// Those that watch this node; all in a full mesh.
    pub(crate) fn watchers(&self) -> Vec<NodeName> {
        if self.ring.is_used() {
            self.ring.watchers().iter().cloned().collect()
        } else {
            self.known.keys().cloned().collect()
        }
    }

    /// Those that are not heard, in a round that goes on after one of them.
    pub(crate) fn silent_after(&self, name: Option<&NodeName>) -> impl Iterator<Item = &NodeName> {
        self.roll.silent_after(name)
    }

    /// Whether this node watches a peer.
    pub(crate) fn watches(&self, name: &str) -> bool {
        self.ring.watches(name)
    }

    /// The living that watch a node, this one among them.
    fn watchers_of(&self, node: &str) -> BTreeSet<NodeName> {
        if !self.ring.is_used() {
            return self.living().map(|(name, _)| name.clone()).chain([self.me.clone()]).collect();
        }
        self.ring.after(node)
    }
}

/// What stands for a name where there is little room.
pub(crate) fn tag(name: &str) -> Tag {
    let [a, b, c, d, ..] = hash_of_name(name).to_be_bytes();
    u32::from_be_bytes([a, b, c, d]) >> 4
}

#[cfg(test)]
mod walks;

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_millis(40);

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
        let now = Instant::now();
        now
    }

    fn mesh(names: &[&str]) -> Peers {
        let mut peers = Peers::new("me".into(), 1, Profile::DEFAULT);
        for name in names {
            peers.add((*name).into());
        }
        peers
    }

    fn beat_that_heard(other: &str, halves: u8) -> Beat {
        let ages = vec![Age { tag: tag(other), halves }];
        Beat { ages, stations: vec![("eth0".to_owned(), [2; 6])], ..Beat::default() }
    }

    #[test]
    fn four_missed_beats_and_the_slack_make_a_peer_dead() {
        let mut peers = mesh(&["a"]);
        let now = start();
        assert_eq!(peers.hear("a", 5, 1, now), News::Born);
        assert_eq!(peers.hear("a", 5, 2, now + T), News::Lives);
        assert_eq!(peers.hear("a", 5, 2, now + T * 2), News::Overtaken);
        let dead = now + T * 5 + SLACK;
        assert_eq!(peers.next_deadline(), Some(dead));
        assert!(peers.overdue(dead - Duration::from_millis(1)).is_empty());
        assert_eq!(peers.overdue(dead), [NodeName::from("a")]);
        let notice = peers.notice("a").unwrap();
        assert!(peers.accuse(&"me".into(), &notice, dead));
        assert!(peers.life("a").is_none());
        assert_eq!(peers.hear("a", 5, 2, dead), News::Overtaken, "a recording raises nobody");
        assert_eq!(peers.hear("a", 5, 3, dead), News::Revived);
        assert_eq!(peers.hear("a", 6, 1, dead), News::Born, "a new life needs no verdict");
    }

    #[test]
    fn a_verdict_waits_for_as_long_as_somebody_else_hears_the_node() {
        for (halves, age_of_beat, dead) in
            [(3, T, false), (4, T, true), (15, T, true), (0, T * 2, true)]
        {
            let mut peers = mesh(&["a", "b"]);
            let now = start() + T;
            let due = now + T * 4 + SLACK;
            peers.hear("a", 1, 1, now);
            peers.hear("b", 1, 1, due - age_of_beat);
            peers.take_beat("b", beat_that_heard("a", halves), due - age_of_beat);
            assert_eq!(!peers.overdue(due).is_empty(), dead, "{halves} {age_of_beat:?}");
            if !dead {
                assert_eq!(peers.next_deadline(), Some(due + RECONSIDER));
            }
        }
    }

    #[test]
    fn ages_are_told_in_halves_of_a_beat() {
        let mut peers = mesh(&["a", "b"]);
        let now = start();
        peers.hear("a", 1, 1, now);
        for (after, halves) in [(0, 0), (19, 0), (20, 1), (79, 3), (80, 4), (299, 14), (999, 15)] {
            let ages = peers.ages(now + Duration::from_millis(after));
            let of = |name| ages.iter().find(|age| age.tag == tag(name)).unwrap().halves;
            assert_eq!((of("a"), of("b")), (halves, 15), "{after} ms");
        }
    }

    #[test]
    fn one_that_comes_and_goes_is_known_for_it() {
        let mut peers = mesh(&["a"]);
        let now = start();
        let minute = Duration::from_secs(60);
        for life in 1..=4 {
            peers.hear("a", u64::from(life), 1, now + minute * life);
        }
        let unsteady = |peers: &Peers, at| peers.unsteady(at).next().is_some();
        assert!(!unsteady(&peers, now + minute * 4), "three times");
        peers.hear("a", 5, 1, now + minute * 5);
        assert!(unsteady(&peers, now + minute * 5));
        assert!(unsteady(&peers, now + minute * 14));
        assert!(!unsteady(&peers, now + minute * 15));
    }

    /// A ring of 25, in which this node watches `watched` and does not watch `far`.
    fn ring(now: Instant) -> (Peers, NodeName, NodeName) {
        let names: Vec<_> = (0..24).map(|n| format!("node-{n}")).collect();
        let mut peers = mesh(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for name in &names {
            peers.hear(name, 1, 10, now);
        }
        peers.close_ranks(now);
        let find = |watched| names.iter().find(|name| peers.watches(name) == watched).unwrap();
        let (watched, far) = (find(true).as_str().into(), find(false).as_str().into());
        (peers, watched, far)
    }

    #[test]
    fn in_a_ring_two_watchers_make_a_node_dead() {
        let now = start();
        let (mut peers, _, far) = ring(now);
        let later = now + T * 5;
        let notice = peers.notice(&far).unwrap();
        let watchers: Vec<_> = peers.watchers_of(&far).into_iter().collect();
        let stranger =
            peers.all().map(|(name, _)| name.clone()).find(|name| !watchers.contains(name));
        assert!(!peers.accuse(&stranger.unwrap(), &notice, later), "it does not watch it");
        assert!(!peers.accuse(&watchers[0], &notice, later));
        assert!(!peers.accuse(&watchers[0], &notice, later), "the same again");
        assert!(peers.accuse(&watchers[1], &notice, later));
        let vouched = Notice { sequence: notice.sequence + 1, ..notice.clone() };
        assert_eq!(peers.vouch(&notice, later), News::Overtaken);
        assert_eq!(peers.vouch(&vouched, later), News::Revived);
    }

    #[test]
    fn whoever_was_heard_after_the_verdict_is_not_dead() {
        let now = start();
        let (mut peers, _, far) = ring(now);
        let notice = peers.notice(&far).unwrap();
        peers.hear(&far, 1, 11, now + T * 4);
        let watchers = peers.watchers_of(&far);
        for watcher in &watchers {
            assert!(!peers.accuse(watcher, &notice, now + T * 5));
        }
    }

    #[test]
    fn only_those_that_are_watched_have_a_deadline() {
        let now = start();
        let (mut peers, watched, far) = ring(now);
        let overdue = peers.overdue(now + T * 4 + SLACK);
        assert_eq!(overdue.len(), 4);
        assert!(overdue.contains(&watched) && !overdue.contains(&far));
        assert!(peers.ages(now).is_empty(), "nobody hears everybody");
    }
}
