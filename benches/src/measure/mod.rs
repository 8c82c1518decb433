//! What a run cost: processor time, memory, and what else this machine did meanwhile.

pub(crate) mod machine;

pub(crate) mod process;

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use machine::Ticks;
use process::{own_cpu, servers_cpu};

/// All clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    at: Instant,
    servers: Duration,
    bystanders: Duration,
    own: Duration,
    machine: Ticks,
}

/// What happened between two moments, in processors: 1.0 is one of them, busy all the time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Cores {
    #[serde(skip)]
    pub(crate) elapsed: Duration,
    /// The servers that are measured.
    pub(crate) servers: f64,
    /// Servers that are not, and run all the same.
    pub(crate) bystanders: f64,
    /// This program.
    pub(crate) client: f64,
    /// Everything else.
    pub(crate) foreign: f64,
    /// What the kernel did on interrupts, packets of loopback among it.
    pub(crate) interrupts: f64,
    /// What the hypervisor gave to other machines.
    pub(crate) steal: f64,
}

impl Clocks {
    /// Reads them all; `bystanders` are the servers of another system.
    pub(crate) fn read(servers: &[u32], bystanders: &[u32]) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            servers: servers_cpu(servers)?,
            bystanders: servers_cpu(bystanders)?,
            own: own_cpu()?,
            machine: Ticks::read()?,
        })
    }

    /// From `self` to `later`.
    pub(crate) fn until(&self, later: &Self) -> Cores {
        let elapsed = later.at.saturating_duration_since(self.at);
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let share = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() / seconds;
        let servers = share(self.servers, later.servers);
        let bystanders = share(self.bystanders, later.bystanders);
        let client = share(self.own, later.own);
        let machine = self.machine.until(later.machine);
        Cores {
            elapsed,
            servers,
            bystanders,
            client,
            // Ticks are coarser than clocks, so that the difference may be a little below nothing.
            foreign: (machine.busy / seconds - servers - bystanders - client).max(0.0),
            interrupts: machine.interrupts / seconds,
            steal: machine.steal / seconds,
        }
    }
}

impl Cores {
    /// Server processor time of one operation, in microseconds, without what the servers use when idle.
    pub(crate) fn us_per_operation(&self, idle: f64, operations: u64) -> f64 {
        let busy_s = (self.servers - idle).max(0.0) * self.elapsed.as_secs_f64();
        busy_s * 1e6 / operations as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(began: Instant, at_s: u64, servers_ms: u64, own_ms: u64, busy: u64) -> Clocks {
        Clocks {
            at: began + Duration::from_secs(at_s),
            servers: Duration::from_millis(servers_ms),
            bystanders: Duration::ZERO,
            own: Duration::from_millis(own_ms),
            machine: Ticks {
                busy,
                interrupts: 0,
                steal: 0,
            },
        }
    }

    #[test]
    fn foreign_load_is_what_nobody_known_did() {
        let began = Instant::now();
        // 10 s; servers 8 s, this program 5 s, the machine 1,600 ticks of 10 ms.
        let cores = clocks(began, 0, 1000, 0, 100).until(&clocks(began, 10, 9000, 5000, 1700));
        assert!((cores.servers - 0.8).abs() < 1e-9 && (cores.client - 0.5).abs() < 1e-9);
        assert!((cores.foreign - 0.3).abs() < 1e-9, "{cores:?}");
    }

    #[test]
    fn idle_time_is_taken_off() {
        let began = Instant::now();
        let cores = clocks(began, 0, 0, 0, 0).until(&clocks(began, 10, 2000, 0, 0));
        assert!((cores.us_per_operation(0.05, 10_000) - 150.0).abs() < 1e-6);
        assert!((cores.us_per_operation(0.0, 10_000) - 200.0).abs() < 1e-6);
        assert!(
            cores.us_per_operation(1.0, 10_000).abs() < 1e-9,
            "never below nothing"
        );
    }
}
