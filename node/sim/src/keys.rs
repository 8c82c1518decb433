//! The keys of a run: all are known from the beginning, and named by an index everywhere in the simulator.

use dynamo_core::bucket::Conflict;
use dynamo_core::listing::Position;
use dynamo_core::types::KeyHash;

/// Index into [`Keys`].
pub type KeyIx = u32;

/// What is known of one key.
#[derive(Clone, Debug)]
pub struct KeyInfo {
    /// Its place on the ring.
    pub hash: KeyHash,
    /// Bucket and key as the store orders them.
    pub position: Position,
    /// What becomes of concurrent writes in its bucket.
    pub conflict: Conflict,
}

/// All keys of a run, in the order of positions: an index compares like the position it stands for.
#[derive(Clone, Debug)]
pub struct Keys {
    list: Vec<KeyInfo>,
    /// Those of a bucket that keeps siblings.
    pub plain: Vec<KeyIx>,
    /// Those of all other buckets.
    pub others: Vec<KeyIx>,
}

impl Keys {
    /// That many keys that keep siblings, and one for each of `others`.
    pub fn new(count: u32, others: &[Conflict]) -> Self {
        let plain = (0..count).map(|number| ("sim".to_owned(), number, Conflict::Siblings));
        let others = (0..)
            .zip(others)
            .map(|(number, conflict)| (format!("{conflict:?}").to_lowercase(), number, *conflict));
        let mut list: Vec<KeyInfo> = plain
            .chain(others)
            .filter_map(|(bucket, number, conflict)| {
                let position = Position::new(&bucket, format!("key-{number}").as_bytes()).ok()?;
                Some(KeyInfo {
                    hash: position.hash(),
                    position,
                    conflict,
                })
            })
            .collect();
        list.sort_by(|one, other| one.position.cmp(&other.position));
        let indexes = 0..list.len() as KeyIx;
        let (plain, others) = indexes.partition(|key| list[*key as usize].conflict == Conflict::Siblings);
        Self { list, plain, others }
    }

    /// A key.
    pub fn get(&self, key: KeyIx) -> &KeyInfo {
        &self.list[key as usize]
    }

    /// The key of a position.
    pub fn find(&self, position: &Position) -> Option<KeyIx> {
        self.list
            .binary_search_by(|info| info.position.cmp(position))
            .ok()
            .map(|index| index as KeyIx)
    }

    /// All indexes.
    pub fn all(&self) -> std::ops::Range<KeyIx> {
        0..self.list.len() as KeyIx
    }

    /// The keys whose hash is in a range.
    pub fn in_range(&self, hashes: &std::ops::RangeInclusive<u64>) -> std::ops::Range<KeyIx> {
        let first = self.list.partition_point(|info| info.hash.0 < *hashes.start());
        let end = self.list.partition_point(|info| info.hash.0 <= *hashes.end());
        first as KeyIx..end as KeyIx
    }
}
