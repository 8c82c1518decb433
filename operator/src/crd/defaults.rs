//! What a field is when it is left out. The same values are defaults in the CRD's schema.

use super::{
    AntiEntropy, Durability, Hints, Limits, Quantity, Reaping, Replication, ResourceAmounts, Resources, Ring,
    Storage, WhenDeleted,
};

/// Members of a cluster.
pub const MEMBERS: i32 = 3;
/// N.
pub const FACTOR: i32 = 3;
/// Q.
pub const PARTITIONS: i32 = 256;
/// Weight of a member.
pub const WEIGHT: i32 = 1;

pub(super) fn members() -> i32 {
    MEMBERS
}

pub(super) fn factor() -> i32 {
    FACTOR
}

pub(super) fn partitions() -> i32 {
    PARTITIONS
}

pub(super) fn weight() -> i32 {
    WEIGHT
}

pub(super) fn size() -> Quantity {
    "1Gi".into()
}

pub(super) fn interval_ms() -> i32 {
    1000
}

pub(super) fn lost_after_seconds() -> i32 {
    300
}

pub(super) fn hints_bytes_max() -> i64 {
    1 << 30
}

pub(super) fn hints_interval_seconds() -> i32 {
    10
}

pub(super) fn anti_entropy_interval_seconds() -> i32 {
    60
}

pub(super) fn reaping_interval_seconds() -> i32 {
    300
}

pub(super) fn reaping_grace_seconds() -> i32 {
    600
}

pub(super) fn value_bytes_max() -> i32 {
    1 << 20
}

pub(super) fn connections_max() -> i32 {
    4096
}

pub(super) fn requests_in_flight_max() -> i32 {
    1024
}

pub(super) fn requests() -> ResourceAmounts {
    ResourceAmounts {
        cpu: Some("100m".into()),
        memory: Some("128Mi".into()),
    }
}

impl Default for Replication {
    fn default() -> Self {
        Self {
            factor: FACTOR,
            read_quorum: None,
            write_quorum: None,
            zone_policy: super::ZonePolicy::default(),
        }
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            partitions: PARTITIONS,
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            size: size(),
            storage_class_name: None,
            when_deleted: WhenDeleted::default(),
            when_lost: super::WhenLost::default(),
            lost_after_seconds: lost_after_seconds(),
        }
    }
}

impl Default for Durability {
    fn default() -> Self {
        Self {
            mode: super::DurabilityMode::default(),
            interval_ms: interval_ms(),
        }
    }
}

impl Default for Hints {
    fn default() -> Self {
        Self {
            bytes_max: hints_bytes_max(),
            interval_seconds: hints_interval_seconds(),
        }
    }
}

impl Default for AntiEntropy {
    fn default() -> Self {
        Self {
            interval_seconds: anti_entropy_interval_seconds(),
        }
    }
}

impl Default for Reaping {
    fn default() -> Self {
        Self {
            interval_seconds: reaping_interval_seconds(),
            grace_seconds: reaping_grace_seconds(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            value_bytes_max: value_bytes_max(),
            connections_max: connections_max(),
            requests_in_flight_max: requests_in_flight_max(),
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            requests: requests(),
            limits: ResourceAmounts::default(),
        }
    }
}
