//! Stations that only ask: ARP requests from a host, in the name of any sender.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use layer2::InterfaceIndex;
use netlab::Namespace;
use speaker::io::packet::Tap;

use crate::lab::DEVICE;

/// Questions follow each other at this distance: a speaker answers strangers 4,000 a second.
const BETWEEN_QUESTIONS: Duration = Duration::from_micros(300);
/// bpf(4): return 0 octets of every frame. Who only sends hears nothing.
const NOTHING: [(u16, u8, u8, u32); 1] = [(0x06, 0, 0, 0)];

/// Asks who has addresses, each time as a station that nobody has seen before, so that no table of
/// a kernel and no limit of a speaker for one station comes in.
#[derive(Debug)]
pub struct Asker {
    tap: Tap,
    times: u16,
}

impl Asker {
    /// At a host of the segment.
    ///
    /// # Errors
    /// When it has no such device.
    pub fn new(host: &Namespace) -> Result<Self> {
        Ok(Self { tap: tap(host)?, times: 0 })
    }

    /// Asks for each of these addresses once.
    ///
    /// # Errors
    /// When a question cannot be sent.
    pub fn ask(&mut self, addresses: &[Ipv4Addr]) -> Result<()> {
        self.times = self.times.wrapping_add(1);
        let [high, low] = self.times.to_be_bytes();
        let mac = [0x02, 0xbe, 0, 0, high, low];
        let mut due = Instant::now();
        for address in addresses {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            self.tap.send(&question(mac, Ipv4Addr::new(10, 0, 0, 250), *address))?;
            due += BETWEEN_QUESTIONS;
        }
        Ok(())
    }
}

/// A broadcast ARP request (RFC 826).
pub fn question(mac: [u8; 6], sender: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// Sends frames from a host's device.
///
/// # Errors
/// When it has no such device.
pub fn tap(host: &Namespace) -> Result<Tap> {
    let listing = host.run(&["ip", "-o", "link", "show", "dev", DEVICE])?;
    let index = listing.split(':').next().context("a link has a number")?.trim().parse()?;
    host.inside(|| Ok(Tap::open(InterfaceIndex(index), &NOTHING, &NOTHING)?))
}
