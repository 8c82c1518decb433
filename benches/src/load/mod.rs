//! Load: `zipf` says which records are popular, `workload` what is done with them, `drive` when, `recorder`
//! how long it took; `warm` how long it is done before anything is measured.

/// Levels before the servers.
const NICE: i32 = -10;

/// Puts the calling thread before the servers, where that may be done (root, as a rule): an operation that is sent late, because all
/// processors are with the servers, says nothing about them.
pub(crate) fn go_first() {
    // Else late sends are found by the slip.
    let _ = rustix::process::setpriority_process(None, NICE);
}

pub(crate) mod drive;

pub(crate) mod recorder;

pub(crate) mod warm;

pub(crate) mod workload;

pub(crate) mod zipf;
