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
    of_service: BTreeMap<Arc<ServiceKey>, Box<[SliceId]>>,
    sets: Shared<Serving>,
    names: Shared<str>,
    /// Known before the list that is being read, and not in it so far.
    unseen: BTreeSet<SliceId>,
}

/// The first half of the SHA-256 of namespace and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SliceId(u128);

#[derive(Debug, Clone)]
struct Slice {
    service: Arc<ServiceKey>,
    serving: Arc<Serving>,
}

/// What one slice says.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Serving {
    /// Nodes with a serving endpoint.
    pub nodes: BTreeSet<NodeName>,
    /// A serving endpoint without a node name exists.
    pub elsewhere: bool,
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
                slice.serving = serving;
                changed.push(service);
            }
            return changed;
        }
        let service = match self.of_service.get_key_value(&service) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(known(service)),
        };
        let ids = self.of_service.entry(Arc::clone(&service)).or_default();
        *ids = ids.iter().copied().chain([id]).collect();
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
        let ids = self.of_service.get(service).map(|ids| &**ids).unwrap_or_default();
        ids.iter().filter_map(|id| self.slices.get(id)).map(|slice| &*slice.serving)
    }

    fn remove(&mut self, id: SliceId) -> Option<ServiceKey> {
        self.unseen.remove(&id);
        let Slice { service, .. } = self.slices.remove(&id)?;
        if let Some(ids) = self.of_service.get_mut(&service) {
            *ids = ids.iter().copied().filter(|other| *other != id).collect();
            if ids.is_empty() {
                self.of_service.remove(&service);
            }
        }
        Some(Arc::unwrap_or_clone(service))
    }

    fn read(&mut self, object: &discovery::EndpointSlice) -> Serving {
        let mut read = Serving::default();
        for endpoint in &object.endpoints {
            if !serves(endpoint.conditions.as_ref()) || endpoint.addresses.is_empty() {
                continue;
            }
            match endpoint.node_name.as_deref() {
                Some(node) if read.nodes.contains(node) => {}
                Some(node) => {
                    read.nodes.insert(self.names.one(node.into()));
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
        Self(digest[..16].iter().fold(0, |id, octet| id << 8 | u128::from(*octet)))
    }
}

/// Ready (unset counts as ready), or terminating and still serving.
fn serves(conditions: Option<&discovery::EndpointConditions>) -> bool {
    conditions.is_none_or(|c| c.ready.unwrap_or(true) || c.serving.unwrap_or(false))
}
