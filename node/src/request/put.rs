//! Puts and deletes: run by one of the key's first N reachable nodes, forwarded to one by everybody
//! else. Paper: §4.5, §4.6, §5, §6.4.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use dynamo_core::{
    coordinator::{
        Ack, FailureKind, PutCoordinator, PutEffect, PutEvent, ReplicaFailure, WriteFailure, WriteOutcome,
        WriteState,
    },
    crdt::{self, DataType, Operation, TypedUpdate},
    quorum::Quorum,
    replica::{Update, UpdateRefused},
    types::{MemberId, OpId},
    version::{Content, Context, Seen},
};
use dynamo_proto::v1;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};

use super::{Deadline, Served, UNKNOWN_ADDRESS, who_failed};
use crate::{
    clock,
    grpc::status::{Failure, Reason},
    node::{Begun, Node, Placed},
    peers::{Replication, To},
    storage::{
        DataKey,
        hints::HintError,
        writer::{Intent, WriteError},
    },
};

/// A put or a delete, checked.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub(crate) key: DataKey,
    pub(crate) change: Change,
    /// None: the client sent no context.
    pub(crate) context: Option<Seen>,
    pub(crate) op_id: Option<OpId>,
    /// Milliseconds since 1970.
    pub(crate) expires_at_ms: Option<u64>,
    pub(crate) quorum: Quorum,
}

/// What a write does to the record.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A value or a tombstone, beside what the context does not cover.
    Siblings(Content),
    /// A value or a tombstone, where the one written last wins.
    Lww(Content),
    /// An operation on a value of a data type.
    Typed(DataType, Operation),
}

/// A write that met its quorum.
#[derive(Debug)]
pub(crate) struct Written {
    /// What the client has seen now.
    pub(crate) context: Seen,
    pub(crate) outcome: v1::WriteOutcome,
    pub(crate) served: Served,
}

/// How many calls' time a write goes on after its reply: a failing primary, its stand-in, and the next one.
const FOLLOW_UP_CALLS: u32 = 3;

/// What happens while a write runs.
enum Arrival {
    /// The local writer has minted the dot; what others must merge may leave.
    Prepared {
        context: Seen,
        delta: Bytes,
        committed: Running,
    },
    /// The local writer refuses the write, for a reason of the client's.
    Refused(Failure),
    Event(PutEvent),
}

type Running = BoxFuture<'static, Arrival>;

/// Coordinates a write as one of the key's first N reachable nodes. What is still under way after the reply goes on by
/// itself: slow primaries may yet need a stand-in that keeps a hint for them.
///
/// # Errors
/// With the truth about what may have been applied.
pub(crate) async fn coordinate(
    node: &Arc<Node>,
    placed: &Arc<Placed>,
    command: Command,
    deadline: Deadline,
) -> Result<Written, Failure> {
    let (operation, placed) = &node.begin(placed);
    let candidates = node.put_candidates(placed, &command.key);
    let mut write = Unfinished(Some(Write {
        machine: PutCoordinator::new(command.quorum, placed.me().clone(), candidates),
        node: Arc::clone(node),
        _operation: Arc::clone(operation),
        placed: Arc::clone(placed),
        command,
        prepared: None,
        running: FuturesUnordered::new(),
    }));
    let Some(write) = &mut write.0 else {
        return Err(Failure::new(Reason::NotReady, "the write has ended early").not_applied());
    };
    let mut effects = Vec::new();
    write.machine.step(PutEvent::Start, &mut effects);
    let outcome = write.until_reply(effects, deadline).await?;
    let served = Served {
        fallbacks_counted: outcome.fallbacks_counted,
        ..placed.served(&write.command.quorum, outcome.acks)
    };
    let context = write.prepared.as_ref().map(|(context, _)| context.clone());
    node.metrics().fallbacks_counted(outcome.fallbacks_counted);
    finish(&write.command, context, outcome, served)
}

/// A write whose request may go, with its answer or without: the write goes on.
struct Unfinished(Option<Write>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(write) = self.0.take()
            && write.goes_on()
        {
            tokio::spawn(write.follow_up());
        }
    }
}

/// One write while it runs.
struct Write {
    node: Arc<Node>,
    command: Command,
    machine: PutCoordinator,
    /// A change of the ring waits for its end.
    _operation: Arc<Begun>,
    placed: Arc<Placed>,
    /// The reply's context and the encoded delta, once the local replica has given the dot.
    prepared: Option<(Seen, Bytes)>,
    /// The local write, and those under way to peers.
    running: FuturesUnordered<Running>,
}

impl Write {
    fn goes_on(&self) -> bool {
        self.machine.waiting() || !self.running.is_empty()
    }

    async fn until_reply(
        &mut self,
        mut effects: Vec<PutEffect>,
        deadline: Deadline,
    ) -> Result<WriteOutcome, Failure> {
        let mut late = pin!(deadline.reached());
        loop {
            while !effects.is_empty() {
                if let Some(outcome) = self.perform(&mut effects) {
                    return Ok(outcome);
                }
            }
            let event = tokio::select! {
                Some(arrival) = self.running.next() => self.arrived(arrival)?,
                () = &mut late => PutEvent::DeadlineReached,
            };
            self.machine.step(event, &mut effects);
        }
    }

    /// After the reply, or without one if the request is gone: what is under way comes to its end, and finds stand-ins for
    /// primaries that fail now. Bounded by the time of a few calls.
    async fn follow_up(mut self) {
        let deadline = Deadline::after(self.node.peers().call_timeout() * FOLLOW_UP_CALLS);
        let mut late = pin!(deadline.reached());
        let mut effects = Vec::new();
        loop {
            // The last answer may have been a failure, whose stand-in is still to be asked.
            while !effects.is_empty() {
                self.perform(&mut effects);
            }
            let arrival = tokio::select! {
                arrival = self.running.next() => arrival,
                () = &mut late => None,
            };
            let Some(arrival) = arrival else { return };
            // Who refuses has told the client, if that still listens.
            let Ok(event) = self.arrived(arrival) else { return };
            self.machine.step(event, &mut effects);
        }
    }

    /// What that means to the machine; the reason, if it ends the write.
    fn arrived(&mut self, arrival: Arrival) -> Result<PutEvent, Failure> {
        match arrival {
            Arrival::Prepared {
                context,
                delta,
                committed,
            } => {
                self.prepared = Some((context, delta));
                self.running.push(committed);
                Ok(PutEvent::LocalPrepared)
            }
            Arrival::Refused(failure) => Err(failure.not_applied()),
            Arrival::Event(event) => Ok(event),
        }
    }

    /// Carries out all effects, which may cause new ones; gives the outcome if one of them is the reply.
    fn perform(&mut self, effects: &mut Vec<PutEffect>) -> Option<WriteOutcome> {
        let mut outcome = None;
        for effect in std::mem::take(effects) {
            match effect {
                PutEffect::WriteLocal { hint_for } => self.write_local(hint_for),
                PutEffect::Send { member, hint_for } => self.send(member, hint_for, effects),
                PutEffect::Reply(reply) => outcome = Some(reply),
            }
        }
        outcome
    }

    fn send(&mut self, member: MemberId, hint_for: Option<MemberId>, effects: &mut Vec<PutEffect>) {
        if let (Some(to), Some((_, delta))) = (self.node.membership().to(&member), &self.prepared) {
            let delta = delta.clone();
            // By the rings that the write began with: who pulls by a newer one has to know that it is not written to.
            self.write_to(self.placed.stamped(to), delta, hint_for);
            return;
        }
        let result = Err(UNKNOWN_ADDRESS);
        self.machine.step(PutEvent::PeerDone { member, result }, effects);
    }

    /// The local half: the writer mints the dot, which may leave at once (a node that loses it to a crash comes back as
    /// another incarnation), then commits.
    fn write_local(&self, hint_for: Option<MemberId>) {
        let hint_for = hint_for.map(|owner| self.node.hint_owner(owner));
        let intent = self.command.intent(&self.node);
        let typed = matches!(self.command.change, Change::Typed(..));
        let covered = self.command.context.clone().unwrap_or_default();
        let (key, sync) = (self.command.key.clone(), self.command.quorum.dw > 0);
        let node = Arc::clone(&self.node);
        self.running.push(Box::pin(async move {
            let prepared = match &hint_for {
                None => node.writer().coordinate(&key, intent, sync).await,
                Some(owner) => {
                    let kept = node.hints().coordinate(owner, &key, intent, sync).await;
                    kept.map_err(HintError::into_write)
                }
            };
            let prepared = match prepared {
                Ok(prepared) => prepared,
                Err(error) => return local_done(&key, Err(error)),
            };
            let context = if typed {
                crdt::reply_context(&covered, prepared.dot, &prepared.delta)
            } else {
                Context::of_reply(&covered, prepared.dot).seen
            };
            let delta = prepared.delta.encode();
            let doubtful = (hint_for.is_none() && node.is_doubtful()).then(|| prepared.delta.clone());
            let committed = Box::pin(async move {
                let committed = match (prepared.committed().await, doubtful) {
                    (Ok(committed), Some(delta)) => node.keep_for_itself(&key, delta, committed).await,
                    (committed, _) => committed,
                };
                let ack = committed.map(|committed| Ack {
                    durable: committed.durable,
                });
                local_done(&key, ack)
            });
            Arrival::Prepared {
                context,
                delta,
                committed,
            }
        }));
    }

    /// Sends the delta to a peer.
    fn write_to(&self, to: To, delta: Bytes, hint_for: Option<MemberId>) {
        let (key, sync) = (self.command.key.clone(), self.command.quorum.dw > 0);
        let node = Arc::clone(&self.node);
        self.running.push(Box::pin(async move {
            let replication = Replication { sync, hint_for };
            let result = node.peers().write(&to, &key, delta, replication).await;
            node.behind(&result);
            let member = to.member;
            Arrival::Event(PutEvent::PeerDone { member, result })
        }));
    }
}

impl Command {
    /// What the writer is to do, stamped with this node's clock.
    fn intent(&self, node: &Node) -> Intent {
        let stamp = node.stamp();
        let update = |content: &Content| Update {
            content: content.clone(),
            context: self.context.clone().unwrap_or_default(),
            op_id: self.op_id,
            stamp,
            expires_at_ms: self.expires_at_ms,
        };
        match &self.change {
            Change::Siblings(content) => Intent::Siblings(update(content)),
            Change::Lww(content) => Intent::Lww {
                update: update(content),
                wall_ms: clock::wall_ms(),
            },
            Change::Typed(data_type, operation) => Intent::Typed {
                data_type: *data_type,
                update: TypedUpdate {
                    operation: operation.clone(),
                    context: self.context.clone(),
                    op_id: self.op_id,
                    stamp,
                    expires_at_ms: self.expires_at_ms,
                    wall_ms: clock::wall_ms(),
                    value_bytes_max: node.config().limits.value_bytes_max,
                },
            },
        }
    }
}

fn local_done(key: &DataKey, result: Result<Ack, WriteError>) -> Arrival {
    let error = match result {
        Ok(ack) => return Arrival::Event(PutEvent::LocalDone(Ok(ack))),
        Err(error) => error,
    };
    let refused = |reason, why: String| {
        let message = format!("the put of the key with hash {} is refused: {why}", key.hash());
        Arrival::Refused(Failure::new(reason, message))
    };
    match error {
        WriteError::Refused(
            why @ (UpdateRefused::TooManySiblings { .. } | UpdateRefused::SiblingsTooLarge { .. }),
        ) => refused(Reason::TooManySiblings, why.to_string()),
        WriteError::Refused(why) => refused(Reason::InvalidArgument, why.to_string()),
        WriteError::TypedRefused(why) => refused(Reason::InvalidArgument, why.to_string()),
        WriteError::Overloaded => refused(
            Reason::Overloaded,
            "this node's queue of writes is full; try another node".to_owned(),
        ),
        WriteError::DiskFull { .. } | WriteError::BudgetSpent => refused(Reason::DiskFull, error.to_string()),
        error => {
            tracing::warn!(key_hash = %key.hash(), %error, "the local write failed");
            Arrival::Event(PutEvent::LocalDone(Err(ReplicaFailure {
                sent: matches!(error, WriteError::Storage(_)),
                kind: FailureKind::Storage,
            })))
        }
    }
}

fn finish(
    command: &Command,
    context: Option<Seen>,
    outcome: WriteOutcome,
    served: Served,
) -> Result<Written, Failure> {
    let told = outcome_message(&outcome);
    match (outcome.failure, context) {
        (None, Some(context)) => Ok(Written {
            context,
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
        fallbacks_counted: outcome.fallbacks_counted,
        zones: outcome.zones,
    }
}
