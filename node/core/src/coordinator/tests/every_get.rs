//! Small gets with every answer of every node in every order, judged by a model that knows only what it has seen.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::membership::Pace;

/// What a node answers to a read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    Nothing,
    Deleted,
    /// It supersedes the deletion.
    Value,
    SuspectNothing,
    SuspectValue,
    Error,
    Unreachable,
}

use Says::{Deleted, Error, Nothing, SuspectNothing, SuspectValue, Unreachable, Value};

/// One case: the first `n` nodes are primaries, the others fallbacks.
#[derive(Debug)]
struct Case {
    quorum: Quorum,
    read_repair: ReadRepair,
    says: Vec<Says>,
    repairs_arrive: bool,
    /// Primaries that are not needed are not asked at once.
    holds_back: bool,
}

/// One get of a case, and what has been seen of it.
#[derive(Clone)]
struct Run<'a> {
    case: &'a Case,
    get: Get,
    asked: BTreeSet<usize>,
    answered: BTreeSet<usize>,
    /// Who is being repaired, with what.
    repairing: BTreeMap<usize, KeyState>,
    /// What repairs have made of records.
    repaired: BTreeMap<usize, KeyState>,
    repair_failed: BTreeSet<usize>,
    reply: Option<GetOutcome>,
    /// Primaries that were named instead of asked.
    left_out: BTreeSet<usize>,
    /// Who is asked has taken longer than it should.
    late: bool,
    over: bool,
}

impl Says {
    fn state(self) -> Option<KeyState> {
        match self {
            Deleted => Some(tombstone(1)),
            Value | SuspectValue => Some(value(2)),
            Nothing | SuspectNothing | Error | Unreachable => None,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Nothing | Deleted | Value)
    }

    fn answers(self) -> bool {
        !matches!(self, Error | Unreachable)
    }

    fn result(self) -> Result<ReplicaRead, ReplicaFailure> {
        if self == Error {
            return Err(failure(true, FailureKind::Unreachable));
        }
        Ok(ReplicaRead {
            state: self.state(),
            suspect: matches!(self, SuspectNothing | SuspectValue),
        })
    }
}

impl Case {
    fn n(&self) -> usize {
        self.quorum.n as usize
    }

    /// Answers that a get must wait for in any case.
    fn needed(&self) -> usize {
        self.quorum.r.max(self.quorum.pr) as usize
    }

    /// Every run of this case; how many there were.
    fn explore(&self) -> u32 {
        let sign = |says: &Says| if *says == Unreachable { '-' } else { '+' };
        let mut nodes: String = self.says.iter().map(sign).collect();
        nodes.insert(self.n(), '|');
        let mut run = Run {
            case: self,
            get: Get::new(self.quorum, self.read_repair, &nodes),
            asked: BTreeSet::new(),
            answered: BTreeSet::new(),
            repairing: BTreeMap::new(),
            repaired: BTreeMap::new(),
            repair_failed: BTreeSet::new(),
            reply: None,
            left_out: BTreeSet::new(),
            late: false,
            over: false,
        };
        if self.holds_back {
            let late_us = run.get.0.hold_back(Some(&member(0)), |_| Some(PACE));
            let plain =
                !self.says[..self.n()].contains(&Unreachable) && self.read_repair != ReadRepair::Blocking;
            assert_eq!(late_us.is_some(), plain && self.needed() < self.n(), "{self:?}");
        }
        run.event(GetEvent::Start);
        run.explore()
    }

    /// The verdict that is due on these answers; `None`: too few.
    fn due(&self, answers: &BTreeMap<usize, Says>) -> Option<bool> {
        let says = |index: &usize| answers.get(index).copied().filter(|says| says.counts());
        let count = |indexes: std::ops::Range<usize>, wanted: &dyn Fn(Says) -> bool| {
            indexes
                .filter_map(|index| says(&index))
                .filter(|says| wanted(*says))
                .count() as u32
        };
        let (primaries, fallbacks) = (0..self.n(), self.n()..self.says.len());
        let answered = count(primaries.clone(), &|_| true);
        let beside = count(primaries, &|says| says.state().is_some()) > 0;
        let hints = match self.read_repair {
            ReadRepair::Blocking => 0,
            _ => count(fallbacks, &|says| beside || says.state().is_some()),
        };
        let live = answers.values().any(|says| matches!(says, Value | SuspectValue));
        let Quorum { n, r, w, pr, .. } = self.quorum;
        let due = if live {
            answered + hints >= r && answered >= pr
        } else {
            answered >= r.max(pr).max(n - w + 1)
        };
        due.then_some(live)
    }
}

impl Run<'_> {
    fn explore(&self) -> u32 {
        let mut late = self.clone();
        late.event(GetEvent::DeadlineReached);
        late.end();
        let mut runs = 1;
        for index in self.asked.difference(&self.answered) {
            let mut next = self.clone();
            next.answer(*index);
            runs += next.explore();
            late.answer(*index);
        }
        if self.get.0.holds_back() && !self.late {
            let mut next = self.clone();
            next.late = true;
            next.event(GetEvent::Late);
            runs += next.explore();
        }
        for index in self.repairing.keys() {
            let mut next = self.clone();
            next.end_repair(*index);
            runs += next.explore();
        }
        if runs == 1 {
            assert!(self.get.0.finished(), "nothing is outstanding: {}", self.told());
            self.judge_repairs();
            self.judge_left_out();
        }
        runs
    }

    /// After the deadline: the repairs that it brought come to an end, and all is over.
    fn end(&mut self) {
        assert!(self.reply.is_some(), "{}", self.told());
        while let Some(index) = self.repairing.keys().next().copied() {
            self.end_repair(index);
        }
        self.over = true;
        assert!(self.get.0.finished(), "{}", self.told());
        // A repair that a later answer has outdated is not repeated after the deadline.
        if self.case.read_repair == ReadRepair::Async {
            self.judge_repairs();
        }
    }

    /// D37: a reply names all primaries that it did not ask, so that they are brought up to date as well.
    fn judge_left_out(&self) {
        let outcome = self.reply.as_ref();
        let found = outcome.is_some_and(|reply| !matches!(reply.result, GetResult::Unavailable { .. }));
        let unasked = (0..self.case.n())
            .filter(|index| !self.asked.contains(index) && self.case.says[*index] != Unreachable);
        let expected: BTreeSet<usize> = unasked
            .filter(|_| found && self.case.read_repair != ReadRepair::Off)
            .collect();
        assert_eq!(self.left_out, expected, "{}", self.told());
    }

    /// D37: all that answered are current now, unless a repair has failed.
    fn judge_repairs(&self) {
        let outcome = self.reply.as_ref();
        let found = outcome.is_some_and(|reply| !matches!(reply.result, GetResult::Unavailable { .. }));
        if !found || self.case.read_repair == ReadRepair::Off {
            return;
        }
        for index in (0..self.case.n()).filter(|index| self.answered.contains(index)) {
            if self.case.says[index].answers() && !self.repair_failed.contains(&index) {
                assert_eq!(self.record(index), self.merged(), "{index}: {}", self.told());
            }
        }
    }

    fn answer(&mut self, index: usize) {
        if !self.over {
            self.answered.insert(index);
        }
        let event = GetEvent::ReplicaDone {
            member: member(index),
            result: self.case.says[index].result(),
        };
        self.event(event.clone());
        assert_eq!(self.get.step(event), [], "again: {}", self.told());
    }

    fn end_repair(&mut self, index: usize) {
        let state = self.repairing.remove(&index).unwrap();
        let result = if self.case.repairs_arrive {
            self.repaired.insert(index, state);
            Ok(())
        } else {
            self.repair_failed.insert(index);
            Err(failure(true, FailureKind::TimedOut))
        };
        self.event(GetEvent::RepairDone {
            member: member(index),
            result,
        });
    }

    fn event(&mut self, event: GetEvent) {
        let timed_out = event == GetEvent::DeadlineReached;
        let effects = self.get.step(event);
        assert!(effects.is_empty() || !self.over, "{effects:?}: {}", self.told());
        for effect in effects {
            match effect {
                GetEffect::Read {
                    member: who,
                    fallback,
                } => {
                    let index = self.index(&who);
                    assert_eq!(fallback, index >= self.case.n(), "{}", self.told());
                    assert_ne!(self.case.says[index], Unreachable, "{}", self.told());
                    assert!(self.asked.insert(index), "asked once: {}", self.told());
                    assert_eq!(self.reply, None, "{}", self.told());
                }
                GetEffect::Repair { member: who, state } => self.repair(&who, state),
                GetEffect::Reply(outcome) => {
                    assert_eq!(self.reply, None, "one reply: {}", self.told());
                    self.judge(&outcome, timed_out);
                    self.reply = Some(outcome);
                }
                GetEffect::LeftOut { member: who } => {
                    assert!(self.reply.is_some(), "{}", self.told());
                    assert!(self.left_out.insert(self.index(&who)), "{}", self.told());
                }
            }
        }
        if self.reply.is_none() && !self.over {
            self.judge_silence();
        }
    }

    fn repair(&mut self, who: &MemberId, state: KeyState) {
        let index = self.index(who);
        let told = || self.told();
        assert_ne!(self.case.read_repair, ReadRepair::Off, "{}", told());
        assert!(index < self.case.n(), "only primaries are written: {}", told());
        assert!(
            self.answered.contains(&index) && self.case.says[index].answers(),
            "{}",
            told()
        );
        assert_eq!(Some(&state), self.merged().as_ref(), "{}", told());
        assert_ne!(
            self.record(index),
            Some(state.clone()),
            "it lacks nothing: {}",
            told()
        );
        assert!(
            self.reply.is_some() || self.case.read_repair == ReadRepair::Blocking,
            "after the reply: {}",
            told()
        );
        assert_eq!(self.repairing.insert(index, state), None, "{}", self.told());
    }

    fn judge(&self, outcome: &GetOutcome, timed_out: bool) {
        let told = || format!("{outcome:?}: {}", self.told());
        let due = self.case.due(&self.answers());
        match &outcome.result {
            GetResult::Found(state) => {
                assert_eq!(
                    (due, Some(state)),
                    (Some(true), self.merged().as_ref()),
                    "{}",
                    told()
                );
                assert!(self.held(), "{}", told());
            }
            GetResult::Absent(state) => {
                assert_eq!((due, state), (Some(false), &self.merged()), "{}", told());
                assert!(self.held(), "{}", told());
            }
            GetResult::Unavailable {
                timed_out: told_late,
                needed,
                got,
                ..
            } => {
                assert_eq!(*told_late, timed_out, "{}", told());
                assert!(got < needed, "{}", told());
                assert!(due.is_none() || !self.held(), "{}", told());
                assert!(timed_out || !self.possible(), "too early: {}", told());
            }
        }
    }

    /// No reply yet is right only if it cannot be given yet, and can be later.
    fn judge_silence(&self) {
        let told = || self.told();
        let due = self.case.due(&self.answers()).is_some();
        assert!(!due || !self.held(), "late: {}", told());
        assert!(self.possible(), "nothing can change any more: {}", told());
        self.judge_held_back();
        if !due {
            let useless = |index: &usize| {
                let known = self.answered.contains(index) || self.case.says[*index] == Unreachable;
                known && !self.case.says[*index].counts()
            };
            let failed = (0..self.case.n()).filter(useless).count();
            let all = self.case.n()..self.case.says.len();
            let fallbacks = all
                .clone()
                .filter(|index| self.case.says[*index] != Unreachable)
                .count();
            let failed = failed
                + self
                    .asked
                    .iter()
                    .filter(|index| all.contains(index) && useless(index))
                    .count();
            let asked = self.asked.iter().filter(|index| all.contains(index)).count();
            // Primaries that were held back come first.
            let open = |index: &usize| *index < self.case.n() && !self.answered.contains(index);
            let later = self.case.holds_back && self.asked.iter().any(open);
            let expected = failed.min(fallbacks);
            assert!(
                asked == expected || (later && asked < expected),
                "one for each that is no help: {}",
                told()
            );
        }
    }

    /// Primaries are held back as long as the others may suffice and none of them is late, and no longer.
    fn judge_held_back(&self) {
        let open = self.asked.difference(&self.answered).count();
        let setback = self.late || self.answered.iter().any(|index| !self.case.says[*index].counts());
        if self.get.0.holds_back() {
            assert!(open > 0 && !setback, "nobody is waited for: {}", self.told());
            assert_eq!(self.asked.len(), self.case.needed(), "{}", self.told());
        }
    }

    /// True if the answers that are out could still bring a verdict, and blocking repair its end.
    fn possible(&self) -> bool {
        let held_back = (0..self.case.n()).filter(|_| self.get.0.holds_back());
        let asked: BTreeSet<usize> = self.asked.iter().copied().chain(held_back).collect();
        let open: Vec<usize> = asked.difference(&self.answered).copied().collect();
        if self.case.due(&self.answers()).is_some() {
            let holders = (0..self.case.n()).filter(|index| {
                open.contains(index)
                    || (self.answered.contains(index)
                        && self.case.says[*index].answers()
                        && (self.record(*index) == self.merged() || !self.repair_failed.contains(index)))
            });
            return holders.count() as u32 > self.case.quorum.n - self.case.quorum.r;
        }
        !open.is_empty()
            && [Value, Nothing].iter().any(|says| {
                let mut answers = self.answers();
                answers.extend(open.iter().map(|index| (*index, *says)));
                self.case.due(&answers).is_some()
            })
    }

    /// D37: with blocking repair, every set of R primaries has one that holds what is returned.
    fn held(&self) -> bool {
        if self.case.read_repair != ReadRepair::Blocking || self.merged().is_none() {
            return true;
        }
        let holds = |index: usize| self.answered.contains(&index) && self.record(index) == self.merged();
        let sets = (0..1u32 << self.case.n()).filter(|set| set.count_ones() == self.case.quorum.r);
        let mut sets = sets.map(|set| (0..self.case.n()).filter(move |index| set >> index & 1 == 1));
        sets.all(|mut set| set.any(holds))
    }

    fn answers(&self) -> BTreeMap<usize, Says> {
        let answered = self.answered.iter();
        answered.map(|index| (*index, self.case.says[*index])).collect()
    }

    fn record(&self, index: usize) -> Option<KeyState> {
        let repaired = self.repaired.get(&index).cloned();
        repaired.or_else(|| self.case.says[index].state())
    }

    fn merged(&self) -> Option<KeyState> {
        let states = self
            .answered
            .iter()
            .filter_map(|index| self.case.says[*index].state());
        states.reduce(|mut merged, state| {
            merged.merge(&state);
            merged
        })
    }

    fn index(&self, who: &MemberId) -> usize {
        (0..self.case.says.len())
            .find(|index| member(*index) == *who)
            .unwrap()
    }

    fn told(&self) -> String {
        format!(
            "{:?} asked {:?} answered {:?} {:?}",
            self.case, self.asked, self.answered, self.reply
        )
    }
}

fn explore(quorums: &[Quorum], primaries: &[Says], fallbacks: &[Says], count: usize) -> u32 {
    explore_all(quorums, primaries, fallbacks, count, false)
}

fn explore_all(
    quorums: &[Quorum],
    primaries: &[Says],
    fallbacks: &[Says],
    count: usize,
    holds_back: bool,
) -> u32 {
    let mut runs = 0;
    for quorum in quorums {
        for first in lists(primaries, quorum.n as usize) {
            for last in lists(fallbacks, count) {
                for (read_repair, repairs_arrive) in [
                    (ReadRepair::Off, true),
                    (ReadRepair::Async, true),
                    (ReadRepair::Blocking, true),
                    (ReadRepair::Blocking, false),
                ] {
                    let says = [first.as_slice(), &last].concat();
                    let case = Case {
                        quorum: *quorum,
                        read_repair,
                        says,
                        repairs_arrive,
                        holds_back,
                    };
                    runs += case.explore();
                }
            }
        }
    }
    runs
}

fn quorums(n: u32) -> Vec<Quorum> {
    let all = (1..=n).flat_map(|r| (1..=n).map(move |w| (r, w)));
    all.flat_map(|(r, w)| {
        (0..=n).map(move |pr| Quorum {
            pr,
            ..quorum(n, r, w)
        })
    })
    .collect()
}

const ALL: [Says; 7] = [
    Nothing,
    Deleted,
    Value,
    SuspectNothing,
    SuspectValue,
    Error,
    Unreachable,
];

/// Of everybody.
const PACE: Pace = Pace {
    mean_us: 500,
    late_us: 2_000,
    is_late: false,
};

/// D33, D37, D39: up to two primaries with up to two fallbacks. Not found is said only if no acknowledged write can be
/// hidden; a value never takes longer than R answers; suspect stores and empty fallbacks fill nothing.
#[test]
fn every_get_of_two_is_answered_once_early_and_truly() {
    let mut runs = 0;
    for (n, fallbacks) in [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)] {
        runs += explore(
            &quorums(n),
            &ALL,
            &[Nothing, Value, Error, Unreachable],
            fallbacks,
        );
    }
    assert!(runs > 10_000, "{runs}");
}

/// The same with three primaries and no fallback.
#[test]
fn every_get_of_three_is_answered_once_early_and_truly() {
    let says = [Nothing, Deleted, Value, SuspectValue, Error];
    let quorums: Vec<Quorum> = quorums(3)
        .into_iter()
        .filter(|quorum| quorum.pr % 2 == 0)
        .collect();
    let runs = explore(&quorums, &says, &[], 0);
    assert!(runs > 10_000, "{runs}");
}

/// The same with two fallbacks.
#[test]
fn every_get_of_three_with_two_fallbacks_is_answered_once_early_and_truly() {
    let chosen = [quorum(3, 1, 1), quorum(3, 2, 2), quorum(3, 3, 1)];
    let runs = explore(
        &chosen,
        &[Nothing, Value, SuspectValue, Error],
        &[Nothing, Value, Error],
        2,
    );
    assert!(runs > 10_000, "{runs}");
}

/// The same if primaries are held back that are not needed: they are asked as soon as others are late or no help, and not before.
#[test]
fn every_get_that_holds_primaries_back_is_answered_once_early_and_truly() {
    let says = [Nothing, Deleted, Value, SuspectValue, Error];
    let chosen = [quorum(3, 1, 3), quorum(3, 1, 1), quorum(3, 2, 2), quorum(3, 3, 1)];
    let more = chosen.map(|quorum| Quorum { pr: 2, ..quorum });
    let runs = explore_all(&[chosen, more].concat(), &says, &[], 0, true)
        + explore_all(
            &chosen,
            &[Nothing, Value, Error, Unreachable],
            &[Nothing, Value],
            1,
            true,
        );
    assert!(runs > 10_000, "{runs}");
}
