use std::{net::Ipv4Addr, time::Duration};

use ipnet::IpNet;
use ownership::{Proof, Stage, Stranger};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    fixture::{node, resources, service, slice},
    plan::plan,
    status::NoteKind,
    view::DRAIN_ANNOTATION,
};

fn planner() -> (Planner, Instant) {
    let settings = PlannerConfig {
        me: "n1".into(),
        heartbeat: Some(IpAddr::from([10, 0, 0, 1])),
        options: Options::default(),
        bgp_drain_time: Duration::from_secs(5),
    };
    (Planner::new(settings), Instant::now())
}

fn settle(planner: &mut Planner, now: Instant) -> Vec<Action> {
    let actions = planner.handle_timeout(now);
    assert!(planner.poll_timeout().is_none_or(|due| due > now), "all is done");
    actions
}

fn boot() -> (Planner, Instant, Vec<Action>) {
    let (mut planner, now) = planner();
    planner.handle(Event::Resources(Box::new(resources())), now);
    for (index, name) in ["n1", "n2"].iter().enumerate() {
        let address = format!("10.0.0.{}", index + 1);
        planner.handle(Event::NodeApplied(Box::new(node(name, &address, &json!({})))), now);
    }
    planner.handle(Event::ServiceApplied(Box::new(service("a", &["10.0.0.9"], &json!({})))), now);
    planner.handle(Event::SliceApplied(Box::new(slice("a", &["n2"]))), now);
    assert_eq!(planner.poll_timeout(), None, "nothing is planned before every list is complete");
    assert!(planner.handle_timeout(now).is_empty());
    planner.handle(Event::Synced, now);
    assert_eq!(planner.poll_timeout(), Some(now));
    let actions = settle(&mut planner, now);
    (planner, now, actions)
}

fn wanted(actions: &[Action]) -> Option<&Wanted> {
    actions.iter().find_map(|action| match action {
        Action::Wanted(wanted) => Some(wanted),
        _ => None,
    })
}

fn notes(actions: &[Action]) -> Vec<(NoteKind, &str)> {
    let notes = actions.iter().filter_map(|action| match action {
        Action::Note(note) => Some((note.kind, note.text.as_str())),
        _ => None,
    });
    notes.collect()
}

/// `service step address reason`, a line each; a status without addresses is the name alone.
fn statuses(actions: &[Action]) -> Vec<String> {
    let mut lines = Vec::new();
    for action in actions {
        let Action::ServiceStatus { service, status } = action else { continue };
        match &status.layer2 {
            None => lines.push(service.name.to_string()),
            Some(layer2) => lines.extend(layer2.addresses.iter().map(|told| {
                let reason = told.reason.unwrap_or_default();
                let line = format!("{} {:?} {} {reason}", service.name, told.step, told.address);
                line.trim_end().to_owned()
            })),
        }
    }
    lines
}

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

fn state(owner: Option<&str>, stage: Stage) -> AddressState {
    let owner = owner.map(NodeName::from);
    AddressState { owner, stage, epoch: 1, conflict: None, proof: Proof::NotYet }
}

fn learn(planner: &mut Planner, state: Option<AddressState>, now: Instant) -> Vec<Action> {
    planner.handle(Event::Addresses([(ADDRESS, state)].into()), now);
    planner.handle_timeout(now)
}

fn apply_node(planner: &mut Planner, name: &str, address: &str, more: &Value, now: Instant) {
    planner.handle(Event::NodeApplied(Box::new(node(name, address, more))), now);
}

#[test]
fn the_first_plan_waits_for_every_list_and_then_says_everything() {
    let (_, _, actions) = boot();
    let wanted = wanted(&actions).expect("the wire is told");
    assert_eq!((wanted.extent, wanted.addresses.len()), (Extent::Whole, 1));
    let peers = wanted.peers.as_ref().unwrap().keys();
    assert_eq!(peers.map(|n| &**n).collect::<Vec<_>>(), ["n2"]);
    assert_eq!(wanted.draining, Some(false));
    assert!(actions.iter().any(|a| matches!(a, Action::OpenSession(spec)
        if spec.router_id == Ipv4Addr::new(10, 0, 0, 1))));
    assert!(!actions.iter().any(|a| matches!(a, Action::Advertise { .. })));
    let complete = |a: &&Action| **a == Action::Complete;
    assert_eq!(actions.iter().filter(complete).count(), 1, "or End-of-RIB would never be sent");
}

#[test]
fn nothing_new_is_nothing_said() {
    let (mut planner, now, _) = boot();
    let due = planner.poll_timeout();
    planner.handle(Event::ServiceApplied(Box::new(service("a", &["10.0.0.9"], &json!({})))), now);
    assert_eq!(planner.poll_timeout(), due);
    planner.handle(Event::Resources(Box::new(resources())), now);
    assert_eq!(settle(&mut planner, now), []);
    apply_node(&mut planner, "n1", "10.0.0.1", &json!({"metadata": {"labels": {"a": "b"}}}), now);
    assert_eq!(settle(&mut planner, now), [], "a label that nobody asks for");
}

#[test]
fn changes_are_told_as_changes_with_the_highest_version() {
    let (mut planner, now, _) = boot();
    let version = |version: &str, addresses: &[&str]| {
        let more = json!({"metadata": {"resourceVersion": version}});
        Event::ServiceApplied(Box::new(service("b", addresses, &more)))
    };
    planner.handle(Event::SliceApplied(Box::new(slice("b", &["n1"]))), now);
    planner.handle(version("17", &["10.0.0.8"]), now);
    let actions = settle(&mut planner, now);
    let told = wanted(&actions).unwrap();
    assert_eq!((told.version, told.extent, told.peers.is_none()), (17, Extent::Changes, true));
    assert_eq!(told.addresses.len(), 1);

    planner.handle(version("x", &["10.0.0.7"]), now);
    let actions = settle(&mut planner, now);
    let told = wanted(&actions).unwrap();
    let told = (told.version, told.addresses.values().map(Option::is_some).collect::<Vec<_>>());
    assert_eq!(told, (17, vec![true, false]), "what is no number counts as 0");

    planner.handle(Event::Version(40), now);
    assert_eq!(settle(&mut planner, now), [], "a version alone is no news");
    planner.handle(Event::ServiceDeleted(ServiceKey::new("default", "b")), now);
    let actions = settle(&mut planner, now);
    assert_eq!(wanted(&actions).unwrap().version, 40);

    planner.handle(Event::NodeDeleted("n2".into()), now);
    let actions = settle(&mut planner, now);
    let told = wanted(&actions).unwrap();
    assert_eq!(told.peers, Some(BTreeMap::new()));
    assert_eq!(told.addresses[&ADDRESS].as_ref().unwrap().nodes, ["n1".into()].into());
}

#[test]
fn a_drain_is_told_when_it_begins_and_ends_and_when_it_is_done() {
    let (mut planner, now, _) = boot();
    learn(&mut planner, Some(state(Some("n1"), Stage::Owner)), now);
    let with = |value: &str| json!({"metadata": {"annotations": {DRAIN_ANNOTATION: value}}});

    apply_node(&mut planner, "n1", "10.0.0.1", &with("yes"), now);
    let actions = settle(&mut planner, now);
    assert_eq!(wanted(&actions), None);
    assert_eq!(
        notes(&actions),
        [(
            NoteKind::DrainUnknown,
            "node \"n1\" is not drained: its annotation berth.io/drain is \"yes\"; set it to \
             \"true\", or remove it"
        )]
    );
    apply_node(&mut planner, "n1", "10.0.0.1", &with("true"), now);
    let actions = settle(&mut planner, now);
    assert_eq!(wanted(&actions).unwrap().draining, Some(true));
    assert_eq!(notes(&actions), [], "it still answers");
    let actions = learn(&mut planner, Some(state(Some("n2"), Stage::Idle)), now);
    let drained = "node \"n1\" is drained: it answers for no address any more";
    assert_eq!(notes(&actions), [(NoteKind::Drained, drained)]);
    apply_node(&mut planner, "n1", "10.0.0.1", &with("true"), now);
    assert_eq!(settle(&mut planner, now), []);
    apply_node(&mut planner, "n2", "10.0.0.2", &with("true"), now);
    assert_eq!(settle(&mut planner, now), [], "that is for its own speaker to say");

    apply_node(&mut planner, "n1", "10.0.0.1", &json!({}), now);
    let actions = settle(&mut planner, now);
    assert_eq!(wanted(&actions).unwrap().draining, Some(false));
}

#[test]
fn taints_drain_where_that_is_switched_on() {
    let tainted = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]}});
    for drain_on_taints in [false, true] {
        let (mut planner, now, _) = boot();
        planner.settings.options.drain_on_taints = drain_on_taints;
        apply_node(&mut planner, "n1", "10.0.0.1", &tainted, now);
        let actions = settle(&mut planner, now);
        let draining = wanted(&actions).and_then(|wanted| wanted.draining);
        assert_eq!(draining, drain_on_taints.then_some(true));
    }
}

#[test]
fn owning_is_told_once() {
    let (mut planner, now, _) = boot();
    let owner = || state(Some("n1"), Stage::Owner);
    let actions = learn(&mut planner, Some(owner()), now);
    let begun = "announcing from node \"n1\" with protocol \"layer2\"";
    assert_eq!(notes(&actions), [(NoteKind::NodeAssigned, begun)]);
    assert_eq!(statuses(&actions), ["a Announced 10.0.0.9"]);
    assert_eq!(learn(&mut planner, Some(owner()), now), []);
    let seen = AddressState { proof: Proof::Seen { by: "n2".into() }, ..owner() };
    let actions = learn(&mut planner, Some(seen), now);
    assert_eq!((statuses(&actions), notes(&actions)), (vec!["a Seen 10.0.0.9".into()], vec![]));
    let actions = learn(&mut planner, Some(state(Some("n2"), Stage::Idle)), now);
    assert_eq!(statuses(&actions), ["a"]);
}

#[test]
fn a_conflict_is_told_when_it_is_found_and_when_it_is_gone() {
    let (mut planner, now, _) = boot();
    let stranger = Stranger { mac: [2, 0, 0, 0, 0, 9], interface: "eth0".into() };
    let conflict = Some(stranger);
    let found = AddressState { conflict: conflict.clone(), ..state(None, Stage::Idle) };
    let actions = learn(&mut planner, Some(found.clone()), now);
    assert_eq!(statuses(&actions), ["a Conflict 10.0.0.9 addressConflict"]);
    assert!(matches!(notes(&actions)[..], [(NoteKind::AddressConflict, text)]
        if text.contains("02:00:00:00:00:09 on interface eth0") && text.contains("10.0.0.9")));
    assert_eq!(learn(&mut planner, Some(found.clone()), now), []);
    let elsewhere = AddressState { conflict, ..state(Some("n2"), Stage::Idle) };
    let actions = learn(&mut planner, Some(elsewhere), now);
    assert_eq!((statuses(&actions), notes(&actions)), (vec!["a".into()], vec![]), "n2 tells it");
    learn(&mut planner, Some(found), now);
    let actions = learn(&mut planner, Some(state(Some("n1"), Stage::Owner)), now);
    let kinds: Vec<NoteKind> = notes(&actions).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [NoteKind::ConflictGone, NoteKind::NodeAssigned]);
}

#[test]
fn one_speaker_tells_of_what_nobody_answers_for() {
    let (mut planner, now, _) = boot();
    let unowned = || Some(state(None, Stage::Idle));
    assert_eq!(learn(&mut planner, unowned(), now), [], "it may be about to be taken");
    let due = planner.poll_timeout().unwrap();
    assert_eq!(statuses(&planner.handle_timeout(due)), ["a Allocated 10.0.0.9 notOwner"]);
    assert_eq!(planner.poll_timeout(), None);
    planner.handle(Event::Live(["n0".into()].into()), due);
    assert_eq!(planner.handle_timeout(due), [], "n0 is no candidate");
    assert_eq!(statuses(&learn(&mut planner, Some(state(Some("n2"), Stage::Idle)), due)), ["a"]);

    // A Service without candidates is for the first of all.
    planner.handle(Event::SliceDeleted { namespace: "default".into(), name: "a-x".into() }, due);
    assert_eq!(statuses(&planner.handle_timeout(due)), [""; 0], "n0 tells");
    planner.handle(Event::Live(BTreeSet::new()), due);
    assert_eq!(statuses(&planner.handle_timeout(due)), ["a Allocated 10.0.0.9 noEndpoints"]);
}

#[test]
fn missing_interfaces_are_told_once() {
    let (mut planner, now, _) = boot();
    let mut resources = resources();
    resources.l2_advertisements[0].spec.interfaces = vec!["eth7".into()];
    planner.handle(Event::Resources(Box::new(resources)), now);
    planner.handle(Event::Interfaces(["eth0".into()].into()), now);
    learn(&mut planner, Some(state(None, Stage::Idle)), now);
    let due = planner.poll_timeout().unwrap();
    let actions = planner.handle_timeout(due);
    assert_eq!(
        notes(&actions),
        [(
            NoteKind::AnnounceFailed,
            "the interfaces specified by LB IP \"10.0.0.9\" doesn't exist in assigned node \
             \"n1\" with protocol \"layer2\""
        )]
    );
    planner.handle(Event::Interfaces(["eth1".into()].into()), due);
    assert_eq!(notes(&planner.handle_timeout(due)), []);
}

#[test]
fn a_changed_peer_touches_only_its_session() {
    let (mut planner, now, _) = boot();
    let mut changed = resources();
    let mut other = changed.bgp_peers[0].clone();
    other.metadata.name = Some("other".into());
    other.spec.peer_address = Some("10.1.0.2".into());
    changed.bgp_peers.push(other);
    planner.handle(Event::Resources(Box::new(changed.clone())), now);
    let opened: Vec<_> = settle(&mut planner, now)
        .into_iter()
        .filter_map(|action| match action {
            Action::OpenSession(spec) => Some(spec.peer.name.to_string()),
            Action::CloseSession { peer, .. } => panic!("{peer} closed"),
            _ => None,
        })
        .collect();
    assert_eq!(opened, ["other"]);
    changed.bgp_peers.remove(0);
    planner.handle(Event::Resources(Box::new(changed)), now);
    let actions = settle(&mut planner, now);
    let reason = StopReason::PeerDeconfigured;
    assert_eq!(actions, [Action::CloseSession { peer: "tor".into(), reason }]);
}

#[derive(Debug, Clone)]
enum Step {
    Service { number: u8, address: Option<u8>, routed: bool, local: bool },
    ServiceGone(u8),
    Endpoints { number: u8, nodes: Vec<u8> },
    EndpointsGone(u8),
    Node { number: u8, unavailable: bool },
    NodeGone(u8),
    Pools { lan: bool },
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..5u8, proptest::option::of(0..4u8), any::<bool>(), any::<bool>()).prop_map(
            |(number, address, routed, local)| Step::Service { number, address, routed, local }),
        1 => (0..5u8).prop_map(Step::ServiceGone),
        4 => (0..5u8, proptest::collection::vec(1..4u8, 0..3))
            .prop_map(|(number, nodes)| Step::Endpoints { number, nodes }),
        1 => (0..5u8).prop_map(Step::EndpointsGone),
        2 => (1..4u8, any::<bool>())
            .prop_map(|(number, unavailable)| Step::Node { number, unavailable }),
        1 => (1..4u8).prop_map(Step::NodeGone),
        1 => any::<bool>().prop_map(|lan| Step::Pools { lan }),
        2 => Just(Step::Flush),
    ];
    proptest::collection::vec(step, 0..60)
}

fn event(step: Step) -> Option<Event> {
    let name = |number: u8| format!("s{number}");
    Some(match step {
        Step::Service { number, address, routed, local } => {
            let address = address.map(|last| match routed {
                true => format!("203.0.113.{last}"),
                false => format!("10.0.0.{last}"),
            });
            let addresses: Vec<&str> = address.iter().map(String::as_str).collect();
            let policy = if local { "Local" } else { "Cluster" };
            let more = json!({"spec": {"externalTrafficPolicy": policy}});
            Event::ServiceApplied(Box::new(service(&name(number), &addresses, &more)))
        }
        Step::ServiceGone(number) => {
            Event::ServiceDeleted(ServiceKey::new("default", name(number)))
        }
        Step::Endpoints { number, nodes } => {
            let nodes: Vec<String> = nodes.iter().map(|n| format!("n{n}")).collect();
            let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
            Event::SliceApplied(Box::new(slice(&name(number), &nodes)))
        }
        Step::EndpointsGone(number) => {
            Event::SliceDeleted { namespace: "default".into(), name: format!("{}-x", name(number)) }
        }
        Step::Node { number, unavailable } => {
            let status = if unavailable { "True" } else { "False" };
            let more = json!({"status": {"conditions": [
                {"type": "NetworkUnavailable", "status": status}]}});
            let node = node(&format!("n{number}"), &format!("10.0.0.{number}"), &more);
            Event::NodeApplied(Box::new(node))
        }
        Step::NodeGone(number) => Event::NodeDeleted(format!("n{number}").into()),
        Step::Pools { lan } => {
            let mut resources = resources();
            if !lan {
                resources.l2_advertisements.clear();
            }
            Event::Resources(Box::new(resources))
        }
        Step::Flush => return None,
    })
}

proptest! {
    /// Planning what changed, after any history, ends where planning everything anew does.
    #[test]
    fn incremental_equals_whole(steps in steps()) {
        let (mut planner, mut now, first) = boot();
        // What the wire makes of what it is told.
        let mut told: BTreeMap<IpAddr, Arc<Candidates>> = BTreeMap::new();
        let mut draining = None;
        // And a session.
        let mut routes: BTreeMap<PeerName, BTreeMap<IpNet, Arc<bgp::Attributes>>> = BTreeMap::new();
        let mut take = |actions: Vec<Action>| {
            for action in &actions {
                let (peer, changes) = match action {
                    Action::Advertise { peer, changes } => (peer, changes),
                    Action::CloseSession { peer, .. } => {
                        routes.remove(peer);
                        continue;
                    }
                    _ => continue,
                };
                let of_peer = routes.entry(peer.clone()).or_default();
                for (prefix, new) in changes {
                    let before = match new.clone() {
                        Some(new) => of_peer.insert(*prefix, new),
                        None => of_peer.remove(prefix),
                    };
                    assert_ne!(&before, new, "{prefix} is told twice");
                }
                if of_peer.is_empty() {
                    routes.remove(peer);
                }
            }
            for wanted in actions.into_iter().filter_map(|action| match action {
                Action::Wanted(wanted) => Some(wanted),
                _ => None,
            }) {
                assert!(wanted.draining.is_none() || wanted.draining != draining, "told twice");
                draining = wanted.draining.or(draining);
                for (address, new) in wanted.addresses {
                    let before = match new.clone() {
                        Some(new) => told.insert(address, new),
                        None => told.remove(&address),
                    };
                    assert_ne!(before, new, "{address} is told twice");
                }
            }
        };
        take(first);
        for step in steps {
            now += Duration::from_millis(1);
            match event(step) {
                Some(event) => {
                    planner.handle(event, now);
                }
                None => take(planner.handle_timeout(now)),
            }
        }
        take(planner.handle_timeout(now));
        let whole = plan(planner.context());
        prop_assert_eq!(told, whole.layer2);
        prop_assert!(planner.by_address.values().all(|asked| asked.told.is_some()));
        prop_assert_eq!(routes, whole.bgp);
    }
}
