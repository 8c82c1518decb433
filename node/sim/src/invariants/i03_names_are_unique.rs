//! I3: no dot is ever given to two writes. Paper: §4.4; what goes wrong otherwise is Riak's "amnesia".

use crate::shared::Shared;

/// Reports what the ledger has met.
pub fn check(sh: &mut Shared) {
    if let Some((key, dot, first, second)) = sh.ledger.doubles.pop() {
        sh.violated(
            "I3",
            format!("{dot} of key {key} names both write {first} and write {second}"),
        );
    }
}
