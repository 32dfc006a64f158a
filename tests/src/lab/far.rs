//! Addresses on nobody's subnet, which reach the router by BGP or not at all.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use netlab::wait_for;
use serde_json::{Value, json};

use crate::lab::{LIMIT, Policy, RouterConfig, Stage, Transport, custom, gateways, node_addresses};

/// One address of each family.
pub const FAR: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
/// The pool that they are of.
pub const FAR_POOL: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/64"];

/// The `spec` of a BGPPeer for a router's sessions, with a hold time of 9 s and both families.
pub fn peer_spec(config: RouterConfig<'_>, transport: Transport) -> Value {
    json!({"myASN": config.node_asn, "peerASN": config.asn,
           "peerAddress": transport.router().to_string(),
           "dualStackAddressFamily": true, "holdTime": "9s"})
}

/// A BGPPeer `router`, and a Service `far` with [`FAR`] that is advertised to all peers.
///
/// # Errors
/// When something of it is refused.
pub fn announce_far(stage: &Stage, peer: Value, advertisement: Value) -> Result<()> {
    stage.apply(&custom("BGPPeer", "router", peer))?;
    stage.announce("far", &FAR_POOL, "BGPAdvertisement", advertisement)?;
    stage.expose("far", &FAR, Policy::Cluster, &[1, 2])
}

/// Until the router's kernel sends both addresses to these nodes and to no others.
///
/// # Errors
/// When it does not in time.
pub fn wait_for_routes(stage: &Stage, nodes: &[u8]) -> Result<()> {
    for address in FAR {
        let wanted = node_addresses(nodes, address);
        wait_for(&format!("the router sends {address} to {wanted:?}"), LIMIT, || {
            let now = gateways(&stage.router, address)?;
            ensure!(now == wanted, "{now:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Until exactly these nodes say in a status of this kind that they announce a Service.
///
/// # Errors
/// When they do not in time.
pub fn wait_for_announcers(
    stage: &Stage,
    kind: &str,
    service: &str,
    nodes: &BTreeSet<String>,
) -> Result<()> {
    wait_for(&format!("a {kind} of {service} for each of {nodes:?}"), LIMIT, || {
        let now = stage.announcers(kind, service)?;
        ensure!(now == *nodes, "{now:?}");
        Ok(())
    })
}
