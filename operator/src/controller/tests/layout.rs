//! Which zones a cluster gets, and that it keeps them.

use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{
    super::{
        layout::LayoutError,
        names,
        observe::{ClaimFacts, K8sNode},
        validate::ValidateError,
    },
    UID, World, k8s_nodes,
};

fn zones(world: &World) -> Vec<(String, u32)> {
    let valid = world.validated().unwrap();
    valid
        .zones
        .iter()
        .map(|zone| (zone.layout.zone.clone(), zone.layout.members))
        .collect()
}

fn check(nodes: Vec<K8sNode>, spec: Value, expected: &[(&str, u32)]) {
    let mut world = World::new(spec);
    world.observed.k8s_nodes = Some(nodes);
    let expected: Vec<_> = expected
        .iter()
        .map(|(zone, members)| ((*zone).to_owned(), *members))
        .collect();
    assert_eq!(zones(&world), expected);
}

#[test]
fn k4_zones_come_from_labels_and_members_are_spread_evenly() {
    check(
        k8s_nodes(&["c", "a", "b", "a"]),
        json!({}),
        &[("a", 1), ("b", 1), ("c", 1)],
    );
    check(
        k8s_nodes(&["a", "b"]),
        json!({"members": 5}),
        &[("a", 3), ("b", 2)],
    );
    check(
        k8s_nodes(&["a", "b", "c", "d", "e"]),
        json!({}),
        &[("a", 1), ("b", 1), ("c", 1)],
    );
    check(k8s_nodes(&["", "", ""]), json!({}), &[("", 3)]);
    // K8s nodes without the label are no zone of their own while others have one.
    check(
        k8s_nodes(&["a", "", "b"]),
        json!({"members": 4}),
        &[("a", 2), ("b", 2)],
    );
    let named = json!({"members": 4, "zones": [{"name": "y1"}, {"name": "x2"}]});
    check(k8s_nodes(&["a"]), named, &[("y1", 2), ("x2", 2)]);
}

#[test]
fn k8s_nodes_that_cannot_run_a_member_are_no_zone() {
    let mut nodes = k8s_nodes(&["cordoned", "tainted", "control", "a", "rebooting"]);
    nodes[0].cordoned = true;
    nodes[1].taints = vec![("dedicated".into(), "db".into(), "NoSchedule".into())];
    nodes[2]
        .labels
        .insert("node-role.kubernetes.io/control-plane".into(), String::new());
    nodes[4].taints = vec![(
        "node.kubernetes.io/unreachable".into(),
        String::new(),
        "NoExecute".into(),
    )];
    check(
        nodes.clone(),
        json!({"members": 4}),
        &[("a", 2), ("rebooting", 2)],
    );
    let tolerations = json!({"tolerations": [{"key": "dedicated", "operator": "Exists"}]});
    check(
        nodes.clone(),
        json!({"placement": tolerations}),
        &[("a", 1), ("rebooting", 1), ("tainted", 1)],
    );
    // A k8s cluster of a control plane alone, as laptops have it.
    check(vec![nodes[2].clone()], json!({}), &[("control", 3)]);
    let mut world = World::new(json!({"placement": {"nodeSelector": {"disk": "ssd"}}}));
    world.observed.k8s_nodes = Some(nodes);
    assert!(matches!(
        world.validated(),
        Err(ValidateError::Layout(LayoutError::NoNode { .. }))
    ));
}

#[test]
fn k4_a_lost_zone_never_plans_the_cluster_anew() {
    let mut world = World::founded(json!({}));
    world.observed.k8s_nodes = Some(k8s_nodes(&["a"]));
    assert_eq!(zones(&world), [("a".into(), 1), ("b".into(), 1), ("c".into(), 1)]);
    world.observed.k8s_nodes = None;
    assert_eq!(zones(&world).len(), 3);

    // The annotation is lost too: the StatefulSets remember.
    let mut world = World::started(json!({}));
    world.source.annotations_mut().clear();
    world.observed.k8s_nodes = Some(k8s_nodes(&["x"]));
    assert_eq!(zones(&world), [("a".into(), 1), ("b".into(), 1), ("c".into(), 1)]);
    let valid = world.validated().unwrap();
    assert!(!valid.founded, "it is written down again before anything else");
    assert_eq!(valid.cluster_id.to_string(), UID);
}

#[test]
fn without_a_look_at_k8s_nodes_zones_must_be_named() {
    let mut world = World::new(json!({}));
    world.observed.k8s_nodes = None;
    assert_eq!(
        world.validated().unwrap_err(),
        ValidateError::Layout(LayoutError::Forbidden)
    );
    world.source.spec.zones = serde_json::from_value(json!([{"name": "a"}])).unwrap();
    assert_eq!(zones(&world), [("a".into(), 3)]);
}

fn claim(set: &str, zone: &str, id: &str) -> ClaimFacts {
    ClaimFacts {
        cluster_id: Some(id.into()),
        stateful_set: Some(set.into()),
        zone: zone.into(),
        ..ClaimFacts::default()
    }
}

#[test]
fn k15_volumes_left_by_a_cluster_of_this_name_are_taken_over() {
    const EARLIER: &str = "11111111-2222-4333-8444-555555555555";
    let mut world = World::new(json!({}));
    for zone in ["x", "y", "z"] {
        let set = format!("demo-{zone}");
        world
            .observed
            .claims
            .insert(format!("data-{set}-0"), claim(&set, zone, EARLIER));
    }
    assert_eq!(zones(&world), [("x".into(), 1), ("y".into(), 1), ("z".into(), 1)]);
    assert_eq!(world.validated().unwrap().cluster_id.to_string(), EARLIER);

    // A spec that asks for something else is told what the volumes hold.
    world.source.spec.members = 4;
    let error = world.validated().unwrap_err().to_string();
    assert!(
        error.contains("3 members in zones x, y, z") && error.contains("data-demo-x-0"),
        "{error}"
    );

    // Volumes of two clusters are not mixed.
    world.source.spec.members = 3;
    world
        .observed
        .claims
        .insert("data-demo-x-0".into(), claim("demo-x", "x", UID));
    assert!(matches!(world.validated(), Err(ValidateError::SeveralIds(_))));
    world
        .source
        .annotations_mut()
        .insert(names::CLUSTER_ID.into(), EARLIER.into());
    assert_eq!(world.validated().unwrap().cluster_id.to_string(), EARLIER);
}

#[test]
fn annotations_that_somebody_edited_are_refused_and_not_guessed() {
    let mut world = World::founded(json!({}));
    world
        .source
        .annotations_mut()
        .insert(names::LAYOUT.into(), "[]".into());
    assert!(matches!(
        world.validated(),
        Err(ValidateError::Layout(LayoutError::Annotation { .. }))
    ));
    let mut world = World::founded(json!({}));
    world
        .source
        .annotations_mut()
        .insert(names::CLUSTER_ID.into(), "mine".into());
    assert_eq!(
        world.validated().unwrap_err(),
        ValidateError::ClusterId("mine".into())
    );
}

#[test]
fn k29_a_spec_that_passed_an_older_crd_is_refused_with_every_fault() {
    let world = World::new(json!({
        "members": 2,
        "replication": {"factor": 3, "readQuorum": 4, "writeQuorum": 0},
        "ring": {"partitions": 100},
        "storage": {"size": "1Mi"},
        "zones": [{"name": "a"}, {"name": "a"}, {"name": "b"}],
    }));
    let error = world.validated().unwrap_err().to_string();
    for part in [
        "members is 2",
        "readQuorum is 4",
        "writeQuorum is 0",
        "partitions is 100",
        "1Mi",
        "distinct",
        "outnumber",
    ] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
}
