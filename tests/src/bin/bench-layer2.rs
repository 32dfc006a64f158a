//! How fast `berth-speaker` is on a segment, and what it costs: `make bench-layer2`. Takes the
//! program that lies beside it, or in the folder that `BERTH_PROGRAMS` names. Needs root; everything
//! runs in network namespaces of its own. Prints a table; asserts nothing but that what is measured
//! happens.

use std::fs;

use anyhow::{Result, ensure};
use tests::bench::{
    layer2::{Scale, measure},
    segment::programs,
};

fn main() -> Result<()> {
    let scale = Scale::from_environment()?;
    if programs()?.ends_with("debug") {
        eprintln!("This is a debug build; its figures say nothing.");
    }
    ensure!(
        fs::read_to_string("/proc/self/status")?.contains("\nUid:\t0\t"),
        "tcpdump and keepalived in network namespaces take root"
    );
    let (rows, failed) = measure(&scale)?;
    rows.publish()?;
    ensure!(failed.is_empty(), "these failed, see above: {}", failed.join(", "));
    Ok(())
}
