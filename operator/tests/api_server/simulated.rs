//! The simulated API server, which thousands of runs rely on, answers as the real one.

use std::{fmt::Debug, time::Duration};

use dynamo_operator::crd::DynamoCluster;
use dynamo_operator_sim::api_server::ApiServer;
use futures::StreamExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, ServiceAccount},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::world;

/// Asks, and writes down what it is told, without what differs from server to server.
struct Notes {
    client: Client,
    namespace: String,
    told: Vec<String>,
}

trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned
{
}
impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

impl Notes {
    fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn note<T>(&mut self, what: &str, answer: kube::Result<T>) -> Option<T> {
        let told = match &answer {
            Ok(_) => "done".into(),
            Err(kube::Error::Api(status)) => format!("{} {}", status.code, status.reason),
            Err(error) => error.to_string(),
        };
        self.told.push(format!("{what}: {told}"));
        answer.ok()
    }

    /// What is there now, as far as both servers should agree.
    async fn look<K: Kind>(&mut self, name: &str, parts: &[&str]) {
        let Some(found) = self.api::<K>().get_opt(name).await.unwrap() else {
            return self.told.push(format!("{name} is not there"));
        };
        let found = serde_json::to_value(&found).unwrap();
        let parts: Vec<&Value> = parts.iter().filter_map(|part| found.pointer(part)).collect();
        let metadata = &found["metadata"];
        self.told.push(format!(
            "{name}: {parts:?}, ending {}, finalizers {}",
            !metadata["deletionTimestamp"].is_null(),
            metadata["finalizers"]
        ));
    }

    async fn apply<K: Kind>(&mut self, what: &str, name: &str, object: Value) -> Option<K> {
        let params = PatchParams::apply("one").force();
        let answer = self
            .api::<K>()
            .patch(name, &params, &Patch::Apply(typed::<K>(object)))
            .await;
        self.note(what, answer)
    }

    async fn merge<K: Kind>(&mut self, what: &str, name: &str, patch: Value) -> Option<K> {
        let answer = self
            .api::<K>()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        self.note(what, answer)
    }

    async fn delete<K: Kind>(&mut self, what: &str, name: &str, params: DeleteParams) {
        let answer = self.api::<K>().delete(name, &params).await;
        self.note(what, answer);
    }
}

fn typed<K: Kind>(mut object: Value) -> Value {
    object["apiVersion"] = json!(K::api_version(&()));
    object["kind"] = json!(K::kind(&()));
    object
}

fn decided(uid: Option<String>, resource_version: Option<String>) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions {
        uid,
        resource_version,
    })
}

const OTHER_UID: &str = "7d9a1f0c-6e1b-4a55-9a53-0a2f6b0c1d2e";
const DATA: &[&str] = &["/data", "/metadata/annotations"];

async fn config_maps(notes: &mut Notes) {
    let wanted = |data: Value| json!({"metadata": {"name": "map", "annotations": {"x": "1"}}, "data": data});
    let uid = json!({"metadata": {"name": "map", "uid": OTHER_UID}});
    notes
        .apply::<ConfigMap>("apply by uid what is not there", "map", uid.clone())
        .await;
    let made = notes
        .apply::<ConfigMap>(
            "apply what is not there",
            "map",
            wanted(json!({"a": "1", "b": "2"})),
        )
        .await;
    let again = notes
        .apply::<ConfigMap>("apply the same", "map", wanted(json!({"a": "1", "b": "2"})))
        .await;
    let same = made.unwrap().resource_version() == again.as_ref().unwrap().resource_version();
    notes.told.push(format!("same version: {same}"));
    notes
        .merge::<ConfigMap>("merge more", "map", json!({"data": {"c": "3"}}))
        .await;
    notes.look::<ConfigMap>("map", DATA).await;
    notes
        .apply::<ConfigMap>("apply less", "map", wanted(json!({"a": "1"})))
        .await;
    notes.look::<ConfigMap>("map", DATA).await;
    notes
        .merge::<ConfigMap>("merge another value", "map", json!({"data": {"a": "9"}}))
        .await;
    notes
        .apply::<ConfigMap>("apply without it", "map", wanted(json!({"d": "4"})))
        .await;
    notes.look::<ConfigMap>("map", DATA).await;
    notes
        .apply::<ConfigMap>("apply another again", "map", wanted(json!({"a": "1", "c": "5"})))
        .await;
    notes.look::<ConfigMap>("map", DATA).await;
    notes
        .merge::<ConfigMap>(
            "merge null",
            "map",
            json!({"data": {"c": null}, "metadata": {"annotations": {"x": null}}}),
        )
        .await;
    notes.look::<ConfigMap>("map", DATA).await;

    let old = again.unwrap().resource_version();
    let stale = json!({"metadata": {"name": "map", "resourceVersion": old}});
    notes
        .apply::<ConfigMap>("apply to an old version", "map", stale.clone())
        .await;
    notes
        .apply::<ConfigMap>("apply to another uid", "map", uid.clone())
        .await;
    notes
        .merge::<ConfigMap>("merge into an old version", "map", stale)
        .await;
    notes
        .merge::<ConfigMap>("merge into another uid", "map", uid)
        .await;
    notes
        .merge::<ConfigMap>("merge into nothing", "none", json!({"data": {}}))
        .await;
    let object: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "map"}})).unwrap();
    let answer = notes
        .api::<ConfigMap>()
        .create(&PostParams::default(), &object)
        .await;
    notes.note("create what is there", answer);
    let answer = notes.api::<ConfigMap>().get("none").await;
    notes.note("get nothing", answer);
    notes
        .delete::<ConfigMap>("delete nothing", "none", DeleteParams::default())
        .await;
    notes
        .delete::<ConfigMap>("delete an old version", "map", decided(None, old))
        .await;
    notes
        .delete::<ConfigMap>("delete another uid", "map", decided(Some(OTHER_UID.into()), None))
        .await;
    notes
        .delete::<ConfigMap>("delete", "map", DeleteParams::background())
        .await;
    notes.look::<ConfigMap>("map", DATA).await;
}

async fn stateful_sets(notes: &mut Notes) {
    const PARTS: &[&str] = &["/spec/replicas", "/metadata/generation"];
    const STATUS: &[&str] = &[
        "/spec/replicas",
        "/metadata/generation",
        "/status/replicas",
        "/status/observedGeneration",
    ];
    let wanted = |replicas: i32| {
        json!({"metadata": {"name": "set"}, "spec": {
            "replicas": replicas, "serviceName": "x", "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "x", "image": "x"}]}},
        }})
    };
    notes.apply::<StatefulSet>("apply", "set", wanted(1)).await;
    notes
        .apply::<StatefulSet>("apply the same", "set", wanted(1))
        .await;
    notes.look::<StatefulSet>("set", PARTS).await;
    notes.apply::<StatefulSet>("apply more", "set", wanted(2)).await;
    notes.look::<StatefulSet>("set", PARTS).await;
    let status = json!({"spec": {"replicas": 7}, "status": {"replicas": 2, "observedGeneration": 2}});
    let sets = notes.api::<StatefulSet>();
    let patch = Patch::Merge(&status);
    let answer = sets.patch_status("set", &PatchParams::default(), &patch).await;
    notes.note("merge into the status", answer);
    notes.look::<StatefulSet>("set", STATUS).await;
    let both = json!({"metadata": {"annotations": {"x": "1"}}, "status": {"replicas": 9}});
    notes
        .merge::<StatefulSet>("merge a status into the rest", "set", both)
        .await;
    notes.look::<StatefulSet>("set", STATUS).await;
}

async fn clusters(notes: &mut Notes) {
    let object = json!({"metadata": {"name": "demo"}, "spec": {"members": 4}, "status": {"members": 9}});
    let object: DynamoCluster = serde_json::from_value(typed::<DynamoCluster>(object)).unwrap();
    let answer = notes
        .api::<DynamoCluster>()
        .create(&PostParams::default(), &object)
        .await;
    let made = notes.note("create", answer).unwrap();
    notes.look::<DynamoCluster>("demo", &["/spec", "/status"]).await;
    let say = async |notes: &mut Notes, what: &str, metadata: Value, status: Value| {
        let patch = typed::<DynamoCluster>(json!({"metadata": metadata, "status": status}));
        let (clusters, params) = (notes.api::<DynamoCluster>(), PatchParams::apply("status").force());
        let answer = clusters
            .patch_status("demo", &params, &Patch::Apply(&patch))
            .await;
        notes.note(what, answer);
        notes
            .look::<DynamoCluster>(
                "demo",
                &[
                    "/status/clusterId",
                    "/status/members",
                    "/status/conditions",
                    "/status/zones",
                    "/metadata/generation",
                ],
            )
            .await;
    };
    let condition = |type_: &str| {
        json!({
            "type": type_, "status": "True", "reason": "X", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2020-01-01T00:00:00Z",
        })
    };
    let uid = json!({"uid": made.uid()});
    let first =
        json!({"clusterId": "x", "members": 1, "conditions": [condition("A"), condition("B")], "zones": []});
    say(notes, "say", uid.clone(), first).await;
    say(
        notes,
        "say less",
        uid.clone(),
        json!({"members": 2, "conditions": [condition("B")]}),
    )
    .await;
    let old = json!({"resourceVersion": made.resource_version()});
    say(notes, "say of an old version", old, json!({"members": 3})).await;
    // Not asked: whether the uid counts. It does not.
    notes
        .merge::<DynamoCluster>("merge", "demo", json!({"spec": {"members": 5}}))
        .await;
    notes
        .look::<DynamoCluster>(
            "demo",
            &["/spec/members", "/status/members", "/metadata/generation"],
        )
        .await;
    let note = json!({"metadata": {"uid": made.uid(), "resourceVersion": made.resource_version(), "annotations": {"x": "1"}}});
    let (clusters, patch) = (notes.api::<DynamoCluster>(), Patch::Merge(&note));
    let answer = clusters
        .patch_metadata("demo", &PatchParams::default(), &patch)
        .await;
    notes.note("annotate an old version", answer);
    notes
        .delete::<DynamoCluster>("delete", "demo", DeleteParams::default())
        .await;
    notes.look::<DynamoCluster>("demo", &[]).await;
}

async fn pods_and_claims(notes: &mut Notes) {
    // Nobody here makes the one that a namespace has.
    let account = json!({"metadata": {"name": "default"}});
    notes
        .apply::<ServiceAccount>("apply an account", "default", account)
        .await;
    let security = json!({
        "runAsNonRoot": true, "runAsUser": 1, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    for (name, node) in [("placed", json!("worker-a")), ("waiting", Value::Null)] {
        let spec = json!({"nodeName": node, "containers": [{"name": "x", "image": "x", "securityContext": security}]});
        let pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        let answer = notes.api::<Pod>().create(&PostParams::default(), &pod).await;
        let made = notes.note("create a pod", answer).unwrap();
        notes
            .delete::<Pod>("delete another uid", name, decided(Some(OTHER_UID.into()), None))
            .await;
        notes
            .delete::<Pod>("delete this uid", name, decided(made.uid(), None))
            .await;
        notes.look::<Pod>(name, &[]).await;
        notes
            .delete::<Pod>("delete again", name, DeleteParams::default())
            .await;
        notes
            .delete::<Pod>("delete at once", name, DeleteParams::default().grace_period(0))
            .await;
        notes.look::<Pod>(name, &[]).await;
    }
    let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let claim = serde_json::from_value(json!({"metadata": {"name": "claim"}, "spec": spec})).unwrap();
    let answer = notes
        .api::<PersistentVolumeClaim>()
        .create(&PostParams::default(), &claim)
        .await;
    notes.note("create a claim", answer);
    notes
        .delete::<PersistentVolumeClaim>("delete", "claim", DeleteParams::default())
        .await;
    notes.look::<PersistentVolumeClaim>("claim", &[]).await;
    let free = json!({"metadata": {"finalizers": null}});
    notes
        .merge::<PersistentVolumeClaim>("free it", "claim", free)
        .await;
    notes.look::<PersistentVolumeClaim>("claim", &[]).await;
}

async fn lists_and_watches(notes: &mut Notes) {
    let labelled = |labels: Value| json!({"metadata": {"labels": labels}});
    let named = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
    let maps = notes.api::<ConfigMap>();
    let ours = ListParams::default().labels("app=x,part=y");
    let before = maps.list(&ours).await.unwrap();
    notes
        .apply::<ConfigMap>("apply one", "one", named("one", json!({"app": "x", "part": "y"})))
        .await;
    notes
        .apply::<ConfigMap>("apply two", "two", named("two", json!({"app": "x"})))
        .await;
    notes
        .merge::<ConfigMap>("change one", "one", json!({"data": {"a": "1"}}))
        .await;
    notes
        .merge::<ConfigMap>("label two", "two", labelled(json!({"part": "y"})))
        .await;
    notes
        .merge::<ConfigMap>("label one", "one", labelled(json!({"part": "z"})))
        .await;
    let found = maps.list(&ours).await.unwrap();
    notes.told.push(format!(
        "found {:?}",
        found.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>()
    ));
    notes
        .delete::<ConfigMap>("delete two", "two", DeleteParams::default())
        .await;

    let params = WatchParams::default().labels("app=x,part=y");
    let version = before.metadata.resource_version.unwrap();
    let watch = maps.watch(&params, &version).await.unwrap();
    let mut watch = std::pin::pin!(watch);
    for _ in 0..5 {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
        let Ok(Some(event)) = event else {
            notes.told.push("no more".into());
            break;
        };
        notes.told.push(match event.unwrap() {
            WatchEvent::Added(map) => format!("added {} {:?}", map.name_any(), map.data),
            WatchEvent::Modified(map) => format!("modified {} {:?}", map.name_any(), map.data),
            WatchEvent::Deleted(map) => format!("deleted {} {:?}", map.name_any(), map.data),
            other => format!("{other:?}"),
        });
    }
}

async fn asked(client: Client, namespace: String) -> Vec<String> {
    let mut notes = Notes {
        client,
        namespace,
        told: Vec::new(),
    };
    config_maps(&mut notes).await;
    stateful_sets(&mut notes).await;
    clusters(&mut notes).await;
    pods_and_claims(&mut notes).await;
    lists_and_watches(&mut notes).await;
    notes.told
}

#[tokio::test]
async fn the_simulated_api_server_answers_as_the_real_one() {
    let world = world::new("simulated").await;
    let simulated = Client::new(ApiServer::default(), "default");
    let real = asked(world.client.clone(), world.namespace.clone()).await;
    let simulated = asked(simulated, world.namespace).await;
    assert_eq!(simulated, real);
}
