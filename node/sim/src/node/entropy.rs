//! Trees, exchanges and the recovery of a suspect store. Paper: §4.7.

use std::cell::RefCell;
use std::rc::Rc;

use dynamo_core::admission::Task;
use dynamo_core::coordinator::FailureKind;
use dynamo_core::entropy::exchange::KEYS_PER_MESSAGE;
use dynamo_core::entropy::{
    Due, Exchange, ExchangeEffect, ExchangeEvent, ExchangeReport, KeyPage, KeySummary, Mode, PullResult,
    PushResult, TreeState, Trees, has_news_for, record_hash,
};
use dynamo_core::listing::Position;
use dynamo_core::recovery::Recovery;
use dynamo_core::transition::{Sync, Transition};
use dynamo_core::types::PartitionId;
use dynamo_core::version::KeyState;

use super::{CallResult, Live, boot};
use crate::buggify::Site;
use crate::disk::{DiskError, Place, Value};
use crate::keys::KeyIx;
use crate::messages::{NodeIx, Pulled, Reply, Request};
use crate::mistakes::Mistake;
use crate::shared::Timer;

const ROUND_MS: u64 = 50;
/// Exchanges that one node runs at once.
pub const EXCHANGES_MAX: usize = 3;
/// Keys that one round folds into trees.
const FOLD_KEYS: usize = 16;
/// Records in one message.
const RECORDS_MAX: usize = 16;

/// An exchange that this node began.
pub struct RunningExchange {
    machine: Exchange,
    due: Due,
    peer: NodeIx,
    began_ms: u64,
    purpose: Purpose,
}

/// What an exchange is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Replicas are to be equal.
    Upkeep,
    /// It makes this store whole.
    Recovery,
    /// It brings what the next ring makes this node hold.
    Sync,
    /// It gives away what this node holds by no ring any more.
    Release,
}

impl Live<'_> {
    /// Folds a page into a tree, begins what is due.
    pub fn entropy_round(&mut self) {
        self.entropy_work();
        self.next_round(ROUND_MS, Timer::Entropy);
    }

    fn entropy_work(&mut self) {
        self.fold();
        if !self.serving() || self.p.exchanges.len() >= EXCHANGES_MAX {
            return;
        }
        self.entropy_of_rings();
        if self.p.exchanges.len() >= EXCHANGES_MAX {
            return;
        }
        if !self.sh.knobs.anti_entropy || !self.has_turn(Task::Exchange, 1) {
            return;
        }
        let now_ms = self.now_ms();
        let one_way = self.sh.knobs.mistake == Some(Mistake::OneWayExchange);
        let (detector, me) = (&self.p.detector, &self.sh.members[self.me]);
        let wanted =
            |member: &dynamo_core::types::MemberId| detector.reachable(member) && (!one_way || me < member);
        if let Some(due) = self.p.schedule.next(now_ms, &wanted) {
            let mode = if self.suspect(due.partition) {
                Mode::PullOnly
            } else {
                Mode::Both
            };
            self.begin_exchange(due, mode, Purpose::Upkeep);
        }
    }

    /// Of a suspect store a write under way may count the lost disk's answer, and reach its predecessor only when that has
    /// been pulled from.
    fn may_sync(&self) -> bool {
        let early = self.sh.knobs.mistake == Some(Mistake::SyncsBeforeAllAreKnown);
        let transition = self.p.view.transition();
        let may = early || transition.is_some_and(Transition::may_sync);
        let now_ms = self.now_ms();
        let waits = self
            .p
            .recovery
            .as_ref()
            .is_some_and(|recovery| now_ms < recovery.earliest_ms());
        may && !waits && self.p.sync.as_ref().is_some_and(|sync| !sync.is_done())
    }

    /// Pulls what the next ring makes this node hold.
    fn begin_sync(&mut self) {
        let random = self.sh.rng.bits();
        let detector = &self.p.detector;
        let Some(sync) = &mut self.p.sync else { return };
        if let Some((partition, peer)) = sync.next(&|member| detector.reachable(member), random) {
            self.begin_exchange(Due { partition, peer }, Mode::PullOnly, Purpose::Sync);
        }
    }

    /// What must be done before a store is whole, before a ring can follow, and afterwards.
    fn entropy_of_rings(&mut self) {
        let open = |recovery: &Recovery| recovery.open().next().is_some();
        if self.p.recovery.as_ref().is_some_and(open) && self.has_turn(Task::Recovery, 1) {
            self.begin_recovery();
        }
        let free = |live: &Self| live.p.exchanges.len() < EXCHANGES_MAX;
        if free(self) && self.may_sync() && self.has_turn(Task::Transfer, 1) {
            self.begin_sync();
        }
        if free(self) && self.p.strays.count() > 0 && self.has_turn(Task::Transfer, 1) {
            self.begin_release();
        }
    }

    fn begin_recovery(&mut self) {
        let now_ms = self.now_ms();
        let random = self.sh.rng.bits();
        let Some(recovery) = &mut self.p.recovery else {
            return;
        };
        let detector = &self.p.detector;
        let next = recovery.next(now_ms, &|member| detector.reachable(member), random);
        if let Some((partition, peer)) = next {
            self.begin_exchange(Due { partition, peer }, Mode::PullOnly, Purpose::Recovery);
        }
    }

    /// Begins one with a peer.
    pub fn begin_exchange(&mut self, due: Due, mode: Mode, purpose: Purpose) {
        let began_ms = self.now_ms();
        let peer = self.sh.index_of(&due.peer);
        let Some(tree) = self.p.trees.ready(due.partition).cloned() else {
            self.end_exchange(&due, began_ms, purpose, &ExchangeReport::default());
            return;
        };
        let id = self.sh.fresh();
        let machine = Exchange::new(tree, mode);
        let running = RunningExchange {
            machine,
            due,
            peer,
            began_ms,
            purpose,
        };
        self.p.exchanges.insert(id, running);
        self.drive_exchange(id, ExchangeEvent::Start);
    }

    fn drive_exchange(&mut self, id: u64, event: ExchangeEvent) {
        let Some(running) = self.p.exchanges.get_mut(&id) else {
            return;
        };
        let effect = running.machine.step(event);
        let (peer, partition) = (running.peer, running.due.partition);
        // Whoever has nothing is given also what is about to be removed.
        let recovery = matches!(running.purpose, Purpose::Recovery | Purpose::Sync);
        let timeout_ms = self.sh.knobs.call_timeout_ms * 2;
        match effect {
            ExchangeEffect::AskHashes { level, nodes } => {
                let request = Request::Hashes {
                    partition,
                    level,
                    nodes,
                };
                self.call(peer, timeout_ms, request, move |live, result| {
                    live.drive_exchange(id, answer(result));
                });
            }
            ExchangeEffect::AskKeys { leaves, after } => {
                let request = Request::Keys {
                    partition,
                    leaves,
                    after,
                    recovery,
                };
                self.call(peer, timeout_ms, request, move |live, result| {
                    live.drive_exchange(id, answer(result));
                });
            }
            ExchangeEffect::LocalKeys { leaves, after } => {
                let page = self.key_page(partition, &leaves, after.as_ref(), false);
                let event = page.map_or(ExchangeEvent::Failed, ExchangeEvent::LocalKeys);
                self.drive_exchange(id, event);
            }
            ExchangeEffect::Pull { positions } => self.pull(id, peer, partition, &positions),
            ExchangeEffect::Push { positions } => self.push(id, peer, &positions),
            ExchangeEffect::Done(report) => {
                if let Some(running) = self.p.exchanges.remove(&id) {
                    self.end_exchange(&running.due, running.began_ms, running.purpose, &report);
                }
            }
        }
    }

    fn pull(&mut self, id: u64, peer: NodeIx, partition: PartitionId, positions: &[Position]) {
        let records_max = self.records_max();
        let keys: Vec<(KeyIx, Option<Rc<KeyState>>)> = positions
            .iter()
            .take(records_max)
            .filter_map(|position| self.sh.keys.find(position))
            .map(|key| {
                let mine = self.disk.peek(Place::Data(key));
                (key, mine.cloned())
            })
            .collect();
        let timeout_ms = self.sh.knobs.call_timeout_ms * 2;
        self.call(
            peer,
            timeout_ms,
            Request::Pull { partition, keys },
            move |live, result| match result {
                Ok(Reply::Pulled { results, suspect }) => live.take_pulled(id, results, suspect),
                other => live.drive_exchange(id, answer(other)),
            },
        );
    }

    fn take_pulled(&mut self, id: u64, results: Vec<(KeyIx, Pulled)>, suspect: bool) {
        let all: Rc<RefCell<Vec<Option<PullResult>>>> = Rc::new(RefCell::new(vec![None; results.len()]));
        let ended = move |live: &mut Live<'_>, all: &RefCell<Vec<Option<PullResult>>>| {
            let results: Vec<PullResult> = all.borrow().iter().copied().flatten().collect();
            if results.len() == all.borrow().len() {
                live.drive_exchange(id, ExchangeEvent::Pulled { results, suspect });
            }
        };
        let mut merges = Vec::new();
        for (index, (key, pulled)) in results.into_iter().enumerate() {
            match pulled {
                Pulled::Without(result) => all.borrow_mut()[index] = Some(result),
                Pulled::State(state) => merges.push((index, key, state)),
            }
        }
        if merges.is_empty() {
            ended(self, &all);
        }
        for (index, key, state) in merges {
            let (all, theirs) = (Rc::clone(&all), Rc::clone(&state));
            self.sh.stats.exchanged += 1;
            self.merge(key, state, None, true, move |live, result| {
                let mine = live.disk.peek(Place::Data(key));
                let peer_lacks = mine.is_some_and(|mine| **mine != *theirs && has_news_for(mine, &theirs));
                all.borrow_mut()[index] = Some(match result {
                    Ok(_) => PullResult::Merged { peer_lacks },
                    Err(_) => PullResult::Failed,
                });
                ended(live, &all);
            });
        }
    }

    fn records_max(&mut self) -> usize {
        if self.sh.buggify.fires(Site::OneRecord) {
            1
        } else {
            RECORDS_MAX
        }
    }

    fn push(&mut self, id: u64, peer: NodeIx, positions: &[Position]) {
        let mut results: Vec<Option<PushResult>> = Vec::new();
        let mut records = Vec::new();
        for position in positions.iter().take(self.records_max()) {
            let key = self.sh.keys.find(position);
            let state = key.and_then(|key| Some((key, self.exchanged_state(key)?)));
            results.push(state.is_none().then_some(PushResult::Gone));
            records.extend(state);
        }
        let one_way = self.sh.knobs.mistake == Some(Mistake::OneWayExchange);
        if records.is_empty() || one_way {
            let results = results
                .into_iter()
                .map(|result| result.unwrap_or(PushResult::Merged));
            self.drive_exchange(id, ExchangeEvent::Pushed(results.collect()));
            return;
        }
        self.sh.stats.exchanged += records.len() as u64;
        let timeout_ms = self.sh.knobs.call_timeout_ms * 2;
        self.call(
            peer,
            timeout_ms,
            Request::Push(records),
            move |live, result| match result {
                Ok(Reply::Pushed(done)) => {
                    let mut done = done.into_iter();
                    let results = results
                        .into_iter()
                        .map(|known| known.or_else(|| done.next()).unwrap_or(PushResult::Failed));
                    let results = results.collect();
                    live.drive_exchange(id, ExchangeEvent::Pushed(results));
                }
                other => live.drive_exchange(id, answer(other)),
            },
        );
    }

    /// The partitions may be others from now on.
    pub fn end_all_exchanges(&mut self) {
        for running in std::mem::take(&mut self.p.exchanges).into_values() {
            let nothing = ExchangeReport::default();
            self.end_exchange(&running.due, running.began_ms, running.purpose, &nothing);
        }
    }

    fn end_exchange(&mut self, due: &Due, began_ms: u64, purpose: Purpose, report: &ExchangeReport) {
        let (now_ms, random) = (self.now_ms(), self.sh.rng.bits());
        if report.finished {
            self.sh.stats.exchanges += 1;
        }
        match purpose {
            Purpose::Recovery => {}
            Purpose::Sync => return self.end_sync(due.clone(), *report),
            Purpose::Release => return self.end_release(due.partition, &due.peer, report),
            Purpose::Upkeep => {
                self.p
                    .schedule
                    .ended(due, began_ms, report.finished, now_ms, random);
                return;
            }
        }
        let base = self.epoch();
        let (due, report) = (due.clone(), *report);
        // What was equal may have come by a write that is not synced yet, so the store is synced before it is believed.
        self.enqueue(
            0,
            true,
            |_, _| Ok(()),
            move |live, result| {
                let same = live.epoch() == base;
                let Some(recovery) = &mut live.p.recovery else {
                    return;
                };
                let report = if result.is_ok() && same {
                    report
                } else {
                    ExchangeReport::default()
                };
                if !recovery.ended(due.partition, &due.peer, began_ms, &report) {
                    return;
                }
                live.keep_recovery();
                live.settle_recovery();
            },
        );
    }

    /// What the exchange brought is on disk already; what was equal may have come by a write that is not synced yet.
    fn end_sync(&mut self, due: Due, report: ExchangeReport) {
        let ring = self.p.sync.as_ref().map(Sync::ring);
        let life = self.p.view.me().incarnation;
        self.enqueue(
            0,
            true,
            |_, _| Ok(()),
            move |live, result| {
                let same = live.p.view.me().incarnation == life;
                let Some(sync) = live.p.sync.as_mut().filter(|sync| Some(sync.ring()) == ring) else {
                    return;
                };
                let complete = report.complete && result.is_ok() && same;
                sync.ended(due.partition, &due.peer, complete);
                live.sh.stats.pulled += u64::from(complete);
                live.settle_recovery();
                live.advance();
            },
        );
    }

    fn keep_recovery(&mut self) {
        let bytes = self.p.recovery.as_ref().map(Recovery::encode);
        self.enqueue(
            0,
            true,
            move |_, group| {
                group.set(Place::Meta(boot::RECOVERY), bytes.map(Value::Bytes));
                Ok(())
            },
            |_, _| {},
        );
    }

    /// A suspect store is whole once it has everything that any ring makes it hold; and nobody can have retired the base ring
    /// without its word.
    pub fn settle_recovery(&mut self) {
        let Some(transition) = self.p.view.transition() else {
            return;
        };
        let pulled = self.p.sync.as_ref().filter(|sync| sync.is_done()).map(Sync::ring);
        let whole = self.p.recovery.as_ref().is_some_and(Recovery::is_whole);
        let careless =
            self.sh.knobs.mistake == Some(Mistake::WholeWhereNotListed) && transition.next().is_none();
        if whole && (careless || transition.may_be_trusted(pulled)) {
            self.p.recovery = None;
            self.p.whole_again = true;
            self.sh.stats.recovered += 1;
            self.keep_recovery();
            self.advance();
        }
    }

    /// Keeps the trees of the partitions that the node holds by any ring, or may have to give.
    pub fn keep_trees(&mut self) {
        let Some(rings) = &self.p.rings else { return };
        let layouts = Rc::clone(&rings.layouts);
        let partitions = rings.base().placement.ring().partitions();
        if self.p.trees_for != partitions {
            self.p.trees = Trees::new(partitions);
            self.p.trees_for = partitions;
        }
        for partition in (0..partitions).map(PartitionId) {
            let me = &self.sh.members[self.me];
            let wanted = layouts.may_give_partition(partition, me) || self.p.strays.has(partition);
            let known = self.p.trees.state(partition) != TreeState::Unknown;
            if wanted && !known {
                self.p.trees.rebuild(partition);
            } else if known && !wanted {
                self.p.trees.forget(partition);
            }
        }
    }

    /// A page of the keys of some leaves, as exchanges see them.
    pub fn key_page(
        &mut self,
        partition: PartitionId,
        leaves: &[u32],
        after: Option<&Position>,
        recovery: bool,
    ) -> Result<KeyPage, DiskError> {
        let shape = self.p.trees.shape();
        let keys = Rc::clone(&self.sh.keys);
        let mut page = KeyPage {
            keys: Vec::new(),
            more: false,
        };
        let keys_max = if self.sh.buggify.fires(Site::OneKeyPage) {
            1
        } else {
            KEYS_PER_MESSAGE
        };
        for leaf in leaves {
            for key in keys.in_range(&shape.leaf_range(partition, *leaf)) {
                let position = &keys.get(key).position;
                if after.is_some_and(|after| position <= after) {
                    continue;
                }
                if let Err(error) = self.disk.get(Place::Data(key)) {
                    self.refetch(key);
                    return Err(error);
                }
                let state = if recovery {
                    self.disk.peek(Place::Data(key)).cloned()
                } else {
                    self.exchanged_state(key)
                };
                let Some(state) = state else { continue };
                if page.keys.len() == keys_max {
                    page.more = true;
                    return Ok(page);
                }
                page.keys.push(KeySummary {
                    position: position.clone(),
                    hash: record_hash(position.as_bytes(), &state.encode()),
                });
            }
        }
        Ok(page)
    }

    /// What a puller gets of a record.
    pub fn give(&mut self, key: KeyIx, mine: Option<&KeyState>) -> Pulled {
        if self.disk.get(Place::Data(key)).is_err() {
            self.refetch(key);
            return Pulled::Without(PullResult::Failed);
        }
        match self.disk.peek(Place::Data(key)).cloned() {
            None => Pulled::Without(PullResult::Gone),
            Some(state) if mine.is_some_and(|mine| *mine == *state || !has_news_for(&state, mine)) => {
                Pulled::Without(PullResult::NoNews)
            }
            Some(state) => Pulled::State(self.on_the_way(state)),
        }
    }

    fn fold(&mut self) {
        if self.p.trees.next_rebuild().is_none() || !self.has_turn(Task::Rebuild, 1) {
            return;
        }
        let Some((partition, after)) = self.p.trees.next_rebuild() else {
            return;
        };
        let after = after.cloned();
        let keys = Rc::clone(&self.sh.keys);
        let Some(rings) = &self.p.rings else { return };
        let range = rings.base().placement.ring().range(partition);
        let mut records = Vec::new();
        let mut looked = None;
        for key in keys.in_range(&range) {
            let position = &keys.get(key).position;
            if after.as_ref().is_some_and(|after| position <= after) {
                continue;
            }
            if records.len() == FOLD_KEYS {
                looked = records
                    .last()
                    .map(|(position, _): &(Position, u64)| position.clone());
                break;
            }
            if let Some(state) = self.exchanged_state(key) {
                records.push((
                    position.clone(),
                    record_hash(position.as_bytes(), &state.encode()),
                ));
            }
        }
        self.p.trees.fold(partition, records, looked);
    }
}

fn answer(result: CallResult) -> ExchangeEvent {
    match result {
        Ok(Reply::Hashes { hashes, suspect }) => ExchangeEvent::PeerHashes { hashes, suspect },
        Ok(Reply::Keys { page, suspect }) => ExchangeEvent::PeerKeys { page, suspect },
        Ok(Reply::NotReady) => ExchangeEvent::PeerNotReady,
        Err(failure) if failure.kind == FailureKind::StaleEpoch => ExchangeEvent::PeerNotReady,
        _ => ExchangeEvent::Failed,
    }
}
