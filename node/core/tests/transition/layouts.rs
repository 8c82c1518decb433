//! Where keys are while rings follow each other, what is pulled, and what is handed over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dynamo_core::membership::RingVersion;
use dynamo_core::ring::{Member, Placement, PlanError, Ring, Target, plan};
use dynamo_core::transition::{Fenced, Layouts, Local, Mark, Step, Strays, Sync, Transition};
use dynamo_core::types::{ClusterId, Incarnation, KeyHash, MemberId, PartitionId, Zone};

use super::model::name;

const LIFE: Incarnation = Incarnation { generation: 1, id: 9 };

fn member(index: usize) -> Member {
    Member {
        id: name(index),
        zone: Zone::new("").unwrap(),
        weight: 1,
    }
}

fn first(count: usize) -> Ring {
    Ring::bootstrap(ClusterId([7; 16]), (0..count).map(member).collect(), 32, 3).unwrap()
}

fn target(members: &[usize]) -> Target {
    Target {
        members: members.iter().map(|index| member(*index)).collect(),
        partitions: 32,
        ..Target::default()
    }
}

/// The view of `me` after a ring with these members was proposed.
fn proposed(me: usize, base: &Ring, members: &[usize], dead: &[usize]) -> (Transition, Layouts) {
    let base = Arc::new(base.clone());
    let mut transition = Transition::new(name(me), LIFE, Arc::clone(&base), false);
    let planned = plan(&Placement::new(base), 2, &target(members)).unwrap();
    let dead = dead.iter().map(|index| name(*index)).collect();
    let proposer = (0..8)
        .find(|index| transition.base().index_of(&name(*index)).is_some())
        .unwrap();
    let mut told = Transition::new(name(proposer), LIFE, Arc::clone(transition.base()), false);
    told.propose(planned.ring, dead).unwrap();
    transition.hear(told.told());
    let layouts = Layouts::of(&transition, None);
    (transition, layouts)
}

fn hash(ring: &Ring, partition: u32) -> KeyHash {
    KeyHash(*ring.range(PartitionId(partition)).start())
}

fn holders(placement: &Placement, hash: KeyHash) -> BTreeSet<MemberId> {
    let members = placement.ring().members();
    let primaries = placement.primaries_of(hash).iter();
    primaries
        .map(|index| members[usize::from(*index)].id.clone())
        .collect()
}

#[test]
fn the_slots_of_a_key_hold_both_lists_and_base_nodes_come_first() {
    let base = first(4);
    let (_, layouts) = proposed(0, &base, &[0, 1, 2, 3, 4, 5], &[]);
    let mut moved = 0;
    for partition in 0..32 {
        let hash = hash(&base, partition);
        let (old, new) = (
            holders(layouts.base(), hash),
            holders(layouts.next().unwrap(), hash),
        );
        let slots = layouts.slots(hash, 3);
        assert_eq!(slots.len(), 3);
        assert!(slots.iter().all(|slot| old.contains(&slot.members[0])));
        let all: BTreeSet<MemberId> = slots.into_iter().flat_map(|slot| slot.members).collect();
        assert_eq!(all, old.union(&new).cloned().collect());
        moved += new.difference(&old).count();
        for member in 0..6 {
            assert_eq!(layouts.holds(hash, &name(member)), all.contains(&name(member)));
        }
    }
    assert!(moved > 0);
}

#[test]
fn a_new_holder_pulls_each_partition_from_whom_it_is_paired_with() {
    let base = first(4);
    let (_, layouts) = proposed(4, &base, &[0, 1, 2, 3, 4], &[]);
    let mut sync = Sync::new(&layouts, &name(4)).unwrap();
    let gets: BTreeSet<PartitionId> = (0..32)
        .map(PartitionId)
        .filter(|partition| layouts.holds(hash(&base, partition.0), &name(4)))
        .collect();
    assert_eq!(sync.open().collect::<BTreeSet<_>>(), gets);
    let nobody = |_: &MemberId| false;
    assert_eq!(sync.next(&nobody, 5), None);
    let mut random = 1u64;
    let mut exchanges = 0;
    while !sync.is_done() {
        random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let (partition, source) = sync.next(&|_| true, random).unwrap();
        assert!(holders(layouts.base(), hash(&base, partition.0)).contains(&source));
        // One that came to nothing is asked for again.
        let complete = !random.is_multiple_of(3);
        sync.ended(partition, &source, complete);
        exchanges += usize::from(complete);
    }
    assert!(exchanges >= gets.len());
    assert_eq!(
        (sync.progress().partitions, sync.progress().done),
        (gets.len(), gets.len())
    );
    // Who holds nothing new pulls nothing, at most for buckets with fewer replicas than the ring.
    let stays = Sync::new(&layouts, &name(0)).unwrap();
    assert!(
        stays
            .open()
            .all(|partition| layouts.holds(hash(&base, partition.0), &name(0)))
    );
}

#[test]
fn without_its_predecessor_a_new_holder_pulls_from_all_who_are_left() {
    let base = first(4);
    let (_, layouts) = proposed(4, &base, &[0, 1, 2, 4], &[3]);
    let mut sync = Sync::new(&layouts, &name(4)).unwrap();
    let mut sources: BTreeMap<PartitionId, BTreeSet<MemberId>> = BTreeMap::new();
    while let Some((partition, source)) = sync.next(&|_| true, 7) {
        sources.entry(partition).or_default().insert(source.clone());
        sync.ended(partition, &source, true);
    }
    assert!(sync.is_done() && !sources.is_empty());
    for (partition, sources) in sources {
        let mut old = holders(layouts.base(), hash(&base, partition.0));
        assert!(!sources.contains(&name(3)), "the dead cannot be asked");
        if old.remove(&name(3)) {
            assert_eq!(sources, old, "{partition:?}");
        }
    }
}

#[test]
fn what_a_dead_predecessor_had_is_pulled_also_from_holders_by_superseded_rings() {
    let base = first(4);
    let placement = Placement::new(Arc::new(base.clone()));
    let mut told = Transition::new(name(0), LIFE, Arc::new(base.clone()), false);
    let with_four = plan(&placement, 2, &target(&[0, 1, 2, 3, 4])).unwrap();
    told.propose(with_four.ring, BTreeSet::new()).unwrap();
    let superseded = Layouts::of(&told, None);
    let with_five = plan(&placement, 3, &target(&[0, 1, 2, 5])).unwrap();
    told.propose(with_five.ring, [name(3)].into()).unwrap();
    for known_to_all in [false, true] {
        let mut mine = Transition::new(name(5), LIFE, Arc::new(base.clone()), false);
        mine.hear(told.told());
        let ring = mine.newest();
        for member in (0..6).filter(|_| known_to_all).map(name) {
            mine.lives(&member, LIFE);
            let incarnation = LIFE;
            let step = Step::Known;
            mine.give(Mark {
                ring,
                member,
                incarnation,
                step,
            });
        }
        let layouts = Layouts::of(&mine, None);
        assert_eq!(layouts.written().count(), if known_to_all { 2 } else { 3 });
        let mut sync = Sync::new(&layouts, &name(5)).unwrap();
        let mut asked_four = 0;
        while let Some((partition, source)) = sync.next(&|_| true, 7) {
            let hash = hash(&base, partition.0);
            let had = holders(superseded.next().unwrap(), hash).contains(&source);
            assert!(holders(layouts.base(), hash).contains(&source) || had, "{source}");
            if source == name(4) {
                asked_four += 1;
                assert!(holders(layouts.base(), hash).contains(&name(3)), "{partition:?}");
                assert!(layouts.may_give_partition(partition, &source));
            }
            sync.ended(partition, &source, true);
        }
        assert!(asked_four > 0 && sync.is_done());
    }
}

/// The base came to serve though it lists a member that had died: what this one was to hold is pulled from those that it had taken the
/// place of, also if it is back by now and no longer thought dead, and they hold it until then.
#[test]
fn what_a_holder_has_that_died_before_its_ring_served_is_pulled_from_those_before() {
    let before = first(4);
    let (mut mine, layouts) = proposed(5, &before, &[0, 1, 2, 4], &[]);
    let next = Arc::clone(layouts.next().unwrap().ring());
    (0..8).for_each(|member| mine.lives(&name(member), LIFE));
    for (step, member) in Step::ALL
        .into_iter()
        .flat_map(|step| (0..5).map(move |member| (step, name(member))))
    {
        let is_dead = step == Step::Reading && member == name(4);
        mine.give(Mark {
            ring: RingVersion::from(next.as_ref()),
            member: if is_dead { name(7) } else { member },
            incarnation: LIFE,
            step,
        });
    }
    assert_eq!(mine.base().epoch(), 1, "it is waited for");
    let mut told = Transition::new(name(0), LIFE, Arc::new(before.clone()), false);
    told.hear(mine.told());
    (0..8).for_each(|member| told.lives(&name(member), LIFE));
    assert!(told.declare_dead(&[name(4)].into()), "{:?}", told.waits_for());
    mine.hear(told.told());
    assert_eq!((mine.base().epoch(), mine.next()), (2, None));
    let serving = Layouts::of(&mine, None);
    let held_before = Placement::new(Arc::new(before.clone()));
    for back in [false, true] {
        let mut changed = told.clone();
        let after = plan(serving.base(), 3, &target(&[0, 1, 2, 5])).unwrap().ring;
        let dead = if back { BTreeSet::new() } else { [name(4)].into() };
        // The first member has read from the ring that serves by now.
        changed.propose(after, dead).unwrap();
        let mut mine = mine.clone();
        mine.hear(changed.told());
        let layouts = Layouts::of(&mine, Some(&serving));
        let mut sync = Sync::new(&layouts, &name(5)).unwrap();
        let mut sources: BTreeMap<PartitionId, BTreeSet<MemberId>> = BTreeMap::new();
        while let Some((partition, source)) = sync.next(&|_| true, 7) {
            assert!(layouts.may_give_partition(partition, &source));
            sources.entry(partition).or_default().insert(source.clone());
            sync.ended(partition, &source, true);
        }
        let mut asked = 0;
        for (partition, sources) in sources {
            let hash = hash(&before, partition.0);
            if !holders(layouts.base(), hash).contains(&name(4)) {
                continue;
            }
            let mut all = holders(layouts.base(), hash);
            all.extend(holders(&held_before, hash));
            if !back {
                all.remove(&name(4));
            }
            assert_eq!(sources, all, "{partition:?}");
            asked += usize::from(sources.contains(&name(3)));
        }
        assert!(asked > 0, "the one that was left out");
    }
}

#[test]
fn hints_go_to_the_owner_and_whom_it_is_paired_with_but_not_to_the_dead() {
    let base = first(4);
    let (_, layouts) = proposed(0, &base, &[0, 1, 2, 4], &[3]);
    for partition in 0..32 {
        let hash = hash(&base, partition);
        for owner in 0..6 {
            let targets = layouts.hint_targets(&name(owner), hash);
            assert!(!targets.is_empty() && !targets.contains(&name(3)));
            let slot = layouts
                .slots(hash, 3)
                .into_iter()
                .find(|slot| slot.members.contains(&name(owner)));
            let alive = |member: &&MemberId| **member != name(3);
            let expected = slot.map(|slot| slot.members.iter().filter(alive).cloned().collect::<Vec<_>>());
            if let Some(expected) = expected.filter(|expected| !expected.is_empty()) {
                assert_eq!(targets, expected);
            } else {
                assert!(targets.len() >= 3, "a hint for nobody goes to all: {targets:?}");
            }
        }
    }
}

#[test]
fn who_has_given_a_mark_takes_nothing_from_who_has_not_heard_of_its_ring() {
    let base = first(3);
    let (mut transition, layouts) = proposed(0, &base, &[0, 1, 2, 3], &[]);
    let (old, new) = (RingVersion::from(&base), transition.newest());
    assert!(!layouts.is_behind(old));
    let mark = transition.due(Local::default()).unwrap();
    assert_eq!(mark.step, Step::Known);
    transition.give(mark);
    let layouts = Layouts::of(&transition, Some(&layouts));
    assert!(layouts.is_behind(old) && !layouts.is_behind(new));
}

#[test]
fn strays_are_erased_only_after_every_owner_has_them_under_this_ring() {
    let base = first(4);
    let (transition, _) = proposed(0, &base, &[0, 1, 2, 3], &[]);
    let layouts = Layouts::of(&transition, None);
    let version = RingVersion::from(layouts.base().ring().as_ref());
    let all = || (0..32).map(PartitionId);
    let held = |partition: &PartitionId| layouts.holds(hash(&base, partition.0), &name(0));
    let mut strays = Strays::default();
    strays.place(&layouts, &name(0), all());
    assert_eq!(strays.count(), all().filter(|partition| !held(partition)).count());
    assert!(strays.count() > 0 && strays.safe(&layouts).is_none());
    let (partition, owner) = strays.next(&layouts, &|_| true, 3).unwrap();
    strays.ended(version, partition, &owner, true);
    let mut owners = BTreeSet::from([owner]);
    while strays.safe(&layouts).is_none() {
        let (next, owner) = strays.next(&layouts, &|_| true, 3).unwrap();
        // Of another ring, or not complete: it does not count.
        let counts = owners.len() > 1;
        let under = RingVersion {
            epoch: u64::from(counts),
            ..version
        };
        strays.ended(if counts { version } else { under }, next, &owner, true);
        if next == partition && counts {
            owners.insert(owner);
        } else if next == partition {
            owners.insert(name(7));
        }
    }
    let safe = strays.safe(&layouts).unwrap();
    assert!(!held(&safe));
    strays.erased(safe);
    assert!(!strays.has(safe));
}

/// Also if they are back and say that they have everything: nobody will ask them for it.
#[test]
fn strays_are_not_erased_on_the_word_of_the_dead() {
    let base = first(4);
    let alive = Layouts::of(&proposed(0, &base, &[0, 1, 2, 4], &[]).0, None);
    let dead = Layouts::of(&proposed(0, &base, &[0, 1, 2, 4], &[3]).0, None);
    let version = RingVersion::from(&base);
    let mut strays = Strays::default();
    strays.place(&alive, &name(0), (0..32).map(PartitionId));
    let count = strays.count();
    let mut told_before = strays.clone();
    while let Some((partition, owner)) = told_before.next(&alive, &|_| true, 3) {
        told_before.ended(version, partition, &owner, true);
    }
    while let Some((partition, owner)) = strays.next(&dead, &|_| true, 3) {
        assert!(owner != name(3));
        strays.ended(version, partition, &owner, true);
    }
    assert!(told_before.safe(&alive).is_some());
    for mut strays in [told_before, strays] {
        assert_eq!(strays.count(), count);
        while let Some(partition) = strays.safe(&dead) {
            assert!(!holders(dead.base(), hash(&base, partition.0)).contains(&name(3)));
            strays.erased(partition);
        }
        assert!(
            strays.count() > 0 && strays.count() <= count,
            "{}",
            strays.count()
        );
    }
}

#[test]
fn a_plan_says_what_moves_and_refuses_what_is_no_ring() {
    let base = Placement::new(Arc::new(first(4)));
    let same = plan(&base, 2, &target(&[3, 2, 1, 0])).unwrap();
    assert_eq!((same.moves, same.ring.epoch()), (0, 2));
    assert_eq!(same.ring.owners(), base.ring().owners());

    let more = plan(&base, 2, &target(&[0, 1, 2, 3, 4])).unwrap();
    assert!(more.moves >= more.moves_min && more.moves_min > 0);
    assert_eq!(more.shares[&name(4)].gets, more.shares[&name(4)].partitions.1);
    let gets: u32 = more.shares.values().map(|share| share.gets).sum();
    assert_eq!(gets, more.moves);

    let doubled = plan(
        &base,
        2,
        &Target {
            partitions: 64,
            ..target(&[0, 1, 2, 3])
        },
    )
    .unwrap();
    assert_eq!((doubled.moves, doubled.ring.partitions()), (0, 64));
    let doubled = Placement::new(doubled.ring);
    for key in 0..1000u64 {
        let hash = KeyHash(key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        assert_eq!(doubled.primaries_of(hash), base.primaries_of(hash));
    }

    let mut replaced = target(&[0, 1, 2, 9]);
    replaced.replaces = [(name(9), name(3))].into();
    let replaced = plan(&base, 2, &replaced).unwrap();
    let gets: Vec<_> = replaced
        .shares
        .iter()
        .filter(|(_, share)| share.gets > 0)
        .collect();
    assert_eq!(gets.len(), 1, "{gets:?}");
    assert_eq!(
        replaced.shares[&name(9)].partitions.1,
        replaced.shares[&name(3)].partitions.0
    );

    let refused = |target: Target| plan(&base, 2, &target).unwrap_err();
    assert!(matches!(refused(target(&[0, 1])), PlanError::Ring(_)));
    assert!(matches!(
        refused(Target {
            partitions: 128,
            ..target(&[0, 1, 2, 3])
        }),
        PlanError::Partitions { .. }
    ));
    assert_eq!(
        refused(Target {
            partitions: 64,
            ..target(&[0, 1, 2])
        }),
        PlanError::TwoChanges
    );
    let mut stays = target(&[0, 1, 2, 3, 4]);
    stays.replaces = [(name(4), name(3))].into();
    assert!(matches!(refused(stays), PlanError::Replaces { .. }));
    let mut heavier = target(&[0, 1, 2, 4]);
    heavier.members[3].weight = 2;
    heavier.replaces = [(name(4), name(3))].into();
    assert!(matches!(refused(heavier), PlanError::Unequal { .. }));
}

#[test]
fn a_removed_member_is_not_heard_unless_it_knows_a_later_ring() {
    let base = Arc::new(first(4));
    let second = plan(&Placement::new(base), 2, &target(&[0, 1, 2])).unwrap().ring;
    let serving = Transition::new(name(0), LIFE, second, false);
    let layouts = Layouts::of(&serving, None);
    for (sender, base, reads, expected) in [
        (0, 2, 2, Ok(())),
        (3, 0, 0, Err(Fenced::NotAMember)),
        (3, 1, 1, Err(Fenced::NotAMember)),
        (3, 2, 2, Err(Fenced::NotAMember)),
        (3, 3, 3, Ok(())),
        (1, 1, 1, Err(Fenced::Retired)),
        // It writes to what has become the base.
        (1, 1, 2, Ok(())),
    ] {
        assert_eq!(
            layouts.admits(&name(sender), base, reads),
            expected,
            "{sender} {base} {reads}"
        );
    }
    // Who is declared dead is not heard while it is still listed.
    let (_, layouts) = proposed(0, &first(4), &[0, 1, 2], &[3]);
    assert_eq!(layouts.admits(&name(3), 1, 1), Err(Fenced::NotAMember));
    assert_eq!(layouts.admits(&name(2), 1, 1), Ok(()));
}
