//! I5: of two siblings neither was written with knowledge of the other. Paper: §4.4.

use dynamo_core::version::KeyState;

use crate::keys::KeyIx;
use crate::shared::Shared;

/// Asks the ledger about every pair.
pub fn check(sh: &mut Shared, key: KeyIx, state: &KeyState, whose: &str) {
    let mut found = None;
    for later in state.siblings().keys() {
        let Some(write) = sh.ledger.owner(key, later) else {
            continue;
        };
        let earlier = state
            .siblings()
            .keys()
            .find(|dot| *dot != later && write.past.contains(dot));
        if let Some(earlier) = earlier {
            found = Some((*earlier, *later));
        }
    }
    if let Some((earlier, later)) = found {
        let what = format!("{whose} of key {key} holds {earlier} beside {later}, whose writer had seen it");
        sh.violated("I5", what);
    }
}
