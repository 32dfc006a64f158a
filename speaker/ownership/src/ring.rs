//! Who watches whom in a cluster in which not everybody hears everybody.

use std::collections::BTreeSet;

use crate::NodeName;
use crate::claim::hash_of_name;

/// By how many others a node is watched on the ring.
const WATCHERS: usize = 4;

/// Who watches whom.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// All that live and this node, by their hash; empty in a full mesh.
    order: Vec<(u64, NodeName)>,
    watchers: BTreeSet<NodeName>,
    watched: BTreeSet<NodeName>,
}

impl Ring {
    /// The ring of this node and all others that live.
    pub(crate) fn of(living: impl Iterator<Item = NodeName>, me: &NodeName) -> Self {
        let mut order: Vec<_> =
            living.chain([me.clone()]).map(|name| (hash_of_name(&name), name)).collect();
        order.sort_unstable();
        let mut ring = Self { order, ..Self::default() };
        ring.close(me);
        ring
    }

    /// Takes a node in, or leaves it out. Who watches whom is found out by [`close`](Self::close).
    pub(crate) fn set(&mut self, name: &NodeName, lives: bool) {
        let hash = hash_of_name(name);
        let place =
            self.order.binary_search_by(|(other, known)| (other, known).cmp(&(&hash, name)));
        match (place, lives) {
            (Err(place), true) => self.order.insert(place, (hash, name.clone())),
            (Ok(place), false) => drop(self.order.remove(place)),
            (Ok(_), true) | (Err(_), false) => {}
        }
    }

    /// Finds out who watches this node and whom it watches.
    pub(crate) fn close(&mut self, me: &NodeName) {
        self.watchers = self.after(me);
        let (before, after) = self.order.split_at(self.place_after(me));
        let others = before.iter().rev().chain(after.iter().rev());
        let others = others.filter(|(_, name)| name != me).take(WATCHERS);
        self.watched = others.map(|(_, name)| name.clone()).collect();
    }

    pub(crate) fn is_used(&self) -> bool {
        !self.order.is_empty()
    }

    pub(crate) fn watches(&self, name: &str) -> bool {
        !self.is_used() || self.watched.contains(name)
    }

    /// The next on the ring after a node, itself left out.
    pub(crate) fn after(&self, node: &str) -> BTreeSet<NodeName> {
        let (before, after) = self.order.split_at(self.place_after(node));
        let others = after.iter().chain(before).filter(|(_, name)| **name != *node);
        others.take(WATCHERS).map(|(_, name)| name.clone()).collect()
    }

    fn place_after(&self, node: &str) -> usize {
        let hash = hash_of_name(node);
        self.order.partition_point(|(other, name)| (*other, &**name) <= (hash, node))
    }

    /// Those that watch this node.
    pub(crate) fn watchers(&self) -> &BTreeSet<NodeName> {
        &self.watchers
    }

    /// Those that this node watches.
    pub(crate) fn watched(&self) -> &BTreeSet<NodeName> {
        &self.watched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(size: usize, me: usize) -> Ring {
        let name = |n| NodeName::from(format!("node-{n}"));
        Ring::of((0..size).filter(|n| *n != me).map(name), &name(me))
    }

    #[test]
    fn each_node_is_watched_by_four_others_and_all_agree_by_whom() {
        let rings: Vec<_> = (0..30).map(|me| ring(30, me)).collect();
        for (me, own) in rings.iter().enumerate() {
            let name = format!("node-{me}");
            assert_eq!(own.watchers.len(), WATCHERS);
            assert_eq!(own.watched.len(), WATCHERS);
            assert!(!own.watchers.contains(name.as_str()) && !own.watches(&name));
            for (other, theirs) in rings.iter().enumerate() {
                let watched = own.watchers.contains(format!("node-{other}").as_str());
                assert_eq!(watched, theirs.watched.contains(name.as_str()));
                assert_eq!(theirs.after(&name), own.watchers, "{other} about {me}");
            }
        }
    }

    #[test]
    fn of_few_all_watch() {
        assert_eq!(ring(3, 0).watchers.len(), 2);
        assert!(Ring::default().watches("anybody"), "in a full mesh");
    }
}
