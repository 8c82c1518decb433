//! What a directory must be to become a store, and what is said when it is not.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rocksdb::{DB, Direction, ErrorKind, IteratorMode, Options};

use super::options::family_name;
use crate::storage::{
    Space,
    format::{self, FormatError},
    keys::meta,
};

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "opening the store in {path}: another process has it open; stop that one first (two nodes cannot share a data \
         directory)"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The operating system forbids it.
    #[error("opening the store in {path}: {reason}; the data directory must be writable by user id {user}")]
    Permission {
        /// The directory.
        path: PathBuf,
        /// In the words of the operating system.
        reason: String,
        /// Who runs this process.
        user: u32,
    },
    /// The path is something else than a directory.
    #[error("opening the store in {path}: it is not a directory; set --data-dir to one")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Files of a store without those that tell what belongs to it.
    #[error(
        "opening the store in {path}: it holds {file} but no CURRENT file, so parts of the store are missing; restore \
         the directory, or empty it to start with nothing and let the other replicas fill it"
    )]
    Incomplete {
        /// The directory.
        path: PathBuf,
        /// One of the files that would have been orphaned.
        file: String,
    },
    /// It is not ours, or of a newer release.
    #[error("opening the store in {path}: {source}")]
    Format {
        /// The directory.
        path: PathBuf,
        /// What was found.
        source: FormatError,
    },
    /// Its files are damaged.
    #[error(
        "opening the store in {path}: its files are damaged ({reason}); restore the directory, or empty it to start \
         with nothing and let the other replicas fill it"
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// In the words of RocksDB.
        reason: String,
    },
    /// Anything else.
    #[error("opening the store in {path}: {reason}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// In the words of RocksDB or of the operating system.
        reason: String,
    },
}

pub(super) fn prepare_directory(path: &Path) -> Result<(), OpenError> {
    fs::create_dir_all(path).map_err(|error| directory_error(path, &error))?;
    let entries = fs::read_dir(path).map_err(|error| directory_error(path, &error))?;
    let mut orphan = None;
    for entry in entries {
        let entry = entry.map_err(|error| directory_error(path, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "CURRENT" {
            return Ok(());
        }
        if Path::new(&name)
            .extension()
            .is_some_and(|extension| extension == "sst" || extension == "log")
        {
            orphan = Some(name);
        }
    }
    // RocksDB would start an empty store here, and delete them.
    orphan.map_or(Ok(()), |file| {
        Err(OpenError::Incomplete {
            path: path.to_owned(),
            file,
        })
    })
}

/// RocksDB reads a manifest in which a flipped bit has made a record look like one of a recycled file again and again, and
/// never returns (11.8). A manifest is never recycled: it has whole records and the parts of large ones.
pub(super) fn refuse_endless_manifest(path: &Path) -> Result<(), OpenError> {
    let Ok(current) = fs::read_to_string(path.join("CURRENT")) else {
        return Ok(());
    };
    // What is wrong with the name or the file, RocksDB says itself.
    let Ok(mut manifest) = fs::File::open(path.join(current.trim_end())) else {
        return Ok(());
    };
    let mut block = Vec::with_capacity(LOG_BLOCK_BYTES);
    loop {
        block.clear();
        let read = manifest
            .by_ref()
            .take(LOG_BLOCK_BYTES as u64)
            .read_to_end(&mut block);
        if !read.is_ok_and(|bytes| bytes > 0) {
            return Ok(());
        }
        if let Some(kind) = foreign_record(&block) {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                reason: format!("{} has a record of kind {kind}", current.trim_end()),
            });
        }
    }
}

/// RocksDB's log files consist of blocks of this size; no record crosses their ends.
const LOG_BLOCK_BYTES: usize = 32 << 10;
/// Of a record in a file that was not recycled: whole, or the first, a middle or the last part of one.
const LOG_KINDS: std::ops::RangeInclusive<u8> = 1..=4;

/// The kind of the first record that has no place in a manifest. A record's header: checksum (4), length (2), kind (1).
fn foreign_record(mut block: &[u8]) -> Option<u8> {
    while let [_, _, _, _, low, high, kind, rest @ ..] = block {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        // The rest of a block may be filled with zeros.
        if *kind == 0 && length == 0 {
            return None;
        }
        if !LOG_KINDS.contains(kind) {
            return Some(*kind);
        }
        block = rest.get(length..)?;
    }
    None
}

pub(super) fn directory_error(path: &Path, error: &io::Error) -> OpenError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => OpenError::NotADirectory { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            permission(path, error.to_string())
        }
        _ => OpenError::Io {
            path,
            reason: error.to_string(),
        },
    }
}

/// Shown where the system does not say: the id of nobody.
const UNKNOWN_USER: u32 = 65_534;

fn permission(path: PathBuf, reason: String) -> OpenError {
    let user = fs::metadata("/proc/self").map_or(UNKNOWN_USER, |process| process.uid());
    OpenError::Permission { path, reason, user }
}

/// A database with other column families cannot be opened with ours, and RocksDB's message does not say whose it is.
pub(super) fn refuse_unknown_spaces(path: &Path, database: &Options) -> Result<(), OpenError> {
    if !path.join("CURRENT").exists() {
        return Ok(());
    }
    let found = DB::list_cf(database, path).map_err(|error| open_error(path, &error))?;
    let known = Space::ALL.map(family_name);
    if found.iter().all(|name| known.contains(&name.as_str())) {
        return Ok(());
    }
    Err(OpenError::Format {
        path: path.to_owned(),
        source: marker_alone(path),
    })
}

/// What the format marker says of a database whose families we do not know.
fn marker_alone(path: &Path) -> FormatError {
    let options = read_only_options();
    let Ok(db) = DB::open_cf_for_read_only(&options, path, [family_name(Space::Meta)], false) else {
        return FormatError::Foreign;
    };
    match db.get(meta::FORMAT) {
        Ok(Some(value)) => {
            format::version_of(&value.into()).map_or(FormatError::Foreign, |found| FormatError::Newer {
                found,
                known: format::STORE_FORMAT,
            })
        }
        _ => FormatError::Foreign,
    }
}

/// RocksDB crashes, instead of failing, when it opens a store to read it without this option that was written with it
/// (`DBImpl::Recover` of 11.8 then wants to write the manifest).
fn read_only_options() -> Options {
    let mut options = Options::default();
    options.set_track_and_verify_wals_in_manifest(true);
    options
}

/// A store that is no longer used, to read what can be read of it.
#[derive(Debug)]
pub struct Remains {
    db: DB,
}

impl Remains {
    /// Opens some of its spaces. Changes nothing.
    ///
    /// # Errors
    /// If not even these can be opened.
    pub fn open(path: &Path, spaces: &[Space]) -> Result<Self, OpenError> {
        refuse_endless_manifest(path)?;
        let mut options = read_only_options();
        // What cannot be read is left out, instead of keeping the rest from being read.
        options.set_paranoid_checks(false);
        let families = spaces.iter().map(|space| family_name(*space));
        let db = DB::open_cf_for_read_only(&options, path, families, false)
            .map_err(|error| open_error(path, &error))?;
        Ok(Self { db })
    }

    /// The value of a named record, if it is there and can be read.
    pub fn named(&self, key: &[u8]) -> Option<Bytes> {
        self.db.get(key).ok().flatten().map(Bytes::from)
    }

    /// Records of the data from a key on, as they are stored. It ends with the first error: nothing is known then of what
    /// follows in the same block.
    pub fn data_from<'a>(
        &'a self,
        first: &[u8],
    ) -> impl Iterator<Item = Result<(Bytes, Bytes), String>> + use<'a> {
        let mode = IteratorMode::From(first, Direction::Forward);
        let records = self
            .db
            .cf_handle(family_name(Space::Data))
            .map(|family| self.db.iterator_cf(family, mode));
        records
            .into_iter()
            .flatten()
            .map(|record| record.map(|(key, value)| (key.into(), value.into())))
            .map(|record| record.map_err(|error| error.to_string()))
    }
}

pub(super) fn open_error(path: &Path, error: &rocksdb::Error) -> OpenError {
    let (path, reason) = (path.to_owned(), error.to_string());
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if says(&[
        "Permission denied",
        "Read-only file system",
        "Operation not permitted",
    ]) {
        permission(path, reason)
    } else if says(&["lock hold by current process", "While lock file"]) {
        OpenError::Locked { path }
    } else if error.kind() == ErrorKind::Corruption {
        OpenError::Damaged { path, reason }
    } else {
        OpenError::Io { path, reason }
    }
}
