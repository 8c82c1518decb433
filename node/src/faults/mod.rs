//! Faults on demand, for tests from outside: lost and slow messages, a failing or full disk, a wrong clock.
//!
//! Everything is behind the feature `faults`; without it the hooks are empty functions, and there is no service.

#[cfg(feature = "faults")]
mod service;

#[cfg(feature = "faults")]
mod store;

#[cfg(feature = "faults")]
pub(crate) use active::*;
#[cfg(feature = "faults")]
pub(crate) use service::FaultService;
#[cfg(feature = "faults")]
pub(crate) use store::FaultyStore;

#[cfg(not(feature = "faults"))]
pub(crate) use inactive::*;

/// Without the feature nothing ever happens.
#[cfg(not(feature = "faults"))]
mod inactive {
    use dynamo_core::types::MemberId;

    /// The wall clock as it is.
    pub(crate) const fn skewed(now_ms: u64) -> u64 {
        now_ms
    }

    /// Before a request leaves for a peer.
    #[expect(clippy::unused_async, reason = "the same shape as with the feature")]
    pub(crate) async fn before_request(_me: Option<&MemberId>, _to: &MemberId) {}

    /// When a request of a peer arrives.
    #[expect(clippy::unused_async, reason = "the same shape as with the feature")]
    pub(crate) async fn on_arrival(_me: &str, _from: &str) {}

    /// Before an answer leaves for a peer.
    #[expect(clippy::unused_async, reason = "the same shape as with the feature")]
    pub(crate) async fn before_reply(_me: &str, _to: &str) {}
}

#[cfg(feature = "faults")]
mod active {
    use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

    use dynamo_core::types::MemberId;
    use dynamo_proto::fault::{PeerFault, SetRequest};
    use parking_lot::RwLock;

    /// What is in effect, by node: several may run in one process.
    static SETTINGS: LazyLock<RwLock<BTreeMap<String, SetRequest>>> = LazyLock::new(RwLock::default);

    /// Replaces what is in effect at a node.
    pub(crate) fn set(me: &str, settings: SetRequest) {
        SETTINGS.write().insert(me.to_owned(), settings);
    }

    /// What is in effect at a node.
    pub(crate) fn settings(me: &str) -> SetRequest {
        SETTINGS.read().get(me).cloned().unwrap_or_default()
    }

    /// The wall clock, with the largest skew that is set in this process.
    pub(crate) fn skewed(now_ms: u64) -> u64 {
        let skews = SETTINGS.read();
        let skew = skews.values().map(|settings| settings.clock_skew_ms);
        let skew = skew.max_by_key(|skew| skew.unsigned_abs()).unwrap_or(0);
        now_ms.saturating_add_signed(skew)
    }

    /// Before a request leaves for a peer: waits for as long as it is delayed, for ever if it is lost.
    pub(crate) async fn before_request(me: Option<&MemberId>, to: &MemberId) {
        let Some(me) = me else { return };
        for fault in towards(me.as_str(), to.as_str()) {
            tokio::time::sleep(Duration::from_millis(fault.delay_ms.into())).await;
            lost_if(fault.drop_requests).await;
        }
    }

    /// When a request of a peer arrives.
    pub(crate) async fn on_arrival(me: &str, from: &str) {
        for fault in towards(me, from) {
            lost_if(fault.drop_arrivals).await;
        }
    }

    /// Before an answer leaves for a peer.
    pub(crate) async fn before_reply(me: &str, to: &str) {
        for fault in towards(me, to) {
            lost_if(fault.drop_replies).await;
        }
    }

    fn towards(me: &str, peer: &str) -> Vec<PeerFault> {
        let mut faults = settings(me).peers;
        faults.retain(|fault| fault.member_id.is_empty() || fault.member_id == peer);
        faults
    }

    async fn lost_if(lost: bool) {
        if lost {
            std::future::pending::<()>().await;
        }
    }
}
