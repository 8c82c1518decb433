//! Where hints go. Paper: §4.6.
//!
//! A hint is kept for one primary, its owner, under the ring of the write. Rings change while it waits, so its
//! destination is worked out anew, under the ring in use, each time a delivery is tried.

use crate::ring::Placement;
use crate::types::{MemberId, PartitionId};

/// Who must have the hint before it may be deleted, in preference order: the owner while it is a primary of the
/// partition, else all of the partition's primaries. Each of them must have acknowledged it durably.
///
/// The holder of the hint may be among them: it has become a primary, and takes the hint into its own records.
pub fn hint_targets(placement: &Placement, owner: &MemberId, partition: PartitionId) -> Vec<MemberId> {
    let ring = placement.ring();
    if let Some(index) = ring.index_of(owner)
        && placement.holds(partition, index)
    {
        return vec![owner.clone()];
    }
    let primaries = placement.primaries(partition).iter();
    primaries
        .map(|index| ring.members()[usize::from(*index)].id.clone())
        .collect()
}

#[cfg(test)]
mod tests;
