//! What keeps tens of thousands of objects small.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What was inserted in order, as a list tells it, fills the nodes of a tree to a half; built anew
/// they are full.
pub(crate) fn compact<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

/// One copy of each value that is in use.
#[derive(Debug)]
pub(crate) struct Shared<T: ?Sized + Ord> {
    known: BTreeSet<Arc<T>>,
    /// How many there may be before those that nobody uses any more are looked for.
    enough: usize,
}

/// So few are never looked through.
const FEW: usize = 64;

impl<T: ?Sized + Ord> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { known: self.known.clone(), enough: self.enough }
    }
}

impl<T: ?Sized + Ord> Default for Shared<T> {
    fn default() -> Self {
        Self { known: BTreeSet::new(), enough: FEW }
    }
}

impl<T: ?Sized + Ord> Shared<T> {
    /// The copy that everybody has of this value.
    pub fn one(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(&value) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.enough {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            // Twice as many as are in use, so that looking costs nothing in the mean.
            self.enough = FEW.max(2 * self.known.len());
        }
        self.known.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_of_each_and_none_that_nobody_uses() {
        let mut shared = Shared::<str>::default();
        let first = shared.one("a".into());
        assert!(Arc::ptr_eq(&first, &shared.one("a".into())));
        for number in 0..1000 {
            shared.one(number.to_string().into());
        }
        assert!(shared.known.len() <= FEW, "{}", shared.known.len());
        assert!(Arc::ptr_eq(&first, &shared.one("a".into())), "it is in use");
    }
}
