//! How fast routes are, and what they cost: `make bench-bgp`. Takes the speaker that lies beside it,
//! or in the folder that `BERTH_PROGRAMS` names. Needs root; everything runs in network namespaces
//! of its own. Prints a table; asserts nothing but that what is measured happens.

use anyhow::{Result, ensure};
use tests::bench::{bgp::measure, segment::programs};

fn main() -> Result<()> {
    if programs()?.ends_with("debug") {
        eprintln!("This is a debug build; its figures say nothing.");
    }
    let (rows, failed) = measure()?;
    rows.publish()?;
    ensure!(failed.is_empty(), "these failed, see above: {}", failed.join(", "));
    Ok(())
}
