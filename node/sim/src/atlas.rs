//! What may be destroyed: never the last synced copy of an acknowledged write, and never so much that the rules for
//! becoming whole again cannot be met. So "lost" is always a bug, never bad luck.

use std::collections::BTreeMap;
use std::rc::Rc;

use dynamo_core::membership::{RingVersion, View};
use dynamo_core::version::KeyState;

use crate::buggify::Site;
use crate::disk::{Disk, Place, Value};
use crate::keys::KeyIx;
use crate::messages::NodeIx;
use crate::node::rings::Rings;
use crate::node::{Node, boot};
use crate::shared::{Lists, Shared};

/// May the whole disk of a node go?
pub fn may_empty(sh: &Shared, nodes: &[Node], victim: usize) -> bool {
    let allowed = sh.knobs.w.saturating_sub(2) as usize;
    let unwhole = unwhole(sh, nodes, victim);
    unwhole <= allowed
        && (unwhole == 0 || sh.buried.is_empty())
        && nodes.iter().all(|node| node.disk.corrupted().next().is_none())
        && copied_elsewhere(sh, nodes, victim, sh.keys.all())
}

/// May the machine of a node go for good? Two suspect stores would wait for each other, if they had counted on a third.
pub fn may_bury(sh: &Shared, nodes: &[Node], victim: usize) -> bool {
    let lists = |node: &Node| sh.serving.placement.ring().index_of(&sh.members[node.me]);
    let enough = living(sh, nodes, victim).count() >= sh.knobs.n as usize;
    let somebody = living(sh, nodes, victim).any(|node| lists(node).is_some());
    let listed = lists(&nodes[victim]).is_some() && !sh.buried.contains(&victim);
    listed && enough && somebody && unwhole(sh, nodes, victim) <= 1
}

fn unwhole(sh: &Shared, nodes: &[Node], victim: usize) -> usize {
    living(sh, nodes, victim).filter(|node| !is_whole(node)).count()
}

/// Every acknowledged write of these keys has a copy that counts, by the ring that serves, and by every other ring in use
/// that has the victim hold it: it may be the one that serves next.
fn copied_elsewhere(sh: &Shared, nodes: &[Node], victim: usize, mut keys: std::ops::Range<KeyIx>) -> bool {
    let rings = in_use(nodes);
    let holds = |lists: &Rc<Lists>, key| lists.of(sh.keys.get(key).hash).0.contains(&victim);
    keys.all(|key| {
        copies_elsewhere(sh, nodes, victim, key, &sh.serving)
            && rings
                .values()
                .all(|lists| !holds(lists, key) || copies_elsewhere(sh, nodes, victim, key, lists))
    })
}

/// May the disk of a node be put back to that copy? Only if what is lost can be noticed: every
/// peer has heard of more, and has that on its disk, for any of them may be the one that confirms the store.
///
/// A store that was already waiting for a peer's word when it was copied is left alone: a node can account for one
/// earlier life only (see `docs/simulation.md`). And where one replica's word is enough, there must be room for the
/// hints by which a store of doubtful age keeps what it accepts.
pub fn may_put_back(sh: &Shared, nodes: &[Node], victim: usize, copy: &Disk) -> bool {
    let me = &sh.members[victim];
    let noticed = nodes
        .iter()
        .filter(|node| node.me != victim)
        .filter_map(|node| View::decode(node.disk.snapshot().bytes(boot::VIEW)?).ok())
        .filter(|view| view.get(me).is_some_and(|entry| entry.synced > copy.sequence))
        .count();
    let confirmed = copy.bytes(boot::PAST).is_none();
    let crowded = [Site::SpentHintBudget, Site::FullQueue].map(|site| sh.buggify.may_fire(site));
    let room = sh.knobs.hints_max > sh.knobs.keys as usize * sh.knobs.nodes && crowded == [false; 2];
    let kept = sh.knobs.w > 1 || room;
    kept && confirmed && noticed + 1 == nodes.len() && may_empty(sh, nodes, victim)
}

/// May a record of a node be damaged?
pub fn may_corrupt(sh: &Shared, nodes: &[Node], victim: usize, key: KeyIx) -> bool {
    nodes.iter().all(is_whole)
        && sh.is_primary(key, victim)
        && nodes.iter().all(|node| !node.disk.is_corrupt(Place::Data(key)))
        && copied_elsewhere(sh, nodes, victim, key..key + 1)
}

/// The how-manieth record of a node's disk, for damage.
pub fn nth_record(disk: &Disk, random: u64) -> Option<KeyIx> {
    let keys: Vec<KeyIx> = disk
        .iter()
        .filter_map(|(place, _)| match place {
            Place::Data(key) => Some(*key),
            _ => None,
        })
        .collect();
    keys.get(random.checked_rem(keys.len() as u64)? as usize).copied()
}

/// Nothing of it is suspect, emptied or waiting to be fetched anew.
pub fn is_whole(node: &Node) -> bool {
    let suspect = node.disk.bytes("recovery").is_some()
        || node
            .process
            .as_ref()
            .is_some_and(|process| process.recovery.is_some());
    !suspect && !node.unwhole
}

fn in_use(nodes: &[Node]) -> BTreeMap<RingVersion, &Rc<Lists>> {
    let rings = nodes
        .iter()
        .filter_map(|node| node.process.as_ref()?.rings.as_ref());
    let written = rings.flat_map(Rings::written);
    written
        .map(|lists| (RingVersion::from(lists.placement.ring().as_ref()), lists))
        .collect()
}

/// Every acknowledged write of a key is durable, or truly superseded, on some other node. Where reads of primaries have been
/// promised to meet it, a hint is no copy: then it must be a primary's.
fn copies_elsewhere(sh: &Shared, nodes: &[Node], victim: usize, key: KeyIx, by: &Lists) -> bool {
    let primaries = &by.of(sh.keys.get(key).hash).0;
    let mut others = records_elsewhere(sh, nodes, victim, key, |node| primaries.contains(&node));
    if !sh.knobs.reads_meet_writes() {
        others.extend(hints_elsewhere(sh, nodes, victim, key));
    }
    let entry = sh.ledger.key(key);
    entry.writes.iter().all(|number| {
        let write = sh.ledger.write(*number);
        let owed = write.applied && !entry.forfeited.contains(number);
        !owed || others.iter().any(|state| sh.ledger.survives(write, Some(state)))
    })
}

fn records_elsewhere(
    sh: &Shared,
    nodes: &[Node],
    victim: usize,
    key: KeyIx,
    counts: impl Fn(NodeIx) -> bool,
) -> Vec<KeyState> {
    let others = living(sh, nodes, victim).filter(|node| counts(node.me));
    // What an old store holds is set aside with it.
    let kept = others.filter(|node| sh.old[node.me].is_none());
    let records = kept.filter_map(|node| node.disk.snapshot().peek(Place::Data(key)).cloned());
    records.map(|state| (*state).clone()).collect()
}

/// A hint is a copy only while nobody is about to delete it on the victim's own word.
fn hints_elsewhere(sh: &Shared, nodes: &[Node], victim: usize, key: KeyIx) -> Vec<KeyState> {
    let mut held = Vec::new();
    for node in living(sh, nodes, victim) {
        let delivering = |owner: NodeIx| {
            node.process.as_ref().is_some_and(|process| {
                process.delivering.contains(&(owner, key)) || !process.writers[1].idle()
            })
        };
        // So are its hints, but for those under its own name.
        let kept = |owner: NodeIx| sh.old[node.me].is_none() || owner == node.me;
        let hints = node.hints.snapshot();
        held.extend(hints.iter().filter_map(|(place, value)| match (place, value) {
            (Place::Hint(owner, of), Value::State(state))
                if *of == key && kept(*owner) && !delivering(*owner) =>
            {
                Some((**state).clone())
            }
            _ => None,
        }));
    }
    held
}

fn living<'a>(sh: &'a Shared, nodes: &'a [Node], victim: usize) -> impl Iterator<Item = &'a Node> {
    let living = move |node: &&Node| node.me != victim && !sh.buried.contains(&node.me);
    nodes.iter().filter(living)
}

/// Writes of a key that only the victim has: no other primary does, and, if `true` stands beside it, nobody else at all.
pub fn only_on(sh: &Shared, nodes: &[Node], victim: usize, key: KeyIx) -> Vec<(u32, bool)> {
    let hash = sh.keys.get(key).hash;
    let mut own: Vec<KeyState> = Vec::new();
    for (place, value) in nodes[victim].disk.iter().chain(nodes[victim].hints.iter()) {
        if let (Place::Data(of) | Place::Hint(_, of), Value::State(state)) = (place, value)
            && *of == key
        {
            own.push((**state).clone());
        }
    }
    // Who goes by a ring that is retired is about to erase what it has.
    let rings = sh.rings_from_serving();
    let holds = |lists: &Lists, node: NodeIx| lists.of(hash).0.contains(&node);
    let primaries = records_elsewhere(sh, nodes, victim, key, |node| holds(&sh.serving, node));
    let mut all = records_elsewhere(sh, nodes, victim, key, |node| {
        rings.clone().any(|lists| holds(lists, node))
    });
    all.extend(hints_elsewhere(sh, nodes, victim, key));
    let has = |states: &[KeyState], number: u32| {
        let write = sh.ledger.write(number);
        states.iter().any(|state| sh.ledger.survives(write, Some(state)))
    };
    let writes = sh.ledger.key(key).writes.iter().copied();
    writes
        .filter(|number| has(&own, *number) && !has(&primaries, *number))
        .map(|number| (number, !has(&primaries, number) && !has(&all, number)))
        .collect()
}
