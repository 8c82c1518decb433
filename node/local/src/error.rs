//! Why a ring cannot be started or changed.

use std::{io, path::PathBuf};

use crate::{layout::LayoutError, ports::PortError};

/// What went wrong, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A shape that cannot be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Ports that cannot be had.
    #[error(transparent)]
    Ports(#[from] PortError),
    /// A file that cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file that describes the stored ring is damaged or of another release.
    #[error(
        "cannot use the ring stored in {dir}: {reason}; delete it with `rm -r {dir}`, or pass another directory (DATA=...)",
        dir = dir.display()
    )]
    Stored {
        /// The ring's directory.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The stored ring has another shape than what was asked for.
    #[error(
        "{dir} holds a ring of {stored}, which does not change, but you asked for {differences}; \
         leave that out, or pass another directory (DATA=...), or delete this one with `rm -r {dir}`",
        dir = dir.display()
    )]
    OtherLayout {
        /// The ring's directory.
        dir: PathBuf,
        /// Its shape.
        stored: String,
        /// What was asked for otherwise.
        differences: String,
    },
    /// Another process runs this ring.
    #[error(
        "a ring runs on {dir} already; use it (at its prompt, `help` shows what it can do), stop it, or pass another \
         directory (DATA=...)",
        dir = dir.display()
    )]
    Running {
        /// The ring's directory.
        dir: PathBuf,
    },
    /// A program that is not built.
    #[error("cannot find the program {name} in {places}; build it with `cargo build --release --workspace`")]
    NoProgram {
        /// Its name.
        name: String,
        /// Where it was looked for.
        places: String,
    },
    /// A process that cannot be started, signalled or waited for.
    #[error("cannot {what} {who}: {source}")]
    Process {
        /// What was attempted.
        what: &'static str,
        /// Which process.
        who: String,
        /// Why not.
        source: io::Error,
    },
    /// A node that ended by itself.
    #[error("{member} ended by itself with {status}; its log {} ends:\n{tail}", log.display())]
    Ended {
        /// Which node.
        member: String,
        /// How.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A node that did not become valid in time.
    #[error("{member} is not ready after {waited_s} s: {reason}; its log {} ends:\n{tail}", log.display())]
    NotReady {
        /// Which node.
        member: String,
        /// How long it was waited for.
        waited_s: u64,
        /// What it said last.
        reason: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A node that did not stop as it should.
    #[error("{member} did not stop cleanly: {how}; see its log {}", log.display())]
    Unclean {
        /// Which node.
        member: String,
        /// What happened instead.
        how: String,
        /// Its log.
        log: PathBuf,
    },
    /// A name that is neither a node nor a zone.
    #[error("there is no node or zone '{name}'; there are {known}, and 'all'")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What would work.
        known: String,
    },
    /// An administrator's request that was refused.
    #[error("{member} refused {what}: {reason}")]
    Refused {
        /// Which node.
        member: String,
        /// Which request.
        what: &'static str,
        /// What it said.
        reason: String,
    },
}

impl Error {
    /// For `map_err` at file operations.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// For `map_err` at process operations.
    pub(crate) fn process(what: &'static str, who: &str) -> impl FnOnce(io::Error) -> Self {
        let who = who.to_owned();
        move |source| Self::Process { what, who, source }
    }
}
