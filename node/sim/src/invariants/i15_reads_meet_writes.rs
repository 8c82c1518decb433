//! I15 (the first half; the other one is the liveness phase itself): with R + W > N, and primaries alone counted, a read
//! knows every write that was acknowledged before it began, whatever disks were lost meanwhile. Paper: §4.5.

use dynamo_core::version::{KeyState, Seen};

use crate::keys::KeyIx;
use crate::shared::Shared;

/// Compares what a read knows with what had been promised when it began.
pub fn check(sh: &mut Shared, key: KeyIx, state: Option<&KeyState>, promised: &Seen) {
    if !sh.knobs.reads_meet_writes() {
        return;
    }
    let mut known = state.map(|state| state.seen().clone()).unwrap_or_default();
    known.union(&sh.ledger.key(key).reaped);
    known.union(&sh.ledger.key(key).unpromised);
    if known.descends(promised) {
        return;
    }
    // A write that was tried twice has two names; what survives a lost disk may be either.
    let names = sh.ledger.key(key).dots.iter();
    for (dot, (number, _)) in names.filter(|(dot, _)| promised.contains(dot)) {
        if sh
            .ledger
            .write(*number)
            .dots
            .iter()
            .any(|name| known.contains(name))
        {
            known.insert(*dot);
        }
    }
    let life_us = sh.knobs.message_life_ms() * 1000;
    if sh.old_read_us.is_some_and(|at_us| sh.now_us < at_us + life_us) {
        // A store put back in time, and cut off ever since its start, is believed after a while: it may be all there is.
        sh.stats.excused_reads += u64::from(!known.descends(promised));
    } else if !known.descends(promised) {
        let what = format!("a read of key {key} knows {known:?}; acknowledged before it began: {promised:?}");
        sh.violated("I15", what);
    }
}
