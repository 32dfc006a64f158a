//! `berth demo` as a stranger runs it, to its end: the real programs, the real kernel, a real router if one is
//! installed. Needs root, or a kernel that lets anybody have a user namespace.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use serde_json::Value;

#[test]
fn the_demo_sees_every_step_work_and_leaves_nothing() {
    let program = tests::programs::built().unwrap().join("berth");
    let demo = Command::new(program)
        .args(["demo", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let prefix = format!("berth-{}-", demo.id());
    let output = demo.wait_with_output().unwrap();
    let story = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{story}", output.status);

    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps = results["steps"].as_array().unwrap();
    assert!(steps.len() >= 9, "{steps:#?}");
    let seen = |text: &str| steps.iter().any(|step| step["seen"].as_str().unwrap().contains(text));
    for text in [
        "10.0.0.200",
        "fd00:a::200",
        "ServiceL2Status says n",
        "ingress-nginx 10.0.0.",
        "others kept theirs",
        "took over",
    ] {
        assert!(seen(text), "no step tells of {text}:\n{story}");
    }
    for measurement in results["measurements"].as_array().unwrap() {
        let milliseconds = measurement["max"].as_f64().unwrap();
        // A wide bound: the machine may be busy. The figures themselves are for `make bench`.
        assert!((0.0..5000.0).contains(&milliseconds), "{measurement}");
    }
    let namespaces = Command::new("ip").args(["netns", "list"]).output().unwrap().stdout;
    let namespaces = String::from_utf8(namespaces).unwrap();
    assert!(!namespaces.contains(&prefix), "left over: {namespaces}");
}
