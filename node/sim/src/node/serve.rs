//! Requests of other nodes, as `node/src/grpc/peer.rs` serves them.

use std::rc::Rc;

use dynamo_core::coordinator::{Ack, FailureKind, ReplicaFailure};
use dynamo_core::membership::may_send_data;

use super::Live;
use crate::messages::{Body, Envelope, NodeIx, Reply, Request};
use crate::mistakes::Mistake;

impl Live<'_> {
    /// A message arrives.
    pub fn arrive(&mut self, envelope: Envelope) {
        let Envelope {
            from,
            call,
            body,
            cluster,
            epoch,
            to,
            ..
        } = envelope;
        match body {
            Body::Reply(reply) => self.answered(call, Some(reply)),
            Body::Request(request) if self.refuses(from, to, (cluster, epoch), &request) => {
                self.sh.stats.refused += 1;
                self.reply(from, call, Reply::NotServing);
            }
            Body::Request(request) => self.serve(from, call, request),
        }
    }

    /// Another cluster's, meant for another member, or of a former member that wants more than news: refused before
    /// anything is looked at.
    fn refuses(&self, from: NodeIx, to: NodeIx, (cluster, epoch): (u8, u64), request: &Request) -> bool {
        let mistake = self.sh.knobs.mistake;
        let misdirected = cluster != 0 || to != self.me;
        let ghost = self
            .p
            .view
            .ring()
            .is_some_and(|ring| !may_send_data(ring, &self.sh.members[from], epoch));
        (misdirected && mistake != Some(Mistake::AddressIsIdentity))
            || (ghost && !is_membership(request) && mistake != Some(Mistake::GhostAdmitted))
    }

    fn serve(&mut self, from: NodeIx, call: u64, request: Request) {
        if !is_membership(&request) && !self.serving() {
            self.reply(from, call, Reply::NotServing);
            return;
        }
        match request {
            Request::Probe => self.reply(from, call, Reply::Done),
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
                let fresh = self.p.fresh && !self.p.confirmed;
                // Who begins with nothing would know this node only by its own word, and vouch for it afterwards.
                let unheard = self.unconfirmed() && digest.ring.is_none();
                self.reply(from, call, Reply::Gossip(Box::new(answer), fresh || unheard));
            }
            Request::Delta(delta) => {
                self.take_news(*delta);
                self.reply(from, call, Reply::Done);
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
                let suspect = self.suspect(partition);
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
                let suspect = self.suspect(partition);
                let page = self.key_page(partition, &leaves, after.as_ref(), recovery);
                let failed = Reply::Failed {
                    sent: false,
                    kind: FailureKind::Storage,
                };
                let reply = page.map_or(failed, |page| Reply::Keys { page, suspect });
                self.reply(from, call, reply);
            }
            Request::Pull { partition, keys } => {
                let results = keys
                    .into_iter()
                    .map(|(key, mine)| (key, self.give(key, mine.as_deref())))
                    .collect();
                let suspect = self.suspect(partition);
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
            let state = self.on_the_way(state);
            let results = Rc::clone(&results);
            self.merge(key, state, None, true, move |live, result| {
                use dynamo_core::entropy::PushResult;
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
    }
}

fn is_membership(request: &Request) -> bool {
    matches!(request, Request::Digest(_) | Request::Delta(_) | Request::Probe)
}
