//! `kvbench`: what an operation costs here, and what it costs elsewhere. `docs/performance.md` says how figures come about.
//!
//! Modules in reading order: [`system`] is what can be measured, with its implementations in `servers` and `target`, and
//! `inside` and `disk`, which have none; `load` what is asked of it; `measure` and `stats` what is made of that; [`bed`] is a
//! system with its records; `commands` and `report` put all together.

mod bed;

mod chance;

mod cli;

mod commands;

mod disk;

mod inside;

mod load;

mod measure;

mod report;

mod servers;

mod stats;

mod system;

mod target;

/// The echo's messages and service.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::pedantic,
    reason = "generated"
)]
mod proto {
    tonic::include_proto!("kvbench");
}

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    // Not for this thread, whose priority the servers inherit that it starts.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(load::go_first)
        .build();
    let result = runtime
        .context("cannot start threads")
        .and_then(|runtime| runtime.block_on(commands::run(cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
