//! `dynamo-node`: parse, log, run, say how it ended.

use std::process::ExitCode;

use clap::Parser as _;
use dynamo_node::{Config, End, Flags, init_logging, run};
use tokio::signal::unix::{SignalKind, signal};

/// RocksDB holds its data; a supervisor starts the process again, and recovery reads what was synced.
const EXIT_STORAGE: u8 = 75;

fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("dynamo-node: {error}");
            return ExitCode::FAILURE;
        }
    };
    if flags.print_config {
        return print_config(&config);
    }
    if let Err(error) = init_logging(&config.log) {
        eprintln!("dynamo-node: {error:#}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(config, terminated())) {
        Ok(End::Stopped) => ExitCode::SUCCESS,
        Ok(End::StorageFailed(reason)) => {
            tracing::error!(reason, "the store failed; ending, so that it is opened anew");
            ExitCode::from(EXIT_STORAGE)
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot start");
            ExitCode::FAILURE
        }
    }
}

fn print_config(config: &Config) -> ExitCode {
    match serde_yaml::to_string(config) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dynamo-node: cannot print the configuration: {error}");
            ExitCode::FAILURE
        }
    }
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
