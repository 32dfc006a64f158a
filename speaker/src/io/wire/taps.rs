//! The packet sockets of all interfaces, with one filter for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use layer2::{Interface, InterfaceIndex};
use tracing::debug;

use crate::io::filter::{Exact, Instruction, OPEN_ARP, OPEN_NDP};
use crate::io::packet::{Frames, PacketSocket, Tap};

/// Which socket of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Arp,
    Ndp,
}

/// Frames that wait on one socket, at most: those of its receive buffer, as small as they get.
const LONGEST_QUEUE: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct Taps {
    open: BTreeMap<InterfaceIndex, OpenTap>,
    /// `None`: whatever neighbors say to each other is let through.
    exact: Option<Exact>,
    /// Of sockets that are closed.
    dropped: u64,
    unsent: u64,
}

#[derive(Debug)]
struct OpenTap {
    tap: Tap,
    /// Its interface was lost. The sockets hear again when it only went down, and never when it was
    /// replaced by another of the same index; so they are opened anew at netlink's next word.
    lost: bool,
    /// Frames that its sockets are known to have lost.
    dropped: u64,
}

impl Taps {
    /// All sockets, to watch them.
    pub fn sockets(&self) -> impl Iterator<Item = (InterfaceIndex, Protocol, BorrowedFd<'_>)> {
        self.open.iter().flat_map(|(&interface, OpenTap { tap, .. })| {
            [
                (interface, Protocol::Arp, tap.arp().as_fd()),
                (interface, Protocol::Ndp, tap.ndp().as_fd()),
            ]
        })
    }

    /// Opens and closes sockets to match `interfaces`. One that cannot be opened is called down
    /// there, so that nobody relies on its answers, and told to `failed`.
    pub fn follow(
        &mut self,
        interfaces: &mut [Interface],
        mut failed: impl FnMut(&Interface, io::Error),
    ) {
        self.open.retain(|index, open| {
            let stays = interfaces.iter().any(|interface| interface.index == *index);
            if !stays {
                self.dropped += open.drops();
            }
            stays
        });
        for interface in interfaces {
            if self.open.get(&interface.index).is_some_and(|open| !open.lost) {
                continue;
            }
            let mut before = self.open.remove(&interface.index);
            self.dropped += before.as_mut().map_or(0, OpenTap::drops);
            match self.reopen(interface.index, before) {
                Ok(tap) => {
                    let open = OpenTap { tap, lost: false, dropped: 0 };
                    self.open.insert(interface.index, open);
                }
                Err(error) => {
                    interface.up = false;
                    failed(interface, error);
                }
            }
        }
    }

    /// Opens the sockets of an interface, with the groups of those before them.
    fn reopen(&self, interface: InterfaceIndex, before: Option<OpenTap>) -> io::Result<Tap> {
        let arp = self.exact.as_ref().and_then(|exact| exact.arp.as_deref());
        let ndp = self.exact.as_ref().and_then(|exact| exact.ndp.as_deref());
        let (arp, ndp) = (arp.unwrap_or(&OPEN_ARP), ndp.unwrap_or(&OPEN_NDP));
        let mut tap = Tap::open(interface, arp, ndp).or_else(|error| {
            // A long program may be more than the kernel takes.
            let long = arp.len() > OPEN_ARP.len() || ndp.len() > OPEN_NDP.len();
            if long { Tap::open(interface, &OPEN_ARP, &OPEN_NDP) } else { Err(error) }
        })?;
        for group in before.iter().flat_map(|before| before.tap.groups()) {
            tap.join(*group)?;
        }
        Ok(tap)
    }

    /// Lets through whatever neighbors say to each other.
    pub fn open_filters(&mut self) {
        if self.exact.take().is_none() {
            return;
        }
        for OpenTap { tap, .. } in self.open.values() {
            attach(tap.arp(), &OPEN_ARP);
            attach(tap.ndp(), &OPEN_NDP);
        }
    }

    /// Lets through what is about `addresses` alone, as far as that fits in filters.
    pub fn close_filters(&mut self, addresses: &BTreeSet<IpAddr>) {
        let exact = self.exact.insert(Exact::about(addresses));
        for OpenTap { tap, .. } in self.open.values() {
            for (socket, program) in [(tap.arp(), &exact.arp), (tap.ndp(), &exact.ndp)] {
                if let Some(program) = program {
                    attach(socket, program);
                }
            }
        }
    }

    /// Takes the error that a socket has, and notes that its interface was lost.
    pub fn take_error(&mut self, interface: InterfaceIndex, protocol: Protocol) {
        let Some(open) = self.open.get_mut(&interface) else { return };
        if let Some(error) = open.socket(protocol).take_error() {
            open.lose(interface, &error);
        }
    }

    /// What waits on a socket; nothing if its interface is lost.
    pub fn read<'f>(
        &mut self,
        interface: InterfaceIndex,
        protocol: Protocol,
        frames: &'f mut Frames,
    ) -> Option<impl ExactSizeIterator<Item = &'f [u8]> + use<'f>> {
        let open = self.open.get_mut(&interface)?;
        match open.socket(protocol).receive(frames) {
            Ok(frames) => Some(frames),
            Err(error) => {
                open.lose(interface, &error);
                None
            }
        }
    }

    /// Throws away what waits on a socket.
    pub fn discard(&mut self, interface: InterfaceIndex, protocol: Protocol, frames: &mut Frames) {
        // As long as a socket can be full; a flood goes on meanwhile.
        for _ in 0..LONGEST_QUEUE / Frames::COUNT {
            let read = self.read(interface, protocol, frames);
            if read.is_none_or(|read| read.len() < Frames::COUNT) {
                return;
            }
        }
    }

    /// # Errors
    /// When the kernel does not take the frame. An interface that has just gone needs none.
    pub fn send(&mut self, interface: InterfaceIndex, frame: &[u8]) -> io::Result<()> {
        let result = self.open.get(&interface).map(|open| open.tap.send(frame));
        if !matches!(result, Some(Ok(()))) {
            self.unsent += 1;
        }
        result.unwrap_or(Ok(()))
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn join(&mut self, interface: InterfaceIndex, group: Ipv6Addr) -> io::Result<()> {
        self.open.get_mut(&interface).map_or(Ok(()), |open| open.tap.join(group))
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn leave(&mut self, interface: InterfaceIndex, group: Ipv6Addr) -> io::Result<()> {
        self.open.get_mut(&interface).map_or(Ok(()), |open| open.tap.leave(group))
    }

    /// How many frames came faster than they were read, so far.
    pub fn dropped(&mut self) -> u64 {
        self.dropped + self.open.values_mut().map(OpenTap::drops).sum::<u64>()
    }

    /// How many frames could not be sent, so far.
    pub fn unsent(&self) -> u64 {
        self.unsent
    }
}

impl OpenTap {
    fn socket(&self, protocol: Protocol) -> &PacketSocket {
        match protocol {
            Protocol::Arp => self.tap.arp(),
            Protocol::Ndp => self.tap.ndp(),
        }
    }

    fn lose(&mut self, interface: InterfaceIndex, error: &io::Error) {
        self.lost = true;
        debug!(interface = interface.0, %error, "packet socket");
    }

    fn drops(&mut self) -> u64 {
        let sockets = [self.tap.arp(), self.tap.ndp()];
        self.dropped +=
            sockets.map(|socket| socket.take_drops().unwrap_or_default()).iter().sum::<u64>();
        self.dropped
    }
}

/// The filter before, which lets more through, stays if the kernel has no room for this one.
fn attach(socket: &PacketSocket, program: &[Instruction]) {
    if let Err(error) = socket.filter(program) {
        let instructions = program.len();
        debug!(%error, instructions, "the kernel does not take a filter (net.core.optmem_max)");
    }
}
