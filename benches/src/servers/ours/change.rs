//! Changes of the ring: members join and leave.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use dynamo_local::LocalRing;
use dynamo_proto::admin::{
    CommitRequest, PlanRequest, PlanResponse, RingTarget, TargetMember, TransitionRequest,
    admin_client::AdminClient,
};
use tokio::time::sleep;
use tonic::{Code, transport::Channel};

/// Between two looks at a change under way.
const LOOK: Duration = Duration::from_millis(50);
/// For a ring that has just begun, or just changed, to take the next change.
const COMMIT_LIMIT: Duration = Duration::from_mins(1);
/// For a change. It waits for the data to move, at the pace that background work is given.
const CHANGE_LIMIT: Duration = Duration::from_hours(1);

/// Plans and proposes a ring of the first `members` nodes; [`changed`] waits for it.
pub(crate) async fn commit(ring: &LocalRing, members: usize) -> Result<PlanResponse> {
    let target = RingTarget {
        members: ring.nodes()[..members].iter().map(target).collect(),
        ..RingTarget::default()
    };
    let mut admin = admin(ring, 0).await?;
    let began = Instant::now();
    loop {
        let planning = PlanRequest {
            target: Some(target.clone()),
        };
        let plan = admin
            .plan(planning)
            .await
            .context("cannot plan a change of the ring")?
            .into_inner();
        let committing = CommitRequest {
            target: Some(target.clone()),
            expected_epoch: plan.expected_epoch,
            expected_hash: 0,
        };
        match admin.commit(committing).await {
            Ok(_) => return Ok(plan),
            // Members have still to meet, or to take note of the change before.
            Err(status) if status.code() == Code::FailedPrecondition && began.elapsed() < COMMIT_LIMIT => {
                sleep(LOOK).await;
            }
            Err(status) => bail!("cannot change the ring: {status}"),
        }
    }
}

/// Waits until the first `members` nodes serve by the planned ring alone.
pub(crate) async fn changed(ring: &LocalRing, members: usize, plan: &PlanResponse) -> Result<()> {
    let began = Instant::now();
    for number in 0..members {
        while !has_changed(ring, number, plan.expected_epoch).await? {
            if began.elapsed() > CHANGE_LIMIT {
                bail!("the ring has not changed in {} s", CHANGE_LIMIT.as_secs());
            }
            sleep(LOOK).await;
        }
    }
    Ok(())
}

async fn has_changed(ring: &LocalRing, number: usize, from_epoch: u64) -> Result<bool> {
    let Ok(at) = admin(ring, number).await?.transition(TransitionRequest {}).await else {
        return Ok(false);
    };
    let at = at.into_inner();
    Ok(at.next_epoch == 0 && at.base_epoch > from_epoch)
}

/// Hints that all nodes keep.
pub(crate) async fn hints(ring: &LocalRing) -> Result<u64> {
    let mut hints = 0;
    for node in ring.nodes() {
        let status = ring.status(node.member()).await;
        hints += status
            .map_err(|error| anyhow::anyhow!("{}: {error}", node.member()))?
            .hints;
    }
    Ok(hints)
}

fn target(node: &dynamo_local::Node) -> TargetMember {
    TargetMember {
        member_id: node.member().to_owned(),
        zone: node.zone().to_owned(),
        weight: 1,
        ..TargetMember::default()
    }
}

async fn admin(ring: &LocalRing, number: usize) -> Result<AdminClient<Channel>> {
    let node = &ring.nodes()[number];
    let address = format!("http://{}", node.addresses().admin);
    AdminClient::connect(address)
        .await
        .with_context(|| format!("cannot connect to {}", node.member()))
}
