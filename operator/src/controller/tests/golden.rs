//! DynamoCluster in, objects out: `tests/golden/<case>/{in,out}.yaml`. `UPDATE_GOLDEN=1` rewrites the outputs.

use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::StatefulSet;
use serde::Serialize;
use serde_json::json;

use super::{
    super::{build, names},
    UID, World, k8s_nodes,
};
use crate::crd::DynamoCluster;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn world(case: &str) -> World {
    let text = std::fs::read_to_string(folder().join(case).join("in.yaml")).unwrap();
    let mut source: DynamoCluster = serde_yaml::from_str(&text).unwrap();
    source.metadata.uid = Some(UID.into());
    let mut world = World::new(json!({}));
    if source.metadata.annotations.is_some() {
        world.observed.k8s_nodes = Some(k8s_nodes(&["", "", ""]));
    }
    world.source = source;
    world.found();
    world
}

fn text(desired: build::Desired) -> String {
    let build::Desired {
        service_account,
        config_map,
        nodes_service,
        client_service,
        pdb,
        stateful_sets,
    } = desired;
    let mut text = String::new();
    let mut add = |object: String| text.extend(["---\n", &object]);
    add(yaml(&service_account));
    add(yaml(&config_map));
    add(yaml(&nodes_service));
    add(yaml(&client_service));
    add(yaml(&pdb));
    for set in stateful_sets {
        add(yaml(&set));
    }
    text
}

fn yaml(object: &impl Serialize) -> String {
    // Through a value, whose keys are in order.
    serde_yaml::to_string(&serde_json::to_value(object).unwrap()).unwrap()
}

#[test]
fn objects_are_those_in_the_golden_files() {
    for case in ["zones", "plain", "full"] {
        let built = text(world(case).desired());
        let path = folder().join(case).join("out.yaml");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &built).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            built == golden,
            "{case}: other objects than in {}; UPDATE_GOLDEN=1 rewrites",
            path.display()
        );
    }
}

fn sets(case: &str) -> Vec<StatefulSet> {
    world(case).desired().stateful_sets
}

#[test]
fn k4_one_stateful_set_per_zone_pinned_to_it() {
    let sets = sets("zones");
    let pinned: Vec<(String, String)> = sets
        .iter()
        .map(|set| {
            let spec = set.spec.as_ref().unwrap();
            assert_eq!(spec.replicas, Some(1));
            let selector = spec
                .template
                .spec
                .as_ref()
                .unwrap()
                .node_selector
                .clone()
                .unwrap();
            (
                set.metadata.name.clone().unwrap(),
                selector[names::TOPOLOGY_ZONE].clone(),
            )
        })
        .collect();
    let expected = [("demo-a", "a"), ("demo-b", "b"), ("demo-c", "c")];
    assert_eq!(
        pinned,
        expected.map(|(set, zone)| (set.to_owned(), zone.to_owned()))
    );
}

#[test]
fn k15_k19_sets_start_in_parallel_restart_by_the_operator_and_keep_volumes() {
    for set in ["zones", "plain", "full"].into_iter().flat_map(sets) {
        let spec = set.spec.unwrap();
        assert_eq!(spec.pod_management_policy.as_deref(), Some("Parallel"));
        assert_eq!(spec.update_strategy.unwrap().type_.as_deref(), Some("OnDelete"));
        let retention = spec.persistent_volume_claim_retention_policy.unwrap();
        assert_eq!(
            retention.when_deleted.as_deref(),
            Some("Retain"),
            "also with storage.whenDeleted: Delete"
        );
        assert_eq!(retention.when_scaled.as_deref(), Some("Retain"));
    }
}

#[test]
fn k32_pods_are_restricted_and_without_a_token() {
    for set in ["zones", "plain", "full"].into_iter().flat_map(sets) {
        let pod = set.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!(pod.enable_service_links, Some(false));
        assert!(pod.host_network.is_none() && pod.host_pid.is_none() && pod.host_ipc.is_none());
        let context = pod.security_context.unwrap();
        assert_eq!(context.run_as_non_root, Some(true));
        assert_eq!(context.run_as_user, Some(65532));
        assert_eq!(context.fs_group, Some(65532));
        assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault");
        for container in &pod.containers {
            let context = container.security_context.as_ref().unwrap();
            assert_eq!(context.allow_privilege_escalation, Some(false));
            assert_eq!(context.read_only_root_filesystem, Some(true));
            assert_eq!(
                context.capabilities.as_ref().unwrap().drop.as_deref(),
                Some(&["ALL".to_owned()][..])
            );
        }
        // Longer than the node itself takes to drain.
        assert!(pod.termination_grace_period_seconds.unwrap() > build::SHUTDOWN_GRACE_S);
    }
}

#[test]
fn k17_host_anti_affinity_is_as_the_spec_says() {
    let rule = |case: &str| {
        let pod = sets(case).remove(0).spec.unwrap().template.spec.unwrap();
        pod.affinity.unwrap().pod_anti_affinity.unwrap()
    };
    let (sample, full) = (rule("zones"), rule("full"));
    assert!(
        sample
            .required_during_scheduling_ignored_during_execution
            .is_none()
    );
    let preferred = sample
        .preferred_during_scheduling_ignored_during_execution
        .unwrap();
    assert_eq!(preferred[0].pod_affinity_term.topology_key, names::HOSTNAME);
    assert!(
        full.preferred_during_scheduling_ignored_during_execution
            .is_none()
    );
    let required = full.required_during_scheduling_ignored_during_execution.unwrap();
    assert_eq!(required[0].topology_key, names::HOSTNAME);
}

#[test]
fn the_operators_labels_and_annotations_win_over_the_users() {
    let set = sets("full").remove(0);
    let metadata = set.spec.unwrap().template.metadata.unwrap();
    let (labels, annotations) = (metadata.labels.unwrap(), metadata.annotations.unwrap());
    assert_eq!(labels["app.kubernetes.io/name"], "dynamo");
    assert_eq!(labels["example.net/team"], "shop");
    assert_ne!(annotations[names::TEMPLATE_HASH], "mine");
    assert_eq!(annotations["example.net/note"], "hello");
}

#[test]
fn a_change_of_configuration_changes_the_template_and_a_change_of_nothing_does_not() {
    let hash = |spec: serde_json::Value| {
        let world = World::founded(spec);
        let sets = world.desired().stateful_sets;
        super::super::observe::template_hash(&sets[0]).unwrap()
    };
    assert_eq!(hash(json!({})), hash(json!({"members": 3})));
    assert_ne!(hash(json!({})), hash(json!({"logLevel": "debug"})));
    assert_ne!(hash(json!({})), hash(json!({"image": "other:1"})));
    assert_eq!(
        hash(json!({})),
        hash(json!({"storage": {"size": "2Gi"}})),
        "a growing volume restarts nobody"
    );
}
