//! One network namespace, and the virtual cables and switches between several.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::{Process, output};

/// That of every bridge: there is one to a segment.
const BRIDGE_MAC: &str = "02:00:00:00:ff:ff";

/// A handle on a namespace of a [`Lab`](crate::Lab); clones name the same one. It outlives the
/// namespace without harm: its commands fail then.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: Arc<str>,
    full_name: Arc<str>,
    directory: Arc<Path>,
}

impl Namespace {
    pub(crate) fn create(prefix: &str, name: &str, directory: &Path) -> Result<Self> {
        let full_name = format!("{prefix}{name}");
        output(Command::new("ip").args(["netns", "add", &full_name]))
            .context("making a network namespace")?;
        Ok(Self { name: name.into(), full_name: full_name.into(), directory: directory.into() })
    }

    /// Before the first device: IPv6 addresses must be of use at once, not after the 1 to 2 s of
    /// duplicate address detection (RFC 4862 section 5.4).
    pub(crate) fn settle(&self) -> Result<()> {
        self.sysctl("net.ipv6.conf.all.accept_dad", 0)?;
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)?;
        self.ip("link set lo up")
    }

    pub(crate) fn delete(&self) -> Result<()> {
        let pids = output(Command::new("ip").args(["netns", "pids", &self.full_name]))?;
        let pids: Vec<_> = pids.split_whitespace().collect();
        if !pids.is_empty() {
            // One that ends by itself meanwhile makes `kill` fail, which is as good.
            let _ = output(Command::new("sh").args(["-c", "kill -s KILL \"$@\"", "sh"]).args(pids));
        }
        output(Command::new("ip").args(["netns", "delete", &self.full_name]))?;
        Ok(())
    }

    /// The name within its lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name by which `ip netns` knows it.
    pub fn full_name(&self) -> &str {
        &self.full_name
    }

    /// `program` as it would run inside. The child's process id is that of `program` itself, and
    /// the child is killed when this process dies, however that happens.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // A parent-death signal is the kernel's, so it works after SIGKILL too, where no Drop runs.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "ip", "netns", "exec"]);
        command.arg(&*self.full_name).arg(program);
        command
    }

    /// Runs a program inside to its end; what it printed.
    ///
    /// # Errors
    /// When it cannot be started or does not end with 0; its standard error is in the message.
    pub fn run<S: AsRef<OsStr>>(&self, program: &[S]) -> Result<String> {
        let [program, arguments @ ..] = program else {
            bail!("no program to run in {}", self.name)
        };
        output(self.command(program).args(arguments))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Runs a program inside with `input` on its standard input; what it printed.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with_input(&self, program: &[&str], input: &str) -> Result<String> {
        let [program, arguments @ ..] = program else {
            bail!("no program to run in {}", self.name)
        };
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program} in namespace {}", self.name))?;
        // Dropping the pipe at the end of the statement is the end of the input. A program that
        // gives up early breaks the pipe; its own complaint says more than ours would.
        let written = child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("`{program}` failed in namespace {}: {}", self.name, complaint.trim());
        }
        written.transpose().with_context(|| format!("writing to {program}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a long-running program made by [`command`](Self::command); `name` is for people.
    /// Both its outputs go to `NAMESPACE-NAME.log` in the lab's folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        let log: PathBuf = self.directory.join(format!("{}-{name}.log", self.name));
        Process::start(format!("{name} in {}", self.name), command, &log)
    }

    /// Calls `make` inside, in this process. A socket stays in the namespace that it was made in,
    /// wherever it is used afterwards.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and those of `make`.
    pub fn inside<T: Send>(&self, make: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = Path::new("/run/netns").join(&*self.full_name);
        let enter = || {
            let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("entering {}", path.display()))?;
            make()
        };
        // A thread of its own, that ends inside: no other code ever runs in the wrong namespace.
        std::thread::scope(|scope| match scope.spawn(enter).join() {
            Ok(made) => made,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// `ip` with these arguments, separated by blanks, for this namespace.
    ///
    /// # Errors
    /// When `ip` complains.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.full_name]).args(arguments.split_whitespace());
        output(&mut command).map(drop)
    }

    /// Sets a kernel parameter (dots between its parts) of this namespace.
    ///
    /// # Errors
    /// When the kernel has no such parameter or does not take the value.
    pub fn sysctl(&self, parameter: &str, value: u32) -> Result<()> {
        // Interfaces with a dot in their name need the form with slashes; it always works.
        let path = format!("/proc/sys/{}", parameter.replace('.', "/"));
        self.run(&["sh", "-c", "echo \"$0\" >\"$1\"", &value.to_string(), &path]).map(drop)
    }

    /// Lets this namespace forward packets of both families, also when they arrive and leave by
    /// different interfaces.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forward(&self) -> Result<()> {
        for (parameter, value) in [
            ("net.ipv4.ip_forward", 1),
            ("net.ipv6.conf.all.forwarding", 1),
            ("net.ipv4.conf.all.rp_filter", 0),
            ("net.ipv4.conf.default.rp_filter", 0),
            // A node must not tell clients of a shorter way past it.
            ("net.ipv4.conf.all.send_redirects", 0),
            ("net.ipv4.conf.default.send_redirects", 0),
        ] {
            self.sysctl(parameter, value)?;
        }
        Ok(())
    }

    /// A bridge that forwards at once, without spanning tree and multicast snooping, up.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn add_bridge(&self, name: &str) -> Result<()> {
        // Without a MAC address of its own it takes the lowest among its ports, and whoever learned
        // the one before a port came sends into the void until his entry ages: up to 45 s.
        self.ip(&format!(
            "link add {name} address {BRIDGE_MAC} type bridge stp_state 0 mcast_snooping 0 \
             forward_delay 0"
        ))?;
        self.ip(&format!("link set {name} up"))
    }

    /// Adds addresses with prefix lengths (`10.0.0.1/24`, `fd00::1/64`), usable at once.
    ///
    /// # Errors
    /// When `ip` does not take one.
    pub fn add_addresses(&self, device: &str, addresses: &[&str]) -> Result<()> {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            self.ip(&format!("address add {address} dev {device} {nodad}"))?;
        }
        Ok(())
    }

    /// A route to `destination` (a prefix or `default`) by way of the neighbour `gateway`.
    ///
    /// # Errors
    /// When `ip` does not take it.
    pub fn add_route(&self, destination: &str, gateway: &str) -> Result<()> {
        let family = if gateway.contains(':') { "-6" } else { "-4" };
        self.ip(&format!("{family} route add {destination} via {gateway}"))
    }
}

/// One end of a cable.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Where it ends.
    pub namespace: &'a Namespace,
    /// The name of the device that appears there, at most 15 bytes.
    pub device: &'a str,
    /// The device's MAC address (`02:00:00:00:00:01`); the kernel makes one up for `None`.
    pub mac: Option<&'a str>,
    /// Its addresses with prefix lengths.
    pub addresses: &'a [&'a str],
}

/// A cable (veth pair) between two namespaces, both ends up.
///
/// # Errors
/// When a name is taken or an address not one.
pub fn connect(a: End<'_>, b: End<'_>) -> Result<()> {
    let mac = |end: &End<'_>| end.mac.map(|mac| format!("address {mac}")).unwrap_or_default();
    a.namespace.ip(&format!(
        "link add {} {} type veth peer name {} {} netns {}",
        a.device,
        mac(&a),
        b.device,
        mac(&b),
        b.namespace.full_name,
    ))?;
    // Both before the addresses: those of IPv6 are of use only once there is carrier.
    for end in [a, b] {
        end.namespace.ip(&format!("link set {} up", end.device))?;
    }
    for end in [a, b] {
        end.namespace.add_addresses(end.device, end.addresses)?;
    }
    Ok(())
}

/// An Ethernet segment made by [`Lab::switch`](crate::Lab::switch).
#[derive(Debug, Clone)]
pub struct Switch {
    namespace: Namespace,
}

impl Switch {
    pub(crate) fn create(namespace: Namespace) -> Result<Self> {
        namespace.add_bridge("br0")?;
        for protocol in ["iptables", "ip6tables", "arptables"] {
            let parameter = format!("bridge/bridge-nf-call-{protocol}");
            // Absent unless the kernel's br_netfilter is there, and then there is nothing to do.
            if namespace.run(&["test", "-e", &format!("/proc/sys/net/{parameter}")]).is_ok() {
                namespace.sysctl(&format!("net.{parameter}"), 0)?;
            }
        }
        Ok(Self { namespace })
    }

    /// The namespace with the bridge `br0`; addresses on `br0` make it a host on the segment.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Connects `end` to the segment.
    ///
    /// # Errors
    /// As [`connect`].
    pub fn plug(&self, end: End<'_>) -> Result<()> {
        let port = Self::port(&end);
        connect(end, End { namespace: &self.namespace, device: &port, mac: None, addresses: &[] })?;
        self.namespace.ip(&format!("link set {port} master br0"))
    }

    /// Pulls the plug at the switch: both sides lose carrier.
    ///
    /// # Errors
    /// When `end` was never plugged in.
    pub fn unplug(&self, end: End<'_>) -> Result<()> {
        self.namespace.ip(&format!("link set {} down", Self::port(&end)))
    }

    /// Puts the plug back in.
    ///
    /// # Errors
    /// When `end` was never plugged in.
    pub fn replug(&self, end: End<'_>) -> Result<()> {
        self.namespace.ip(&format!("link set {} up", Self::port(&end)))
    }

    /// The bridge's own side of a plug.
    fn port(end: &End<'_>) -> String {
        format!("{}-{}", end.namespace.name, end.device)
    }
}
