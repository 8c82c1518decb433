use std::collections::BTreeSet;

use dynamo_core::{
    replica::{self, Minter, SiblingCaps},
    types::Incarnation,
    version::{Content, Seen, Stamp},
};

use dynamo_core::replica::Update;

use super::*;
use crate::storage::{
    Batch,
    conformance::{copy, open},
    memory::MemoryStore,
    writer::Durability,
};

const NO_LIMIT: ScanLimit = ScanLimit {
    entries: usize::MAX,
    bytes: usize::MAX,
};

fn minter(id: u64) -> Minter {
    Minter::new(Incarnation { generation: 1, id }, 1)
}

fn options() -> WriterOptions {
    WriterOptions {
        durability: Durability::Every,
        caps: SiblingCaps::NONE,
        free_bytes_min: None,
    }
}

fn start(store: Arc<dyn Store>, mint: &Mint, bytes_max: u64) -> HintStore {
    HintStore::start(store, mint.clone(), options(), bytes_max)
        .unwrap()
        .0
}

fn in_memory(store: &MemoryStore) -> HintStore {
    start(Arc::new(store.clone()), &Mint::new(minter(1)), u64::MAX / 2)
}

fn owner(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

fn key(name: &str) -> DataKey {
    DataKey::new("bucket", name.as_bytes()).unwrap()
}

fn update(value: &str) -> Update {
    Update {
        content: Content::Value(Bytes::copy_from_slice(value.as_bytes())),
        context: Seen::new(),
        op_id: None,
        stamp: Stamp(1),
        expires_at_ms: None,
    }
}

/// One write of another node.
fn delta(id: u64) -> KeyState {
    let made = replica::coordinate(None, None, &mut minter(id), update("value"), SiblingCaps::NONE);
    made.unwrap().delta
}

fn merged(states: &[&KeyState]) -> KeyState {
    let mut merged = KeyState::new();
    for state in states {
        merged.merge(state);
    }
    merged
}

/// D36: what came for one owner and key is one hint; a read finds those of all owners.
#[tokio::test]
async fn hints_are_merged_per_owner_and_read_together() {
    let hints = in_memory(&MemoryStore::new());
    let (a, b) = (owner("a"), owner("b"));
    let deltas = [10, 11, 12].map(delta);
    let [first, second, third] = &deltas;
    for (owner, delta) in [(&a, first), (&a, second), (&b, third)] {
        let kept = hints.hint(owner, &key("k"), delta.clone(), false).await;
        assert_eq!(kept, Ok(Committed { durable: true }));
    }
    assert_eq!(
        hints.read(&key("k")).await.unwrap(),
        Some(merged(&[first, second, third]))
    );
    assert_eq!(hints.read(&key("other")).await.unwrap(), None);
    let page = hints.scan(&a, None, NO_LIMIT).await.unwrap();
    let state = merged(&[first, second]);
    let expected = Hint {
        key: key("k"),
        digest: state.digest(),
        state,
    };
    assert_eq!((page.entries, page.next), (vec![expected], None));
    let counts: Vec<u64> = hints.owners().into_values().map(|count| count.records).collect();
    assert_eq!(counts, [1, 1]);
}

#[tokio::test]
async fn an_owners_hints_are_paged_in_order_and_nobody_elses() {
    let hints = in_memory(&MemoryStore::new());
    for number in 0..10 {
        let name = number.to_string();
        hints
            .hint(&owner("a"), &key(&name), delta(7), false)
            .await
            .unwrap();
        hints
            .hint(&owner("aa"), &key(&name), delta(8), false)
            .await
            .unwrap();
    }
    let limit = ScanLimit {
        entries: 3,
        bytes: usize::MAX,
    };
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = hints.scan(&owner("a"), after.as_ref(), limit).await.unwrap();
        assert!(page.entries.len() <= 3);
        found.extend(page.entries);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let keys: Vec<DataKey> = found.iter().map(|hint| hint.key.clone()).collect();
    let mut expected: Vec<DataKey> = (0..10).map(|number| key(&number.to_string())).collect();
    expected.sort();
    assert_eq!(keys, expected);
    assert!(found.iter().all(|hint| hint.state == delta(7)));
}

/// D36: a hint is deleted when its owner has acknowledged exactly what it was, and then for good.
#[tokio::test]
async fn a_hint_that_grew_since_its_delivery_stays() {
    let store = MemoryStore::new();
    let hints = in_memory(&store);
    let (owner, key) = (owner("a"), key("k"));
    hints.hint(&owner, &key, delta(10), false).await.unwrap();
    let delivered = hints
        .scan(&owner, None, NO_LIMIT)
        .await
        .unwrap()
        .entries
        .remove(0);
    hints.hint(&owner, &key, delta(11), false).await.unwrap();
    assert_eq!(hints.remove_if(&owner, &key, delivered.digest).await, Ok(false));
    let now = hints
        .scan(&owner, None, NO_LIMIT)
        .await
        .unwrap()
        .entries
        .remove(0);
    assert_eq!(now.state, merged(&[&delta(10), &delta(11)]));
    assert_eq!(hints.remove_if(&owner, &key, now.digest).await, Ok(true));
    assert_eq!(
        hints.remove_if(&owner, &key, now.digest).await,
        Ok(false),
        "it is gone"
    );
    store.crash();
    assert_eq!(
        hints.read(&key).await.unwrap(),
        None,
        "no loss of power brings it back"
    );
    assert!(hints.owners().is_empty());
}

/// D33: what a member answers when a partition is to be reaped.
#[tokio::test]
async fn hints_of_a_partition_are_found_whoever_owns_them() {
    let hints = in_memory(&MemoryStore::new());
    let hash = key("k").hash().0;
    assert!(!hints.any_in(&(0..=u64::MAX)).await.unwrap());
    hints
        .hint(&owner("b"), &key("k"), delta(10), false)
        .await
        .unwrap();
    for (range, expected) in [
        (0..=u64::MAX, true),
        (hash..=hash, true),
        (0..=hash - 1, false),
        (hash + 1..=u64::MAX, false),
    ] {
        assert_eq!(hints.any_in(&range).await.unwrap(), expected, "{range:x?}");
    }
}

/// D36: hints have a budget; beyond it they are declined, and what is delivered makes room.
#[tokio::test]
async fn beyond_the_budget_hints_are_declined_and_counted() {
    let hints = start(Arc::new(MemoryStore::new()), &Mint::new(minter(1)), 2000);
    let mut kept = Vec::new();
    let declined = loop {
        let key = key(&kept.len().to_string());
        match hints.hint(&owner("a"), &key, delta(10), false).await {
            Ok(_) => kept.push(key),
            Err(error) => break error,
        }
    };
    assert_eq!(declined, HintError::Declined(WriteError::BudgetSpent));
    assert!(kept.len() > 1);
    let coordinated = hints.coordinate(&owner("b"), &key("k"), update("v"), false).await;
    assert!(matches!(coordinated, Err(HintError::Declined(_))));
    assert_eq!(hints.counters().budget_spent, 2);
    assert!(hints.owners()[&owner("a")].bytes <= 2000);
    for key in &kept {
        assert_eq!(
            hints.remove_if(&owner("a"), key, delta(10).digest()).await,
            Ok(true)
        );
    }
    hints
        .hint(&owner("a"), &key("k"), delta(10), false)
        .await
        .unwrap();
}

/// D36: a fallback coordinates a write itself; its dots are no other's, neither of its own data nor after a delivery.
#[tokio::test]
async fn a_fallback_coordinates_under_dots_of_its_own() {
    let mint = Mint::new(minter(1));
    let hints = start(Arc::new(MemoryStore::new()), &mint, u64::MAX / 2);
    let (own, _failure) =
        Writer::start_with(Arc::new(MemoryStore::new()), mint.clone(), options(), None).unwrap();
    let mut dots = BTreeSet::new();
    for _ in 0..3 {
        let own = own.coordinate(key("k"), update("own"), false).await.unwrap();
        assert!(dots.insert(own.dot));
        for name in ["a", "b"] {
            let owner = owner(name);
            let hint = hints
                .coordinate(&owner, &key("k"), update("hint"), false)
                .await
                .unwrap();
            assert!(dots.insert(hint.dot));
            assert_eq!(hint.delta.live(0).len(), 1);
            assert!(hint.committed().await.unwrap().durable);
            let page = hints.scan(&owner, None, NO_LIMIT).await.unwrap();
            let digest = page.entries[0].digest;
            assert_eq!(hints.remove_if(&owner, &key("k"), digest).await, Ok(true));
        }
    }
    hints.stop().await.unwrap();
    assert_eq!(
        own.stop().await.unwrap().next_epoch(),
        8,
        "one epoch of its own, six of hints"
    );
    assert!(hints.hint(&owner("a"), &key("k"), delta(1), false).await.is_err());
}

#[tokio::test]
async fn a_damaged_hint_holds_up_nobody() {
    let store = MemoryStore::new();
    let hints = in_memory(&store);
    for name in ["good", "bad"] {
        hints
            .hint(&owner("a"), &key(name), delta(10), false)
            .await
            .unwrap();
    }
    let mut bytes = delta(10).encode().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let mut batch = Batch::new();
    let place = Place::hint(&owner("a"), &key("bad"));
    batch.put(Space::Data, place.as_bytes().clone(), bytes);
    store.write(batch, true).unwrap();
    let page = hints.scan(&owner("a"), None, NO_LIMIT).await.unwrap();
    assert_eq!((page.entries.len(), page.damaged), (1, vec![key("bad")]));
    hints.read(&key("bad")).await.unwrap_err();
    hints.remove_corrupt(&owner("a"), &key("bad")).await.unwrap();
    hints.remove_corrupt(&owner("a"), &key("good")).await.unwrap();
    let page = hints.scan(&owner("a"), None, NO_LIMIT).await.unwrap();
    assert_eq!(
        (page.entries.len(), page.damaged.len()),
        (1, 0),
        "a good one stays"
    );
    assert_eq!(hints.owners()[&owner("a")].records, 1);
}

#[tokio::test]
async fn on_rocksdb_hints_survive_a_kill_and_are_counted_again() {
    let directory = tempfile::tempdir().unwrap();
    let hints = start(Arc::new(open(directory.path())), &Mint::new(minter(1)), 1 << 20);
    for number in 0..50 {
        let owner = owner(if number % 2 == 0 { "a" } else { "b" });
        let key = key(&number.to_string());
        hints.hint(&owner, &key, delta(10 + number), false).await.unwrap();
    }
    assert_eq!(
        hints.remove_if(&owner("a"), &key("0"), delta(10).digest()).await,
        Ok(true)
    );
    let killed = copy(directory.path());
    let again = start(Arc::new(open(killed.path())), &Mint::new(minter(2)), 1 << 20);
    assert_eq!(again.owners(), hints.owners());
    assert_eq!(again.owners()[&owner("a")].records, 24);
    assert_eq!(again.read(&key("1")).await.unwrap(), Some(delta(11)));
    assert_eq!(again.read(&key("0")).await.unwrap(), None);
    let page = again.scan(&owner("b"), None, NO_LIMIT).await.unwrap();
    assert_eq!((page.entries.len(), page.next), (25, None));
    assert!(!again.health().await.unwrap().failed());
}

#[test]
fn a_store_of_something_else_is_not_taken_for_hints() {
    let store = MemoryStore::new();
    let mut batch = Batch::new();
    batch.put(Space::Data, key("k").as_bytes().clone(), delta(1).encode());
    store.write(batch, true).unwrap();
    let refused = HintStore::start(Arc::new(store), Mint::new(minter(1)), options(), 1);
    assert!(matches!(
        refused,
        Err(HintStartError::Count(StoreError::Damaged { .. }))
    ));
}
