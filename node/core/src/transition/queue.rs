//! Exchanges that are still to be run.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{MemberId, PartitionId};

/// Of each partition, with whom; one exchange of a partition at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Queue {
    left: BTreeMap<PartitionId, BTreeSet<MemberId>>,
    running: BTreeSet<PartitionId>,
}

impl Queue {
    pub(super) fn new(left: BTreeMap<PartitionId, BTreeSet<MemberId>>) -> Self {
        Self {
            left,
            running: BTreeSet::new(),
        }
    }

    /// The next one: of a random partition, with a random member that is `reachable`.
    pub(super) fn next(
        &mut self,
        reachable: &dyn Fn(&MemberId) -> bool,
        random: u64,
    ) -> Option<(PartitionId, MemberId)> {
        let open = |(id, members): &(&PartitionId, &BTreeSet<MemberId>)| {
            !self.running.contains(id) && members.iter().any(reachable)
        };
        let count = self.left.iter().filter(open).count() as u64;
        let picked = random.checked_rem(count)? as usize;
        let (id, members) = self.left.iter().filter(open).nth(picked)?;
        let members: Vec<&MemberId> = members.iter().filter(|member| reachable(member)).collect();
        let picked = (random / count) % members.len() as u64;
        let chosen = (*id, members[picked as usize].clone());
        self.running.insert(chosen.0);
        Some(chosen)
    }

    /// One is over. True if nothing is left to be run of its partition.
    pub(super) fn ended(&mut self, partition: PartitionId, member: &MemberId, complete: bool) -> bool {
        self.running.remove(&partition);
        self.left.get_mut(&partition).is_some_and(|left| {
            if complete {
                left.remove(member);
            }
            left.is_empty()
        })
    }

    pub(super) fn forget(&mut self, partition: PartitionId) {
        self.left.remove(&partition);
    }

    pub(super) fn has(&self, partition: PartitionId) -> bool {
        self.left.contains_key(&partition)
    }

    /// Partitions of which something is left, ascending.
    pub(super) fn open(&self) -> impl Iterator<Item = PartitionId> {
        self.left.keys().copied()
    }
}
