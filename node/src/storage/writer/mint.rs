//! The one source of epochs of a life of the data, for as many writers as there are.

use std::sync::Arc;

use dynamo_core::replica::Minter;
use parking_lot::Mutex;

/// A [`Minter`] that the writers of all of a node's stores share, so that no epoch is given twice. Clones are the same
/// one.
///
/// The clean stop takes the minter out, and from then on nobody can coordinate: the next epoch that the stop persists
/// is certainly the next.
#[derive(Debug, Clone)]
pub struct Mint {
    minter: Arc<Mutex<Option<Minter>>>,
}

impl Mint {
    /// Continues a life's epochs.
    pub fn new(minter: Minter) -> Self {
        Self {
            minter: Arc::new(Mutex::new(Some(minter))),
        }
    }

    /// Runs `give` with the minter; none once it was taken out.
    pub(super) fn with<T>(&self, give: impl FnOnce(&mut Minter) -> T) -> Option<T> {
        self.minter.lock().as_mut().map(give)
    }

    /// Goes on with the epochs of another life.
    pub(super) fn renew(&self, minter: Minter) {
        self.with(|current| *current = minter);
    }

    /// Takes the minter out, to persist where it stands.
    pub(super) fn end(&self) -> Option<Minter> {
        self.minter.lock().take()
    }
}
