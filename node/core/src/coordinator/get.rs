//! The machine of a get. Paper: §4.5, §5.

use std::collections::BTreeMap;

use super::{Candidate, FailedReplica, FailureKind, ReplicaFailure};
use crate::quorum::Quorum;
use crate::types::MemberId;
use crate::version::KeyState;

/// What happens to a get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GetEvent {
    /// The first event.
    Start,
    /// A replica has answered. Repetitions and members that were not asked are ignored.
    ReplicaDone {
        /// Who.
        member: MemberId,
        /// Its record; `None`: it holds none. An error is never an absent record.
        result: Result<Option<KeyState>, ReplicaFailure>,
    },
    /// The client waits no longer.
    DeadlineReached,
}

/// What the caller must do for a get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GetEffect {
    /// Read a replica's record: the local one, or a peer's.
    Read {
        /// Whose.
        member: MemberId,
    },
    /// Answer the client. Comes exactly once.
    Reply(GetOutcome),
}

/// A get's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetOutcome {
    /// Nodes that had answered.
    pub acks: u32,
    /// What their records come to.
    pub result: GetResult,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GetResult {
    /// The merged record; at least one value is live.
    Found(KeyState),
    /// Enough primaries agree that no value is live. With the tombstones that say so, if there are any.
    Absent(Option<KeyState>),
    /// Too few replicas answered to say either.
    Unavailable {
        /// Answers that were needed.
        needed: u32,
        /// Answers that came.
        got: u32,
        /// The deadline came while answers were outstanding.
        timed_out: bool,
        /// Who failed, and why.
        failed: Vec<FailedReplica>,
    },
}

/// Counts the replicas of one get, merges their records and decides when to reply, and what.
#[derive(Debug)]
pub struct GetCoordinator {
    quorum: Quorum,
    replicas: BTreeMap<MemberId, Replica>,
    /// The candidates in preference order: the order of asking.
    order: Vec<MemberId>,
    /// When the get began: what has expired by then is absent.
    wall_ms: u64,
    /// What the answers come to; `None`: no replica holds a record.
    merged: Option<KeyState>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Reading,
    Replied,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replica {
    /// To be asked, or asked.
    Open,
    Answered,
    Failed(FailureKind),
}

impl GetCoordinator {
    /// A get that any node coordinates. `candidates` are all N primaries in preference order; values that have
    /// expired by `wall_ms` count as absent.
    pub fn new(quorum: Quorum, candidates: Vec<Candidate>, wall_ms: u64) -> Self {
        let mut replicas = BTreeMap::new();
        let mut order = Vec::with_capacity(candidates.len());
        for Candidate { member, reachable } in candidates {
            let replica = if reachable {
                Replica::Open
            } else {
                Replica::Failed(FailureKind::Unreachable)
            };
            if replicas.insert(member.clone(), replica).is_none() {
                order.push(member);
            }
        }
        Self {
            quorum,
            replicas,
            order,
            wall_ms,
            merged: None,
            phase: Phase::New,
        }
    }

    /// Takes an event and appends what is to be done.
    pub fn step(&mut self, event: GetEvent, effects: &mut Vec<GetEffect>) {
        match event {
            GetEvent::Start if self.phase == Phase::New => self.start(effects),
            GetEvent::ReplicaDone { member, result }
                if self.phase == Phase::Reading && self.replicas.get(&member) == Some(&Replica::Open) =>
            {
                self.add(member, result);
                self.decide(effects);
            }
            GetEvent::DeadlineReached if self.phase != Phase::Replied => {
                self.reply(self.unavailable(true), effects);
            }
            // Too early, too late or repeated.
            _ => {}
        }
    }

    /// True once the reply has been given out.
    pub fn replied(&self) -> bool {
        self.phase == Phase::Replied
    }

    fn start(&mut self, effects: &mut Vec<GetEffect>) {
        self.phase = Phase::Reading;
        self.decide(effects);
        if self.phase == Phase::Reading {
            for member in &self.order {
                if self.replicas.get(member) == Some(&Replica::Open) {
                    effects.push(GetEffect::Read {
                        member: member.clone(),
                    });
                }
            }
        }
    }

    fn add(&mut self, member: MemberId, result: Result<Option<KeyState>, ReplicaFailure>) {
        let replica = match result {
            Ok(state) => {
                self.merged = match (self.merged.take(), state) {
                    (Some(mut merged), Some(state)) => {
                        merged.merge(&state);
                        Some(merged)
                    }
                    (merged, state) => merged.or(state),
                };
                Replica::Answered
            }
            Err(failure) => Replica::Failed(failure.kind),
        };
        self.replicas.insert(member, replica);
    }

    /// Replies if the answers suffice, or no longer can.
    fn decide(&mut self, effects: &mut Vec<GetEffect>) {
        let answered = self.count(|replica| replica == Replica::Answered);
        let open = self.count(|replica| replica == Replica::Open);
        let found = self
            .merged
            .as_ref()
            .is_some_and(|merged| !merged.is_deleted(self.wall_ms));
        if found && answered >= self.needed_to_find() {
            if let Some(merged) = self.merged.take() {
                self.reply(GetResult::Found(merged), effects);
            }
        } else if !found && answered >= self.quorum.absence() {
            let merged = self.merged.take();
            self.reply(GetResult::Absent(merged), effects);
        } else if open == 0 || answered + open < self.needed_to_find() {
            self.reply(self.unavailable(false), effects);
        }
    }

    fn reply(&mut self, result: GetResult, effects: &mut Vec<GetEffect>) {
        self.phase = Phase::Replied;
        let acks = self.count(|replica| replica == Replica::Answered);
        effects.push(GetEffect::Reply(GetOutcome { acks, result }));
    }

    fn unavailable(&self, timed_out: bool) -> GetResult {
        let got = self.count(|replica| replica == Replica::Answered);
        // With enough answers for a value, what was missing is the certainty that there is none.
        let needed = if got < self.needed_to_find() {
            self.needed_to_find()
        } else {
            self.quorum.absence()
        };
        let mut failed = Vec::new();
        for (member, replica) in &self.replicas {
            if let Replica::Failed(kind) = replica {
                failed.push(FailedReplica {
                    member: member.clone(),
                    kind: *kind,
                });
            }
        }
        GetResult::Unavailable {
            needed,
            got,
            timed_out,
            failed,
        }
    }

    /// All who answer are primaries.
    fn needed_to_find(&self) -> u32 {
        self.quorum.r.max(self.quorum.pr)
    }

    fn count(&self, wanted: impl Fn(Replica) -> bool) -> u32 {
        self.replicas.values().filter(|replica| wanted(**replica)).count() as u32
    }
}
