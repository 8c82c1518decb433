//! The machine of a put or delete. Paper: §4.5, §4.6, §5.

use super::copies::{Copies, Progress, Tally};
use super::{Candidates, FailedReplica, FailureKind, ReplicaFailure};
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
    /// The client waits no longer. After the reply: no more stand-ins are looked for.
    DeadlineReached,
}

/// What the caller must do for a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutEffect {
    /// Coordinate the write on the local replica, under the key's lock.
    WriteLocal {
        /// The local node is a fallback: it keeps the write as a hint for that primary.
        hint_for: Option<MemberId>,
    },
    /// Send the delta to a peer. Comes also after the reply.
    Send {
        /// To whom.
        member: MemberId,
        /// The peer is a fallback: it shall keep the write as a hint for that primary.
        hint_for: Option<MemberId>,
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
    /// Nodes that have accepted it: primaries, and fallbacks each for another primary; at most N.
    pub acks: u32,
    /// Of these, primaries.
    pub primaries: u32,
    /// Of these, fallbacks: the others. Until their hints are delivered, a read of the primaries may miss the write.
    pub fallbacks_counted: u32,
    /// Of the nodes in `acks`, those that have synced it to disk.
    pub durable: u32,
    /// Distinct zones of the nodes that have accepted it.
    pub zones: u32,
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
        /// `w`, `pw`, `dw` or `zones`.
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
        /// `w`, `pw`, `dw` or `zones`.
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
#[derive(Debug, Clone)]
pub struct PutCoordinator {
    quorum: Quorum,
    me: MemberId,
    copies: Copies,
    phase: Phase,
    replied: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    /// The local write is under way, nothing has left the node.
    Preparing,
    /// The delta has left; stand-ins get it as they are needed.
    Sent,
    /// Nothing leaves any more.
    Ended,
}

impl PutCoordinator {
    /// A put that `me`, one of the key's first N reachable nodes, coordinates. The local node counts as reachable,
    /// whatever is said about it in `candidates`.
    pub fn new(quorum: Quorum, me: MemberId, candidates: Candidates) -> Self {
        let copies = Copies::new(candidates, &me, quorum.zones > 0);
        Self {
            quorum,
            me,
            copies,
            phase: Phase::New,
            replied: false,
        }
    }

    /// Takes an event and appends what is to be done.
    pub fn step(&mut self, event: PutEvent, effects: &mut Vec<PutEffect>) {
        match event {
            PutEvent::Start if self.phase == Phase::New => self.start(effects),
            PutEvent::LocalPrepared if self.phase == Phase::Preparing => {
                self.phase = Phase::Sent;
                self.send(effects);
            }
            PutEvent::LocalDone(result) if self.awaits(&self.me) => self.local_done(result, effects),
            PutEvent::PeerDone { member, result } if member != self.me && self.awaits(&member) => {
                self.count(&member, result);
                self.decide(effects);
                self.send(effects);
            }
            PutEvent::DeadlineReached => self.time_out(effects),
            // Too early, too late or repeated.
            _ => {}
        }
    }

    /// True once the reply has been given out.
    pub fn replied(&self) -> bool {
        self.replied
    }

    /// True while an answer is outstanding that could lead to something, also after the reply.
    pub fn waiting(&self) -> bool {
        self.phase != Phase::Ended && self.copies.waiting()
    }

    fn awaits(&self, member: &MemberId) -> bool {
        self.phase != Phase::Ended && self.copies.progress(member) == Some(Progress::Waiting)
    }

    fn start(&mut self, effects: &mut Vec<PutEffect>) {
        // Judged before anything is done, so that a write that cannot succeed leaves no trace.
        self.phase = Phase::Preparing;
        self.decide(effects);
        if self.phase == Phase::Preparing {
            self.copies.set(&self.me, Progress::Waiting);
            effects.push(PutEffect::WriteLocal {
                hint_for: self.copies.hint_for(&self.me),
            });
        }
    }

    /// Asks whoever is to be asked and has not been.
    fn send(&mut self, effects: &mut Vec<PutEffect>) {
        if self.phase != Phase::Sent {
            return;
        }
        for member in self.copies.idle() {
            self.copies.set(&member, Progress::Waiting);
            let hint_for = self.copies.hint_for(&member);
            effects.push(PutEffect::Send { member, hint_for });
        }
    }

    fn local_done(&mut self, result: Result<Ack, ReplicaFailure>, effects: &mut Vec<PutEffect>) {
        if self.phase == Phase::Preparing {
            if let Err(failure) = result {
                // Without a dot there is nothing that the peers could store.
                self.copies.set(&self.me, Progress::Failed(failure));
                self.reply_failed(WriteFailure::Local(failure.kind), effects);
                return;
            }
            self.phase = Phase::Sent;
            self.send(effects);
        }
        let me = self.me.clone();
        self.count(&me, result);
        self.decide(effects);
        self.send(effects);
    }

    fn count(&mut self, member: &MemberId, result: Result<Ack, ReplicaFailure>) {
        let progress = match result {
            Ok(Ack { durable }) => Progress::Accepted { durable },
            Err(failure) => Progress::Failed(failure),
        };
        self.copies.set(member, progress);
    }

    /// Replies if the quorum is met, or can no longer be.
    fn decide(&mut self, effects: &mut Vec<PutEffect>) {
        if self.replied {
            return;
        }
        let got = self.copies.tally();
        if self.shortfall(got).is_none() {
            self.replied = true;
            effects.push(PutEffect::Reply(outcome(WriteState::Applied, got, None)));
        } else if let Some((field, needed, possible)) = self.shortfall(self.copies.best_case()) {
            let failed = self.copies.failed();
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
        let missing = self.shortfall(self.copies.tally());
        if let Some((field, needed, got)) = missing.filter(|_| !self.replied) {
            let failed = self.copies.failed();
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
        self.phase = Phase::Ended;
    }

    fn reply_failed(&mut self, failure: WriteFailure, effects: &mut Vec<PutEffect>) {
        let state = if self.copies.traces() {
            WriteState::Partial
        } else {
            WriteState::NotApplied
        };
        // What is called not applied stays so. What some nodes may have shall reach the others, if it has a dot.
        if state == WriteState::NotApplied || self.phase != Phase::Sent {
            self.phase = Phase::Ended;
        }
        self.replied = true;
        let got = self.copies.tally();
        effects.push(PutEffect::Reply(outcome(state, got, Some(failure))));
    }

    /// The first condition that a tally does not meet: its name, what it needs, what it has.
    fn shortfall(&self, tally: Tally) -> Option<(&'static str, u32, u32)> {
        [
            ("w", self.quorum.w, tally.acks),
            ("pw", self.quorum.pw, tally.primaries),
            ("dw", self.quorum.dw, tally.durable),
            ("zones", self.quorum.zones, tally.zones),
        ]
        .into_iter()
        .find(|(_, needed, got)| got < needed)
    }
}

fn outcome(state: WriteState, tally: Tally, failure: Option<WriteFailure>) -> WriteOutcome {
    WriteOutcome {
        state,
        acks: tally.acks,
        primaries: tally.primaries,
        fallbacks_counted: tally.acks - tally.primaries,
        durable: tally.durable,
        zones: tally.zones,
        failure,
    }
}
