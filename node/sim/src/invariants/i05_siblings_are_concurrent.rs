//! I5: of two siblings neither was written with knowledge of the other. Paper: §4.4.

use dynamo_core::bucket::Conflict;
use dynamo_core::version::{Dot, KeyState};

use crate::keys::KeyIx;
use crate::shared::Shared;

/// Asks the ledger about every pair.
pub fn check(sh: &mut Shared, key: KeyIx, state: &KeyState, whose: &str) {
    let mut found = None;
    let lww = sh.keys.get(key).conflict == Conflict::Lww;
    // What a blind write of the last-write-wins kind has superseded, its recognised retry need not repeat: for a moment
    // both are there, and the same one wins.
    let supersedes = |later: &Dot, earlier: &Dot| {
        if lww {
            sh.ledger
                .owner(key, later)
                .is_some_and(|write| write.past.contains(earlier))
        } else {
            sh.ledger.supersedes(key, later, earlier)
        }
    };
    for later in state.siblings().keys() {
        let earlier = state
            .siblings()
            .keys()
            .find(|dot| *dot != later && supersedes(later, dot));
        if let Some(earlier) = earlier {
            found = Some((*earlier, *later));
        }
    }
    if let Some(dot) = repeated(sh, key, state) {
        let what =
            format!("{whose} of key {key} shows {dot}, the retry of another sibling, as a value of its own");
        sh.violated("I5", what);
    }
    if let Some((earlier, later)) = found {
        let what = format!("{whose} of key {key} holds {earlier} beside {later}, whose writer had seen it");
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
