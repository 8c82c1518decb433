//! A store some of whose blocks cannot be read any more. Single records are fetched anew as they are met ([`refetch`]), but what
//! is damaged stays in the way of everything that goes through a range: no tree, no exchange, no source for a suspect peer. So
//! the store is set aside whole and the node begins with an empty one, if the others can fill it.
//!
//! [`refetch`]: super::refetch

use std::sync::Arc;

use dynamo_core::types::{MemberId, PartitionId};
use dynamo_proto::peer::TreeHashesRequest;

use crate::{
    node::Node,
    storage::{StoreError, trees::FoldError},
};

/// Has the store set aside if this is damage that stays, and nobody is missing to make good for it.
pub(crate) async fn met(node: &Arc<Node>, error: &FoldError) {
    let FoldError::Read(_, StoreError::Damaged { .. }) = error else {
        return;
    };
    if others_are_whole(node).await {
        node.set_data_aside(&error.to_string());
    }
}

/// Whether all other primaries of all partitions of this node answer, trust their stores, and can read them.
async fn others_are_whole(node: &Arc<Node>) -> bool {
    let pair = |(member, partition, _): (&MemberId, PartitionId, _)| (member.clone(), partition);
    let pairs: Vec<_> = node
        .background()
        .with_schedule(|schedule| schedule.pairs().map(pair).collect());
    for (member, partition) in &pairs {
        let Some(to) = node.membership().to(member) else {
            return false;
        };
        let root = TreeHashesRequest {
            header: Some(to.header()),
            partition: partition.0,
            level: 0,
            nodes: vec![0],
        };
        let answer = node.peers().tree_hashes(&to, root).await;
        if !answer.is_ok_and(|answer| !answer.suspect && !answer.not_ready) {
            return false;
        }
    }
    !pairs.is_empty()
}
