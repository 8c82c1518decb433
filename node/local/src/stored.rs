//! What of a ring outlives its processes: the directory with its description, locked while it runs.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::Error,
    layout::{Layout, Wanted},
};

/// Describes the ring.
const FILE: &str = "ring.json";
/// Its format.
const FORMAT: u32 = 1;

/// `ring.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    format: u32,
    pub(crate) cluster_id: uuid::Uuid,
    pub(crate) layout: Layout,
    /// None until a block of ports was found.
    pub(crate) port_base: Option<u16>,
}

/// A directory that this process alone uses.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    lock: File,
}

/// A child process that has been forked and not begun yet holds every open file; closing this one would not unlock it.
impl Drop for Directory {
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

impl Directory {
    /// Makes and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::file("make the directory", path))?;
        // Nodes get absolute paths, and so do people.
        let path = path.canonicalize().map_err(Error::file("resolve", path))?;
        let lock = path.join("ring.lock");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&lock)
            .map_err(Error::file("open", &lock))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, lock: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Running { dir: path }),
            Err(TryLockError::Error(source)) => Err(Error::File {
                what: "lock",
                path: lock,
                source,
            }),
        }
    }

    /// Whether a ring is stored there.
    pub(crate) fn has_ring(path: &Path) -> bool {
        path.join(FILE).exists()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where one node keeps its data and its log.
    pub(crate) fn of_member(&self, member: &str) -> PathBuf {
        self.path.join(member)
    }

    /// The stored ring, or a new one of the shape that is wanted; `true` if it is new.
    pub(crate) fn load_or_create(&self, wanted: Wanted) -> Result<(Description, bool), Error> {
        let Some(stored) = self.load()? else {
            self.check_empty()?;
            let layout = wanted.to_layout()?;
            let cluster_id = uuid::Uuid::new_v4();
            return Ok((
                Description {
                    format: FORMAT,
                    cluster_id,
                    layout,
                    port_base: None,
                },
                true,
            ));
        };
        let differences = wanted.differences(stored.layout);
        if !differences.is_empty() {
            return Err(Error::OtherLayout {
                dir: self.path.clone(),
                stored: stored.layout.to_string(),
                differences: differences.join(", "),
            });
        }
        Ok((stored, false))
    }

    /// Replaces the description as a whole.
    pub(crate) fn save(&self, description: &Description) -> Result<(), Error> {
        let path = self.file();
        let partial = path.with_extension("json.partial");
        let text =
            serde_json::to_string_pretty(description).map_err(|error| self.damaged(error.to_string()))?;
        fs::write(&partial, text + "\n").map_err(Error::file("write", &partial))?;
        fs::rename(&partial, &path).map_err(Error::file("write", &path))
    }

    fn load(&self) -> Result<Option<Description>, Error> {
        let path = self.file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        let description: Description =
            serde_json::from_str(&text).map_err(|error| self.damaged(format!("ring.json: {error}")))?;
        if description.format != FORMAT {
            let reason = format!(
                "ring.json has format {}, this release knows {FORMAT}",
                description.format
            );
            return Err(self.damaged(reason));
        }
        description.layout.check()?;
        Ok(Some(description))
    }

    /// A directory with somebody's files in it is no place for a ring, and nothing to tell people to delete.
    fn check_empty(&self) -> Result<(), Error> {
        let entries = fs::read_dir(&self.path).map_err(Error::file("list", &self.path))?;
        for entry in entries {
            let name = entry.map_err(Error::file("list", &self.path))?.file_name();
            if name != "ring.lock" && name != "ring.json.partial" {
                return Err(Error::File {
                    what: "make a ring in",
                    path: self.path.clone(),
                    source: std::io::Error::other(format!(
                        "it is not empty (it has {}) and no ring; pass a new directory",
                        name.display()
                    )),
                });
            }
        }
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.path.join(FILE)
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Stored {
            dir: self.path.clone(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u32) -> Wanted {
        Wanted {
            nodes: Some(count),
            ..Wanted::default()
        }
    }

    #[test]
    fn a_second_start_finds_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(&dir.path().join("new/ring")).unwrap();
        let (mut first, new) = directory.load_or_create(nodes(4)).unwrap();
        assert!(new);
        first.port_base = Some(7700);
        directory.save(&first).unwrap();
        let again = |wanted| directory.load_or_create(wanted);
        assert_eq!(again(Wanted::default()).unwrap(), (first.clone(), false));
        assert_eq!(again(nodes(4)).unwrap(), (first, false));
        let error = again(nodes(5)).unwrap_err().to_string();
        assert!(error.contains("holds a ring of 4 nodes in 3 zones"), "{error}");
        assert!(error.contains("NODES=5 (stored: 4)"), "{error}");
        assert!(
            error.contains(&format!("rm -r {}", directory.path().display())),
            "{error}"
        );
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Directory::open(dir.path()).unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(Error::Running { .. })));
        // As in a child that has been forked and not begun yet.
        let shared = first.lock.try_clone().unwrap();
        drop(first);
        assert!(Directory::open(dir.path()).is_ok());
        drop(shared);
    }

    #[test]
    fn a_foreign_or_damaged_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "precious").unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        let error = directory
            .load_or_create(Wanted::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("thesis.txt"), "{error}");
        for text in ["", "{", r#"{"format":1}"#] {
            fs::write(dir.path().join("ring.json"), text).unwrap();
            let error = directory.load_or_create(Wanted::default()).unwrap_err();
            assert!(matches!(error, Error::Stored { .. }), "{error}");
        }
    }
}
