//! What one run is like: everything that the seed decides before the first event, as plain data.

use std::fmt;

use dynamo_core::admission::Limits;
use dynamo_core::bucket::Conflict;
use dynamo_core::coordinator::ReadRepair;
use dynamo_core::quorum::{Quorum, QuorumOverrides, ReplicaCount};
use dynamo_core::ring::Member;
use dynamo_core::types::{MemberId, Zone};

use crate::messages::NodeIx;
use crate::mistakes::Mistake;
use crate::nemesis::Class;
use crate::network::Quality;
use crate::rng::Rng;

/// When a write counts as accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Once it is synced.
    Every,
    /// Once it is written; a sync comes at most that many milliseconds later.
    Interval(u64),
}

/// Shares of what clients do, in any unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mix {
    /// Get, add a tag to what was found, put.
    pub cart: u64,
    /// Get, put one value.
    pub register: u64,
    /// Get, delete; the next one creates the key anew.
    pub delete: u64,
    /// Put without a context.
    pub blind: u64,
    /// Get alone.
    pub read: u64,
    /// Get, put a value that expires within seconds.
    pub expiring: u64,
}

/// One run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Knobs {
    /// Where all this comes from.
    pub seed: u64,
    /// 3..=12.
    pub nodes: usize,
    /// The last so many of them have joined, but the first ring does not list them.
    pub outside: usize,
    /// 1..=3.
    pub zones: usize,
    /// Replicas.
    pub n: u32,
    /// Read quorum.
    pub r: u32,
    /// Write quorum.
    pub w: u32,
    /// Requests ask for `pr = r` and `pw = w`: no fallback counts.
    pub strict: bool,
    /// Q.
    pub partitions: u32,
    /// Of all nodes.
    pub durability: Durability,
    /// Of all buckets.
    pub read_repair: ReadRepair,
    /// Clients.
    pub clients: usize,
    /// Keys.
    pub keys: u32,
    /// One more key for each: of a data type, or where the last write wins.
    pub others: Vec<Conflict>,
    /// Clients of those keys.
    pub other_clients: usize,
    /// Actors that a record's history may name before it is shortened.
    pub actors_max: usize,
    /// Of a thousand operations, so many go to the first key.
    pub hot: u64,
    /// What clients do.
    pub mix: Mix,
    /// Mean time between two operations of a client, in milliseconds.
    pub think_ms: u64,
    /// Clients have found this node slow, and ask other primaries, as the client library does (row D11).
    pub avoid: Option<NodeIx>,
    /// A client's patience.
    pub timeout_ms: u64,
    /// Time-out of a call between nodes.
    pub call_timeout_ms: u64,
    /// The network while there are faults.
    pub quality: Quality,
    /// How long there are faults.
    pub safety_ms: u64,
    /// How long the minority stays broken.
    pub liveness_ms: u64,
    /// Mean time between faults.
    pub fault_gap_ms: u64,
    /// Kinds of faults that this run has.
    pub classes: Vec<Class>,
    /// Hints that a node holds at most.
    pub hints_max: usize,
    /// Time in which a partition is exchanged with one co-replica.
    pub exchange_interval_ms: u64,
    /// Tombstones older than that may be reaped.
    pub grace_ms: u64,
    /// How long a committed write takes to reach the disk, in microseconds.
    pub sync_us: u64,
    /// Every state is encoded and decoded on its way.
    pub through_codec: bool,
    /// Rare paths are made common.
    pub buggify: bool,
    /// What background work may do; `None`: all it wants.
    pub admission: Option<Limits>,
    /// How often an administrator asks for other members.
    pub rings: usize,
    /// How many members are gone for good and declared dead.
    pub dead: usize,
    /// Nodes hear no news for a while, and go on with data; and some writes are long on their way.
    pub uneven: bool,
    /// There was one more member before the run began; see [`Fault::Ghost`](crate::nemesis::Fault::Ghost).
    pub ghost: bool,
    /// Anti-entropy runs; else not before everything is to become quiet.
    pub anti_entropy: bool,
    /// What is done wrong on purpose.
    pub mistake: Option<Mistake>,
}

impl Knobs {
    /// All that a seed decides.
    pub fn of_seed(seed: u64) -> Self {
        let plain = Self::plain(seed);
        let mut rng = Rng::new(seed, "buckets");
        if rng.coin() {
            return plain;
        }
        let kinds = [
            Conflict::Lww,
            Conflict::Counter,
            Conflict::Set,
            Conflict::Map,
            Conflict::Flag,
            Conflict::Register,
        ];
        let varied = Self {
            others: (0..rng.between(1, 8))
                .map(|_| kinds[rng.index(kinds.len())])
                .collect(),
            other_clients: rng.between(1, 5) as usize,
            actors_max: if rng.coin() {
                rng.between(1, 6) as usize
            } else {
                50
            },
            buggify: rng.coin(),
            rings: rng.index(4),
            admission: rng.coin().then(|| Limits {
                operations_per_s_max: [20, 100, 1000][rng.index(3)],
                operations_per_s_min: rng.between(5, 20),
                p99_target_us: rng.between(5, 50) * 1000,
            }),
            ..plain
        };
        if varied.rings > 0 {
            varied.walking()
        } else {
            varied
        }
    }

    /// As [`of_seed`](Self::of_seed), but the members change in every seed, and in half of them some are declared dead.
    pub fn walk_of_seed(seed: u64) -> Self {
        let knobs = Self::of_seed(seed);
        let walk = if knobs.rings > 0 { knobs } else { knobs.walking() };
        Self {
            dead: [0, 0, 1, 2][Rng::new(seed, "how many dead").index(4)],
            ..walk
        }
    }

    /// The same as a walk: the members change all the time.
    #[must_use]
    pub fn walking(self) -> Self {
        let mut rng = Rng::new(self.seed, "walk");
        if rng.coin() {
            return self.bare(&mut rng);
        }
        let outside = rng.index(4);
        let nodes = (self.nodes + outside).min(12);
        Self {
            nodes,
            outside: nodes - self.nodes,
            rings: rng.between(2, 8) as usize,
            partitions: self.partitions.max(if nodes > 8 { 16 } else { 8 }),
            strict: self.strict || rng.coin(),
            safety_ms: rng.between(15, 40) * 1000,
            fault_gap_ms: rng.between(300, 4000),
            ghost: false,
            ..self
        }
    }

    /// A walk in which nothing is made good by chance: replicas are not compared until the end, reads repair nothing, and
    /// only primaries count. What an operation sends is long under way.
    fn bare(self, rng: &mut Rng) -> Self {
        let classes = [
            Class::Kill,
            Class::Stop,
            Class::Clog,
            Class::OneWay,
            Class::SlowLink,
            Class::SlowDisk,
            Class::EmptyDisk,
            Class::OldDisk,
        ];
        let chosen: Vec<Class> = classes.into_iter().filter(|_| rng.coin()).collect();
        let nodes = rng.between(6, 8) as usize;
        // Where one answer is enough, one replica that lacks something shows.
        let (r, w) = [(1, 3), (1, 3), (1, 3), (2, 2), (3, 1)][rng.index(5)];
        let call_timeout_ms = [300, 500, 1500][rng.index(3)];
        Self {
            nodes,
            outside: 3,
            n: 3,
            r,
            w,
            strict: true,
            partitions: 8,
            durability: Durability::Every,
            read_repair: ReadRepair::Off,
            anti_entropy: false,
            clients: 8,
            keys: rng.between(2, 12) as u32,
            mix: Mix {
                cart: 0,
                register: 1,
                delete: 0,
                blind: 3,
                read: 6,
                expiring: 0,
            },
            think_ms: rng.between(20, 60),
            timeout_ms: call_timeout_ms * 2,
            call_timeout_ms,
            uneven: true,
            quality: Quality {
                loss: if rng.coin() { rng.below(30) } else { 0 },
                repeat: 0,
                delay_min_us: 300,
                delay_mean_us: [2000, 10_000, 40_000][rng.index(3)],
            },
            rings: rng.between(4, 12) as usize,
            safety_ms: rng.between(15, 40) * 1000,
            fault_gap_ms: rng.between(500, 5000),
            classes: if chosen.is_empty() {
                vec![Class::SlowLink]
            } else {
                chosen
            },
            hints_max: 10_000,
            grace_ms: 8000,
            admission: None,
            ghost: false,
            ..self
        }
    }

    /// All nodes, as rings list them.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        let zones = self.zones;
        (0..self.nodes).filter_map(move |node| {
            Some(Member {
                id: MemberId::new(format!("n{node}")).ok()?,
                zone: Zone::new(format!("z{}", node % zones)).ok()?,
                weight: 1,
            })
        })
    }

    /// The same without what came later: buckets of other kinds, rare paths, new rings.
    pub fn plain(seed: u64) -> Self {
        let mut rng = Rng::new(seed, "knobs");
        let n = [1, 2, 3, 3, 3, 3, 4, 5][rng.index(8)];
        let nodes = rng.between(u64::from(n).max(3), 9.min(u64::from(n) + 4)) as usize;
        let majority = n / 2 + 1;
        let (r, w) = match rng.index(5) {
            0 => (1, 1),
            1 => (1, n),
            2 => (n, 1),
            _ => (majority, majority),
        };
        let classes: Vec<Class> = Class::ALL.into_iter().filter(|_| rng.coin()).collect();
        let share = |rng: &mut Rng| if rng.coin() { rng.between(1, 4) } else { 0 };
        let mut mix = Mix {
            cart: share(&mut rng),
            register: share(&mut rng),
            delete: share(&mut rng),
            blind: share(&mut rng) / 2,
            read: 1,
            expiring: share(&mut rng) / 2,
        };
        if mix.cart + mix.register + mix.delete + mix.blind == 0 {
            mix.cart = 3;
        }
        let lossy = rng.coin();
        let loss_max = if rng.coin() { 300 } else { 50 };
        let call_timeout_ms = [150, 300, 500][rng.index(3)];
        Self {
            seed,
            nodes,
            outside: 0,
            zones: rng.between(1, 3) as usize,
            n,
            r,
            w,
            strict: rng.coin(),
            partitions: [8, 8, 16, 32][rng.index(4)].max(if nodes > 8 { 16 } else { 8 }),
            durability: if rng.per_mille(850) {
                Durability::Every
            } else {
                Durability::Interval(rng.between(50, 1000))
            },
            read_repair: [
                ReadRepair::Off,
                ReadRepair::Async,
                ReadRepair::Async,
                ReadRepair::Blocking,
            ][rng.index(4)],
            clients: rng.between(2, 10) as usize,
            keys: rng.between(1, 30) as u32,
            others: Vec::new(),
            other_clients: 0,
            actors_max: 50,
            hot: if rng.coin() { rng.below(700) } else { 0 },
            mix,
            think_ms: rng.between(20, 120),
            avoid: None,
            timeout_ms: [500, 1000, 2000][rng.index(3)].max(call_timeout_ms * 2),
            call_timeout_ms,
            quality: Quality {
                loss: if lossy { rng.below(loss_max) } else { 0 },
                repeat: if lossy && rng.coin() { rng.below(500) } else { 0 },
                delay_min_us: rng.between(100, 2000),
                delay_mean_us: rng.between(200, 20_000),
            },
            safety_ms: rng.between(6, 14) * 1000,
            liveness_ms: 5000,
            fault_gap_ms: rng.between(150, 1500),
            classes: if classes.is_empty() {
                vec![Class::Kill]
            } else {
                classes
            },
            hints_max: if rng.per_mille(200) { rng.index(4) } else { 10_000 },
            exchange_interval_ms: rng.between(500, 3000),
            grace_ms: [2500, 4000, 8000][rng.index(3)],
            sync_us: [100, 500, 2000, 10_000][rng.index(4)],
            through_codec: rng.index(16) == 0,
            buggify: false,
            admission: None,
            rings: 0,
            dead: 0,
            uneven: false,
            ghost: false,
            anti_entropy: true,
            mistake: None,
        }
    }

    /// What clients ask for.
    pub fn quorum(&self) -> Quorum {
        let plain = Quorum {
            n: self.n,
            r: self.r,
            w: self.w,
            pr: 0,
            pw: 0,
            dw: 0,
            zones: 0,
        };
        let strict = QuorumOverrides {
            pr: Some(ReplicaCount::Count(self.r)),
            pw: Some(ReplicaCount::Count(self.w)),
            ..QuorumOverrides::default()
        };
        if self.strict {
            plain.with(&strict).unwrap_or(plain)
        } else {
            plain
        }
    }

    /// Any read meets the last acknowledged write, where only primaries count.
    pub fn reads_meet_writes(&self) -> bool {
        self.strict && self.r + self.w > self.n && self.durability == Durability::Every
    }

    /// How long a store that is found suspect waits before it pulls.
    pub fn recovery_after_ms(&self) -> u64 {
        if self.mistake == Some(Mistake::WholeTooEarly) {
            0
        } else {
            self.message_life_ms()
        }
    }

    /// How long anything that an operation sends can be under way: its deadline, calls begun at its end, and the
    /// slowest way.
    pub fn message_life_ms(&self) -> u64 {
        self.timeout_ms + self.call_timeout_ms + 1000
    }
}

impl fmt::Display for Knobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        writeln!(
            f,
            "  {} nodes ({} outside) in {} zones, N {} R {} W {}{}, {} partitions, {:?}, read repair {:?}",
            self.nodes,
            self.outside,
            self.zones,
            self.n,
            self.r,
            self.w,
            if self.strict { " (primaries)" } else { "" },
            self.partitions,
            self.durability,
            self.read_repair
        )?;
        writeln!(
            f,
            "  {} clients, {} keys, hot {}/1000, {:?}, think {} ms, time-out {} ms, calls {} ms",
            self.clients, self.keys, self.hot, self.mix, self.think_ms, self.timeout_ms, self.call_timeout_ms
        )?;
        writeln!(
            f,
            "  {} clients of {:?}, histories of {} actors, buggify {}, {} new rings, {} dead, ghost {}",
            self.other_clients, self.others, self.actors_max, self.buggify, self.rings, self.dead, self.ghost
        )?;
        writeln!(
            f,
            "  {:?}, sync {} us, through codec {}",
            self.quality, self.sync_us, self.through_codec
        )?;
        writeln!(
            f,
            "  safety {} ms, liveness {} ms, a fault each {} ms of {:?}",
            self.safety_ms, self.liveness_ms, self.fault_gap_ms, self.classes
        )?;
        write!(
            f,
            "  hints {}, exchange {} ms, grace {} ms, admission {:?}, mistake {:?}",
            self.hints_max, self.exchange_interval_ms, self.grace_ms, self.admission, self.mistake
        )
    }
}
