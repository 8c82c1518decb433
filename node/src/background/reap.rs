//! Removes tombstones and shortens long histories, in two phases, with the word of everybody. Paper: §4.4 (truncation).
//!
//! Each partition's first primary looks through its records now and then, and runs the core's machine over what may go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use dynamo_core::{
    reap::{Opinion, Proposal, ROUND_KEYS_MAX, ReapCoordinator, ReapEffect, ReapEvent, Round, Target},
    types::{MemberId, PartitionId},
    version::{KeyState, truncated},
};
use dynamo_proto::peer;
use tokio::sync::mpsc;

use super::Task;
use crate::{
    clock,
    grpc::reap::{self as wire, Step},
    node::{Node, Placed},
    storage::DataKey,
};

/// A round takes at most so many times the time of one call.
const ROUND_CALLS: u32 = 20;
/// Records looked at in one go.
const PAGE_RECORDS: usize = 256;

/// Looks through a partition of which this node is the first primary, and removes what may go.
pub(crate) async fn partition(node: &Arc<Node>, placed: &Arc<Placed>, partition: PartitionId) {
    let mut after = None;
    loop {
        node.background()
            .wait_turn(Task::Reap, PAGE_RECORDS as u32, 0)
            .await;
        let page = match node.page(partition, after.take(), PAGE_RECORDS).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(partition = partition.0, %error, "cannot look for tombstones");
                return;
            }
        };
        after = page.entries.last().map(|(key, _)| key.clone());
        let candidates = candidates(node, page.entries);
        if !candidates.is_empty() {
            round(node, placed, partition, candidates).await;
        }
        if page.done || after.is_none() {
            return;
        }
    }
}

/// What may go of a page: tombstones and expired values; and what shortened histories become.
fn candidates(node: &Node, entries: Vec<(DataKey, KeyState)>) -> BTreeMap<Bytes, Candidate> {
    let wall_ms = clock::wall_ms();
    let retired = node.retired_actors();
    let threshold = node.config().background.actors_max;
    let mut candidates = BTreeMap::new();
    for (key, state) in entries {
        let reapable = state.is_reapable(wall_ms);
        let replacement = if reapable {
            None
        } else {
            truncated(&state, threshold, &retired)
        };
        if !reapable && replacement.is_none() {
            continue;
        }
        let candidate = Candidate {
            digest: state.digest(),
            replacement,
        };
        candidates.insert(key.as_bytes().clone(), candidate);
        if candidates.len() == ROUND_KEYS_MAX {
            break;
        }
    }
    candidates
}

struct Candidate {
    digest: u64,
    /// The shortened state; none: it is removed.
    replacement: Option<KeyState>,
}

async fn round(
    node: &Arc<Node>,
    placed: &Arc<Placed>,
    partition: PartitionId,
    candidates: BTreeMap<Bytes, Candidate>,
) {
    // The step `known` of a change of the ring waits for the end of the round.
    let (_operation, placed) = &node.begin(placed);
    let round = Round {
        epoch: placed.placement().ring().epoch(),
        id: clock::random_u64(),
    };
    let proposals = candidates.iter().map(|(position, candidate)| Proposal {
        position: position.clone(),
        digest: candidate.digest,
        target: match &candidate.replacement {
            None => Target::Absent,
            Some(state) => Target::Truncated(state.digest()),
        },
    });
    let mut machine = ReapCoordinator::new(round, Node::reap_parties(placed, partition), proposals.collect());
    let (events_in, mut events) = mpsc::channel(64);
    let run = Running {
        node: Arc::clone(node),
        partition,
        round,
        candidates: Arc::new(candidates),
        events: events_in,
    };
    let deadline = tokio::time::Instant::now() + node.peers().call_timeout() * ROUND_CALLS;
    let mut effects = machine.step(ReapEvent::Start);
    loop {
        for effect in std::mem::take(&mut effects) {
            if let ReapEffect::Done(report) = effect {
                tracing::debug!(partition = partition.0, ?report, "a round of reaping has ended");
                node.metrics().reaped(&report);
                return;
            }
            run.perform(effect);
        }
        let event = tokio::select! {
            event = events.recv() => event.unwrap_or(ReapEvent::DeadlineReached),
            () = tokio::time::sleep_until(deadline) => ReapEvent::DeadlineReached,
        };
        effects = machine.step(event);
    }
}

struct Running {
    node: Arc<Node>,
    partition: PartitionId,
    round: Round,
    candidates: Arc<BTreeMap<Bytes, Candidate>>,
    events: mpsc::Sender<ReapEvent>,
}

impl Running {
    fn perform(&self, effect: ReapEffect) {
        match effect {
            ReapEffect::Agree { member, proposals } => self.ask(member, Step::Agree, proposals),
            ReapEffect::Prepare { member, proposals } => self.ask(member, Step::Prepare, proposals),
            ReapEffect::Commit { member, proposals } => self.ask(member, Step::Commit, proposals),
            ReapEffect::Clear { member } => self.ask(member, Step::Clear, Vec::new()),
            ReapEffect::Done(_) => {}
        }
    }

    /// Puts a question to a member, this one included; no answer is an empty one.
    fn ask(&self, member: MemberId, step: Step, proposals: Vec<Proposal>) {
        let positions: Vec<Bytes> = proposals
            .iter()
            .map(|proposal| proposal.position.clone())
            .collect();
        let request = wire::request(self.partition, self.round, step, self.keys(step, proposals));
        let (node, events) = (Arc::clone(&self.node), self.events.clone());
        tokio::spawn(async move {
            let answer = answer(&node, &member, request).await.unwrap_or_default();
            let _ = events.send(event(member, step, &positions, &answer)).await;
        });
    }

    fn keys(&self, step: Step, proposals: Vec<Proposal>) -> Vec<peer::ReapKey> {
        let state_of = |position: &Bytes| {
            let replacement = self.candidates.get(position)?.replacement.as_ref()?;
            (step == Step::Commit).then(|| replacement.encode())
        };
        let key = |proposal: Proposal| peer::ReapKey {
            state: state_of(&proposal.position).unwrap_or_default(),
            position: proposal.position,
            digest: proposal.digest,
            truncated: match proposal.target {
                Target::Absent => None,
                Target::Truncated(digest) => Some(digest),
            },
        };
        proposals.into_iter().map(key).collect()
    }
}

async fn answer(
    node: &Arc<Node>,
    member: &MemberId,
    mut request: peer::ReapRequest,
) -> Option<peer::ReapResponse> {
    if node.membership().me().is_some_and(|me| me.member == *member) {
        return wire::serve(node, request).await.ok();
    }
    let to = node.membership().to(member)?;
    request.header = Some(to.header());
    tokio::time::timeout(Duration::from_secs(10), node.peers().reap(&to, request))
        .await
        .ok()?
        .ok()
}

fn event(member: MemberId, step: Step, positions: &[Bytes], answer: &peer::ReapResponse) -> ReapEvent {
    let opinions = || -> BTreeMap<Bytes, Opinion> {
        let heard = answer.opinions().map(wire::opinion);
        positions.iter().cloned().zip(heard).collect()
    };
    match step {
        Step::Agree => ReapEvent::Agreed {
            member,
            opinions: opinions(),
        },
        Step::Prepare => ReapEvent::Prepared {
            member,
            opinions: opinions(),
        },
        Step::Clear => ReapEvent::Cleared {
            member,
            result: match wire::opinion(answer.clear()) {
                Opinion::Refuses(refusal) => Err(refusal),
                Opinion::Holds { .. } | Opinion::AtTarget => Ok(()),
            },
        },
        Step::Commit => {
            let done = |(_, opinion): &(Bytes, Opinion)| !matches!(opinion, Opinion::Refuses(_));
            let positions: BTreeSet<Bytes> =
                opinions().into_iter().filter(done).map(|(key, _)| key).collect();
            ReapEvent::Committed { member, positions }
        }
    }
}
