//! Runs the checks of `tests::api_suite` against the API server that `KUBECONFIG` names, as a
//! program of its own so that a test can run it inside a network namespace. It leaves the server
//! as it was, except that our CustomResourceDefinitions are there afterwards.

use std::process::ExitCode;

use anyhow::Result;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let results = tests::api_suite::run(kube::Client::try_default().await?).await?;
    let mut failed = 0;
    for (name, result) in &results {
        match result {
            Ok(()) => println!("{name}: ok"),
            Err(error) => {
                failed += 1;
                println!("{name}: {error:#}");
            }
        }
    }
    println!("{} checks, {failed} failed", results.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
