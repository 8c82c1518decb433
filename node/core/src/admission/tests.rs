use super::*;

const LIMITS: Limits = Limits {
    operations_per_s_max: 1000,
    operations_per_s_min: 10,
    p99_target_us: 50_000,
};

/// What a task that always has work gets done in a second that begins at `from_ms`.
fn done_in_a_second(admission: &mut Admission, task: Task, from_ms: u64) -> u64 {
    let (mut now_ms, mut done) = (from_ms, 0);
    while now_ms < from_ms + 1000 {
        match admission.take(task, 1, 0, now_ms) {
            Ok(()) => done += 1,
            Err(wait_ms) => now_ms += wait_ms,
        }
    }
    done
}

fn load(admission: &mut Admission, latency_us: u64, from_ms: u64) {
    for request in 0..1000 {
        admission.sample(latency_us, from_ms + request);
    }
}

#[test]
fn an_idle_foreground_leaves_all_the_room() {
    let mut admission = Admission::new(LIMITS);
    for second in 1..5 {
        let done = done_in_a_second(&mut admission, Task::Hints, second * 1000);
        assert!((900..=1110).contains(&done), "{done} in second {second}");
    }
}

/// D66: background work yields within seconds, comes back slowly, and never stops entirely.
#[test]
fn d66_background_work_yields_to_a_slow_foreground_and_comes_back() {
    let mut admission = Admission::new(LIMITS);
    let mut rates = Vec::new();
    for second in 1..=8 {
        load(&mut admission, 80_000, second * 1000);
        rates.push(done_in_a_second(&mut admission, Task::Exchange, second * 1000));
    }
    assert!(rates[7] <= 20, "{rates:?}");
    assert!(rates[7] >= 5, "it never stops: {rates:?}");
    // A minute later the slow requests are forgotten; the rate grows by steps.
    let from_s = 8 + WINDOW_MS / 1000 + 6;
    let first = done_in_a_second(&mut admission, Task::Exchange, from_s * 1000);
    assert!(first <= 200, "{first}");
    let rates: Vec<u64> = (1..=25)
        .map(|second| done_in_a_second(&mut admission, Task::Exchange, (from_s + second) * 1000))
        .collect();
    assert!(rates.is_sorted_by(|a, b| *a <= *b + 20), "{rates:?}");
    assert!(rates[24] >= 900, "{rates:?}");
}

#[test]
fn one_slow_request_in_a_thousand_is_not_the_99th_percentile() {
    let mut admission = Admission::new(LIMITS);
    load(&mut admission, 1_000, 1000);
    for _ in 0..5 {
        admission.sample(900_000, 2000);
    }
    assert!(
        (1_000..=1_250).contains(&admission.p99_us()),
        "{}",
        admission.p99_us()
    );
    for _ in 0..20 {
        admission.sample(900_000, 2001);
    }
    assert!(admission.p99_us() >= 900_000, "{}", admission.p99_us());
}

#[test]
fn bytes_cost_as_operations_do() {
    let mut admission = Admission::new(LIMITS);
    assert_eq!(admission.take(Task::Hints, 0, 4 << 20, 1000), Ok(()));
    // 1024 operations' worth, at 1000 a second: more than a second until the next.
    let mut now_ms = 1000;
    while let Err(wait_ms) = admission.take(Task::Hints, 1, 0, now_ms) {
        assert!((1..=WAIT_MS_MAX).contains(&wait_ms));
        now_ms += wait_ms;
    }
    assert!((1850..=2100).contains(&now_ms), "{now_ms}");
}

#[test]
fn a_paused_task_waits_and_the_others_go_on() {
    let mut admission = Admission::new(LIMITS);
    admission.pause(Task::Exchange, true);
    assert!(admission.is_paused(Task::Exchange));
    assert_eq!(admission.take(Task::Exchange, 1, 0, 1000), Err(WAIT_MS_MAX));
    assert_eq!(admission.take(Task::Exchange, 0, 0, 1000), Err(WAIT_MS_MAX));
    assert_eq!(admission.take(Task::Hints, 1, 0, 1000), Ok(()));
    admission.pause(Task::Exchange, false);
    assert_eq!(admission.take(Task::Exchange, 1, 0, 2000), Ok(()));
}

/// Two tasks that always have work get about the same.
#[test]
fn tasks_share_the_budget() {
    let mut admission = Admission::new(LIMITS);
    let mut done = [0u64; 2];
    let tasks = [Task::Hints, Task::Exchange];
    let mut due_ms = [1000, 1000];
    let mut turn = 0;
    while due_ms.iter().any(|due_ms| *due_ms < 4000) {
        // Whoever wakes first; of two at once, each in its turn.
        turn = 1 - turn;
        let next = match due_ms[0].cmp(&due_ms[1]) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => turn,
            std::cmp::Ordering::Greater => 1,
        };
        match admission.take(tasks[next], 1, 0, due_ms[next]) {
            Ok(()) => {
                done[next] += 1;
                due_ms[next] += 1;
            }
            Err(wait_ms) => due_ms[next] += wait_ms,
        }
    }
    let (less, more) = (done[0].min(done[1]), done[0].max(done[1]));
    assert!(less * 2 >= more, "{done:?}");
}

#[test]
fn every_latency_lies_in_its_bucket() {
    for latency_us in [1, 2, 3, 4, 5, 7, 8, 9, 1000, 50_000, 1_000_000, 3_000_000_000] {
        let bucket = bucket(latency_us);
        assert!(upper_us(bucket) >= latency_us, "{latency_us}");
        assert!(
            upper_us(bucket) <= latency_us * 5 / 4 + 2,
            "{latency_us}: {}",
            upper_us(bucket)
        );
    }
}
