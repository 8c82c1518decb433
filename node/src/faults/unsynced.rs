//! Loses what was written and not synced, as a loss of power does: what a write-ahead log has got since its last sync is cut off.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

/// The stores' directories, and how long their logs were when they were last synced.
#[derive(Debug, Default)]
pub(super) struct Logs {
    stores: Mutex<Vec<PathBuf>>,
    synced: Mutex<BTreeMap<PathBuf, u64>>,
}

impl Logs {
    pub(super) fn add(&self, store: PathBuf) {
        self.stores.lock().push(store);
    }

    /// A store was synced. To be called where nobody writes to it meanwhile.
    pub(super) fn synced(&self, store: &Path) -> io::Result<()> {
        for log in logs(store)? {
            let bytes = fs::metadata(&log)?.len();
            self.synced.lock().insert(log, bytes);
        }
        Ok(())
    }

    /// All stores count as synced now.
    pub(super) fn all_synced(&self) -> io::Result<()> {
        self.stores.lock().iter().try_for_each(|store| self.synced(store))
    }

    /// Cuts off all that was not synced. The process must end at once.
    pub(super) fn cut(&self) -> io::Result<()> {
        for store in &*self.stores.lock() {
            for log in logs(store)? {
                let bytes = self.synced.lock().get(&log).copied().unwrap_or(0);
                fs::OpenOptions::new().write(true).open(&log)?.set_len(bytes)?;
            }
        }
        Ok(())
    }
}

fn logs(store: &Path) -> io::Result<Vec<PathBuf>> {
    let all = fs::read_dir(store)?.collect::<Result<Vec<_>, _>>()?;
    let paths = all.into_iter().map(|entry| entry.path());
    Ok(paths
        .filter(|path| path.extension().is_some_and(|kind| kind == "log"))
        .collect())
}
