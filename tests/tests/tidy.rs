//! The rules of this repository that a compiler does not hold: who may import whom, where the outside world may be
//! named, no lost files, no stale ones, no left-overs.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each crate, where it lies, and the crates of ours that it may import.
const CRATES: [(&str, &str, &[&str]); 12] = [
    ("crds", "crds", &[]),
    ("config", "config", &["crds"]),
    ("shell", "config/shell", &["config", "crds"]),
    ("ownership", "speaker/ownership", &[]),
    ("layer2", "speaker/layer2", &["ownership"]),
    ("bgp", "speaker/bgp", &[]),
    ("bfd", "speaker/bfd", &[]),
    ("controller", "controller", &["config", "crds", "shell"]),
    ("speaker", "speaker", &["bfd", "bgp", "config", "crds", "layer2", "ownership", "shell"]),
    ("apiserver", "cli/apiserver", &["config", "crds"]),
    ("netlab", "cli/netlab", &[]),
    (
        "cli",
        "cli",
        &["apiserver", "config", "controller", "crds", "netlab", "ownership", "shell", "speaker"],
    ),
];

/// Crates without threads, sockets and clocks.
const PURE: [&str; 6] = ["crds", "config", "ownership", "layer2", "bgp", "bfd"];

/// Crates that know nothing of Kubernetes either.
const PROTOCOLS: [&str; 4] = ["ownership", "layer2", "bgp", "bfd"];

/// What gives a crate threads, sockets or a kernel.
const IMPURE: [&str; 10] = [
    "tokio",
    "tokio-util",
    "socket2",
    "rtnetlink",
    "netlink-sys",
    "nix",
    "libc",
    "hyper",
    "hyper-util",
    "axum",
];

/// How code names the outside world.
const OUTSIDE: [&str; 9] = [
    "tokio",
    "kube::Client",
    "socket2",
    "libc::",
    "Instant::now",
    "SystemTime::now",
    "std::thread",
    "TcpStream",
    "UdpSocket",
];

#[test]
fn crates_import_only_whom_they_may() {
    let ours: BTreeSet<&str> = CRATES.iter().map(|(name, ..)| *name).chain(["tests"]).collect();
    let mut wrong = Vec::new();
    for (name, folder, allowed) in CRATES {
        for dependency in dependencies(folder) {
            let dependency = dependency.as_str();
            if ours.contains(dependency) && !allowed.contains(&dependency) {
                wrong.push(format!("{name} imports {dependency}"));
            }
            let kubernetes = ["kube", "k8s-openapi"].contains(&dependency);
            if PURE.contains(&name) && IMPURE.contains(&dependency)
                || PROTOCOLS.contains(&name) && kubernetes
            {
                wrong.push(format!("{name} is pure and depends on {dependency}"));
            }
        }
    }
    assert_none("wrong dependencies", &wrong);
}

#[test]
fn every_crate_is_in_the_table_above() {
    let manifest = read(&root().join("Cargo.toml"));
    let members = manifest.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    let members: BTreeSet<&str> = members.split('"').skip(1).step_by(2).collect();
    let table: BTreeSet<&str> =
        CRATES.iter().map(|(_, folder, _)| *folder).chain(["tests"]).collect();
    assert_eq!(members, table);
}

#[test]
fn only_shells_name_the_outside_world() {
    let mut wrong = Vec::new();
    for (name, folder, _) in CRATES {
        let is_shell: fn(&str) -> bool = match name {
            pure if PURE.contains(&pure) => |path| path.contains("/src/bin/"),
            "controller" | "speaker" => {
                |path| path.contains("/src/io/") || path.ends_with("/src/main.rs")
            }
            // Shells altogether.
            _ => continue,
        };
        for file in sources(&root().join(folder).join("src")) {
            let path = relative(&file);
            if is_shell(&path) || is_only_for_tests(&file) {
                continue;
            }
            for (number, line) in code(&read(&file)) {
                for name in OUTSIDE.iter().filter(|name| line.contains(*name)) {
                    wrong.push(format!("{path}:{number} names {name}"));
                }
            }
        }
    }
    assert_none("the outside world in a core", &wrong);
}

#[test]
fn one_file_of_the_api_server_listens() {
    let mut wrong = Vec::new();
    for file in sources(&root().join("cli/apiserver/src")) {
        let path = relative(&file);
        let named = code(&read(&file)).iter().any(|(_, line)| line.contains("tokio::net"));
        if named && path != "cli/apiserver/src/tcp.rs" {
            wrong.push(path);
        }
    }
    assert_none("a socket outside cli/apiserver/src/tcp.rs", &wrong);
}

#[test]
fn every_source_file_belongs_to_a_crate() {
    let mut lost = Vec::new();
    for folder in CRATES.iter().map(|(_, folder, _)| *folder).chain(["tests"]) {
        for part in
            ["src", "src/bin", "tests", "benches"].map(|part| root().join(folder).join(part))
        {
            for file in sources(&part) {
                let is_root = match part.file_name().unwrap().to_str().unwrap() {
                    "src" => {
                        ["lib.rs", "main.rs"].map(|name| part.join(name)).contains(&file)
                            || file.parent() == Some(&part.join("bin"))
                    }
                    // A test of several files is a folder with a main.rs.
                    _ => {
                        let folder = if file.ends_with("main.rs") { file.parent() } else { None };
                        folder.unwrap_or(&file).parent() == Some(&part)
                    }
                };
                if !is_root && declaration(&file).is_none() {
                    lost.push(relative(&file));
                }
            }
        }
    }
    assert_none("files that no `mod` names", &lost);
}

#[test]
fn unsafe_code_is_explained_and_lies_in_the_speakers_shell() {
    let keyword = concat!("un", "safe ");
    let mut wrong = Vec::new();
    for file in sources(root()) {
        let (path, text) = (relative(&file), read(&file));
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let form = |form: &str| line.contains(&format!("{keyword}{form}"));
            if is_comment(line) || !["{", "fn", "impl", "extern"].into_iter().any(form) {
                continue;
            }
            let at = format!("{path}:{}", index + 1);
            if !path.starts_with("speaker/src/io/") {
                wrong.push(format!("{at} is not in speaker/src/io"));
            }
            let before = &lines[index.saturating_sub(8)..=index];
            if !before.iter().any(|line| line.contains("SAFETY:")) {
                wrong.push(format!("{at} does not say why it is sound (SAFETY:)"));
            }
        }
    }
    assert_none("unsafe code", &wrong);
}

#[test]
fn nothing_is_left_to_do_and_no_machine_is_named() {
    let forbidden = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("unimple", "mented!"),
        concat!("to", "do!("),
        concat!("#[ig", "nore"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
    ];
    let kinds = ["rs", "toml", "yaml", "md", "sh", "go", "py", "Makefile", "Dockerfile", "run"];
    let mut wrong = Vec::new();
    for file in files(root(), &kinds) {
        for (index, line) in read(&file).lines().enumerate() {
            for text in forbidden.iter().filter(|text| line.contains(*text)) {
                wrong.push(format!("{}:{} has {text}", relative(&file), index + 1));
            }
        }
    }
    assert_none("left-overs", &wrong);
}

#[test]
fn install_yaml_is_what_make_manifests_writes() {
    let base = files(&root().join("deploy/base"), &["yaml"]);
    let (first, rest): (Vec<_>, Vec<_>) =
        base.into_iter().partition(|file| relative(file).contains("/00-"));
    let crds = files(&root().join("deploy/crds"), &["yaml"]);
    assert_eq!(crds.len(), 10, "one definition a kind");
    let mut expected =
        "# Made by `make manifests` from deploy/base and deploy/crds. Do not edit.\n".to_owned();
    for part in first.iter().chain(&crds).chain(&rest) {
        expected.push_str("---\n");
        expected.push_str(&read(part));
    }
    let written = read(&root().join("deploy/install.yaml"));
    assert!(written == expected, "deploy/install.yaml is stale: run `make manifests`");
}

/// A test that no step of `make test` names would never run.
#[test]
fn every_integration_test_is_named_in_the_makefile() {
    let makefile = read(&root().join("Makefile"));
    let named: BTreeSet<&str> = makefile
        .split_whitespace()
        .zip(makefile.split_whitespace().skip(1))
        .filter(|(flag, _)| *flag == "--test")
        .map(|(_, name)| name)
        .collect();
    let mut lost = Vec::new();
    for (_, folder, _) in CRATES {
        let tests = root().join(folder).join("tests");
        let Ok(entries) = fs::read_dir(&tests) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let is_test = path.extension().is_some_and(|extension| extension == "rs");
            if is_test && !named.contains(name) && !name.starts_with("vectors") {
                lost.push(relative(&path));
            }
        }
    }
    assert_none("tests that `make test` does not run", &lost);
}

#[test]
fn what_a_repository_has_is_there() {
    for name in ["LICENSE", "README.md", "Makefile", "docs/ARCHITECTURE.md", ".ci/run"] {
        assert!(root().join(name).is_file(), "there is no {name}");
    }
    assert!(read(&root().join("LICENSE")).contains("Apache License"));
    assert!(read(&root().join("Cargo.toml")).contains("license = \"Apache-2.0\""));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn relative(file: &Path) -> String {
    file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// Every Rust file below a folder, if there is one.
fn sources(folder: &Path) -> Vec<PathBuf> {
    files(folder, &["rs"])
}

/// The files below a folder with these extensions (or whole names), in order; not what is built.
fn files(folder: &Path, kinds: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        let kind = path.extension().map_or(name, |extension| extension.to_str().unwrap());
        if path.is_dir() && ![".git", "target", "dist"].contains(&name) {
            found.extend(files(&path, kinds));
        } else if path.is_file() && kinds.contains(&kind) {
            found.push(path);
        }
    }
    found
}

/// The names in `[dependencies]`.
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = read(&root().join(folder).join("Cargo.toml"));
    let section = manifest.split_once("\n[dependencies]\n").map_or("", |(_, rest)| rest);
    let section = section.split("\n[").next().unwrap();
    let names = section.lines().filter_map(|line| line.split(['.', '=', ' ']).next());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The lines of code with their numbers: no comments, and nothing of the tests at the end.
fn code(text: &str) -> Vec<(usize, &str)> {
    let lines: Vec<&str> = text.lines().collect();
    let tests =
        lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1] == "mod tests {");
    let lines = lines.iter().take(tests.unwrap_or(lines.len())).enumerate();
    lines.filter(|(_, line)| !is_comment(line)).map(|(index, line)| (index + 1, *line)).collect()
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// How a file is declared as a module.
#[derive(Debug, PartialEq, Eq)]
enum Declared {
    Always,
    ForTests,
}

/// The `mod` that names a file, in the file of the module around it.
fn declaration(file: &Path) -> Option<Declared> {
    let (folder, name) = module(file);
    let around = [
        folder.join("mod.rs"),
        folder.join("lib.rs"),
        folder.join("main.rs"),
        folder.with_extension("rs"),
    ];
    around.iter().filter(|around| around.is_file()).find_map(|around| {
        let text = read(around);
        let lines: Vec<&str> = text.lines().collect();
        let at = lines.iter().position(|line| {
            let visible = ["pub ", "pub(crate) ", "pub(super) "];
            let line = line.trim_start();
            let line = visible.iter().find_map(|v| line.strip_prefix(v)).unwrap_or(line);
            line == format!("mod {name};")
        })?;
        let for_tests = at > 0 && lines[at - 1] == "#[cfg(test)]" || is_only_for_tests(around);
        Some(if for_tests { Declared::ForTests } else { Declared::Always })
    })
}

/// The folder whose module declares a file, and the file's own name in it.
fn module(file: &Path) -> (PathBuf, String) {
    let stem = file.file_stem().unwrap().to_str().unwrap().to_owned();
    let folder = file.parent().unwrap();
    if stem == "mod" {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        (folder.parent().unwrap().to_owned(), name)
    } else {
        (folder.to_owned(), stem)
    }
}

fn is_only_for_tests(file: &Path) -> bool {
    let name = file.file_name().unwrap();
    name != "lib.rs" && name != "main.rs" && declaration(file) == Some(Declared::ForTests)
}
