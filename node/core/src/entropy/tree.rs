//! The hash tree of one partition replica. Paper: §4.7.
//!
//! ```text
//!   hash of a key   │ partition bits │ leaf bits │ ...            leaf bits: 4 for each level, the last may have fewer
//!   level 0         │        root, the sum of all         │
//!   level 1         │     16 nodes, sums of their leaves  │
//!   level n         │     leaves, sums of record hashes   │
//! ```
//!
//! Sums wrap at 2^64. A sum does not depend on the order of the records, and one record is taken out and put in again
//! without a look at its neighbours. A record's hash covers its place, so that equal sums mean equal records, but for
//! an accident of one in 2^64. This finds accidents, not forgers: peers trust one another.

use std::ops::RangeInclusive;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::ring::PARTITIONS_MAX;
use crate::types::{KeyHash, PartitionId};

/// Leaves of all partitions together that a shape aims at, as a power of two: 8 MiB of hashes.
const LEAF_BITS_TOTAL: u32 = 20;
/// Fewest leaves of a partition, as a power of two.
const LEAF_BITS_MIN: u32 = 4;
/// Most leaves of a partition, as a power of two.
const LEAF_BITS_MAX: u32 = 12;
/// A node has 2^4 children at most.
const LEVEL_BITS: u32 = 4;

/// How the trees of a ring with Q partitions look: a function of Q alone, so that all nodes agree without talking.
///
/// A tree takes 8 bytes per leaf: 32 KiB per partition up to Q = 256, 512 bytes at Q = 16,384; never more than 8 MiB
/// for all partitions of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeShape {
    partition_bits: u32,
    leaf_bits: u32,
}

/// The tree of one partition replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree {
    shape: TreeShape,
    leaves: Box<[u64]>,
    root: u64,
}

/// What a record adds to its leaf: XXH3-64 of its encoded state, seeded with XXH3-64 of its position.
///
/// `position` is the data key. The state is in its one canonical encoding, which no clock has a part in: a value that
/// expires keeps its hash, so expiry causes no repairs.
pub fn record_hash(position: &[u8], encoded_state: &[u8]) -> u64 {
    xxh3_64_with_seed(encoded_state, xxh3_64(position))
}

impl TreeShape {
    /// The shape for a ring of `q` partitions, a power of two: 2^20 / `q` leaves, but 16 at least and 4096 at most.
    pub fn for_partitions(q: u32) -> Self {
        let partition_bits = q.clamp(1, PARTITIONS_MAX).ilog2();
        Self {
            partition_bits,
            leaf_bits: (LEAF_BITS_TOTAL - partition_bits).clamp(LEAF_BITS_MIN, LEAF_BITS_MAX),
        }
    }

    /// Leaves of a tree.
    pub fn leaves(self) -> u32 {
        1 << self.leaf_bits
    }

    /// The level of the leaves; the root's is 0.
    pub fn leaf_level(self) -> u32 {
        self.leaf_bits.div_ceil(LEVEL_BITS)
    }

    /// Nodes of a level. Levels below the leaves have as many as the leaves.
    pub fn nodes(self, level: u32) -> u32 {
        1 << self.level_bits(level)
    }

    /// The nodes of the level below that have `node` of `level` as their parent.
    pub fn children(self, level: u32, node: u32) -> impl Iterator<Item = u32> + use<> {
        let bits = self.level_bits(level + 1) - self.level_bits(level);
        (node << bits)..((node + 1) << bits)
    }

    /// The leaf of a key within its partition: the bits of its hash right below those of the partition.
    pub fn leaf_of(self, hash: KeyHash) -> u32 {
        (hash.0 << self.partition_bits >> (u64::BITS - self.leaf_bits)) as u32
    }

    /// The partition of a key.
    pub fn partition_of(self, hash: KeyHash) -> PartitionId {
        let bits = u64::BITS - self.partition_bits;
        PartitionId(hash.0.checked_shr(bits).unwrap_or(0) as u32)
    }

    /// First and last hash of a leaf: where its records stand in the store. A leaf beyond the last is the last.
    pub fn leaf_range(self, partition: PartitionId, leaf: u32) -> RangeInclusive<u64> {
        let shift = u64::BITS - self.partition_bits - self.leaf_bits;
        let leaf = leaf.min(self.leaves() - 1);
        let first = ((u64::from(partition.0) << self.leaf_bits) | u64::from(leaf)) << shift;
        first..=first + ((1 << shift) - 1)
    }

    fn level_bits(self, level: u32) -> u32 {
        level.saturating_mul(LEVEL_BITS).min(self.leaf_bits)
    }
}

impl Tree {
    /// The tree of a partition without records.
    pub fn new(shape: TreeShape) -> Self {
        Self {
            shape,
            leaves: vec![0; shape.leaves() as usize].into(),
            root: 0,
        }
    }

    /// How it looks.
    pub fn shape(&self) -> TreeShape {
        self.shape
    }

    /// A record changed: `old` and `new` are its [`record_hash`] before and after, `None` where it is not there.
    ///
    /// A record that is marked for reaping counts as not there. Every change must come here once; in what order is
    /// of no account. Cost: two additions.
    pub fn update(&mut self, hash: KeyHash, old: Option<u64>, new: Option<u64>) {
        let change = new.unwrap_or(0).wrapping_sub(old.unwrap_or(0));
        let leaf = &mut self.leaves[self.shape.leaf_of(hash) as usize];
        *leaf = leaf.wrapping_add(change);
        self.root = self.root.wrapping_add(change);
    }

    /// The sum of all record hashes: equal for equal partitions. 0 without records.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// The hashes of `count` nodes of a level from `first` on; fewer where the level ends.
    pub fn hashes(&self, level: u32, first: u32, count: u32) -> Vec<u64> {
        let end = first.saturating_add(count).min(self.shape.nodes(level));
        (first..end).map(|node| self.hash(level, node)).collect()
    }

    /// The hashes of these nodes of a level, in their order: the answer to
    /// [`AskHashes`](super::ExchangeEffect::AskHashes). `None` if the tree has no such level or node.
    pub fn hashes_of(&self, level: u32, nodes: &[u32]) -> Option<Vec<u64>> {
        if level > self.shape.leaf_level() {
            return None;
        }
        let known = self.shape.nodes(level);
        nodes
            .iter()
            .map(|node| (*node < known).then(|| self.hash(level, *node)))
            .collect()
    }

    /// Sums up the leaves below a node: at most 4096 additions, which costs less than keeping the inner nodes.
    fn hash(&self, level: u32, node: u32) -> u64 {
        if level == 0 {
            return self.root;
        }
        let bits = self.shape.leaf_bits - self.shape.level_bits(level);
        let leaves = (node as usize) << bits..(node as usize + 1) << bits;
        self.leaves[leaves]
            .iter()
            .fold(0, |sum, leaf| sum.wrapping_add(*leaf))
    }
}
