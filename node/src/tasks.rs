//! What a node does without being asked, on timers: gossip and probes. Paper: §4.8.
//!
//! Hinted handoff and anti-entropy, which wait for what the foreground leaves them, are in `background`.

use std::{sync::Arc, time::Duration};

use dynamo_core::{
    membership::{Announcer, Wanted},
    types::MemberId,
};
use dynamo_proto::peer::{GossipRequest, GossipResponse};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock,
    grpc::gossip::{delta_from_proto, delta_to_proto, digest_to_proto, ring_version_from_proto},
    membership::GossipTarget,
    node::Node,
    storage::look,
};

/// Time between gossip exchanges that this node begins.
const GOSSIP_INTERVAL: Duration = Duration::from_secs(1);
/// The same while it waits for its first ring, as seeds may still wait for theirs, and in its first rounds: who found it down
/// shall hear soon that it runs. Also while the ring changes, which waits for everybody's steps.
const QUICK_INTERVAL: Duration = Duration::from_millis(200);
/// So many rounds after the start, or after the first ring, are quick.
const QUICK_ROUNDS: u32 = 10;
/// So many members are told of a ring by its proposer, at most; they tell the others.
const TOLD_MAX: usize = 64;
/// How often the failure detector is asked for due probes; it spaces them itself.
const PROBE_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// How often the store is asked for its condition.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Starts all tasks; they end with `shutdown`.
pub(crate) fn start(node: &Arc<Node>, tracker: &TaskTracker, shutdown: &CancellationToken) {
    let gossip_node = Arc::clone(node);
    tracker.spawn(shutdown.clone().run_until_cancelled_owned(async move {
        let mut announcer = Announcer::new();
        let mut rounds = 0;
        loop {
            gossip_round(&gossip_node).await;
            gossip_node.gossiped();
            // What peers remember must be heard before it is overwritten.
            if !gossip_node.is_unconfirmed() {
                let writer = gossip_node.writer();
                gossip_node
                    .membership()
                    .announce_synced(writer, &mut announcer)
                    .await;
            }
            if gossip_node.membership().ring().is_some() && !gossip_node.is_unconfirmed() {
                rounds += 1;
            }
            let quick = rounds <= QUICK_ROUNDS || gossip_node.has_much_to_tell();
            gossip_node
                .gossip_due(if quick { QUICK_INTERVAL } else { GOSSIP_INTERVAL })
                .await;
        }
    }));
    let probe_node = Arc::clone(node);
    tracker.spawn(shutdown.clone().run_until_cancelled_owned(async move {
        loop {
            probe_node.runs();
            probe_unreachable(&probe_node);
            tokio::time::sleep(clock::until_next(PROBE_CHECK_INTERVAL)).await;
        }
    }));
}

/// Completes when the store says that it has failed behind the writer's back, as by a failed compaction.
pub(crate) async fn store_failed(node: &Arc<Node>) -> String {
    loop {
        tokio::time::sleep(clock::until_next(HEALTH_INTERVAL)).await;
        let data = look(node.store(), "asking for the store's condition", |store| {
            store.health()
        });
        for health in [data.await, node.hints().health().await] {
            match health {
                Ok(health) if health.failed() => {
                    return format!("{} background errors of the store", health.background_errors);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "cannot ask the store for its condition"),
            }
        }
    }
}

/// One exchange with one random peer or seed.
async fn gossip_round(node: &Arc<Node>) {
    let target = node
        .peers()
        .with_detector(|detector| node.membership().gossip_target(detector));
    if let Some(target) = target {
        gossip_with(node, target).await;
    }
}

/// Tells all who are concerned by the rings what this node has put down of them, all at once: as long as one has not heard of a ring
/// that it proposes, those who have refuse what that one writes.
pub(crate) async fn tell_all(node: &Arc<Node>) {
    let Some(transition) = node.membership().transition() else {
        return;
    };
    let told = transition
        .told_to()
        .into_iter()
        .filter(|member| node.peers().reachable(member))
        .take(TOLD_MAX)
        .map(|member| gossip_with(node, GossipTarget::Member(member)));
    futures::future::join_all(told).await;
}

async fn gossip_with(node: &Arc<Node>, target: GossipTarget) {
    let Some(digest) = node.membership().digest() else {
        return;
    };
    let request = GossipRequest {
        digest: Some(digest_to_proto(&digest)),
        ..GossipRequest::default()
    };
    let Some(response) = exchange(node, &target, request).await else {
        return;
    };
    let (mut sent, mut told) = (0, true);
    let me = node.membership().me().map(|me| me.member);
    let answered_by = response.header.as_ref().map(|header| header.member_id.clone());
    let (peer_is_fresh, peer_is_unconfirmed) = (response.fresh, response.unconfirmed);
    let wanted = wanted_from(response);
    if wanted != Wanted::default()
        && let Some(delta) = node.membership().delta_for(&wanted)
    {
        sent = delta.members.len();
        let of_me = wanted.members.iter().any(|member| Some(member) == me.as_ref());
        let request = GossipRequest {
            delta: Some(delta_to_proto(&delta)),
            ..GossipRequest::default()
        };
        told = exchange(node, &target, request).await.is_some() || !of_me;
    }
    // Its word counts if it knew of this life when it gave it: from then on it counts no marks of an earlier one. What an old copy
    // of its disk has forgotten it cannot tell.
    if let Some(Ok(member)) = answered_by.as_ref().map(MemberId::new)
        && told
        && !peer_is_unconfirmed
        && node.membership().heard_from(&member)
    {
        tracing::info!("heard from all members since this node lost its memory");
        node.ring_changed();
    }
    if answered_by.is_some() && answered_by != me.map(|me| me.to_string()) {
        // Had it known of another life of this member, it would have said so.
        node.heard_from_peer(peer_is_fresh).await;
    }
    node.metrics().gossip(sent);
}

fn wanted_from(response: GossipResponse) -> Wanted {
    let members = response.wanted_members.into_iter();
    let log = response.wanted_log.into_iter();
    Wanted {
        members: members.filter_map(|id| MemberId::new(id).ok()).collect(),
        ring: response.wants_ring,
        log: log.map(ring_version_from_proto).collect(),
        policies: response.wants_policies,
    }
}

/// Sends one gossip message and merges what the answer brings.
async fn exchange(
    node: &Arc<Node>,
    target: &GossipTarget,
    mut request: GossipRequest,
) -> Option<GossipResponse> {
    let answer = match target {
        GossipTarget::Member(member) => {
            let to = node.membership().to(member)?;
            request.header = Some(to.header());
            node.peers()
                .gossip(&to, request)
                .await
                .map_err(|error| error.status)
        }
        GossipTarget::Seed(address) => {
            request.header = node.membership().header("");
            node.peers().gossip_seed(address, request).await
        }
    };
    match answer {
        Ok(mut response) => {
            if let Some(delta) = response.delta.take() {
                merge(node, delta).await;
            }
            Some(response)
        }
        Err(status) => {
            tracing::debug!(?target, error = status.message(), "gossip failed");
            None
        }
    }
}

/// Merges a delta from the wire and takes up a new ring. To the end, also if this future is dropped, as that of a call is whose caller
/// has gone (who leaves tells its last step, and ends): what has been merged is no news when the next one tells it.
pub(crate) async fn merge(node: &Arc<Node>, delta: dynamo_proto::peer::GossipDelta) {
    let node = Arc::clone(node);
    let merged = tokio::spawn(async move { merge_whole(&node, delta).await });
    if let Err(error) = merged.await {
        tracing::error!(%error, "taking up a gossip message ended early");
    }
}

async fn merge_whole(node: &Arc<Node>, delta: dynamo_proto::peer::GossipDelta) {
    let Some(cluster) = node.membership().cluster_id() else {
        return;
    };
    match delta_from_proto(cluster, delta) {
        Ok(delta) => {
            let merged = node.membership().merge(node.writer(), delta).await;
            node.peers().signs_of_life(&merged.members);
            if let Some(remembered) = merged.exposed {
                node.exposed(remembered).await;
            }
            if merged.ring {
                node.ring_changed();
            }
        }
        Err(error) => tracing::warn!(%error, "a gossip message cannot be read"),
    }
}

fn probe_unreachable(node: &Arc<Node>) {
    for member in node.peers().probes_due() {
        let Some(to) = node.membership().to(&member) else {
            continue;
        };
        let node = Arc::clone(node);
        tokio::spawn(async move {
            if node.peers().probe(&to).await {
                node.background().hurry_hints();
            }
        });
    }
}
