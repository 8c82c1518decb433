//! What a client passes back: opaque to it, checked by us. Paper: §4.1, §4.4.

use bytes::Bytes;

use super::codec::{FRAME_BYTES, open_frame, put_seen, read_seen, seal_frame};
use super::dot::Dot;
use super::seen::Seen;
use crate::types::{ClusterId, KeyHash};
use crate::wire::{DecodeError, Reader};

/// Encoded contexts are refused beyond this many bytes.
pub const CONTEXT_BYTES_MAX: usize = 64 << 10;

const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = FRAME_BYTES + 16 + 8;

/// What a client has seen of one key in one cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Context {
    /// The writes that its next put or delete supersedes.
    pub seen: Seen,
}

/// Why bytes are not a context of this key. The request that carried them changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// Not what a node has given out.
    #[error("the context is damaged ({0}); pass it back exactly as a get or put of this key returned it")]
    Damaged(#[from] DecodeError),
    /// From another cluster.
    #[error("the context comes from another cluster; get the key from this one first")]
    ForeignCluster,
    /// From another key.
    #[error("the context belongs to another key; pass the one that a get or put of this key returned")]
    ForeignKey,
    /// Longer than [`CONTEXT_BYTES_MAX`].
    #[error(
        "the context has {0} bytes, {max} at most are accepted; get the key anew for a shorter one",
        max = CONTEXT_BYTES_MAX
    )]
    TooLong(usize),
}

impl Context {
    /// The context of a put's or delete's reply: what the request covered and the new write, never more. A client
    /// must not be able to erase a sibling that it has not seen.
    #[must_use]
    pub fn of_reply(request: &Seen, dot: Dot) -> Self {
        let mut seen = request.clone();
        seen.insert(dot);
        Self { seen }
    }

    /// The bytes for the client.
    ///
    /// May exceed [`CONTEXT_BYTES_MAX`] after thousands of puts by several clients of which none ever reads: such a
    /// context is refused when it comes back, with the advice to read.
    pub fn encode(&self, cluster: ClusterId, key: KeyHash) -> Bytes {
        let mut out = Vec::with_capacity(HEADER_BYTES + 16);
        seal_frame(&mut out, FORMAT_VERSION, |out| {
            out.extend_from_slice(&cluster.0);
            out.extend_from_slice(&key.0.to_be_bytes());
            put_seen(out, &self.seen);
        });
        out.into()
    }

    /// Reads what a client passed for `key` in `cluster`.
    ///
    /// # Errors
    /// If a single bit differs from what was given out, or if it was given out for another key or cluster.
    pub fn decode(bytes: &Bytes, cluster: ClusterId, key: KeyHash) -> Result<Self, ContextError> {
        if bytes.len() > CONTEXT_BYTES_MAX {
            return Err(ContextError::TooLong(bytes.len()));
        }
        let body = open_frame(bytes.clone(), FORMAT_VERSION)?;
        let mut reader = Reader::new(body);
        if reader.array()? != cluster.0 {
            return Err(ContextError::ForeignCluster);
        }
        if reader.fixed_u64()? != key.0 {
            return Err(ContextError::ForeignKey);
        }
        let seen = read_seen(&mut reader)?;
        reader.finish()?;
        Ok(Self { seen })
    }
}
