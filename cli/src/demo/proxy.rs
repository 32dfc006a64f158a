//! A stand-in for kube-proxy: keeps the nftables rules of every node equal to the LoadBalancer Services and their ready
//! endpoints. `externalTrafficPolicy: Local` leads to the node's own endpoints only; the client's address is not kept,
//! unlike with the real one, which the end-to-end tests run.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    pin::pin,
};

use futures::StreamExt;
use k8s_openapi::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    runtime::{WatchStreamExt, watcher},
};
use netlab::{Namespace, nft};

/// The nodes by name.
pub type Nodes = BTreeMap<String, Namespace>;

/// Follows the API until the future is dropped.
///
/// # Errors
/// When the API cannot be read or `nft` refuses.
pub async fn run(client: Client, nodes: Nodes) -> anyhow::Result<()> {
    let services = Api::<Service>::all(client.clone());
    let slices = Api::<EndpointSlice>::all(client);
    let watch = watcher::Config::default;
    // What changed does not matter: everything is read anew. A failed watch is tried again by itself.
    let changes = futures::stream::select(
        watcher(services.clone(), watch()).default_backoff().map(drop),
        watcher(slices.clone(), watch()).default_backoff().map(drop),
    );
    let mut changes = pin!(changes.ready_chunks(64));

    let mut programmed = BTreeMap::new();
    while changes.next().await.is_some() {
        let services = services.list(&ListParams::default()).await?.items;
        let slices = slices.list(&ListParams::default()).await?.items;
        for (name, namespace) in &nodes {
            let wanted = rules(name, &services, &slices);
            if programmed.get(name) == Some(&wanted) {
                continue;
            }
            let (namespace, rules) = (namespace.clone(), wanted.clone());
            tokio::task::spawn_blocking(move || nft::program(&namespace, &rules)).await??;
            programmed.insert(name.clone(), wanted);
        }
    }
    Ok(())
}

fn rules(node: &str, services: &[Service], slices: &[EndpointSlice]) -> Vec<nft::Service> {
    let mut rules = Vec::new();
    for service in services {
        let addresses = addresses(service);
        let ports =
            service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        if addresses.is_empty() {
            continue;
        }
        for port in ports {
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => nft::Protocol::Tcp,
                Some("UDP") => nft::Protocol::Udp,
                Some(_) => continue,
            };
            rules.push(nft::Service {
                addresses: addresses.clone(),
                protocol,
                port: u16::try_from(port.port).unwrap_or_default(),
                node_port: port.node_port.and_then(|port| u16::try_from(port).ok()),
                backends: backends(node, service, port, slices),
            });
        }
    }
    rules
}

/// The external addresses that a Service has at the moment.
pub fn addresses(service: &Service) -> Vec<IpAddr> {
    let ingress = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .unwrap_or_default();
    ingress.iter().filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

fn backends(
    node: &str,
    service: &Service,
    port: &ServicePort,
    slices: &[EndpointSlice],
) -> Vec<SocketAddr> {
    let policy = service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref());
    let of_service = |slice: &&EndpointSlice| {
        slice.namespace() == service.namespace()
            && slice.labels().get("kubernetes.io/service-name") == Some(&service.name_any())
    };
    let mut backends = Vec::new();
    for slice in slices.iter().filter(of_service) {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let number = ports
            .iter()
            .find(|candidate| {
                candidate.name.as_deref().unwrap_or_default()
                    == port.name.as_deref().unwrap_or_default()
            })
            .and_then(|found| u16::try_from(found.port?).ok());
        let Some(number) = number else { continue };
        for endpoint in &slice.endpoints {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false);
            let near = policy != Some("Local") || endpoint.node_name.as_deref() == Some(node);
            if ready && near {
                let addresses = endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok());
                backends.extend(addresses.map(|address| SocketAddr::new(address, number)));
            }
        }
    }
    backends
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn service(policy: &str) -> Service {
        from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"externalTrafficPolicy": policy, "ports": [
                {"name": "http", "port": 80, "nodePort": 30080},
                {"name": "quic", "port": 443, "protocol": "UDP"},
                {"name": "odd", "port": 9, "protocol": "SCTP"},
            ]},
            "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.200"}]}},
        }))
        .unwrap()
    }

    fn slice(service: &str) -> EndpointSlice {
        from_value(json!({
            "metadata": {"name": "x", "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.244.1.2"], "nodeName": "n1"},
                {"addresses": ["10.244.2.2"], "nodeName": "n2", "conditions": {"ready": true}},
                {"addresses": ["10.244.3.2"], "nodeName": "n1", "conditions": {"ready": false}},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn ready_endpoints_of_the_service_are_the_backends() {
        let slices = [slice("web"), slice("other")];
        for (policy, node, expected) in [
            ("Cluster", "n3", vec!["10.244.1.2:8080", "10.244.2.2:8080"]),
            ("Local", "n1", vec!["10.244.1.2:8080"]),
            ("Local", "n3", vec![]),
        ] {
            let rules = rules(node, &[service(policy)], &slices);
            assert_eq!(rules.len(), 2, "SCTP has no rule");
            let http: Vec<_> = rules[0].backends.iter().map(ToString::to_string).collect();
            assert_eq!(http, expected, "{policy} on {node}");
            assert_eq!((rules[0].port, rules[0].node_port), (80, Some(30080)));
            assert_eq!(rules[1].protocol, nft::Protocol::Udp);
            assert_eq!(rules[1].backends, [], "the slice has no such port");
        }
    }

    #[test]
    fn a_service_without_an_address_has_no_rules() {
        let mut pending = service("Cluster");
        pending.status = None;
        assert_eq!(rules("n1", &[pending], &[slice("web")]), []);
    }
}
