//! The machine of a put or delete. Paper: §4.5, §5.

use std::collections::BTreeMap;

use super::{Candidate, FailedReplica, FailureKind, ReplicaFailure};
use crate::quorum::Quorum;
use crate::types::MemberId;

/// What happens to a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutEvent {
    /// The first event.
    Start,
    /// The local replica has given the write its dot: the delta may leave, before the local write is on disk. After
    /// the reply it no longer leaves.
    LocalPrepared,
    /// The local write has ended. Without a `LocalPrepared` before it, success stands for both.
    LocalDone(Result<Ack, ReplicaFailure>),
    /// A peer's write has ended. Repetitions and members that were not asked are ignored.
    PeerDone {
        /// Who.
        member: MemberId,
        /// How.
        result: Result<Ack, ReplicaFailure>,
    },
    /// The client waits no longer.
    DeadlineReached,
}

/// What the caller must do for a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutEffect {
    /// Coordinate the write on the local replica, under the key's lock.
    WriteLocal,
    /// Send the delta to a peer.
    Send {
        /// To whom.
        member: MemberId,
    },
    /// Answer the client. Comes exactly once.
    Reply(WriteOutcome),
}

/// A replica has accepted a write under the cluster's durability mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// It has also synced the write to disk.
    pub durable: bool,
}

/// The truth about a write at the moment of the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOutcome {
    /// What it came to.
    pub state: WriteState,
    /// Nodes that have accepted it.
    pub acks: u32,
    /// Of these, primaries.
    pub primaries: u32,
    /// Of these, nodes that have synced it to disk.
    pub durable: u32,
    /// Set unless the write is applied.
    pub failure: Option<WriteFailure>,
}

/// How far a write came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteState {
    /// The quorum accepted it.
    Applied,
    /// Some nodes may hold it: one read may see it and the next miss it, until it is repaired.
    Partial,
    /// Nothing was stored, and nothing that was sent can still be: safe to repeat.
    NotApplied,
}

/// Why a write is not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteFailure {
    /// Too few replicas are left that could still accept it.
    #[error("the write needs {field} = {needed}, only {possible} replicas can meet it")]
    QuorumNotMet {
        /// `w`, `pw` or `dw`.
        field: &'static str,
        /// What was asked for.
        needed: u32,
        /// What can be met at most.
        possible: u32,
        /// Who failed, and why.
        failed: Vec<FailedReplica>,
    },
    /// The deadline came first.
    #[error("the write needs {field} = {needed}, {got} replicas had met it at the deadline")]
    TimedOut {
        /// `w`, `pw` or `dw`.
        field: &'static str,
        /// What was asked for.
        needed: u32,
        /// What was met.
        got: u32,
        /// Who failed before, and why.
        failed: Vec<FailedReplica>,
    },
    /// The local replica failed before it gave the write its dot, so that there is nothing to send.
    #[error("the coordinator could not begin the write: {}", .0.as_str())]
    Local(FailureKind),
}

/// Counts the replicas of one put or delete and decides when to reply, and what.
#[derive(Debug)]
pub struct PutCoordinator {
    quorum: Quorum,
    me: MemberId,
    replicas: BTreeMap<MemberId, Replica>,
    /// The peers among the candidates, in preference order: the order of sending.
    peers: Vec<MemberId>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    /// The local write is under way, nothing has left the node.
    Preparing,
    /// The delta has left.
    Sent,
    Replied,
}

/// Where the write to one replica stands. All are primaries: this release has no fallbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replica {
    /// May still be asked.
    Idle,
    /// Asked; may or may not have the write.
    Waiting,
    Accepted {
        durable: bool,
    },
    Failed(ReplicaFailure),
}

/// What replicas have done, or could have done in the best case.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    acks: u32,
    durable: u32,
}

impl PutCoordinator {
    /// A put that `me`, one of the key's primaries, coordinates. `candidates` are all N primaries in preference
    /// order; the local node counts as one of them and as reachable, whatever is said about it there.
    pub fn new(quorum: Quorum, me: MemberId, candidates: Vec<Candidate>) -> Self {
        let mut replicas = BTreeMap::new();
        let mut peers = Vec::with_capacity(candidates.len());
        for Candidate { member, reachable } in candidates {
            let unreachable = ReplicaFailure {
                sent: false,
                kind: FailureKind::Unreachable,
            };
            let replica = if reachable {
                Replica::Idle
            } else {
                Replica::Failed(unreachable)
            };
            if member != me && replicas.insert(member.clone(), replica).is_none() {
                peers.push(member);
            }
        }
        replicas.insert(me.clone(), Replica::Idle);
        Self {
            quorum,
            me,
            replicas,
            peers,
            phase: Phase::New,
        }
    }

    /// Takes an event and appends what is to be done.
    pub fn step(&mut self, event: PutEvent, effects: &mut Vec<PutEffect>) {
        match event {
            PutEvent::Start if self.phase == Phase::New => self.start(effects),
            PutEvent::LocalPrepared if self.phase == Phase::Preparing => self.send(effects),
            PutEvent::LocalDone(result) if self.replicas.get(&self.me) == Some(&Replica::Waiting) => {
                self.local_done(result, effects);
            }
            PutEvent::PeerDone { member, result }
                if member != self.me && self.replicas.get(&member) == Some(&Replica::Waiting) =>
            {
                self.count(member, result);
                self.decide(effects);
            }
            PutEvent::DeadlineReached if self.phase != Phase::Replied => self.time_out(effects),
            // Too early, too late or repeated.
            _ => {}
        }
    }

    /// True once the reply has been given out.
    pub fn replied(&self) -> bool {
        self.phase == Phase::Replied
    }

    /// True while an answer of a replica is outstanding, also after the reply.
    pub fn waiting(&self) -> bool {
        self.replicas.values().any(|replica| *replica == Replica::Waiting)
    }

    fn start(&mut self, effects: &mut Vec<PutEffect>) {
        // Judged before anything is done, so that a write that cannot succeed leaves no trace.
        self.phase = Phase::Preparing;
        self.decide(effects);
        if self.phase == Phase::Preparing {
            self.replicas.insert(self.me.clone(), Replica::Waiting);
            effects.push(PutEffect::WriteLocal);
        }
    }

    fn send(&mut self, effects: &mut Vec<PutEffect>) {
        self.phase = Phase::Sent;
        for member in &self.peers {
            if let Some(replica @ Replica::Idle) = self.replicas.get_mut(member) {
                *replica = Replica::Waiting;
                effects.push(PutEffect::Send {
                    member: member.clone(),
                });
            }
        }
    }

    fn local_done(&mut self, result: Result<Ack, ReplicaFailure>, effects: &mut Vec<PutEffect>) {
        let prepared = self.phase != Phase::Preparing;
        match result {
            Ok(_) if !prepared => self.send(effects),
            // Without a dot there is nothing that the peers could store.
            Err(failure) if !prepared => {
                self.count(self.me.clone(), result);
                self.reply_failed(WriteFailure::Local(failure.kind), effects);
            }
            _ => {}
        }
        self.count(self.me.clone(), result);
        self.decide(effects);
    }

    fn count(&mut self, member: MemberId, result: Result<Ack, ReplicaFailure>) {
        let replica = match result {
            Ok(Ack { durable }) => Replica::Accepted { durable },
            Err(failure) => Replica::Failed(failure),
        };
        self.replicas.insert(member, replica);
    }

    /// Replies if the quorum is met, or can no longer be.
    fn decide(&mut self, effects: &mut Vec<PutEffect>) {
        if self.phase == Phase::Replied {
            return;
        }
        let got = self.tally();
        if self.shortfall(got).is_none() {
            self.phase = Phase::Replied;
            effects.push(PutEffect::Reply(outcome(WriteState::Applied, got, None)));
        } else if let Some((field, needed, possible)) = self.shortfall(self.best_case()) {
            let failed = self.failed();
            self.reply_failed(
                WriteFailure::QuorumNotMet {
                    field,
                    needed,
                    possible,
                    failed,
                },
                effects,
            );
        }
    }

    fn time_out(&mut self, effects: &mut Vec<PutEffect>) {
        if let Some((field, needed, got)) = self.shortfall(self.tally()) {
            let failed = self.failed();
            self.reply_failed(
                WriteFailure::TimedOut {
                    field,
                    needed,
                    got,
                    failed,
                },
                effects,
            );
        }
    }

    fn reply_failed(&mut self, failure: WriteFailure, effects: &mut Vec<PutEffect>) {
        let traces = self.replicas.values().any(|replica| match replica {
            Replica::Idle => false,
            Replica::Waiting | Replica::Accepted { .. } => true,
            Replica::Failed(failure) => failure.sent,
        });
        let state = if traces {
            WriteState::Partial
        } else {
            WriteState::NotApplied
        };
        self.phase = Phase::Replied;
        effects.push(PutEffect::Reply(outcome(state, self.tally(), Some(failure))));
    }

    /// What has been accepted.
    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for replica in self.replicas.values() {
            if let Replica::Accepted { durable } = replica {
                tally.acks += 1;
                tally.durable += u32::from(*durable);
            }
        }
        tally
    }

    /// What will have been accepted if all that have not failed accept and sync: the one definition of "can still
    /// succeed".
    fn best_case(&self) -> Tally {
        let open = self
            .replicas
            .values()
            .filter(|replica| matches!(replica, Replica::Idle | Replica::Waiting));
        let open = open.count() as u32;
        let Tally { acks, durable } = self.tally();
        Tally {
            acks: acks + open,
            durable: durable + open,
        }
    }

    /// The first condition that a tally does not meet: its name, what it needs, what it has.
    fn shortfall(&self, tally: Tally) -> Option<(&'static str, u32, u32)> {
        [
            ("w", self.quorum.w, tally.acks),
            ("pw", self.quorum.pw, tally.acks),
            ("dw", self.quorum.dw, tally.durable),
        ]
        .into_iter()
        .find(|(_, needed, got)| got < needed)
    }

    fn failed(&self) -> Vec<FailedReplica> {
        let mut failed = Vec::new();
        for (member, replica) in &self.replicas {
            if let Replica::Failed(failure) = replica {
                failed.push(FailedReplica {
                    member: member.clone(),
                    kind: failure.kind,
                });
            }
        }
        failed
    }
}

fn outcome(state: WriteState, tally: Tally, failure: Option<WriteFailure>) -> WriteOutcome {
    // All replicas are primaries.
    WriteOutcome {
        state,
        acks: tally.acks,
        primaries: tally.acks,
        durable: tally.durable,
        failure,
    }
}
