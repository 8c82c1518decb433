//! When a system is warm: once the cost of an operation has stopped falling, whoever it is that learns (a compiler, a cache).

use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use super::{
    drive::{Pace, Until, drive},
    workload::Load,
};
use crate::{measure::Clocks, system::Target};

/// Operations whose cost is looked at together.
const WINDOW: u64 = 20_000;
/// At least so many of them: 200,000 operations.
const WINDOWS_MIN: usize = 10;
/// At most: 1,000,000 operations.
const WINDOWS_MAX: usize = 50;
/// The last so many must not have made it cheaper than it was before, ...
const WINDOWS_LAST: usize = 5;
/// ... but for this share.
const GAIN_MAX: f64 = 0.05;

/// How a system was warmed up.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WarmUp {
    pub(crate) operations: u64,
    /// Server processor time of an operation, in microseconds, of 20,000 after 20,000 operations.
    pub(crate) us_per_operation: Vec<f64>,
    /// Whether it had stopped falling; false, too, if the number of operations was given.
    pub(crate) settled: bool,
    pub(crate) failed: u64,
}

/// Whether more operations would hardly make it cheaper. The best of some windows is looked at, since all that disturbs a window makes
/// it dearer; and several, since what becomes cheaper slowly does so by little from each window to the next.
fn is_settled(us_per_operation: &[f64]) -> bool {
    if us_per_operation.len() < WINDOWS_MIN {
        return false;
    }
    let (before, last) = us_per_operation.split_at(us_per_operation.len() - WINDOWS_LAST);
    let best = |windows: &[f64]| windows.iter().copied().fold(f64::INFINITY, f64::min);
    best(last) >= best(before) * (1.0 - GAIN_MAX)
}

/// Loads a system until it is warm, or with exactly so many operations. `pids` are its servers.
pub(crate) async fn warm_up(
    target: &Arc<dyn Target>,
    load: &Arc<Load>,
    tasks: u32,
    pids: &[u32],
    exactly: Option<u64>,
) -> Result<WarmUp> {
    let mut warm = WarmUp {
        operations: 0,
        us_per_operation: Vec::new(),
        settled: false,
        failed: 0,
    };
    let most = exactly.unwrap_or(WINDOW * WINDOWS_MAX as u64);
    while warm.operations < most && !warm.settled {
        let before = Clocks::read(pids, &[])?;
        let window = WINDOW.min(most - warm.operations);
        let recorder = drive(target, load, Pace::Closed(tasks), Until::Operations(window)).await?;
        let cores = before.until(&Clocks::read(pids, &[])?);
        warm.operations += window;
        warm.failed += recorder.failed();
        warm.us_per_operation
            .push(cores.us_per_operation(0.0, recorder.done().max(1)));
        warm.settled = exactly.is_none() && is_settled(&warm.us_per_operation);
    }
    Ok(warm)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many windows a series is settled.
    fn settled_after(cost: impl Fn(usize) -> f64) -> Option<usize> {
        let costs: Vec<f64> = (0..WINDOWS_MAX).map(cost).collect();
        (1..=WINDOWS_MAX).find(|&windows| is_settled(&costs[..windows]))
    }

    #[test]
    fn what_costs_the_same_is_warm_after_the_least() {
        assert_eq!(settled_after(|_| 100.0), Some(WINDOWS_MIN));
        let noisy = |window: usize| 100.0 + [0.0, 30.0, 7.0][window % 3];
        assert_eq!(settled_after(noisy), Some(WINDOWS_MIN));
    }

    #[test]
    fn what_still_becomes_cheaper_is_not_warm_however_slowly() {
        // By 3 % a window until the 30th: no two neighbours are 5 % apart.
        let falling = |window: usize| 400.0 * 0.97_f64.powf(window.min(30) as f64);
        let windows = settled_after(falling).unwrap();
        assert!((30..=36).contains(&windows), "{windows}");
        assert_eq!(settled_after(|window| 400.0 * 0.97_f64.powf(window as f64)), None);
    }

    #[test]
    fn one_that_was_disturbed_is_not_taken_for_a_gain() {
        let disturbed = |window: usize| if window == 8 { 500.0 } else { 100.0 };
        assert_eq!(settled_after(disturbed), Some(WINDOWS_MIN));
    }
}
