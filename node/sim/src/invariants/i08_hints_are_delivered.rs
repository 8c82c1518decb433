//! I8: when all nodes can talk again, no hint is left anywhere. Paper: §4.6.

use crate::node::Node;
use crate::shared::Shared;

/// Looks into every store of hints.
pub fn check(sh: &mut Shared, nodes: &[Node]) {
    for node in nodes {
        let left = node.hints.iter().count();
        if left > 0 {
            sh.violated("I8", format!("n{} still holds {left} hints", node.me));
        }
    }
}
