//! Stores that can no longer be used are set aside, never deleted, and the node goes on with an empty one.
//!
//! That happens when the store is found damaged as it is opened, and when a file named [`REQUEST`] asks for it, as an
//! administrator does or a node that finds its disk rotting:
//!
//! ```text
//!   data ──▶ set-aside-1      data.new ──▶ data: identity, life, view and seeds out of the old store, if they can be
//!                                          read, and the suspect record: the node knows that it lacks acknowledged data
//! ```
//!
//! The new store is complete before the first rename, and an interrupted change goes on at the next start. What was set
//! aside is read again only by an administrator's word.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    Batch, Space, Store, format,
    keys::meta,
    rocks::{OpenError, Remains, RocksOptions, RocksStore},
};
use crate::durable;

/// Name of the file in the data directory that asks for the next start to set the store aside. Its text is the reason.
pub const REQUEST: &str = "set-aside.request";

/// What of a node's directory is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its own data, in `data`.
    Data,
    /// Hints, in `hints`. They carry nothing over, and their loss makes no store suspect.
    Hints,
}

/// A store that was set aside at this start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// For the log.
    pub because: String,
    /// Names of the records that the new store has from it.
    pub carried: Vec<&'static str>,
}

/// Why the store is neither open nor set aside.
#[derive(Debug, thiserror::Error)]
pub enum SetAsideError {
    /// It cannot be opened, for a reason that an empty store would not heal.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file or directory could not be moved or read.
    #[error("setting aside the store in {path}: {source}; see to the directory, then start again")]
    Move {
        /// What was to be moved or read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The new store could not be written.
    #[error("setting aside the store in {path}: writing the new one: {source}")]
    Write {
        /// The new store.
        path: PathBuf,
        /// Why not.
        source: super::StoreError,
    },
}

/// Asks the next start to set the data aside. Durable when it returns; the process then ends.
///
/// # Errors
/// If the file cannot be written.
pub fn request(data_dir: &Path, reason: &str) -> io::Result<()> {
    let path = data_dir.join(REQUEST);
    fs::write(&path, reason)?;
    File::open(&path)?.sync_all()?;
    sync_directory(data_dir)
}

/// Opens a part of a node's directory; sets aside what is there if it is damaged or a request says so.
///
/// # Errors
/// If it cannot be opened for another reason (locked, forbidden, foreign, newer, incomplete), or not be moved.
pub fn open(
    data_dir: &Path,
    part: Part,
    options: RocksOptions,
) -> Result<(RocksStore, Option<SetAside>), SetAsideError> {
    let paths = Paths::new(data_dir, part);
    paths.finish_interrupted()?;
    let because = match paths.requested()? {
        Some(reason) => format!("requested: {reason}"),
        None => match RocksStore::open(&paths.store, options) {
            Ok(store) => return Ok((store, None)),
            Err(OpenError::Damaged { reason, .. }) => reason,
            Err(error) => return Err(error.into()),
        },
    };
    let carried = match part {
        Part::Data => carry(&paths.store, options)?,
        Part::Hints => Carried::default(),
    };
    paths.prepare_new(part, &carried, options)?;
    let path = paths.swap()?;
    let store = RocksStore::open(&paths.store, options)?;
    let aside = SetAside {
        path,
        because,
        carried: carried.names,
    };
    Ok((store, Some(aside)))
}

/// Names of the stores of data that were set aside in a node's directory, oldest first.
///
/// # Errors
/// If the directory cannot be read.
pub fn names(data_dir: &Path) -> io::Result<Vec<String>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(data_dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("set-aside-"));
        numbers.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers
        .iter()
        .map(|number| format!("set-aside-{number}"))
        .collect())
}

/// The records that a new store takes over, as they are stored.
#[derive(Default)]
struct Carried {
    batch: Batch,
    names: Vec<&'static str>,
}

/// Reads what can be read of the store that is to be set aside. Incarnation and starts go together or not at all: alone
/// they contradict each other. The mark of a clean stop stays behind: the next life is another one.
fn carry(path: &Path, options: RocksOptions) -> Result<Carried, SetAsideError> {
    let mut carried = Carried::default();
    let readable = match RocksStore::open(path, options) {
        Ok(store) => Readable::Whole(Box::new(store)),
        Err(OpenError::Damaged { .. } | OpenError::Incomplete { .. }) => {
            match Remains::open(path, &[Space::Meta]) {
                Ok(remains) => Readable::Meta(remains),
                Err(_) => return Ok(carried),
            }
        }
        Err(error) => return Err(error.into()),
    };
    for group in [
        &[("identity", meta::IDENTITY)][..],
        &[("incarnation", meta::INCARNATION), ("starts", meta::STARTS)],
        &[("view", meta::VIEW)],
        &[("seeds", meta::SEEDS)],
    ] {
        let values: Option<Vec<_>> = group.iter().map(|(_, key)| readable.get(key)).collect();
        for ((name, key), value) in group.iter().zip(values.into_iter().flatten()) {
            carried.batch.put(Space::Meta, *key, value);
            carried.names.push(name);
        }
    }
    Ok(carried)
}

enum Readable {
    Whole(Box<RocksStore>),
    Meta(Remains),
}

impl Readable {
    /// The value of a named record, if it is there and whole.
    fn get(&self, key: &[u8]) -> Option<bytes::Bytes> {
        let value = match self {
            Self::Whole(store) => store.get(Space::Meta, key).ok()?,
            Self::Meta(remains) => remains.named(key),
        }?;
        format::open(u8::MAX, key, &value, String::new)
            .ok()
            .map(|_| value)
    }
}

struct Paths {
    data_dir: PathBuf,
    store: PathBuf,
    new: PathBuf,
    /// What the names of stores that were set aside begin with.
    aside: &'static str,
    request: Option<PathBuf>,
}

impl Paths {
    fn new(data_dir: &Path, part: Part) -> Self {
        let (name, aside, request) = match part {
            Part::Data => ("data", "set-aside", Some(data_dir.join(REQUEST))),
            Part::Hints => ("hints", "hints-set-aside", None),
        };
        Self {
            data_dir: data_dir.to_owned(),
            store: data_dir.join(name),
            new: data_dir.join(format!("{name}.new")),
            aside,
            request,
        }
    }

    /// The end of the process between the two renames leaves the new store complete and no other: then it is the store.
    /// Any other rest of an earlier attempt is incomplete, and moved out of the way.
    fn finish_interrupted(&self) -> Result<(), SetAsideError> {
        if !exists(&self.new)? {
            return Ok(());
        }
        if exists(&self.store)? {
            self.move_aside(&self.new).map(drop)
        } else {
            self.rename(&self.new, &self.store)?;
            self.answer_request()
        }
    }

    fn requested(&self) -> Result<Option<String>, SetAsideError> {
        let Some(path) = &self.request else {
            return Ok(None);
        };
        match fs::read_to_string(path) {
            Ok(reason) => Ok(Some(reason.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(moving(path, source)),
        }
    }

    fn prepare_new(&self, part: Part, carried: &Carried, options: RocksOptions) -> Result<(), SetAsideError> {
        let store = RocksStore::open(&self.new, options)?;
        let mut batch = carried.batch.clone();
        if part == Part::Data {
            batch.append(durable::suspect(b""));
        }
        store.write(batch, true).map_err(|source| SetAsideError::Write {
            path: self.new.clone(),
            source,
        })
    }

    fn swap(&self) -> Result<PathBuf, SetAsideError> {
        let aside = if exists(&self.store)? {
            self.move_aside(&self.store)?
        } else {
            PathBuf::new()
        };
        self.rename(&self.new, &self.store)?;
        self.answer_request()?;
        Ok(aside)
    }

    fn move_aside(&self, from: &Path) -> Result<PathBuf, SetAsideError> {
        for number in 1u32.. {
            let to = self.data_dir.join(format!("{}-{number}", self.aside));
            if !exists(&to)? {
                self.rename(from, &to)?;
                return Ok(to);
            }
        }
        Err(moving(from, io::ErrorKind::AlreadyExists.into()))
    }

    /// The request has been granted; its text stays, under a name that asks for nothing.
    fn answer_request(&self) -> Result<(), SetAsideError> {
        match &self.request {
            Some(path) if exists(path)? => self.rename(path, &path.with_extension("granted")),
            _ => Ok(()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), SetAsideError> {
        fs::rename(from, to)
            .and_then(|()| sync_directory(&self.data_dir))
            .map_err(|source| moving(from, source))
    }
}

fn exists(path: &Path) -> Result<bool, SetAsideError> {
    path.try_exists().map_err(|source| moving(path, source))
}

fn moving(path: &Path, source: io::Error) -> SetAsideError {
    SetAsideError::Move {
        path: path.to_owned(),
        source,
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
