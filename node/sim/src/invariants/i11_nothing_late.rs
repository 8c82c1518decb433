//! I11: nothing is answered after its deadline. Paper: §2.2 (the promise is about time); a process that stood still may
//! be late by that.

use crate::messages::NodeIx;
use crate::nemesis::Class;
use crate::shared::Shared;

/// Timers and arrivals of one instant may come in any order.
const SLACK_MS: u64 = 2;

/// An answer is on its way so long after the deadline.
pub fn check(sh: &mut Shared, node: NodeIx, late_ms: u64) {
    if late_ms > SLACK_MS && !sh.knobs.classes.contains(&Class::Pause) {
        sh.violated("I11", format!("n{node} answered {late_ms} ms after the deadline"));
    }
}
