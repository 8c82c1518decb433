//! Server processes. None outlives the one that started it, not even when that is killed with SIGKILL.
//!
//! Beside each a small shell waits on a pipe whose other end only we hold. The kernel closes the pipe however we end; the shell
//! then kills the server. (The kernel's own way, a parent-death signal, would need unsafe code between fork and exec.)

use std::{
    fs::{self, File},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child as Process, ChildStdin, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::BoxFuture;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::sleep;

use crate::system::{Servers, Target};

/// How often a condition is looked at. Each look may be a request, and start-up is not what is measured.
const LOOK: Duration = Duration::from_millis(100);
/// A server that was asked to stop and has not is killed: its files are of no more use.
const STOP: Duration = Duration::from_secs(20);
/// Lines of a log that are worth showing when its server has failed.
const LOG_LINES: usize = 15;

/// Kills at once, since the data of a measurement need not survive it.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
read -r pid || exit 0
read -r gone && exit 0
kill -KILL "$pid" 2>/dev/null
"#;

/// A server process. Dropped, it is killed.
pub(crate) struct Child {
    name: String,
    /// How it was started, and can be again.
    command: Command,
    process: Process,
    log: PathBuf,
    watchdog: Watchdog,
}

/// The small shell beside a server.
struct Watchdog {
    shell: Process,
    /// None only while dropping.
    pipe: Option<ChildStdin>,
}

impl Child {
    /// Starts a program whose output goes to the file `log`.
    pub(crate) fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("create the log {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share a log")?)
            .stderr(file)
            .process_group(0);
        let (process, watchdog) = spawn(name, &mut command)?;
        Ok(Self {
            name: name.to_owned(),
            command,
            process,
            log: log.to_owned(),
            watchdog,
        })
    }

    /// Kills it, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process
            .kill()
            .and_then(|()| self.process.wait())
            .with_context(|| format!("kill {}", self.name))?;
        self.watchdog.spare();
        Ok(())
    }

    /// Starts it again after [`Child::kill`], as it was started before; its log goes on.
    pub(crate) fn launch(&mut self) -> Result<()> {
        (self.process, self.watchdog) = spawn(&self.name, &mut self.command)?;
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the server is ready, but no longer than it lives.
    pub(crate) async fn until<F>(&mut self, limit: Duration, ready: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = bool>,
    {
        let began = Instant::now();
        while !ready().await {
            if let Some(status) = self.process.try_wait().context("look after a server")? {
                bail!("{} ended with {status}{}", self.name, self.last_words());
            }
            ensure!(
                began.elapsed() < limit,
                "{} was not ready after {} s{}",
                self.name,
                limit.as_secs(),
                self.last_words()
            );
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Asks it to end, and makes it end.
    async fn stop(mut self) -> Result<()> {
        // Fails only if it has ended already.
        let _ = kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM);
        let began = Instant::now();
        while began.elapsed() < STOP && self.process.try_wait().context("wait for a server")?.is_none() {
            sleep(LOOK).await;
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
        format!("; the end of its log {}:\n  {last}", self.log.display())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.watchdog.spare();
    }
}

/// A server, and what ends it if we cannot.
fn spawn(name: &str, command: &mut Command) -> Result<(Process, Watchdog)> {
    let mut watchdog = Watchdog::start()?;
    let process = command
        .spawn()
        .with_context(|| format!("start {name}: {}", command.get_program().display()))?;
    watchdog.tell(&process.id().to_string())?;
    Ok((process, watchdog))
}

impl Watchdog {
    fn start() -> Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "kvbench-watchdog"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Away from the terminal's Ctrl-C, as its server.
            .process_group(0)
            .spawn()
            .context("start /bin/sh, which ends servers if we cannot")?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        match &mut self.pipe {
            Some(pipe) => writeln!(pipe, "{line}").context("talk to the watchdog of a server"),
            None => Ok(()),
        }
    }

    /// Its server has gone, and the id may now be given to another process, which it must spare.
    fn spare(&mut self) {
        let _ = self.tell("gone");
        self.pipe = None;
        let _ = self.shell.wait();
    }
}

/// Without its pipe it kills a server that it was not told to spare, if any.
impl Drop for Watchdog {
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.shell.wait();
    }
}

/// Makes a client of running servers.
pub(crate) type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Target>>> + Send>;

/// Makes a client of one of them, which asks no other.
pub(crate) type ConnectTo = Box<dyn Fn(usize) -> BoxFuture<'static, Result<Arc<dyn Target>>> + Send>;

/// Servers that are processes of ours.
pub(crate) struct Running {
    pub(crate) children: Vec<Child>,
    pub(crate) connect: Connect,
    /// None where no bar asks for it.
    pub(crate) connect_to: Option<ConnectTo>,
    pub(crate) guarantee: String,
}

impl Servers for Running {
    fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::pid).collect()
    }

    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Target>>> {
        (self.connect)()
    }

    fn connect_to(&self, number: usize) -> BoxFuture<'_, Result<Arc<dyn Target>>> {
        match &self.connect_to {
            Some(connect) => connect(number),
            None => Box::pin(async { bail!("no bar asks a single one of these servers") }),
        }
    }

    fn kill(&mut self, number: usize) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.child(number)?.kill() })
    }

    fn launch(&mut self, number: usize) -> Result<()> {
        self.child(number)?.launch()
    }

    fn guarantee(&self) -> &str {
        &self.guarantee
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            futures::future::try_join_all(self.children.into_iter().map(Child::stop)).await?;
            Ok(())
        })
    }
}

impl Running {
    fn child(&mut self, number: usize) -> Result<&mut Child> {
        let child = self.children.get_mut(number);
        child.with_context(|| format!("there is no server {}", number + 1))
    }
}

/// The address of the i-th server, from 0: each has one of its own, as the protocols of some peers want the same port everywhere.
pub(crate) fn host(i: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + u32::from(i))
}

/// Ports that are free on the addresses of all servers. Somebody may take one before its server does, which then says so.
pub(crate) fn free_ports<const PORTS: usize>(nodes: u16) -> Result<[u16; PORTS]> {
    let mut found = [0; PORTS];
    // Held until all are found, so that they differ.
    let mut held = Vec::new();
    for port in &mut found {
        let (free, listeners) = (0..100).find_map(|_| same_port(nodes).ok()).context(
            "find a port that is free on 127.0.0.1 and the addresses after it; on macOS these must be added first",
        )?;
        *port = free;
        held.extend(listeners);
    }
    Ok(found)
}

fn same_port(nodes: u16) -> std::io::Result<(u16, Vec<TcpListener>)> {
    let first = TcpListener::bind((IpAddr::V4(host(0)), 0))?;
    let port = first.local_addr()?.port();
    let others = (1..nodes).map(|i| TcpListener::bind((IpAddr::V4(host(i)), port)));
    let mut listeners = others.collect::<std::io::Result<Vec<_>>>()?;
    listeners.push(first);
    Ok((port, listeners))
}

/// Makes sure that a peer is installed, and returns the folder where it is.
pub(crate) async fn install(peer: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/install");
    let output = tokio::process::Command::new(&script)
        .arg(peer)
        .stderr(Stdio::inherit())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| {
            format!(
                "run {}; kvbench finds its peers from the checkout it was built in",
                script.display()
            )
        })?;
    ensure!(
        output.status.success(),
        "could not install {peer}, see the messages above; to try again: {} {peer}",
        script.display()
    );
    let folder = String::from_utf8(output.stdout).context("read the folder that the installation printed")?;
    Ok(PathBuf::from(folder.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Child {
        let mut command = Command::new("sleep");
        command.arg("600");
        Child::spawn("sleep", command, &folder.join("log")).unwrap()
    }

    /// Gone, or dead and not yet waited for by whoever inherited it.
    fn ended(pid: u32) -> bool {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat
                .rsplit_once(')')
                .is_some_and(|(_, rest)| rest.starts_with(" Z")),
            Err(_) => true,
        }
    }

    #[test]
    fn a_server_that_is_dropped_ends_and_so_does_its_watchdog() {
        let folder = tempfile::tempdir().unwrap();
        let child = sleeper(folder.path());
        let pids = [child.pid(), child.watchdog.shell.id()];
        assert!(!pids.into_iter().any(ended));
        drop(child);
        assert!(pids.into_iter().all(ended));
    }

    #[test]
    fn without_us_the_watchdog_kills() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = sleeper(folder.path());
        // What the kernel does when we are killed.
        child.watchdog.pipe = None;
        assert!(!child.process.wait().unwrap().success());
    }

    #[test]
    fn a_server_that_was_killed_starts_again_and_goes_on_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo began; exec sleep 600"]);
        let log = folder.path().join("log");
        let mut child = Child::spawn("shell", command, &log).unwrap();
        let began = |times: usize| {
            let since = Instant::now();
            while fs::read_to_string(&log).unwrap().lines().count() < times {
                assert!(since.elapsed() < Duration::from_mins(1), "it did not begin");
                std::thread::yield_now();
            }
        };
        began(1);
        let first = [child.pid(), child.watchdog.shell.id()];
        child.kill().unwrap();
        assert!(first.into_iter().all(ended));
        child.launch().unwrap();
        began(2);
        let second = child.pid();
        assert!(!ended(second));
        drop(child);
        assert!(ended(second));
    }

    #[tokio::test]
    async fn a_server_that_ends_instead_of_serving_is_told_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such port; exit 3"]);
        let mut child = Child::spawn("shell", command, &folder.path().join("log")).unwrap();
        let error = child
            .until(Duration::from_mins(1), || async { false })
            .await
            .unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("status: 3") && error.contains("no such port"),
            "{error}"
        );
    }

    #[test]
    fn ports_are_free_on_every_address_and_differ() {
        let [a, b] = free_ports::<2>(3).unwrap();
        assert_ne!(a, b);
        let all = (0..3).flat_map(|i| [a, b].map(|port| (host(i), port)));
        let listeners: std::io::Result<Vec<_>> = all.map(TcpListener::bind).collect();
        assert!(listeners.is_ok(), "{listeners:?}");
    }
}
