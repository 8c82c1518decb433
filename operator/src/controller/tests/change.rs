//! Changes of the ring: what is asked for, what is waited for, what is refused, and what may go when.

use dynamo_proto::{admin as pb, v1};
use jiff::Timestamp;
use serde_json::json;

use super::{
    super::{
        change::{Change, plan_hash},
        names,
        observe::{ClaimFacts, Container},
        plan::{Stance, Step},
    },
    World,
    plan::check,
    status::{of, words},
};

const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);

fn sets(pods: &[u32; 3]) -> Vec<(String, u32)> {
    let names = ["demo-a", "demo-b", "demo-c"];
    names.iter().map(|name| (*name).to_owned()).zip(*pods).collect()
}

const FIVE: &str = "demo-a-0 demo-a-1 demo-b-0 demo-b-1 demo-c-0";

#[test]
fn k5_the_way_out_from_three_members_to_five() {
    let mut world = World::serving(json!({}));
    world.spec(&json!({"members": 5}));
    assert_eq!(world.pods(), sets(&[2, 2, 1]));
    check(&world, "rest: WaitingForPods");
    assert!(matches!(world.ask(), Change::Wait("WaitingForPods", why) if why.contains("demo-a-1 (zone a)")));

    world.run_missing_pods();
    check(&world, "join demo-a-1 demo-b-1: Joining");
    world.join_all();
    assert!(matches!(world.ask(), Change::Ask(_)));
    check(&world, &format!("commit {FIVE}: ProposingRing"));
    let Step::Commit { nodes, request, why } = world.plan().0 else {
        panic!()
    };
    assert_eq!(request.expected_epoch, 1);
    assert_ne!(request.expected_hash, 0);
    assert_eq!(nodes[0].0, "demo-b-0", "who planned it is asked first");
    assert_eq!(nodes.len(), 3, "members of the ring are asked, not new ones");
    assert!(
        why.contains("5 members instead of 3") && why.contains("3.0 GiB"),
        "{why}"
    );

    world.propose();
    world.ask();
    check(&world, "rest: RingChanging");
    let status = of(&world, None, NOW);
    assert!(
        words(&status).starts_with("False True False True False RingChanging"),
        "{}",
        words(&status)
    );
    let transition = status.transition.unwrap();
    assert_eq!((transition.epoch, transition.step.as_str()), (2, "synced"));
    assert_eq!(transition.progress, "synced 5/20");
    let Stance::Progressing(_, why) = world.plan().1 else {
        panic!()
    };
    assert!(
        why.contains("waiting for demo-a-0 (zone a)") && why.contains("5 of 20 partitions"),
        "{why}"
    );

    world.finish();
    world.ask();
    check(&world, "rest: Steady");
    assert_eq!(
        words(&of(&world, None, NOW)),
        "True False False True True AllMembersValid"
    );
}

#[test]
fn k5_one_new_member_that_does_not_come_holds_up_the_change_and_nobody_else() {
    let mut world = World::serving(json!({}));
    world.spec(&json!({"members": 5}));
    world.run_missing_pods();
    world.join_all();
    world.pod("demo-b-1", |pod| {
        pod.container = Container::Stopped("ErrImagePull".into());
    });
    assert!(matches!(world.ask(), Change::Wait("WaitingForPods", _)));
    // Others are restarted for their image meanwhile.
    for pod in world.observed.pods.values_mut() {
        pod.template_hash = Some("older".into());
    }
    check(&world, "restart demo-b-1: RollingRestart");
    world.observed.pods.remove("demo-b-1");
    world.observed.answers.remove("demo-b-1");
    check(&world, "restart demo-a-0: RollingRestart");
}

#[test]
fn k6_members_leave_the_ring_before_their_pods_go() {
    let mut world = World::serving(json!({"members": 5}));
    world.spec(&json!({"members": 3}));
    assert_eq!(world.pods(), sets(&[2, 2, 1]), "pods stay");
    assert!(matches!(world.ask(), Change::Ask(_)));
    check(&world, "commit demo-a-0 demo-b-0 demo-c-0: ProposingRing");
    world.propose();
    world.ask();
    check(&world, "rest: RingChanging");
    assert_eq!(world.pods(), sets(&[2, 2, 1]));

    world.finish();
    assert_eq!(world.pods(), sets(&[1, 1, 1]));
    check(&world, "rest: RemovingPods");
    assert_eq!(words(&of(&world, None, NOW)).split(' ').next(), Some("True"));
    // One that still keeps hints for others stays, and all below it.
    world.report("demo-b-1", |report| report.hints = 3);
    assert_eq!(world.pods(), sets(&[1, 2, 1]));
    let Stance::Progressing("RemovingPods", why) = world.plan().1 else {
        panic!()
    };
    assert!(why.contains("demo-b-1") && why.contains("3 hints"), "{why}");
}

/// c2: what nobody said is no leave.
#[test]
fn k6_no_pod_goes_without_a_majority_that_says_so_now() {
    let done = || {
        let mut world = World::serving(json!({"members": 5}));
        world.spec(&json!({"members": 3}));
        world.settle();
        world
    };
    assert_eq!(done().pods(), sets(&[1, 1, 1]));
    for silent in [
        &["demo-a-0", "demo-b-0"][..],
        &["demo-a-0", "demo-b-0", "demo-c-0"],
    ] {
        let mut world = done();
        for member in silent {
            world.silence(member);
        }
        assert_eq!(world.pods(), sets(&[2, 2, 1]), "{silent:?}");
    }
    let mut world = done();
    world.silence("demo-a-0");
    assert_eq!(world.pods(), sets(&[1, 1, 1]), "two of three are enough");
    // One of them is behind, or knows of a proposal.
    let mut world = done();
    let behind = world
        .observed
        .changes
        .get_mut("demo-c-0")
        .unwrap()
        .as_mut()
        .unwrap();
    behind.base_epoch = 1;
    assert_eq!(world.pods(), sets(&[2, 2, 1]));
    let mut world = done();
    let proposed = world
        .observed
        .changes
        .get_mut("demo-c-0")
        .unwrap()
        .as_mut()
        .unwrap();
    (proposed.next_epoch, proposed.next_members) = (9, vec!["demo-a-1".into()]);
    assert_eq!(world.pods(), sets(&[2, 2, 1]));
    let mut world = done();
    world.observed.changes.clear();
    assert_eq!(world.pods(), sets(&[2, 2, 1]));
}

/// Nodes of a release that knows of no changes: they serve, and are restarted with a newer one, and nothing else.
#[test]
fn k12_nodes_that_cannot_tell_of_changes_are_left_as_they_are_but_for_restarts() {
    let mut world = World::serving(json!({"members": 5}));
    for told in world.observed.changes.values_mut() {
        *told = Err("refused Transition: Unimplemented".into());
    }
    check(&world, "rest: Steady");
    assert_eq!(
        words(&of(&world, None, NOW)),
        "True False False True True AllMembersValid"
    );
    world.spec(&json!({"members": 3}));
    check(&world, "rest: RingUnknown");
    assert_eq!(world.pods(), sets(&[2, 2, 1]));
    for pod in world.observed.pods.values_mut() {
        pod.template_hash = Some("older".into());
    }
    check(&world, "restart demo-a-0: RollingRestart");
}

#[test]
fn k7_what_does_not_fit_moves_nothing_and_says_the_numbers() {
    let mut world = World::serving(json!({"members": 5, "storage": {"size": "10Gi"}}));
    world.bytes(5 << 30);
    world.spec(&json!({"members": 3}));
    let Change::Blocked("ScaleDownBlocked", why) = world.ask() else {
        panic!()
    };
    for part in [
        "2 of 5 members",
        "8.3 GiB",
        "10.0 GiB",
        "8.0 GiB",
        "raise storage.size",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    check(&world, "rest: Steady");
    assert_eq!(world.pods(), sets(&[2, 2, 1]));
    assert_eq!(
        words(&of(&world, None, NOW)),
        "False False True True False ScaleDownBlocked"
    );
    // Four members have room: 6.25 GiB each.
    world.spec(&json!({"members": 4}));
    assert!(matches!(world.ask(), Change::Ask(_)));
    // And what began goes on, whatever grows meanwhile.
    world.propose();
    world.bytes(9 << 30);
    assert!(matches!(world.ask(), Change::Ask(_)));
}

#[test]
fn k7_fewer_zones_are_refused_if_the_spread_is_required() {
    let zones =
        |names: &[&str]| json!({"zones": names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>()});
    let named = zones(&["a", "b", "c"]);
    let mut world = World::serving(named.clone());
    world.spec(&zones(&["a", "b"]));
    world.run_missing_pods();
    world.join_all();
    assert!(matches!(world.ask(), Change::Ask(_)), "BestEffort");
    world.spec(&json!({"replication": {"factor": 3, "zonePolicy": "Require"}}));
    let Change::Blocked("ScaleDownBlocked", why) = world.ask() else {
        panic!()
    };
    assert!(
        why.contains("2 zones, but 3 are needed") && why.contains("BestEffort"),
        "{why}"
    );
}

#[test]
fn k7_a_change_waits_for_members_that_are_down() {
    let mut world = World::serving(json!({"members": 5}));
    world.spec(&json!({"members": 3}));
    world.silence("demo-c-0");
    let Change::Wait("MembersNotValid", why) = world.ask() else {
        panic!()
    };
    assert!(why.contains("demo-c-0"), "{why}");
    // Going back does not.
    let mut world = World::serving(json!({"members": 5}));
    world.spec(&json!({"members": 3}));
    world.ask();
    world.propose();
    world.silence("demo-c-0");
    world.spec(&json!({"members": 5}));
    assert!(matches!(world.ask(), Change::Ask(_)));
}

#[test]
fn k8_a_change_of_mind_is_followed_at_once() {
    let mut world = World::serving(json!({"members": 5}));
    world.spec(&json!({"members": 3}));
    world.ask();
    world.propose();
    world.spec(&json!({"members": 5}));
    world.ask();
    check(&world, &format!("commit {FIVE}: ProposingRing"));
    world.spec(&json!({"members": 4}));
    world.ask();
    check(
        &world,
        "commit demo-a-0 demo-a-1 demo-b-0 demo-c-0: ProposingRing",
    );
    // A pod that has left and is still there simply comes back.
    let mut world = World::serving(json!({"members": 5}));
    world.spec(&json!({"members": 3}));
    world.ask();
    world.finish();
    world.spec(&json!({"members": 5}));
    assert_eq!(world.pods(), sets(&[2, 2, 1]));
    world.ask();
    check(&world, &format!("commit {FIVE}: ProposingRing"));
}

#[test]
fn k9_an_evacuated_member_leaves_begins_empty_and_comes_back() {
    let mut world = World::serving(json!({"members": 4}));
    world.pod("demo-b-0", |pod| pod.evacuate = true);
    world.ask();
    check(&world, "commit demo-a-0 demo-a-1 demo-c-0: ProposingRing");
    assert_eq!(world.pods(), sets(&[2, 1, 1]));
    world.propose();
    world.ask();
    check(&world, "rest: RingChanging");
    world.finish();
    world.ask();
    check(&world, "replace demo-b-0: Evacuated");
    // Not without the word of most.
    let mut alone = World::serving(json!({"members": 4}));
    alone.pod("demo-b-0", |pod| pod.evacuate = true);
    alone.ask();
    alone.finish();
    alone.silence("demo-a-0");
    alone.silence("demo-a-1");
    assert_eq!(alone.plan().0, Step::Rest);

    world.observed.pods.remove("demo-b-0");
    world.observed.answers.remove("demo-b-0");
    world.run_missing_pods();
    check(&world, "join demo-b-0: Joining");
    world.join_all();
    world.ask();
    check(
        &world,
        "commit demo-a-0 demo-a-1 demo-b-0 demo-c-0: ProposingRing",
    );
}

#[test]
fn k9_an_evacuation_that_leaves_too_few_is_refused_with_the_way_out() {
    let mut world = World::serving(json!({}));
    world.pod("demo-b-0", |pod| pod.evacuate = true);
    assert!(matches!(world.ask(), Change::Blocked("EvacuationBlocked", _)));
    let (_, why) = world.blocked();
    assert!(
        why.contains("4 members are needed") && why.contains("Raise spec.members by 1"),
        "{why}"
    );
    assert_eq!(world.plan().0, Step::Rest);
    // Of two, one can go.
    let mut world = World::serving(json!({"members": 4}));
    world.pod("demo-a-1", |pod| pod.evacuate = true);
    world.pod("demo-c-0", |pod| pod.evacuate = true);
    world.ask();
    check(&world, "commit demo-a-0 demo-b-0 demo-c-0: ProposingRing");
}

#[test]
fn k9_a_zone_that_is_taken_off_the_list_is_emptied_before_its_stateful_set_goes() {
    let named = json!({"members": 4, "zones": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
    let mut world = World::serving(named);
    world.spec(&json!({"zones": [{"name": "a"}, {"name": "b"}]}));
    assert!(world.validated().unwrap().founded, "the zone is still remembered");
    assert_eq!(world.pods(), sets(&[2, 2, 1]));
    world.run_missing_pods();
    world.join_all();
    world.ask();
    check(
        &world,
        "commit demo-a-0 demo-a-1 demo-b-0 demo-b-1: ProposingRing",
    );
    world.propose();
    assert_eq!(world.pods(), sets(&[2, 2, 1]));
    world.finish();
    check(&world, "remove demo-c: RemovingZone");
    assert_eq!(world.pods(), sets(&[2, 2, 0])[..2]);
    world.observed.pods.remove("demo-c-0");
    world.observed.answers.remove("demo-c-0");
    world.observed.stateful_sets.remove("demo-c");
    check(&world, "found: Founding");
    world.found();
    check(&world, "rest: Steady");
}

/// A pod that finds no k8s node, since some seconds, with a claim whose volume is lost for this reason.
fn waits(world: &mut World, member: &str, seconds: i64, lost: Option<&str>) {
    world.observed.at = NOW;
    world.observed.answers.remove(member);
    world.pod(member, |pod| {
        pod.ip = None;
        pod.k8s_node = None;
        pod.container = Container::Stopped("Unschedulable: volume node affinity conflict".into());
        pod.unscheduled_since = Timestamp::from_second(NOW.as_second() - seconds).ok();
    });
    let claim = ClaimFacts {
        uid: "claim".into(),
        resource_version: "5".into(),
        lost: lost.map(ToOwned::to_owned),
        ..ClaimFacts::default()
    };
    world.observed.claims.insert(names::claim(member), claim);
}

/// Lists of zones are merged by their names, in any order.
#[test]
fn k9_zones_that_change_places_move_nothing() {
    let zones = |names: [&str; 3]| json!({"zones": names.map(|name| json!({"name": name}))});
    let mut world = World::serving(zones(["a", "b", "c"]));
    world.spec(&json!({"members": 4}));
    world.settle();
    world.spec(&zones(["c", "b", "a"]));
    assert_eq!(world.ask(), Change::None);
    check(&world, "rest: Steady");
}

#[test]
fn k10_a_lost_volume_is_replaced_after_a_while_and_only_if_it_is_lost() {
    let lost = |seconds, why| {
        let mut world = World::serving(json!({}));
        waits(&mut world, "demo-b-0", seconds, why);
        world
    };
    check(
        &lost(301, Some("its volume pv is gone")),
        "replace demo-b-0: ReplacingVolume",
    );
    check(&lost(299, Some("its volume pv is gone")), "rest: VolumeLost");
    check(&lost(99_999, None), "rest: WaitingForPods");
    let mut world = lost(301, Some("gone"));
    let Step::Replace(replacement) = world.plan().0 else {
        panic!()
    };
    assert_eq!(replacement.claim, Some(("claim".into(), "5".into())));
    assert_eq!(replacement.pod, Some(("uid-1".into(), "1".into())));
    assert_eq!(world.ask(), Change::None, "the ring stays");
    // As a deletion leaves it that was interrupted.
    world.observed.claims.clear();
    check(&world, "replace demo-b-0: ReplacingVolume");
    // A pod that runs, or that has a k8s node, waits for nothing.
    world.pod("demo-b-0", |pod| pod.k8s_node = Some("worker-1".into()));
    check(&world, "rest: WaitingForPods");
}

#[test]
fn k10_a_person_may_want_to_decide() {
    let mut world = World::serving(json!({"storage": {"whenLost": "Keep"}}));
    waits(&mut world, "demo-b-0", 99_999, Some("its volume pv is gone"));
    check(&world, "rest: VolumeLost");
    let Stance::Progressing(_, why) = world.plan().1 else {
        panic!()
    };
    assert!(
        why.contains("whenLost is Keep") && why.contains("data-demo-b-0"),
        "{why}"
    );
    assert_eq!(
        words(&of(&world, None, NOW)),
        "False False True True True VolumeLost"
    );
    // And must, where the others lack a quorum.
    let mut world = World::serving(json!({}));
    waits(&mut world, "demo-b-0", 99_999, Some("its volume pv is gone"));
    world.silence("demo-c-0");
    check(&world, "rest: VolumeLost");
}

#[test]
fn d22_weights_of_zones_reach_the_ring() {
    let zones = |weight: u32| json!([{"name": "a", "weight": weight}, {"name": "b"}, {"name": "c"}]);
    let mut world = World::serving(json!({"members": 6, "zones": zones(1)}));
    world.spec(&json!({"zones": zones(2)}));
    let Change::Ask(target) = world.ask() else {
        panic!()
    };
    let weights: Vec<u32> = target.members.iter().map(|member| member.weight).collect();
    assert_eq!(weights, [2, 2, 1, 1, 1, 1]);
    world.finish();
    assert_eq!(world.ask(), Change::None);
}

#[test]
fn d26_partitions_are_doubled_after_members_have_changed() {
    let mut world = World::serving(json!({}));
    world.spec(&json!({"members": 4, "ring": {"partitions": 512}}));
    world.run_missing_pods();
    world.join_all();
    let Change::Ask(target) = world.ask() else {
        panic!()
    };
    assert_eq!((target.members.len(), target.partitions), (4, 0));
    world.finish();
    let Change::Ask(target) = world.ask() else {
        panic!()
    };
    assert_eq!((target.members.len(), target.partitions), (4, 512));
    world.finish();
    assert_eq!(world.ask(), Change::None);
}

#[test]
fn k26_nothing_is_proposed_before_its_plan_is_approved() {
    let mut world = World::serving(json!({"rebalance": "Manual"}));
    world.spec(&json!({"members": 5}));
    world.run_missing_pods();
    world.join_all();
    world.ask();
    check(&world, "rest: Steady");
    let (reason, why) = world.blocked();
    assert_eq!(reason, "WaitingForApproval");
    let status = of(&world, None, NOW);
    assert_eq!(words(&status), "False False True True False WaitingForApproval");
    let shown = status.plan.unwrap();
    assert_eq!((shown.epoch, shown.bytes, shown.partitions), (2, 3 << 30, 256));
    assert!(shown.moves >= shown.minimum_moves && shown.minimum_moves > 0);
    assert_eq!(shown.members.len(), 5);
    assert!(
        why.contains(&shown.hash) && why.contains("kubectl patch dync/demo"),
        "{why}"
    );

    world.spec(&json!({"approvedPlan": "0123456789abcdef"}));
    check(&world, "rest: Steady");
    world.spec(&json!({"approvedPlan": shown.hash}));
    check(&world, &format!("commit {FIVE}: ProposingRing"));
    // The plan of another day is another.
    world.propose();
    world.spec(&json!({"members": 4}));
    world.ask();
    assert_eq!(world.blocked().0, "WaitingForApproval");
}

#[test]
fn a_plan_is_known_by_the_hash_of_its_ring() {
    let plan = |hash| pb::PlanResponse {
        ring: Some(v1::Ring {
            hash,
            ..v1::Ring::default()
        }),
        ..pb::PlanResponse::default()
    };
    assert_eq!(plan_hash(&plan(0xab)), "00000000000000ab");
}

/// Volumes of members that left are no reason to refuse a DynamoCluster of the same name.
#[test]
fn k15_volumes_of_members_that_left_are_not_taken_over() {
    let mut world = World::new(json!({}));
    for (set, ordinal, left) in [("a", 0, false), ("b", 0, false), ("c", 0, false), ("a", 1, true)] {
        let claim = ClaimFacts {
            cluster_id: Some(super::UID.into()),
            stateful_set: Some(format!("demo-{set}")),
            zone: set.into(),
            left,
            ..ClaimFacts::default()
        };
        let name = format!("data-demo-{set}-{ordinal}");
        world.observed.claims.insert(name, claim);
    }
    assert_eq!(world.pods(), sets(&[1, 1, 1]));
}
