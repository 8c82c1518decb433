//! What is carried out where it was submitted, what is not, and how the one goes over into the other.

use super::*;

impl TestStore {
    /// Whether the last write was made by the thread that asks, on which the runtime of these tests runs.
    fn wrote_here(&self) -> bool {
        self.control.state.lock().last_writer == Some(thread::current().id())
    }
}

/// Writes until it is the task's turn again: the thread gives it back once it has nothing more to do.
async fn until_written_here(writer: &Writer, store: &TestStore) {
    let written = async {
        for name in 0.. {
            put(writer, &name.to_string(), "v").await.unwrap();
            if store.wrote_here() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, written)
        .await
        .expect("the task's turn");
}

#[tokio::test]
async fn what_needs_no_disk_is_written_where_it_was_submitted() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, HOUR);
    for name in ["new", "new", "other"] {
        assert_eq!(put(&writer, name, "v").await, Ok(Committed { durable: false }));
        assert!(store.wrote_here());
    }
    writer.merge(key("merged"), delta("v", 1), false).await.unwrap();
    assert!(store.wrote_here());
    assert_eq!(store.counts(), (4, 0));
}

#[tokio::test]
async fn what_is_submitted_together_is_one_group() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, HOUR);
    let mut tasks = Vec::new();
    for name in ["a", "b", "c"] {
        tasks.push(submit_put(&writer, name).await);
    }
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!((store.counts(), writer.counters().groups), ((1, 0), 1));
    assert!(store.wrote_here());
}

#[tokio::test]
async fn what_has_to_wait_for_the_disk_is_the_threads() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, HOUR);
    put(&writer, "record", "v").await.unwrap();
    put(&writer, "epoch", "v").await.unwrap();
    store.set(|state| {
        state.on_disk.extend(
            [(Space::Data, "record"), (Space::Epochs, "epoch")]
                .map(|(space, name)| (space, key(name).as_bytes().clone())),
        );
    });
    for name in ["record", "epoch"] {
        until_written_here(&writer, &store).await;
        put(&writer, name, "w").await.unwrap();
        assert!(!store.wrote_here(), "{name}");
        assert_eq!(
            store.state(&key(name)).siblings().len(),
            2,
            "{name}: nothing is taken for absent"
        );
    }
    until_written_here(&writer, &store).await;
    writer.merge(key("epoch"), delta("m", 1), false).await.unwrap();
    assert!(store.wrote_here(), "a merge needs no epoch");
    writer.merge(key("synced"), delta("m", 1), true).await.unwrap();
    assert!(!store.wrote_here());
    until_written_here(&writer, &store).await;
}

#[tokio::test]
async fn a_batch_that_would_wait_for_flushes_is_written_by_the_thread_before_all_that_comes_later() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, HOUR);
    store.set(|state| state.stalls = true);
    let first = writer.coordinate(key("k"), update("a"), false).await.unwrap();
    let second = writer.coordinate(key("k"), update("b"), false).await.unwrap();
    assert_eq!((first.dot.counter, second.dot.counter), (1, 2));
    for prepared in [first, second] {
        prepared.committed().await.unwrap();
        assert!(!store.wrote_here());
    }
    assert_eq!(store.state(&key("k")).siblings().len(), 2);
    store.set(|state| state.stalls = false);
    put(&writer, "k", "c").await.unwrap();
    assert_eq!(store.state(&key("k")).siblings().len(), 3);
}

#[tokio::test]
async fn writes_go_on_during_a_sync_and_wait_for_the_next_one() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Interval(Duration::from_millis(1)));
    store.hold();
    put(&writer, "before", "v").await.unwrap();
    until("the timer syncs", || store.is_waiting()).await;
    let synced = writer.synced();
    let during = put(&writer, "during", "v").await;
    assert_eq!(during, Ok(Committed { durable: false }));
    assert!(store.wrote_here());
    assert_eq!(writer.synced(), synced);
    store.release();
    until("the next one has covered it", || {
        writer.synced() == store.sequence()
    })
    .await;
    assert_eq!(store.memory.unsynced(), 0);
}

#[tokio::test]
async fn a_failed_write_here_ends_the_writer_and_is_not_tried_again() {
    let store = TestStore::default();
    let (writer, mut failure) = start(&store, HOUR);
    put(&writer, "before", "v").await.unwrap();
    store.set(|state| state.fails_at = Some(FailsAt::Write));
    let failed = Err(WriteError::Storage(broken("writing")));
    assert_eq!(put(&writer, "k", "v").await, failed);
    assert_eq!(failure.failed().await, broken("writing"));
    store.set(|state| state.fails_at = None);
    let counts = store.counts();
    assert_eq!(put(&writer, "later", "v").await, failed);
    assert!(writer.stop().await.is_err());
    assert_eq!(store.counts(), counts);
}

#[tokio::test]
async fn a_panic_here_counts_as_a_failure() {
    let store = TestStore::default();
    let (writer, mut failure) = start(&store, HOUR);
    store.set(|state| state.panics = true);
    assert!(matches!(
        put(&writer, "k", "v").await,
        Err(WriteError::Storage(_))
    ));
    assert!(failure.failed().await.to_string().contains("panicked"));
    drop(writer);
    until("all have let go", || Arc::strong_count(&store.control) == 1).await;
}

/// The thread alone goes on.
#[test]
fn a_writer_outlives_the_runtime_that_it_was_started_in() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
    };
    let store = TestStore::default();
    let first = runtime();
    let (writer, _failure) = first.block_on(async { start(&store, HOUR) });
    let waits = first.block_on(submit_put(&writer, "waits"));
    drop(first);
    drop(waits);
    let later = runtime();
    later.block_on(put(&writer, "later", "v")).unwrap();
    assert_eq!(writer.counters().operations, 2);
    later.block_on(writer.stop()).unwrap();
    assert_eq!(store.memory.unsynced(), 0);
}

/// Also while a runtime's only thread waits for the end.
#[tokio::test]
async fn a_dropped_writer_has_carried_out_what_waited() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, HOUR);
    let task = submit_put(&writer, "k").await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    drop(writer);
    assert!(
        store
            .memory
            .get(Space::Data, key("k").as_bytes())
            .unwrap()
            .is_some()
    );
    assert_eq!(store.memory.unsynced(), 0);
}
