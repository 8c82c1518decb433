//! What is done next, and above all what is not.

use serde_json::json;

use super::{
    super::{
        names,
        observe::Container,
        plan::{Stance, Step},
    },
    World, foreign, unassigned,
};
use crate::admin::NodeState;

fn reason(stance: &Stance) -> &'static str {
    match stance {
        Stance::Steady => "Steady",
        Stance::Paused => "Paused",
        Stance::Progressing(reason, _) | Stance::Stalled(reason, _) => reason,
    }
}

pub(super) fn check(world: &World, expected: &str) {
    let (step, stance) = world.plan();
    let step = match step {
        Step::Rest => "rest".to_owned(),
        Step::Found => "found".to_owned(),
        Step::Bootstrap(order) => format!("bootstrap {}", order.member),
        Step::Join(orders) => {
            format!(
                "join {}",
                orders
                    .into_iter()
                    .map(|order| order.member)
                    .collect::<Vec<_>>()
                    .join(" ")
            )
        }
        Step::Restart { pod, .. } => format!("restart {pod}"),
        Step::Commit { request, .. } => {
            let members = request.target.unwrap().members.into_iter();
            let members: Vec<String> = members.map(|member| member.member_id).collect();
            format!("commit {}", members.join(" "))
        }
        Step::Replace(replacement) => format!("replace {}", replacement.member),
        Step::RemoveZone { stateful_set, .. } => format!("remove {stateful_set}"),
    };
    let stalled = if matches!(stance, Stance::Stalled(..)) {
        "!"
    } else {
        ""
    };
    assert_eq!(
        format!("{step}: {}{stalled}", reason(&stance)),
        expected,
        "{stance:?}"
    );
}

#[test]
fn the_way_of_an_install() {
    check(&World::new(json!({})), "found: Founding");
    check(&World::founded(json!({})), "rest: WaitingForPods");
    let mut world = World::started(json!({}));
    check(&world, "bootstrap demo-a-0: Bootstrapping");
    let serving = World::serving(json!({}));
    let first = serving.observed.answers["demo-a-0"].clone();
    world.observed.answers.insert("demo-a-0".into(), first);
    check(&world, "join demo-b-0 demo-c-0: Joining");
    check(&serving, "rest: Steady");
}

#[test]
fn k2_the_first_ring_waits_for_every_member() {
    let start = || World::started(json!({}));
    let mut world = start();
    world.observed.pods.remove("demo-c-0");
    check(&world, "rest: WaitingForPods");
    let mut world = start();
    world.pod("demo-c-0", |pod| {
        pod.container = Container::Stopped("ImagePullBackOff".into());
    });
    check(&world, "rest: WaitingForPods");
    let mut world = start();
    world.silence("demo-c-0");
    check(&world, "rest: MembersNotValid");
    let mut world = start();
    world.observed.answers.remove("demo-c-0");
    check(&world, "rest: WaitingForPods");
}

#[test]
fn k2_a_ring_is_never_minted_twice() {
    // One node tells a ring: whatever the others say, there is one.
    let serving = World::serving(json!({}));
    for member in ["demo-a-0", "demo-b-0", "demo-c-0"] {
        let mut world = World::started(json!({}));
        world
            .observed
            .answers
            .insert(member.into(), serving.observed.answers[member].clone());
        assert!(matches!(world.plan().0, Step::Join(orders) if orders.len() == 2));
    }
    // Nobody does, but there was one: silence is waited for, and emptiness is a person's matter.
    let mut world = World::started(json!({}));
    world.source.status = serde_json::from_value(json!({"ring": {
        "epoch": 1, "hash": "00", "partitions": 256, "minOwned": 85, "maxOwned": 86,
    }}))
    .unwrap();
    check(&world, "rest: VolumesLost!");
    world.silence("demo-b-0");
    check(&world, "rest: MembersNotValid");
}

#[test]
fn k2_a_bootstrap_names_all_members_with_zones_and_addresses() {
    let (step, _) = World::started(json!({"ring": {"partitions": 64}})).plan();
    let Step::Bootstrap(order) = step else {
        panic!("{step:?}")
    };
    let request = order.request;
    assert_eq!(request.member_id, "demo-a-0");
    assert_eq!((request.partitions, request.factor), (64, 3));
    let members: Vec<(&str, &str, &str)> = request
        .members
        .iter()
        .map(|m| (m.member_id.as_str(), m.zone.as_str(), m.peer_address.as_str()))
        .collect();
    assert_eq!(
        members,
        [
            ("demo-a-0", "a", "demo-a-0.demo-nodes.shop.svc:7701"),
            ("demo-b-0", "b", "demo-b-0.demo-nodes.shop.svc:7701"),
            ("demo-c-0", "c", "demo-c-0.demo-nodes.shop.svc:7701"),
        ]
    );
}

#[test]
fn k2_a_volume_of_another_cluster_stops_everything() {
    for mut world in [World::started(json!({})), World::serving(json!({}))] {
        world.report("demo-b-0", |report| {
            report.cluster_id = Some(foreign());
            report.state = NodeState::Valid;
        });
        check(&world, "rest: ForeignVolume!");
        let (_, stance) = world.plan();
        assert!(!stance.writes_objects());
        let Stance::Stalled(_, message) = stance else {
            panic!()
        };
        assert!(
            message.contains("demo-b-0") && message.contains("data-demo-b-0"),
            "{message}"
        );
        assert!(message.contains("eeeeeeee-eeee"), "{message}");
    }
}

#[test]
fn k11_a_pod_that_fails_changes_no_ring() {
    let mut silent = World::serving(json!({}));
    silent.silence("demo-b-0");
    check(&silent, "rest: MembersNotValid");
    let mut gone = World::serving(json!({}));
    gone.observed.pods.remove("demo-b-0");
    gone.observed.answers.remove("demo-b-0");
    check(&gone, "rest: WaitingForPods");
    let mut all = World::serving(json!({}));
    all.observed.pods.clear();
    all.observed.answers.clear();
    all.observed.ring = None;
    check(&all, "rest: WaitingForPods");
}

#[test]
fn a_lost_volume_joins_under_its_old_name() {
    let mut world = World::serving(json!({}));
    world.say("demo-b-0", Ok(unassigned()));
    let (step, _) = world.plan();
    let Step::Join(orders) = step else {
        panic!("{step:?}")
    };
    assert_eq!(orders.len(), 1);
    let request = &orders[0].request;
    assert_eq!(
        (request.member_id.as_str(), request.zone.as_str(), request.weight),
        ("demo-b-0", "b", 1)
    );
    assert_eq!(
        request.seeds,
        [
            "demo-a-0.demo-nodes.shop.svc:7701",
            "demo-c-0.demo-nodes.shop.svc:7701"
        ]
    );
}

#[test]
fn k4_k17_a_node_learns_no_zone_that_its_k8s_node_denies() {
    let mut world = World::serving(json!({}));
    world.say("demo-b-0", Ok(unassigned()));
    world.pod("demo-b-0", |pod| pod.k8s_node = Some("worker-0".into()));
    check(&world, "rest: ZoneMismatch");
    world.pod("demo-b-0", |pod| pod.k8s_node = Some("unheard-of".into()));
    check(&world, "rest: ZoneMismatch");
    world.observed.k8s_nodes = None;
    check(&world, "rest: ZoneMismatch");
    // With named zones the names are the user's.
    let named = json!({"zones": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
    let mut world = World::serving(named);
    world.say("demo-b-0", Ok(unassigned()));
    world.pod("demo-b-0", |pod| pod.k8s_node = Some("worker-0".into()));
    check(&world, "join demo-b-0: Joining");
}

#[test]
fn k18_an_address_that_answers_for_another_is_silence() {
    let mut world = World::serving(json!({}));
    world.report("demo-b-0", |report| report.member_id = "demo-c-0".into());
    check(&world, "rest: MembersNotValid");
    let mut world = World::serving(json!({}));
    world.report("demo-b-0", |report| report.zone = "c".into());
    check(&world, "rest: MembersNotValid");
}

#[test]
fn members_that_the_ring_does_not_list_stop_everything() {
    let mut world = World::serving(json!({}));
    let other = World::serving(json!({"zones": [{"name": "x"}, {"name": "y"}, {"name": "z"}]}));
    world.observed.ring = other.observed.ring;
    check(&world, "rest: RingMismatch!");
}

#[test]
fn k23_a_paused_cluster_is_left_alone() {
    for mut world in [
        World::new(json!({})),
        World::started(json!({})),
        World::serving(json!({})),
    ] {
        world.source.spec.paused = true;
        check(&world, "rest: Paused");
        assert!(!world.plan().1.writes_objects());
    }
}

/// Every pod was made from an older template than its StatefulSet has.
fn outdated(spec: serde_json::Value) -> World {
    let mut world = World::serving(spec);
    for pod in world.observed.pods.values_mut() {
        pod.template_hash = Some("older".into());
    }
    world
}

#[test]
fn k12_restarts_go_one_by_one_and_only_while_all_others_serve() {
    let mut world = outdated(json!({}));
    check(&world, "restart demo-a-0: RollingRestart");
    let (step, _) = world.plan();
    let Step::Restart {
        uid,
        resource_version,
        ..
    } = step
    else {
        panic!()
    };
    assert_eq!((uid.as_str(), resource_version.as_str()), ("uid-0", "0"));

    let newest = world.observed.stateful_sets["demo-a"].template_hash.clone();
    world.pod("demo-a-0", |pod| pod.template_hash = newest);
    check(&world, "restart demo-b-0: RollingRestart");

    for change in [
        |world: &mut World| world.silence("demo-a-0"),
        |world: &mut World| world.report("demo-a-0", |report| report.state = NodeState::Joining),
        |world: &mut World| world.report("demo-a-0", |report| report.ring_epoch = 2),
        |world: &mut World| world.pod("demo-a-0", |pod| pod.ready = false),
        |world: &mut World| world.pod("demo-a-0", |pod| pod.deleting = true),
        |world: &mut World| drop(world.observed.pods.remove("demo-a-0")),
    ] {
        let mut world = outdated(json!({}));
        change(&mut world);
        assert_eq!(world.plan().0, Step::Rest);
    }
}

#[test]
fn k12_restarts_wait_until_kubernetes_has_seen_the_newest_template() {
    let mut world = outdated(json!({}));
    for set in world.observed.stateful_sets.values_mut() {
        set.current = false;
    }
    check(&world, "rest: RollingRestart");
    let mut world = outdated(json!({}));
    for set in world.observed.stateful_sets.values_mut() {
        set.template_hash = Some("older".into());
    }
    check(&world, "rest: RollingRestart");
}

#[test]
fn k12_with_all_replicas_needed_a_restart_says_what_it_costs() {
    let world = outdated(json!({"replication": {"writeQuorum": 3}}));
    let (step, _) = world.plan();
    let Step::Restart { why, .. } = step else {
        panic!("{step:?}")
    };
    assert!(why.contains("256 partitions lose their quorum"), "{why}");
}

#[test]
fn a_pod_stuck_on_a_bad_image_is_made_again_from_the_good_one() {
    // Before there is a ring, with all of them stuck.
    let mut world = outdated(json!({}));
    world.observed.ring = None;
    world.observed.answers.clear();
    for pod in world.observed.pods.values_mut() {
        pod.container = Container::Stopped("ErrImagePull".into());
    }
    check(&world, "restart demo-a-0: RollingRestart");
    // With one, while another member is down: nothing is lost by it.
    let mut world = outdated(json!({}));
    world.silence("demo-a-0");
    world.observed.answers.remove("demo-b-0");
    world.pod("demo-b-0", |pod| {
        pod.container = Container::Stopped("ErrImagePull".into());
    });
    check(&world, "restart demo-b-0: RollingRestart");
    // But not one that runs and only does not answer.
    let mut world = outdated(json!({}));
    world.silence("demo-a-0");
    assert_eq!(world.plan().0, Step::Rest);
}

#[test]
fn a_zone_without_k8s_nodes_is_named() {
    let mut world = World::serving(json!({}));
    world.observed.k8s_nodes = Some(super::k8s_nodes(&["a", "b"]));
    world.observed.answers.remove("demo-c-0");
    world.pod("demo-c-0", |pod| {
        pod.k8s_node = None;
        pod.ip = None;
        pod.container = Container::Stopped("Unschedulable: 0/2 nodes are available".into());
    });
    let (_, stance) = world.plan();
    let Stance::Progressing("ZoneEmpty", message) = stance else {
        panic!("{stance:?}")
    };
    assert!(
        message.contains("zone c") && message.contains("Unschedulable"),
        "{message}"
    );
}

#[test]
fn joined_nodes_that_lost_the_only_ring_are_told_apart_from_new_ones() {
    let mut world = World::started(json!({}));
    let id = world.validated().unwrap().cluster_id;
    for (member, zone) in [("demo-a-0", "a"), ("demo-b-0", "b"), ("demo-c-0", "c")] {
        world.report(member, |report| {
            report.state = NodeState::Joining;
            report.cluster_id = Some(id);
            report.member_id = member.into();
            report.zone = zone.into();
        });
    }
    check(&world, "rest: RingLost!");
    world.say("demo-b-0", Ok(unassigned()));
    check(&world, "bootstrap demo-b-0: Bootstrapping");
    assert!(names::selector_text(&names::labels("demo")).contains("managed-by=dynamo-operator"));
}
