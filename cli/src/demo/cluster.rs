//! What the demo writes to the API server, and what it waits for there. It takes the places of the user (samples,
//! Services), of the kubelets (Nodes, Pods) and of the endpoint controller (EndpointSlices).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Secret, Service},
};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, ObjectMeta, Patch,
        PatchParams, PostParams,
    },
    runtime::wait::await_condition,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    proxy::addresses,
    stage::{
        BACKEND_PORT, BACKENDS, CONTROLLERS, NODES, backend_addresses, backend_name,
        controller_name, node_addresses, node_name,
    },
};

pub const NAMESPACE: &str = "metallb-system";
const MANAGER: &str = "berth-demo";
/// By which the controllers settle who of them writes.
const LEASE: &str = "metallb-controller";

pub struct Cluster {
    client: Client,
    /// The Services that the backends stand behind.
    exposed: Vec<Exposed>,
}

/// A Service, and the name of its port for HTTP (empty if the port has none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    pub namespace: String,
    pub name: String,
    pub port: String,
}

impl Cluster {
    pub fn new(client: Client) -> Self {
        Self { client, exposed: Vec::new() }
    }

    /// What exists in every cluster before anybody installs anything: namespaces, nodes, the backends' pods.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn furnish(&self) -> anyhow::Result<()> {
        for name in ["default", NAMESPACE] {
            self.apply(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
            )
            .await?;
        }
        for number in NODES {
            let (v4, v6) = node_addresses(number);
            let name = node_name(number);
            self.apply(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
                "spec": {"podCIDR": format!("10.244.{number}.0/24"),
                         "podCIDRs": [format!("10.244.{number}.0/24"), format!("fd44:0:0:{number}::/64")]},
            }))
            .await?;
            self.apply_status(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": v4.to_string()},
                        {"type": "InternalIP", "address": v6.to_string()},
                        {"type": "Hostname", "address": name},
                    ],
                    "conditions": [{"type": "Ready", "status": "True", "reason": "Demo"}],
                },
            }))
            .await?;
        }
        for number in BACKENDS {
            let (v4, v6) = backend_addresses(number);
            let metadata = json!({"name": backend_name(number), "namespace": "default", "labels": {"app": "web"}});
            self.apply(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                "spec": {"nodeName": node_name(number), "containers": [{"name": "web", "image": "berth"}]},
            }))
            .await?;
            self.apply_status(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": backend_name(number), "namespace": "default"},
                "status": {"phase": "Running", "podIP": v4.to_string(),
                           "podIPs": [{"ip": v4.to_string()}, {"ip": v6.to_string()}],
                           "conditions": [{"type": "Ready", "status": "True"}]},
            }))
            .await?;
        }
        Ok(())
    }

    /// Every object of a manifest, as `kubectl apply --server-side` would. The backends are put behind Services first,
    /// so that nobody waits for endpoints. Returns the Services.
    ///
    /// # Errors
    /// When the manifest is none, or the API server refuses an object.
    pub async fn apply_manifest(&mut self, manifest: &str) -> anyhow::Result<Vec<Exposed>> {
        let mut services = Vec::new();
        for document in
            serde_saphyr::from_multiple::<Value>(manifest).context("reading a sample")?
        {
            if document["kind"] == "Service" {
                let exposed = self.expose(&document).await?;
                services.push(exposed);
            }
            self.apply(document).await?;
        }
        Ok(services)
    }

    /// Creates a Service. Its endpoints are there before, so that what is timed from the returned moment, when the
    /// request is sent, is Berth and the API server alone.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_service(&mut self, document: &Value) -> anyhow::Result<(Exposed, Instant)> {
        let exposed = self.expose(document).await?;
        let service: Service = serde_json::from_value(document.clone())?;
        let api = Api::<Service>::namespaced(self.client.clone(), &exposed.namespace);
        let sent = Instant::now();
        api.create(&PostParams::default(), &service)
            .await
            .with_context(|| format!("creating Service {}/{}", exposed.namespace, exposed.name))?;
        Ok((exposed, sent))
    }

    /// # Errors
    /// When the API server refuses.
    pub async fn delete_service(&mut self, service: &Exposed) -> anyhow::Result<()> {
        self.exposed.retain(|exposed| exposed != service);
        let api = Api::<Service>::namespaced(self.client.clone(), &service.namespace);
        api.delete(&service.name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until a Service has `count` external addresses.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn assigned(
        &self,
        service: &Exposed,
        count: usize,
        limit: Duration,
    ) -> anyhow::Result<Vec<IpAddr>> {
        let api = Api::<Service>::namespaced(self.client.clone(), &service.namespace);
        let done = |object: Option<&Service>| {
            object.is_some_and(|service| addresses(service).len() >= count)
        };
        let service = tokio::time::timeout(limit, await_condition(api, &service.name, done))
            .await
            .with_context(|| {
                format!(
                    "Service {}/{} has no address after {limit:?}",
                    service.namespace, service.name
                )
            })??;
        Ok(service.as_ref().map(addresses).unwrap_or_default())
    }

    /// The node port for HTTP, if the Service has one.
    ///
    /// # Errors
    /// When the Service cannot be read.
    pub async fn node_port(&self, service: &Exposed) -> anyhow::Result<Option<u16>> {
        let api = Api::<Service>::namespaced(self.client.clone(), &service.namespace);
        let spec = api.get(&service.name).await?.spec.unwrap_or_default();
        let ports = spec.ports.unwrap_or_default();
        Ok(ports.first().and_then(|port| u16::try_from(port.node_port?).ok()))
    }

    /// The nodes that say, in ServiceL2Status, that they answer for a Service.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn announcers(&self, service: &Exposed) -> anyhow::Result<BTreeSet<String>> {
        let api = Api::<crds::ServiceL2Status>::namespaced(self.client.clone(), NAMESPACE);
        let mut nodes = BTreeSet::new();
        for object in api.list(&ListParams::default()).await? {
            let status = object.status.unwrap_or_default();
            if status.service_name.as_ref() == Some(&service.name)
                && status.service_namespace.as_ref() == Some(&service.namespace)
            {
                nodes.extend(status.node);
            }
        }
        Ok(nodes)
    }

    /// The controller that the Lease names.
    ///
    /// # Errors
    /// When it names none of ours, or there is none.
    pub async fn leader(&self) -> anyhow::Result<u8> {
        let api = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        let spec = api.get(LEASE).await?.spec;
        let holder = spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let is_holder = |number: &u8| {
            holder.strip_prefix(&controller_name(*number)).is_some_and(|rest| rest.starts_with('_'))
        };
        let mut known = CONTROLLERS.into_iter();
        known.find(is_holder).with_context(|| format!("the Lease is held by {holder:?}"))
    }

    /// The addresses of all Services that have any, by namespace and name.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn all_addresses(&self) -> anyhow::Result<BTreeMap<(String, String), Vec<IpAddr>>> {
        let api = Api::<Service>::all(self.client.clone());
        let services = api.list(&ListParams::default()).await?.items.into_iter();
        let held = services.map(|service| {
            let key = (service.namespace().unwrap_or_default(), service.name_any());
            (key, addresses(&service))
        });
        Ok(held.filter(|(_, addresses)| !addresses.is_empty()).collect())
    }

    /// The speakers' common key, which the controller makes at its first start.
    ///
    /// # Errors
    /// When it is not there after `limit`.
    pub async fn memberlist_key(&self, limit: Duration) -> anyhow::Result<Vec<u8>> {
        let api = Api::<Secret>::namespaced(self.client.clone(), NAMESPACE);
        let there = |object: Option<&Secret>| object.is_some();
        let secret = tokio::time::timeout(limit, await_condition(api, "memberlist", there))
            .await
            .with_context(|| {
                format!("the controller has made no Secret memberlist after {limit:?}")
            })??;
        let key = secret.and_then(|secret| secret.data?.remove("secretkey"));
        Ok(key.context("Secret memberlist has no key secretkey")?.0)
    }

    /// Takes the backend of one node out of the endpoints, or puts it back.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn set_ready(&self, node: u8, ready: bool) -> anyhow::Result<()> {
        let not_ready = if ready { None } else { Some(node) };
        for exposed in &self.exposed {
            self.write_slices(exposed, not_ready).await?;
        }
        Ok(())
    }

    async fn expose(&mut self, service: &Value) -> anyhow::Result<Exposed> {
        let exposed = exposed(service)?;
        // A namespace of a manifest may come after the Service in it, or not at all.
        self.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": exposed.namespace}})).await?;
        self.write_slices(&exposed, None).await?;
        self.exposed.push(exposed.clone());
        Ok(exposed)
    }

    async fn write_slices(&self, exposed: &Exposed, not_ready: Option<u8>) -> anyhow::Result<()> {
        for slice in slices(exposed, not_ready) {
            self.apply(slice).await?;
        }
        Ok(())
    }

    async fn apply(&self, object: Value) -> anyhow::Result<()> {
        let (api, name, what) = self.api_of(&object)?;
        let parameters = PatchParams::apply(MANAGER).force();
        api.patch(&name, &parameters, &Patch::Apply(object))
            .await
            .with_context(|| format!("applying {what}"))?;
        Ok(())
    }

    async fn apply_status(&self, object: Value) -> anyhow::Result<()> {
        let (api, name, what) = self.api_of(&object)?;
        let status = json!({"status": object["status"]});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .with_context(|| format!("writing the status of {what}"))?;
        Ok(())
    }

    fn api_of(&self, object: &Value) -> anyhow::Result<(Api<DynamicObject>, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let version = text(&object["apiVersion"]);
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let kind = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
        let resource = ApiResource::from_gvk(&kind);
        let metadata: ObjectMeta = deserialize(&object["metadata"])?;
        let name = metadata.name.context("an object without a name")?;
        let what = format!("{} {name}", kind.kind);
        let api = match metadata.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), &namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        Ok((api, name, what))
    }
}

fn exposed(service: &Value) -> anyhow::Result<Exposed> {
    let service: Service = deserialize(service)?;
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let http = ports.iter().find(|port| port.port == 80).context("a Service without a port 80")?;
    Ok(Exposed {
        namespace: service.namespace().unwrap_or_else(|| "default".to_owned()),
        name: service.name_any(),
        port: http.name.clone().unwrap_or_default(),
    })
}

/// One slice a family, as the endpoint controller makes them.
fn slices(exposed: &Exposed, not_ready: Option<u8>) -> [Value; 2] {
    let slice = |family: &str, address: fn(u8) -> IpAddr| {
        let endpoints: Vec<_> = BACKENDS
            .iter()
            .map(|&number| {
                let ready = not_ready != Some(number);
                json!({
                    "addresses": [address(number).to_string()],
                    "nodeName": node_name(number),
                    "conditions": {"ready": ready, "serving": ready, "terminating": false},
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": backend_name(number)},
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", exposed.name, family.to_lowercase()), "namespace": exposed.namespace,
                "labels": {"kubernetes.io/service-name": exposed.name},
            },
            "addressType": family, "endpoints": endpoints,
            "ports": [{"name": exposed.port, "port": BACKEND_PORT, "protocol": "TCP"}],
        })
    };
    [
        slice("IPv4", |number| backend_addresses(number).0.into()),
        slice("IPv6", |number| backend_addresses(number).1.into()),
    ]
}

fn deserialize<T: DeserializeOwned>(value: &Value) -> anyhow::Result<T> {
    Ok(T::deserialize(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_fit_the_service_and_tell_who_is_ready() {
        let service = json!({"metadata": {"name": "web", "namespace": "x"}, "spec": {"ports": [
            {"name": "stat", "port": 1024}, {"name": "http", "port": 80}]}});
        let exposed = exposed(&service).unwrap();
        assert_eq!(exposed.port, "http");
        let [v4, v6] = slices(&exposed, Some(2));
        assert_eq!(v4["endpoints"][0]["addresses"][0], "10.244.1.2");
        assert_eq!(v6["endpoints"][1]["addresses"][0], "fd44:0:0:2::2");
        assert_eq!(v4["endpoints"][0]["conditions"]["ready"], true);
        assert_eq!(v6["endpoints"][1]["conditions"]["ready"], false);
        assert_ne!(v4["metadata"]["name"], v6["metadata"]["name"]);
    }
}
