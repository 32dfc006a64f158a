//! Watches that survive everything: lists are swept, outages waited out, bad objects isolated.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use futures::StreamExt as _;
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, utils::Backoff, watcher},
};
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

use crate::client::WATCH_SECONDS;

/// Namespace (empty for cluster-scoped kinds) and name.
pub type ObjectKey = (String, String);

/// What a watch tells.
#[derive(Debug)]
pub enum Change<K> {
    Applied(Box<K>),
    Deleted(ObjectKey),
    /// The first full list is complete.
    Listed,
}

/// Follows all objects of a kind for ever, handing each change to `sink`; ends when `sink` returns
/// false. Objects that a relist no longer shows are told as deleted, so the receiver needs no
/// bookkeeping of its own.
pub async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    mut sink: impl AsyncFnMut(Change<K>) -> bool,
) where
    K: Resource<DynamicType: Default> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let config = config.timeout(WATCH_SECONDS);
    let mut stream = std::pin::pin!(watcher(api, config).backoff(Retry::default()));
    let mut known: BTreeSet<ObjectKey> = BTreeSet::new();
    let mut listed: BTreeSet<ObjectKey> = BTreeSet::new();
    let mut first = true;
    while let Some(event) = stream.next().await {
        let go_on = match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                true
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed.insert(key_of(&object));
                known.insert(key_of(&object));
                sink(Change::Applied(Box::new(object))).await
            }
            Ok(watcher::Event::InitDone) => {
                let mut go_on = true;
                let gone: Vec<_> = known.difference(&listed).cloned().collect();
                known = std::mem::take(&mut listed);
                for key in gone {
                    go_on = go_on && sink(Change::Deleted(key)).await;
                }
                if std::mem::replace(&mut first, false) {
                    go_on = go_on && sink(Change::Listed).await;
                }
                go_on
            }
            Ok(watcher::Event::Apply(object)) => {
                known.insert(key_of(&object));
                sink(Change::Applied(Box::new(object))).await
            }
            Ok(watcher::Event::Delete(object)) => {
                let key = key_of(&object);
                known.remove(&key);
                sink(Change::Deleted(key)).await
            }
            Err(watcher::Error::WatchFailed(error)) => {
                debug!(kind, %error, "watch ended");
                true
            }
            Err(error) => {
                warn!(kind, %error, "cannot watch, will retry");
                true
            }
        };
        if !go_on {
            return;
        }
    }
}

/// A mirror of one kind, kept by feeding it the changes of [`follow`].
#[derive(Debug, Clone)]
pub struct Mirror<K>(BTreeMap<ObjectKey, K>);

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Resource + Clone> Mirror<K> {
    /// Takes an object in.
    pub fn apply(&mut self, object: K) {
        self.0.insert(key_of(&object), object);
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &ObjectKey) {
        self.0.remove(key);
    }

    /// All objects, ordered by namespace and name.
    pub fn all(&self) -> Vec<K> {
        self.0.values().cloned().collect()
    }
}

fn key_of<K: Resource>(object: &K) -> ObjectKey {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// 50 ms doubling to 0.8 s, each lengthened by up to a half: a daemon that comes back with the API
/// server must not wait out a long back-off.
#[derive(Debug, Default)]
pub struct Retry(u32);

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let base = 50u64 << self.0.min(4);
        self.0 += 1;
        Some(Duration::from_millis(base + rand::random_range(0..=base / 2)))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = 0;
    }
}
