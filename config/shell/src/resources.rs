//! All custom resources of our namespace, and what else the configuration is made from, as one
//! value.

use std::{collections::BTreeMap, fmt::Debug};

use config::{Labels, Resources, Secret};
use futures::{
    StreamExt as _, future,
    stream::{BoxStream, select_all},
};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta},
    runtime::watcher,
};
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::{
    metrics::ApiMetrics,
    slim::SlimSecret,
    watch::{Change, changes},
};

/// Changes that are looked at together.
const BATCH: usize = 512;

/// Which labels go into the value, besides the custom resources and the Secrets that peers name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// None: whoever asks needs none, or knows them already.
    Unlabelled,
    /// Those of every Namespace, which decide who may use a pool, and of every Node.
    Labelled,
}

/// The whole whenever something changed; for the first time when the first list of every kind is
/// complete. An object that cannot be read is left out, or keeps the form in which it could, and
/// holds up no other.
pub fn resources(
    client: &Client,
    namespace: &str,
    selection: Selection,
    metrics: &ApiMetrics,
) -> BoxStream<'static, Resources> {
    let watches = Watches { client, namespace, metrics };
    let mut steps = vec![
        watches.ours(readable, |all, name, new| in_list(&mut all.pools, name, new)),
        watches.ours(readable, |all, name, new| in_list(&mut all.l2_advertisements, name, new)),
        watches.ours(readable, |all, name, new| in_list(&mut all.bgp_advertisements, name, new)),
        watches.ours(readable, |all, name, new| in_list(&mut all.bgp_peers, name, new)),
        watches.ours(readable, |all, name, new| in_list(&mut all.bfd_profiles, name, new)),
        watches.ours(readable, |all, name, new| in_list(&mut all.communities, name, new)),
        watches.ours(secret, |all, name, new| in_map(&mut all.secrets, name, new)),
    ];
    match selection {
        Selection::Unlabelled => {}
        Selection::Labelled => steps.extend([
            watches.everywhere(labels::<Namespace>, |all, name, new| {
                in_map(&mut all.namespaces, name, new)
            }),
            watches.everywhere(labels::<Node>, |all, name, new| in_map(&mut all.nodes, name, new)),
        ]),
    }
    whole(steps)
}

/// What a watch means for the value.
enum Step {
    /// Says whether the value differs afterwards.
    Change(Box<dyn FnOnce(&mut Resources) -> bool + Send>),
    /// Once for each kind.
    Listed,
}

/// Nothing before every one of `steps` said that it is listed.
fn whole(steps: Vec<BoxStream<'static, Step>>) -> BoxStream<'static, Resources> {
    let mut unlisted = steps.len();
    let mut resources = Resources::default();
    let take = move |steps: Vec<Step>| {
        let mut changed = false;
        for step in steps {
            match step {
                Step::Change(change) => changed |= change(&mut resources),
                Step::Listed => {
                    unlisted -= 1;
                    changed = true;
                }
            }
        }
        future::ready((changed && unlisted == 0).then(|| resources.clone()))
    };
    select_all(steps).ready_chunks(BATCH).filter_map(take).boxed()
}

struct Watches<'a> {
    client: &'a Client,
    namespace: &'a str,
    metrics: &'a ApiMetrics,
}

/// Gives `None` for an object that cannot be read.
type Read<K, T> = fn(K) -> Option<T>;
/// Puts a value in the place of that name, or empties the place.
type Set<T> = fn(&mut Resources, String, Option<T>) -> bool;

impl Watches<'_> {
    /// Follows a kind in the namespace of the custom resources.
    fn ours<K, T>(&self, read: Read<K, T>, set: Set<T>) -> BoxStream<'static, Step>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Object,
        T: Send + 'static,
    {
        self.follow(Api::namespaced(self.client.clone(), self.namespace), read, set)
    }

    /// Follows a kind without namespaces.
    fn everywhere<K, T>(&self, read: Read<K, T>, set: Set<T>) -> BoxStream<'static, Step>
    where
        K: Resource<DynamicType = ()> + Object,
        T: Send + 'static,
    {
        self.follow(Api::all(self.client.clone()), read, set)
    }

    fn follow<K, T>(&self, api: Api<K>, read: Read<K, T>, set: Set<T>) -> BoxStream<'static, Step>
    where
        K: Resource<DynamicType = ()> + Object,
        T: Send + 'static,
    {
        let step = move |change: Change<K>| match change {
            Change::Applied(object) => {
                let name = object.name_any();
                // What is known of an object that cannot be read stays.
                let new = read(*object);
                Step::Change(Box::new(move |all| new.is_some() && set(all, name, new)))
            }
            Change::Deleted((_, name)) => Step::Change(Box::new(move |all| set(all, name, None))),
            Change::Listed => Step::Listed,
        };
        changes(api, watcher::Config::default(), self.metrics).map(step).boxed()
    }
}

/// What a watch needs of its objects.
trait Object: Clone + Debug + DeserializeOwned + Send + 'static {}
impl<K: Clone + Debug + DeserializeOwned + Send + 'static> Object for K {}

// The arguments are owned because that is what `Watches::follow` hands on.
fn readable<K: Resource<DynamicType = ()>>(guard: DeserializeGuard<K>) -> Option<K> {
    match guard.0 {
        Ok(mut object) => {
            object.meta_mut().managed_fields = None;
            Some(object)
        }
        Err(error) => {
            let name = error.metadata.name.as_deref().unwrap_or_default();
            warn!(kind = %K::kind(&()), name, %error, "object cannot be read");
            None
        }
    }
}

fn secret(object: SlimSecret) -> Option<Secret> {
    Some(object.into())
}

fn labels<K: Resource<DynamicType = ()>>(object: PartialObjectMeta<K>) -> Option<Labels> {
    Some(object.metadata.labels.unwrap_or_default())
}

/// In the order of names.
fn in_list<K: Resource + PartialEq>(list: &mut Vec<K>, name: String, new: Option<K>) -> bool {
    let place = list.binary_search_by(|object| object.name_any().cmp(&name));
    match (place, new) {
        (Ok(at), Some(new)) => {
            let changed = list[at] != new;
            list[at] = new;
            changed
        }
        (Ok(at), None) => {
            list.remove(at);
            true
        }
        (Err(at), Some(new)) => {
            list.insert(at, new);
            true
        }
        (Err(_), None) => false,
    }
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

    #[test]
    fn nothing_is_told_before_every_kind_is_listed() {
        let named = |name: &'static str| {
            let named =
                move |all: &mut Resources| in_map(&mut all.nodes, name.into(), Some(Labels::new()));
            Step::Change(Box::new(named))
        };
        let (sender, late) = mpsc::unbounded();
        let early = stream::iter([named("a"), Step::Listed]).chain(stream::pending());
        let mut whole = whole(vec![early.boxed(), late.boxed()]);
        let mut told = move || {
            let resources = whole.next().now_or_never()?.unwrap();
            Some(resources.nodes.keys().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(told(), None);
        sender.unbounded_send(named("b")).unwrap();
        assert_eq!(told(), None);
        sender.unbounded_send(Step::Listed).unwrap();
        assert_eq!(told().unwrap(), ["a", "b"]);
        sender.unbounded_send(named("b")).unwrap();
        assert_eq!(told(), None, "nothing differs");
        sender.unbounded_send(named("c")).unwrap();
        sender.unbounded_send(named("d")).unwrap();
        assert_eq!(told().unwrap(), ["a", "b", "c", "d"], "both at once");
        assert_eq!(told(), None);
    }

    #[test]
    fn an_object_that_cannot_be_read_is_told_from_one_that_can() {
        for (addresses, is_readable) in [(json!(["192.0.2.0/24"]), true), (json!(7), false)] {
            let guard: DeserializeGuard<crds::IPAddressPool> = serde_json::from_value(json!({
                "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
                "metadata": {"name": "pool"}, "spec": {"addresses": addresses},
            }))
            .unwrap();
            assert_eq!(readable(guard).is_some(), is_readable, "{addresses}");
        }
    }

    #[test]
    fn a_list_holds_the_newest_of_each_name_in_order() {
        let pool = |name: &str, addresses: &str| -> crds::IPAddressPool {
            serde_json::from_value(json!({
                "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
                "metadata": {"name": name}, "spec": {"addresses": [addresses]},
            }))
            .unwrap()
        };
        let mut list = Vec::new();
        for (name, new, changes) in [
            ("b", Some("192.0.2.0/24"), true),
            ("a", Some("192.0.2.0/24"), true),
            ("b", Some("192.0.2.0/24"), false),
            ("b", Some("198.51.100.0/24"), true),
            ("c", None, false),
            ("a", None, true),
            ("c", Some("203.0.113.0/24"), true),
        ] {
            let new = new.map(|addresses| pool(name, addresses));
            assert_eq!(in_list(&mut list, name.to_owned(), new), changes, "{name}");
        }
        assert_eq!(list, [pool("b", "198.51.100.0/24"), pool("c", "203.0.113.0/24")]);
    }
}
