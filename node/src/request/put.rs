//! Puts and deletes: run by one of the key's primaries, forwarded to one by everybody else. Paper: §4.5, §5, §6.4.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::{
    coordinator::{
        Ack, Candidate, Candidates, FailureKind, PutCoordinator, PutEffect, PutEvent, ReplicaFailure,
        WriteFailure, WriteOutcome, WriteState,
    },
    quorum::Quorum,
    replica::Update,
    types::OpId,
    version::{Content, Dot, Seen},
};
use dynamo_proto::v1;
use tokio::sync::mpsc;

use super::{ARRIVALS_MAX, Deadline, Served, who_failed};
use crate::{
    grpc::status::{Failure, Reason},
    node::{Node, Placed},
    peers::To,
    storage::{DataKey, writer::WriteError},
};

/// A put or a delete, checked.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub(crate) key: DataKey,
    pub(crate) content: Content,
    pub(crate) context: Seen,
    pub(crate) op_id: Option<OpId>,
    pub(crate) quorum: Quorum,
}

/// A write that met its quorum.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) dot: Dot,
    pub(crate) outcome: v1::WriteOutcome,
    pub(crate) served: Served,
}

/// What arrives while a write runs.
enum Arrival {
    /// The local writer has minted the dot; what others must merge may leave.
    Prepared {
        dot: Dot,
        delta: Bytes,
    },
    /// The local writer refuses the write, for a reason of the client's.
    Refused(Failure),
    Event(PutEvent),
}

/// Coordinates a write as one of the key's primaries.
///
/// # Errors
/// With the truth about what may have been applied.
pub(crate) async fn coordinate(
    node: &Arc<Node>,
    placed: &Placed,
    command: Command,
    deadline: Deadline,
) -> Result<Written, Failure> {
    let candidates = Candidates {
        primaries: node.candidates(placed, &command.key),
        fallbacks: Vec::new(),
    };
    let mut machine = PutCoordinator::new(command.quorum, placed.me().clone(), candidates);
    let (arrivals_in, mut arrivals) = mpsc::channel(ARRIVALS_MAX);
    let mut effects = Vec::new();
    let mut prepared: Option<(Dot, Bytes)> = None;
    machine.step(PutEvent::Start, &mut effects);
    loop {
        for effect in std::mem::take(&mut effects) {
            match effect {
                PutEffect::WriteLocal { hint_for: _ } => spawn_local(node, &command, arrivals_in.clone()),
                PutEffect::Send { member, hint_for: _ } => {
                    let (Some(to), Some((_, delta))) = (node.membership().to(&member), &prepared) else {
                        let failure = ReplicaFailure {
                            sent: false,
                            kind: FailureKind::Unreachable,
                        };
                        machine.step(
                            PutEvent::PeerDone {
                                member,
                                result: Err(failure),
                            },
                            &mut effects,
                        );
                        continue;
                    };
                    spawn_send(node, &command, to, delta.clone(), arrivals_in.clone());
                }
                PutEffect::Reply(outcome) => {
                    let served = placed.served(&command.quorum, outcome.acks);
                    return finish(&command, prepared.map(|(dot, _)| dot), outcome, served);
                }
            }
        }
        if !effects.is_empty() {
            continue;
        }
        tokio::select! {
            arrival = arrivals.recv() => match arrival {
                Some(Arrival::Prepared { dot, delta }) => {
                    prepared = Some((dot, delta));
                    machine.step(PutEvent::LocalPrepared, &mut effects);
                }
                Some(Arrival::Refused(failure)) => return Err(failure.not_applied()),
                Some(Arrival::Event(event)) => machine.step(event, &mut effects),
                None => machine.step(PutEvent::DeadlineReached, &mut effects),
            },
            () = deadline.reached() => machine.step(PutEvent::DeadlineReached, &mut effects),
        }
    }
}

/// The local half: the writer mints the dot, which may leave at once (a node that loses it to a crash comes back as
/// another incarnation), then commits. It runs on when the request is gone.
fn spawn_local(node: &Arc<Node>, command: &Command, arrivals: mpsc::Sender<Arrival>) {
    let update = Update {
        content: command.content.clone(),
        context: command.context.clone(),
        op_id: command.op_id,
        stamp: node.stamp(),
        expires_at_ms: None,
    };
    let (key, sync) = (command.key.clone(), command.quorum.dw > 0);
    let node = Arc::clone(node);
    tokio::spawn(async move {
        let result = match node.writer().coordinate(key.clone(), update, sync).await {
            Ok(prepared) => {
                let delta = prepared.delta.encode();
                // A request that is gone no longer listens; the write goes on.
                let _ = arrivals
                    .send(Arrival::Prepared {
                        dot: prepared.dot,
                        delta,
                    })
                    .await;
                prepared.committed().await.map(|committed| Ack {
                    durable: committed.durable,
                })
            }
            Err(error) => Err(error),
        };
        let arrival = match result {
            Err(WriteError::Refused(refused)) => Arrival::Refused(Failure::new(
                Reason::TooManySiblings,
                format!(
                    "the put of the key with hash {} is refused: {refused}",
                    key.hash()
                ),
            )),
            Err(WriteError::Overloaded) => Arrival::Refused(Failure::new(
                Reason::Overloaded,
                "this node's queue of writes is full; try another node",
            )),
            other => Arrival::Event(PutEvent::LocalDone(other.map_err(|error| {
                tracing::warn!(key_hash = %key.hash(), %error, "the local write failed");
                ReplicaFailure {
                    sent: matches!(error, WriteError::Storage(_)),
                    kind: FailureKind::Storage,
                }
            }))),
        };
        let _ = arrivals.send(arrival).await;
    });
}

/// Sends the delta to a peer, on and beyond the request's life: a replica more than W is wanted, too.
fn spawn_send(node: &Arc<Node>, command: &Command, to: To, delta: Bytes, arrivals: mpsc::Sender<Arrival>) {
    let (key, sync) = (command.key.clone(), command.quorum.dw > 0);
    let node = Arc::clone(node);
    tokio::spawn(async move {
        let result = node.peers().write(&to, &key, delta, sync).await;
        let _ = arrivals
            .send(Arrival::Event(PutEvent::PeerDone {
                member: to.member,
                result,
            }))
            .await;
    });
}

fn finish(
    command: &Command,
    dot: Option<Dot>,
    outcome: WriteOutcome,
    served: Served,
) -> Result<Written, Failure> {
    let told = outcome_message(&outcome);
    match (outcome.failure, dot) {
        (None, Some(dot)) => Ok(Written {
            dot,
            outcome: told,
            served,
        }),
        (failure, _) => Err(refuse(command, failure.as_ref(), outcome.state).with_outcome(told)),
    }
}

fn refuse(command: &Command, failure: Option<&WriteFailure>, state: WriteState) -> Failure {
    let reason = match failure {
        Some(WriteFailure::TimedOut { .. }) => Reason::WriteTimedOut,
        _ => Reason::QuorumNotMet,
    };
    let why = match failure {
        Some(why @ (WriteFailure::TimedOut { failed, .. } | WriteFailure::QuorumNotMet { failed, .. })) => {
            format!("{why}{}", who_failed(failed))
        }
        Some(why) => why.to_string(),
        None => "it ended without a dot".to_owned(),
    };
    let advice = match state {
        WriteState::NotApplied => "nothing was sent or stored: repeat it",
        WriteState::Applied | WriteState::Partial => {
            "some replicas may hold it: repeat it with the same op id"
        }
    };
    Failure::new(
        reason,
        format!("the key with hash {}: {why}; {advice}", command.key.hash()),
    )
}

fn outcome_message(outcome: &WriteOutcome) -> v1::WriteOutcome {
    use v1::write_outcome::State;
    let state = match outcome.state {
        WriteState::Applied => State::Applied,
        WriteState::Partial => State::Partial,
        WriteState::NotApplied => State::NotApplied,
    };
    v1::WriteOutcome {
        state: state.into(),
        acks: outcome.acks,
        primaries: outcome.primaries,
        durable: outcome.durable,
    }
}

/// The primaries to forward to, the reachable ones first to last in the list's order.
pub(crate) fn forward_targets(candidates: &[Candidate]) -> impl Iterator<Item = &Candidate> {
    candidates.iter().filter(|candidate| candidate.reachable)
}
