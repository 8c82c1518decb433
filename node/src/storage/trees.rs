//! The hash trees of this node's partitions, kept up to date by the writer. Paper: §4.7.
//!
//! ```text
//!   writer ── every committed change ──▶ PartitionTrees ◀── hashes, snapshots: exchanges, on any thread
//!   background task ── fold_next ──▶ writer's thread: one page of a partition's records into its tree
//! ```
//!
//! The trees are in memory alone. After a start, and for a partition that is new here, they are folded from the records,
//! in pages between the writes; the caller sets the pace. `dynamo_core::entropy::trees` has the rules.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use dynamo_core::{
    entropy::{Tree, TreeShape, TreeState, Trees, record_hash},
    listing::Position,
    types::{KeyHash, PartitionId},
};
use parking_lot::RwLock;

use super::{
    DataKey, ScanLimit, Space, Store, StoreError, Writer,
    keys::HashRange,
    records,
    writer::{Before, Follower, RecordChange, WriteError},
};

/// The trees; shared by the writer, which updates them, and by everything that reads them.
#[derive(Debug, Default)]
pub struct PartitionTrees {
    /// None until the number of partitions is known.
    trees: RwLock<Option<Trees>>,
}

/// What one step of a fold did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Folded {
    /// Whose tree.
    pub partition: PartitionId,
    /// Records read.
    pub records: usize,
    /// Whether the tree is now ready.
    pub ready: bool,
}

/// Why a step of a fold failed. The partition has no tree until a later step succeeds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// The writer does not take the step now.
    #[error(transparent)]
    Writer(#[from] WriteError),
    /// The records cannot be read.
    #[error("folding the records of partition {0:?}: {1}")]
    Read(PartitionId, StoreError),
}

/// A page of what a leaf consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeafPage {
    /// Data keys and [`record_hash`]es, ascending.
    pub keys: Vec<(DataKey, u64)>,
    /// Where the next page begins: behind this key. None: there is none.
    pub next: Option<DataKey>,
}

impl PartitionTrees {
    /// None yet; see [`PartitionTrees::keep`].
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Keeps the trees of these of `q` partitions and of no others. Those that are not known yet are to be folded;
    /// after a change of `q` all are.
    pub fn keep(&self, q: u32, partitions: &BTreeSet<PartitionId>) {
        let mut guard = self.trees.write();
        let shape = TreeShape::for_partitions(q);
        let trees = match guard.take() {
            Some(trees) if trees.shape() == shape => trees,
            _ => Trees::new(q),
        };
        let trees = guard.insert(trees);
        for partition in (0..q).map(PartitionId) {
            let known = trees.state(partition) != TreeState::Unknown;
            match (known, partitions.contains(&partition)) {
                (true, false) => trees.forget(partition),
                (false, true) => trees.rebuild(partition),
                _ => {}
            }
        }
    }

    /// Folds a partition again, as when its tree cannot be trusted; meanwhile it has none.
    pub fn fold_again(&self, partition: PartitionId) {
        if let Some(trees) = &mut *self.trees.write()
            && trees.state(partition) != TreeState::Unknown
        {
            trees.rebuild(partition);
        }
    }

    /// Follows [records](record_hash) that the store has got otherwise than from the writer, on the writer's thread.
    pub fn add(&self, partition: PartitionId, records: impl IntoIterator<Item = (KeyHash, u64)>) {
        if let Some(trees) = &mut *self.trees.write() {
            trees.add(partition, records);
        }
    }

    /// How the trees look; none before the first [`PartitionTrees::keep`].
    pub fn shape(&self) -> Option<TreeShape> {
        self.trees.read().as_ref().map(Trees::shape)
    }

    /// Partitions whose trees are ready, and those whose trees are being folded.
    pub fn counts(&self) -> (usize, usize) {
        self.trees.read().as_ref().map_or((0, 0), Trees::counts)
    }

    /// A partition's tree as it is now; none while it is being folded, or if it is not kept. 32 KiB at most.
    pub fn snapshot(&self, partition: PartitionId) -> Option<Tree> {
        self.with(partition, Tree::clone)
    }

    /// Asks a partition's tree, of which no copy is made.
    pub fn with<T>(&self, partition: PartitionId, ask: impl FnOnce(&Tree) -> T) -> Option<T> {
        self.trees.read().as_ref()?.ready(partition).map(ask)
    }

    /// Folds the next page of the next partition that needs it, on the writer's thread, where writes wait for it: keep
    /// the limit small. None: all trees are ready.
    ///
    /// # Errors
    /// If a record cannot be read or the writer is busy or has ended.
    pub async fn fold_next(
        self: &Arc<Self>,
        writer: &Writer,
        limit: ScanLimit,
    ) -> Result<Option<Folded>, FoldError> {
        if self.next().is_none() {
            return Ok(None);
        }
        let trees = Arc::clone(self);
        writer.look(move |store| trees.fold_page(store, limit)).await?
    }

    fn next(&self) -> Option<Step> {
        let guard = self.trees.read();
        let trees = guard.as_ref()?;
        let (partition, after) = trees.next_rebuild()?;
        Some(Step {
            shape: trees.shape(),
            partition,
            after: after.cloned(),
        })
    }

    fn fold_page(&self, store: &dyn Store, limit: ScanLimit) -> Result<Option<Folded>, FoldError> {
        let Some(step) = self.next() else {
            return Ok(None);
        };
        let partition = step.partition;
        let failed = |error| FoldError::Read(partition, error);
        let read = step.read(store, limit).map_err(failed)?;
        let mut guard = self.trees.write();
        // Another ring may have begun the fold anew while the page was read.
        let trees = match guard.as_mut() {
            Some(trees) if step.is_next(trees) => trees,
            _ => {
                return Ok(Some(Folded {
                    partition,
                    records: 0,
                    ready: false,
                }));
            }
        };
        let ready = read.looked.is_none();
        trees.fold(partition, read.hashes, read.looked);
        Ok(Some(Folded {
            partition,
            records: read.records,
            ready,
        }))
    }
}

impl Follower for PartitionTrees {
    fn committed(&self, changes: &[RecordChange]) {
        let mut guard = self.trees.write();
        let Some(trees) = &mut *guard else { return };
        for RecordChange { place, before, after } in changes {
            let partition = trees.shape().partition_of(place.hash());
            if trees.state(partition) == TreeState::Unknown {
                continue;
            }
            match (before, Position::decode(place.as_bytes().clone())) {
                (Before::Known(before), Ok(position)) => {
                    trees.changed(&position, before.as_deref(), after.as_deref());
                }
                _ => trees.rebuild(partition),
            }
        }
    }
}

/// Where the fold goes on.
struct Step {
    shape: TreeShape,
    partition: PartitionId,
    after: Option<Position>,
}

/// What a step read.
struct Read {
    hashes: Vec<(Position, u64)>,
    records: usize,
    /// The last record, marked or not; none at the partition's end.
    looked: Option<Position>,
}

impl Step {
    fn is_next(&self, trees: &Trees) -> bool {
        trees.shape() == self.shape
            && trees.state(self.partition) == TreeState::Rebuilding(self.after.as_ref())
    }

    fn read(&self, store: &dyn Store, limit: ScanLimit) -> Result<Read, StoreError> {
        let first = self.shape.leaf_range(self.partition, 0);
        let last = self.shape.leaf_range(self.partition, u32::MAX);
        let mut range = HashRange::all(&(*first.start()..=*last.end()));
        if let Some(position) = &self.after {
            range = range.after(&key_at(position.as_bytes().clone())?);
        }
        let page = store.scan(Space::Data, range.as_range(), limit)?;
        let mut read = Read {
            hashes: Vec::new(),
            records: page.entries.len(),
            looked: None,
        };
        for (bytes, state) in page.entries {
            let position = Position::decode(bytes.clone()).map_err(|error| damaged(&error.to_string()))?;
            if records::read_mark(store, &key_at(bytes)?.into())?.is_none() {
                let hash = record_hash(position.as_bytes(), &state);
                read.hashes.push((position.clone(), hash));
            }
            read.looked = Some(position);
        }
        if page.done {
            read.looked = None;
        }
        Ok(read)
    }
}

/// A page of the records of one leaf, those without that are marked for reaping. Blocks on the disk.
///
/// # Errors
/// If the store cannot read them. A record whose own checksum fails is listed like any other: its hash is no other
/// node's, so that it is found.
pub fn leaf_keys(
    store: &dyn Store,
    leaf: &std::ops::RangeInclusive<u64>,
    after: Option<&DataKey>,
    limit: ScanLimit,
) -> Result<LeafPage, StoreError> {
    let mut range = HashRange::all(leaf);
    if let Some(after) = after {
        range = range.after(after);
    }
    let page = store.scan(Space::Data, range.as_range(), limit)?;
    let mut found = LeafPage::default();
    let mut last = None;
    for (bytes, state) in page.entries {
        let key = key_at(bytes)?;
        if records::read_mark(store, &(&key).into())?.is_none() {
            found
                .keys
                .push((key.clone(), record_hash(key.as_bytes(), &state)));
        }
        last = Some(key);
    }
    found.next = last.filter(|_| !page.done);
    Ok(found)
}

fn key_at(bytes: Bytes) -> Result<DataKey, StoreError> {
    DataKey::parse(bytes).map_err(|error| damaged(&error.to_string()))
}

fn damaged(reason: &str) -> StoreError {
    StoreError::Damaged {
        attempted: "reading the keys of a partition".to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests;
