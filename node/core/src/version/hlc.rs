//! Wall-clock stamps that never run backwards: a hybrid logical clock.

/// How far ahead of the local clock a stamp may lie and still be passed by a later write's, in milliseconds.
pub const STAMP_AHEAD_MS_MAX: u64 = 5_000;

const LOGICAL_BITS: u32 = 16;
const MS_MAX: u64 = u64::MAX >> LOGICAL_BITS;

/// A moment: milliseconds since 1970 in the upper 48 bits, a logical count in the lower 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Stamp(pub u64);

/// Gives one node's stamps, each larger than the one before.
#[derive(Clone, Debug, Default)]
pub struct Hlc {
    last: Stamp,
}

impl Stamp {
    /// The first stamp of a millisecond; times beyond the year 10000 share the last one.
    pub fn from_ms(ms: u64) -> Self {
        Self(ms.min(MS_MAX) << LOGICAL_BITS)
    }

    /// Milliseconds since 1970.
    pub fn ms(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// True if a coordinator may give this stamp to a fresh write at `wall_ms`: it lies at most
    /// [`STAMP_AHEAD_MS_MAX`] ahead. Merges take any stamp.
    pub fn is_plausible(self, wall_ms: u64) -> bool {
        self.ms() <= wall_ms.saturating_add(STAMP_AHEAD_MS_MAX)
    }
}

impl Hlc {
    /// A clock that gives stamps after `last`, the largest one known from before.
    pub fn new(last: Stamp) -> Self {
        Self { last }
    }

    /// The next stamp at the wall-clock time `now_ms`: larger than all before, even if the wall clock went back.
    pub fn tick(&mut self, now_ms: u64) -> Stamp {
        self.last = Stamp::from_ms(now_ms).max(self.last.next());
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_whatever_the_wall_clock_does() {
        let mut clock = Hlc::default();
        let mut last = Stamp(0);
        for now_ms in [1_000, 1_000, 999, 5, 2_000, 2_000, 0] {
            let stamp = clock.tick(now_ms);
            assert!(stamp > last, "{stamp:?} after {last:?} at {now_ms}");
            last = stamp;
        }
        assert_eq!(last.ms(), 2_000);
    }

    #[test]
    fn more_stamps_than_a_millisecond_holds_run_into_the_next_one() {
        let mut clock = Hlc::default();
        let first = clock.tick(7);
        for _ in 0..1 << LOGICAL_BITS {
            clock.tick(7);
        }
        assert_eq!(first.ms(), 7);
        assert_eq!(clock.tick(7).ms(), 8);
    }

    #[test]
    fn the_end_of_time_is_not_an_overflow() {
        let mut clock = Hlc::new(Stamp(u64::MAX));
        assert_eq!(clock.tick(u64::MAX), Stamp(u64::MAX));
    }
}
