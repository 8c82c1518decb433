//! Pure: the rings as the members tell them: the one that serves, the one that is proposed, and whom they list.
//!
//! Nobody is taken for gone on one member's word, on an old word or on silence: see [`Rings::settled`].

use std::collections::{BTreeMap, BTreeSet};

use dynamo_core::types::ClusterId;
use dynamo_proto::admin as pb;

use super::observe::Observed;

/// A ring by its epoch, hash and members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Its epoch.
    pub epoch: u64,
    /// Its hash.
    pub hash: u64,
    /// Its members.
    pub members: BTreeSet<String>,
}

impl Listing {
    fn base(told: &pb::TransitionResponse) -> Self {
        Self {
            epoch: told.base_epoch,
            hash: told.base_hash,
            members: told.base_members.iter().cloned().collect(),
        }
    }

    fn next(told: &pb::TransitionResponse) -> Self {
        Self {
            epoch: told.next_epoch,
            hash: told.next_hash,
            members: told.next_members.iter().cloned().collect(),
        }
    }

    fn version(&self) -> (u64, u64) {
        (self.epoch, self.hash)
    }
}

/// A change of the ring that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The proposed ring.
    pub ring: Listing,
    /// The step that is waited for.
    pub step: String,
    /// Whose step that is.
    pub waits_for: Vec<String>,
    /// Partitions that members have to pull, summed over those that answer.
    pub pulls: u64,
    /// Of these, those that are there.
    pub pulled: u64,
    /// Minutes, rounded up, until the slowest has the rest at its pace so far; `None` if that cannot be told yet, or nothing is
    /// left.
    pub minutes_left: Option<u64>,
}

/// What the members say about rings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rings {
    /// The largest ring that serves.
    pub base: Option<Listing>,
    /// The largest ring that is proposed beside it.
    pub change: Option<Change>,
    /// Every member that answers says that the base ring serves and that nothing is proposed, and they are a majority of it.
    pub settled: bool,
    /// Whom a ring lists that a member of the base ring told, also one that is behind.
    listed: BTreeSet<String>,
}

/// The steps in their order.
const STEPS: [&str; 3] = ["known", "synced", "reading"];

impl Rings {
    /// What was observed about a cluster's rings.
    pub fn of(observed: &Observed, cluster: ClusterId) -> Self {
        let told = told(observed, cluster);
        let bases = told.values().map(|told| Listing::base(told));
        let Some(base) = bases.max_by_key(Listing::version) else {
            return Self::default();
        };
        // Those who left know what they knew when they did.
        let witnesses: Vec<&pb::TransitionResponse> = told
            .iter()
            .filter(|(member, _)| base.members.contains(**member))
            .map(|(_, told)| *told)
            .collect();
        let agrees = |told: &&pb::TransitionResponse| {
            (told.base_epoch, told.base_hash) == base.version() && told.next_epoch == 0
        };
        let mut listed = base.members.clone();
        for told in &witnesses {
            let told = told
                .base_members
                .iter()
                .chain(&told.next_members)
                .chain(&told.kept_members);
            listed.extend(told.cloned());
        }
        Self {
            settled: witnesses.len() > base.members.len() / 2 && witnesses.iter().all(agrees),
            change: change(&told, &base),
            listed,
            base: Some(base),
        }
    }

    /// A ring lists this member, as far as anybody said.
    pub fn lists(&self, member: &str) -> bool {
        let proposed = self.change.as_ref().map(|change| &change.ring.members);
        self.listed.contains(member) || proposed.is_some_and(|members| members.contains(member))
    }

    /// Everybody whom a ring lists.
    pub fn listed(&self) -> impl Iterator<Item = &String> {
        let proposed = self.change.iter().flat_map(|change| &change.ring.members);
        self.listed.iter().chain(proposed)
    }

    /// The base ring lists this member.
    pub fn serves(&self, member: &str) -> bool {
        self.base
            .as_ref()
            .is_some_and(|base| base.members.contains(member))
    }

    /// Positively: no ring lists this member, nor is one proposed that could.
    pub fn released(&self, member: &str) -> bool {
        self.settled && !self.lists(member)
    }

    /// Members of the newest ring.
    pub fn newest(&self) -> Option<&BTreeSet<String>> {
        let proposed = self.change.as_ref().map(|change| &change.ring);
        proposed.or(self.base.as_ref()).map(|ring| &ring.members)
    }
}

/// What the members of this cluster told, by member: not what an address says that answers for somebody else.
fn told(observed: &Observed, cluster: ClusterId) -> BTreeMap<&str, &pb::TransitionResponse> {
    let own = |pod: &String| {
        let answer = observed.answers.get(pod).and_then(|answer| answer.as_ref().ok());
        answer.is_some_and(|report| report.cluster_id == Some(cluster) && report.member_id == *pod)
    };
    let told = observed
        .changes
        .iter()
        .filter_map(|(pod, told)| Some((pod, told.as_ref().ok()?)));
    told.filter(|(pod, told)| own(pod) && told.base_epoch > 0)
        .map(|(pod, told)| (pod.as_str(), told))
        .collect()
}

/// The change that most is known of. Marks only grow, so the latest step is the true one, and a member that one of two
/// does not miss has taken it.
fn change(told: &BTreeMap<&str, &pb::TransitionResponse>, base: &Listing) -> Option<Change> {
    let proposed = told.values().filter(|told| told.next_epoch > base.epoch);
    let ring = proposed
        .map(|told| Listing::next(told))
        .max_by_key(Listing::version)?;
    let knows: Vec<_> = told
        .values()
        .filter(|told| (told.next_epoch, told.next_hash) == ring.version())
        .collect();
    let rank = |step: &str| STEPS.iter().position(|known| *known == step);
    let step = knows
        .iter()
        .map(|told| told.step.as_str())
        .max_by_key(|step| rank(step))?;
    let mut waits = knows
        .iter()
        .filter(|told| told.step == step)
        .map(|told| told.waits_for.iter().cloned().collect::<BTreeSet<_>>());
    let first = waits.next().unwrap_or_default();
    let waits_for = waits.fold(first, |all, more| all.intersection(&more).cloned().collect());
    Some(Change {
        step: step.to_owned(),
        waits_for: waits_for.into_iter().collect(),
        pulls: knows.iter().map(|told| u64::from(told.pulls)).sum(),
        pulled: knows.iter().map(|told| u64::from(told.pulled)).sum(),
        minutes_left: minutes_left(
            knows
                .iter()
                .filter(|told| told.pulled < told.pulls)
                .map(|told| told.remaining_ms),
        ),
        ring,
    })
}

/// Of those who still pull. One who cannot tell yet may be the slowest.
fn minutes_left(remaining_ms: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    let all: Option<Vec<u64>> = remaining_ms.collect();
    all?.into_iter().max().map(|slowest| slowest.div_ceil(60_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{NodeReport, NodeState};

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn names(members: &[&str]) -> Vec<String> {
        members.iter().map(|member| (*member).to_owned()).collect()
    }

    fn says(base: (u64, &[&str]), next: Option<(u64, &[&str])>) -> pb::TransitionResponse {
        let (next_epoch, next_members) = next.unwrap_or((0, &[]));
        pb::TransitionResponse {
            base_epoch: base.0,
            base_members: names(base.1),
            next_epoch,
            next_members: names(next_members),
            step: if next_epoch > 0 { "known" } else { "" }.into(),
            ..pb::TransitionResponse::default()
        }
    }

    fn rings(told: &[(&str, pb::TransitionResponse)]) -> Rings {
        let mut observed = Observed::default();
        for (member, told) in told {
            let report = NodeReport {
                state: NodeState::Valid,
                cluster_id: Some(CLUSTER),
                member_id: (*member).into(),
                zone: String::new(),
                ring_epoch: told.base_epoch,
                ring_hash: 0,
                release: String::new(),
                not_ready_reason: String::new(),
                hints: 0,
                partitions_suspect: 0,
                data_bytes: 0,
            };
            observed.answers.insert((*member).into(), Ok(report));
            observed.changes.insert((*member).into(), Ok(told.clone()));
        }
        Rings::of(&observed, CLUSTER)
    }

    const THREE: &[&str] = &["a", "b", "c"];
    const FOUR: &[&str] = &["a", "b", "c", "d"];

    #[test]
    fn k6_a_member_is_released_by_a_majority_that_agrees_and_by_nothing_less() {
        let left = || says((2, THREE), None);
        assert!(rings(&[("a", left()), ("b", left())]).released("d"));
        assert!(!rings(&[("a", left()), ("b", left())]).released("c"));
        assert!(!rings(&[("a", left())]).released("d"), "one of three");
        assert!(!rings(&[]).released("d"), "silence");
        // The word of the one that leaves counts for nothing.
        assert!(!rings(&[("a", left()), ("d", left())]).released("d"));
        // One that is behind, or a proposal that brings it back, keeps it.
        let behind = says((1, FOUR), Some((2, THREE)));
        assert!(!rings(&[("a", left()), ("b", left()), ("c", behind)]).released("d"));
        let back = says((2, THREE), Some((3, FOUR)));
        let changed = rings(&[("a", left()), ("b", left()), ("c", back)]);
        assert!(!changed.released("d") && changed.lists("d") && !changed.serves("d"));
        // So does the word that what it holds may be the last copy of what died.
        let mut keeps = left();
        keeps.kept_members = names(&["d"]);
        assert!(!rings(&[("a", left()), ("b", keeps)]).released("d"));
        // What an older ring's member tells does not hold up, if that ring serves no more.
        let ghost = says((1, FOUR), None);
        assert!(rings(&[("a", left()), ("b", left()), ("d", ghost)]).released("d"));
    }

    #[test]
    fn progress_is_what_is_known_by_all_together() {
        let at = |step: &str, waits: &[&str], pulls: u32, pulled: u32| pb::TransitionResponse {
            step: step.into(),
            waits_for: names(waits),
            pulls,
            pulled,
            remaining_ms: Some(61_000),
            ..says((1, THREE), Some((2, FOUR)))
        };
        let rings = rings(&[
            ("a", at("known", &["a", "b"], 0, 0)),
            ("b", at("synced", &["c", "d"], 4, 1)),
            ("c", at("synced", &["b", "d"], 6, 6)),
        ]);
        let change = rings.change.unwrap();
        assert_eq!(
            (change.step.as_str(), change.waits_for),
            ("synced", names(&["d"]))
        );
        assert_eq!((change.pulls, change.pulled, change.ring.epoch), (10, 7, 2));
        assert_eq!(change.minutes_left, Some(2));
        assert_eq!(minutes_left([Some(5), None].into_iter()), None);
        assert_eq!(minutes_left([].into_iter()), None);
        assert!(!rings.settled);
    }
}
