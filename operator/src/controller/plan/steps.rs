//! The steps of a ring that changes: propose it, remove what it leaves behind, replace what was lost or evacuated.

use dynamo_proto::admin as pb;

use super::{Planner, Replacement, Stance, Step, proposers};
use crate::{
    controller::{
        change::{self, Change},
        members::{MemberState, MemberView},
        names,
        observe::Container,
        validate::may_go,
    },
    crd::{WhenLost, conditions::shortened},
    ring,
};

impl Planner<'_> {
    /// What keeps the spec from being followed until a person does something.
    pub(super) fn blocked(&self) -> Option<(&'static str, String)> {
        match (self.change, &self.observed.preview) {
            (Change::Blocked(reason, message), _) => Some((reason, shortened(message.clone(), 900))),
            (Change::Ask(_), Some(Ok(preview))) if !preview.plan.unchanged => {
                change::objection(self.cluster, preview)
            }
            _ if self.cluster.spec.storage.when_lost == WhenLost::Keep => {
                let (_, lost) = self.lost().next()?;
                Some(("VolumeLost", shortened(lost.err()?, 900)))
            }
            _ => None,
        }
    }

    /// The ring that is wanted is not the newest one: the latter gives way to it, at once.
    pub(super) fn commit(&self) -> Option<(Step, Stance)> {
        let Change::Ask(target) = self.change else {
            return None;
        };
        let preview = self.observed.preview.as_ref()?.as_ref().ok()?;
        if preview.target != *target || preview.plan.unchanged || self.blocked().is_some() {
            return None;
        }
        let mut nodes = proposers(self.members);
        nodes.sort_by_key(|(member, _)| *member != preview.member);
        let plan = &preview.plan;
        let why = change::summary(plan);
        let step = Step::Commit {
            nodes,
            request: pb::CommitRequest {
                target: Some(target.clone()),
                expected_epoch: plan.expected_epoch,
                expected_hash: plan.ring.as_ref().map_or(0, |ring| ring.hash),
            },
            why: why.clone(),
        };
        Some((step, Stance::Progressing("ProposingRing", why)))
    }

    /// Pods that are to begin empty: evacuated ones that no ring lists any more, and those whose volume is lost.
    pub(super) fn replace(&self) -> Option<(Step, Stance)> {
        let evacuated =
            change::evacuating(self.members, self.observed).find_map(|member| self.emptied(member));
        let replacement = evacuated.or_else(|| self.lost().find_map(|(_, found)| found.ok()))?;
        let reason = if replacement.lost {
            "ReplacingVolume"
        } else {
            "Evacuated"
        };
        let stance = Stance::Progressing(reason, replacement.why.clone());
        Some((Step::Replace(replacement), stance))
    }

    /// Its data are away, and its pod waits to be made again.
    pub(super) fn evacuated(&self, member: &MemberView<'_>) -> bool {
        member.wanted
            && !member.listed
            && member.pod.is_some_and(|pod| pod.evacuate)
            && may_go(self.observed, &self.cluster.rings, &member.id)
    }

    fn emptied(&self, member: &MemberView<'_>) -> Option<Replacement> {
        let pod = member.pod.filter(|_| self.evacuated(member))?;
        Some(Replacement {
            member: member.id.clone(),
            claim: self.claim_to_delete(&member.id),
            pod: Some((pod.uid.clone(), pod.resource_version.clone())),
            lost: false,
            why: format!(
                "{} is evacuated: no ring lists it; its claim and pod are made anew, and it joins again empty",
                member.label()
            ),
        })
    }

    fn claim_to_delete(&self, member: &str) -> Option<(String, String)> {
        let claim = self.observed.claims.get(&names::claim(member))?;
        (!claim.deleting).then(|| (claim.uid.clone(), claim.resource_version.clone()))
    }

    /// Members that wait for a volume which is lost, positively, and for long enough: to be replaced, or why not.
    fn lost(&self) -> impl Iterator<Item = (&MemberView<'_>, Result<Replacement, String>)> {
        self.members.iter().filter_map(|member| {
            let why = self.lost_volume(member)?;
            Some((member, self.replaceable(member, &why)))
        })
    }

    fn lost_volume(&self, member: &MemberView<'_>) -> Option<String> {
        let pod = member.pod.filter(|pod| !pod.deleting && pod.k8s_node.is_none())?;
        pod.unscheduled_since?;
        let stopped = matches!(pod.container, Container::Stopped(_));
        let claim = self.observed.claims.get(&names::claim(&member.id));
        match claim {
            _ if !stopped => None,
            // As a deletion that was interrupted leaves it.
            None => Some("its claim is gone".to_owned()),
            Some(claim) if claim.deleting => Some("its claim is being deleted".to_owned()),
            Some(claim) => claim.lost.clone(),
        }
    }

    fn replaceable(&self, member: &MemberView<'_>, lost: &str) -> Result<Replacement, String> {
        let storage = &self.cluster.spec.storage;
        if storage.when_lost == WhenLost::Keep {
            return Err(format!(
                "{}: {lost}, and storage.whenLost is Keep: delete claim {} and pod {} to have it begin empty",
                member.label(),
                names::claim(&member.id),
                member.id
            ));
        }
        let pod = member.pod.ok_or("it has no pod")?;
        let since = pod.unscheduled_since.ok_or("it is scheduled")?;
        let waited = self.observed.at.duration_since(since).as_secs();
        let patience = i64::from(storage.lost_after_seconds);
        if waited < patience {
            // Times, not seconds to go: those would change the status in every pass.
            return Err(format!(
                "{}: {lost}; it is replaced unless that changes within {patience} s of {since}",
                member.label()
            ));
        }
        // A disk that is given up may have been the last but one: then a person decides.
        let needed = self.cluster.quorum_needed();
        let serves = |id: &str| {
            let mut members = self.members.iter();
            members.any(|member| member.id == id && member.state == MemberState::Valid)
        };
        let lacking = self
            .ring
            .map_or(1, |ring| ring::partitions_without_quorum(ring, needed, serves));
        if lacking > 0 && member.serves {
            return Err(format!(
                "{}: {lost}; it is not replaced while {lacking} partitions have no quorum without it: bring the other members back first",
                member.label()
            ));
        }
        Ok(Replacement {
            member: member.id.clone(),
            claim: self.claim_to_delete(&member.id),
            pod: Some((pod.uid.clone(), pod.resource_version.clone())),
            lost: true,
            why: format!(
                "{}: {lost}; it gets an empty one, and its data back from the other members",
                member.label()
            ),
        })
    }

    /// The StatefulSet of a zone whose members have all left goes last.
    pub(super) fn remove_zone(&self) -> Option<(Step, Stance)> {
        let mut zones = self.cluster.zones.iter();
        let (zone, set) = zones.find_map(|zone| {
            let set = self.observed.stateful_sets.get(&zone.layout.stateful_set);
            set.filter(|_| zone.layout.leaving && zone.pods == 0)
                .map(|set| (zone, set))
        })?;
        let step = Step::RemoveZone {
            stateful_set: zone.layout.stateful_set.clone(),
            uid: set.uid.clone(),
            resource_version: set.resource_version.clone(),
        };
        let message = format!(
            "no ring lists a member of zone {:?} any more, and its StatefulSet is removed; the volumes stay",
            zone.layout.zone
        );
        Some((step, Stance::Progressing("RemovingZone", message)))
    }

    /// Why the ring is not as it is wanted, and what is waited for.
    pub(super) fn changing(&self) -> Option<Stance> {
        if let Some((_, Err(why))) = self.lost().next() {
            return Some(Stance::Progressing("VolumeLost", why));
        }
        if let Some(change) = &self.cluster.rings.change {
            return Some(Stance::Progressing("RingChanging", self.progress(change)));
        }
        match (self.change, &self.observed.preview) {
            (Change::Wait(reason, message), _) => Some(Stance::Progressing(reason, message.clone())),
            (Change::Ask(_), Some(Err(why))) => {
                let message = format!("the ring is to change, but no member says what that comes to: {why}");
                Some(Stance::Progressing("ProposingRing", shortened(message, 900)))
            }
            _ => None,
        }
    }

    fn progress(&self, change: &crate::controller::rings::Change) -> String {
        let label = |id: &String| {
            let member = self.members.iter().find(|member| member.id == *id);
            member.map_or_else(
                || id.clone(),
                |member| match member.message.as_str() {
                    "" => member.label(),
                    why => format!("{}: {why}", member.label()),
                },
            )
        };
        let whom: Vec<String> = change.waits_for.iter().map(label).collect();
        let what = match change.step.as_str() {
            "known" => "to hear of it and to end what they began before",
            "synced" => "to have the data that it gives them",
            "reading" => "to read from it",
            other => other,
        };
        let message = format!(
            "ring {} is proposed; waiting for {} {what}; {} of {} partitions pulled{}",
            change.ring.epoch,
            if whom.is_empty() {
                "its members".to_owned()
            } else {
                change::named(whom.iter().map(String::as_str))
            },
            change.pulled,
            change.pulls,
            match change.minutes_left {
                None => String::new(),
                Some(1) => ", less than a minute left".to_owned(),
                Some(minutes) => format!(", about {minutes} minutes left"),
            }
        );
        shortened(message, 900)
    }

    /// Pods that are not wanted any more, and still there.
    fn ending(&self) -> Stance {
        let known = |pod: &&String| self.members.iter().any(|member| member.id == **pod);
        let pods = self.observed.pods.keys();
        let ending: Vec<&str> = pods.filter(|pod| !known(pod)).map(String::as_str).collect();
        if ending.is_empty() {
            return Stance::Steady;
        }
        let message = format!(
            "members have left the ring, and their pods end: {}; their volumes stay",
            change::named(ending.into_iter())
        );
        Stance::Progressing("RemovingPods", message)
    }

    /// Pods of members that left go; those that keep hints for others go later.
    pub(super) fn leftovers(&self) -> Stance {
        let left: Vec<&MemberView> = self.members.iter().filter(|member| !member.counts()).collect();
        let Some(first) = left.first() else {
            return self.ending();
        };
        let hints = first.report.map_or(0, |report| report.hints);
        let message = if hints > 0 {
            format!(
                "{} has left the ring and still keeps {hints} hints for others; its pod goes once they are delivered",
                first.label()
            )
        } else {
            format!(
                "{} and {} more are in no ring that is known; their pods go once most members of the ring say so and none denies it",
                first.label(),
                left.len() - 1
            )
        };
        Stance::Progressing("RemovingPods", message)
    }
}
