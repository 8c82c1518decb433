//! A sum that every coordinator adds to in a place of its own.

use super::store::{DotMap, Places, Store};
use crate::version::{Actor, Dot, Seen};
use crate::wire::{DecodeError, Reader};

/// Per actor one total, under the dot of the write that last changed it; and apart from the totals the increments
/// whose op ids are remembered, each under its own dot, so that one that was counted twice can be taken out again.
///
/// Only the node that an actor belongs to changes the actor's total, and only in a record that holds the actor's last
/// write: so of two totals of an actor the one with the larger dot is the later one, and contains the other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Counter {
    totals: DotMap<i64>,
    remembered: DotMap<i64>,
}

/// An increment that would leave the range of a coordinator's total.
#[derive(Debug)]
pub(super) struct Overflow;

impl Counter {
    /// Adds `amount` under the write `dot`; `remember`: the write has an op id.
    ///
    /// # Errors
    /// If the amounts of this actor could leave the range of 64 bits; nothing has changed then.
    pub(super) fn add(&mut self, dot: Dot, amount: i64, remember: bool) -> Result<(), Overflow> {
        let magnitudes = own(&self.totals, dot.actor)
            .chain(own(&self.remembered, dot.actor))
            .map(|(_, amount)| u128::from(amount.unsigned_abs()))
            .sum::<u128>();
        if magnitudes + u128::from(amount.unsigned_abs()) > i64::MAX as u128 {
            return Err(Overflow);
        }
        if remember {
            let before = self.remembered.get(&dot).copied().unwrap_or(0);
            self.remembered.insert(dot, before.saturating_add(amount));
        } else {
            self.add_to_total(dot, amount);
        }
        Ok(())
    }

    /// Moves what the actor of the write `dot` added under dots that are not remembered any more into its total.
    pub(super) fn forget(&mut self, dot: Dot, is_remembered: impl Fn(&Dot) -> bool) {
        let forgotten: Vec<(Dot, i64)> = own(&self.remembered, dot.actor)
            .filter(|(known, _)| !is_remembered(known))
            .collect();
        if !forgotten.is_empty() {
            let mut sum = 0_i64;
            for (known, amount) in forgotten {
                self.remembered.remove(&known);
                sum = sum.saturating_add(amount);
            }
            self.add_to_total(dot, sum);
        }
    }

    /// Takes out increments that were counted under another dot as well.
    pub(super) fn take_out(&mut self, repeated: &[Dot]) {
        for dot in repeated {
            self.remembered.remove(dot);
        }
    }

    /// The sum; beyond 64 bits it stays at the end of the range.
    pub(super) fn value(&self) -> i64 {
        let amounts = self.totals.iter().chain(self.remembered.iter());
        let sum = amounts.map(|(_, amount)| i128::from(*amount)).sum::<i128>();
        sum.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    pub(super) fn read(reader: &mut Reader, places: &Places) -> Result<Self, DecodeError> {
        Ok(Self {
            totals: DotMap::read(reader, places)?,
            remembered: DotMap::read(reader, places)?,
        })
    }

    fn add_to_total(&mut self, dot: Dot, amount: i64) {
        let totals: Vec<(Dot, i64)> = own(&self.totals, dot.actor).collect();
        let mut sum = amount;
        for (old, total) in totals {
            self.totals.remove(&old);
            sum = sum.saturating_add(total);
        }
        self.totals.insert(dot, sum);
    }
}

impl Store for Counter {
    fn join(&mut self, seen: &Seen, other: &Self, other_seen: &Seen) {
        self.totals.join(seen, &other.totals, other_seen);
        self.remembered.join(seen, &other.remembered, other_seen);
    }

    fn drop_covered(&mut self, claims: &Seen) {
        self.totals.drop_covered(claims);
        self.remembered.drop_covered(claims);
    }

    fn is_empty(&self) -> bool {
        self.totals.is_empty() && self.remembered.is_empty()
    }

    fn put(&self, out: &mut Vec<u8>, places: &Places) {
        self.totals.put(out, places);
        self.remembered.put(out, places);
    }
}

fn own(marks: &DotMap<i64>, actor: Actor) -> impl Iterator<Item = (Dot, i64)> + '_ {
    marks
        .iter()
        .filter(move |(dot, _)| dot.actor == actor)
        .map(|(dot, amount)| (*dot, *amount))
}
