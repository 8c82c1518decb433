//! The rules one by one.

use std::collections::BTreeSet;
use std::sync::Arc;

use dynamo_core::ring::Ring;
use dynamo_core::transition::{
    Fenced, Followers, KEPT_MAX, Layouts, Local, ProposeRefused, Step, SyncProgress, Told, Transition,
};
use dynamo_core::types::{Incarnation, MemberId};

use super::model::{name, ring};

const OLD: [usize; 3] = [0, 1, 2];
const NEW: [usize; 3] = [1, 2, 3];

fn life(generation: u32) -> Incarnation {
    Incarnation { generation, id: 9 }
}

/// What a node says that has nothing under way and everything that it should hold.
fn ready(of: &Transition) -> Local {
    Local {
        oldest: None,
        synced: Some(of.newest()),
    }
}

/// Members 0 to 3, of whom the first three serve by the first ring.
struct Cluster(Vec<Transition>);

impl Cluster {
    fn new() -> Self {
        let first = Arc::new(ring(1, &OLD));
        let member = |me: usize| {
            let mut transition = Transition::new(name(me), life(1), Arc::clone(&first), false);
            (0..4).for_each(|other| transition.lives(&name(other), life(1)));
            transition
        };
        Self((0..4).map(member).collect())
    }

    /// As [`new`](Self::new), and the next ring is proposed and known to everybody.
    fn proposed() -> Self {
        let mut cluster = Self::new();
        cluster.propose(0, &NEW).unwrap();
        cluster.gossip();
        cluster
    }

    fn propose(&mut self, at: usize, members: &[usize]) -> Result<(), ProposeRefused> {
        let epoch = self.0[at].newest().epoch + 1;
        self.0[at].propose(Arc::new(ring(epoch, members)), BTreeSet::new())
    }

    fn gossip(&mut self) {
        for _ in 0..2 {
            for from in 0..self.0.len() {
                let told = self.0[from].told();
                self.0.iter_mut().for_each(|member| member.hear(told.clone()));
            }
        }
    }

    /// This member gives its next mark, if it is due.
    fn step(&mut self, at: usize) -> Option<Step> {
        let member = &mut self.0[at];
        let mark = member.due(ready(member))?;
        member.give(mark.clone());
        Some(mark.step)
    }

    /// All give their next mark and tell each other.
    fn all(&mut self, step: Step) {
        for member in 0..self.0.len() {
            assert_eq!(self.step(member), Some(step), "{member}");
        }
        self.gossip();
    }

    fn epochs(&self, at: usize) -> (Vec<u64>, Option<u64>) {
        let member = &self.0[at];
        let epoch = |ring: &Arc<Ring>| ring.epoch();
        (member.written().map(epoch).collect(), member.read().map(epoch))
    }
}

#[test]
fn each_step_waits_for_the_one_before_at_everybody() {
    let mut cluster = Cluster::proposed();
    assert_eq!(cluster.epochs(0), (vec![1, 2], Some(1)));
    for step in [Step::Known, Step::Synced] {
        for member in 0..4 {
            assert!(step == Step::Synced || !cluster.0[member].may_sync());
            assert_eq!(cluster.step(member), Some(step));
            assert_eq!(cluster.step(member), None, "others are not as far");
        }
        cluster.gossip();
        assert!(cluster.0.iter().all(Transition::may_sync));
    }
    for member in 0..3 {
        assert_eq!(cluster.step(member), Some(Step::Reading));
        assert_eq!(cluster.epochs(member), (vec![1, 2], Some(2)));
    }
    cluster.gossip();
    let (step, waits_for) = cluster.0[0].waits_for().unwrap();
    assert_eq!((step, waits_for), (Step::Reading, vec![&name(3)]));
    assert_eq!(cluster.epochs(3), (vec![1, 2], Some(1)));

    assert_eq!(cluster.step(3), Some(Step::Reading));
    assert_eq!(
        cluster.epochs(3),
        (vec![2], Some(2)),
        "the last one retires the base"
    );
    cluster.gossip();
    for member in 0..4 {
        assert_eq!(cluster.epochs(member), (vec![2], Some(2)));
        assert_eq!(cluster.0[member].told().followers.marks, BTreeSet::new());
        assert_eq!(cluster.0[member].waits_for(), None);
    }
}

#[test]
fn known_waits_for_what_was_begun_without_the_ring() {
    let mut cluster = Cluster::new();
    let before = cluster.0[0].newest();
    cluster.propose(0, &NEW).unwrap();
    let member = &cluster.0[0];
    let local = |oldest| Local {
        oldest: Some(oldest),
        synced: None,
    };
    assert_eq!(member.due(local(before)), None);
    assert_eq!(member.due(local(member.newest())).unwrap().step, Step::Known);
}

#[test]
fn synced_is_a_word_about_the_newest_ring() {
    let mut cluster = Cluster::proposed();
    cluster.all(Step::Known);
    let synced = Some(cluster.0[1].newest());
    cluster.propose(1, &[2, 3, 0]).unwrap();
    cluster.gossip();
    cluster.all(Step::Known);
    let due = |synced| cluster.0[1].due(Local { oldest: None, synced });
    assert_eq!(due(synced), None, "of the ring before");
    assert_eq!(due(Some(cluster.0[1].newest())).unwrap().step, Step::Synced);
}

#[test]
fn a_node_that_retired_the_base_refuses_who_still_uses_it() {
    let mut cluster = Cluster::proposed();
    for step in [Step::Known, Step::Synced, Step::Reading] {
        cluster.all(step);
    }
    let lagging = Cluster::proposed();
    let admits = |member: &Transition, base, reads| Layouts::of(member, None).admits(&name(2), base, reads);
    assert_eq!(admits(&cluster.0[0], 1, 1), Err(Fenced::Retired));
    // One that reads from what has become the base writes to it, too.
    assert_eq!(admits(&cluster.0[0], 1, 2), Ok(()));
    assert_eq!(admits(&cluster.0[0], 2, 2), Ok(()));
    assert_eq!(admits(&lagging.0[0], 1, 1), Ok(()));
    assert_eq!(admits(&lagging.0[0], 2, 2), Ok(()));
    // And whoever lags learns it with everything that follows, whatever it missed.
    cluster.propose(3, &OLD).unwrap();
    let mut member = lagging.0[2].clone();
    member.hear(cluster.0[3].told());
    assert_eq!((member.base().epoch(), member.newest().epoch), (2, 3));
    member.hear(lagging.0[1].told());
    assert_eq!(
        (member.base().epoch(), member.newest().epoch),
        (2, 3),
        "the larger base wins"
    );
}

#[test]
fn a_change_of_mind_is_written_to_all_rings_until_everybody_knows_it() {
    let mut cluster = Cluster::proposed();
    for step in [Step::Known, Step::Synced] {
        cluster.all(step);
    }
    assert_eq!(cluster.step(0), Some(Step::Reading));
    cluster.propose(1, &[0, 1, 3]).unwrap();
    assert_eq!(cluster.epochs(1), (vec![1, 2, 3], Some(1)));
    cluster.gossip();
    assert_eq!(
        cluster.epochs(0),
        (vec![1, 2, 3], Some(1)),
        "who had begun to read goes back"
    );
    assert_eq!(
        cluster.step(2),
        Some(Step::Known),
        "and nobody reads from the ring that was superseded"
    );
    cluster.gossip();
    assert_eq!(cluster.epochs(3), (vec![1, 2, 3], Some(1)));
    for member in [0, 1, 3] {
        assert_eq!(cluster.step(member), Some(Step::Known));
    }
    cluster.gossip();
    assert_eq!(cluster.epochs(3), (vec![1, 3], Some(1)));
    for step in [Step::Synced, Step::Reading] {
        cluster.all(step);
    }
    assert!((0..4).all(|member| cluster.epochs(member) == (vec![3], Some(3))));
}

#[test]
fn only_who_remembers_takes_part_and_does_not_read_may_propose() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.propose(3, &NEW), Err(ProposeRefused::NoMember));
    let stale = cluster.0[0].propose(Arc::new(ring(3, &NEW)), BTreeSet::new());
    assert_eq!(
        stale,
        Err(ProposeRefused::Stale {
            expected: 2,
            newest: 1
        })
    );
    cluster.propose(0, &NEW).unwrap();
    cluster.gossip();
    cluster.propose(3, &OLD).unwrap();
    cluster.propose(3, &NEW).unwrap();
    assert_eq!(cluster.propose(3, &OLD), Err(ProposeRefused::TooMany));
    cluster.gossip();
    cluster.all(Step::Known);
    cluster.propose(3, &OLD).unwrap();
    cluster.gossip();
    for step in [Step::Known, Step::Synced] {
        cluster.all(step);
    }
    let epoch = cluster.0[1].newest().epoch;
    assert_eq!(cluster.step(1), Some(Step::Reading));
    assert_eq!(cluster.propose(1, &NEW), Err(ProposeRefused::Reading(epoch)));
}

#[test]
fn marks_of_a_life_that_is_over_do_not_count() {
    let mut cluster = Cluster::proposed();
    for step in [Step::Known, Step::Synced] {
        cluster.all(step);
    }
    cluster.0[0].lives(&name(3), life(2));
    assert!(!cluster.0[0].may_sync());
    assert_eq!(cluster.0[0].waits_for(), Some((Step::Known, vec![&name(3)])));
    assert_eq!(cluster.step(0), None);
    // It gives them anew.
    let told = cluster.0[0].told();
    let mut again = Transition::new(name(3), life(2), Arc::clone(cluster.0[0].base()), false);
    (0..3).for_each(|other| again.lives(&name(other), life(1)));
    again.hear(told);
    for step in [Step::Known, Step::Synced] {
        let mark = again.due(ready(&again)).unwrap();
        assert_eq!(mark.step, step);
        again.give(mark);
    }
    cluster.0[0].hear(again.told());
    assert_eq!(cluster.step(0), Some(Step::Reading));
}

#[test]
fn one_that_lost_its_memory_hears_everybody_before_it_reads_or_proposes() {
    let mut cluster = Cluster::proposed();
    for step in [Step::Known, Step::Synced] {
        cluster.all(step);
    }
    let mut emptied = Transition::new(name(3), life(2), Arc::clone(cluster.0[0].base()), true);
    assert_eq!(
        emptied.read().map(|ring| ring.epoch()),
        Some(1),
        "nothing is proposed as far as it knows"
    );
    (0..3).for_each(|other| emptied.lives(&name(other), life(1)));
    emptied.hear(cluster.0[0].told());
    assert_eq!(emptied.read(), None);
    for step in [Step::Known, Step::Synced] {
        let mark = emptied.due(ready(&emptied)).unwrap();
        assert_eq!(mark.step, step);
        emptied.give(mark);
    }
    let next = Arc::new(ring(3, &OLD));
    for other in 0..3 {
        assert_eq!(emptied.due(ready(&emptied)), None);
        assert_eq!(emptied.read(), None);
        assert_eq!(
            emptied.propose(Arc::clone(&next), BTreeSet::new()),
            Err(ProposeRefused::Forgetful)
        );
        let not_awaited: BTreeSet<_> = (other + 1..3).map(name).collect();
        assert_eq!(
            emptied.clone().propose(Arc::clone(&next), not_awaited),
            Err(ProposeRefused::Forgetful),
            "another one has not been heard either"
        );
        emptied.heard_from(&name(other));
    }
    assert!(emptied.remembers());
    assert_eq!(emptied.read().map(|ring| ring.epoch()), Some(1));
    assert_eq!(emptied.due(ready(&emptied)).unwrap().step, Step::Reading);
}

/// All have marked that they read from the next ring, but only member 0 has heard so, when member 3 loses its disk. As far as it is
/// told then no ring lists it.
#[test]
fn a_store_that_no_ring_lists_is_not_trusted_before_it_has_heard_from_everybody() {
    let mut cluster = Cluster::proposed();
    for step in Step::ALL {
        cluster.all(step);
    }
    let (first, told) = (Arc::new(ring(1, &OLD)), cluster.0[0].told());
    assert_eq!(told.base.epoch(), 2);
    let mut emptied = Transition::new(name(3), life(2), first, true);
    (0..3).for_each(|other| emptied.lives(&name(other), life(1)));
    assert!(
        !emptied.may_be_trusted(None),
        "it is not to forget that it is suspect"
    );
    let mut told_all_the_same = emptied.clone();
    told_all_the_same.hear(told);
    assert_eq!(told_all_the_same.base().epoch(), 2);
    assert!(told_all_the_same.lists(&name(3)) && !told_all_the_same.remembers());
    (0..2).for_each(|other| emptied.heard_from(&name(other)));
    assert!(!emptied.may_be_trusted(None));
    emptied.heard_from(&name(2));
    assert!(emptied.may_be_trusted(None), "nobody knows of another ring");
}

#[test]
fn a_suspect_store_is_trusted_with_everything_that_the_next_ring_makes_it_hold() {
    let mut cluster = Cluster::proposed();
    let mut emptied = Transition::new(name(3), life(2), Arc::clone(cluster.0[0].base()), true);
    emptied.hear(cluster.0[0].told());
    let newest = emptied.newest();
    assert!(
        !emptied.may_be_trusted(Some(newest)),
        "it has not heard from everybody"
    );
    (0..3).for_each(|other| emptied.heard_from(&name(other)));
    assert!(emptied.may_be_trusted(Some(newest)));
    assert!(!emptied.may_be_trusted(None), "nothing was pulled");
    cluster.propose(0, &NEW).unwrap();
    emptied.hear(cluster.0[0].told());
    assert!(!emptied.may_be_trusted(Some(newest)), "there is a newer one");
    // With no other ring in sight, one that the base lists gets back what that makes it hold, whoever is away.
    let alone = Transition::new(name(0), life(2), Arc::clone(cluster.0[0].base()), true);
    assert!(!alone.remembers() && alone.may_be_trusted(None));
}

/// Or a member that dies before anybody has heard from it could never be replaced: everybody begins without a memory.
#[test]
fn a_member_that_was_never_heard_can_be_declared_dead() {
    let mut member = Transition::new(name(1), life(1), Arc::new(ring(1, &OLD)), true);
    member.heard_from(&name(2));
    let next = Arc::new(ring(2, &NEW));
    let refused = member.propose(Arc::clone(&next), BTreeSet::new());
    assert_eq!(refused, Err(ProposeRefused::Forgetful));
    member.propose(next, [name(0)].into()).unwrap();
    assert_eq!(
        member.unheard(),
        [&name(3)],
        "whom the next ring lists is heard too"
    );
}

#[test]
fn nobody_waits_for_the_dead() {
    let mut cluster = Cluster::new();
    let dead: BTreeSet<MemberId> = [name(0)].into();
    cluster.0[1].propose(Arc::new(ring(2, &NEW)), dead).unwrap();
    cluster.0.remove(0);
    cluster.gossip();
    for step in [Step::Known, Step::Synced, Step::Reading] {
        cluster.all(step);
    }
    assert!((0..3).all(|member| cluster.epochs(member) == (vec![2], Some(2))));
}

/// An estimate needs something to go by.
#[test]
fn what_is_left_takes_as_long_as_what_is_done_took() {
    let at = |done| SyncProgress {
        partitions: 200,
        done,
    };
    assert_eq!(at(0).remaining_ms(60_000), None);
    assert_eq!(at(9).remaining_ms(60_000), None);
    assert_eq!(at(10).remaining_ms(1000), Some(19_000));
    assert_eq!(at(150).remaining_ms(9000), Some(3000));
    assert_eq!(at(200).remaining_ms(9000), Some(0));
    assert_eq!(SyncProgress::default().remaining_ms(5), Some(0));
}

/// Without that, nobody could ever say so: the rings before it would be written to for ever.
#[test]
fn a_member_that_dies_while_no_more_rings_may_be_proposed_can_be_declared_dead() {
    let mut cluster = Cluster::new();
    for members in [&NEW, &OLD, &NEW] {
        cluster.propose(1, members).unwrap();
    }
    assert_eq!(cluster.propose(1, &OLD), Err(ProposeRefused::TooMany));
    let dead: BTreeSet<MemberId> = [name(0)].into();
    let without = |cluster: &mut Cluster, dead: &BTreeSet<MemberId>| {
        let epoch = cluster.0[1].newest().epoch + 1;
        cluster.0[1].propose(Arc::new(ring(epoch, &NEW)), dead.clone())
    };
    without(&mut cluster, &dead).unwrap();
    assert_eq!(
        without(&mut cluster, &dead),
        Err(ProposeRefused::TooMany),
        "that is no news"
    );
    let other = [name(2)].into();
    assert_eq!(
        without(&mut cluster, &other),
        Err(ProposeRefused::TooMany),
        "the first is waited for again"
    );
    let stranger = [name(0), name(7)].into();
    assert_eq!(
        without(&mut cluster, &stranger),
        Err(ProposeRefused::TooMany),
        "nobody waits for it"
    );
    cluster.0.remove(0);
    cluster.gossip();
    for step in [Step::Known, Step::Synced, Step::Reading] {
        cluster.all(step);
    }
    assert!((0..3).all(|member| cluster.epochs(member) == (vec![5], Some(5))));
}

/// All that are left read from the next ring, so that none of them may propose another one.
#[test]
fn a_member_that_dies_before_it_reads_can_be_declared_dead() {
    let mut cluster = Cluster::proposed();
    let dead: BTreeSet<MemberId> = [name(0)].into();
    for step in [Step::Known, Step::Synced] {
        assert!(
            !cluster.0[1].declare_dead(&dead),
            "a ring without it can be proposed"
        );
        cluster.all(step);
    }
    cluster.0.remove(0);
    cluster.all(Step::Reading);
    assert_eq!(cluster.0[0].waits_for(), Some((Step::Reading, vec![&name(0)])));
    assert_eq!(cluster.propose(0, &NEW), Err(ProposeRefused::Reading(2)));
    assert!(
        !cluster.0[0].declare_dead(&[name(7)].into()),
        "nobody waits for it"
    );
    assert!(!cluster.0[0].declare_dead(&[name(1)].into()), "it says so itself");
    assert!(cluster.0[0].declare_dead(&dead));
    assert_eq!(cluster.epochs(0), (vec![2], Some(2)));
    assert_eq!(cluster.epochs(1), (vec![1, 2], Some(2)), "not heard yet");
    // The others hear of the ring that serves, or of the dead.
    assert!(cluster.0[1].declare_dead(&dead));
    cluster.gossip();
    assert!((0..3).all(|member| cluster.epochs(member) == (vec![2], Some(2))));
}

/// As above, but the ring lists the one that dies, and serves all the same: who has what was to be there is not let go before another
/// ring serves, by nobody's word.
#[test]
fn who_gives_way_to_a_member_that_has_died_is_not_let_go() {
    let mut cluster = Cluster::proposed();
    let dead: BTreeSet<MemberId> = [name(3)].into();
    cluster.all(Step::Known);
    cluster.all(Step::Synced);
    cluster.0.pop();
    cluster.all(Step::Reading);
    assert!(cluster.0[1].declare_dead(&dead));
    assert_eq!(
        cluster.epochs(1),
        (vec![2], Some(2)),
        "the ring serves, and lists the dead"
    );
    // It hears of the ring that serves first, and knows nothing of the dead.
    let told = Told {
        base: Arc::clone(cluster.0[1].base()),
        followers: Followers::default(),
    };
    let mut late = Transition::new(name(2), life(1), Arc::clone(cluster.0[2].base()), false);
    late.hear(told);
    assert!(!late.keeps(&name(0)));
    cluster.0.push(late);
    cluster.gossip();
    for member in &cluster.0 {
        assert!(member.keeps(&name(0)) && member.lists(&name(0)));
        assert!(!member.keeps(&name(1)) && !member.lists(&name(4)));
        assert_eq!((member.written().count(), member.read().unwrap().epoch()), (1, 2));
        assert!(member.told().followers.hash() != 0, "there is something to tell");
        let layouts = Layouts::of(member, None);
        assert!(layouts.admits(&name(0), 2, 2).is_ok());
        assert!(
            layouts.members().any(|listed| *listed == name(0)),
            "it has a say in what is reaped"
        );
    }
    // An emptied store has nothing to get back there, but may have forgotten a ring.
    let mut emptied = Transition::new(name(0), life(2), Arc::clone(cluster.0[0].base()), true);
    emptied.hear(cluster.0[0].told());
    assert!(emptied.keeps(&name(0)) && !emptied.may_be_trusted(None));
    // The next ring waits for it, and lets it go.
    let without = Arc::new(ring(3, &[1, 2, 4]));
    cluster.0[1].propose(without, dead).unwrap();
    let first = Arc::new(ring(1, &OLD));
    cluster.0[3] = Transition::new(name(4), life(1), first, false);
    for member in &mut cluster.0 {
        (0..5).for_each(|other| member.lives(&name(other), life(1)));
    }
    cluster.gossip();
    let (step, waits_for) = cluster.0[1].waits_for().unwrap();
    assert_eq!(
        (step, waits_for.contains(&&name(0)), waits_for.contains(&&name(3))),
        (Step::Known, true, false)
    );
    for step in Step::ALL {
        assert!(cluster.0.iter().all(|member| member.keeps(&name(0))));
        cluster.all(step);
    }
    for member in &cluster.0 {
        assert_eq!(member.base().epoch(), 3);
        assert!(!member.keeps(&name(0)) && !member.lists(&name(0)));
        assert!(member.followers().is_empty());
    }
}

/// Rings that are kept become no more than a few, whatever dies, and which these are is agreed on.
#[test]
fn of_the_rings_before_a_few_are_kept() {
    let mut told = Transition::new(name(0), life(1), Arc::new(ring(1, &OLD)), false);
    (0..4).for_each(|member| told.lives(&name(member), life(1)));
    for epoch in 2..20 {
        told.propose(Arc::new(ring(epoch, &OLD)), [name(1), name(2)].into())
            .unwrap();
        while let Some(mark) = told.due(ready(&told)) {
            told.give(mark);
        }
        assert_eq!(told.base().epoch(), epoch);
        let kept: Vec<u64> = told
            .followers()
            .kept
            .iter()
            .map(|kept| kept.ring.epoch())
            .collect();
        let from = epoch.saturating_sub(KEPT_MAX as u64).max(1);
        assert_eq!(kept, (from..epoch).collect::<Vec<_>>());
        let again = Followers::decode(told.followers().encode(), told.base().cluster_id()).unwrap();
        assert_eq!(again, *told.followers());
        // Who goes by the same ring takes them, and drops older ones.
        let mut other = Transition::new(name(1), life(1), Arc::clone(told.base()), false);
        other.hear(told.told());
        assert_eq!(other.followers(), told.followers());
        let mut behind = Transition::new(name(1), life(1), Arc::new(ring(1, &OLD)), false);
        behind.hear_followers(told.followers().clone());
        assert!(behind.followers().kept.is_empty(), "they are of another base");
    }
}

/// The word spreads with the ring that it was said of, in any order.
#[test]
fn who_is_dead_is_heard_of_a_ring_that_is_known() {
    let mut cluster = Cluster::proposed();
    let mut told = cluster.0[1].told();
    told.followers.proposals[0].dead = [name(0)].into();
    cluster.0[2].hear(told);
    let old = cluster.0[1].told();
    cluster.0[2].hear(old);
    assert_eq!(cluster.0[2].next().unwrap().dead, [name(0)].into());
}

#[test]
fn who_is_declared_dead_coordinates_no_reads() {
    let mut cluster = Cluster::new();
    cluster.0[1]
        .propose(Arc::new(ring(2, &NEW)), [name(0)].into())
        .unwrap();
    assert!(cluster.0[0].read().is_some(), "it has not heard");
    cluster.gossip();
    assert_eq!(cluster.0[0].read(), None);
    assert!(cluster.0[1].read().is_some());
}
