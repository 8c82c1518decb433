//! What StatefulSet controller, scheduler, kubelet and garbage collector do, as far as the operator sees it: one turn
//! after the other, no time of its own.

use std::{
    collections::BTreeSet,
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

use super::nodes::Nodes;

#[derive(Clone)]
pub struct Kubelet {
    pub client: Client,
    pub namespace: String,
    pub nodes: Nodes,
    /// Pods for which the scheduler finds no k8s node, though their claims exist.
    pub unschedulable: Arc<Mutex<BTreeSet<String>>>,
}

impl Kubelet {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Ends pods that are being deleted, makes missing ones, and reports on all.
    pub async fn turn(&self) {
        self.nodes.tick();
        for pod in self.api::<Pod>().list(&ListParams::default()).await.unwrap() {
            if pod.metadata.deletion_timestamp.is_some() || self.surplus(&pod).await {
                self.end(&pod).await;
            }
        }
        self.end_claims().await;
        for set in self
            .api::<StatefulSet>()
            .list(&ListParams::default())
            .await
            .unwrap()
        {
            let spec = set.spec.clone().unwrap();
            for ordinal in 0..spec.replicas.unwrap() {
                let name = format!("{}-{ordinal}", set.name_any());
                if self.api::<Pod>().get_opt(&name).await.unwrap().is_none() {
                    self.create(&set, &name).await;
                }
                self.report(&name).await;
            }
            let status = json!({"status": {
                "replicas": spec.replicas, "observedGeneration": set.metadata.generation,
            }});
            let api = self.api::<StatefulSet>();
            api.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(status))
                .await
                .unwrap();
        }
    }

    /// Its StatefulSet has fewer pods now, or is gone. K6: then no ring may list its member.
    async fn surplus(&self, pod: &Pod) -> bool {
        let name = pod.name_any();
        let Some(owner) = pod.owner_references().first().cloned() else {
            return false;
        };
        let set = self.api::<StatefulSet>().get_opt(&owner.name).await.unwrap();
        let set = set.filter(|set| set.uid().as_ref() == Some(&owner.uid));
        let pods = set.map_or(0, |set| set.spec.unwrap().replicas.unwrap());
        let ordinal: i32 = name.rsplit_once('-').unwrap().1.parse().unwrap();
        if ordinal < pods {
            return false;
        }
        assert!(!self.nodes.lists(&name), "{name} ends, and a ring lists it");
        true
    }

    /// Claims that are being deleted go once no pod uses them. K9, K10: then no ring may list the member, or its volume is
    /// lost.
    async fn end_claims(&self) {
        let api = self.api::<PersistentVolumeClaim>();
        for claim in api.list(&ListParams::default()).await.unwrap() {
            let name = claim.name_any();
            let member = name.strip_prefix("data-").unwrap();
            let pod = self.api::<Pod>().get_opt(member).await.unwrap();
            let used = pod.is_some_and(|pod| pod.spec.unwrap().node_name.is_some());
            if claim.metadata.deletion_timestamp.is_none() || used {
                continue;
            }
            let lost = self.unschedulable.lock().unwrap().contains(member);
            assert!(
                lost || !self.nodes.lists(member),
                "{name} goes, and a ring lists its member"
            );
            let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            api.patch(&name, &PatchParams::default(), &free).await.unwrap();
        }
    }

    async fn end(&self, pod: &Pod) {
        if let Some(ip) = ip_of(pod) {
            self.nodes.stop(ip);
        }
        self.api::<Pod>()
            .delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
    }

    async fn create(&self, set: &StatefulSet, name: &str) {
        let spec = serde_json::to_value(set.spec.as_ref().unwrap()).unwrap();
        let claim_name = format!("data-{name}");
        let claims = self.api::<PersistentVolumeClaim>();
        let found = claims.get_opt(&claim_name).await.unwrap();
        if found
            .as_ref()
            .is_some_and(|claim| claim.metadata.deletion_timestamp.is_some())
        {
            return;
        }
        if found.is_none() {
            let mut claim = spec["volumeClaimTemplates"][0].clone();
            claim["metadata"]["name"] = json!(claim_name);
            claims
                .create(&PostParams::default(), &serde_json::from_value(claim).unwrap())
                .await
                .unwrap();
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
        // A volume that is made anew is made where its pod can run.
        if found.is_none() {
            self.unschedulable.lock().unwrap().remove(name);
        }
        if !self.unschedulable.lock().unwrap().contains(name) {
            pod["spec"]["nodeName"] = json!(self.schedule(&pod["spec"]["nodeSelector"]).await);
        }
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.api::<Pod>()
            .create(&PostParams::default(), &pod)
            .await
            .unwrap();
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

    async fn report(&self, name: &str) {
        let Some(pod) = self.api::<Pod>().get_opt(name).await.unwrap() else {
            return;
        };
        if pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        if pod.spec.as_ref().unwrap().node_name.is_none() {
            self.report_unscheduled(name).await;
            return;
        }
        let ip = ip_of(&pod).unwrap_or_else(fresh_ip);
        let bad = pod.spec.as_ref().unwrap().containers[0]
            .image
            .as_deref()
            .is_some_and(|i| i.contains("bad"));
        let claim = self
            .api::<PersistentVolumeClaim>()
            .get(&format!("data-{name}"))
            .await
            .unwrap();
        if !bad {
            self.nodes.start(ip, &claim.uid().unwrap());
        }
        let ready = !bad && self.nodes.valid(ip);
        let state = if bad {
            json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}})
        } else {
            json!({"running": {}})
        };
        let status = json!({"status": {
            "phase": if bad { "Pending" } else { "Running" },
            "podIP": ip.to_string(),
            "podIPs": [{"ip": ip.to_string()}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            "containerStatuses": [{
                "name": "node", "image": "x", "imageID": "x", "ready": ready, "restartCount": 0, "state": state,
            }],
        }});
        self.api::<Pod>()
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    async fn report_unscheduled(&self, name: &str) {
        let status = json!({"status": {"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 node(s) had volume node affinity conflict",
            "lastTransitionTime": "2020-01-01T00:00:00Z",
        }]}});
        self.api::<Pod>()
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    /// Deletes what a DynamoCluster that is gone owned, as the garbage collector does.
    pub async fn collect_garbage(&self, owner_uid: &str) {
        let now = DeleteParams::default().grace_period(0);
        for set in self
            .api::<StatefulSet>()
            .list(&ListParams::default())
            .await
            .unwrap()
        {
            if set.owner_references().iter().any(|owner| owner.uid == owner_uid) {
                self.api::<StatefulSet>()
                    .delete(&set.name_any(), &DeleteParams::default())
                    .await
                    .unwrap();
            }
        }
        for pod in self.api::<Pod>().list(&ListParams::default()).await.unwrap() {
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
        for object in self.api::<K>().list(&ListParams::default()).await.unwrap() {
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

pub fn ip_of(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

fn fresh_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    IpAddr::from([10, 200, (number >> 8) as u8, number as u8])
}
