use std::collections::BTreeMap;

use dynamo_core::{
    replica::{self, Minter, SiblingCaps, Update},
    types::Incarnation,
    version::{Content, KeyState, Seen, Stamp},
};
use proptest::prelude::*;

use super::*;
use crate::storage::{
    Batch,
    memory::MemoryStore,
    writer::{Durability, Expected, Mint, Swap, WriterOptions},
};

const Q: u32 = 8;
const PAGE: ScanLimit = ScanLimit {
    entries: 3,
    bytes: usize::MAX,
};

fn minter(id: u64) -> Minter {
    Minter::new(Incarnation { generation: 1, id }, 1)
}

fn start(store: &MemoryStore) -> (Writer, Arc<PartitionTrees>) {
    let trees = PartitionTrees::new();
    let options = WriterOptions {
        durability: Durability::Every,
        caps: SiblingCaps::NONE,
        free_bytes_min: None,
    };
    let follower = Arc::clone(&trees) as Arc<dyn Follower>;
    let mint = Mint::new(minter(1));
    let (writer, _failure) =
        Writer::start_with(Arc::new(store.clone()), mint, options, Some(follower)).unwrap();
    (writer, trees)
}

fn all(q: u32) -> BTreeSet<PartitionId> {
    (0..q).map(PartitionId).collect()
}

fn key(number: u8) -> DataKey {
    DataKey::new("bucket", &[number]).unwrap()
}

fn delta(id: u64) -> KeyState {
    let update = Update {
        content: Content::Tombstone,
        context: Seen::new(),
        op_id: None,
        stamp: Stamp(1),
        expires_at_ms: None,
    };
    let made = replica::coordinate(None, None, &mut minter(id), update, SiblingCaps::NONE);
    made.unwrap().delta
}

async fn fold_all(trees: &Arc<PartitionTrees>, writer: &Writer) {
    while trees.fold_next(writer, PAGE).await.unwrap().is_some() {}
}

/// The trees of what is in the store, from nothing.
fn expected(store: &MemoryStore, q: u32) -> BTreeMap<PartitionId, Tree> {
    let shape = TreeShape::for_partitions(q);
    let mut trees: BTreeMap<_, _> = (0..q).map(|p| (PartitionId(p), Tree::new(shape))).collect();
    let no_limit = ScanLimit {
        entries: usize::MAX,
        bytes: usize::MAX,
    };
    let everything = HashRange::all(&(0..=u64::MAX));
    for (bytes, state) in store
        .scan(Space::Data, everything.as_range(), no_limit)
        .unwrap()
        .entries
    {
        let key = DataKey::parse(bytes).unwrap();
        if store.get(Space::Marks, key.as_bytes()).unwrap().is_none() {
            let tree = trees.get_mut(&shape.partition_of(key.hash())).unwrap();
            tree.update(key.hash(), None, Some(record_hash(key.as_bytes(), &state)));
        }
    }
    trees
}

fn actual(trees: &PartitionTrees, q: u32) -> BTreeMap<PartitionId, Tree> {
    (0..q)
        .map(PartitionId)
        .filter_map(|partition| Some((partition, trees.snapshot(partition)?)))
        .collect()
}

#[derive(Debug, Clone)]
enum Step {
    Merge(u8, u64),
    Mark(u8),
    Delete(u8),
    Fold,
    Again(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..30, 10u64..14).prop_map(|(key, id)| Step::Merge(key, id)),
        2 => (0u8..30).prop_map(Step::Mark),
        2 => (0u8..30).prop_map(Step::Delete),
        4 => Just(Step::Fold),
        1 => (0..Q).prop_map(Step::Again),
    ]
}

async fn take(step: Step, store: &MemoryStore, writer: &Writer, trees: &Arc<PartitionTrees>) {
    let swap = async |number, swap| {
        let Some(state) = records::read(store, &key(number)).unwrap() else {
            return;
        };
        let expected = Expected {
            digest: state.digest(),
            mark: None,
        };
        let swapped = writer.swap(key(number), expected, swap, false).await;
        assert!(swapped.unwrap().is_some());
    };
    match step {
        Step::Merge(number, id) => drop(writer.merge(key(number), delta(id), false).await.unwrap()),
        Step::Mark(number) => swap(number, Swap::Mark(Bytes::from_static(b"round"))).await,
        Step::Delete(number) => swap(number, Swap::Delete).await,
        Step::Fold => drop(trees.fold_next(writer, PAGE).await.unwrap()),
        Step::Again(partition) => trees.fold_again(PartitionId(partition)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// D38: whatever is written, marked and deleted before, between and after the pages of the folds, a tree that is ready
    /// is that of the records.
    #[test]
    fn trees_follow_the_records(
        before in prop::collection::vec((0u8..30, 10u64..14), 0..20),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = MemoryStore::new();
            let (writer, trees) = start(&store);
            for (number, id) in before {
                writer.merge(key(number), delta(id), false).await.unwrap();
            }
            trees.keep(Q, &all(Q));
            for step in steps {
                take(step, &store, &writer, &trees).await;
                let expected = expected(&store, Q);
                for (partition, tree) in actual(&trees, Q) {
                    assert!(tree == expected[&partition], "{partition:?}");
                }
            }
            fold_all(&trees, &writer).await;
            assert!(actual(&trees, Q) == expected(&store, Q));
        });
    }
}

#[tokio::test]
async fn only_the_partitions_of_the_ring_are_kept_and_another_q_begins_anew() {
    let store = MemoryStore::new();
    let (writer, trees) = start(&store);
    assert_eq!((trees.shape(), trees.counts()), (None, (0, 0)));
    assert_eq!(trees.fold_next(&writer, PAGE).await, Ok(None));
    for number in 0..30 {
        writer.merge(key(number), delta(10), false).await.unwrap();
    }
    let some: BTreeSet<_> = [1, 5].map(PartitionId).into();
    trees.keep(Q, &some);
    assert_eq!(trees.counts(), (0, 2));
    assert!(trees.snapshot(PartitionId(1)).is_none(), "not before it is whole");
    fold_all(&trees, &writer).await;
    assert_eq!(trees.counts(), (2, 0));
    trees.keep(Q, &all(Q));
    assert_eq!(trees.counts(), (2, 6), "what is known stays known");
    fold_all(&trees, &writer).await;
    assert!(actual(&trees, Q) == expected(&store, Q));
    trees.keep(2 * Q, &all(2 * Q));
    assert_eq!(trees.counts(), (0, 16));
    fold_all(&trees, &writer).await;
    assert!(actual(&trees, 2 * Q) == expected(&store, 2 * Q));
    trees.keep(2 * Q, &some);
    assert_eq!(trees.counts(), (2, 0));
}

/// The pages of a leaf add up to its hash, and leave out what is marked.
#[tokio::test]
async fn the_keys_of_a_leaf_are_what_its_hash_is_made_of() {
    let store = MemoryStore::new();
    let (writer, trees) = start(&store);
    trees.keep(Q, &all(Q));
    fold_all(&trees, &writer).await;
    for number in 0..100 {
        writer.merge(key(number), delta(10), false).await.unwrap();
    }
    take(Step::Mark(3), &store, &writer, &trees).await;
    let (shape, mut keys) = (trees.shape().unwrap(), 0);
    for partition in all(Q) {
        let tree = trees.snapshot(partition).unwrap();
        // All leaves as one range: the root.
        let range = *shape.leaf_range(partition, 0).start()..=*shape.leaf_range(partition, u32::MAX).end();
        let (mut sum, mut after) = (0u64, None);
        loop {
            let page = leaf_keys(&store, &range, after.as_ref(), PAGE).unwrap();
            for (found, hash) in &page.keys {
                assert_ne!(*found, key(3));
                sum = sum.wrapping_add(*hash);
            }
            keys += page.keys.len();
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(sum, tree.root());
    }
    assert_eq!(keys, 99);
}

/// D67: a tree that no longer knows what it is made of is folded anew.
#[tokio::test]
async fn a_record_that_was_unreadable_makes_its_partition_fold_again() {
    let (_writer, trees) = start(&MemoryStore::new());
    trees.keep(Q, &all(Q));
    let partition = trees.shape().unwrap().partition_of(key(1).hash());
    trees.fold_page(&MemoryStore::new(), PAGE).unwrap();
    while trees.fold_page(&MemoryStore::new(), PAGE).unwrap().is_some() {}
    assert!(trees.snapshot(partition).is_some());
    trees.committed(&[RecordChange {
        place: key(1).into(),
        before: Before::Unreadable,
        after: Some(delta(10).encode()),
    }]);
    assert!(trees.snapshot(partition).is_none());
    assert_eq!(trees.counts(), (Q as usize - 1, 1));
}

#[tokio::test]
async fn a_fold_that_cannot_read_says_which_partition() {
    let store = MemoryStore::new();
    let (writer, trees) = start(&store);
    let mut batch = Batch::new();
    batch.put(Space::Data, &b"no data key"[..], &b"value"[..]);
    store.write(batch, true).unwrap();
    trees.keep(1, &all(1));
    let error = trees.fold_next(&writer, PAGE).await.unwrap_err();
    assert!(
        matches!(error, FoldError::Read(PartitionId(0), StoreError::Damaged { .. })),
        "{error}"
    );
    assert!(trees.snapshot(PartitionId(0)).is_none());
}
