//! How many replicas must answer. Paper: §4.5; §6.1 for durable writes.

/// What a request asks for in place of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaCount {
    /// So many.
    Count(u32),
    /// One.
    One,
    /// More than half of N.
    Quorum,
    /// All N.
    All,
}

/// The numbers in effect for one request.
///
/// `r` and `w` are in `1..=n`, the others in `0..=n`. Two of them that exceed N together have a node in common: if
/// `r + w > n`, a read meets the last acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    /// Replicas of the key.
    pub n: u32,
    /// Replicas that a read needs.
    pub r: u32,
    /// Replicas that must have accepted a write.
    pub w: u32,
    /// Primaries that must be among a read's answers; judged on who answered.
    pub pr: u32,
    /// Primaries that must have accepted a write; judged on who answered.
    pub pw: u32,
    /// Replicas that must have synced a write to disk; judged on who answered.
    pub dw: u32,
    /// Distinct zones that must be among the nodes that have accepted a write; fallbacks' zones count. A cluster
    /// without zones is one zone.
    pub zones: u32,
}

/// What a request changes; `None` leaves the configured number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuorumOverrides {
    /// See [`Quorum::r`].
    pub r: Option<ReplicaCount>,
    /// See [`Quorum::w`].
    pub w: Option<ReplicaCount>,
    /// See [`Quorum::pr`].
    pub pr: Option<ReplicaCount>,
    /// See [`Quorum::pw`].
    pub pw: Option<ReplicaCount>,
    /// See [`Quorum::dw`].
    pub dw: Option<ReplicaCount>,
    /// See [`Quorum::zones`].
    pub zones: Option<ReplicaCount>,
}

/// A number outside its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, it must be in {min}..={max}")]
pub struct QuorumError {
    /// `n`, `r`, `w`, `pr`, `pw`, `dw` or `zones`.
    pub field: &'static str,
    /// What was asked for.
    pub value: u32,
    /// The lowest allowed number.
    pub min: u32,
    /// The highest allowed number.
    pub max: u32,
}

impl ReplicaCount {
    /// The number that it means for `n` replicas.
    pub fn of(self, n: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::One => 1,
            Self::Quorum => n / 2 + 1,
            Self::All => n,
        }
    }
}

impl Quorum {
    /// The highest number of replicas.
    pub const N_MAX: u32 = 64;

    /// `n` replicas of which `r` answer a read and `w` accept a write; no further conditions.
    ///
    /// # Errors
    /// If a number is outside its range.
    pub fn new(n: u32, r: u32, w: u32) -> Result<Self, QuorumError> {
        in_range("n", n, 1, Self::N_MAX)?;
        Self {
            n,
            r,
            w,
            pr: 0,
            pw: 0,
            dw: 0,
            zones: 0,
        }
        .checked()
    }

    /// These numbers with a request's own in their place.
    ///
    /// # Errors
    /// If a number is outside its range; the first one in the order of the fields.
    pub fn with(&self, overrides: &QuorumOverrides) -> Result<Self, QuorumError> {
        let pick =
            |asked: Option<ReplicaCount>, configured| asked.map_or(configured, |count| count.of(self.n));
        Self {
            n: self.n,
            r: pick(overrides.r, self.r),
            w: pick(overrides.w, self.w),
            pr: pick(overrides.pr, self.pr),
            pw: pick(overrides.pw, self.pw),
            dw: pick(overrides.dw, self.dw),
            zones: pick(overrides.zones, self.zones),
        }
        .checked()
    }

    /// Primaries whose answers show that a key is absent: any acknowledged write is on one of `n - w + 1` of them.
    pub fn absence(&self) -> u32 {
        self.r.max(self.n - self.w + 1).max(self.pr)
    }

    fn checked(self) -> Result<Self, QuorumError> {
        in_range("r", self.r, 1, self.n)?;
        in_range("w", self.w, 1, self.n)?;
        in_range("pr", self.pr, 0, self.n)?;
        in_range("pw", self.pw, 0, self.n)?;
        in_range("dw", self.dw, 0, self.n)?;
        in_range("zones", self.zones, 0, self.n)?;
        Ok(self)
    }
}

fn in_range(field: &'static str, value: u32, min: u32, max: u32) -> Result<(), QuorumError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(QuorumError {
            field,
            value,
            min,
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_count() -> Vec<ReplicaCount> {
        let mut counts = vec![ReplicaCount::One, ReplicaCount::Quorum, ReplicaCount::All];
        counts.extend((0..=6).map(ReplicaCount::Count));
        counts
    }

    /// By hand: the formula is easy to get wrong.
    #[test]
    fn a_quorum_is_more_than_half() {
        for (n, quorum) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)] {
            assert_eq!(ReplicaCount::Quorum.of(n), quorum, "of {n}");
        }
    }

    /// D31: every combination of small numbers is either in range or refused by name.
    #[test]
    fn exactly_the_numbers_in_range_are_accepted() {
        for n in 0..=5 {
            for r in 0..=6 {
                for w in 0..=6 {
                    let good = n >= 1 && (1..=n).contains(&r) && (1..=n).contains(&w);
                    assert_eq!(Quorum::new(n, r, w).is_ok(), good, "n={n} r={r} w={w}");
                }
            }
        }
        assert_eq!(Quorum::new(65, 1, 1).unwrap_err().field, "n");
    }

    /// D31, D33, D35.
    #[test]
    fn a_request_s_numbers_replace_the_configured_ones() {
        for n in 1..=5 {
            let configured = Quorum::new(n, n, 1).unwrap();
            assert_eq!(configured.with(&QuorumOverrides::default()), Ok(configured));
            for count in every_count() {
                let value = count.of(n);
                let fields = [("r", 1), ("w", 1), ("pr", 0), ("pw", 0), ("dw", 0), ("zones", 0)];
                for (field, min) in fields {
                    let mut overrides = QuorumOverrides::default();
                    let mut expected = configured;
                    let (asked, effective) = match field {
                        "r" => (&mut overrides.r, &mut expected.r),
                        "w" => (&mut overrides.w, &mut expected.w),
                        "pr" => (&mut overrides.pr, &mut expected.pr),
                        "pw" => (&mut overrides.pw, &mut expected.pw),
                        "dw" => (&mut overrides.dw, &mut expected.dw),
                        _ => (&mut overrides.zones, &mut expected.zones),
                    };
                    (*asked, *effective) = (Some(count), value);
                    let expected = if (min..=n).contains(&value) {
                        Ok(expected)
                    } else {
                        Err(QuorumError {
                            field,
                            value,
                            min,
                            max: n,
                        })
                    };
                    assert_eq!(configured.with(&overrides), expected, "n={n} {field}={count:?}");
                }
            }
        }
    }

    /// Any set of `absence` primaries meets any set of W of them, and so does a read with `r + w > n`.
    #[test]
    fn sets_that_must_meet_do() {
        for n in 1..=5u32 {
            for (r, w) in (1..=n).flat_map(|r| (1..=n).map(move |w| (r, w))) {
                let quorum = Quorum::new(n, r, w).unwrap();
                let meets = |size: u32| {
                    let sets = || 0..1u32 << n;
                    let written = || sets().filter(move |set| set.count_ones() == w);
                    sets()
                        .filter(|set| set.count_ones() == size)
                        .all(|read| written().all(|set| read & set != 0))
                };
                assert!(meets(quorum.absence()), "n={n} r={r} w={w}");
                assert_eq!(meets(r), r + w > n, "n={n} r={r} w={w}");
                assert!((r..=n).contains(&quorum.absence()));
            }
        }
    }

    #[test]
    fn errors_say_what_is_allowed() {
        let error = Quorum::new(3, 2, 4).unwrap_err();
        assert_eq!(error.to_string(), "w is 4, it must be in 1..=3");
    }
}
