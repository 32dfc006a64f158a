//! Network namespaces, the links between them and the processes in them: the stage on which
//! `berth demo` and the lab and end-to-end tests play.
//!
//! A [`Lab`] owns everything: dropping it ends the processes and deletes the namespaces. Addresses
//! and routes exist only inside namespaces that a lab made. Even the veth pairs are born there, so
//! the root namespace is never touched, and [`Lab::close`] fails if it was.
//!
//! Everything goes through the `ip`, `nft` and `sysctl` programs. That costs some 3 ms a step and
//! saves netlink code and `unsafe` in a tool that is not shipped to clusters.
//!
//! Root is needed, or a user namespace in its place: [`reexec_in_user_namespace`].

mod namespace;
pub mod nft;
mod process;
mod user_namespace;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use namespace::{End, Namespace, Switch, connect};
pub use process::{Process, Signal};
pub use user_namespace::reexec_in_user_namespace;

/// What the names of all labs start with; the process id and a number follow.
const PREFIX: &str = "berth-";

/// A set of network namespaces that come and go together. Several may exist side by side.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    directory: PathBuf,
    namespaces: Mutex<Vec<Namespace>>,
    root_addresses: BTreeSet<String>,
}

impl Lab {
    /// An empty lab under a name of its own, with an empty [`directory`](Self::directory).
    ///
    /// # Errors
    /// Without the right to make network namespaces, or without `ip` and `setpriv`.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{number}-", std::process::id());
        remove_what_dead_labs_left()?;
        let directory = std::env::temp_dir().join(prefix.trim_end_matches('-'));
        if directory.exists() {
            fs::remove_dir_all(&directory).context("removing the folder of an earlier lab")?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("making the lab's folder {}", directory.display()))?;
        let lab = Self {
            prefix,
            directory,
            namespaces: Mutex::default(),
            root_addresses: own_addresses()?,
        };
        Ok(lab)
    }

    /// A folder of this lab's own for logs and configuration. [`close`](Self::close) removes it;
    /// a lab that is only dropped, as on a failure, leaves it to be read.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The last `lines` lines of every log in the folder, each under its name; for messages about
    /// failures. Those of processes that have ended are there too.
    pub fn log_tails(&self, lines: usize) -> String {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let logs: BTreeSet<_> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        logs.iter().map(|log| process::tail(&log.display().to_string(), log, lines)).collect()
    }

    /// A namespace with nothing but the loopback device, up. It answers to `name` in this lab;
    /// the kernel knows it by [`Namespace::full_name`].
    ///
    /// # Errors
    /// When the name is taken, or the kernel refuses.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        let namespace = Namespace::create(&self.prefix, name, &self.directory)?;
        self.lock().push(namespace.clone());
        namespace.settle()?;
        Ok(namespace)
    }

    /// An Ethernet segment: a bridge `br0` in the new namespace `name`, without spanning tree and
    /// multicast snooping. Its frames are not shown to the firewall.
    ///
    /// # Errors
    /// As [`namespace`](Self::namespace).
    pub fn switch(&self, name: &str) -> Result<Switch> {
        Switch::create(self.namespace(name)?)
    }

    /// Ends all processes, deletes all namespaces and the folder, and says whether the lab kept
    /// its promise.
    ///
    /// # Errors
    /// When a namespace could not be deleted, or the root namespace has gained an address.
    pub fn close(self) -> Result<()> {
        self.tear_down()?;
        let now = own_addresses()?;
        let gained: Vec<_> = now.difference(&self.root_addresses).collect();
        if !gained.is_empty() {
            bail!("the root namespace has gained {gained:?} while the lab ran");
        }
        fs::remove_dir_all(&self.directory).context("removing the lab's folder")
    }

    fn tear_down(&self) -> Result<()> {
        let namespaces = std::mem::take(&mut *self.lock());
        let mut first_error = Ok(());
        for namespace in namespaces {
            let deleted = namespace.delete();
            if first_error.is_ok() {
                first_error = deleted;
            }
        }
        first_error
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Namespace>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.tear_down() {
            eprintln!("lab {}: {error:#}", self.prefix);
        }
    }
}

/// Calls `attempt` until it succeeds, every 20 ms, for at most `limit`.
///
/// # Errors
/// When the time is up: `what`, and why the last attempt failed.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {limit:?} in vain: {what}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Runs a program to its end and returns what it printed.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {program}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{program} {}` failed ({}): {}{}",
            arguments.join(" "),
            output.status,
            complaint.trim(),
            printed.trim(),
        );
    }
    Ok(printed)
}

/// `interface address` pairs of the namespace that this process is in.
fn own_addresses() -> Result<BTreeSet<String>> {
    let listing = output(Command::new("ip").args(["-o", "address", "show"]))?;
    let pair = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{} {}", words.nth(1)?, words.nth(1)?))
    };
    Ok(listing.lines().filter_map(pair).collect())
}

/// Deletes the namespaces of labs whose process was killed before it could. Their processes died
/// with it, see [`Namespace::spawn`].
fn remove_what_dead_labs_left() -> Result<()> {
    let listing = output(Command::new("ip").args(["netns", "list"]))?;
    for name in listing.lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{owner}")).exists() {
            // Another lab may be doing the same at this moment: not being there is as good.
            let _ = output(Command::new("ip").args(["netns", "delete", name]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_first_success() {
        let mut attempts = 0;
        let value = wait_for("the third attempt", Duration::from_secs(5), || {
            attempts += 1;
            if attempts < 3 {
                bail!("attempt {attempts}")
            }
            Ok(attempts)
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn waiting_in_vain_names_the_goal_and_the_last_failure() {
        let error =
            wait_for("a miracle", Duration::ZERO, || -> Result<()> { bail!("nothing yet") })
                .unwrap_err();
        assert_eq!(format!("{error:#}"), "waited 0ns in vain: a miracle: nothing yet");
    }

    #[test]
    fn a_failed_command_is_quoted_with_its_complaint() {
        let error = output(Command::new("sh").args(["-c", "echo oh no >&2; exit 3"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c echo oh no >&2; exit 3` failed (exit status: 3): oh no"
        );
    }
}
