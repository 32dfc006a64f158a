//! keepalived, VRRP version 3 (RFC 5798), in the place of the speakers of a [`Segment`]: one virtual
//! router that has all of its addresses.

use std::{fmt::Write, fs};

use anyhow::{Result, ensure};
use netlab::wait_for;

use super::segment::Segment;
use crate::lab::{DEVICE, LIMIT};

/// Starts one on every node, with this time from one advertisement to the next, in seconds; waits
/// until one of them has the addresses.
///
/// # Errors
/// When it does not start.
pub fn start(segment: &mut Segment, interval: &str) -> Result<()> {
    let (folder, addresses) = (segment.directory(), segment.addresses.clone());
    for node in &mut segment.nodes {
        let mut text = format!(
            "global_defs {{\n vrrp_version 3\n vrrp_garp_master_repeat 3\n \
             vrrp_garp_master_delay 1\n}}\n\
             vrrp_instance bench {{\n state BACKUP\n nopreempt\n interface {DEVICE}\n \
             virtual_router_id 51\n priority {}\n advert_int {interval}\n virtual_ipaddress {{\n",
            110 - node.number
        );
        for address in &addresses {
            let _ = writeln!(text, "  {address}/32 dev {DEVICE}");
        }
        text += " }\n}\n";
        let file = |kind: &str| folder.join(format!("keepalived-{}.{kind}", node.name()));
        fs::write(file("conf"), text)?;
        let mut command = node.namespace.command("keepalived");
        command.args(["-n", "-l", "-D", "-f"]).arg(file("conf"));
        command.arg("-p").arg(file("pid")).arg("-r").arg(file("vrrp.pid"));
        node.speaker = Some(node.namespace.spawn("keepalived", command)?);
    }
    at_rest(segment)
}

/// Waits until one has all addresses.
///
/// # Errors
/// When none has, or several.
pub fn at_rest(segment: &mut Segment) -> Result<()> {
    let addresses = segment.addresses.clone();
    wait_for("one keepalived has all addresses", LIMIT, || {
        let owners = segment.owners(&addresses)?;
        let (_, its) = Segment::busiest(&owners);
        ensure!(its.len() == addresses.len(), "{owners:?}");
        Ok(())
    })
}
