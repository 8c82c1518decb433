//! Which records are popular: the Zipfian generators of YCSB (Gray et al., "Quickly generating billion-record synthetic
//! databases", SIGMOD 1994), number for number.

use crate::chance::Chance;

/// YCSB's constant: the probability of rank k is proportional to 1 / k^0.99.
const THETA: f64 = 0.99;
/// `ScrambledZipfianGenerator` draws ranks of so many items, whatever the number of records, ...
const SCRAMBLED_ITEMS: u64 = 10_000_000_000;
/// ... for which it carries zeta along.
const SCRAMBLED_ZETA: f64 = 26.469_028_201_783_02;

/// Ranks from 0, the most popular one.
#[derive(Debug, Clone)]
pub(crate) struct Zipf {
    items: u64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    /// Of so many items, at least 1; takes as many steps.
    pub(crate) fn new(items: u64) -> Self {
        Self::with_zeta(items, zeta(0, items, 0.0))
    }

    fn with_zeta(items: u64, zeta_of_items: f64) -> Self {
        let eta = (1.0 - (2.0 / items as f64).powf(1.0 - THETA)) / (1.0 - zeta(0, 2, 0.0) / zeta_of_items);
        Self {
            items,
            zeta: zeta_of_items,
            eta,
        }
    }

    /// Takes more items in; takes as many steps as there are new ones.
    pub(crate) fn grow(&mut self, items: u64) {
        if items > self.items {
            *self = Self::with_zeta(items, zeta(self.items, items, self.zeta));
        }
    }

    pub(crate) fn rank(&self, chance: &mut Chance) -> u64 {
        self.rank_at(chance.unit())
    }

    fn rank_at(&self, unit: f64) -> u64 {
        let scaled = unit * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(THETA) {
            return 1.min(self.items - 1);
        }
        let rank = self.items as f64 * (self.eta * unit - self.eta + 1.0).powf(1.0 / (1.0 - THETA));
        (rank as u64).min(self.items - 1)
    }
}

/// Popular records spread over all of them: `ScrambledZipfianGenerator`.
#[derive(Debug, Clone)]
pub(crate) struct Scrambled {
    ranks: Zipf,
    records: u64,
}

impl Scrambled {
    pub(crate) fn new(records: u64) -> Self {
        Self {
            ranks: Zipf::with_zeta(SCRAMBLED_ITEMS, SCRAMBLED_ZETA),
            records,
        }
    }

    pub(crate) fn record(&self, chance: &mut Chance) -> u64 {
        fnv(self.ranks.rank(chance)) % self.records
    }
}

/// YCSB's `fnvhash64`: FNV-1a of the eight bytes from the lowest on, without its sign.
pub(crate) fn fnv(number: u64) -> u64 {
    let hash = number
        .to_le_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211)
        });
    hash.cast_signed().unsigned_abs()
}

/// The sum of 1 / k^theta for k up to `items`, given that for `known`.
fn zeta(known: u64, items: u64, sum: f64) -> f64 {
    (known..items).fold(sum, |sum, index| sum + 1.0 / ((index + 1) as f64).powf(THETA))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(items: u64, draws: u32, mut draw: impl FnMut(&mut Chance) -> u64) -> Vec<f64> {
        let mut chance = Chance::new(42);
        let mut hits = vec![0.0; items as usize];
        for _ in 0..draws {
            hits[draw(&mut chance) as usize] += 1.0 / f64::from(draws);
        }
        hits
    }

    #[test]
    fn ranks_have_the_probabilities_of_the_law() {
        let items = 1000;
        let zipf = Zipf::new(items);
        let hits = hits(items, 400_000, |chance| zipf.rank(chance));
        // The generator is exact for the first two ranks, and approximate beyond.
        for (rank, tolerance) in [(0, 0.02), (1, 0.03), (10, 0.2), (100, 0.25)] {
            let expected = 1.0 / f64::from(rank + 1).powf(THETA) / zipf.zeta;
            let found: f64 = hits[rank as usize];
            assert!(
                (found / expected - 1.0).abs() < tolerance,
                "rank {rank}: {found} for {expected}"
            );
        }
        let upper_tenth: f64 = hits[..100].iter().sum();
        assert!((0.68..0.74).contains(&upper_tenth), "{upper_tenth}");
    }

    /// By Euler and Maclaurin, zeta(n) = n^(1-theta) / (1-theta) + the Riemann zeta function of theta + ...
    #[test]
    fn the_constant_of_ten_billion_items_is_right() {
        let riemann =
            zeta(0, 1_000_000, 0.0) - 1e6_f64.powf(1.0 - THETA) / (1.0 - THETA) - 0.5 / 1e6_f64.powf(THETA);
        let expected = 1e10_f64.powf(1.0 - THETA) / (1.0 - THETA) + riemann;
        assert!((SCRAMBLED_ZETA - expected).abs() < 1e-6, "{expected}");
    }

    #[test]
    fn growing_is_the_same_as_beginning_larger() {
        let mut grown = Zipf::new(10);
        grown.grow(500);
        grown.grow(400);
        let whole = Zipf::new(500);
        for step in 0..1000 {
            let unit = f64::from(step) / 1000.0;
            assert_eq!(grown.rank_at(unit), whole.rank_at(unit));
        }
    }

    #[test]
    fn ranks_stay_inside() {
        for items in [1, 2, 3, 1000] {
            let zipf = Zipf::new(items);
            assert_eq!(zipf.rank_at(0.0), 0);
            assert!(zipf.rank_at(1.0 - f64::EPSILON) < items);
        }
    }

    #[test]
    fn fnv_is_ycsbs() {
        // FNV-1a of eight zero bytes is a8c7f832281a39c5, which is negative in Java.
        assert_eq!(fnv(0), 0xa8c7_f832_281a_39c5_u64.cast_signed().unsigned_abs());
    }

    #[test]
    fn scrambling_moves_the_popular_and_keeps_their_share() {
        let scrambled = Scrambled::new(1000);
        let hits = hits(1000, 200_000, |chance| scrambled.record(chance));
        let hottest = fnv(0) % 1000;
        assert_ne!(hottest, 0);
        let expected = 1.0 / SCRAMBLED_ZETA;
        // What the unpopular ranks add to its record is a thousandth of the rest.
        assert!(
            (hits[hottest as usize] - expected - 0.001).abs() < 0.003,
            "{}",
            hits[hottest as usize]
        );
        assert!(hits.iter().all(|&share| share > 0.0), "every record is asked for");
    }
}
