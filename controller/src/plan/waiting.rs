//! Who waits for what: every Service that lacks something is filed under what would help it, so
//! that a change looks at nobody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use crate::{
    allocator::{Id, Topic},
    service::{Port, Protocol, Rank, Service},
};

/// A Service that waits, in the order of service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiter {
    pub rank: Rank,
    pub id: Id,
}

impl Waiter {
    pub fn new(service: &Service, id: Id) -> Self {
        Self { rank: service.rank(), id }
    }
}

/// The files.
#[derive(Debug, Clone, Default)]
pub struct Waiting {
    by_topic: BTreeMap<Topic, BTreeSet<Waiter>>,
    topics: BTreeMap<Id, (Waiter, Vec<Topic>)>,
}

impl Waiting {
    /// Files `waiter` under `topics` and nothing else; nothing: it does not wait.
    pub fn file(&mut self, waiter: Waiter, topics: Vec<Topic>) {
        let id = waiter.id;
        if self.topics.get(&id).is_some_and(|(old, filed)| *old == waiter && *filed == topics) {
            return;
        }
        self.remove(id);
        for topic in &topics {
            self.by_topic.entry(topic.clone()).or_default().insert(waiter.clone());
        }
        if !topics.is_empty() {
            self.topics.insert(id, (waiter, topics));
        }
    }

    pub fn remove(&mut self, id: Id) {
        let Some((waiter, topics)) = self.topics.remove(&id) else { return };
        for topic in topics {
            if let Some(waiters) = self.by_topic.get_mut(&topic) {
                waiters.remove(&waiter);
                if waiters.is_empty() {
                    self.by_topic.remove(&topic);
                }
            }
        }
    }

    pub fn is_filed(&self, id: Id, topic: &Topic) -> bool {
        self.topics.get(&id).is_some_and(|(_, topics)| topics.contains(topic))
    }

    /// The topics that somebody waits for among those that `opened` stands for.
    fn meant_by(&self, opened: &Topic) -> Vec<Topic> {
        match opened {
            Topic::Shared(group, None) => {
                let last = Port { protocol: Protocol::Sctp, number: u16::MAX };
                let range = opened.clone()..=Topic::Shared(group.clone(), Some(last));
                self.by_topic.range(range).map(|(topic, _)| topic.clone()).collect()
            }
            Topic::Pool(..)
            | Topic::General(_)
            | Topic::Quota(..)
            | Topic::Shared(_, Some(_))
            | Topic::Address(_) => {
                let waits = self.by_topic.contains_key(opened);
                waits.then(|| opened.clone()).into_iter().collect()
            }
        }
    }

    fn next(&self, topic: &Topic, after: Option<&Waiter>) -> Option<Waiter> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_topic.get(topic)?.range((after, Bound::Unbounded)).next().cloned()
    }
}

/// The topics that have opened and how far each has been worked off.
#[derive(Debug, Default)]
pub struct Wake {
    heads: BTreeSet<(Waiter, Topic)>,
    head_of: BTreeMap<Topic, Waiter>,
}

impl Wake {
    /// `opened` is worked off from its oldest waiter on, even if it was before.
    pub fn open(&mut self, opened: &Topic, waiting: &Waiting) {
        for topic in waiting.meant_by(opened) {
            if let Some(head) = self.head_of.remove(&topic) {
                self.heads.remove(&(head, topic.clone()));
            }
            self.advance(topic, None, waiting);
        }
    }

    /// The oldest waiter of all open topics, and one that it is filed under.
    pub fn next(&mut self, waiting: &Waiting, is_open: impl Fn(&Topic) -> bool) -> Option<Waiter> {
        while let Some((waiter, topic)) = self.heads.pop_first() {
            self.head_of.remove(&topic);
            if !is_open(&topic) {
                continue;
            }
            self.advance(topic.clone(), Some(&waiter), waiting);
            if waiting.is_filed(waiter.id, &topic) {
                return Some(waiter);
            }
        }
        None
    }

    fn advance(&mut self, topic: Topic, after: Option<&Waiter>, waiting: &Waiting) {
        if let Some(head) = waiting.next(&topic, after) {
            self.head_of.insert(topic.clone(), head.clone());
            self.heads.insert((head, topic));
        }
    }
}
