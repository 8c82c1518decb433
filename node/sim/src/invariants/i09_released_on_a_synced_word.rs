//! I9: a hint is released only once its owner has synced what it holds, and a partition only once its new owners have.
//! Paper: §4.6 ("once the transfer succeeds"); Riak's handoff lost data by believing what was only in the receiver's memory.

use dynamo_core::version::{Dot, KeyState};

use crate::keys::KeyIx;
use crate::knobs::Durability;
use crate::messages::NodeIx;
use crate::shared::Shared;

/// Asks the ledger whether those to whom a hint was to go have ever synced every write of it.
pub fn check(sh: &mut Shared, holder: NodeIx, receivers: &[NodeIx], key: KeyIx, hint: &KeyState) {
    let missing = hint.siblings().keys().find_map(|dot| {
        Some((
            *receivers.iter().find(|node| !has_synced(sh, **node, key, dot))?,
            *dot,
        ))
    });
    if let Some((node, dot)) = missing {
        let what = format!("n{holder} deletes its hint of key {key}; n{node} has never synced {dot}");
        sh.violated("I9", what);
    }
}

/// The same of a record that its node holds by no ring any more: each owner has synced its writes, or what superseded them.
pub fn check_freed(sh: &mut Shared, holder: NodeIx, owners: &[NodeIx], key: KeyIx, state: &KeyState) {
    // What an owner holds equal may have come by a write that it has not synced yet, where that is allowed.
    if sh.knobs.durability != Durability::Every {
        return;
    }
    let has = |node: NodeIx, dot: &Dot| {
        let entry = sh.ledger.key(key);
        let superseded = || {
            let later = entry
                .dots
                .keys()
                .filter(|later| sh.ledger.supersedes(key, later, dot));
            later.into_iter().any(|later| has_synced(sh, node, key, later))
        };
        entry.reaped.contains(dot) || has_synced(sh, node, key, dot) || superseded()
    };
    let missing = state
        .siblings()
        .keys()
        .find_map(|dot| Some((*owners.iter().find(|node| !has(**node, dot))?, *dot)));
    if let Some((node, dot)) = missing {
        let what =
            format!("n{holder} erases key {key}, which it holds no more; n{node} has never synced {dot}");
        sh.violated("I9", what);
    }
}

fn has_synced(sh: &Shared, node: NodeIx, key: KeyIx, dot: &Dot) -> bool {
    let dots = &sh.ledger.key(key).dots;
    dots.get(dot).is_none_or(|(_, nodes)| nodes >> node & 1 == 1)
}
