//! A lab without root: as an ordinary user this program starts itself again in a user namespace.
//! Not under the usual test harness, because that step must come before any thread.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use netlab::{End, Lab, connect, wait_for};

/// In the environment of the second start; the third, in the user namespace, is root again.
const IS_ORDINARY_USER: &str = "BERTH_TEST_IS_ORDINARY_USER";

fn main() -> ExitCode {
    let result = match std::env::var_os(IS_ORDINARY_USER) {
        None => start_as_nobody(),
        Some(_) => netlab::reexec_in_user_namespace().and_then(|()| lab()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Root can show it too, as nobody; anybody else goes on as who they are.
fn start_as_nobody() -> Result<()> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let mut command = if is_root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command
    } else {
        Command::new("env")
    };
    // The build folder may be closed to others.
    let copy = std::env::temp_dir().join(format!("berth-rootless-{}", std::process::id()));
    fs::copy(std::env::current_exe()?, &copy)?;
    let status = command.arg(&copy).env(IS_ORDINARY_USER, "1").status();
    fs::remove_file(&copy)?;
    let status = status.context("starting again as an ordinary user")?;
    anyhow::ensure!(status.success(), "as an ordinary user: {status}");
    Ok(())
}

fn lab() -> Result<()> {
    let lab = Lab::new()?;
    let (a, b) = (lab.namespace("a")?, lab.namespace("b")?);
    let end = |namespace, addresses| End { namespace, device: "eth0", mac: None, addresses };
    connect(end(&a, &["10.0.0.1/24", "fd00::1/64"]), end(&b, &["10.0.0.2/24", "fd00::2/64"]))?;
    for address in ["10.0.0.2", "fd00::2"] {
        let ping = || a.run(&["ping", "-c", "1", "-W", "1", address]);
        wait_for("the other end answers", Duration::from_secs(10), ping)?;
    }
    netlab::nft::program(&a, &[])?;
    let switch = lab.switch("lan")?;
    switch.plug(End { device: "eth1", ..end(&a, &["10.1.0.1/24"]) })?;
    let mut sleeper = a.command("sleep");
    sleeper.arg("1000");
    let process = a.spawn("sleeper", sleeper)?;
    process.stop()?;
    lab.close()?;
    println!("a lab without root: ok");
    Ok(())
}
