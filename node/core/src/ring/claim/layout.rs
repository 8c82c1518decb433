//! A ring under construction, with the exact price of every change to it.
//!
//! Owners change one or two tokens at a time. A token matters to the partitions before it whose walks reach it, and
//! walks that start later never end earlier, so these are a stretch just before the token: they alone are walked
//! again.

use super::super::Member;
use super::super::preference::{NOBODY, Picks, Spread, zone_indexes};
use super::bound::least_cost;
use super::shares::{self, PARTS, TokenShare};

/// Tokens to be given to members: (position, new owner), at most two.
pub(super) type Change<'a> = &'a [(usize, u16)];

/// How much more the square of a difference costs as far as the difference is beyond the tolerance.
const FAR_OFF: i64 = 8;

/// Tokens, the preference lists that follow, and what they should come to.
pub(super) struct Layout {
    factor: usize,
    zones: Vec<u16>,
    spread: Spread,
    owners: Vec<u16>,
    /// The owners that a change of the ring began with.
    former: Vec<u16>,
    shares: Vec<TokenShare>,
    /// Tokens that each member owns.
    tokens: Vec<u32>,
    /// `factor` primaries of each partition, `NOBODY` where there are fewer.
    primaries: Vec<u16>,
    /// The same in the previous ring, if there is one.
    before: Option<Vec<u16>>,
    /// How many tokens the walk of each partition looks at.
    reach: Vec<usize>,
    /// Replica-partitions of each member.
    loads: Vec<i64>,
    /// What they should be, in `PARTS`.
    targets: Vec<i64>,
    /// Differences from the targets, in `PARTS`, beyond which they count `FAR_OFF` times more.
    tolerance: i64,
    move_price: i64,
    /// What all prices add up to.
    cost: i64,
    /// What the cost cannot be below.
    least_cost: i64,
    steps: u64,
    outcome: Outcome,
}

/// What the change last priced would bring; its buffers are reused.
#[derive(Default)]
struct Outcome {
    partitions: Vec<usize>,
    primaries: Vec<u16>,
    reach: Vec<usize>,
    load_changes: Vec<(u16, i64)>,
    picks: Picks,
}

impl Layout {
    /// Begins with these owners; `before` holds `factor` primaries of each partition in the previous ring.
    pub(super) fn new(members: &[Member], factor: u32, owners: Vec<u16>, before: Option<Vec<u16>>) -> Self {
        let zones = zone_indexes(members);
        let partitions = owners.len();
        let mut held = vec![0u32; members.len()];
        for owner in owners.iter().filter(|owner| **owner != NOBODY) {
            held[usize::from(*owner)] += 1;
        }
        let shares = shares::tokens(members, partitions as u32, &held);
        let targets = shares::replica_targets(members, &zones, partitions as u32, factor);
        // Being uneven by 4 %, or by what a token or two bring, is not worth a move.
        let mean = targets.iter().sum::<i64>() / i64::from(members.len() as u32);
        let token = i64::from(factor) * PARTS;
        let worth_a_move = (mean / 25).max(2 * token);
        let mut layout = Self {
            factor: factor as usize,
            spread: Spread::new(&zones, &vec![true; zones.len()], factor as usize),
            zones,
            former: owners.clone(),
            shares,
            tokens: held,
            primaries: vec![NOBODY; partitions * factor as usize],
            tolerance: (mean / 25).max(token),
            move_price: if before.is_some() {
                2 * worth_a_move * PARTS
            } else {
                0
            },
            cost: 0,
            least_cost: 0,
            before,
            reach: vec![0; partitions],
            loads: vec![0; members.len()],
            targets,
            owners,
            steps: 0,
            outcome: Outcome::default(),
        };
        layout.least_cost = layout.find_least_cost();
        layout.walk_everywhere();
        layout
    }

    /// Q.
    pub(super) fn partitions(&self) -> usize {
        self.owners.len()
    }

    /// Q - 1, which wraps positions around.
    pub(super) fn mask(&self) -> usize {
        self.owners.len() - 1
    }

    /// Who owns a token now; `NOBODY` if it is free.
    pub(super) fn owner(&self, position: usize) -> u16 {
        self.owners[position]
    }

    /// Who owned a token when the claim began.
    pub(super) fn former_owner(&self, position: usize) -> u16 {
        self.former[position]
    }

    /// All owners.
    pub(super) fn owners(&self) -> &[u16] {
        &self.owners
    }

    /// Makes these the owners again.
    pub(super) fn restore(&mut self, owners: &[u16]) {
        for (position, owner) in owners.iter().enumerate() {
            if self.owners[position] != *owner {
                self.change(&[(position, *owner)]);
            }
        }
    }

    /// Whether there is a previous ring, so that moves have a price.
    pub(super) fn replaces_a_ring(&self) -> bool {
        self.before.is_some()
    }

    /// How many members there are.
    pub(super) fn members(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens still to be given to a member; negative: to be taken away.
    pub(super) fn lacking(&self, member: usize) -> i64 {
        i64::from(self.shares[member].want) - i64::from(self.tokens[member])
    }

    /// Whether a token may be given away: it is nobody's, or its owner has too many.
    pub(super) fn to_spare(&self, position: usize) -> bool {
        let owner = self.owners[position];
        owner == NOBODY || self.lacking(usize::from(owner)) < 0
    }

    /// Whether one member may give the other a token and both keep the floor or ceiling of their shares.
    pub(super) fn may_trade_places(&self, giver: u16, taker: u16) -> bool {
        let (giver, taker) = (usize::from(giver), usize::from(taker));
        giver != taker
            && self.tokens[giver] > self.shares[giver].floor
            && self.tokens[taker] < self.shares[taker].ceiling
    }

    /// Tokens looked at so far.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// What all prices add up to.
    pub(super) fn cost(&self) -> i64 {
        self.cost
    }

    /// Whether no ring could cost less.
    pub(super) fn is_optimal(&self) -> bool {
        self.cost <= self.least_cost
    }

    /// Members without a token whose absence makes walks pick by other counts than in the final ring.
    pub(super) fn missing_members(&self) -> Vec<u16> {
        let present = self.present();
        if Spread::new(&self.zones, &present, self.factor) == self.final_spread() {
            return Vec::new();
        }
        (0u16..)
            .zip(present)
            .filter(|(_, present)| !present)
            .map(|(member, _)| member)
            .collect()
    }

    /// What a change would cost; negative: it would help.
    pub(super) fn price(&mut self, change: Change) -> i64 {
        let old = self.put(change);
        let price = self.work_out(change);
        self.take_back(change, old);
        price
    }

    /// Makes a change if it costs less than `limit`.
    pub(super) fn change_below(&mut self, limit: i64, change: Change) {
        let old = self.put(change);
        let price = self.work_out(change);
        if price < limit {
            self.keep(change, old);
            self.cost += price;
        } else {
            self.take_back(change, old);
        }
    }

    /// Makes a change whatever it costs.
    pub(super) fn change(&mut self, change: Change) {
        self.change_below(i64::MAX, change);
    }

    /// Gives a token away without working out what follows; [`Layout::walk_everywhere`] must come before a price is
    /// asked again.
    pub(super) fn give_unpriced(&mut self, position: usize, member: u16) {
        let old = self.put(&[(position, member)]);
        self.count(&[(position, member)], old);
    }

    /// Works out everything anew.
    pub(super) fn walk_everywhere(&mut self) {
        self.spread = Spread::new(&self.zones, &self.present(), self.factor);
        self.loads.fill(0);
        self.primaries.fill(NOBODY);
        let picks = &mut self.outcome.picks;
        for (partition, slots) in self.primaries.chunks_exact_mut(self.factor).enumerate() {
            self.reach[partition] = self.spread.walk(&self.owners, partition, picks);
            self.steps += self.reach[partition] as u64;
            for (slot, pick) in slots.iter_mut().zip(picks.in_order()) {
                *slot = pick;
                self.loads[usize::from(pick)] += 1;
            }
        }
        self.cost = self.add_up();
    }

    /// The owners, and the steps spent.
    pub(super) fn finish(self) -> (Vec<u16>, u64) {
        (self.owners, self.steps)
    }

    fn present(&self) -> Vec<bool> {
        let mut present = vec![false; self.zones.len()];
        for owner in self.owners.iter().filter(|owner| **owner != NOBODY) {
            present[usize::from(*owner)] = true;
        }
        present
    }

    fn final_spread(&self) -> Spread {
        Spread::new(&self.zones, &vec![true; self.zones.len()], self.factor)
    }

    /// Sets the owners and returns the old ones.
    fn put(&mut self, change: Change) -> [u16; 2] {
        let mut old = [NOBODY; 2];
        for ((position, owner), old) in change.iter().zip(&mut old) {
            *old = std::mem::replace(&mut self.owners[*position], *owner);
        }
        old
    }

    fn take_back(&mut self, change: Change, old: [u16; 2]) {
        for ((position, _), old) in change.iter().zip(old) {
            self.owners[*position] = old;
        }
    }

    fn count(&mut self, change: Change, old: [u16; 2]) {
        for ((_, owner), old) in change.iter().zip(old) {
            self.tokens[usize::from(*owner)] += 1;
            if old != NOBODY {
                self.tokens[usize::from(old)] -= 1;
            }
        }
    }

    /// Takes over what was worked out for the owners that are set.
    fn keep(&mut self, change: Change, old: [u16; 2]) {
        self.count(change, old);
        let lists = self.outcome.primaries.chunks_exact(self.factor);
        for ((partition, list), reach) in self.outcome.partitions.iter().zip(lists).zip(&self.outcome.reach) {
            self.primaries[partition * self.factor..][..self.factor].copy_from_slice(list);
            self.reach[*partition] = *reach;
        }
        for (member, change) in &self.outcome.load_changes {
            self.loads[usize::from(*member)] += change;
        }
    }

    /// Walks again from the affected partitions, with the owners that are set, and returns the price.
    fn work_out(&mut self, change: Change) -> i64 {
        let mut outcome = std::mem::take(&mut self.outcome);
        self.find_affected(change, &mut outcome.partitions);
        outcome.primaries.clear();
        outcome.reach.clear();
        outcome.load_changes.clear();
        let mut moves = 0;
        for partition in &outcome.partitions {
            let reach = self.spread.walk(&self.owners, *partition, &mut outcome.picks);
            self.steps += reach as u64;
            outcome.reach.push(reach);
            let begin = outcome.primaries.len();
            outcome.primaries.extend(outcome.picks.in_order());
            outcome.primaries.resize(begin + self.factor, NOBODY);
            let slots = partition * self.factor..(partition + 1) * self.factor;
            let (old, new) = (&self.primaries[slots.clone()], &outcome.primaries[begin..]);
            let before = self.before.as_ref().map(|before| &before[slots]);
            for (list, other, by) in [(new, old, 1), (old, new, -1)] {
                for member in list
                    .iter()
                    .filter(|member| **member != NOBODY && !other.contains(member))
                {
                    add(&mut outcome.load_changes, *member, by);
                    moves += by * i64::from(before.is_some_and(|before| !before.contains(member)));
                }
            }
        }
        let price = moves * self.move_price + self.price_of_loads(&outcome.load_changes);
        self.outcome = outcome;
        price
    }

    fn find_affected(&mut self, change: Change, partitions: &mut Vec<usize>) {
        partitions.clear();
        for (position, _) in change {
            let backwards =
                (0..self.owners.len()).map(|distance| (distance, position.wrapping_sub(distance)));
            let affected = backwards
                .map(|(distance, partition)| (distance, partition & self.mask()))
                .take_while(|(distance, partition)| self.reach[*partition] > *distance);
            partitions.extend(affected.map(|(_, partition)| partition));
        }
        self.steps += partitions.len() as u64;
        if change.len() > 1 {
            partitions.sort_unstable();
            partitions.dedup();
        }
    }

    /// Growth of the cost of what members hold.
    fn price_of_loads(&self, changes: &[(u16, i64)]) -> i64 {
        let price = |(member, change): &(u16, i64)| {
            let member = usize::from(*member);
            let load = self.loads[member];
            self.cost_of_load(member, load + change) - self.cost_of_load(member, load)
        };
        changes.iter().map(price).sum()
    }

    /// The square of the difference from the target, and more where that is beyond the tolerance.
    fn cost_of_load(&self, member: usize, load: i64) -> i64 {
        let difference = (load * PARTS - self.targets[member]).abs();
        let beyond = (difference - self.tolerance).max(0);
        difference * difference + FAR_OFF * beyond * beyond
    }

    /// The cost, from what is held now.
    fn add_up(&self) -> i64 {
        let uneven: i64 = (0..self.loads.len())
            .map(|member| self.cost_of_load(member, self.loads[member]))
            .sum();
        let Some(before) = &self.before else { return uneven };
        let lists = self.primaries.chunks_exact(self.factor);
        let moved = |(list, before): (&[u16], &[u16])| {
            list.iter()
                .filter(|member| **member != NOBODY && !before.contains(member))
                .count()
        };
        let moves: usize = lists.zip(before.chunks_exact(self.factor)).map(moved).sum();
        uneven + i64::from(moves as u32) * self.move_price
    }

    /// The cost of the best loads, if whoever holds more than before had moved the difference and nothing else.
    fn find_least_cost(&self) -> i64 {
        let mut held = vec![0; self.loads.len()];
        for member in self.before.iter().flatten().filter(|member| **member != NOBODY) {
            held[usize::from(*member)] += 1;
        }
        let cost = |member: usize, load: i64| {
            self.cost_of_load(member, load) + self.move_price * (load - held[member]).max(0)
        };
        least_cost(
            self.loads.len(),
            self.factor * self.partitions(),
            i64::from(self.partitions() as u32),
            cost,
        )
    }
}

fn add(changes: &mut Vec<(u16, i64)>, member: u16, by: i64) {
    match changes.iter_mut().find(|(candidate, _)| *candidate == member) {
        Some((_, change)) => *change += by,
        None => changes.push((member, by)),
    }
}
