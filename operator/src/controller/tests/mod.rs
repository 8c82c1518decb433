//! Tests of the pure steps. Every fixture goes through the real validate.

mod change;
mod changing;
mod golden;
mod layout;
mod plan;
mod status;

use std::{net::IpAddr, sync::Arc};

use dynamo_core::{
    ring::{Member, Placement, Ring},
    types::{ClusterId, MemberId, Zone},
};
use dynamo_proto::admin as pb;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{
    build::{Desired, build},
    names,
    observe::{Container, K8sNode, Observed, PodFacts, StatefulSetFacts, template_hash},
    plan::{Stance, Step, plan},
    validate::{Defaults, ValidateError, ValidatedCluster, validate},
};
use crate::{
    admin::{NodeReport, NodeState},
    crd::DynamoCluster,
};

const UID: &str = "7d9a1f0c-6e1b-4a55-9a53-0a2f6b0c1d2e";

fn defaults() -> Defaults {
    Defaults {
        image: "dynamo-node:test".into(),
    }
}

fn cluster(spec: &Value) -> DynamoCluster {
    serde_json::from_value(json!({
        "apiVersion": "dynamo.rs/v1alpha1",
        "kind": "DynamoCluster",
        "metadata": {
            "name": "demo", "namespace": "shop", "uid": UID, "resourceVersion": "7", "generation": 4,
        },
        "spec": spec,
    }))
    .unwrap()
}

/// A k8s node for each zone named; the empty name stands for no label.
fn k8s_nodes(zones: &[&str]) -> Vec<K8sNode> {
    let node = |(index, zone): (usize, &&str)| K8sNode {
        name: format!("worker-{index}"),
        labels: [(names::TOPOLOGY_ZONE, *zone), (names::HOSTNAME, "worker")]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        ..K8sNode::default()
    };
    zones.iter().enumerate().map(node).collect()
}

/// A cluster with everything that the operator would read about it.
struct World {
    source: DynamoCluster,
    observed: Observed,
}

impl World {
    /// Nothing is there yet but k8s nodes in zones a, b and c.
    #[allow(clippy::needless_pass_by_value, reason = "takes what json! makes")]
    fn new(spec: Value) -> Self {
        let observed = Observed {
            k8s_nodes: Some(k8s_nodes(&["a", "b", "c"])),
            ..Observed::default()
        };
        Self {
            source: cluster(&spec),
            observed,
        }
    }

    /// Id and zones are written down.
    fn founded(spec: Value) -> Self {
        let mut world = Self::new(spec);
        world.found();
        world
    }

    fn found(&mut self) {
        let valid = self.validated().unwrap();
        let layout: Vec<_> = valid.zones.iter().map(|zone| &zone.layout).collect();
        let annotations = self.source.annotations_mut();
        annotations.insert(names::LAYOUT.into(), serde_json::to_string(&layout).unwrap());
        annotations.insert(names::CLUSTER_ID.into(), valid.cluster_id.to_string());
    }

    /// StatefulSets and running pods are there, and every node is unassigned.
    fn started(spec: Value) -> Self {
        let mut world = Self::founded(spec);
        let valid = world.validated().unwrap();
        let desired = build(&valid).unwrap();
        for (zone, set) in valid.zones.iter().zip(&desired.stateful_sets) {
            let facts = StatefulSetFacts {
                zone: zone.layout.zone.clone(),
                members: zone.layout.members,
                weight: zone.layout.weight,
                cluster_id: Some(valid.cluster_id.to_string()),
                claim_size: Some(zone.claim_size.clone()),
                template_hash: template_hash(set),
                current: true,
                ..StatefulSetFacts::default()
            };
            world.observed.stateful_sets.insert(set.name_any(), facts);
        }
        world.run_missing_pods();
        world
    }

    /// Kubernetes makes the StatefulSets as they are wanted, and the pods that they lack, with empty volumes.
    fn run_missing_pods(&mut self) {
        let valid = self.validated().unwrap();
        for zone in &valid.zones {
            let newest = self.observed.stateful_sets.values().next().cloned();
            let set = self
                .observed
                .stateful_sets
                .entry(zone.layout.stateful_set.clone());
            let set = set.or_insert_with(|| StatefulSetFacts {
                zone: zone.layout.zone.clone(),
                ..newest.unwrap_or_default()
            });
            set.members = zone.pods;
        }
        for member in valid.members() {
            if self.observed.pods.contains_key(&member.id()) {
                continue;
            }
            let index = self.observed.pods.len();
            let set = &self.observed.stateful_sets[&member.zone.layout.stateful_set];
            let zone = &member.zone.layout.zone;
            let mut hosts = self.observed.k8s_nodes.iter().flatten();
            let host = hosts.find(|node| node.labels.get(names::TOPOLOGY_ZONE) == Some(zone));
            let pod = PodFacts {
                uid: format!("uid-{index}"),
                resource_version: format!("{index}"),
                ip: Some(IpAddr::from([10, 0, 0, index as u8 + 1])),
                k8s_node: Some(host.map_or_else(|| "worker-0".into(), |node| node.name.clone())),
                container: Container::Running,
                ready: true,
                template_hash: set.template_hash.clone(),
                ..PodFacts::default()
            };
            self.observed.pods.insert(member.id(), pod);
            self.say(&member.id(), Ok(unassigned()));
        }
    }

    /// Every member is valid under one ring.
    fn serving(spec: Value) -> Self {
        let mut world = Self::started(spec);
        let valid = world.validated().unwrap();
        let ring = ring_of(&valid);
        for member in valid.members() {
            let report = valid_report(&valid, &ring, &member.id(), &member.zone.layout.zone);
            world.say(&member.id(), Ok(report));
        }
        world.serve(ring);
        world
    }

    /// This ring serves, and everybody says so.
    fn serve(&mut self, ring: Ring) {
        let told = pb::TransitionResponse {
            base_epoch: ring.epoch(),
            base_hash: ring.hash(),
            base_members: ring.members().iter().map(|m| m.id.as_str().to_owned()).collect(),
            ..pb::TransitionResponse::default()
        };
        let pods = self.observed.pods.keys();
        self.observed.changes = pods.map(|pod| (pod.clone(), Ok(told.clone()))).collect();
        self.observed.ring = Some(Arc::new(Placement::new(Arc::new(ring))));
    }

    fn say(&mut self, member: &str, answer: Result<NodeReport, &str>) {
        self.observed
            .answers
            .insert(member.into(), answer.map_err(ToOwned::to_owned));
    }

    fn report(&mut self, member: &str, change: impl FnOnce(&mut NodeReport)) {
        change(self.observed.answers.get_mut(member).unwrap().as_mut().unwrap());
    }

    fn pod(&mut self, member: &str, change: impl FnOnce(&mut PodFacts)) {
        change(self.observed.pods.get_mut(member).unwrap());
    }

    /// The node is out of reach; Kubernetes still believes in its pod.
    fn silence(&mut self, member: &str) {
        self.say(member, Err("nothing within 1000 ms"));
    }

    fn validated(&self) -> Result<ValidatedCluster, ValidateError> {
        validate(&self.source, &self.observed, &defaults())
    }

    fn desired(&self) -> Desired {
        build(&self.validated().unwrap()).unwrap()
    }

    fn plan(&self) -> (Step, Stance) {
        let valid = self.validated().unwrap();
        let plan = plan(&valid, &self.desired(), &self.observed, &self.source);
        (plan.step, plan.stance)
    }
}

fn ring_of(cluster: &ValidatedCluster) -> Ring {
    let members = cluster.members().map(|member| Member {
        id: MemberId::new(member.id()).unwrap(),
        zone: Zone::new(member.zone.layout.zone.clone()).unwrap(),
        weight: member.zone.layout.weight,
    });
    let spec = &cluster.spec;
    Ring::bootstrap(
        cluster.cluster_id,
        members.collect(),
        u32::try_from(spec.ring.partitions).unwrap(),
        u32::try_from(spec.replication.factor).unwrap(),
    )
    .unwrap()
}

fn unassigned() -> NodeReport {
    NodeReport {
        state: NodeState::Unassigned,
        cluster_id: None,
        member_id: String::new(),
        zone: String::new(),
        ring_epoch: 0,
        ring_hash: 0,
        release: "0.1.0".into(),
        not_ready_reason: "unassigned".into(),
        hints: 0,
        partitions_suspect: 0,
        data_bytes: 0,
    }
}

fn valid_report(cluster: &ValidatedCluster, ring: &Ring, id: &str, zone: &str) -> NodeReport {
    NodeReport {
        state: NodeState::Valid,
        cluster_id: Some(cluster.cluster_id),
        member_id: id.into(),
        zone: zone.into(),
        ring_epoch: ring.epoch(),
        ring_hash: ring.hash(),
        release: "0.1.0".into(),
        not_ready_reason: String::new(),
        hints: 0,
        partitions_suspect: 0,
        data_bytes: 0,
    }
}

fn foreign() -> ClusterId {
    ClusterId([0xee; 16])
}
