//! Nothing comes back and nothing is lost, in all histories; and each mistake is found by the same search.

use super::model::{Budget, Found, Job, Mistake, Model};

const CALM: Budget = Budget {
    rounds: 1,
    crashes: 0,
    disks: 0,
    pushes: 0,
    attempts: 0,
    copies: 0,
};

fn search(job: Job, mistake: Mistake, budget: Budget) -> Found {
    let found = Model { job, mistake }.search(budget);
    println!(
        "{job:?} {mistake:?}: {} worlds, {} removed, {} zombies",
        found.worlds, found.removed, found.zombies
    );
    found
}

/// No violation, and the search did reach removals.
fn assert_safe(job: Job, budget: Budget) {
    let found = search(job, Mistake::None, budget);
    assert_eq!(found.violation, None);
    assert!(
        found.removed > 100,
        "removed in {} of {} worlds only",
        found.removed,
        found.worlds
    );
}

/// The budget is enough for this mistake to show; that nothing shows without the mistake, `assert_safe` has seen.
fn assert_found(job: Job, mistake: Mistake, budget: Budget, expected: &str) {
    let violation = search(job, mistake, budget).violation.unwrap_or_default();
    assert!(violation.starts_with(expected), "{mistake:?}: {violation:?}");
    assert!(budget == CALM || troubles().contains(&budget));
}

/// One of each kind of trouble, beside the calm.
fn troubles() -> [Budget; 6] {
    [
        Budget { rounds: 2, ..CALM },
        Budget { crashes: 1, ..CALM },
        Budget { disks: 1, ..CALM },
        Budget { pushes: 1, ..CALM },
        Budget { attempts: 1, ..CALM },
        Budget { copies: 1, ..CALM },
    ]
}

#[test]
fn d55_no_deleted_value_comes_back_and_no_recreated_one_is_lost() {
    for budget in troubles() {
        assert_safe(Job::Reap, budget);
    }
}

#[test]
fn d51_no_overwritten_value_comes_back_after_truncation() {
    for budget in troubles() {
        assert_safe(Job::Truncate, budget);
    }
}

#[test]
fn d55_a_lost_disk_and_a_late_second_delivery_bring_nothing_back() {
    assert_safe(
        Job::Reap,
        Budget {
            disks: 1,
            attempts: 1,
            ..CALM
        },
    );
}

#[test]
fn z2_forced_past_a_hint_a_recreated_value_still_survives_its_late_arrival() {
    let budget = Budget { attempts: 1, ..CALM };
    let found = search(Job::Reap, Mistake::Forced, budget);
    assert_eq!(found.violation, None);
    assert!(
        found.zombies > 0,
        "the hook was never needed: no hint came after a removal"
    );
}

#[test]
fn reaping_by_time_alone_is_found() {
    assert_found(Job::Reap, Mistake::TimeOnly, CALM, "v is back");
    assert_found(Job::Truncate, Mistake::TimeOnly, CALM, "v is back");
}

#[test]
fn reaping_without_asking_absent_members_is_found() {
    assert_found(Job::Reap, Mistake::AbsentMembersNotAsked, CALM, "v is back");
    assert_found(Job::Truncate, Mistake::AbsentMembersNotAsked, CALM, "v is back");
}

#[test]
fn a_mark_that_outlives_a_merge_is_found() {
    assert_found(Job::Reap, Mistake::MarkNotCleared, CALM, "w is lost");
}

#[test]
fn truncation_inside_a_merge_is_found() {
    assert_found(Job::Truncate, Mistake::TruncationInMerge, CALM, "v is back");
}

#[test]
fn a_prepare_that_does_not_look_again_is_found() {
    assert_found(Job::Reap, Mistake::OnePhase, CALM, "w is lost");
    let attempt = Budget { attempts: 1, ..CALM };
    assert_found(Job::Reap, Mistake::PrepareNotQuiet, attempt, "v is back");
}

#[test]
fn quiet_that_counts_changes_only_is_found() {
    let attempt = Budget { attempts: 1, ..CALM };
    assert_found(Job::Reap, Mistake::ChangesOnly, attempt, "v is back");
}

#[test]
fn a_mark_that_is_not_synced_is_found() {
    let crash = Budget { crashes: 1, ..CALM };
    assert_found(Job::Reap, Mistake::PrepareNotSynced, crash, "v is back");
}

#[test]
fn a_grace_shorter_than_a_message_s_life_is_found() {
    assert_found(Job::Reap, Mistake::ShortGrace, CALM, "v is back");
}

#[test]
fn dots_given_again_after_a_removal_are_found() {
    let push = Budget { pushes: 1, ..CALM };
    assert_found(Job::Reap, Mistake::DotsAgain, push, "w is lost");
}
