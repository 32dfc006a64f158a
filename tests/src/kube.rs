//! A real Kubernetes in network namespaces: etcd, kube-apiserver, the endpoint controllers and, on
//! every node, kube-proxy in nftables mode, all out of `tests/kube`. There is no kubelet and no
//! scheduler: [`Node`] and [`Pod`] write the objects and statuses that those would, and a pod is a
//! namespace with the program that the test puts there.
//!
//! One Ethernet segment joins the control plane, the nodes and the clients:
//! `10.99.0.0/24` and `fd99::/64`, the API server at `.1`, node N at `.1N`. Pods of node N live in
//! `10.244.N.0/24` and `fd44:0:0:N::/64`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netlab::{End, Lab, Namespace, Process, Switch, connect, wait_for};
use serde_json::{Value, json};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const SERVER: &str = "10.99.0.1";
const SERVER_V6: &str = "fd99::1";
const ETCD: &str = "http://127.0.0.1:2379";
/// One digit each in all addresses.
const MOST_NODES: u8 = 8;
/// Of the user `admin`, and of kube-proxy.
const ADMIN_TOKEN: &str = "admin-token";
const PROXY_TOKEN: &str = "proxy-token";
/// Starting takes 3 s on an idle machine with 2 cores; on a busy one, several times that.
const START_LIMIT: Duration = Duration::from_secs(90);

/// A running control plane. Dropping it ends it and forgets all objects.
#[derive(Debug)]
pub struct ControlPlane {
    kubelab: PathBuf,
    directory: PathBuf,
    segment: Switch,
    /// In the order of their start.
    processes: BTreeMap<Program, Process>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Program {
    Etcd,
    Apiserver,
    ControllerManager,
}

impl Program {
    /// What `kubelab` calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
        }
    }
}

impl ControlPlane {
    /// Starts one in the namespace `control` of the lab and waits until it is ready. The first
    /// start on a machine builds Kubernetes, which takes minutes and tells its progress on standard
    /// error.
    ///
    /// # Errors
    /// When it does not build or does not get ready; the message has the tail of the log.
    pub fn start(lab: &Lab) -> Result<Self> {
        let kubelab = build("kube")?;
        let directory = lab.directory().to_owned();
        let segment = lab.switch("control")?;
        let addresses = [format!("{SERVER}/24"), format!("{SERVER_V6}/64")];
        segment.namespace().add_addresses("br0", &addresses.each_ref().map(String::as_str))?;
        let mut this = Self { kubelab, directory, segment, processes: BTreeMap::new() };
        this.write_credentials()?;
        this.start_etcd()?;
        this.start_apiserver()?;
        this.start_controllers()?;
        Ok(this)
    }

    /// Kills the API server. Objects stay in etcd.
    pub fn kill_apiserver(&mut self) {
        self.processes.remove(&Program::Apiserver);
    }

    /// Starts the API server again after [`kill_apiserver`](Self::kill_apiserver) and waits until
    /// it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn restart_apiserver(&mut self) -> Result<()> {
        self.start_apiserver()
    }

    /// The Ethernet segment; plug clients into it at addresses above `.100`.
    pub fn segment(&self) -> &Switch {
        &self.segment
    }

    /// Where the API server answers, for everything on the segment.
    pub fn url(&self) -> String {
        format!("https://{SERVER}:6443")
    }

    /// The certificate (PEM) that vouches for the API server.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("pki/ca.crt")
    }

    /// A kubeconfig that may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    /// Runs kubectl as admin; what it printed.
    ///
    /// # Errors
    /// What kubectl complained of.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run_kubectl(&[], arguments, "")
    }

    /// `kubectl edit` with sed as the editor, run with this script.
    ///
    /// # Errors
    /// What kubectl complained of.
    pub fn edit(&self, object: &str, namespace: &str, script: &str) -> Result<String> {
        let editor = format!("KUBE_EDITOR=sed -i {script}");
        self.run_kubectl(&[&editor], &["edit", object, "--namespace", namespace], "")
    }

    /// Applies a manifest of one or more objects, in YAML or JSON.
    ///
    /// # Errors
    /// What kubectl complained of.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.run_kubectl(&[], &["apply", "-f", "-"], manifest)
    }

    /// What would come of applying a manifest.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn dry_run(&self, manifest: &str) -> Result<String> {
        self.run_kubectl(&[], &["apply", "--dry-run=server", "-f", "-"], manifest)
    }

    /// Applies a manifest and takes a warning for an error; it is stored all the same.
    ///
    /// # Errors
    /// What kubectl complained of, and what the API server warned of.
    pub fn apply_without_warning(&self, manifest: &str) -> Result<String> {
        self.run_kubectl(&[], &["apply", "--warnings-as-errors", "-f", "-"], manifest)
    }

    /// One object, as JSON.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", kind, "--namespace", namespace, name, "--output=json"])?;
        serde_json::from_str(&text)
            .with_context(|| format!("reading the {kind} {namespace}/{name}"))
    }

    /// A token of a service account, good for an hour.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let arguments = ["create", "token", account, "--namespace", namespace, "--duration=1h"];
        Ok(self.kubectl(&arguments)?.trim().to_owned())
    }

    /// A kubeconfig that may do what a service account may.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.token(namespace, account)?;
        let path = self.directory.join(format!("{namespace}-{account}.kubeconfig"));
        self.write_kubeconfig(&path, &token)?;
        Ok(path)
    }

    fn run_kubectl(&self, environment: &[&str], arguments: &[&str], input: &str) -> Result<String> {
        let (kubelab, kubeconfig) = (self.kubelab.to_string_lossy(), self.kubeconfig());
        let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
        // Discovery is cached under the home folder otherwise, for a server of the same address
        // and another life.
        let cache = format!("--cache-dir={}", self.directory.join("kubectl").display());
        let mut program = vec!["env"];
        program.extend(environment);
        program.extend([&*kubelab, "kubectl", &kubeconfig, &cache]);
        program.extend(arguments);
        self.segment
            .namespace()
            .run_with_input(&program, input)
            .with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    fn write_credentials(&self) -> Result<()> {
        let made = Command::new(Path::new(HERE).join("kube/pki.sh"))
            .arg(self.directory.join("pki"))
            .args([SERVER, SERVER_V6])
            .output()
            .context("starting tests/kube/pki.sh")?;
        let complaint = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "making certificates with openssl: {complaint}");
        // Token, user, user id, group.
        let tokens = format!(
            "{ADMIN_TOKEN},admin,admin,system:masters\n\
             {PROXY_TOKEN},system:kube-proxy,kube-proxy\n"
        );
        fs::write(self.directory.join("tokens.csv"), tokens)?;
        self.write_kubeconfig(&self.kubeconfig(), ADMIN_TOKEN)?;
        self.write_kubeconfig(&self.proxy_kubeconfig(), PROXY_TOKEN)
    }

    fn proxy_kubeconfig(&self) -> PathBuf {
        self.directory.join("kube-proxy.kubeconfig")
    }

    fn write_kubeconfig(&self, path: &Path, token: &str) -> Result<()> {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "lab", "cluster": {
                "server": self.url(), "certificate-authority": self.certificate(),
            } }],
            "users": [{ "name": "user", "user": { "token": token } }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "user" } }],
            "current-context": "lab",
        });
        fs::write(path, kubeconfig.to_string())
            .with_context(|| format!("writing {}", path.display()))
    }

    fn start_etcd(&mut self) -> Result<()> {
        let flags = format!(
            "--data-dir={} --unsafe-no-fsync --log-level=warn --listen-client-urls={ETCD} \
             --advertise-client-urls={ETCD} --listen-peer-urls=http://127.0.0.1:2380 \
             --initial-advertise-peer-urls=http://127.0.0.1:2380 \
             --initial-cluster=default=http://127.0.0.1:2380",
            self.directory.join("etcd").display()
        );
        self.start_program(Program::Etcd, &flags, &format!("{ETCD}/health"))
    }

    fn start_apiserver(&mut self) -> Result<()> {
        let pki = self.directory.join("pki");
        // No kube-proxy runs beside it, so it calls webhooks by the addresses of their pods.
        let flags = format!(
            "--enable-aggregator-routing=true --etcd-servers={ETCD} \
             --bind-address=:: --secure-port=6443 --advertise-address={SERVER} \
             --tls-cert-file={pki}/apiserver.crt --tls-private-key-file={pki}/apiserver.key \
             --client-ca-file={pki}/ca.crt --token-auth-file={tokens} \
             --authorization-mode=RBAC --allow-privileged=true \
             --service-account-issuer=https://kubernetes.default.svc \
             --service-account-key-file={pki}/sa.pub \
             --service-account-signing-key-file={pki}/sa.key \
             --service-cluster-ip-range=10.96.0.0/16,fd96::/112 --profiling=false",
            pki = pki.display(),
            tokens = self.directory.join("tokens.csv").display(),
        );
        self.start_program(Program::Apiserver, &flags, &format!("{}/readyz", self.url()))
    }

    fn start_controllers(&mut self) -> Result<()> {
        let flags = format!(
            "--kubeconfig={kubeconfig} --leader-elect=false --bind-address=127.0.0.1 \
             --controllers=endpointslice-controller,endpoints-controller,\
             serviceaccount-controller,namespace-controller,garbage-collector-controller,\
             root-ca-certificate-publisher-controller \
             --service-account-private-key-file={pki}/sa.key --root-ca-file={pki}/ca.crt \
             --concurrent-gc-syncs=2 --profiling=false",
            kubeconfig = self.kubeconfig().display(),
            pki = self.directory.join("pki").display(),
        );
        let health = "https://127.0.0.1:10257/healthz";
        self.start_program(Program::ControllerManager, &flags, health)
    }

    /// Starts a program of `kubelab` with flags that hold no blanks, and waits for a good answer
    /// from `health`.
    fn start_program(&mut self, program: Program, flags: &str, health: &str) -> Result<()> {
        let namespace = self.segment.namespace();
        let name = program.name();
        let mut command = namespace.command(&self.kubelab);
        command.arg(name).args(flags.split_whitespace());
        let mut process = namespace.spawn(name, command)?;
        let admin = format!("Authorization: Bearer {ADMIN_TOKEN}");
        wait_for(&format!("{name} is ready"), START_LIMIT, || {
            process.check_running()?;
            // Who answers is not in question here, inside the lab: hence --insecure.
            namespace.run(&["curl", "-fsS", "--insecure", "-m", "5", "-H", &admin, health])
        })
        .with_context(|| process.log_tail(20))?;
        self.processes.insert(program, process);
        Ok(())
    }
}

/// A node: a namespace on the segment with a Node object and a kube-proxy.
#[derive(Debug)]
pub struct Node {
    number: u8,
    name: String,
    namespace: Namespace,
    /// Ends with the node.
    _kube_proxy: Process,
    pods: u8,
}

impl Node {
    /// Node number 1 to 8, named `n1` to `n8`, ready for pods; kube-proxy may need a second more.
    ///
    /// # Errors
    /// When the number is taken or the API server refuses.
    pub fn join(lab: &Lab, cluster: &ControlPlane, number: u8) -> Result<Self> {
        let valid = 1..=MOST_NODES;
        ensure!(valid.contains(&number), "nodes are numbered {valid:?}, not {number}");
        let name = format!("n{number}");
        let namespace = lab.namespace(&name)?;
        cluster.segment.plug(End {
            namespace: &namespace,
            device: "eth0",
            mac: Some(&Self::mac_of(number)),
            addresses: &[&format!("10.99.0.1{number}/24"), &format!("fd99::1{number}/64")],
        })?;
        namespace.forward()?;
        // kube-proxy drops only what the node would have forwarded, so there must be a way out.
        namespace.add_route("default", SERVER)?;
        namespace.add_route("default", SERVER_V6)?;
        // The network that its pods are plugged into, as the simplest CNI plugin would make it.
        namespace.add_bridge("cni0")?;
        let gateways = [format!("10.244.{number}.1/24"), format!("fd44:0:0:{number}::1/64")];
        namespace.add_addresses("cni0", &gateways.each_ref().map(String::as_str))?;
        for other in (1..=MOST_NODES).filter(|other| *other != number) {
            namespace.add_route(&format!("10.244.{other}.0/24"), &format!("10.99.0.1{other}"))?;
            namespace.add_route(&format!("fd44:0:0:{other}::/64"), &format!("fd99::1{other}"))?;
        }
        let control = cluster.segment.namespace();
        control.add_route(&format!("10.244.{number}.0/24"), &format!("10.99.0.1{number}"))?;
        control.add_route(&format!("fd44:0:0:{number}::/64"), &format!("fd99::1{number}"))?;

        Self::write_object(cluster, number)?;
        let _kube_proxy = Self::start_kube_proxy(cluster, &namespace)?;
        Ok(Self { number, name, namespace, _kube_proxy, pods: 0 })
    }

    /// Its name, here and in Kubernetes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its processes run.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its IPv4 address on the segment.
    pub fn address(&self) -> String {
        format!("10.99.0.1{}", self.number)
    }

    /// The MAC address of its port on the segment.
    pub fn mac(&self) -> String {
        Self::mac_of(self.number)
    }

    fn mac_of(number: u8) -> String {
        format!("02:00:00:00:01:{number:02x}")
    }

    /// The Node object with the status that a kubelet would report.
    fn write_object(cluster: &ControlPlane, number: u8) -> Result<()> {
        let name = format!("n{number}");
        let (v4, v6) = (format!("10.244.{number}.0/24"), format!("fd44:0:0:{number}::/64"));
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "spec": { "podCIDR": v4, "podCIDRs": [v4, v6] },
        });
        cluster.apply(&node.to_string())?;
        let status = json!({ "status": {
            "addresses": [
                { "type": "InternalIP", "address": format!("10.99.0.1{number}") },
                { "type": "InternalIP", "address": format!("fd99::1{number}") },
                { "type": "Hostname", "address": name },
            ],
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
        } });
        let (object, patch) = (format!("node/{name}"), status.to_string());
        let arguments = ["patch", &object, "--subresource=status", "--type=merge", "-p", &patch];
        cluster.kubectl(&arguments).map(drop)
    }

    fn start_kube_proxy(cluster: &ControlPlane, namespace: &Namespace) -> Result<Process> {
        // A network namespace has no say in the limits of connection tracking: all of them 0,
        // "leave as it is", or kube-proxy ends.
        let flags = format!(
            "--kubeconfig={} --hostname-override={} --proxy-mode=nftables \
             --cluster-cidr=10.244.0.0/16,fd44::/56 --conntrack-max-per-core=0 \
             --conntrack-min=0 --conntrack-tcp-timeout-established=0 \
             --conntrack-tcp-timeout-close-wait=0 --bind-address=0.0.0.0 \
             --healthz-bind-address=0.0.0.0:10256 --metrics-bind-address=127.0.0.1:10249",
            cluster.proxy_kubeconfig().display(),
            namespace.name(),
        );
        let mut command = namespace.command(&cluster.kubelab);
        command.arg("kube-proxy").args(flags.split_whitespace());
        namespace.spawn("kube-proxy", command)
    }
}

/// What is said of a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodSpec<'a> {
    /// Its namespace in Kubernetes.
    pub namespace: &'a str,
    /// Its name, which is that of its network namespace in the lab too.
    pub name: &'a str,
    /// Its labels, which Services select by.
    pub labels: &'a [(&'a str, &'a str)],
    /// Those of its container, as in a manifest; Services may name them.
    pub ports: &'a [Value],
}

/// A pod: a namespace behind a node with a Pod object that is bound to it.
#[derive(Debug)]
pub struct Pod {
    namespace: Namespace,
    /// In Kubernetes: namespace and name.
    key: (String, String),
    address: IpAddr,
}

impl Pod {
    /// A pod on `node`, running but not yet [ready](Self::set_ready): first
    /// start what it should run, in [`namespace`](Self::namespace).
    ///
    /// # Errors
    /// When the name is taken or the API server refuses.
    pub fn run(
        lab: &Lab,
        cluster: &ControlPlane,
        node: &mut Node,
        PodSpec { namespace: kube_namespace, name, labels, ports }: PodSpec<'_>,
    ) -> Result<Self> {
        node.pods += 1;
        let (n, index) = (node.number, node.pods);
        let host = u16::from(index) + 1;
        let (v4, v6) = (format!("10.244.{n}.{host}"), format!("fd44:0:0:{n}::{host}"));
        let namespace = lab.namespace(name)?;
        let port = format!("veth{index}");
        connect(
            End {
                namespace: &namespace,
                device: "eth0",
                mac: None,
                addresses: &[&format!("{v4}/24"), &format!("{v6}/64")],
            },
            End { namespace: &node.namespace, device: &port, mac: None, addresses: &[] },
        )?;
        node.namespace.ip(&format!("link set {port} master cni0"))?;
        namespace.add_route("default", &format!("10.244.{n}.1"))?;
        namespace.add_route("default", &format!("fd44:0:0:{n}::1"))?;

        // Made by a controller some moments after its namespace; pods are refused before.
        wait_for("the default service account", START_LIMIT, || {
            cluster.get("serviceaccount", kube_namespace, "default")
        })?;
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": kube_namespace, "name": name, "labels": labels },
            "spec": {
                "nodeName": node.name,
                "containers": [{ "name": "main", "image": "none", "ports": ports }],
            },
        });
        cluster.apply(&pod.to_string())?;
        let key = (kube_namespace.to_owned(), name.to_owned());
        let this = Self { namespace, key, address: v4.parse()? };
        this.patch_status(
            cluster,
            &json!({ "phase": "Running", "podIP": v4, "podIPs": [{ "ip": v4 }, { "ip": v6 }] }),
        )?;
        Ok(this)
    }

    /// A pod as [`run`](Self::run) with a web server on port 8080 in it that answers every request
    /// with `POD CLIENT-ADDRESS`, and ready once that listens.
    ///
    /// # Errors
    /// As `run`, and when the server does not answer.
    pub fn run_backend(
        lab: &Lab,
        cluster: &ControlPlane,
        node: &mut Node,
        spec: PodSpec<'_>,
    ) -> Result<(Self, Process)> {
        let pod = Self::run(lab, cluster, node, spec)?;
        let mut command = pod.namespace.command("python3");
        command.arg(Path::new(HERE).join("kube/backend.py")).args([spec.name, "8080"]);
        let mut process = pod.namespace.spawn("backend", command)?;
        wait_for("the backend answers", START_LIMIT, || {
            process.check_running()?;
            fetch(&pod.namespace, &format!("http://{}:8080/", pod.address))
        })?;
        pod.set_ready(cluster, Readiness::Ready)?;
        Ok((pod, process))
    }

    /// Where its processes run.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its IPv4 address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Reports what the kubelet's readiness probe would have found.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn set_ready(&self, cluster: &ControlPlane, readiness: Readiness) -> Result<()> {
        let status = match readiness {
            Readiness::Ready => "True",
            Readiness::NotReady => "False",
        };
        self.patch_status(
            cluster,
            &json!({ "conditions": [{ "type": "Ready", "status": status }] }),
        )
    }

    fn patch_status(&self, cluster: &ControlPlane, status: &Value) -> Result<()> {
        let (namespace, name) = (&self.key.0, &self.key.1);
        let (object, patch) = (format!("pod/{name}"), json!({ "status": status }).to_string());
        cluster
            .kubectl(&[
                "patch",
                &object,
                "--namespace",
                namespace,
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch,
            ])
            .map(drop)
    }
}

/// Whether a pod may get traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It may.
    Ready,
    /// It may not.
    NotReady,
}

/// The body that a URL leads to, over a connection of its own, as seen from a namespace.
///
/// # Errors
/// When there is none within 2 s, or the status is not a success.
pub fn fetch(from: &Namespace, url: &str) -> Result<String> {
    let body = from.run(&["curl", "-fsS", "--globoff", "--max-time", "2", url])?;
    Ok(body.trim().to_owned())
}

/// Builds a Go module of the tests, or finds it built: the path of the binary.
///
/// # Errors
/// When it does not build; why is on standard error.
pub fn build(module: &str) -> Result<PathBuf> {
    let script = Path::new(HERE).join(module).join("build.sh");
    let output = Command::new(&script)
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("starting {}", script.display()))?;
    if !output.status.success() {
        bail!("tests/{module}/build.sh failed ({})", output.status);
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
