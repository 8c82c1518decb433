//! Who answers, with time written out.

use dynamo_core::membership::detector::{
    PROBE_INTERVAL_MS, REASON_BYTES_MAX, TIMEOUT_MAX_MS, TIMEOUT_MIN_MS, TIMEOUTS_UNTIL_UNREACHABLE,
};
use dynamo_core::membership::{Detector, Gossip, Target};
use dynamo_core::types::MemberId;

use super::support::{exchange, id, view};

fn due(detector: &mut Detector, now_ms: u64) -> Vec<MemberId> {
    detector.probes_due(now_ms)
}

#[test]
fn d62_unknown_peers_are_reachable_until_a_request_fails() {
    let mut detector = Detector::new();
    assert!(detector.reachable(&id(1)));
    assert_eq!(detector.last_error(&id(1)), None);
    detector.failed(&id(1), 10, 20, "connection refused".into());
    assert!(!detector.reachable(&id(1)));
    assert!(detector.reachable(&id(2)));
    assert_eq!(detector.last_error(&id(1)), Some("connection refused"));
    assert_eq!(detector.unreachable().collect::<Vec<_>>(), [&id(1)]);
    detector.succeeded(&id(1), 30, 31);
    assert!(detector.reachable(&id(1)));
    assert_eq!(detector.last_error(&id(1)), None);
}

#[test]
fn d62_a_failure_counts_only_if_nothing_was_heard_since_its_request_began() {
    // (heard at, request began, failed at) and whether the peer is reachable afterwards.
    for (heard_ms, started_ms, failed_ms, reachable) in [
        (50, 10, 100, true),
        (50, 49, 100, true),
        (50, 50, 100, false),
        (50, 51, 100, false),
    ] {
        let mut detector = Detector::new();
        detector.succeeded(&id(1), 0, heard_ms);
        detector.failed(&id(1), started_ms, failed_ms, "timed out".into());
        assert_eq!(
            detector.reachable(&id(1)),
            reachable,
            "heard {heard_ms}, began {started_ms}"
        );
    }
    // An early answer that is reported late does not take back what was heard later.
    let mut detector = Detector::new();
    detector.succeeded(&id(1), 0, 50);
    detector.succeeded(&id(1), 0, 40);
    detector.failed(&id(1), 45, 60, "timed out".into());
    assert!(detector.reachable(&id(1)));
}

#[test]
fn d62_unreachable_peers_are_probed_once_a_second() {
    let mut detector = Detector::new();
    detector.failed(&id(1), 0, 100, "timed out".into());
    detector.failed(&id(2), 0, 600, "timed out".into());
    let mut probes = Vec::new();
    // Asked every 50 ms for five seconds.
    for now_ms in (100..5100).step_by(50) {
        probes.extend(
            due(&mut detector, now_ms)
                .into_iter()
                .map(|member| (now_ms, member)),
        );
    }
    let of = |number| {
        probes
            .iter()
            .filter(|(_, member)| *member == id(number))
            .map(|(at, _)| *at)
            .collect::<Vec<u64>>()
    };
    assert_eq!(of(1), [1100, 2100, 3100, 4100]);
    assert_eq!(of(2), [1600, 2600, 3600, 4600]);
    assert_eq!(PROBE_INTERVAL_MS, 1000);
    // Failing probes do not shift the rhythm; an answer ends it.
    detector.failed(&id(1), 5100, 5200, "still".into());
    assert_eq!(due(&mut detector, 5100), [id(1)]);
    assert_eq!(detector.last_error(&id(1)), Some("still"));
    detector.succeeded(&id(1), 5300, 5301);
    assert_eq!(due(&mut detector, 60_000), [id(2)]);
    assert_eq!(due(&mut detector, 60_000), []);
}

#[test]
fn reasons_are_bounded_and_leavers_forgotten() {
    let mut detector = Detector::new();
    detector.failed(&id(1), 0, 0, "ü".repeat(1000));
    let reason = detector.last_error(&id(1)).unwrap();
    assert!(reason.len() <= REASON_BYTES_MAX && reason.chars().all(|c| c == 'ü'));
    detector.retain(|member| *member != id(1));
    assert!(detector.reachable(&id(1)) && detector.unreachable().next().is_none());
}

#[test]
fn f_what_one_node_sees_is_nobody_elses_business() {
    // A cannot reach B; C can. They gossip, and still each has its own opinion, and the views say nothing of it.
    let (mut a, mut c) = (view(0), view(2));
    let (mut at_a, mut at_c) = (Detector::new(), Detector::new());
    at_a.failed(&id(1), 0, 10, "timed out".into());
    at_c.succeeded(&id(1), 0, 10);
    exchange(&mut a, &mut c);
    let before = (a.clone(), c.clone());
    assert_eq!(exchange(&mut a, &mut c), 0);
    assert_eq!((a, c), before);
    assert!(!at_a.reachable(&id(1)) && at_c.reachable(&id(1)));
}

#[test]
fn gossip_prefers_those_who_answer_and_falls_back_to_seeds() {
    let mut view = view(0);
    for number in 1..=4 {
        exchange(&mut super::support::view(number), &mut view);
    }
    let mut detector = Detector::new();
    detector.failed(&id(2), 0, 1, "timed out".into());
    let draws = |gossip: Gossip, detector: &Detector| {
        let mut counts = std::collections::BTreeMap::new();
        let mut random = super::support::Random::new(7);
        for _ in 0..10_000 {
            let target = gossip.next_target(&view, detector, random.next());
            *counts.entry(format!("{target:?}")).or_insert(0) += 1;
        }
        counts
    };
    let counts = draws(Gossip::new(2), &detector);
    println!("{counts:?}");
    let of = |what: &str| counts.get(what).copied().unwrap_or(0);
    let seeds = of("Some(Seed(0))") + of("Some(Seed(1))");
    assert!(
        (800..1200).contains(&seeds),
        "a seed in one round of ten: {seeds}"
    );
    for number in [1, 3, 4] {
        let count = of(&format!("Some(Member(node-0{number}))"));
        assert!((2700..3300).contains(&count), "reachable members alike: {count}");
    }
    assert_eq!(counts.len(), 5, "not the unreachable one, not itself: {counts:?}");

    for number in [1, 3, 4] {
        detector.failed(&id(number), 0, 1, "timed out".into());
    }
    let counts = draws(Gossip::new(2), &detector);
    assert_eq!(
        counts.keys().collect::<Vec<_>>(),
        ["Some(Seed(0))", "Some(Seed(1))"],
        "only seeds are left"
    );
    assert_eq!(
        draws(Gossip::new(0), &detector).len(),
        4,
        "without seeds, anybody is worth a try"
    );
}

#[test]
fn gossip_of_a_node_that_knows_nobody() {
    let (view, detector) = (view(0), Detector::new());
    assert_eq!(Gossip::new(0).next_target(&view, &detector, 5), None);
    assert!(
        matches!(Gossip::new(3).next_target(&view, &detector, 5), Some(Target::Seed(index)) if index < 3)
    );
}

/// Asks a peer every 100 ms for a while, without waiting for one answer before the next question; a request is given up
/// after the time-out of its start. Returns how many were answered and how often the peer changed its state.
fn ask(
    detector: &mut Detector,
    begin_ms: u64,
    duration_ms: u64,
    round_trip: impl Fn(u64) -> Option<u64>,
) -> (u32, u32) {
    // (ends at, began at, answered)
    let mut open: Vec<(u64, u64, bool)> = Vec::new();
    let (mut answered, mut changes, mut state) = (0, 0, detector.reachable(&id(1)));
    for now_ms in begin_ms..begin_ms + duration_ms {
        let (ended, still) = open.into_iter().partition(|(end_ms, ..)| *end_ms <= now_ms);
        open = still;
        let ended: Vec<(u64, u64, bool)> = ended;
        for (_, started_ms, has_answer) in ended {
            if has_answer {
                detector.succeeded(&id(1), started_ms, now_ms);
                answered += 1;
            } else {
                detector.timed_out(&id(1), started_ms, now_ms);
            }
            if detector.reachable(&id(1)) != state {
                state = !state;
                changes += 1;
            }
        }
        if now_ms % 100 == 0 {
            let timeout_ms = detector.timeout_ms(&id(1));
            let round_trip_ms = round_trip(now_ms).filter(|round_trip_ms| *round_trip_ms <= timeout_ms);
            open.push((
                now_ms + round_trip_ms.unwrap_or(timeout_ms),
                now_ms,
                round_trip_ms.is_some(),
            ));
        }
    }
    (answered, changes)
}

#[test]
fn f_a_node_half_a_second_slow_is_slow_and_not_down() {
    let mut detector = Detector::new();
    assert_eq!(ask(&mut detector, 0, 60_000, |_| Some(2)), (600, 0));
    assert_eq!(detector.timeout_ms(&id(1)), TIMEOUT_MIN_MS);
    // All at once it takes 500 ms: a few requests are given up, and it stays reachable.
    let (answered, changes) = ask(&mut detector, 60_000, 10_000, |_| Some(502));
    assert_eq!(changes, 0);
    assert!(answered >= 75, "{answered} of 100");
    // From then on nothing is given up, whether it takes 300 or 700 ms.
    let mut random = super::support::Random::new(1);
    let jitter: Vec<u64> = (0..1000).map(|_| 300 + random.below(400) as u64).collect();
    let (answered, changes) = ask(&mut detector, 70_000, 60_000, |now| {
        Some(jitter[(now / 100) as usize % 1000])
    });
    assert_eq!(changes, 0);
    assert!(answered >= 590, "{answered} of 600");
    assert!(detector.timeout_ms(&id(1)) > 700);
    // Fast again: the wait follows.
    ask(&mut detector, 130_000, 10_000, |_| Some(2));
    assert_eq!(detector.timeout_ms(&id(1)), TIMEOUT_MIN_MS);
}

#[test]
fn f_a_node_that_falls_silent_is_unreachable_within_seconds() {
    let mut detector = Detector::new();
    ask(&mut detector, 0, 10_000, |_| Some(2));
    // 250 + 1000 + 2000 ms, and the time between the requests.
    let before = ask(&mut detector.clone(), 10_000, 3_200, |_| None);
    assert_eq!(before.1, 0);
    let (_, changes) = ask(&mut detector, 10_000, 3_800, |_| None);
    assert_eq!((changes, detector.reachable(&id(1))), (1, false));
    let error = detector.last_error(&id(1)).unwrap();
    assert!(error.starts_with("3 requests in a row had no answer"), "{error}");
    // It stays so until one answer, and that one is enough.
    let (_, changes) = ask(&mut detector, 14_000, 10_000, |_| None);
    assert_eq!(changes, 0);
    assert_eq!(ask(&mut detector, 30_000, 1_000, |_| Some(2)).1, 1);
    assert!(detector.reachable(&id(1)));
}

#[test]
fn d62_only_timeouts_one_after_another_count() {
    let mut detector = Detector::new();
    // A hundred requests that wait at the same time are one time-out.
    for started_ms in 0..100 {
        detector.timed_out(&id(1), started_ms, 1000 + started_ms);
    }
    assert!(detector.reachable(&id(1)));
    detector.timed_out(&id(1), 1000, 2000);
    assert!(detector.reachable(&id(1)));
    // An answer in between, be it late, begins the count anew.
    detector.succeeded(&id(1), 900, 2100);
    assert_eq!(TIMEOUTS_UNTIL_UNREACHABLE, 3);
    for (started_ms, reachable) in [(2200, true), (3200, true), (4200, false)] {
        detector.timed_out(&id(1), started_ms, started_ms + 1000);
        assert_eq!(detector.reachable(&id(1)), reachable, "{started_ms}");
    }
    // A time-out of a request from before the last answer says nothing.
    detector.succeeded(&id(1), 5300, 5400);
    for _ in 0..5 {
        detector.timed_out(&id(1), 5350, 6000);
    }
    assert!(detector.reachable(&id(1)));
    // A refused connection needs no second one.
    detector.failed(&id(1), 6000, 6001, "connection refused".into());
    assert!(!detector.reachable(&id(1)));
}

#[test]
fn d62_the_wait_follows_the_round_trips_between_its_bounds() {
    for (max_ms, round_trip_ms, expected) in [
        (2000, 1, 250..=250),
        (2000, 200, 400..=420),
        (2000, 5000, 2000..=2000),
        (100, 1, 100..=100),
        (0, 1, 1..=1),
    ] {
        let mut detector = Detector::with_timeout_max(max_ms);
        assert_eq!(detector.timeout_ms(&id(1)), max_ms.max(1), "nothing is known yet");
        for started_ms in 0..50 {
            detector.succeeded(&id(1), started_ms, started_ms + round_trip_ms);
        }
        let timeout_ms = detector.timeout_ms(&id(1));
        assert!(expected.contains(&timeout_ms), "{timeout_ms} for {round_trip_ms}");
        detector.failed(&id(1), 9000, 9001, "refused".into());
        assert_eq!(detector.timeout_ms(&id(1)), max_ms.max(1), "probes have time");
    }
    assert_eq!(TIMEOUT_MAX_MS, 2000);
    // Time-outs in a row lengthen it, and an answer ends that.
    let mut detector = Detector::new();
    detector.succeeded(&id(1), 0, 1);
    let mut waits = Vec::new();
    for started_ms in [10, 1000] {
        waits.push(detector.timeout_ms(&id(1)));
        detector.timed_out(&id(1), started_ms, started_ms + 500);
    }
    waits.push(detector.timeout_ms(&id(1)));
    detector.succeeded(&id(1), 2000, 2001);
    waits.push(detector.timeout_ms(&id(1)));
    assert_eq!(waits, [250, 1000, 2000, 250]);
}

#[test]
fn the_fastest_peer_is_one_that_answers() {
    let mut detector = Detector::new();
    let members = [id(1), id(2), id(3)];
    assert_eq!(
        detector.fastest(&members),
        Some(&id(1)),
        "nobody is known: the first named"
    );
    assert_eq!(detector.fastest(&[]), None);
    detector.succeeded(&id(3), 0, 40);
    assert_eq!(detector.fastest(&members), Some(&id(3)));
    detector.succeeded(&id(2), 0, 8);
    assert_eq!(detector.fastest(&members), Some(&id(2)));
    assert_eq!(
        (detector.round_trip_ms(&id(2)), detector.round_trip_ms(&id(1))),
        (Some(8), None)
    );
    detector.failed(&id(2), 100, 101, "refused".into());
    assert_eq!(detector.fastest(&members), Some(&id(3)));
    detector.failed(&id(3), 100, 101, "refused".into());
    assert_eq!(detector.fastest(&members), Some(&id(1)));
}

#[test]
fn hedges_wait_for_what_nearly_all_answers_need() {
    let mut detector = Detector::new();
    assert_eq!(detector.hedge_after_ms(&id(1)), None);
    let mut random = super::support::Random::new(4);
    let mut late = 0;
    for at in 0..10_000u64 {
        let round_trip_ms = 10 + random.below(20) as u64;
        if at >= 100 && round_trip_ms > detector.hedge_after_ms(&id(1)).unwrap() {
            late += 1;
        }
        detector.succeeded(&id(1), at * 100, at * 100 + round_trip_ms);
    }
    assert!((100..1000).contains(&late), "{late} of 10,000 would be hedged");
}
