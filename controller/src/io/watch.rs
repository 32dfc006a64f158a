//! Watches of every kind that the controller reads, as one stream, and the store of those that
//! the configuration is made from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use config::{Resources, Secret};
use futures::{
    StreamExt as _,
    stream::{BoxStream, SelectAll, select_all},
};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::slim::{SlimSecret, SlimService};

/// What came from a watch.
pub enum Input {
    Service(Event<SlimService>),
    Namespace(Event<PartialObjectMeta<Namespace>>),
    Node(Event<PartialObjectMeta<Node>>),
    Secret(Event<SlimSecret>),
    Pool(Event<DeserializeGuard<crds::IPAddressPool>>),
    L2Advertisement(Event<DeserializeGuard<crds::L2Advertisement>>),
    BGPAdvertisement(Event<DeserializeGuard<crds::BGPAdvertisement>>),
    BGPPeer(Event<DeserializeGuard<crds::BGPPeer>>),
    BFDProfile(Event<DeserializeGuard<crds::BFDProfile>>),
    Community(Event<DeserializeGuard<crds::Community>>),
    /// A watch failed; it goes on by itself.
    Failed {
        kind: String,
        error: watcher::Error,
    },
}

/// All watches; custom resources and Secrets of `namespace` only.
pub fn inputs(client: &Client, namespace: &str) -> SelectAll<BoxStream<'static, Input>> {
    let c = || client.clone();
    select_all([
        stream(Api::all(c()), Input::Service),
        stream(Api::all(c()), Input::Namespace),
        stream(Api::all(c()), Input::Node),
        stream(Api::namespaced(c(), namespace), Input::Secret),
        stream(Api::namespaced(c(), namespace), Input::Pool),
        stream(Api::namespaced(c(), namespace), Input::L2Advertisement),
        stream(Api::namespaced(c(), namespace), Input::BGPAdvertisement),
        stream(Api::namespaced(c(), namespace), Input::BGPPeer),
        stream(Api::namespaced(c(), namespace), Input::BFDProfile),
        stream(Api::namespaced(c(), namespace), Input::Community),
    ])
}

fn stream<K>(api: Api<K>, input: fn(Event<K>) -> Input) -> BoxStream<'static, Input>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // A server that vanished is noticed when the watch does not end in time.
    let config = watcher::Config::default().page_size(500).timeout(60);
    let events = watcher(api, config).backoff(Fast::default());
    let input = move |event: watcher::Result<Event<K>>| match event {
        Ok(event) => input(event),
        Err(error) => Input::Failed { kind: K::kind(&()).into_owned(), error },
    };
    events.map(input).boxed()
}

/// 50 ms doubling to 0.8 s, plus up to half: one controller may come back quickly.
#[derive(Default)]
struct Fast {
    failures: u32,
}

impl Iterator for Fast {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let base = 50_u64 << self.failures.min(4);
        self.failures += 1;
        Some(Duration::from_millis(base + rand::random_range(0..=base / 2)))
    }
}

impl Backoff for Fast {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Everything but Services, as last seen.
#[derive(Default)]
pub struct Store {
    namespaces: Objects<config::Labels>,
    nodes: Objects<config::Labels>,
    secrets: Objects<Secret>,
    pools: Objects<crds::IPAddressPool>,
    l2_advertisements: Objects<crds::L2Advertisement>,
    bgp_advertisements: Objects<crds::BGPAdvertisement>,
    bgp_peers: Objects<crds::BGPPeer>,
    bfd_profiles: Objects<crds::BFDProfile>,
    communities: Objects<crds::Community>,
}

/// What an input meant.
pub enum Taken {
    /// Not for the store.
    Service(Box<Event<SlimService>>),
    Failed {
        kind: String,
        error: watcher::Error,
    },
    Changed,
    Same,
}

impl Store {
    pub fn take(&mut self, input: Input) -> Taken {
        let changed = match input {
            Input::Service(event) => return Taken::Service(Box::new(event)),
            Input::Failed { kind, error } => return Taken::Failed { kind, error },
            Input::Namespace(event) => self.namespaces.take(event, labels),
            Input::Node(event) => self.nodes.take(event, labels),
            Input::Secret(event) => self.secrets.take(event, secret),
            Input::Pool(event) => self.pools.take(event, readable),
            Input::L2Advertisement(event) => self.l2_advertisements.take(event, readable),
            Input::BGPAdvertisement(event) => self.bgp_advertisements.take(event, readable),
            Input::BGPPeer(event) => self.bgp_peers.take(event, readable),
            Input::BFDProfile(event) => self.bfd_profiles.take(event, readable),
            Input::Community(event) => self.communities.take(event, readable),
        };
        if changed { Taken::Changed } else { Taken::Same }
    }

    /// True when the first list of every kind is complete.
    pub fn is_listed(&self) -> bool {
        self.namespaces.listed
            && self.nodes.listed
            && self.secrets.listed
            && self.pools.listed
            && self.l2_advertisements.listed
            && self.bgp_advertisements.listed
            && self.bgp_peers.listed
            && self.bfd_profiles.listed
            && self.communities.listed
    }

    pub fn resources(&self) -> Resources {
        let named = |objects: &Objects<config::Labels>| {
            objects.by_name.iter().map(|(name, labels)| (name.clone(), labels.clone())).collect()
        };
        Resources {
            pools: self.pools.all(),
            l2_advertisements: self.l2_advertisements.all(),
            bgp_advertisements: self.bgp_advertisements.all(),
            bgp_peers: self.bgp_peers.all(),
            bfd_profiles: self.bfd_profiles.all(),
            communities: self.communities.all(),
            secrets: self.secrets.by_name.clone(),
            nodes: self
                .nodes
                .by_name
                .iter()
                .map(|(name, labels)| (name.as_str().into(), labels.clone()))
                .collect(),
            namespaces: named(&self.namespaces),
        }
    }
}

/// Objects of one kind by name.
struct Objects<T> {
    by_name: BTreeMap<String, T>,
    /// Known before a list began and not in it so far.
    unseen: BTreeSet<String>,
    /// A list was complete once.
    listed: bool,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), unseen: BTreeSet::new(), listed: false }
    }
}

impl<T: Clone + PartialEq> Objects<T> {
    /// Takes an event in; true when the objects differ after it. `read` gives `None` for an object
    /// that cannot be read: what is known of it stays.
    fn take<K: Resource<DynamicType = ()>>(
        &mut self,
        event: Event<K>,
        read: fn(K) -> Option<T>,
    ) -> bool {
        match event {
            Event::Apply(object) => self.insert(object, read),
            Event::InitApply(object) => {
                self.unseen.remove(&object.name_any());
                self.insert(object, read)
            }
            Event::Delete(object) => self.by_name.remove(&object.name_any()).is_some(),
            Event::Init => {
                self.unseen = self.by_name.keys().cloned().collect();
                false
            }
            Event::InitDone => {
                let first = !std::mem::replace(&mut self.listed, true);
                let gone = std::mem::take(&mut self.unseen);
                for name in &gone {
                    self.by_name.remove(name);
                }
                first || !gone.is_empty()
            }
        }
    }

    fn insert<K: Resource<DynamicType = ()>>(
        &mut self,
        object: K,
        read: fn(K) -> Option<T>,
    ) -> bool {
        let name = object.name_any();
        let Some(new) = read(object) else { return false };
        if self.by_name.get(&name) == Some(&new) {
            return false;
        }
        self.by_name.insert(name, new);
        true
    }

    fn all(&self) -> Vec<T> {
        self.by_name.values().cloned().collect()
    }
}

// The arguments are owned because that is what `Objects::take` hands on.
fn labels<K: Resource<DynamicType = ()>>(object: PartialObjectMeta<K>) -> Option<config::Labels> {
    Some(object.metadata.labels.unwrap_or_default())
}

fn secret(object: SlimSecret) -> Option<Secret> {
    let password = object.data.and_then(|data| data.password);
    Some(Secret {
        kind: object.type_.unwrap_or_default(),
        password: password.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()),
    })
}

fn readable<K: Resource<DynamicType = ()>>(object: DeserializeGuard<K>) -> Option<K> {
    let name = object.name_any();
    match object.0 {
        Ok(object) => Some(object),
        Err(error) => {
            warn!(kind = %K::kind(&()), name, %error, "object cannot be read and is left out");
            None
        }
    }
}
