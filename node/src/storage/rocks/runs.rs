//! Sorted runs as RocksDB has them: table files that are written beside the database, and ingested.

use std::{
    fs, io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use rocksdb::{IngestExternalFileOptions, Options, SstFileWriter};

use super::{RocksStore, store_error};
use crate::storage::{
    Space, Store as _, StoreError,
    run::{KEPT_MAX, Run},
};

/// Where the files are, and how they are written: as the database writes its own.
pub(super) struct Runs {
    directory: PathBuf,
    options: Options,
    next: AtomicU64,
}

impl Runs {
    /// Removes what an earlier process has left.
    pub(super) fn open(store: &Path, options: Options) -> io::Result<Self> {
        let directory = store.join("incoming");
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            directory,
            options,
            next: AtomicU64::new(0),
        })
    }

    pub(super) fn write(
        &self,
        records: &mut dyn Iterator<Item = (Bytes, Bytes)>,
    ) -> Result<Option<Run>, StoreError> {
        let Some((first, value)) = records.next() else {
            return Ok(None);
        };
        fs::create_dir_all(&self.directory).map_err(|error| StoreError::Io {
            attempted: format!("making {}", self.directory.display()),
            reason: error.to_string(),
        })?;
        let number = self.next.fetch_add(1, Relaxed);
        let path = self.directory.join(format!("{number}.sst"));
        // From here on the file goes with it.
        let mut run = Run::new(path, first.clone(), &value);
        let mut writer = SstFileWriter::create(&self.options);
        writer.open(run.path()).map_err(|error| failed(&error))?;
        writer.put(&first, &value).map_err(|error| failed(&error))?;
        for (key, value) in records {
            writer.put(&key, &value).map_err(|error| failed(&error))?;
            run.extend(key, &value);
        }
        writer.finish().map_err(|error| failed(&error))?;
        Ok(Some(run))
    }
}

fn failed(error: &rocksdb::Error) -> StoreError {
    store_error("writing a sorted run".to_owned(), error)
}

impl RocksStore {
    /// What is between the run's ends is written to a second run, which is newer than the first: RocksDB takes in both or none.
    pub(super) fn ingest(&self, run: &Run) -> Result<Option<Vec<Bytes>>, StoreError> {
        let (first, last) = run.ends();
        let between = (Bound::Included(first.as_ref()), Bound::Included(last.as_ref()));
        let kept = self.scan(Space::Data, between, KEPT_MAX)?;
        if !kept.done {
            return Ok(None);
        }
        let keys = kept.entries.iter().map(|(key, _)| key.clone()).collect();
        let kept = self.runs.write(&mut kept.entries.into_iter())?;
        let files = [Some(run), kept.as_ref()].into_iter().flatten().map(Run::path);
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db
            .ingest_external_file_cf_opts(self.family(Space::Data)?, &options, files.collect())
            .map_err(|error| store_error("taking in a sorted run".to_owned(), &error))?;
        Ok(Some(keys))
    }
}
