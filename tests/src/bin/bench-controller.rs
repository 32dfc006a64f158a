//! How fast `berth-controller` is on a real kube-apiserver, and what it costs: `make
//! bench-controller`. Takes the program that lies beside it: both come from a release build. Needs
//! root and Go, as the end-to-end tests do; everything runs in network namespaces of its own.
//! Prints a table; asserts nothing but that all Services are served.

use std::{
    env, fs,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use controller::controller::MAX_WRITES;
use futures::{StreamExt, future::join};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use netlab::{Lab, Namespace, Process, wait_for};
use tests::{
    bench::{Goal, Rows, count, cpu, median, memory, percentile, step},
    crowd::{self, CROWD, Observer, Writes},
    install::{NAMESPACE, Place, Workload, install},
    kube::ControlPlane,
};
use tokio::time::{sleep, sleep_until};

/// How many Services the goals are stated for.
const FULL: usize = 10_000;
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const PLACE: Place<'_> = Place { pod: "controller-bench", node: "n1", address: "10.99.0.1" };
const HEALTH: &str = "http://127.0.0.1:17472/readyz";
/// For anything that happens by itself; generous, since a run that fails is lost.
const LIMIT: Duration = Duration::from_secs(300);
/// Between two further Services, and before the first of them.
const GAP: Duration = Duration::from_millis(20);
/// What is still on its way after a start (state objects, counters of pools) is over by then.
const SETTLE: Duration = Duration::from_secs(5);
const RESTARTS: usize = 5;

fn main() -> Result<()> {
    let scale = Scale::from_environment()?;
    let programs = env::current_exe()?.parent().context("a program lies in a folder")?.to_owned();
    let program = programs.join("berth-controller");
    ensure!(program.is_file(), "there is no {}: run `make build`", program.display());
    if programs.ends_with("debug") {
        eprintln!("This is a debug build; its figures say nothing.");
    }
    ensure!(
        fs::read_to_string("/proc/self/status")?.contains("\nUid:\t0\t"),
        "the API server and its clients run in network namespaces, which takes root"
    );
    let lab = Lab::new().context("network namespaces need root")?;
    let rows = match measure(&lab, &programs, &scale) {
        Ok(rows) => rows,
        Err(error) => bail!("{error:#}\n{}", lab.log_tails(15)),
    };
    lab.close()?;
    rows.publish()
}

/// How much is measured.
struct Scale {
    services: usize,
    pairs: usize,
    samples: usize,
    rest: Duration,
}

impl Scale {
    fn from_environment() -> Result<Self> {
        let number = |name: &str, default: usize| match env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text} is not a number")),
            Err(_) => Ok(default),
        };
        let this = Self {
            services: number("BERTH_BENCH_SERVICES", FULL)?,
            pairs: number("BERTH_BENCH_PAIRS", 5)?,
            samples: number("BERTH_BENCH_SAMPLES", 200)?,
            rest: Duration::from_secs(u64::try_from(number("BERTH_BENCH_REST", 60)?)?),
        };
        let most = 60_000;
        ensure!(
            (1..=most).contains(&this.services),
            "BERTH_BENCH_SERVICES must be 1 to {most}: there are that many cluster IPs"
        );
        ensure!(this.pairs > 0 && this.samples > 0, "nothing to measure");
        Ok(this)
    }
}

fn measure(lab: &Lab, programs: &Path, scale: &Scale) -> Result<Rows> {
    step("starting kube-apiserver");
    let cluster = ControlPlane::start(lab)?;
    install(&cluster)?;
    cluster.apply(crowd::POOL)?;
    let workload = Workload::of(&cluster, "deployment", "controller", programs)?;
    let namespace = cluster.segment().namespace();
    crowd::inside(namespace, || async {
        // The loop and the controller are the same account to the API server, in one queue.
        let account = cluster.kubeconfig_of(NAMESPACE, "controller")?;
        let bench = Bench {
            lab,
            cluster: &cluster,
            workload,
            namespace,
            admin: crowd::client(&cluster.kubeconfig()).await?,
            account: crowd::client(&account).await?,
            scale,
        };
        bench.run().await
    })
}

struct Bench<'a> {
    lab: &'a Lab,
    cluster: &'a ControlPlane,
    workload: Workload,
    namespace: &'a Namespace,
    /// Makes and clears Services, watches, and reads metrics.
    admin: Client,
    account: Client,
    scale: &'a Scale,
}

impl Bench<'_> {
    async fn run(&self) -> Result<Rows> {
        let mut rows = Rows::default();
        self.idle(&mut rows)?;
        let mut observer = Observer::new(&self.admin);
        step(&format!("making {} Services", self.scale.services));
        crowd::create(&self.admin, 0, self.scale.services).await?;
        self.standing_start(&mut rows, &mut observer).await?;
        self.restarts(&mut rows, &mut observer).await?;
        let controller = self.spawn(self.command()?)?;
        self.one_more(&mut rows, &mut observer).await?;
        self.rest(&mut rows).await?;
        controller.stop()?;
        Ok(rows)
    }

    /// Memory without Services.
    fn idle(&self, rows: &mut Rows) -> Result<()> {
        step("idle, without Services");
        let mut sizes = Vec::new();
        for _ in 0..3 {
            let mut controller = self.spawn(self.command()?)?;
            wait_for("the controller is ready", LIMIT, || {
                controller.check_running()?;
                self.namespace.run(&["curl", "-fsS", "-m", "2", HEALTH]).map(drop)
            })?;
            std::thread::sleep(SETTLE);
            sizes.push(memory(&controller, "VmRSS")?);
            controller.stop()?;
        }
        rows.push("resident memory without Services", "MB", sizes, Some(Goal::Median(12.0)));
        Ok(())
    }

    /// All Services pending: the controller against the bare loop, in alternating pairs.
    async fn standing_start(&self, rows: &mut Rows, observer: &mut Observer) -> Result<()> {
        let mut series = StandingStart::default();
        for pair in 0..self.scale.pairs {
            // Who comes first changes, and the controller comes last of all.
            let loop_first = (self.scale.pairs - pair) % 2 == 1;
            if loop_first {
                self.bare_loop(&mut series, observer).await?;
            }
            self.controller(&mut series, observer).await?;
            if !loop_first {
                self.bare_loop(&mut series, observer).await?;
            }
            let last = |times: &[f64]| times.last().copied().unwrap_or(f64::NAN);
            step(&format!(
                "pair {}: controller {:.2} s, loop {:.2} s",
                pair + 1,
                last(&series.controller),
                last(&series.bare)
            ));
        }
        let n = self.scale.services;
        let full = |goal| (n >= FULL).then_some(Goal::Median(goal));
        let ratio = median(&series.controller) / median(&series.bare);
        rows.push(&format!("{n} pending, standing start"), "s", series.controller, None);
        rows.push(&format!("{n} pending, bare loop"), "s", series.bare, None);
        rows.push("standing start / bare loop (medians)", "ratio", vec![ratio], full(1.25));
        rows.push("CPU of the controller until all are assigned", "s", series.cpu, full(4.0));
        rows.push("peak resident memory until then", "MB", series.peak, full(25.0));
        rows.push(
            "writes an assignment, besides Events",
            "",
            series.writes,
            Some(Goal::Median(1.1)),
        );
        Ok(())
    }

    async fn bare_loop(&self, series: &mut StandingStart, observer: &mut Observer) -> Result<()> {
        let services = self.clear(observer).await?;
        let begin = Instant::now();
        let write = crowd::write_all(&self.account, &services, MAX_WRITES, FIRST, CROWD);
        // The same observer costs the same here as it does beside the controller.
        let (written, seen) = join(write, self.all_assigned(observer)).await;
        written?;
        series.bare.push((seen? - begin).as_secs_f64());
        Ok(())
    }

    async fn controller(&self, series: &mut StandingStart, observer: &mut Observer) -> Result<()> {
        self.clear(observer).await?;
        let command = self.command()?;
        let before = Writes::of(&self.admin).await?;
        let begin = Instant::now();
        let controller = self.spawn(command)?;
        let end = self.all_assigned(observer).await?;
        series.controller.push((end - begin).as_secs_f64());
        series.cpu.push(cpu(&controller)?);
        series.peak.push(memory(&controller, "VmHWM")?);
        controller.stop()?;
        let writes = Writes::of(&self.admin).await?.since(&before);
        step(&format!("writes: {writes}"));
        series.writes.push(writes.except(&[" events", " leases"]) / count(self.scale.services));
        Ok(())
    }

    async fn all_assigned(&self, observer: &mut Observer) -> Result<Instant> {
        let all = self.scale.services;
        observer.until("all are assigned", LIMIT, |seen| seen.assigned() == all).await
    }

    async fn clear(&self, observer: &mut Observer) -> Result<Vec<crowd::Stored>> {
        let services = crowd::stored(&self.admin).await?;
        let clear = crowd::clear(&self.admin, &services);
        let seen = observer.until("none is assigned", LIMIT, |seen| seen.assigned() == 0);
        let (cleared, seen) = join(clear, seen).await;
        cleared.and(seen)?;
        crowd::stored(&self.admin).await
    }

    /// With all assigned: from the start of the process to the first new Service being served.
    async fn restarts(&self, rows: &mut Rows, observer: &mut Observer) -> Result<()> {
        step("restarts");
        let untouched = crowd::stored(&self.admin).await?;
        let (mut times, mut others) = (Vec::new(), Vec::new());
        for index in 0..RESTARTS {
            let name = format!("restart-{index}");
            crowd::create_one(&self.admin, name.clone()).await?;
            let command = self.command()?;
            let before = Writes::of(&self.admin).await?;
            let begin = Instant::now();
            let controller = self.spawn(command)?;
            let seen = observer.until("a new one is served", LIMIT, |seen| seen.holds(&name));
            times.push((seen.await? - begin).as_secs_f64());
            // What it would write to others, it writes now.
            sleep(SETTLE).await;
            controller.stop()?;
            let writes = Writes::of(&self.admin).await?.since(&before);
            others.push(writes.count("PATCH services/status") - 1.0);
            crowd::delete_one(&self.admin, &name).await?;
            let gone = observer.until("it is gone", LIMIT, |seen| !seen.holds(&name));
            gone.await?;
        }
        ensure!(crowd::stored(&self.admin).await? == untouched, "a restart changed other Services");
        let n = self.scale.services;
        let title = format!("restart with {n}: first new Service served");
        rows.push(&title, "s", times, Some(Goal::Median(1.0)));
        rows.push("status writes to the others at a restart", "", others, Some(Goal::Median(0.0)));
        Ok(())
    }

    /// From the answer of the create to the status, as a watcher sees it.
    async fn one_more(&self, rows: &mut Rows, observer: &mut Observer) -> Result<()> {
        step("one more, and one more");
        let mut times = Vec::new();
        for index in 0..self.scale.samples {
            sleep(GAP).await;
            let name = format!("more-{index}");
            let create = async {
                crowd::create_one(&self.admin, name.clone()).await?;
                Ok::<_, anyhow::Error>(Instant::now())
            };
            let seen = observer.until("one more is served", LIMIT, |seen| seen.holds(&name));
            let (created, seen) = join(create, seen).await;
            // The status may be seen before the answer of the create.
            times.push(seen?.saturating_duration_since(created?).as_secs_f64() * 1e3);
        }
        let n = self.scale.services;
        let full = |goal| (n >= FULL).then_some(Goal::Median(goal));
        for (percent, goal) in [(50, 5.0), (99, 25.0)] {
            let title = format!("one more at {n}: answer of the create to status, p{percent}");
            rows.push(&title, "ms", vec![percentile(&times, percent)], full(goal));
        }
        for index in 0..self.scale.samples {
            crowd::delete_one(&self.admin, &format!("more-{index}")).await?;
        }
        Ok(())
    }

    /// Writes while nothing happens.
    async fn rest(&self, rows: &mut Rows) -> Result<()> {
        let seconds = self.scale.rest.as_secs();
        step(&format!("at rest for {seconds} s"));
        // The Events of the Services above go out 25 a second.
        sleep(SETTLE + Duration::from_millis(40) * u32::try_from(self.scale.samples)?).await;
        let before = Writes::of(&self.admin).await?;
        let renewals = self.lease_writes(self.scale.rest).await;
        let writes = Writes::of(&self.admin).await?.since(&before);
        step(&format!("writes at rest, of everybody: {writes}"));
        let title = format!("writes in {seconds} s at rest, without Leases");
        rows.push(&title, "", vec![writes.except(&[" leases"])], Some(Goal::Median(0.0)));
        let title = format!("renewals of the controller's Lease in {seconds} s");
        rows.push(&title, "", vec![count(renewals)], None);
        Ok(())
    }

    /// Changes of Leases in our namespace.
    async fn lease_writes(&self, time: Duration) -> usize {
        let leases = Api::<Lease>::namespaced(self.admin.clone(), NAMESPACE);
        let stream = watcher(leases, watcher::Config::default()).default_backoff();
        let changes = stream
            .filter(|event| std::future::ready(matches!(event, Ok(watcher::Event::Apply(_)))));
        let end = tokio::time::Instant::now() + time;
        changes.take_until(sleep_until(end)).count().await
    }

    fn command(&self) -> Result<Command> {
        self.workload.command(self.lab, self.cluster, self.namespace, PLACE)
    }

    fn spawn(&self, command: Command) -> Result<Process> {
        self.namespace.spawn("berth-controller", command)
    }
}

/// One value a run.
#[derive(Default)]
struct StandingStart {
    controller: Vec<f64>,
    bare: Vec<f64>,
    cpu: Vec<f64>,
    peak: Vec<f64>,
    writes: Vec<f64>,
}
