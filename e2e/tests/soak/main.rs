//! Random faults on a real Kubernetes for minutes, under writers whose history is judged at the end: every acknowledged value
//! is there or replaced by what has seen it, counters are exact, and all replicas are equal.
//!
//! First faults, for `SOAK_MINUTES` (30); then `SOAK_CHANGES` (40) changes of the number of members, with pods killed in between.
//! `SOAK_SEED` repeats the choices of a run, though not its timing.

use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use dynamo_client::Context;
use dynamo_e2e::{
    cluster::Cluster,
    evidence,
    lab::{Lab, Pace},
    loader::{Image, Loader},
    mischief::Fault,
    report::{Line, now_ms},
    wait::seconds,
    writers::{self, Chance},
};
use dynamo_proto::admin as pb;
use futures::TryStreamExt as _;

mod walk;

const NAME: &str = "no_acknowledged_write_is_lost_and_counters_are_exact";
const RELEASE: &str = "dynamo";
/// Tombstones stay for longer than any fault; see `spec.reaping.graceSeconds`.
const PACE: Pace = Pace {
    anti_entropy: 5,
    reaping: 10,
    grace: 120,
};

#[tokio::main]
async fn main() -> ExitCode {
    println!("\nrunning 1 test\ntest {NAME} ...");
    let began = Instant::now();
    let result = run().await;
    let failed = u8::from(result.is_err());
    if let Err(error) = result {
        println!("test {NAME} ... FAILED\n    {error:#}");
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        1 - failed,
        began.elapsed().as_secs_f64()
    );
    ExitCode::from(failed)
}

async fn run() -> anyhow::Result<()> {
    let minutes: u64 = number("SOAK_MINUTES")?.unwrap_or(30);
    let seed = number("SOAK_SEED")?.unwrap_or_else(now_ms);
    let changes = number("SOAK_CHANGES")?.unwrap_or(40);
    told(&format!("{minutes} minutes, {changes} changes, seed {seed}"));
    let cluster = Cluster::connect().await?;
    let image = Image::build(&cluster, env!("CARGO_BIN_EXE_dynamo-loader"), "").await?;
    install(&cluster).await?;
    let lab = Lab::of(&cluster);
    let result = soak(&lab, &image, minutes * 60, changes, seed).await;
    if result.is_err() {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("soak-evidence");
        evidence::keep(&lab.cluster, &folder).await;
    }
    result
}

async fn soak(lab: &Lab, image: &Image, length_s: u64, changes: u64, seed: u64) -> anyhow::Result<()> {
    lab.create(PACE).await?;
    let members = lab.members().await?;
    let asked = members.keys().next().context("no members")?;
    counters(lab, asked).await?;
    let safe_zone = members[asked].clone();
    let seed_text = seed.to_string();
    let args = ["history", "--seed", &seed_text];
    let loader = Loader::start(&lab.cluster, image, "history", &safe_zone, &args).await?;
    loader
        .seen("the writers write", seconds(60), |lines| {
            lines
                .iter()
                .any(|line| matches!(line, Line::Second { ops: 1.., .. }))
        })
        .await?;
    let kinds = mischief(lab, &safe_zone, Duration::from_secs(length_s), seed).await?;
    walk::walk(lab, changes, seed).await?;
    signal(lab, asked, writers::STOP).await?;
    let lines = loader
        .seen("the writers stop", seconds(60), |lines| {
            lines.iter().any(|line| matches!(line, Line::Stopped { .. }))
        })
        .await?;
    lab.drained().await?;
    let compared = equal(lab, asked).await?;
    signal(lab, asked, writers::JUDGE).await?;
    let verdict = loader.finished(seconds(180)).await?;
    totals(&lines, &kinds, compared);
    judged(verdict.last())
}

/// Faults, one or two at a time, until `length` is over; then all members serve. How many of each kind there were.
async fn mischief(
    lab: &Lab,
    safe_zone: &str,
    length: Duration,
    seed: u64,
) -> anyhow::Result<BTreeMap<&'static str, u32>> {
    let members = lab.members().await?;
    let mut chance = Chance(seed);
    let mut kinds = BTreeMap::new();
    let (began, first) = (Instant::now(), chance.below(Fault::KINDS));
    for round in 0_u64.. {
        if began.elapsed() >= length {
            break;
        }
        // Every kind in turn, so that short runs have seen all; whom it hits is chance, and so is what comes with it.
        let fault = Fault::choose(first + round, &members, safe_zone, &mut chance);
        let second = fault.beside(&members, &mut chance);
        let mut faults = vec![fault];
        faults.extend(second.filter(|_| chance.below(2) == 0));
        let hold = Duration::from_millis(3_000 + chance.below(9_000));
        let calm = Duration::from_millis(1_000 + chance.below(4_000));
        told(&format!(
            "{:>5.0} s: {}, {:.0} s",
            began.elapsed().as_secs_f64(),
            faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; "),
            hold.as_secs_f64()
        ));
        suffer(lab, &faults, hold).await?;
        for fault in &faults {
            *kinds.entry(fault.kind()).or_insert(0) += 1;
        }
        // The next ones are on top of nothing.
        lab.all_serve().await?;
        // As above.
        tokio::time::sleep(calm).await;
    }
    lab.cluster.ready(seconds(180)).await?;
    Ok(kinds)
}

/// Does faults, holds them, and heals all of them, also if one could not be done.
async fn suffer(lab: &Lab, faults: &[Fault], hold: Duration) -> anyhow::Result<()> {
    let mut done = Ok(());
    for fault in faults {
        if done.is_ok() {
            done = fault
                .begin(lab)
                .await
                .with_context(|| format!("cannot do {fault}"));
        }
    }
    // A moment of chance, in which nothing is waited for.
    tokio::time::sleep(hold).await;
    for fault in faults {
        fault
            .heal(lab)
            .await
            .with_context(|| format!("cannot heal {fault}"))?;
    }
    done
}

/// Tells the writers what to do.
async fn signal(lab: &Lab, member: &str, signal: &'static str) -> anyhow::Result<()> {
    let (_forward, client) = lab.client(member).await?;
    let client = client.with_bucket(writers::KEYS);
    let context = match client.get(writers::SIGNAL).await {
        Ok(found) => found.context,
        Err(error) if error.is_not_found() => Context::none(),
        Err(error) => return Err(error.into()),
    };
    client.put(writers::SIGNAL, signal, &context).await?;
    Ok(())
}

/// Gives the bucket of counters its policy.
async fn counters(lab: &Lab, member: &str) -> anyhow::Result<()> {
    let bucket = pb::Bucket {
        name: writers::COUNTERS.into(),
        conflict: pb::bucket::Conflict::Counter.into(),
        ..pb::Bucket::default()
    };
    let (_forward, mut admin) = lab.admin(member).await?;
    let request = pb::SetBucketRequest { bucket: Some(bucket) };
    admin.set_bucket(request).await?;
    // Everybody must have heard before anybody counts.
    let admins = lab.admins(lab.members().await?.keys()).await?;
    for (member, (_, admin)) in &admins {
        dynamo_e2e::wait::until(
            &format!("{member} knows the bucket"),
            seconds(30),
            || async move {
                let all = admin.clone().list_buckets(pb::ListBucketsRequest {}).await?;
                let known = all.into_inner().buckets;
                Ok(if known.iter().any(|bucket| bucket.name == writers::COUNTERS) {
                    dynamo_e2e::wait::Look::Done(())
                } else {
                    dynamo_e2e::wait::Look::NotYet("not yet".into())
                })
            },
        )
        .await?;
    }
    Ok(())
}

/// All replicas of all live keys are equal; how many there were.
async fn equal(lab: &Lab, member: &str) -> anyhow::Result<usize> {
    let (_forward, client) = lab.client(member).await?;
    let mut compared = 0;
    for bucket in [writers::KEYS, writers::COUNTERS] {
        let keys: Vec<_> = client.with_bucket(bucket).list_keys("").try_collect().await?;
        let keys: Vec<String> = keys
            .iter()
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect();
        lab.equal(bucket, &keys, true).await?;
        compared += keys.len();
    }
    Ok(compared)
}

fn totals(lines: &[Line], kinds: &BTreeMap<&str, u32>, compared: usize) {
    let faults: u32 = kinds.values().sum();
    told(&format!("{faults} faults: {kinds:?}"));
    if let Some(Line::Stopped {
        acknowledged,
        unknown,
        not_applied,
        ..
    }) = lines.iter().find(|line| matches!(line, Line::Stopped { .. }))
    {
        told(&format!(
            "writes: {acknowledged} acknowledged, {unknown} of unknown outcome, {not_applied} not applied"
        ));
    }
    told(&format!("all replicas of {compared} keys and counters are equal"));
}

fn judged(verdict: Option<&Line>) -> anyhow::Result<()> {
    let Some(Line::Judged {
        keys,
        counters,
        acknowledged,
        lost,
        invented,
        ancestors,
        miscounted,
        unreadable,
        examples,
    }) = verdict
    else {
        bail!("nobody judged: {verdict:?}");
    };
    told(&format!(
        "{acknowledged} acknowledged puts of {keys} keys: {lost} lost, {invented} invented, {ancestors} beside what replaced \
         them; {counters} counters: {miscounted} miscounted; {unreadable} unreadable"
    ));
    // A value may stand beside what replaced it: see `dynamo_history::Findings::nothing_lost`.
    ensure!(
        *acknowledged > 0 && *counters > 0 && lost + invented + miscounted + unreadable == 0,
        "{examples:#?}"
    );
    Ok(())
}

async fn install(cluster: &Cluster) -> anyhow::Result<()> {
    for namespace in [cluster.system, cluster.namespace] {
        let manifest = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}");
        let apply = ["apply", "-f", "-"];
        cluster
            .kubectl_with(&apply, Some(&manifest), seconds(30))
            .await?
            .ok()?;
    }
    let mut args = vec!["upgrade", "--install", RELEASE, "charts/dynamo-operator"];
    args.extend(["--namespace", cluster.system, "--wait", "--timeout", "120s"]);
    cluster.helm(&args, seconds(130)).await.map(drop)
}

fn number(variable: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) if !text.is_empty() => {
            let number = text.parse();
            Ok(Some(number.with_context(|| format!("{variable} is {text:?}"))?))
        }
        _ => Ok(None),
    }
}

fn told(text: &str) {
    text.lines().for_each(|line| println!("    {line}"));
}
