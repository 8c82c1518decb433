//! The peer service's half of the removal of tombstones: what this node answers in a round, and does.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::{
    reap::{self, Opinion, Proposal, ROUND_KEYS_MAX, Refusal, Removal, Round, Target},
    types::PartitionId,
    version::KeyState,
};
use dynamo_proto::peer::{
    ReapClear, ReapKey, ReapKeys, ReapOpinion, ReapRequest, ReapResponse, reap_request,
};

use super::status::Failure;
use crate::{
    node::Node,
    storage::{
        DataKey,
        writer::{Expected, Swap},
    },
};

/// Which question of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Agree,
    Clear,
    Prepare,
    Commit,
}

/// A question; its header is the caller's to set.
pub(crate) fn request(partition: PartitionId, round: Round, step: Step, keys: Vec<ReapKey>) -> ReapRequest {
    let keys = ReapKeys { keys };
    ReapRequest {
        header: None,
        partition: partition.0,
        epoch: round.epoch,
        round: round.id,
        step: Some(match step {
            Step::Agree => reap_request::Step::Agree(keys),
            Step::Clear => reap_request::Step::Clear(ReapClear {}),
            Step::Prepare => reap_request::Step::Prepare(keys),
            Step::Commit => reap_request::Step::Commit(keys),
        }),
    }
}

/// Answers a question of a round, and does what it asks for.
///
/// # Errors
/// INVALID_ARGUMENT for what no node asks; a store that fails is an empty answer, which stops the round.
pub(crate) async fn serve(node: &Arc<Node>, request: ReapRequest) -> Result<ReapResponse, Failure> {
    let round = Round {
        epoch: request.epoch,
        id: request.round,
    };
    let partition = PartitionId(request.partition);
    let (step, keys) = match request.step {
        Some(reap_request::Step::Agree(keys)) => (Step::Agree, keys.keys),
        Some(reap_request::Step::Prepare(keys)) => (Step::Prepare, keys.keys),
        Some(reap_request::Step::Commit(keys)) => (Step::Commit, keys.keys),
        Some(reap_request::Step::Clear(_)) => return clear(node, round, partition).await,
        None => return Err(Failure::invalid("a question of a round is missing")),
    };
    if keys.len() > ROUND_KEYS_MAX {
        return Err(Failure::invalid(format!(
            "a round has at most {ROUND_KEYS_MAX} keys"
        )));
    }
    let mut response = ReapResponse::default();
    let answers = keys.into_iter().map(|key| one(node, round, step, key));
    for opinion in futures::future::join_all(answers).await {
        response.opinions.push(opinion_to_proto(opinion).into());
    }
    Ok(response)
}

async fn clear(node: &Arc<Node>, round: Round, partition: PartitionId) -> Result<ReapResponse, Failure> {
    let opinion = match node.holdings(partition).await {
        Ok(holdings) => match reap::clear(node.standing(partition), round, holdings) {
            Ok(()) => ReapOpinion::Yes,
            Err(refusal) => refusal_to_proto(refusal),
        },
        Err(error) => {
            tracing::warn!(partition = partition.0, %error, "cannot tell whether there are hints or strays");
            ReapOpinion::Unspecified
        }
    };
    Ok(ReapResponse {
        clear: opinion.into(),
        ..ReapResponse::default()
    })
}

async fn one(node: &Arc<Node>, round: Round, step: Step, asked: ReapKey) -> Opinion {
    let silent = Opinion::Refuses(Refusal::Silent);
    let Ok(key) = DataKey::parse(asked.position.clone()) else {
        return silent;
    };
    let proposal = Proposal {
        position: asked.position,
        digest: asked.digest,
        target: asked.truncated.map_or(Target::Absent, Target::Truncated),
    };
    let replica = match node.reap_replica(&key).await {
        Ok(replica) => replica,
        Err(error) => {
            tracing::warn!(key_hash = %key.hash(), %error, "cannot read a record that is to be removed");
            return silent;
        }
    };
    let partition = node.ring_in_use().map(|placed| placed.partition_of(&key));
    let standing = node.standing(partition.unwrap_or(PartitionId(0)));
    let grace_ms = node.config().background.reap_grace_ms;
    match step {
        Step::Agree | Step::Clear => reap::agree(standing, round, &proposal, &replica, grace_ms),
        Step::Prepare => {
            let (opinion, mark) = reap::prepare(standing, round, &proposal, &replica, grace_ms);
            let Some(mark) = mark else { return opinion };
            let expected = Expected {
                digest: mark.digest,
                mark: None,
            };
            swapped(node, key, expected, Swap::Mark(mark.encode()), opinion).await
        }
        Step::Commit => match reap::commit(round, &replica) {
            Ok(removal) => {
                let Some(mark) = replica.mark else { return silent };
                let expected = Expected {
                    digest: mark.digest,
                    mark: Some(mark.encode()),
                };
                let Some(swap) = swap_of(removal, asked.state) else {
                    return Opinion::Refuses(Refusal::Differs);
                };
                swapped(node, key, expected, swap, Opinion::Holds { marked: false }).await
            }
            Err(refusal) => Opinion::Refuses(refusal),
        },
    }
}

fn swap_of(removal: Removal, state: Bytes) -> Option<Swap> {
    match removal {
        Removal::Delete => Some(Swap::Delete),
        Removal::Replace(digest) => {
            let state = KeyState::decode(state).ok()?;
            (state.digest() == digest).then_some(Swap::Replace(state))
        }
    }
}

/// Durable when it returns, in every mode of durability.
async fn swapped(node: &Arc<Node>, key: DataKey, expected: Expected, swap: Swap, done: Opinion) -> Opinion {
    match node.writer().swap(key, expected, swap, true).await {
        Ok(Some(_)) => done,
        Ok(None) => Opinion::Refuses(Refusal::Differs),
        Err(error) => {
            tracing::warn!(%error, "cannot mark or remove a record");
            Opinion::Refuses(Refusal::Silent)
        }
    }
}

/// What an answer on the wire means.
pub(crate) fn opinion(opinion: ReapOpinion) -> Opinion {
    Opinion::Refuses(match opinion {
        ReapOpinion::Yes => return Opinion::Holds { marked: false },
        ReapOpinion::Marked => return Opinion::Holds { marked: true },
        ReapOpinion::AtTarget => return Opinion::AtTarget,
        ReapOpinion::Unspecified => Refusal::Silent,
        ReapOpinion::OtherEpoch => Refusal::OtherEpoch,
        ReapOpinion::Transition => Refusal::Transition,
        ReapOpinion::Suspect => Refusal::Suspect,
        ReapOpinion::Differs => Refusal::Differs,
        ReapOpinion::NotQuiet => Refusal::NotQuiet,
        ReapOpinion::NotClear => Refusal::NotClear,
        ReapOpinion::NotMarked => Refusal::NotMarked,
    })
}

fn opinion_to_proto(opinion: Opinion) -> ReapOpinion {
    match opinion {
        Opinion::Holds { marked: false } => ReapOpinion::Yes,
        Opinion::Holds { marked: true } => ReapOpinion::Marked,
        Opinion::AtTarget => ReapOpinion::AtTarget,
        Opinion::Refuses(refusal) => refusal_to_proto(refusal),
    }
}

fn refusal_to_proto(refusal: Refusal) -> ReapOpinion {
    match refusal {
        Refusal::OtherEpoch => ReapOpinion::OtherEpoch,
        Refusal::Transition => ReapOpinion::Transition,
        Refusal::Suspect => ReapOpinion::Suspect,
        Refusal::Differs => ReapOpinion::Differs,
        Refusal::NotQuiet => ReapOpinion::NotQuiet,
        Refusal::NotClear => ReapOpinion::NotClear,
        Refusal::NotMarked => ReapOpinion::NotMarked,
        Refusal::Silent => ReapOpinion::Unspecified,
    }
}
