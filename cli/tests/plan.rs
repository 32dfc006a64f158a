//! `berth plan` as its users run it: exit status, messages, and the worked examples of
//! `docs/plan.md`, whose outputs are compared with what is printed.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use apiserver::{ApiServer, Options};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const POOL: &str = "\
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: a, namespace: metallb-system}
spec: {addresses: [192.0.2.1/32]}
";
const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, ports: [{port: 80}]}
";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn berth(arguments: &[&str], stdin: &str, kubeconfig: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_berth"))
        .arg("plan")
        .args(arguments)
        .current_dir(root())
        .env("KUBECONFIG", kubeconfig)
        .envs(["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].map(|name| (name, "")))
        .env_remove("METALLB_NAMESPACE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read it may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// Exit status, standard output, standard error.
fn plan(arguments: &[&str], stdin: &str) -> (i32, String, String) {
    plan_in("/nonexistent/kubeconfig", arguments, stdin)
}

fn plan_in(kubeconfig: &str, arguments: &[&str], stdin: &str) -> (i32, String, String) {
    let output = berth(arguments, stdin, kubeconfig);
    let text = |octets| String::from_utf8(octets).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A folder that is gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let folder = std::env::temp_dir().join(format!("berth-plan-{}-{name}", std::process::id()));
        for (file, text) in files {
            let file = folder.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Every ```console block of the documentation: `$ berth plan …`, what it prints to standard
/// output, and now and then `$ echo $?` with its exit status.
#[test]
fn the_documentation_shows_what_is_printed() {
    let text = fs::read_to_string(root().join("docs/plan.md")).unwrap();
    let blocks = text.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let (mut commands, mut status) = (0, 0);
    for step in blocks.flat_map(|block| block.split("$ ").skip(1)) {
        let (command, expected) = step.split_once('\n').unwrap();
        if command == "echo $?" {
            assert_eq!(expected.trim(), status.to_string(), "exit status in docs/plan.md");
            continue;
        }
        let arguments: Vec<&str> =
            command.strip_prefix("berth plan ").unwrap().split(' ').collect();
        let (code, found, complaints) = plan(&arguments, "");
        assert_eq!(found, expected, "{command} in docs/plan.md; it said:\n{complaints}");
        (commands, status) = (commands + 1, code);
    }
    assert!(commands >= 2, "the documentation has its examples");
}

#[test]
fn exit_status_says_how_it_went() {
    let bad = POOL.replace("192.0.2.1/32", "192.0.2.1");
    let both = format!("{POOL}---\n{SERVICE}");
    for (stdin, expected) in [
        (POOL, 0),
        (both.as_str(), 0),
        (SERVICE, 1),
        (bad.as_str(), 1),
        ("a: b: c", 2),
        ("\u{1}", 2),
        ("", 0),
    ] {
        let (code, stdout, stderr) = plan(&["-f", "-"], stdin);
        assert_eq!(code, expected, "{stdin:?}\n{stdout}{stderr}");
        assert_eq!(stdout.is_empty(), expected == 2, "{stdin:?}\n{stdout}");
    }
}

#[test]
fn unreadable_input_is_named() {
    let folder = Folder::new(
        "named",
        &[
            ("good.yaml", POOL),
            ("empty/readme.txt", "nothing"),
            ("deep/b.yml", &format!("{SERVICE}---\n{SERVICE}")),
            ("binary.yaml", "\u{0}\u{1}\u{2}"),
            ("syntax.json", "{\n\"a\": 1,\n\"b\" 2}\n"),
        ],
    );
    let at = |file: &str| format!("{}/{file}", folder.path());
    for (file, expected) in [
        (at("missing.yaml"), "missing.yaml: No such file or directory"),
        (at("empty"), "empty: there are no *.yaml, *.yml or *.json files in it"),
        (at("deep"), "deep/b.yml: document 2, line 6: Service default/web is already in"),
        (at("binary.yaml"), "binary.yaml: document 1, line 1: "),
        (at("syntax.json"), "syntax.json: document 1, line 3: "),
    ] {
        let (code, stdout, stderr) = plan(&["-f", &at("good.yaml"), "-f", &file], "");
        assert_eq!((code, stdout.as_str()), (2, ""), "{file}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{file}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    let (code, _, stderr) = plan(&["-f", "-", "-f", "-"], POOL);
    assert_eq!(code, 2, "{stderr}");
    let (code, _, stderr) = plan(&["--cluster"], "");
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn directories_are_read_with_all_below_them_but_nothing_hidden() {
    let folder = Folder::new(
        "walk",
        &[
            ("a/pool.yaml", POOL),
            (
                "a/b/service.json",
                "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"web\"},\"spec\":{\"type\":\"LoadBalancer\"}}",
            ),
            ("a/.hidden/pool.yaml", POOL),
            ("a/notes.txt", "a: b: c"),
        ],
    );
    let (code, stdout, stderr) = plan(&["-f", folder.path(), "-o", "json"], "");
    assert_eq!(code, 0, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["services"][0]["addresses"][0], "192.0.2.1");
}

#[test]
fn flags_are_those_of_the_controller() {
    let classed = SERVICE.replace("type:", "loadBalancerClass: berth, type:");
    let elsewhere = POOL.replace("metallb-system", "berth");
    let input = format!("{elsewhere}---\n{classed}");
    let (code, stdout, stderr) =
        plan(&["-f", "-", "--namespace", "berth", "--lb-class", "berth", "-o", "json"], &input);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let (code, stdout, _) = plan(&["-f", "-", "-o", "json"], &input);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 1);
    assert_eq!(report["errors"][0]["rule"], "WrongNamespace");
    assert_eq!(report["services"], json!([]));
}

#[test]
fn what_is_left_out_and_what_is_misspelt_is_said() {
    let input = format!(
        "{}---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: a}}\n",
        POOL.replace("spec: {", "spec: {autoAsign: false, ")
    );
    let (code, stdout, stderr) = plan(&["-f", "-"], &input);
    assert_eq!(code, 0);
    assert_eq!(stderr, "ignored: 1 Deployment\n");
    let expected = "warning: IPAddressPool metallb-system/a: unknown field \"spec.autoAsign\"\n";
    assert!(stdout.starts_with(expected), "{stdout}");
    let (_, stdout, stderr) = plan(&["-f", "-", "-o", "json"], &input);
    assert!(stderr.ends_with(expected), "{stderr}");
    serde_json::from_str::<Value>(&stdout).unwrap();
}

/// What there is counts, and what is applied in thought is not written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_planned_as_it_is_and_as_it_would_be() {
    let server = ApiServer::new(Options::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let api = server.clone();
    let serving = tokio::spawn(async move { api.serve(listener, std::future::pending()).await });
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "a",
        "clusters": [{"name": "a", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "users": [{"name": "a", "user": {}}],
    });
    let folder = Folder::new("cluster", &[("kubeconfig", &kubeconfig.to_string())]);
    let kubeconfig = format!("{}/kubeconfig", folder.path());
    let pool = |addresses: &str| {
        json!({"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
               "metadata": {"name": "a", "namespace": "metallb-system"},
               "spec": {"addresses": [addresses], "removalPolicy": "Refuse"}})
    };
    server.apply(&pool("192.0.2.1-192.0.2.2")).unwrap();
    for index in 0..600 {
        let name = format!("other-{index}");
        let plain = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                           "spec": {"ports": [{"port": 80}]}});
        server.apply(&plain).unwrap();
    }
    let web = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}}});
    server.apply(&web).unwrap();

    let run = |arguments: &'static [&'static str], stdin: String| {
        let kubeconfig = kubeconfig.clone();
        async move {
            let run = move || plan_in(&kubeconfig, arguments, &stdin);
            let (code, stdout, stderr) = tokio::task::spawn_blocking(run).await.unwrap();
            let report: Value =
                serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
            (code, report)
        }
    };
    let (code, report) = run(&["-o", "json"], String::new()).await;
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["services"].as_array().unwrap().len(), 1);
    assert_eq!(report["services"][0]["change"], "kept");

    let new = format!("{SERVICE}---\n{}", SERVICE.replace("name: web", "name: api"));
    let (code, report) = run(&["--cluster", "-f", "-", "-o", "json"], new).await;
    assert_eq!(code, 0, "{report}");
    let services = &report["services"];
    assert_eq!(
        (&services[0]["name"], &services[0]["addresses"][0]),
        (&json!("api"), &json!("192.0.2.1"))
    );
    assert_eq!(
        (&services[1]["change"], &services[1]["addresses"][0]),
        (&json!("kept"), &json!("192.0.2.2"))
    );
    assert!(server.get("v1", "Service", "default", "api").is_err(), "nothing is written");

    let smaller = pool("192.0.2.1/32").to_string();
    let (code, report) = run(&["--cluster", "-f", "-", "-o", "json"], smaller).await;
    assert_eq!(code, 1, "{report}");
    assert_eq!(report["errors"][0]["rule"], "AddressesHeld");
    assert_eq!(report["services"][0]["change"], "kept");
    serving.abort();
}
