//! The main job, end to end, on a real Kubernetes: install, serve, lose pods and a zone, uninstall.
//!
//! Scenarios share one installed cluster and run in the order of [`SCENARIOS`]. Arguments choose those whose names contain
//! one of them; what these need runs too. Needs a cluster (`e2e/kind/up`, or any with `KUBECONFIG`) that has the images.

mod convergence;
mod data;
mod elastic;
mod hooks;
mod install;
mod laboratory;
mod outages;
mod placement;
mod sloppy;
mod specs;
mod zone_loss;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use dynamo_e2e::{cluster::Cluster, evidence, loader::Image, records};
use futures::future::LocalBoxFuture;

/// Seconds in which the lab compares partitions.
const ANTI_ENTROPY_S: u32 = 2;
/// Seconds that the lab keeps tombstones.
const GRACE_S: u32 = 1;

/// What scenarios share.
struct Suite {
    cluster: Cluster,
    image: Image,
    /// Records in the image.
    records: usize,
}

type Run = for<'a> fn(&'a Suite) -> LocalBoxFuture<'a, anyhow::Result<()>>;

/// Name, whether all that follow need it, and what it does.
type Scenario = (&'static str, bool, Run);

macro_rules! scenario {
    ($module:ident :: $name:ident) => {
        (stringify!($name), false, |suite| Box::pin($module::$name(suite)))
    };
    ($module:ident :: $name:ident, needed) => {
        (stringify!($name), true, |suite| Box::pin($module::$name(suite)))
    };
}

const SCENARIOS: [Scenario; 22] = [
    scenario!(install::helm_installs_the_operator, needed),
    scenario!(install::k1_ten_lines_become_a_ready_cluster, needed),
    scenario!(placement::k4_d30_members_and_replicas_are_spread_over_zones),
    scenario!(placement::k17_k32_nodes_are_restricted_and_have_no_token),
    scenario!(data::a_job_loads_real_records_and_reads_them_back, needed),
    scenario!(specs::k29_bad_specs_are_refused_with_help),
    scenario!(outages::k11_a_killed_pod_returns_with_its_data_and_the_same_ring),
    scenario!(zone_loss::x_zone_loss_costs_no_operation_and_no_write),
    scenario!(outages::k35_data_are_served_without_the_operator),
    scenario!(outages::k19_all_pods_deleted_at_once_return_with_the_data),
    scenario!(laboratory::a_lab_of_six_members_with_fault_hooks, needed),
    scenario!(hooks::the_release_image_has_no_fault_hooks),
    scenario!(sloppy::h_hints_outlive_their_holder_and_reach_their_owner),
    scenario!(sloppy::q_two_primaries_down_leave_writes_and_truth),
    scenario!(sloppy::f_a_one_way_cut_is_the_senders_business),
    scenario!(sloppy::z1_deleted_keys_stay_deleted_and_their_tombstones_go),
    scenario!(convergence::x_all_pods_of_a_zone_gone_cost_nothing),
    scenario!(convergence::a_lost_copies_are_found_among_ten_thousand_keys),
    scenario!(elastic::s_d24_k25_members_go_and_come_under_load),
    scenario!(laboratory::the_lab_goes_with_its_volumes),
    scenario!(install::k15_a_deleted_cluster_returns_with_its_volumes),
    scenario!(install::k15_uninstall_leaves_the_volumes),
];

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    if std::env::args().any(|word| word == "--list") {
        SCENARIOS
            .iter()
            .filter(|(name, ..)| chosen(name))
            .for_each(|(name, ..)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let last = SCENARIOS.iter().rposition(|(name, ..)| chosen(name));
    let scenarios: Vec<&Scenario> = SCENARIOS
        .iter()
        .enumerate()
        .filter(|(index, (name, needed, _))| chosen(name) || (*needed && Some(*index) < last))
        .map(|(_, scenario)| scenario)
        .collect();
    println!("\nrunning {} tests", scenarios.len());
    let began = Instant::now();
    let failed = run(&scenarios).await;
    let passed = scenarios.len() - failed.len();
    if !failed.is_empty() {
        println!("\nfailures:");
        for name in &failed {
            println!("    {name}");
        }
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        SCENARIOS.len() - scenarios.len(),
        began.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// Runs scenarios in order; returns the names of those that failed.
async fn run(scenarios: &[&Scenario]) -> Vec<&'static str> {
    let suite = match prepare().await {
        Ok(suite) => suite,
        Err(error) => {
            println!("cannot prepare: {error:#}");
            return scenarios.iter().map(|(name, ..)| *name).collect();
        }
    };
    let mut failed = Vec::new();
    let mut broken = None;
    for (name, needed, body) in scenarios {
        if let Some(broken) = broken {
            println!("test {name} ... FAILED (not run, for {broken} failed)");
            failed.push(*name);
            continue;
        }
        println!("test {name} ...");
        let began = Instant::now();
        let result = body(&suite).await;
        let seconds = began.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("test {name} ... ok ({seconds:.1} s)"),
            Err(error) => {
                println!("test {name} ... FAILED ({seconds:.1} s)\n    {error:#}");
                evidence::keep(&suite.cluster, &folder().join(name)).await;
                failed.push(*name);
                broken = needed.then_some(name);
            }
        }
    }
    failed
}

async fn prepare() -> anyhow::Result<Suite> {
    std::fs::remove_dir_all(folder()).ok();
    let cluster = Cluster::connect().await?;
    let began = Instant::now();
    let (source, records) = records::collect().await?;
    let image = Image::build(
        &cluster,
        env!("CARGO_BIN_EXE_dynamo-loader"),
        &records::encode(&records),
    )
    .await
    .context("cannot make the loader's image")?;
    told(&format!(
        "the loader has {} records from {source}; its image took {:.1} s",
        records.len(),
        began.elapsed().as_secs_f64()
    ));
    Ok(Suite {
        cluster,
        image,
        records: records.len(),
    })
}

/// Where evidence of failures goes.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e-evidence")
}

/// A line about the running scenario.
fn told(text: &str) {
    text.lines().for_each(|line| println!("    {line}"));
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
