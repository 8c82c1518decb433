//! S: members come and go, again and again, before the last change is done, while pods are killed.

use std::time::{Duration, Instant};

use dynamo_e2e::{
    lab::{Lab, MEMBERS},
    wait::seconds,
    writers::Chance,
};
use kube::ResourceExt as _;

use crate::told;

/// As many as there are replicas.
const LEAST: u64 = 3;
/// One change in so many is waited for, so that some walks begin with nothing under way.
const WAITED_FOR: u64 = 4;
/// Longest change, with pods killed meanwhile: those come back first.
const LONGEST_S: u64 = 300;

/// Changes the number of members at random moments; in the end all are back and the DynamoCluster is Ready.
pub(crate) async fn walk(lab: &Lab, changes: u64, seed: u64) -> anyhow::Result<()> {
    let mut chance = Chance(seed ^ 0x5ca1e);
    let (began, mut members, mut killed) = (Instant::now(), MEMBERS as u64, 0);
    for change in 1..=changes {
        // Any other number than now.
        let step = 1 + chance.below(MEMBERS as u64 - LEAST);
        members = LEAST + (members - LEAST + step) % (MEMBERS as u64 - LEAST + 1);
        lab.scale(members as usize).await?;
        let pause = Duration::from_millis(500 + chance.below(12_000));
        let kills = chance.below(2) == 0;
        let after = pause.mul_f64(if kills { 0.5 } else { 1.0 });
        // A moment of chance, in which nothing is waited for.
        tokio::time::sleep(after).await;
        let mut victim = String::new();
        if kills {
            let pods = lab.cluster.members().await?;
            victim = pods[chance.below(pods.len() as u64) as usize].name_any();
            lab.kill(&[&victim]).await?;
            killed += 1;
            // As above.
            tokio::time::sleep(after).await;
        }
        told(&format!(
            "{:>5.0} s: change {change}, {members} members wanted{}",
            began.elapsed().as_secs_f64(),
            if kills {
                format!("; kill of {victim}")
            } else {
                String::new()
            },
        ));
        if chance.below(WAITED_FOR) == 0 {
            lab.has(members as usize, seconds(LONGEST_S)).await?;
        }
    }
    lab.scale(MEMBERS).await?;
    lab.has(MEMBERS, seconds(LONGEST_S)).await?;
    lab.all_serve().await?;
    told(&format!(
        "{changes} changes of the number of members and {killed} kills in {:.0} s",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}
