//! What the whole machine did.

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Of `/proc/stat`, on every Linux that Rust supports.
const TICKS_PER_S: f64 = 100.0;

/// Time of all processors since the start, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticks {
    /// User, nice, system.
    pub(crate) busy: u64,
    /// Those of the network among them: no process's clock counts what the kernel does there for it.
    pub(crate) interrupts: u64,
    pub(crate) steal: u64,
}

/// The same between two moments, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spent {
    pub(crate) busy: f64,
    pub(crate) interrupts: f64,
    pub(crate) steal: f64,
}

/// What figures were measured on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
}

impl Ticks {
    pub(crate) fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        parse_stat(&text).context("/proc/stat does not begin with the time of all processors")
    }

    pub(crate) fn until(self, later: Self) -> Spent {
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / TICKS_PER_S;
        Spent {
            busy: seconds(self.busy, later.busy),
            interrupts: seconds(self.interrupts, later.interrupts),
            steal: seconds(self.steal, later.steal),
        }
    }
}

impl Machine {
    /// What cannot be found out stays empty: it describes figures and decides nothing.
    pub(crate) fn describe() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let memory_kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory_kib << 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// Processes that ran or waited for a processor, on average over the last minute.
pub(crate) fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let first = text
        .split_whitespace()
        .next()
        .and_then(|first| first.parse().ok());
    first.context("/proc/loadavg does not begin with a number")
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; guests count as user, too.
fn parse_stat(text: &str) -> Option<Ticks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks.as_slice() else {
        return None;
    };
    Some(Ticks {
        busy: user + nice + system,
        interrupts: irq + softirq,
        steal: *steal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(busy: u64, interrupts: u64, steal: u64) -> Ticks {
        Ticks {
            busy,
            interrupts,
            steal,
        }
    }

    #[test]
    fn ticks_of_all_processors_are_read() {
        let text = "cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 50 10 15 2000 250 3 3 4 45 5\n";
        assert_eq!(parse_stat(text), Some(ticks(150, 13, 8)));
        assert_eq!(parse_stat("intr 5\n"), None);
        assert!(Ticks::read().unwrap().busy > 0);
    }

    #[test]
    fn ticks_become_seconds() {
        let expected = Spent {
            busy: 2.5,
            interrupts: 0.1,
            steal: 0.05,
        };
        assert_eq!(ticks(100, 0, 5).until(ticks(350, 10, 10)), expected);
    }

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::describe();
        assert!(machine.processors > 0 && machine.memory_bytes > 0 && !machine.kernel.is_empty());
        assert!(load_average().unwrap() >= 0.0);
    }
}
