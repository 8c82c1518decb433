//! Processes that are killed, and power that goes.

use proptest::prelude::*;

use super::*;

/// D39: a killed process takes nothing that it had acknowledged, synced or not.
#[tokio::test]
async fn a_kill_takes_nothing_that_was_acknowledged() {
    for durability in [Durability::Every, HOUR] {
        let mut subject = Rocks::create();
        for life in 1..4u64 {
            let options = WriterOptions {
                durability,
                caps: SiblingCaps::NONE,
                free_bytes_min: None,
            };
            let store: Arc<dyn Store> = subject.store.clone();
            let (writer, _failure) = Writer::start(store, minter(life), options).unwrap();
            for name in ["1", "2", "3"] {
                put(&writer, name, "v").await.unwrap();
            }
            // Further writes are under way when the process dies.
            let _unanswered = [submit_put(&writer, "4").await, submit_put(&writer, "5").await];
            subject.kill();
            for name in ["1", "2", "3"] {
                let state = records::read(subject.store(), &key(name)).unwrap().unwrap();
                assert_eq!(state.siblings().len() as u64, life, "{durability:?}");
            }
        }
    }
}

/// One write of a random schedule.
#[derive(Debug, Clone)]
struct Step {
    key: u8,
    coordinates: bool,
    sync: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0u8..4, any::<bool>(), prop::bool::weighted(0.3));
    prop::collection::vec(
        step.prop_map(|(key, coordinates, sync)| Step {
            key,
            coordinates,
            sync,
        }),
        1..40,
    )
}

/// Runs a schedule of concurrent writes until the power goes at the given call to the store; returns what was
/// acknowledged as durable.
async fn run_until_power_loss(
    store: &TestStore,
    durability: Durability,
    steps: Vec<Step>,
    calls: u64,
) -> Vec<(DataKey, Dot)> {
    let (writer, _failure) = start(store, durability);
    store.set(|state| state.calls_left = Some(calls));
    let mut tasks = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        let writer = writer.clone();
        let task = async move {
            let key = key(&step.key.to_string());
            let committed = if step.coordinates {
                let prepared = writer
                    .coordinate(key.clone(), update("v"), step.sync)
                    .await
                    .ok()?;
                (prepared.dot, prepared.committed().await.ok()?)
            } else {
                let counter = number as u64 + 1;
                let delta = delta("m", counter);
                let dot = *delta.siblings().keys().max()?;
                (dot, writer.merge(key.clone(), delta, step.sync).await.ok()?)
            };
            assert!(committed.1.durable || !step.sync, "asked for a sync, got none");
            committed.1.durable.then_some((key, committed.0))
        };
        tasks.push(submit(task).await);
        if number % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut acknowledged = Vec::new();
    for task in tasks {
        acknowledged.extend(task.await.unwrap());
    }
    drop(writer);
    until("the thread has ended", || Arc::strong_count(&store.control) == 1).await;
    acknowledged
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// D34, D39: the loss of power at any moment takes no write that was acknowledged as durable, leaves no record
    /// apart from its epoch entry, and the next life never gives a dot again.
    #[test]
    fn the_loss_of_power_takes_nothing_that_was_acknowledged(
        steps in steps(),
        calls in 0u64..60,
        kept in 0usize..20,
        every in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let store = TestStore::default();
        let durability = if every { Durability::Every } else { HOUR };
        let acknowledged = runtime.block_on(run_until_power_loss(&store, durability, steps, calls));
        store.memory.crash_keeping(kept);
        for (key, dot) in acknowledged {
            prop_assert!(store.state(&key).seen().contains(&dot), "{key:?} lost {dot}");
        }
        for number in 0..4 {
            let key = key(&number.to_string());
            let Some(state) = records::read(&store.memory, &key).unwrap() else { continue };
            let given = state.seen().entries().filter(|entry| entry.actor.incarnation == 1).count();
            let entry = records::read_epoch(&store.memory, &(&key).into()).unwrap();
            prop_assert_eq!(given, usize::from(entry.is_some()));
            if let Some(entry) = entry {
                prop_assert_eq!(state.seen().counter_max(entry.actor), entry.counter);
            }
        }
    }
}
