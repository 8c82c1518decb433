//! I12: what a node keeps for others and in memory stays within its caps, whatever fails. Paper: §6.5 (background work
//! must not take the foreground's resources); hints that piled up have brought down others' clusters.

use crate::node::background::HINTS_IN_FLIGHT;
use crate::node::entropy::EXCHANGES_MAX;
use crate::node::writer::{QUEUE_MAX, Writer};
use crate::node::{Node, boot};
use crate::shared::Shared;

/// Budgets of hints that are ever spent.
const SMALL_BUDGET: usize = 100;

/// Looks at one node after an event.
pub fn check(sh: &mut Shared, node: &Node) {
    let Some(process) = &node.process else { return };
    let queued = process.writers.iter().map(Writer::waiting).max();
    let amounts = [
        ("operations wait for the disk", queued.unwrap_or(0), QUEUE_MAX),
        (
            "hints are delivered at once",
            process.delivering.len(),
            HINTS_IN_FLIGHT,
        ),
        ("exchanges run", process.exchanges.len(), EXCHANGES_MAX + 1),
        ("quiet times are kept", process.quiet.len(), boot::QUIET_ENTRIES),
    ];
    if sh.knobs.hints_max <= SMALL_BUDGET {
        check_hints(sh, node);
    }
    for (what, amount, most) in amounts {
        if amount > most {
            sh.violated(
                "I12",
                format!("n{}: {amount} {what}, {most} at most may", node.me),
            );
        }
    }
}

/// Looks at the hints on a disk, one by one.
fn check_hints(sh: &mut Shared, node: &Node) {
    let (held, most) = (node.hints.iter().count(), sh.knobs.hints_max);
    if held > most {
        sh.violated(
            "I12",
            format!("n{}: {held} hints are kept, {most} at most may", node.me),
        );
    }
}
