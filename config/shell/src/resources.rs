//! All custom resources of our namespace, and what else the configuration is made from, as one
//! value.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use config::{Candidate, Labels, NodeAddress, ObjectRef, Resources, Secret};
use futures::{
    StreamExt as _, future,
    stream::{self, BoxStream, select_all},
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta, object::HasSpec},
    runtime::watcher,
};
use tracing::warn;

use crate::{
    metrics::ApiMetrics,
    slim::{SlimNodeAddresses, SlimSecret, SlimServiceCidr},
    watch::{Change, Object, changes, changes_if_served},
};

/// Changes that are looked at together.
const BATCH: usize = 512;

/// Which labels go into the value, besides the custom resources and the Secrets that peers name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// None: whoever asks needs none, or knows them already.
    Unlabelled,
    /// Those of every Namespace, which decide who may use a pool, and of every Node; with them the
    /// addresses of Nodes and the ranges of cluster IPs.
    Labelled,
}

/// What became of the value.
#[derive(Debug, Clone)]
pub enum Update {
    /// It differs; or everything is listed for the first time.
    Whole(Arc<Resources>),
    /// A custom resource came again whose meaning is the same, probably with another status. The
    /// value does not follow.
    Status(Candidate),
}

/// The whole whenever something changed; for the first time when the first list of every kind is
/// complete. An object that cannot be read is noted, and is left out or keeps the form in which it
/// could; it holds up no other.
pub fn resources(
    client: &Client,
    namespace: &str,
    selection: Selection,
    metrics: &ApiMetrics,
) -> BoxStream<'static, Update> {
    let watches = Watches { client, namespace, metrics };
    let mut steps = vec![
        watches.custom("IPAddressPool", |all| &mut all.pools, Candidate::Pool),
        watches.custom(
            "L2Advertisement",
            |all| &mut all.l2_advertisements,
            Candidate::L2Advertisement,
        ),
        watches.custom(
            "BGPAdvertisement",
            |all| &mut all.bgp_advertisements,
            Candidate::BgpAdvertisement,
        ),
        watches.custom("BGPPeer", |all| &mut all.bgp_peers, Candidate::BgpPeer),
        watches.custom("BFDProfile", |all| &mut all.bfd_profiles, Candidate::BfdProfile),
        watches.custom("Community", |all| &mut all.communities, Candidate::Community),
        watches.ours(
            |object: SlimSecret| -> Secret { object.into() },
            |all, name, new| in_map(&mut all.secrets, name, new),
        ),
    ];
    match selection {
        Selection::Unlabelled => {}
        Selection::Labelled => steps.extend([
            watches.everywhere(labels, |all, name, new| in_map(&mut all.namespaces, name, new)),
            watches.everywhere(node, node_in_maps),
            watches.service_ranges(),
        ]),
    }
    whole(steps)
}

/// What a watch means for the value.
enum Step {
    /// Says what became of it.
    Change(Box<dyn FnOnce(&mut Resources) -> Effect + Send>),
    /// Once for each kind.
    Listed,
}

#[derive(Default)]
struct Effect {
    /// The value differs.
    whole: bool,
    /// What came with another status, perhaps.
    status: Option<Candidate>,
}

impl Effect {
    fn of(whole: bool) -> Self {
        Self { whole, status: None }
    }
}

/// Nothing before every one of `steps` said that it is listed.
fn whole(steps: Vec<BoxStream<'static, Step>>) -> BoxStream<'static, Update> {
    let mut unlisted = steps.len();
    let mut resources = Resources::default();
    let take = move |steps: Vec<Step>| {
        let mut changed = false;
        let mut updates = Vec::new();
        for step in steps {
            match step {
                Step::Change(change) => {
                    let Effect { whole, status } = change(&mut resources);
                    changed |= whole;
                    updates.extend(status.map(Update::Status));
                }
                Step::Listed => {
                    unlisted -= 1;
                    changed = true;
                }
            }
        }
        if unlisted > 0 {
            updates.clear();
        } else if changed {
            updates.insert(0, Update::Whole(Arc::new(resources.clone())));
        }
        future::ready(Some(stream::iter(updates)))
    };
    select_all(steps).ready_chunks(BATCH).filter_map(take).flatten().boxed()
}

struct Watches<'a> {
    client: &'a Client,
    namespace: &'a str,
    metrics: &'a ApiMetrics,
}

/// What is kept of an object.
type Read<K, T> = fn(K) -> T;
/// Puts a value in the place of that name, or empties the place; says whether that made a
/// difference.
type Set<T> = fn(&mut Resources, String, Option<T>) -> bool;

impl Watches<'_> {
    /// Follows one of our kinds.
    fn custom<K>(
        &self,
        kind: &'static str,
        list: fn(&mut Resources) -> &mut Vec<K>,
        candidate: fn(Box<K>) -> Candidate,
    ) -> BoxStream<'static, Step>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Object + Meant,
    {
        let api = Api::<DeserializeGuard<K>>::namespaced(self.client.clone(), self.namespace);
        let step = move |change: Change<DeserializeGuard<K>>| match change {
            Change::Applied(object) => match object.0 {
                Ok(mut object) => {
                    object.meta_mut().managed_fields = None;
                    Step::Change(Box::new(move |all| put(all, kind, list, candidate, object)))
                }
                Err(error) => {
                    let name = error.metadata.name.clone().unwrap_or_default();
                    warn!(kind, name, %error, "object cannot be read");
                    let text = error.to_string();
                    Step::Change(Box::new(move |all| {
                        let old = all.unreadable.insert(ObjectRef { kind, name }, text.clone());
                        Effect::of(old != Some(text))
                    }))
                }
            },
            Change::Deleted((_, name)) => Step::Change(Box::new(move |all| {
                list(all).retain(|object| object.name_any() != name);
                all.unreadable.remove(&ObjectRef { kind, name });
                Effect::of(true)
            })),
            Change::Listed => Step::Listed,
        };
        changes(api, watcher::Config::default(), self.metrics).map(step).boxed()
    }

    /// Follows a kind in the namespace of the custom resources.
    fn ours<K, T>(&self, read: Read<K, T>, set: Set<T>) -> BoxStream<'static, Step>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Object,
        T: Send + 'static,
    {
        let api = Api::namespaced(self.client.clone(), self.namespace);
        follow(changes(api, watcher::Config::default(), self.metrics), read, set)
    }

    /// Follows a kind without namespaces.
    fn everywhere<K, T>(&self, read: Read<K, T>, set: Set<T>) -> BoxStream<'static, Step>
    where
        K: Resource<DynamicType = ()> + Object,
        T: Send + 'static,
    {
        let api = Api::all(self.client.clone());
        follow(changes(api, watcher::Config::default(), self.metrics), read, set)
    }

    /// Follows the ranges of cluster IPs; they stay unknown where the API server does not tell.
    fn service_ranges(&self) -> BoxStream<'static, Step> {
        let api = Api::<SlimServiceCidr>::all(self.client.clone());
        let changes = changes_if_served(api, watcher::Config::default(), self.metrics);
        follow(changes, SlimServiceCidr::ranges, |all, name, new| {
            let new = new.map(|texts| texts.iter().filter_map(|text| text.parse().ok()).collect());
            in_map(&mut all.service_ranges, name, new)
        })
    }
}

fn follow<K, T>(
    changes: BoxStream<'static, Change<K>>,
    read: Read<K, T>,
    set: Set<T>,
) -> BoxStream<'static, Step>
where
    K: Resource<DynamicType = ()> + Object,
    T: Send + 'static,
{
    let change = move |name, new| {
        let set = move |all: &mut Resources| Effect::of(set(all, name, new));
        Step::Change(Box::new(set))
    };
    let step = move |told: Change<K>| match told {
        Change::Applied(object) => change(object.name_any(), Some(read(*object))),
        Change::Deleted((_, name)) => change(name, None),
        Change::Listed => Step::Listed,
    };
    changes.map(step).boxed()
}

/// Puts `object` in its place in the list, which is in the order of names.
fn put<K: Resource<DynamicType = ()> + Meant + Clone>(
    all: &mut Resources,
    kind: &'static str,
    list: fn(&mut Resources) -> &mut Vec<K>,
    candidate: fn(Box<K>) -> Candidate,
    object: K,
) -> Effect {
    let name = object.name_any();
    let objects = list(all);
    let mut effect = Effect::default();
    match objects.binary_search_by(|known| known.name_any().cmp(&name)) {
        Ok(at) => {
            effect.whole = !objects[at].means_the_same_as(&object);
            effect.status = Some(candidate(Box::new(object.clone())));
            objects[at] = object;
        }
        Err(at) => {
            effect.whole = true;
            objects.insert(at, object);
        }
    }
    // It can be read again.
    effect.whole |= all.unreadable.remove(&ObjectRef { kind, name }).is_some();
    effect
}

/// An object whose status somebody else writes.
trait Meant {
    /// True when the two are forms of one object that differ in nothing that its user wrote.
    fn means_the_same_as(&self, other: &Self) -> bool;
}

impl<K> Meant for K
where
    K: Resource + HasSpec,
    K::Spec: PartialEq,
{
    fn means_the_same_as(&self, other: &Self) -> bool {
        let (a, b) = (self.meta(), other.meta());
        self.spec() == other.spec()
            && a.uid == b.uid
            && a.labels == b.labels
            && a.generation == b.generation
            && a.creation_timestamp == b.creation_timestamp
            && a.deletion_timestamp == b.deletion_timestamp
    }
}

fn labels(object: PartialObjectMeta<Namespace>) -> Labels {
    object.metadata.labels.unwrap_or_default()
}

/// What is kept of a Node; its heartbeats change none of it.
type NodeFacts = (Labels, BTreeSet<NodeAddress>);

fn node(object: SlimNodeAddresses) -> NodeFacts {
    object.into_facts()
}

fn node_in_maps(all: &mut Resources, name: String, new: Option<NodeFacts>) -> bool {
    let (labels, addresses) = new.unzip();
    let relabelled = in_map(&mut all.nodes, name.clone(), labels);
    let moved = in_map(&mut all.node_addresses, name, addresses);
    relabelled || moved
}

fn in_map<N, T>(map: &mut BTreeMap<N, T>, name: String, new: Option<T>) -> bool
where
    N: From<String> + Ord,
    T: Clone + PartialEq,
{
    let name = N::from(name);
    match new {
        Some(new) => map.insert(name, new.clone()) != Some(new),
        None => map.remove(&name).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, channel::mpsc, stream};
    use serde_json::json;

    use super::*;

    /// What was told since the last time.
    fn told(whole: &mut BoxStream<'static, Update>) -> Vec<Update> {
        std::iter::from_fn(|| whole.next().now_or_never().flatten()).collect()
    }

    /// The names of the Nodes, if the whole was told.
    fn nodes(updates: &[Update]) -> Option<Vec<String>> {
        let [Update::Whole(resources)] = updates else { return None };
        Some(resources.nodes.keys().map(ToString::to_string).collect())
    }

    #[test]
    fn nothing_is_told_before_every_kind_is_listed() {
        let named = |name: &'static str| {
            let named = move |all: &mut Resources| {
                Effect::of(in_map(&mut all.nodes, name.into(), Some(Labels::new())))
            };
            Step::Change(Box::new(named))
        };
        let (sender, late) = mpsc::unbounded();
        let early = stream::iter([named("a"), Step::Listed]).chain(stream::pending());
        let mut whole = whole(vec![early.boxed(), late.boxed()]);
        assert_eq!(told(&mut whole).len(), 0);
        sender.unbounded_send(named("b")).unwrap();
        assert_eq!(told(&mut whole).len(), 0);
        sender.unbounded_send(Step::Listed).unwrap();
        assert_eq!(nodes(&told(&mut whole)).unwrap(), ["a", "b"]);
        sender.unbounded_send(named("b")).unwrap();
        assert_eq!(told(&mut whole).len(), 0, "nothing differs");
        sender.unbounded_send(named("c")).unwrap();
        sender.unbounded_send(named("d")).unwrap();
        assert_eq!(nodes(&told(&mut whole)).unwrap(), ["a", "b", "c", "d"], "both at once");
        assert_eq!(told(&mut whole).len(), 0);
    }

    fn pool(name: &str, addresses: &str, assigned: i64) -> crds::IPAddressPool {
        serde_json::from_value(json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
            "metadata": {"name": name, "resourceVersion": assigned.to_string()},
            "spec": {"addresses": [addresses]},
            "status": {"assignedIPv4": assigned},
        }))
        .unwrap()
    }

    fn put_pool(all: &mut Resources, pool: crds::IPAddressPool) -> (bool, Option<i64>) {
        let effect = put(all, "IPAddressPool", |all| &mut all.pools, Candidate::Pool, pool);
        let status = effect.status.map(|candidate| match candidate {
            Candidate::Pool(pool) => pool.status.unwrap().assigned_ipv4,
            other => panic!("{other:?}"),
        });
        (effect.whole, status)
    }

    #[test]
    fn the_status_alone_makes_no_new_value() {
        let mut all = Resources::default();
        for (name, addresses, assigned, effect) in [
            ("b", "192.0.2.0/24", 0, (true, None)),
            ("a", "192.0.2.0/24", 0, (true, None)),
            ("b", "192.0.2.0/24", 7, (false, Some(7))),
            ("b", "198.51.100.0/24", 8, (true, Some(8))),
        ] {
            assert_eq!(put_pool(&mut all, pool(name, addresses, assigned)), effect, "{name}");
        }
        assert_eq!(all.pools, [pool("a", "192.0.2.0/24", 0), pool("b", "198.51.100.0/24", 8)]);
    }

    #[test]
    fn an_object_that_can_be_read_again_is_news() {
        let mut all = Resources::default();
        put_pool(&mut all, pool("a", "192.0.2.0/24", 0));
        let object = ObjectRef { kind: "IPAddressPool", name: "a".to_owned() };
        all.unreadable.insert(object, "why".to_owned());
        assert_eq!(put_pool(&mut all, pool("a", "192.0.2.0/24", 0)), (true, Some(0)));
        assert!(all.unreadable.is_empty());
    }

    #[test]
    fn a_heartbeat_of_a_node_makes_no_new_value() {
        let read = |address: &str, beat: &str| -> SlimNodeAddresses {
            serde_json::from_value(json!({
                "metadata": {"name": "n1", "labels": {"a": "b"}, "resourceVersion": beat},
                "status": {
                    "conditions": [{"type": "Ready", "lastHeartbeatTime": beat}],
                    "addresses": [
                        {"type": "InternalIP", "address": address},
                        {"type": "Hostname", "address": "n1"},
                    ],
                },
            }))
            .unwrap()
        };
        let mut all = Resources::default();
        for (address, beat, whole) in
            [("192.0.2.1", "1", true), ("192.0.2.1", "2", false), ("192.0.2.2", "3", true)]
        {
            let facts = node(read(address, beat));
            assert_eq!(node_in_maps(&mut all, "n1".to_owned(), Some(facts)), whole, "{beat}");
        }
        let address =
            NodeAddress { address: "192.0.2.2".parse().unwrap(), kind: "InternalIP".into() };
        assert_eq!(all.node_addresses["n1"], BTreeSet::from([address]));
        assert_eq!(all.nodes["n1"], Labels::from([("a".to_owned(), "b".to_owned())]));
        assert!(node_in_maps(&mut all, "n1".to_owned(), None));
        assert!(all.nodes.is_empty() && all.node_addresses.is_empty());
    }
}
