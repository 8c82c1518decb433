//! What this node holds: its copies of records, hints for others, trees, and how far all of it can be trusted.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use dynamo_core::{
    bucket::BucketPolicy,
    coordinator::{Ack, FailureKind, ReplicaFailure, ReplicaRead},
    entropy::{KeyPage, KeySummary, Tree, exchange::KEYS_PER_MESSAGE, record_hash},
    listing::Position,
    reap::{self, Holdings, Mark, ReapParties, Standing},
    recovery::Recovery,
    types::{Incarnation, MemberId, PartitionId},
    version::{Actor, KeyState},
};

use super::{Node, Placed, SCAN_BYTES_MAX};
use crate::{
    background::{self, exchange::TRANSFER_BYTES_MAX},
    clock, durable,
    storage::{
        Cached, DataKey, HintStore, ScanLimit, Space, StoreError,
        hints::HintError,
        keys::HashRange,
        look,
        records::{self, Records, Stored},
        set_aside,
        trees::{PartitionTrees, leaf_keys},
        writer::{Committed, WriteError},
    },
};

/// A start waits at most so long for a peer's word before it answers reads,
const CONFIRM_MS_MAX: u64 = 3000;
/// once it has asked so often: a process that stood still has not waited.
const CONFIRM_ROUNDS_MIN: u64 = 3;

/// Equal ones mean equal records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest(pub(crate) u64);

/// What a replica holds.
pub(crate) enum Unless {
    /// What the asker knows.
    Same {
        suspect: bool,
    },
    Other(ReplicaRead),
}

/// What both stores have of a key.
struct Found {
    stored: Option<Bytes>,
    hinted: Option<KeyState>,
    suspect: bool,
}

impl Digest {
    /// Of a record as it is stored, which is its one encoding.
    fn of(stored: &Bytes) -> Self {
        Self(record_hash(&[], stored))
    }
}

impl Node {
    pub(crate) fn hints(&self) -> &HintStore {
        &self.hints
    }

    pub(crate) fn trees(&self) -> &Arc<PartitionTrees> {
        &self.trees
    }

    /// What holds for a bucket: its policy, or the default.
    pub(crate) fn bucket(&self, name: &str) -> BucketPolicy {
        self.membership.bucket(name)
    }

    /// The local copy of a key as a coordinator counts it; never an error taken for an absence.
    pub(crate) async fn read_local(&self, key: &DataKey) -> Result<ReplicaRead, ReplicaFailure> {
        self.read_replica(key).await.map_err(|error| {
            tracing::warn!(key_hash = %key.hash(), %error, "the local read failed");
            ReplicaFailure {
                sent: false,
                kind: FailureKind::Storage,
            }
        })
    }

    /// This node's copy of a key, hints for others included, and whether it fills a quorum.
    ///
    /// # Errors
    /// If either store cannot be read.
    pub(crate) async fn read_replica(&self, key: &DataKey) -> Result<ReplicaRead, StoreError> {
        let found = self.find(key).await?;
        self.merged(key, found)
    }

    /// As [`read_replica`](Self::read_replica), for one who may hold what has the digest `known`.
    ///
    /// # Errors
    /// If either store cannot be read.
    pub(crate) async fn read_unless(
        &self,
        key: &DataKey,
        known: Option<Digest>,
    ) -> Result<Unless, StoreError> {
        let found = self.find(key).await?;
        let digest = || found.stored.as_ref().map(Digest::of);
        if found.hinted.is_none() && known.is_some() && digest() == known {
            let suspect = found.suspect;
            return Ok(Unless::Same { suspect });
        }
        self.merged(key, found).map(Unless::Other)
    }

    async fn find(&self, key: &DataKey) -> Result<Found, StoreError> {
        let partition = self.ring_in_use().map(|placed| placed.partition_of(key));
        let suspect = partition.is_some_and(|partition| self.is_suspect(partition));
        let stored = self.stored_record(key).await?;
        if self.is_unconfirmed() {
            // What an old copy holds may have been removed everywhere since.
            let (stored, hinted) = (None, None);
            return Ok(Found {
                stored,
                hinted,
                suspect,
            });
        }
        let hinted = self.hints.read(key).await?;
        Ok(Found {
            stored,
            hinted,
            suspect,
        })
    }

    fn merged(&self, key: &DataKey, found: Found) -> Result<ReplicaRead, StoreError> {
        let Found {
            stored,
            hinted,
            suspect,
        } = found;
        let stored = stored.map(|stored| self.decoded(key, stored)).transpose()?;
        let state = match (stored, hinted) {
            (Some(mut stored), Some(hinted)) => {
                stored.merge(&hinted);
                Some(stored)
            }
            (stored, hinted) => stored.or(hinted),
        };
        Ok(ReplicaRead { state, suspect })
    }

    /// This node's copy and its digest, if there is no need to wait for the disk, and nothing to be said but what is stored.
    pub(crate) fn read_now(&self, key: &DataKey) -> Option<(ReplicaRead, Option<Digest>)> {
        let placed = self.ring_in_use()?;
        let suspect = self.is_suspect(placed.partition_of(key));
        let Ok(Cached::Known(stored)) = self.store.get_cached(Space::Data, key.as_bytes()) else {
            return None;
        };
        if self.is_unconfirmed() || !self.hints.is_empty() {
            return None;
        }
        let digest = stored.as_ref().map(Digest::of);
        let state = stored
            .map(|stored| records::decode(&key.into(), stored))
            .transpose()
            .ok()?;
        Some((ReplicaRead { state, suspect }, digest))
    }

    /// The digest of this node's copy, if there is one and no need to wait for the disk.
    pub(crate) fn digest_now(&self, key: &DataKey) -> Option<Digest> {
        match self.store.get_cached(Space::Data, key.as_bytes()) {
            Ok(Cached::Known(Some(stored))) => Some(Digest::of(&stored)),
            _ => None,
        }
    }

    /// The record of a key in this node's own data. What the block cache holds is read in place; the disk only by a
    /// thread that may wait.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn load(&self, key: &DataKey) -> Result<Option<KeyState>, StoreError> {
        let stored = self.stored_record(key).await?;
        stored.map(|stored| self.decoded(key, stored)).transpose()
    }

    /// A damaged record is to be got from other members.
    fn decoded(&self, key: &DataKey, stored: Bytes) -> Result<KeyState, StoreError> {
        let decoded = records::decode(&key.into(), stored);
        if matches!(decoded, Err(StoreError::Damaged { .. })) {
            self.refetches.want(key);
        }
        decoded
    }

    async fn stored_record(&self, key: &DataKey) -> Result<Option<Bytes>, StoreError> {
        let stored = match self.store.get_cached(Space::Data, key.as_bytes()) {
            Ok(Cached::OnDisk) => {
                let key = key.clone();
                let reading = "reading a record";
                look(&self.store, reading, move |store| {
                    store.get(Space::Data, key.as_bytes())
                })
                .await
            }
            Ok(Cached::Known(stored)) => Ok(stored),
            Err(error) => Err(error),
        };
        if matches!(stored, Err(StoreError::Damaged { .. })) {
            self.refetches.want(key);
        }
        stored
    }

    /// The record as exchanges see it: one that is marked to be removed is not there.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn load_unmarked(&self, key: &DataKey) -> Result<Option<KeyState>, StoreError> {
        if self.mark(key).await?.is_some() {
            return Ok(None);
        }
        self.load(key).await
    }

    /// Merges a state into this node's own record.
    ///
    /// # Errors
    /// As a replica's failure.
    pub(crate) async fn merge_local(
        &self,
        key: DataKey,
        state: KeyState,
        sync: bool,
    ) -> Result<Ack, ReplicaFailure> {
        let hash = key.hash();
        let merged = self.writer.merge(key, state, sync).await;
        merged
            .map(|committed| Ack {
                durable: committed.durable,
            })
            .map_err(|error| {
                tracing::warn!(key_hash = %hash, %error, "the local merge failed");
                ReplicaFailure {
                    sent: matches!(error, WriteError::Storage(_)),
                    kind: FailureKind::Storage,
                }
            })
    }

    /// Makes everything written so far durable.
    pub(crate) async fn sync(&self) -> bool {
        let batch = crate::storage::Batch::new();
        self.writer.meta(batch, true).await.is_ok()
    }

    /// A copy of a partition's tree; none while it is being made.
    pub(crate) fn tree(&self, partition: PartitionId) -> Option<Tree> {
        self.trees.snapshot(partition)
    }

    /// The next keys of some leaves, ascending, and their hashes.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn keys_of_leaves(
        &self,
        partition: PartitionId,
        leaves: Vec<u32>,
        after: Option<Position>,
    ) -> Result<KeyPage, StoreError> {
        let after = after.and_then(|after| DataKey::parse(after.as_bytes().clone()).ok());
        let shape = self.trees.shape();
        look(&self.store, "listing the keys of a partition", move |store| {
            let mut page = KeyPage {
                keys: Vec::new(),
                more: false,
            };
            let Some(shape) = shape else { return Ok(page) };
            for leaf in leaves {
                let range = shape.leaf_range(partition, leaf);
                if after.as_ref().is_some_and(|after| after.hash().0 > *range.end()) {
                    continue;
                }
                let limit = ScanLimit {
                    entries: KEYS_PER_MESSAGE - page.keys.len(),
                    bytes: SCAN_BYTES_MAX,
                };
                let mut after = after.clone().filter(|after| range.contains(&after.hash().0));
                // A page that shows no key at all could not be gone on from: the leaf is read until one is found.
                loop {
                    let found = leaf_keys(store, &range, after.as_ref(), limit)?;
                    page.keys
                        .extend(found.keys.into_iter().map(|(key, hash)| KeySummary {
                            position: key.position(),
                            hash,
                        }));
                    page.more = found.next.is_some() || page.keys.len() >= KEYS_PER_MESSAGE;
                    after = found.next;
                    if after.is_none() || !page.keys.is_empty() {
                        break;
                    }
                }
                if page.more {
                    return Ok(page);
                }
            }
            Ok(page)
        })
        .await
    }

    /// The next records of a partition, ascending, with their values.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn page(
        &self,
        partition: PartitionId,
        after: Option<DataKey>,
        entries: usize,
    ) -> Result<Records, StoreError> {
        let Some(placed) = self.ring_in_use() else {
            return Ok(Records {
                entries: Vec::new(),
                done: true,
            });
        };
        let hashes = placed.placement().ring().range(partition);
        look(&self.store, "looking through a partition", move |store| {
            let mut range = HashRange::all(&hashes);
            if let Some(after) = &after {
                range = range.after(after);
            }
            let limit = ScanLimit {
                entries,
                bytes: SCAN_BYTES_MAX,
            };
            records::scan(store, &range, limit)
        })
        .await
    }

    /// About 1 MiB of a partition's next records, as they are stored.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn stored(
        &self,
        partition: PartitionId,
        after: Option<DataKey>,
    ) -> Result<Stored, StoreError> {
        let ring = self
            .ring_in_use()
            .map(|placed| Arc::clone(placed.placement().ring()));
        let Some(ring) = ring.filter(|ring| partition.0 < ring.partitions()) else {
            return Ok(Stored::default());
        };
        look(&self.store, "reading a partition", move |store| {
            let mut range = HashRange::all(&ring.range(partition));
            if let Some(after) = &after {
                range = range.after(after);
            }
            let limit = ScanLimit {
                entries: usize::MAX,
                bytes: TRANSFER_BYTES_MAX,
            };
            records::stored(store, &range, limit)
        })
        .await
    }

    /// Whether this node's copy of a partition fills no quorum, since its store may have lost writes.
    pub(crate) fn is_suspect(&self, partition: PartitionId) -> bool {
        if self.is_unconfirmed() {
            return true;
        }
        // Who may have forgotten that the base ring was retired has not pulled from the present owners.
        self.recovery(|recovery| recovery.answers_reads(partition))
            .is_some_and(|answers| !answers || !self.membership.remembers())
    }

    pub(crate) fn is_suspect_anywhere(&self) -> bool {
        self.recovery.lock().is_some()
    }

    /// Works with the recovery, while there is one.
    pub(crate) fn recovery<T>(&self, with: impl FnOnce(&mut Recovery) -> T) -> Option<T> {
        self.recovery.lock().as_mut().map(with)
    }

    /// Partitions that this node holds but does not answer reads for.
    pub(crate) fn partitions_suspect(&self) -> u32 {
        let progress = self.recovery(|recovery| recovery.progress()).unwrap_or_default();
        (progress.partitions - progress.whole) as u32
    }

    /// True after a start, until a peer has had the chance to say that it remembers more of this member than the disk does;
    /// or until it is clear that no peer is there to ask.
    pub(crate) fn is_unconfirmed(&self) -> bool {
        if self.confirmed.load(Ordering::Relaxed) {
            return false;
        }
        if self.is_alone() || self.has_waited() {
            self.confirmed.store(true, Ordering::Relaxed);
            return false;
        }
        true
    }

    pub(super) fn has_waited(&self) -> bool {
        clock::monotonic_ms() - self.started_ms > CONFIRM_MS_MAX
            && self.gossip_rounds.load(Ordering::Relaxed) >= CONFIRM_ROUNDS_MIN
    }

    /// A round of gossip is over.
    pub(crate) fn gossiped(&self) {
        self.gossip_rounds.fetch_add(1, Ordering::Relaxed);
    }

    fn is_alone(&self) -> bool {
        self.ring_in_use()
            .is_some_and(|placed| placed.placement().ring().members().len() == 1)
    }

    /// True as long as no peer has compared the store since this start: it may yet be found to be an old copy, and be set
    /// aside.
    pub(crate) fn is_doubtful(&self) -> bool {
        // One that no peer has ever confirmed and that begins another life is no copy of anything.
        let may_be_old = !self.fresh || self.life_kept;
        may_be_old && !self.confirmed_by_peer.load(Ordering::Relaxed) && !self.is_alone()
    }

    /// Under whose name a hint is kept: a doubtful store keeps all under its own, which are brought to the key's primaries;
    /// the others are given up with it.
    pub(crate) fn hint_owner(&self, owner: MemberId) -> MemberId {
        match self.ring_in_use().filter(|_| self.is_doubtful()) {
            Some(placed) => placed.me().clone(),
            None => owner,
        }
    }

    /// Ends a write that this node's own data took: while the store is doubtful, the write is also kept as a hint for the
    /// node itself. So it outlives the store, should that be set aside. Where hints have no room it is taken all the same.
    pub(crate) async fn keep_for_itself(
        &self,
        key: &DataKey,
        delta: KeyState,
        committed: Committed,
    ) -> Result<Committed, WriteError> {
        let Some(placed) = self.ring_in_use().filter(|_| self.is_doubtful()) else {
            return Ok(committed);
        };
        match self.hints.hint(placed.me(), key, delta, committed.durable).await {
            Ok(kept) => Ok(Committed {
                durable: committed.durable && kept.durable,
            }),
            Err(HintError::Write(error @ WriteError::Storage(_))) => Err(error),
            Err(error) => {
                tracing::warn!(key_hash = %key.hash(), %error, "a write is kept only by a store that no peer has compared yet");
                Ok(committed)
            }
        }
    }

    /// Whether this store began empty and no peer has compared it yet: it cannot vouch for others.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh && !self.confirmed_by_peer.load(Ordering::Relaxed)
    }

    /// A peer has told what it remembers of this member. The word of one that is fresh itself, or lost its memory, counts only
    /// after a while: then nobody else seems to be there, as when a cluster begins. A node that waits for its ring cannot tell.
    pub(crate) async fn heard_from_peer(&self, peer_is_fresh: bool) {
        let settled = [&self.confirmed_by_peer, &self.outdated];
        let waits = self.ring_in_use().is_none() || (peer_is_fresh && !self.has_waited());
        if waits || settled.iter().any(|flag| flag.load(Ordering::Relaxed)) {
            return;
        }
        match self.writer.meta(durable::confirmed(), true).await {
            Ok(_) => {
                self.confirmed_by_peer.store(true, Ordering::Relaxed);
                self.confirmed.store(true, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(%error, "cannot keep that a peer has confirmed the store"),
        }
    }

    /// Peers remember a life of this member that its disk does not, or more of it: the volume was emptied, or put back in
    /// time. An empty one goes on as another incarnation, and gets back what it lost. What an old one holds may have been
    /// removed everywhere else since: it is set aside, and the process ends, to begin anew with an empty one.
    pub(crate) async fn exposed(&self, remembered: Incarnation) {
        // More of the very life that this disk goes on with: then it is an old copy, be it ever so young.
        let same_life = remembered.id == self.membership.incarnation().id;
        if self.fresh && !same_life {
            self.membership.supersede(&self.writer, remembered).await;
            self.begin_recovery().await;
            return;
        }
        self.outdated.store(true, Ordering::Relaxed);
        let reason = format!("peers remember more of this member ({remembered}) than its disk does");
        background::hints::give_up_old(self).await;
        self.set_data_aside(&reason);
    }

    /// Ends the process; the next start sets its data aside, and gets back from others what it lacks then.
    pub(crate) fn set_data_aside(&self, reason: &str) {
        tracing::error!(reason, "setting the data aside");
        self.begin_anew(reason);
    }

    /// Ends the process; the next start begins with an empty store.
    pub(super) fn begin_anew(&self, reason: &str) {
        match set_aside::request(&self.config.data_dir, reason) {
            Ok(()) => self.end.notify_one(),
            Err(error) => tracing::error!(%error, "cannot have the data set aside"),
        }
    }

    /// Completes when this node must end, to begin anew with an empty store.
    pub(crate) async fn must_end(&self) -> String {
        self.end.notified().await;
        "the store is to be set aside".to_owned()
    }

    async fn begin_recovery(&self) {
        if self.is_suspect_anywhere() {
            return;
        }
        let delay_ms = self.config.background.recovery_delay_ms;
        *self.recovery.lock() = Some(Recovery::begin(clock::monotonic_ms(), delay_ms));
        if let Some(placed) = self.ring_in_use() {
            self.place_recovery(placed.layouts(), placed.me());
            self.sync_again(placed.layouts(), placed.me());
        }
        let progress = self.recovery(|recovery| recovery.encode()).unwrap_or_default();
        if let Err(error) = self.writer.meta(durable::suspect(&progress), true).await {
            tracing::error!(%error, "cannot keep that the store is suspect");
        }
        tracing::warn!("the store lost writes; getting them back from the other primaries");
    }

    /// The store is whole.
    pub(crate) fn recovered(&self) {
        *self.recovery.lock() = None;
    }

    /// How this node stands when it is asked whether records may go.
    pub(crate) fn standing(&self, partition: PartitionId) -> Standing {
        Standing {
            epoch: self
                .ring_in_use()
                .map_or(0, |placed| placed.placement().ring().epoch()),
            transition: self
                .ring_in_use()
                .is_some_and(|placed| placed.layouts().in_transition()),
            suspect: self.is_suspect(partition),
        }
    }

    /// What this node keeps of a partition on behalf of others.
    ///
    /// # Errors
    /// If a store cannot be read.
    pub(crate) async fn holdings(&self, partition: PartitionId) -> Result<Holdings, StoreError> {
        let Some(placed) = self.ring_in_use() else {
            return Ok(Holdings::default());
        };
        let hashes = placed.placement().ring().range(partition);
        let hints = self.hints.any_in(&hashes).await?;
        let primary = placed.holds(partition);
        let strays = !primary && !self.page(partition, None, 1).await?.entries.is_empty();
        Ok(Holdings {
            hints,
            strays,
            handoff: false,
        })
    }

    /// A record as the removal of tombstones sees it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) async fn reap_replica(&self, key: &DataKey) -> Result<reap::Replica, StoreError> {
        let mark = self.mark(key).await?;
        let state = self.load(key).await?;
        Ok(reap::Replica {
            digest: state.as_ref().map(KeyState::digest),
            reapable: state
                .as_ref()
                .is_some_and(|state| state.is_reapable(clock::wall_ms())),
            mark,
            quiet_ms: self.quiet.lock().quiet_ms(key.as_bytes(), clock::monotonic_ms()),
        })
    }

    /// This process runs: its silence about a record means something.
    pub(crate) fn runs(&self) {
        self.quiet.lock().runs(clock::monotonic_ms());
    }

    /// Who is asked before something is removed: every member, since it may keep hints or copies from earlier rings. Who left
    /// is asked nothing: nobody takes data from it any more.
    pub(crate) fn reap_parties(placed: &Placed, partition: PartitionId) -> ReapParties {
        ReapParties {
            me: placed.me().clone(),
            primaries: placed.primaries_of(partition).cloned().collect(),
            members: placed.layouts().members().cloned().collect(),
            force: false,
        }
    }

    /// Tells whether an actor gives no dots any more, as far as this node knows: its life is over.
    pub(crate) fn retired_actors(&self) -> impl Fn(Actor) -> bool + use<> {
        let entries = self.membership.entries();
        let alive: BTreeSet<u64> = entries.iter().map(|entry| entry.incarnation.id).collect();
        move |actor: Actor| !alive.contains(&actor.incarnation)
    }

    async fn mark(&self, key: &DataKey) -> Result<Option<Mark>, StoreError> {
        let key = key.clone();
        let mark = look(&self.store, "reading a mark", move |store| {
            records::read_mark(store, &(&key).into())
        })
        .await?;
        // A mark that cannot be read keeps its record out of exchanges no longer than until the next write.
        Ok(mark.and_then(|bytes| Mark::decode(bytes).ok()))
    }
}
