//! I18: two nodes never serve by different rings of one epoch, and a ring gives way only to one that was proposed upon it.
//! Paper: §4.8.1; everything that reads and writes rely on in a transition follows from that.

use dynamo_core::membership::RingVersion;
use dynamo_core::ring::Ring;

use crate::messages::NodeIx;
use crate::shared::Shared;

/// A member has begun to write down that a ring is to follow another one.
pub fn proposed(sh: &mut Shared, ring: &Ring, base: RingVersion) {
    sh.proposals.insert(ring.into(), base);
}

/// A node's base ring before and now.
pub fn check(sh: &mut Shared, node: NodeIx, before: Option<&Ring>, after: &Ring) {
    let known = *sh.rings.entry(after.epoch()).or_insert(after.hash());
    if known != after.hash() {
        let epoch = after.epoch();
        let what = format!("epoch {epoch} has two base rings; n{node} serves by the second");
        sh.violated("I18", what);
    }
    let Some(before) = before.map(RingVersion::from) else {
        return;
    };
    // Whoever was away may have missed some in between.
    let mut version = RingVersion::from(after);
    while version != before {
        let Some(base) = sh.proposals.get(&version) else {
            let now = after.version();
            let what = format!("n{node} goes from {before:?} to {now:?}, which does not follow it");
            sh.violated("I18", what);
            return;
        };
        version = *base;
    }
}
