//! `berth`: the plan of a configuration, the demo, and the embedded API server by itself. Not needed
//! in a cluster.

mod backend;
mod demo;
mod plan;
mod probe;
mod server;

use std::{future::Future, process::ExitCode};

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  Is this configuration right, and who gets which address?
    berth plan -f pools.yaml -f services/

  All of it on this machine, then left running for your own kubectl:
    berth demo --keep

  The figures of ten Services and ten dead nodes, with FRR as the router:
    berth demo --runs 10 --router frr

  An API server for kubectl to try manifests on:
    berth apiserver --listen 127.0.0.1:8001
    kubectl --server http://127.0.0.1:8001 apply -f deploy/samples/pool.yaml";

/// Berth gives Kubernetes Services of type LoadBalancer an address on bare metal.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is wrong with a configuration, and which Service gets which address
    Plan(plan::Options),
    /// Show it all on this machine: a small cluster in network namespaces, two clients, a router
    Demo(demo::Options),
    /// Serve the part of the Kubernetes API that Berth needs, from memory
    Apiserver(server::Options),
    /// Answer HTTP requests with a name (the demo's pods)
    #[command(hide = true)]
    Backend(backend::Options),
    /// Request a page again and again, and report the longest gap (the demo's clients)
    #[command(hide = true)]
    Probe(probe::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Plan(options) => Ok(tokio::runtime::Runtime::new()?.block_on(plan::run(options))),
        // Before any thread: it may start the program again in a user namespace.
        Command::Demo(options) => demo::run(&options),
        Command::Apiserver(options) => finish(server::run(options)),
        Command::Backend(options) => finish(backend::run(options)),
        Command::Probe(options) => finish(probe::run(options)),
    }
}

fn finish(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Runtime::new()?.block_on(command)?;
    Ok(ExitCode::SUCCESS)
}
