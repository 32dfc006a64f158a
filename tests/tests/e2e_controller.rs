//! The controller on a real Kubernetes: webhooks, statuses, several replicas. Needs root; run with
//! `--test-threads=1`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::ListParams};
use netlab::{End, Lab, Namespace, Process, Signal, wait_for};
use serde_json::Value;
use tests::{
    crowd::{self, Ledger, Observer},
    install::{
        BAD_ADVERTISEMENT, Controller, LIMIT, NAMESPACE, POOL, Place, Workload, external_addresses,
        in_lab, install, refused_nothing, until_ready,
    },
    kube::{ControlPlane, Node},
    programs::built,
};
use tokio::time::sleep;

/// A Service of both families, which nothing answers for.
const SHOP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}
";

/// The condition of a Service whose request is not met.
const WAITS: &str = "metallb.io/AddressAssigned";
/// How many Services three replicas share.
const SERVICES: usize = 5_000;

const REVERSED_POOL: &str = r"
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: reversed, namespace: metallb-system}
spec: {addresses: [10.99.0.9-10.99.0.1]}
";
const PEER_WITHOUT_AS: &str = r"
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: none, namespace: metallb-system}
spec: {myASN: 64512, peerAddress: 10.99.0.97}
";

/// Wrong only beside `POOL`.
const OVERLAPPING_POOL: &str = r"
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: overlapping, namespace: metallb-system}
spec: {addresses: [10.99.0.210/32]}
";
const OTHER_POOL: &str = r"
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: other, namespace: metallb-system}
spec: {addresses: [10.98.0.0/24]}
";

const NEW_PEER: &str = r"
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: new, namespace: metallb-system}
spec:
  myASN: 64500
  peerASN: 64512
  peerAddress: 10.99.0.99
  connectTime: 10s
  enableGracefulRestart: true
  vrf: red
";
const PEER_WITHOUT_PROFILE: &str = r"
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: lost, namespace: metallb-system}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 10.99.0.97, bfdProfile: fast}
";
const PROFILE: &str = r"
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: fast, namespace: metallb-system}
spec: {}
";
const OLD_PEER: &str = r"
apiVersion: metallb.io/v1beta1
kind: BGPPeer
metadata: {name: old, namespace: metallb-system}
spec:
  myASN: 64500
  peerASN: 64512
  peerAddress: 10.99.0.98
  nodeSelectors: [{matchLabels: {kubernetes.io/hostname: n1}}]
";

/// What API servers are told before they store something, and that they store it all the same
/// when nobody tells them.
#[test]
fn webhooks_refuse_convert_and_never_lock_out() {
    in_lab(|lab| {
        let cluster = &ControlPlane::start(lab)?;
        let programs = built()?;
        let mut node = Node::join(lab, cluster, 1)?;
        install(cluster)?;

        // Before there is a controller: what one object alone gets wrong is in the schema.
        for (manifest, complaint) in [
            (BAD_ADVERTISEMENT, "aggregationLength are mutually exclusive"),
            (REVERSED_POOL, "spec.addresses"),
            (PEER_WITHOUT_AS, "exactly one of peerASN and dynamicASN has to be set"),
        ] {
            refused(cluster.apply(manifest), complaint)?;
        }

        let mut controller = Controller::start(lab, cluster, &mut node, &programs)?;
        cluster.apply(POOL)?;
        wait_for("the webhook is asked", LIMIT, || {
            let overlap = cluster.dry_run(OVERLAPPING_POOL);
            refused(
                overlap,
                "overlaps with 10.99.0.200-10.99.0.219, which is already in pool \"lan\"",
            )
        })?;
        ca_bundles(cluster)?;

        // A pool that Services have addresses of.
        cluster.apply(SHOP)?;
        let addresses = external_addresses(cluster, "shop", "web")?;
        let shrunk = r#"{"spec": {"addresses": ["10.99.0.210-10.99.0.219"]}}"#;
        let shrink = ["patch", "ipaddresspool/lan", "--namespace=metallb-system", "--type=merge"];
        let shrink = |more: &[&str]| cluster.kubectl(&[&shrink, more].concat());
        let warned = shrink(&["-p", shrunk, "--dry-run=server", "--warnings-as-errors"]);
        refused(warned, "1 Service will lose the addresses of IPAddressPool")?;
        refused(shrink(&["-p", shrunk, "--dry-run=server", "--warnings-as-errors"]), "shop/web")?;
        shrink(&["-p", r#"{"spec": {"removalPolicy": "Refuse"}}"#])?;
        refused(shrink(&["-p", shrunk]), "removalPolicy is Refuse, and 1 Service would lose")?;
        let delete = ["delete", "ipaddresspool", "lan", "--namespace=metallb-system"];
        refused(cluster.kubectl(&delete), "shop/web")?;

        conversions(cluster)?;

        // Nobody answers: everything can be written, but not what the schema refuses.
        controller.kill()?;
        let begin = Instant::now();
        cluster.apply(OVERLAPPING_POOL)?;
        cluster.apply(OTHER_POOL)?;
        ensure!(begin.elapsed() < LIMIT, "it took {:?}", begin.elapsed());
        refused(cluster.apply(BAD_ADVERTISEMENT), "aggregationLength are mutually exclusive")?;
        controller.restart(lab, cluster)?;
        wait_for("what slipped through is shown", LIMIT, || {
            controller.check_running()?;
            let shown = accepted(cluster, "ipaddresspool", "overlapping")?;
            ensure!(shown.status == "False" && shown.reason == "Overlap", "{shown:?}");
            ensure!(shown.message.contains("\"lan\""), "{shown:?}");
            for name in ["lan", "other"] {
                let shown = accepted(cluster, "ipaddresspool", name)?;
                ensure!(shown.status == "True", "{name}: {shown:?}");
            }
            Ok(())
        })?;
        ensure!(external_addresses(cluster, "shop", "web")? == addresses, "another address");
        cluster.kubectl(&[
            "delete",
            "ipaddresspool",
            "overlapping",
            "--namespace=metallb-system",
        ])?;
        // And what the new one serves is trusted as well.
        wait_for("the webhook is asked again", LIMIT, || {
            refused(shrink(&["-p", shrunk, "--dry-run=server"]), "removalPolicy is Refuse")
        })?;
        refused_nothing(lab)
    });
}

/// What users are told, and where.
#[test]
fn status_and_conditions() {
    in_lab(|lab| {
        let cluster = &ControlPlane::start(lab)?;
        let programs = built()?;
        let mut node = Node::join(lab, cluster, 1)?;
        install(cluster)?;
        let _controller = Controller::start(lab, cluster, &mut node, &programs)?;
        let state = || {
            let state = cluster.get("configurationstate", NAMESPACE, "controller")?;
            let text = |field: &str| state["status"][field].as_str().unwrap_or_default().to_owned();
            Ok::<_, anyhow::Error>((text("result"), text("errorSummary")))
        };

        // A Service that waits is told why.
        cluster.apply(SHOP)?;
        let waits = |reason: &str, words: &str| {
            wait_for(&format!("web waits: {reason}"), LIMIT, || {
                let service = cluster.get("service", "shop", "web")?;
                let shown = condition(&service, WAITS)?.context("no condition")?;
                ensure!(shown.status == "False" && shown.reason == reason, "{shown:?}");
                ensure!(shown.message.contains(words), "{shown:?}");
                Ok(())
            })
        };
        waits("NoPools", "IPAddressPool")?;
        event(cluster, "shop", "AllocationFailed")?;
        cluster.apply(POOL)?;
        let [v4, _] = external_addresses(cluster, "shop", "web")?;
        event(cluster, "shop", "IPAllocated")?;
        let service = cluster.get("service", "shop", "web")?;
        ensure!(condition(&service, WAITS)?.is_none(), "{service}");

        // Pools count.
        wait_for("the pool counts", LIMIT, || {
            let status = cluster.get("ipaddresspool", NAMESPACE, "lan")?["status"].take();
            for (field, number) in [
                ("assignedIPv4", 1),
                ("availableIPv4", 19),
                ("assignedIPv6", 1),
                // fd99::200 to fd99::219, in hexadecimal.
                ("availableIPv6", 25),
            ] {
                ensure!(status[field] == number, "{field}: {status}");
            }
            Ok(())
        })?;
        for (kind, name) in [("ipaddresspool", "lan"), ("l2advertisement", "lan")] {
            wait_for(&format!("the {kind} is accepted"), LIMIT, || {
                let shown = accepted(cluster, kind, name)?;
                ensure!(shown.status == "True", "{shown:?}");
                Ok(())
            })?;
        }
        wait_for("the configuration is valid", LIMIT, || {
            ensure!(state()? == ("Valid".to_owned(), String::new()), "{:?}", state()?);
            Ok(())
        })?;

        // One object in error is left out and shown; nothing else changes.
        cluster.apply(PEER_WITHOUT_PROFILE)?;
        wait_for("the peer is not accepted", LIMIT, || {
            let shown = accepted(cluster, "bgppeer", "lost")?;
            ensure!(shown.status == "False" && shown.message.contains("\"fast\""), "{shown:?}");
            let (result, summary) = state()?;
            ensure!(result == "Invalid" && summary.contains("\"fast\""), "{result}: {summary}");
            Ok(())
        })?;
        cluster.apply(PROFILE)?;
        wait_for("the peer is accepted", LIMIT, || {
            let shown = accepted(cluster, "bgppeer", "lost")?;
            ensure!(shown.status == "True", "{shown:?}");
            ensure!(state()?.0 == "Valid", "{:?}", state()?);
            Ok(())
        })?;

        // A request that cannot be met leaves the Service with what it holds.
        let request = "metallb.io/loadBalancerIPs=10.77.0.1,fd77::1";
        cluster.kubectl(&["annotate", "service", "web", "--namespace=shop", request])?;
        waits("AddressInNoPool", "10.77.0.1")?;
        ensure!(external_addresses(cluster, "shop", "web")?[0] == v4, "the address is gone");
        refused_nothing(lab)
    });
}

/// Three replicas over 5,000 Services that wait. The first leader dies in the middle without a
/// word, the second one is asked to go. A watch judges every status that was ever visible.
#[test]
fn three_replicas_and_a_killed_leader() {
    in_lab(|lab| {
        let cluster = ControlPlane::start(lab)?;
        let programs = built()?;
        install(&cluster)?;
        cluster.apply(crowd::POOL)?;
        let workload = Workload::of(&cluster, "deployment", "controller", &programs)?;
        let control = cluster.segment().namespace();
        crowd::inside(control, || async {
            let client = crowd::client(&cluster.kubeconfig()).await?;
            crowd::create(&client, 0, SERVICES).await?;
            let mut replicas = BTreeMap::new();
            for number in 1..=3 {
                let replica = Replica::start(lab, &cluster, &workload, number)?;
                replicas.insert(replica.pod.clone(), replica);
            }
            let mut observer = Observer::new(&client);
            let assigned = |count| move |seen: &Ledger| seen.assigned() >= count;
            observer.until("a fifth is assigned", LIMIT, assigned(SERVICES / 5)).await?;
            for replica in replicas.values_mut() {
                until_ready(&replica.namespace, &mut replica.process)?;
            }

            let first = leader(&client).await?;
            let killed = replicas.remove(&pod_of(&first)).context("a replica leads")?;
            let at = Instant::now();
            killed.process.kill();
            let (second, silence) = takeover(&client, &mut observer, &first, at).await?;
            println!("kill -9 of the leader: {silence}");
            // The goal is 3 s, on a machine that does nothing else, from a release build.
            ensure!(silence.until_served < Duration::from_secs(10), "{silence}");
            let served = observer.ledger.assigned();
            ensure!(served < SERVICES, "all was done before the leader was asked to go");

            let asked = replicas.remove(&pod_of(&second)).context("a replica leads")?;
            let at = Instant::now();
            asked.process.signal(Signal::Terminate)?;
            let (third, silence) = takeover(&client, &mut observer, &second, at).await?;
            println!("SIGTERM of the leader: {silence}");
            // Without having to wait for the Lease to run out.
            ensure!(silence.until_lease < Duration::from_millis(1500), "{silence}");
            asked.process.stop()?;
            ensure!(replicas.contains_key(&pod_of(&third)), "{third} leads");

            observer.until("all are assigned", LIMIT, assigned(SERVICES)).await?;
            ensure!(observer.ledger.twice.is_empty(), "given twice: {:?}", observer.ledger.twice);
            ensure!(observer.ledger.moved.is_empty(), "changed: {:?}", observer.ledger.moved);
            for (name, held) in observer.ledger.all() {
                let [IpAddr::V4(address)] = held[..] else { bail!("{name} holds {held:?}") };
                ensure!(address.octets()[..2] == [198, 18], "{name} holds {address}");
            }
            ensure!(leader(&client).await? == third, "the Lease changed hands for no reason");
            refused_nothing(lab)
        })
    });
}

/// The controller has made itself known wherever API servers look for it.
fn ca_bundles(cluster: &ControlPlane) -> Result<()> {
    let webhooks = "jsonpath={.webhooks[*].clientConfig.caBundle}";
    let conversion = "jsonpath={.spec.conversion.webhook.clientConfig.caBundle}";
    for (object, path, count) in [
        ("validatingwebhookconfiguration/metallb-webhook-configuration", webhooks, 6),
        ("crd/bgppeers.metallb.io", conversion, 1),
    ] {
        wait_for(&format!("{object} has its caBundle"), LIMIT, || {
            let bundles = cluster.kubectl(&["get", object, "--output", path])?;
            ensure!(bundles.split_whitespace().count() == count, "{object}: {bundles}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A BGPPeer keeps what v1beta1 cannot say when it is changed in v1beta1, and one that was written
/// in v1beta1 is one in v1beta2.
fn conversions(cluster: &ControlPlane) -> Result<()> {
    cluster.apply(NEW_PEER)?;
    let old = "bgppeers.v1beta1.metallb.io";
    let read = cluster.get(old, NAMESPACE, "new")?;
    ensure!(read["apiVersion"] == "metallb.io/v1beta1", "{read}");
    ensure!(read["spec"]["vrf"].is_null() && read["spec"]["peerASN"] == 64512, "{read}");
    cluster.edit(&format!("{old}/new"), NAMESPACE, "s/64512/64513/")?;
    let read = cluster.get("bgppeers.v1beta2.metallb.io", NAMESPACE, "new")?;
    let spec = &read["spec"];
    ensure!(spec["peerASN"] == 64513, "the edit is lost: {read}");
    ensure!(
        spec["vrf"] == "red"
            && spec["connectTime"] == "10s"
            && spec["enableGracefulRestart"] == true,
        "what v1beta1 cannot say is lost: {read}"
    );

    // Deprecated, and told so.
    refused(cluster.apply_without_warning(OLD_PEER), "v1beta1")?;
    let read = cluster.get("bgppeers.v1beta2.metallb.io", NAMESPACE, "old")?;
    ensure!(read["spec"]["peerAddress"] == "10.99.0.98", "{read}");
    let selector = &read["spec"]["nodeSelectors"][0]["matchLabels"]["kubernetes.io/hostname"];
    ensure!(selector == "n1", "{read}");
    let read = cluster.get(old, NAMESPACE, "old")?;
    ensure!(read["spec"]["peerAddress"] == "10.99.0.98", "{read}");
    Ok(())
}

/// Waits for an Event of that reason.
fn event(cluster: &ControlPlane, namespace: &str, reason: &str) -> Result<()> {
    wait_for(&format!("the Event {reason}"), LIMIT, || {
        let reasons = "jsonpath={.items[*].reason}";
        let seen = cluster.kubectl(&["get", "events", "--namespace", namespace, "-o", reasons])?;
        ensure!(seen.split_whitespace().any(|seen| seen == reason), "{seen}");
        Ok(())
    })
}

/// A condition.
#[derive(Debug, serde::Deserialize)]
struct Shown {
    status: String,
    reason: String,
    message: String,
}

/// The condition `Accepted` of an object of ours.
fn accepted(cluster: &ControlPlane, kind: &str, name: &str) -> Result<Shown> {
    condition(&cluster.get(kind, NAMESPACE, name)?, "Accepted")?
        .with_context(|| format!("{kind} {name} has no condition Accepted"))
}

fn condition(object: &Value, name: &str) -> Result<Option<Shown>> {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == name);
    Ok(found.map(|condition| serde_json::from_value(condition.clone())).transpose()?)
}

/// A request was refused (or warned of) in these words.
fn refused(answer: Result<String>, words: &str) -> Result<()> {
    match answer {
        Ok(answer) => bail!("expected {words:?}; it was accepted: {answer}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains(words), "expected {words:?}: {text}");
            Ok(())
        }
    }
}

/// One of several controllers, each in a namespace of its own on the segment.
struct Replica {
    pod: String,
    namespace: Namespace,
    process: Process,
}

impl Replica {
    fn start(lab: &Lab, cluster: &ControlPlane, workload: &Workload, number: u8) -> Result<Self> {
        let pod = format!("controller-{number}");
        // Devices are named after their namespace, in at most 15 octets.
        let namespace = lab.namespace(&format!("c{number}"))?;
        let address = format!("10.99.0.2{number}");
        cluster.segment().plug(End {
            namespace: &namespace,
            device: "eth0",
            mac: None,
            addresses: &[&format!("{address}/24")],
        })?;
        let place = Place { pod: &pod, node: &format!("n{number}"), address: &address };
        let command = workload.command(lab, cluster, &namespace, place)?;
        let process = namespace.spawn("berth-controller", command)?;
        Ok(Self { pod, namespace, process })
    }
}

/// `spec.holderIdentity` of the controllers' Lease.
async fn leader(client: &Client) -> Result<String> {
    let leases = Api::<Lease>::namespaced(client.clone(), NAMESPACE);
    let leases = leases.list(&ListParams::default()).await?.items;
    let [lease] = &leases[..] else { bail!("one Lease was expected: {leases:?}") };
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
    Ok(holder.unwrap_or_default())
}

/// The name of a holder's pod: what follows keeps one life of a pod from the next.
fn pod_of(holder: &str) -> String {
    holder.split('_').next().unwrap_or_default().to_owned()
}

/// How long nobody served after a leader was gone.
struct Silence {
    until_lease: Duration,
    until_served: Duration,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { until_lease, until_served } = self;
        write!(f, "another one has the Lease after {until_lease:.2?}, ")?;
        write!(f, "the next Service its address after {until_served:.2?}")
    }
}

/// Waits until somebody else than `old`, who was ended `at` that moment, leads and serves.
async fn takeover(
    client: &Client,
    observer: &mut Observer,
    old: &str,
    at: Instant,
) -> Result<(String, Silence)> {
    let other_leader = async {
        loop {
            let holder = leader(client).await?;
            if !holder.is_empty() && holder != old {
                return Ok::<_, anyhow::Error>(holder);
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    // What the old one had under way still lands meanwhile.
    let holder = tokio::select! {
        holder = other_leader => holder?,
        end = observer.until("another one leads", LIMIT, |_| false) => bail!("{end:?}"),
    };
    let until_lease = at.elapsed();
    let before = observer.ledger.assigned();
    let served = observer.until("it serves", LIMIT, |seen| seen.assigned() > before).await?;
    Ok((holder, Silence { until_lease, until_served: served - at }))
}
