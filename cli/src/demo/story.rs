//! The story that the demo tells, one method a step. A step waits for what it tells of, within a limit, and says what
//! it saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use apiserver::{ApiServer, Options as ServerOptions};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::{
    Options,
    cluster::{Cluster, Exposed},
    in_user_namespace,
    prober::{Prober, fetch},
    proxy,
    router::{Daemon, next_hops},
    show::{Measurement, Show, rounded},
    stage::{
        BACKENDS, CONTROL, CONTROLLERS, NODES, Stage, backend_name, controller_name,
        node_addresses, node_name, node_with_mac,
    },
    wire::{Announcement, Sniffer},
};

/// Four missed heartbeats of 40 ms, and what a take-over may take on top of that.
const OUTAGE_GOAL_MS: f64 = 260.0;
/// What a standby waits for a sign of life of the leader, what it takes to look, and some more.
const TAKEOVER_GOAL_MS: f64 = 3000.0;
const API_PORT: u16 = 6443;
const HTTP: u16 = 80;

const POOL: &str = include_str!("../../../deploy/samples/pool.yaml");
const L2_ADVERTISEMENT: &str = include_str!("../../../deploy/samples/l2advertisement.yaml");
const BGP: &str = include_str!("../../../deploy/samples/bgp.yaml");
const SERVICE: &str = include_str!("../../../deploy/samples/service.yaml");
const INGRESS_CONTROLLERS: [(&str, &str); 5] = [
    ("ingress-nginx", include_str!("../../../deploy/samples/services/ingress-nginx.yaml")),
    ("Traefik", include_str!("../../../deploy/samples/services/traefik.yaml")),
    ("Contour", include_str!("../../../deploy/samples/services/contour.yaml")),
    ("HAProxy", include_str!("../../../deploy/samples/services/haproxy.yaml")),
    ("Kong", include_str!("../../../deploy/samples/services/kong.yaml")),
];

/// What should take milliseconds, on a machine that is busy with something else.
const SOON: Duration = Duration::from_secs(10);
/// What waits for timers of BGP: connecting, and the hold time of the sample.
const ROUTING: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Bounds the probing of one node's death, at one request in 5 ms.
const PROBES: u32 = 8_000;
/// Answers in a row that count as "it works".
const STEADY: usize = 40;

/// The story, one method a step.
pub struct Story<'a> {
    options: &'a Options,
    show: &'a mut Show,
    stage: &'a mut Stage,
    cluster: Cluster,
    sniffer: Sniffer,
    /// For programs in the namespaces.
    kubeconfig: PathBuf,
    /// The folder that the memberlist Secret is mounted at.
    key: PathBuf,
}

impl<'a> Story<'a> {
    /// Tells it to its end and prints the results; with `--keep` it goes on until the future is dropped.
    ///
    /// # Errors
    /// When a step was not seen to work.
    pub async fn tell(
        options: &'a Options,
        show: &'a mut Show,
        stage: &'a mut Stage,
        daemon: Option<Daemon>,
    ) -> anyhow::Result<()> {
        show.begin("start a control plane");
        let server = ApiServer::new(ServerOptions::default());
        let listener =
            stage.control.inside(|| Ok(std::net::TcpListener::bind((CONTROL, API_PORT))?))?;
        let kubeconfig = serve(&server, listener, &stage.directory().join("kubeconfig-of-nodes"))?;
        let mut story = Self {
            options,
            cluster: Cluster::new(server.client()),
            sniffer: Sniffer::start(&stage.client)?,
            key: stage.directory().join("ml_secret_key"),
            kubeconfig,
            show,
            stage,
        };
        story.start_controllers().await?;
        story.start_speakers().await?;
        let nodes =
            story.stage.nodes.iter().map(|node| (node.name(), node.namespace.clone())).collect();
        // Dropping the set ends what is in it.
        let mut proxies = JoinSet::new();
        proxies.spawn(proxy::run(server.client(), nodes));
        tokio::select! {
            told = story.steps(daemon.as_ref(), &server) => told,
            Some(ended) = proxies.join_next() => {
                ended?.context("the stand-in for kube-proxy")?;
                anyhow::bail!("the stand-in for kube-proxy has ended");
            }
        }
    }

    async fn steps(&mut self, daemon: Option<&Daemon>, server: &ApiServer) -> anyhow::Result<()> {
        let (web, routed) = self.create_services(daemon).await?;
        let addresses = self.announced(&web).await?;
        self.requests(&web, &addresses).await?;
        let routed = match (daemon, routed) {
            (Some(daemon), Some(routed)) => Some(self.routed(daemon, &routed).await?),
            (None, _) | (_, None) => {
                self.show.left_out("routes by BGP", "not shown: there is no router");
                None
            }
        };
        self.ingress_controllers().await?;
        self.measure_creation().await?;
        self.measure_takeovers().await?;
        let address = ipv4_of(&addresses)?;
        self.measure_deaths(&web, address, routed.as_deref()).await?;
        self.show.print(self.options.json)?;
        if let Some(file) = &self.options.measurements {
            self.show.write_measurements(file)?;
        }
        if self.options.keep {
            self.tell_how_to_look(server, address)?;
            std::future::pending().await
        }
        Ok(())
    }

    async fn start_controllers(&mut self) -> anyhow::Result<()> {
        self.cluster.furnish().await?;
        for number in CONTROLLERS {
            self.stage.start_controller(number, &self.kubeconfig)?;
        }
        for number in CONTROLLERS {
            self.stage.controller_ready(number, SOON).await?;
        }
        let leader = self.leader().await?;
        let key = self.cluster.memberlist_key(SOON).await?;
        // What the kubelet does with a Secret volume.
        fs::create_dir(&self.key)?;
        fs::write(self.key.join("secretkey"), key)?;
        self.show.done(format!(
            "API server at {CONTROL}:{API_PORT}, two controllers; {} leads, and made the speakers' key",
            controller_name(leader)
        ));
        Ok(())
    }

    async fn start_speakers(&mut self) -> anyhow::Result<()> {
        self.show.begin("start a speaker on every node");
        for number in NODES {
            self.stage.start_speaker(number, &self.kubeconfig, &self.key)?;
        }
        for number in NODES {
            self.stage.speaker_ready(number, SOON).await?;
        }
        self.show.done("n1, n2 and n3 are ready");
        Ok(())
    }

    /// The samples, and from the sending of the first Service to its addresses.
    async fn create_services(
        &mut self,
        daemon: Option<&Daemon>,
    ) -> anyhow::Result<(Exposed, Option<Exposed>)> {
        self.show.begin("apply deploy/samples");
        for manifest in [POOL, L2_ADVERTISEMENT] {
            self.cluster.apply_manifest(manifest).await?;
        }
        let mut accepted = "pools, L2Advertisement".to_owned();
        if let Some(daemon) = daemon {
            let started = daemon.start(&self.stage.router, self.stage.directory())?;
            self.stage.others.extend(started);
            self.cluster.apply_manifest(BGP).await?;
            accepted.push_str(", BGPPeer and BGPAdvertisement");
        }
        self.show.done(format!("accepted: {accepted}"));

        self.show.begin("expose two Services, over IPv4 and IPv6");
        let since = Instant::now();
        let mut services = self.cluster.apply_manifest(SERVICE).await?.into_iter();
        let web = services.next().context("the sample has no Service")?;
        let addresses = self.cluster.assigned(&web, 2, SOON).await?;
        let took = rounded(since.elapsed());
        self.show.done(format!("{} got {} within {took}", web.name, list(&addresses)));
        Ok((web, services.next()))
    }

    /// Who announces, on the wire and in the API.
    async fn announced(&mut self, web: &Exposed) -> anyhow::Result<Vec<IpAddr>> {
        self.show.begin("listen who announces the addresses");
        let addresses = self.cluster.assigned(web, 2, SOON).await?;
        let mut owners = BTreeSet::new();
        let mut seen = Vec::new();
        for &address in &addresses {
            let owner = self.owner(address).await?;
            owners.insert(node_name(owner));
            seen.push(format!("{address} is at {}", node_name(owner)));
        }
        let cluster = &self.cluster;
        let said = wait_until(SOON, || async {
            let said = cluster.announcers(web).await?;
            anyhow::ensure!(
                said == owners,
                "ServiceL2Status names {said:?}, on the wire it is {owners:?}"
            );
            Ok(said)
        })
        .await?;
        let said: Vec<_> = said.into_iter().collect();
        self.show.done(format!("{}; ServiceL2Status says {}", seen.join(", "), said.join(", ")));
        Ok(addresses)
    }

    async fn owner(&self, address: IpAddr) -> anyhow::Result<u8> {
        if self.sniffer.last(address).is_none() {
            self.sniffer.first(Instant::now(), SOON, |seen| seen.address == address).await;
        }
        let mac = self
            .sniffer
            .last(address)
            .with_context(|| format!("nobody has announced {address}"))?;
        node_with_mac(mac)
            .with_context(|| format!("{address} was announced by a stranger, {mac:02x?}"))
    }

    async fn requests(&mut self, web: &Exposed, addresses: &[IpAddr]) -> anyhow::Result<()> {
        self.show.begin("request a page through each address");
        let mut seen = Vec::new();
        for &address in addresses {
            let target = SocketAddr::new(address, HTTP);
            let answer = fetch(&self.stage.client, target, SOON).await?;
            seen.push(format!("http://{target} answered by {}", first_key(&answer.backends)));
        }
        if let Some(port) = self.cluster.node_port(web).await? {
            let (v4, _) = node_addresses(3);
            let target = SocketAddr::new(v4.into(), port);
            let answer = fetch(&self.stage.client, target, SOON).await?;
            seen.push(format!("node port {target} by {}", first_key(&answer.backends)));
        }
        self.show.done(seen.join(", "));
        Ok(())
    }

    /// What the router learnt, and the way through it.
    async fn routed(&mut self, daemon: &Daemon, service: &Exposed) -> anyhow::Result<Vec<IpAddr>> {
        self.show.begin(&format!("wait for routes in {}", daemon.name()));
        let addresses = self.cluster.assigned(service, 2, SOON).await?;
        let all = BTreeSet::from(NODES);
        for &address in &addresses {
            wait_for_next_hops(self.stage, address, ROUTING, |nodes| *nodes == all).await?;
        }
        self.show.done(format!("{} each by way of n1, n2 and n3", list(&addresses)));

        self.show.begin("request pages from behind the router");
        let mut seen = Vec::new();
        for &address in &addresses {
            let target = SocketAddr::new(address, HTTP);
            let answer = fetch(&self.stage.remote, target, SOON).await?;
            seen.push(format!("http://{target} answered by {}", first_key(&answer.backends)));
        }
        self.show.done(seen.join(", "));
        Ok(addresses)
    }

    async fn ingress_controllers(&mut self) -> anyhow::Result<()> {
        self.show.begin("expose five ingress controllers");
        let mut services = Vec::new();
        for (controller, manifest) in INGRESS_CONTROLLERS {
            let exposed = self.cluster.apply_manifest(manifest).await?;
            services.extend(exposed.into_iter().map(|service| (controller, service)));
        }
        let mut seen = Vec::new();
        for (controller, service) in services {
            let addresses = self.cluster.assigned(&service, 1, SOON).await?;
            for &address in &addresses {
                fetch(&self.stage.client, SocketAddr::new(address, HTTP), SOON).await?;
            }
            seen.push(format!("{controller} {}", list(&addresses)));
        }
        self.show.done(seen.join(", "));
        Ok(())
    }

    /// From sending the request that creates a Service to its address, and to the first gratuitous ARP for it.
    async fn measure_creation(&mut self) -> anyhow::Result<()> {
        self.show.begin("time a new Service");
        let (mut assigned, mut announced, mut services) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..self.options.runs {
            let service = new_service(&format!("timing-{run}"));
            let (service, sent) = self.cluster.create_service(&service).await?;
            let addresses = self.cluster.assigned(&service, 1, SOON).await?;
            assigned.push(milliseconds(sent.elapsed()));
            let address = ipv4_of(&addresses)?;
            let seen = self.sniffer.first(sent, SOON, |seen| seen.address == address).await;
            let seen =
                seen.with_context(|| format!("no gratuitous ARP for {address} within {SOON:?}"))?;
            announced.push(milliseconds(seen.at - sent));
            services.push(service);
        }
        // Only now: an address that is used again at once could be taken for one that was announced before.
        for service in &services {
            self.cluster.delete_service(service).await?;
        }
        let assigned = Measurement::of("Service created until it has an address", &assigned);
        let announced =
            Measurement::of("Service created until the first gratuitous ARP", &announced);
        if let (Some(assigned), Some(announced)) = (&assigned, &announced) {
            self.show.done(format!(
                "address after {:.1} ms, on the wire after {:.1} ms (medians of {})",
                assigned.median, announced.median, assigned.runs
            ));
        }
        self.show.measured(assigned);
        self.show.measured(announced);
        Ok(())
    }

    /// Kills the leading controller, as often as was asked for: a Service that is created at that very moment gets its
    /// address from the other one, and all that are there keep theirs.
    async fn measure_takeovers(&mut self) -> anyhow::Result<()> {
        self.show.begin("kill the leading controller, and create a Service");
        let before = self.cluster.all_addresses().await?;
        let (mut served, mut heir) = (Vec::new(), self.leader().await?);
        for run in 0..self.options.runs {
            let dead = heir;
            let killed = Instant::now();
            self.stage.kill_controller(dead);
            let service = new_service(&format!("takeover-{run}"));
            let (service, _) = self.cluster.create_service(&service).await?;
            self.cluster.assigned(&service, 1, SOON).await?;
            served.push(milliseconds(killed.elapsed()));
            heir = self.leader().await?;
            anyhow::ensure!(heir != dead, "{} is dead and leads", controller_name(dead));
            self.cluster.delete_service(&service).await?;
            self.stage.start_controller(dead, &self.kubeconfig)?;
            self.stage.controller_ready(dead, SOON).await?;
        }
        let after = self.cluster.all_addresses().await?;
        anyhow::ensure!(before == after, "addresses changed hands: {before:?} became {after:?}");
        let served =
            Measurement::of("controller killed until the next Service has an address", &served);
        if let Some(served) = &served {
            self.show.done(format!(
                "{} took over; the Service had its address after {:.0} ms (median of {}), the {} \
                 others kept theirs",
                controller_name(heir),
                served.median,
                served.runs,
                before.len()
            ));
        }
        self.show.measured(served.map(|served| served.with_goal(TAKEOVER_GOAL_MS)));
        Ok(())
    }

    async fn leader(&self) -> anyhow::Result<u8> {
        wait_until(SOON, || self.cluster.leader()).await
    }

    /// Kills the node that owns the address, as often as was asked for.
    async fn measure_deaths(
        &mut self,
        web: &Exposed,
        address: IpAddr,
        routed: Option<&[IpAddr]>,
    ) -> anyhow::Result<()> {
        let owner = self.owner(address).await?;
        self.show.begin(&format!("kill {}, which owns {address}", node_name(owner)));
        let first = self.death(owner, web, address).await?;
        self.show.done(first.told());
        if let Some(addresses) = routed {
            self.routes_without(owner, addresses).await?;
        }
        self.show.begin(&format!("bring {} back", node_name(owner)));
        self.revive(owner, address).await?;
        let now = self.owner(address).await?;
        self.show.done(format!("ready; {address} answers from {}", node_name(now)));

        let mut outages = vec![first.outage_ms];
        let again = self.options.runs - 1;
        if again > 0 {
            self.show.begin(&format!("kill the owner again, {again} more"));
            for _ in 0..again {
                let owner = self.owner(address).await?;
                let death = self.death(owner, web, address).await?;
                self.show.note(&format!("  {} dead: {}", node_name(owner), death.told()));
                outages.push(death.outage_ms);
                self.revive(owner, address).await?;
            }
            self.show.done("another node took over each time, and the dead one came back");
        }
        let outage = Measurement::of("owner killed: time without an answer", &outages);
        self.show.measured(outage.map(|outage| outage.with_goal(OUTAGE_GOAL_MS)));
        Ok(())
    }

    async fn revive(&mut self, dead: u8, address: IpAddr) -> anyhow::Result<()> {
        self.stage.revive_node(dead)?;
        self.stage.start_speaker(dead, &self.kubeconfig, &self.key)?;
        self.stage.speaker_ready(dead, SOON).await?;
        self.cluster.set_ready(dead, true).await?;
        fetch(&self.stage.client, SocketAddr::new(address, HTTP), SOON).await?;
        Ok(())
    }

    async fn death(&mut self, dead: u8, web: &Exposed, address: IpAddr) -> anyhow::Result<Death> {
        let target = SocketAddr::new(address, HTTP);
        if BACKENDS.contains(&dead) {
            // Its pod first, as draining does: the figure is to be the address's outage, not that of a backend.
            self.cluster.set_ready(dead, false).await?;
            let client = &self.stage.client;
            wait_until(SOON, || async {
                let report = Prober::start(client, target, 16)?.finish().await?;
                let gone = !report.backends.contains_key(&backend_name(dead)) && report.lost == 0;
                anyhow::ensure!(gone, "{} still gets requests", backend_name(dead));
                Ok(())
            })
            .await?;
        }
        let mut prober = Prober::start(&self.stage.client, target, PROBES)?;
        prober
            .until(SOON, |report| report.answered >= STEADY)
            .await
            .context("probing the living node")?;
        let killed = Instant::now();
        self.stage.kill_node(dead)?;
        let is_heir =
            |seen: &Announcement| seen.address == address && node_with_mac(seen.mac) != Some(dead);
        let seen = self.sniffer.first(killed, SOON, is_heir).await;
        let seen = seen.with_context(|| format!("nobody took over {address} within {SOON:?}"))?;
        let answered = prober.report().answered;
        prober
            .until(SOON, |report| report.answered >= answered + STEADY)
            .await
            .context("probing after the take-over")?;
        let report = prober.stop().await?;
        let heir = node_with_mac(seen.announcement.mac).context("a stranger took over")?;
        let still = self.cluster.assigned(web, 2, SOON).await?;
        anyhow::ensure!(
            still.contains(&address),
            "the Service has changed its address to {}",
            list(&still)
        );
        Ok(Death { heir, outage_ms: report.longest_gap_ms, lost: report.lost, sent: report.sent })
    }

    async fn routes_without(&mut self, dead: u8, addresses: &[IpAddr]) -> anyhow::Result<()> {
        self.show.begin(&format!("wait until the router gives up {}", node_name(dead)));
        for &address in addresses {
            let rest = |nodes: &BTreeSet<u8>| !nodes.is_empty() && !nodes.contains(&dead);
            wait_for_next_hops(self.stage, address, ROUTING, rest).await?;
            fetch(&self.stage.remote, SocketAddr::new(address, HTTP), SOON).await?;
        }
        self.show
            .done("after at most the hold time of 9 s: its routes lead to the other two, requests are answered");
        Ok(())
    }

    /// What `--keep` prints: a door on this machine's loopback address, and the ways into the namespaces.
    fn tell_how_to_look(&self, server: &ApiServer, address: IpAddr) -> anyhow::Result<()> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let kubeconfig = serve(server, listener, &self.stage.directory().join("kubeconfig"))?;
        let client = self.stage.client.full_name();
        eprintln!("\nIt goes on until Ctrl-C. In another terminal:\n");
        if in_user_namespace() {
            let pid = std::process::id();
            eprintln!(
                "  nsenter --target {pid} --user --net --mount --preserve-credentials   # first"
            );
        }
        eprintln!("  export KUBECONFIG={}", kubeconfig.display());
        eprintln!("  kubectl get svc,ipaddresspools -A");
        let berth = std::env::current_exe()?;
        eprintln!(
            "  ip netns exec {client} {} probe --count 1 --target {address}:{HTTP}",
            berth.display()
        );
        eprintln!("  ip netns exec {client} ip neighbour");
        eprintln!("  ip netns exec {} ip route", self.stage.router.full_name());
        eprintln!("  ls {}   # logs\n", self.stage.directory().display());
        Ok(())
    }
}

/// How one node's death went.
struct Death {
    heir: u8,
    outage_ms: f64,
    lost: usize,
    sent: usize,
}

impl Death {
    fn told(&self) -> String {
        format!(
            "{} took over; the client was without an answer for {:.0} ms ({} of {} requests lost)",
            node_name(self.heir),
            self.outage_ms,
            self.lost,
            self.sent
        )
    }
}

fn new_service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"},
                 "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

/// Serves the API at a socket, and writes a kubeconfig for it.
fn serve(
    server: &ApiServer,
    listener: std::net::TcpListener,
    kubeconfig: &Path,
) -> anyhow::Result<PathBuf> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let server = server.clone();
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "berth-demo",
        "clusters": [{"name": "berth-demo", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "berth-demo", "context": {"cluster": "berth-demo", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {}}],
    });
    // JSON is YAML.
    fs::write(kubeconfig, serde_json::to_string_pretty(&text)?).context("writing a kubeconfig")?;
    Ok(kubeconfig.to_owned())
}

async fn wait_for_next_hops(
    stage: &Stage,
    address: IpAddr,
    limit: Duration,
    wanted: impl Fn(&BTreeSet<u8>) -> bool,
) -> anyhow::Result<()> {
    wait_until(limit, || async {
        let nodes = next_hops(&stage.router, address)?;
        let names: Vec<_> = nodes.iter().map(|&number| node_name(number)).collect();
        anyhow::ensure!(wanted(&nodes), "the router sends {address} to [{}]", names.join(", "));
        Ok(())
    })
    .await
}

/// Tries again until it works; the last failure when it has not within `limit`.
async fn wait_until<T>(
    limit: Duration,
    attempt: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {limit:?} in vain")));
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

fn ipv4_of(addresses: &[IpAddr]) -> anyhow::Result<IpAddr> {
    addresses.iter().copied().find(IpAddr::is_ipv4).context("the Service has no IPv4 address")
}

fn first_key<V>(map: &BTreeMap<String, V>) -> &str {
    map.keys().next().map(String::as_str).unwrap_or_default()
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
