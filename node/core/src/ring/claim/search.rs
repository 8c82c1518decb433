//! Steps 3 to 5 of a claim: which tokens go to whom.

use super::super::preference::NOBODY;
use super::layout::Layout;
use super::shares::PARTS;

/// Changes tried for each partition of a first ring.
const TRIES_PER_PARTITION: u64 = 256;
/// A descent ends after so many tries in a row without a gain, or so many for each partition if that is more.
const TRIES_IN_VAIN_MIN: u64 = 1 << 12;
const TRIES_IN_VAIN_PER_PARTITION: u64 = 2;
/// The first descent, which has most to find, is so many times as patient.
const DESCENT_FIRST: u64 = 4;
/// The search ends after so many kicks in a row from which nothing better was found.
const KICKS_IN_VAIN: u32 = 16;
/// Most changes of one kick.
const KICK_MAX: usize = 3;
/// After so many tries which tokens have moved is looked up again.
const MOVED_KNOWN_FOR: u64 = 256;
/// One try in so many passes a token from a member with the ceiling of its share to one with the floor.
const TRADE_EVERY: u64 = 8;
/// How far apart neighbours are that swap.
const NEIGHBOURS: usize = 8;
/// The highest limit: what a replica-partition in the wrong place costs, about.
const HEAT: i64 = 2 * PARTS * PARTS;
/// The limit sinks to zero over this many ticks, of which the last are spent at zero.
const TICKS: u32 = 1024;
const TICKS_AT_ZERO: u32 = 128;

/// Gives one token to each member whom walks must find to pick as in the final ring.
pub(super) fn give_first_tokens(layout: &mut Layout) {
    let mut random = Random::new();
    let missing = layout.missing_members();
    for member in &missing {
        let start = random.below(layout.partitions());
        let mut positions = (0..layout.partitions()).map(|offset| (start + offset) & layout.mask());
        if let Some(position) = positions.find(|position| layout.to_spare(*position)) {
            layout.give_unpriced(position, *member);
        }
    }
    if !missing.is_empty() {
        layout.walk_everywhere();
    }
}

/// Gives tokens to members that lack some until none does: first those that are nobody's, then those of members
/// that have too many. Prices as many candidates as the steps allow.
pub(super) fn hand_over(layout: &mut Layout, steps_max: u64) {
    let mut giver = Giver {
        random: Random::new(),
        left: (0..layout.members())
            .map(|member| layout.lacking(member).max(0) as u64)
            .sum(),
        steps_max,
        hurried: false,
    };
    let free: Vec<usize> = (0..layout.partitions())
        .filter(|p| layout.owner(*p) == NOBODY)
        .collect();
    for position in free {
        let members = giver
            .rotated(layout.members())
            .filter(|member| layout.lacking(*member) > 0);
        let candidates: Vec<_> = members.map(|member| (position, member as u16)).collect();
        giver.give_cheapest(layout, &candidates);
    }
    while giver.left > 0 {
        let neediest = (0..layout.members())
            .rev()
            .max_by_key(|member| layout.lacking(*member));
        let Some(member) = neediest else { break };
        let positions = giver
            .rotated(layout.partitions())
            .filter(|position| layout.to_spare(*position));
        let candidates: Vec<_> = positions.map(|position| (position, member as u16)).collect();
        giver.give_cheapest(layout, &candidates);
    }
    if giver.hurried {
        layout.walk_everywhere();
    }
}

/// Makes what is there better until nothing could be, nothing more is found, or the steps are spent.
pub(super) fn improve(layout: &mut Layout, steps_max: u64) {
    if layout.replaces_a_ring() {
        mend(layout, steps_max);
    } else {
        anneal(layout, steps_max);
    }
}

/// A changed ring: little differs from the previous one, which was good, so most tries are where tokens have moved.
///
/// Only what costs nothing is kept, until nothing more is found; then a few changes at any price lead out of what may
/// be a dead end, and are taken back unless something as good is found from there (iterated local search).
fn mend(layout: &mut Layout, steps_max: u64) {
    let mut mender = Mender {
        random: Random::new(),
        former_tokens: former_tokens(layout),
        moved: Vec::new(),
        steps_max,
    };
    let partitions = layout.partitions() as u64;
    let patience = TRIES_IN_VAIN_MIN.max(TRIES_IN_VAIN_PER_PARTITION * partitions);
    mender.descend(layout, DESCENT_FIRST * patience);
    let mut best = layout.owners().to_vec();
    let mut lowest = layout.cost();
    let mut in_vain = 0;
    while in_vain < KICKS_IN_VAIN && !mender.is_done(layout) {
        mender.kick(layout);
        mender.descend(layout, patience);
        in_vain += 1;
        if layout.cost() < lowest {
            in_vain = 0;
        }
        if layout.cost() <= lowest {
            lowest = layout.cost();
            best.copy_from_slice(layout.owners());
        } else {
            layout.restore(&best);
        }
    }
}

/// What the improvement of a changed ring goes by.
struct Mender {
    random: Random,
    /// The tokens that each member had when the claim began; last, those that were nobody's.
    former_tokens: Vec<Vec<usize>>,
    moved: Vec<usize>,
    steps_max: u64,
}

impl Mender {
    fn is_done(&self, layout: &Layout) -> bool {
        layout.is_optimal() || layout.steps() >= self.steps_max
    }

    /// Keeps what costs nothing until so many tries in a row have gained nothing. Tokens go from one member to
    /// another, or two swap their owners.
    fn descend(&mut self, layout: &mut Layout, patience: u64) {
        let (mut lowest, mut in_vain) = (layout.cost(), 0);
        while in_vain < patience && !self.is_done(layout) {
            if in_vain.is_multiple_of(MOVED_KNOWN_FOR) {
                self.moved = moved_tokens(layout);
            }
            in_vain += 1;
            self.try_one(layout, 1);
            if layout.cost() < lowest {
                (lowest, in_vain) = (layout.cost(), 0);
            }
        }
    }

    fn kick(&mut self, layout: &mut Layout) {
        for _ in 0..=self.random.below(KICK_MAX) {
            self.try_one(layout, i64::MAX);
        }
    }

    fn try_one(&mut self, layout: &mut Layout, limit: i64) {
        let random = &mut self.random;
        if random.below(2) == 0 {
            let position = choose_token(layout, &self.moved, random);
            try_to_give(layout, position, limit, random);
        } else if let Some(pair) = choose_pair(layout, &self.moved, &self.former_tokens, random) {
            try_to_swap(layout, pair, limit);
        }
    }
}

/// A first ring: swaps the owners of pairs of tokens wherever that is worth it, or nearly so while the limit is high;
/// now and then lets two members trade floor and ceiling.
fn anneal(layout: &mut Layout, steps_max: u64) {
    let mut random = Random::new();
    let tries = TRIES_PER_PARTITION * layout.partitions() as u64;
    let steps_before = layout.steps();
    let steps_left = steps_max.saturating_sub(steps_before);
    for attempt in 0..tries {
        let steps = layout.steps() - steps_before;
        if steps >= steps_left || layout.is_optimal() {
            break;
        }
        let tick = share_of_ticks(attempt, tries).max(share_of_ticks(steps, steps_left));
        let ticks_left = (TICKS - TICKS_AT_ZERO).saturating_sub(tick);
        let heat = HEAT * i64::from(ticks_left) / i64::from(TICKS - TICKS_AT_ZERO);
        // A square of an even draw: mostly low limits, now and then one as high as the heat.
        let draw = i64::from(random.below(1024) as u32);
        let limit = heat * draw / 1024 * draw / 1024 + 1;
        if attempt.is_multiple_of(TRADE_EVERY) {
            let position = random.below(layout.partitions());
            try_to_give(layout, position, limit, &mut random);
        } else if let Some(pair) = choose_pair(layout, &[], &[], &mut random) {
            try_to_swap(layout, pair, limit);
        }
    }
}

/// Gives a token to any member, if both keep the floor or ceiling of their shares.
fn try_to_give(layout: &mut Layout, position: usize, limit: i64, random: &mut Random) {
    let taker = random.below(layout.members()) as u16;
    if layout.may_trade_places(layout.owner(position), taker) {
        layout.change_below(limit, &[(position, taker)]);
    }
}

fn try_to_swap(layout: &mut Layout, (a, b): (usize, usize), limit: i64) {
    let (owner_a, owner_b) = (layout.owner(a), layout.owner(b));
    if owner_a != owner_b {
        layout.change_below(limit, &[(a, owner_b), (b, owner_a)]);
    }
}

fn share_of_ticks(part: u64, whole: u64) -> u32 {
    (part * u64::from(TICKS) / whole) as u32
}

/// A token to give away: mostly one that has moved, or one near it.
fn choose_token(layout: &Layout, moved: &[usize], random: &mut Random) -> usize {
    let kind = random.below(8);
    if moved.is_empty() || kind == 0 {
        return random.below(layout.partitions());
    }
    let token = moved[random.below(moved.len())];
    if kind < 3 {
        near(token, layout, random)
    } else {
        token
    }
}

fn near(token: usize, layout: &Layout, random: &mut Random) -> usize {
    (token + random.below(2 * NEIGHBOURS + 1)).wrapping_sub(NEIGHBOURS) & layout.mask()
}

/// Two tokens to swap: neighbours, any two, or one that has moved with one that its former owner had.
fn choose_pair(
    layout: &Layout,
    moved: &[usize],
    former_tokens: &[Vec<usize>],
    random: &mut Random,
) -> Option<(usize, usize)> {
    let any = random.below(layout.partitions());
    let kind = random.below(16);
    // Where little has moved, most of the work is near what has.
    let a = if moved.is_empty() || random.below(8) == 0 {
        any
    } else {
        near(moved[random.below(moved.len())], layout, random)
    };
    if kind < 6 {
        return Some((a, (a + 1 + random.below(NEIGHBOURS)) & layout.mask()));
    }
    if kind < 10 || moved.is_empty() {
        return Some((a, random.below(layout.partitions())));
    }
    let a = moved[random.below(moved.len())];
    let former = layout.former_owner(a);
    // Tokens of a member that has left cannot go back: they are swapped among themselves.
    let candidates = former_tokens.get(usize::from(former)).or(former_tokens.last())?;
    let b = *candidates.get(random.below(candidates.len().max(1)))?;
    (former == NOBODY || layout.owner(b) == former).then_some((a, b))
}

/// The tokens that each member had when the claim began; last, those that were nobody's.
fn former_tokens(layout: &Layout) -> Vec<Vec<usize>> {
    let members = layout.members();
    let mut tokens = vec![Vec::new(); members + 1];
    for position in 0..layout.partitions() {
        tokens[usize::from(layout.former_owner(position)).min(members)].push(position);
    }
    tokens
}

fn moved_tokens(layout: &Layout) -> Vec<usize> {
    let moved = |position: &usize| layout.owner(*position) != layout.former_owner(*position);
    (0..layout.partitions()).filter(moved).collect()
}

/// Gives one token after the other, sharing the steps evenly among those that are left.
struct Giver {
    random: Random,
    left: u64,
    steps_max: u64,
    /// The steps are spent: prices are no longer worked out, nor could they be.
    hurried: bool,
}

impl Giver {
    /// Makes the cheapest of the changes among those that can be priced in time, or just the first.
    fn give_cheapest(&mut self, layout: &mut Layout, candidates: &[(usize, u16)]) {
        let steps_end = layout.steps() + self.steps_max.saturating_sub(layout.steps()) / self.left.max(1);
        self.left = self.left.saturating_sub(1);
        self.hurried |= layout.steps() == steps_end;
        if self.hurried {
            if let Some((position, member)) = candidates.first() {
                layout.give_unpriced(*position, *member);
            }
            return;
        }
        let mut best = None;
        for candidate in candidates {
            let price = layout.price(&[*candidate]);
            if best.is_none_or(|(lowest, _)| price < lowest) {
                best = Some((price, *candidate));
            }
            if layout.steps() >= steps_end {
                break;
            }
        }
        if let Some((_, candidate)) = best {
            layout.change(&[candidate]);
        }
    }

    /// 0..count in a scattered order that begins at a random place; the stride is a prime beyond any count.
    fn rotated(&mut self, count: usize) -> impl Iterator<Item = usize> + use<> {
        const STRIDE: usize = 40_529;
        let start = self.random.below(count.max(1));
        (0..count).map(move |index| (start + index * STRIDE) % count)
    }
}

/// A fixed sequence (xorshift64): the claim must be the same everywhere.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() >> 11) as usize % count
    }
}
