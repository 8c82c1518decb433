//! Processor time and memory of processes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    time::ClockId,
    unistd::Pid,
};
use serde::Serialize;

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    pub(crate) pid: u32,
    /// Resident, in bytes.
    pub(crate) rss_bytes: u64,
    /// The same with shared pages divided among those who share them, in bytes.
    pub(crate) pss_bytes: u64,
}

/// User and system time of all of them since they began, in nanoseconds rather than in ticks of `/proc`.
pub(crate) fn servers_cpu(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|&pid| server_cpu(pid)).sum()
}

fn server_cpu(pid: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(to_pid(pid));
    let time = clock.and_then(ClockId::now);
    let time =
        time.with_context(|| format!("cannot read the processor clock of server {pid}: has it ended?"))?;
    Ok(time.into())
}

/// Of this process.
pub(crate) fn own_cpu() -> Result<Duration> {
    let time = ClockId::CLOCK_PROCESS_CPUTIME_ID.now();
    Ok(time.context("cannot read the processor clock")?.into())
}

/// Of those threads of this process whose names begin so.
pub(crate) fn own_threads_cpu(name: &str) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in std::fs::read_dir("/proc/self/task").context("cannot list /proc/self/task")? {
        let thread = thread?.path();
        // A thread may end meanwhile.
        let read = |file| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
        if read("comm").starts_with(name) {
            sum += on_processor(&read("schedstat"));
        }
    }
    Ok(sum)
}

/// The first number of `/proc/.../schedstat`.
fn on_processor(schedstat: &str) -> Duration {
    let ns = schedstat.split_whitespace().next();
    Duration::from_nanos(ns.and_then(|ns| ns.parse().ok()).unwrap_or_default())
}

/// Memory of each.
pub(crate) fn memory(pids: &[u32]) -> Result<Vec<Memory>> {
    let read = |&pid: &u32| {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        rollup(pid, &text).with_context(|| format!("{path} lacks Rss or Pss"))
    };
    pids.iter().map(read).collect()
}

fn rollup(pid: u32, text: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some(Memory {
        pid,
        rss_bytes: kib("Rss:")? << 10,
        pss_bytes: kib("Pss:")? << 10,
    })
}

/// Stops processes by SIGSTOP, or lets them go on.
pub(crate) fn pause(pids: &[u32], paused: bool) -> Result<()> {
    let signal = if paused { Signal::SIGSTOP } else { Signal::SIGCONT };
    pids.iter().try_for_each(|&pid| {
        kill(to_pid(pid), signal).with_context(|| format!("cannot send {signal} to server {pid}"))
    })
}

fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_process_is_read() {
        let text = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\n\
                    Rss:              960512 kB\nPss:              950001 kB\nPss_Dirty:        900000 kB\n";
        let expected = Memory {
            pid: 7,
            rss_bytes: 960_512 << 10,
            pss_bytes: 950_001 << 10,
        };
        assert_eq!(rollup(7, text), Some(expected));
        assert_eq!(rollup(7, "Pss: 1 kB\n"), None);
        let own = memory(&[std::process::id()]).unwrap()[0];
        assert!(own.rss_bytes >= own.pss_bytes && own.pss_bytes > 0);
    }

    #[test]
    fn the_clock_of_a_process_counts_its_work() {
        let pid = std::process::id();
        let before = servers_cpu(&[pid]).unwrap();
        let mut chance = crate::chance::Chance::new(1);
        while servers_cpu(&[pid]).unwrap() < before + Duration::from_millis(5) {
            assert_ne!(chance.next(), 0);
        }
        assert!(own_cpu().unwrap() >= before + Duration::from_millis(5));
    }

    #[test]
    fn threads_are_told_apart_by_their_names() {
        assert_eq!(on_processor("1500 20 3\n"), Duration::from_nanos(1500));
        assert_eq!(on_processor(""), Duration::ZERO);
        let spin = || {
            while own_threads_cpu("test-spin:").unwrap() < Duration::from_millis(1) {}
            own_threads_cpu("test-none:").unwrap()
        };
        let thread = std::thread::Builder::new().name("test-spin:1".into());
        assert_eq!(thread.spawn(spin).unwrap().join().unwrap(), Duration::ZERO);
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        // Above the kernel's highest process id.
        let error = servers_cpu(&[1 << 23]).unwrap_err().to_string();
        assert!(error.contains("server 8388608"), "{error}");
    }
}
