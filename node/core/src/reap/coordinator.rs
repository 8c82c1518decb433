//! The machine of one round, run by the partition's first primary.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Opinion, Proposal, ROUND_KEYS_MAX, Refusal, Round};
use crate::types::MemberId;

/// Who is asked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReapParties {
    /// The member that runs the round: one of the primaries. It is asked like the others, locally.
    pub me: MemberId,
    /// All N primaries of the partition.
    pub primaries: Vec<MemberId>,
    /// Every member of the ring, and every other one that is not declared dead, up or down.
    pub members: Vec<MemberId>,
    /// Fault hook: asks nobody whether it is clear. Never set outside tests: overwritten values may come back.
    pub force: bool,
}

/// What happens in a round. A call that failed, or whose answer is damaged, is an empty answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReapEvent {
    /// The first event.
    Start,
    /// A primary's answer to `Agree`, by position.
    Agreed {
        /// Who.
        member: MemberId,
        /// What it says of each key.
        opinions: BTreeMap<Bytes, Opinion>,
    },
    /// A member's answer to `Clear`.
    Cleared {
        /// Who.
        member: MemberId,
        /// `Err(Silent)` if there was none.
        result: Result<(), Refusal>,
    },
    /// A primary's answer to `Prepare`, by position; its marks are synced.
    Prepared {
        /// Who.
        member: MemberId,
        /// What it says of each key.
        opinions: BTreeMap<Bytes, Opinion>,
    },
    /// A primary has committed.
    Committed {
        /// Who.
        member: MemberId,
        /// The keys that it has brought to their target.
        positions: BTreeSet<Bytes>,
    },
    /// The round has taken too long: who has not answered will not.
    DeadlineReached,
}

/// What the caller must do for a round.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ReapEffect {
    /// Ask a primary for its opinion: [`agree`](super::agree).
    Agree {
        /// Whom.
        member: MemberId,
        /// About what.
        proposals: Vec<Proposal>,
    },
    /// Ask a member whether it is clear: [`clear`](super::clear).
    Clear {
        /// Whom.
        member: MemberId,
    },
    /// Ask a primary to mark: [`prepare`](super::prepare).
    Prepare {
        /// Whom.
        member: MemberId,
        /// What.
        proposals: Vec<Proposal>,
    },
    /// Ask a primary to remove what it has marked: [`commit`](super::commit). For truncation the caller adds the states.
    Commit {
        /// Whom.
        member: MemberId,
        /// What.
        proposals: Vec<Proposal>,
    },
    /// The round is over. Comes exactly once.
    Done(ReapReport),
}

/// How a round ended.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ReapReport {
    /// Keys that are at their target on all N primaries.
    pub removed: u64,
    /// Keys that all had prepared and that some have not committed, as far as is known: a later round finishes them.
    pub unfinished: u64,
    /// Keys that were stopped, by the reason that was heard first.
    pub refused: BTreeMap<Refusal, u64>,
    /// The first member that was not clear, which stopped the whole round.
    pub not_clear: Option<(MemberId, Refusal)>,
}

/// One round: asks, compares, and goes on to the next question only when all have answered well.
///
/// Answers of members that were not asked, or were heard already, and of earlier questions are ignored; so the
/// machine may be fed with whatever arrives.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReapCoordinator {
    round: Round,
    parties: ReapParties,
    keys: BTreeMap<Bytes, Key>,
    phase: Phase,
    /// Who has been asked and has not answered.
    waiting: BTreeSet<MemberId>,
    report: ReapReport,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Phase {
    New,
    Agreeing,
    Clearing,
    Preparing,
    CommittingOthers,
    CommittingSelf,
    Done,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Key {
    proposal: Proposal,
    /// Primaries that are at the target already.
    at_target: BTreeSet<MemberId>,
    /// Some primary has a standing mark for it, from before this round.
    marked: bool,
}

impl ReapCoordinator {
    /// A round over at most [`ROUND_KEYS_MAX`] keys of one partition; more are left for the next one.
    pub fn new(round: Round, parties: ReapParties, proposals: Vec<Proposal>) -> Self {
        let keys = proposals.into_iter().take(ROUND_KEYS_MAX).map(|proposal| {
            let key = Key {
                proposal,
                at_target: BTreeSet::new(),
                marked: false,
            };
            (key.proposal.position.clone(), key)
        });
        Self {
            round,
            parties,
            keys: keys.collect(),
            phase: Phase::New,
            waiting: BTreeSet::new(),
            report: ReapReport::default(),
        }
    }

    /// The round that every question names.
    pub fn round(&self) -> Round {
        self.round
    }

    /// True once `Done` is out.
    pub fn finished(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Takes an event, returns what is to be done.
    pub fn step(&mut self, event: ReapEvent) -> Vec<ReapEffect> {
        match (event, self.phase) {
            (ReapEvent::Start, Phase::New) => {
                return if self.keys.is_empty() {
                    self.finish()
                } else {
                    self.enter(Phase::Agreeing)
                };
            }
            (ReapEvent::Agreed { member, opinions }, Phase::Agreeing) if self.waiting.remove(&member) => {
                self.hear_agreed(&member, &opinions);
            }
            (ReapEvent::Cleared { member, result }, Phase::Clearing) if self.waiting.remove(&member) => {
                if let Err(refusal) = result {
                    self.report.not_clear = Some((member, refusal));
                    return self.stop(refusal);
                }
            }
            (ReapEvent::Prepared { member, opinions }, Phase::Preparing) if self.waiting.remove(&member) => {
                self.hear_prepared(&member, &opinions);
            }
            (ReapEvent::Committed { member, positions }, Phase::CommittingOthers | Phase::CommittingSelf)
                if self.waiting.remove(&member) =>
            {
                self.hear_committed(&member, &positions);
            }
            (ReapEvent::DeadlineReached, phase) if phase != Phase::Done => return self.give_up(),
            _ => return Vec::new(),
        }
        self.go_on()
    }

    fn hear_agreed(&mut self, member: &MemberId, opinions: &BTreeMap<Bytes, Opinion>) {
        self.keep(|key| match opinion_of(opinions, key) {
            Opinion::Holds { marked } => {
                key.marked |= marked;
                Ok(())
            }
            Opinion::AtTarget => {
                key.at_target.insert(member.clone());
                Ok(())
            }
            Opinion::Refuses(refusal) => Err(refusal),
        });
    }

    fn hear_prepared(&mut self, member: &MemberId, opinions: &BTreeMap<Bytes, Opinion>) {
        self.keep(
            |key| match (opinion_of(opinions, key), key.at_target.contains(member)) {
                (Opinion::Holds { .. }, false) | (Opinion::AtTarget, true) => Ok(()),
                (Opinion::Refuses(refusal), _) => Err(refusal),
                // Its record has come or gone since `Agree`: another round is at work, or something arrived.
                _ => Err(Refusal::Differs),
            },
        );
    }

    fn hear_committed(&mut self, member: &MemberId, positions: &BTreeSet<Bytes>) {
        let before = self.keys.len();
        self.keys
            .retain(|position, key| positions.contains(position) || key.at_target.contains(member));
        self.report.unfinished += (before - self.keys.len()) as u64;
    }

    /// Keeps the keys for which `judge` is content, counts the others.
    fn keep(&mut self, mut judge: impl FnMut(&mut Key) -> Result<(), Refusal>) {
        let refused = &mut self.report.refused;
        self.keys.retain(|_, key| match judge(key) {
            Ok(()) => true,
            Err(refusal) => {
                *refused.entry(refusal).or_default() += 1;
                false
            }
        });
    }

    /// Puts the next question once all have answered this one.
    fn go_on(&mut self) -> Vec<ReapEffect> {
        if self.keys.is_empty() {
            return self.finish();
        }
        if !self.waiting.is_empty() {
            return Vec::new();
        }
        match self.phase {
            Phase::Agreeing => {
                // Absence alone is no agreement: see the module's "Why it ends".
                self.keep(|key| {
                    let witnessed = key.marked || key.at_target.is_empty();
                    witnessed.then_some(()).ok_or(Refusal::Differs)
                });
                if self.keys.is_empty() {
                    self.finish()
                } else if self.parties.force {
                    self.enter(Phase::Preparing)
                } else {
                    self.enter(Phase::Clearing)
                }
            }
            Phase::Clearing => self.enter(Phase::Preparing),
            Phase::Preparing => self.enter(Phase::CommittingOthers),
            Phase::CommittingOthers => self.enter(Phase::CommittingSelf),
            Phase::CommittingSelf => {
                self.report.removed = self.keys.len() as u64;
                self.finish()
            }
            Phase::New | Phase::Done => Vec::new(),
        }
    }

    fn enter(&mut self, phase: Phase) -> Vec<ReapEffect> {
        self.phase = phase;
        let questions = self.questions();
        self.waiting = questions.keys().cloned().collect();
        if questions.is_empty() {
            // No primary is left to commit: those of this phase are at the target already.
            return self.go_on();
        }
        questions.into_values().collect()
    }

    /// Whom the phase asks what. Each member once.
    fn questions(&self) -> BTreeMap<MemberId, ReapEffect> {
        let all = || self.keys.values().map(|key| key.proposal.clone()).collect();
        let ReapParties {
            me,
            primaries,
            members,
            ..
        } = &self.parties;
        let primaries: BTreeSet<&MemberId> = primaries.iter().chain([me]).collect();
        let asked: BTreeSet<&MemberId> = match self.phase {
            Phase::Clearing => members.iter().chain(primaries).collect(),
            Phase::CommittingOthers => primaries.into_iter().filter(|member| *member != me).collect(),
            Phase::CommittingSelf => BTreeSet::from([me]),
            _ => primaries,
        };
        let question = |member: MemberId| match self.phase {
            Phase::Agreeing => Some(ReapEffect::Agree {
                member,
                proposals: all(),
            }),
            Phase::Clearing => Some(ReapEffect::Clear { member }),
            Phase::Preparing => Some(ReapEffect::Prepare {
                member,
                proposals: all(),
            }),
            Phase::CommittingOthers | Phase::CommittingSelf => self.commit_of(member),
            Phase::New | Phase::Done => None,
        };
        asked
            .into_iter()
            .filter_map(|member| Some((member.clone(), question(member.clone())?)))
            .collect()
    }

    /// What a primary has to commit, if it is not at the target with all keys already.
    fn commit_of(&self, member: MemberId) -> Option<ReapEffect> {
        let open = self.keys.values().filter(|key| !key.at_target.contains(&member));
        let proposals: Vec<Proposal> = open.map(|key| key.proposal.clone()).collect();
        (!proposals.is_empty()).then_some(ReapEffect::Commit { member, proposals })
    }

    /// Some will not answer any more.
    fn give_up(&mut self) -> Vec<ReapEffect> {
        match self.phase {
            Phase::CommittingOthers | Phase::CommittingSelf => {
                self.report.unfinished += self.keys.len() as u64;
                self.keys.clear();
                self.finish()
            }
            Phase::Clearing => {
                let silent = self.waiting.first().cloned();
                self.report.not_clear = silent.map(|member| (member, Refusal::Silent));
                self.stop(Refusal::Silent)
            }
            _ => self.stop(Refusal::Silent),
        }
    }

    /// Ends the round for all keys that are left.
    fn stop(&mut self, refusal: Refusal) -> Vec<ReapEffect> {
        self.keep(|_| Err(refusal));
        self.finish()
    }

    fn finish(&mut self) -> Vec<ReapEffect> {
        self.phase = Phase::Done;
        self.waiting.clear();
        vec![ReapEffect::Done(self.report.clone())]
    }
}

fn opinion_of(opinions: &BTreeMap<Bytes, Opinion>, key: &Key) -> Opinion {
    let silent = Opinion::Refuses(Refusal::Silent);
    opinions.get(&key.proposal.position).copied().unwrap_or(silent)
}
