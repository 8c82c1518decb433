//! I1: an acknowledged write, or one that truly superseded it, is in the final siblings. Paper: §2.3, §4.4 ("an update
//! is never lost"). But for what only members had that an administrator has declared dead.

use dynamo_core::version::KeyState;

use crate::keys::KeyIx;
use crate::shared::Shared;

/// Looks for every acknowledged write of a key.
pub fn check(sh: &mut Shared, key: KeyIx, state: Option<&KeyState>) {
    let lost = sh.ledger.key(key).writes.iter().copied().find(|number| {
        let write = sh.ledger.write(*number);
        let forfeited = sh.ledger.key(key).forfeited.contains(number);
        write.applied && !forfeited && !sh.ledger.survives(write, state)
    });
    if let Some(number) = lost {
        let write = sh.ledger.write(number);
        let what = format!(
            "write {number} of key {key} ({:?}), acknowledged (heard at {} us), is lost; the final state is {state:?}",
            write.dots, write.acked_us
        );
        sh.violated("I1", what);
    }
}
