//! Rare paths made common: named places of the simulated shell that behave, now and then, as they seldom would. In each
//! seed that has this at all a quarter of the sites is on, and each of these fires in a quarter of the cases.
//!
//! Nothing of it exists outside the simulator. A site that no seed of a long run reaches is told by the program.

use crate::rng::Rng;

/// A place that can behave badly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Site {
    /// One operation in a group of the writer.
    TinyGroup,
    /// One key on a page of an exchange.
    OneKeyPage,
    /// One record in a pull or a push.
    OneRecord,
    /// A call is given up early.
    EarlyTimeout,
    /// The writer's queue is full at one.
    FullQueue,
    /// The budget of hints is spent.
    SpentHintBudget,
    /// Background work comes late.
    LateTimer,
    /// A round of reaping ends midway.
    AbandonedReap,
}

impl Site {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::TinyGroup,
        Self::OneKeyPage,
        Self::OneRecord,
        Self::EarlyTimeout,
        Self::FullQueue,
        Self::SpentHintBudget,
        Self::LateTimer,
        Self::AbandonedReap,
    ];
}

/// How often each site has fired.
pub type Fired = [u64; Site::ALL.len()];

/// The sites of one run.
#[derive(Debug)]
pub struct Buggify {
    enabled: [bool; Site::ALL.len()],
    rng: Rng,
    /// How often each has fired.
    pub fired: Fired,
}

impl Buggify {
    /// The sites that a seed turns on.
    pub fn new(seed: u64, on: bool) -> Self {
        let mut rng = Rng::new(seed, "buggify");
        Self {
            enabled: Site::ALL.map(|_| on && rng.index(4) == 0),
            rng,
            fired: Fired::default(),
        }
    }

    /// Whether it happens here and now.
    pub fn fires(&mut self, site: Site) -> bool {
        let fires = self.enabled[site as usize] && self.rng.index(4) == 0;
        self.fired[site as usize] += u64::from(fires);
        fires
    }

    /// Whether it can happen in this run.
    pub fn may_fire(&self, site: Site) -> bool {
        self.enabled[site as usize]
    }

    /// None from now on.
    pub fn stop(&mut self) {
        self.enabled = Default::default();
    }
}
