//! What is said on a segment, with the kernel's time stamps: `tcpdump` writes, this reads along.
//! Takes part in nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use netlab::{Namespace, Process, wait_for};

use crate::lab::{DEVICE, Form, Heard, LIMIT, node_mac};

/// Frames in which a station says that it has an IPv4 address: replies, and requests for its own.
const ANNOUNCEMENTS: &str = "arp and (arp[6:2] = 2 or arp[14:4] = arp[24:4])";
const PCAP_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
/// Nanoseconds, in the byte order of the machine.
const MAGIC: u32 = 0xa1b2_3c4d;

/// A moment on both clocks: the monotonic one of programs, and that of captured frames.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// CLOCK_MONOTONIC.
    pub instant: Instant,
    /// Nanoseconds of CLOCK_REALTIME.
    pub wall: u64,
}

impl Moment {
    /// This one.
    pub fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
        Self { instant: Instant::now(), wall }
    }

    /// From here to a captured frame, in milliseconds; negative before.
    pub fn ms_to(self, wall: u64) -> f64 {
        let sign = if wall < self.wall { -1.0 } else { 1.0 };
        sign * Duration::from_nanos(wall.abs_diff(self.wall)).as_secs_f64() * 1e3
    }
}

/// A capture under way; ends with the value.
#[derive(Debug)]
pub struct Frames {
    file: File,
    path: PathBuf,
    /// Read, and not a whole record yet.
    rest: Vec<u8>,
    _process: Process,
}

impl Frames {
    /// Captures at a host's device what matches a filter of pcap-filter(7), into the file
    /// `path`.
    ///
    /// # Errors
    /// When `tcpdump` does not start.
    pub fn start(host: &Namespace, device: &str, filter: &str, path: PathBuf) -> Result<Self> {
        let mut command = host.command("tcpdump");
        command.args(["-i", device, "-n", "-U", "--immediate-mode", "-s", "160", "-B", "16384"]);
        // Without -Z it becomes a user who may not write here.
        command.args(["-Z", "root", "--time-stamp-precision=nano", "-w"]).arg(&path).arg(filter);
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut process = host.spawn(&name, command)?;
        wait_for("tcpdump listens", LIMIT, || {
            process.check_running()?;
            ensure!(process.log_tail(5).contains("listening on"), "not yet");
            ensure!(fs::metadata(&path)?.len() >= 24, "it has not begun its file");
            Ok(())
        })?;
        let mut file = File::open(&path)?;
        let mut header = [0; PCAP_HEADER];
        file.read_exact(&mut header)?;
        let magic = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        ensure!(magic == MAGIC, "{} is of another kind: {magic:x}", path.display());
        Ok(Self { file, path, rest: Vec::new(), _process: process })
    }

    /// What was captured since the last call: when, in nanoseconds of CLOCK_REALTIME, and the
    /// frame from its Ethernet header on, cut at 160 octets.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&mut self) -> Result<Vec<(u64, Vec<u8>)>> {
        self.file.read_to_end(&mut self.rest).with_context(|| self.path.display().to_string())?;
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some((frame, length)) = record(&self.rest[at..]) {
            frames.push(frame);
            at += length;
        }
        self.rest.drain(..at);
        Ok(frames)
    }
}

/// The first record, and its length in the file.
fn record(octets: &[u8]) -> Option<((u64, Vec<u8>), usize)> {
    let word = |at: usize| Some(u32::from_ne_bytes(octets.get(at..at + 4)?.try_into().ok()?));
    let (seconds, nanos, kept) = (word(0)?, word(4)?, usize::try_from(word(8)?).ok()?);
    let end = RECORD_HEADER + kept;
    let frame = octets.get(RECORD_HEADER..end)?.to_vec();
    Some(((u64::from(seconds) * 1_000_000_000 + u64::from(nanos), frame), end))
}

/// A node says that it has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Nanoseconds of CLOCK_REALTIME.
    pub at: u64,
    /// The address.
    pub address: Ipv4Addr,
    /// The number of the node; 0 for anybody else.
    pub node: u8,
    /// Said to all, and not to one who has asked.
    pub gratuitous: bool,
}

/// The announcements that a host has heard.
#[derive(Debug)]
pub struct Announcements {
    frames: Frames,
    heard: Vec<Announcement>,
}

impl Announcements {
    /// Hears from when this returns on.
    ///
    /// # Errors
    /// As [`Frames::start`].
    pub fn start(host: &Namespace, path: PathBuf) -> Result<Self> {
        let frames = Frames::start(host, DEVICE, ANNOUNCEMENTS, path)?;
        Ok(Self { frames, heard: Vec::new() })
    }

    /// All since then, in order.
    ///
    /// # Errors
    /// As [`Frames::read`].
    pub fn since(&mut self, moment: Moment) -> Result<&[Announcement]> {
        for (at, frame) in self.frames.read()? {
            self.heard.extend(announcement(at, &frame));
        }
        Ok(&self.heard[self.heard.partition_point(|heard| heard.at < moment.wall)..])
    }
}

/// By address: when, in milliseconds since then, and by whom it was first announced in a way that
/// counts.
pub fn firsts(
    heard: &[Announcement],
    begin: Moment,
    counts: impl Fn(&Announcement) -> bool,
) -> BTreeMap<Ipv4Addr, (f64, u8)> {
    let mut firsts = BTreeMap::new();
    for heard in heard.iter().filter(|heard| counts(heard)) {
        firsts.entry(heard.address).or_insert_with(|| (begin.ms_to(heard.at), heard.node));
    }
    firsts
}

fn announcement(at: u64, frame: &[u8]) -> Option<Announcement> {
    let heard = Heard::in_frame(frame)?;
    let gratuitous = match heard.form {
        Form::GratuitousRequest => true,
        Form::Reply => heard.destination == "ff:ff:ff:ff:ff:ff",
        Form::Advertisement { .. } => return None,
    };
    let IpAddr::V4(address) = heard.address else { return None };
    let number = (1..=u8::MAX).find(|number| heard.mac.ends_with(&format!(":{number:02x}")));
    let node = number.filter(|number| node_mac(*number) == heard.mac).unwrap_or(0);
    Some(Announcement { at, address, node, gratuitous })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_still_being_written_is_none() {
        let mut octets = Vec::new();
        for word in [7_u32, 5, 3, 60] {
            octets.extend(word.to_ne_bytes());
        }
        octets.extend([1, 2, 3]);
        assert_eq!(record(&octets), Some(((7_000_000_005, vec![1, 2, 3]), 19)));
        for short in 0..octets.len() {
            assert_eq!(record(&octets[..short]), None);
        }
    }

    #[test]
    fn who_announces_is_told_by_the_mac_address() {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 1, 3, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 1, 3]);
        frame.extend([198, 18, 0, 1, 0, 0, 0, 0, 0, 0, 198, 18, 0, 1]);
        let address = Ipv4Addr::new(198, 18, 0, 1);
        let heard = Announcement { at: 9, address, node: 3, gratuitous: true };
        assert_eq!(announcement(9, &frame), Some(heard));
        // Another station.
        frame[25] = 7;
        assert_eq!(announcement(9, &frame).map(|heard| heard.node), Some(0));
        // A reply to one who has asked.
        frame[21] = 2;
        frame[0] = 2;
        assert_eq!(announcement(9, &frame).map(|heard| heard.gratuitous), Some(false));
    }
}
