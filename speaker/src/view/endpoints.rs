//! Which nodes serve a Service, from its EndpointSlices.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use config::{NodeName, ServiceKey};
use k8s_openapi::api::discovery::v1 as discovery;
use sha2::{Digest as _, Sha256};

use super::shared::{Shared, compact};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// All slices. There are tens of thousands, with names of forty characters that nothing but
/// themselves needs, and few different sets of nodes.
#[derive(Debug, Clone, Default)]
pub(super) struct Endpoints {
    slices: BTreeMap<SliceId, Slice>,
    /// What the slices of a Service say, in no order.
    of_service: BTreeMap<Arc<ServiceKey>, Box<[Arc<Serving>]>>,
    sets: Shared<Serving>,
    names: Shared<str>,
    /// Known before the list that is being read, and not in it so far.
    unseen: BTreeSet<SliceId>,
}

/// The first octets of the SHA-256 of namespace and name: so many that nobody finds a name with
/// which he could speak for a slice that is not his.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SliceId([u8; 12]);

#[derive(Debug, Clone)]
struct Slice {
    service: Arc<ServiceKey>,
    serving: Arc<Serving>,
}

/// What one slice says.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Serving {
    pub family: AddressFamily,
    /// Nodes with a serving endpoint, and how many of theirs are ready.
    pub nodes: BTreeMap<NodeName, u16>,
    /// A serving endpoint without a node name exists.
    pub elsewhere: bool,
}

/// Whose endpoints a slice has: a Service of two families has slices of both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AddressFamily {
    #[default]
    Ipv4,
    Ipv6,
}

impl Endpoints {
    /// Takes a slice in; returns the Services whose endpoints changed. `known` gives the copy of a
    /// key that others have.
    pub fn apply(
        &mut self,
        object: &discovery::EndpointSlice,
        known: impl FnOnce(ServiceKey) -> ServiceKey,
    ) -> Vec<ServiceKey> {
        let metadata = &object.metadata;
        let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else {
            return Vec::new();
        };
        let id = SliceId::of(namespace, name);
        self.unseen.remove(&id);
        let service = metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        let service = service.map(|service| ServiceKey::new(namespace.as_str(), service.as_str()));
        let mut changed = Vec::new();
        if self.slices.get(&id).is_some_and(|slice| Some(&*slice.service) != service.as_ref()) {
            changed.extend(self.remove(id));
        }
        let Some(service) = service else { return changed };
        let serving = self.read(object);
        let serving = self.sets.one(Arc::new(serving));
        if let Some(slice) = self.slices.get_mut(&id) {
            if slice.serving != serving {
                let before = std::mem::replace(&mut slice.serving, Arc::clone(&serving));
                let all = self.of_service.get_mut(&service).into_iter().flatten();
                if let Some(one) = all.into_iter().find(|one| **one == before) {
                    *one = serving;
                }
                changed.push(service);
            }
            return changed;
        }
        let service = match self.of_service.get_key_value(&service) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(known(service)),
        };
        let all = self.of_service.entry(Arc::clone(&service)).or_default();
        *all = all.iter().chain([&serving]).cloned().collect();
        changed.push(ServiceKey::clone(&service));
        self.slices.insert(id, Slice { service, serving });
        changed
    }

    pub fn delete(&mut self, namespace: &str, name: &str) -> Option<ServiceKey> {
        self.remove(SliceId::of(namespace, name))
    }

    pub fn begin_list(&mut self) {
        self.unseen = self.slices.keys().copied().collect();
    }

    /// Returns the Services whose endpoints changed.
    pub fn end_list(&mut self) -> Vec<ServiceKey> {
        let gone = std::mem::take(&mut self.unseen);
        let gone = gone.into_iter().filter_map(|id| self.remove(id)).collect();
        compact(&mut self.slices);
        compact(&mut self.of_service);
        gone
    }

    /// The key of a Service that has slices, as it is kept here.
    pub fn shared_key(&self, key: &ServiceKey) -> Option<ServiceKey> {
        self.of_service.get_key_value(key).map(|(known, _)| ServiceKey::clone(known))
    }

    pub fn of(&self, service: &ServiceKey) -> impl Iterator<Item = &Serving> {
        self.of_service.get(service).into_iter().flatten().map(|serving| &**serving)
    }

    fn remove(&mut self, id: SliceId) -> Option<ServiceKey> {
        self.unseen.remove(&id);
        let Slice { service, serving } = self.slices.remove(&id)?;
        if let Some(all) = self.of_service.get_mut(&service) {
            let mut left = std::mem::take(all).into_vec();
            if let Some(place) = left.iter().position(|one| *one == serving) {
                left.swap_remove(place);
            }
            *all = left.into();
            if all.is_empty() {
                self.of_service.remove(&service);
            }
        }
        Some(Arc::unwrap_or_clone(service))
    }

    fn read(&mut self, object: &discovery::EndpointSlice) -> Serving {
        let family = match object.address_type.as_str() {
            "IPv6" => AddressFamily::Ipv6,
            _ => AddressFamily::Ipv4,
        };
        let mut read = Serving { family, ..Serving::default() };
        for endpoint in &object.endpoints {
            if !serves(endpoint.conditions.as_ref()) || endpoint.addresses.is_empty() {
                continue;
            }
            match endpoint.node_name.as_deref() {
                Some(node) => {
                    let ready = u16::from(is_ready(endpoint.conditions.as_ref()));
                    match read.nodes.get_mut(node) {
                        Some(count) => *count = count.saturating_add(ready),
                        None => {
                            read.nodes.insert(self.names.one(node.into()), ready);
                        }
                    }
                }
                None => read.elsewhere = true,
            }
        }
        read
    }
}

impl SliceId {
    fn of(namespace: &str, name: &str) -> Self {
        let digest = Sha256::digest(format!("{namespace}/{name}"));
        Self(std::array::from_fn(|place| digest[place]))
    }
}

/// Ready (unset counts as ready), or terminating and still serving.
fn serves(conditions: Option<&discovery::EndpointConditions>) -> bool {
    is_ready(conditions) || conditions.is_some_and(|c| c.serving.unwrap_or(false))
}

fn is_ready(conditions: Option<&discovery::EndpointConditions>) -> bool {
    conditions.is_none_or(|c| c.ready.unwrap_or(true))
}
