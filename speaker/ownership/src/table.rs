//! The claims that are known, and by whom each address is held.
//!
//! For every address the best claim ever seen is kept. It counts as long as it is in force; one
//! that is not is a floor for the next epoch, and then the best claim in force beneath it counts.
//! Nothing is decided here: who holds what is told by `set_holder` after each change.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::claim::hash_of_address;
use crate::message::BUCKETS;
use crate::{Claim, NodeName};

/// The largest step of an epoch that is believed.
const MAX_EPOCH_STEP: u64 = 1 << 32;

/// Rows for addresses outside the own view are kept for as long as the table is smaller than this.
pub(crate) const MAX_ROWS: usize = 100_000;

#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: BTreeMap<IpAddr, Row>,
    /// The addresses with a claim of each node, in force or not.
    claimed_by: Index,
    held_by: Index,
    buckets: Buckets,
}

type Index = BTreeMap<NodeName, BTreeSet<IpAddr>>;

/// Each hash is the exclusive or of those of its claims: one claim more or less costs the same
/// whatever the size of the table.
#[derive(Debug)]
struct Buckets {
    whole: u64,
    parts: [u64; BUCKETS],
}

impl Default for Buckets {
    fn default() -> Self {
        Self { whole: 0, parts: [0; BUCKETS] }
    }
}

#[derive(Debug)]
struct Row {
    best: Claim,
    /// The best in force beneath it, when it was heard last that the best is not.
    beneath: Option<Claim>,
    holder: Option<NodeName>,
}

/// What a claim was to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The best so far.
    Best,
    /// In force, while the best is not.
    Beneath,
    /// Known already.
    Known,
    /// There is a better one.
    Outdated,
    /// Not to be believed.
    Refused,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The best claim seen, in force or not.
    pub(crate) fn best(&self, address: IpAddr) -> Option<&Claim> {
        Some(&self.rows.get(&address)?.best)
    }

    /// The best claim in force.
    pub(crate) fn in_force(
        &self,
        address: IpAddr,
        lives: impl Fn(&Claim) -> bool,
    ) -> Option<&Claim> {
        let row = self.rows.get(&address)?;
        [Some(&row.best), row.beneath.as_ref()].into_iter().flatten().find(|claim| lives(claim))
    }

    /// Takes a claim in; `lives` says whether one is in force.
    pub(crate) fn insert(
        &mut self,
        address: IpAddr,
        claim: Claim,
        lives: impl Fn(&Claim) -> bool,
    ) -> Taken {
        let Some(row) = self.rows.get_mut(&address) else {
            return self.insert_first(address, claim);
        };
        if claim.epoch > row.best.epoch.saturating_add(MAX_EPOCH_STEP) {
            return Taken::Refused;
        }
        match claim.compare(&row.best, address) {
            Ordering::Equal => return Taken::Known,
            Ordering::Less => return self.insert_beneath(address, claim, lives),
            Ordering::Greater => {}
        }
        self.buckets.toggle(address, &row.best);
        self.buckets.toggle(address, &claim);
        let before = std::mem::replace(&mut row.best, claim);
        let beneath = if lives(&before) { Some(before.clone()) } else { row.beneath.take() };
        let superseded =
            lives(&row.best) || beneath.as_ref().is_some_and(|old| old.owner == row.best.owner);
        let dropped = row.beneath.take();
        row.beneath = beneath.filter(|_| !superseded);
        self.index(address, [Some(before), dropped]);
        Taken::Best
    }

    fn insert_first(&mut self, address: IpAddr, claim: Claim) -> Taken {
        if claim.epoch > MAX_EPOCH_STEP || self.rows.len() >= MAX_ROWS {
            return Taken::Refused;
        }
        self.buckets.toggle(address, &claim);
        self.rows.insert(address, Row { best: claim, beneath: None, holder: None });
        self.index(address, []);
        Taken::Best
    }

    fn insert_beneath(
        &mut self,
        address: IpAddr,
        claim: Claim,
        lives: impl Fn(&Claim) -> bool,
    ) -> Taken {
        let Some(row) = self.rows.get_mut(&address) else { return Taken::Outdated };
        let ended = claim.owner == row.best.owner
            && (row.best.is_released() || row.best.incarnation >= claim.incarnation);
        if ended || lives(&row.best) || !lives(&claim) {
            return Taken::Outdated;
        }
        let better = row
            .beneath
            .as_ref()
            .filter(|known| lives(known))
            .map_or(Ordering::Greater, |known| claim.compare(known, address));
        match better {
            Ordering::Less => Taken::Outdated,
            Ordering::Equal => Taken::Known,
            Ordering::Greater => {
                let dropped = row.beneath.replace(claim);
                self.index(address, [dropped]);
                Taken::Beneath
            }
        }
    }

    /// Forgets what is beneath a claim in force: it is settled for good.
    pub(crate) fn settle(&mut self, address: IpAddr, lives: impl Fn(&Claim) -> bool) {
        if let Some(row) = self.rows.get_mut(&address)
            && lives(&row.best)
            && let Some(dropped) = row.beneath.take()
        {
            self.index(address, [Some(dropped)]);
        }
    }

    /// Notes who holds an address, if it is known, and returns whether that is news.
    pub(crate) fn set_holder(&mut self, address: IpAddr, holder: Option<NodeName>) -> bool {
        let Some(row) = self.rows.get_mut(&address) else { return false };
        if row.holder == holder {
            return false;
        }
        if let Some(before) = std::mem::replace(&mut row.holder, holder.clone()) {
            remove(&mut self.held_by, &before, address);
        }
        if let Some(holder) = holder {
            self.held_by.entry(holder).or_default().insert(address);
        }
        true
    }

    pub(crate) fn holder(&self, address: IpAddr) -> Option<&NodeName> {
        self.rows.get(&address)?.holder.as_ref()
    }

    /// The addresses that a node holds.
    pub(crate) fn held_by(&self, node: &str) -> impl Iterator<Item = IpAddr> {
        self.held_by.get(node).into_iter().flatten().copied()
    }

    /// How many addresses a node holds.
    pub(crate) fn load(&self, node: &str) -> usize {
        self.held_by.get(node).map_or(0, BTreeSet::len)
    }

    /// The addresses that a node claims or has claimed last.
    pub(crate) fn claimed_by(&self, node: &str) -> impl Iterator<Item = IpAddr> {
        self.claims_of(node).into_iter().flatten().copied()
    }

    /// The same as a set; `None`: there are none.
    pub(crate) fn claims_of(&self, node: &str) -> Option<&BTreeSet<IpAddr>> {
        self.claimed_by.get(node)
    }

    pub(crate) fn forget(&mut self, address: IpAddr) {
        self.set_holder(address, None);
        if let Some(row) = self.rows.remove(&address) {
            self.buckets.toggle(address, &row.best);
            for claim in [Some(row.best), row.beneath].into_iter().flatten() {
                remove(&mut self.claimed_by, &claim.owner, address);
            }
        }
    }

    /// The hash of the whole.
    pub(crate) fn hash(&self) -> u64 {
        self.buckets.whole
    }

    pub(crate) fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets.parts
    }

    /// All rows, each with its bucket.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (usize, IpAddr, &Claim)> {
        self.rows.iter().map(|(address, row)| (bucket_of(*address), *address, &row.best))
    }

    /// Keeps the index true after the claims of a row have changed from these.
    fn index<const N: usize>(&mut self, address: IpAddr, before: [Option<Claim>; N]) {
        for claim in before.into_iter().flatten() {
            remove(&mut self.claimed_by, &claim.owner, address);
        }
        let Some(row) = self.rows.get(&address) else { return };
        for claim in [Some(&row.best), row.beneath.as_ref()].into_iter().flatten() {
            let known = self.claimed_by.get_mut(&claim.owner);
            match known {
                Some(addresses) => {
                    addresses.insert(address);
                }
                None => {
                    self.claimed_by.insert(claim.owner.clone(), [address].into());
                }
            }
        }
    }
}

impl Buckets {
    /// Adds a claim, or takes it away.
    fn toggle(&mut self, address: IpAddr, claim: &Claim) {
        let hash = claim.hash(address);
        self.whole ^= hash;
        self.parts[bucket_of(address)] ^= hash;
    }
}

fn bucket_of(address: IpAddr) -> usize {
    usize::from(hash_of_address(address).to_be_bytes()[0]) % BUCKETS
}

fn remove(index: &mut Index, node: &str, address: IpAddr) {
    if let Some(addresses) = index.get_mut(node) {
        addresses.remove(&address);
        if addresses.is_empty() {
            index.remove(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn claim(epoch: u64, owner: &str, incarnation: u64) -> Claim {
        Claim { epoch, owner: owner.into(), incarnation }
    }

    fn any_row() -> impl Strategy<Value = (IpAddr, Claim)> {
        (0..6_u8, 1..5_u64, 0..3_u8, 0..3_u64).prop_map(|(n, epoch, owner, incarnation)| {
            (address(n), claim(epoch, &format!("node-{owner}"), incarnation))
        })
    }

    /// The lives of the test: node-0 and node-1 live in their second.
    fn lives(claim: &Claim) -> bool {
        claim.incarnation == 2 && &*claim.owner != "node-2"
    }

    #[test]
    fn a_higher_claim_that_is_not_in_force_does_not_hide_the_one_that_is() {
        let mut table = Table::default();
        let at = address(1);
        assert_eq!(table.insert(at, claim(5, "node-0", 2), lives), Taken::Best);
        assert_eq!(table.insert(at, claim(9, "node-2", 1), lives), Taken::Best);
        assert_eq!(table.in_force(at, lives), Some(&claim(5, "node-0", 2)));
        assert_eq!(table.best(at), Some(&claim(9, "node-2", 1)));
        assert_eq!(table.insert(at, claim(4, "node-1", 2), lives), Taken::Outdated);
        assert_eq!(table.insert(at, claim(6, "node-1", 2), lives), Taken::Beneath);
        assert_eq!(table.in_force(at, lives), Some(&claim(6, "node-1", 2)));
        // It gave the address up: what it said before is over, in whatever order it arrives.
        assert_eq!(table.insert(at, claim(10, "node-1", 0), lives), Taken::Best);
        assert_eq!(table.insert(at, claim(6, "node-1", 2), lives), Taken::Outdated);
        assert_eq!(table.in_force(at, lives), None);
    }

    #[test]
    fn an_epoch_that_no_honest_history_leads_to_is_refused() {
        let mut table = Table::default();
        let step = 1 << 32;
        assert_eq!(table.insert(address(1), claim(step + 1, "a", 1), lives), Taken::Refused);
        assert_eq!(table.insert(address(1), claim(step, "a", 1), lives), Taken::Best);
        assert_eq!(table.insert(address(1), claim(2 * step + 1, "a", 1), lives), Taken::Refused);
        assert_eq!(table.insert(address(1), claim(2 * step, "a", 1), lives), Taken::Best);
    }

    proptest! {
        #[test]
        fn it_keeps_what_a_slow_model_keeps(
            rows in proptest::collection::vec((any_row(), any::<bool>()), 0..40),
        ) {
            let mut table = Table::default();
            let mut model: BTreeMap<IpAddr, Claim> = BTreeMap::new();
            for ((address, claim), forget) in rows {
                table.insert(address, claim.clone(), lives);
                let known = model.entry(address).or_insert_with(|| claim.clone());
                if claim.compare(known, address).is_gt() {
                    *known = claim;
                }
                if forget && address == self::address(0) {
                    table.forget(address);
                    model.remove(&address);
                }
                let holder = table.in_force(address, lives).map(|claim| claim.owner.clone());
                table.set_holder(address, holder);
            }
            let kept: BTreeMap<_, _> =
                table.rows().map(|(_, address, claim)| (address, claim.clone())).collect();
            prop_assert_eq!(&kept, &model);
            for node in ["node-0", "node-1", "node-2"] {
                let claimed: BTreeSet<_> = table.claimed_by(node).collect();
                let best = model.iter().filter(|(_, claim)| *claim.owner == *node);
                prop_assert!(best.map(|(at, _)| *at).collect::<BTreeSet<_>>().is_subset(&claimed));
                let held: Vec<_> = table.held_by(node).collect();
                prop_assert_eq!(held.len(), table.load(node));
                for address in held {
                    let in_force = table.in_force(address, lives);
                    prop_assert_eq!(&*in_force.unwrap().owner, node);
                }
            }
        }

        #[test]
        fn hashes_are_equal_if_and_only_if_the_best_claims_are(
            one in proptest::collection::vec(any_row(), 0..12),
            other in proptest::collection::vec(any_row(), 0..12),
            shuffled in any::<prop::sample::Index>(),
        ) {
            let fill = |rows: &[(IpAddr, Claim)]| {
                let mut table = Table::default();
                for (address, claim) in rows {
                    table.insert(*address, claim.clone(), lives);
                }
                table
            };
            let best = |table: &Table| -> Vec<_> {
                table.rows().map(|(_, address, claim)| (address, claim.clone())).collect()
            };
            let (a, b) = (fill(&one), fill(&other));
            prop_assert_eq!(a.hash() == b.hash(), best(&a) == best(&b));
            prop_assert_eq!(a.buckets() == b.buckets(), best(&a) == best(&b));
            let mut turned = one.clone();
            turned.rotate_left(shuffled.index(one.len().max(1)).min(one.len()));
            turned.reverse();
            prop_assert_eq!(fill(&turned).hash(), a.hash(), "the order does not matter");
        }
    }
}
