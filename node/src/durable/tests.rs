use std::collections::BTreeSet;

use dynamo_core::{
    replica::{self, Update},
    version::{Content, Dot, Seen, Stamp},
};
use proptest::prelude::*;

use super::*;
use crate::storage::{
    conformance::{Memory, Rocks, Subject},
    memory::MemoryStore,
};

const CLUSTER: ClusterId = ClusterId(*b"0123456789abcdef");

fn who() -> Identity {
    Identity {
        cluster: CLUSTER,
        member: MemberId::new("node-1").unwrap(),
        zone: Zone::new("eu-1").unwrap(),
        weight: 100,
    }
}

fn write(store: &dyn Store, batch: Batch) {
    store.write(batch, true).unwrap();
}

fn stored(store: &dyn Store, key: &[u8]) -> Option<Bytes> {
    store.get(Space::Meta, key).unwrap()
}

/// Stops cleanly as if `epochs` records had been coordinated since the start.
fn stop_after(store: &dyn Store, started: &Started, epochs: u64) {
    stop(
        store,
        &Minter::new(started.incarnation, started.next_epoch + epochs),
    )
    .unwrap();
}

/// The layouts are on users' disks: this test may grow, never change.
#[test]
fn the_layouts_never_change() {
    let store = MemoryStore::new();
    let started = start(&store, 0x0102_0304_0506_0708).unwrap();
    write(&store, identity(&who()));
    write(&store, view(b"view bytes"));
    write(&store, seeds(b"a:7701,b:7701"));
    stop_after(&store, &started, 299);
    let check = |key: &[u8], expected: &[u8]| {
        let value = stored(&store, key).unwrap();
        assert_eq!(value.as_ref(), expected, "{}", value.escape_ascii());
    };
    check(
        meta::IDENTITY,
        b"\x01\xa7\x5cTR0123456789abcdef\x06node-1\x04eu-1d",
    );
    check(
        meta::INCARNATION,
        b"\x01-\xcc\xa9\x14\x01\x01\x02\x03\x04\x05\x06\x07\x08",
    );
    check(meta::STARTS, b"\x01\xbe\xd5x\xa3\x01");
    check(
        meta::CLEAN_STOP,
        b"\x01~%\xea\xe9\x01\x01\x02\x03\x04\x05\x06\x07\x08\x01\xac\x02",
    );
    check(meta::VIEW, b"\x01\x5cAJ\xe8view bytes");
    write(&store, suspect(b"progress"));
    check(meta::SUSPECT, b"\x01\xbb\x67\xc1\xc4progress");
    check(meta::SEEDS, b"\x01\xf4\xe2\xf2]a:7701,b:7701");
}

macro_rules! on_both {
    ($($name:ident)*) => {
        mod memory {
            use super::*;
            $(#[test] fn $name() { super::$name(&mut Memory::create()); })*
        }
        mod rocks {
            use super::*;
            $(#[test] fn $name() { super::$name(&mut Rocks::create()); })*
        }
    };
}

on_both! {
    an_empty_directory_begins_the_first_life
    a_clean_restart_keeps_the_life
    a_kill_begins_another_life
    a_start_is_on_disk_before_it_returns
    who_the_node_is_survives
    a_start_reports_what_it_recovered
    an_empty_store_stays_fresh_until_a_peer_confirms_it
    a_suspect_store_stays_suspect_until_it_is_trusted
}

/// What peers compare with what they remember.
fn a_start_reports_what_it_recovered(subject: &mut impl Subject) {
    let first = start(subject.store(), 7).unwrap();
    write(subject.store(), view(b"1"));
    write(subject.store(), view(b"2"));
    write(subject.store(), confirmed());
    let synced = subject.store().sequence();
    assert!(first.fresh && first.recovered < synced);
    subject.kill();
    let second = start(subject.store(), 8).unwrap();
    let told = |started: &Started| (started.previous, started.recovered, started.fresh);
    assert_eq!(told(&second), (Some(first.incarnation), synced, false));
    assert_eq!(second.since, []);
    // As long as no peer has compared it, that stays the question, and every life since is remembered.
    subject.kill();
    let third = start(subject.store(), 9).unwrap();
    assert_eq!(told(&third), (Some(first.incarnation), synced, false));
    assert_eq!(third.since, [second.incarnation]);
    stop_after(subject.store(), &third, 0);
    let kept = start(subject.store(), 10).unwrap();
    assert_eq!(kept.incarnation, third.incarnation);
    assert_eq!(kept.since, [second.incarnation, third.incarnation]);
    subject.kill();
    let fourth = start(subject.store(), 11).unwrap();
    assert_eq!(told(&fourth), (Some(first.incarnation), synced, false));
    assert_eq!(fourth.since, kept.since);
    write(subject.store(), confirmed());
    stop_after(subject.store(), &fourth, 0);
    let fifth = start(subject.store(), 12).unwrap();
    assert_eq!((fifth.previous, fifth.fresh), (None, false));
    assert_eq!(fifth.since, []);
    assert!(fifth.recovered > synced);
}

/// A store that was emptied is as good as new until a peer has said what it remembers, however often it is started.
fn an_empty_store_stays_fresh_until_a_peer_confirms_it(subject: &mut impl Subject) {
    assert!(start(subject.store(), 7).unwrap().fresh);
    subject.kill();
    let second = start(subject.store(), 8).unwrap();
    assert_eq!((second.fresh, second.previous), (true, None));
    write(subject.store(), confirmed());
    subject.kill();
    assert!(!start(subject.store(), 9).unwrap().fresh);
}

fn a_suspect_store_stays_suspect_until_it_is_trusted(subject: &mut impl Subject) {
    let suspicion = |subject: &dyn Store| start(subject, 7).unwrap().suspect;
    write(subject.store(), suspect(b""));
    subject.kill();
    assert_eq!(suspicion(subject.store()).as_deref(), Some(&b""[..]));
    write(subject.store(), suspect(b"half"));
    subject.kill();
    assert_eq!(suspicion(subject.store()).as_deref(), Some(&b"half"[..]));
    write(subject.store(), trusted());
    subject.kill();
    assert_eq!(suspicion(subject.store()), None);
}

fn an_empty_directory_begins_the_first_life(subject: &mut impl Subject) {
    let found = subject.store().sequence();
    let started = start(subject.store(), 7).unwrap();
    let expected = Started {
        identity: None,
        incarnation: Incarnation { generation: 1, id: 7 },
        next_epoch: 1,
        starts: 1,
        life: Life::First,
        previous: None,
        since: Vec::new(),
        recovered: found,
        fresh: true,
        suspect: None,
        view: None,
        seeds: None,
    };
    assert_eq!(started, expected);
    assert_eq!(
        (started.minter().incarnation(), started.minter().next_epoch()),
        (expected.incarnation, 1)
    );
}

fn a_clean_restart_keeps_the_life(subject: &mut impl Subject) {
    let first = start(subject.store(), 7).unwrap();
    stop_after(subject.store(), &first, 41);
    subject.kill();
    let second = start(subject.store(), 8).unwrap();
    assert_eq!((second.incarnation, second.life), (first.incarnation, Life::Kept));
    assert_eq!((second.next_epoch, second.starts), (42, 2));
    stop_after(subject.store(), &second, 0);
    let third = start(subject.store(), 9).unwrap();
    assert_eq!(
        (third.incarnation, third.next_epoch, third.starts),
        (first.incarnation, 42, 3)
    );
}

fn a_kill_begins_another_life(subject: &mut impl Subject) {
    start(subject.store(), 7).unwrap();
    subject.kill();
    let second = start(subject.store(), 8).unwrap();
    assert_eq!(second.incarnation, Incarnation { generation: 2, id: 8 });
    assert_eq!((second.next_epoch, second.starts), (1, 2));
    assert_eq!(
        second.life,
        Life::Renewed {
            because: "the last stop was not clean"
        }
    );
    stop_after(subject.store(), &second, 1);
    // A clean stop counts once: the kill after the next start is a kill.
    start(subject.store(), 9).unwrap();
    subject.kill();
    assert_eq!(
        start(subject.store(), 10).unwrap().incarnation,
        Incarnation {
            generation: 3,
            id: 10
        }
    );
}

fn a_start_is_on_disk_before_it_returns(subject: &mut impl Subject) {
    let first = start(subject.store(), 7).unwrap();
    stop_after(subject.store(), &first, 0);
    assert!(stored(subject.store(), meta::CLEAN_STOP).is_some());
    start(subject.store(), 8).unwrap();
    assert_eq!(stored(subject.store(), meta::CLEAN_STOP), None);
}

fn who_the_node_is_survives(subject: &mut impl Subject) {
    start(subject.store(), 7).unwrap();
    write(subject.store(), identity(&who()));
    write(subject.store(), view(b"whom it knew"));
    write(subject.store(), seeds(b"a:7701"));
    subject.kill();
    let started = start(subject.store(), 8).unwrap();
    assert_eq!(started.identity, Some(who()));
    assert_eq!(started.view.as_deref(), Some(&b"whom it knew"[..]));
    assert_eq!(started.seeds.as_deref(), Some(&b"a:7701"[..]));
}

#[test]
fn the_loss_of_power_after_a_start_cannot_bring_the_marker_back() {
    let store = MemoryStore::new();
    stop_after(&store, &start(&store, 7).unwrap(), 0);
    start(&store, 8).unwrap();
    store.crash();
    assert_eq!(
        start(&store, 9).unwrap().incarnation,
        Incarnation { generation: 2, id: 9 }
    );
}

/// What an administrator may do to a data directory.
#[test]
fn a_marker_that_proves_nothing_begins_another_life() {
    let renewed = |alter: &dyn Fn(&MemoryStore), expected| {
        let store = MemoryStore::new();
        stop_after(&store, &start(&store, 7).unwrap(), 5);
        alter(&store);
        let started = start(&store, 8).unwrap();
        assert_eq!(started.incarnation, Incarnation { generation: 2, id: 8 });
        assert_eq!(started.life, Life::Renewed { because: expected });
    };
    let marker = |version, payload: &[u8]| {
        let mut batch = Batch::new();
        let value = format::seal(version, meta::CLEAN_STOP, payload);
        batch.put(Space::Meta, meta::CLEAN_STOP, value);
        batch
    };
    let other_start = |store: &MemoryStore| write(store, one(meta::STARTS, &varint(2)));
    renewed(
        &other_start,
        "the marker of the last stop belongs to another start",
    );
    let other_life = |store: &MemoryStore| {
        write(
            store,
            supersede(Incarnation { generation: 0, id: 7 }, 0, 77).batch(),
        );
    };
    renewed_generation(&other_life);
    renewed(
        &|store| write(store, marker(1, b"\x01")),
        "the marker of the last stop is not one",
    );
    renewed(
        &|store| write(store, marker(2, b"?")),
        "the marker of the last stop cannot be read",
    );
    let flip = |store: &MemoryStore| {
        let mut value = stored(store, meta::CLEAN_STOP).unwrap().to_vec();
        *value.last_mut().unwrap() ^= 1;
        let mut batch = Batch::new();
        batch.put(Space::Meta, meta::CLEAN_STOP, value);
        write(store, batch);
    };
    renewed(&flip, "the marker of the last stop cannot be read");
}

fn renewed_generation(alter: &dyn Fn(&MemoryStore)) {
    let store = MemoryStore::new();
    stop_after(&store, &start(&store, 7).unwrap(), 5);
    alter(&store);
    let started = start(&store, 8).unwrap();
    assert_eq!((started.incarnation.id, started.next_epoch), (8, 1));
}

#[test]
fn damaged_or_missing_records_keep_the_node_from_starting() {
    for key in [meta::IDENTITY, meta::INCARNATION, meta::STARTS, meta::VIEW] {
        let store = MemoryStore::new();
        start(&store, 7).unwrap();
        write(&store, identity(&who()));
        write(&store, view(b"view"));
        let mut value = stored(&store, key).unwrap().to_vec();
        value[1] ^= 1;
        let mut batch = Batch::new();
        batch.put(Space::Meta, key, value);
        write(&store, batch);
        let error = start(&store, 8).unwrap_err();
        assert!(
            matches!(error, DurableError::Store(StoreError::Damaged { .. })),
            "{error}"
        );
    }
    for key in [meta::INCARNATION, meta::STARTS] {
        let store = MemoryStore::new();
        start(&store, 7).unwrap();
        let mut batch = Batch::new();
        batch.delete(Space::Meta, key);
        write(&store, batch);
        assert!(matches!(start(&store, 8), Err(DurableError::Inconsistent(_))));
    }
    let store = MemoryStore::new();
    write(&store, one(meta::IDENTITY, b"too short"));
    let error = start(&store, 7).unwrap_err();
    assert_eq!(
        error.to_string(),
        "reading the identity record: the input ends inside a field"
    );
}

#[test]
fn a_stop_needs_the_stored_life() {
    let store = MemoryStore::new();
    let minter = |id| Minter::new(Incarnation { generation: 1, id }, 1);
    assert!(matches!(
        stop(&store, &minter(7)),
        Err(DurableError::Inconsistent(_))
    ));
    start(&store, 7).unwrap();
    assert!(matches!(
        stop(&store, &minter(8)),
        Err(DurableError::Inconsistent(_))
    ));
    assert_eq!(stored(&store, meta::CLEAN_STOP), None);
}

#[test]
fn a_superseded_life_is_followed_by_one_newer_than_any_that_peers_remember() {
    let current = Incarnation { generation: 3, id: 1 };
    let generation = |remembered| supersede(current, remembered, 9).incarnation.generation;
    assert_eq!((generation(2), generation(3), generation(8)), (4, 4, 9));
    let renewal = supersede(current, 8, 9);
    assert_eq!(
        (renewal.minter().incarnation(), renewal.minter().next_epoch()),
        (renewal.incarnation, 1)
    );
}

/// How one life ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Clean,
    Kill,
    PowerLoss,
    /// The stop marker is on disk, the process is killed in its next start.
    KilledInNextStart,
}

fn ending() -> impl Strategy<Value = Ending> {
    prop::sample::select(vec![
        Ending::Clean,
        Ending::Kill,
        Ending::PowerLoss,
        Ending::KilledInNextStart,
    ])
}

proptest! {
    /// However lives end, and whatever they had synced, no dot is given twice; generations and starts only grow.
    #[test]
    fn no_dot_is_ever_given_twice(lives in prop::collection::vec((ending(), 0u64..4), 1..12)) {
        let store = MemoryStore::new();
        let mut dots = BTreeSet::new();
        let mut last: Option<Started> = None;
        for (id, (ending, records)) in (100..).zip(lives) {
            let started = start(&store, id).unwrap();
            if let Some(last) = last {
                prop_assert!(started.starts > last.starts);
                prop_assert!(started.incarnation.generation >= last.incarnation.generation);
            }
            let mut minter = started.minter();
            for _ in 0..records {
                prop_assert!(dots.insert(coordinated(&mut minter)));
            }
            match ending {
                Ending::Clean => stop(&store, &minter).unwrap(),
                Ending::Kill => {}
                Ending::PowerLoss => store.crash(),
                Ending::KilledInNextStart => {
                    stop(&store, &minter).unwrap();
                    start(&store, id + 1000).unwrap();
                }
            }
            last = Some(started);
        }
    }
}

/// The dot of a record's first write; nothing of it is stored.
fn coordinated(minter: &mut Minter) -> Dot {
    let update = Update {
        content: Content::Tombstone,
        context: Seen::new(),
        op_id: None,
        stamp: Stamp(1),
        expires_at_ms: None,
    };
    replica::coordinate(None, None, minter, update, replica::SiblingCaps::NONE)
        .unwrap()
        .dot
}
