//! What the API server itself refuses, fills in and shows: no webhook, no operator.

use std::process::Command;

use dynamo_operator::crd::{DynamoCluster, definition::definition};
use kube::{Api, api::DeleteParams, client::Client};
use serde_json::{Value, json};

use super::{
    server::{self, Server, repository},
    world,
};

/// K29: each of these is refused, and the message names the field and the way out.
#[tokio::test]
async fn k29_bad_specs_are_refused_with_messages_that_help() {
    let world = world::new("bad").await;
    let zones = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    let many: Vec<String> = (0..17).map(|n| format!("zone{n}")).collect();
    let many = zones(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let labels: Value = (0..33)
        .map(|n| (format!("l{n}"), json!("x")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    #[rustfmt::skip]
    let table: Vec<(Value, &[&str])> = vec![
        (json!({"members": 2}), &["spec.members", "at least replication.factor", "raise members or lower"]),
        (json!({"members": 0, "replication": {"factor": 1}}), &["spec.members", "greater than or equal to 1"]),
        (json!({"members": 101}), &["spec.members", "less than or equal to 100"]),
        (json!({"members": "three"}), &["spec.members", "integer"]),
        (json!({"members": 3, "member": 4}), &["unknown field \"spec.member\""]),
        (json!({"replication": {"factor": 0}}), &["spec.replication.factor", "greater than or equal to 1"]),
        (json!({"replication": {"factor": 8}, "members": 9}), &["spec.replication.factor", "less than or equal to 7"]),
        (json!({"replication": {"readQuorum": 4}}), &["spec.replication.readQuorum", "must be 1 to replication.factor"]),
        (json!({"replication": {"writeQuorum": 4}}), &["spec.replication.writeQuorum", "must be 1 to replication.factor"]),
        (json!({"replication": {"readQuorum": 0}}), &["spec.replication.readQuorum", "greater than or equal to 1"]),
        (json!({"replication": {"n": 3}}), &["unknown field \"spec.replication.n\""]),
        (json!({"ring": {"partitions": 100}}), &["spec.ring.partitions", "power of two: 8, 16, 32"]),
        (json!({"ring": {"partitions": 4}}), &["spec.ring.partitions", "greater than or equal to 8"]),
        (json!({"ring": {"partitions": 32768}}), &["spec.ring.partitions", "less than or equal to 16384"]),
        (json!({"ring": {"partitions": 8}, "members": 9}), &["spec.ring.partitions", "at least members", "raise ring.partitions"]),
        (json!({"zones": zones(&["a", "b", "c", "d"])}), &["spec.zones", "must not outnumber members"]),
        (json!({"zones": zones(&["a", "a"])}), &["spec.zones[1]", "Duplicate value", "\"a\""]),
        (json!({"zones": zones(&["-a"])}), &["spec.zones[0].name", "beginning and ending with a letter or digit"]),
        (json!({"zones": zones(&["zone a"])}), &["spec.zones[0].name", "1 to 63 characters of A-Z"]),
        (json!({"zones": []}), &["spec.zones", "at least 1 items"]),
        (json!({"zones": many, "members": 20}), &["spec.zones", "at most 16 items"]),
        (json!({"zones": [{"name": "a", "weight": 101}]}), &["spec.zones[0].weight", "less than or equal to 100"]),
        (json!({"zones": [{"nodeSelector": {}}]}), &["spec.zones[0].name", "Required value"]),
        (json!({"storage": {"size": "ten"}}), &["spec.storage.size", "in body should match"]),
        (json!({"storage": {"size": "1Mi"}}), &["spec.storage.size", "at least 64Mi, such as 100Gi"]),
        (json!({"storage": {"size": 0}}), &["spec.storage.size", "at least 64Mi, such as 100Gi"]),
        (json!({"storage": {"whenDeleted": "Keep"}}), &["spec.storage.whenDeleted", "\"Retain\", \"Delete\""]),
        (json!({"durability": {"mode": "never"}}), &["spec.durability.mode", "\"every\", \"interval\", \"oneOfN\", \"buffered\""]),
        (json!({"hints": {"bytesMax": -1}}), &["spec.hints.bytesMax", "greater than or equal to 0"]),
        (json!({"antiEntropy": {"intervalSeconds": 0}}), &["spec.antiEntropy.intervalSeconds", "greater than or equal to 1"]),
        (json!({"reaping": {"graceSeconds": 0}}), &["spec.reaping.graceSeconds", "greater than or equal to 1"]),
        (json!({"durability": {"intervalMs": 0}}), &["spec.durability.intervalMs", "greater than or equal to 1"]),
        (json!({"image": "not an image"}), &["spec.image", "must be a reference such as"]),
        (json!({"imagePullPolicy": "Sometimes"}), &["spec.imagePullPolicy", "\"IfNotPresent\""]),
        (json!({"resources": {"limits": {"memory": "64Mi"}}}), &["spec.resources.limits", "raise the limit or lower the request"]),
        (json!({"resources": {"requests": {"cpu": -1}}}), &["spec.resources.requests.cpu", "above 0, such as 500m"]),
        (json!({"placement": {"hostAntiAffinity": "Maybe"}}), &["spec.placement.hostAntiAffinity", "\"Required\", \"Preferred\""]),
        (json!({"placement": {"nodeSelector": labels}}), &["spec.placement.nodeSelector", "32"]),
        (json!({"placement": {"tolerations": [{"value": "x"}]}}), &["spec.placement.tolerations[0].key", "operator Exists"]),
        (json!({"placement": {"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}}), &["tolerations[0].value", "leave value out"]),
        (json!({"placement": {"tolerations": [{"key": "a", "tolerationSeconds": 5}]}}), &["tolerations[0].tolerationSeconds", "NoExecute"]),
        (json!({"limits": {"valueBytesMax": 16_777_217}}), &["spec.limits.valueBytesMax", "less than or equal to 16777216"]),
        (json!({"rebalance": "Later"}), &["spec.rebalance", "\"Automatic\", \"Manual\""]),
        (json!({"approvedPlan": "12"}), &["spec.approvedPlan", "16 hexadecimal digits"]),
        (json!({"replication": {"zonePolicy": "Maybe"}}), &["spec.replication.zonePolicy", "\"BestEffort\", \"Require\""]),
        (json!({"storage": {"lostAfterSeconds": 1}}), &["spec.storage.lostAfterSeconds", "greater than or equal to 10"]),
        (json!({"logLevel": "loud"}), &["spec.logLevel", "\"trace\", \"debug\", \"info\""]),
        (json!({"paused": "later"}), &["spec.paused", "boolean"]),
        (json!({"podAnnotations": {"a": "x".repeat(1025)}}), &["spec.podAnnotations.a", "1024"]),
    ];
    assert!(table.len() >= 30);
    for (spec, parts) in table {
        let Err(error) = world.create("demo", spec.clone()).await else {
            panic!("{spec} was taken")
        };
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "{spec}: {part:?} is missing in: {text}");
        }
    }
    for name in ["1st", "a.b", &"a".repeat(41)] {
        let text = world.create(name, json!({})).await.unwrap_err().to_string();
        assert!(text.contains("1 to 40 characters of a-z"), "{name}: {text}");
    }
}

/// K29, K25: what cannot be changed, and what can.
#[tokio::test]
async fn k29_changes_are_refused_or_taken() {
    let world = world::new("change").await;
    let named = json!([{"name": "a"}, {"name": "b"}, {"name": "c", "weight": 2}]);
    world
        .create(
            "demo",
            json!({"zones": named, "storage": {"storageClassName": "fast"}}),
        )
        .await
        .unwrap();
    world.create("plain", json!({})).await.unwrap();
    #[rustfmt::skip]
    let refused: Vec<(&str, Value, &[&str])> = vec![
        ("demo", json!({"members": 2}), &["members must be at least replication.factor"]),
        ("demo", json!({"replication": {"factor": 2}}), &["spec.replication.factor", "is immutable", "another cluster"]),
        ("demo", json!({"ring": {"partitions": 1024}}), &["spec.ring.partitions", "can be doubled, once at a time"]),
        ("demo", json!({"ring": {"partitions": 128}}), &["spec.ring.partitions", "not be lowered"]),
        ("demo", json!({"ring": null}), &[]),
        ("demo", json!({"storage": {"size": "512Mi"}}), &["spec.storage.size", "can only grow"]),
        ("demo", json!({"storage": {"storageClassName": "slow"}}), &["spec.storage.storageClassName", "is immutable"]),
        ("demo", json!({"storage": {"storageClassName": null}}), &["spec.storage.storageClassName", "is immutable"]),
        ("plain", json!({"storage": {"storageClassName": "fast"}}), &["spec.storage.storageClassName", "is immutable"]),
        ("demo", json!({"zones": null}), &["spec.zones", "cannot be left out once they are named"]),
    ];
    for (name, change, parts) in refused {
        match world.change(name, change.clone()).await {
            // Taking a defaulted field away restores its default.
            Ok(_) if parts.is_empty() => {}
            Ok(_) => panic!("{change} was taken"),
            Err(error) => {
                let text = error.to_string();
                for part in parts {
                    assert!(text.contains(part), "{change}: {part:?} is missing in: {text}");
                }
            }
        }
    }
    for change in [
        json!({"image": "dynamo-node:2"}),
        json!({"replication": {"readQuorum": 1, "writeQuorum": 3}}),
        json!({"storage": {"size": "2Gi", "whenDeleted": "Delete"}}),
        json!({"storage": {"size": "2048Mi"}}),
        json!({"durability": {"mode": "interval"}}),
        json!({"zones": [{"name": "a", "nodeSelector": {"rack": "1"}}, {"name": "b"}, {"name": "c", "weight": 2}]}),
        json!({"zones": [{"name": "a"}, {"name": "d", "weight": 3}]}),
        json!({"members": 7, "rebalance": "Manual", "approvedPlan": "0123456789abcdef"}),
        json!({"ring": {"partitions": 512}}),
        json!({"ring": {"partitions": 1024}}),
        json!({"replication": {"zonePolicy": "Require"}, "storage": {"whenLost": "Keep", "lostAfterSeconds": 10}}),
        json!({"paused": true, "logLevel": "debug"}),
    ] {
        world
            .change("demo", change.clone())
            .await
            .unwrap_or_else(|error| panic!("{change}: {error}"));
    }
}

#[tokio::test]
async fn defaults_of_the_api_server_are_those_of_the_types() {
    let world = world::new("defaults").await;
    let stored = world.create("demo", json!({})).await.unwrap();
    let ours: DynamoCluster = serde_json::from_value(json!({
        "apiVersion": "dynamo.rs/v1alpha1", "kind": "DynamoCluster", "metadata": {"name": "demo"}, "spec": {},
    }))
    .unwrap();
    assert_eq!(stored.spec, ours.spec);
    // What users read with `-o yaml`: everything that was filled in, and nothing that was not.
    let raw = raw(&world.client, &world.namespace, "demo").await;
    assert_eq!(raw["spec"], serde_json::to_value(&ours.spec).unwrap());
}

async fn raw(client: &Client, namespace: &str, name: &str) -> Value {
    let path = format!("/apis/dynamo.rs/v1alpha1/namespaces/{namespace}/dynamoclusters/{name}");
    client
        .request(http::Request::get(path).body(Vec::new()).unwrap())
        .await
        .unwrap()
}

pub fn kubectl(server: &Server, args: &[&str]) -> (bool, String) {
    let output = Command::new(server::tool("kubectl"))
        .args(args)
        .env("KUBECONFIG", &server.kubeconfig)
        .env("HOME", server.kubeconfig.parent().unwrap())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .concat();
    (output.status.success(), text)
}

/// K25: the shape that `kubectl scale`, HPA and KEDA read.
#[tokio::test]
async fn k25_the_scale_subresource_has_its_shape_and_obeys_the_rules() {
    let (world, _) = world::serving("scale", json!({})).await;
    let scale = world.api::<DynamoCluster>().get_scale("demo").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(3));
    let status = scale.status.unwrap();
    assert_eq!(status.replicas, 3);
    let pods = kube::api::ListParams::default().labels(&status.selector.unwrap());
    let pods = world
        .api::<k8s_openapi::api::core::v1::Pod>()
        .list(&pods)
        .await
        .unwrap();
    assert_eq!(pods.items.len(), 3, "the selector finds the members");
    let (done, text) = kubectl(
        server::shared().await,
        &["-n", &world.namespace, "scale", "dync/demo", "--replicas", "2"],
    );
    assert!(
        !done && text.contains("members must be at least replication.factor"),
        "{text}"
    );
}

#[tokio::test]
async fn kubectl_shows_what_users_look_for() {
    let (world, _) = world::serving("columns", json!({})).await;
    let (_, text) = kubectl(server::shared().await, &["-n", &world.namespace, "get", "dync"]);
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        [
            "NAME", "READY", "MEMBERS", "STATUS", "EPOCH", "PROGRESS", "VERSION", "AGE"
        ],
        "{text}"
    );
    assert_eq!(
        lines[1][..6],
        ["demo", "3", "3", "AllMembersValid", "1", "0.1.0"],
        "{text}"
    );
    let (_, text) = kubectl(
        server::shared().await,
        &["-n", &world.namespace, "get", "dynamo", "-o", "wide"],
    );
    let header: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        header[8..],
        ["FACTOR", "PARTITIONS", "QUORUM", "ENDPOINT", "MESSAGE"],
        "{text}"
    );
    let (_, text) = kubectl(
        server::shared().await,
        &["explain", "dync.spec.replication.factor"],
    );
    assert!(text.contains("how many members keep each key"), "{text}");
    let wait = [
        "-n",
        &world.namespace,
        "wait",
        "--for=condition=Ready",
        "dync/demo",
        "--timeout=10s",
    ];
    let (done, text) = kubectl(server::shared().await, &wait);
    assert!(done, "{text}");
}

/// kubectl reads YAML 1.1, our generator writes 1.2: both must see the same definition.
#[tokio::test]
async fn kubectl_reads_the_generated_crd_as_it_was_meant() {
    let server = server::shared().await;
    let crd = repository().join("crds/dynamoclusters.yaml");
    let args = [
        "create",
        "--dry-run=client",
        "-o",
        "json",
        "-f",
        crd.to_str().unwrap(),
    ];
    let (done, text) = kubectl(server, &args);
    assert!(done, "{text}");
    let read: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(read["spec"], definition().unwrap()["spec"]);
    // And the sample is taken as it is.
    let sample = repository().join("operator/samples/dynamocluster.yaml");
    let args = [
        "create",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        sample.to_str().unwrap(),
    ];
    let (done, text) = kubectl(server, &args);
    assert!(done, "{text}");
}

#[tokio::test]
async fn a_deleted_cluster_is_gone_at_once_for_nothing_holds_it() {
    let (world, operator) = world::serving("deleted", json!({})).await;
    let cached = world.get("demo").await;
    world
        .api::<DynamoCluster>()
        .delete("demo", &DeleteParams::default())
        .await
        .unwrap();
    assert!(
        world
            .api::<DynamoCluster>()
            .get_opt("demo")
            .await
            .unwrap()
            .is_none()
    );
    let before = operator.faults.writes().len();
    operator.pass(&cached).await.unwrap();
    assert_eq!(
        operator.faults.writes().len(),
        before,
        "a cluster that is gone is left alone"
    );
    let _: Api<DynamoCluster> = world.api();
}
