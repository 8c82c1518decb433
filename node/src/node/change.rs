//! A change of the ring, as far as it concerns this node: what is under way, what it has to pull, and what it holds for others
//! no more. `background::transition` drives it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use dynamo_core::{
    coordinator::{FailureKind, ReplicaFailure},
    membership::RingVersion,
    ring::Ring,
    transition::{Layouts, Local, Strays, Sync, SyncProgress},
    types::{MemberId, PartitionId},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Node, Placed,
    operations::{Begun, Operations},
};

/// Least time between two rounds of gossip.
const NEWS_DELAY: Duration = Duration::from_millis(20);

/// What a node keeps for changes of the ring.
#[derive(Default)]
pub(crate) struct Change {
    pub(super) operations: Arc<Operations>,
    /// For the newest ring, while one is to follow the base.
    sync: Mutex<Option<Sync>>,
    /// When the first pull for it began.
    pulling_since: Mutex<Option<Instant>>,
    strays: Mutex<Strays>,
}

impl Node {
    /// Begins what a change of the ring has to wait for, such as a write; gives the rings that it goes by. `placed` may have been
    /// read some time ago.
    pub(crate) fn begin(&self, placed: &Arc<Placed>) -> (Arc<Begun>, Arc<Placed>) {
        let operation = self.change.operations.begin(placed.newest());
        // A ring that was taken up in between is gone by, whether the operation is counted as an older one or not.
        let placed = self.ring_in_use().unwrap_or_else(|| Arc::clone(placed));
        (Arc::new(operation), placed)
    }

    /// Sees whether a peer has refused this node since it knows of a later ring; then it hears of that soon.
    pub(crate) fn behind<T>(&self, result: &Result<T, ReplicaFailure>) {
        if matches!(result, Err(failure) if failure.kind == FailureKind::StaleEpoch) {
            self.catch_up();
        }
    }

    /// Whether gossip is to be quick, since all members wait for news.
    pub(crate) fn has_much_to_tell(&self) -> bool {
        self.ring_in_use()
            .is_some_and(|placed| placed.layouts().in_transition())
    }

    /// Waits for the next round of gossip: so long, or until there is news.
    pub(crate) async fn gossip_due(&self, interval: Duration) {
        // Too many news make no more rounds than are quick.
        let news = async {
            tokio::time::sleep(NEWS_DELAY).await;
            self.gossip_due.notified().await;
        };
        let _ = tokio::time::timeout(interval, news).await;
    }

    /// There is news to be heard, or to be told: gossip does not wait for its time.
    pub(crate) fn catch_up(&self) {
        self.gossip_due.notify_one();
    }

    /// What the next step of a change depends on.
    pub(crate) fn local(&self, placed: &Placed) -> Local {
        Local {
            oldest: self.change.operations.oldest(),
            synced: self.synced_ring(placed),
        }
    }

    /// The newest ring, if everything that it makes this node hold is here, and nothing is kept here for others by one that leaves.
    fn synced_ring(&self, placed: &Placed) -> Option<RingVersion> {
        let next = placed.layouts().next()?.ring();
        let newest = RingVersion::from(next.as_ref());
        let done = self.with_sync(|sync| sync.ring() == newest && sync.is_done())?;
        let rid_of_hints = || self.hints().owners().is_empty();
        (done && !self.is_suspect_anywhere() && (!placed.leaves() || rid_of_hints())).then_some(newest)
    }

    /// Works with what is to be pulled, while a ring is to follow.
    pub(crate) fn with_sync<T>(&self, with: impl FnOnce(&mut Sync) -> T) -> Option<T> {
        self.change.sync.lock().as_mut().map(with)
    }

    pub(crate) fn with_strays<T>(&self, with: impl FnOnce(&mut Strays) -> T) -> T {
        with(&mut self.change.strays.lock())
    }

    /// Takes up what the newest ring makes this node pull. What was pulled for the same one stays.
    pub(super) fn place_sync(&self, layouts: &Layouts, me: &MemberId) {
        let newest = layouts.next().map(|next| RingVersion::from(next.ring().as_ref()));
        let mut sync = self.change.sync.lock();
        if sync.as_ref().map(Sync::ring) != newest {
            *sync = Sync::new(layouts, me);
            *self.change.pulling_since.lock() = None;
        }
    }

    /// A pull for the newest ring begins.
    pub(crate) fn pulls(&self) {
        self.change.pulling_since.lock().get_or_insert_with(Instant::now);
    }

    /// How far the pulls for the newest ring have come, and how many milliseconds the rest takes at that pace, if that can be told.
    pub(crate) fn pull_progress(&self) -> (SyncProgress, Option<u64>) {
        let progress = self.with_sync(|sync| sync.progress()).unwrap_or_default();
        let elapsed = self
            .change
            .pulling_since
            .lock()
            .map_or(Duration::ZERO, |since| since.elapsed());
        (progress, progress.remaining_ms(elapsed.as_millis() as u64))
    }

    /// What was pulled is lost, or may be.
    pub(super) fn sync_again(&self, layouts: &Layouts, me: &MemberId) {
        *self.change.sync.lock() = Sync::new(layouts, me);
    }

    /// The base ring is another one: what this node held by the rings before, and does by none now, is handed to its owners.
    pub(super) fn freed(&self, before: &Placed, layouts: &Layouts) {
        let mut strays = self.change.strays.lock();
        let q = layouts.base().ring().partitions();
        // Who had a part in a partition that was cut in two has it in both halves.
        let same_q = before.placement().ring().partitions() == q;
        let held = (0..q)
            .map(PartitionId)
            .filter(|partition| same_q && (before.has_a_part_in(*partition) || strays.has(*partition)));
        let held: Vec<PartitionId> = held.collect();
        strays.place(layouts, before.me(), held);
    }

    /// Takes up partitions that were found here by the rings of `placed`; not if they are others by now, for then it is looked for
    /// again.
    pub(crate) fn stray(&self, placed: &Placed, found: BTreeSet<PartitionId>) {
        let _one = self.taking_up.lock();
        let now = self.ring_in_use();
        let same =
            |now: &Arc<Placed>| now.placement().ring().version() == placed.placement().ring().version();
        if let Some(now) = now.filter(same) {
            self.with_strays(|strays| strays.place(now.layouts(), now.me(), found));
            self.keep_trees(now.layouts(), now.me());
        }
    }

    /// A partition that this node held no more is erased.
    pub(crate) fn erased(&self, partition: PartitionId) {
        let _one = self.taking_up.lock();
        self.with_strays(|strays| strays.erased(partition));
        if let Some(now) = self.ring_in_use() {
            self.keep_trees(now.layouts(), now.me());
        }
    }

    /// No ring lists this node any more. What it holds has been handed over, and may be removed by the members from now on: the
    /// process ends, to begin anew with an empty store, should a ring list it again.
    pub(super) fn leave(&self, base: &Ring) {
        let reason = format!("the member left with ring {}", base.epoch());
        tracing::warn!(
            reason,
            "no ring lists this node any more; beginning anew with an empty store"
        );
        self.begin_anew(&reason);
    }

    /// Whether this node has joined, and no ring lists it yet.
    pub(crate) fn awaits_ring(&self) -> bool {
        !self.draining() && self.ring_in_use().is_none()
    }
}
