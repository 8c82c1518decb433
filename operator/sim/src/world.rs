//! A namespace with one DynamoCluster, its nodes, and operators that can be killed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use dynamo_operator::{
    controller::{Context, ReconcileError, names, reconcile, validate::Defaults},
    crd::{DynamoCluster, DynamoClusterStatus, conditions::find},
    telemetry::Metrics,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolumeClaim, Pod},
    events::v1::Event,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams},
    runtime::{
        controller::Action,
        events::{Recorder, Reporter},
    },
};
use serde_json::{Value, json};
use tower::Layer as _;

use crate::{
    api_server::ApiServer,
    faults::Faults,
    kubelet::{Kubelet, ip_of},
    nodes::{Nodes, Reached},
};

/// Makes the client of an operator.
type Clients = Arc<dyn Fn(&Faults) -> Client + Send + Sync>;

/// See above. The DynamoCluster is called `demo`.
pub struct World {
    /// With all rights.
    pub client: Client,
    /// Where.
    pub namespace: String,
    /// What runs in pods.
    pub nodes: Nodes,
    /// The rest of Kubernetes.
    pub kubelet: Kubelet,
    clients: Clients,
}

/// One life of an operator.
pub struct Operator {
    /// What it is made of.
    pub context: Arc<Context<Reached>>,
    /// What becomes of its calls.
    pub faults: Faults,
}

/// A k8s node, in a zone of its own.
pub fn k8s_node(zone: &str) -> Node {
    let name = format!("worker-{zone}");
    let labels = json!({names::TOPOLOGY_ZONE: zone, names::HOSTNAME: name});
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
}

/// A simulated Kubernetes, with a k8s node in each of three zones.
pub struct Simulated {
    /// Its API server.
    pub server: ApiServer,
    /// All the rest.
    pub world: World,
}

impl Simulated {
    /// Nothing runs yet.
    pub async fn new() -> Self {
        let simulated = Self::on(ApiServer::default(), Nodes::default());
        let nodes = Api::<Node>::all(simulated.world.client.clone());
        for zone in ["a", "b", "c"] {
            nodes
                .create(&PostParams::default(), &k8s_node(zone))
                .await
                .unwrap();
        }
        // An operator that sees fewer k8s nodes finds fewer zones, rightly.
        simulated.server.forget();
        simulated
    }

    /// The DynamoCluster serves.
    pub async fn serving(spec: Value) -> Self {
        let simulated = Self::new().await;
        simulated.world.serve(spec).await;
        simulated
    }

    /// Another Kubernetes where everything is the same, and which goes its own way from here.
    #[must_use]
    pub fn fork(&self) -> Self {
        let fork = Self::on(self.server.fork(), self.world.nodes.fork());
        let (old, new) = (&self.world.kubelet, &fork.world.kubelet);
        new.unschedulable
            .lock()
            .unwrap()
            .clone_from(&old.unschedulable.lock().unwrap());
        new.unheard
            .lock()
            .unwrap()
            .clone_from(&old.unheard.lock().unwrap());
        fork
    }

    fn on(server: ApiServer, nodes: Nodes) -> Self {
        let clients = server.clone();
        let clients = move |faults: &Faults| Client::new(faults.layer(clients.clone()), "default");
        let client = Client::new(server.clone(), "default");
        let world = World::of(client, "simulated".into(), nodes, Arc::new(clients));
        Self { server, world }
    }
}

impl World {
    /// A namespace of an API server, for which `clients` makes those of operators.
    pub async fn new(client: Client, namespace: String, clients: Clients) -> Self {
        // Pods that break the restricted profile would be refused (K32).
        let object = json!({"metadata": {
            "name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        }});
        let namespaces = Api::<Namespace>::all(client.clone());
        let object = serde_json::from_value(object).unwrap();
        namespaces.create(&PostParams::default(), &object).await.unwrap();
        Self::of(client, namespace, Nodes::default(), clients)
    }

    fn of(client: Client, namespace: String, nodes: Nodes, clients: Clients) -> Self {
        Self {
            kubelet: Kubelet::new(client.clone(), namespace.clone(), nodes.clone()),
            client,
            namespace,
            nodes,
            clients,
        }
    }

    /// Has the DynamoCluster come to serve, by an operator that goes on from there.
    pub async fn serve(&self, spec: Value) -> Operator {
        self.create("demo", spec).await.unwrap();
        let operator = self.operator();
        self.drive(&operator, "demo", "AllMembersValid").await;
        operator
    }

    /// Objects of the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A DynamoCluster.
    pub async fn create(&self, name: &str, spec: Value) -> kube::Result<DynamoCluster> {
        let object = json!({
            "apiVersion": "dynamo.rs/v1alpha1", "kind": "DynamoCluster",
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
        });
        // As kubectl does: only what the user wrote, and unknown fields are refused.
        let path = format!(
            "/apis/dynamo.rs/v1alpha1/namespaces/{}/dynamoclusters?fieldValidation=Strict",
            self.namespace
        );
        let body = serde_json::to_vec(&object).unwrap();
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(body);
        self.client.request(request.unwrap()).await
    }

    /// Other words in a spec.
    pub async fn change(&self, name: &str, spec: Value) -> kube::Result<DynamoCluster> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api::<DynamoCluster>()
            .patch(name, &PatchParams::default(), &patch)
            .await
    }

    /// So many members are wanted.
    pub async fn members(&self, members: u32) {
        self.change("demo", json!({"members": members})).await.unwrap();
    }

    /// Somebody wants its data away from this pod.
    pub async fn evacuate(&self, pod: &str) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {names::EVACUATE: "true"}}}));
        let pods = self.api::<Pod>();
        pods.patch(pod, &PatchParams::default(), &patch).await.unwrap();
    }

    /// One for which nothing goes wrong.
    pub fn operator(&self) -> Operator {
        self.operator_with(Faults::default())
    }

    /// One with these faults.
    pub fn operator_with(&self, faults: Faults) -> Operator {
        self.operator_on((self.clients)(&faults), faults)
    }

    /// One that has this client.
    pub fn operator_on(&self, client: Client, faults: Faults) -> Operator {
        let reporter = Reporter {
            controller: "dynamo-operator".into(),
            instance: Some("test".into()),
        };
        let context = Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            admin: Reached {
                nodes: self.nodes.clone(),
                faults: faults.clone(),
            },
            defaults: Defaults {
                image: "dynamo-node:test".into(),
            },
            metrics: Metrics::new().unwrap(),
            now: Timestamp::now,
            failures: std::sync::Mutex::default(),
        };
        Operator {
            context: Arc::new(context),
            faults,
        }
    }

    /// A DynamoCluster as it is.
    pub async fn get(&self, name: &str) -> DynamoCluster {
        self.api::<DynamoCluster>().get(name).await.unwrap()
    }

    /// What is said about it.
    pub async fn status(&self, name: &str) -> DynamoClusterStatus {
        self.get(name).await.status.unwrap_or_default()
    }

    /// Passes and turns of Kubernetes until Ready has this reason.
    pub async fn drive(&self, operator: &Operator, name: &str, reason: &str) {
        for _ in 0..60 {
            let _ = operator.pass(&self.get(name).await).await;
            if operator.faults.dead() {
                return;
            }
            if ready_reason(&self.status(name).await) == reason {
                return;
            }
            self.kubelet.turn().await;
        }
        panic!("{name} did not come to {reason}: {:#?}", self.status(name).await);
    }

    /// Everything is as the newest spec asks.
    pub async fn settled(&self) -> bool {
        let cluster = self.get("demo").await;
        settled(&cluster) && self.pods().await.len() == usize::try_from(cluster.spec.members).unwrap()
    }

    /// Passes and turns of Kubernetes until everything is as the spec asks, or the operator is dead.
    pub async fn settle(&self, operator: &Operator) {
        for _ in 0..60 {
            let _ = operator.pass(&self.get("demo").await).await;
            if operator.faults.dead() || self.settled().await {
                return;
            }
            self.kubelet.turn().await;
        }
        panic!("the cluster did not settle: {:#?}", self.status("demo").await);
    }

    /// So many passes, and a turn of Kubernetes after each.
    pub async fn rounds(&self, operator: &Operator, count: u32) {
        for _ in 0..count {
            let _ = operator.pass(&self.get("demo").await).await;
            self.kubelet.turn().await;
        }
    }

    /// All of them.
    pub async fn pods(&self) -> Vec<Pod> {
        let pods = self.api::<Pod>().list(&ListParams::default()).await;
        pods.unwrap().items
    }

    /// Their names.
    pub async fn pod_names(&self) -> Vec<String> {
        let pods = self.pods().await;
        pods.iter().map(kube::ResourceExt::name_any).collect()
    }

    /// One.
    pub async fn pod(&self, name: &str) -> Pod {
        self.api::<Pod>().get(name).await.unwrap()
    }

    /// Its address.
    pub async fn ip(&self, pod: &str) -> std::net::IpAddr {
        ip_of(&self.pod(pod).await).unwrap()
    }

    /// Name and UID of every claim, and whether it is noted that its member left.
    pub async fn claims(&self) -> Vec<(String, String, bool)> {
        let claims = self.api::<PersistentVolumeClaim>();
        let claims = claims.list(&ListParams::default()).await.unwrap();
        let facts = |claim: &PersistentVolumeClaim| {
            let left = claim.annotations().contains_key(names::LEFT);
            (claim.name_any(), claim.uid().unwrap(), left)
        };
        claims.iter().map(facts).collect()
    }

    /// Which claim of this name.
    pub async fn claim_uid(&self, claim: &str) -> String {
        let claims = self.api::<PersistentVolumeClaim>();
        claims.get(claim).await.unwrap().uid().unwrap()
    }

    /// `type reason` of every event, oldest first.
    pub async fn events(&self) -> Vec<String> {
        let mut events = self
            .api::<Event>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items;
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        let text = |event: &Event| {
            format!(
                "{} {}",
                event.type_.as_deref().unwrap_or(""),
                event.reason.as_deref().unwrap_or("")
            )
        };
        events.iter().map(text).collect()
    }

    /// All of these have happened.
    pub async fn happened(&self, expected: &[&str]) {
        let events = self.events().await;
        for event in expected {
            assert!(
                events.iter().any(|found| found == event),
                "{event} is missing in {events:?}"
            );
        }
    }

    /// Name and version of every object of the namespace that an operator could write.
    pub async fn versions(&self) -> Vec<(String, String)> {
        let mut versions = Vec::new();
        for (group, version, kind) in [
            ("", "v1", "Service"),
            ("", "v1", "ConfigMap"),
            ("", "v1", "ServiceAccount"),
            ("", "v1", "Pod"),
            ("", "v1", "PersistentVolumeClaim"),
            ("apps", "v1", "StatefulSet"),
            ("policy", "v1", "PodDisruptionBudget"),
            ("events.k8s.io", "v1", "Event"),
            ("dynamo.rs", "v1alpha1", "DynamoCluster"),
        ] {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &self.namespace, &resource);
            for object in api.list(&ListParams::default()).await.unwrap() {
                versions.push((
                    format!("{kind}/{}", object.name_any()),
                    object.resource_version().unwrap(),
                ));
            }
        }
        versions.sort();
        versions
    }

    /// What has come about, without what differs from run to run.
    pub async fn end_state(&self) -> Value {
        let cluster = self.get("demo").await;
        let status = cluster.status.clone().unwrap_or_default();
        let names = self.versions().await.into_iter().map(|(name, _)| name);
        let objects: BTreeSet<String> = names.filter(|name| !name.starts_with("Event/")).collect();
        let mut volumes = Vec::new();
        for (claim, uid, left) in self.claims().await {
            let volume = self.nodes.volume(&uid).unwrap();
            let (cluster, member, zone) = volume.identity.unwrap();
            assert_eq!(Some(cluster.to_string()), status.cluster_id);
            volumes.push(json!([claim, left, member, zone, volume.ring.unwrap().epoch()]));
        }
        json!({
            "objects": objects,
            "volumes": volumes,
            "zones": status.zones,
            "nodes": status.nodes.iter().map(|node| json!([node.name, node.zone, node.state])).collect::<Vec<_>>(),
            "conditions": status.conditions.iter().map(|c| json!([c.type_, c.status, c.reason])).collect::<Vec<_>>(),
            "rings": self.nodes.rings_minted(),
            "layout": cluster.annotations()[names::LAYOUT],
        })
    }
}

impl Operator {
    /// One pass.
    pub async fn pass(&self, cluster: &DynamoCluster) -> Result<Action, ReconcileError> {
        let pass = reconcile(Arc::new(cluster.clone()), self.context.clone());
        tokio::time::timeout(Duration::from_secs(30), pass)
            .await
            .expect("a pass has to end")
    }
}

/// Everything is said to be as the newest spec asks.
pub fn settled(cluster: &DynamoCluster) -> bool {
    let status = cluster.status.clone().unwrap_or_default();
    let wanted = cluster.spec.members;
    status.observed_generation == cluster.metadata.generation
        && (ready_reason(&status), truth(&status, "Reconciling")) == ("AllMembersValid", "False")
        && (status.members, status.ready_members) == (wanted, wanted)
}

/// Why it is Ready or not.
pub fn ready_reason(status: &DynamoClusterStatus) -> &str {
    find(&status.conditions, "Ready").map_or("", |ready| ready.reason.as_str())
}

/// `True`, `False` or `Unknown`.
pub fn truth<'a>(status: &'a DynamoClusterStatus, type_: &str) -> &'a str {
    find(&status.conditions, type_).map_or("", |condition| condition.status.as_str())
}

/// What a condition says to people.
pub fn message<'a>(status: &'a DynamoClusterStatus, type_: &str) -> &'a str {
    find(&status.conditions, type_).map_or("", |condition| condition.message.as_str())
}
