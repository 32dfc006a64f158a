//! How long the pure part takes: `cargo bench --package controller --bench plan`. Prints a table,
//! and writes it as JSON to the file that `BERTH_BENCH_FILE` names. Asserts nothing.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use config::{AddressRange, Config, Pool};
use controller::{
    plan::{Plan, plan},
    service::{Service, ServiceKey},
};
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

/// Of a whole plan.
const RUNS: usize = 21;
/// Of one event.
const EVENTS: usize = 2001;
const SLASH_16: usize = 1 << 16;
const WAITING: usize = 5000;

fn main() {
    println!(
        "{:<52} {:>6} {:>6} {:>9} {:>9} {:>9} {:>9}",
        "", "unit", "runs", "min", "median", "max", "goal"
    );
    let mut table = Table::default();
    whole_plans(&mut table);
    one_more(&mut table);
    full_pool(&mut table);
    filling(&mut table);
    if let Ok(file) = std::env::var("BERTH_BENCH_FILE") {
        std::fs::write(file, serde_json::to_string_pretty(&table.rows).unwrap()).unwrap();
    }
}

fn whole_plans(table: &mut Table) {
    let one = config(1, 16);
    let hundred = config(100, 20);
    let rows: [(&str, &Config, usize, Option<f64>); 4] = [
        ("plan of 10,000 Services, one /16", &one, 10_000, Some(15.0)),
        ("plan of 10,000 Services, 100 pools", &hundred, 10_000, Some(15.0)),
        ("plan of 10,000 Services, 100 pools, just enough", &config(100, 25), 10_000, None),
        ("plan of 100,000 Services, one /8", &config(1, 8), 100_000, Some(200.0)),
    ];
    for (what, config, count, goal) in rows {
        let services = services(count);
        let times = (0..RUNS).map(|_| time(|| plan(config, &services, Instant::now())));
        table.row(what, Unit::Milliseconds, times.collect(), goal);
    }
    let held = showing(&plan(&one, &services(10_000), Instant::now()), services(10_000));
    let times = (0..RUNS).map(|_| time(|| plan(&one, &held, Instant::now())));
    table.row("restart with 10,000 assigned", Unit::Milliseconds, times.collect(), None);
}

fn one_more(table: &mut Table) {
    for (what, config) in [
        ("one more allocation beside 10,000, one /16", config(1, 16)),
        ("one more allocation beside 10,000, 100 pools", config(100, 20)),
    ] {
        let mut all = services(10_000);
        let mut plan = plan(&config, &all, Instant::now());
        let times = (0..EVENTS)
            .map(|index| {
                let time = add(&mut plan, &mut all, service(10_000 + index));
                remove(&mut plan, &mut all, 10_000 + index);
                time
            })
            .collect();
        table.row(what, Unit::Microseconds, times, Some(20.0));
    }
}

fn full_pool(table: &mut Table) {
    let config = config(1, 16);
    let mut all = services(SLASH_16 + WAITING);
    let mut plan = plan(&config, &all, Instant::now());
    let times = (0..EVENTS)
        .map(|index| {
            let index = SLASH_16 + WAITING + index;
            let time = add(&mut plan, &mut all, service(index));
            remove(&mut plan, &mut all, index);
            time
        })
        .collect();
    let what = "one refused allocation, /16 full, 5,000 wait";
    table.row(what, Unit::Microseconds, times, Some(10.0));
    let times = (0..EVENTS).map(|index| remove(&mut plan, &mut all, index)).collect();
    table.row("one address freed, one of 5,000 woken", Unit::Microseconds, times, None);
}

/// One by one, as Services come.
fn filling(table: &mut Table) {
    let config = config(1, 16);
    let mut all = BTreeMap::new();
    let mut plan = plan(&config, &all, Instant::now());
    let mut times: Vec<Duration> =
        (0..SLASH_16).map(|index| add(&mut plan, &mut all, service(index))).collect();
    let last = times.split_off(SLASH_16 - SLASH_16 / 10);
    times.truncate(SLASH_16 / 10);
    table.row("filling a /16: one of the first tenth", Unit::Microseconds, times, None);
    table.row("filling a /16: one of the last tenth", Unit::Microseconds, last, None);
}

fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    let result = std::hint::black_box(work());
    let time = start.elapsed();
    drop(result);
    time
}

fn add(plan: &mut Plan, all: &mut BTreeMap<ServiceKey, Service>, new: Service) -> Duration {
    let dirty = BTreeSet::from([new.key.clone()]);
    all.insert(new.key.clone(), new);
    time(|| plan.revise(all, &dirty, Instant::now()))
}

fn remove(plan: &mut Plan, all: &mut BTreeMap<ServiceKey, Service>, index: usize) -> Duration {
    let key = service(index).key;
    all.remove(&key);
    let dirty = BTreeSet::from([key]);
    time(|| plan.revise(all, &dirty, Instant::now()))
}

enum Unit {
    Milliseconds,
    Microseconds,
}

#[derive(Default)]
struct Table {
    rows: Vec<Value>,
}

impl Table {
    /// Prints a row and keeps it. A goal is for the median.
    fn row(&mut self, what: &str, unit: Unit, mut times: Vec<Duration>, goal: Option<f64>) {
        times.sort();
        let (name, factor) = match unit {
            Unit::Milliseconds => ("ms", 1e3),
            Unit::Microseconds => ("us", 1e6),
        };
        let runs = times.len();
        let [min, median, max] =
            [0, runs / 2, runs - 1].map(|index| times[index].as_secs_f64() * factor);
        let met = goal.map(|goal| median <= goal);
        let shown = goal.map(|goal| format!("{goal:.0}")).unwrap_or_default();
        let verdict = match met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "",
        };
        println!(
            "{what:<52} {name:>6} {runs:>6} {min:>9.3} {median:>9.3} {max:>9.3} {shown:>9} {verdict}"
        );
        self.rows.push(json!({
            "name": what, "unit": name, "runs": runs, "min": min, "median": median, "max": max,
            "goal": goal, "met": met,
        }));
    }
}

/// `count` pools, one below the other from 10.0.0.0 on.
fn config(count: u32, prefix: u32) -> Config {
    let size = 1_u32 << (32 - prefix);
    let pools = (0..count).map(|index| {
        let first = u32::from(Ipv4Addr::new(10, 0, 0, 0)) + index * size;
        let address = |number: u32| IpAddr::V4(Ipv4Addr::from(number));
        let name = format!("pool-{index:03}");
        let range = AddressRange { first: address(first), last: address(first + (size - 1)) };
        let pool = Pool::new(name.as_str(), vec![range]);
        (pool.name.clone(), pool)
    });
    Config { pools: pools.collect(), ..Config::default() }
}

fn services(count: usize) -> BTreeMap<ServiceKey, Service> {
    (0..count).map(service).map(|service| (service.key.clone(), service)).collect()
}

fn service(index: usize) -> Service {
    let object: v1::Service = serde_json::from_value(json!({
        "metadata": {
            "namespace": format!("ns-{}", index % 50), "name": format!("service-{index}"),
            "labels": {"app": "web", "index": index.to_string()},
        },
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"],
            "ports": [{"port": 80}, {"port": 443}],
        },
    }))
    .unwrap();
    Service::new(&object, None).unwrap()
}

/// The Services once all of the plan is written.
fn showing(
    plan: &Plan,
    mut services: BTreeMap<ServiceKey, Service>,
) -> BTreeMap<ServiceKey, Service> {
    for (key, decision) in plan.decisions() {
        if let Some(held) = decision.outcome.assignment() {
            let seen = &mut services.get_mut(key).unwrap().seen;
            seen.addresses = held.addresses().to_vec();
            seen.pool = Some(held.pool_annotation());
        }
    }
    services
}
