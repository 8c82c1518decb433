//! I16: a value of a data type is what the writes that its reader has seen make together; a retry counts once. Paper:
//! §4.4 (semantic reconciliation); row D53.

use dynamo_core::crdt::{self, DataType};
use dynamo_core::version::{Dot, KeyState, Seen};

use crate::keys::KeyIx;
use crate::model;
use crate::shared::Shared;

/// Compares the value of a state with the [model's](model::expected). What its reader has seen comes back.
pub fn check(sh: &mut Shared, key: KeyIx, data_type: DataType, state: &KeyState, whose: &str) -> Seen {
    let what = match crdt::read(data_type, state, 0) {
        Err(error) => format!("{whose} of key {key} is no {data_type}: {error}"),
        Ok(None) => return state.context_seen(),
        Ok(Some(read)) => {
            let expected = model::expected(&sh.ledger, key, data_type, &read.context);
            if read.view == expected {
                return read.context;
            }
            format!(
                "{whose} of key {key} shows {:?}; the writes that it knows make {expected:?}: {:?}",
                read.view, read.context
            )
        }
    };
    sh.violated("I16", what);
    state.context_seen()
}

/// A typed write's context names it only if its client had seen all that it was built upon.
pub fn check_put(sh: &mut Shared, number: u32, dot: Dot, context: &Seen) {
    let write = sh.ledger.write(number);
    let upon = sh.ledger.key(write.key).built.get(&dot).map(|built| &built.upon);
    if write.operation.is_some()
        && context.contains(&dot)
        && upon.is_some_and(|upon| !write.past.descends(upon))
    {
        let what =
            format!("the reply to write {number} lets its client remove what {dot} was built upon unseen");
        sh.violated("I16", what);
    }
}
