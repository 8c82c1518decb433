//! S: members go and come under load.

use anyhow::{Context as _, ensure};
use dynamo_e2e::{lab::Lab, loader::Loader, report::Line};
use tokio::time::Instant;

use crate::{Suite, outages, seconds, told};

/// Length of the load; both changes are over before it ends.
const LOAD_S: u64 = 110;
/// When the loader looks for acknowledged writes, besides at its end.
const LOOK_S: u64 = 60;
/// Of an operation. Nothing is taken away here that a client has to wait for; but pods start and volumes are erased on a machine
/// that all k8s nodes share, which may stand still for longer than the two seconds that a client waits when a zone is lost.
const DEADLINE_S: u64 = 5;

/// D24, K5, K6, K25: six members become three and six again by `kubectl scale`, while a client writes and reads: no operation
/// fails, no acknowledged write is missing.
pub(crate) async fn s_d24_k25_members_go_and_come_under_load(suite: &Suite) -> anyhow::Result<()> {
    let lab = Lab::of(&suite.cluster);
    lab.all_serve().await?;
    let zones: Vec<String> = lab.members().await?.into_values().collect();
    let zone = zones.first().context("the lab has no members")?;
    let (length, look) = (LOAD_S.to_string(), LOOK_S.to_string());
    let deadline = DEADLINE_S.to_string();
    let args = [
        "steady",
        "--deadline-s",
        &deadline,
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
        lab.scale(members).await?;
        lab.has(members, seconds(120)).await?;
        told(&format!(
            "{members} members {:.1} s after the edit",
            began.elapsed().as_secs_f64()
        ));
    }
    let lines = loader.finished(seconds(LOAD_S + 60)).await?;
    let failure = lines.iter().find(|line| matches!(line, Line::Failure { .. }));
    ensure!(failure.is_none(), "an operation failed: {failure:?}");
    // No moment of which failures are forgiven.
    outages::check(&lines, 0)
}
