//! A namespace with one DynamoCluster, its nodes, and operators that can be killed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use dynamo_operator::{
    controller::{Context, ReconcileError, reconcile, validate::Defaults},
    crd::{DynamoCluster, DynamoClusterStatus, conditions::find},
    telemetry::Metrics,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
    client::ClientBuilder,
    runtime::{
        controller::Action,
        events::{Recorder, Reporter},
    },
};
use serde_json::{Value, json};

use super::{
    faults::Faults,
    kubelet::{Kubelet, ip_of},
    nodes::{Nodes, Reached},
    server::{self, OPERATOR, Server},
};

pub struct World {
    pub server: &'static Server,
    pub client: Client,
    pub namespace: String,
    pub nodes: Nodes,
    pub kubelet: Kubelet,
}

/// One life of an operator.
pub struct Operator {
    pub context: Arc<Context<Reached>>,
    pub faults: Faults,
}

impl World {
    pub async fn new(purpose: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = server::shared().await;
        let client = server.client();
        let namespace = format!("{purpose}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        // Pods that break the restricted profile would be refused (K32).
        let object = json!({"metadata": {
            "name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        }});
        let namespaces = Api::<Namespace>::all(client.clone());
        namespaces
            .create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
        let nodes = Nodes::default();
        let kubelet = Kubelet {
            client: client.clone(),
            namespace: namespace.clone(),
            nodes: nodes.clone(),
            unschedulable: Arc::default(),
        };
        Self {
            server,
            client,
            namespace,
            nodes,
            kubelet,
        }
    }

    /// A namespace in which the DynamoCluster `demo` serves.
    pub async fn serving(purpose: &str, spec: Value) -> (Self, Operator) {
        let world = Self::new(purpose).await;
        world.create("demo", spec).await.unwrap();
        let operator = world.operator();
        world.drive(&operator, "demo", "AllMembersValid").await;
        (world, operator)
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

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

    pub async fn change(&self, name: &str, spec: Value) -> kube::Result<DynamoCluster> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api::<DynamoCluster>()
            .patch(name, &PatchParams::default(), &patch)
            .await
    }

    pub fn operator(&self) -> Operator {
        self.operator_with(Faults::default())
    }

    /// Under the chart's RBAC.
    pub fn operator_with(&self, faults: Faults) -> Operator {
        let config = self.server.config_as(OPERATOR);
        let client = ClientBuilder::try_from(config)
            .unwrap()
            .with_layer(&faults)
            .build();
        let context = Context {
            recorder: Recorder::new(
                client.clone(),
                Reporter {
                    controller: "dynamo-operator".into(),
                    instance: Some("test".into()),
                },
            ),
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

    pub async fn get(&self, name: &str) -> DynamoCluster {
        self.api::<DynamoCluster>().get(name).await.unwrap()
    }

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

    pub async fn pods(&self) -> Vec<Pod> {
        self.api::<Pod>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
    }

    pub async fn pod(&self, name: &str) -> Pod {
        self.api::<Pod>().get(name).await.unwrap()
    }

    pub async fn ip(&self, pod: &str) -> std::net::IpAddr {
        ip_of(&self.pod(pod).await).unwrap()
    }

    pub async fn claim_uid(&self, claim: &str) -> String {
        self.api::<PersistentVolumeClaim>()
            .get(claim)
            .await
            .unwrap()
            .uid()
            .unwrap()
    }

    /// `type reason` of every event, oldest first.
    pub async fn events(&self) -> Vec<String> {
        let api = self.api::<k8s_openapi::api::events::v1::Event>();
        let mut events = api.list(&ListParams::default()).await.unwrap().items;
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        let text = |event: &k8s_openapi::api::events::v1::Event| {
            format!(
                "{} {}",
                event.type_.as_deref().unwrap_or(""),
                event.reason.as_deref().unwrap_or("")
            )
        };
        events.iter().map(text).collect()
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
            let gvk = kube::api::GroupVersionKind::gvk(group, version, kind);
            let resource = kube::api::ApiResource::from_gvk(&gvk);
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
}

impl Operator {
    pub async fn pass(&self, cluster: &DynamoCluster) -> Result<Action, ReconcileError> {
        let pass = reconcile(Arc::new(cluster.clone()), self.context.clone());
        tokio::time::timeout(Duration::from_secs(30), pass)
            .await
            .expect("a pass has to end")
    }
}

pub fn ready_reason(status: &DynamoClusterStatus) -> &str {
    find(&status.conditions, "Ready").map_or("", |ready| ready.reason.as_str())
}

pub fn truth<'a>(status: &'a DynamoClusterStatus, type_: &str) -> &'a str {
    find(&status.conditions, type_).map_or("", |condition| condition.status.as_str())
}

pub fn message<'a>(status: &'a DynamoClusterStatus, type_: &str) -> &'a str {
    find(&status.conditions, type_).map_or("", |condition| condition.message.as_str())
}
