//! What may be destroyed: never the last synced copy of an acknowledged write, and never so much that the rules for
//! becoming whole again cannot be met. So "lost" is always a bug, never bad luck.

use std::collections::BTreeMap;
use std::rc::Rc;

use dynamo_core::membership::{RingVersion, View};
use dynamo_core::version::KeyState;

use crate::buggify::Site;
use crate::disk::{Disk, Place, Value};
use crate::keys::KeyIx;
use crate::node::rings::Rings;
use crate::node::{Node, boot};
use crate::shared::{Lists, Shared};

/// May the whole disk of a node go?
pub fn may_empty(sh: &Shared, nodes: &[Node], victim: usize) -> bool {
    let allowed = sh.knobs.w.saturating_sub(2) as usize;
    let unwhole = nodes
        .iter()
        .filter(|node| node.me != victim && !is_whole(node))
        .count();
    unwhole <= allowed
        && nodes.iter().all(|node| node.disk.corrupted().next().is_none())
        && copied_elsewhere(sh, nodes, victim, sh.keys.all())
}

/// Every acknowledged write of these keys has a copy that counts, by the ring that serves, and by every other ring in use
/// that has the victim hold it: it may be the one that serves next.
fn copied_elsewhere(sh: &Shared, nodes: &[Node], victim: usize, mut keys: std::ops::Range<KeyIx>) -> bool {
    let mut rings: BTreeMap<RingVersion, &Rc<Lists>> = BTreeMap::new();
    let in_use = nodes
        .iter()
        .filter_map(|node| node.process.as_ref()?.rings.as_ref());
    for lists in in_use.flat_map(Rings::written) {
        rings.insert(RingVersion::from(lists.placement.ring().as_ref()), lists);
    }
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

/// Every acknowledged write of a key is durable, or truly superseded, on some other node.
///
/// A hint is a copy only while nobody is about to delete it on the victim's own word. Where reads of primaries have been
/// promised to meet it, it is none: then the copy must be a primary's.
fn copies_elsewhere(sh: &Shared, nodes: &[Node], victim: usize, key: KeyIx, by: &Lists) -> bool {
    let primaries = &by.of(sh.keys.get(key).hash).0;
    let mut others: Vec<KeyState> = Vec::new();
    for node in nodes.iter().filter(|node| node.me != victim) {
        let (disk, hints) = (node.disk.snapshot(), node.hints.snapshot());
        let own = disk
            .peek(Place::Data(key))
            .filter(|_| primaries.contains(&node.me));
        others.extend(own.map(|state| (**state).clone()));
        let delivering = |owner: usize| {
            node.process.as_ref().is_some_and(|process| {
                process.delivering.contains(&(owner, key)) || !process.writers[1].idle()
            })
        };
        let promised = sh.knobs.reads_meet_writes();
        let held = hints.iter().filter_map(|(place, value)| match (place, value) {
            (Place::Hint(owner, of), Value::State(state))
                if *of == key && !promised && !delivering(*owner) =>
            {
                Some(Rc::clone(state))
            }
            _ => None,
        });
        others.extend(held.map(|state| (*state).clone()));
    }
    sh.ledger.key(key).writes.iter().all(|number| {
        let write = sh.ledger.write(*number);
        !write.applied || others.iter().any(|state| sh.ledger.survives(write, Some(state)))
    })
}
