//! What goes in and what comes out: contexts, values, options.

use std::{fmt, str::FromStr, time::Duration};

use bytes::Bytes;
use dynamo_core::{quorum::ReplicaCount, types};
use dynamo_proto::v1;

use crate::typed::Typed;

/// What a client repeats when it retries a write, so that the write counts once: 16 random bytes.
pub type OpId = types::OpId;

/// What a read or write has seen of a key, to be passed to the put or delete that supersedes it. Paper: §4.4.
///
/// Opaque, bound to its cluster and key: a foreign or damaged one is refused with [`Error::InvalidArgument`].
///
/// [`Error::InvalidArgument`]: crate::Error::InvalidArgument
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Context(Bytes);

/// One of the values that a get returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The bytes as they were put.
    pub value: Bytes,
    /// When the coordinator accepted it, in milliseconds since 1970 by its clock; for people, orders nothing.
    pub written_at_ms: u64,
    /// Milliseconds since 1970 from which it counts as deleted; none: never.
    pub expires_at_ms: Option<u64>,
}

/// What a get found: at least one value; more than one are siblings, to be resolved by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// All causally unrelated values, at least one; empty if `typed` is there.
    pub versions: Vec<Value>,
    /// In a bucket of a data type: the one value, merged.
    pub typed: Option<Typed>,
    /// Covers all that was read.
    pub context: Context,
    /// A delete was concurrent with one of the values.
    pub deleted_concurrently: bool,
    /// How the request was served.
    pub info: Info,
}

/// A write that its quorum accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The request's context and the new version: pass it to this client's next write of the key.
    pub context: Context,
    /// Nodes that accepted it.
    pub acks: u32,
    /// Of these, primaries of the key.
    pub primaries: u32,
    /// Of these, nodes that have synced it to disk.
    pub durable: u32,
    /// Distinct zones of the nodes that accepted it.
    pub zones: u32,
    /// How the request was served.
    pub info: Info,
}

/// How a request was served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Info {
    /// Epoch of the ring that the coordinator used.
    pub ring_epoch: u64,
    /// The member that coordinated; empty: this client did (see [`Coordination`](crate::Coordination)).
    pub coordinator: String,
    /// Forwards between nodes: 0 or 1.
    pub hops: u32,
    /// Nodes that answered in time to count.
    pub acks: u32,
    /// Of these, nodes that are not among the key's primaries.
    pub fallbacks_counted: u32,
    /// Of a get: the primary that answered first; empty if it is not known.
    pub fastest: String,
    /// The quorum in effect: N, r, w, pr, pw, dw, zones.
    pub quorum: [u32; 7],
}

/// How many replicas must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replicas {
    /// So many: 1..=N for r and w, 0..=N for pr, pw, dw and zones.
    Count(u32),
    /// One.
    One,
    /// More than half of N.
    Quorum,
    /// All N.
    All,
}

/// Choices for one read; what is left out, the cluster's configuration decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    /// Replicas that must answer.
    pub r: Option<Replicas>,
    /// Of these, primaries.
    pub pr: Option<Replicas>,
    /// Instead of the client's own deadline.
    pub deadline: Option<Duration>,
}

/// Choices for one write; what is left out, the cluster's configuration decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Replicas that must have accepted the write under the cluster's durability mode.
    pub w: Option<Replicas>,
    /// Of these, primaries.
    pub pw: Option<Replicas>,
    /// Of these, replicas that have synced it to disk.
    pub dw: Option<Replicas>,
    /// Distinct zones in which replicas must have accepted it; `All` and `Quorum` are of N.
    pub zones: Option<Replicas>,
    /// The value counts as deleted after so long, to the millisecond and at least one. None: as the bucket says, which
    /// may be never. For puts of plain values only.
    pub ttl: Option<Duration>,
    /// Instead of the client's own deadline.
    pub deadline: Option<Duration>,
    /// Instead of a random one: for a caller that repeats a write whose outcome was unknown.
    pub op_id: Option<OpId>,
}

impl Context {
    /// Of a write that has seen nothing: a blind put, which makes a sibling where versions exist.
    pub fn none() -> Self {
        Self::default()
    }

    /// From bytes that [`Context::as_bytes`] gave.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The opaque bytes, to be kept or handed on as they are.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Whether it covers nothing.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

impl Found {
    /// The values without their stamps.
    pub fn values(&self) -> impl Iterator<Item = &Bytes> {
        self.versions.iter().map(|version| &version.value)
    }

    /// The value, if there is exactly one.
    pub fn single(&self) -> Option<&Bytes> {
        match self.versions.as_slice() {
            [only] => Some(&only.value),
            _ => None,
        }
    }
}

impl Replicas {
    pub(crate) fn encode(self) -> v1::Replicas {
        use v1::replicas::{Amount, Level};
        let amount = match self {
            Self::Count(count) => Amount::Count(count),
            Self::One => Amount::Level(Level::One.into()),
            Self::Quorum => Amount::Level(Level::Quorum.into()),
            Self::All => Amount::Level(Level::All.into()),
        };
        v1::Replicas { amount: Some(amount) }
    }

    pub(crate) fn count(self) -> ReplicaCount {
        match self {
            Self::Count(count) => ReplicaCount::Count(count),
            Self::One => ReplicaCount::One,
            Self::Quorum => ReplicaCount::Quorum,
            Self::All => ReplicaCount::All,
        }
    }
}

impl WriteOptions {
    /// For the wire: 0 is "the bucket's".
    pub(crate) fn ttl_ms(&self) -> u64 {
        let ms = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        self.ttl.map_or(0, ms)
    }
}

impl FromStr for Replicas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "one" => Ok(Self::One),
            "quorum" => Ok(Self::Quorum),
            "all" => Ok(Self::All),
            _ => text
                .parse()
                .map(Self::Count)
                .map_err(|_| format!("{text:?} is not a number of replicas, 'one', 'quorum' or 'all'")),
        }
    }
}

impl fmt::Display for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::One => f.write_str("one"),
            Self::Quorum => f.write_str("quorum"),
            Self::All => f.write_str("all"),
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({} bytes)", self.0.len())
    }
}

impl From<v1::GetResponse> for Found {
    fn from(reply: v1::GetResponse) -> Self {
        let versions = reply.versions.into_iter();
        Self {
            versions: versions
                .map(|version| Value {
                    value: version.value,
                    written_at_ms: version.written_at_ms,
                    expires_at_ms: Some(version.expires_at_ms).filter(|ms| *ms > 0),
                })
                .collect(),
            typed: reply.typed.and_then(Typed::decode),
            context: Context(reply.context),
            deleted_concurrently: reply.deleted_concurrently,
            info: reply.info.unwrap_or_default().into(),
        }
    }
}

impl Written {
    pub(crate) fn new(
        context: Bytes,
        outcome: Option<v1::WriteOutcome>,
        info: Option<v1::ResponseInfo>,
    ) -> Self {
        let outcome = outcome.unwrap_or_default();
        Self {
            context: Context(context),
            acks: outcome.acks,
            primaries: outcome.primaries,
            durable: outcome.durable,
            zones: outcome.zones,
            info: info.unwrap_or_default().into(),
        }
    }
}

impl From<v1::ResponseInfo> for Info {
    fn from(info: v1::ResponseInfo) -> Self {
        let quorum = info.quorum.unwrap_or_default();
        Self {
            ring_epoch: info.ring_epoch,
            coordinator: info.coordinator,
            hops: info.hops,
            acks: info.acks,
            fallbacks_counted: info.fallbacks_counted,
            fastest: info.fastest,
            quorum: [
                quorum.replicas,
                quorum.r,
                quorum.w,
                quorum.pr,
                quorum.pw,
                quorum.dw,
                quorum.zones,
            ],
        }
    }
}
