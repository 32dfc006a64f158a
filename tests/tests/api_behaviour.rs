//! The behaviours of [`tests::api_suite`] on the embedded API server, in process and over TCP, and
//! on the real API server that `BERTH_REAL_KUBECONFIG` names, if it is set.
#![allow(clippy::unwrap_used)]

use std::env;

use apiserver::{ApiServer, Options};
use kube::{Client, Config, config::Kubeconfig};
use tests::api_suite;
use tokio::net::TcpListener;

#[tokio::test]
async fn embedded_in_process() {
    check(ApiServer::new(Options::default()).client()).await;
}

#[tokio::test]
async fn embedded_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = ApiServer::new(Options::default());
    let serving = tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    let config = Config::new(format!("http://{address}").parse().unwrap());
    check(Client::try_from(config).unwrap()).await;
    serving.abort();
}

#[tokio::test]
async fn real() {
    let Ok(path) = env::var("BERTH_REAL_KUBECONFIG") else {
        println!("BERTH_REAL_KUBECONFIG is not set: no real API server to compare with");
        return;
    };
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    check(Client::try_from(config).unwrap()).await;
}

async fn check(client: Client) {
    let results = api_suite::run(client).await.unwrap();
    let failed: Vec<_> = results
        .iter()
        .filter_map(|(name, result)| Some(format!("{name}: {:#}", result.as_ref().err()?)))
        .collect();
    println!("{} checks, {} failed", results.len(), failed.len());
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}
