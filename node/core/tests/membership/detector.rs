//! Who answers, with time written out.

use dynamo_core::membership::detector::{PACE_MS, PROBE_INTERVAL_MS, REASON_BYTES_MAX};
use dynamo_core::membership::{Detector, Gossip, Silence, Target};
use dynamo_core::types::MemberId;

use super::support::{exchange, id, view};

/// Requests wait for 400 ms at most.
fn detector() -> Detector {
    Detector::new(400)
}

fn due(detector: &mut Detector, now_ms: u64) -> Vec<MemberId> {
    detector.probes_due(now_ms)
}

#[test]
fn d62_unknown_peers_are_reachable_until_a_request_fails() {
    let mut detector = detector();
    assert!(detector.reachable(&id(1)));
    assert_eq!(detector.last_error(&id(1)), None);
    detector.failed(&id(1), Silence::Refused, (10, 20), "connection refused".into());
    assert!(!detector.reachable(&id(1)));
    assert!(detector.reachable(&id(2)));
    assert_eq!(detector.last_error(&id(1)), Some("connection refused"));
    assert_eq!(detector.unreachable().collect::<Vec<_>>(), [&id(1)]);
    detector.succeeded(&id(1), 30, 31);
    assert!(detector.reachable(&id(1)));
    assert_eq!(detector.last_error(&id(1)), None);
}

#[test]
fn d62_who_is_doubted_is_probed_at_once_when_it_shows_life() {
    let mut detector = detector();
    detector.sign_of_life(&id(1), 5);
    assert_eq!(due(&mut detector, 5), []);
    detector.failed(&id(1), Silence::Refused, (10, 20), "connection refused".into());
    assert_eq!(due(&mut detector, 20), []);
    detector.sign_of_life(&id(1), 21);
    // That it asks does not mean that it answers.
    assert!(!detector.reachable(&id(1)));
    assert_eq!(due(&mut detector, 21), [id(1)]);
    assert_eq!(due(&mut detector, 22), []);
    assert_eq!(due(&mut detector, 21 + PROBE_INTERVAL_MS), [id(1)]);
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
        let mut detector = detector();
        detector.succeeded(&id(1), 0, heard_ms);
        detector.failed(
            &id(1),
            Silence::Refused,
            (started_ms, failed_ms),
            "connection refused".into(),
        );
        assert_eq!(
            detector.reachable(&id(1)),
            reachable,
            "heard {heard_ms}, began {started_ms}"
        );
    }
    // An early answer that is reported late does not take back what was heard later.
    let mut detector = detector();
    detector.succeeded(&id(1), 0, 50);
    detector.succeeded(&id(1), 0, 40);
    detector.failed(&id(1), Silence::Refused, (45, 60), "connection refused".into());
    assert!(detector.reachable(&id(1)));
}

#[test]
fn d62_unreachable_peers_are_probed_once_a_second() {
    let mut detector = detector();
    detector.failed(&id(1), Silence::Refused, (0, 100), "connection refused".into());
    detector.failed(&id(2), Silence::Refused, (0, 600), "connection refused".into());
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
    detector.failed(&id(1), Silence::Refused, (5100, 5200), "still".into());
    assert_eq!(due(&mut detector, 5100), [id(1)]);
    assert_eq!(detector.last_error(&id(1)), Some("still"));
    detector.succeeded(&id(1), 5300, 5301);
    assert_eq!(due(&mut detector, 60_000), [id(2)]);
    assert_eq!(due(&mut detector, 60_000), []);
}

#[test]
fn reasons_are_bounded_and_leavers_forgotten() {
    let mut detector = detector();
    detector.failed(&id(1), Silence::Refused, (0, 0), "ü".repeat(1000));
    let reason = detector.last_error(&id(1)).unwrap();
    assert!(reason.len() <= REASON_BYTES_MAX && reason.chars().all(|c| c == 'ü'));
    detector.retain(|member| *member != id(1));
    assert!(detector.reachable(&id(1)) && detector.unreachable().next().is_none());
}

#[test]
fn f_what_one_node_sees_is_nobody_elses_business() {
    // A cannot reach B; C can. They gossip, and still each has its own opinion, and the views say nothing of it.
    let (mut a, mut c) = (view(0), view(2));
    let (mut at_a, mut at_c) = (detector(), detector());
    at_a.failed(&id(1), Silence::Refused, (0, 10), "connection refused".into());
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
    let mut detector = detector();
    detector.failed(&id(2), Silence::Refused, (0, 1), "connection refused".into());
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
        detector.failed(&id(number), Silence::Refused, (0, 1), "connection refused".into());
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
    let (view, detector) = (view(0), detector());
    assert_eq!(Gossip::new(0).next_target(&view, &detector, 5), None);
    assert!(
        matches!(Gossip::new(3).next_target(&view, &detector, 5), Some(Target::Seed(index)) if index < 3)
    );
}

/// A peer whose requests time out: (sent, noticed).
fn silent(detector: &mut Detector, requests: &[(u64, u64)]) {
    for times in requests {
        detector.failed(&id(1), Silence::TimedOut, *times, "timed out".into());
    }
}

#[test]
fn f_three_time_outs_one_after_the_other_make_a_silent_peer_unreachable() {
    for (requests, reachable) in [
        (&[(0, 400), (400, 800)][..], true),
        (&[(0, 400), (400, 800), (800, 1200)], false),
        // Sent side by side they are one.
        (&[(0, 400), (1, 401), (2, 402), (3, 403)], true),
        (&[(0, 400), (1, 401), (400, 800), (700, 1100), (900, 1300)], false),
        // Whoever waits for a moment only learns nothing.
        (&[(0, 199), (200, 399), (400, 599), (600, 799)], true),
        (&[(0, 200), (200, 400), (400, 600)], false),
    ] {
        let mut detector = detector();
        silent(&mut detector, requests);
        assert_eq!(detector.reachable(&id(1)), reachable, "{requests:?}");
    }
}

#[test]
fn f_a_slow_peer_is_probed_at_once_and_stays_reachable_as_long_as_it_answers() {
    let mut detector = detector();
    for round in 0..20 {
        let start = round * 1500;
        silent(&mut detector, &[(start, start + 400), (start + 400, start + 800)]);
        assert_eq!(due(&mut detector, start + 800), [id(1)], "round {round}");
        detector.succeeded(&id(1), start + 800, start + 1300);
        // Sent before the answer was heard: it says nothing any more.
        silent(&mut detector, &[(start + 1000, start + 1400)]);
        assert!(detector.reachable(&id(1)), "round {round}");
        assert_eq!(due(&mut detector, start + 1450), [], "it answers: no probe");
    }
}

#[test]
fn f_without_other_requests_probes_alone_find_a_silent_peer() {
    let mut detector = detector();
    silent(&mut detector, &[(0, 400)]);
    let mut probes = Vec::new();
    for now_ms in (400..10_000).step_by(50) {
        if !due(&mut detector, now_ms).is_empty() {
            probes.push(now_ms);
            silent(&mut detector, &[(now_ms, now_ms + 800)]);
        }
        if !detector.reachable(&id(1)) {
            break;
        }
    }
    assert_eq!(probes, [400, 1400]);
    assert!(!detector.reachable(&id(1)));
}

#[test]
fn d71_the_time_a_request_waits_follows_the_peers_round_trips() {
    let mut detector = detector();
    assert_eq!(detector.timeout_ms(&id(1)), 400, "nothing is known");
    for _ in 0..50 {
        detector.round_trip(&id(1), 1_000, 0);
        detector.round_trip(&id(2), 250_000, 0);
    }
    assert_eq!(detector.timeout_ms(&id(1)), 200, "half of the longest, at least");
    let steady = detector.timeout_ms(&id(2));
    assert!((250..260).contains(&steady), "{steady}");
    // An unsteady one gets more.
    for number in 0..50 {
        detector.round_trip(&id(2), 220_000 + number % 2 * 60_000, number);
    }
    assert!(detector.timeout_ms(&id(2)) > 300);
    // Twice as long after each time-out, never longer than the longest.
    let mut timeouts = Vec::new();
    for number in 1..=3 {
        silent(&mut detector, &[(number * 1000, number * 1000 + 400)]);
        timeouts.push(detector.timeout_ms(&id(1)));
    }
    assert_eq!(timeouts, [400, 400, 400]);
    detector.succeeded(&id(1), 5000, 5001);
    assert_eq!(detector.timeout_ms(&id(1)), 200);
}

#[test]
fn a_peer_s_pace_follows_its_last_reads_and_is_forgotten_after_a_while() {
    let mut detector = Detector::new(1000);
    assert_eq!(detector.pace(&id(1), 0), None, "nothing is known yet");
    for number in 0..100 {
        detector.round_trip(&id(1), 400 + number % 2 * 200, 5000);
    }
    let pace = detector.pace(&id(1), 5000 + PACE_MS).unwrap();
    assert!((450..=550).contains(&pace.mean_us), "{pace:?}");
    // Some 100 us from the mean are usual, and four times as much is not.
    assert!((800..=1000).contains(&pace.late_us), "{pace:?}");
    assert_eq!(detector.pace(&id(1), 5001 + PACE_MS), None, "it may have changed");
    detector.late(&id(1));
    assert!(detector.pace(&id(1), 5000).unwrap().is_late);
    detector.round_trip(&id(1), 500, 5000);
    assert!(!detector.pace(&id(1), 5000).unwrap().is_late, "it has answered");
    detector.round_trip(&id(1), 50_000, 7000);
    assert!(
        detector.pace(&id(1), 7000).unwrap().mean_us > 5000,
        "one long read is seen at once"
    );
}
