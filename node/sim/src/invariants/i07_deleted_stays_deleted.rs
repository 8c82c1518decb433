//! I7: what was deleted and reaped never comes back. Paper: §4.4; a delete is a write like others, so that I1 and I5 speak
//! of it until it is reaped.

use dynamo_core::version::KeyState;

use crate::keys::KeyIx;
use crate::shared::Shared;

/// Looks for values that something reaped had superseded. A tombstone may come back: it hides what it hid before.
pub fn check(sh: &mut Shared, key: KeyIx, state: &KeyState, whose: &str) {
    let reaped = &sh.ledger.key(key).reaped;
    let back = state.siblings().iter().find(|(dot, sibling)| {
        sibling.value().is_some() && sibling.expires_at_ms.is_none() && reaped.contains(dot)
    });
    if let Some((dot, _)) = back {
        let what =
            format!("{whose} of key {key} holds {dot}, which was superseded by something that is reaped");
        sh.violated("I7", what);
    }
}
