//! `dynamo-loader`: puts load on a cluster from within, and looks for what was acknowledged. For tests only.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use dynamo_client::Client;
use dynamo_e2e::{
    records,
    report::Line,
    wait::{self, Look},
    workload,
    writers::{self, Plan},
};

/// Puts load on a Dynamo cluster and looks for what was acknowledged; prints a JSON object per line.
#[derive(Debug, Parser)]
#[command(name = "dynamo-loader", version)]
struct Cli {
    /// host:port of any node, or of the Service.
    #[arg(long)]
    endpoint: String,
    /// Of an operation, with all that the client tries again.
    #[arg(long, global = true, default_value_t = 2)]
    deadline_s: u64,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Puts every record, and reads all back.
    Load(Records),
    /// Reads every record.
    Verify(Records),
    /// Writes, reads and updates at a steady rate, and looks for every acknowledged write at the end.
    Steady {
        /// Where to write.
        #[arg(long, default_value = "steady")]
        bucket: String,
        /// How long.
        #[arg(long)]
        seconds: u64,
        /// Operations per second.
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// Operations at once.
        #[arg(long, default_value_t = 8)]
        workers: u32,
        /// Seconds after the start at which to look for every acknowledged write as well.
        #[arg(long, value_delimiter = ',')]
        verify_at: Vec<u64>,
    },
    /// Writes until the key `signal` of the bucket `soak-keys` says `stop`, and judges the history when it says `judge`.
    History {
        /// Same seed, same choices.
        #[arg(long)]
        seed: u64,
        /// Keys, and a tenth as many counters.
        #[arg(long, default_value_t = 1000)]
        keys: u64,
        /// Operations per second.
        #[arg(long, default_value_t = 60)]
        rate: u32,
        /// Operations at once.
        #[arg(long, default_value_t = 8)]
        writers: u32,
    },
}

#[derive(Debug, clap::Args)]
struct Records {
    /// One record a line: key, tab, value.
    #[arg(long)]
    file: PathBuf,
    /// Where they are.
    #[arg(long)]
    bucket: String,
    /// Only the first so many.
    #[arg(long)]
    first: Option<usize>,
}

impl Records {
    fn read(&self) -> anyhow::Result<Vec<records::Record>> {
        let text = std::fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        let mut records = records::decode(&text)?;
        records.truncate(self.first.unwrap_or(usize::MAX));
        Ok(records)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dynamo-loader: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let client = wait::until("the cluster tells its ring", Duration::from_secs(30), || async {
        let builder = Client::builder().endpoint(&cli.endpoint);
        Ok(Look::Done(
            builder
                .deadline(Duration::from_secs(cli.deadline_s))
                .connect()
                .await?,
        ))
    })
    .await?;
    match cli.mode {
        Mode::Load(of) => {
            let (client, records) = (client.with_bucket(&of.bucket), of.read()?);
            workload::load(&client, &records).await.print();
            workload::verify(&client, &records).await.print();
        }
        Mode::Verify(of) => {
            let line: Line = workload::verify(&client.with_bucket(&of.bucket), &of.read()?).await;
            line.print();
        }
        Mode::Steady {
            bucket,
            seconds,
            rate,
            workers,
            verify_at,
        } => {
            let steady = workload::Steady {
                length: Duration::from_secs(seconds),
                rate,
                workers,
                verify_at: verify_at.into_iter().map(Duration::from_secs).collect(),
            };
            workload::steady(client.with_bucket(&bucket), steady)
                .await
                .print();
        }
        Mode::History {
            seed,
            keys,
            rate,
            writers,
        } => {
            let plan = Plan {
                seed,
                keys,
                rate,
                writers,
            };
            writers::run(&client, &plan).await.print();
        }
    }
    Ok(())
}
