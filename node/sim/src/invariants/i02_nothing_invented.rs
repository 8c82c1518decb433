//! I2: nothing appears that was never written, under a name that was never given, or that was refused as not applied.
//! Paper: §4.4.

use dynamo_core::version::KeyState;

use crate::keys::KeyIx;
use crate::ledger::Status;
use crate::shared::Shared;

/// Compares each sibling with the write that it claims to be.
pub fn check(sh: &mut Shared, key: KeyIx, state: &KeyState, whose: &str) {
    for (dot, sibling) in state.siblings() {
        let what = match sh.ledger.owner(key, dot) {
            None => format!("{whose} of key {key} holds {dot}, which no write bears"),
            Some(write) if write.operation.is_none() && write.value.as_ref() != sibling.value() => {
                format!("{whose} of key {key} holds another value under {dot} than was written")
            }
            Some(write) if write.status == Status::NotApplied => {
                format!("{whose} of key {key} holds {dot}, which was reported as not applied")
            }
            Some(_) => continue,
        };
        sh.violated("I2", what);
    }
}
