//! The faults of a run, as plain data: a list of (time, fault) that can be printed, cut down and replayed.
//!
//! Drawn "swarm" style: each seed has some classes of faults and not others, so that rare mixtures come up.

use dynamo_core::admission::Task;

use crate::knobs::Knobs;
use crate::messages::NodeIx;
use crate::rng::Rng;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    /// The process dies; the machine lives.
    Kill,
    /// The machine loses power, and with it what is not synced.
    Power,
    /// All machines do.
    PowerAll,
    /// The process stops in order.
    Stop,
    /// The process stands still.
    Pause,
    /// The network falls apart in two.
    Split,
    /// Some directions are cut.
    OneWay,
    /// One node's messages are held back.
    Clog,
    /// All messages of one node take longer.
    SlowLink,
    /// The disk does nothing for a while.
    DiskStall,
    /// The disk takes its time for each sync.
    SlowDisk,
    /// No room.
    DiskFull,
    /// A sync fails.
    FailSync,
    /// Reads fail.
    ReadError,
    /// A record is damaged.
    Corrupt,
    /// The disk is replaced by an empty one.
    EmptyDisk,
    /// The disk is put back in time.
    OldDisk,
    /// The wall clock jumps.
    ClockStep,
    /// The clock runs too fast or too slow; set at a start.
    ClockDrift,
}

/// What happens. Those with a time undo themselves after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// See [`Class::Kill`].
    Kill(NodeIx, u64),
    /// See [`Class::Power`].
    Power(NodeIx, u64),
    /// See [`Class::PowerAll`].
    PowerAll(u64),
    /// See [`Class::Stop`].
    Stop(NodeIx, u64),
    /// See [`Class::Pause`].
    Pause(NodeIx, u64),
    /// Nodes whose bit is set are on one side.
    Split(u32, u64),
    /// Nobody hears the node (`true`), or it hears nobody.
    OneWay(NodeIx, bool, u64),
    /// See [`Class::Clog`].
    Clog(NodeIx, u64),
    /// Each message by the first number; for the time of the second. See [`Class::SlowLink`].
    SlowLink(NodeIx, u64, u64),
    /// See [`Class::DiskStall`].
    DiskStall(NodeIx, u64),
    /// Each sync by the first number; for the time of the second. See [`Class::SlowDisk`].
    SlowDisk(NodeIx, u64, u64),
    /// See [`Class::DiskFull`].
    DiskFull(NodeIx, u64),
    /// See [`Class::FailSync`]; the process is started again after that time.
    FailSync(NodeIx, u64),
    /// See [`Class::ReadError`].
    ReadError(NodeIx, u64),
    /// The how-manieth record of the disk.
    Corrupt(NodeIx, u64),
    /// See [`Class::EmptyDisk`].
    EmptyDisk(NodeIx, u64),
    /// By so many milliseconds; the node is back after the second time. See [`Class::OldDisk`].
    OldDisk(NodeIx, u64, u64),
    /// By milliseconds.
    ClockStep(NodeIx, i64),
    /// The rate from the next start on.
    ClockDrift(NodeIx, u64),
    /// The node hears and tells no news.
    Deafen(NodeIx, u64),
    /// An administrator has the node, or another one if it may not, propose a ring with other members; the number says which.
    Commit(NodeIx, u64),
    /// The same, for the members whose bit is set.
    Members(NodeIx, u32),
    /// The machine is gone for good, and an administrator declares the member dead, in favour of others; the number says which.
    /// After so many milliseconds it comes back after all.
    Bury(NodeIx, u64, u64),
    /// Two nodes have exchanged addresses, and nobody has heard yet.
    Swap(NodeIx, NodeIx, u64),
    /// At the node's address there is one of another cluster, which writes to whoever talks to it; the node itself has
    /// moved, and nobody has heard yet.
    Stranger(NodeIx, u64),
    /// An administrator pauses a background task.
    PauseTask(NodeIx, Task, u64),
    /// A member that was removed before the run comes back: with the ring that listed it, and as its data and hints what
    /// the first node held so many milliseconds ago.
    Ghost(u64),
}

/// When what happens, in milliseconds.
pub type Plan = Vec<(u64, Fault)>;

impl Class {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Kill,
        Self::Power,
        Self::PowerAll,
        Self::Stop,
        Self::Pause,
        Self::Split,
        Self::OneWay,
        Self::Clog,
        Self::SlowLink,
        Self::DiskStall,
        Self::SlowDisk,
        Self::DiskFull,
        Self::FailSync,
        Self::ReadError,
        Self::Corrupt,
        Self::EmptyDisk,
        Self::OldDisk,
        Self::ClockStep,
        Self::ClockDrift,
    ];
}

/// The faults of a run's safety phase.
pub fn plan(knobs: &Knobs) -> Plan {
    let mut rng = Rng::new(knobs.seed, "nemesis");
    let mut plan = Plan::new();
    // At least one.
    let mut at_ms = (500 + rng.exponential(knobs.fault_gap_ms)).min(knobs.safety_ms / 2);
    while at_ms < knobs.safety_ms {
        let class = knobs.classes[rng.index(knobs.classes.len())];
        plan.push((at_ms, draw(class, knobs, &mut rng)));
        at_ms += 1 + rng.exponential(knobs.fault_gap_ms);
    }
    let mut rng = Rng::new(knobs.seed, "rings");
    for _ in 0..knobs.rings {
        let at_ms = rng.below(knobs.safety_ms);
        plan.push((at_ms, Fault::Commit(rng.index(knobs.nodes), rng.bits())));
        if rng.index(3) == 0 {
            // A change of mind, elsewhere.
            let again_ms = at_ms + rng.below(4000);
            plan.push((again_ms, Fault::Commit(rng.index(knobs.nodes), rng.bits())));
        }
        if knobs.uneven {
            let deaf_ms = at_ms + rng.below(2500);
            let deaf = Fault::Deafen(rng.index(knobs.nodes), rng.between(300, 3000));
            plan.push((deaf_ms, deaf));
        }
        if rng.coin() {
            let (one, other, ms) = (
                rng.index(knobs.nodes),
                rng.index(knobs.nodes),
                rng.between(50, 2000),
            );
            plan.push((at_ms, Fault::Swap(one, other, ms)));
        }
        if rng.coin() {
            plan.push((
                at_ms,
                Fault::Stranger(rng.index(knobs.nodes), rng.between(50, 2000)),
            ));
        }
    }
    if knobs.admission.is_some() {
        for _ in 0..rng.index(4) {
            let task = Task::ALL[rng.index(Task::ALL.len())];
            let pause = Fault::PauseTask(rng.index(knobs.nodes), task, rng.between(500, 5000));
            plan.push((rng.below(knobs.safety_ms), pause));
        }
    }
    let mut rng = Rng::new(knobs.seed, "dead");
    for _ in 0..knobs.dead {
        let bury = Fault::Bury(rng.index(knobs.nodes), rng.bits(), rng.between(500, 20_000));
        plan.push((rng.between(1000, knobs.safety_ms), bury));
    }
    plan
}

fn draw(class: Class, knobs: &Knobs, rng: &mut Rng) -> Fault {
    let node = rng.index(knobs.nodes);
    let short = rng.between(50, 3000);
    match class {
        Class::Kill => Fault::Kill(node, short),
        Class::Power => Fault::Power(node, short),
        Class::PowerAll => Fault::PowerAll(rng.between(50, 1000)),
        Class::Stop => Fault::Stop(node, short),
        Class::Pause => Fault::Pause(node, short),
        Class::Split => Fault::Split(rng.bits() as u32, short),
        Class::OneWay => Fault::OneWay(node, rng.coin(), short),
        Class::Clog => Fault::Clog(node, short),
        Class::SlowLink => Fault::SlowLink(node, rng.between(20, 300), short),
        Class::SlowDisk => Fault::SlowDisk(node, rng.between(5, 100), short),
        Class::DiskStall => Fault::DiskStall(node, rng.between(50, 2000)),
        Class::DiskFull => Fault::DiskFull(node, short),
        Class::FailSync => Fault::FailSync(node, rng.between(50, 1000)),
        Class::ReadError => Fault::ReadError(node, short),
        Class::Corrupt => Fault::Corrupt(node, rng.bits()),
        Class::EmptyDisk => Fault::EmptyDisk(node, short),
        Class::OldDisk => Fault::OldDisk(node, rng.between(1000, 6000), short),
        Class::ClockStep => {
            let far = if rng.coin() { 10_000 } else { 315_576_000_000 };
            Fault::ClockStep(node, rng.below(2 * far).cast_signed() - far.cast_signed())
        }
        Class::ClockDrift => Fault::ClockDrift(node, rng.between(800_000, 1_200_000)),
    }
}
