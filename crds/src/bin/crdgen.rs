//! `crdgen DIR` writes the CustomResourceDefinitions to a directory, one file a kind;
//! `crdgen --check DIR` only tells which files differ from what would be written.

use std::{fs, io, path::Path, process::ExitCode};

const DEFAULT_DIRECTORY: &str = "deploy/crds";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        [] => write(Path::new(DEFAULT_DIRECTORY)),
        ["--check"] => check(Path::new(DEFAULT_DIRECTORY)),
        ["--check", directory] => check(Path::new(directory)),
        [directory] if !directory.starts_with('-') => write(Path::new(directory)),
        _ => Err(format!("usage: crdgen [--check] [DIRECTORY]   (default: {DEFAULT_DIRECTORY})")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("crdgen: {message}");
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path) -> Result<(), String> {
    fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    for definition in crds::all() {
        let path = directory.join(crds::file_name(&definition));
        fs::write(&path, crds::to_yaml(&definition))
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn check(directory: &Path) -> Result<(), String> {
    let mut stale = Vec::new();
    for definition in crds::all() {
        let path = directory.join(crds::file_name(&definition));
        match fs::read_to_string(&path) {
            Ok(text) if text == crds::to_yaml(&definition) => {}
            Ok(_) => stale.push(path.display().to_string()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                stale.push(path.display().to_string());
            }
            Err(e) => return Err(format!("{}: {e}", path.display())),
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!(
        "stale: {}\nrun: cargo run -p crds --bin crdgen -- {}",
        stale.join(", "),
        directory.display()
    ))
}
