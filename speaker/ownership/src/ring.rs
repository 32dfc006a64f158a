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
    pub(crate) fn of(order: Vec<(u64, NodeName)>, me: &NodeName) -> Self {
        let mut ring = Self { order, ..Self::default() };
        ring.watchers = ring.after(me);
        ring.watched = ring
            .order
            .iter()
            .filter(|(_, name)| name != me && ring.after(name).contains(me))
            .map(|(_, name)| name.clone())
            .collect();
        ring
    }

    pub(crate) fn is_used(&self) -> bool {
        !self.order.is_empty()
    }

    pub(crate) fn watches(&self, name: &str) -> bool {
        !self.is_used() || self.watched.contains(name)
    }

    /// The next on the ring after a node, itself left out.
    pub(crate) fn after(&self, node: &str) -> BTreeSet<NodeName> {
        let place = self
            .order
            .partition_point(|(hash, name)| (*hash, &**name) <= (hash_of_name(node), node));
        let (before, after) = self.order.split_at(place);
        let others = after.iter().chain(before).filter(|(_, name)| **name != *node);
        others.take(WATCHERS).map(|(_, name)| name.clone()).collect()
    }

    /// Whether a node watches this one.
    pub(crate) fn is_watcher(&self, name: &str) -> bool {
        self.watchers.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(size: usize, me: usize) -> Ring {
        let mut order: Vec<_> = (0..size)
            .map(|n| NodeName::from(format!("node-{n}")))
            .map(|name| (hash_of_name(&name), name))
            .collect();
        order.sort_unstable();
        Ring::of(order, &format!("node-{me}").into())
    }

    #[test]
    fn each_node_is_watched_by_four_others_and_all_agree_by_whom() {
        let rings: Vec<_> = (0..30).map(|me| ring(30, me)).collect();
        for (me, own) in rings.iter().enumerate() {
            let name = format!("node-{me}");
            assert_eq!(own.watchers.len(), WATCHERS);
            assert_eq!(own.watched.len(), WATCHERS);
            assert!(!own.is_watcher(&name) && !own.watches(&name));
            for (other, theirs) in rings.iter().enumerate() {
                let watched = own.is_watcher(&format!("node-{other}"));
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
