//! Judges a history: was every acknowledged write kept, and every increment counted?
//!
//! Plain code over what clients did and what was found at the end, after all faults were healed; how it was done and found
//! is somebody else's. A value is *covered* when a write that is there, or a delete, had seen it, itself or through others
//! in between (paper: §4.4): the context that such a write passes back names everything that it replaces.

use std::collections::{BTreeMap, BTreeSet};

/// Findings that keep an example.
const EXAMPLES: usize = 10;

/// Which write made a value. Unique in a history; the value itself should be nothing else.
pub type ValueId = u64;

/// What a client was told about its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its quorum accepted it.
    Acknowledged,
    /// Nobody holds it.
    NotApplied,
    /// Some may hold it.
    Unknown,
}

/// A put, or a delete if it has no value.
#[derive(Clone, Debug)]
pub struct Write {
    /// What it put.
    pub value: Option<ValueId>,
    /// The values that the get returned whose context it passed back; none for a blind put.
    pub saw: Vec<ValueId>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Everything that clients did to keys and counters.
#[derive(Clone, Debug, Default)]
pub struct History {
    keys: BTreeMap<String, Vec<Write>>,
    counters: BTreeMap<String, Vec<(i64, Outcome)>>,
}

/// What is wrong, counted, with examples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Keys that were judged.
    pub keys: u64,
    /// Counters that were judged.
    pub counters: u64,
    /// Acknowledged puts that were looked for.
    pub acknowledged: u64,
    /// Acknowledged values that are neither there nor covered.
    pub lost: u64,
    /// Values that nobody wrote, or whose writer was told that nobody holds them.
    pub invented: u64,
    /// Values beside a value that covers them, which should have replaced them.
    pub ancestors: u64,
    /// Counters out of their bounds.
    pub miscounted: u64,
    /// Some of these, for people.
    pub examples: Vec<String>,
}

impl History {
    /// Adds a put or delete.
    pub fn write(&mut self, key: &str, write: Write) {
        self.keys.entry(key.to_owned()).or_default().push(write);
    }

    /// Adds an increment.
    pub fn increment(&mut self, counter: &str, by: i64, outcome: Outcome) {
        let all = self.counters.entry(counter.to_owned()).or_default();
        all.push((by, outcome));
    }

    /// Adds what somebody else did.
    pub fn merge(&mut self, other: Self) {
        for (key, writes) in other.keys {
            self.keys.entry(key).or_default().extend(writes);
        }
        for (counter, all) in other.counters {
            self.counters.entry(counter).or_default().extend(all);
        }
    }

    /// Keys that were written.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.keys.keys()
    }

    /// Counters that were incremented.
    pub fn counters(&self) -> impl Iterator<Item = &String> {
        self.counters.keys()
    }

    /// How many writes and increments had this outcome.
    pub fn count(&self, outcome: Outcome) -> u64 {
        let writes = self.keys.values().flatten().map(|write| write.outcome);
        let increments = self.counters.values().flatten().map(|(_, outcome)| *outcome);
        writes.chain(increments).filter(|one| *one == outcome).count() as u64
    }

    /// Judges the siblings that a key has at the end; none: it has no live value.
    pub fn judge(&self, key: &str, found: &BTreeSet<ValueId>, findings: &mut Findings) {
        let writes = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        let made: BTreeMap<ValueId, &Write> = writes
            .iter()
            .filter_map(|write| Some((write.value?, write)))
            .collect();
        findings.keys += 1;
        for value in found {
            if made
                .get(value)
                .is_none_or(|write| write.outcome == Outcome::NotApplied)
            {
                findings.invented += 1;
                findings.example(format!("{key}: value {value} was never applied by anyone"));
            }
        }
        let by_values = covered(found.iter().filter_map(|value| made.get(value).copied()), &made);
        for value in found.intersection(&by_values) {
            findings.ancestors += 1;
            findings.example(format!("{key}: value {value} stands beside one that replaced it"));
        }
        // A delete leaves nothing to be seen: one that may have been applied excuses what it covers.
        let deletes = writes
            .iter()
            .filter(|write| write.value.is_none() && write.outcome != Outcome::NotApplied);
        let by_deletes = covered(deletes, &made);
        for (value, write) in &made {
            if write.outcome != Outcome::Acknowledged {
                continue;
            }
            findings.acknowledged += 1;
            let kept = found.contains(value) || by_values.contains(value) || by_deletes.contains(value);
            if !kept {
                findings.lost += 1;
                findings.example(format!("{key}: value {value} is lost; found {found:?}"));
            }
        }
    }

    /// Judges what a counter says at the end; `None`: it is not there. Exact: every acknowledged increment counts once, one
    /// whose outcome is unknown once or not at all.
    pub fn judge_counter(&self, counter: &str, found: Option<i64>, findings: &mut Findings) {
        let all = self.counters.get(counter).map_or(&[][..], Vec::as_slice);
        let sum = |outcome: Outcome, counts: fn(i64) -> bool| -> i64 {
            let of = all.iter().filter(|(by, one)| *one == outcome && counts(*by));
            of.map(|(by, _)| by).sum()
        };
        let acknowledged = sum(Outcome::Acknowledged, |_| true);
        let least = acknowledged + sum(Outcome::Unknown, |by| by < 0);
        let most = acknowledged + sum(Outcome::Unknown, |by| by > 0);
        let value = found.unwrap_or(0);
        findings.counters += 1;
        if !(least..=most).contains(&value) {
            findings.miscounted += 1;
            findings.example(format!(
                "counter {counter} is {found:?} and should be {least} to {most}"
            ));
        }
    }
}

impl Findings {
    /// Nothing is wrong, and something was judged.
    pub fn is_clean(&self) -> bool {
        self.nothing_lost() && self.ancestors == 0
    }

    /// The same, but values may stand beside what replaced them. That happens where coordinators die: the client tries a write
    /// again at another one, replaces what that made, and then the first comes back with what it had made of the write.
    pub fn nothing_lost(&self) -> bool {
        self.acknowledged > 0 && self.lost + self.invented + self.miscounted == 0
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

/// Everything that these writes have seen, themselves or through what they have seen.
fn covered<'a>(
    writes: impl Iterator<Item = &'a Write>,
    made: &BTreeMap<ValueId, &'a Write>,
) -> BTreeSet<ValueId> {
    let mut covered = BTreeSet::new();
    let mut left: Vec<ValueId> = writes.flat_map(|write| &write.saw).copied().collect();
    while let Some(value) = left.pop() {
        if covered.insert(value) {
            left.extend(made.get(&value).iter().flat_map(|write| &write.saw));
        }
    }
    covered
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Acknowledged, NotApplied, Unknown};

    fn history(writes: &[(Option<ValueId>, &[ValueId], Outcome)]) -> History {
        let mut history = History::default();
        for (value, saw, outcome) in writes {
            let write = Write {
                value: *value,
                saw: saw.to_vec(),
                outcome: *outcome,
            };
            history.write("k", write);
        }
        history
    }

    /// Lost, invented, ancestors.
    fn judged(history: &History, found: &[ValueId]) -> (u64, u64, u64) {
        let mut findings = Findings::default();
        history.judge("k", &found.iter().copied().collect(), &mut findings);
        (findings.lost, findings.invented, findings.ancestors)
    }

    #[test]
    fn an_acknowledged_value_is_there_or_lost() {
        let two = history(&[(Some(1), &[], Acknowledged), (Some(2), &[], Acknowledged)]);
        assert_eq!(judged(&two, &[1, 2]), (0, 0, 0));
        assert_eq!(judged(&two, &[2]), (1, 0, 0));
        assert_eq!(judged(&two, &[]), (2, 0, 0));
    }

    #[test]
    fn a_value_is_covered_through_any_number_of_writes_whatever_their_outcome() {
        let chain = history(&[
            (Some(1), &[], Acknowledged),
            (Some(2), &[1], Unknown),
            (Some(3), &[2], Acknowledged),
        ]);
        assert_eq!(judged(&chain, &[3]), (0, 0, 0));
        // The unknown one is there, and the acknowledged one after it is not.
        assert_eq!(judged(&chain, &[2]), (1, 0, 0));
        // What nobody can see covers nothing.
        let unseen = history(&[(Some(1), &[], Acknowledged), (Some(2), &[1], Unknown)]);
        assert_eq!(judged(&unseen, &[]), (1, 0, 0));
        assert_eq!(judged(&unseen, &[1]), (0, 0, 0));
    }

    #[test]
    fn an_ancestor_beside_its_descendant_is_found() {
        let pair = history(&[(Some(1), &[], Acknowledged), (Some(2), &[1], Acknowledged)]);
        assert_eq!(judged(&pair, &[1, 2]), (0, 0, 1));
        let mut findings = Findings::default();
        pair.judge("k", &BTreeSet::from([1, 2]), &mut findings);
        assert!(findings.nothing_lost() && !findings.is_clean());
    }

    #[test]
    fn deletes_excuse_what_they_have_seen_and_nothing_else() {
        let seen = |outcome| {
            history(&[
                (Some(1), &[], Acknowledged),
                (Some(2), &[], Acknowledged),
                (None, &[1], outcome),
            ])
        };
        assert_eq!(judged(&seen(Acknowledged), &[2]), (0, 0, 0));
        assert_eq!(judged(&seen(Unknown), &[2]), (0, 0, 0));
        assert_eq!(judged(&seen(NotApplied), &[2]), (1, 0, 0));
        assert_eq!(judged(&seen(Acknowledged), &[]), (1, 0, 0));
    }

    #[test]
    fn values_of_nobody_are_invented() {
        let refused = history(&[(Some(1), &[], NotApplied), (Some(2), &[], Unknown)]);
        assert_eq!(judged(&refused, &[2]), (0, 0, 0));
        assert_eq!(judged(&refused, &[1, 9]), (0, 2, 0));
    }

    #[test]
    fn counters_are_between_what_was_acknowledged_and_what_was_tried() {
        let mut history = History::default();
        for (by, outcome) in [
            (5, Acknowledged),
            (-2, Acknowledged),
            (4, Unknown),
            (7, NotApplied),
        ] {
            history.increment("c", by, outcome);
        }
        let wrong = |found| {
            let mut findings = Findings::default();
            history.judge_counter("c", found, &mut findings);
            findings.miscounted
        };
        assert_eq!([Some(3), Some(7)].map(wrong), [0, 0]);
        assert_eq!([Some(2), Some(8), Some(10), None].map(wrong), [1, 1, 1, 1]);
        assert_eq!(
            [Acknowledged, Unknown, NotApplied].map(|outcome| history.count(outcome)),
            [2, 1, 1]
        );
    }

    #[test]
    fn findings_of_nothing_are_not_clean() {
        assert!(!Findings::default().is_clean());
        let mut findings = Findings::default();
        let one = history(&[(Some(1), &[], Acknowledged)]);
        one.judge("k", &BTreeSet::from([1]), &mut findings);
        assert!(findings.is_clean());
        one.judge("k", &BTreeSet::new(), &mut findings);
        assert!(!findings.nothing_lost() && findings.examples.len() == 1);
    }
}
