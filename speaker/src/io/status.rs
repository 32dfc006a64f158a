//! Keeps ServiceL2Status, ServiceBGPStatus and ConfigurationState equal to what the planner says.
//!
//! Announcing never waits for any of this: the writer lags behind an API server that is slow or
//! away and then writes only the newest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use config::NodeName;
use crds::{ConfigurationState, ServiceBGPStatus, ServiceL2Status};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::{NamespaceResourceScope, Status},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use shell::{
    client::{RequestError, request},
    state,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::debug;

use crate::{status::ServiceStatus, view::ServiceKey, wire::Report};

/// Changes waiting for the writer. When it is full the planner's shell waits: that is only reached
/// with more changed Services than this and an API server that answers slowly.
pub const QUEUE: usize = 16_384;
const RETRY: Duration = Duration::from_secs(2);
const MANAGER: &str = "berth-speaker";

/// One thing to write; only the newest of a kind and Service counts.
#[derive(Debug)]
pub enum Update {
    Service { service: ServiceKey, status: ServiceStatus },
    Config { errors: Vec<String> },
}

/// Who writes and where.
#[derive(Clone)]
pub struct Writer {
    pub client: Client,
    pub namespace: String,
    pub me: NodeName,
    /// Who else is alive.
    pub report: watch::Receiver<Report>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Writer {
    /// Writes until the planner's shell ends.
    pub async fn run(self, mut updates: mpsc::Receiver<Update>) {
        let mut services: BTreeMap<ServiceKey, ServiceStatus> = BTreeMap::new();
        let mut config: Option<Vec<String>> = None;
        self.find_old(&mut services).await;
        loop {
            let idle = services.is_empty() && config.is_none();
            let update = tokio::select! {
                biased;
                update = updates.recv() => match update {
                    Some(update) => Some(update),
                    None => return,
                },
                () = std::future::ready(()), if !idle => None,
            };
            match update {
                Some(Update::Service { service, status }) => {
                    services.insert(service, status);
                }
                Some(Update::Config { errors }) => config = Some(errors),
                None => {
                    if let Err(error) = self.write_one(&mut services, &mut config).await {
                        debug!(%error, "status not written, will retry");
                        sleep(RETRY).await;
                    }
                }
            }
        }
    }

    /// What an earlier life of this speaker left behind is removed, unless the planner asks for it
    /// anew.
    async fn find_old(&self, services: &mut BTreeMap<ServiceKey, ServiceStatus>) {
        let mine = ListParams::default().labels(&format!("metallb.io/node={}", self.me));
        let layer2 = request(self.api::<ServiceL2Status>().list_metadata(&mine)).await;
        let bgp = request(self.api::<ServiceBGPStatus>().list_metadata(&mine)).await;
        let labels = layer2.into_iter().flatten().map(|object| object.metadata.labels);
        let labels = labels.chain(bgp.into_iter().flatten().map(|object| object.metadata.labels));
        for labels in labels.flatten() {
            let of = |name: &str| labels.get(name).cloned();
            let namespace = of("metallb.io/service-namespace");
            if let (Some(namespace), Some(name)) = (namespace, of("metallb.io/service-name")) {
                services.entry(ServiceKey::new(namespace, name)).or_default();
            }
        }
    }

    /// Writes one waiting item and forgets it when that worked.
    async fn write_one(
        &self,
        services: &mut BTreeMap<ServiceKey, ServiceStatus>,
        config: &mut Option<Vec<String>>,
    ) -> anyhow::Result<()> {
        if let Some(errors) = config.as_ref() {
            self.write_config(errors).await?;
            *config = None;
        } else if let Some((service, status)) = services.first_key_value() {
            let (service, status) = (service.clone(), status.clone());
            self.write_layer2(&service, status.layer2.as_ref()).await?;
            self.write_bgp(&service, status.bgp.as_ref()).await?;
            services.remove(&service);
        }
        Ok(())
    }

    async fn write_layer2(
        &self,
        service: &ServiceKey,
        interfaces: Option<&BTreeSet<String>>,
    ) -> anyhow::Result<()> {
        let api = self.api::<ServiceL2Status>();
        let name = self.object_name("l2", service);
        let Some(interfaces) = interfaces else { return Ok(delete(&api, &name).await?) };
        let interfaces: Vec<Value> = interfaces.iter().map(|name| json!({"name": name})).collect();
        self.write(&api, &name, service, json!({"interfaces": interfaces})).await?;
        // A node that died could not remove its own; the one that answers now does. A node that
        // lives may answer for another address of the Service.
        let labels = format!(
            "metallb.io/service-name={},metallb.io/service-namespace={}",
            service.name, service.namespace
        );
        let all = request(api.list(&ListParams::default().labels(&labels))).await?;
        let live = self.report.borrow().live.clone();
        let lives = |other: &ServiceL2Status| {
            other.labels().get("metallb.io/node").is_some_and(|node| live.contains(node.as_str()))
        };
        for other in all.iter().filter(|other| other.name_any() != name && !lives(other)) {
            delete(&api, &other.name_any()).await?;
        }
        Ok(())
    }

    async fn write_bgp(
        &self,
        service: &ServiceKey,
        peers: Option<&BTreeSet<config::PeerName>>,
    ) -> anyhow::Result<()> {
        let api = self.api::<ServiceBGPStatus>();
        let name = self.object_name("bgp", service);
        let Some(peers) = peers else { return Ok(delete(&api, &name).await?) };
        let peers: Vec<&str> = peers.iter().map(Arc::as_ref).collect();
        self.write(&api, &name, service, json!({"peers": peers})).await
    }

    /// Creates the object if need be and sets its status.
    async fn write<K>(
        &self,
        api: &Api<K>,
        name: &str,
        service: &ServiceKey,
        mut status: Value,
    ) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
    {
        status["node"] = json!(*self.me);
        status["serviceName"] = json!(*service.name);
        status["serviceNamespace"] = json!(*service.namespace);
        let labels = json!({
            "metallb.io/node": *self.me,
            "metallb.io/service-name": *service.name,
            "metallb.io/service-namespace": *service.namespace,
        });
        self.create::<K>(api, name, labels).await?;
        Ok(patch_status(api, name, json!({"status": status})).await?)
    }

    async fn write_config(&self, errors: &[String]) -> anyhow::Result<()> {
        let api = self.api::<ConfigurationState>();
        let name = format!("speaker-{}", self.me);
        let labels =
            [("metallb.io/component-type", "speaker"), ("metallb.io/node-name", &*self.me)];
        let (result, truth, reason) = match errors {
            [] => ("Valid", "True", "Reconciled"),
            _ => ("Invalid", "False", "ConfigurationError"),
        };
        let summary = errors.join("\n");
        let condition = json!({
            "type": "configReconcilerValid",
            "status": truth,
            "reason": reason,
            "message": summary,
        });
        let status = json!({"result": result, "errorSummary": summary, "conditions": [condition]});
        let body = json!({"status": status});
        state::write(&api, MANAGER, &name, labels, None, body).await?;
        Ok(())
    }

    async fn create<K>(&self, api: &Api<K>, name: &str, labels: Value) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
    {
        let object = serde_json::from_value(json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels},
            "spec": {},
        }))?;
        let params =
            PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match request(api.create(&params, &object)).await {
            Err(error) if !error.status().is_some_and(Status::is_already_exists) => {
                Err(error.into())
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Named after what it tells of, so that a restarted speaker finds its own again.
    fn object_name(&self, kind: &str, service: &ServiceKey) -> String {
        let digest = Sha256::digest(format!("{service}#{}", self.me));
        let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{kind}-{hex}")
    }
}

async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), RequestError>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    match request(api.delete(name, &DeleteParams::default())).await {
        Err(error) if !error.status().is_some_and(Status::is_not_found) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn patch_status<K>(api: &Api<K>, name: &str, body: Value) -> Result<(), RequestError>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    request(api.patch_status(name, &params, &Patch::Merge(&body))).await.map(drop)
}
