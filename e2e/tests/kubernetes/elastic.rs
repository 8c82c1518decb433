//! S: members go and come under load.

use anyhow::{Context as _, ensure};
use dynamo_e2e::{
    lab::Lab,
    loader::Loader,
    report::Line,
    wait::{self, Look},
};
use dynamo_operator::crd::conditions;
use kube::Resource as _;
use tokio::time::Instant;

use crate::{Suite, outages, seconds, told};

/// Length of the load; both changes are over before it ends.
const LOAD_S: u64 = 110;
/// When the loader looks for acknowledged writes, besides at its end.
const LOOK_S: u64 = 60;

/// D24, K5, K6, K25: six members become three and six again by `kubectl scale`, while a client writes and reads: no operation
/// fails, no acknowledged write is missing.
pub(crate) async fn s_d24_k25_members_go_and_come_under_load(suite: &Suite) -> anyhow::Result<()> {
    let lab = Lab::of(&suite.cluster);
    lab.all_serve().await?;
    let zones: Vec<String> = lab.members().await?.into_values().collect();
    let zone = zones.first().context("the lab has no members")?;
    let (length, look) = (LOAD_S.to_string(), LOOK_S.to_string());
    let args = [
        "steady",
        "--bucket",
        "elastic",
        "--seconds",
        &length,
        "--verify-at",
        &look,
    ];
    let loader = Loader::start(&lab.cluster, &suite.image, "elastic", zone, &args).await?;
    loader
        .seen("the load has run for 5 s", seconds(60), |lines| {
            let busy = |line: &&Line| matches!(line, Line::Second { ops: 1.., .. });
            lines.iter().filter(busy).count() >= 5
        })
        .await?;
    for members in [3, 6] {
        let began = Instant::now();
        scale(&lab, members).await?;
        told(&format!(
            "{members} members {:.1} s after the edit",
            began.elapsed().as_secs_f64()
        ));
    }
    let lines = loader.finished(seconds(LOAD_S + 60)).await?;
    ensure!(
        !lines.iter().any(|line| matches!(line, Line::Failure { .. })),
        "an operation failed"
    );
    // No moment of which failures are forgiven.
    outages::check(&lines, 0)
}

async fn scale(lab: &Lab, members: usize) -> anyhow::Result<()> {
    let cluster = &lab.cluster;
    let (target, replicas) = (format!("dync/{}", cluster.name), format!("--replicas={members}"));
    cluster
        .kubectl(&["-n", cluster.namespace, "scale", &target, &replicas])
        .await?;
    wait::until(
        &format!("the lab has {members} members"),
        seconds(120),
        || async {
            let (pods, now) = (cluster.members().await?.len(), cluster.dynamo_cluster().await?);
            let generation = now.meta().generation;
            let status = now.status.unwrap_or_default();
            let ready = conditions::find(&status.conditions, conditions::READY);
            let ready = ready.context("no condition Ready")?;
            let is_ready = ready.status == "True" && ready.observed_generation == generation;
            Ok(if pods == members && is_ready {
                Look::Done(())
            } else {
                Look::NotYet(format!("{pods} pods; {}: {}", ready.reason, ready.message))
            })
        },
    )
    .await
}
