//! What a speaker finds of its own when it starts again: a file of JSON lines below `--run-dir`, and
//! the thread that replaces it.
//!
//! It only spares waiting: for the API server, without which nobody would say what to answer for,
//! and for the other speakers. So it is written without fsync, replaced whole by a rename, and
//! ignored when anything about it is odd. [`encode`] and [`decode`] are pure.
//!
//! ```text
//! {"berth-speaker":1,"node":"n1","incarnation":7,"boot":"2f1b…","handed_over_ms":52340}
//! {"view":{"version":812,"peers":{"n2":["10.0.0.12"]}}}
//! {"candidates":{"nodes":["n1","n2"]}}
//! {"address":{"ip":"192.0.2.7","candidates":0,"claim":{"epoch":3,"owner":"n1","incarnation":7}}}
//! {"end":{"lines":4}}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ownership::{Candidates, Claim, Extent, NodeName};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::clock::{self, Moment};
use crate::wire::{Memory, Wanted};

/// The format below; a file of another is ignored.
const VERSION: u32 = 1;
/// Between two writes, unless the speaker is about to end.
const PAUSE: Duration = Duration::from_secs(1);
/// For how long an address that was handed over is asked back for (see `ownership::Memory`).
const ASKED_BACK: Duration = Duration::from_secs(600);

/// What an earlier life of this node's speaker has left.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Remembered {
    pub incarnation: u64,
    /// The whole of what was wanted last, if the planner had spoken.
    pub wanted: Option<Wanted>,
    pub ownership: ownership::Memory,
    /// When what is handed over was.
    handed_over: Moment,
}

/// Whose memory it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    pub node: NodeName,
    pub incarnation: u64,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("it is of format {0}, this speaker knows format {VERSION}")]
    Version(u32),
    #[error("it is node {0}'s")]
    OtherNode(String),
    #[error("it was not written to its end")]
    Torn,
    #[error("line {line}: {reason}")]
    Line { line: usize, reason: String },
}

/// Lets a group write into the directory `directory`, and into what lies in it: this user's own, that
/// is; the rest is left alone. A Pod's directory of the node is root's, and its speaker is not root.
///
/// # Errors
/// When the directory is another user's, or this process is not of that group.
pub fn share(directory: &Path, group: u32) -> io::Result<()> {
    let give = |path: &Path, mode| {
        lchown(path, None, Some(group))?;
        fs::set_permissions(path, Permissions::from_mode(mode))
    };
    give(directory, 0o770)?;
    let own = fs::metadata(directory)?.uid();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() && metadata.uid() == own {
            give(&entry.path(), 0o660)?;
        }
    }
    Ok(())
}

/// The content of a file. `handed_over` is when the last of what is handed over was.
pub fn encode(memory: &Memory, life: &Life, handed_over: &Moment) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.push(&Header {
        version: VERSION,
        node: life.node.to_string(),
        incarnation: life.incarnation,
        boot: handed_over.boot.clone(),
        handed_over_ms: handed_over.uptime.as_millis().try_into().unwrap_or(u64::MAX),
    });
    let Memory { wanted, ownership } = memory;
    if let Some(peers) = &wanted.peers {
        let peers = peers.iter().map(|(node, addresses)| (node.to_string(), addresses.clone()));
        lines.push(&Line::View(View {
            version: wanted.version,
            peers: peers.collect(),
            draining: wanted.draining,
        }));
    }
    let mut known: BTreeMap<&Candidates, usize> = BTreeMap::new();
    let named = wanted.addresses.keys().chain(ownership.claims.keys());
    for ip in named.chain(&ownership.handed_over).copied().collect::<BTreeSet<_>>() {
        let candidates = wanted.addresses.get(&ip).and_then(Option::as_deref).map(|candidates| {
            let next = known.len();
            *known.entry(candidates).or_insert_with(|| {
                lines.push(&Line::Candidates(candidates.into()));
                next
            })
        });
        lines.push(&Line::Address(Address {
            ip,
            candidates,
            claim: ownership.claims.get(&ip).map(Into::into),
            handed_over: ownership.handed_over.contains(&ip),
        }));
    }
    lines.push(&Line::End { lines: lines.count });
    lines.octets
}

/// What a file says to `node`, `now`. What was handed over longer ago than ten minutes, or before the
/// node itself started anew, is left out.
///
/// # Errors
/// When the file is to be ignored.
pub fn decode(octets: &[u8], node: &str, now: &Moment) -> Result<Remembered, MemoryError> {
    let mut lines = octets.split_inclusive(|octet| *octet == b'\n').zip(1..);
    let first = lines.next().ok_or(MemoryError::Torn)?;
    let Preamble { version } = line(first)?;
    if version != VERSION {
        return Err(MemoryError::Version(version));
    }
    let header: Header = line(first)?;
    if header.node != node {
        return Err(MemoryError::OtherNode(header.node));
    }
    let handed_over =
        Moment { boot: header.boot, uptime: Duration::from_millis(header.handed_over_ms) };
    let asked_back = now.since(&handed_over).is_some_and(|ago| ago <= ASKED_BACK);
    let mut remembered =
        Remembered { incarnation: header.incarnation, handed_over, ..Remembered::default() };
    let mut known: Vec<Arc<Candidates>> = Vec::new();
    let mut addresses = BTreeMap::new();
    for (text, number) in lines.by_ref() {
        let wrong = |reason: &str| MemoryError::Line { line: number, reason: reason.to_owned() };
        match line((text, number))? {
            Line::View(view) => {
                let peers =
                    view.peers.into_iter().map(|(node, addresses)| (node.into(), addresses));
                remembered.wanted = Some(Wanted {
                    version: view.version,
                    extent: Extent::Whole,
                    addresses: BTreeMap::new(),
                    peers: Some(peers.collect()),
                    draining: view.draining,
                });
            }
            Line::Candidates(candidates) => known.push(Arc::new(candidates.into())),
            Line::Address(address) => {
                if let Some(place) = address.candidates {
                    let candidates = known.get(place).ok_or_else(|| wrong("no such candidates"))?;
                    addresses.insert(address.ip, Some(Arc::clone(candidates)));
                }
                if let Some(claim) = address.claim {
                    if claim.epoch == 0 {
                        return Err(wrong("a claim of epoch 0"));
                    }
                    remembered.ownership.claims.insert(address.ip, claim.into());
                }
                if address.handed_over && asked_back {
                    remembered.ownership.handed_over.insert(address.ip);
                }
            }
            Line::End { lines: before } => {
                if before + 1 != number || lines.next().is_some() {
                    return Err(MemoryError::Torn);
                }
                if let Some(wanted) = &mut remembered.wanted {
                    wanted.addresses = addresses;
                }
                return Ok(remembered);
            }
        }
    }
    Err(MemoryError::Torn)
}

fn line<'a, T: Deserialize<'a>>((text, line): (&'a [u8], usize)) -> Result<T, MemoryError> {
    if text.last() != Some(&b'\n') {
        return Err(MemoryError::Torn);
    }
    serde_json::from_slice(text)
        .map_err(|error| MemoryError::Line { line, reason: error.to_string() })
}

/// The file of a node's speaker.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    node: NodeName,
}

impl Store {
    pub fn new(directory: PathBuf, node: NodeName) -> Self {
        Self { directory, node }
    }

    /// What the file says; nothing if there is none, and nothing but a warning if it is of no use.
    pub fn read(&self) -> Option<Remembered> {
        let path = self.file();
        let octets = fs::read(&path);
        if octets.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return None;
        }
        let decoded = octets
            .map_err(MemoryError::Read)
            .and_then(|octets| decode(&octets, &self.node, &Moment::now()));
        match decoded {
            Ok(remembered) => {
                let addresses = remembered.wanted.as_ref().map_or(0, |w| w.addresses.len());
                info!(file = %path.display(), addresses, "going on from what is remembered");
                Some(remembered)
            }
            Err(error) => {
                warn!(file = %path.display(), %error, "what is remembered is not used");
                None
            }
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.join(format!("speaker-{}.jsonl", self.node))
    }

    /// Puts another file in the place of the one before. Its directory is made if it can be.
    fn write(&self, octets: &[u8]) -> io::Result<()> {
        let path = self.file();
        let new = path.with_extension("new");
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(octets)?;
            fs::rename(&new, &path)
        };
        match write() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.directory)?;
                write()
            }
            result => result,
        }
    }
}

/// A thread that writes what it is given last, once a second, so that no other ever waits for a
/// disk. It writes once at the start, for the incarnation, and once at its end.
#[derive(Debug)]
pub struct Keeper {
    desk: Arc<Desk>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Desk {
    letters: Mutex<Letters>,
    word: Condvar,
}

#[derive(Debug, Default)]
struct Letters {
    newest: Option<Memory>,
    stop: bool,
}

impl Keeper {
    /// Goes on from what was `remembered`. Also does a `chore` once a second.
    ///
    /// # Errors
    /// When there cannot be another thread.
    pub fn start(
        store: Store,
        life: Life,
        remembered: Remembered,
        mut chore: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        let theirs = Arc::clone(&desk);
        let thread = thread::Builder::new().name("memory".to_owned()).spawn(move || {
            let mut writer = Writer::new(store, life, &remembered);
            writer.write(&Memory {
                wanted: remembered.wanted.unwrap_or_default(),
                ownership: remembered.ownership,
            });
            let mut letters = Letters::default();
            while !letters.stop {
                letters = theirs.wait(clock::now() + PAUSE);
                if let Some(memory) = &letters.newest {
                    writer.write(memory);
                }
                chore();
            }
        })?;
        Ok(Self { desk, thread })
    }

    /// Replaces what was to be written before.
    pub fn keep(&self, memory: Memory) {
        self.desk.open().newest = Some(memory);
    }

    /// Writes what is left to write and returns when that is done.
    pub fn finish(self) {
        self.desk.open().stop = true;
        self.desk.word.notify_one();
        // Fails only if the thread panicked, which has been told.
        let _ = self.thread.join();
    }
}

impl Desk {
    /// What has come when it is `until`, or the end.
    fn wait(&self, until: Instant) -> Letters {
        let mut letters = self.open();
        loop {
            let left = until.saturating_duration_since(clock::now());
            if letters.stop || left.is_zero() {
                return std::mem::take(&mut letters);
            }
            letters = match self.word.wait_timeout(letters, left) {
                Ok((letters, _)) => letters,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn open(&self) -> MutexGuard<'_, Letters> {
        // A letter is whole or not there, whoever panicked.
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own.
#[derive(Debug)]
struct Writer {
    store: Store,
    life: Life,
    handed_over: (BTreeSet<IpAddr>, Moment),
    complained: bool,
}

impl Writer {
    fn new(store: Store, life: Life, remembered: &Remembered) -> Self {
        let before = remembered.ownership.handed_over.clone();
        Self {
            store,
            life,
            handed_over: (before, remembered.handed_over.clone()),
            complained: false,
        }
    }

    fn write(&mut self, memory: &Memory) {
        let (before, since) = &mut self.handed_over;
        if !memory.ownership.handed_over.is_subset(before) {
            *since = Moment::now();
        }
        before.clone_from(&memory.ownership.handed_over);
        match self.store.write(&encode(memory, &self.life, since)) {
            Ok(()) => self.complained = false,
            Err(error) if self.complained => debug!(%error, "cannot remember"),
            Err(error) => {
                self.complained = true;
                warn!(
                    directory = %self.store.directory.display(), %error,
                    "nothing will be remembered after a restart: this speaker cannot write there; \
                     set --run-dir to a directory that it may write to"
                );
            }
        }
    }
}

#[derive(Default)]
struct Lines {
    octets: Vec<u8>,
    count: usize,
}

impl Lines {
    fn push(&mut self, line: &impl Serialize) {
        serde_json::to_writer(&mut self.octets, line)
            .expect("keys are strings, and a Vec takes everything");
        self.octets.push(b'\n');
        self.count += 1;
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "berth-speaker")]
    version: u32,
    node: String,
    incarnation: u64,
    boot: String,
    /// Since the node started, when the last of what is handed over was.
    handed_over_ms: u64,
}

/// What the first line of every version says.
#[derive(Deserialize)]
struct Preamble {
    #[serde(rename = "berth-speaker")]
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    View(View),
    /// Addresses name these by the order of the lines, from 0.
    Candidates(CandidatesObject),
    Address(Address),
    /// Counts the lines before it.
    End {
        lines: usize,
    },
}

#[derive(Serialize, Deserialize)]
struct View {
    version: u64,
    peers: BTreeMap<String, BTreeSet<IpAddr>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    draining: Option<bool>,
}

#[derive(Serialize, Deserialize)]
struct CandidatesObject {
    nodes: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    preference: BTreeMap<String, i32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    interfaces: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Serialize, Deserialize)]
struct Address {
    ip: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    candidates: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<ClaimObject>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    handed_over: bool,
}

#[derive(Serialize, Deserialize)]
struct ClaimObject {
    epoch: u64,
    owner: String,
    incarnation: u64,
}

impl From<&Candidates> for CandidatesObject {
    fn from(candidates: &Candidates) -> Self {
        let Candidates { nodes, preference, interfaces } = candidates;
        let text = NodeName::to_string;
        Self {
            nodes: nodes.iter().map(text).collect(),
            preference: preference.iter().map(|(node, score)| (text(node), *score)).collect(),
            interfaces: interfaces
                .iter()
                .map(|(node, on)| (text(node), on.iter().cloned().collect()))
                .collect(),
        }
    }
}

impl From<CandidatesObject> for Candidates {
    fn from(object: CandidatesObject) -> Self {
        let CandidatesObject { nodes, preference, interfaces } = object;
        Self {
            nodes: nodes.into_iter().map(Into::into).collect(),
            preference: preference.into_iter().map(|(node, score)| (node.into(), score)).collect(),
            interfaces: interfaces
                .into_iter()
                .map(|(node, on)| (node.into(), on.into_iter().collect()))
                .collect(),
        }
    }
}

impl From<&Claim> for ClaimObject {
    fn from(claim: &Claim) -> Self {
        let Claim { epoch, owner, incarnation } = claim;
        Self { epoch: *epoch, owner: owner.to_string(), incarnation: *incarnation }
    }
}

impl From<ClaimObject> for Claim {
    fn from(object: ClaimObject) -> Self {
        let ClaimObject { epoch, owner, incarnation } = object;
        Self { epoch, owner: owner.into(), incarnation }
    }
}

#[cfg(test)]
mod tests;
