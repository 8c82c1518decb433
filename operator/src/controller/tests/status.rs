//! What the status says, and which events tell of it.

use jiff::Timestamp;
use kube::runtime::events::EventType;
use serde_json::json;

use super::{
    super::{
        apply::{ApplyError, Done},
        plan::plan,
        status::{Note, invalid, notes, status},
    },
    World, unassigned,
};
use crate::{
    admin::NodeState,
    crd::{DynamoClusterStatus, conditions::find},
};

const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);
const LATER: Timestamp = Timestamp::constant(1_700_000_100, 0);

pub(super) fn of(world: &World, error: Option<&ApplyError>, now: Timestamp) -> DynamoClusterStatus {
    let valid = world.validated().unwrap();
    let plan = plan(&valid, &world.desired(), &world.observed, &world.source);
    let preview = world
        .observed
        .preview
        .as_ref()
        .and_then(|told| told.as_ref().ok());
    status(&world.source, &valid, &plan, preview, error, now)
}

/// `Ready Reconciling Stalled QuorumAvailable RingBalanced`, and Ready's reason.
pub(super) fn words(status: &DynamoClusterStatus) -> String {
    let condition = |type_: &str| find(&status.conditions, type_).unwrap();
    let truths = [
        "Ready",
        "Reconciling",
        "Stalled",
        "QuorumAvailable",
        "RingBalanced",
    ]
    .map(|type_| condition(type_).status.as_str());
    format!("{} {}", truths.join(" "), condition("Ready").reason)
}

fn check(world: &World, expected: &str) {
    let status = of(world, None, NOW);
    assert_eq!(words(&status), expected, "{status:#?}");
    for condition in &status.conditions {
        assert_eq!(condition.observed_generation, Some(4), "{condition:?}");
        assert!(
            !condition.reason.is_empty() && !condition.message.is_empty(),
            "{condition:?}"
        );
    }
    assert_eq!(status.observed_generation, Some(4));
}

#[test]
fn k1_conditions_along_the_way_of_an_install() {
    check(
        &World::new(json!({})),
        "False True False Unknown Unknown Founding",
    );
    check(
        &World::founded(json!({})),
        "False True False Unknown Unknown WaitingForPods",
    );
    check(
        &World::started(json!({})),
        "False True False Unknown Unknown Bootstrapping",
    );
    // The first member has the ring, the others are still to be told: no quorum is lost, for none was there.
    check(&first(), "False True False Unknown True Joining");
    check(
        &World::serving(json!({})),
        "True False False True True AllMembersValid",
    );
}

/// As after the bootstrap.
fn first() -> World {
    let mut world = World::serving(json!({}));
    for member in ["demo-b-0", "demo-c-0"] {
        world.say(member, Ok(unassigned()));
    }
    world
}

#[test]
fn k1_ready_is_never_true_without_every_member_and_every_quorum() {
    let mut one = World::serving(json!({}));
    one.silence("demo-b-0");
    check(&one, "False True False True True MembersNotValid");
    let mut two = World::serving(json!({}));
    two.silence("demo-b-0");
    two.observed.pods.remove("demo-c-0");
    check(&two, "False True False False True QuorumLost");
    let message = &find(&of(&two, None, NOW).conditions, "QuorumAvailable")
        .unwrap()
        .message
        .clone();
    assert!(
        message.starts_with("256 of 256 partitions have fewer than 2 valid primaries"),
        "{message}"
    );
    assert!(
        message.contains("demo-b-0 (zone b) Silent, demo-c-0 (zone c) Absent"),
        "{message}"
    );

    let mut split = World::serving(json!({}));
    split.report("demo-b-0", |report| report.ring_epoch = 2);
    check(&split, "False True False True True RingSpreading");
    let mut untold = World::serving(json!({}));
    untold.observed.ring = None;
    assert!(!words(&of(&untold, None, NOW)).starts_with("True"));
    let mut joining = World::serving(json!({}));
    joining.report("demo-b-0", |report| report.state = NodeState::Joining);
    check(&joining, "False True False True True MembersNotValid");
    let mut lost = World::serving(json!({}));
    lost.say("demo-b-0", Ok(unassigned()));
    check(&lost, "False True False True True Joining");
    let mut paused = World::serving(json!({}));
    paused.source.spec.paused = true;
    check(&paused, "True False False True True AllMembersValid");
}

#[test]
fn k1_with_all_replicas_needed_one_member_down_loses_the_quorum() {
    let mut world = World::serving(json!({"replication": {"readQuorum": 3, "writeQuorum": 1}}));
    world.silence("demo-a-0");
    check(&world, "False True False False True QuorumLost");
}

#[test]
fn k38_a_serving_cluster_shows_its_ring_zones_and_members() {
    let status = of(&World::serving(json!({"members": 6})), None, NOW);
    assert_eq!((status.members, status.ready_members), (6, 6));
    let ring = status.ring.unwrap();
    assert_eq!(
        (ring.epoch, ring.partitions, ring.min_owned, ring.max_owned),
        (1, 256, 42, 43)
    );
    assert_eq!(ring.hash.len(), 16);
    let zones: Vec<(&str, &str, i32, i32)> = status
        .zones
        .iter()
        .map(|zone| {
            (
                zone.name.as_str(),
                zone.stateful_set.as_str(),
                zone.members,
                zone.ready_members,
            )
        })
        .collect();
    assert_eq!(
        zones,
        [
            ("a", "demo-a", 2, 2),
            ("b", "demo-b", 2, 2),
            ("c", "demo-c", 2, 2)
        ]
    );
    assert_eq!(status.nodes.iter().map(|node| node.owned).sum::<i32>(), 256);
    assert_eq!(status.endpoint.as_deref(), Some("demo-client.shop.svc:7700"));
    assert_eq!(status.version.as_deref(), Some("0.1.0"));
    let selector = status.selector.unwrap();
    assert!(selector.contains("app.kubernetes.io/instance=demo"), "{selector}");
}

#[test]
fn the_last_known_ring_stays_while_nobody_tells_one() {
    let mut world = World::serving(json!({}));
    let before = of(&world, None, NOW);
    world.source.status = Some(before.clone());
    world.observed.ring = None;
    for member in ["demo-a-0", "demo-b-0", "demo-c-0"] {
        world.silence(member);
    }
    let after = of(&world, None, NOW);
    assert_eq!(after.ring, before.ring);
    assert_eq!(words(&after), "False True False Unknown Unknown MembersNotValid");
}

#[test]
fn a_status_changes_only_when_something_does() {
    let mut world = World::serving(json!({}));
    let first = of(&world, None, NOW);
    world.source.status = Some(first.clone());
    assert_eq!(of(&world, None, LATER), first);
    world.silence("demo-b-0");
    let second = of(&world, None, LATER);
    let since = |status: &DynamoClusterStatus, type_: &str| {
        find(&status.conditions, type_).unwrap().last_transition_time.0
    };
    assert_eq!(since(&second, "Ready"), LATER);
    assert_eq!(since(&second, "QuorumAvailable"), NOW);
}

#[test]
fn what_only_a_person_can_solve_is_stalled_with_the_reason() {
    let world = World::serving(json!({}));
    let taken = ApplyError::NameTaken {
        kind: "StatefulSet".into(),
        name: "demo-a".into(),
    };
    assert_eq!(
        words(&of(&world, Some(&taken), NOW)),
        "False False True True True NameTaken"
    );

    let mut world = World::new(json!({"members": 2}));
    world.source.status = None;
    let error = world.validated().unwrap_err();
    let status = invalid(&world.source, &error, NOW);
    assert_eq!(words(&status), "False False True Unknown Unknown InvalidSpec");
    let told = notes(&world.source, &status, &[]);
    assert_eq!(reasons(&told), ["InvalidSpec"]);
    assert_eq!(told[0].type_, EventType::Warning);
}

fn reasons(notes: &[Note]) -> Vec<&'static str> {
    notes.iter().map(|note| note.reason).collect()
}

/// The events on the way from one state to the next.
fn told(from: &World, to: &mut World, done: &[Done]) -> Vec<&'static str> {
    to.source.status = Some(of(from, None, NOW));
    let status = of(to, None, LATER);
    reasons(&notes(&to.source, &status, done))
}

#[test]
fn events_tell_the_story_and_a_steady_cluster_is_silent() {
    let serving = || World::serving(json!({}));
    let founded = || World::founded(json!({}));
    assert_eq!(
        told(&World::new(json!({})), &mut founded(), &[Done::Founded]),
        ["Founded", "WaitingForPods"]
    );
    assert_eq!(told(&founded(), &mut founded(), &[]), Vec::<&str>::new());
    let bootstrapped = [Done::Bootstrapped("demo-a-0".into())];
    assert_eq!(
        told(&founded(), &mut World::started(json!({})), &bootstrapped),
        ["Bootstrapped"]
    );
    assert_eq!(
        told(&World::started(json!({})), &mut first(), &bootstrapped),
        ["Bootstrapped"]
    );
    let joined = [Done::Joined("demo-b-0".into(), "b".into())];
    assert_eq!(
        told(&World::started(json!({})), &mut serving(), &joined),
        ["NodeJoined", "AllMembersValid"]
    );
    assert_eq!(told(&serving(), &mut serving(), &[]), Vec::<&str>::new());

    let mut one = serving();
    one.silence("demo-a-0");
    assert_eq!(told(&serving(), &mut one, &[]), ["MembersNotValid"]);
    let mut two = serving();
    two.silence("demo-a-0");
    two.silence("demo-b-0");
    assert_eq!(told(&one, &mut two, &[]), ["QuorumLost"]);
    assert_eq!(
        told(&two, &mut serving(), &[]),
        ["QuorumRestored", "AllMembersValid"]
    );

    let mut shared = serving();
    shared.pod("demo-b-0", |pod| pod.k8s_node = Some("worker-0".into()));
    assert_eq!(told(&serving(), &mut shared, &[]), ["SharedHost"]);
    let mut still = serving();
    still.pod("demo-b-0", |pod| pod.k8s_node = Some("worker-0".into()));
    assert_eq!(told(&shared, &mut still, &[]), Vec::<&str>::new());
}

/// K38: sums over those who answer.
#[test]
fn k38_hints_and_suspect_partitions_are_counted_over_the_members_that_answer() {
    let mut world = World::serving(json!({}));
    for (member, hints, suspect) in [("demo-a-0", 5, 0), ("demo-b-0", 7, 3), ("demo-c-0", 100, 100)] {
        world.report(member, |report| {
            report.hints = hints;
            report.partitions_suspect = suspect;
        });
    }
    world.silence("demo-c-0");
    let status = of(&world, None, NOW);
    assert_eq!((status.hints, status.suspect_partitions), (12, 3));
}
