//! What is in effect, and the hooks.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use dynamo_core::types::MemberId;
use dynamo_proto::fault::{PeerFault, SetRequest};
use parking_lot::RwLock;

use super::{store::FaultyStore, unsynced::Logs};
use crate::storage::Store;

/// Added to the wall clock of the whole process.
static SKEW_MS: AtomicI64 = AtomicI64::new(0);

/// The wall clock, as wrong as it is to be.
pub(crate) fn skewed(now_ms: u64) -> u64 {
    now_ms.saturating_add_signed(SKEW_MS.load(Ordering::Relaxed))
}

/// The faults of one node; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    settings: Arc<RwLock<SetRequest>>,
    logs: Arc<Logs>,
}

impl Faults {
    /// Replaces what is in effect.
    pub(super) fn set(&self, settings: SetRequest) -> io::Result<()> {
        if settings.lose_unsynced {
            self.logs.all_synced()?;
        }
        SKEW_MS.store(settings.clock_skew_ms, Ordering::Relaxed);
        *self.settings.write() = settings;
        Ok(())
    }

    /// A store was synced.
    pub(super) fn synced(&self, store: &Path) -> io::Result<()> {
        if self.settings.read().lose_unsynced {
            self.logs.synced(store)?;
        }
        Ok(())
    }

    /// What the end of the process loses.
    pub(super) fn crash(&self) -> io::Result<()> {
        if self.settings.read().lose_unsynced {
            self.logs.cut()?;
        }
        Ok(())
    }

    /// What is in effect.
    pub(super) fn settings(&self) -> SetRequest {
        self.settings.read().clone()
    }

    /// Before a request leaves for a peer: waits for as long as it is delayed, for ever if it is lost.
    pub(crate) async fn before_request(&self, to: &MemberId) {
        for fault in self.towards(to.as_str()) {
            tokio::time::sleep(Duration::from_millis(fault.delay_ms.into())).await;
            lost_if(fault.drop_requests).await;
        }
    }

    /// Whether a request of a peer is lost on arrival.
    pub(crate) fn loses_arrival(&self, from: &str) -> bool {
        self.towards(from).iter().any(|fault| fault.drop_arrivals)
    }

    /// Whether an answer to a peer is lost.
    pub(crate) fn loses_reply(&self, to: &str) -> bool {
        self.towards(to).iter().any(|fault| fault.drop_replies)
    }

    /// When a request of a peer arrives.
    pub(crate) async fn on_arrival(&self, from: &str) {
        lost_if(self.loses_arrival(from)).await;
    }

    /// Before an answer leaves for a peer.
    pub(crate) async fn before_reply(&self, to: &str) {
        lost_if(self.loses_reply(to)).await;
    }

    /// A store that fails as it is told to; its files are in `path`.
    pub(crate) fn wrap(&self, store: Arc<dyn Store>, path: PathBuf) -> Arc<dyn Store> {
        self.logs.add(path.clone());
        Arc::new(FaultyStore::new(store, path, self.clone()))
    }

    fn towards(&self, peer: &str) -> Vec<PeerFault> {
        let mut faults = self.settings().peers;
        faults.retain(|fault| fault.member_id.is_empty() || fault.member_id == peer);
        faults
    }
}

async fn lost_if(lost: bool) {
    if lost {
        std::future::pending::<()>().await;
    }
}
