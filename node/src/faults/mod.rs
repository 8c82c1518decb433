//! Faults on demand, for tests from outside: lost and slow messages, a failing or full disk, a wrong clock.
//!
//! Everything is behind the feature `faults`; without it the hooks are empty functions, and there is no service.

#[cfg(feature = "faults")]
mod active;

#[cfg(feature = "faults")]
mod service;

#[cfg(feature = "faults")]
mod store;

#[cfg(feature = "faults")]
mod unsynced;

#[cfg(feature = "faults")]
pub(crate) use active::{Faults, skewed};
#[cfg(feature = "faults")]
pub(crate) use service::FaultService;

#[cfg(not(feature = "faults"))]
pub(crate) use inactive::{Faults, skewed};

/// Without the feature nothing ever happens.
#[cfg(not(feature = "faults"))]
mod inactive {
    use std::{path::PathBuf, sync::Arc};

    use dynamo_core::types::MemberId;

    use crate::storage::Store;

    /// No faults.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Faults;

    /// The wall clock as it is.
    pub(crate) const fn skewed(now_ms: u64) -> u64 {
        now_ms
    }

    #[expect(
        clippy::unused_async,
        clippy::unused_self,
        reason = "the same shape as with the feature"
    )]
    impl Faults {
        /// Before a request leaves for a peer.
        pub(crate) async fn before_request(&self, _to: &MemberId) {}

        /// When a request of a peer arrives.
        pub(crate) async fn on_arrival(&self, _from: &str) {}

        /// Before an answer leaves for a peer.
        pub(crate) async fn before_reply(&self, _to: &str) {}

        /// Whether a request of a peer is lost on arrival.
        pub(crate) fn loses_arrival(&self, _from: &str) -> bool {
            false
        }

        /// Whether an answer to a peer is lost.
        pub(crate) fn loses_reply(&self, _to: &str) -> bool {
            false
        }

        /// The store as it is.
        pub(crate) fn wrap(&self, store: Arc<dyn Store>, _path: PathBuf) -> Arc<dyn Store> {
            store
        }
    }
}
