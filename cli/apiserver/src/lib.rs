//! The part of the Kubernetes API that Berth and `kubectl` need, in memory.
//!
//! Serves the kinds of `metallb.io` and the built-in kinds that Berth reads or writes, either as a
//! [`tower::Service`] under a [`kube::Client`] in the same process or on a TCP port. It is a
//! stand-in for a real API server: one suite of behaviours (`tests/src/api_suite.rs`) runs against
//! both and must agree.
//!
//! What it does not do:
//! - authentication and authorisation: TokenReviews and SubjectAccessReviews are answered, but every
//!   token is that of an administrator, and everybody may do everything;
//! - TLS, audit, priority and fairness, compression, protobuf and YAML bodies;
//! - other kinds, subresources other than `status`, aggregated discovery, OpenAPI v2, and OpenAPI
//!   v3 beyond what `kubectl` needs;
//! - webhooks and CEL rules: the rules of `metallb.io` are asked of `config` and BGPPeers converted
//!   in process; ValidatingWebhookConfigurations are kept, and never called;
//! - other CustomResourceDefinitions than ours, which are there from the start; their
//!   `spec.conversion` can be written, and has no effect;
//! - controllers: no garbage collection by owner, no endpoints, no scheduling, no default
//!   `kubernetes` Service or service accounts; but a deleted Namespace takes its objects along;
//! - defaults and rules of Pods, Nodes and EndpointSlices beyond their types;
//! - persistence: everything ends with the process.
//!
//! Where to read on: <https://kubernetes.io/docs/reference/using-api/api-concepts/>.

mod admission;
mod api;
mod apply;
mod builtin;
mod convert;
mod discovery;
mod error;
mod http;
mod object;
mod patch;
mod path;
mod resource;
mod review;
mod schema;
mod schemas;
mod selector;
mod service;
mod store;
mod table;
mod tcp;
mod watch;

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use ::http::{Request, Response};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::sync::watch as channel;

use crate::{
    api::{
        Api, ListQuery, Part, Patch, Persistence, Preconditions, Target, UnknownFields,
        WriteOptions,
    },
    resource::{Registry, Resource, Subresources},
};
pub use crate::{error::ApiError, http::ResponseBody, schemas::Schemas};

/// Namespaces that are there from the start.
pub const NAMESPACES: [&str; 3] = ["default", "kube-system", "metallb-system"];

/// How a server is made.
#[derive(Clone)]
pub struct Options {
    /// The time that objects are stamped with.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Seed of uids and generated names.
    pub seed: u64,
    /// Where cluster addresses come from: one network, or one of each family, the primary first.
    pub service_networks: Vec<IpNet>,
    /// Where node ports come from.
    pub node_ports: RangeInclusive<u16>,
    /// The namespace for which the rules of `config` are asked at each write of its objects; none
    /// leaves it at the schemas, as a cluster without our webhook does.
    pub admission_namespace: Option<String>,
    /// How many changes of each kind are kept for watches that resume or lag; at least 1.
    pub watch_window: usize,
    /// How often a quiet watch that asks for bookmarks gets one.
    pub bookmark_interval: Duration,
}

/// A running server; clones share their objects.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Arc<Registry>,
    api: Mutex<Api>,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    bookmark_interval: Duration,
    available: channel::Sender<bool>,
    latency: channel::Sender<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        let v4 = Ipv4Net::new(Ipv4Addr::new(10, 96, 0, 0), 16).map(IpNet::V4);
        let v6 = Ipv6Net::new(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112).map(IpNet::V6);
        Self {
            now: Arc::new(Timestamp::now),
            seed: rand::random(),
            service_networks: [v4, v6].into_iter().flatten().collect(),
            node_ports: 30000..=32767,
            admission_namespace: Some("metallb-system".to_owned()),
            watch_window: 10_000,
            bookmark_interval: Duration::from_secs(60),
        }
    }
}

impl ApiServer {
    /// A server that holds nothing but the namespaces of [`NAMESPACES`], our definitions, and the
    /// ServiceCIDR `kubernetes`.
    pub fn new(options: Options) -> Self {
        let crds = crds::all();
        let registry = Arc::new(Registry::new(&crds));
        let rng = StdRng::seed_from_u64(options.seed);
        let service_ranges = options.service_networks.clone();
        let server = Self {
            inner: Arc::new(Inner {
                api: Mutex::new(Api::new(registry.clone(), &options, rng)),
                registry,
                now: options.now,
                bookmark_interval: options.bookmark_interval,
                available: channel::Sender::new(true),
                latency: channel::Sender::new(Duration::ZERO),
            }),
        };
        for name in NAMESPACES {
            server.seed(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
            );
        }
        for crd in &crds {
            let mut crd = json!(crd);
            let names = crd["spec"]["names"].clone();
            let conditions = ["NamesAccepted", "Established"].map(|kind| {
                json!({"type": kind, "status": "True", "reason": "BuiltIn", "message": "",
                       "lastTransitionTime": (server.inner.now)().to_string()})
            });
            crd["status"] =
                json!({"acceptedNames": names, "storedVersions": [], "conditions": conditions});
            server.seed(&crd);
        }
        if !service_ranges.is_empty() {
            let ready = json!({"type": "Ready", "status": "True", "reason": "", "message": "",
                "lastTransitionTime": (server.inner.now)().to_string()});
            server.seed(&json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"}, "spec": {"cidrs": service_ranges},
                "status": {"conditions": [ready]},
            }));
        }
        server
    }

    /// A client that talks to this server in process; its default namespace is `default`.
    ///
    /// Must be called inside a tokio runtime.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// The stored object of a kind, in the form of that version. `namespace` is empty for
    /// cluster-scoped kinds.
    ///
    /// # Errors
    /// 404.
    pub fn get(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Value, ApiError> {
        let resource = self.resource(api_version, kind)?;
        let target = Target { resource, namespace, name, part: Part::Main };
        Ok(convert::from_stored(resource, &*self.lock().get(target)?))
    }

    /// All objects of a kind, in all namespaces or in one, in the order of their names.
    ///
    /// # Errors
    /// 404 when there is no such kind.
    pub fn list(
        &self,
        api_version: &str,
        kind: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<Value>, ApiError> {
        let resource = self.resource(api_version, kind)?;
        let page = self.lock().list(resource, namespace, &ListQuery::default())?;
        Ok(page.objects.iter().map(|stored| convert::from_stored(resource, stored)).collect())
    }

    /// Creates an object, or merges it into the one that there is; a `status` in it is written
    /// too. An object without a namespace goes to `default`.
    ///
    /// # Errors
    /// Whatever a client would be refused with.
    pub fn apply(&self, object: &Value) -> Result<Value, ApiError> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let resource = self.resource(text("apiVersion"), text("kind"))?;
        let metadata = &object["metadata"];
        let namespace = match resource.scope {
            resource::Scope::Cluster => "",
            resource::Scope::Namespaced => metadata["namespace"].as_str().unwrap_or("default"),
        };
        let name = metadata["name"].as_str().unwrap_or_default();
        let target = Target { resource, namespace, name, part: Part::Main };
        let options = self.in_process();
        let mut api = self.lock();
        let exists = api.store.get(resource.storage, &target.key()).is_some();
        let mut written = if exists {
            api.patch(target, Patch::Merge(object), options)?
        } else {
            api.create(target, object, options)?
        };
        if resource.subresources == Subresources::Status && !object["status"].is_null() {
            let status = json!({"status": object["status"]});
            let name = written.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let target = Target { name: &name, part: Part::Status, ..target };
            written = api.patch(target, Patch::Merge(&status), options)?;
        }
        Ok(convert::from_stored(resource, &written.object))
    }

    /// Deletes an object; one with finalizers stays until they are gone.
    ///
    /// # Errors
    /// 404.
    pub fn delete(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let resource = self.resource(api_version, kind)?;
        let target = Target { resource, namespace, name, part: Part::Main };
        self.lock().delete(target, &Preconditions::default(), self.in_process())?;
        Ok(())
    }

    /// Switches the server off or on. While it is off, requests fail as on a refused connection;
    /// switching it off cuts all watches and TCP connections.
    pub fn set_available(&self, available: bool) {
        self.inner.available.send_replace(available);
    }

    /// Forgets all past changes: running watches end, and all that resume are told 410 Gone.
    pub fn expire_watches(&self) {
        self.lock().store.expire();
    }

    /// Delays the handling of each request.
    pub fn set_latency(&self, latency: Duration) {
        self.inner.latency.send_replace(latency);
    }

    fn lock(&self) -> MutexGuard<'_, Api> {
        self.inner.api.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resource(&self, api_version: &str, kind: &str) -> Result<&Resource, ApiError> {
        let found = self.inner.registry.by_kind(api_version, kind);
        found.map(AsRef::as_ref).ok_or_else(ApiError::no_such_path)
    }

    fn in_process(&self) -> WriteOptions<'static> {
        WriteOptions {
            manager: "berth",
            persistence: Persistence::Stored,
            unknown_fields: UnknownFields::Refuse,
            now: (self.inner.now)(),
        }
    }

    /// Stores an object that is part of every server.
    fn seed(&self, object: &Value) {
        self.apply(object).expect("what is built in is valid");
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("seed", &self.seed)
            .field("service_networks", &self.service_networks)
            .field("node_ports", &self.node_ports)
            .field("admission_namespace", &self.admission_namespace)
            .field("watch_window", &self.watch_window)
            .field("bookmark_interval", &self.bookmark_interval)
            .finish_non_exhaustive()
    }
}

impl<B> tower::Service<Request<B>> for ApiServer
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<ResponseBody>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move { http::answer(&server, request).await })
    }
}
