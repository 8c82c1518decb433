//! A node's trees while records change, and while trees are made anew from the records. Paper: §4.7.
//!
//! One thread owns them: the one that changes records. A tree that is not known, after a start say, is folded from
//! the partition's records in the order of their positions, page by page between the writes:
//!
//! ```text
//!   records      ──────────────┬──────────────────────▶ order of positions
//!   in the tree  ██████████████│                          a write here updates the tree
//!                   folded up to                          a write here is met by the fold later, so it is ignored
//! ```
//!
//! Until the fold has reached the end the tree is nobody's business: an exchange would "repair" what is not broken.

use std::collections::BTreeMap;

use super::tree::{Tree, TreeShape, record_hash};
use crate::listing::Position;
use crate::types::{KeyHash, PartitionId};

/// The trees of the partitions that a node holds.
#[derive(Debug)]
pub struct Trees {
    shape: TreeShape,
    trees: BTreeMap<PartitionId, Kept>,
}

/// How much of a partition is in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeState<'a> {
    /// All of it.
    Ready(&'a Tree),
    /// The records up to here: the fold goes on behind. `None`: nothing yet.
    Rebuilding(Option<&'a Position>),
    /// The node keeps no tree for the partition.
    Unknown,
}

#[derive(Debug)]
struct Kept {
    tree: Tree,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    Ready,
    UpTo(Option<Position>),
}

impl Trees {
    /// No trees yet, for a ring of `q` partitions.
    pub fn new(q: u32) -> Self {
        Self {
            shape: TreeShape::for_partitions(q),
            trees: BTreeMap::new(),
        }
    }

    /// How all of them look.
    pub fn shape(&self) -> TreeShape {
        self.shape
    }

    /// How much is known of a partition.
    pub fn state(&self, partition: PartitionId) -> TreeState<'_> {
        match self.trees.get(&partition) {
            None => TreeState::Unknown,
            Some(Kept { tree, progress }) => match progress {
                Progress::Ready => TreeState::Ready(tree),
                Progress::UpTo(position) => TreeState::Rebuilding(position.as_ref()),
            },
        }
    }

    /// The tree of a partition, if it is known: a clone of it is what an exchange begins with.
    pub fn ready(&self, partition: PartitionId) -> Option<&Tree> {
        match self.state(partition) {
            TreeState::Ready(tree) => Some(tree),
            TreeState::Rebuilding(_) | TreeState::Unknown => None,
        }
    }

    /// The first partition whose tree is being rebuilt, and where its next page begins: behind the position.
    pub fn next_rebuild(&self) -> Option<(PartitionId, Option<&Position>)> {
        self.trees
            .iter()
            .find_map(|(partition, kept)| match &kept.progress {
                Progress::Ready => None,
                Progress::UpTo(position) => Some((*partition, position.as_ref())),
            })
    }

    /// Partitions whose trees are ready, and those whose trees are being rebuilt.
    pub fn counts(&self) -> (usize, usize) {
        let ready = |kept: &&Kept| matches!(kept.progress, Progress::Ready);
        let ready = self.trees.values().filter(ready).count();
        (ready, self.trees.len() - ready)
    }

    /// Begins to keep the tree of a partition that certainly has no records; it is ready at once.
    pub fn add_empty(&mut self, partition: PartitionId) {
        self.put(partition, Progress::Ready);
    }

    /// Begins to make a partition's tree from its records, or begins again.
    pub fn rebuild(&mut self, partition: PartitionId) {
        self.put(partition, Progress::UpTo(None));
    }

    /// Drops the tree of a partition that the node holds no longer.
    pub fn forget(&mut self, partition: PartitionId) {
        self.trees.remove(&partition);
    }

    /// Adds the next records, ascending, as [`record_hash`]es. `looked` is how far the page has looked, `None`: to the
    /// partition's end, and the tree is ready. Does nothing if the tree is not being rebuilt.
    ///
    /// The page must be read behind the position that [`next_rebuild`](Self::next_rebuild) gave, and must show every
    /// change that [`changed`](Self::changed) was told of, and no other. Records that are marked for reaping are left
    /// out.
    pub fn fold(
        &mut self,
        partition: PartitionId,
        records: impl IntoIterator<Item = (Position, u64)>,
        looked: Option<Position>,
    ) {
        let Some(Kept { tree, progress }) = self.trees.get_mut(&partition) else {
            return;
        };
        let Progress::UpTo(up_to) = progress else {
            return;
        };
        // A page that was read twice is folded once.
        for (position, hash) in records {
            if up_to.as_ref().is_none_or(|last| position > *last) {
                tree.update(position.hash(), None, Some(hash));
                *up_to = Some(position);
            }
        }
        match looked {
            None => *progress = Progress::Ready,
            Some(_) if looked > *up_to => *up_to = looked,
            Some(_) => {}
        }
    }

    /// A record changed from one encoded state to another; `None`: there is none, or it is marked for reaping.
    ///
    /// Hashes nothing if no tree needs it.
    pub fn changed(&mut self, position: &Position, old: Option<&[u8]>, new: Option<&[u8]>) {
        let hash = position.hash();
        let Some(kept) = self.trees.get_mut(&self.shape.partition_of(hash)) else {
            return;
        };
        let in_tree = match &kept.progress {
            Progress::Ready => true,
            Progress::UpTo(up_to) => up_to.as_ref().is_some_and(|last| position <= last),
        };
        if in_tree {
            let record_hash = |state| record_hash(position.as_bytes(), state);
            kept.tree.update(hash, old.map(record_hash), new.map(record_hash));
        }
    }

    /// Records of a partition that were not there before, as [`record_hash`]es. What a tree that is being made has seen of its
    /// records is no longer all: it begins again.
    pub fn add(&mut self, partition: PartitionId, records: impl IntoIterator<Item = (KeyHash, u64)>) {
        let Some(kept) = self.trees.get_mut(&partition) else {
            return;
        };
        if !matches!(kept.progress, Progress::Ready) {
            self.rebuild(partition);
            return;
        }
        for (key, hash) in records {
            kept.tree.update(key, None, Some(hash));
        }
    }

    fn put(&mut self, partition: PartitionId, progress: Progress) {
        let tree = Tree::new(self.shape);
        self.trees.insert(partition, Kept { tree, progress });
    }
}
