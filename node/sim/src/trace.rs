//! What happened, as a chain of hashes always and as readable lines on request.
//!
//! Every event that the world performs is mixed into the chain with its time and its particulars. Two runs with equal
//! chains did the same; a run with and one without lines, or a debug and a release build, have equal chains, too.

/// Gets every line of a log.
pub type Sink = Box<dyn FnMut(&str)>;

/// The log of one run.
#[derive(Default)]
pub struct Trace {
    chain: u64,
    events: u64,
    sink: Option<Sink>,
}

impl Trace {
    /// Gives all lines from now on to `sink`.
    pub fn show(&mut self, sink: Sink) {
        self.sink = Some(sink);
    }

    /// Mixes an event into the chain.
    pub fn mix(&mut self, parts: &[u64]) {
        self.events += 1;
        for part in parts {
            self.chain = (self.chain ^ part)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29);
        }
    }

    /// Writes a line, if anybody reads it.
    pub fn line(&mut self, now_us: u64, text: impl FnOnce() -> String) {
        if let Some(sink) = &mut self.sink {
            sink(&format!(
                "{:>6}.{:06} {}",
                now_us / 1_000_000,
                now_us % 1_000_000,
                text()
            ));
        }
    }

    /// The chain so far.
    pub fn chain(&self) -> u64 {
        self.chain
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }
}
