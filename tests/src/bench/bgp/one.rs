//! One route: how soon the router's kernel has it, loses it, and has it back.

use std::time::Instant;

use anyhow::Result;

use super::{Table, address, expose, ms, on_bench};
use crate::{
    bench::{Goal, Rows, percentile},
    lab::{Policy, Router, RouterConfig, RouterKind},
};

/// How many Services come and go in one run.
const SAMPLES: u16 = 20;

/// Now, with the change before long enough ago that this one is not gathered with it: changes do not
/// come at the pace of a benchmark.
fn alone() -> Instant {
    std::thread::sleep(std::time::Duration::from_millis(30));
    Instant::now()
}

/// A Service's status, its deletion, its last endpoint: until BIRD's kernel has or has not the route.
pub(super) fn routes(runs: usize, rows: &mut Rows) -> Result<()> {
    let [mut written, mut deleted, mut endpoint] = [Vec::new(), Vec::new(), Vec::new()];
    on_bench(|stage| {
        let _router = Router::start(stage, RouterKind::Bird, RouterConfig::EXTERNAL)?;
        let mut table = Table::of(&stage.router)?;
        expose(stage, 0, 1)?;
        stage.start_speaker(1)?;
        table.wait_for(1, Instant::now())?;
        for _ in 0..runs {
            for index in 1..=SAMPLES {
                let (name, address) = (format!("s{index}"), address(index));
                let shown = |policy| stage.expose(&name, &[&address], policy, &[1]);
                // Everything but the address is known before, as the controller has it.
                stage.set_endpoints(&name, &[1])?;
                let since = alone();
                shown(Policy::Cluster)?;
                written.push(ms(table.wait_for(2, since)?));
                let since = alone();
                stage.set_endpoints(&name, &[])?;
                endpoint.push(ms(table.wait_for(1, since)?));
                stage.set_endpoints(&name, &[1])?;
                table.wait_for(2, Instant::now())?;
                let since = alone();
                stage.unexpose(&name)?;
                deleted.push(ms(table.wait_for(1, since)?));
            }
        }
        Ok(())
    })?;
    let p99 = percentile(&written, 99);
    rows.push(
        "Service with its address → route in BIRD's kernel",
        "ms",
        written,
        Some(Goal::Median(5.0)),
    );
    rows.metallb("[6.9 ms native]");
    rows.push("… 99th percentile", "ms", vec![p99], Some(Goal::Max(15.0)));
    rows.push("last endpoint gone → route gone", "ms", endpoint, Some(Goal::Median(5.0)));
    rows.metallb("[6.6 ms]");
    rows.push("Service deleted → route gone", "ms", deleted, Some(Goal::Median(5.0)));
    rows.metallb("[6.6 ms]");
    Ok(())
}

/// The speaker's start, and the router's: until the route is there.
pub(super) fn router_restarted(runs: usize, rows: &mut Rows) -> Result<()> {
    let (mut started, mut restarted) = (Vec::new(), Vec::new());
    on_bench(|stage| {
        let mut router = Router::start(stage, RouterKind::Bird, RouterConfig::EXTERNAL)?;
        let mut table = Table::of(&stage.router)?;
        expose(stage, 0, 1)?;
        for _ in 0..runs {
            let since = Instant::now();
            stage.start_speaker(1)?;
            started.push(ms(table.wait_for(1, since)?));
            router.stop()?;
            table.wait_for(0, Instant::now())?;
            std::thread::sleep(std::time::Duration::from_secs(3));
            router.run()?;
            restarted.push(ms(table.wait_for(1, Instant::now())?));
            stage.node(1).stop_speaker()?;
            table.wait_for(0, Instant::now())?;
        }
        Ok(())
    })?;
    rows.push(
        "speaker started → route in BIRD's kernel",
        "ms",
        started,
        Some(Goal::Median(1000.0)),
    );
    rows.push(
        "router away for 3 s, answers again → route back",
        "ms",
        restarted,
        Some(Goal::Max(3000.0)),
    );
    Ok(())
}
