//! A slow oracle: the least that a change could move, whatever the order of the tokens.
//!
//! Leave out the tokens and their order, and a ring is a choice of N members for each partition such that every zone
//! has as many of them as the zone rule lets it have. Of all choices in which every member holds as much as it does
//! in the new ring, the cheapest is found exactly: it is a flow of least cost from members over the zones of each
//! partition to the partitions, and a flow costs least if its residual graph has no cycle of negative cost. So no
//! ring in which the members hold as much can move less; that they hold what they should is another matter.
//!
//! It exceeds what members gain (or what those who left had held) where a zone becomes full: one with a third of the
//! members of three zones and N = 2, say, which grows to half of them because others leave. From then on every
//! partition has a copy in it, also those that had both copies elsewhere, on members that stay.

use std::collections::BTreeMap;

use dynamo_core::ring::Ring;

use super::support::replica_sets;

/// A partition's members as flags, by index in the new ring.
type Held = Vec<bool>;

/// The least that any choice with the new ring's loads moves, in replica-partitions.
pub(crate) fn least_moves(old: &Ring, new: &Ring) -> usize {
    let mut flow = Flow::new(old, new);
    while let Some(cycle) = flow.negative_cycle() {
        flow.turn(&cycle);
    }
    flow.moves()
}

struct Flow {
    /// The zone of each member.
    zones: Vec<usize>,
    /// Fewest and most copies of a partition in each zone.
    bounds: Vec<(usize, usize)>,
    before: Vec<Held>,
    held: Vec<Held>,
}

/// From node, to node, cost.
type Edge = (usize, usize, i32);

impl Flow {
    /// Begins with the choice of the new ring itself.
    fn new(old: &Ring, new: &Ring) -> Self {
        let (zones, bounds) = zone_bounds(new);
        let held = |ring: &Ring| {
            let flags = |set: Vec<_>| {
                let mut flags = vec![false; zones.len()];
                for index in set.iter().filter_map(|id| new.index_of(id)) {
                    flags[index] = true;
                }
                flags
            };
            replica_sets(ring).into_iter().map(flags).collect()
        };
        Self {
            before: held(old),
            held: held(new),
            zones,
            bounds,
        }
    }

    fn moves(&self) -> usize {
        let moved =
            |(held, before): (&Held, &Held)| held.iter().zip(before).filter(|(h, b)| **h && !**b).count();
        self.held.iter().zip(&self.before).map(moved).sum()
    }

    /// Nodes are numbered: members, the zones of each partition, partitions.
    fn zone_node(&self, partition: usize, zone: usize) -> usize {
        self.zones.len() + partition * self.bounds.len() + zone
    }

    fn partition_node(&self, partition: usize) -> usize {
        self.zone_node(self.held.len(), 0) + partition
    }

    /// What may change: forwards, a member takes a partition; backwards, it gives it up.
    fn residual(&self) -> Vec<Edge> {
        let mut edges = Vec::new();
        for (partition, (held, before)) in self.held.iter().zip(&self.before).enumerate() {
            let mut copies = vec![0; self.bounds.len()];
            for (member, zone) in self.zones.iter().enumerate() {
                let zone_node = self.zone_node(partition, *zone);
                let price = i32::from(!before[member]);
                if held[member] {
                    copies[*zone] += 1;
                    edges.push((zone_node, member, -price));
                } else {
                    edges.push((member, zone_node, price));
                }
            }
            for (zone, (fewest, most)) in self.bounds.iter().enumerate() {
                let (zone_node, node) = (self.zone_node(partition, zone), self.partition_node(partition));
                if copies[zone] < *most {
                    edges.push((zone_node, node, 0));
                }
                if copies[zone] > *fewest {
                    edges.push((node, zone_node, 0));
                }
            }
        }
        edges
    }

    /// Bellman and Ford's search, which looks for a cycle among the predecessors now and then.
    fn negative_cycle(&self) -> Option<Vec<Edge>> {
        let edges = self.residual();
        let nodes = self.partition_node(self.held.len());
        let mut distance = vec![0; nodes];
        let mut from: Vec<Option<Edge>> = vec![None; nodes];
        for round in 1.. {
            let mut changed = false;
            for edge in &edges {
                let (a, b, price) = *edge;
                if distance[a] + price < distance[b] {
                    distance[b] = distance[a] + price;
                    from[b] = Some(*edge);
                    changed = true;
                }
            }
            if !changed {
                return None;
            }
            if round % 8 == 0
                && let Some(cycle) = cycle_among(&from)
            {
                return Some(cycle);
            }
        }
        None
    }

    fn turn(&mut self, cycle: &[Edge]) {
        let members = self.zones.len();
        for (a, b, _) in cycle {
            let partition = |node: usize| (node - members) / self.bounds.len();
            if *a < members {
                self.held[partition(*b)][*a] = true;
            } else if *b < members {
                self.held[partition(*a)][*b] = false;
            }
        }
    }
}

fn cycle_among(from: &[Option<Edge>]) -> Option<Vec<Edge>> {
    let mut seen_from = vec![usize::MAX; from.len()];
    for start in 0..from.len() {
        let mut node = start;
        while let Some((previous, ..)) = from[node] {
            if seen_from[node] == start {
                return Some(cycle_through(node, from));
            }
            if seen_from[node] != usize::MAX {
                break;
            }
            seen_from[node] = start;
            node = previous;
        }
    }
    None
}

fn cycle_through(node: usize, from: &[Option<Edge>]) -> Vec<Edge> {
    let mut cycle = Vec::new();
    let mut at = node;
    while let Some(edge) = from[at] {
        cycle.push(edge);
        at = edge.0;
        if at == node {
            break;
        }
    }
    cycle
}

/// The zone of each member, and the fewest and most copies of a partition in each zone, by the zone rule.
pub(crate) fn zone_bounds(ring: &Ring) -> (Vec<usize>, Vec<(usize, usize)>) {
    let factor = ring.factor() as usize;
    let mut sizes = BTreeMap::new();
    for member in ring.members() {
        *sizes.entry(&member.zone).or_insert(0) += 1;
    }
    let zone_max = factor.div_ceil(sizes.len());
    let room: usize = sizes.values().map(|size| zone_max.min(*size)).sum();
    let bounds = |size: &usize| {
        if factor < sizes.len() {
            (0, 1)
        } else if room >= factor {
            (1, zone_max.min(*size))
        } else {
            (zone_max.min(*size), *size)
        }
    };
    let number = |zone| sizes.keys().position(|other| *other == zone).unwrap();
    let zones = ring.members().iter().map(|member| number(&member.zone)).collect();
    (zones, sizes.values().map(bounds).collect())
}

/// What each member should hold, in replica-partitions: what is poured over the members rises to one level per unit
/// of weight, up to all partitions in a member, and between the zone rule's bounds in a zone.
pub(crate) fn targets(ring: &Ring) -> Vec<f64> {
    let (zones, bounds) = zone_bounds(ring);
    let partitions = f64::from(ring.partitions());
    let share =
        |member: usize, level: f64| (f64::from(ring.members()[member].weight) * level).min(partitions);
    let poured = |zone: usize, level: f64| -> f64 {
        let members = (0..zones.len()).filter(|member| zones[*member] == zone);
        members.map(|member| share(member, level)).sum()
    };
    let in_zone = |zone: usize, level: f64| {
        let (fewest, most) = bounds[zone];
        poured(zone, level).clamp(fewest as f64 * partitions, most as f64 * partitions)
    };
    let total = |level: f64| (0..bounds.len()).map(|zone| in_zone(zone, level)).sum();
    let level = level_for(f64::from(ring.factor()) * partitions, partitions, total);
    let level_in = |zone| level_for(in_zone(zone, level), partitions, |level| poured(zone, level));
    let levels: Vec<f64> = (0..bounds.len()).map(level_in).collect();
    (0..zones.len())
        .map(|member| share(member, levels[zones[member]]))
        .collect()
}

fn level_for(amount: f64, most: f64, total: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, most);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if total(middle) < amount {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}
