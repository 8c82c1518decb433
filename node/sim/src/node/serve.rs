//! Requests of other nodes, as `node/src/grpc/peer.rs` serves them.

use std::rc::Rc;

use dynamo_core::coordinator::{Ack, FailureKind, ReplicaFailure};
use dynamo_core::entropy::PushResult;
use dynamo_core::transition::Fenced;

use dynamo_core::types::Incarnation;

use super::Live;
use crate::invariants::i19_the_dead_have_no_part;
use crate::messages::{Body, Envelope, Epochs, NodeIx, Reply, Request};
use crate::mistakes::Mistake;

impl Live<'_> {
    /// A message arrives.
    pub fn arrive(&mut self, envelope: Envelope) {
        let Envelope {
            from,
            call,
            body,
            cluster,
            epochs,
            to,
            incarnation,
        } = envelope;
        match body {
            Body::Reply(reply) => self.answered(call, Some(reply)),
            Body::Request(request) => {
                let misdirected = cluster != 0 || to != self.me;
                let refused = if misdirected && self.sh.knobs.mistake != Some(Mistake::AddressIsIdentity) {
                    Some(Reply::NotServing)
                } else {
                    self.fences(from, incarnation, epochs, &request)
                };
                if let Some(refusal) = refused {
                    self.sh.stats.refused += 1;
                    self.reply(from, call, refusal);
                } else {
                    self.serve(from, call, epochs, request);
                }
            }
        }
    }

    /// Of a life that is over, of a former member, or by a ring that was retired, nothing but news is taken.
    fn fences(
        &mut self,
        from: NodeIx,
        incarnation: Incarnation,
        (base, reads, newest): Epochs,
        request: &Request,
    ) -> Option<Reply> {
        if is_membership(request) || self.sh.knobs.mistake == Some(Mistake::GhostAdmitted) {
            return None;
        }
        let stale = Reply::Failed {
            sent: false,
            kind: FailureKind::StaleEpoch,
        };
        let sender = self.sh.members.get(from)?;
        let known = self.p.view.get(sender);
        if known.is_some_and(|known| known.incarnation.generation > incarnation.generation) {
            self.sh.stats.fenced += 1;
            return Some(stale);
        }
        if newest.is_some_and(|newest| self.is_behind(newest)) {
            self.sh.stats.fenced += 1;
            return Some(stale);
        }
        match self.p.rings.as_ref()?.layouts.admits(sender, base, reads) {
            Ok(()) => None,
            Err(Fenced::NotAMember) => Some(Reply::NotServing),
            Err(Fenced::Retired) => {
                self.sh.stats.fenced += 1;
                Some(stale)
            }
        }
    }

    /// Partitions are numbered as the base ring has them: both ends must have the same one.
    fn same_base(&self, request: &Request, epochs: Epochs) -> bool {
        let by_partition = matches!(
            request,
            Request::Hashes { .. } | Request::Keys { .. } | Request::Pull { .. } | Request::Clear(..)
        );
        !by_partition || epochs.0 == self.epoch()
    }

    fn serve(&mut self, from: NodeIx, call: u64, epochs: Epochs, request: Request) {
        if !is_membership(&request) {
            let rings = self.p.rings.as_ref();
            let layouts = rings.map(|rings| Rc::clone(&rings.layouts));
            i19_the_dead_have_no_part::heard(self.sh, self.me, layouts.as_deref(), from);
        }
        if !is_membership(&request) && !self.same_base(&request, epochs) {
            self.reply(from, call, Reply::NotReady);
            return;
        }
        if !is_membership(&request) && !self.serving() {
            self.reply(from, call, Reply::NotServing);
            return;
        }
        match request {
            Request::Probe => self.reply(from, call, Reply::Done),
            Request::Digest(_) | Request::Delta(_) if self.is_deaf() => {
                let nothing = Reply::Failed {
                    sent: false,
                    kind: FailureKind::Overloaded,
                };
                self.reply(from, call, nothing);
            }
            Request::Digest(digest) => {
                let now_ms = self.now_ms();
                let asking = &self.sh.members[from];
                self.p.detector.sign_of_life(asking, now_ms);
                if let Some(remembered) = self.p.view.exposed_by(&digest)
                    && self.sh.knobs.mistake != Some(Mistake::SameIncarnationAfterLoss)
                {
                    self.exposed(remembered);
                }
                let answer = self.p.view.answer(&digest);
                let unconfirmed = self.unconfirmed();
                let remembers =
                    self.p.view.vouches() || self.sh.knobs.mistake == Some(Mistake::ForgetfulVouches);
                let fresh = self.p.fresh && !self.p.confirmed;
                // Who begins with nothing would know this node only by its own word, and vouch for it afterwards.
                let unheard = unconfirmed && digest.ring.is_none();
                let reply = Reply::Gossip {
                    answer: Box::new(answer),
                    forgetful: fresh || unheard || !remembers,
                    unconfirmed,
                };
                self.reply(from, call, reply);
            }
            Request::Delta(delta) => self.take_news(*delta, move |live| live.reply(from, call, Reply::Done)),
            Request::Read { key, fallback: false } if !self.holds(key) => {
                // It is read by a ring that this node does not know of, or no longer.
                let stale = Reply::Failed {
                    sent: false,
                    kind: FailureKind::StaleEpoch,
                };
                self.reply(from, call, stale);
            }
            Request::Read { key, fallback } => {
                let suspect = self.suspect_reader(key);
                let reply = match self.load(key, fallback) {
                    Ok(_) if self.unconfirmed() => Reply::Read { state: None, suspect },
                    Ok(state) => {
                        let state = state.map(|state| self.on_the_way(state));
                        Reply::Read { state, suspect }
                    }
                    Err(_) => Reply::Failed {
                        sent: false,
                        kind: FailureKind::Storage,
                    },
                };
                self.reply(from, call, reply);
            }
            Request::Write {
                key, hint_for: None, ..
            } if !self.holds(key) => {
                let stale = Reply::Failed {
                    sent: false,
                    kind: FailureKind::StaleEpoch,
                };
                self.reply(from, call, stale);
            }
            Request::Write {
                key,
                state,
                hint_for,
                sync,
            } => {
                let state = self.on_the_way(state);
                let delta = Rc::clone(&state);
                let answer = move |live: &mut Live<'_>, result: Result<Ack, ReplicaFailure>| {
                    let reply = match result {
                        Ok(ack) => Reply::Written { durable: ack.durable },
                        Err(failure) => Reply::Failed {
                            sent: failure.sent,
                            kind: failure.kind,
                        },
                    };
                    live.reply(from, call, reply);
                };
                self.merge(key, state, hint_for, sync, move |live, result| {
                    if hint_for.is_none() {
                        live.keep_for_itself(key, delta, result, answer);
                    } else {
                        answer(live, result);
                    }
                });
            }
            Request::Coordinate(command) => self.forwarded(from, call, *command),
            Request::Hashes {
                partition,
                level,
                nodes,
            } => {
                let suspect = self.suspect_source(partition);
                let now_ms = self.now_ms();
                let sender = &self.sh.members[from];
                let let_in = level == 0 || self.p.schedule.lets_in(partition, sender, now_ms);
                let tree = self.p.trees.ready(partition).filter(|_| let_in);
                let hashes = tree.and_then(|tree| tree.hashes_of(level, &nodes));
                let reply = hashes.map_or(Reply::NotReady, |hashes| Reply::Hashes { hashes, suspect });
                self.reply(from, call, reply);
            }
            Request::Keys {
                partition,
                leaves,
                after,
                recovery,
            } => {
                let suspect = self.suspect_source(partition);
                let page = self.key_page(partition, &leaves, after.as_ref(), recovery);
                let failed = Reply::Failed {
                    sent: false,
                    kind: FailureKind::Storage,
                };
                let reply = page.map_or(failed, |page| Reply::Keys { page, suspect });
                self.reply(from, call, reply);
            }
            Request::Compare(keys) => {
                let differing = self.differing(keys);
                self.reply(from, call, Reply::Compared(differing));
            }
            Request::Pull { partition, keys } => {
                let results = keys
                    .into_iter()
                    .map(|(key, mine)| (key, self.give(key, mine.as_deref())))
                    .collect();
                let suspect = self.suspect_source(partition);
                self.reply(from, call, Reply::Pulled { results, suspect });
            }
            Request::Push(records) => self.pushed(from, call, records),
            Request::Agree(round, partition, proposals) => {
                let opinions = self.agree(round, partition, &proposals);
                self.reply(from, call, Reply::Opinions(opinions));
            }
            Request::Clear(round, partition) => {
                let result = self.is_clear(round, partition);
                self.reply(from, call, Reply::Cleared(result));
            }
            Request::Prepare(round, partition, proposals) => {
                self.prepare_marks(round, partition, proposals, move |live, opinions| {
                    live.reply(from, call, Reply::Opinions(opinions));
                });
            }
            Request::Commit(round, _, proposals, shortened) => {
                self.commit_marks(round, proposals, &shortened, move |live, positions| {
                    live.reply(from, call, Reply::Committed(positions));
                });
            }
        }
    }

    /// Records that a peer's exchange pushes: merged durably, each answered for itself.
    fn pushed(
        &mut self,
        from: NodeIx,
        call: u64,
        records: Vec<(crate::keys::KeyIx, Rc<dynamo_core::version::KeyState>)>,
    ) {
        let results = Rc::new(std::cell::RefCell::new(vec![None; records.len()]));
        for (index, (key, state)) in records.into_iter().enumerate() {
            if !self.holds(key) {
                results.borrow_mut()[index] = Some(PushResult::Failed);
                continue;
            }
            let state = self.on_the_way(state);
            let results = Rc::clone(&results);
            self.merge(key, state, None, true, move |live, result| {
                let mut all = results.borrow_mut();
                all[index] = Some(match result {
                    Ok(_) => PushResult::Merged,
                    Err(_) => PushResult::Failed,
                });
                if all.iter().all(Option::is_some) {
                    let all = all.iter().copied().flatten().collect();
                    live.reply(from, call, Reply::Pushed(all));
                }
            });
        }
        let refused = results
            .borrow()
            .iter()
            .all(|result| *result == Some(PushResult::Failed));
        if refused {
            let all = results.borrow().iter().copied().flatten().collect();
            self.reply(from, call, Reply::Pushed(all));
        }
    }
}

fn is_membership(request: &Request) -> bool {
    matches!(request, Request::Digest(_) | Request::Delta(_) | Request::Probe)
}
