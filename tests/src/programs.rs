//! The programs under test, as the sources are now.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// Builds `berth`, `berth-controller` and `berth-speaker` and returns their folder. A test that was
/// not started by cargo takes what lies beside it.
///
/// # Errors
/// When they do not build.
pub fn built() -> Result<PathBuf> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        // The very selection that the tests are built with: another one would have other features,
        // and compile half of the dependencies anew.
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--workspace", "--all-targets"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .status()?;
        ensure!(built.success(), "cargo build: {built}");
    }
    // The test itself lies in target/PROFILE/deps.
    let own = std::env::current_exe()?;
    Ok(own.ancestors().nth(2).context("the test lies in a build folder")?.to_owned())
}
