//! The names of writers and of writes.

use std::fmt;

/// The largest counter of a dot. Decoders refuse larger ones, so that counting never overflows, whatever a client
/// sends.
pub const COUNTER_MAX: u64 = (1 << 48) - 1;

/// Who writes: one epoch of one record on one node.
///
/// Unique for ever: the incarnation is random and new with every life of a node's data, the epoch is never given
/// twice within an incarnation. Differs from the paper, whose clocks name nodes (§4.4): a node that lost its disk
/// would count from 1 again and its new writes would look like old ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor {
    /// [`Incarnation::id`](crate::types::Incarnation) of the node that coordinates.
    pub incarnation: u64,
    /// Given by a [`Minter`](crate::replica::Minter) when the node first coordinates the record.
    pub epoch: u64,
}

/// One write of a record: the only value that ever bears this name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// Who wrote.
    pub actor: Actor,
    /// The actor's how-manieth write of this record: 1..=[`COUNTER_MAX`].
    pub counter: u64,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.incarnation, self.epoch)
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.actor, self.counter)
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
