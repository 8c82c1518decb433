//! The machine of a get, with its read repair. Paper: §4.5, §5.

use super::reads::{Answers, Reads};
use super::{Candidates, FailedReplica, ReplicaFailure};
use crate::bucket::ReadRepair;
use crate::membership::detector::Pace;
use crate::quorum::Quorum;
use crate::types::MemberId;
use crate::version::KeyState;
/// What happens to a get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GetEvent {
    /// The first event.
    Start,
    /// A replica has answered. Repetitions and members that were not asked are ignored. An error is never an absent
    /// record.
    ReplicaDone {
        /// Who.
        member: MemberId,
        /// What it holds.
        result: Result<ReplicaRead, ReplicaFailure>,
    },
    /// The time that [`GetCoordinator::hold_back`] gave is over: asks those that were held back.
    Late,
    /// A repair has ended.
    RepairDone {
        /// Whose.
        member: MemberId,
        /// How.
        result: Result<(), ReplicaFailure>,
    },
    /// The client waits no longer. After the reply: repair on the grounds of the answers that have come.
    DeadlineReached,
}

/// A replica's answer to a read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplicaRead {
    /// Its record; `None`: it holds none.
    pub state: Option<KeyState>,
    /// Its store may have lost writes: what it holds counts, that it answered does not.
    pub suspect: bool,
}

/// What the caller must do for a get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GetEffect {
    /// Read a replica's record: the local one, or a peer's.
    Read {
        /// Whose.
        member: MemberId,
        /// It stands in for a primary: read its hints, too.
        fallback: bool,
    },
    /// Merge this into a primary's record: the local one, or a peer's.
    Repair {
        /// Whose.
        member: MemberId,
        /// All that the replicas know of the key.
        state: KeyState,
    },
    /// Answer the client. Comes exactly once.
    Reply(GetOutcome),
    /// The reply did not take this primary, which was held back: compare what it holds, so that it is brought up to date as well.
    LeftOut {
        /// Who.
        member: MemberId,
    },
}

/// A get's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetOutcome {
    /// Nodes that had answered, as far as they count towards R.
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
        /// Answers that were needed; if as many came, primaries that had to hold the record before the reply.
        needed: u32,
        /// Answers that came, or such primaries.
        got: u32,
        /// The deadline came while answers were outstanding.
        timed_out: bool,
        /// Who failed, and why.
        failed: Vec<FailedReplica>,
    },
}

/// Counts the replicas of one get, merges their records, decides when to reply, and what, and whom to repair.
#[derive(Debug, Clone)]
pub struct GetCoordinator {
    quorum: Quorum,
    read_repair: ReadRepair,
    reads: Reads,
    wall_ms: u64,
    phase: Phase,
    replied: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    /// Before the reply.
    Reading,
    /// After it; more answers may show more that is out of date.
    Collecting,
    /// All answers are in; repairs are under way.
    Repairing,
    Ended,
}

impl GetCoordinator {
    /// A get that any node coordinates. `wall_ms` (milliseconds since 1970) tells which values have expired.
    pub fn new(quorum: Quorum, read_repair: ReadRepair, candidates: Candidates, wall_ms: u64) -> Self {
        Self {
            quorum,
            read_repair,
            reads: Reads::new(candidates),
            wall_ms,
            phase: Phase::New,
            replied: false,
        }
    }

    /// Before the start: has only as many primaries asked as the get needs if all goes well, `me` among them; the others once one
    /// of these fails, or is late. Returns after how many microseconds to say so: [`GetEvent::Late`]. `None`: all are asked, since
    /// all are needed or must be repaired first, one is unreachable, or has no `pace`.
    pub fn hold_back(
        &mut self,
        me: Option<&MemberId>,
        pace: impl Fn(&MemberId) -> Option<Pace>,
    ) -> Option<u64> {
        if self.phase != Phase::New || self.read_repair == ReadRepair::Blocking {
            return None;
        }
        let needed = self.quorum.r.max(self.quorum.pr) as usize;
        self.reads.hold_back(me, needed, pace)
    }

    /// True as long as [`GetEvent::Late`] would have somebody asked.
    pub fn holds_back(&self) -> bool {
        self.reads.holds_back()
    }

    /// Those whose answers are outstanding.
    pub fn awaited(&self) -> impl Iterator<Item = &MemberId> {
        self.reads.awaited()
    }

    /// Takes an event and appends what is to be done.
    pub fn step(&mut self, event: GetEvent, effects: &mut Vec<GetEffect>) {
        match event {
            GetEvent::Start if self.phase == Phase::New => {
                self.phase = Phase::Reading;
                self.decide(effects);
                self.ask(effects);
            }
            GetEvent::ReplicaDone { member, result } if self.reads.awaits(&member) => {
                self.replica_done(&member, result, effects);
            }
            GetEvent::Late => {
                self.reads.release();
                self.ask(effects);
            }
            GetEvent::RepairDone { member, result } => {
                self.reads.repaired(&member, result.is_ok());
                match self.phase {
                    Phase::Reading => self.decide(effects),
                    Phase::Repairing => self.repair(effects),
                    _ => {}
                }
            }
            GetEvent::DeadlineReached => self.time_out(effects),
            // Too early, too late or repeated.
            _ => {}
        }
    }

    /// True once the reply has been given out.
    pub fn replied(&self) -> bool {
        self.replied
    }

    /// True once nothing is outstanding any more, neither the reply nor a repair: the machine can be dropped.
    pub fn finished(&self) -> bool {
        match self.phase {
            Phase::New | Phase::Reading | Phase::Collecting => false,
            Phase::Repairing => !self.reads.repairing(),
            Phase::Ended => true,
        }
    }

    fn replica_done(
        &mut self,
        member: &MemberId,
        result: Result<ReplicaRead, ReplicaFailure>,
        effects: &mut Vec<GetEffect>,
    ) {
        match self.phase {
            Phase::Reading => {
                self.reads.add(member, result, true);
                self.decide(effects);
                self.ask(effects);
            }
            Phase::Collecting => {
                self.reads.add(member, result, false);
                self.close(effects);
            }
            _ => {}
        }
    }

    fn time_out(&mut self, effects: &mut Vec<GetEffect>) {
        match self.phase {
            Phase::New | Phase::Reading => self.unavailable(true, effects),
            Phase::Collecting => {
                self.phase = Phase::Repairing;
                self.repair(effects);
            }
            Phase::Repairing | Phase::Ended => self.phase = Phase::Ended,
        }
    }

    /// Asks whoever is to be asked and has not been.
    fn ask(&mut self, effects: &mut Vec<GetEffect>) {
        if self.phase == Phase::Reading {
            let asked = self.reads.ask().into_iter();
            effects.extend(asked.map(|(member, fallback)| GetEffect::Read { member, fallback }));
        }
    }

    /// Replies if the answers suffice, or no longer can.
    fn decide(&mut self, effects: &mut Vec<GetEffect>) {
        let Some(result) = self.verdict() else {
            if self.hopeless() {
                self.unavailable(false, effects);
            }
            return;
        };
        if self.reads.holders() < self.holders_needed() {
            self.repair(effects);
            if self.reads.holders_possible() < self.holders_needed() {
                self.unavailable(false, effects);
            }
            return;
        }
        self.reply(result, effects);
        let left_out = self.reads.ask_no_more().into_iter();
        if self.read_repair != ReadRepair::Off {
            effects.extend(left_out.map(|member| GetEffect::LeftOut { member }));
        }
        self.phase = Phase::Collecting;
        self.close(effects);
    }

    /// What the answers come to; `None`: too few.
    fn verdict(&self) -> Option<GetResult> {
        let answers = self.reads.answers();
        match self.reads.merged() {
            Some(merged) if !merged.is_deleted(self.wall_ms) => {
                let enough = self.counted(answers) >= self.quorum.r && answers.primaries >= self.quorum.pr;
                enough.then(|| GetResult::Found(merged.clone()))
            }
            // An empty fallback proves nothing, so primaries alone can tell that there is nothing.
            merged => {
                let sure = answers.primaries >= self.quorum.absence();
                sure.then(|| GetResult::Absent(merged.cloned()))
            }
        }
    }

    /// The answers that count towards R. "I have nothing" of a fallback is no information by itself: it fills up R only
    /// beside the record of a primary.
    fn counted(&self, answers: Answers) -> u32 {
        if self.read_repair == ReadRepair::Blocking {
            return answers.primaries;
        }
        let empty = if answers.primaries_present > 0 {
            answers.fallbacks_empty
        } else {
            0
        };
        answers.primaries + answers.fallbacks_present + empty
    }

    /// True if no answer that may still come can lead to a verdict.
    fn hopeless(&self) -> bool {
        let answers = self.reads.answers();
        let open = answers.primaries_open + answers.fallbacks_open;
        let best = Answers {
            primaries: answers.primaries + answers.primaries_open,
            primaries_present: answers.primaries_present + answers.primaries_open,
            fallbacks_present: answers.fallbacks_present + answers.fallbacks_open,
            ..answers
        };
        open == 0 || self.counted(best) < self.quorum.r || best.primaries < self.quorum.pr
    }

    /// Primaries that must hold the merged record before the reply, so that any R of the N meet one of them.
    fn holders_needed(&self) -> u32 {
        if self.read_repair == ReadRepair::Blocking && self.reads.merged().is_some() {
            self.quorum.n - self.quorum.r + 1
        } else {
            0
        }
    }

    /// After the reply: repairs once nothing is outstanding that could show more.
    fn close(&mut self, effects: &mut Vec<GetEffect>) {
        let answers = self.reads.answers();
        if self.read_repair == ReadRepair::Off {
            self.phase = Phase::Ended;
        } else if answers.primaries_open + answers.fallbacks_open == 0 {
            self.phase = Phase::Repairing;
            self.repair(effects);
        }
    }

    fn repair(&mut self, effects: &mut Vec<GetEffect>) {
        for member in self.reads.repair() {
            if let Some(state) = self.reads.merged().cloned() {
                effects.push(GetEffect::Repair { member, state });
            }
        }
    }

    fn reply(&mut self, result: GetResult, effects: &mut Vec<GetEffect>) {
        self.replied = true;
        let acks = self.counted(self.reads.answers());
        effects.push(GetEffect::Reply(GetOutcome { acks, result }));
    }

    fn unavailable(&mut self, timed_out: bool, effects: &mut Vec<GetEffect>) {
        let answers = self.reads.answers();
        let counted = self.counted(answers);
        let Quorum { r, pr, .. } = self.quorum;
        let (needed, got) = if self.verdict().is_some() {
            (self.holders_needed(), self.reads.holders())
        } else if answers.primaries < pr && (pr >= r || counted >= r) {
            (pr, answers.primaries)
        } else if counted < r {
            (r, counted)
        } else {
            // With enough answers for a value, what was missing is the certainty that there is none.
            (self.quorum.absence(), answers.primaries)
        };
        let failed = self.reads.failed();
        self.reply(
            GetResult::Unavailable {
                needed,
                got,
                timed_out,
                failed,
            },
            effects,
        );
        self.phase = Phase::Ended;
    }
}
