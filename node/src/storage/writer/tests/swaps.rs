//! Changes of records that must not have changed meanwhile, repairs, and who hears of them.

use super::*;
use crate::storage::writer::follow::RecordChange;

/// Keeps what it is told.
#[derive(Default)]
struct Recorder {
    changes: Mutex<Vec<RecordChange>>,
    admitted_bytes: AtomicU64,
}

impl Follower for Recorder {
    fn admits(&self, bytes: u64) -> bool {
        bytes <= self.admitted_bytes.load(Relaxed)
    }

    fn committed(&self, changes: &[RecordChange]) {
        self.changes.lock().extend_from_slice(changes);
    }
}

impl Recorder {
    /// The changes since the last call: whether the record was there before and after.
    fn take(&self) -> Vec<(bool, bool)> {
        let taken = std::mem::take(&mut *self.changes.lock());
        let there = |before: &Before| matches!(before, Before::Known(Some(_)));
        taken
            .iter()
            .map(|change| (there(&change.before), change.after.is_some()))
            .collect()
    }
}

fn followed(store: &TestStore) -> (Writer, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    recorder.admitted_bytes.store(u64::MAX, Relaxed);
    let follower = Arc::clone(&recorder) as Arc<dyn Follower>;
    let options = options(Durability::Every);
    let mint = Mint::new(minter(1));
    let (writer, _failure) =
        Writer::start_with(Arc::new(store.clone()), mint, options, Some(follower)).unwrap();
    (writer, recorder)
}

fn stored(store: &TestStore, space: Space, name: &str) -> Option<Bytes> {
    store.memory.get(space, key(name).as_bytes()).unwrap()
}

fn expected(store: &TestStore, name: &str) -> Expected {
    Expected {
        digest: store.state(&key(name)).digest(),
        mark: None,
    }
}

const MARK: Swap = Swap::Mark(Bytes::from_static(b"round 1"));
const DURABLE: Result<Option<Committed>, WriteError> = Ok(Some(Committed { durable: true }));

/// Marks are looked for only where there are some: those of an earlier start count.
#[tokio::test]
async fn a_mark_of_an_earlier_start_is_cleared_by_news() {
    let store = TestStore::default();
    let (writer, _) = followed(&store);
    for name in ["k", "l"] {
        writer.merge(key(name), delta("w", 1), false).await.unwrap();
        let expected = expected(&store, name);
        assert_eq!(writer.swap(key(name), expected, MARK, true).await, DURABLE);
    }
    writer.stop().await.unwrap();
    let (writer, recorder) = followed(&store);
    for name in ["k", "l"] {
        writer.merge(key(name), delta("w", 2), false).await.unwrap();
        assert_eq!(stored(&store, Space::Marks, name), None);
        assert_eq!(recorder.take(), [(false, true)], "it was out until now");
    }
}

/// D33: what is about to be reaped is marked durably, and any news of the key takes the mark away.
#[tokio::test]
async fn a_mark_takes_a_record_out_until_any_write_clears_it() {
    let store = TestStore::default();
    let (writer, recorder) = followed(&store);
    let known = delta("w", 1);
    writer.merge(key("k"), known.clone(), false).await.unwrap();
    assert_eq!(recorder.take(), [(false, true)]);
    for again in [true, false] {
        let expected = expected(&store, "k");
        assert_eq!(writer.swap(key("k"), expected, MARK, true).await, DURABLE);
        store.memory.crash();
        assert_eq!(
            stored(&store, Space::Marks, "k").as_deref(),
            Some(&b"round 1"[..])
        );
        assert_eq!(recorder.take(), [(true, false)], "it counts as absent");
        if again {
            writer.merge(key("k"), known.clone(), false).await.unwrap();
        } else {
            put(&writer, "k", "v").await.unwrap();
        }
        assert_eq!(stored(&store, Space::Marks, "k"), None);
        assert_eq!(recorder.take(), [(false, true)], "and as there again");
    }
    let expected = expected(&store, "k");
    assert_eq!(writer.swap(key("k"), expected.clone(), MARK, true).await, DURABLE);
    assert_eq!(writer.swap(key("k"), expected, Swap::Unmark, true).await, DURABLE);
    assert_eq!(stored(&store, Space::Marks, "k"), None);
}

#[tokio::test]
async fn a_record_that_changed_is_not_swapped() {
    let store = TestStore::default();
    let (writer, recorder) = followed(&store);
    put(&writer, "k", "v").await.unwrap();
    let seen = expected(&store, "k");
    put(&writer, "k", "w").await.unwrap();
    recorder.take();
    for swap in [MARK, Swap::Unmark, Swap::Delete, Swap::Replace(KeyState::new())] {
        assert_eq!(
            writer.swap(key("k"), seen.clone(), swap.clone(), true).await,
            Ok(None)
        );
        assert_eq!(
            writer.swap(key("absent"), seen.clone(), swap, true).await,
            Ok(None)
        );
    }
    let now = expected(&store, "k");
    writer.swap(key("k"), now.clone(), MARK, true).await.unwrap();
    let other_round = Expected {
        mark: Some(Bytes::from_static(b"round 2")),
        ..now.clone()
    };
    assert_eq!(
        writer.swap(key("k"), other_round, Swap::Delete, true).await,
        Ok(None)
    );
    assert_eq!(recorder.take(), [(true, false)], "only the mark");
    let this_round = Expected {
        mark: Some(Bytes::from_static(b"round 1")),
        ..now
    };
    assert_eq!(
        writer.swap(key("k"), this_round, Swap::Delete, true).await,
        DURABLE
    );
}

#[tokio::test]
async fn a_deletion_takes_everything_of_the_record_and_the_next_write_counts_anew() {
    let store = TestStore::default();
    let (writer, recorder) = followed(&store);
    let first = writer.coordinate(key("k"), update("v"), false).await.unwrap();
    let first_actor = first.dot.actor;
    first.committed().await.unwrap();
    writer
        .swap(key("k"), expected(&store, "k"), MARK, true)
        .await
        .unwrap();
    let writes = store.counts().0;
    recorder.take();
    assert_eq!(
        writer
            .swap(key("k"), expected(&store, "k"), Swap::Delete, true)
            .await,
        DURABLE
    );
    assert_eq!(store.counts().0, writes + 1, "one batch");
    for space in [Space::Data, Space::Epochs, Space::Marks] {
        assert_eq!(stored(&store, space, "k"), None, "{space:?}");
    }
    assert_eq!(recorder.take(), [], "it counted as absent already");
    let second = writer.coordinate(key("k"), update("v"), false).await.unwrap();
    assert_ne!(second.dot.actor, first_actor);
    second.committed().await.unwrap();
}

#[tokio::test]
async fn a_replacement_is_stored_as_it_is() {
    let store = TestStore::default();
    let (writer, recorder) = followed(&store);
    put(&writer, "k", "v").await.unwrap();
    let truncated = delta("w", 1);
    let swap = Swap::Replace(truncated.clone());
    assert_eq!(
        writer.swap(key("k"), expected(&store, "k"), swap, true).await,
        DURABLE
    );
    assert_eq!(store.state(&key("k")), truncated);
    assert!(stored(&store, Space::Epochs, "k").is_some(), "the count goes on");
    assert_eq!(recorder.take(), [(false, true), (true, true)]);
}

fn flip(store: &TestStore, space: Space, name: &str) {
    let mut bytes = stored(store, space, name).unwrap().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let mut batch = Batch::new();
    batch.put(space, key(name).as_bytes().clone(), bytes);
    store.memory.write(batch, true).unwrap();
}

/// D67: a record that fails its checksum is replaced by what others hold, and only such a one.
#[tokio::test]
async fn a_damaged_record_is_replaced_and_a_whole_one_is_merged() {
    let store = TestStore::default();
    let (writer, recorder) = followed(&store);
    for name in ["record", "both", "whole", "unreadable"] {
        put(&writer, name, "v").await.unwrap();
    }
    let count = records::read_epoch(&store.memory, &key("record").into()).unwrap();
    flip(&store, Space::Data, "record");
    flip(&store, Space::Data, "both");
    flip(&store, Space::Epochs, "both");
    store.set(|state| {
        let place = (Space::Data, key("unreadable").as_bytes().clone());
        state.damaged.insert(place);
    });
    assert!(matches!(
        put(&writer, "record", "w").await,
        Err(WriteError::Read(StoreError::Damaged { .. }))
    ));
    recorder.take();
    let theirs = delta("w", 2);
    let repair = async |name| writer.replace_corrupt(key(name), theirs.clone()).await;
    for name in ["record", "both"] {
        assert_eq!(repair(name).await, Ok(Committed { durable: true }));
        assert_eq!(store.state(&key(name)), theirs);
    }
    assert_eq!(
        recorder.take(),
        [(true, true), (true, true)],
        "the damaged bytes are known"
    );
    assert_eq!(
        records::read_epoch(&store.memory, &key("record").into()).unwrap(),
        count
    );
    assert_eq!(stored(&store, Space::Epochs, "both"), None, "a new epoch begins");
    repair("whole").await.unwrap();
    assert_eq!(
        store.state(&key("whole")).siblings().len(),
        1 + theirs.siblings().len()
    );
    assert!(
        matches!(
            repair("unreadable").await,
            Err(WriteError::Read(StoreError::Io { .. }))
        ),
        "a disk that does not answer says nothing about the record"
    );
    assert_eq!(writer.counters().repaired, 2);
    put(&writer, "both", "x").await.unwrap();

    flip(&store, Space::Data, "record");
    writer.remove_corrupt(key("record")).await.unwrap();
    writer.remove_corrupt(key("whole")).await.unwrap();
    assert_eq!(stored(&store, Space::Data, "record"), None);
    assert!(stored(&store, Space::Data, "whole").is_some());
}

#[tokio::test]
async fn what_a_follower_does_not_admit_is_refused() {
    let store = TestStore::default();
    let (writer, recorder) = followed(&store);
    put(&writer, "k", "v").await.unwrap();
    recorder.admitted_bytes.store(0, Relaxed);
    assert_eq!(put(&writer, "k", "v").await, Err(WriteError::BudgetSpent));
    let merge = writer.merge(key("k"), delta("w", 1), false).await;
    assert_eq!(merge, Err(WriteError::BudgetSpent));
    assert_eq!(writer.counters().budget_spent, 2);
    assert_eq!(
        writer
            .swap(key("k"), expected(&store, "k"), Swap::Delete, true)
            .await,
        DURABLE,
        "what frees room is taken"
    );
}

#[tokio::test]
async fn a_look_sees_what_was_submitted_before_it_and_committed() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Every);
    put(&writer, "k", "v").await.unwrap();
    let place = key("k").as_bytes().clone();
    let found = writer.look(move |store| store.get(Space::Data, &place)).await;
    assert!(found.unwrap().unwrap().is_some());
    writer.stop().await.unwrap();
    assert_eq!(writer.look(|_| ()).await, Err(WriteError::Stopped));
}
