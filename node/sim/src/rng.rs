//! The simulator's own random numbers: SplitMix64, one named stream for each purpose.
//!
//! A draw in one stream never shifts another, so that a change to the network leaves the clients' choices as they were.

/// One stream.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The stream of a purpose under a seed.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
        for byte in purpose.bytes() {
            state = mix(state ^ u64::from(byte));
        }
        Self { state }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `bound`; 0 if the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias of a remainder is below 2^-32 for all bounds in use.
        self.bits().checked_rem(bound).unwrap_or(0)
    }

    /// A number of `first..=last`.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last.saturating_sub(first) + 1)
    }

    /// True in `parts` of 1,000 cases.
    pub fn per_mille(&mut self, parts: u64) -> bool {
        parts > 0 && self.below(1000) < parts
    }

    /// True in half of all cases.
    pub fn coin(&mut self) -> bool {
        self.bits() & 1 == 1
    }

    /// An index of a list of that length.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// An exponentially distributed number with about that mean, at most eight times as large. In whole numbers, so that
    /// no platform rounds differently.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        // -ln(u) by its integer part (leading zeros times ln 2) and a uniform rest.
        let bits = self.bits();
        let halvings = u64::from(bits.leading_zeros().min(10));
        let rest = bits & 0x3ff;
        (mean * (halvings * 1024 + rest) * 693 / 1_024_000).min(mean * 8)
    }
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
