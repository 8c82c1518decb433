//! I6: an acknowledgement counts distinct nodes that have synced the write. Paper: §4.5, §6.1.

use dynamo_core::coordinator::WriteOutcome;
use dynamo_core::version::Dot;

use crate::knobs::Durability;
use crate::shared::Shared;

/// Counts the nodes that the ledger has seen syncing it.
pub fn check(sh: &mut Shared, number: u32, dot: Dot, outcome: &WriteOutcome) {
    let key = sh.ledger.write(number).key;
    let nodes = sh
        .ledger
        .key(key)
        .dots
        .get(&dot)
        .map_or(0, |(_, nodes)| nodes.count_ones());
    let claimed = if sh.knobs.durability == Durability::Every {
        outcome.acks
    } else {
        outcome.durable
    };
    if nodes < claimed || outcome.acks < sh.knobs.w {
        let what = format!(
            "write {number} ({dot}) was acknowledged with {} acks, {} durable; {nodes} nodes have synced it",
            outcome.acks, outcome.durable
        );
        sh.violated("I6", what);
    }
}
