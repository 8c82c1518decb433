//! Small puts with every fate of every node in every order, judged by a model that knows only what it has seen.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What becomes of one node's part in a put.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Durable,
    Buffered,
    Refused,
    Lost,
    Unreachable,
}

use Fate::{Buffered, Durable, Lost, Refused, Unreachable};

/// The zones of primaries and fallbacks: the last fallback's is one of its own.
const PRIMARY_ZONES: [&str; 3] = ["a", "b", "c"];
const FALLBACK_ZONES: [&str; 2] = ["a", "d"];

/// One case: the first `n` nodes are primaries, the others fallbacks.
#[derive(Debug)]
struct Case {
    quorum: Quorum,
    fates: Vec<Fate>,
    me: usize,
}

/// What has been seen of one node.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Seen {
    Waiting,
    Answered,
}

/// One put of a case, and what has been seen of it.
#[derive(Clone)]
struct Run<'a> {
    case: &'a Case,
    put: Put,
    /// Who was asked, and for which primary.
    asked: BTreeMap<usize, (usize, Seen)>,
    prepared: bool,
    ended: bool,
    reply: Option<WriteOutcome>,
}

impl Case {
    fn n(&self) -> usize {
        self.quorum.n as usize
    }

    fn zone(&self, index: usize) -> &'static str {
        if index < self.n() {
            PRIMARY_ZONES[index]
        } else {
            FALLBACK_ZONES[index - self.n()]
        }
    }

    fn reachable(&self, index: usize) -> bool {
        index == self.me || self.fates[index] != Unreachable
    }

    fn start(&self) -> Run<'_> {
        let candidate = |index| Candidate {
            member: member(index),
            zone: Zone::new(self.zone(index)).unwrap(),
            // The local node knows better.
            reachable: index != self.me && self.reachable(index),
        };
        let candidates = Candidates {
            primaries: (0..self.n()).map(candidate).collect(),
            fallbacks: (self.n()..self.fates.len()).map(candidate).collect(),
            ..Candidates::default()
        };
        Run {
            case: self,
            put: Put(PutCoordinator::new(self.quorum, member(self.me), candidates)),
            asked: BTreeMap::new(),
            prepared: false,
            ended: false,
            reply: None,
        }
    }

    fn result(&self, index: usize) -> Result<Ack, ReplicaFailure> {
        match self.fates[index] {
            Durable => Ok(Ack { durable: true }),
            Buffered => Ok(Ack { durable: false }),
            Refused => Err(failure(false, FailureKind::Overloaded)),
            Lost | Unreachable => Err(failure(true, FailureKind::TimedOut)),
        }
    }

    /// Every run of this case; how many there were.
    fn explore(&self) -> u32 {
        let mut run = self.start();
        run.event(PutEvent::Start);
        if run.reply.is_some() {
            run.event(PutEvent::LocalPrepared);
            return 1;
        }
        let mut at_once = run.clone();
        at_once.event(PutEvent::LocalPrepared);
        let runs = at_once.explore();
        // The local end stands for its preparation.
        run.answer(self.me);
        runs + run.explore()
    }
}

impl Run<'_> {
    fn explore(&self) -> u32 {
        let mut late = self.clone();
        late.event(PutEvent::DeadlineReached);
        assert!(late.reply.is_some() && !late.put.0.waiting(), "{}", late.told());
        let mut runs = 1;
        for index in self.waiting() {
            let mut next = self.clone();
            next.answer(index);
            runs += next.explore();
            late.answer(index);
        }
        runs
    }

    /// A node's answer, twice.
    fn answer(&mut self, index: usize) {
        if let Some((_, seen)) = self.asked.get_mut(&index) {
            *seen = Seen::Answered;
        }
        let result = self.case.result(index);
        let event = if index == self.case.me {
            if !self.prepared && result.is_err() {
                self.ended = true;
            }
            self.prepared |= result.is_ok();
            PutEvent::LocalDone(result)
        } else {
            PutEvent::PeerDone {
                member: member(index),
                result,
            }
        };
        self.event(event.clone());
        assert_eq!(self.put.step(event), [], "again: {}", self.told());
    }

    fn event(&mut self, event: PutEvent) {
        match event {
            PutEvent::LocalPrepared => self.prepared = true,
            PutEvent::DeadlineReached => self.ended = true,
            _ => {}
        }
        let over = self.put.0.replied() && !self.put.0.waiting();
        let effects = self.put.step(event);
        assert!(effects.is_empty() || !over, "after the end: {}", self.told());
        for effect in effects {
            match effect {
                PutEffect::WriteLocal { hint_for } => {
                    assert!(self.asked.is_empty(), "first of all: {}", self.told());
                    self.ask(self.case.me, hint_for);
                }
                PutEffect::Send { member: to, hint_for } => {
                    assert!(self.prepared, "no dot yet: {}", self.told());
                    let index = (0..self.case.fates.len()).find(|index| member(*index) == to);
                    self.ask(index.unwrap(), hint_for);
                }
                PutEffect::Reply(outcome) => {
                    assert_eq!(self.reply, None, "one reply: {}", self.told());
                    self.judge(&outcome);
                    self.ended |= outcome.state == WriteState::NotApplied;
                    self.reply = Some(outcome);
                }
            }
        }
        assert_eq!(self.reply.is_some(), self.put.0.replied());
        if self.reply.is_none() {
            assert!(
                !self.met(self.got()) && self.met(self.best()),
                "late: {}",
                self.told()
            );
        }
        if self.prepared && !self.ended {
            // D36: every primary that failed has a stand-in, as long as there is one.
            let lacking = (0..self.case.n()).any(|place| !self.accepted(place) && !self.open(place));
            assert!(!lacking || self.unused().is_empty(), "{}", self.told());
        }
    }

    fn ask(&mut self, index: usize, hint_for: Option<MemberId>) {
        let told = || self.told();
        let n = self.case.n();
        assert!(self.case.reachable(index) && !self.ended, "{}", told());
        let place = match hint_for {
            None => index,
            Some(primary) => (0..n).find(|place| member(*place) == primary).unwrap(),
        };
        assert_eq!(place == index, index < n, "fallbacks get hints: {}", told());
        let stands_in = index >= n && index != self.case.me;
        assert!(
            !stands_in || !(self.accepted(place) || self.open(place)),
            "{index} for {place} is not needed: {}",
            told()
        );
        let before = self.asked.insert(index, (place, Seen::Waiting));
        assert_eq!(before, None, "{index} is asked once: {}", self.told());
    }

    fn judge(&self, outcome: &WriteOutcome) {
        let told = || format!("{outcome:?}: {}", self.told());
        let got = self.got();
        let fallbacks = (0..self.case.n()).filter(|place| self.accepted(*place) && !self.took(*place));
        assert_eq!(
            [outcome.acks, outcome.primaries, outcome.durable, outcome.zones],
            got,
            "{}",
            told()
        );
        assert_eq!(outcome.fallbacks_counted, fallbacks.count() as u32, "{}", told());
        assert!(outcome.acks <= self.case.quorum.n, "{}", told());
        let applied = self.met(got);
        assert_eq!(outcome.state == WriteState::Applied, applied, "{}", told());
        assert_eq!(outcome.failure.is_none(), applied, "{}", told());
        let harmless = |(index, (_, seen)): (&usize, &(usize, Seen))| {
            *seen == Seen::Answered && self.case.fates[*index] == Refused
        };
        let nowhere = self.asked.iter().all(harmless);
        if !applied {
            assert_eq!(outcome.state == WriteState::NotApplied, nowhere, "{}", told());
        }
        if let Some(WriteFailure::QuorumNotMet { .. }) = outcome.failure {
            assert!(!self.met(self.best()), "too early: {}", told());
        }
    }

    fn waiting(&self) -> Vec<usize> {
        let waiting = self.asked.iter().filter(|(_, (_, seen))| *seen == Seen::Waiting);
        waiting.map(|(index, _)| *index).collect()
    }

    fn took(&self, index: usize) -> bool {
        let answered = matches!(self.asked.get(&index), Some((_, Seen::Answered)));
        answered && matches!(self.case.fates[index], Durable | Buffered)
    }

    /// Those that are, or stand in for, a primary.
    fn at(&self, place: usize) -> impl Iterator<Item = usize> {
        let asked = self.asked.iter().filter(move |(_, (at, _))| *at == place);
        asked.map(|(index, _)| *index)
    }

    fn accepted(&self, place: usize) -> bool {
        self.at(place).any(|index| self.took(index))
    }

    fn durable(&self, place: usize) -> bool {
        self.at(place)
            .any(|index| self.took(index) && self.case.fates[index] == Durable)
    }

    fn open(&self, place: usize) -> bool {
        let to_be_asked = self.case.reachable(place) && !self.asked.contains_key(&place);
        to_be_asked || self.at(place).any(|index| self.asked[&index].1 == Seen::Waiting)
    }

    fn unused(&self) -> Vec<usize> {
        let fallbacks = self.case.n()..self.case.fates.len();
        let unused = |index: &usize| self.case.reachable(*index) && !self.asked.contains_key(index);
        fallbacks.filter(unused).collect()
    }

    /// Acknowledgements, primaries, durable ones, zones.
    fn got(&self) -> [u32; 4] {
        let places = || 0..self.case.n();
        let zones: BTreeSet<_> = (0..self.case.fates.len())
            .filter(|index| self.took(*index))
            .map(|index| self.case.zone(index))
            .collect();
        [
            places().filter(|place| self.accepted(*place)).count() as u32,
            places().filter(|place| self.took(*place)).count() as u32,
            places().filter(|place| self.durable(*place)).count() as u32,
            zones.len() as u32,
        ]
    }

    /// The best that could still come.
    fn best(&self) -> [u32; 4] {
        let places = || 0..self.case.n();
        let dead = places().filter(|place| !self.accepted(*place) && !self.open(*place));
        let replaced = dead.count().min(self.unused().len());
        let primary_open = |place: usize| match self.asked.get(&place) {
            Some((_, seen)) => *seen == Seen::Waiting,
            None => self.case.reachable(place),
        };
        let accepted = places().filter(|place| self.accepted(*place) || self.open(*place));
        let durable = places().filter(|place| self.durable(*place) || self.open(*place));
        let primaries = places().filter(|place| self.took(*place) || primary_open(*place));
        [
            (accepted.count() + replaced) as u32,
            primaries.count() as u32,
            (durable.count() + replaced) as u32,
            self.best_zones(),
        ]
    }

    /// By trying everything: each place without a copy gets one from who is open there, from an unused fallback, or
    /// none.
    fn best_zones(&self) -> u32 {
        let all = 0..self.case.fates.len();
        let taken = all.filter(|index| self.took(*index));
        let taken = taken.map(|index| self.case.zone(index)).collect();
        self.try_zones(0, &self.unused(), &taken)
    }

    fn try_zones(&self, place: usize, unused: &[usize], taken: &BTreeSet<&'static str>) -> u32 {
        if place == self.case.n() {
            return taken.len() as u32;
        }
        let mut best = self.try_zones(place + 1, unused, taken);
        let waiting = self
            .at(place)
            .filter(|index| self.asked[index].1 == Seen::Waiting);
        let mut choices: Vec<usize> = waiting.collect();
        if self.open(place) && choices.is_empty() {
            choices.push(place);
        }
        if !self.accepted(place) {
            choices.extend(unused);
        }
        for choice in choices {
            let left: Vec<usize> = unused.iter().copied().filter(|index| *index != choice).collect();
            let mut taken = taken.clone();
            taken.insert(self.case.zone(choice));
            best = best.max(self.try_zones(place + 1, &left, &taken));
        }
        best
    }

    fn met(&self, got: [u32; 4]) -> bool {
        let Quorum { w, pw, dw, zones, .. } = self.case.quorum;
        got.iter()
            .zip([w, pw, dw, zones])
            .all(|(got, needed)| *got >= needed)
    }

    fn told(&self) -> String {
        format!("{:?} {:?} {:?}", self.case, self.asked, self.reply)
    }
}

/// Every W, and every other condition beside it.
fn quorums(n: u32) -> Vec<Quorum> {
    let plain = (1..=n).map(|w| quorum(n, 1, w));
    let with = |w: u32, count: u32| {
        let plain = quorum(n, 1, w);
        let (pw, dw, zones) = (count, count, count);
        [
            Quorum { pw, ..plain },
            Quorum { dw, ..plain },
            Quorum { zones, ..plain },
        ]
    };
    let others = (1..=n).flat_map(|w| (1..=n).flat_map(move |count| with(w, count)));
    plain.chain(others).collect()
}

fn explore(quorums: &[Quorum], primaries: &[Fate], fallbacks: &[Fate], count: usize, me: usize) -> u32 {
    let mut runs = 0;
    for quorum in quorums {
        for first in lists(primaries, quorum.n as usize) {
            for last in lists(fallbacks, count) {
                let fates = [first.as_slice(), &last].concat();
                if fates[me] != Unreachable {
                    let quorum = *quorum;
                    runs += Case { quorum, fates, me }.explore();
                }
            }
        }
    }
    runs
}

/// D32, D33, D34, D35, D36: up to two primaries and two fallbacks, whoever of them coordinates: each is counted once,
/// the reply comes once, as early as it can, and is true.
#[test]
fn every_put_of_two_is_answered_once_early_and_truly() {
    let fates = [Durable, Buffered, Refused, Lost, Unreachable];
    let mut runs = 0;
    for (n, fallbacks) in [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)] {
        let fallback_fates = if fallbacks == 2 {
            &[Durable, Refused, Lost, Unreachable]
        } else {
            &fates[..]
        };
        for me in [0, n as usize] {
            if me < n as usize + fallbacks {
                runs += explore(&quorums(n), &fates, fallback_fates, fallbacks, me);
            }
        }
    }
    assert!(runs > 10_000, "{runs}");
}

/// The same with three primaries and no fallback or one, coordinated by a primary or the fallback.
#[test]
fn every_put_of_three_is_answered_once_early_and_truly() {
    let fates = [Durable, Buffered, Refused, Lost, Unreachable];
    let mut runs = explore(&quorums(3), &fates, &[], 0, 0);
    for me in [0, 3] {
        runs += explore(
            &quorums(3),
            &[Durable, Refused, Lost, Unreachable],
            &[Durable, Lost, Unreachable],
            1,
            me,
        );
    }
    assert!(runs > 10_000, "{runs}");
}

/// The same with two fallbacks.
#[test]
fn every_put_of_three_with_two_fallbacks_is_answered_once_early_and_truly() {
    let chosen = [
        quorum(3, 2, 1),
        quorum(3, 2, 2),
        quorum(3, 2, 3),
        Quorum {
            pw: 2,
            ..quorum(3, 2, 2)
        },
        Quorum {
            dw: 3,
            ..quorum(3, 2, 2)
        },
        Quorum {
            zones: 2,
            ..quorum(3, 2, 2)
        },
        Quorum {
            zones: 3,
            ..quorum(3, 2, 1)
        },
    ];
    let runs = explore(
        &chosen,
        &[Durable, Refused, Lost, Unreachable],
        &[Durable, Refused, Unreachable],
        2,
        0,
    );
    assert!(runs > 10_000, "{runs}");
}
