//! How long the pure part takes: `cargo bench -p controller`. Prints a table, asserts nothing.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use config::{AddressRange, Config, Pool};
use controller::{
    plan::{Outcome, plan},
    service::{Service, ServiceKey},
};
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

const RUNS: usize = 7;

fn main() {
    println!("{:<58} {:>12} {:>14}", "", "whole", "per Service");
    let mut rows = Vec::new();
    for count in [10_000, 100_000] {
        let one = config(1, 8);
        let hundred = config(100, 16);
        rows.push(row(&format!("{count} Services, one /8"), &one, &services(count)));
        rows.push(row(&format!("{count} Services, 100 pools of /16"), &hundred, &services(count)));
        let held = held(&one, services(count));
        rows.push(row(&format!("{count} Services that hold their addresses"), &one, &held));
    }
    let enough = config(100, 25);
    rows.push(row("10000 Services, 100 pools of /25 (just enough)", &enough, &services(10_000)));
    let few = config(1, 16);
    rows.push(row("70000 Services, one /16 (5000 too many)", &few, &services(70_000)));
    one_more();
    if let Ok(file) = std::env::var("BERTH_BENCH_FILE") {
        std::fs::write(file, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    }
}

/// Prints a row, and gives it in the form that `make bench` keeps.
fn row(what: &str, config: &Config, services: &BTreeMap<ServiceKey, Service>) -> Value {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(plan(config, services));
            start.elapsed()
        })
        .collect();
    times.sort();
    let median = times[RUNS / 2];
    let each = median / u32::try_from(services.len()).unwrap();
    println!("{what:<58} {median:>12.1?} {each:>14.1?}");
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    json!({
        "name": what, "unit": "ms", "runs": RUNS, "min": ms(times[0]), "median": ms(median),
        "max": ms(times[RUNS - 1]), "goal": null, "met": null,
    })
}

/// One allocation and one release more in a plan that lives on.
fn one_more() {
    for (what, prefix, count) in
        [("one more of 10000", 8, 10_000), ("one refused, /16 full, 100 wait", 16, 65_636)]
    {
        let config = config(1, prefix);
        let mut all = services(count);
        let mut plan = plan(&config, &all);
        let new = service(count);
        let key = BTreeSet::from([new.key.clone()]);
        let start = Instant::now();
        for _ in 0..100 {
            all.insert(new.key.clone(), new.clone());
            plan.revise(&all, &key);
            all.remove(&new.key);
            plan.revise(&all, &key);
        }
        let each = start.elapsed() / 200;
        println!("{what:<58} {:>12} {each:>14.1?}", "");
    }
}

/// `count` pools, one below the other in 10.0.0.0/8 and 11.0.0.0/8.
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

fn held(
    config: &Config,
    mut services: BTreeMap<ServiceKey, Service>,
) -> BTreeMap<ServiceKey, Service> {
    let plan = plan(config, &services);
    for (key, decision) in plan.decisions() {
        if let Outcome::Assigned(held) = &decision.outcome {
            let service = services.get_mut(key).unwrap();
            service.seen.addresses = held.addresses.clone();
        }
    }
    services
}
