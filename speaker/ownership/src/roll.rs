//! The peers in the orders in which they are asked for: who is to be heard by when, who is silent,
//! who comes and goes. A datagram concerns one peer and is not to cost a walk through all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Instant;

use crate::message::Flags;
use crate::peer::Peer;
use crate::{Mac, NodeName};

#[derive(Debug, Default)]
pub(crate) struct Roll {
    living: usize,
    /// How many of the living beat to their watchers only.
    ringers: usize,
    silent: BTreeSet<NodeName>,
    /// The silent ones by their last departure.
    departed: BTreeSet<(Instant, NodeName)>,
    /// Those that went away often enough to be unsteady if it was not long ago.
    restless: BTreeSet<NodeName>,
    deadlines: BTreeSet<(Instant, NodeName)>,
    /// Those with a deadline by when they were heard last.
    heard: BTreeSet<(Instant, NodeName)>,
    /// Those that began or ceased to live since this was last asked for.
    moved: BTreeSet<NodeName>,
    /// Which nodes said that a station is theirs.
    stations: BTreeMap<Mac, BTreeSet<NodeName>>,
}

/// What a peer is filed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    lives: bool,
    rings: bool,
    departed: Option<Instant>,
    restless: bool,
    deadline: Option<Instant>,
    heard: Option<Instant>,
}

impl Entry {
    pub(crate) fn of(peer: &Peer) -> Self {
        let life = peer.living();
        let deadline = life.and_then(|life| life.deadline);
        Self {
            lives: life.is_some(),
            rings: life.is_some_and(|life| life.flags().has(Flags::RING)),
            departed: if life.is_none() { peer.departures.back().copied() } else { None },
            restless: peer.is_restless(),
            deadline,
            heard: deadline.and(life).and_then(|life| life.heard),
        }
    }
}

impl Roll {
    /// Takes in that a peer is other than it was; `None` if it is not known.
    pub(crate) fn file(&mut self, name: &NodeName, before: Option<Entry>, after: Option<Entry>) {
        if before == after {
            return;
        }
        let lived = before.is_some_and(|entry| entry.lives);
        let lives = after.is_some_and(|entry| entry.lives);
        if lived != lives {
            self.moved.insert(name.clone());
        }
        self.living = self.living + usize::from(lives) - usize::from(lived);
        let [rang, rings] = [before, after].map(|entry| entry.is_some_and(|entry| entry.rings));
        self.ringers = self.ringers + usize::from(rings) - usize::from(rang);
        let names = |entry: Option<Entry>, named: fn(&Entry) -> bool| {
            entry.filter(named).map(|_| name.clone())
        };
        exchange(&mut self.silent, [before, after].map(|entry| names(entry, |entry| !entry.lives)));
        exchange(
            &mut self.restless,
            [before, after].map(|entry| names(entry, |entry| entry.restless)),
        );
        let moments = |moment: fn(Entry) -> Option<Instant>| {
            [before, after].map(|entry| entry.and_then(moment).map(|at| (at, name.clone())))
        };
        exchange(&mut self.departed, moments(|entry| entry.departed));
        exchange(&mut self.deadlines, moments(|entry| entry.deadline));
        exchange(&mut self.heard, moments(|entry| entry.heard));
    }

    /// Takes in that a peer has other stations than it had.
    pub(crate) fn move_stations(
        &mut self,
        name: &NodeName,
        before: &BTreeMap<String, Mac>,
        after: &BTreeMap<String, Mac>,
    ) {
        for mac in before.values() {
            if let Some(nodes) = self.stations.get_mut(mac) {
                nodes.remove(name);
                if nodes.is_empty() {
                    self.stations.remove(mac);
                }
            }
        }
        for mac in after.values() {
            self.stations.entry(*mac).or_default().insert(name.clone());
        }
    }

    /// The first node that said that a station is its own.
    pub(crate) fn node_of(&self, mac: Mac) -> Option<&NodeName> {
        self.stations.get(&mac)?.first()
    }

    /// How many live.
    pub(crate) fn living(&self) -> usize {
        self.living
    }

    /// Whether one that lives beats to its watchers only.
    pub(crate) fn has_ringer(&self) -> bool {
        self.ringers > 0
    }

    /// How many of the silent ones departed at that time or later.
    pub(crate) fn departed_since(&self, then: Instant) -> usize {
        self.departed.iter().rev().take_while(|(at, _)| *at >= then).count()
    }

    /// Those that may be unsteady.
    pub(crate) fn restless(&self) -> impl Iterator<Item = &NodeName> {
        self.restless.iter()
    }

    /// Those that do not live, by name and round: the ones after a name first.
    pub(crate) fn silent_after(&self, name: Option<&NodeName>) -> impl Iterator<Item = &NodeName> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        let before =
            self.silent.iter().take_while(move |other| name.is_some_and(|name| *other <= name));
        self.silent.range::<NodeName, _>((from, Bound::Unbounded)).chain(before)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Those whose deadline has come, by name.
    pub(crate) fn due(&self, now: Instant) -> BTreeSet<NodeName> {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, name)| name.clone()).collect()
    }

    /// Those that have a deadline.
    pub(crate) fn watched(&self) -> Vec<NodeName> {
        self.deadlines.iter().map(|(_, name)| name.clone()).collect()
    }

    /// When those that have a deadline were heard, the longest silent first.
    pub(crate) fn heard(&self) -> impl Iterator<Item = Instant> {
        self.heard.iter().map(|(at, _)| *at)
    }

    /// Those that began or ceased to live since this was last asked.
    pub(crate) fn take_moved(&mut self) -> BTreeSet<NodeName> {
        std::mem::take(&mut self.moved)
    }
}

fn exchange<T: Ord>(set: &mut BTreeSet<T>, [before, after]: [Option<T>; 2]) {
    if before == after {
        return;
    }
    if let Some(before) = before {
        set.remove(&before);
    }
    set.extend(after);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_silent_are_gone_through_in_a_round() {
        let mut roll = Roll::default();
        let silent = Entry::of(&Peer::new("any".into(), 0));
        let names = ["a", "c", "e"].map(NodeName::from);
        for name in &names {
            roll.file(name, None, Some(silent));
        }
        let round = |from: Option<&str>| -> Vec<String> {
            let from = from.map(NodeName::from);
            roll.silent_after(from.as_ref()).map(ToString::to_string).collect()
        };
        assert_eq!(round(None), ["a", "c", "e"]);
        assert_eq!(round(Some("a")), ["c", "e", "a"]);
        assert_eq!(round(Some("b")), ["c", "e", "a"], "it is silent no more");
        assert_eq!(round(Some("e")), ["a", "c", "e"]);
        assert!(Roll::default().silent_after(Some(&names[0])).next().is_none());
    }
}
