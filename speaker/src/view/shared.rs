//! What keeps tens of thousands of objects small.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    sync::Arc,
};

/// What was inserted in order, as a list tells it, fills the nodes of a tree to a half; built anew
/// they are full.
pub(crate) fn compact<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

/// A list that mostly has one element, which then needs no memory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Few<T>(Places<T>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Places<T> {
    One(T),
    /// None, or several.
    Other(Box<[T]>),
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Places::One(one) => std::slice::from_ref(one),
            Places::Other(all) => all,
        }
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Places::Other(Box::default()))
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut all = all.into_iter();
        Self(match (all.next(), all.next()) {
            (Some(one), None) => Places::One(one),
            (first, second) => Places::Other(first.into_iter().chain(second).chain(all).collect()),
        })
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
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
    fn a_list_of_any_length_is_the_same_list() {
        for count in 0..4 {
            let all: Vec<_> = (0..count).collect();
            let few: Few<_> = all.iter().copied().collect();
            assert_eq!(*few, *all);
            assert_eq!((&few).into_iter().count(), all.len());
        }
        assert_eq!(Few::<u8>::default(), std::iter::empty().collect());
        assert_eq!(size_of::<Few<(std::net::IpAddr, Arc<()>)>>(), 32, "as large as its element");
    }

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
