//! How the fixtures change: what nodes and Kubernetes do while a ring gives way to the next.

use std::sync::Arc;

use dynamo_core::ring::{Placement, Ring, plan as plan_ring};
use dynamo_operator_sim::rings::{plan_response, target_of};
use dynamo_proto::admin as pb;
use kube::ResourceExt as _;
use serde_json::Value;

use super::{
    super::{
        change::{Change, change},
        members::members,
        observe::Preview,
        plan::{plan, ring_of},
    },
    World, valid_report,
};
use crate::admin::NodeState;

impl World {
    /// The spec changes, and the API server takes it.
    pub(super) fn spec(&mut self, change: &Value) {
        let mut spec = serde_json::to_value(&self.source.spec).unwrap();
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        self.source.spec = serde_json::from_value(spec).unwrap();
    }

    pub(super) fn ring(&self) -> Arc<Ring> {
        self.observed.ring.as_ref().unwrap().ring().clone()
    }

    /// New nodes know who they are, and have heard of the ring.
    pub(super) fn join_all(&mut self) {
        let (valid, ring) = (self.validated().unwrap(), self.ring());
        for member in valid.members() {
            let id = member.id();
            let unassigned = self.observed.answers[&id]
                .as_ref()
                .is_ok_and(|r| r.cluster_id.is_none());
            if unassigned {
                let mut report = valid_report(&valid, &ring, &id, &member.zone.layout.zone);
                report.state = NodeState::Joining;
                report.not_ready_reason = "no ring lists it".into();
                self.say(&id, Ok(report));
            }
        }
        let change = self.observed.changes.values().next().cloned().unwrap();
        for pod in self.observed.pods.keys() {
            self.observed
                .changes
                .entry(pod.clone())
                .or_insert_with(|| change.clone());
        }
    }

    /// A node is asked what the wanted change comes to.
    pub(super) fn ask(&mut self) -> Change {
        let valid = self.validated().unwrap();
        let placement = ring_of(&valid, &self.observed);
        let change = change(
            &valid,
            &self.observed,
            &members(&valid, &self.observed),
            placement.as_deref(),
        );
        self.observed.preview = None;
        if let Change::Ask(target) = &change {
            let plan = self.planned(target);
            self.observed.preview = Some(Ok(Preview {
                member: "demo-b-0".into(),
                target: target.clone(),
                plan,
            }));
        }
        change
    }

    pub(super) fn planned(&self, target: &pb::RingTarget) -> pb::PlanResponse {
        let base = self.ring();
        let newest = self
            .observed
            .changes
            .values()
            .flatten()
            .map(|told| told.next_epoch);
        let newest = newest.max().unwrap_or(0).max(base.epoch());
        let wanted = target_of(&base, target);
        let plan = plan_ring(&Placement::new(base), newest + 1, &wanted).unwrap();
        let listed: Vec<&str> = target.members.iter().map(|m| m.member_id.as_str()).collect();
        let told = self
            .observed
            .changes
            .values()
            .flatten()
            .find(|told| told.next_epoch > 0);
        pb::PlanResponse {
            expected_epoch: newest,
            bytes: 3 << 30,
            unchanged: told.is_some_and(|told| told.next_members == listed),
            ..plan_response(&plan)
        }
    }

    /// The proposal of the last preview is under way.
    pub(super) fn propose(&mut self) {
        let preview = self.observed.preview.clone().unwrap().unwrap();
        let ring = preview.plan.ring.unwrap();
        let mut members: Vec<String> = ring.members.iter().map(|m| m.member_id.clone()).collect();
        members.sort();
        for told in self.observed.changes.values_mut() {
            let told = told.as_mut().unwrap();
            told.next_epoch = ring.epoch;
            told.next_hash = ring.hash;
            told.next_members = members.clone();
            told.step = "synced".into();
            told.waits_for = vec!["demo-a-0".into()];
            (told.pulls, told.pulled) = (4, 1);
        }
    }

    /// It has come to its end.
    pub(super) fn finish(&mut self) {
        let preview = self.observed.preview.take().unwrap().unwrap();
        let base = self.ring();
        let wanted = target_of(&base, &preview.target);
        let epoch = preview.plan.ring.unwrap().epoch;
        let ring = plan_ring(&Placement::new(base), epoch, &wanted).unwrap().ring;
        let ring = Arc::unwrap_or_clone(ring);
        let valid = self.validated().unwrap();
        let ids: Vec<String> = self.observed.answers.keys().cloned().collect();
        for id in ids {
            self.report(&id, |report| {
                let listed = ring.members().iter().any(|m| m.id.as_str() == id);
                report.state = if listed {
                    NodeState::Valid
                } else {
                    NodeState::Joining
                };
                (report.ring_epoch, report.ring_hash) = (ring.epoch(), ring.hash());
            });
        }
        drop(valid);
        self.serve(ring);
    }

    /// Everything that a spec asks for has come about.
    pub(super) fn settle(&mut self) {
        self.run_missing_pods();
        self.join_all();
        self.ask();
        self.propose();
        self.finish();
    }

    pub(super) fn pods(&self) -> Vec<(String, u32)> {
        let sets = self.desired().stateful_sets.into_iter();
        sets.map(|set| (set.name_any(), set.spec.unwrap().replicas.unwrap() as u32))
            .collect()
    }

    pub(super) fn blocked(&self) -> (&'static str, String) {
        let valid = self.validated().unwrap();
        let plan = plan(&valid, &self.desired(), &self.observed, &self.source);
        plan.blocked.unwrap()
    }

    pub(super) fn bytes(&mut self, bytes: u64) {
        for report in self.observed.answers.values_mut().flatten() {
            report.data_bytes = bytes;
        }
    }
}
