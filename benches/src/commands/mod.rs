//! The subcommands: `run` one system, `pair` two of them, `best` one at many concurrencies, `parts` what ours are made of.

mod best;

mod pair;

mod parts;

mod run;

use anyhow::Result;

use crate::{
    cli::{Cli, Command},
    rocks, servers,
};

pub(crate) use pair::Outcome;
pub(crate) use parts::Judged;

pub(crate) async fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run(options) => run::run(&options).await,
        Command::Pair(options) => pair::run(&options).await,
        Command::Best(options) => best::run(&options).await,
        Command::Parts(options) => parts::run(&options).await,
        Command::ServeEcho => servers::echo::serve().await,
        Command::DriveRocks { job } => rocks::drive_rocks(&job).await,
    }
}
