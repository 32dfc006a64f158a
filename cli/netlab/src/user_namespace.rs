//! Being root without being root: a user namespace with a network and a mount namespace in it.
//! See user_namespaces(7) and unshare(1).

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

const UNSHARE: [&str; 5] =
    ["--user", "--map-root-user", "--net", "--mount", "--propagation=private"];

/// `ip netns` keeps its names in /run/netns, which belongs to the real root: an empty /run over it.
const IN_THERE: &str = "mount -t tmpfs tmpfs /run && mkdir /run/netns && exec \"$0\" \"$@\"";

/// Makes sure that this process may make network namespaces: nothing to do for root; anybody else
/// starts the same program with the same arguments again inside a user namespace, in the place of
/// this process. So call it first thing in `main`, before any thread.
///
/// # Errors
/// When the kernel does not allow that; the message says what to do about it.
pub fn reexec_in_user_namespace() -> Result<()> {
    if effective_uid()? == 0 {
        return Ok(());
    }
    let trial = Command::new("unshare").args(UNSHARE).args(["sh", "-c", IN_THERE, "true"]).output();
    let trial = trial.context("`unshare` (package util-linux) is needed to run without root")?;
    if !trial.status.success() {
        bail!(
            "making network namespaces needs root here, because this kernel does not let an \
             ordinary user have a user namespace ({}). Run it as root, or look at the kernel \
             parameters user.max_user_namespaces, kernel.unprivileged_userns_clone and \
             kernel.apparmor_restrict_unprivileged_userns",
            String::from_utf8_lossy(&trial.stderr).trim()
        );
    }
    let program = std::env::current_exe().context("finding this program again")?;
    let error = Command::new("unshare")
        .args(UNSHARE)
        .args(["sh", "-c", IN_THERE])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .exec();
    Err(error).context("starting again in a user namespace")
}

fn effective_uid() -> Result<u32> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    // Uid: real, effective, saved, file system (proc_pid_status(5)).
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)?.parse().ok())
        .ok_or_else(|| anyhow!("/proc/self/status does not say who runs this"))
}
