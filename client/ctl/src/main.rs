//! `dynamoctl`: reads and writes a Dynamo cluster, and shows what it is made of.
//!
//! Also installed as `kubectl-dynamo`, which makes it `kubectl dynamo`. Exit codes: 0 done, 1 failed, 2 key not found,
//! 3 siblings where one value was asked for, 64 wrong usage.
//!
//! Modules in reading order: `cli` says what can be asked, `commands` does it, `values` and `formats` read and write
//! keys, values and records, `connect` reaches nodes, `output` prints, `failure` explains errors.

mod cli;

mod commands;

mod values;

mod formats;

mod connect;

mod output;

mod failure;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::{cli::Cli, failure::Failure, output::Output};

/// For a command line that cannot be understood (sysexits' EX_USAGE; 2 is taken by "not found").
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let command = cli::named(Cli::command(), &name);
    let parsed = command
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let output = Output::new(cli.global.output);
    match run(&cli, output) {
        Ok(code) => code,
        Err(failure) => {
            // A reader that went away, as `head` does, is no failure.
            if failure.is_broken_pipe() {
                return ExitCode::SUCCESS;
            }
            output.failure(&failure);
            ExitCode::from(failure.code())
        }
    }
}

fn run(cli: &Cli, output: Output) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("cannot start", error.to_string()))?;
    let result = runtime.block_on(Box::pin(commands::run(cli, output)));
    // Reading from a terminal cannot be interrupted: do not wait for it.
    runtime.shutdown_background();
    result
}
