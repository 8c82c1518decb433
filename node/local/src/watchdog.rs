//! Nodes never outlive the process that started them, not even when that is killed with SIGKILL.
//!
//! A small shell waits on a pipe whose other end only we hold, and knows the nodes' process ids. The kernel closes the
//! pipe however we end; the shell then stops what is left. (The kernel's own way, a parent-death signal, would need
//! unsafe code between fork and exec.)

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
};

use crate::error::Error;

/// Asks the nodes to stop, which keeps the durability `interval` whole, and kills what has not gone after 5 s.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=
while read -r word pid; do
    case $word in
    add) pids="$pids $pid" ;;
    remove)
        rest=
        for p in $pids; do [ "$p" = "$pid" ] || rest="$rest $p"; done
        pids=$rest
        ;;
    esac
done
[ -n "$pids" ] || exit 0
kill -TERM $pids 2>/dev/null
kill -CONT $pids 2>/dev/null
for _ in 1 2 3 4 5; do
    alive=
    for p in $pids; do kill -0 "$p" 2>/dev/null && alive="$alive $p"; done
    pids=$alive
    [ -n "$pids" ] || exit 0
    sleep 1
done
kill -KILL $pids 2>/dev/null
"#;

/// Ends when it is dropped; by then every node must have been removed, or it is stopped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shell: Child,
    /// None only while dropping.
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    pub(crate) fn start() -> Result<Self, Error> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "dynamo-local-watchdog"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Away from the terminal's Ctrl-C.
            .process_group(0)
            .spawn()
            .map_err(Error::process("start", "/bin/sh"))?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    pub(crate) fn add(&mut self, pid: u32) -> Result<(), Error> {
        self.tell("add", pid)
            .map_err(Error::process("talk to", "the watchdog"))
    }

    /// The process has been waited for, so that its id may be given to another one.
    pub(crate) fn remove(&mut self, pid: u32) {
        // A watchdog that has gone kills nobody.
        let _ = self.tell("remove", pid);
    }

    fn tell(&mut self, word: &str, pid: u32) -> std::io::Result<()> {
        match &mut self.pipe {
            Some(pipe) => writeln!(pipe, "{word} {pid}"),
            None => Ok(()),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn what_was_removed_lives_and_the_rest_ends() {
        let (mut kept, mut stopped) = (sleeper(), sleeper());
        let mut watchdog = Watchdog::start().unwrap();
        for child in [&kept, &stopped] {
            watchdog.add(child.id()).unwrap();
        }
        watchdog.remove(kept.id());
        watchdog.pipe = None;
        assert!(!stopped.wait().unwrap().success());
        drop(watchdog);
        assert!(kept.try_wait().unwrap().is_none());
        kept.kill().unwrap();
        kept.wait().unwrap();
    }
}
