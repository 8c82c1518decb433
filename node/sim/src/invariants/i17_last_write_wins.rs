//! I17: where the last write wins, it is the one with the largest (stamp, dot) among those that nothing supersedes; a
//! write supersedes what its client had seen and, unseen, only what has a smaller stamp. Paper: §4.4 (timestamp based
//! reconciliation); row D48.

use dynamo_core::version::{Dot, KeyState};

use crate::keys::KeyIx;
use crate::shared::Shared;

/// A coordinator has given a write its name: what does it supersede?
pub fn check_named(sh: &mut Shared, number: u32, dot: Dot) {
    let write = sh.ledger.write(number);
    let entry = sh.ledger.key(write.key);
    let Some(own) = entry.built.get(&dot) else { return };
    let mut may = write.past.clone();
    for (older, built) in entry.built.iter().filter(|(_, built)| built.stamp < own.stamp) {
        may.insert(*older);
        may.union(&built.upon);
    }
    if !may.descends(&own.upon) {
        let what = format!(
            "{dot}, write {number}, supersedes later writes: {:?} of {may:?}",
            own.upon
        );
        sh.violated("I17", what);
    }
}

/// A reader is shown the winner.
pub fn check(sh: &mut Shared, key: KeyIx, state: &KeyState, whose: &str) {
    let built = &sh.ledger.key(key).built;
    let stamp = |dot: &Dot| built.get(dot).map(|built| built.stamp);
    let expected = state.siblings().keys().max_by_key(|dot| (stamp(dot), **dot));
    // At the beginning of time nothing has expired.
    let winner = state.lww_winner(0).map(|(dot, _)| dot);
    let tombstone = expected.is_some_and(|dot| state.siblings()[dot].value().is_none());
    if winner != expected.copied().filter(|_| !tombstone) {
        let what =
            format!("{whose} of key {key} shows {winner:?}, the last write is {expected:?}: {state:?}");
        sh.violated("I17", what);
    }
}

/// What a coordinator holds and takes for a write of the past does not hide the write that it makes now.
pub fn check_hidden(sh: &mut Shared, stored: Option<&KeyState>, delta: &KeyState, wall_ms: u64) {
    let Some(own) = delta.siblings().values().next() else {
        return;
    };
    let hidden_by = stored.and_then(|stored| {
        stored.siblings().iter().find(|(dot, sibling)| {
            sibling.stamp > own.stamp && sibling.stamp.is_plausible(wall_ms) && !delta.seen().contains(dot)
        })
    });
    if let Some((dot, sibling)) = hidden_by {
        let what = format!(
            "a fresh write with stamp {:?} is hidden by {dot} of {:?}, which its coordinator held",
            own.stamp, sibling.stamp
        );
        sh.violated("I17", what);
    }
}
