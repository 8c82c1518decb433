//! What StatefulSet controller, scheduler, kubelet and garbage collector do, as far as the operator sees it: one turn
//! after the other, no time of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Node, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{api_server::merge, nodes::Nodes};

type Claims = BTreeMap<String, PersistentVolumeClaim>;

/// Kubernetes, but for its API server, in one namespace.
#[derive(Clone)]
pub struct Kubelet {
    /// With all rights.
    pub client: Client,
    /// Where.
    pub namespace: String,
    /// What runs in the pods.
    pub nodes: Nodes,
    /// Pods for which the scheduler finds no k8s node, though their claims exist.
    pub unschedulable: Names,
    /// Pods on k8s nodes of which nobody hears any more: those that are deleted end never.
    pub unheard: Names,
}

type Names = Arc<Mutex<BTreeSet<String>>>;

impl Kubelet {
    /// Of a namespace in which nothing runs yet.
    pub fn new(client: Client, namespace: String, nodes: Nodes) -> Self {
        Self {
            client,
            namespace,
            nodes,
            unschedulable: Names::default(),
            unheard: Names::default(),
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn list<K>(&self) -> Vec<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        self.api().list(&ListParams::default()).await.unwrap().items
    }

    /// Ends pods that are being deleted, makes missing ones, and reports on all.
    pub async fn turn(&self) {
        self.nodes.tick();
        let sets = self.list::<StatefulSet>().await;
        let mut pods = BTreeMap::new();
        for pod in self.list::<Pod>().await {
            let unheard = self.unheard.lock().unwrap().contains(&pod.name_any());
            if !unheard && (pod.metadata.deletion_timestamp.is_some() || self.surplus(&pod, &sets)) {
                self.end(&pod).await;
            } else {
                pods.insert(pod.name_any(), pod);
            }
        }
        let mut claims = self.end_claims(&pods).await;
        for set in &sets {
            let replicas = set.spec.as_ref().unwrap().replicas.unwrap();
            for ordinal in 0..replicas {
                let name = format!("{}-{ordinal}", set.name_any());
                let pod = match pods.remove(&name) {
                    Some(pod) => Some(pod),
                    None => self.create(set, &name, &mut claims).await,
                };
                if let Some(pod) = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
                    self.report(&pod, &claims).await;
                }
            }
            let status = json!({"replicas": replicas, "observedGeneration": set.metadata.generation});
            self.say(set, status).await;
        }
    }

    /// Its StatefulSet has fewer pods now, or is gone. K6: then no ring may list its member.
    fn surplus(&self, pod: &Pod, sets: &[StatefulSet]) -> bool {
        let name = pod.name_any();
        let Some(owner) = pod.owner_references().first() else {
            return false;
        };
        let set = sets.iter().find(|set| set.uid().as_ref() == Some(&owner.uid));
        let pods = set.map_or(0, |set| set.spec.as_ref().unwrap().replicas.unwrap());
        let ordinal: i32 = name.rsplit_once('-').unwrap().1.parse().unwrap();
        if ordinal < pods {
            return false;
        }
        assert!(!self.nodes.lists(&name), "{name} ends, and a ring lists it");
        true
    }

    /// Claims that are being deleted go once no pod uses them. K9, K10: then no ring may list the member, or its volume is
    /// lost. Returns those that are left.
    async fn end_claims(&self, pods: &BTreeMap<String, Pod>) -> Claims {
        let mut left = Claims::new();
        for claim in self.list::<PersistentVolumeClaim>().await {
            let name = claim.name_any();
            let member = name.strip_prefix("data-").unwrap();
            let pod = pods.get(member);
            let used = pod.is_some_and(|pod| pod.spec.as_ref().unwrap().node_name.is_some());
            if claim.metadata.deletion_timestamp.is_none() || used {
                left.insert(name, claim);
                continue;
            }
            let lost = self.unschedulable.lock().unwrap().contains(member);
            assert!(
                lost || !self.nodes.lists(member),
                "{name} goes, and a ring lists its member"
            );
            let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            let claims = self.api::<PersistentVolumeClaim>();
            claims.patch(&name, &PatchParams::default(), &free).await.unwrap();
        }
        left
    }

    /// The pod is gone at once.
    pub async fn end(&self, pod: &Pod) {
        if let Some(ip) = ip_of(pod) {
            self.nodes.stop(ip);
        }
        self.api::<Pod>()
            .delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
    }

    async fn create(&self, set: &StatefulSet, name: &str, claims: &mut Claims) -> Option<Pod> {
        let spec = serde_json::to_value(set.spec.as_ref().unwrap()).unwrap();
        let claim_name = format!("data-{name}");
        let found = claims.get(&claim_name);
        if found.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some()) {
            return None;
        }
        // A volume that is made anew is made where its pod can run.
        if found.is_none() {
            self.unschedulable.lock().unwrap().remove(name);
            let mut claim = spec["volumeClaimTemplates"][0].clone();
            claim["metadata"]["name"] = json!(claim_name);
            let claim = serde_json::from_value(claim).unwrap();
            let api = self.api::<PersistentVolumeClaim>();
            let claim = api.create(&PostParams::default(), &claim).await.unwrap();
            claims.insert(claim_name.clone(), claim);
        }
        let mut pod = json!({"metadata": spec["template"]["metadata"], "spec": spec["template"]["spec"]});
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": set.name_any(),
            "uid": set.uid(), "controller": true,
        }]);
        pod["spec"]["volumes"].as_array_mut().unwrap().push(json!({
            "name": "data", "persistentVolumeClaim": {"claimName": claim_name},
        }));
        if !self.unschedulable.lock().unwrap().contains(name) {
            pod["spec"]["nodeName"] = json!(self.schedule(&pod["spec"]["nodeSelector"]).await);
        }
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let pods = self.api::<Pod>();
        Some(pods.create(&PostParams::default(), &pod).await.unwrap())
    }

    async fn schedule(&self, selector: &Value) -> Option<String> {
        let nodes = Api::<Node>::all(self.client.clone())
            .list(&ListParams::default())
            .await
            .unwrap();
        let fits = |node: &&Node| {
            let mut wanted = selector.as_object().into_iter().flatten();
            wanted.all(|(key, value)| node.labels().get(key).map(String::as_str) == value.as_str())
        };
        nodes.items.iter().find(fits).map(Node::name_any)
    }

    async fn report(&self, pod: &Pod, claims: &Claims) {
        let spec = pod.spec.as_ref().unwrap();
        if spec.node_name.is_none() {
            let status = json!({"phase": "Pending", "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 node(s) had volume node affinity conflict",
                "lastTransitionTime": "2020-01-01T00:00:00Z",
            }]});
            return self.say(pod, status).await;
        }
        let ip = ip_of(pod).unwrap_or_else(fresh_ip);
        let bad = spec.containers[0]
            .image
            .as_deref()
            .is_some_and(|i| i.contains("bad"));
        if !bad {
            let claim = &claims[&format!("data-{}", pod.name_any())];
            self.nodes.start(ip, claim.metadata.uid.as_ref().unwrap());
        }
        let ready = !bad && self.nodes.valid(ip);
        let state = if bad {
            json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}})
        } else {
            json!({"running": {}})
        };
        let status = json!({
            "phase": if bad { "Pending" } else { "Running" },
            "podIP": ip.to_string(),
            "podIPs": [{"ip": ip.to_string()}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            "containerStatuses": [{
                "name": "node", "image": "x", "imageID": "x", "ready": ready, "restartCount": 0, "state": state,
            }],
        });
        self.say(pod, status).await;
    }

    /// Writes a status, unless it says so already.
    async fn say<K>(&self, object: &K, status: Value)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::Serialize
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let before = serde_json::to_value(object).unwrap();
        let mut after = before.clone();
        let patch = json!({"status": status});
        merge(&mut after, &patch);
        if before == after {
            return;
        }
        let patch = Patch::Merge(patch);
        let api = self.api::<K>();
        let name = object.name_any();
        api.patch_status(&name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// Deletes what a DynamoCluster that is gone owned, as the garbage collector does.
    pub async fn collect_garbage(&self, owner_uid: &str) {
        let now = DeleteParams::default().grace_period(0);
        for set in self.list::<StatefulSet>().await {
            if set.owner_references().iter().any(|owner| owner.uid == owner_uid) {
                self.api::<StatefulSet>()
                    .delete(&set.name_any(), &DeleteParams::default())
                    .await
                    .unwrap();
            }
        }
        for pod in self.list::<Pod>().await {
            if let Some(ip) = ip_of(&pod) {
                self.nodes.stop(ip);
            }
            self.api::<Pod>().delete(&pod.name_any(), &now).await.unwrap();
        }
        self.collect::<k8s_openapi::api::core::v1::Service>(owner_uid)
            .await;
        self.collect::<k8s_openapi::api::core::v1::ConfigMap>(owner_uid)
            .await;
        self.collect::<k8s_openapi::api::core::v1::ServiceAccount>(owner_uid)
            .await;
        self.collect::<k8s_openapi::api::policy::v1::PodDisruptionBudget>(owner_uid)
            .await;
        self.collect::<PersistentVolumeClaim>(owner_uid).await;
    }

    async fn collect<K>(&self, owner_uid: &str)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        for object in self.list::<K>().await {
            if object
                .owner_references()
                .iter()
                .any(|owner| owner.uid == owner_uid)
            {
                self.api::<K>()
                    .delete(&object.name_any(), &DeleteParams::default())
                    .await
                    .unwrap();
                // No pod uses a claim any more: its protection ends.
                let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                if self
                    .api::<K>()
                    .get_opt(&object.name_any())
                    .await
                    .unwrap()
                    .is_some()
                {
                    let params = PatchParams::default();
                    self.api::<K>()
                        .patch(&object.name_any(), &params, &free)
                        .await
                        .unwrap();
                }
            }
        }
    }
}

/// Its address, once it has one.
pub fn ip_of(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

fn fresh_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    IpAddr::from([10, 200, (number >> 8) as u8, number as u8])
}
