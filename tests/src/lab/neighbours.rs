//! What hosts on the segment know and learn of each other's MAC addresses: the kernel's table,
//! `arping`, and the frames that move entries.

use std::{
    collections::BTreeSet,
    io::Read,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netlab::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::DEVICE;

/// An entry of a kernel's neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// `None` while it is being asked for, or nobody answered.
    pub mac: Option<String>,
    /// NUD state, such as `REACHABLE`.
    pub state: String,
}

/// What a host knows of an address on the segment.
///
/// # Errors
/// When it has no entry.
pub fn neighbour(host: &Namespace, address: &str) -> Result<Neighbour> {
    let entry = host.run(&["ip", "neighbour", "show", "to", address, "dev", DEVICE])?;
    let words: Vec<_> = entry.split_whitespace().collect();
    let mac = words.iter().position(|word| *word == "lladdr").and_then(|at| words.get(at + 1));
    let state = words.last().with_context(|| format!("there is no entry for {address}"))?;
    Ok(Neighbour { mac: mac.map(|mac| (*mac).to_owned()), state: (*state).to_owned() })
}

/// The answers to an `arping` with these arguments, by MAC address; its exit code is not looked at.
///
/// # Errors
/// When it cannot be started.
pub fn arping(host: &Namespace, arguments: &str) -> Result<BTreeSet<String>> {
    let mut command = host.command("arping");
    let output = command.args(["-I", DEVICE]).args(arguments.split_whitespace()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let bracketed = text.split('[').skip(1).filter_map(|rest| rest.split(']').next());
    Ok(bracketed.map(str::to_ascii_lowercase).collect())
}

/// Hears what is said on the segment about who has which address.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    listener: JoinHandle<Vec<(Instant, Heard)>>,
}

/// One of the frames that Linux learns from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The Ethernet header's addresses.
    pub source: String,
    /// See `source`.
    pub destination: String,
    /// The address in question.
    pub address: IpAddr,
    /// The MAC address that it is said to have.
    pub mac: String,
    /// How it is said.
    pub form: Form,
}

/// The forms of such frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An ARP request of a station for its own address (RFC 5227 section 3).
    GratuitousRequest,
    /// An ARP reply, asked for or not.
    Reply,
    /// A neighbour advertisement with the option that names the MAC address (RFC 4861 section 4.4).
    Advertisement {
        /// Somebody had asked.
        solicited: bool,
        /// What the hearer knew before is to be replaced.
        overriding: bool,
    },
}

impl Capture {
    /// Hears from when this returns on.
    ///
    /// # Errors
    /// When the kernel gives no packet socket.
    pub fn start(host: &Namespace) -> Result<Self> {
        let mut socket = host.inside(|| {
            // ETH_P_ALL of packet(7), in network byte order.
            let all = Protocol::from(i32::from(3_u16.to_be()));
            Ok(Socket::new(Domain::PACKET, Type::RAW, Some(all))?)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let listener = std::thread::spawn(move || {
            let (mut heard, mut frame) = (Vec::new(), [0; 2048]);
            loop {
                match socket.read(&mut frame) {
                    Ok(length) => {
                        let now = Instant::now();
                        heard.extend(Heard::in_frame(&frame[..length]).map(|heard| (now, heard)));
                    }
                    // Nothing more has come by the end.
                    Err(_) if stopped.load(Ordering::Relaxed) => return heard,
                    Err(_) => {}
                }
            }
        });
        Ok(Self { stop, listener })
    }

    /// Ends it; what was heard, in order.
    pub fn stop(self) -> Vec<Heard> {
        self.stop_and_time().into_iter().map(|(_, heard)| heard).collect()
    }

    /// As [`stop`](Self::stop), with the times.
    pub fn stop_and_time(self) -> Vec<(Instant, Heard)> {
        self.stop.store(true, Ordering::Relaxed);
        self.listener.join().unwrap()
    }
}

impl Heard {
    pub(crate) fn in_frame(frame: &[u8]) -> Option<Self> {
        let mac = |at: usize| {
            let octets = frame.get(at..at + 6)?.iter();
            Some(octets.map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":"))
        };
        let octet = |at: usize| frame.get(at).copied();
        let v4 = |at: usize| Some(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?.into());
        let (address, named, form) = match frame.get(12..14)? {
            // RFC 826: operation at 20, sender's MAC at 22 and IP at 28, target's IP at 38.
            [0x08, 0x06] => match octet(21)? {
                1 if v4(28)? == v4(38)? => (v4(28)?, mac(22)?, Form::GratuitousRequest),
                2 => (v4(28)?, mac(22)?, Form::Reply),
                _ => return None,
            },
            // ICMPv6 type 136, flags, target, and the option of type 2 and length 1.
            [0x86, 0xdd]
                if octet(20)? == 58 && octet(54)? == 136 && frame.get(78..80)? == [2, 1] =>
            {
                let target = <[u8; 16]>::try_from(frame.get(62..78)?).ok()?;
                let flags = octet(58)?;
                let (solicited, overriding) = (flags & 0x40 != 0, flags & 0x20 != 0);
                (target.into(), mac(80)?, Form::Advertisement { solicited, overriding })
            }
            _ => return None,
        };
        Some(Self { source: mac(6)?, destination: mac(0)?, address, mac: named, form })
    }
}
