//! Disks that say that they failed, or are full.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dynamo_core::version::Seen;
use dynamo_fault_fs::{Fault, Unsynced};
use dynamo_node::{
    durable::{self, Life},
    storage::{
        Store, Writer,
        writer::{Committed, Durability, WriteError},
    },
};

use crate::harness::{HOUR, Machine, close, key, number, options, runtime, states, update};

async fn put(writer: &Writer, place: u8) -> Result<Committed, WriteError> {
    let update = update(u64::from(place), 100, Seen::new());
    writer
        .coordinate(key(place), update, false)
        .await?
        .committed()
        .await
}

fn numbers(store: &dyn Store) -> BTreeMap<u8, u64> {
    let states = states(store, 100);
    states.iter().map(|(key, state)| (*key, number(state))).collect()
}

/// D34, rule 6 of `Store`: after a failed write or sync nothing is ever acknowledged again, though the disk be well
/// again; the next start finds what was acknowledged.
#[test]
fn after_a_failed_write_or_sync_the_writer_never_acknowledges_again() {
    let cases = [
        (Fault::Syncs, Durability::Every, true),
        (Fault::Syncs, Durability::Every, false),
        (Fault::Writes, Durability::Every, true),
        (Fault::Writes, Durability::Interval(HOUR), true),
        (Fault::NoSpace, Durability::Every, true),
        (Fault::NoSpace, Durability::Interval(HOUR), true),
    ];
    for (fault, durability, loses_power) in cases {
        let case = format!("{fault:?}, {durability:?}, loses power: {loses_power}");
        let machine = Machine::new();
        let store: Arc<dyn Store> = Arc::new(machine.open().unwrap());
        let first = durable::start(&*store, 7).unwrap();
        let durable = durability == Durability::Every;
        runtime().block_on(async {
            let (writer, mut failure) =
                Writer::start(Arc::clone(&store), first.minter(), options(durability)).unwrap();
            for place in 0..10 {
                assert_eq!(put(&writer, place).await, Ok(Committed { durable }), "{case}");
            }
            machine.fs.fail(fault);
            let failed = put(&writer, 10).await;
            assert!(
                matches!(failed, Err(WriteError::Storage(_))),
                "{case}: {failed:?}"
            );
            let reported = failure.failed().await;
            assert!(reported.to_string().contains("as told"), "{case}: {reported}");
            machine.fs.heal();
            for place in 11..20 {
                let refused = put(&writer, place).await;
                assert!(
                    matches!(refused, Err(WriteError::Storage(_))),
                    "{case}: {refused:?}"
                );
            }
            assert!(
                writer.stop().await.is_err(),
                "{case}: no stop is clean after that"
            );
        });
        close(store);
        if loses_power {
            machine.lose_power(Unsynced::Lost);
        }
        let store = machine.open().unwrap();
        let found = numbers(&store);
        for place in 0..10 {
            let there = found.get(&place) == Some(&u64::from(place));
            assert!(there || !durable, "{case}: {place} is gone");
        }
        assert!(found.keys().all(|place| *place <= 10), "{case}: {found:?}");
        let next = durable::start(&store, 8).unwrap();
        assert!(matches!(next.life, Life::Renewed { .. }), "{case}: {next:?}");
        assert_ne!(next.incarnation, first.incarnation, "{case}");
    }
}

/// D42: in mode interval writes are acknowledged without a sync; when the timer's sync fails that ends.
#[test]
fn in_interval_mode_a_failed_sync_of_the_timer_ends_the_writer() {
    let machine = Machine::new();
    let store: Arc<dyn Store> = Arc::new(machine.open().unwrap());
    let started = durable::start(&*store, 7).unwrap();
    runtime().block_on(async {
        let durability = Durability::Interval(Duration::from_millis(1));
        let (writer, mut failure) =
            Writer::start(Arc::clone(&store), started.minter(), options(durability)).unwrap();
        machine.fs.fail(Fault::Syncs);
        // Acknowledged as not durable, unless its sync was due already.
        assert_ne!(put(&writer, 1).await, Ok(Committed { durable: true }));
        failure.failed().await;
        machine.fs.heal();
        assert!(matches!(put(&writer, 2).await, Err(WriteError::Storage(_))));
    });
    close(store);
    machine.lose_power(Unsynced::Lost);
    assert_eq!(numbers(&machine.open().unwrap()), BTreeMap::new());
}

/// Guarantee 13: a node on a full disk ends instead of going on half; it starts as soon as there is room, and takes
/// writes again.
#[test]
fn a_full_disk_ends_the_writer_and_room_lets_it_start_again() {
    let machine = Machine::new();
    let mut life = 0;
    let mut begin = || {
        life += 1;
        let store: Arc<dyn Store> = Arc::new(machine.open().unwrap());
        let started = durable::start(&*store, life).unwrap();
        let options = options(Durability::Every);
        let (writer, failure) = Writer::start(Arc::clone(&store), started.minter(), options).unwrap();
        (store, writer, failure)
    };
    let runtime = runtime();
    let (store, writer, mut failure) = begin();
    let accepted = runtime.block_on(async {
        machine.fs.fail_after(Fault::NoSpace, 30);
        let mut accepted = 0;
        while put(&writer, accepted).await.is_ok() {
            accepted += 1;
        }
        let reason = failure.failed().await.to_string();
        assert!(reason.contains("No space left"), "{reason}");
        accepted
    });
    drop(writer);
    close(store);
    assert!(accepted > 0);
    let refused = machine.open().map(drop).unwrap_err().to_string();
    assert!(refused.to_lowercase().contains("no space"), "{refused}");
    machine.fs.heal();
    let (store, writer, _failure) = begin();
    assert!(numbers(&*store).len() >= usize::from(accepted));
    runtime.block_on(async {
        assert_eq!(put(&writer, 99).await, Ok(Committed { durable: true }));
    });
}
