//! Thousands of Services on a real API server: made, cleared, written and watched. All of it is
//! asynchronous and knows nothing of network namespaces; [`inside`] runs it in one.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    pin::Pin,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::Request;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, Config, ResourceExt,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, watcher},
};
use netlab::Namespace;
use serde_json::{Value, json};
use tokio::time::timeout;

/// Where the Services are.
pub const CROWD: &str = "crowd";
/// Their pool, of the same name, and their namespace.
pub const POOL: &str = "
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: crowd, namespace: metallb-system}
spec: {addresses: [198.18.0.0/16]}
---
apiVersion: v1
kind: Namespace
metadata: {name: crowd}
";
/// The annotation that comes with addresses.
const POOL_ANNOTATION: &str = "metallb.io/ip-allocated-from-pool";
/// Requests under way at once while Services are made and cleared; more are not faster.
const HANDS: usize = 16;
const PAGE: u32 = 500;
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// Runs something asynchronous on a thread of its own inside a namespace.
///
/// # Errors
/// Those of `work`, and when the namespace cannot be entered.
pub fn inside<T, F>(namespace: &Namespace, work: impl FnOnce() -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    })
}

/// A client with the rights of a kubeconfig, that asks once.
///
/// # Errors
/// When the kubeconfig is of no use.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Client::try_from(config).context("building an API client")
}

/// The name of Service number `index`.
pub fn name(index: usize) -> String {
    format!("service-{index:05}")
}

/// Makes the Services `first..first + count`: of type LoadBalancer, without node ports and
/// endpoints.
///
/// # Errors
/// When the API server refuses one.
pub async fn create(client: &Client, first: usize, count: usize) -> Result<()> {
    at_once(HANDS, (first..first + count).map(name), |name| create_one(client, name)).await
}

/// Makes one Service.
///
/// # Errors
/// When the API server refuses it.
pub async fn create_one(client: &Client, name: String) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": CROWD },
        "spec": {
            "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
            "ports": [{ "name": "http", "port": 80 }],
        },
    });
    send(client, "POST", &services_path(), JSON, &service).await
}

/// Deletes one Service.
///
/// # Errors
/// When there is none.
pub async fn delete_one(client: &Client, name: &str) -> Result<()> {
    send(client, "DELETE", &format!("{}/{name}", services_path()), JSON, &json!({})).await
}

/// Takes the addresses away again. Whoever assigns them must not be running.
///
/// # Errors
/// When the API server refuses one.
pub async fn clear(client: &Client, services: &[Stored]) -> Result<()> {
    let patch = json!({
        "metadata": { "annotations": { POOL_ANNOTATION: null } },
        "status": { "loadBalancer": null, "conditions": null },
    });
    let patch = &patch;
    at_once(HANDS, services, |service| async move {
        send(client, "PATCH", &service.status_path(), MERGE, patch).await
    })
    .await
}

/// The bare loop: gives `services` addresses from `first` on by the patch that the controller
/// sends, with `writers` requests under way at once, and does nothing else. The answers are read
/// and dropped.
///
/// # Errors
/// When the API server refuses one.
pub async fn write_all(
    client: &Client,
    services: &[Stored],
    writers: usize,
    first: Ipv4Addr,
    pool: &str,
) -> Result<()> {
    let addresses = (u32::from(first)..).map(Ipv4Addr::from);
    at_once(writers, services.iter().zip(addresses), |(service, address)| {
        let patch = json!({
            "metadata": {
                "uid": service.uid, "resourceVersion": service.version,
                "annotations": { POOL_ANNOTATION: pool },
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": address, "ipMode": "VIP" }] } },
        });
        async move { send(client, "PATCH", &service.status_path(), MERGE, &patch).await }
    })
    .await
}

/// A Service as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
}

impl Stored {
    fn status_path(&self) -> String {
        format!("{}/{}/status", services_path(), self.name)
    }
}

/// All Services, in the order of their names.
///
/// # Errors
/// When the API server does not answer.
pub async fn stored(client: &Client) -> Result<Vec<Stored>> {
    let api = Api::<Service>::namespaced(client.clone(), CROWD);
    let (mut all, mut next) = (Vec::new(), None);
    loop {
        let params = ListParams { continue_token: next, ..ListParams::default().limit(PAGE) };
        let page = api.list(&params).await?;
        all.extend(page.items.iter().map(|service| Stored {
            name: service.name_any(),
            uid: service.uid().unwrap_or_default(),
            version: service.resource_version().unwrap_or_default(),
        }));
        next = page.metadata.continue_.filter(|token| !token.is_empty());
        if next.is_none() {
            return Ok(all);
        }
    }
}

/// A watch over all the Services.
pub struct Observer {
    stream: Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<Service>>> + Send>>,
    /// What it has told so far.
    pub ledger: Ledger,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

impl Observer {
    /// Starts to watch; only what [`until`](Self::until) waits for is taken in.
    pub fn new(client: &Client) -> Self {
        let api = Api::<Service>::namespaced(client.clone(), CROWD);
        let stream = watcher(api, watcher::Config::default()).default_backoff().boxed();
        Self { stream, ledger: Ledger::default() }
    }

    /// Takes in events until `reached`, and says when the last one came.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        reached: impl Fn(&Ledger) -> bool,
    ) -> Result<Instant> {
        let wait = async {
            while !reached(&self.ledger) {
                // The watcher goes on by itself after an error.
                if let Ok(event) = self.stream.next().await.context("a watch never ends")? {
                    self.take(event);
                }
            }
            Ok(Instant::now())
        };
        match timeout(limit, wait).await {
            Ok(reached) => reached,
            Err(_) => bail!(
                "not within {limit:?}: {what}; {} Services hold an address",
                self.ledger.assigned()
            ),
        }
    }

    fn take(&mut self, event: watcher::Event<Service>) {
        match event {
            watcher::Event::Apply(service) | watcher::Event::InitApply(service) => {
                self.ledger.set(service.name_any(), addresses(&service));
            }
            watcher::Event::Delete(service) => self.ledger.delete(&service.name_any()),
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
    }
}

/// Who holds what, judged write by write: a watch tells them in etcd's order.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Without those that hold nothing.
    held: HashMap<String, Vec<IpAddr>>,
    holders: HashMap<IpAddr, String>,
    /// Addresses that were on two Services at once.
    pub twice: Vec<String>,
    /// Services that held something and then something else, or nothing.
    pub moved: Vec<String>,
}

impl Ledger {
    /// How many Services hold an address.
    pub fn assigned(&self) -> usize {
        self.held.len()
    }

    /// Whether a Service holds an address.
    pub fn holds(&self, name: &str) -> bool {
        self.held.contains_key(name)
    }

    /// What each Service holds.
    pub fn all(&self) -> BTreeMap<&str, &[IpAddr]> {
        self.held.iter().map(|(name, held)| (&**name, &**held)).collect()
    }

    fn set(&mut self, name: String, addresses: Vec<IpAddr>) {
        if let Some(before) = self.held.get(&name) {
            if *before == addresses {
                return;
            }
            self.moved.push(format!("{name} held {before:?}, then {addresses:?}"));
        }
        self.delete(&name);
        for address in &addresses {
            if let Some(holder) = self.holders.insert(*address, name.clone()) {
                self.twice.push(format!("{address} is on {holder} and {name}"));
            }
        }
        if !addresses.is_empty() {
            self.held.insert(name, addresses);
        }
    }

    fn delete(&mut self, name: &str) {
        for address in self.held.remove(name).unwrap_or_default() {
            if self.holders.get(&address).is_some_and(|holder| holder == name) {
                self.holders.remove(&address);
            }
        }
    }
}

/// The addresses in a Service's status; what is not one, nobody of ours wrote.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

/// Writes that the API server has answered since it started, by `VERB resource/subresource`; of all
/// clients.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Writes(BTreeMap<String, f64>);

impl Writes {
    /// Reads them from its metrics.
    ///
    /// # Errors
    /// When it does not show its metrics to this client.
    pub async fn of(client: &Client) -> Result<Self> {
        let request = Request::get("/metrics").body(Vec::new())?;
        Self::parse(&client.request_text(request).await?)
    }

    fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{"));
        let mut writes = BTreeMap::new();
        for line in lines {
            let (labels, count) = line.split_once("} ").with_context(|| line.to_owned())?;
            let label = |name: &str| {
                let value = labels.split_once(&format!("{name}=\""))?.1;
                Some(value.split_once('"')?.0.to_owned())
            };
            let verb = label("verb").unwrap_or_default();
            if !["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&verb.as_str()) {
                continue;
            }
            let mut what = format!("{verb} {}", label(",resource").unwrap_or_default());
            if let Some(subresource) = label("subresource").filter(|name| !name.is_empty()) {
                what += &format!("/{subresource}");
            }
            *writes.entry(what).or_default() += count.parse::<f64>()?;
        }
        Ok(Self(writes))
    }

    /// Those that came after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let new = self.0.iter().filter_map(|(what, count)| {
            let new = count - earlier.count(what);
            (new > 0.0).then(|| (what.clone(), new))
        });
        Self(new.collect())
    }

    /// The sum of those whose text contains none of `words`.
    pub fn except(&self, words: &[&str]) -> f64 {
        let counted = self.0.iter().filter(|(what, _)| !words.iter().any(|w| what.contains(w)));
        counted.fold(0.0, |sum, (_, count)| sum + count)
    }

    /// How many of one kind.
    pub fn count(&self, what: &str) -> f64 {
        self.0.get(what).copied().unwrap_or(0.0)
    }
}

impl fmt::Display for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|(what, count)| format!("{count} {what}")).collect();
        f.write_str(if parts.is_empty() { "none" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

async fn at_once<T, F: Future<Output = Result<()>>>(
    hands: usize,
    all: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> F,
) -> Result<()> {
    stream::iter(all.into_iter().map(Ok)).try_for_each_concurrent(hands, work).await
}

fn services_path() -> String {
    format!("/api/v1/namespaces/{CROWD}/services")
}

async fn send(client: &Client, method: &str, path: &str, kind: &str, body: &Value) -> Result<()> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, kind)
        .body(serde_json::to_vec(body)?)?;
    client.request_text(request).await.with_context(|| format!("{method} {path}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_sees_what_must_not_be() {
        let ip = |last| vec![IpAddr::from([198, 18, 0, last])];
        let mut ledger = Ledger::default();
        let mut set = |name: &str, addresses| {
            ledger.set(name.to_owned(), addresses);
            (ledger.assigned(), ledger.twice.len(), ledger.moved.len())
        };
        assert_eq!(set("a", ip(1)), (1, 0, 0));
        assert_eq!(set("b", ip(2)), (2, 0, 0));
        assert_eq!(set("a", ip(1)), (2, 0, 0), "told again");
        assert_eq!(set("c", ip(1)), (3, 1, 0), "given twice");
        assert_eq!(set("b", ip(3)), (3, 1, 1), "another one");
        assert_eq!(set("d", ip(2)), (4, 1, 1), "free again");
        assert_eq!(set("b", Vec::new()), (3, 1, 2), "taken away");
        ledger.delete("d");
        ledger.set("e".to_owned(), ip(2));
        assert_eq!((ledger.assigned(), ledger.twice.len()), (3, 1), "free after a deletion");
    }

    #[test]
    fn writes_are_counted_by_verb_and_resource() {
        let line = |labels: &str, count: &str| {
            let labels = format!("code=\"200\",group=\"\",{labels},version=\"v1\"");
            format!("apiserver_request_total{{{labels}}} {count}\n")
        };
        let text = line(
            "resource=\"services\",scope=\"resource\",subresource=\"status\",verb=\"PATCH\"",
            "1.2e+06",
        ) + &line(
            "resource=\"services\",scope=\"resource\",subresource=\"\",verb=\"POST\"",
            "3",
        ) + &line(
            "resource=\"leases\",scope=\"resource\",subresource=\"\",verb=\"PUT\"",
            "5",
        ) + &line(
            "resource=\"services\",scope=\"cluster\",subresource=\"\",verb=\"WATCH\"",
            "7",
        ) + "apiserver_request_terminations_total{code=\"429\"} 9\n";
        let writes = Writes::parse(&text).unwrap();
        assert_eq!(writes.count("PATCH services/status"), 1_200_000.0);
        assert_eq!(writes.except(&[" leases"]), 1_200_003.0);
        let later = Writes::parse(&text.replace("} 5", "} 6")).unwrap();
        assert_eq!(later.since(&writes).to_string(), "1 PUT leases");
        assert_eq!(writes.since(&writes).to_string(), "none");
    }
}
