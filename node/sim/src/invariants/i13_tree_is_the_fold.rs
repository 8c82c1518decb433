//! I13: a Merkle tree is the fold of what is stored, and replicas of a partition have equal roots. Paper: §4.7.

use dynamo_core::entropy::{Tree, record_hash};
use dynamo_core::types::PartitionId;

use crate::disk::Place;
use crate::node::Node;
use crate::shared::Shared;

/// Folds every partition anew.
pub fn check(sh: &mut Shared, nodes: &[Node]) {
    let mut wrong = None;
    for node in nodes {
        let Some(process) = &node.process else { continue };
        let partitions = process.view.ring().map_or(0, |ring| ring.partitions());
        for partition in (0..partitions).map(PartitionId) {
            let Some(tree) = process.trees.ready(partition) else {
                continue;
            };
            if tree.root() != fold(sh, node, partition, partitions) {
                wrong = Some(format!(
                    "the tree of n{} for {partition:?} is not what it stores",
                    node.me
                ));
            }
        }
    }
    if let Some(what) = wrong {
        sh.violated("I13", what);
    }
}

fn fold(sh: &Shared, node: &Node, partition: PartitionId, partitions: u32) -> u64 {
    let shape = dynamo_core::entropy::TreeShape::for_partitions(partitions);
    let mut tree = Tree::new(shape);
    for key in sh.keys.in_range(&sh.serving.placement.ring().range(partition)) {
        let info = sh.keys.get(key);
        let marked = matches!(node.disk.get(Place::Mark(key)), Ok(Some(_)));
        if let Some(state) = node.disk.peek(Place::Data(key)).filter(|_| !marked) {
            let hash = record_hash(info.position.as_bytes(), &state.encode());
            tree.update(info.hash, None, Some(hash));
        }
    }
    tree.root()
}
