//! Start and stop of a process: which life of the data it is, as `node/src/durable.rs` decides it. Paper: §4.4, §4.8.1.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::admission::Admission;
use dynamo_core::entropy::{Schedule, Trees};
use dynamo_core::membership::{Detector, Gossip, MemberEntry, SelfHistory, View};
use dynamo_core::reap::QuietTable;
use dynamo_core::recovery::Recovery;
use dynamo_core::replica::Minter;
use dynamo_core::transition::Strays;
use dynamo_core::types::Incarnation;
use dynamo_core::version::Hlc;

use super::writer::Writer;
use super::{Node, Process};
use crate::disk::{Batch, Disk, Place, Value};
use crate::mistakes::Mistake;
use crate::shared::{Event, Shared, Timer};

const INCARNATION: &str = "incarnation";
pub(crate) const STARTS: &str = "starts";
const CLEAN: &str = "clean-stop";
/// Where the view is kept.
pub const VIEW: &str = "view";
pub(super) const RECOVERY: &str = "recovery";
/// A peer has had the chance to expose the store.
pub(crate) const CONFIRMED: &str = "confirmed";
/// The life before, and how much of it was found, until a peer has compared that.
pub const PAST: &str = "past";
const EPOCH_FIRST: u64 = 1;

/// Records of the table of quiet times.
pub const QUIET_ENTRIES: usize = 10_000;

impl Node {
    /// Starts a process on what the disks hold.
    pub fn start(&mut self, sh: &mut Shared) {
        if self.process.is_some() {
            return;
        }
        let boot = sh.fresh();
        let empty = number(&self.disk, STARTS).is_none();
        let previous = self.disk.bytes(INCARNATION).map(|bytes| incarnation_of(&bytes));
        let recovered = self.disk.sequence;
        let was_confirmed = self.disk.bytes(CONFIRMED).is_some();
        let (incarnation, next_epoch) = self.life(sh);
        let same_life = previous == Some(incarnation);
        sh.stats.incarnations += u64::from(!same_life);
        let starts = number(&self.disk, STARTS).unwrap_or(0) + 1;
        // An administrator names a node again whose disk is empty; it has no ring then until gossip brings it one.
        let reborn = empty && self.known;
        let now_ms = self.clock.monotonic_ms(sh.now_us);
        let entry = self.entry(sh, incarnation, starts);
        let kept = self.disk.bytes(VIEW).and_then(|bytes| View::decode(bytes).ok());
        let mut view = kept.unwrap_or_else(|| {
            let ring = (!reborn).then(|| Arc::clone(&sh.ring));
            View::new(sh.ring.cluster_id(), entry.clone(), ring)
        });
        view.update_self(|me| {
            *me = MemberEntry {
                version: me.version,
                synced: recovered,
                ..entry
            }
        });
        // Until a peer has compared it, later lives are no excuse for what an earlier one lost.
        let before = previous.filter(|previous| was_confirmed && *previous != incarnation);
        let history = match self.disk.bytes(PAST) {
            Some(past) => {
                let mut history = SelfHistory {
                    previous: Some(incarnation_of(&past)),
                    since: past[20..].chunks(12).map(incarnation_of).collect(),
                    recovered: number_of(&past[12..20]),
                };
                if let Some(last) = previous {
                    history.outlived(last);
                }
                history
            }
            None => SelfHistory {
                previous: before,
                since: Vec::new(),
                recovered,
            },
        };
        let past = history.previous.map(|previous| {
            let mut past = incarnation_bytes(previous).to_vec();
            past.extend_from_slice(&history.recovered.to_be_bytes());
            past.extend(history.since.iter().flat_map(|life| incarnation_bytes(*life)));
            past
        });
        let view = view.with_history(history);
        let mut batch = Batch::default();
        batch.put(
            Place::Meta(INCARNATION),
            Value::Bytes(incarnation_bytes(incarnation)),
        );
        batch.put(Place::Meta(STARTS), Value::Bytes(number_bytes(starts)));
        batch.put(Place::Meta(VIEW), Value::Bytes(view.encode()));
        batch.delete(Place::Meta(CLEAN));
        if let Some(past) = past {
            batch.put(Place::Meta(PAST), Value::Bytes(past.into()));
        }
        if !Self::known_before(sh) {
            batch.put(Place::Meta(CONFIRMED), Value::Bytes(Bytes::new()));
        }
        let recovery = self.recovery(sh, now_ms);
        self.disk.write(batch);
        self.disk.sync();
        self.hints.sync();
        // A batch that a crash has met on its way may have got there.
        for (place, value) in self.disk.iter() {
            if let (Place::Data(key), Value::State(state)) = (place, value) {
                sh.ledger.synced(*key, state, self.me);
            }
        }
        self.known = true;
        self.process = Some(Process {
            boot,
            incarnation,
            minter: Minter::new(incarnation, next_epoch),
            starts,
            view,
            rings: None,
            pending: None,
            under_way: BTreeMap::new(),
            sync: None,
            strays: Strays::default(),
            found: BTreeMap::new(),
            erasing: false,
            told: BTreeMap::new(),
            catching_up: BTreeSet::new(),
            starting: true,
            detector: Detector::new(sh.knobs.call_timeout_ms),
            gossip: Gossip::new(sh.knobs.nodes),
            hlc: Hlc::default(),
            writers: [Writer::default(), Writer::default()],
            puts: BTreeMap::new(),
            gets: BTreeMap::new(),
            forwards: BTreeMap::new(),
            calls: BTreeMap::new(),
            trees: Trees::new(sh.knobs.partitions),
            trees_for: sh.knobs.partitions,
            schedule: Schedule::new(sh.knobs.exchange_interval_ms),
            exchanges: BTreeMap::new(),
            recovery,
            quiet: QuietTable::new(now_ms, QUIET_ENTRIES),
            reap: None,
            admission: sh.knobs.admission.map(Admission::new),
            wait_ms: None,
            left_out: BTreeSet::new(),
            delivering: BTreeSet::new(),
            refetching: BTreeSet::new(),
            exit: None,
            fresh: !was_confirmed,
            may_be_old: was_confirmed || same_life,
            life_kept: same_life,
            confirmed: !Self::known_before(sh),
            gossip_rounds: 0,
            started_ms: now_ms,
            whole_again: false,
        });
        let (node, now_us) = (self.me, sh.now_us);
        sh.old[node] = sh.old[node].map(|starts| starts + 1);
        sh.trace.mix(&[90, node as u64, incarnation.id]);
        sh.trace.line(now_us, || {
            format!(
                "n{node} starts as {incarnation}, start {starts}{}",
                if reborn { ", emptied" } else { "" }
            )
        });
        self.set_timers(sh);
        if let Some(mut live) = self.live(sh) {
            live.rings_changed();
            live.p.starting = false;
        }
    }

    /// Stops the process in order: what waits is written, everything is synced, the mark of a clean stop is set.
    pub fn stop(&mut self, sh: &mut Shared) {
        if let Some(mut live) = self.live(sh) {
            live.drain();
        }
        let Some(process) = self.process.take() else {
            return;
        };
        if process.exit.is_some() {
            return;
        }
        self.disk.sync();
        self.hints.sync();
        let mut marker = incarnation_bytes(process.incarnation).to_vec();
        marker.extend_from_slice(&process.starts.to_be_bytes());
        marker.extend_from_slice(&process.minter.next_epoch().to_be_bytes());
        let mut batch = Batch::default();
        batch.put(Place::Meta(CLEAN), Value::Bytes(marker.into()));
        self.disk.write(batch);
        self.disk.sync();
    }

    /// The process dies. With `power`, what is not synced is lost, too.
    pub fn crash(&mut self, sh: &mut Shared, power: bool) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        for (index, disk) in [&mut self.disk, &mut self.hints].into_iter().enumerate() {
            if let Some(batch) = process.writers[index].take_under_way()
                && (power || sh.rng_disk.coin())
            {
                disk.write(batch);
            }
            if power {
                let gone = disk.lose_power(&mut sh.rng_disk);
                sh.stats.amnesias += u64::from(gone > 0);
                let (node, now_us) = (self.me, sh.now_us);
                sh.trace
                    .line(now_us, || format!("n{node} loses {gone} unsynced batches"));
            }
        }
        if sh.knobs.mistake == Some(Mistake::ForgetHintsOnRestart) {
            self.hints = Disk::default();
        }
    }

    /// What a store that is set aside leaves to the empty one after it: who the node is, which life, whom it knew, and
    /// that it lacks acknowledged data. What it remembers of rings may be old: it has to hear from everybody.
    pub fn set_aside(&mut self, sh: &Shared) {
        let view = self.disk.bytes(VIEW).and_then(|bytes| View::decode(bytes).ok());
        let view = view.map(|mut view| {
            view.forget();
            view.encode()
        });
        self.begin_anew(sh, view);
    }

    /// The node has left the ring: nothing that it held stays, but what it knows of the others does.
    pub fn leave(&mut self, sh: &Shared, view: &View) {
        self.begin_anew(sh, Some(view.encode()));
        self.hints = Disk::default();
        self.unwhole = false;
    }

    fn begin_anew(&mut self, sh: &Shared, view: Option<Bytes>) {
        let now_ms = self.clock.monotonic_ms(sh.now_us);
        let mut carried: Vec<(Place, Value)> = [INCARNATION, STARTS]
            .into_iter()
            .filter_map(|name| Some((Place::Meta(name), Value::Bytes(self.disk.bytes(name)?))))
            .collect();
        carried.extend(view.map(|view| (Place::Meta(VIEW), Value::Bytes(view))));
        let suspect = Recovery::begin(now_ms, sh.knobs.recovery_after_ms()).encode();
        self.disk = Disk::default();
        let mut batch = Batch {
            changes: carried
                .into_iter()
                .map(|(place, value)| (place, Some(value)))
                .collect(),
        };
        batch.put(Place::Meta(RECOVERY), Value::Bytes(suspect));
        self.disk.write(batch);
        self.disk.sync();
        // Old hints go, too; those of this life are kept under the node's own name.
        let mut old = Batch::default();
        for (place, _) in self.hints.iter() {
            if !matches!(place, Place::Hint(owner, _) if *owner == self.me) {
                old.delete(*place);
            }
        }
        self.hints.write(old);
        self.hints.sync();
    }

    /// Others may remember this node: not at the cluster's first moment.
    fn known_before(sh: &Shared) -> bool {
        sh.now_us > 0 && sh.knobs.nodes > 1
    }

    fn life(&self, sh: &mut Shared) -> (Incarnation, u64) {
        let id = sh.rng.bits();
        let Some(bytes) = self.disk.bytes(INCARNATION) else {
            let id = if sh.knobs.mistake == Some(Mistake::SameIncarnationAfterLoss) {
                self.me as u64 + 1
            } else {
                id
            };
            return (Incarnation { generation: 1, id }, EPOCH_FIRST);
        };
        let last = incarnation_of(&bytes);
        let starts = number(&self.disk, STARTS).unwrap_or(0);
        if let Some(marker) = self.disk.bytes(CLEAN)
            && marker.len() == 28
            && marker[..12] == bytes[..]
            && marker[12..20] == starts.to_be_bytes()
        {
            return (last, number_of(&marker[20..]));
        }
        if sh.knobs.mistake == Some(Mistake::UncleanStopKeepsIncarnation) {
            return (last, EPOCH_FIRST);
        }
        // A store that began empty and that no peer has compared has one generation: were it counted as two, the peers'
        // memory of the member could look like the older one.
        let began = self.disk.bytes(CONFIRMED).is_none() && self.disk.bytes(RECOVERY).is_none();
        let generation = last.generation + u32::from(!began);
        (Incarnation { generation, id }, EPOCH_FIRST)
    }

    /// A store that is suspect goes on getting back what it lost.
    fn recovery(&self, sh: &Shared, now_ms: u64) -> Option<Recovery> {
        let longest_ms = sh.knobs.recovery_after_ms();
        let bytes = self.disk.bytes(RECOVERY)?;
        let decoded = Recovery::decode(bytes, now_ms, longest_ms);
        Some(decoded.unwrap_or_else(|_| Recovery::begin(now_ms, longest_ms)))
    }

    pub(crate) fn entry(&self, sh: &Shared, incarnation: Incarnation, starts: u64) -> MemberEntry {
        let address = format!("n{}:7701", self.me);
        MemberEntry {
            member: sh.members[self.me].clone(),
            incarnation,
            version: 1,
            peer_address: address.clone(),
            client_address: address.clone(),
            admin_address: address,
            zone: sh.zones[self.me].clone(),
            release: "sim".to_owned(),
            starts,
            synced: 0,
        }
    }

    fn set_timers(&mut self, sh: &mut Shared) {
        let Some(mut live) = self.live(sh) else { return };
        for (timer, most_ms) in [
            (Timer::Gossip, 1000),
            (Timer::Probe, 250),
            (Timer::Hints, 500),
            (Timer::Entropy, 100),
            (Timer::Reap, 1000),
            (Timer::Repair, 300),
        ] {
            let after_ms = live.sh.rng.below(most_ms) + 1;
            live.timer(after_ms, timer);
        }
    }
}

/// Starts a node again after that many milliseconds.
pub fn restart_later(sh: &mut Shared, node: usize, after_ms: u64) {
    let at_us = sh.now_us + after_ms * 1000;
    sh.queue.push(at_us, Event::Restart(node));
}

pub(crate) fn incarnation_bytes(incarnation: Incarnation) -> Bytes {
    let mut bytes = incarnation.generation.to_be_bytes().to_vec();
    bytes.extend_from_slice(&incarnation.id.to_be_bytes());
    bytes.into()
}

pub(crate) fn incarnation_place() -> Place {
    Place::Meta(INCARNATION)
}

fn incarnation_of(bytes: &[u8]) -> Incarnation {
    Incarnation {
        generation: number_of(&bytes[..4]) as u32,
        id: number_of(&bytes[4..12]),
    }
}

pub(crate) fn number_bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn number_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn number(disk: &Disk, name: &'static str) -> Option<u64> {
    disk.bytes(name).map(|bytes| number_of(&bytes))
}
