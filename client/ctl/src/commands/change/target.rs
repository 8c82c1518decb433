//! From the newest ring and what shall differ to the whole target.

use std::collections::{BTreeMap, BTreeSet};

use dynamo_proto::{
    admin::{RingTarget, TargetMember, TransitionResponse},
    v1,
};

use crate::cli::change::{Added, Differences, Moved, Replaced, Weighed};

/// What a target begins from.
#[derive(Debug, Default)]
pub(super) struct Newest {
    pub(super) epoch: u64,
    pub(super) hash: u64,
    /// Its members, in the ring's order.
    members: Vec<String>,
    /// Members of the ring that serves, which a change under way may take out.
    base: BTreeSet<String>,
    /// Declared gone for good by the change under way.
    dead: Vec<String>,
    /// A change is under way, whose place the next one takes.
    pub(super) under_way: bool,
}

impl Newest {
    pub(super) fn new(transition: &TransitionResponse) -> Self {
        let under_way = transition.next_epoch != 0;
        let (epoch, hash, members) = if under_way {
            (
                transition.next_epoch,
                transition.next_hash,
                &transition.next_members,
            )
        } else {
            (
                transition.base_epoch,
                transition.base_hash,
                &transition.base_members,
            )
        };
        Self {
            epoch,
            hash,
            members: members.clone(),
            base: transition.base_members.iter().cloned().collect(),
            dead: transition.dead.clone(),
            under_way,
        }
    }

    /// No target can be told without the ring that serves: its weights, its zones or its number of partitions.
    pub(super) fn needs_ring(differences: &Differences) -> bool {
        differences.double_partitions || !differences.replace.is_empty() || !differences.evacuate.is_empty()
    }

    fn has(&self, id: &str) -> bool {
        self.members.iter().any(|member| member == id)
    }

    fn known(&self, id: &str) -> bool {
        self.has(id) || self.base.contains(id)
    }
}

/// The members that the ring shall have, all of them; zones and weights are left to the node where they need not be told.
/// `ring` is the ring that serves, if [`Newest::needs_ring`].
///
/// # Errors
/// Why there is no such target.
pub(super) fn target(
    newest: &Newest,
    ring: Option<&v1::Ring>,
    differences: &Differences,
) -> Result<RingTarget, String> {
    named_once(differences)?;
    let mut members: Vec<TargetMember> = if differences.members.is_empty() {
        newest.members.iter().map(|id| plain(id)).collect()
    } else {
        differences.members.iter().map(|id| plain(id)).collect()
    };
    for id in &differences.remove {
        take(&mut members, id).ok_or_else(|| no_member(newest, id))?;
    }
    for zone in &differences.evacuate {
        let gone = evacuated(ring, zone)?;
        members.retain(|member| !gone.contains(&member.member_id));
    }
    for Replaced { old, new } in &differences.replace {
        take(&mut members, old).ok_or_else(|| no_member(newest, old))?;
        if newest.has(new) {
            return Err(format!(
                "{new} cannot take the tokens of {old}: it is a member of the newest ring already"
            ));
        }
        // Tokens pass only between equals: the new member gets the weight of the old one.
        let weight = ring.and_then(|ring| ring.members.iter().find(|member| member.member_id == *old));
        members.push(TargetMember {
            weight: weight.map_or(0, |member| member.weight),
            replaces: old.clone(),
            ..plain(new)
        });
    }
    for Added { id, zone, weight } in &differences.add {
        if newest.has(id) {
            return Err(format!(
                "{id} is a member of the newest ring already; another weight is --weight {id}=WEIGHT"
            ));
        }
        members.push(TargetMember {
            zone: zone.clone(),
            weight: *weight,
            ..plain(id)
        });
    }
    for id in &differences.dead {
        if !newest.known(id) {
            return Err(no_member(newest, id));
        }
        if differences.members.contains(id) {
            return Err(format!("{id} cannot be both dead and among --members"));
        }
        take(&mut members, id);
    }
    for Weighed { id, weight } in &differences.weight {
        let listed = members.iter_mut().find(|member| member.member_id == *id);
        let listed = listed.ok_or_else(|| no_member(newest, id))?;
        listed.weight = *weight;
    }
    for Moved { id, zone } in &differences.zone {
        let listed = members.iter_mut().find(|member| member.member_id == *id);
        let listed = listed.ok_or_else(|| no_member(newest, id))?;
        listed.zone.clone_from(zone);
    }
    if members.is_empty() {
        return Err("no member would be left".to_owned());
    }
    let dead = dead(newest, &members, differences);
    let partitions = match ring {
        Some(ring) if differences.double_partitions => ring.owners.len() as u32 * 2,
        _ => 0,
    };
    Ok(RingTarget {
        members,
        dead,
        partitions,
    })
}

/// The members of a zone, by the ring that serves.
fn evacuated(ring: Option<&v1::Ring>, zone: &str) -> Result<BTreeSet<String>, String> {
    let listed = || ring.into_iter().flat_map(|ring| &ring.members);
    let members = listed().filter(|member| member.zone == zone);
    let members: BTreeSet<String> = members.map(|member| member.member_id.clone()).collect();
    if members.is_empty() {
        let zones: BTreeSet<&str> = listed().map(|member| member.zone.as_str()).collect();
        let zones: Vec<&str> = zones.into_iter().collect();
        return Err(format!(
            "the ring has no member in zone {zone:?}; its zones: {}",
            zones.join(", ")
        ));
    }
    Ok(members)
}

/// Who is gone for good stays so in the change that takes the place of another, unless it is to be a member after all.
fn dead(newest: &Newest, members: &[TargetMember], differences: &Differences) -> Vec<String> {
    let stays = |id: &&String| members.iter().any(|member| member.member_id == **id);
    let before = newest.dead.iter().filter(|id| newest.known(id) && !stays(id));
    let dead: BTreeSet<_> = differences.dead.iter().chain(before).cloned().collect();
    dead.into_iter().collect()
}

/// Each member has one fate; one that goes may also be dead.
fn named_once(differences: &Differences) -> Result<(), String> {
    let mut fates: BTreeMap<&str, &str> = BTreeMap::new();
    let removed = differences.remove.iter().map(|id| (id, "--remove"));
    let replaced = differences.replace.iter();
    let replaced = replaced.flat_map(|replaced| [(&replaced.old, "--replace"), (&replaced.new, "--replace")]);
    let added = differences.add.iter().map(|added| (&added.id, "--add"));
    let weighed = differences.weight.iter().map(|weighed| (&weighed.id, "--weight"));
    for (id, option) in removed.chain(replaced).chain(added).chain(weighed) {
        if let Some(before) = fates.insert(id, option) {
            return Err(format!(
                "{id} is named by {before} and by {option}: name each member once"
            ));
        }
    }
    let mut dead = BTreeSet::new();
    for id in &differences.dead {
        if !dead.insert(id) {
            return Err(format!("{id} is named twice by --dead: name each member once"));
        }
        let comes = differences.replace.iter().any(|replaced| replaced.new == *id);
        match fates.get(id.as_str()) {
            Some(option) if comes || matches!(*option, "--add" | "--weight") => {
                return Err(format!(
                    "{id} cannot be both dead and a member, as {option} has it"
                ));
            }
            _ => {}
        }
    }
    let mut listed = BTreeSet::new();
    let again = differences.members.iter().find(|id| !listed.insert(*id));
    again.map_or(Ok(()), |id| Err(format!("{id} is named twice by --members")))
}

fn no_member(newest: &Newest, id: &str) -> String {
    let members = newest.members.join(", ");
    let goes = match (newest.has(id), newest.base.contains(id)) {
        (true, _) => return format!("{id} is not among --members"),
        (false, true) => format!("{id} goes already by the change under way"),
        (false, false) => format!("{id} is no member"),
    };
    format!("{goes}; the newest ring (epoch {}) has {members}", newest.epoch)
}

fn take(members: &mut Vec<TargetMember>, id: &str) -> Option<TargetMember> {
    let index = members.iter().position(|member| member.member_id == id)?;
    Some(members.remove(index))
}

fn plain(id: &str) -> TargetMember {
    TargetMember {
        member_id: id.to_owned(),
        ..TargetMember::default()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{
        Cli, Commands,
        change::{Change, ChangeAction},
    };

    fn differences(arguments: &str) -> Differences {
        let line = format!("dynamoctl change plan {arguments}");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Commands::Change(Change {
                action: ChangeAction::Plan(plan),
            }) => plan.differences,
            other => panic!("{other:?}"),
        }
    }

    fn names(ids: &[&str]) -> Vec<String> {
        ids.iter().map(ToString::to_string).collect()
    }

    /// Three members, n2 of weight 2, 8 partitions.
    fn ring() -> v1::Ring {
        let member = |id: &str, weight| v1::RingMember {
            member_id: id.to_owned(),
            weight,
            zone: if id == "n1" { "a" } else { "b" }.to_owned(),
            ..v1::RingMember::default()
        };
        v1::Ring {
            epoch: 3,
            members: vec![member("n1", 1), member("n2", 2), member("n3", 1)],
            owners: vec![0, 1, 2, 1, 0, 1, 2, 1],
            ..v1::Ring::default()
        }
    }

    fn at_rest() -> Newest {
        Newest::new(&TransitionResponse {
            base_epoch: 3,
            base_hash: 9,
            base_members: names(&["n1", "n2", "n3"]),
            ..TransitionResponse::default()
        })
    }

    /// n4 comes, n3 goes and is dead.
    fn under_way() -> Newest {
        Newest::new(&TransitionResponse {
            base_epoch: 3,
            base_hash: 9,
            base_members: names(&["n1", "n2", "n3"]),
            next_epoch: 4,
            next_hash: 10,
            next_members: names(&["n1", "n2", "n4"]),
            dead: names(&["n3"]),
            ..TransitionResponse::default()
        })
    }

    /// `ID[:ZONE][*WEIGHT][<OLD]` of each member, then the dead.
    fn told(newest: &Newest, arguments: &str) -> Result<String, String> {
        let target = target(newest, Some(&ring()), &differences(arguments))?;
        let mut words: Vec<String> = target
            .members
            .iter()
            .map(|member| {
                let told = |mark: &str, what: &str| {
                    if what.is_empty() {
                        String::new()
                    } else {
                        mark.to_owned() + what
                    }
                };
                let weight = member.weight.to_string();
                let weight = if member.weight == 0 { "" } else { &weight };
                member.member_id.clone()
                    + &told(":", &member.zone)
                    + &told("*", weight)
                    + &told("<", &member.replaces)
            })
            .collect();
        words.extend(target.dead.iter().map(|id| format!("+{id}")));
        if target.partitions != 0 {
            words.push(target.partitions.to_string());
        }
        Ok(words.join(" "))
    }

    #[test]
    fn the_target_is_the_newest_ring_but_for_what_differs() {
        for (arguments, expected) in [
            ("--add n4", "n1 n2 n3 n4"),
            ("--add n4:b:2 --add n5::3", "n1 n2 n3 n4:b*2 n5*3"),
            ("--remove n2", "n1 n3"),
            ("--dead n2", "n1 n3 +n2"),
            ("--remove n2 --dead n2", "n1 n3 +n2"),
            ("--replace n1=n4", "n2 n3 n4*1<n1"),
            // As heavy as the one whose tokens it takes.
            ("--replace n2=n4", "n1 n3 n4*2<n2"),
            ("--replace n2=n4 --dead n2", "n1 n3 n4*2<n2 +n2"),
            ("--weight n1=4 --weight n3=2", "n1*4 n2 n3*2"),
            ("--add n4 --remove n1 --weight n2=1", "n2*1 n3 n4"),
            ("--zone n2=c --weight n2=3", "n1 n2:c*3 n3"),
            ("--evacuate b", "n1"),
            ("--evacuate a --add n4:c", "n2 n3 n4:c"),
            ("--members n3,n4,n1", "n3 n4 n1"),
            ("--members n1,n3 --dead n2 --weight n3=2", "n1 n3*2 +n2"),
            ("--double-partitions", "n1 n2 n3 16"),
        ] {
            assert_eq!(
                told(&at_rest(), arguments).as_deref(),
                Ok(expected),
                "{arguments}"
            );
        }
    }

    #[test]
    fn a_change_under_way_is_gone_on_from() {
        for (arguments, expected) in [
            ("--add n5", "n1 n2 n4 n5 +n3"),
            ("--remove n4", "n1 n2 +n3"),
            // Who is to be a member again is not dead.
            ("--add n3 --remove n4", "n1 n2 n3"),
            // Who goes may turn out to be gone for good.
            ("--dead n3", "n1 n2 n4 +n3"),
            ("--members n1,n2,n3", "n1 n2 n3"),
        ] {
            assert_eq!(
                told(&under_way(), arguments).as_deref(),
                Ok(expected),
                "{arguments}"
            );
        }
        assert_eq!(
            (under_way().epoch, under_way().hash, under_way().under_way),
            (4, 10, true)
        );
        assert_eq!(
            (at_rest().epoch, at_rest().hash, at_rest().under_way),
            (3, 9, false)
        );
    }

    #[test]
    fn what_makes_no_target_says_why() {
        for (arguments, why) in [
            (
                "--remove n9",
                "n9 is no member; the newest ring (epoch 3) has n1, n2, n3",
            ),
            ("--dead n9", "n9 is no member"),
            ("--weight n9=2", "n9 is no member"),
            ("--zone n9=a", "n9 is no member"),
            (
                "--evacuate c",
                "the ring has no member in zone \"c\"; its zones: a, b",
            ),
            ("--evacuate a --evacuate b", "no member would be left"),
            ("--replace n9=n4", "n9 is no member"),
            (
                "--replace n1=n2",
                "n2 cannot take the tokens of n1: it is a member",
            ),
            (
                "--add n2",
                "n2 is a member of the newest ring already; another weight is --weight n2=WEIGHT",
            ),
            ("--add n4 --add n4", "n4 is named by --add and by --add"),
            (
                "--remove n1 --remove n1",
                "n1 is named by --remove and by --remove",
            ),
            (
                "--remove n1 --weight n1=2",
                "n1 is named by --remove and by --weight",
            ),
            (
                "--replace n1=n4 --add n4",
                "n4 is named by --replace and by --add",
            ),
            (
                "--replace n1=n4 --replace n1=n5",
                "n1 is named by --replace and by --replace",
            ),
            ("--replace n1=n1", "n1 is named by --replace and by --replace"),
            ("--dead n1 --dead n1", "n1 is named twice by --dead"),
            (
                "--dead n1 --weight n1=2",
                "n1 cannot be both dead and a member, as --weight has it",
            ),
            (
                "--replace n1=n4 --dead n4",
                "n4 cannot be both dead and a member, as --replace has it",
            ),
            ("--members n1,n2,n1", "n1 is named twice by --members"),
            (
                "--members n1,n2 --dead n2",
                "n2 cannot be both dead and among --members",
            ),
            ("--members n1,n2 --weight n3=2", "n3 is not among --members"),
            ("--remove n1 --remove n2 --dead n3", "no member would be left"),
        ] {
            let told = told(&at_rest(), arguments).unwrap_err();
            assert!(told.contains(why), "{arguments}: {told}");
        }
        let told = told(&under_way(), "--remove n3").unwrap_err();
        assert!(
            told.starts_with("n3 goes already by the change under way"),
            "{told}"
        );
    }

    #[test]
    fn the_ring_is_asked_for_only_where_it_is_needed() {
        for (arguments, needed) in [
            ("--add n4", false),
            ("--members n1,n2", false),
            ("--replace n1=n4", true),
            ("--double-partitions", true),
        ] {
            assert_eq!(Newest::needs_ring(&differences(arguments)), needed, "{arguments}");
        }
    }
}
