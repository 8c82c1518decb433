//! Modes of durability, room on the disk, the shared mint, the synced sequence.

use super::*;
use crate::storage::buffered::BufferedStore;

#[tokio::test]
async fn in_interval_mode_an_answer_is_truthful_about_durability() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, HOUR);
    let merge = async |sync| writer.merge(key("k"), delta("v", 1), sync).await.unwrap();
    assert_eq!(merge(false).await, Committed { durable: false });
    assert_eq!(
        merge(false).await,
        Committed { durable: false },
        "its first write is still unsynced"
    );
    assert_eq!(store.counts(), (1, 0), "the repeated one wrote nothing");
    assert_eq!(merge(true).await, Committed { durable: true });
    assert_eq!(store.counts(), (1, 1), "and forced a sync when asked");
    assert_eq!(merge(false).await, Committed { durable: true });
    assert_eq!(merge(true).await, Committed { durable: true });
    assert_eq!(store.counts(), (1, 1), "nothing was left to sync");

    assert_eq!(put(&writer, "1", "v").await, Ok(Committed { durable: false }));
    let prepared = writer.coordinate(key("2"), update("v"), true).await.unwrap();
    assert_eq!(prepared.committed().await, Ok(Committed { durable: true }));
    assert_eq!(
        (store.counts(), store.memory.unsynced()),
        ((3, 2), 0),
        "with everything before it"
    );
    assert_eq!(writer.counters().unchanged, 4);
}

#[tokio::test]
async fn in_interval_mode_the_timer_syncs() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Interval(Duration::from_millis(1)));
    for name in ["1", "2"] {
        put(&writer, name, "v").await.unwrap();
        until("the timer has synced", || store.memory.unsynced() == 0).await;
    }
    assert!(writer.counters().syncs >= 2);
}

#[tokio::test]
async fn in_interval_mode_a_timer_that_fails_ends_the_writer() {
    let store = TestStore::default();
    store.set(|state| state.fails_at = Some(FailsAt::Sync));
    let (writer, mut failure) = start(&store, Durability::Interval(Duration::from_millis(1)));
    assert_eq!(put(&writer, "k", "v").await, Ok(Committed { durable: false }));
    assert_eq!(failure.failed().await, broken("writing"));
    assert!(matches!(
        put(&writer, "k", "v").await,
        Err(WriteError::Storage(_))
    ));
}

/// D42: of the N replicas the one that coordinates is durable, the others do not wait.
#[tokio::test]
async fn in_mode_one_of_n_only_what_is_coordinated_here_is_synced() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::OneOfN(Duration::from_hours(1)));
    let merged = writer.merge(key("k"), delta("v", 1), false).await;
    assert_eq!(merged, Ok(Committed { durable: false }));
    assert_eq!(store.counts(), (1, 0));
    assert_eq!(put(&writer, "k", "v").await, Ok(Committed { durable: true }));
    assert_eq!(store.memory.unsynced(), 0);
    let asked = writer.merge(key("k"), delta("w", 2), true).await;
    assert_eq!(asked, Ok(Committed { durable: true }), "DW holds in every mode");
}

/// D42: an acknowledged write is read from the buffer; the timer writes and syncs it.
#[tokio::test]
async fn behind_a_buffer_a_write_is_acknowledged_from_memory() {
    let memory = MemoryStore::new();
    let store = Arc::new(BufferedStore::new(memory.clone(), 1 << 20));
    let begin = |durability| {
        let store = Arc::clone(&store) as Arc<dyn Store>;
        Writer::start(store, minter(1), options(durability)).unwrap()
    };
    let (writer, _failure) = begin(HOUR);
    assert_eq!(put(&writer, "k", "v").await, Ok(Committed { durable: false }));
    assert!(
        records::read(&*store, &key("k")).unwrap().is_some(),
        "get sees it"
    );
    assert!(
        records::read(&memory, &key("k")).unwrap().is_none(),
        "the log does not"
    );
    let prepared = writer.coordinate(key("l"), update("v"), true).await.unwrap();
    assert_eq!(prepared.committed().await, Ok(Committed { durable: true }));
    memory.crash();
    for name in ["k", "l"] {
        assert!(
            records::read(&memory, &key(name)).unwrap().is_some(),
            "DW takes all before it along"
        );
    }
    assert_eq!(put(&writer, "m", "v").await, Ok(Committed { durable: false }));
    writer.stop().await.unwrap();
    assert_eq!(
        (store.buffered_bytes(), memory.unsynced()),
        (0, 0),
        "a clean stop loses nothing"
    );

    let (writer, _failure) = begin(Durability::Interval(Duration::from_millis(1)));
    put(&writer, "n", "v").await.unwrap();
    until("the timer has flushed", || store.buffered_bytes() == 0).await;
    memory.crash();
    assert!(records::read(&memory, &key("n")).unwrap().is_some());
}

/// D16: a disk that is nearly full takes no more data, but whatever frees room; and it recovers by itself.
#[tokio::test]
async fn a_disk_that_is_nearly_full_refuses_data_until_there_is_room_again() {
    let store = TestStore::default();
    let disk = |free_bytes| {
        store.set(|state| {
            state.disk = Some(Disk {
                free_bytes,
                total_bytes: 1000,
            });
        });
    };
    disk(100);
    let options = WriterOptions {
        free_bytes_min: Some(100),
        ..options(Durability::Every)
    };
    let (writer, _failure) = Writer::start(Arc::new(store.clone()), minter(1), options).unwrap();
    put(&writer, "k", "v").await.unwrap();
    disk(99);
    let full = WriteError::DiskFull {
        free_bytes: 99,
        free_bytes_min: 100,
    };
    let refused = async {
        loop {
            match put(&writer, "k", "v").await {
                Ok(_) | Err(WriteError::Refused(_)) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_mins(1), refused).await;
    assert_eq!(refused.expect("the disk is looked at again"), full);
    let merge = writer.merge(key("k"), delta("w", 1), false).await;
    assert_eq!(merge, Err(full.clone()));
    let repair = writer.replace_corrupt(key("k"), delta("w", 1)).await;
    assert_eq!(repair, Err(full));
    assert_eq!(writer.counters().disk_full, 3);

    let mut batch = Batch::new();
    batch.put(Space::Meta, &b"name"[..], &b"value"[..]);
    assert!(
        writer.meta(batch, true).await.is_ok(),
        "the node still remembers its peers"
    );
    let expected = Expected {
        digest: store.state(&key("k")).digest(),
        mark: None,
    };
    let deleted = writer.swap(key("k"), expected, Swap::Delete, true).await;
    assert!(matches!(deleted, Ok(Some(_))), "removals go on");
    disk(100);
    assert!(put(&writer, "k", "v").await.is_ok(), "at once");
}

/// D32: two stores of one node, one source of epochs.
#[tokio::test]
async fn writers_that_share_a_mint_never_give_a_dot_twice() {
    let stores = [TestStore::default(), TestStore::default()];
    let mint = Mint::new(minter(1));
    let writers = stores.clone().map(|store| {
        let options = options(Durability::Every);
        Writer::start_with(Arc::new(store), mint.clone(), options, None)
            .unwrap()
            .0
    });
    let mut dots = BTreeSet::new();
    for name in ["a", "b"] {
        for _ in 0..3 {
            for writer in &writers {
                let prepared = writer.coordinate(key(name), update("v"), false).await.unwrap();
                assert!(dots.insert(prepared.dot), "{} is given twice", prepared.dot);
                prepared.committed().await.unwrap();
            }
        }
    }
    let renewal = durable::supersede(Incarnation { generation: 1, id: 1 }, 4, 2);
    writers[0].renew(&renewal).await.unwrap();
    for writer in &writers {
        let dot = writer.coordinate(key("a"), update("v"), false).await.unwrap().dot;
        assert_eq!(dot.actor.incarnation, 2, "a renewal holds for both");
        assert!(dots.insert(dot));
    }
    let minter = writers[0].stop().await.unwrap();
    assert_eq!(minter.next_epoch(), 3);
    assert!(
        matches!(
            writers[1].coordinate(key("c"), update("v"), false).await,
            Err(WriteError::Stopped)
        ),
        "what the stop persists is certainly the next epoch"
    );
    assert!(writers[1].merge(key("c"), delta("v", 1), false).await.is_ok());
    writers[1].close().await.unwrap();
    assert_eq!(stores[1].memory.unsynced(), 0);
}

/// What peers remember, to know a disk that lost something.
#[tokio::test]
async fn the_synced_sequence_is_never_ahead_of_the_disk() {
    let store = TestStore::default();
    put(&start(&store, Durability::Every).0, "before", "v")
        .await
        .unwrap();
    let at_start = store.sequence();
    let (writer, _failure) = start(&store, HOUR);
    assert_eq!(writer.synced(), at_start);
    put(&writer, "k", "v").await.unwrap();
    assert_eq!(writer.synced(), at_start, "nothing was synced");
    writer.merge(key("k"), delta("v", 1), true).await.unwrap();
    let synced = writer.synced();
    assert!(synced > at_start);
    put(&writer, "k", "w").await.unwrap();
    store.memory.crash();
    assert_eq!(store.sequence(), synced, "exactly what the loss of power leaves");
}
