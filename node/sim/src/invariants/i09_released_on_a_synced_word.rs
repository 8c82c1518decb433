//! I9: a hint is released only once its owner has synced what it holds. Paper: §4.6 ("once the transfer succeeds");
//! Riak's handoff lost data by believing what was only in the receiver's memory. Partitions are not released yet: the
//! ring's owners do not change here.

use dynamo_core::version::KeyState;

use crate::keys::KeyIx;
use crate::messages::NodeIx;
use crate::shared::Shared;

/// Asks the ledger whether the owner has ever synced every write of a hint that goes.
pub fn check(sh: &mut Shared, holder: NodeIx, owner: NodeIx, key: KeyIx, hint: &KeyState) {
    let dots = &sh.ledger.key(key).dots;
    let missing = hint
        .siblings()
        .keys()
        .find(|dot| dots.get(dot).is_some_and(|(_, nodes)| nodes >> owner & 1 == 0));
    if let Some(dot) = missing {
        let what = format!("n{holder} deletes its hint of key {key}; n{owner} has never synced {dot}");
        sh.violated("I9", what);
    }
}
