//! What people see of BGP sessions: BGPSessionState, ServiceBGPStatus and Events, with the speaker as
//! it is shipped and BIRD. `--nocapture` shows the figures. Run with `--test-threads=1`.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context as _, Result, ensure};
use netlab::wait_for;
use serde_json::{Value, json};
use tests::lab::{
    FAR, LIMIT, NAMESPACE, Router, RouterConfig, RouterKind, Stage, Transport, announce_far,
    node_name, on_stage, peer_spec, wait_for_routes,
};

const ALL: [u8; 3] = [1, 2, 3];
const PEER: &str = "metallb.io/v1beta2";
const OURS: &str = "metallb.io/v1beta1";
const PASSWORD: &str = "tr0ub4dor";

#[test]
fn sessions_are_told_of() {
    on_stage(|stage| {
        stage.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/basic-auth",
            "metadata": {"name": "router", "namespace": NAMESPACE},
            "stringData": {"password": PASSWORD},
        }))?;
        let config = RouterConfig { password: Some(PASSWORD), ..RouterConfig::EXTERNAL };
        let mut router = Router::start(stage, RouterKind::Bird, config)?;
        let mut peer = peer_spec(config, Transport::V4);
        peer["passwordSecret"] = json!({"name": "router"});
        announce_far(stage, peer, json!({}))?;
        wait_for_routes(stage, &ALL)?;
        let since = Instant::now();
        wait_for("every session is told of, with all prefixes", LIMIT, || {
            each(stage, |status| {
                ensure!(status["bgpStatus"] == "Established" && status["prefixes"]["sent"] == 2);
                Ok(())
            })
        })?;
        println!("sessions are told of {:?} after the routes", since.elapsed());
        each(stage, |status| {
            ensure!(condition(status, "Established")?["status"] == "True");
            ensure!(status["peer"] == "router" && status["bfdStatus"] == "N/A");
            ensure!(status["peerAddress"] == Transport::V4.router().to_string());
            ensure!(status["localASN"] == config.node_asn && status["peerASN"] == config.asn);
            ensure!(status["holdTime"] == "9s" && status["keepaliveTime"] == "3s");
            ensure!(status["families"] == json!(["IPv4 unicast", "IPv6 unicast"]));
            ensure!(status["flaps"] == 0 && status["conditions"].as_array().unwrap().len() == 1);
            Ok(())
        })?;
        wait_for("every Service is told to be announced", LIMIT, || {
            each_peer_state(stage, |told| {
                let prefixes = json!([format!("{}/32", FAR[0]), format!("{}/128", FAR[1])]);
                ensure!(told["session"] == "Established" && told["prefixes"] == prefixes);
                Ok(())
            })
        })?;
        wait_for("Events tell of it", LIMIT, || events(stage, "BGPSessionUp"))?;

        router.stop()?;
        let since = Instant::now();
        wait_for("the loss is told of, with the router's words", LIMIT, || {
            each(stage, |status| {
                let established = condition(status, "Established")?;
                ensure!(established["status"] == "False" && established["reason"] == "Lost");
                ensure!(status["bgpStatus"] != "Established" && status["flaps"] == 1);
                let reset = status["lastReset"].as_str().context("why")?;
                ensure!(reset.starts_with("the peer ended the session: Cease"), "{reset}");
                ensure!(status["prefixes"]["sent"] == 0 && status["peerASN"].is_null());
                Ok(())
            })
        })?;
        println!("the loss is told of after {:?}", since.elapsed());
        // A kernel without the key does not answer.
        wait_for("nobody listens any more", LIMIT, || {
            each(stage, |status| {
                let refused = condition(status, "CannotConnect")?;
                let message = refused["message"].as_str().unwrap_or_default();
                ensure!(message == "the peer at 10.0.0.1, port 179: nobody answers", "{refused}");
                Ok(())
            })
        })?;
        wait_for("every Service is told not to be announced", LIMIT, || {
            each_peer_state(stage, |told| {
                ensure!(told["session"] == "Down" && told["prefixes"].is_null());
                Ok(())
            })
        })?;
        println!("and in the Services after {:?}", since.elapsed());
        // 30 s after the last.
        wait_for("Events tell of it", LIMIT * 2, || events(stage, "BGPSessionDown"))?;

        router.run()?;
        wait_for_routes(stage, &ALL)?;
        wait_for("the sessions are back", LIMIT, || {
            each(stage, |status| {
                ensure!(status["bgpStatus"] == "Established" && status["flaps"] == 1);
                ensure!(status["conditions"].as_array().unwrap().len() == 1);
                Ok(())
            })
        })?;
        let everything = format!(
            "{:?}{:?}",
            stage.api.list(OURS, "BGPSessionState", None)?,
            stage.api.list("events.k8s.io/v1", "Event", None)?
        );
        ensure!(!everything.contains(PASSWORD), "a password is shown");

        stage.api.delete(PEER, "BGPPeer", NAMESPACE, "router")?;
        wait_for("no session is told of", LIMIT, || {
            let left = stage.api.list(OURS, "BGPSessionState", Some(NAMESPACE))?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        router.stop()
    });
}

/// Checks the status of each node's session; there are no others.
fn each(stage: &Stage, check: impl Fn(&Value) -> Result<()>) -> Result<()> {
    let objects = stage.api.list(OURS, "BGPSessionState", Some(NAMESPACE))?;
    let by_node: BTreeMap<&str, &Value> = objects
        .iter()
        .filter_map(|object| {
            let labels = &object["metadata"]["labels"];
            let is_it = labels["metallb.io/peer"] == "router";
            Some((labels["metallb.io/node"].as_str().filter(|_| is_it)?, object))
        })
        .collect();
    let nodes = ALL.map(node_name);
    ensure!(objects.len() == 3 && by_node.keys().eq(nodes.iter()), "{objects:?}");
    by_node
        .values()
        .try_for_each(|object| check(&object["status"]).with_context(|| format!("{object:#}")))
}

fn each_peer_state(stage: &Stage, check: impl Fn(&Value) -> Result<()>) -> Result<()> {
    let objects = stage.api.list(OURS, "ServiceBGPStatus", Some(NAMESPACE))?;
    ensure!(objects.len() == 3, "{objects:?}");
    objects.iter().try_for_each(|object| {
        let status = &object["status"];
        ensure!(status["peers"] == json!(["router"]), "{status}");
        ensure!(status["peerStates"][0]["name"] == "router", "{status}");
        check(&status["peerStates"][0]).with_context(|| format!("{status:#}"))
    })
}

fn condition<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    let all = status["conditions"].as_array().context("conditions")?;
    let found = all.iter().find(|condition| condition["type"] == name);
    found.with_context(|| format!("condition {name}"))
}

/// There is one of each node, about the BGPPeer as it is now.
fn events(stage: &Stage, reason: &str) -> Result<()> {
    let peer = stage.api.get(PEER, "BGPPeer", NAMESPACE, "router")?;
    let events = stage.api.list("events.k8s.io/v1", "Event", Some(NAMESPACE))?;
    for node in ALL.map(node_name) {
        let of_node = |event: &&Value| {
            event["reason"] == reason
                && event["regarding"]["uid"] == peer["metadata"]["uid"]
                && event["note"].as_str().unwrap_or_default().contains(&format!("{node:?}"))
        };
        ensure!(events.iter().any(|event| of_node(&event)), "of {node}: {events:#?}");
    }
    Ok(())
}
