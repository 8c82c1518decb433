//! X: a zone is cut off for two minutes under load.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use dynamo_e2e::{
    loader::Loader,
    report::{Line, now_ms},
    wait::{self, Look},
};
use dynamo_operator::crd::conditions;
use kube::ResourceExt as _;
use tokio::time::Instant;

use crate::{Suite, outages, seconds, told};

/// How long the zone is away.
const AWAY: Duration = seconds(120);
/// Length of the load: some seconds before, the cut, and some after.
const LOAD_S: u64 = 160;
/// When the loader looks for acknowledged writes, besides at its end: late in the cut.
const LOOK_S: u64 = 100;

/// X at R=W=2, N=3: nothing fails after the first 5 s, no acknowledged write is missing, during the cut and afterwards; the
/// status tells what is wrong, and that requests are served (K1).
pub(crate) async fn x_zone_loss_costs_no_operation_and_no_write(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let kind = cluster.kind()?;
    let (lost, load_zone) = choose_zones(suite).await?;
    told(&format!(
        "the zone to lose is {lost}, the loader is in {load_zone}"
    ));
    let (length, look) = (LOAD_S.to_string(), LOOK_S.to_string());
    let args = [
        "steady",
        "--bucket",
        "zone-loss",
        "--seconds",
        &length,
        "--verify-at",
        &look,
    ];
    let loader = Loader::start(cluster, &suite.image, "zone-loss", &load_zone, &args).await?;
    loader
        .seen("the load has run for 5 s", seconds(60), |lines| {
            let busy = |line: &&Line| matches!(line, Line::Second { ops: 1.., .. });
            lines.iter().filter(busy).count() >= 5
        })
        .await?;

    let cut_at = Instant::now();
    let cut_ms = now_ms();
    zone(suite, "cut", kind, &lost).await?;
    let during = cut_off(suite, cut_at, &lost).await;
    zone(suite, "heal", kind, &lost).await?;
    let healed_ms = now_ms();
    during?;

    let began = Instant::now();
    outages::ready(cluster).await?;
    told(&format!(
        "Ready {:.1} s after the zone is back",
        began.elapsed().as_secs_f64()
    ));
    let lines = loader.finished(seconds(90)).await?;
    let looked = lines.iter().any(
        |line| matches!(line, Line::Verified { at_ms, checked: 100.., .. } if (cut_ms + 60_000..healed_ms).contains(at_ms)),
    );
    ensure!(looked, "nobody looked for acknowledged writes during the cut");
    outages::check(&lines, cut_ms)
}

/// While the zone is away: first the status says so, then it stays like that.
async fn cut_off(suite: &Suite, cut_at: Instant, lost: &str) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    let ready = wait::until("the status says that a zone is lost", seconds(60), || async {
        let ready = cluster.condition(conditions::READY).await?;
        Ok(if ready.status == "False" {
            Look::Done(ready)
        } else {
            Look::NotYet(format!("{}: {}", ready.reason, ready.message))
        })
    })
    .await?;
    told(&format!(
        "after {:.1} s: Ready False, {}: {}",
        cut_at.elapsed().as_secs_f64(),
        ready.reason,
        ready.message
    ));
    wait::hold("a quorum is available", cut_at + AWAY, || async {
        let status = cluster.dynamo_cluster().await?.status.unwrap_or_default();
        let find = |type_| conditions::find(&status.conditions, type_);
        let quorum = find(conditions::QUORUM_AVAILABLE).context("no condition QuorumAvailable")?;
        ensure!(quorum.status == "True", "{quorum:?}");
        let ready = find(conditions::READY).context("no condition Ready")?;
        ensure!(ready.status == "False", "{ready:?}");
        Ok(())
    })
    .await?;
    let status = cluster.dynamo_cluster().await?.status.unwrap_or_default();
    let ready = conditions::find(&status.conditions, conditions::READY).context("no condition Ready")?;
    told(&format!("at the end: {}: {}", ready.reason, ready.message));
    for node in &status.nodes {
        let serves = node.state == "Valid";
        ensure!(
            serves == (node.zone != lost) && (serves || !node.message.is_empty()),
            "{node:?}"
        );
        if !serves {
            told(&format!("{} is {}: {}", node.name, node.state, node.message));
        }
    }
    ensure!(
        ready.message.contains("2 of 3") || ready.message.contains(lost),
        "the message helps nobody: {ready:?}"
    );
    Ok(())
}

/// A zone with a member and neither operator nor DNS, and another one with a member, for the loader.
async fn choose_zones(suite: &Suite) -> anyhow::Result<(String, String)> {
    let cluster = &suite.cluster;
    let mut busy = cluster.zones_with(cluster.system, "").await?;
    busy.extend(cluster.zones_with("kube-system", "k8s-app=kube-dns").await?);
    let mut free = Vec::new();
    for pod in cluster.members().await? {
        let zone = pod
            .labels()
            .get("dynamo.rs/zone")
            .context("a pod has no zone")?
            .clone();
        if !busy.contains(&zone) {
            free.push(zone);
        }
    }
    let lost = free.pop().context("the operator or DNS is in every zone")?;
    let other = free
        .pop()
        .or_else(|| busy.into_iter().find(|zone| !zone.is_empty()));
    Ok((lost, other.context("there is only one zone")?))
}

async fn zone(suite: &Suite, action: &str, kind: &str, zone: &str) -> anyhow::Result<()> {
    let script = format!("e2e/kind/zone {action} '{kind}' '{zone}'");
    suite.cluster.with_engine(&script, seconds(60)).await.map(drop)
}
