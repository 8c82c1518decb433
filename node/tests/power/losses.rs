//! The power goes at random moments: during writes, syncs, flushes, compactions and starts.

use std::{collections::BTreeMap, sync::Arc};

use dynamo_core::{
    replica::Minter,
    types::Incarnation,
    version::{Dot, KeyState, Seen},
};
use dynamo_fault_fs::{Fault, Unsynced};
use dynamo_node::{
    durable::{self, Life, Started},
    storage::{
        RocksStore, Store, Writer,
        buffered::BufferedStore,
        writer::{Durability, WriteError},
    },
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinHandle;

use crate::{
    harness::{
        HOUR, Machine, close, delta, key, minter, number, options, runtime, setting, states, submit, update,
    },
    history::History,
};

/// Keys in use; on even ones this node coordinates, to odd ones it merges what others send.
const KEYS: u8 = 24;
/// Losses of one store after another.
const LIVES: u64 = 10;

/// What all rounds came to.
#[derive(Debug, Default)]
struct Totals {
    losses: u64,
    /// Losses during a start.
    interrupted_starts: u64,
    clean_stops: u64,
    torn_files: u64,
    lost_writes: usize,
    durable_writes: usize,
}

/// D34, D39: whatever was acknowledged as durable is there after a loss of power, and what is there is what a first so
/// many writes came to. D42: so it is in the interval modes, whose loss is the unsynced tail. §4.8.1: a start after a loss
/// is another life of the data, and no dot is given twice.
#[test]
fn the_loss_of_power_takes_nothing_durable_and_leaves_no_hole() {
    let losses = setting("DYNAMO_POWER_LOSSES", 200);
    let seed = setting("DYNAMO_TEST_SEED", 1);
    let mut totals = Totals::default();
    for round in 0..losses.div_ceil(LIVES) {
        let mut node = Node::new(seed, round);
        for _ in 0..LIVES {
            node.live(&mut totals);
        }
        let machine = &node.machine;
        let store = machine.open().unwrap();
        node.check(&store);
    }
    println!("{totals:?}");
    assert!(totals.losses >= losses, "{totals:?}");
    assert!(totals.lost_writes > 0 && totals.durable_writes > 0, "{totals:?}");
    assert!(
        totals.torn_files > 0 && totals.interrupted_starts > 0 && totals.clean_stops > 0,
        "{totals:?}"
    );
}

struct Node {
    machine: Machine,
    random: StdRng,
    /// For messages.
    name: String,
    life: u64,
    durability: Durability,
    /// Whether unsynced writes wait in memory.
    buffered: bool,
    history: History<u8>,
    /// Every dot that ever left, by its key.
    dots: BTreeMap<(u8, Dot), u64>,
    numbers: u64,
    synced: u64,
    stop: Stop,
}

/// How the last life ended.
enum Stop {
    Unclean,
    /// Cleanly, and this was the life.
    Clean(Incarnation),
    /// As `Clean`, and then came a start that was interrupted, before or after it used up the mark of the stop.
    Used(Incarnation),
}

type Answers = Vec<(usize, JoinHandle<Result<bool, WriteError>>)>;

impl Node {
    fn new(seed: u64, round: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003) + round);
        let durability = match random.random_range(0..4) {
            0 => Durability::Interval(HOUR),
            1 => Durability::OneOfN(HOUR),
            _ => Durability::Every,
        };
        let buffered = random.random_ratio(1, 4);
        Self {
            machine: Machine::new(),
            name: format!("seed {seed}, round {round}, {durability:?}, buffered {buffered}"),
            random,
            life: 0,
            durability,
            buffered,
            history: History::new(),
            dots: BTreeMap::new(),
            numbers: 0,
            synced: 0,
            stop: Stop::Unclean,
        }
    }

    /// From a start to the next loss of power.
    fn live(&mut self, totals: &mut Totals) {
        self.life += 1;
        let (store, started, found) = self.start(totals);
        let store: Arc<dyn Store> = if self.buffered {
            Arc::new(BufferedStore::new(store, 16 << 10))
        } else {
            Arc::new(store)
        };
        let runtime = runtime();
        let stops = self.random.random_ratio(1, 10);
        if !stops {
            self.machine
                .fs
                .fail_after(Fault::PowerOff, self.random.random_range(0..150));
        }
        runtime.block_on(self.write(&store, &started, found, stops, totals));
        drop(runtime);
        close(store);
        self.lose_power(totals);
    }

    fn lose_power(&mut self, totals: &mut Totals) {
        let unsynced = if self.random.random_ratio(1, 4) {
            Unsynced::Lost
        } else {
            Unsynced::Torn {
                seed: self.random.random(),
            }
        };
        let loss = self.machine.lose_power(unsynced);
        totals.losses += 1;
        totals.torn_files += loss.torn_files;
    }

    /// Starts, also if the power goes again and again meanwhile.
    fn start(&mut self, totals: &mut Totals) -> (RocksStore, Started, BTreeMap<u8, KeyState>) {
        for attempt in 0u64.. {
            if attempt < 3 && self.random.random_ratio(1, 3) {
                self.machine
                    .fs
                    .fail_after(Fault::PowerOff, self.random.random_range(0..60));
            }
            let id = self.life * 100 + attempt;
            match self.machine.open() {
                Ok(store) => match durable::start(&store, id) {
                    Ok(started) if !self.machine.fs.is_failing() => {
                        self.machine.fs.heal();
                        let (found, lost) = self.check(&store);
                        totals.lost_writes += lost;
                        self.check_life(&started, lost);
                        return (store, started, found);
                    }
                    Ok(_) => {}
                    Err(error) => assert!(self.machine.fs.is_failing(), "{}: {error}", self.name),
                },
                Err(error) => assert!(self.machine.fs.is_failing(), "{}: {error}", self.name),
            }
            totals.interrupted_starts += 1;
            if let Stop::Clean(incarnation) = self.stop {
                self.stop = Stop::Used(incarnation);
            }
            self.lose_power(totals);
        }
        unreachable!("the power does not go at every start")
    }

    fn check(&mut self, store: &RocksStore) -> (BTreeMap<u8, KeyState>, usize) {
        let found = states(store, KEYS);
        let numbers = found.iter().map(|(key, state)| (*key, number(state))).collect();
        let context = format!("{}, life {}", self.name, self.life);
        let lost = self.history.recovered(&numbers, &context);
        (found, lost)
    }

    /// D32: a start after a loss never goes on with the life before it, and one after a clean stop does.
    fn check_life(&mut self, started: &Started, lost: usize) {
        let name = &self.name;
        assert!(
            started.recovered >= self.synced,
            "{name}: {started:?}, synced {}",
            self.synced
        );
        match std::mem::replace(&mut self.stop, Stop::Unclean) {
            Stop::Clean(incarnation) => {
                assert_eq!(
                    (started.life, started.incarnation),
                    (Life::Kept, incarnation),
                    "{name}"
                );
                assert_eq!(lost, 0, "{name}");
            }
            Stop::Used(incarnation) if started.incarnation == incarnation => {
                assert_eq!(started.life, Life::Kept, "{name}");
            }
            Stop::Used(_) | Stop::Unclean => assert_ne!(started.life, Life::Kept, "{name}"),
        }
        assert_ne!(started.suspect.as_deref(), Some(&b""[..]), "{name}: set aside");
    }

    async fn write(
        &mut self,
        store: &Arc<dyn Store>,
        started: &Started,
        mut known: BTreeMap<u8, KeyState>,
        stops: bool,
        totals: &mut Totals,
    ) {
        let options = options(self.durability);
        let (writer, _failure) = Writer::start(Arc::clone(store), started.minter(), options).unwrap();
        let mut other = minter(1_000_000 + self.life * 100);
        let mut answers = Answers::new();
        for _ in 0..self.random.random_range(1..200) {
            let key = self.random.random_range(0..KEYS);
            let submitted = if key % 2 == 0 {
                self.coordinate(&writer, &mut known, key, &mut answers).await
            } else {
                self.merge(&writer, &mut other, &mut known, key, &mut answers)
                    .await
            };
            if !submitted {
                break;
            }
            if self.random.random_ratio(1, 5) {
                tokio::task::yield_now().await;
            }
        }
        for (write, answer) in answers {
            if answer.await.unwrap() == Ok(true) {
                self.history.acknowledged(write);
                totals.durable_writes += 1;
            }
        }
        self.synced = writer.synced();
        if stops {
            let minter = writer.stop().await.unwrap();
            durable::stop(&**store, &minter).unwrap();
            totals.clean_stops += 1;
            self.history.all_durable();
            self.stop = Stop::Clean(started.incarnation);
        }
    }

    /// False: the store has failed.
    async fn coordinate(
        &mut self,
        writer: &Writer,
        known: &mut BTreeMap<u8, KeyState>,
        place: u8,
        answers: &mut Answers,
    ) -> bool {
        let (number, length, sync) = self.next();
        let context = known
            .get(&place)
            .map_or_else(Seen::new, |state| state.seen().clone());
        let write = self.history.submitted(place, Some(number));
        let Ok(prepared) = writer
            .coordinate(key(place), update(number, length, context), sync)
            .await
        else {
            assert!(self.machine.fs.is_failing(), "{}", self.name);
            return false;
        };
        // It may leave now, before its own sync.
        let given = self.dots.insert((place, prepared.dot), number);
        assert_eq!(given, None, "{}: {:?} was given twice", self.name, prepared.dot);
        known.entry(place).or_default().merge(&prepared.delta);
        let committed = async move { prepared.committed().await.map(|committed| committed.durable) };
        answers.push((write, submit(committed).await));
        true
    }

    async fn merge(
        &mut self,
        writer: &Writer,
        other: &mut Minter,
        known: &mut BTreeMap<u8, KeyState>,
        place: u8,
        answers: &mut Answers,
    ) -> bool {
        let (number, length, sync) = self.next();
        let mut state = known.remove(&place);
        let delta = delta(&mut state, other, number, length);
        known.extend(state.map(|state| (place, state)));
        let write = self.history.submitted(place, Some(number));
        let writer = writer.clone();
        let committed = async move {
            let committed = writer.merge(key(place), delta, sync).await?;
            Ok(committed.durable)
        };
        answers.push((write, submit(committed).await));
        !self.machine.fs.is_failing()
    }

    fn next(&mut self) -> (u64, usize, bool) {
        self.numbers += 1;
        let length = self.random.random_range(0..3000);
        (self.numbers, length, self.random.random_ratio(1, 20))
    }
}
