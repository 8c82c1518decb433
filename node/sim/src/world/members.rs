//! An administrator has other members serve: a walk through rings.

use std::collections::BTreeMap;
use std::sync::Arc;

use dynamo_core::ring::{Member, Ring, Target, plan};

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

impl World {
    /// Asks the node to have another ring follow, and if it may not, the others one after the other.
    pub(super) fn commit(&mut self, first: NodeIx, random: u64) {
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
            let Some(ring) = self.planned(node, random) else {
                continue;
            };
            let Some(mut live) = self.nodes[node].live(&mut self.sh) else {
                continue;
            };
            let result = live.propose(Arc::clone(&ring));
            self.sh.trace.line(now_us, || {
                let members: Vec<&str> = ring.members().iter().map(|member| member.id.as_str()).collect();
                let (version, partitions) = (ring.version(), ring.partitions());
                format!("n{node} is asked for ring {version:?} of {members:?}, {partitions} partitions: {result:?}")
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
    fn planned(&self, node: NodeIx, random: u64) -> Option<Arc<Ring>> {
        let process = self.nodes[node].process.as_ref()?;
        let newest = process.view.transition()?.newest();
        let placement = &process.rings.as_ref()?.base().placement;
        let target = self.target(placement.ring(), &mut Rng::new(random, "target"));
        Some(plan(placement, newest.epoch + 1, &target).ok()?.ring)
    }

    /// Whom it shall have: one more, one less, one in another's place, any others, the same, or twice as many partitions.
    fn target(&self, base: &Ring, rng: &mut Rng) -> Target {
        let all: Vec<Member> = self.sh.knobs.members().collect();
        let mut members = base.members().to_vec();
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
        target.members = members;
        target
    }
}
