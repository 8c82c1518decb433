//! I4: a context covers what its client was shown, and what that had superseded, and nothing else. Paper: §4.4.

use dynamo_core::version::{Dot, KeyState, Seen};

use crate::keys::KeyIx;
use crate::shared::Shared;

/// A get's context.
pub fn check(sh: &mut Shared, key: KeyIx, state: &KeyState) {
    let truth = sh.ledger.truly_seen(key, state);
    if !truth.descends(state.seen()) {
        let what = format!(
            "a get of key {key} covers {:?}, of which the reader was truly shown only {truth:?}",
            state.seen()
        );
        sh.violated("I4", what);
    }
}

/// A put's context: what the client had, and the new write.
pub fn check_put(sh: &mut Shared, number: u32, dot: Dot, context: &Seen) {
    let write = sh.ledger.write(number);
    let mut truth = write.past.clone();
    truth.insert(dot);
    if !truth.descends(context) {
        let what = format!("the put of write {number} covers {context:?}, its client has seen {truth:?}");
        sh.violated("I4", what);
    }
}
