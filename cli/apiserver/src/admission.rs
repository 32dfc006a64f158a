//! The rules of `metallb.io` that no schema can state: asked of `config`, in process, where a real
//! API server asks the controller's webhook.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use config::{Candidate, ConfigError, Existing, Operation, Resources, ServiceKey, admit};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    builtin::BuiltIn,
    resource::{Form, Registry},
    store::Store,
};

/// Whether an object may be written or deleted; returns warnings.
///
/// # Errors
/// Every rule that the object breaks.
pub(crate) fn ask(
    registry: &Registry,
    store: &Store,
    namespace: &str,
    operation: Operation,
    object: &Value,
) -> Result<Vec<String>, Vec<ConfigError>> {
    match Candidate::from_json(object).map_err(|error| vec![error])? {
        Some(candidate) => {
            let resources = existing(registry, store, namespace);
            let held = held(registry, store);
            let existing = Existing { resources: &resources, held: &held, namespace };
            admit(operation, &candidate, &existing)
        }
        None => Ok(Vec::new()),
    }
}

fn existing(registry: &Registry, store: &Store, namespace: &str) -> Resources {
    let objects = |kind: &'static str| {
        let resource = registry.all().iter().find(|r| r.kind == kind && r.form == Form::Stored);
        let stored = resource.map(|resource| store.objects(resource.storage));
        stored.into_iter().flatten()
    };
    let labels = |kind| {
        objects(kind).map(|((_, name), object)| {
            let labels = serde_json::from_value(object["metadata"]["labels"].clone());
            (name.clone(), labels.unwrap_or_default())
        })
    };
    let own = |kind| {
        objects(kind).filter(|((of, _), _)| of == namespace).map(|(_, object)| object).collect()
    };
    Resources {
        pools: typed(own("IPAddressPool")),
        l2_advertisements: typed(own("L2Advertisement")),
        bgp_advertisements: typed(own("BGPAdvertisement")),
        bgp_peers: typed(own("BGPPeer")),
        bfd_profiles: typed(own("BFDProfile")),
        communities: typed(own("Community")),
        nodes: labels("Node").map(|(name, labels)| (name.into(), labels)).collect(),
        namespaces: labels("Namespace").collect(),
        ..Resources::default()
    }
}

/// The addresses that the status of a Service shows.
fn held(registry: &Registry, store: &Store) -> BTreeMap<IpAddr, Vec<ServiceKey>> {
    let services = registry.built_in(BuiltIn::Service);
    let mut held: BTreeMap<IpAddr, Vec<ServiceKey>> = BTreeMap::new();
    for ((namespace, name), service) in
        services.into_iter().flat_map(|resource| store.objects(resource.storage))
    {
        let ingress = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
        for entry in ingress.into_iter().flatten() {
            if let Some(address) = entry["ip"].as_str().and_then(|ip| ip.parse().ok()) {
                let key = ServiceKey::new(namespace.as_str(), name.as_str());
                held.entry(address).or_default().push(key);
            }
        }
    }
    held
}

fn typed<T: DeserializeOwned>(objects: Vec<&Arc<Value>>) -> Vec<T> {
    // What has not even the form of its kind cannot contradict another object.
    objects.into_iter().filter_map(|object| T::deserialize(&**object).ok()).collect()
}
