//! I14: a seed is a reproduction: two runs mix the same events into their chains of hashes, whether or not a trace is
//! written, and so does a debug build. Paper: none (§6 tells what could only be found in production).

use crate::world::Report;

/// Compares two runs of one seed.
///
/// # Errors
/// What differs.
pub fn check(first: &Report, second: &Report) -> Result<(), String> {
    if first.chain != second.chain {
        return Err(format!(
            "chains {:016x} and {:016x} differ, after {} and {} events",
            first.chain, second.chain, first.events, second.events
        ));
    }
    // Equal chains with unequal ends would mean that something is not mixed in.
    if first != second {
        return Err(format!("equal chains, other results: {first:?} and {second:?}"));
    }
    Ok(())
}
