use apiserver::ApiServer;
use serde_json::Value;
use shell::tls::certificates;
use tokio::{task::JoinHandle, time::timeout};

use super::*;
use crate::certificates::{AUTHORITY_LIFETIME, LEAF_LIFETIME, Signer};

const SECRET: &str = "webhook-cert";

fn settings() -> Settings {
    let [namespace, secret, service] = ["metallb-system", SECRET, "hook"].map(str::to_owned);
    Settings { namespace, secret, service }
}

fn names() -> Vec<String> {
    ["hook.metallb-system.svc", "hook.metallb-system.svc.cluster.local"].map(str::to_owned).into()
}

/// Whose Secret holds `contents`.
fn server(contents: Contents) -> ApiServer {
    let server = ApiServer::new(apiserver::Options::default());
    let manifest = include_str!("../../../../deploy/base/60-webhook.yaml");
    for object in serde_saphyr::from_multiple::<Value>(manifest).unwrap() {
        server.apply(&object).unwrap();
    }
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": OPAQUE,
        "metadata": {"name": SECRET, "namespace": "metallb-system", "labels": {"kept": "yes"}},
        "data": contents.into_data(),
    });
    server.apply(&secret).unwrap();
    server
}

fn keeping(server: &ApiServer, leads: watch::Receiver<bool>) -> JoinHandle<()> {
    let clients = Clients { watch: server.client(), write: server.client() };
    tokio::spawn(keep(settings(), clients, ApiMetrics::default(), leads, Certificate::default()))
}

fn stored(server: &ApiServer) -> Contents {
    let secret = server.get("v1", "Secret", "metallb-system", SECRET).unwrap();
    let secret: Secret = serde_json::from_value(secret).unwrap();
    assert_eq!(secret.metadata.labels.unwrap()["kept"], "yes");
    Contents::from_data(&secret.data.unwrap()).unwrap()
}

/// What API servers trust when they ask, and when they have something converted.
fn trusted(server: &ApiServer) -> [String; 2] {
    let text =
        |bundle: Option<ByteString>| String::from_utf8(bundle.unwrap_or_default().0).unwrap();
    let group = "admissionregistration.k8s.io/v1";
    let webhooks = server.get(group, "ValidatingWebhookConfiguration", "", WEBHOOKS).unwrap();
    let webhooks = of_webhooks(&serde_json::from_value(webhooks).unwrap());
    let group = "apiextensions.k8s.io/v1";
    let peers = server.get(group, "CustomResourceDefinition", "", DEFINITION).unwrap();
    let peers = of_definition(&serde_json::from_value(peers).unwrap());
    let first = webhooks.into_values().next().unwrap();
    [text(first), text(peers.into_values().next().unwrap())]
}

fn is_trusted(served: &Contents, authorities: &str) -> bool {
    let [leaf, authorities] =
        [&served.leaf[..], authorities].map(|pem| certificates(pem.as_bytes()).unwrap());
    contents::verify(&leaf[0], &authorities, &names(), SystemTime::now()).is_ok()
}

#[tokio::test]
async fn an_old_authority_is_replaced_without_a_moment_of_mistrust() {
    let now = SystemTime::now();
    let old = Contents::make(&names(), now - AUTHORITY_LIFETIME * 7 / 10).unwrap();
    let old = old.with_new_leaf(&names(), now).unwrap();
    let server = server(old.clone());
    // A moment of mistrust would be as long, and seen.
    server.set_latency(Duration::from_millis(20));
    let keeping = keeping(&server, watch::channel(true).1);
    let replaced = async {
        loop {
            // First what is served, then what is trusted: trust has to come first.
            let (served, bundles) = (stored(&server), trusted(&server));
            let is_told = bundles.iter().all(|bundle| !bundle.is_empty());
            if is_told {
                assert!(bundles.iter().all(|bundle| is_trusted(&served, bundle)), "{bundles:?}");
            }
            let validity = served.validity(&names(), SystemTime::now()).unwrap();
            if is_told && served.leaf != old.leaf && validity.signer == Signer::Newest {
                return served;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    let new = timeout(Duration::from_secs(20), replaced).await.unwrap();
    assert!(new.authorities.ends_with(&old.authorities) && new.authorities != old.authorities);
    assert_eq!(trusted(&server), [new.authorities.clone(), new.authorities]);
    keeping.abort();
}

#[tokio::test]
async fn a_standby_writes_nothing_until_it_leads() {
    let now = SystemTime::now();
    let old = Contents::make(&names(), now - LEAF_LIFETIME * 8 / 10).unwrap();
    let server = server(old.clone());
    let (lead, leads) = watch::channel(false);
    let keeping = keeping(&server, leads);
    sleep(Duration::from_millis(200)).await;
    assert!(stored(&server) == old);
    assert_eq!(trusted(&server), ["", ""]);
    lead.send(true).unwrap();
    let renewed = async {
        while stored(&server) == old || trusted(&server).contains(&String::new()) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), renewed).await.unwrap();
    assert_eq!(trusted(&server), [old.authorities.clone(), old.authorities]);
    keeping.abort();
}
