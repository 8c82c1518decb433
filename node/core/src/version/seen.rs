//! Sets of writes, kept as small as version vectors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::dot::{Actor, COUNTER_MAX, Dot};

/// A set of dots: what a record, a reader or a context knows of.
///
/// Kept per actor as runs of consecutive counters. A record that missed nothing has one run per actor, which begins
/// at 1: a version vector (§4.4). Dots beyond a gap stand in runs of their own and join as the gap closes. Equal sets
/// are equal values, however they came about.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Per actor: not empty, ascending, with at least one missing counter between two runs.
    actors: BTreeMap<Actor, Vec<Run>>,
}

/// Consecutive counters of one actor, both ends included; `1 <= first <= last <=` [`COUNTER_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// The lowest counter.
    pub first: u64,
    /// The highest counter.
    pub last: u64,
}

/// The dots of one actor in a [`Seen`], as a version vector with exceptions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenEntry<'a> {
    /// Whose dots.
    pub actor: Actor,
    /// All of `1..=counter`; 0: the first one is missing.
    pub counter: u64,
    /// Runs beyond a gap.
    pub beyond: &'a [Run],
}

impl Seen {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// True if no dot is in the set.
    pub fn is_empty(&self) -> bool {
        self.actors.is_empty()
    }

    /// True if the dot is in the set.
    pub fn contains(&self, dot: &Dot) -> bool {
        self.actors
            .get(&dot.actor)
            .is_some_and(|runs| runs_contain(runs, dot.counter))
    }

    /// Adds a dot. False if it was there already, or if its counter is outside `1..=`[`COUNTER_MAX`]: no node gives
    /// such a dot, and no set holds one.
    pub fn insert(&mut self, dot: Dot) -> bool {
        if !(1..=COUNTER_MAX).contains(&dot.counter) {
            return false;
        }
        add_run(
            self.actors.entry(dot.actor).or_default(),
            Run {
                first: dot.counter,
                last: dot.counter,
            },
        )
    }

    /// Adds all dots of `other`. True if the set has grown.
    pub fn union(&mut self, other: &Self) -> bool {
        let mut grown = false;
        for (actor, theirs) in &other.actors {
            let ours = self.actors.entry(*actor).or_default();
            if ours.is_empty() {
                ours.clone_from(theirs);
                grown = true;
            } else {
                for run in theirs {
                    grown |= add_run(ours, *run);
                }
            }
        }
        grown
    }

    /// The highest counter of an actor; 0: none.
    pub fn counter_max(&self, actor: Actor) -> u64 {
        self.actors
            .get(&actor)
            .and_then(|runs| runs.last())
            .map_or(0, |run| run.last)
    }

    /// The dots that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut actors = BTreeMap::new();
        for (actor, runs) in &self.actors {
            let holes = other.actors.get(actor).map_or(&[][..], Vec::as_slice);
            let left = runs_without(runs, holes);
            if !left.is_empty() {
                actors.insert(*actor, left);
            }
        }
        Self { actors }
    }

    /// The set without all dots of some actors.
    pub(super) fn without_actors(&self, dropped: &BTreeSet<Actor>) -> Self {
        let kept = self.actors.iter().filter(|(actor, _)| !dropped.contains(actor));
        Self {
            actors: kept.map(|(actor, runs)| (*actor, runs.clone())).collect(),
        }
    }

    /// Who wrote the dots, ascending.
    pub fn actors(&self) -> impl ExactSizeIterator<Item = Actor> {
        self.actors.keys().copied()
    }

    /// True if every dot of `other` is in this set; true for equal sets. Paper: §4.4, "descendant".
    pub fn descends(&self, other: &Self) -> bool {
        other.actors.iter().all(|(actor, theirs)| {
            self.actors.get(actor).is_some_and(|ours| {
                // The runs of a set are apart, so that a run is covered by one run of the other set or by none.
                theirs
                    .iter()
                    .all(|run| covering(ours, run.first).is_some_and(|found| found.last >= run.last))
            })
        })
    }

    /// True if this set has every dot of `other`, and more.
    pub fn dominates(&self, other: &Self) -> bool {
        self != other && self.descends(other)
    }

    /// True if each of the two sets has a dot that the other one lacks.
    pub fn concurrent(&self, other: &Self) -> bool {
        !self.descends(other) && !other.descends(self)
    }

    /// The set as a version vector with exceptions, by actor.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = SeenEntry<'_>> {
        self.actors.iter().map(|(actor, runs)| match runs.split_first() {
            Some((Run { first: 1, last }, beyond)) => SeenEntry {
                actor: *actor,
                counter: *last,
                beyond,
            },
            _ => SeenEntry {
                actor: *actor,
                counter: 0,
                beyond: runs,
            },
        })
    }

    /// All runs, by actor.
    pub(super) fn runs(&self) -> impl ExactSizeIterator<Item = (&Actor, &[Run])> {
        self.actors.iter().map(|(actor, runs)| (actor, runs.as_slice()))
    }

    /// Takes over what a decoder has found to be in order. The caller keeps the rules of the field.
    pub(super) fn from_runs(actors: BTreeMap<Actor, Vec<Run>>) -> Self {
        debug_assert!(actors.values().all(|runs| {
            runs.windows(2).all(|pair| pair[0].last + 1 < pair[1].first)
                && runs
                    .iter()
                    .all(|run| 1 <= run.first && run.first <= run.last && run.last <= COUNTER_MAX)
                && !runs.is_empty()
        }));
        Self { actors }
    }
}

impl FromIterator<Dot> for Seen {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut seen = Self::new();
        for dot in dots {
            seen.insert(dot);
        }
        seen
    }
}

impl fmt::Debug for Seen {
    /// `{0000000000000001.0: 1..=3, 5}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.actors).finish()
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}..={}", self.first, self.last)
        }
    }
}

/// The run that holds `counter`.
fn covering(runs: &[Run], counter: u64) -> Option<Run> {
    let after = runs.partition_point(|run| run.first <= counter);
    after
        .checked_sub(1)
        .map(|index| runs[index])
        .filter(|run| counter <= run.last)
}

fn runs_contain(runs: &[Run], counter: u64) -> bool {
    covering(runs, counter).is_some()
}

/// What is left of `runs` where none of `holes` is; both ascending.
fn runs_without(runs: &[Run], holes: &[Run]) -> Vec<Run> {
    let mut left = Vec::new();
    for run in runs {
        let mut first = run.first;
        let from = holes.partition_point(|hole| hole.last < run.first);
        for hole in holes[from..].iter().take_while(|hole| hole.first <= run.last) {
            if first < hole.first {
                left.push(Run {
                    first,
                    last: hole.first - 1,
                });
            }
            first = hole.last + 1;
        }
        if first <= run.last {
            left.push(Run {
                first,
                last: run.last,
            });
        }
    }
    left
}

/// Adds a run and joins what it touches. True if a counter was new.
fn add_run(runs: &mut Vec<Run>, run: Run) -> bool {
    // Runs from `start` to before `end` overlap the new one or stand right beside it.
    let start = runs.partition_point(|other| other.last + 1 < run.first);
    let end = runs.partition_point(|other| other.first <= run.last + 1);
    let joined = match runs.get(start..end) {
        Some([only]) if only.first <= run.first && run.last <= only.last => return false,
        Some([first, .., last]) => Run {
            first: run.first.min(first.first),
            last: run.last.max(last.last),
        },
        Some([only]) => Run {
            first: run.first.min(only.first),
            last: run.last.max(only.last),
        },
        _ => run,
    };
    runs.splice(start..end, [joined]);
    true
}
