//! The foreground comes first (§6.5; D66): a runner in simulated time, with a foreground as slow as the test says.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use dynamo_core::admission::{Admission, IDLE_MS, Limits, SAMPLES_MIN, SLICE_MS, Slice, Task, WINDOW_MS};

const TARGET_US: u64 = 10_000;
const LIMITS: Limits = Limits {
    target_us: TARGET_US,
    operations: 1000,
    bytes: 1 << 20,
    floor: 50,
};

/// A node: a foreground of 200 requests a second, and a runner that works as it is told.
struct World {
    admission: Admission,
    now_ms: u64,
    /// Of the foreground, microseconds; none: it is silent.
    latency_us: Option<u64>,
    /// What one operation of each task costs.
    operation_bytes: BTreeMap<Task, u64>,
    runs_ms: u64,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            admission: Admission::new(limits),
            // Any origin of the clock will do.
            now_ms: 987_654_321,
            latency_us: None,
            operation_bytes: Task::ALL.map(|task| (task, 100)).into(),
            runs_ms: 0,
        }
    }

    /// Operations that each task got done in that time.
    fn run(&mut self, duration_ms: u64) -> BTreeMap<Task, u64> {
        let mut done = BTreeMap::new();
        let end_ms = self.now_ms + duration_ms;
        while self.now_ms < end_ms {
            if let Some(latency_us) = self.latency_us.filter(|_| self.now_ms.is_multiple_of(5)) {
                self.admission.foreground(latency_us, self.now_ms);
            }
            if self.runs_ms <= self.now_ms {
                let slice = self.admission.slice(self.now_ms);
                self.runs_ms = self.now_ms + self.work(&slice, &mut done);
            }
            self.now_ms += 1;
        }
        done
    }

    fn work(&mut self, slice: &Slice, done: &mut BTreeMap<Task, u64>) -> u64 {
        let Some(task) = slice.task else {
            assert!(slice.wait_ms > 0 && slice.operations == 0);
            return slice.wait_ms;
        };
        assert!(slice.operations >= 1 && slice.bytes >= 1);
        let each = self.operation_bytes[&task];
        let operations = slice.operations.min((slice.bytes / each).max(1));
        self.admission.done(slice, operations, operations * each);
        *done.entry(task).or_default() += operations;
        1
    }
}

fn sum(done: &BTreeMap<Task, u64>) -> u64 {
    done.values().sum()
}

#[test]
fn d66_without_a_foreground_background_work_runs_at_its_maximum() {
    let mut world = World::new(LIMITS);
    world.admission.want(Task::Exchange, true);
    world.run(1000);
    let done = sum(&world.run(10_000));
    assert!(
        (9_900..=10_100).contains(&done),
        "{done} in 10 s at 1000 a second"
    );
    assert_eq!(world.admission.p99_us(world.now_ms), None);
    assert_eq!(world.admission.level(world.now_ms), 1000);
}

#[test]
fn d66_bytes_are_bounded_as_operations_are() {
    let mut world = World::new(LIMITS);
    world.operation_bytes.insert(Task::Recovery, 64 << 10);
    world.admission.want(Task::Recovery, true);
    world.run(1000);
    let done = sum(&world.run(10_000));
    assert!(
        (155..=165).contains(&done),
        "{done} of 64 KiB in 10 s at 1 MiB a second"
    );
}

#[test]
fn d66_background_gives_way_within_seconds_and_comes_back_slowly() {
    let mut world = World::new(LIMITS);
    world.admission.want(Task::Exchange, true);
    world.latency_us = Some(TARGET_US / 2);
    world.run(10_000);
    let before = sum(&world.run(5_000));
    assert!(before >= 4_900, "a fast foreground costs nothing: {before}");

    // 2 % of the last minute's latencies are above the target after about a second.
    world.latency_us = Some(TARGET_US * 3);
    world.run(6_000);
    let during = sum(&world.run(5_000));
    assert!((200..=300).contains(&during), "the floor, 5 %: {during} in 5 s");

    // It stays so until the slow minute is over, and then grows for half a minute.
    world.latency_us = Some(TARGET_US / 2);
    world.run(30_000);
    assert_eq!(world.admission.level(world.now_ms), 50, "the minute is not over");
    world.run(WINDOW_MS - 30_000);
    let levels: Vec<u32> = (0..45)
        .map(|_| {
            world.run(1000);
            world.admission.level(world.now_ms)
        })
        .collect();
    assert!(
        levels
            .windows(2)
            .all(|pair| pair[0] <= pair[1] && pair[1] - pair[0] <= 30),
        "{levels:?}"
    );
    assert!(levels[5] < 300 && levels[44] == 1000, "{levels:?}");
}

#[test]
fn d66_one_percent_slower_is_the_p99_and_no_less() {
    for (slow_of_1000, gives_way) in [(5, false), (20, true)] {
        let mut admission = Admission::new(LIMITS);
        for at in 0..10_000u64 {
            let latency_us = if at % 1000 < slow_of_1000 { 50_000 } else { 1_000 };
            admission.foreground(latency_us, at);
        }
        assert_eq!(
            admission.level(10_000) < 1000,
            gives_way,
            "{slow_of_1000} of 1000 are slow"
        );
        let p99 = admission.p99_us(10_000).unwrap();
        let expected = if gives_way { 50_000 } else { 1_000 };
        assert!((expected..=expected * 9 / 8).contains(&p99), "{p99}");
    }
}

#[test]
fn d66_latencies_older_than_a_minute_do_not_count() {
    let mut admission = Admission::new(LIMITS);
    for at in 0..100 {
        admission.foreground(500_000, 1000 + at);
    }
    assert!(admission.p99_us(WINDOW_MS).is_some());
    assert_eq!(admission.p99_us(WINDOW_MS + 3000), None);
    assert_eq!(admission.level(WINDOW_MS + 3000), 1000, "no foreground any more");
    // The same after an hour's pause in which nobody asked.
    let mut paused = Admission::new(LIMITS);
    for at in 0..100 {
        paused.foreground(500_000, 1000 + at);
    }
    assert_eq!(paused.level(3_600_000), 1000);
}

#[test]
fn d66_a_few_requests_are_no_foreground() {
    let mut admission = Admission::new(LIMITS);
    for _ in 0..SAMPLES_MIN - 1 {
        admission.foreground(1_000_000, 100);
    }
    assert_eq!(admission.level(5000), 1000);
    admission.foreground(1_000_000, 5000);
    assert_eq!(admission.level(6000), 500);
}

#[test]
fn d66_nothing_starves_at_the_floor() {
    // One operation a second at most and one thousandth of it left: still one in a quarter of an hour.
    let mut world = World::new(Limits {
        operations: 1,
        floor: 1,
        ..LIMITS
    });
    world.latency_us = Some(TARGET_US * 10);
    world.admission.want(Task::Reap, true);
    world.run(20_000);
    assert_eq!(world.admission.level(world.now_ms), 1);
    let done = sum(&world.run(2_100_000));
    assert!((2..=3).contains(&done), "{done} in 35 minutes");
}

#[test]
fn d66_tasks_share_alike_also_at_the_floor() {
    for latency_us in [None, Some(TARGET_US * 10)] {
        let mut world = World::new(LIMITS);
        world.latency_us = latency_us;
        for task in Task::ALL {
            world.admission.want(task, true);
        }
        world.run(10_000);
        let done = world.run(100_000);
        let mean = sum(&done) / 5;
        assert!(mean > 500, "{done:?}");
        for task in Task::ALL {
            assert!(done[&task].abs_diff(mean) <= mean / 20, "{task:?} of {done:?}");
        }
    }
}

#[test]
fn d66_shares_are_of_cost_not_of_turns() {
    let mut world = World::new(LIMITS);
    // Of the budget of bytes, one operation of Recovery takes 16 times what it takes of operations.
    world.operation_bytes = BTreeMap::from([(Task::Hints, 0), (Task::Recovery, 16 << 10)]);
    world.operation_bytes.insert(Task::Hints, 1);
    world.admission.want(Task::Hints, true);
    world.admission.want(Task::Recovery, true);
    world.run(1000);
    let done = world.run(60_000);
    let ratio = done[&Task::Hints] / done[&Task::Recovery].max(1);
    assert!((14..=18).contains(&ratio), "{done:?}");
}

#[test]
fn d66_a_paused_task_gets_nothing_and_saves_up_nothing() {
    let mut world = World::new(LIMITS);
    world.admission.want(Task::Hints, true);
    world.admission.want(Task::Scrub, true);
    world.admission.pause(Task::Scrub, true);
    assert!(world.admission.paused(Task::Scrub) && !world.admission.paused(Task::Hints));
    let done = world.run(20_000);
    assert_eq!(done.get(&Task::Scrub), None);
    assert!(done[&Task::Hints] > 19_000, "the others have it all: {done:?}");
    world.admission.pause(Task::Scrub, false);
    let done = world.run(10_000);
    assert!(
        done[&Task::Hints].abs_diff(done[&Task::Scrub]) < 300,
        "no catching up: {done:?}"
    );
    // All paused: nothing at all.
    world.admission.pause(Task::Scrub, true);
    world.admission.pause(Task::Hints, true);
    assert_eq!(world.run(5_000), BTreeMap::new());
    assert_eq!(world.admission.slice(world.now_ms).wait_ms, IDLE_MS);
}

#[test]
fn d66_who_was_idle_has_no_claim_to_the_time_before() {
    let mut world = World::new(LIMITS);
    world.admission.want(Task::Hints, true);
    world.run(60_000);
    world.admission.want(Task::Reap, true);
    let done = world.run(10_000);
    assert!(done[&Task::Hints].abs_diff(done[&Task::Reap]) < 300, "{done:?}");
    world.admission.want(Task::Hints, false);
    let done = world.run(2000);
    assert_eq!(done.get(&Task::Hints), None);
}

#[test]
fn d66_what_a_slice_cost_too_much_is_paid_for_and_what_it_left_is_kept() {
    let mut admission = Admission::new(LIMITS);
    admission.want(Task::Recovery, true);
    let at = 1_000_000;
    let slice = admission.slice(at);
    assert_eq!(
        (slice.operations, slice.bytes),
        (1000 * SLICE_MS / 1000, (1 << 20) / 10)
    );
    // Ten times the bytes: a second's worth.
    admission.done(&slice, 1, slice.bytes * 10);
    let next = admission.slice(at + 1);
    assert_eq!((next.task, next.wait_ms > 800), (None, true));
    let next = admission.slice(at + 1001);
    assert_eq!(next.task, Some(Task::Recovery));
    // Nothing was used: it can be had again at once.
    admission.done(&next, 0, 0);
    let again = admission.slice(at + 1001);
    assert_eq!(again, next);
}
