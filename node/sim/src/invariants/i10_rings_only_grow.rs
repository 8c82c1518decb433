//! I10: no node ever goes back to an earlier ring. Paper: §4.8.1 (membership changes spread by gossip and are eventually
//! agreed upon).

use dynamo_core::ring::Ring;

use crate::messages::NodeIx;
use crate::node::Node;
use crate::shared::Shared;

/// A node's ring before and after news.
pub fn check(sh: &mut Shared, node: NodeIx, before: Option<&Ring>, after: Option<&Ring>) {
    if before.map(Ring::version) > after.map(Ring::version) {
        let what = format!(
            "n{node} goes back from ring {:?} to {:?}",
            version(before),
            version(after)
        );
        sh.violated("I10", what);
    }
}

/// Who does not have the newest ring that any member has.
pub fn behind(nodes: &[Node]) -> Option<String> {
    let of = |node: &Node| Some(node.process.as_ref()?.view.ring()?.version());
    let newest = nodes.iter().filter_map(of).max();
    let late = nodes.iter().find(|node| of(node) != newest)?;
    Some(format!(
        "n{} has ring {:?}, the newest is {newest:?}",
        late.me,
        of(late)
    ))
}

fn version(ring: Option<&Ring>) -> Option<(u64, u64)> {
    ring.map(Ring::version)
}
