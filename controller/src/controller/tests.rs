use serde_json::json;

use super::*;
use crate::fixture::*;

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
    fn new() -> Self {
        let settings = Settings { namespace: "metallb-system".to_owned(), seed: 7 };
        Self {
            controller: Controller::new(settings),
            now: Instant::now(),
            objects: BTreeMap::new(),
            version: 1,
            actions: Vec::new(),
        }
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
        self.handle(Event::ResourcesChanged(Box::new(resources(pools))));
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
        let annotation = &body["metadata"]["annotations"][crate::service::ALLOCATED_FROM_POOL];
        object.seen.pool = annotation.as_str().map(str::to_owned);
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
            Action::PatchPoolStatus { .. }
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
                | Action::PatchPoolStatus { .. }
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
    assert_eq!(bench.patches(), []);
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
    assert_eq!(bench.patches(), []);
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
            bench.done(&name, WriteResult::Failed);
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
            if let Action::PatchPoolStatus { pool, body } = action {
                bench.handle(Event::PoolStatusDone {
                    pool: pool.clone(),
                    result: WriteResult::Written { resource_version: String::new() },
                });
                writes.push((pool.to_string(), body["status"]["assignedIPv4"].clone()));
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
        }))
        .unwrap(),
    );
    bench.handle(Event::ResourcesChanged(Box::new(resources)));
    bench.handle(Event::Synced);
    bench.wait(Duration::from_secs(60));
    let pool_write = |action: &Action| matches!(action, Action::PatchPoolStatus { .. });
    assert!(!bench.take().iter().any(pool_write));
}

#[test]
fn a_bad_pool_is_named_and_moves_nothing() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    bench.settle();
    bench.handle(Event::ConfigurationStateDone {
        result: WriteResult::Written { resource_version: String::new() },
    });
    bench.take();
    bench.pools(&[("bad", "192.0.2.9-192.0.2.1"), ("four", "192.0.2.0/99")]);
    assert_eq!(bench.patches(), [], "the pool keeps its last good form");
    let actions = bench.take();
    let state = actions.iter().find_map(|action| match action {
        Action::PatchConfigurationState { body } => Some(body["status"].clone()),
        Action::PatchService { .. }
        | Action::PatchPoolStatus { .. }
        | Action::PublishEvent { .. } => None,
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
        | Action::PatchPoolStatus { .. }
        | Action::PatchConfigurationState { .. } => None,
    });
    let regarding = regarding.expect("an Event on the pool");
    assert_eq!((regarding.kind, &*regarding.uid), ("IPAddressPool", "pool-uid"));
    assert_eq!(regarding.namespace, "metallb-system");
}

#[test]
fn an_idle_controller_has_no_deadline() {
    let mut bench = Bench::with_pools(FOUR);
    bench.apply(service("a"));
    bench.settle();
    for action in bench.take() {
        let result = WriteResult::Written { resource_version: String::new() };
        match action {
            Action::PatchConfigurationState { .. } => {
                bench.handle(Event::ConfigurationStateDone { result });
            }
            Action::PatchPoolStatus { pool, .. } => {
                bench.handle(Event::PoolStatusDone { pool, result });
            }
            Action::PatchService { .. } | Action::PublishEvent { .. } => {}
        }
    }
    bench.wait(Duration::from_secs(1));
    for action in bench.take() {
        if let Action::PatchPoolStatus { pool, .. } = action {
            let result = WriteResult::Written { resource_version: String::new() };
            bench.handle(Event::PoolStatusDone { pool, result });
        }
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
