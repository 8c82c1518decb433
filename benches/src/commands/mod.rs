//! The subcommands: `run` one system, `pair` two of them, `best` one at many concurrencies, `parts` what ours are made of; and one
//! for each bar that none of these measures. `rounds` is what the latter have in common.

mod best;

mod join;

mod pair;

mod parts;

mod restart;

mod rounds;

mod run;

mod stall;

mod sync;

mod trees;

use anyhow::Result;

use crate::{
    cli::{Cli, Command},
    inside, servers,
};

pub(crate) use pair::{Compared, Outcome};
pub(crate) use rounds::{Judged, Round};

pub(crate) async fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run(options) => run::run(&options).await,
        Command::Pair(options) => pair::run(&options).await,
        Command::Best(options) => best::run(&options).await,
        Command::Parts(options) => parts::run(&options).await,
        Command::Sync(options) => sync::run(&options).await,
        Command::Join(options) => join::run(&options).await,
        Command::Trees(options) => trees::run(&options).await,
        Command::Restart(options) => restart::run(&options).await,
        Command::Stall(options) => stall::run(&options).await,
        Command::ServeEcho => servers::echo::serve().await,
        Command::DriveStore { job } => inside::drive_store(&job).await,
    }
}
