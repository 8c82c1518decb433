//! What the nodes that one get has asked have answered, and what that comes to.

use std::collections::BTreeMap;

use super::candidates::{Candidates, StandIns};
use super::{FailedReplica, FailureKind, ReplicaFailure, ReplicaRead};
use crate::membership::detector::Pace;
use crate::types::{MemberId, Zone};
use crate::version::KeyState;

/// No answer is late before: below, timers and schedulers decide more than nodes.
const LATE_US_MIN: u64 = 1000;

/// All nodes that one get concerns.
#[derive(Debug, Clone)]
pub(super) struct Reads {
    nodes: BTreeMap<MemberId, Node>,
    /// The primaries in preference order.
    primaries: Vec<MemberId>,
    stand_ins: StandIns,
    /// What the answers come to; `None`: nobody holds a record.
    merged: Option<KeyState>,
    /// How often an answer has changed `merged`.
    version: u32,
}

#[derive(Debug, Clone)]
struct Node {
    zone: Zone,
    /// Index of the primary that this node is or stands in for.
    place: usize,
    answer: Answer,
    /// The last version of `merged` that this node is known to hold in full; `None`: it has never been equal.
    holds: Option<u32>,
    repair: Repair,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// A primary that is asked only if another one is late or no help.
    HeldBack,
    /// To be asked.
    Idle,
    Waiting,
    Given {
        present: bool,
        suspect: bool,
    },
    Failed(FailureKind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repair {
    None,
    /// Under way, with that version.
    Sent(u32),
    Failed,
}

/// How many have answered, suspect stores left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// Primaries that have answered.
    pub(super) primaries: u32,
    /// Of these, those that hold a record.
    pub(super) primaries_present: u32,
    /// Primaries that have not answered yet.
    pub(super) primaries_open: u32,
    /// Fallbacks that hold a record.
    pub(super) fallbacks_present: u32,
    /// Fallbacks that hold none.
    pub(super) fallbacks_empty: u32,
    /// Fallbacks that have not answered yet.
    pub(super) fallbacks_open: u32,
}

impl Reads {
    pub(super) fn new(candidates: Candidates) -> Self {
        let Candidates {
            primaries, fallbacks, ..
        } = candidates;
        let mut nodes = BTreeMap::new();
        let mut order = Vec::with_capacity(primaries.len());
        for primary in primaries {
            if nodes.contains_key(&primary.member) {
                continue;
            }
            let answer = if primary.reachable {
                Answer::Idle
            } else {
                Answer::Failed(FailureKind::Unreachable)
            };
            nodes.insert(
                primary.member.clone(),
                Node::new(primary.zone, order.len(), answer),
            );
            order.push(primary.member);
        }
        let stand_ins = StandIns::new(fallbacks, |member| nodes.contains_key(member));
        let mut reads = Self {
            nodes,
            primaries: order,
            stand_ins,
            merged: None,
            version: 0,
        };
        reads.find_stand_ins();
        reads
    }

    /// Holds back all but `needed` primaries, and says in how many microseconds these should have answered; `None`: all are
    /// needed, one is stood in for, or it is not known how long one takes. `me` needs no request and is never held back. Of the
    /// others the first in preference order are asked, so that all are asked alike; but those that are slow by more than chance,
    /// or stand still, come last.
    pub(super) fn hold_back(
        &mut self,
        me: Option<&MemberId>,
        needed: usize,
        pace: impl Fn(&MemberId) -> Option<Pace>,
    ) -> Option<u64> {
        if self.nodes.len() <= needed || self.nodes.values().any(|node| node.answer != Answer::Idle) {
            return None;
        }
        let others = self.primaries.iter().filter(|member| Some(*member) != me);
        let mut others = others
            .map(|member| Some((member, pace(member)?)))
            .collect::<Option<Vec<_>>>()?;
        let fastest_us = others.iter().map(|(_, pace)| pace.mean_us).min()?;
        others.sort_by_key(|(_, pace)| pace.is_late || pace.mean_us > 2 * fastest_us + LATE_US_MIN);
        let asked = needed.saturating_sub(self.primaries.len() - others.len());
        let held_back = others.split_off(asked);
        for (member, _) in held_back {
            if let Some(node) = self.nodes.get_mut(member) {
                node.answer = Answer::HeldBack;
            }
        }
        let late_us = others.iter().map(|(_, pace)| pace.late_us).max();
        Some(late_us.unwrap_or_default().max(LATE_US_MIN))
    }

    /// True if a primary is held back.
    pub(super) fn holds_back(&self) -> bool {
        self.nodes.values().any(|node| node.answer == Answer::HeldBack)
    }

    /// Has those asked that are held back.
    pub(super) fn release(&mut self) {
        for node in self.nodes.values_mut() {
            if node.answer == Answer::HeldBack {
                node.answer = Answer::Idle;
            }
        }
    }

    /// Those whose answers are outstanding.
    pub(super) fn awaited(&self) -> impl Iterator<Item = &MemberId> {
        let waiting = self
            .nodes
            .iter()
            .filter(|(_, node)| node.answer == Answer::Waiting);
        waiting.map(|(member, _)| member)
    }

    /// True if that node's answer is outstanding.
    pub(super) fn awaits(&self, member: &MemberId) -> bool {
        self.nodes
            .get(member)
            .is_some_and(|node| node.answer == Answer::Waiting)
    }

    /// Whom to ask now, in preference order, and whether that is a fallback. Each is named once. Those that were held back are
    /// among them if one is no help, or if the answers that have come did not suffice.
    pub(super) fn ask(&mut self) -> Vec<(MemberId, bool)> {
        let mut answers = self.nodes.values().map(|node| node.answer);
        let more_may_come = answers
            .clone()
            .any(|answer| matches!(answer, Answer::Idle | Answer::Waiting));
        if !more_may_come || answers.any(Answer::is_no_help) {
            self.release();
        }
        let mut asked = Vec::new();
        for (member, node) in &mut self.nodes {
            if node.answer == Answer::Idle {
                node.answer = Answer::Waiting;
                asked.push((node.place, member.clone()));
            }
        }
        asked.sort();
        asked
            .into_iter()
            .map(|(place, member)| {
                let fallback = self.primaries.get(place) != Some(&member);
                (member, fallback)
            })
            .collect()
    }

    /// Takes an answer. A primary that is no help gets its next stand-in, if `replace`; but not before those that were held back
    /// have answered: they know more than a stand-in, whose "nothing" might fill the quorum before they say what it lacks.
    pub(super) fn add(
        &mut self,
        member: &MemberId,
        result: Result<ReplicaRead, ReplicaFailure>,
        replace: bool,
    ) {
        let (answer, holds) = match result {
            Ok(ReplicaRead { state, suspect }) => {
                let present = state.is_some();
                (Answer::Given { present, suspect }, self.merge(state))
            }
            Err(failure) => (Answer::Failed(failure.kind), None),
        };
        if let Some(node) = self.nodes.get_mut(member) {
            (node.answer, node.holds) = (answer, holds);
        }
        if replace && !self.holds_back() {
            self.find_stand_ins();
        }
    }

    /// Leaves out whoever has not been asked yet: nobody is asked any more. Returns the primaries that were held back.
    pub(super) fn ask_no_more(&mut self) -> Vec<MemberId> {
        let mut held_back = Vec::new();
        self.nodes.retain(|member, node| {
            if node.answer == Answer::HeldBack {
                held_back.push(member.clone());
            }
            !matches!(node.answer, Answer::Idle | Answer::HeldBack)
        });
        held_back
    }

    /// What the answers come to.
    pub(super) fn merged(&self) -> Option<&KeyState> {
        self.merged.as_ref()
    }

    /// How many have answered.
    pub(super) fn answers(&self) -> Answers {
        let mut answers = Answers::default();
        for (member, node) in &self.nodes {
            let primary = self.is_primary(member, node);
            match node.answer {
                Answer::HeldBack | Answer::Idle | Answer::Waiting if primary => answers.primaries_open += 1,
                Answer::HeldBack | Answer::Idle | Answer::Waiting => answers.fallbacks_open += 1,
                Answer::Given { suspect: true, .. } | Answer::Failed(_) => {}
                Answer::Given { present, .. } if primary => {
                    answers.primaries += 1;
                    answers.primaries_present += u32::from(present);
                }
                Answer::Given { present: true, .. } => answers.fallbacks_present += 1,
                Answer::Given { .. } => answers.fallbacks_empty += 1,
            }
        }
        answers
    }

    /// Who gave no answer that counts, and why.
    pub(super) fn failed(&self) -> Vec<FailedReplica> {
        let mut failed = Vec::new();
        for (member, node) in &self.nodes {
            let kind = match node.answer {
                Answer::Failed(kind) => kind,
                Answer::Given { suspect: true, .. } => FailureKind::Suspect,
                _ => continue,
            };
            failed.push(FailedReplica {
                member: member.clone(),
                kind,
            });
        }
        failed
    }

    /// Primaries that are known to hold all of the merged record.
    pub(super) fn holders(&self) -> u32 {
        self.count_primaries(|node| node.holds == Some(self.version))
    }

    /// Primaries that hold all of the merged record, or can still be brought to.
    pub(super) fn holders_possible(&self) -> u32 {
        self.count_primaries(|node| match node.answer {
            Answer::HeldBack | Answer::Idle | Answer::Waiting => true,
            Answer::Given { .. } => node.holds == Some(self.version) || node.repair != Repair::Failed,
            Answer::Failed(_) => false,
        })
    }

    /// The primaries to repair now, in preference order: they have answered and lack something of the merged record.
    /// Fallbacks are never repaired: what they keep are hints.
    pub(super) fn repair(&mut self) -> Vec<MemberId> {
        let mut repairs = Vec::new();
        for member in &self.primaries {
            if let Some(node) = self.nodes.get_mut(member)
                && matches!(node.answer, Answer::Given { .. })
                && node.holds != Some(self.version)
                && node.repair == Repair::None
            {
                node.repair = Repair::Sent(self.version);
                repairs.push(member.clone());
            }
        }
        repairs
    }

    /// Takes the end of a repair. A failed one is not tried again.
    pub(super) fn repaired(&mut self, member: &MemberId, done: bool) {
        if let Some(node) = self.nodes.get_mut(member)
            && let Repair::Sent(version) = node.repair
        {
            if done {
                // Complete only if the merged record has not changed since.
                node.holds = Some(version);
                node.repair = Repair::None;
            } else {
                node.repair = Repair::Failed;
            }
        }
    }

    /// True while a repair is under way.
    pub(super) fn repairing(&self) -> bool {
        let mut nodes = self.nodes.values();
        nodes.any(|node| matches!(node.repair, Repair::Sent(_)))
    }

    /// Adds a node's record, and says which version of the merged record it is equal to.
    fn merge(&mut self, state: Option<KeyState>) -> Option<u32> {
        match (&mut self.merged, state) {
            (None, None) => {}
            (Some(_), None) => return None,
            (merged @ None, state) => {
                *merged = state;
                self.version += 1;
            }
            (Some(merged), Some(state)) if *merged != state => {
                self.version += u32::from(merged.merge(&state));
                if *merged != state {
                    return None;
                }
            }
            _ => {}
        }
        Some(self.version)
    }

    /// Gives every primary that is no help, and has no stand-in that may be, its next one; first those that find one
    /// in their own zone.
    fn find_stand_ins(&mut self) {
        let mut helped = vec![false; self.primaries.len()];
        for node in self.nodes.values() {
            if let Some(helped) = helped.get_mut(node.place) {
                *helped |= !node.answer.is_no_help();
            }
        }
        let mut empty: Vec<usize> = (0..helped.len()).filter(|place| !helped[*place]).collect();
        for own_zone in [true, false] {
            empty.retain(|place| !self.find_stand_in(*place, own_zone));
        }
    }

    fn find_stand_in(&mut self, place: usize, own_zone: bool) -> bool {
        let primary = self.primaries.get(place);
        let Some(primary) = primary.and_then(|member| self.nodes.get(member)) else {
            return false;
        };
        let stand_in = if own_zone {
            self.stand_ins.next_in(&primary.zone)
        } else {
            self.stand_ins.next(&primary.zone, |_| false)
        };
        let Some(stand_in) = stand_in else {
            return false;
        };
        self.nodes
            .insert(stand_in.member, Node::new(stand_in.zone, place, Answer::Idle));
        true
    }

    fn is_primary(&self, member: &MemberId, node: &Node) -> bool {
        self.primaries.get(node.place) == Some(member)
    }

    fn count_primaries(&self, fits: impl Fn(&Node) -> bool) -> u32 {
        let primaries = self.primaries.iter().filter_map(|member| self.nodes.get(member));
        primaries.filter(|node| fits(node)).count() as u32
    }
}

impl Answer {
    /// It does not count towards a quorum.
    fn is_no_help(self) -> bool {
        matches!(self, Self::Failed(_) | Self::Given { suspect: true, .. })
    }
}

impl Node {
    fn new(zone: Zone, place: usize, answer: Answer) -> Self {
        Self {
            zone,
            place,
            answer,
            holds: None,
            repair: Repair::None,
        }
    }
}
