//! What was written, in order, and what of it may be there after a loss of power.

use std::{collections::BTreeMap, fmt::Debug};

/// What a read gave; the error is for people.
pub(crate) type Found = Result<Option<u64>, String>;

/// Whether a read failed or gave this.
pub(crate) fn is_right(read: &Found, expected: Option<&u64>) -> bool {
    read.as_ref().map_or(true, |number| number.as_ref() == expected)
}

/// Writes in the order in which they were submitted, since the last loss; each sets a place to a number or removes it.
///
/// What a loss leaves has to be what the first so many of them come to, and so many include all that were acknowledged as
/// durable: nothing lost, no hole.
#[derive(Debug, Default)]
pub(crate) struct History<P> {
    base: BTreeMap<P, u64>,
    log: Vec<(P, Option<u64>)>,
    durable: usize,
}

impl<P: Ord + Clone + Debug> History<P> {
    pub(crate) fn new() -> Self {
        Self {
            base: BTreeMap::new(),
            log: Vec::new(),
            durable: 0,
        }
    }

    /// Notes a write as submitted; the answer names it in [`History::acknowledged`].
    pub(crate) fn submitted(&mut self, place: P, number: Option<u64>) -> usize {
        self.log.push((place, number));
        self.log.len()
    }

    /// A write was acknowledged as durable, and with it all before it.
    pub(crate) fn acknowledged(&mut self, write: usize) {
        self.durable = self.durable.max(write);
    }

    /// As after a clean stop.
    pub(crate) fn all_durable(&mut self) {
        self.durable = self.log.len();
    }

    /// Takes what was found as the new beginning, and says how many writes are gone; panics if it is not allowed to be.
    pub(crate) fn recovered(&mut self, found: &BTreeMap<P, u64>, context: &str) -> usize {
        let kept = self.matching(|place, number| found.get(place) == number, found.len());
        let Some(kept) = kept else {
            panic!(
                "{context}: what was found is no prefix of {} writes, {} of them acknowledged as durable: {}",
                self.log.len(),
                self.durable,
                self.explain(found)
            );
        };
        let lost = self.log.len() - kept;
        self.base = found.clone();
        self.log.clear();
        self.durable = 0;
        lost
    }

    /// The longest prefix that leaves nothing but what `is_there` confirms, and `places` of them at most; none if it is
    /// shorter than what was acknowledged as durable.
    fn matching(&self, is_there: impl Fn(&P, Option<&u64>) -> bool, places: usize) -> Option<usize> {
        (self.durable..=self.log.len()).rev().find(|&kept| {
            let state = self.after(kept);
            state.len() <= places && self.places().all(|place| is_there(place, state.get(place)))
        })
    }

    /// Whether the places that could be read hold what some prefix comes to, however short.
    pub(crate) fn is_some_prefix(&self, found: &BTreeMap<P, Found>) -> bool {
        (0..=self.log.len()).rev().any(|kept| {
            let state = self.after(kept);
            found.iter().all(|(place, read)| is_right(read, state.get(place)))
        })
    }

    /// What the first so many writes come to.
    pub(crate) fn after(&self, kept: usize) -> BTreeMap<P, u64> {
        let mut state = self.base.clone();
        for (place, number) in &self.log[..kept] {
            match number {
                Some(number) => state.insert(place.clone(), *number),
                None => state.remove(place),
            };
        }
        state
    }

    /// What all of them come to.
    pub(crate) fn now(&self) -> BTreeMap<P, u64> {
        self.after(self.log.len())
    }

    fn places(&self) -> impl Iterator<Item = &P> {
        self.base.keys().chain(self.log.iter().map(|(place, _)| place))
    }

    fn explain(&self, found: &BTreeMap<P, u64>) -> String {
        let (durable, all) = (self.after(self.durable), self.now());
        let mut lines = String::new();
        for place in found.keys().chain(self.places()) {
            let (was, wanted, last) = (found.get(place), durable.get(place), all.get(place));
            let line = format!("\n  {place:?}: found {was:?}, durable {wanted:?}, last {last:?}");
            if (was != wanted || was != last) && !lines.contains(&line) {
                lines.push_str(&line);
            }
        }
        lines
    }
}

#[test]
fn a_history_admits_prefixes_and_nothing_else() {
    let mut history = History::new();
    for (place, number) in [("a", Some(1)), ("b", Some(2)), ("a", None), ("c", Some(4))] {
        history.submitted(place, number);
    }
    let allowed = |history: &History<&'static str>, found: &[(&'static str, u64)]| {
        let found: BTreeMap<_, _> = found.iter().copied().collect();
        history.matching(|place, number| found.get(place) == number, found.len())
    };
    assert_eq!(allowed(&history, &[]), Some(0));
    assert_eq!(allowed(&history, &[("a", 1), ("b", 2)]), Some(2));
    assert_eq!(allowed(&history, &[("b", 2), ("c", 4)]), Some(4));
    assert_eq!(allowed(&history, &[("b", 2)]), Some(3));
    assert_eq!(allowed(&history, &[("c", 4)]), None, "a hole");
    assert_eq!(allowed(&history, &[("a", 1), ("b", 2), ("x", 9)]), Some(2));
    history.acknowledged(3);
    assert_eq!(allowed(&history, &[("a", 1), ("b", 2)]), None, "lost");
}
