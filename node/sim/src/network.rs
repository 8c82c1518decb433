//! The network between nodes, and between clients and nodes: loss, repetition, delay, reordering, cuts in one or both
//! directions, and clogs.
//!
//! Calls are independent of each other, as streams of HTTP/2 are, so messages overtake. A lost reply is one whose
//! request was carried out.

use crate::rng::Rng;

/// How the network behaves when nothing is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quality {
    /// Lost messages in 1,000.
    pub loss: u64,
    /// Repeated messages in 1,000.
    pub repeat: u64,
    /// Shortest way, in microseconds.
    pub delay_min_us: u64,
    /// Mean of what comes on top.
    pub delay_mean_us: u64,
}

/// Who can reach whom, and how well.
#[derive(Debug)]
pub struct Network {
    /// In force now.
    pub quality: Quality,
    /// Counts of cuts from row to column.
    cuts: Vec<Vec<u32>>,
    /// Messages to and from a node wait until then.
    clogged_until_us: Vec<u64>,
    /// Who is found at the address that a node is known by; `None`: somebody of another cluster.
    pub at: Vec<Option<usize>>,
    /// What each message to or from a node takes in addition.
    pub slow_us: Vec<u64>,
    rng: Rng,
    /// Messages sent and lost.
    pub sent: u64,
    /// Of these, those that never arrive.
    pub lost: u64,
}

/// When the copies of one message arrive; at most two.
pub type Arrivals = [Option<u64>; 2];

impl Network {
    /// A network without cuts.
    pub fn new(nodes: usize, quality: Quality, rng: Rng) -> Self {
        Self {
            quality,
            cuts: vec![vec![0; nodes]; nodes],
            clogged_until_us: vec![0; nodes],
            at: (0..nodes).map(Some).collect(),
            slow_us: vec![0; nodes],
            rng,
            sent: 0,
            lost: 0,
        }
    }

    /// A message between nodes. `once`: the transport never repeats it.
    pub fn send(&mut self, from: usize, to: usize, now_us: u64, once: bool) -> Arrivals {
        self.sent += 1;
        if self.cuts[from][to] > 0 || self.rng.per_mille(self.quality.loss) {
            self.lost += 1;
            return [None, None];
        }
        let free_us = self.clogged_until_us[from].max(self.clogged_until_us[to]);
        let free_us = now_us.max(free_us) + self.slow_us[from] + self.slow_us[to];
        let first = free_us + self.delay();
        let repeated = !once && self.rng.per_mille(self.quality.repeat);
        let second = repeated.then(|| free_us + self.delay() * 3);
        [Some(first), second]
    }

    /// A message between a client and a node.
    pub fn send_client(&mut self, now_us: u64) -> Option<u64> {
        let lost = self.rng.per_mille(self.quality.loss / 4);
        (!lost).then(|| now_us + self.delay() / 2)
    }

    /// Cuts one direction; cuts of several faults add up.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts[from][to] += 1;
    }

    /// Takes one cut back.
    pub fn mend(&mut self, from: usize, to: usize) {
        self.cuts[from][to] = self.cuts[from][to].saturating_sub(1);
    }

    /// Takes all cuts, clogs and delays back.
    pub fn mend_all(&mut self) {
        for row in &mut self.cuts {
            row.fill(0);
        }
        self.clogged_until_us.fill(0);
        self.at = (0..self.at.len()).map(Some).collect();
        self.slow_us.fill(0);
    }

    /// Holds all messages of a node back; they arrive in a burst.
    pub fn clog(&mut self, node: usize, until_us: u64) {
        self.clogged_until_us[node] = self.clogged_until_us[node].max(until_us);
    }

    /// True if a message could pass.
    pub fn open(&self, from: usize, to: usize) -> bool {
        self.cuts[from][to] == 0
    }

    fn delay(&mut self) -> u64 {
        self.quality.delay_min_us + self.rng.exponential(self.quality.delay_mean_us)
    }
}
