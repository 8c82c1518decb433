//! X and A: a whole zone of the lab is gone and comes back; copies vanish, and anti-entropy brings them back.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use dynamo_e2e::{
    lab::{Admin, Lab, copy, preference_list},
    loader::{Loader, RECORDS},
    records,
    report::{Line, now_ms},
    wait::{self, Look},
};
use dynamo_proto::{admin as pb, fault::DropKeyRequest};
use futures::TryStreamExt as _;
use tokio::time::Instant;

use crate::{ANTI_ENTROPY_S, Suite, data, outages, seconds, told};

/// Seconds of load, and how long the zone is away.
const LOAD_S: u64 = 28;
const AWAY_S: u64 = 10;
/// Records of test A, and how many lose a copy.
const LOADED: usize = 10_000;
const DROPPED: usize = 100;

/// X: both pods of a zone are gone at once under load, and stay away. Nothing fails; when they are back, hints drain, and all
/// replicas are equal.
pub(crate) async fn x_all_pods_of_a_zone_gone_cost_nothing(suite: &Suite) -> anyhow::Result<()> {
    let lab = Lab::of(&suite.cluster);
    let members = lab.members().await?;
    let zones: Vec<&String> = members.values().collect();
    let (lost, load) = (zones[zones.len() - 1], zones[0]);
    let gone: Vec<&str> = members
        .iter()
        .filter(|(_, zone)| *zone == lost)
        .map(|(member, _)| member.as_str())
        .collect();
    ensure!(lost != load && gone.len() == 2, "{members:?}");
    let length = LOAD_S.to_string();
    let args = ["steady", "--bucket", "zone-pods", "--seconds", &length];
    let loader = Loader::start(&lab.cluster, &suite.image, "zone-pods", load, &args).await?;
    loader
        .seen("the load runs", seconds(60), |lines| {
            let busy = |line: &&Line| matches!(line, Line::Second { ops: 1.., .. });
            lines.iter().filter(busy).count() >= 2
        })
        .await?;
    let (began, fault_ms) = (Instant::now(), now_ms());
    lab.stop(&gone).await?;
    let away = wait::hold("the zone is away", began + seconds(AWAY_S), || async {
        let up = lab
            .cluster
            .members()
            .await?
            .iter()
            .filter(|pod| outages::is_ready(pod))
            .count();
        ensure!(up == 4, "{up} members are ready");
        Ok(())
    })
    .await;
    lab.back(&gone).await?;
    away?;
    told(&format!(
        "the pods of {lost} are back {:.1} s after they went",
        began.elapsed().as_secs_f64()
    ));
    let lines = loader.finished(seconds(90)).await?;
    let failure = lines.iter().find(|line| matches!(line, Line::Failure { .. }));
    ensure!(failure.is_none(), "an operation failed: {failure:?}");
    outages::check(&lines, fault_ms)?;
    lab.drained().await?;
    let (_forward, client) = lab.client(members.keys().next().context("no members")?).await?;
    let keys: Vec<_> = client
        .with_bucket("zone-pods")
        .list_keys("")
        .try_collect()
        .await?;
    let keys: Vec<String> = keys
        .iter()
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .collect();
    ensure!(keys.len() > 100, "only {} keys", keys.len());
    lab.equal("zone-pods", &keys, true).await?;
    told(&format!(
        "no hints left; all replicas of {} keys equal",
        keys.len()
    ));
    Ok(())
}

/// A: of 10,000 keys some lose a copy without a trace. Exchanges bring back those copies and hardly anything else.
pub(crate) async fn a_lost_copies_are_found_among_ten_thousand_keys(suite: &Suite) -> anyhow::Result<()> {
    let lab = Lab::of(&suite.cluster);
    let first = LOADED.to_string();
    let args = ["load", "--file", RECORDS, "--bucket", "trees", "--first", &first];
    let loader = Loader::start(&lab.cluster, &suite.image, "trees", "", &args).await?;
    data::all_there(&loader.finished(seconds(180)).await?, LOADED)?;
    lab.drained().await?;
    let (_, records) = records::collect().await?;
    let step = LOADED / DROPPED;
    let keys = records
        .into_iter()
        .take(LOADED)
        .step_by(step)
        .map(|record| record.key);
    let keys: Vec<String> = keys.collect();
    // What the load itself has left to exchange is none of this.
    lab.equal("trees", &keys, true).await?;
    let members = lab.members().await?;
    settled(&lab, &members).await?;

    let admins = lab.admins(members.keys()).await?;
    pause_all(&admins, true).await?;
    let before = exchanged(&lab, &members).await?;
    drop_copies(&lab, &admins, &keys).await?;
    let began = Instant::now();
    pause_all(&admins, false).await?;
    lab.equal("trees", &keys, true).await?;
    let took = began.elapsed().as_secs_f64();
    let (dropped, shipped) = (keys.len(), exchanged(&lab, &members).await? - before);
    told(&format!(
        "{dropped} of {LOADED} keys lost a copy; all are equal again after {took:.1} s at an interval of {ANTI_ENTROPY_S} s; \
         {shipped} records were shipped"
    ));
    // Each node gets what it lacks itself, once.
    let most = (dropped + dropped / 20) as u64;
    ensure!(
        (dropped as u64..=most).contains(&shipped),
        "{shipped} records were shipped for {dropped} copies"
    );
    Ok(())
}

/// Drops one copy of each key, of its first, second and third primary in turn.
async fn drop_copies(lab: &Lab, admins: &BTreeMap<String, Admin>, keys: &[String]) -> anyhow::Result<()> {
    let mut hooks = BTreeMap::new();
    for member in admins.keys() {
        hooks.insert(member, lab.faults(member).await?);
    }
    let asked = admins.values().next().context("no members")?;
    for (number, key) in keys.iter().enumerate() {
        let list = preference_list(asked, "trees", key).await?;
        let victim = &list[number % 3].member_id;
        let (_, faults) = hooks.get_mut(victim).context("a stranger is a primary")?;
        let request = DropKeyRequest {
            bucket: "trees".into(),
            key: key.clone().into_bytes().into(),
        };
        let had = faults.drop_key(request).await?.into_inner().dropped;
        let has = copy(&admins[victim], "trees", key).await?.is_some();
        ensure!(had && !has, "{victim} had {key}: {had}, and has it: {has}");
    }
    Ok(())
}

async fn pause_all(admins: &BTreeMap<String, Admin>, paused: bool) -> anyhow::Result<()> {
    for (_, admin) in admins.values() {
        let request = pb::PauseTaskRequest {
            name: "exchange".into(),
            paused,
        };
        admin.clone().pause_task(request).await?;
    }
    Ok(())
}

/// Waits until no exchange has shipped anything for as long as each pair needs to have its turn, and half as long again.
async fn settled(lab: &Lab, members: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let quiet = seconds(3 * u64::from(ANTI_ENTROPY_S));
    let last = std::cell::Cell::new((0, Instant::now()));
    wait::until("exchanges have nothing to ship", seconds(60), || async {
        let now = exchanged(lab, members).await?;
        let (before, since) = last.get();
        if now != before {
            last.set((now, Instant::now()));
        } else if since.elapsed() >= quiet {
            return Ok(Look::Done(()));
        }
        Ok(Look::NotYet(format!("{now} records shipped")))
    })
    .await
}

async fn exchanged(lab: &Lab, members: &BTreeMap<String, String>) -> anyhow::Result<u64> {
    let mut sum = 0;
    for member in members.keys() {
        sum += lab.exchanged(member).await?;
    }
    Ok(sum)
}
