//! Random faults of the lab: chosen by a seed, done for a while, healed.

use std::{collections::BTreeMap, fmt};

use crate::writers::Chance;

mod act;

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A pod is deleted without grace.
    Kill(String),
    /// A process ends as if killed; its pod stays.
    Crash(String),
    /// A process stands still (SIGSTOP).
    Pause(String),
    /// What the first sends to the second is lost.
    CutOneWay(String, String),
    /// Neither hears the other.
    Cut(String, String),
    /// A member hears nobody, and nobody hears it.
    Isolate(String),
    /// Each request of a member to its peers takes longer, by so many milliseconds.
    Slow(String, u32),
    /// A member's clock is wrong, by so many milliseconds.
    Skew(String, i64),
    /// All pods of a zone are deleted without grace.
    KillZone(String),
    /// A zone's k8s node is cut off from the network.
    CutZone(String),
}

impl Fault {
    /// Kinds there are.
    pub const KINDS: u64 = 10;

    /// The fault of a kind, on members and zones chosen by chance. Zones are of those that may be lost.
    pub fn choose(
        kind: u64,
        members: &BTreeMap<String, String>,
        safe_zone: &str,
        chance: &mut Chance,
    ) -> Self {
        let names: Vec<&String> = members.keys().collect();
        let first = chance.below(names.len() as u64) as usize;
        let second = (first + 1 + chance.below(names.len() as u64 - 1) as usize) % names.len();
        let (one, other) = (names[first].clone(), names[second].clone());
        let mut zones: Vec<&String> = members.values().filter(|zone| *zone != safe_zone).collect();
        zones.dedup();
        let zone = zones
            .get(chance.below(zones.len() as u64) as usize)
            .map_or_else(String::new, |zone| (*zone).clone());
        match kind % Self::KINDS {
            0 => Self::Kill(one),
            1 => Self::Crash(one),
            2 => Self::Pause(one),
            3 => Self::CutOneWay(one, other),
            4 => Self::Cut(one, other),
            5 => Self::Isolate(one),
            6 => Self::Slow(one, 50 + chance.below(450) as u32),
            7 => Self::Skew(one, chance.below(7_200_000).cast_signed() - 3_600_000),
            8 => Self::KillZone(zone),
            _ => Self::CutZone(zone),
        }
    }

    /// Another fault that may be there at the same time: of another member, and of no zone. `None`: this one is of a zone, whose
    /// members may be out of reach.
    #[must_use]
    pub fn beside(&self, members: &BTreeMap<String, String>, chance: &mut Chance) -> Option<Self> {
        let subject = self.member()?;
        let others: BTreeMap<String, String> = members
            .iter()
            .filter(|(member, _)| *member != subject)
            .map(|(member, zone)| (member.clone(), zone.clone()))
            .collect();
        Some(Self::choose(chance.below(8), &others, "", chance))
    }

    /// The member that it is done to; `None`: a zone.
    fn member(&self) -> Option<&String> {
        match self {
            Self::Kill(one)
            | Self::Crash(one)
            | Self::Pause(one)
            | Self::CutOneWay(one, _)
            | Self::Cut(one, _)
            | Self::Isolate(one)
            | Self::Slow(one, _)
            | Self::Skew(one, _) => Some(one),
            Self::KillZone(_) | Self::CutZone(_) => None,
        }
    }

    /// What it is, without whom.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Crash(_) => "crash",
            Self::Pause(_) => "pause",
            Self::CutOneWay(..) => "one-way cut",
            Self::Cut(..) => "two-way cut",
            Self::Isolate(_) => "isolation",
            Self::Slow(..) => "slowness",
            Self::Skew(..) => "clock skew",
            Self::KillZone(_) => "zone killed",
            Self::CutZone(_) => "zone cut",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Kill(one) | Self::Crash(one) | Self::Pause(one) | Self::Isolate(one) => {
                write!(f, "{kind} of {one}")
            }
            Self::KillZone(zone) | Self::CutZone(zone) => write!(f, "{kind}: {zone}"),
            Self::CutOneWay(from, to) => write!(f, "{kind} from {from} to {to}"),
            Self::Cut(one, other) => write!(f, "{kind} between {one} and {other}"),
            Self::Slow(one, ms) => write!(f, "{kind} of {one} by {ms} ms"),
            Self::Skew(one, ms) => write!(f, "{kind} of {one} by {ms} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_chooses_the_same_faults_again_and_never_the_safe_zone() {
        let members: BTreeMap<String, String> = ["a-0", "a-1", "b-0", "b-1", "c-0", "c-1"]
            .map(|name| (name.to_owned(), name[..1].to_owned()))
            .into();
        let choose = |seed| {
            let mut chance = Chance(seed);
            (0..100)
                .map(|kind| Fault::choose(kind, &members, "a", &mut chance))
                .collect::<Vec<_>>()
        };
        assert_eq!(choose(1), choose(1));
        assert_ne!(choose(1), choose(2));
        for fault in choose(3) {
            match &fault {
                Fault::KillZone(zone) | Fault::CutZone(zone) => assert!(["b", "c"].contains(&zone.as_str())),
                Fault::Cut(one, other) | Fault::CutOneWay(one, other) => assert_ne!(one, other),
                _ => {}
            }
            match fault.beside(&members, &mut Chance(4)) {
                Some(second) => assert!(second.member().is_some() && second.member() != fault.member()),
                None => assert!(matches!(fault, Fault::KillZone(_) | Fault::CutZone(_))),
            }
        }
    }
}
