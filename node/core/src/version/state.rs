//! The whole state of a key on one node, and the one operation that changes it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;

use super::dot::Dot;
use super::seen::Seen;
use super::sibling::{Content, Sibling};
use crate::types::digest_u64;

/// All that a node knows about a key: the dots it has seen, and the values among them that nothing supersedes.
///
/// For each dot there are three steps, and a record only ever climbs: never seen, seen and live, seen and gone.
/// [`merge`](Self::merge) takes the higher step of the two for every dot. So it is idempotent, commutative and
/// associative, and copies that have heard of the same writes are equal, in whatever order the news came. Paper: §4.4.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyState {
    /// Holds the dot of every sibling.
    seen: Seen,
    siblings: BTreeMap<Dot, Sibling>,
}

impl KeyState {
    /// A state that knows of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state that one write alone makes: `sibling` under `dot`, superseding what `context` covers.
    ///
    /// # Panics
    /// If the dot's counter is not one that a node gives.
    pub fn from_write(context: &Seen, dot: Dot, sibling: Sibling) -> Self {
        let mut seen = context.clone();
        seen.insert(dot);
        assert!(
            seen.contains(&dot),
            "a write is named by a dot in bounds, not {dot}"
        );
        Self {
            seen,
            siblings: BTreeMap::from([(dot, sibling)]),
        }
    }

    /// Every write that is known: live, or superseded by somebody who knew it.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The causally unrelated values and tombstones, retries included.
    pub fn siblings(&self) -> &BTreeMap<Dot, Sibling> {
        &self.siblings
    }

    /// Adds what `other` knows. True if that changed anything.
    ///
    /// A sibling stays if both have it, or if one has it and the other has never seen its dot; what one of the two
    /// has seen and no longer has is superseded. Never refused and never capped: every update is kept (§2.3, §4.4).
    pub fn merge(&mut self, other: &Self) -> bool {
        let before = self.siblings.len();
        self.siblings
            .retain(|dot, _| other.siblings.contains_key(dot) || !other.seen.contains(dot));
        let mut changed = self.siblings.len() < before;
        for (dot, theirs) in &other.siblings {
            match self.siblings.entry(*dot) {
                Entry::Vacant(entry) => {
                    if !self.seen.contains(dot) {
                        entry.insert(theirs.clone());
                        changed = true;
                    }
                }
                Entry::Occupied(mut entry) => {
                    // Two values under one dot are damage; all nodes settle on the same one.
                    if theirs > entry.get() {
                        entry.insert(theirs.clone());
                        changed = true;
                    }
                }
            }
        }
        self.seen.union(&other.seen) || changed
    }

    /// The values a client gets at `wall_ms` (milliseconds since 1970), by dot. Tombstones and expired values are left
    /// out, and so is a retry of a write that is here as well: of siblings that are the same operation, the one with
    /// the smallest dot stands for all.
    ///
    /// Differs from the stored siblings on purpose: dropping a retry in a merge would not be associative (see
    /// `docs/adr/0004-op-ids-collapse-on-read.md`).
    pub fn live(&self, wall_ms: u64) -> Vec<(Dot, &Sibling)> {
        let mut live: Vec<(Dot, &Sibling)> = Vec::with_capacity(self.siblings.len());
        for (dot, sibling) in &self.siblings {
            let repeated = || live.iter().any(|(_, earlier)| earlier.same_operation(sibling));
            if sibling.is_live(wall_ms) && !repeated() {
                live.push((*dot, sibling));
            }
        }
        live
    }

    /// The one value of a key whose last write wins: of all siblings, tombstones and expired values too, the one with
    /// the largest stamp, and the largest dot among equal stamps. `None` if that one is a tombstone or has expired by
    /// `wall_ms`: the key reads as not found. Row D48.
    ///
    /// Replicas with equal records name the same winner. Nothing is dropped for it: a merge knows only dots.
    pub fn lww_winner(&self, wall_ms: u64) -> Option<(Dot, &Sibling)> {
        self.siblings
            .iter()
            .map(|(dot, sibling)| (*dot, sibling))
            .max_by_key(|(dot, sibling)| (sibling.stamp, *dot))
            .filter(|(_, sibling)| sibling.is_live(wall_ms))
    }

    /// True if no sibling is a value at `wall_ms`: the key reads as not found. An expired value counts as a tombstone
    /// (row D17); neither the encoding nor the digest changes with time, so that expiry causes no repairs.
    pub fn is_deleted(&self, wall_ms: u64) -> bool {
        !self.siblings.values().any(|sibling| sibling.is_live(wall_ms))
    }

    /// True if the record may be proposed for reaping: it holds nothing that a reader at `wall_ms` or later sees.
    pub fn is_reapable(&self, wall_ms: u64) -> bool {
        self.is_deleted(wall_ms)
    }

    /// True if a sibling is a tombstone. Beside a live value: the key was deleted concurrently. An expired value is
    /// none: nobody deleted it.
    pub fn has_tombstone(&self) -> bool {
        self.siblings
            .values()
            .any(|sibling| sibling.content == Content::Tombstone)
    }

    /// What a reader of this state has seen: the context of a get, which covers every live sibling.
    pub fn context_seen(&self) -> Seen {
        self.seen.clone()
    }

    /// The same state with empty values: enough to tell which keys are live. Never to be stored.
    #[must_use]
    pub fn without_values(&self) -> Self {
        let mut hollow = self.clone();
        for sibling in hollow.siblings.values_mut() {
            if sibling.value().is_some() {
                sibling.content = Content::Value(Bytes::new());
            }
        }
        hollow
    }

    /// What equal states, and in practice no others, have in common: how replicas are compared.
    pub fn digest(&self) -> u64 {
        digest_u64(&self.encode())
    }

    /// Puts together what a decoder has found to be in order: `seen` holds every sibling's dot.
    pub(super) fn from_parts(seen: Seen, siblings: BTreeMap<Dot, Sibling>) -> Self {
        debug_assert!(siblings.keys().all(|dot| seen.contains(dot)));
        Self { seen, siblings }
    }
}

#[cfg(test)]
mod tests;
