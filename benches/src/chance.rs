//! Random numbers from a seed, the same on every machine: two runs with one seed ask for the same keys.

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and three multiplications a number, which no figure notices.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of many streams of a seed.
    pub(crate) fn stream(seed: u64, number: u64) -> Self {
        let mut chance = Self(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        Self(chance.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0..1, without 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// 0..`bound`, without `bound`, which is not 0. The bias is below 2^-40 for bounds below 2^24.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_reference() {
        // Of the public-domain splitmix64.c with seed 1234567.
        let mut chance = Chance::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| chance.next()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn streams_of_a_seed_differ() {
        let firsts: std::collections::BTreeSet<u64> =
            (0..1000).map(|number| Chance::stream(7, number).next()).collect();
        assert_eq!(firsts.len(), 1000);
    }

    #[test]
    fn bounds_hold_and_are_reached() {
        let mut chance = Chance::new(1);
        let mut hits = [0; 5];
        for _ in 0..1000 {
            hits[chance.below(5) as usize] += 1;
            assert!((0.0..1.0).contains(&chance.unit()));
        }
        assert!(hits.iter().all(|&hit| hit > 150), "{hits:?}");
    }
}
