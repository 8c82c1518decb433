//! What truly happened, known to the oracle and to no node: every write, what its client had really seen, its names, who
//! has synced it, and what was promised about it.
//!
//! Causality is kept twice: nodes keep it in their contexts, the ledger in what clients were really shown. The two must
//! agree.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dynamo_core::crdt::Operation;
use dynamo_core::types::OpId;
use dynamo_core::version::{Dot, KeyState, Seen, Stamp};

use crate::keys::KeyIx;
use crate::messages::NodeIx;

/// How a write ended, as far as its client knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Under way, or the client never heard.
    Unknown,
    /// Acknowledged.
    Acked,
    /// The cluster said that nothing was stored.
    NotApplied,
}

/// One client operation that writes; its retries are the same write.
#[derive(Clone, Debug)]
pub struct Write {
    /// Of which key.
    pub key: KeyIx,
    /// What it wrote; `None`: a tombstone, or an operation.
    pub value: Option<Bytes>,
    /// What it did to a value of a data type.
    pub operation: Option<Operation>,
    /// What its client had been shown when it wrote: names of writes.
    pub past: Seen,
    /// The names that coordinators gave it.
    pub dots: Vec<Dot>,
    /// How it ended.
    pub status: Status,
    /// A coordinator has acknowledged it, whether or not its client has heard.
    pub applied: bool,
    /// For retries.
    pub op_id: Option<OpId>,
    /// When it was acknowledged.
    pub acked_us: u64,
    /// When it expires by good clocks, in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
}

/// A name in a bucket that does not keep siblings: there a coordinator also supersedes what its client has not seen.
#[derive(Clone, Debug)]
pub struct Built {
    /// By the coordinator's clock.
    pub stamp: Stamp,
    /// All that the name supersedes.
    pub upon: Seen,
}

/// All writes of one key.
#[derive(Clone, Debug, Default)]
pub struct KeyLedger {
    /// Who a name belongs to, and the nodes that have ever synced it, as bits.
    pub dots: BTreeMap<Dot, (u32, u32)>,
    /// Of a bucket that does not keep siblings.
    pub built: BTreeMap<Dot, Built>,
    /// Writes, in the order of their begin.
    pub writes: Vec<u32>,
    /// Names of writes that any read of R primaries must know from now on.
    pub promised: Seen,
    /// Writes that only members which are gone for good have: nobody owes them any more.
    pub forfeited: BTreeSet<u32>,
    /// Names that no primary but these had when they went.
    pub unpromised: Seen,
    /// Who these were, as bits: whatever becomes of them, what they had then is gone.
    gone_with: BTreeMap<Dot, u32>,
    /// What was removed for good, with everything that it truly superseded.
    pub reaped: Seen,
    /// Writes that were blind, or of which an attempt may still be under way after their end: their client's next one
    /// need not supersede them.
    pub loose: u32,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    writes: Vec<Write>,
    keys: Vec<KeyLedger>,
    /// Nodes that are gone for good, as bits.
    gone: u32,
    /// Names that no ledger entry explains, or that two do: kept for the invariants.
    pub doubles: Vec<(KeyIx, Dot, u32, u32)>,
}

impl Ledger {
    /// For that many keys.
    pub fn new(keys: usize) -> Self {
        Self {
            writes: Vec::new(),
            keys: vec![KeyLedger::default(); keys],
            gone: 0,
            doubles: Vec::new(),
        }
    }

    /// A client begins a write.
    pub fn begin(&mut self, write: Write) -> u32 {
        let number = self.writes.len() as u32;
        self.keys[write.key as usize].writes.push(number);
        self.writes.push(write);
        number
    }

    /// The number that the next write will have.
    pub fn next(&self) -> u32 {
        self.writes.len() as u32
    }

    /// A coordinator has given a write a name.
    pub fn named(&mut self, number: u32, dot: Dot) {
        let write = &mut self.writes[number as usize];
        let key = &mut self.keys[write.key as usize];
        let (owner, _) = *key.dots.entry(dot).or_insert((number, 0));
        if owner == number {
            if !write.dots.contains(&dot) {
                write.dots.push(dot);
            }
        } else {
            self.doubles.push((write.key, dot, owner, number));
        }
    }

    /// A coordinator has said what a name supersedes; and with that, all that these had superseded.
    pub fn built(&mut self, number: u32, dot: Dot, mut built: Built) {
        let known = &mut self.keys[self.writes[number as usize].key as usize].built;
        let earlier: Vec<Dot> = known
            .keys()
            .filter(|dot| built.upon.contains(dot))
            .copied()
            .collect();
        for dot in earlier {
            built.upon.union(&known[&dot].upon);
        }
        known.entry(dot).or_insert(built);
    }

    /// A node has synced a state of a key.
    pub fn synced(&mut self, key: KeyIx, state: &KeyState, node: NodeIx) {
        let KeyLedger { dots, built, .. } = &mut self.keys[key as usize];
        if !built.is_empty() {
            // A value holds all that it was built upon.
            for (_, (_, nodes)) in dots.iter_mut().filter(|(dot, _)| state.seen().contains(dot)) {
                *nodes |= 1 << node;
            }
            return;
        }
        for dot in state.siblings().keys() {
            if let Some((_, nodes)) = dots.get_mut(dot) {
                *nodes |= 1 << node;
            }
        }
    }

    /// A node is gone for good, or has begun anew with nothing.
    pub fn set_gone(&mut self, node: NodeIx, gone: bool) {
        self.gone = self.gone & !(1 << node) | u32::from(gone) << node;
    }

    /// A write that only members which are gone for good have; `everywhere`: not even as a hint does anybody else have it.
    pub fn forfeit(&mut self, number: u32, everywhere: bool) {
        let write = &self.writes[number as usize];
        let key = &mut self.keys[write.key as usize];
        let gone: Seen = write.dots.iter().copied().collect();
        key.promised = key.promised.without(&gone);
        key.unpromised.union(&gone);
        key.gone_with
            .extend(write.dots.iter().map(|dot| (*dot, self.gone)));
        if everywhere {
            key.forfeited.insert(number);
        }
    }

    /// A node acknowledges a write, as accepted by `w` nodes. What only members have that are gone for good, and have not heard, goes with
    /// them; what others have is owed, also if it had been forfeited and was tried again. True if it is not owed.
    pub fn acknowledged(&mut self, number: u32, w: u32, by: NodeIx) -> bool {
        let copies = self.living_copies(number);
        let gone = self.gone >> by & 1 == 1 && copies < w;
        if gone {
            self.forfeit(number, copies == 0);
        } else if copies >= w {
            let key = self.write(number).key;
            self.keys[key as usize].forfeited.remove(&number);
        }
        gone
    }

    /// A client was told that the write of that name is accepted by `w` nodes: any read of R primaries must know it.
    pub fn promise(&mut self, key: KeyIx, dot: Dot, w: u32) {
        let key = &mut self.keys[key as usize];
        if key.unpromised.contains(&dot) {
            if living(key, &dot, self.gone) < w {
                return;
            }
            key.unpromised = key.unpromised.without(&std::iter::once(dot).collect());
        }
        key.promised.insert(dot);
    }

    /// How many nodes that are not gone for good have synced one of a write's names.
    fn living_copies(&self, number: u32) -> u32 {
        let write = self.write(number);
        let key = &self.keys[write.key as usize];
        let copies = write.dots.iter().map(|dot| living(key, dot, self.gone));
        copies.max().unwrap_or_default()
    }

    /// A write.
    pub fn write(&self, number: u32) -> &Write {
        &self.writes[number as usize]
    }

    /// A write, to be changed.
    pub fn write_mut(&mut self, number: u32) -> &mut Write {
        &mut self.writes[number as usize]
    }

    /// All writes.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// A key's entry.
    pub fn key(&self, key: KeyIx) -> &KeyLedger {
        &self.keys[key as usize]
    }

    /// A key's entry, to be changed.
    pub fn key_mut(&mut self, key: KeyIx) -> &mut KeyLedger {
        &mut self.keys[key as usize]
    }

    /// The write that bears a name.
    pub fn owner(&self, key: KeyIx, dot: &Dot) -> Option<&Write> {
        let (number, _) = self.keys[key as usize].dots.get(dot)?;
        self.writes.get(*number as usize)
    }

    /// What whoever is shown these siblings has truly seen: they themselves, and what their writers had seen.
    pub fn truly_seen(&self, key: KeyIx, state: &KeyState) -> Seen {
        let mut seen = Seen::new();
        for dot in state.siblings().keys() {
            seen.insert(*dot);
            if let Some(write) = self.owner(key, dot).filter(|write| write.operation.is_none()) {
                seen.union(&write.past);
            }
            if let Some(built) = self.keys[key as usize].built.get(dot) {
                seen.union(&built.upon);
            }
        }
        seen
    }

    /// True if whoever gave `later` its name knew `earlier`, or its client did; an operation on a value of a data type
    /// supersedes only the former.
    pub fn supersedes(&self, key: KeyIx, later: &Dot, earlier: &Dot) -> bool {
        let built = self.keys[key as usize].built.get(later);
        self.owner(key, later)
            .is_some_and(|later| later.operation.is_none() && later.past.contains(earlier))
            || built.is_some_and(|built| built.upon.contains(earlier))
    }

    /// A state was removed everywhere, rightly or not.
    pub fn removed(&mut self, key: KeyIx, state: &KeyState) {
        let gone = self.truly_seen(key, state);
        self.keys[key as usize].reaped.union(&gone);
    }

    /// A state was shortened everywhere: what it forgot must not be needed any more.
    pub fn forgotten(&mut self, key: KeyIx, gone: &Seen) {
        self.keys[key as usize].reaped.union(gone);
    }

    /// True if a state shows the write or something that truly superseded it, or such a thing was reaped.
    pub fn survives(&self, write: &Write, state: Option<&KeyState>) -> bool {
        let entry = &self.keys[write.key as usize];
        if write.dots.iter().any(|dot| entry.reaped.contains(dot)) {
            return true;
        }
        let Some(state) = state else { return false };
        state.siblings().keys().any(|sibling| {
            write.dots.contains(sibling)
                || write
                    .dots
                    .iter()
                    .any(|dot| self.supersedes(write.key, sibling, dot))
        })
    }
}

fn living(key: &KeyLedger, dot: &Dot, gone: u32) -> u32 {
    let gone = gone | key.gone_with.get(dot).copied().unwrap_or_default();
    key.dots
        .get(dot)
        .map_or(0, |(_, nodes)| (nodes & !gone).count_ones())
}
