//! `dynamo-operator`: runs the operator, or prints its CRD.

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};
use dynamo_operator::{
    crd::definition::definition_yaml,
    run::{Settings, run},
    telemetry,
};
use tokio::signal::unix::{SignalKind, signal};

/// Makes DynamoCluster objects true on a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(name = "dynamo-operator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the operator until SIGTERM.
    Run(Settings),
    /// Prints the CustomResourceDefinition.
    Crd {
        /// Writes it to crds/ and to the chart instead; to be run in the repository's top folder.
        #[arg(long)]
        write: bool,
    },
}

/// Where `crd --write` writes.
const CRD_FILES: [&str; 2] = [
    "crds/dynamoclusters.yaml",
    "charts/dynamo-operator/files/crds/dynamoclusters.yaml",
];

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(settings) => start(settings),
        Command::Crd { write } => crd(write),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dynamo-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: Settings) -> anyhow::Result<()> {
    telemetry::init_logging(settings.log_format, &settings.log_level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(settings, terminated()))
}

fn crd(write: bool) -> anyhow::Result<()> {
    let text = definition_yaml()?;
    if !write {
        print!("{text}");
        return Ok(());
    }
    for file in CRD_FILES {
        let path = Path::new(file);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, &text)?;
        eprintln!("wrote {file}");
    }
    Ok(())
}

/// Completes on SIGTERM or SIGINT.
async fn terminated() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals; stop with SIGKILL only");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: stopping"),
        _ = int.recv() => tracing::info!("SIGINT: stopping"),
    }
}
