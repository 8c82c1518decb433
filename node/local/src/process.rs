//! One `dynamo-node` as a child process.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::{error::Error, ports::Addresses, settings::Place};

/// A log larger than this is set aside at the next start, as `node.log.1`.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// For the kernel to take a killed process away.
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// Lines of a log that errors show.
const TAIL_LINES: usize = 15;
/// Bytes that hold them.
const TAIL_BYTES: u64 = 16 << 10;

/// What a node is started with.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) dir: &'a Path,
    pub(crate) place: &'a Place,
    pub(crate) addresses: Addresses,
    pub(crate) seeds: &'a [String],
    pub(crate) options: &'a [String],
}

/// A running child; dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// The process id it had from the start, also after it has ended.
    pub(crate) id: u32,
    pub(crate) paused: bool,
}

impl Process {
    pub(crate) fn start(member: &str, start: &Start<'_>) -> Result<Self, Error> {
        let dir = start.dir;
        std::fs::create_dir_all(dir).map_err(Error::file("make the directory", dir))?;
        let log = open_log(&log_path(dir))?;
        let copy = log.try_clone().map_err(Error::file("open", log_path(dir)))?;
        let Addresses {
            client,
            peer,
            admin,
            http,
        } = start.addresses;
        let mut words = start
            .place
            .enter
            .iter()
            .map(OsStr::new)
            .chain([start.binary.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        // A variable of the caller's, meant for another node, must not get in.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DYNAMO_") {
                command.env_remove(name);
            }
        }
        command
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args([
                "--log-format",
                "text",
                "--advertise-host",
                &start.place.ip.to_string(),
            ])
            .args(["--client-listen", &client.to_string()])
            .args(["--peer-listen", &peer.to_string()])
            .args(["--admin-listen", &admin.to_string()])
            .args(["--http-listen", &http.to_string()])
            .args(start.seeds.iter().flat_map(|seed| ["--seed", seed]))
            .args(start.options)
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(log)
            // Away from the terminal's Ctrl-C: we tell the nodes ourselves.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(Error::process("start", member))?;
        let id = child.id().unwrap_or_default();
        Ok(Self {
            child,
            id,
            paused: false,
        })
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// A process that has ended takes no signal.
    pub(crate) fn signal(&mut self, signal: Signal) -> std::io::Result<()> {
        // An id that was waited for may be another process' by now; `id` is None then.
        let pid = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        match pid {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Ok(()),
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill().await
    }

    /// SIGKILL, and waits for a moment, without a runtime.
    pub(crate) fn kill_now(&mut self) {
        let _ = self.child.start_kill();
        let deadline = Instant::now() + KILL_LIMIT;
        while self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it has ended; None if it has not within the limit.
    pub(crate) async fn wait(&mut self, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
        tokio::time::timeout(limit, self.child.wait())
            .await
            .ok()
            .transpose()
    }
}

/// The log of the node in this directory.
pub(crate) fn log_path(dir: &Path) -> PathBuf {
    dir.join("node.log")
}

/// The last lines of a log.
pub(crate) fn log_tail(path: &Path) -> String {
    let text = read_tail(path).unwrap_or_else(|error| format!("(cannot be read: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn read_tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

fn open_log(path: &Path) -> Result<File, Error> {
    if std::fs::metadata(path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.1")).map_err(Error::file("set aside", path))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::file("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = log_path(dir.path());
        assert!(log_tail(&path).contains("cannot be read"));
        let lines: Vec<String> = (0..1000).map(|n| format!("line {n}")).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let tail = log_tail(&path);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(
            tail.starts_with("  line 985\n") && tail.ends_with("  line 999"),
            "{tail}"
        );
    }
}
