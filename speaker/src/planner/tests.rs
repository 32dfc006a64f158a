use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    fixture::{node, resources, service, slice},
    plan::plan,
};

fn planner() -> (Planner, Instant) {
    let settings = PlannerConfig {
        me: "n1".into(),
        heartbeat: Some(IpAddr::from([10, 0, 0, 1])),
        options: Options::default(),
    };
    (Planner::new(settings), Instant::now())
}

fn settle(planner: &mut Planner, now: Instant) -> Vec<Action> {
    let actions = planner.handle_timeout(now);
    assert_eq!(planner.poll_timeout(), None);
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

#[test]
fn the_first_plan_waits_for_every_list_and_then_says_everything() {
    let (_, _, actions) = boot();
    let wanted = actions.iter().find_map(|action| match action {
        Action::Wanted(wanted) => Some(wanted),
        _ => None,
    });
    let wanted = wanted.expect("the wire is told");
    assert_eq!(wanted.addresses.len(), 1);
    assert_eq!(wanted.peers.keys().map(|n| &**n).collect::<Vec<_>>(), ["n2"]);
    assert!(actions.iter().any(|a| matches!(a, Action::OpenSession(spec)
        if spec.router_id == Ipv4Addr::new(10, 0, 0, 1))));
    let told = |a: &Action| matches!(a, Action::Advertise { routes, .. } if routes.is_empty());
    assert!(actions.iter().any(told), "an empty set too, or End-of-RIB would never be sent");
}

#[test]
fn nothing_new_is_nothing_said() {
    let (mut planner, now, _) = boot();
    planner.handle(Event::ServiceApplied(Box::new(service("a", &["10.0.0.9"], &json!({})))), now);
    assert_eq!(planner.poll_timeout(), None);
    planner.handle(Event::Resources(Box::new(resources())), now);
    assert_eq!(settle(&mut planner, now), []);
}

#[test]
fn owning_is_told_once() {
    let (mut planner, now, _) = boot();
    let report = Report { owned: [IpAddr::from([10, 0, 0, 9])].into(), ..Report::default() };
    planner.handle(Event::Wire(report.clone()), now);
    let actions = settle(&mut planner, now);
    assert!(actions.iter().any(|a| matches!(a, Action::Note(note)
        if note.text == "announcing from node \"n1\" with protocol \"layer2\"")));
    assert!(actions.iter().any(|a| matches!(a, Action::ServiceStatus { status, .. }
        if status.layer2.is_some())));
    let same = Report { live: ["n2".into()].into(), ..report };
    planner.handle(Event::Wire(same), now);
    assert!(planner.handle_timeout(now).is_empty());
    planner.handle(Event::Wire(Report::default()), now);
    let actions = settle(&mut planner, now);
    assert!(actions.iter().any(|a| matches!(a, Action::ServiceStatus { status, .. }
        if status.layer2.is_none())));
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
            Action::CloseSession(name) => panic!("{name} closed"),
            _ => None,
        })
        .collect();
    assert_eq!(opened, ["other"]);
    changed.bgp_peers.remove(0);
    planner.handle(Event::Resources(Box::new(changed)), now);
    let actions = settle(&mut planner, now);
    assert!(matches!(&actions[..], [Action::CloseSession(name)] if &**name == "tor"));
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
        let (mut planner, mut now, _) = boot();
        for step in steps {
            now += Duration::from_millis(1);
            match event(step) {
                Some(event) => {
                    planner.handle(event, now);
                }
                None => {
                    planner.handle_timeout(now);
                }
            }
        }
        planner.handle_timeout(now);
        let context = Context {
            me: &planner.settings.me,
            config: &planner.config,
            cluster: &planner.cluster,
            options: &planner.settings.options,
        };
        let whole = plan(context);
        prop_assert_eq!(&planner.wanted.addresses, &whole.layer2);
        let told: BTreeMap<_, _> =
            planner.advertised.iter().filter(|(_, routes)| !routes.is_empty()).collect();
        prop_assert_eq!(told, whole.bgp.iter().collect());
    }
}
