//! What each command does.

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::{
    cli::{self, Cli, Commands},
    failure::Failure,
    output::{self, Output},
};

mod kv;

mod update;

mod everyone;

mod cluster;

mod status;

mod upkeep;

mod salvage;

mod buckets;

mod assign;

mod change;

mod import;

mod export;

mod bench;

/// Runs the command that was asked for.
pub(crate) async fn run(cli: &Cli, output: Output) -> Result<ExitCode, Failure> {
    let global = &cli.global;
    match &cli.command {
        Commands::Put(put) => kv::put(global, put, output).await?,
        Commands::Get(get) => kv::get(global, get, output).await?,
        Commands::Delete(delete) => kv::delete(global, delete, output).await?,
        Commands::Update(update) => update::update(global, update, output).await?,
        Commands::Ring(ring) => cluster::ring(global, ring, output).await?,
        Commands::Members(_) => cluster::members(global, output).await?,
        Commands::PreferenceList(list) => cluster::preference_list(global, list, output).await?,
        Commands::Status(status) => return status::status(global, status, output).await,
        Commands::Inspect(inspect) => cluster::inspect(global, inspect, output).await?,
        Commands::Locate(locate) => buckets::locate(global, locate, output).await?,
        Commands::Hints(hints) => return upkeep::hints(global, hints, output).await,
        Commands::Exchanges(exchanges) => return upkeep::exchanges(global, exchanges, output).await,
        Commands::Repair(repair) => return upkeep::repair(global, repair, output).await,
        Commands::AcceptLoss(loss) => return upkeep::accept_loss(global, loss, output).await,
        Commands::Salvage(options) => return salvage::salvage(global, options, output).await,
        Commands::Tasks(tasks) => return upkeep::tasks(global, tasks, output).await,
        Commands::Bucket(bucket) => buckets::bucket(global, bucket, output).await?,
        Commands::Change(change) => return change::change(global, change, output).await,
        Commands::BenchLite(bench) => bench::run(global, bench, output).await?,
        Commands::Import(import) => return import::run(global, import, output).await,
        Commands::Export(export) => return export::run(global, export, output).await,
        Commands::Bootstrap(bootstrap) => assign::bootstrap(global, bootstrap, output).await?,
        Commands::Join(join) => assign::join(global, join, output).await?,
        Commands::Completion(completion) => {
            let program = std::env::args_os().next().unwrap_or_default();
            let mut command = cli::named(Cli::command(), &program);
            let name = command.get_name().to_owned();
            let mut script = Vec::new();
            clap_complete::generate(completion.shell, &mut command, name, &mut script);
            output::write(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
