//! An administrator has other members serve: a walk through rings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dynamo_core::ring::{Member, Ring, Target, plan};
use dynamo_core::types::MemberId;

use super::World;
use crate::messages::NodeIx;
use crate::mistakes::Mistake;
use crate::node::Node;
use crate::rng::Rng;

/// Q is not doubled beyond that.
const PARTITIONS_MOST: u32 = 32;

/// Whether a node in a transition reads from the next ring already.
fn reads_next(node: &Node) -> Option<bool> {
    let transition = node.process.as_ref()?.view.transition()?;
    let next = transition.next()?;
    Some(transition.read() == Some(&next.ring))
}

/// Whom an administrator wants.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    /// Whom this number says, more or less like now.
    Any(u64),
    /// Those whose bit is set.
    These(u32),
}

impl World {
    /// Asks the node to have another ring follow, and if it may not, the others one after the other.
    pub(super) fn commit(&mut self, first: NodeIx, wanted: Wanted) {
        let count = self.nodes.len();
        let (mut asked, now_us) = (false, self.sh.now_us);
        let provoked = self.sh.knobs.mistake == Some(Mistake::ProposesAlthoughItReads);
        let changing = self.nodes.iter().any(|node| reads_next(node).is_some());
        for node in (first..first + count).map(|node| node % count) {
            // The mistake shows where one that reads already is asked.
            let reads = reads_next(&self.nodes[node]) == Some(true);
            if self.nodes[node].paused_until_us > now_us || (provoked && changing && !reads) {
                continue;
            }
            let Some(ring) = self.planned(node, wanted) else {
                continue;
            };
            let dead: BTreeSet<MemberId> = self.dead_of(node).collect();
            let Some(mut live) = self.nodes[node].live(&mut self.sh) else {
                continue;
            };
            let result = live.propose(Arc::clone(&ring), dead.clone());
            self.sh.trace.line(now_us, || {
                let members: Vec<&str> = ring.members().iter().map(|member| member.id.as_str()).collect();
                let (version, partitions) = (ring.version(), ring.partitions());
                format!("n{node} is asked for ring {version:?} of {members:?}, {partitions} partitions, dead {dead:?}: {result:?}")
            });
            asked = result.is_ok();
            self.after(node);
            if asked {
                break;
            }
        }
        self.sh.stats.proposed += u64::from(asked);
        self.sh.stats.not_proposed += u64::from(!asked);
    }

    /// The ring, as the node would work it out.
    fn planned(&self, node: NodeIx, wanted: Wanted) -> Option<Arc<Ring>> {
        let process = self.nodes[node].process.as_ref()?;
        let newest = process.view.transition()?.newest();
        let placement = &process.rings.as_ref()?.base().placement;
        let base = placement.ring();
        let target = match wanted {
            Wanted::Any(random) => self.target(base, &mut Rng::new(random, "target")),
            Wanted::These(bits) => Target {
                members: (0..)
                    .zip(self.sh.knobs.members())
                    .filter(|(node, _)| bits >> node & 1 == 1)
                    .map(|(_, member)| member)
                    .collect(),
                replaces: BTreeMap::new(),
                partitions: base.partitions(),
            },
        };
        Some(plan(placement, newest.epoch + 1, &target).ok()?.ring)
    }

    /// Whom it shall have: one more, one less, one in another's place, any others, the same, or twice as many partitions.
    fn target(&self, base: &Ring, rng: &mut Rng) -> Target {
        let dead: Vec<&MemberId> = self
            .sh
            .buried
            .iter()
            .map(|node| &self.sh.members[*node])
            .collect();
        let lives = |member: &Member| !dead.contains(&&member.id);
        let all: Vec<Member> = self.sh.knobs.members().filter(lives).collect();
        let mut members: Vec<Member> = base
            .members()
            .iter()
            .filter(|member| lives(member))
            .cloned()
            .collect();
        let mut outside: Vec<Member> = all
            .iter()
            .filter(|member| base.index_of(&member.id).is_none())
            .cloned()
            .collect();
        let mut target = Target {
            members: Vec::new(),
            replaces: BTreeMap::new(),
            partitions: base.partitions(),
        };
        let factor = self.sh.knobs.n as usize;
        let mut come = |members: &mut Vec<Member>, rng: &mut Rng| {
            if !outside.is_empty() {
                members.push(outside.swap_remove(rng.index(outside.len())));
            }
        };
        let go = |members: &mut Vec<Member>, rng: &mut Rng| {
            (members.len() > factor).then(|| members.swap_remove(rng.index(members.len())))
        };
        while members.len() < factor {
            come(&mut members, rng);
        }
        match rng.index(12) {
            0..3 => come(&mut members, rng),
            3..5 => drop(go(&mut members, rng)),
            5..8 => {
                come(&mut members, rng);
                let gone = go(&mut members, rng);
                let new = members.iter().find(|member| base.index_of(&member.id).is_none());
                if let (Some(gone), Some(new)) = (gone, new)
                    && rng.coin()
                    && base.index_of(&gone.id).is_some()
                    && (&gone.zone, gone.weight) == (&new.zone, new.weight)
                {
                    target.replaces.insert(new.id.clone(), gone.id);
                }
            }
            8 => {
                members = all;
                while members.len() > factor && rng.index(3) > 0 {
                    members.swap_remove(rng.index(members.len()));
                }
            }
            9 => {
                let member = rng.index(members.len());
                members[member].weight = rng.between(1, 3) as u32;
            }
            10 if base.partitions() < PARTITIONS_MOST => target.partitions *= 2,
            // Nobody else: what was to follow is called off.
            _ => {}
        }
        let gone = base.members().iter().find(|member| dead.contains(&&member.id));
        let new = members.iter().find(|new| {
            let alike = gone.is_some_and(|gone| (&gone.zone, gone.weight) == (&new.zone, new.weight));
            alike && base.index_of(&new.id).is_none() && !target.replaces.contains_key(&new.id)
        });
        if let (Some(gone), Some(new)) = (gone, new)
            && rng.coin()
        {
            target.replaces.insert(new.id.clone(), gone.id.clone());
        }
        target.members = members;
        target
    }
}
