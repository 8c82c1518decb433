//! How a member notices that its volume was put back in time, and how it tells others how far its storage has come.
//!
//! A member announces the sequence number up to which its storage is synced. Others keep the statement of its life
//! before the present one too. In every digest the member says how far it can account for its lives; who has heard a
//! larger number from one of them sends back the statement that proves it. Paper: §4.8.1 (which has no such check).

use super::view::View;
use crate::types::{Incarnation, MemberId};

/// At most so often does a member announce how far its storage is synced.
pub const ANNOUNCE_INTERVAL_MS: u64 = 10_000;

/// Lives after the previous one that a member remembers at most.
const LIVES_SINCE_MAX: usize = 64;

/// What a member knows of its own past when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfHistory {
    /// The last life of the data that a peer has compared, if it is not the present one.
    pub previous: Option<Incarnation>,
    /// Lives between that one and the present one, at most 64: no peer has compared them, and they
    /// lost nothing that the comparison of `previous` would not show.
    pub since: Vec<Incarnation>,
    /// The storage sequence number up to which the store was found at this start.
    pub recovered: u64,
}

impl SelfHistory {
    /// Takes down another start before any peer has compared: until it, the data lived in `last`.
    pub fn outlived(&mut self, last: Incarnation) {
        let known = self.previous == Some(last) || self.since.last() == Some(&last);
        if !known && self.since.len() < LIVES_SINCE_MAX {
            self.since.push(last);
        }
    }

    /// Whether a life that others remember came after the previous one, and this volume does not: then it is an older copy.
    pub(super) fn lacks(&self, present: Incarnation, remembered: Incarnation) -> bool {
        let Some(previous) = self.previous.filter(|_| self.since.len() < LIVES_SINCE_MAX) else {
            return false;
        };
        let between =
            previous.generation < remembered.generation && remembered.generation <= present.generation;
        between && remembered != present && !self.since.contains(&remembered)
    }
}

/// One life of a member and how far its storage has come in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Which life.
    pub incarnation: Incarnation,
    /// The largest storage sequence number that the member can account for.
    pub synced: u64,
}

/// What the sender of a digest says about its own lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The sender.
    pub member: MemberId,
    /// At most [`LIVES_MAX`].
    pub lives: Vec<Life>,
}

/// Lives that one claim names: the present one and the one before.
pub const LIVES_MAX: usize = 2;

/// Decides when a member says how far its storage is synced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Announcer {
    last_ms: Option<u64>,
}

impl Announcer {
    /// Nothing has been announced in this process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises what `view` says about its own storage to `synced`: at most every [`ANNOUNCE_INTERVAL_MS`], and only if it
    /// has grown. True if it did. `now_ms` is monotonic; what is not yet synced must not be announced.
    pub fn announce(&mut self, view: &mut View, synced: u64, now_ms: u64) -> bool {
        let too_soon = self
            .last_ms
            .is_some_and(|last_ms| now_ms < last_ms.saturating_add(ANNOUNCE_INTERVAL_MS));
        if too_soon || synced <= view.me().synced {
            return false;
        }
        self.last_ms = Some(now_ms);
        view.update_self(|me| me.synced = synced);
        true
    }
}
