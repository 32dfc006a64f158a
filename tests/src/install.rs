//! Berth on the control plane of [`kube`](crate::kube): `deploy/install.yaml`, and its programs run
//! as their workloads say. What a kubelet would do, this does: it looks up the environment, mounts
//! volumes, and takes away user and capabilities.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use netlab::{Lab, Namespace, Process, wait_for};
use serde_json::Value;

use crate::kube::{ControlPlane, Node, Pod, PodSpec, Readiness, fetch};

/// Where everything of ours lives.
pub const NAMESPACE: &str = "metallb-system";
/// For anything that Kubernetes or Berth does by itself. Most take well under a second.
pub const LIMIT: Duration = Duration::from_secs(30);
/// A rule between two fields, which the schema states as a CEL expression.
pub const BAD_ADVERTISEMENT: &str = r"
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: bad, namespace: metallb-system}
spec: {aggregationLength: 24, serviceSelectors: [{matchLabels: {app: web}}]}
";
/// Addresses of the nodes' network, announced there.
pub const POOL: &str = r#"
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan, namespace: metallb-system}
spec: {addresses: [10.99.0.200-10.99.0.219, "fd99::200-fd99::219"]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan, namespace: metallb-system}
spec: {ipAddressPools: [lan]}
"#;

/// Applies `deploy/install.yaml` and waits until the API server knows all our kinds.
///
/// # Errors
/// When the API server refuses something, or a kind is missing.
pub fn install(cluster: &ControlPlane) -> Result<()> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/install.yaml");
    let manifest =
        fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
    cluster.apply(&manifest)?;
    let crds = cluster.kubectl(&["get", "crd", "--output=name"])?;
    let crds: Vec<_> = crds.lines().filter(|name| name.ends_with(".metallb.io")).collect();
    ensure!(crds.len() == 10, "install.yaml brings all kinds: {crds:?}");
    let mut wait = vec!["wait", "--for=condition=Established", "--timeout=30s"];
    wait.extend(&crds);
    cluster.kubectl(&wait).map(drop)
}

/// Where a pod of ours runs, as the downward API tells it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The name of the pod.
    pub pod: &'a str,
    /// The name of its node.
    pub node: &'a str,
    /// Its own address, which is the node's where it uses the host's network.
    pub address: &'a str,
}

/// The one container of a Deployment or DaemonSet in [`NAMESPACE`].
#[derive(Debug)]
pub struct Workload {
    account: String,
    program: PathBuf,
    labels: BTreeMap<String, String>,
    pod: Value,
    container: Value,
}

impl Workload {
    /// The workload `kind/name` of a cluster that has been [installed](install); its program is
    /// `berth-NAME` in the folder `programs`.
    ///
    /// # Errors
    /// When there is no such workload.
    pub fn of(cluster: &ControlPlane, kind: &str, name: &str, programs: &Path) -> Result<Self> {
        let workload = cluster.get(kind, NAMESPACE, name)?;
        let template = &workload["spec"]["template"];
        let labels = serde_json::from_value(template["metadata"]["labels"].clone())?;
        let pod = template["spec"].clone();
        let container = pod["containers"][0].clone();
        let account = pod["serviceAccountName"].as_str().context("serviceAccountName")?.to_owned();
        let program = programs.join(format!("berth-{name}"));
        ensure!(program.is_file(), "there is no program {}", program.display());
        Ok(Self { account, program, labels, pod, container })
    }

    /// The labels of its pods.
    pub fn labels(&self) -> Vec<(&str, &str)> {
        self.labels.iter().map(|(key, value)| (&**key, &**value)).collect()
    }

    /// The ports of its container.
    pub fn ports(&self) -> &[Value] {
        self.container["ports"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The program as the container would run it in `namespace`, with a token that is good for an
    /// hour.
    ///
    /// # Errors
    /// When the manifest asks for what this kubelet does not know.
    pub fn command(
        &self,
        lab: &Lab,
        cluster: &ControlPlane,
        namespace: &Namespace,
        place: Place<'_>,
    ) -> Result<Command> {
        // Where others may read it: the build folder may be closed to the user it runs as.
        let program = lab.directory().join(self.program.file_name().context("a program")?);
        if !program.exists() {
            fs::copy(&self.program, &program)?;
        }
        self.prepare(lab, &program)?;
        let mut command = namespace.command("setpriv");
        command.args(self.privileges(&self.container)).arg("--").arg(&program);
        for argument in self.container["args"].as_array().into_iter().flatten() {
            command.arg(argument.as_str().context("args are strings")?);
        }
        for variable in self.container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().context("a variable has a name")?;
            command.env(name, self.value(lab, variable, place)?);
        }
        command.env("KUBECONFIG", cluster.kubeconfig_of(NAMESPACE, &self.account)?);
        Ok(command)
    }

    /// What is done before the container starts: directories of the node are made, and the init
    /// containers run, which are of the same image. The image's program has a capability if the
    /// container asks for one that it gets no other way.
    fn prepare(&self, lab: &Lab, program: &Path) -> Result<()> {
        if self.container["securityContext"]["allowPrivilegeEscalation"] == true {
            run(Command::new("setcap").arg("cap_net_raw,cap_net_bind_service=p").arg(program))?;
        }
        for volume in self.pod["volumes"].as_array().into_iter().flatten() {
            if let (Some(name), true) = (volume["name"].as_str(), volume["hostPath"].is_object()) {
                fs::create_dir_all(lab.directory().join(name))?;
            }
        }
        for container in self.pod["initContainers"].as_array().into_iter().flatten() {
            let mut command = Command::new("setpriv");
            command.args(self.privileges(container)).arg("--").arg(program);
            for argument in container["args"].as_array().into_iter().flatten() {
                let argument = argument.as_str().context("args are strings")?;
                command.arg(mounted(lab, container, argument)?);
            }
            run(&mut command)?;
        }
        Ok(())
    }

    /// The user and the capabilities of the security contexts, in setpriv's words.
    fn privileges(&self, container: &Value) -> Vec<String> {
        let context = &container["securityContext"];
        let id = |field: &str| {
            let contexts = [context, &self.pod["securityContext"]];
            contexts.into_iter().find_map(|context| context[field].as_u64())
        };
        let user = id("runAsUser").unwrap_or(0);
        let group = id("runAsGroup").unwrap_or(0);
        let mut capabilities = "-all".to_owned();
        for capability in context["capabilities"]["add"].as_array().into_iter().flatten() {
            capabilities +=
                &format!(",+{}", capability.as_str().unwrap_or_default().to_lowercase());
        }
        let mut words = vec![
            format!("--reuid={user}"),
            format!("--regid={group}"),
            id("fsGroup")
                .map_or_else(|| "--clear-groups".to_owned(), |more| format!("--groups={more}")),
            format!("--bounding-set={capabilities}"),
            "--inh-caps=-all".to_owned(),
        ];
        if context["allowPrivilegeEscalation"] == false {
            words.push("--no-new-privs".to_owned());
        }
        words
    }

    fn value(&self, lab: &Lab, variable: &Value, place: Place<'_>) -> Result<String> {
        if let Some(value) = variable["value"].as_str() {
            return mounted(lab, &self.container, value);
        }
        let path = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        match path.with_context(|| format!("a source of {variable}"))? {
            "metadata.namespace" => Ok(NAMESPACE.to_owned()),
            "metadata.name" => Ok(place.pod.to_owned()),
            "spec.nodeName" => Ok(place.node.to_owned()),
            "status.podIP" | "status.hostIP" => Ok(place.address.to_owned()),
            other => bail!("this kubelet does not know the field {other}"),
        }
    }
}

/// A path in a container as it is outside of it; whatever is none stays as it is.
fn mounted(lab: &Lab, container: &Value, value: &str) -> Result<String> {
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        if mount["mountPath"] == value {
            let volume = mount["name"].as_str().context("a mount names its volume")?;
            return Ok(lab.directory().join(volume).to_string_lossy().into_owned());
        }
    }
    Ok(value.to_owned())
}

/// Runs a program to its end.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(())
}

/// A controller in a pod, as the Deployment would make it.
#[derive(Debug)]
pub struct Controller {
    workload: Workload,
    node: String,
    pod: Pod,
    /// `None` while it is killed.
    process: Option<Process>,
}

impl Controller {
    /// Starts it on a node, and waits until it is ready and its pod said to be.
    ///
    /// # Errors
    /// When the API server refuses, or it does not get ready.
    pub fn start(
        lab: &Lab,
        cluster: &ControlPlane,
        node: &mut Node,
        programs: &Path,
    ) -> Result<Self> {
        let workload = Workload::of(cluster, "deployment", "controller", programs)?;
        let (labels, ports) = (&workload.labels(), workload.ports());
        let spec = PodSpec { namespace: NAMESPACE, name: "controller", labels, ports };
        let pod = Pod::run(lab, cluster, node, spec)?;
        let node = node.name().to_owned();
        let mut this = Self { workload, node, pod, process: None };
        this.restart(lab, cluster)?;
        this.pod.set_ready(cluster, Readiness::Ready)?;
        Ok(this)
    }

    /// Ends it without a word. Its pod is still said to be ready.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.check_running()?;
        self.process = None;
        Ok(())
    }

    /// Starts it once more in its pod, after it was killed.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self, lab: &Lab, cluster: &ControlPlane) -> Result<()> {
        let address = self.pod.address().to_string();
        let namespace = self.pod.namespace();
        let place = Place { pod: namespace.name(), node: &self.node, address: &address };
        let command = self.workload.command(lab, cluster, namespace, place)?;
        let process = namespace.spawn("berth-controller", command)?;
        until_ready(namespace, self.process.insert(process))
    }

    /// It runs.
    ///
    /// # Errors
    /// When it does not, with the tail of its log.
    pub fn check_running(&mut self) -> Result<()> {
        self.process.as_mut().context("it was killed")?.check_running()
    }
}

/// Waits until a controller that runs in `namespace` says that it is ready.
///
/// # Errors
/// When it has ended, or says that it is not.
pub fn until_ready(namespace: &Namespace, controller: &mut Process) -> Result<()> {
    wait_for("the controller is ready", LIMIT, || {
        controller.check_running()?;
        fetch(namespace, "http://127.0.0.1:17472/readyz").map(drop)
    })
}

/// What `kubectl get service` shows under EXTERNAL-IP once there is one: an IPv4 and an IPv6
/// address of [`POOL`].
///
/// # Errors
/// When there is none.
pub fn external_addresses(
    cluster: &ControlPlane,
    namespace: &str,
    name: &str,
) -> Result<[String; 2]> {
    wait_for(&format!("{namespace}/{name} has its external addresses"), LIMIT, || {
        let table = cluster.kubectl(&["get", "service", name, "--namespace", namespace])?;
        let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let (Some(head), Some(row)) = (rows.next(), rows.next()) else { bail!("{table}") };
        let column = head.iter().position(|title| *title == "EXTERNAL-IP");
        let cell = column.and_then(|column| row.get(column)).with_context(|| table.clone())?;
        let (v4, v6) = cell.split_once(',').with_context(|| table.clone())?;
        ensure!(v4.starts_with("10.99.0.2") && v6.starts_with("fd99::2"), table);
        Ok([v4.to_owned(), v6.to_owned()])
    })
}

/// No program of ours asked for anything that its role does not grant.
///
/// # Errors
/// The line of a log that says otherwise.
pub fn refused_nothing(lab: &Lab) -> Result<()> {
    for log in logs(lab)? {
        let text = fs::read_to_string(&log)?;
        let refusal = text.lines().find(|line| line.to_lowercase().contains("forbidden"));
        ensure!(refusal.is_none(), "{}: {}", log.display(), refusal.unwrap_or_default());
    }
    Ok(())
}

/// The logs of our programs.
fn logs(lab: &Lab) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(lab.directory())?.map(|entry| entry.map(|entry| entry.path()));
    let files = files.collect::<std::io::Result<Vec<_>>>()?;
    let ours = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.contains("berth-") && name.ends_with(".log")
    };
    Ok(files.into_iter().filter(ours).collect())
}

/// Runs a test in a new lab; when it fails, says so with the ends of all logs.
pub fn in_lab(test: impl FnOnce(&Lab) -> Result<()>) {
    let lab = Lab::new().unwrap();
    match test(&lab) {
        Ok(()) => lab.close().unwrap(),
        Err(error) => panic!("{error:#}\n{}", lab.log_tails(25)),
    }
}
