//! Between the client protocol and the core: checks on the way in, plain translation on the way out.

use bytes::Bytes;
use dynamo_core::{
    quorum::{Quorum, QuorumOverrides, ReplicaCount},
    ring::Ring,
    types::{ClusterId, KeyHash, OpId},
    version::{Context, KeyState, Seen},
};
use dynamo_proto::v1;

use crate::{
    config::KEY_BYTES_MAX,
    grpc::status::{Failure, Reason},
    storage::DataKey,
};

/// The bucket of requests that name none.
const DEFAULT_BUCKET: &str = "default";

/// Checks bucket and key.
///
/// # Errors
/// INVALID_ARGUMENT with the limit that is broken.
pub(crate) fn record_key(bucket: &str, key: &[u8]) -> Result<DataKey, Failure> {
    let bucket = bucket_name(bucket)?;
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let length = key.len();
        return Err(Failure::invalid(format!(
            "the key has {length} bytes but must have 1..={KEY_BYTES_MAX}"
        )));
    }
    DataKey::new(bucket, key).map_err(|error| Failure::invalid(error.to_string()))
}

/// Checks a bucket's name; the empty one is the default bucket.
///
/// # Errors
/// INVALID_ARGUMENT with the rule.
pub(crate) fn bucket_name(bucket: &str) -> Result<&str, Failure> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match bucket {
        "" => Ok(DEFAULT_BUCKET),
        name if name.len() <= 63 && name.chars().all(good) => Ok(name),
        _ => Err(Failure::invalid(
            "the bucket must have 1 to 63 characters of a-z, 0-9, '-'",
        )),
    }
}

/// Checks a value's size.
///
/// # Errors
/// INVALID_ARGUMENT with the limit.
pub(crate) fn value(value: Bytes, bytes_max: usize) -> Result<Bytes, Failure> {
    if value.len() > bytes_max {
        let length = value.len();
        return Err(Failure::invalid(format!(
            "the value has {length} bytes but may have at most {bytes_max}"
        )));
    }
    Ok(value)
}

/// Checks an operation id: none, or 16 bytes.
///
/// # Errors
/// INVALID_ARGUMENT for any other length.
pub(crate) fn op_id(bytes: &Bytes) -> Result<Option<OpId>, Failure> {
    if bytes.is_empty() {
        return Ok(None);
    }
    match OpId::try_from(bytes.as_ref()) {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(Failure::invalid(format!(
            "the op id has {} bytes but must have 16, or none",
            bytes.len()
        ))),
    }
}

/// What a client's context covers; an empty one covers nothing.
///
/// # Errors
/// INVALID_ARGUMENT if it is damaged, or of another key or cluster.
pub(crate) fn context(bytes: &Bytes, cluster: ClusterId, hash: KeyHash) -> Result<Seen, Failure> {
    if bytes.is_empty() {
        return Ok(Seen::new());
    }
    match Context::decode(bytes, cluster, hash) {
        Ok(context) => Ok(context.seen),
        Err(error) => Err(Failure::new(
            Reason::InvalidContext,
            format!("the context cannot be used for the key with hash {hash}: {error}; get the key again"),
        )),
    }
}

/// The quorum of a request.
///
/// # Errors
/// INVALID_ARGUMENT for a combination out of range.
pub(crate) fn quorum(defaults: &Quorum, overrides: &QuorumOverrides) -> Result<Quorum, Failure> {
    defaults
        .with(overrides)
        .map_err(|error| Failure::invalid(error.to_string()))
}

/// How many replicas a request asks for; none where it leaves that to the configuration.
pub(crate) fn replica_count(replicas: Option<&v1::Replicas>) -> Option<ReplicaCount> {
    use v1::replicas::{Amount, Level};
    match replicas?.amount.as_ref()? {
        Amount::Count(count) => Some(ReplicaCount::Count(*count)),
        Amount::Level(level) => match Level::try_from(*level).unwrap_or_default() {
            Level::Unspecified => None,
            Level::One => Some(ReplicaCount::One),
            Level::Quorum => Some(ReplicaCount::Quorum),
            Level::All => Some(ReplicaCount::All),
        },
    }
}

/// The quorum in effect, for the reply.
pub(crate) fn effective_quorum(quorum: &Quorum) -> v1::EffectiveQuorum {
    v1::EffectiveQuorum {
        replicas: quorum.n,
        r: quorum.r,
        w: quorum.w,
        pr: quorum.pr,
        pw: quorum.pw,
        dw: quorum.dw,
    }
}

/// The values of a state that are live at `wall_ms`, for a client.
pub(crate) fn versions(state: &KeyState, wall_ms: u64) -> Vec<v1::Version> {
    state
        .live(wall_ms)
        .into_iter()
        .filter_map(|(_, sibling)| {
            let value = sibling.value()?.clone();
            Some(v1::Version {
                value,
                written_at_ms: sibling.stamp.ms(),
            })
        })
        .collect()
}

/// A ring, with the client addresses that are known.
pub(crate) fn ring(ring: &Ring, client_address: impl Fn(&str) -> Option<String>) -> v1::Ring {
    v1::Ring {
        cluster_id: Bytes::copy_from_slice(&ring.cluster_id().0),
        epoch: ring.epoch(),
        hash: ring.hash(),
        factor: ring.factor(),
        members: ring
            .members()
            .iter()
            .map(|member| v1::RingMember {
                member_id: member.id.as_str().to_owned(),
                zone: member.zone.as_str().to_owned(),
                weight: member.weight,
                client_address: client_address(member.id.as_str()).unwrap_or_default(),
            })
            .collect(),
        owners: ring.owners().iter().map(|owner| u32::from(*owner)).collect(),
    }
}
