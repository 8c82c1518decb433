//! What a ring consists of: how many nodes in how many zones, with which N and Q. Fixed once its data exists.

use serde::{Deserialize, Serialize};

/// What a ring on one machine may have at most; each node is a process with its own RocksDB.
const NODES_MAX: u32 = 64;
/// Zones are named by one letter.
const ZONES_MAX: u32 = 26;
/// As `dynamo.admin.v1` bounds it.
const FACTOR_MAX: u32 = 7;
/// As `dynamo.admin.v1` bounds it.
const PARTITIONS: std::ops::RangeInclusive<u32> = 8..=16384;

const NODES_DEFAULT: u32 = 6;
const ZONES_DEFAULT: u32 = 3;
const FACTOR_DEFAULT: u32 = 3;
const PARTITIONS_DEFAULT: u32 = 256;

/// The shape of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Processes, 1..=64.
    pub nodes: u32,
    /// 1..=26, at most as many as nodes.
    pub zones: u32,
    /// N: replicas of every key, 1..=7, at most as many as nodes.
    pub factor: u32,
    /// Q: a power of two, 8..=16384, at least as many as nodes.
    pub partitions: u32,
}

/// What a caller asks for; what is left out is taken from the stored ring, or else a default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// As in [`Layout`]; default 6.
    pub nodes: Option<u32>,
    /// As in [`Layout`]; default 3, or fewer if there are fewer nodes.
    pub zones: Option<u32>,
    /// As in [`Layout`]; default 3, or fewer if there are fewer nodes.
    pub factor: Option<u32>,
    /// As in [`Layout`]; default 256.
    pub partitions: Option<u32>,
}

/// A member before it has a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// `node-1`, `node-2`, ...
    pub member: String,
    /// `zone-a`, `zone-b`, ... in turn.
    pub zone: String,
}

/// A shape that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A number outside its range.
    #[error("cannot lay out a ring with {value} {what}: it takes {allowed}")]
    OutOfRange {
        /// What is counted.
        what: &'static str,
        /// What was asked for.
        value: u32,
        /// What would work.
        allowed: String,
    },
    /// Two numbers that do not fit.
    #[error(
        "cannot spread {zones} zones over {nodes} nodes: every zone needs a node; use ZONES={nodes} or NODES={zones}"
    )]
    ZonesWithoutNodes {
        /// What was asked for.
        zones: u32,
        /// What was asked for.
        nodes: u32,
    },
    /// More replicas than nodes.
    #[error(
        "cannot keep {factor} replicas (N) on {nodes} nodes: each is on a node of its own; use N={nodes} or NODES={factor}"
    )]
    FactorAboveNodes {
        /// What was asked for.
        factor: u32,
        /// What was asked for.
        nodes: u32,
    },
    /// A quorum that can never be met.
    #[error("a {what} quorum of {value} cannot be: with {factor} replicas (N) it is 1 to {factor}")]
    Quorum {
        /// Read or write.
        what: &'static str,
        /// What was asked for.
        value: u32,
        /// N.
        factor: u32,
    },
}

impl Wanted {
    /// The shape of a new ring.
    ///
    /// # Errors
    /// If the numbers are out of their ranges or do not fit together.
    pub fn to_layout(self) -> Result<Layout, LayoutError> {
        let nodes = self.nodes.unwrap_or(NODES_DEFAULT);
        let layout = Layout {
            nodes,
            zones: self.zones.unwrap_or(ZONES_DEFAULT.min(nodes)),
            factor: self.factor.unwrap_or(FACTOR_DEFAULT.min(nodes)),
            partitions: self.partitions.unwrap_or(PARTITIONS_DEFAULT),
        };
        layout.check()?;
        Ok(layout)
    }

    /// What was asked for otherwise than `stored` has it, as `NODES=4 (stored: 6)`; empty if nothing was.
    pub fn differences(self, stored: Layout) -> Vec<String> {
        let pairs = [
            ("NODES", self.nodes, stored.nodes),
            ("ZONES", self.zones, stored.zones),
            ("N", self.factor, stored.factor),
            ("PARTITIONS", self.partitions, stored.partitions),
        ];
        let asked = pairs
            .into_iter()
            .filter_map(|(name, asked, stored)| Some((name, asked?, stored)));
        asked
            .filter(|(_, asked, stored)| asked != stored)
            .map(|(name, asked, stored)| format!("{name}={asked} (stored: {stored})"))
            .collect()
    }
}

impl Layout {
    /// The members: zones in turn, so that they differ by one node at most.
    pub fn members(&self) -> Vec<Planned> {
        let zones = ('a'..='z').take(self.zones as usize).cycle();
        (1..=self.nodes)
            .zip(zones)
            .map(|(number, zone)| Planned {
                member: format!("node-{number}"),
                zone: format!("zone-{zone}"),
            })
            .collect()
    }

    /// R or W where none is given: a majority of N.
    pub fn majority(&self) -> u32 {
        self.factor / 2 + 1
    }

    /// Whether quorums of `quorum` replicas can be met for every key with any one zone gone. The preference lists
    /// spread the replicas so that no zone holds more than N / zones, rounded up.
    pub fn survives_zone(&self, quorum: u32) -> bool {
        self.factor - self.factor.div_ceil(self.zones) >= quorum
    }

    /// Whether a quorum can be asked for.
    ///
    /// # Errors
    /// If it is not 1..=N.
    pub fn check_quorum(&self, what: &'static str, value: u32) -> Result<(), LayoutError> {
        let factor = self.factor;
        if (1..=factor).contains(&value) {
            Ok(())
        } else {
            Err(LayoutError::Quorum { what, value, factor })
        }
    }

    /// Whether the numbers fit together.
    pub(crate) fn check(&self) -> Result<(), LayoutError> {
        let Self {
            nodes,
            zones,
            factor,
            partitions,
        } = *self;
        for (what, value, max) in [
            ("nodes", nodes, NODES_MAX),
            ("zones", zones, ZONES_MAX),
            ("replicas (N)", factor, FACTOR_MAX),
        ] {
            if !(1..=max).contains(&value) {
                let allowed = format!("1 to {max}");
                return Err(LayoutError::OutOfRange { what, value, allowed });
            }
        }
        if zones > nodes {
            return Err(LayoutError::ZonesWithoutNodes { zones, nodes });
        }
        if factor > nodes {
            return Err(LayoutError::FactorAboveNodes { factor, nodes });
        }
        if !(PARTITIONS.contains(&partitions) && partitions.is_power_of_two() && partitions >= nodes) {
            let allowed = format!(
                "a power of two, {} to {}, at least {nodes}",
                PARTITIONS.start(),
                PARTITIONS.end()
            );
            return Err(LayoutError::OutOfRange {
                what: "partitions (Q)",
                value: partitions,
                allowed,
            });
        }
        Ok(())
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |count: u32| if count == 1 { "" } else { "s" };
        let Self {
            nodes,
            zones,
            factor,
            partitions,
        } = *self;
        write!(
            f,
            "{nodes} node{} in {zones} zone{}, N={factor}, Q={partitions}",
            plural(nodes),
            plural(zones)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(
        nodes: Option<u32>,
        zones: Option<u32>,
        factor: Option<u32>,
        partitions: Option<u32>,
    ) -> Wanted {
        Wanted {
            nodes,
            zones,
            factor,
            partitions,
        }
    }

    #[test]
    fn defaults_shrink_with_the_nodes() {
        let layout = |nodes| wanted(nodes, None, None, None).to_layout().unwrap();
        assert_eq!(
            layout(None),
            Layout {
                nodes: 6,
                zones: 3,
                factor: 3,
                partitions: 256
            }
        );
        assert_eq!(
            layout(Some(2)),
            Layout {
                nodes: 2,
                zones: 2,
                factor: 2,
                partitions: 256
            }
        );
        assert_eq!(
            layout(Some(1)),
            Layout {
                nodes: 1,
                zones: 1,
                factor: 1,
                partitions: 256
            }
        );
    }

    #[test]
    fn zones_are_taken_in_turn() {
        let members = wanted(Some(4), Some(3), None, None)
            .to_layout()
            .unwrap()
            .members();
        let zones: Vec<_> = members.iter().map(|member| member.zone.as_str()).collect();
        assert_eq!(zones, ["zone-a", "zone-b", "zone-c", "zone-a"]);
        assert_eq!(members[3].member, "node-4");
    }

    #[test]
    fn bad_combinations_name_what_would_work() {
        let cases = [
            (wanted(Some(0), None, None, None), "0 nodes: it takes 1 to 64"),
            (wanted(Some(65), None, None, None), "65 nodes"),
            (wanted(None, Some(7), None, None), "use ZONES=6 or NODES=7"),
            (wanted(Some(2), None, Some(3), None), "use N=2 or NODES=3"),
            (
                wanted(None, None, Some(8), None),
                "8 replicas (N): it takes 1 to 7",
            ),
            (
                wanted(None, None, None, Some(100)),
                "100 partitions (Q): it takes a power of two",
            ),
            (wanted(Some(9), None, None, Some(8)), "at least 9"),
        ];
        for (wanted, message) in cases {
            let error = wanted.to_layout().unwrap_err().to_string();
            assert!(error.contains(message), "{error:?} does not say {message:?}");
        }
        let layout = Wanted::default().to_layout().unwrap();
        assert!(layout.check_quorum("read", 3).is_ok());
        for quorum in [0, 4] {
            let error = layout.check_quorum("read", quorum).unwrap_err().to_string();
            assert!(error.contains("it is 1 to 3"), "{error}");
        }
    }

    #[test]
    fn only_what_was_asked_for_can_differ() {
        let stored = Wanted::default().to_layout().unwrap();
        assert!(Wanted::default().differences(stored).is_empty());
        assert!(
            wanted(Some(6), Some(3), None, None)
                .differences(stored)
                .is_empty()
        );
        let differences = wanted(Some(4), Some(3), Some(2), None).differences(stored);
        assert_eq!(differences, ["NODES=4 (stored: 6)", "N=2 (stored: 3)"]);
    }

    #[test]
    fn the_loss_of_a_zone_needs_a_spread() {
        let survives = |nodes, zones, factor, quorum| {
            wanted(Some(nodes), Some(zones), Some(factor), None)
                .to_layout()
                .unwrap()
                .survives_zone(quorum)
        };
        assert!(survives(6, 3, 3, 2));
        assert!(!survives(6, 3, 3, 3));
        assert!(!survives(4, 2, 3, 2));
        assert!(survives(4, 2, 3, 1));
        assert!(!survives(3, 1, 3, 1));
    }
}
