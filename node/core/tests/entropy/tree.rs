//! Trees of records. D38, and D17: expiry.

use bytes::Bytes;
use dynamo_core::entropy::{Mode, Tree, TreeShape, TreeState, Trees, record_hash};
use dynamo_core::listing::Position;
use dynamo_core::ring::{Member, Ring};
use dynamo_core::types::{ClusterId, KeyHash, PartitionId, Zone};
use dynamo_core::version::Content;

use super::support::{PARTITION, Q, Random, Replica, equal_pair, exchange, keys, member};

/// By hand: Q, leaves, level of the leaves.
const SHAPES: [(u32, u32, u32); 6] = [
    (8, 4096, 3),
    (256, 4096, 3),
    (512, 2048, 3),
    (1024, 1024, 3),
    (4096, 256, 2),
    (16_384, 64, 2),
];

#[test]
fn d38_a_tree_s_shape_follows_from_q_alone() {
    for (q, leaves, leaf_level) in SHAPES {
        let shape = TreeShape::for_partitions(q);
        assert_eq!(
            (shape.leaves(), shape.leaf_level()),
            (leaves, leaf_level),
            "Q = {q}"
        );
        assert_eq!(shape.nodes(0), 1);
        assert_eq!(shape.nodes(leaf_level), leaves);
        let bytes = u64::from(q) * u64::from(leaves) * 8;
        assert!(bytes <= 8 << 20, "Q = {q}: all trees take {bytes} bytes");
        for level in 0..leaf_level {
            let mut all = Vec::new();
            for node in 0..shape.nodes(level) {
                let children: Vec<u32> = shape.children(level, node).collect();
                assert!((2..=16).contains(&children.len()));
                all.extend(children);
            }
            let below: Vec<u32> = (0..shape.nodes(level + 1)).collect();
            assert_eq!(all, below, "each node has one parent");
        }
    }
}

/// Nodes agree on where a key is: ring, leaf and the range of the store that is read for the leaf.
#[test]
fn a_leaf_is_one_range_of_its_partition() {
    let zone = Zone::new("").unwrap();
    for (q, leaves, _) in SHAPES {
        let shape = TreeShape::for_partitions(q);
        let one = Member {
            id: member("a"),
            zone: zone.clone(),
            weight: 1,
        };
        let ring = Ring::bootstrap(ClusterId([1; 16]), vec![one], q, 1).unwrap();
        for partition in [0, 1, q / 2, q - 1].map(PartitionId) {
            let range = ring.range(partition);
            let mut begin = *range.start();
            for leaf in 0..leaves {
                let of_leaf = shape.leaf_range(partition, leaf);
                assert_eq!(*of_leaf.start(), begin, "Q = {q}, {partition:?}, leaf {leaf}");
                for hash in [*of_leaf.start(), *of_leaf.end()].map(KeyHash) {
                    assert_eq!(shape.leaf_of(hash), leaf);
                    assert_eq!(shape.partition_of(hash), partition);
                    assert_eq!(ring.partition_of(hash), partition);
                }
                begin = of_leaf.end().wrapping_add(1);
            }
            assert_eq!(
                begin,
                range.end().wrapping_add(1),
                "the leaves fill the partition"
            );
        }
    }
}

#[test]
fn a_node_is_the_sum_of_its_children() {
    let mut random = Random::new(3);
    for (q, leaves, leaf_level) in SHAPES {
        let shape = TreeShape::for_partitions(q);
        let mut tree = Tree::new(shape);
        for _ in 0..3 * leaves {
            tree.update(KeyHash(random.next()), None, Some(random.next()));
        }
        assert_eq!(tree.hashes(0, 0, 9), vec![tree.root()]);
        for level in 0..leaf_level {
            for (node, hash) in (0..).zip(tree.hashes(level, 0, u32::MAX)) {
                let children: Vec<u32> = shape.children(level, node).collect();
                let below = tree.hashes_of(level + 1, &children).unwrap();
                assert_eq!(below, tree.hashes(level + 1, children[0], children.len() as u32));
                assert_eq!(below.iter().fold(0u64, |sum, hash| sum.wrapping_add(*hash)), hash);
            }
        }
        assert_eq!(tree.hashes_of(leaf_level + 1, &[0]), None);
        assert_eq!(tree.hashes_of(leaf_level, &[0, leaves]), None);
    }
}

/// For ever, as nodes of different releases compare them. Computed elsewhere, by Python's xxhash:
/// `xxh3_64_intdigest(state, seed=xxh3_64_intdigest(position))`.
#[test]
fn a_record_s_hash_covers_its_place_and_its_state() {
    assert_eq!(record_hash(b"ab", b"cd"), 0xf35b_d447_d624_e60a);
    let long: Vec<u8> = (0..1280).map(|number| number as u8).collect();
    assert_eq!(record_hash(b"ab", &long), 0x2ee3_4edd_2786_07f7);
    assert_ne!(record_hash(b"ab", b"cd"), record_hash(b"abc", b"d"));
    assert_ne!(record_hash(b"ab", b"cd"), record_hash(b"ab", b"ce"));
}

/// One random change: put, delete, blind put, reaping in its two phases, or a merge from elsewhere.
fn change(replica: &mut Replica, other: &mut Replica, key: &Position, random: &mut Random) {
    match random.below(7) {
        0 | 1 => replica.put(key, &format!("{}", random.next())),
        2 => replica.write(key, Content::Tombstone, None, false),
        3 => replica.write(key, Content::Value(Bytes::new()), Some(random.next() >> 20), true),
        4 => replica.mark(key),
        5 if replica.marked.contains(key) => replica.set(key, None),
        _ => {
            other.put(key, "elsewhere");
            let state = other.records[key].clone();
            replica.merge(key, &state);
        }
    }
}

/// D38: kept in place, at every moment the tree that the records alone would make.
#[test]
fn d38_a_kept_tree_is_the_fold_of_the_data() {
    let keys = keys(60);
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let (mut replica, mut other) = (Replica::new(1), Replica::new(2));
        for _ in 0..150 {
            change(
                &mut replica,
                &mut other,
                &keys[random.below(keys.len())],
                &mut random,
            );
            assert_eq!(*replica.tree(), replica.fold(), "seed {seed}");
        }
        assert_ne!(replica.tree().root(), 0);
        for key in &keys {
            replica.set(key, None);
        }
        assert_eq!(replica.tree().root(), 0, "seed {seed}: an empty partition");
    }
}

/// Test A: a lost tree is rebuilt while writes go on, and is known to nobody before it is right.
#[test]
fn test_a_a_lost_tree_is_rebuilt_while_records_change() {
    let keys = keys(80);
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let (mut replica, mut other) = (Replica::new(1), Replica::new(2));
        for _ in 0..120 {
            change(
                &mut replica,
                &mut other,
                &keys[random.below(keys.len())],
                &mut random,
            );
        }
        replica.trees.rebuild(PARTITION);
        assert_eq!(replica.trees.counts(), (0, 1));
        while replica.trees.next_rebuild().is_some() {
            assert_eq!(replica.trees.ready(PARTITION), None);
            for _ in 0..random.below(6) {
                change(
                    &mut replica,
                    &mut other,
                    &keys[random.below(keys.len())],
                    &mut random,
                );
            }
            let page = 1 + random.below(12);
            replica.fold_page(page);
        }
        assert_eq!(*replica.tree(), replica.fold(), "seed {seed}");
        change(&mut replica, &mut other, &keys[0], &mut random);
        assert_eq!(
            *replica.tree(),
            replica.fold(),
            "seed {seed}: and kept from then on"
        );
    }
}

#[test]
fn a_page_that_is_folded_again_changes_nothing() {
    let keys = keys(20);
    let (mut replica, _) = equal_pair(&keys);
    let expected = replica.fold();
    let mut sorted = keys.clone();
    sorted.sort();
    let page: Vec<_> = sorted[..8]
        .iter()
        .map(|key| {
            (
                key.clone(),
                record_hash(key.as_bytes(), &replica.records[key].encode()),
            )
        })
        .collect();
    replica.trees.rebuild(PARTITION);
    for _ in 0..2 {
        replica
            .trees
            .fold(PARTITION, page.clone(), Some(sorted[7].clone()));
        assert_eq!(
            replica.trees.state(PARTITION),
            TreeState::Rebuilding(Some(&sorted[7]))
        );
    }
    replica.fold_page(100);
    assert_eq!(*replica.tree(), expected);
    replica.trees.fold(PARTITION, page, None);
    assert_eq!(*replica.tree(), expected, "a tree that is ready takes no pages");
}

#[test]
fn trees_are_kept_for_the_partitions_that_are_held() {
    let key = &keys(1)[0];
    let mut trees = Trees::new(Q);
    trees.changed(key, None, Some(b"state"));
    assert_eq!(trees.state(PARTITION), TreeState::Unknown);
    trees.add_empty(PARTITION);
    trees.changed(key, None, Some(b"state"));
    assert_eq!(
        trees.ready(PARTITION).unwrap().root(),
        record_hash(key.as_bytes(), b"state")
    );
    trees.forget(PARTITION);
    assert_eq!(trees.state(PARTITION), TreeState::Unknown);
    assert_eq!(trees.counts(), (0, 0));
}

/// D17: the hash depends on when a value expires, not on whether it has; so two replicas on either side of the moment
/// have nothing to repair.
#[test]
fn d17_expiry_changes_no_hash_and_repairs_nothing() {
    let key = &keys(1)[0];
    let value = || Content::Value(Bytes::from_static(b"soon gone"));
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    // Long expired for any clock, and never for any clock.
    for expires_at_ms in [Some(1), Some(u64::MAX >> 1)] {
        a.write(key, value(), expires_at_ms, false);
        let state = a.records[key].clone();
        b.merge(key, &state);
        assert_eq!(a.tree().root(), record_hash(key.as_bytes(), &state.encode()));
        assert_ne!(a.tree().root(), 0, "an expired value is as much there as another");
        let traffic = exchange(&mut a, &mut b, Mode::Both);
        assert!(traffic.report.complete);
        assert_eq!((traffic.report.keys_pulled, traffic.report.keys_pushed), (0, 0));
    }
    // The moment itself is part of the state, else a replica could keep a wrong one for ever.
    let root = a.tree().root();
    a.write(key, value(), Some(2), false);
    assert_ne!(a.tree().root(), root);
}
