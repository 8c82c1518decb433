//! Records on a node that holds their partition by no ring: freed by a change, or strayed there in any other way. They find
//! their owners, and are then released. Paper: §4.9 (nodes that no longer need keys transfer them).
//!
//! Each such partition is exchanged with every primary; once all of them have all of it on their disks, in this very placement, it
//! is erased. The word of an owner that is declared dead, or was when the base came to serve, counts for nothing, also if it is back: new
//! holders pull from who has strays, and not from the dead. A node that still has strays of a partition has a say against reaping in it, so that what it brings is never older
//! than what was removed.

use std::collections::BTreeSet;

use super::Layouts;
use super::queue::Queue;
use crate::membership::RingVersion;
use crate::types::{MemberId, PartitionId};

/// Partitions with strays, and whom they are still to be exchanged with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Strays {
    base: Option<RingVersion>,
    left: Queue,
    /// Exchanged with all, to be erased.
    safe: BTreeSet<PartitionId>,
}

impl Strays {
    /// Takes over the rings: `found` are the partitions, numbered as in the base ring, of which this node may have records. What
    /// was exchanged under another base ring counts no more.
    pub fn place(&mut self, layouts: &Layouts, me: &MemberId, found: impl IntoIterator<Item = PartitionId>) {
        let base = layouts.base();
        let version = RingVersion::from(base.ring().as_ref());
        let strays = found
            .into_iter()
            .filter(|partition| !layouts.holds_partition(*partition, me));
        let owners = |partition| owners(layouts, partition).cloned().collect();
        self.left = Queue::new(strays.map(|partition| (partition, owners(partition))).collect());
        self.safe.clear();
        self.base = Some(version);
    }

    /// Whether a partition is one of them.
    pub fn has(&self, partition: PartitionId) -> bool {
        self.left.has(partition) || self.safe.contains(&partition)
    }

    /// The exchange to begin now, with one of the partition's primaries that is `reachable`, and not declared dead. Whoever takes it
    /// says by [`ended`](Self::ended) what became of it.
    pub fn next(
        &mut self,
        layouts: &Layouts,
        reachable: &dyn Fn(&MemberId) -> bool,
        random: u64,
    ) -> Option<(PartitionId, MemberId)> {
        let dead = layouts.dead();
        let asked = |member: &MemberId| !dead.contains(member) && reachable(member);
        self.left.next(&asked, random)
    }

    /// An exchange that began under `base` is over. `complete`: the owner has everything, on its disk, and is not suspect.
    pub fn ended(&mut self, base: RingVersion, partition: PartitionId, owner: &MemberId, complete: bool) {
        let counts = complete && self.base == Some(base);
        if self.left.ended(partition, owner, counts) {
            self.left.forget(partition);
            self.safe.insert(partition);
        }
    }

    /// A partition that may be erased by these rings, if there is one.
    pub fn safe(&self, layouts: &Layouts) -> Option<PartitionId> {
        let same = self.base == Some(RingVersion::from(layouts.base().ring().as_ref()));
        let kept = |partition| owners(layouts, partition).all(|owner| layouts.is_complete(owner));
        self.safe
            .iter()
            .copied()
            .find(|partition| same && kept(*partition))
    }

    /// A partition is erased. Records that came meanwhile make it a stray again when it is next [placed](Self::place).
    pub fn erased(&mut self, partition: PartitionId) {
        self.safe.remove(&partition);
    }

    /// How many partitions are left.
    pub fn count(&self) -> usize {
        self.left.open().count() + self.safe.len()
    }
}

fn owners(layouts: &Layouts, partition: PartitionId) -> impl Iterator<Item = &MemberId> {
    let members = layouts.base().ring().members();
    let primaries = layouts.base().primaries(partition).iter();
    primaries.map(|index| &members[usize::from(*index)].id)
}
