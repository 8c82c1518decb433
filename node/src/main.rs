//! `dynamo-node`: parse, log, run, say how it ended.

use std::{num::NonZero, process::ExitCode};

use clap::Parser as _;
use dynamo_node::{Config, End, Flags, init_logging, run};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

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
    let runtime = match runtime(config.limits.threads) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        let stop = terminated()?;
        run(config, stop).await
    });
    match ended {
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

/// One thread alone needs no locks between those that serve, and no waking up of others.
fn runtime(threads: Option<usize>) -> std::io::Result<Runtime> {
    let processors = || std::thread::available_parallelism().map_or(1, NonZero::get);
    match threads.unwrap_or_else(processors) {
        1 => Builder::new_current_thread().enable_all().build(),
        threads => Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build(),
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

/// Completes on SIGTERM or SIGINT. Listens from the call on, not only once it is waited for: a signal that comes while the
/// node starts must stop it cleanly, too.
fn terminated() -> std::io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM: stopping"),
            _ = int.recv() => tracing::info!("SIGINT: stopping"),
        }
    })
}
