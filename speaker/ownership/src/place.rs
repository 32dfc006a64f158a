//! The first placement, worked out without a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::placement::{Bidder, first};
use crate::{Candidates, NodeName};

/// Which node each address goes to when exactly these nodes live and nothing was ever owned. An
/// address without a candidate that lives is missing.
pub fn place(
    addresses: &BTreeMap<IpAddr, Arc<Candidates>>,
    live: &BTreeSet<NodeName>,
) -> BTreeMap<IpAddr, NodeName> {
    let mut bidders: Vec<Bidder> = live.iter().cloned().map(Bidder::idle).collect();
    let mut placed = BTreeMap::new();
    for (address, candidates) in addresses {
        let may = |bidder: &Bidder| candidates.nodes.contains(&bidder.name);
        if let Some(winner) = first(&bidders, candidates, *address, may) {
            let winner = &mut bidders[winner];
            winner.load += 1;
            placed.insert(*address, winner.name.clone());
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank;

    fn names(names: &[&str]) -> BTreeSet<NodeName> {
        names.iter().map(|name| NodeName::from(*name)).collect()
    }

    fn addresses(count: u8, candidates: &Candidates) -> BTreeMap<IpAddr, Arc<Candidates>> {
        let candidates = Arc::new(candidates.clone());
        (0..count).map(|last| (IpAddr::from([192, 0, 2, last]), Arc::clone(&candidates))).collect()
    }

    #[test]
    fn one_address_goes_to_the_first_by_preference_and_rank() {
        let live = names(&["a", "b", "c"]);
        let mut candidates = Candidates { nodes: live.clone(), ..Candidates::default() };
        for last in 0..32 {
            let address = IpAddr::from([192, 0, 2, last]);
            let one = [(address, Arc::new(candidates.clone()))].into();
            let by_rank = live.iter().min_by_key(|node| rank(node, address)).cloned();
            assert_eq!(place(&one, &live).remove(&address), by_rank);
        }
        candidates.preference = [("b".into(), 1), ("c".into(), 2)].into();
        let one = addresses(1, &candidates);
        assert_eq!(place(&one, &live).into_values().collect::<Vec<_>>(), ["c".into()]);
        let without = names(&["a", "b"]);
        assert_eq!(place(&one, &without).into_values().collect::<Vec<_>>(), ["b".into()]);
        assert_eq!(place(&one, &names(&["d"])), BTreeMap::new());
    }

    #[test]
    fn no_node_has_more_than_its_share() {
        let live = names(&["a", "b", "c"]);
        let candidates = Candidates { nodes: live.clone(), ..Candidates::default() };
        let placed = place(&addresses(100, &candidates), &live);
        for node in &live {
            let share = placed.values().filter(|owner| *owner == node).count();
            assert!((33..=34).contains(&share), "{node} has {share}");
        }
    }
}
