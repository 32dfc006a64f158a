//! Objects, the counter of revisions, and for each collection a log of its last changes, from
//! which watches are served and lists of the past are rebuilt.
//!
//! The log is the only queue of a watch: one that falls behind its start has lost changes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::sync::watch;

/// A new store has a past that is no longer known, as a server has that was started again.
const FIRST_REVISION: u64 = 1000;

/// Namespace (empty for cluster-scoped kinds) and name.
pub(crate) type Key = (String, String);

pub(crate) type Objects = BTreeMap<Key, Arc<Value>>;

#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    window: usize,
    collections: Vec<Collection>,
}

#[derive(Debug)]
struct Collection {
    objects: Objects,
    log: VecDeque<Change>,
    /// All changes after this revision are in the log.
    floor: u64,
    news: watch::Sender<u64>,
}

/// One change of one object; no `new` is its deletion.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub revision: u64,
    pub key: Key,
    pub old: Option<Arc<Value>>,
    pub new: Option<Arc<Value>>,
}

/// The changes that were asked for are no longer known; they are from this revision on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooOld {
    pub floor: u64,
}

impl Store {
    /// `window` is the number of changes that each collection remembers, at least one.
    pub(crate) fn new(collections: usize, window: usize) -> Self {
        let collection = || Collection {
            objects: Objects::new(),
            log: VecDeque::new(),
            floor: FIRST_REVISION,
            news: watch::Sender::new(FIRST_REVISION),
        };
        let collections = (0..collections).map(|_| collection()).collect();
        Self { revision: FIRST_REVISION, window: window.max(1), collections }
    }

    /// The revision of the last write to any collection.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn objects(&self, storage: usize) -> &Objects {
        &self.collections[storage].objects
    }

    pub(crate) fn get(&self, storage: usize, key: &Key) -> Option<&Arc<Value>> {
        self.collections[storage].objects.get(key)
    }

    pub(crate) fn put(&mut self, storage: usize, key: Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let new = Arc::new(object);
        let old = self.collections[storage].objects.insert(key.clone(), new.clone());
        self.record(storage, Change { revision: self.revision, key, old, new: Some(new.clone()) });
        new
    }

    pub(crate) fn remove(&mut self, storage: usize, key: &Key) -> Option<Arc<Value>> {
        let old = self.collections[storage].objects.remove(key)?;
        self.revision += 1;
        self.record(
            storage,
            Change { revision: self.revision, key: key.clone(), old: Some(old.clone()), new: None },
        );
        Some(old)
    }

    /// The changes after a revision, oldest first.
    pub(crate) fn changes_after(
        &self,
        storage: usize,
        revision: u64,
    ) -> Result<impl Iterator<Item = &Change>, TooOld> {
        let Collection { log, floor, .. } = &self.collections[storage];
        if revision < *floor {
            return Err(TooOld { floor: *floor });
        }
        Ok(log.range(log.partition_point(|change| change.revision <= revision)..))
    }

    /// The objects as they were at a revision that is not in the future.
    pub(crate) fn objects_at(&self, storage: usize, revision: u64) -> Result<Objects, TooOld> {
        let later: Vec<_> = self.changes_after(storage, revision)?.collect();
        let mut objects = self.collections[storage].objects.clone();
        for change in later.into_iter().rev() {
            match &change.old {
                Some(old) => objects.insert(change.key.clone(), old.clone()),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }

    /// Told the revision of each change of a collection.
    pub(crate) fn subscribe(&self, storage: usize) -> watch::Receiver<u64> {
        self.collections[storage].news.subscribe()
    }

    /// Forgets all past changes, as a compaction or a restart does.
    pub(crate) fn expire(&mut self) {
        self.revision += 1;
        for collection in &mut self.collections {
            collection.log.clear();
            collection.floor = self.revision;
            collection.news.send_replace(self.revision);
        }
    }

    fn record(&mut self, storage: usize, change: Change) {
        let Collection { log, floor, news, .. } = &mut self.collections[storage];
        if log.len() == self.window
            && let Some(forgotten) = log.pop_front()
        {
            *floor = forgotten.revision;
        }
        news.send_replace(change.revision);
        log.push_back(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (String::new(), name.to_owned())
    }

    #[test]
    fn the_past_is_rebuilt_as_far_as_the_log_goes() {
        let mut store = Store::new(1, 3);
        store.put(0, key("a"), json!({"n": 1}));
        let then = store.revision();
        store.put(0, key("a"), json!({"n": 2}));
        store.put(0, key("b"), json!({"n": 1}));
        store.remove(0, &key("a"));
        let past = store.objects_at(0, then).unwrap();
        assert_eq!(past.len(), 1);
        assert_eq!(past[&key("a")]["n"], 1);
        let kinds: Vec<_> =
            store.changes_after(0, then).unwrap().map(|c| c.new.is_some()).collect();
        assert_eq!(kinds, [true, true, false]);
        store.put(0, key("c"), json!({}));
        assert_eq!(store.objects_at(0, then).unwrap_err(), TooOld { floor: then + 1 });
        assert_eq!(store.changes_after(0, then + 1).unwrap().count(), 3);
        store.expire();
        let now = store.revision();
        assert!(store.changes_after(0, now - 1).is_err());
        assert_eq!(store.changes_after(0, now).unwrap().count(), 0);
    }
}
