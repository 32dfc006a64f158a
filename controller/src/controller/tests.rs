use serde_json::json;

use super::{
    writes::{FIRST_RETRY, LAST_RETRY},
    *,
};
use crate::{
    fixture::*,
    service::{ADDRESS_ASSIGNED, ALLOCATED_FROM_POOL, SeenCondition, SeenStatus},
};

/// A controller with its clock, and what an API server would do to the objects that it patches.
struct Bench {
    controller: Controller,
    now: Instant,
    objects: BTreeMap<ServiceKey, Service>,
    version: u64,
    /// Actions not yet looked at.
    actions: Vec<Action>,
}

impl Bench {
    /// The leader, as which it stays.
    fn new() -> Self {
        let mut bench = Self::standby();
        bench.handle(Event::Leading);
        bench
    }

    fn standby() -> Self {
        let settings = Settings { namespace: "metallb-system".to_owned(), seed: 7 };
        Self {
            controller: Controller::new(settings),
            now: Instant::now(),
            objects: BTreeMap::new(),
            version: 1,
            actions: Vec::new(),
        }
    }

    /// A replica beside this one, which was told what there is.
    fn other(&self, pools: &[(&str, &str)]) -> Self {
        let mut other = Self::standby();
        (other.now, other.version) = (self.now, self.version);
        other.objects.clone_from(&self.objects);
        for object in self.objects.values() {
            other.handle(Event::ServiceApplied(Box::new(object.clone())));
        }
        other.pools(pools);
        other.handle(Event::Synced);
        other
    }

    /// With the pools synced.
    fn with_pools(pools: &[(&str, &str)]) -> Self {
        let mut bench = Self::new();
        bench.pools(pools);
        bench.handle(Event::Synced);
        bench
    }

    fn handle(&mut self, event: Event) {
        let actions = self.controller.handle(event, self.now);
        self.actions.extend(actions);
    }

    fn pools(&mut self, pools: &[(&str, &str)]) {
        self.handle(Event::ResourcesChanged(Arc::new(resources(pools))));
    }

    /// A user creates or changes a Service.
    fn apply(&mut self, service: Service) {
        self.version += 1;
        let service = Service { resource_version: self.version.to_string(), ..service };
        self.objects.insert(service.key.clone(), service.clone());
        self.handle(Event::ServiceApplied(Box::new(service)));
    }

    fn delete(&mut self, name: &str) {
        self.objects.remove(&key(name));
        self.handle(Event::ServiceDeleted(key(name)));
    }

    fn done(&mut self, name: &str, result: WriteResult) {
        self.handle(Event::WriteDone { key: key(name), result });
    }

    /// Stores a patch and tells of it in the order of a quick watch: the object, then the answer.
    fn store(&mut self, name: &str, body: &Value) {
        self.version += 1;
        let object = self.objects.get_mut(&key(name)).unwrap();
        assert_eq!(body["metadata"]["resourceVersion"], json!(object.resource_version));
        assert_eq!(body["metadata"]["uid"], json!(object.uid));
        object.resource_version = self.version.to_string();
        if let Some(balancer) = body.pointer("/status/loadBalancer") {
            let ingress = balancer["ingress"].as_array().cloned().unwrap_or_default();
            object.seen.addresses =
                ingress.iter().map(|entry| ip(entry["ip"].as_str().unwrap())).collect();
        }
        if let Some(annotation) = body["metadata"]["annotations"].get(ALLOCATED_FROM_POOL) {
            object.seen.pool = annotation.as_str().map(str::to_owned);
        }
        if let Some(conditions) = body.pointer("/status/conditions") {
            let ours = |condition: &&Value| condition["type"] == ADDRESS_ASSIGNED;
            let text = |value: &Value| value.as_str().unwrap_or("stamped").to_owned();
            let condition = conditions.as_array().and_then(|all| all.iter().find(ours));
            object.seen.condition = condition.map(|condition| {
                Box::new(SeenCondition {
                    status: text(&condition["status"]),
                    reason: text(&condition["reason"]),
                    message: text(&condition["message"]),
                    since: text(&condition["lastTransitionTime"]),
                })
            });
        }
        let object = object.clone();
        let resource_version = object.resource_version.clone();
        self.handle(Event::ServiceApplied(Box::new(object)));
        self.done(name, WriteResult::Written { resource_version });
    }

    fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Takes the Service patches out of the actions.
    fn patches(&mut self) -> Vec<(String, Value)> {
        let mut patches = Vec::new();
        self.actions.retain(|action| match action {
            Action::PatchService { key, body } => {
                patches.push((key.name.to_string(), body.clone()));
                false
            }
            Action::PatchStatus { .. }
            | Action::PatchConfigurationState { .. }
            | Action::PublishEvent { .. } => true,
        });
        patches
    }

    fn reasons(&mut self) -> Vec<(&'static str, String)> {
        self.take()
            .into_iter()
            .filter_map(|action| match action {
                Action::PublishEvent { regarding, notice } => Some((notice.reason, regarding.name)),
                Action::PatchService { .. }
                | Action::PatchStatus { .. }
                | Action::PatchConfigurationState { .. } => None,
            })
            .collect()
    }

    /// Stores patches until there are none.
    fn settle(&mut self) {
        loop {
            let patches = self.patches();
            if patches.is_empty() {
                return;
            }
            for (name, body) in patches {
                self.store(&name, &body);
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.controller.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let actions = self.controller.handle_timeout(self.now);
            let still = self.controller.poll_timeout();
            assert!(still.is_none_or(|next| next > at), "a deadline must move on");
            self.actions.extend(actions);
        }
        self.now = end;
    }

    fn addresses(&self, name: &str) -> Vec<IpAddr> {
        self.objects[&key(name)].seen.addresses.clone()
    }
}

fn resources(pools: &[(&str, &str)]) -> Resources {
    let pool = |(name, range): &(&str, &str)| {
        serde_json::from_value(json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
            "metadata": {"name": name, "namespace": "metallb-system", "uid": "pool-uid"},
            "spec": {"addresses": [range]},
        }))
        .unwrap()
    };
    Resources { pools: pools.iter().map(pool).collect(), ..Resources::default() }
}

const ONE: &[(&str, &str)] = &[("one", "192.0.2.1-192.0.2.1")];
const FOUR: &[(&str, &str)] = &[("four", "192.0.2.0/30")];

#[test]
fn nothing_is_assigned_before_everything_is_known() {
    let mut bench = Bench::new();
    bench.apply(service("a"));
    bench.pools(ONE);
    bench.wait(Duration::from_secs(60));
    assert_eq!(bench.take(), []);
    // The holder was on the last page of the list.
    bench.apply(service("holder").shows(&["192.0.2.1"], "one"));
    assert_eq!(bench.take(), []);
    bench.handle(Event::Synced);
    let patches = bench.patches();
    assert_eq!(patches.len(), 1);
    assert_eq!(patches[0].1["status"]["conditions"][0]["reason"], "Exhausted");
    assert_eq!(bench.reasons(), [("AllocationFailed", "a".to_owned())]);
}

#[test]
fn no_configuration_is_not_an_empty_one() {
    let mut bench = Bench::new();
    bench.apply(service("a").shows(&["192.0.2.1"], "one"));
    bench.handle(Event::Synced);
    assert_eq!(bench.take(), []);
    bench.pools(ONE);
    assert_eq!(bench.patches(), []);
}

#[test]
fn an_address_is_written_once_with_its_pool() {
    let mut bench = Bench::with_pools(FOUR);
    bench.take();
    bench.apply(service("a"));
    let patches = bench.patches();
    let expected = json!({
        "metadata": {
            "uid": "uid-of-a", "resourceVersion": "2",
            "annotations": {"metallb.io/ip-allocated-from-pool": "four"},
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.0", "ipMode": "VIP"}]}},
    });
    assert_eq!(patches, [("a".to_owned(), expected)]);
    // Told only once it is true.
    assert_eq!(bench.reasons(), []);
    bench.store("a", &patches[0].1);
    assert_eq!(bench.reasons(), [("IPAllocated", "a".to_owned())]);
    bench.apply(Service {
        labels: [("x".into(), "y".into())].into(),
        ..bench.objects[&key("a")].clone()
    });
    assert_eq!(bench.patches(), []);
}

#[test]
fn the_answer_may_come_before_the_watch_event() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    bench.patches();
    bench.done("a", WriteResult::Written { resource_version: "77".to_owned() });
    // The next write rests on the version of the answer.
    bench.pools(&[("late", "198.51.100.0/30")]);
    let patches = bench.patches();
    assert_eq!(patches[0].1["metadata"]["resourceVersion"], "77");
}

#[test]
fn a_restart_writes_nothing() {
    let mut bench = Bench::new();
    for index in 0..4u8 {
        let service = service(&format!("s{index}"));
        bench.apply(service.shows(&[&format!("192.0.2.{}", 3 - index)], "four"));
    }
    bench.pools(FOUR);
    bench.handle(Event::Synced);
    assert_eq!(bench.patches(), []);
    assert_eq!(bench.reasons(), []);
}

#[test]
fn what_a_service_of_another_type_still_shows_is_taken_back() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    bench.settle();
    bench.take();
    let cluster_ip = Service { role: Role::NotLoadBalancer, ..bench.objects[&key("a")].clone() };
    bench.apply(cluster_ip);
    let patches = bench.patches();
    assert_eq!(patches[0].1["status"], json!({"loadBalancer": null}));
    assert_eq!(
        patches[0].1["metadata"]["annotations"],
        json!({"metallb.io/ip-allocated-from-pool": null})
    );
    bench.store("a", &patches[0].1);
    assert_eq!(bench.patches(), []);
    // Never ours, so never touched.
    let other = Service { role: Role::OtherClass, ..service("b") };
    bench.apply(other.shows(&["192.0.2.3"], "four"));
    bench.apply(Service { role: Role::NotLoadBalancer, ..service("c") });
    assert_eq!(bench.patches(), []);
}

#[test]
fn a_deleted_service_makes_room() {
    let mut bench = Bench::with_pools(ONE);
    bench.apply(service("a").created(1));
    bench.apply(service("b").created(2));
    bench.settle();
    assert_eq!(
        bench.reasons(),
        [("AllocationFailed", "b".to_owned()), ("IPAllocated", "a".to_owned())]
    );
    bench.delete("a");
    bench.settle();
    assert_eq!(bench.addresses("b"), ips(&["192.0.2.1"]));
    assert_eq!(bench.reasons(), [("IPAllocated", "b".to_owned())]);
}

#[test]
fn a_refusal_is_told_once() {
    let mut bench = Bench::with_pools(ONE);
    let asks = service("a").requests(&["203.0.113.1"]);
    bench.apply(asks.clone());
    bench.apply(asks.clone());
    assert_eq!(bench.reasons(), [("AllocationFailed", "a".to_owned())]);
    bench.apply(asks.requests(&["203.0.113.2"]));
    assert_eq!(bench.reasons(), [("AllocationFailed", "a".to_owned())]);
}

#[test]
fn an_address_is_not_shown_twice_while_it_changes_hands() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a").requests(&["192.0.2.1"]));
    bench.settle();
    bench.apply(service("b").requests(&["192.0.2.1"]));
    bench.settle();
    assert_eq!(bench.addresses("b"), ips(&[]));
    let mut moves = bench.objects[&key("a")].clone();
    moves.requested = Ok(ips(&["192.0.2.2"]));
    bench.apply(moves);
    let patches = bench.patches();
    assert_eq!(patches.len(), 1, "b waits until a no longer shows the address");
    assert_eq!(patches[0].0, "a");
    bench.store("a", &patches[0].1);
    bench.settle();
    assert_eq!(bench.addresses("b"), ips(&["192.0.2.1"]));
}

#[test]
fn statuses_swapped_by_hand_do_not_block_each_other() {
    let mut bench = Bench::with_pools(FOUR);
    for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2")] {
        bench.apply(service(name).requests(&[address]));
    }
    bench.settle();
    let swap = |name: &str, address: &str, bench: &Bench| {
        bench.objects[&key(name)].clone().shows(&[address], "four")
    };
    let (a, b) = (swap("a", "192.0.2.2", &bench), swap("b", "192.0.2.1", &bench));
    bench.version += 1;
    for service in [a, b] {
        bench.apply(service);
    }
    bench.settle();
    assert_eq!(bench.addresses("a"), ips(&["192.0.2.1"]));
    assert_eq!(bench.addresses("b"), ips(&["192.0.2.2"]));
}

#[test]
fn a_conflict_waits_for_the_newer_object() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    bench.patches();
    bench.done("a", WriteResult::Conflict);
    bench.wait(Duration::from_secs(60));
    assert_eq!(bench.patches(), []);
    bench.apply(service("a"));
    assert_eq!(bench.patches().len(), 1);
    // And when the newer object came first, there is nothing to wait for.
    bench.apply(service("a"));
    bench.done("a", WriteResult::Conflict);
    assert_eq!(bench.patches().len(), 1);
}

#[test]
fn a_failed_write_is_tried_again_ever_later_and_holds_nobody_up() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert_eq!(bench.patches().len(), 1);
        bench.done("a", WriteResult::Failed);
        assert_eq!(bench.patches(), []);
        let before = bench.now;
        while bench.actions.iter().all(|a| !matches!(a, Action::PatchService { .. })) {
            bench.wait(Duration::from_millis(50));
        }
        waits.push(bench.now - before);
    }
    assert!(waits[0] <= Duration::from_millis(350), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= LAST_RETRY.mul_f64(1.5) + FIRST_RETRY), "{waits:?}");
    assert!(waits[11] >= LAST_RETRY, "{waits:?}");
    bench.patches();
    bench.apply(service("b"));
    assert_eq!(bench.patches()[0].0, "b");
}

#[test]
fn writes_in_flight_are_bounded_and_the_fresh_one_goes_first() {
    let mut bench = Bench::new();
    for index in 0..40 {
        bench.apply(service(&format!("s{index:02}")).created(index));
    }
    bench.pools(&[("many", "10.0.0.0/16")]);
    bench.handle(Event::Synced);
    let first = bench.patches();
    assert_eq!(first.len(), MAX_WRITES);
    bench.apply(service("z").created(1000));
    assert_eq!(bench.patches(), []);
    bench.store(&first[0].0, &first[0].1);
    assert_eq!(bench.patches()[0].0, "z");
}

#[test]
fn while_the_api_server_is_away_it_is_only_probed() {
    let mut bench = Bench::new();
    for index in 0..200 {
        bench.apply(service(&format!("s{index:03}")).created(index));
    }
    bench.pools(&[("many", "10.0.0.0/16")]);
    bench.handle(Event::Synced);
    let mut attempts = 0;
    let end = bench.now + Duration::from_secs(20);
    while bench.now < end {
        for (name, _) in bench.patches() {
            attempts += 1;
            bench.done(&name, WriteResult::Unavailable { retry_after: None });
        }
        bench.wait(Duration::from_millis(100));
    }
    assert!((40..=80).contains(&attempts), "{attempts}");
    let end = bench.now + Duration::from_secs(60);
    while bench.now < end {
        bench.settle();
        bench.wait(Duration::from_millis(100));
    }
    assert_eq!(bench.controller.unwritten(), 0);
}

#[test]
fn pool_counters_are_written_together() {
    let mut bench = Bench::with_pools(&[("many", "10.0.0.0/24"), ("other", "192.0.2.0/24")]);
    bench.wait(Duration::from_secs(5));
    let pool_writes = |bench: &mut Bench| {
        let mut writes = Vec::new();
        for action in bench.take() {
            if let Action::PatchStatus { object, body } = action {
                bench.handle(Event::StatusDone {
                    object: object.clone(),
                    result: WriteResult::Written { resource_version: String::new() },
                });
                writes.push((object.name, body["status"]["assignedIPv4"].clone()));
            }
        }
        writes
    };
    assert_eq!(
        pool_writes(&mut bench),
        [("many".to_owned(), json!(0)), ("other".to_owned(), json!(0))]
    );
    for index in 0..100 {
        bench.apply(service(&format!("s{index}")));
        bench.settle();
    }
    bench.wait(Duration::from_secs(5));
    assert_eq!(pool_writes(&mut bench), [("many".to_owned(), json!(100))]);
    bench.wait(Duration::from_secs(60));
    assert_eq!(pool_writes(&mut bench), []);
}

#[test]
fn pool_counters_that_are_shown_already_are_not_written() {
    let mut bench = Bench::new();
    bench.apply(service("a").shows(&["192.0.2.1"], "one"));
    let mut resources = resources(ONE);
    resources.pools[0].status = Some(
        serde_json::from_value(json!({
            "assignedIPv4": 1, "assignedIPv6": 0, "availableIPv4": 0, "availableIPv6": 0,
            "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted",
                            "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
        }))
        .unwrap(),
    );
    bench.handle(Event::ResourcesChanged(Arc::new(resources)));
    bench.handle(Event::Synced);
    bench.wait(Duration::from_secs(60));
    let pool_write = |action: &Action| matches!(action, Action::PatchStatus { .. });
    assert!(!bench.take().iter().any(pool_write));
}

#[test]
fn a_bad_pool_is_named_and_moves_nothing() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    bench.settle();
    bench.handle(Event::ConfigurationStateSeen(None));
    bench.handle(Event::ConfigurationStateDone { result: WRITTEN });
    bench.take();
    bench.pools(&[("bad", "192.0.2.9-192.0.2.1"), ("four", "192.0.2.0/99")]);
    assert_eq!(bench.patches(), [], "the pool keeps its last good form");
    let actions = bench.take();
    let state = actions.iter().find_map(|action| match action {
        Action::PatchConfigurationState { body } => Some(body["status"].clone()),
        Action::PatchService { .. } | Action::PatchStatus { .. } | Action::PublishEvent { .. } => {
            None
        }
    });
    let state = state.expect("the state is written");
    assert_eq!(state["result"], "Invalid");
    assert_eq!(state["conditions"][0]["type"], "poolReconcilerValid");
    assert_eq!(state["conditions"][0]["status"], "False");
    let summary = state["errorSummary"].as_str().unwrap();
    assert!(summary.contains("\"bad\"") && summary.contains("\"four\""), "{summary}");
    let regarding = actions.iter().find_map(|action| match action {
        Action::PublishEvent { regarding, .. } => Some(regarding.clone()),
        Action::PatchService { .. }
        | Action::PatchStatus { .. }
        | Action::PatchConfigurationState { .. } => None,
    });
    let regarding = regarding.expect("an Event on the pool");
    assert_eq!((regarding.kind, &*regarding.uid), ("IPAddressPool", "pool-uid"));
    assert_eq!(regarding.namespace, "metallb-system");
}

#[test]
fn an_idle_controller_has_no_deadline() {
    let mut bench = Bench::with_pools(FOUR);
    bench.handle(Event::ConfigurationStateSeen(None));
    bench.handle(Event::ConfigurationStateDone { result: WRITTEN });
    bench.apply(service("a"));
    bench.settle();
    for _ in 0..3 {
        bench.wait(Duration::from_secs(1));
        object_writes(&mut bench);
    }
    assert_eq!(bench.controller.poll_timeout(), None);
    assert_eq!(bench.controller.handle_timeout(bench.now), []);
}

#[test]
fn the_order_of_the_first_list_does_not_matter() {
    let names: Vec<String> = (0..20).map(|index| format!("s{index:02}")).collect();
    let patches_of = |order: &[&String]| {
        let mut bench = Bench::new();
        for name in order {
            bench.version = 0;
            bench.apply(service(name));
        }
        bench.pools(&[("many", "10.0.0.0/16")]);
        bench.handle(Event::Synced);
        bench.patches()
    };
    let forward: Vec<&String> = names.iter().collect();
    let backward: Vec<&String> = names.iter().rev().collect();
    assert_eq!(patches_of(&forward), patches_of(&backward));
}

const WRITTEN: WriteResult = WriteResult::Written { resource_version: String::new() };

#[test]
fn a_standby_knows_everything_and_writes_nothing() {
    let mut bench = Bench::standby();
    bench.pools(&[("bad", "192.0.2.9-192.0.2.1"), ("four", "192.0.2.0/30")]);
    bench.handle(Event::Synced);
    bench.handle(Event::ConfigurationStateSeen(None));
    bench.apply(service("a"));
    bench.apply(service("asks").requests(&["203.0.113.1"]));
    bench.wait(Duration::from_secs(60));
    assert_eq!(bench.take(), []);
    assert_eq!(bench.controller.poll_timeout(), None);
    assert!(bench.controller.is_ready());
    // It takes over.
    bench.handle(Event::Leading);
    assert_eq!(bench.patches().len(), 2);
    assert!(bench.reasons().contains(&("ConfigurationError", "bad".to_owned())));
    assert!(bench.controller.poll_timeout().is_some(), "statuses of the custom resources");
    // And is replaced: nothing more, whatever comes.
    bench.handle(Event::StandBy);
    for name in ["a", "asks"] {
        bench.done(name, WriteResult::Unavailable { retry_after: None });
    }
    bench.apply(service("b"));
    bench.wait(Duration::from_secs(60));
    assert_eq!(bench.take(), []);
}

#[test]
fn what_was_decided_and_not_written_is_forgotten_with_the_leadership() {
    let mut bench = Bench::with_pools(ONE);
    bench.apply(service("a"));
    assert_eq!(bench.patches().len(), 1);
    bench.handle(Event::StandBy);
    // Another leader gives the only address to another Service.
    bench.apply(service("b").shows(&["192.0.2.1"], "one"));
    bench.handle(Event::Leading);
    assert_eq!(
        bench.controller.plan().assignment(&key("b")).unwrap().addresses(),
        ips(&["192.0.2.1"])
    );
    assert_eq!(bench.patches(), [], "the old write of a is still under way");
    bench.done("a", WriteResult::Conflict);
    let patches = bench.patches();
    assert_eq!(patches[0].0, "a");
    assert_eq!(patches[0].1["status"]["conditions"][0]["reason"], "Exhausted");
}

/// The old leader's write lands after the new one has listed and decided.
#[test]
fn a_shown_address_wins_over_one_that_is_only_decided() {
    // More Services than may be written at once, so that the last ones are decided and unsent.
    let count = MAX_WRITES + 3;
    let pools = [("many", "10.0.0.0/24")];
    let mut bench = Bench::new();
    for index in 0..count {
        bench.apply(service(&format!("s{index:02}")).created(i64::try_from(index).unwrap()));
    }
    bench.pools(&pools);
    bench.handle(Event::Synced);
    assert_eq!(bench.patches().len(), MAX_WRITES);
    let unsent = format!("s{:02}", count - 1);
    let decided = |bench: &Bench, name: &str| {
        bench.controller.plan().assignment(&key(name)).unwrap().addresses().to_vec()
    };
    let address = decided(&bench, &unsent);
    // A Service shows it that was created since, and another one that waits too.
    let other = format!("s{:02}", count - 2);
    let shown = address[0].to_string();
    bench.apply(bench.objects[&key(&other)].clone().shows(&[&shown], "many"));
    assert_eq!(decided(&bench, &other), address);
    assert_ne!(decided(&bench, &unsent), address);
    // Where our own write was sent already it is the other one that moves.
    let sent = decided(&bench, "s00");
    let shown = sent[0].to_string();
    bench.apply(bench.objects[&key(&unsent)].clone().shows(&[&shown], "many"));
    assert_eq!(decided(&bench, "s00"), sent);
    assert_ne!(decided(&bench, &unsent), sent);
}

#[test]
fn a_write_that_lost_against_the_old_leader_changes_nothing_that_is_shown() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    assert_eq!(bench.patches().len(), 1, "192.0.2.0 is on its way");
    bench.apply(service("a").shows(&["192.0.2.2"], "four"));
    bench.done("a", WriteResult::Conflict);
    assert_eq!(bench.patches(), []);
    assert_eq!(
        bench.controller.plan().assignment(&key("a")).unwrap().addresses(),
        ips(&["192.0.2.2"])
    );
    // Later, a status that was edited by hand is put right.
    let edited = bench.objects[&key("a")].clone().shows(&["192.0.2.3"], "four");
    bench.apply(edited);
    let patches = bench.patches();
    assert_eq!(patches[0].1["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.2");
}

#[test]
fn a_takeover_writes_nothing_and_keeps_the_cool_down() {
    let mut resources = resources(FOUR);
    resources.pools[0].spec.reuse_after = Some("60s".into());
    let resources = Arc::new(resources);
    let mut bench = Bench::standby();
    bench.handle(Event::ResourcesChanged(Arc::clone(&resources)));
    bench.handle(Event::Synced);
    bench.apply(service("a").shows(&["192.0.2.0"], "four"));
    bench.apply(service("b").shows(&["192.0.2.1"], "four"));
    bench.delete("a");
    bench.wait(Duration::from_secs(30));
    bench.handle(Event::Leading);
    assert_eq!(bench.patches(), []);
    bench.apply(service("c"));
    bench.settle();
    assert_eq!(bench.addresses("c"), ips(&["192.0.2.2"]), "192.0.2.0 is left alone");
    bench.wait(Duration::from_secs(31));
    bench.apply(service("d"));
    bench.settle();
    assert_eq!(bench.addresses("d"), ips(&["192.0.2.0"]), "and not for longer");
}

#[test]
fn a_refusal_is_a_condition_while_it_lasts() {
    let mut bench = Bench::with_pools(ONE);
    bench.apply(service("a").created(1));
    bench.settle();
    let other = json!({"type": "other", "status": "True", "reason": "x", "message": "",
                       "lastTransitionTime": "2026-01-02T03:04:05Z"});
    let mut waits = service("b").created(2);
    waits.seen.other_conditions = vec![other.clone()];
    bench.apply(waits);
    let patches = bench.patches();
    let body = &patches[0].1;
    assert!(
        body["status"].get("loadBalancer").is_none()
            && body["metadata"].get("annotations").is_none()
    );
    let conditions = body["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions[0], other, "the list is written whole");
    assert_eq!(conditions[1]["type"], "metallb.io/AddressAssigned");
    assert_eq!(conditions[1]["status"], "False");
    assert_eq!(conditions[1]["reason"], "Exhausted");
    assert!(conditions[1].get("lastTransitionTime").is_none(), "the shell's to stamp");
    bench.store("b", body);
    assert_eq!(bench.patches(), [], "it is said once");
    // Another reason: since then it is as long pending as before.
    let asks = Service { requested: Ok(ips(&["203.0.113.1"])), ..bench.objects[&key("b")].clone() };
    bench.apply(asks);
    let patches = bench.patches();
    let condition = &patches[0].1["status"]["conditions"][1];
    assert_eq!(condition["reason"], "AddressInNoPool");
    assert_eq!(condition["lastTransitionTime"], "stamped");
    bench.store("b", &patches[0].1);
    // Met: one patch gives the address and takes the condition away, and only ours.
    let asks = Service { requested: Ok(vec![]), ..bench.objects[&key("b")].clone() };
    bench.apply(asks);
    bench.settle();
    bench.delete("a");
    let patches = bench.patches();
    assert_eq!(patches.len(), 1);
    assert_eq!(patches[0].1["status"]["conditions"], json!([other]));
    assert_eq!(patches[0].1["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
}

#[test]
fn a_restart_tells_no_refusal_again() {
    let mut bench = Bench::with_pools(ONE);
    bench.apply(service("a").created(1));
    bench.apply(service("b").created(2));
    bench.settle();
    let mut again = bench.other(ONE);
    again.handle(Event::Leading);
    assert_eq!(again.patches(), []);
    assert_eq!(again.reasons(), []);
}

#[test]
fn a_service_of_another_type_loses_our_condition() {
    let mut bench = Bench::with_pools(ONE);
    bench.apply(service("a").requests(&["203.0.113.1"]));
    bench.settle();
    assert!(bench.objects[&key("a")].seen.condition.is_some());
    let cluster_ip = Service { role: Role::NotLoadBalancer, ..bench.objects[&key("a")].clone() };
    bench.apply(cluster_ip);
    let patches = bench.patches();
    assert_eq!(patches[0].1["status"]["conditions"], Value::Null);
    bench.store("a", &patches[0].1);
    assert_eq!(bench.patches(), []);
    assert_eq!(bench.objects[&key("a")].seen.condition, None);
}

#[test]
fn one_service_that_cannot_be_written_holds_up_no_other() {
    let mut bench = Bench::new();
    for index in 0..100 {
        bench.apply(service(&format!("s{index:02}")));
    }
    bench.pools(&[("many", "10.0.0.0/16")]);
    bench.handle(Event::Synced);
    // Every other one is refused by some admission policy, for ever.
    let mut written = 0;
    for _ in 0..20 {
        for (name, body) in bench.patches() {
            let odd = name[1..].parse::<u32>().unwrap() % 2 == 1;
            if odd {
                bench.done(&name, WriteResult::Failed);
            } else {
                bench.store(&name, &body);
                written += 1;
            }
        }
    }
    assert_eq!(written, 50, "without any waiting");
    bench.apply(service("fresh"));
    assert_eq!(bench.patches().len(), 1);
}

#[test]
fn an_api_server_that_wants_to_be_left_alone_is() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    bench.patches();
    let after = Some(Duration::from_secs(7));
    bench.done("a", WriteResult::Unavailable { retry_after: after });
    bench.wait(Duration::from_millis(6900));
    assert_eq!(bench.patches(), []);
    bench.apply(service("b"));
    assert_eq!(bench.patches().len(), 1, "for all we know this one is welcome");
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.patches()[0].0, "a");
}

/// The statuses of custom resources that are to be written, each told as stored.
fn object_writes(bench: &mut Bench) -> Vec<(String, Value)> {
    let mut writes = Vec::new();
    for action in bench.take() {
        if let Action::PatchStatus { object, body } = action {
            let done = Event::StatusDone { object: object.clone(), result: WRITTEN };
            bench.handle(done);
            writes.push((format!("{} {}", object.kind, object.name), body["status"].clone()));
        }
    }
    writes
}

#[test]
fn every_object_is_told_whether_it_is_accepted() {
    let mut resources = resources(&[("bad", "192.0.2.9-192.0.2.1"), ("good", "198.51.100.0/24")]);
    resources.pools[0].metadata.generation = Some(3);
    resources.pools[0].spec.addresses.push("nonsense".to_owned());
    resources.communities.push(crds::Community::new("names", crds::CommunitySpec::default()));
    let unreadable = ObjectRef { kind: "BGPPeer", name: "ill".to_owned() };
    resources.unreadable.insert(unreadable, "of the wrong form".to_owned());
    let resources = Arc::new(resources);
    let mut bench = Bench::new();
    bench.handle(Event::ResourcesChanged(Arc::clone(&resources)));
    bench.handle(Event::Synced);
    bench.wait(Duration::from_secs(3));
    let writes: BTreeMap<String, Value> = object_writes(&mut bench).into_iter().collect();
    assert_eq!(
        writes.keys().collect::<Vec<_>>(),
        ["BGPPeer ill", "Community names", "IPAddressPool bad", "IPAddressPool good"]
    );
    let condition = |object: &str| &writes[object]["conditions"][0];
    let bad = condition("IPAddressPool bad");
    assert_eq!((&bad["type"], &bad["status"]), (&json!("Accepted"), &json!("False")));
    assert_eq!((&bad["reason"], &bad["observedGeneration"]), (&json!("RangeReversed"), &json!(3)));
    let message = bad["message"].as_str().unwrap();
    assert!(message.contains("spec.addresses[0]: 192.0.2.9 comes after"), "{message}");
    assert!(message.contains("\nspec.addresses[1]: "), "every error: {message}");
    assert_eq!(condition("BGPPeer ill")["reason"], "Unreadable");
    let good = condition("IPAddressPool good");
    assert_eq!((&good["status"], &good["reason"]), (&json!("True"), &json!("Accepted")));
    assert_eq!(writes["IPAddressPool good"]["availableIPv4"], 256);
    assert!(writes["Community names"].get("assignedIPv4").is_none());
    // Nothing changes, nothing is written; not even by another one that reads it.
    bench.wait(Duration::from_secs(60));
    assert_eq!(object_writes(&mut bench), []);
    let mut shown = (*resources).clone();
    for pool in &mut shown.pools {
        let mut status =
            writes[&format!("IPAddressPool {}", pool.metadata.name.as_ref().unwrap())].clone();
        status["conditions"][0]["lastTransitionTime"] = json!("2026-01-02T03:04:05Z");
        pool.status = Some(serde_json::from_value(status).unwrap());
    }
    shown.communities.clear();
    shown.unreadable.clear();
    let mut again = Bench::new();
    again.handle(Event::ResourcesChanged(Arc::new(shown.clone())));
    again.handle(Event::Synced);
    again.wait(Duration::from_secs(60));
    assert_eq!(object_writes(&mut again), []);
    assert!(again.reasons().is_empty(), "and no error is told again");
    // Somebody wipes it.
    let mut wiped = shown.pools[1].clone();
    wiped.status = None;
    again.handle(Event::ObjectStatusChanged(Candidate::Pool(Box::new(wiped))));
    again.wait(Duration::from_secs(3));
    assert_eq!(object_writes(&mut again)[0].0, "IPAddressPool good");
}

#[test]
fn the_time_of_a_transition_stays_and_the_conditions_of_others_too() {
    let mut resources = resources(FOUR);
    let condition = |kind: &str, time: &str| {
        json!({"type": kind, "status": "True", "reason": "Accepted", "message": "",
               "lastTransitionTime": time})
    };
    let conditions =
        [condition("other", "2026-01-01T00:00:00Z"), condition("Accepted", "2026-01-02T00:00:00Z")];
    let status = json!({"assignedIPv4": 4, "conditions": conditions});
    resources.pools[0].status = Some(serde_json::from_value(status).unwrap());
    resources.pools[0].metadata.generation = Some(2);
    let mut bench = Bench::new();
    bench.handle(Event::ResourcesChanged(Arc::new(resources)));
    bench.handle(Event::Synced);
    bench.wait(Duration::from_secs(3));
    let writes = object_writes(&mut bench);
    assert_eq!(writes[0].1["conditions"][0], conditions[0]);
    assert_eq!(writes[0].1["conditions"][1]["lastTransitionTime"], "2026-01-02T00:00:00Z");
    assert_eq!(writes[0].1["conditions"][1]["observedGeneration"], 2);
}

#[test]
fn thousands_of_assignments_cost_a_handful_of_pool_writes() {
    let mut bench = Bench::with_pools(&[("many", "10.0.0.0/16"), ("other", "192.0.2.0/24")]);
    bench.wait(Duration::from_secs(2));
    object_writes(&mut bench);
    let mut writes = 0;
    for index in 0..5000 {
        bench.apply(service(&format!("s{index}")));
        for (name, body) in bench.patches() {
            bench.store(&name, &body);
        }
        bench.wait(Duration::from_millis(1));
        writes += object_writes(&mut bench).len();
    }
    bench.wait(Duration::from_secs(5));
    let last = object_writes(&mut bench);
    assert_eq!(last.last().unwrap().1["assignedIPv4"], 5000);
    assert!(writes + last.len() <= 7, "{writes} writes in five seconds");
}

#[test]
fn a_status_that_cannot_be_written_is_tried_ever_less_often() {
    let mut bench = Bench::with_pools(FOUR);
    let mut attempts = 0;
    for _ in 0..300 {
        bench.wait(Duration::from_secs(1));
        for action in bench.take() {
            if let Action::PatchStatus { object, .. } = action {
                attempts += 1;
                bench.handle(Event::StatusDone { object, result: WriteResult::Failed });
            }
        }
    }
    assert!((8..=20).contains(&attempts), "{attempts} attempts in five minutes");
}

#[test]
fn the_configuration_state_is_written_where_it_says_something_else() {
    let state_writes = |bench: &mut Bench| {
        let is_state = |action: &Action| matches!(action, Action::PatchConfigurationState { .. });
        bench.take().into_iter().filter(is_state).count()
    };
    let mut bench = Bench::with_pools(FOUR);
    assert_eq!(state_writes(&mut bench), 0, "not before it was looked at");
    let valid = json!({
        "result": "Valid", "errorSummary": "",
        "conditions": [{"type": "poolReconcilerValid", "status": "True", "reason": "Reconciled",
                        "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
    });
    let valid: ConfigurationStateStatus = serde_json::from_value(valid).unwrap();
    bench.handle(Event::ConfigurationStateSeen(Some(Box::new(valid))));
    assert_eq!(state_writes(&mut bench), 0);
    for (seen, writes) in [(None, 1), (Some(Box::default()), 1)] {
        bench.handle(Event::ConfigurationStateSeen(seen));
        assert_eq!(state_writes(&mut bench), writes);
        bench.handle(Event::ConfigurationStateDone { result: WRITTEN });
        assert_eq!(state_writes(&mut bench), 0);
    }
    bench.pools(&[("bad", "192.0.2.9-192.0.2.1")]);
    assert_eq!(state_writes(&mut bench), 1);
    bench.handle(Event::ConfigurationStateDone { result: WriteResult::Failed });
    assert_eq!(state_writes(&mut bench), 0);
    bench.wait(Duration::from_secs(1));
    assert_eq!(state_writes(&mut bench), 1);
}

#[test]
fn own_writes_that_come_back_decide_nothing() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    let patches = bench.patches();
    bench.store("a", &patches[0].1);
    let echo = bench.objects[&key("a")].clone();
    assert!(bench.controller.is_echo(echo.clone(), &key("a")));
    let before = Service { seen: SeenStatus::default(), ..echo.clone() };
    assert!(bench.controller.is_echo(before, &key("a")), "the object before our write");
    let other = Service { deleting: true, ..echo };
    assert!(!bench.controller.is_echo(other, &key("a")));
}
