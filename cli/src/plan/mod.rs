//! `berth plan`: what the daemons would do with these manifests, with this cluster, or with this
//! cluster once these manifests are applied to it.
//!
//! This file opens files and connections; all else is made of functions without I/O: [`read`]
//! (octets → objects), [`input`] and [`assumed`] (objects → what the daemons read), [`report`] and
//! [`announce`] (that → the result) and [`print`].

mod announce;
mod assumed;
mod cluster;
mod input;
mod print;
mod read;
mod report;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use shell::client::{connect, install_crypto};

use self::{
    input::{Input, Settings},
    print::Colours,
    read::{INPUT_LIMIT, Object},
    report::{Report, Source},
};

const EXAMPLES: &str = "\
Examples:
  Is this configuration right, and who gets which address?
    berth plan -f pools.yaml -f services/

  What does the cluster of the current kubeconfig do now?
    berth plan

  What would happen there if these manifests were applied?
    berth plan --cluster -f pools.yaml

  The same for Services that are not written yet, as JSON:
    kubectl get services -A -o yaml | berth plan -f pools.yaml -f - -o json

Exit status:
  0  the configuration is valid, and every Service has its addresses
  1  something in it is in error, or a Service is left without an address
  2  the input cannot be read";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Manifests, as YAML or JSON: a file, a directory with all below it, or - for standard input
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", num_args = 1..)]
    filenames: Vec<PathBuf>,

    /// Read the cluster of the kubeconfig; with -f: as if these manifests were applied there.
    /// What is done without -f
    #[arg(long)]
    cluster: bool,

    /// Where Berth and its custom resources live
    #[arg(long, short, env = "METALLB_NAMESPACE", default_value = "metallb-system")]
    namespace: String,

    /// As the daemons': only Services of this spec.loadBalancerClass; empty: those without one
    #[arg(long, default_value = "", hide_default_value = true)]
    lb_class: String,

    /// As the speakers': nodes labelled node.kubernetes.io/exclude-from-external-load-balancers
    /// announce too
    #[arg(long)]
    ignore_exclude_lb: bool,

    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Prints what would happen.
pub async fn run(options: Options) -> ExitCode {
    match plan(&options).await {
        Ok(report) if report.is_good() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn plan(options: &Options) -> Result<Report> {
    let settings = Settings {
        namespace: options.namespace.clone(),
        lb_class: Some(options.lb_class.clone()).filter(|class| !class.is_empty()),
        ignore_exclude_label: options.ignore_exclude_lb,
    };
    let files = match options.filenames.as_slice() {
        [] => None,
        names => Some(Input::new(objects(names)?, &settings)?),
    };
    if let Some(files) = &files {
        tell_ignored(&files.ignored);
    }
    let mut report = match &files {
        Some(files) if !options.cluster => {
            report::report(files, Source::Files, &settings, Instant::now())?
        }
        files => {
            let live = live(&settings, files.as_ref()).await?;
            match files {
                Some(files) => report::report_applied(&live, files, &settings, Instant::now())?,
                None => report::report(&live, Source::Cluster, &settings, Instant::now())?,
            }
        }
    };
    let unknown = files.as_ref().map(Input::unknown_fields).unwrap_or_default();
    report.warnings.splice(0..0, unknown);
    let mut stdout = io::stdout();
    let text = match options.output {
        Output::Table => {
            let colours = if stdout.is_terminal() { Colours::Ansi } else { Colours::None };
            print::table(&report, colours)
        }
        Output::Json => {
            report.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            print::json(&report)?
        }
    };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(report),
        written => written.map(|()| report).context("writing the result"),
    }
}

async fn live(settings: &Settings, files: Option<&Input>) -> Result<Input> {
    install_crypto();
    let agent = format!("berth-plan/{}", env!("CARGO_PKG_VERSION"));
    let (clients, _) = connect(&agent, Some(settings.namespace.clone())).await?;
    let secrets = files.map(Input::named_secrets).unwrap_or_default();
    cluster::read(&clients.write, settings, secrets).await
}

fn tell_ignored(ignored: &BTreeMap<String, usize>) {
    if !ignored.is_empty() {
        let all: Vec<String> =
            ignored.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        eprintln!("ignored: {}", all.join(", "));
    }
}

fn objects(names: &[PathBuf]) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    let mut stdin_is_read = false;
    for name in names {
        if name.as_os_str() == "-" {
            ensure!(!stdin_is_read, "-f - is given twice, but there is one standard input");
            stdin_is_read = true;
            let octets = limited(io::stdin().lock()).context("standard input")?;
            objects.extend(read::objects("standard input", &octets)?);
            continue;
        }
        let shown = || name.display().to_string();
        let mut files = Vec::new();
        if fs::metadata(name).with_context(shown)?.is_dir() {
            manifests_below(name, &mut files)?;
            if files.is_empty() {
                bail!("{}: there are no *.yaml, *.yml or *.json files in it", shown());
            }
        } else {
            files.push(name.clone());
        }
        for file in files {
            let shown = file.display().to_string();
            let opened = fs::File::open(&file).with_context(|| shown.clone())?;
            let octets = limited(opened).with_context(|| shown.clone())?;
            objects.extend(read::objects(&shown, &octets)?);
        }
    }
    Ok(objects)
}

/// In the order of their paths. Without hidden ones: the directory of a mounted ConfigMap has
/// every file twice.
fn manifests_below(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let shown = || folder.display().to_string();
    let mut entries = fs::read_dir(folder)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .with_context(shown)?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        } else if entry.file_type().with_context(shown)?.is_dir() {
            manifests_below(&path, files)?;
        } else if extension.is_some_and(|known| ["yaml", "yml", "json"].contains(&known)) {
            files.push(path);
        }
    }
    Ok(())
}

fn limited(reader: impl io::Read) -> Result<Vec<u8>> {
    let mut octets = Vec::new();
    reader.take(INPUT_LIMIT as u64 + 1).read_to_end(&mut octets)?;
    ensure!(octets.len() <= INPUT_LIMIT, "more than {} MiB", INPUT_LIMIT >> 20);
    Ok(octets)
}
