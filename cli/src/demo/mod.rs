//! `berth demo`: a small cluster on one machine, in network namespaces, and the life of a few Services in it, each step
//! waited for, seen and shown. The binaries are the ones that are shipped; the API server is the embedded one, and the
//! parts of a cluster that are not Berth's are stood in for (see [`stage`], [`proxy`] and [`cluster`]).

mod cluster;
mod prober;
mod proxy;
mod router;
mod show;
mod stage;
mod story;
mod wire;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    router::{Choice, Daemon},
    show::Show,
    stage::Stage,
    story::Story,
};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave everything running until Ctrl-C, and say how to look at it
    #[arg(long)]
    keep: bool,
    /// Without a router and BGP
    #[arg(long, conflicts_with = "router")]
    layer2_only: bool,
    /// Which routing daemon plays the router
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    router: Choice,
    /// How many times the Service and the death of a node are measured
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=30))]
    runs: u16,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Also write the measurements to this file, as JSON
    #[arg(long, value_name = "FILE")]
    measurements: Option<PathBuf>,
}

/// Plays the demo; success only if every step was seen to work.
///
/// # Errors
/// When it cannot begin at all.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    netlab::reexec_in_user_namespace()?;
    // The main thread starts all processes and ends last, so they end with it.
    tokio::runtime::Runtime::new()?.block_on(play(options))
}

async fn play(options: &Options) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopped = async {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    tokio::pin!(stopped);

    let mut show = Show::new();
    let daemon = find_router(options, &show)?;
    show.begin("build the network");
    let mut stage = Stage::build().context("building the network")?;
    show.done(format!(
        "{} namespaces: 3 nodes, a switch, a router, 2 clients, 2 pods",
        stage.namespaces()
    ));
    let told = tokio::select! {
        told = Story::tell(options, &mut show, &mut stage, daemon) => told,
        // What comes after the results is only --keep.
        () = &mut stopped => {
            stage.close()?;
            return Ok(if show.is_printed() { ExitCode::SUCCESS } else { ExitCode::from(130) });
        }
    };
    if let Err(error) = told {
        show.failed(&error);
        eprint!("{}", stage.log_tails());
        if options.keep {
            eprintln!("left as it is until Ctrl-C, because of --keep");
            stopped.await;
        }
        eprintln!("the logs stay in {}", stage.directory().display());
        return Ok(ExitCode::FAILURE);
    }
    stage.close()?;
    Ok(ExitCode::SUCCESS)
}

fn find_router(options: &Options, show: &Show) -> anyhow::Result<Option<Daemon>> {
    if options.layer2_only {
        return Ok(None);
    }
    let found = Daemon::find(options.router)?;
    match &found {
        Some(Daemon::Frr { .. }) if options.router == Choice::Auto && in_user_namespace() => {
            show.note("FRR does not run without root: going on with layer 2 alone (or install BIRD, package bird2)");
            return Ok(None);
        }
        None if options.router == Choice::Auto => {
            show.note(
                "neither BIRD (package bird2) nor FRR (package frr) is installed: going on with layer 2 alone",
            );
        }
        Some(_) | None => {}
    }
    Ok(found)
}

/// Whether "root" is only so in a user namespace: the first one maps every id to itself.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}
