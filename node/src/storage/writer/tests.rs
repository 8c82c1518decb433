use std::{
    collections::BTreeSet,
    future::Future,
    task::Poll,
    thread::{self, ThreadId},
};

use bytes::Bytes;
use dynamo_core::{
    types::Incarnation,
    version::{Content, Seen, Stamp},
};
use tokio::task::JoinHandle;

use dynamo_core::replica::{SiblingCaps, Update};

use super::*;
use crate::{
    durable,
    storage::{
        Cached, DataKey, Disk, Estimate, Health, KeyRange, Page, ScanLimit,
        conformance::{Rocks, Subject as _},
        memory::MemoryStore,
        records,
    },
};

mod at_once;

mod bounds;

mod lives;

mod modes;

mod power_loss;

mod swaps;

/// A store in memory that can be held, broken and looked at. A clone is the same store.
#[derive(Clone, Default)]
struct TestStore {
    memory: MemoryStore,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    state: Mutex<ControlState>,
    changed: parking_lot::Condvar,
}

#[derive(Default)]
struct ControlState {
    held: bool,
    waiting: bool,
    fails_at: Option<FailsAt>,
    panics: bool,
    damaged: BTreeSet<(Space, Bytes)>,
    /// Calls of `write` and `sync` that may still succeed.
    calls_left: Option<u64>,
    disk: Option<Disk>,
    writes: u64,
    syncs: u64,
    /// Records and epoch entries that are not in memory.
    on_disk: BTreeSet<(Space, Bytes)>,
    /// Flushes lag behind.
    stalls: bool,
    last_writer: Option<ThreadId>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum FailsAt {
    /// Nothing reaches the log.
    Write,
    /// The log has it, the disk does not.
    Sync,
}

impl TestStore {
    /// Holds writers between the log and the sync.
    fn hold(&self) {
        self.control.state.lock().held = true;
    }

    fn release(&self) {
        self.control.state.lock().held = false;
        self.control.changed.notify_all();
    }

    fn is_waiting(&self) -> bool {
        self.control.state.lock().waiting
    }

    fn set(&self, change: impl FnOnce(&mut ControlState)) {
        change(&mut self.control.state.lock());
    }

    fn counts(&self) -> (u64, u64) {
        let state = self.control.state.lock();
        (state.writes, state.syncs)
    }

    fn state(&self, key: &DataKey) -> KeyState {
        records::read(&self.memory, key).unwrap().unwrap()
    }

    fn gate(&self) {
        let mut state = self.control.state.lock();
        assert!(!state.panics, "told to");
        while state.held {
            state.waiting = true;
            self.control.changed.wait(&mut state);
        }
        state.waiting = false;
    }

    fn may(&self, step: FailsAt) -> Result<(), StoreError> {
        let mut state = self.control.state.lock();
        if let Some(left) = &mut state.calls_left {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => state.fails_at = Some(FailsAt::Write),
            }
        }
        if state.fails_at == Some(step) {
            Err(broken("writing"))
        } else {
            Ok(())
        }
    }
}

fn broken(attempted: &str) -> StoreError {
    StoreError::Io {
        attempted: attempted.to_owned(),
        reason: "told to".to_owned(),
    }
}

impl Store for TestStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let damaged = self
            .control
            .state
            .lock()
            .damaged
            .contains(&(space, Bytes::copy_from_slice(key)));
        if damaged {
            Err(broken("reading"))
        } else {
            self.memory.get(space, key)
        }
    }

    fn get_cached(&self, space: Space, key: &[u8]) -> Result<Cached, StoreError> {
        let place = (space, Bytes::copy_from_slice(key));
        if self.control.state.lock().on_disk.contains(&place) {
            return Ok(Cached::OnDisk);
        }
        self.get(space, key).map(Cached::Known)
    }

    fn write_at_once(&self, batch: &Batch) -> Result<bool, StoreError> {
        if self.control.state.lock().stalls {
            return Ok(false);
        }
        self.write(batch.clone(), false).map(|()| true)
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        self.set(|state| {
            state.writes += 1;
            state.last_writer = Some(thread::current().id());
            assert!(!state.panics || sync, "told to");
        });
        self.may(FailsAt::Write)?;
        self.memory.write(batch, false)?;
        if sync { self.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.gate();
        self.may(FailsAt::Write)?;
        self.may(FailsAt::Sync)?;
        self.set(|state| state.syncs += 1);
        self.memory.sync()
    }

    fn scan(&self, space: Space, range: KeyRange<'_>, limit: ScanLimit) -> Result<Page, StoreError> {
        self.memory.scan(space, range, limit)
    }

    fn estimate(&self) -> Result<Estimate, StoreError> {
        self.memory.estimate()
    }

    fn health(&self) -> Result<Health, StoreError> {
        let health = self.memory.health()?;
        let disk = self.control.state.lock().disk;
        Ok(Health { disk, ..health })
    }

    fn sequence(&self) -> u64 {
        self.memory.sequence()
    }
}

const HOUR: Durability = Durability::Interval(Duration::from_hours(1));

fn minter(id: u64) -> Minter {
    Minter::new(Incarnation { generation: 1, id }, 1)
}

fn options(durability: Durability) -> WriterOptions {
    WriterOptions {
        durability,
        caps: SiblingCaps {
            siblings: 100,
            ..SiblingCaps::NONE
        },
        free_bytes_min: None,
    }
}

fn start(store: &TestStore, durability: Durability) -> (Writer, Failure) {
    Writer::start(Arc::new(store.clone()), minter(1), options(durability)).unwrap()
}

fn key(name: &str) -> DataKey {
    DataKey::new("bucket", name.as_bytes()).unwrap()
}

fn update(value: &'static str) -> Update {
    Update {
        content: Content::Value(Bytes::from_static(value.as_bytes())),
        context: Seen::new(),
        op_id: None,
        stamp: Stamp(1),
        expires_at_ms: None,
    }
}

/// What another node sends.
fn delta(value: &'static str, counter: u64) -> KeyState {
    let mut other = minter(99);
    let mut state = None;
    let mut entry = None;
    for _ in 0..counter {
        let made = dynamo_core::replica::coordinate(
            state.as_ref(),
            entry.as_ref(),
            &mut other,
            update(value),
            SiblingCaps::NONE,
        );
        let made = made.unwrap();
        (state, entry) = (Some(made.state), made.entry);
    }
    state.unwrap()
}

async fn put(writer: &Writer, name: &str, value: &'static str) -> Result<Committed, WriteError> {
    writer
        .coordinate(key(name), update(value), false)
        .await?
        .committed()
        .await
}

/// Submits now, and leaves the answer for later.
async fn submit<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let mut future = Box::pin(future);
    let first = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
    match first {
        Poll::Ready(value) => tokio::spawn(std::future::ready(value)),
        Poll::Pending => tokio::spawn(future),
    }
}

async fn submit_put(writer: &Writer, name: &str) -> JoinHandle<Result<Committed, WriteError>> {
    let (writer, name) = (writer.clone(), name.to_owned());
    submit(async move { put(&writer, &name, "v").await }).await
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
            thread::yield_now();
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait)
        .await
        .expect(what);
}

/// D34: many writes, one sync.
#[tokio::test]
async fn writes_that_come_during_a_sync_share_the_next_one() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Every);
    store.hold();
    let mut tasks = vec![submit_put(&writer, "first").await];
    until("the first write syncs", || store.is_waiting()).await;
    for number in 0..100 {
        tasks.push(submit_put(&writer, &format!("{number}")).await);
    }
    assert_eq!(writer.counters().queued, 100);
    store.release();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Ok(Committed { durable: true }));
    }
    assert_eq!(store.counts(), (2, 2));
    let counters = writer.counters();
    assert_eq!(
        (
            counters.groups,
            counters.operations,
            counters.syncs,
            counters.queued
        ),
        (2, 101, 2, 0)
    );
    assert!(counters.bytes > 0);
}

/// Also what came with it, in one group.
#[tokio::test]
async fn a_look_finds_all_that_was_submitted_before_it_and_nothing_later() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Every);
    store.hold();
    let first = submit_put(&writer, "first").await;
    until("the first write syncs", || store.is_waiting()).await;
    let before = submit_put(&writer, "before").await;
    let looking = writer.clone();
    let looks = |store: &dyn Store| {
        ["before", "after"].map(|name| records::read(store, &key(name)).unwrap().is_some())
    };
    let look = submit(async move { looking.look(looks).await }).await;
    let after = submit_put(&writer, "after").await;
    store.release();
    assert_eq!(look.await.unwrap(), Ok([true, false]));
    for put in [first, before, after] {
        put.await.unwrap().unwrap();
    }
}

/// D34: accepted means synced; but the dot may leave earlier.
#[tokio::test]
async fn nothing_is_acknowledged_before_its_sync_returned() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Every);
    store.hold();
    let prepared = writer.coordinate(key("k"), update("v"), false).await.unwrap();
    assert_eq!(prepared.dot.counter, 1);
    assert_eq!(prepared.delta.live(0).len(), 1);
    let committed = submit(prepared.committed()).await;
    until("the write syncs", || store.is_waiting()).await;
    assert_eq!(store.memory.unsynced(), 1, "written, and not synced");
    let merged = {
        let writer = writer.clone();
        submit(async move { writer.merge(key("k"), delta("w", 1), false).await }).await
    };
    tokio::task::yield_now().await;
    assert!(!committed.is_finished() && !merged.is_finished());
    store.release();
    assert_eq!(committed.await.unwrap(), Ok(Committed { durable: true }));
    assert_eq!(merged.await.unwrap(), Ok(Committed { durable: true }));
    assert_eq!(store.memory.unsynced(), 0);
}

#[tokio::test]
async fn a_failed_write_or_sync_is_never_acknowledged_nor_tried_again() {
    for fails_at in [FailsAt::Write, FailsAt::Sync] {
        let store = TestStore::default();
        let (writer, mut failure) = start(&store, Durability::Every);
        put(&writer, "before", "v").await.unwrap();
        store.hold();
        let in_sync = submit_put(&writer, "in sync").await;
        until("the write syncs", || store.is_waiting()).await;
        let queued = [submit_put(&writer, "1").await, submit_put(&writer, "2").await];
        store.set(|state| state.fails_at = Some(fails_at));
        store.release();
        for task in queued.into_iter().chain([in_sync]) {
            let error = task.await.unwrap().unwrap_err();
            assert!(matches!(error, WriteError::Storage(_)), "{fails_at:?}: {error}");
        }
        assert_eq!(failure.failed().await, broken("writing"), "{fails_at:?}");
        store.set(|state| state.fails_at = None);
        let counts = store.counts();
        assert!(matches!(
            put(&writer, "later", "v").await,
            Err(WriteError::Storage(_))
        ));
        assert!(matches!(writer.stop().await, Err(WriteError::Storage(_))));
        assert_eq!(store.counts(), counts, "{fails_at:?}: nothing is tried again");
        assert!(
            store
                .memory
                .get(Space::Data, key("1").as_bytes())
                .unwrap()
                .is_none()
        );
    }
}

#[tokio::test]
async fn a_panic_of_the_thread_counts_as_a_failure() {
    let store = TestStore::default();
    let (writer, mut failure) = start(&store, Durability::Every);
    store.set(|state| state.panics = true);
    assert!(put(&writer, "k", "v").await.is_err());
    assert!(failure.failed().await.to_string().contains("panicked"));
    assert!(matches!(
        put(&writer, "k", "v").await,
        Err(WriteError::Storage(_))
    ));
}

#[tokio::test]
async fn writes_of_a_key_in_one_group_see_each_other_in_their_order() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Every);
    store.hold();
    let first = submit_put(&writer, "first").await;
    until("the first write syncs", || store.is_waiting()).await;
    let mut tasks = Vec::new();
    for value in ["a", "b", "c"] {
        let writer = writer.clone();
        tasks.push(
            submit(async move {
                let prepared = writer.coordinate(key("k"), update(value), false).await.unwrap();
                (prepared.dot, prepared.committed().await.unwrap())
            })
            .await,
        );
    }
    let merged = {
        let writer = writer.clone();
        submit(async move { writer.merge(key("k"), delta("m", 1), false).await }).await
    };
    store.release();
    first.await.unwrap().unwrap();
    let mut dots = Vec::new();
    for task in tasks {
        dots.push(task.await.unwrap().0);
    }
    merged.await.unwrap().unwrap();
    assert_eq!(store.counts(), (2, 2), "one group");
    let actor = dots[0].actor;
    assert_eq!(
        dots.iter()
            .map(|dot| (dot.actor, dot.counter))
            .collect::<Vec<_>>(),
        [(actor, 1), (actor, 2), (actor, 3)]
    );
    assert_eq!(store.state(&key("k")).siblings().len(), 4);
    let entry = records::read_epoch(&store.memory, &key("k").into())
        .unwrap()
        .unwrap();
    assert_eq!((entry.actor, entry.counter), (actor, 3));
}

#[tokio::test]
async fn an_operation_that_is_repeated_gets_its_first_dot_now_and_after_a_restart() {
    let store = TestStore::default();
    let operation = Update {
        op_id: Some([7; 16]),
        ..update("v")
    };
    let (writer, _failure) = start(&store, Durability::Every);
    store.hold();
    let first = submit_put(&writer, "first").await;
    until("the first write syncs", || store.is_waiting()).await;
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let (writer, operation) = (writer.clone(), operation.clone());
        tasks.push(submit(async move { writer.coordinate(key("k"), operation, false).await }).await);
    }
    store.release();
    first.await.unwrap().unwrap();
    let mut prepared = Vec::new();
    for task in tasks {
        prepared.push(task.await.unwrap().unwrap());
    }
    assert_eq!((prepared[0].replayed, prepared[1].replayed), (false, true));
    assert_eq!(
        (prepared[0].dot, &prepared[0].delta),
        (prepared[1].dot, &prepared[1].delta)
    );
    let dot = prepared[0].dot;
    for prepared in prepared {
        assert!(prepared.committed().await.unwrap().durable);
    }
    drop(writer);
    store.memory.crash();

    let options = WriterOptions {
        durability: Durability::Every,
        caps: SiblingCaps::NONE,
        free_bytes_min: None,
    };
    let (writer, _failure) = Writer::start(Arc::new(store.clone()), minter(2), options).unwrap();
    let writes = store.counts().0;
    let again = writer.coordinate(key("k"), operation, false).await.unwrap();
    assert_eq!((again.replayed, again.dot), (true, dot));
    assert!(again.committed().await.unwrap().durable);
    assert_eq!(
        (store.counts().0, writer.counters().unchanged),
        (writes, 1),
        "nothing is stored again"
    );
}

#[tokio::test]
async fn a_record_that_cannot_be_read_fails_its_operation_alone() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Every);
    put(&writer, "bad", "v").await.unwrap();
    put(&writer, "epoch", "v").await.unwrap();
    let before = store.state(&key("bad"));
    store.set(|state| {
        state.damaged.insert((Space::Data, key("bad").as_bytes().clone()));
        state
            .damaged
            .insert((Space::Epochs, key("epoch").as_bytes().clone()));
    });
    let unreadable = Err(WriteError::Read(broken("reading")));
    assert_eq!(put(&writer, "bad", "w").await, unreadable);
    assert_eq!(writer.merge(key("bad"), delta("w", 1), false).await, unreadable);
    assert_eq!(put(&writer, "epoch", "w").await, unreadable);
    assert!(
        writer.merge(key("epoch"), delta("w", 1), false).await.is_ok(),
        "a merge needs no epoch"
    );
    assert!(put(&writer, "good", "v").await.is_ok());
    assert_eq!(
        store.state(&key("bad")),
        before,
        "a damaged record is not overwritten"
    );
    assert_eq!(writer.counters().read_errors, 3);

    let (flipped, mut batch) = (key("flipped"), Batch::new());
    let mut bytes = before.encode().to_vec();
    bytes[9] ^= 1;
    batch.put(Space::Data, flipped.as_bytes().clone(), bytes);
    store.memory.write(batch, true).unwrap();
    let error = put(&writer, "flipped", "v").await.unwrap_err();
    assert!(
        matches!(error, WriteError::Read(StoreError::Damaged { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_refused_update_changes_nothing() {
    let store = TestStore::default();
    let options = WriterOptions {
        durability: Durability::Every,
        caps: SiblingCaps {
            siblings: 1,
            ..SiblingCaps::NONE
        },
        free_bytes_min: None,
    };
    let (writer, _failure) = Writer::start(Arc::new(store.clone()), minter(1), options).unwrap();
    put(&writer, "k", "v").await.unwrap();
    let before = store.state(&key("k"));
    assert!(matches!(
        put(&writer, "k", "w").await,
        Err(WriteError::Refused(_))
    ));
    assert_eq!(store.state(&key("k")), before);
}

#[tokio::test]
async fn a_stop_carries_out_what_waits_syncs_and_lets_go() {
    let store = TestStore::default();
    let (writer, mut failure) = start(&store, HOUR);
    let tasks = [submit_put(&writer, "1").await, submit_put(&writer, "2").await];
    let minter = writer.stop().await.unwrap();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!((minter.incarnation().id, minter.next_epoch()), (1, 3));
    assert_eq!(store.memory.unsynced(), 0);
    assert_eq!(
        Arc::strong_count(&store.control),
        1,
        "the writer holds the store no more"
    );
    assert_eq!(put(&writer, "k", "v").await, Err(WriteError::Stopped));
    assert!(matches!(writer.stop().await, Err(WriteError::Stopped)));
    let pending = std::future::poll_fn(|context| {
        Poll::Ready(std::pin::pin!(failure.failed()).poll(context).is_pending())
    });
    assert!(pending.await, "a stop is no failure");
}

#[tokio::test]
async fn a_writer_without_handles_ends() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, Durability::Every);
    put(&writer, "k", "v").await.unwrap();
    drop(writer);
    until("the thread has ended", || Arc::strong_count(&store.control) == 1).await;
}

#[tokio::test]
async fn meta_records_are_written_in_order_with_the_rest_and_nothing_else_is() {
    let store = TestStore::default();
    let (writer, _failure) = start(&store, HOUR);
    let batch = |space| {
        let mut batch = Batch::new();
        batch.put(space, &b"name"[..], &b"value"[..]);
        batch
    };
    assert_eq!(
        writer.meta(batch(Space::Meta), false).await,
        Ok(Committed { durable: false })
    );
    assert_eq!(
        writer.meta(batch(Space::Meta), true).await,
        Ok(Committed { durable: true })
    );
    for space in [Space::Data, Space::Epochs] {
        assert_eq!(
            writer.meta(batch(space), true).await,
            Err(WriteError::WrongSpace(space.name()))
        );
    }
    assert_eq!(
        store.memory.get(Space::Meta, b"name").unwrap().as_deref(),
        Some(&b"value"[..])
    );
}

#[tokio::test]
async fn a_renewal_is_durable_and_names_every_later_write() {
    let store = TestStore::default();
    durable::start(&store, 1).unwrap();
    let (writer, _failure) = start(&store, HOUR);
    let before = writer.coordinate(key("k"), update("v"), false).await.unwrap().dot;
    let renewal = durable::supersede(Incarnation { generation: 1, id: 1 }, 4, 2);
    writer.renew(&renewal).await.unwrap();
    let after = writer.coordinate(key("k"), update("w"), false).await.unwrap().dot;
    assert_eq!((before.actor.incarnation, after.actor.incarnation), (1, 2));
    assert_eq!(after.counter, 1);
    let minter = writer.stop().await.unwrap();
    assert_eq!(minter.incarnation(), Incarnation { generation: 5, id: 2 });
    store.memory.crash();
    durable::stop(&store, &minter).unwrap();
    assert_eq!(
        durable::start(&store, 3).unwrap().incarnation,
        Incarnation { generation: 5, id: 2 }
    );
}
