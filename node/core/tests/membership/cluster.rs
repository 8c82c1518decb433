//! Many nodes in one loop: a round is a second, messages may be lost, and a seed replays every run.

use std::collections::BTreeSet;
use std::sync::Arc;

use dynamo_core::membership::{Detector, Gossip, Silence, Target, View};
use dynamo_core::ring::Ring;

use super::support::{CLUSTER, Random, entry, id, ring, view};

const SEEDS: u64 = 200;

struct Cluster {
    views: Vec<View>,
    detectors: Vec<Detector>,
    /// Nodes that are up.
    up: Vec<bool>,
    /// Which nodes the configured seed addresses lead to.
    seeds: Vec<usize>,
    loss_percent: usize,
    round: u64,
    random: Random,
}

impl Cluster {
    fn new(views: Vec<View>, seeds: Vec<usize>, loss_percent: usize, seed: u64) -> Self {
        let count = views.len();
        let (detectors, up) = (vec![Detector::new(500); count], vec![true; count]);
        Self {
            views,
            detectors,
            up,
            seeds,
            loss_percent,
            round: 0,
            random: Random::new(seed),
        }
    }

    /// Nodes that know each other and share a ring.
    fn settled(count: usize, loss_percent: usize, seed: u64) -> Self {
        let all = || (0..count).map(entry).collect();
        let views = (0..count).map(|number| {
            let mut view = View::new(CLUSTER, entry(number), Some(Arc::new(ring(count, 1))));
            let delta = view.delta_for(&dynamo_core::membership::Wanted::default());
            view.merge(dynamo_core::membership::Delta {
                members: all(),
                ..delta
            });
            view
        });
        Self::new(views.collect(), vec![0, 1], loss_percent, seed)
    }

    /// Every node that is up speaks with one other.
    fn one_round(&mut self) {
        self.round += 1;
        let mut order: Vec<usize> = (0..self.views.len()).filter(|node| self.up[*node]).collect();
        for end in (1..order.len()).rev() {
            order.swap(end, self.random.below(end + 1));
        }
        for node in order {
            self.exchange(node);
        }
    }

    fn exchange(&mut self, from: usize) {
        let now_ms = self.round * 1000;
        let gossip = Gossip::new(self.seeds.len());
        let to = match gossip.next_target(&self.views[from], &self.detectors[from], self.random.next()) {
            Some(Target::Member(member)) => (0..self.views.len()).find(|node| id(*node) == member).unwrap(),
            Some(Target::Seed(index)) => self.seeds[index],
            None => return,
        };
        if to == from {
            return;
        }
        let answered = self.up[to] && !self.lost();
        let answer = answered
            .then(|| self.views[to].answer(&self.views[from].digest()))
            .filter(|_| !self.lost());
        let Some(answer) = answer else {
            self.detectors[from].failed(
                &id(to),
                Silence::Refused,
                (now_ms, now_ms + 500),
                "refused".into(),
            );
            return;
        };
        self.detectors[from].succeeded(&id(to), now_ms, now_ms + 1);
        let back = self.views[from].delta_for(&answer.wanted);
        assert_eq!(self.views[from].merge(answer.delta).refused, []);
        if !self.lost() {
            assert_eq!(self.views[to].merge(back).refused, []);
        }
        // Probes are what brings a silent peer back.
        for member in self.detectors[from].probes_due(now_ms) {
            let node = (0..self.views.len()).find(|node| id(*node) == member).unwrap();
            if self.up[node] && !self.lost() {
                self.detectors[from].succeeded(&member, now_ms, now_ms + 1);
            }
        }
    }

    fn lost(&mut self) -> bool {
        self.random.below(100) < self.loss_percent
    }

    /// The rings of the nodes that are up, as (epoch, hash).
    fn rings(&self) -> BTreeSet<Option<(u64, u64)>> {
        let up = self.views.iter().zip(&self.up).filter(|(_, up)| **up);
        up.map(|(view, _)| view.ring().map(|ring| ring.version()))
            .collect()
    }

    /// Rounds until `done`; the test fails after 200.
    fn rounds_until(&mut self, done: impl Fn(&Self) -> bool) -> u64 {
        let begin = self.round;
        while !done(self) {
            assert!(self.round - begin < 200, "no end");
            self.one_round();
        }
        self.round - begin
    }
}

/// Median, 99th percentile and maximum over all seeds.
fn over_seeds(what: &str, run: impl Fn(u64) -> u64) -> u64 {
    let mut rounds: Vec<u64> = (0..SEEDS).map(run).collect();
    rounds.sort_unstable();
    let p99 = rounds[rounds.len() * 99 / 100 - 1];
    println!(
        "{what}: rounds p50 {}, p99 {p99}, max {}",
        rounds[rounds.len() / 2],
        rounds[rounds.len() - 1]
    );
    p99
}

#[test]
fn d57_a_new_ring_reaches_32_nodes_in_less_than_15_rounds() {
    for loss_percent in [0, 10] {
        let run = |seed| {
            let mut cluster = Cluster::settled(32, loss_percent, seed);
            let new = ring(32, 2);
            assert!(cluster.views[seed as usize % 32].adopt(Arc::new(new.clone())));
            let rounds = cluster.rounds_until(|cluster| cluster.rings().len() == 1);
            // D9: every node has the same epoch and hash.
            assert_eq!(cluster.rings(), BTreeSet::from([Some(new.version())]));
            rounds
        };
        let p99 = over_seeds(&format!("ring to 32 nodes, {loss_percent} % loss"), run);
        assert!(p99 < 15, "p99 {p99} at {loss_percent} % loss");
    }
}

#[test]
fn d57_entries_of_32_strangers_reach_everybody() {
    for loss_percent in [0, 10] {
        let run = |seed| {
            let mut cluster = Cluster::new((0..32).map(view).collect(), vec![0, 1], loss_percent, seed);
            cluster.rounds_until(|cluster| cluster.views.iter().all(|view| view.members().len() == 32))
        };
        let p99 = over_seeds(&format!("32 strangers with 2 seeds, {loss_percent} % loss"), run);
        assert!(p99 < 15, "p99 {p99} at {loss_percent} % loss");
    }
}

#[test]
fn d56_any_node_may_be_gone() {
    let run = |seed| {
        let mut cluster = Cluster::settled(32, 10, seed);
        let minter = seed as usize % 32;
        cluster.views[minter].adopt(Arc::new(ring(32, 2)));
        cluster.rounds_until(|cluster| {
            cluster.rings().contains(&Some(ring(32, 2).version())) && cluster.round > 0
        });
        // Who minted the ring goes, and both seeds with it.
        for gone in [minter, 0, 1] {
            cluster.up[gone] = false;
        }
        let heard = cluster
            .views
            .iter()
            .zip(&cluster.up)
            .any(|(view, up)| *up && view.ring().unwrap().epoch() == 2);
        let rounds = cluster.rounds_until(|cluster| cluster.rings().len() == 1);
        assert_eq!(
            cluster.rings(),
            BTreeSet::from([Some(ring(32, 1 + u64::from(heard)).version())])
        );
        rounds
    };
    let p99 = over_seeds("ring without its minter and the seeds, 10 % loss", run);
    assert!(p99 < 15, "p99 {p99}");
}

#[test]
fn d9_concurrent_rings_end_as_one() {
    let run = |seed| {
        let mut cluster = Cluster::settled(32, 10, seed);
        let minted: Vec<_> = [30, 31, 32].map(|members| ring(members, 2)).into();
        for (node, ring) in minted.iter().enumerate() {
            cluster.views[node * 10].adopt(Arc::new(ring.clone()));
        }
        let rounds = cluster.rounds_until(|cluster| cluster.rings().len() == 1);
        let winner = minted.iter().map(Ring::version).max();
        assert_eq!(cluster.rings(), BTreeSet::from([winner]));
        rounds
    };
    let p99 = over_seeds("three concurrent rings, 10 % loss", run);
    assert!(p99 < 15, "p99 {p99}");
}

#[test]
fn m_seeds_lead_two_isolated_groups_together() {
    for (count, bound) in [(2, 10), (16, 15)] {
        let run = |seed| {
            // Each half knows itself alone; the configuration names one node of either.
            let mut cluster = Cluster::new((0..count).map(view).collect(), vec![0, count / 2], 0, seed);
            for half in [0..count / 2, count / 2..count] {
                for node in half.clone() {
                    let empty = cluster.views[node].delta_for(&dynamo_core::membership::Wanted::default());
                    let members = half.clone().map(entry).collect();
                    cluster.views[node].merge(dynamo_core::membership::Delta { members, ..empty });
                }
            }
            cluster.views[count - 1].adopt(Arc::new(ring(count, 7)));
            cluster.rounds_until(|cluster| {
                cluster.views.iter().all(|view| view.members().len() == count) && cluster.rings().len() == 1
            })
        };
        let p99 = over_seeds(&format!("two groups of {} through seeds", count / 2), run);
        assert!(p99 <= bound, "p99 {p99}");
    }
}

#[test]
fn m_a_cold_start_with_other_addresses_converges() {
    let run = |seed| {
        let mut cluster = Cluster::settled(9, 10, seed);
        // Everyone restarts from its persisted view, with another address.
        for node in 0..9 {
            let mut view = View::decode(cluster.views[node].encode()).unwrap();
            view.update_self(|me| {
                me.starts += 1;
                me.peer_address = format!("10.9.9.{}:7701", 8 - node);
            });
            cluster.views[node] = view;
            cluster.detectors[node] = Detector::new(500);
        }
        let current = |view: &View| {
            view.members()
                .all(|entry| entry.starts == 2 && entry.peer_address.starts_with("10.9"))
        };
        let rounds = cluster.rounds_until(|cluster| cluster.views.iter().all(current));
        assert_eq!(cluster.rings(), BTreeSet::from([Some(ring(9, 1).version())]));
        rounds
    };
    let p99 = over_seeds("cold start of 9 nodes, 10 % loss", run);
    assert!(p99 < 15, "p99 {p99}");
}

#[test]
fn k11_crashes_change_no_ring() {
    let mut cluster = Cluster::settled(6, 10, 5);
    cluster.up[3] = false;
    // An hour.
    for _ in 0..3600 {
        cluster.one_round();
    }
    assert_eq!(cluster.rings(), BTreeSet::from([Some(ring(6, 1).version())]));
    assert!(cluster.views.iter().all(|view| view.log().len() == 1));
    let seen_down = cluster
        .detectors
        .iter()
        .enumerate()
        .filter(|(node, detector)| *node != 3 && !detector.reachable(&id(3)));
    assert_eq!(seen_down.count(), 5, "everyone has found out by itself");
    cluster.up[3] = true;
    cluster.rounds_until(|cluster| {
        cluster
            .detectors
            .iter()
            .enumerate()
            .all(|(node, detector)| node == 3 || detector.reachable(&id(3)))
    });
}
