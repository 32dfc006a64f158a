//! What is said on a host's network device, for people: taken down and decoded by tcpdump.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use netlab::{Namespace, Process, wait_for};

use crate::lab::{DEVICE, LIMIT, Stage};

/// Takes down packets until it is decoded or dropped.
#[derive(Debug)]
pub struct Wiretap {
    host: Namespace,
    file: PathBuf,
    process: Process,
}

impl Wiretap {
    /// Takes down what passes a filter (pcap-filter(7)) at the router, from when this returns on.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(stage: &Stage, filter: &str) -> Result<Self> {
        let file = stage.directory().join("wiretap.pcap");
        let host = stage.router.clone();
        let mut command = host.command("tcpdump");
        // Nothing waits in a buffer; and it would give up root for a user who may not write here.
        command.args(["-i", DEVICE, "-n", "--immediate-mode", "-U", "-Z", "root", "-w"]).arg(&file);
        command.args(filter.split_whitespace());
        let process = host.spawn("tcpdump", command)?;
        wait_for("tcpdump listens", LIMIT, || {
            let said = std::fs::read_to_string(process.log())?;
            ensure!(said.contains("listening on"), "{said}");
            Ok(())
        })?;
        Ok(Self { host, file, process })
    }

    /// Ends it; what was said, decoded, with the time since the packet before.
    ///
    /// # Errors
    /// When tcpdump cannot read what it wrote.
    pub fn decode(self) -> Result<String> {
        self.process.stop()?;
        let file = self.file.to_string_lossy().into_owned();
        self.host.run(&["tcpdump", "-n", "-v", "-ttttt", "-r", &file])
    }
}
