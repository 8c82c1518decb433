//! How many client requests a node serves at a time.
//!
//! With more than it can serve in time, a node does nothing but work that nobody waits for any more. By Little's law,
//! requests in flight are throughput times latency: where the mean latency is above what a client should wait, so many
//! are let in as the throughput of that moment carries in that time; while it is below, and the bound is met, the bound
//! grows slowly: what it does to the latency shows only when the queue has passed. What is refused costs next to nothing, and its client goes elsewhere or waits. Paper: §2.2, §6.5
//! (background work yields likewise: [`admission`](crate::admission)).

/// Never fewer at a time: a slow disk commits them together.
const LEAST: u64 = 64;
/// The bound is looked at once in so long.
const SLOT_MS: u64 = 100;

/// The gate of the client requests of one node. Times are milliseconds of one monotonic clock.
#[derive(Debug)]
pub struct Overload {
    most: u64,
    patience_ms: u64,
    bound: u64,
    in_flight: u64,
    slot: Slot,
}

/// What ended since the bound was looked at last.
#[derive(Debug, Default)]
struct Slot {
    began_ms: u64,
    ended: u64,
    took_ms: u64,
    in_flight_max: u64,
}

impl Overload {
    /// At most `most` at a time, and fewer while they take longer than `patience_ms` in the mean.
    pub fn new(most: u64, patience_ms: u64, now_ms: u64) -> Self {
        Self {
            most,
            patience_ms,
            bound: most,
            in_flight: 0,
            slot: Slot {
                began_ms: now_ms,
                ..Slot::default()
            },
        }
    }

    /// Takes a place; false if all are taken.
    pub fn begin(&mut self) -> bool {
        let room = self.in_flight < self.bound;
        self.in_flight += u64::from(room);
        self.slot.in_flight_max = self.slot.in_flight_max.max(self.in_flight);
        room
    }

    /// Gives a place back. `took_ms` is left out for what takes as long as its client likes.
    pub fn end(&mut self, took_ms: Option<u64>, now_ms: u64) {
        debug_assert!(self.in_flight > 0, "what ends has begun");
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(took_ms) = took_ms {
            self.slot.ended += 1;
            self.slot.took_ms += took_ms;
        }
        let elapsed_ms = now_ms.saturating_sub(self.slot.began_ms);
        if elapsed_ms >= SLOT_MS && self.slot.ended > 0 {
            self.adjust(elapsed_ms);
            self.slot = Slot {
                began_ms: now_ms,
                in_flight_max: self.in_flight,
                ..Slot::default()
            };
        }
    }

    fn adjust(&mut self, elapsed_ms: u64) {
        let least = LEAST.min(self.most);
        if self.slot.took_ms > self.slot.ended * self.patience_ms {
            let carried = self.slot.ended * self.patience_ms / elapsed_ms;
            self.bound = carried.clamp(least, self.bound);
        } else if self.slot.in_flight_max >= self.bound {
            self.bound = (self.bound + self.bound / 32 + 1).min(self.most);
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// So many may be at present.
    pub fn bound(&self) -> u64 {
        self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that serves `per_s` requests a second in turn, at which `offered` a second arrive; the time that the served
    /// ones of the last second took at most, and how many they were.
    fn serve(overload: &mut Overload, (from_s, to_s): (u64, u64), offered: u64, per_s: u64) -> (u64, u64) {
        let mut queue = std::collections::VecDeque::new();
        let (mut longest_ms, mut served) = (0, 0);
        for now_ms in from_s * 1000..to_s * 1000 {
            let due = |rate: u64| (now_ms + 1) * rate / 1000 - now_ms * rate / 1000;
            for _ in 0..due(offered) {
                if overload.begin() {
                    queue.push_back(now_ms);
                }
            }
            for _ in 0..due(per_s) {
                let Some(came_ms) = queue.pop_front() else { break };
                overload.end(Some(now_ms - came_ms), now_ms);
                if now_ms >= (to_s - 1) * 1000 {
                    longest_ms = longest_ms.max(now_ms - came_ms);
                    served += 1;
                }
            }
        }
        for _ in queue {
            overload.end(None, to_s * 1000);
        }
        (longest_ms, served)
    }

    #[test]
    fn what_is_served_under_overload_is_served_in_time() {
        let mut overload = Overload::new(1024, 500, 0);
        // Without the bound, the queue of 1024 would take two seconds.
        let (longest_ms, served) = serve(&mut overload, (0, 60), 1500, 500);
        assert!(longest_ms <= 700 && served >= 499, "{longest_ms} ms, {served}");
        // Less than it can serve: nobody is refused, and the bound does not matter.
        let (longest_ms, served) = serve(&mut overload, (60, 70), 400, 500);
        assert!(longest_ms <= 2 && served == 400, "{longest_ms} ms, {served}");
        assert_eq!(overload.in_flight(), 0);
    }

    #[test]
    fn a_faster_node_gets_more_room_again() {
        let mut overload = Overload::new(1024, 500, 0);
        serve(&mut overload, (0, 30), 1000, 200);
        let slow = overload.bound();
        assert!((64..=150).contains(&slow), "{slow}");
        let (_, served) = serve(&mut overload, (30, 60), 10_000, 2000);
        assert!(
            served >= 1990 && overload.bound() > 800,
            "{served} {}",
            overload.bound()
        );
    }

    #[test]
    fn few_slow_requests_are_never_refused() {
        let mut overload = Overload::new(1024, 500, 0);
        // A disk that takes two seconds, and 60 clients that wait for it.
        for now_ms in (0..60_000).step_by(2000) {
            assert!((0..60).all(|_| overload.begin()));
            (0..60).for_each(|_| overload.end(Some(2000), now_ms + 2000));
        }
        assert_eq!(overload.bound(), LEAST);
        let mut small = Overload::new(2, 500, 0);
        assert_eq!((small.begin(), small.begin(), small.begin()), (true, true, false));
        small.end(Some(9000), 9000);
        assert_eq!(small.bound(), 2);
    }

    #[test]
    fn what_its_client_draws_out_says_nothing() {
        let mut overload = Overload::new(100, 500, 0);
        for now_ms in (0..60_000).step_by(1000) {
            assert!(overload.begin());
            overload.end(None, now_ms);
        }
        assert_eq!(overload.bound(), 100);
    }
}
