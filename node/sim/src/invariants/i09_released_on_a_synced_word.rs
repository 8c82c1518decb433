//! I9: a hint is released only once its owner has synced what it holds. Paper: §4.6 ("once the transfer succeeds");
//! Riak's handoff lost data by believing what was only in the receiver's memory. Partitions are not released yet: the
//! ring's owners do not change here.

use dynamo_core::version::KeyState;

use crate::keys::KeyIx;
use crate::messages::NodeIx;
use crate::shared::Shared;

/// Asks the ledger whether the owner has ever synced every write of a hint that goes; of one whose owner is no primary of
/// the key, whether all primaries have.
pub fn check(sh: &mut Shared, holder: NodeIx, owner: NodeIx, key: KeyIx, hint: &KeyState) {
    let (primaries, _) = sh.preference_of(key);
    let receivers = if primaries.contains(&owner) {
        vec![owner]
    } else {
        primaries.clone()
    };
    let dots = &sh.ledger.key(key).dots;
    let lacks = |node: &NodeIx, dot| dots.get(dot).is_some_and(|(_, nodes)| nodes >> node & 1 == 0);
    let missing = hint
        .siblings()
        .keys()
        .find_map(|dot| Some((*receivers.iter().find(|node| lacks(node, dot))?, *dot)));
    if let Some((node, dot)) = missing {
        let what = format!("n{holder} deletes its hint of key {key}; n{node} has never synced {dot}");
        sh.violated("I9", what);
    }
}
