//! A child process with a log file that does not outlive the value that stands for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::output;

/// How long [`Process::stop`] waits before it gives up on a friendly end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A running program. Dropping it kills it and collects it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// The signals that faults are made of. SIGKILL is [`Process::kill`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: asks it to end.
    Terminate,
    /// SIGSTOP: freezes it.
    Stop,
    /// SIGCONT: thaws it.
    Continue,
    /// SIGHUP.
    Hangup,
}

impl Process {
    /// Starts `command` with both outputs appended to the file `log`, and no input. `name` is for
    /// messages.
    ///
    /// # Errors
    /// When the log cannot be written or the program not started.
    pub fn start(name: impl Into<String>, mut command: Command, log: &Path) -> Result<Self> {
        let name = name.into();
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Ctrl-C at the terminal is for the owner of the lab alone, who ends it in order.
        command.process_group(0);
        let child =
            spawn_from_lasting_thread(command).with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// Whose messages these are.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id of the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that both its outputs go to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last `lines` lines of its log, under a heading; for messages about failures.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&format!("{} ({})", self.name, self.log.display()), &self.log, lines)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails if it has ended; for use between the attempts of a wait for something it brings about.
    ///
    /// # Errors
    /// Its name, how it ended and the tail of its log.
    pub fn check_running(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status})\n{}", self.name, self.log_tail(30)),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let signal = match signal {
            Signal::Terminate => "TERM",
            Signal::Stop => "STOP",
            Signal::Continue => "CONT",
            Signal::Hangup => "HUP",
        };
        let pid = self.pid().to_string();
        output(Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", signal, &pid])).map(drop)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it is still there after 10 s; it is killed then.
    pub fn stop(mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::Terminate)?;
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{} did not end within {STOP_LIMIT:?} of SIGTERM\n{}", self.name, self.log_tail(30));
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended and been collected, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last `lines` lines of a log, under a heading.
pub(crate) fn tail(heading: &str, log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    let tail = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    format!("---- {heading}\n{}\n", tail.join("\n"))
}

/// The kernel sends the parent-death signal when the *thread* that started the child ends, not the
/// process. A test's own thread, or one of a thread pool, may end long before the child should:
/// so one thread that lives as long as the process starts all of them.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                // The one who ordered waits for the reply, so somebody is there to take it.
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let gone = || io::Error::other("the thread that starts processes has ended");
    let (reply, answer) = mpsc::channel();
    starter.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
