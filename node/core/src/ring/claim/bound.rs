//! What no ring can be better than, so that a search knows when to end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The least sum of `cost(member, load)` over all loads from 0 to `most` that sum to `total`.
///
/// `cost` must be convex in the load: then giving each unit to whom it costs least is optimal. The zone rule and the
/// order of the tokens are left out, so rings may have to cost more.
pub(super) fn least_cost(members: usize, total: usize, most: i64, cost: impl Fn(usize, i64) -> i64) -> i64 {
    let step = |member, load| Reverse((cost(member, load + 1) - cost(member, load), member, load));
    let mut sum: i64 = (0..members).map(|member| cost(member, 0)).sum();
    let mut steps: BinaryHeap<_> = (0..members).map(|member| step(member, 0)).collect();
    for _ in 0..total {
        let Some(Reverse((growth, member, load))) = steps.pop() else {
            break;
        };
        sum += growth;
        if load + 1 < most {
            steps.push(step(member, load + 1));
        }
    }
    sum
}
