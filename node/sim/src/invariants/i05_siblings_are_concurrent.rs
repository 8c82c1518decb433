//! I5: of two siblings neither was written with knowledge of the other, and there are no more of them than writers who
//! really were at it at the same time. Paper: §4.4.

use std::collections::BTreeSet;

use dynamo_core::bucket::Conflict;
use dynamo_core::version::{Dot, KeyState, Seen};

use crate::keys::KeyIx;
use crate::shared::Shared;

/// What a reader gets, or what is there in the end.
pub fn check(sh: &mut Shared, key: KeyIx, state: &KeyState, whose: &str) {
    concurrent(sh, key, state, whose);
    if let Some(dot) = repeated(sh, key, state) {
        let what =
            format!("{whose} of key {key} shows {dot}, the retry of another sibling, as a value of its own");
        sh.violated("I5", what);
    }
}

/// Asks the ledger what the writers of all siblings had seen. An operation on a value of a data type supersedes what its
/// coordinator built it upon, not what its client had seen.
pub fn concurrent(sh: &mut Shared, key: KeyIx, state: &KeyState, whose: &str) {
    // What a blind write has superseded where the last one wins, its recognised retry need not repeat: for a moment both
    // are there, and the same one wins.
    let built_counts = sh.keys.get(key).conflict != Conflict::Lww;
    let mut superseded = Seen::new();
    for dot in state.siblings().keys() {
        let write = sh.ledger.owner(key, dot);
        if let Some(write) = write.filter(|write| write.operation.is_none()) {
            superseded.union(&write.past);
        }
        if let Some(built) = sh.ledger.key(key).built.get(dot).filter(|_| built_counts) {
            superseded.union(&built.upon);
        }
    }
    if let Some(dot) = state.siblings().keys().find(|dot| superseded.contains(dot)) {
        let what = format!("{whose} of key {key} holds {dot} beside a sibling whose writer had seen it");
        sh.violated("I5", what);
    }
}

/// Where a client's read knows its last write, each client has one write in a record at most, and those that it has
/// given up or that were blind.
pub fn count(sh: &mut Shared, key: KeyIx, state: &KeyState) {
    if sh.keys.get(key).conflict != Conflict::Siblings {
        return;
    }
    let entry = sh.ledger.key(key);
    let number = |dot| entry.dots.get(dot).map(|(number, _)| *number);
    let writes: BTreeSet<u32> = state.siblings().keys().filter_map(number).collect();
    let most = sh.knobs.clients as u64 + u64::from(entry.loose);
    let count = writes.len() as u64;
    sh.stats.siblings_max = sh.stats.siblings_max.max(count);
    if sh.knobs.reads_meet_writes() && count > most {
        let what = format!("key {key} has {count} siblings, of {most} concurrent writers");
        sh.violated("I5", what);
    }
}

/// A write and its retry, both with the operation's id, are one value to readers (row D47).
fn repeated(sh: &Shared, key: KeyIx, state: &KeyState) -> Option<Dot> {
    let number = |dot| sh.ledger.key(key).dots.get(dot).map(|(number, _)| *number);
    if sh.keys.get(key).conflict.data_type().is_some() {
        // There values merge, and what is shown adds up (I16).
        return None;
    }
    let live = state.live(0);
    live.iter().enumerate().find_map(|(index, (dot, _))| {
        let write = sh.ledger.owner(key, dot).filter(|write| write.op_id.is_some())?;
        let twice = live[..index]
            .iter()
            .any(|(other, _)| number(other) == number(dot));
        (twice && write.dots.len() > 1).then_some(*dot)
    })
}
