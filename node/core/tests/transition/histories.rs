//! Random histories, with every rule kept and with each one broken.

use super::model::{Counts, Mistake, World};

fn run(seed: u64, mistake: Mistake) -> (Counts, Option<String>) {
    let mut world = World::new(seed, mistake);
    world.storm(200);
    let calm = world.calm();
    (world.counts, (!calm).then(|| world.held_up()))
}

#[test]
fn nothing_is_stale_and_everything_ends_in_one_ring() {
    let mut all = Counts::default();
    for seed in 0..1000 {
        let (counts, held_up) = run(seed, Mistake::None);
        assert_eq!(counts.stale, 0, "seed {seed}: {counts:?}");
        assert_eq!(held_up, None, "seed {seed}: {counts:?}");
        all.add(counts);
    }
    println!("{all:?}");
    assert!(
        all.reads > 30_000 && all.retired > 100 && all.locked > 100 && all.lost_disks > 1000,
        "{all:?}"
    );
}

/// A few histories from one of those that showed it are enough.
fn found(mistake: Mistake, from: u64) {
    let stale = (from..from + 100).find(|seed| run(*seed, mistake).0.stale > 0);
    assert!(stale.is_some(), "{mistake:?} is not found");
}

#[test]
fn a_sync_that_begins_before_all_are_known_is_found() {
    found(Mistake::SyncsBeforeAllAreKnown, 19);
}

#[test]
fn known_with_older_writes_in_flight_is_found() {
    found(Mistake::KnownWithOldWritesInFlight, 27);
}

#[test]
fn writes_to_the_base_that_stop_before_all_read_are_found() {
    found(Mistake::StopsWritingToTheBaseBeforeAllRead, 4);
}

#[test]
fn a_superseded_ring_that_is_dropped_at_once_is_found() {
    found(Mistake::DropsASupersededRingAtOnce, 165);
}

#[test]
fn a_proposal_by_one_who_reads_is_found() {
    found(Mistake::ProposesAlthoughItReads, 5154);
}

#[test]
fn a_suspect_member_that_answers_reads_is_found() {
    found(Mistake::CountsSuspectReads, 2);
}

#[test]
fn a_suspect_source_is_found() {
    found(Mistake::PullsFromSuspects, 29);
}

#[test]
fn a_recovery_before_the_longest_deadline_is_found() {
    found(Mistake::RecoversBeforeTheLongestDeadline, 135);
}

#[test]
fn an_emptied_member_that_takes_part_as_if_it_remembered_is_found() {
    found(Mistake::ForgetsThatItForgot, 2506);
}
