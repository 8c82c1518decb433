//! Clients: get, resolve, put with the context; blind writers; deleters. Each has one operation under way at a time.
//!
//! A write that times out is unknown, not failed: it may show up or not. A retry carries the same operation id.

use std::rc::Rc;

use bytes::Bytes;
use dynamo_core::bucket::Conflict;
use dynamo_core::coordinator::WriteState;
use dynamo_core::crdt;
use dynamo_core::version::{Content, Dot, KeyState, Seen};

use crate::invariants;
use crate::keys::KeyIx;
use crate::ledger::{Status, Write};
use crate::messages::{Ask, NodeIx, PutCommand, PutReply, Told};
use crate::nemesis::Class;
use crate::operations;
use crate::rng::Rng;
use crate::shared::{Event, Shared};

/// Tags that a cart holds before it is begun anew.
const TAGS_MAX: usize = 24;
/// Attempts at one request while there are faults.
const ATTEMPTS: u32 = 3;
/// An operation that begins in the liveness phase must succeed within so many milliseconds.
const LIVE_WITHIN_MS: u64 = 6000;

/// What an operation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Cart,
    Register,
    Delete,
    Blind,
    Expiring,
    /// An operation on a value of a data type.
    Typed,
}

/// One client.
pub struct Client {
    me: usize,
    rng: Rng,
    /// Names what is awaited; everything older is of no account.
    op: u64,
    running: Option<Running>,
    /// Nodes that it asks; all, but for the broken minority.
    pub nodes: Vec<NodeIx>,
    /// No new operations.
    pub stopped: bool,
    /// Operations must succeed from now on.
    pub live: bool,
}

struct Running {
    kind: Kind,
    key: KeyIx,
    begun_us: u64,
    /// When the put began, if there is one.
    put_us: u64,
    must_succeed: bool,
    attempts: u32,
    /// What a read must know.
    promised: Seen,
    /// The put, once there is one.
    write: Option<PutCommand>,
    /// One of its attempts may have been carried out.
    unknown: bool,
}

impl Client {
    /// A client that begins soon.
    pub fn new(me: usize, sh: &mut Shared) -> Self {
        let mut rng = Rng::new(sh.knobs.seed, &format!("client {me}"));
        let at_us = rng.below(200_000);
        sh.queue.push(at_us, Event::Client { client: me, op: 0 });
        Self {
            me,
            rng,
            op: 0,
            running: None,
            nodes: (0..sh.knobs.nodes).collect(),
            stopped: false,
            live: false,
        }
    }

    /// Nothing is under way.
    pub fn idle(&self) -> bool {
        self.running.is_none()
    }

    /// Its own clock: the next operation, or the end of its patience.
    pub fn wake(&mut self, op: u64, sh: &mut Shared) {
        if op != self.op {
            return;
        }
        if self.running.is_some() {
            self.missed(true, sh);
        } else if !self.stopped {
            self.begin(sh);
        }
    }

    /// A node has answered.
    pub fn told(&mut self, op: u64, told: Told, sh: &mut Shared) {
        if op != self.op || self.running.is_none() {
            return;
        }
        match told {
            Told::Found(state) => self.read(Some(state), sh),
            Told::Absent(state) => self.read(state, sh),
            Told::Put(reply) => self.written(&reply, sh),
            Told::Unavailable | Told::NotServing => self.missed(false, sh),
        }
    }

    fn begin(&mut self, sh: &mut Shared) {
        let (kind, key) = if self.me < sh.knobs.clients {
            self.draw(sh)
        } else {
            self.draw_other(sh)
        };
        // A clock that was set back refuses writes where the last one wins, until it has caught up.
        let refused = sh.keys.get(key).conflict == Conflict::Lww
            && sh
                .knobs
                .classes
                .iter()
                .any(|class| [Class::ClockStep, Class::ClockDrift].contains(class));
        self.running = Some(Running {
            kind,
            key,
            begun_us: sh.now_us,
            put_us: 0,
            must_succeed: self.live && !refused,
            attempts: 0,
            promised: sh.ledger.key(key).promised.clone(),
            write: None,
            unknown: false,
        });
        if kind == Kind::Blind || (kind == Kind::Typed && self.rng.coin()) {
            self.write(None, Seen::new(), Seen::new(), sh);
        } else {
            self.ask(sh);
        }
    }

    /// What to do with a key of another bucket than the plain ones.
    fn draw_other(&mut self, sh: &Shared) -> (Kind, KeyIx) {
        let key = sh.keys.others[self.rng.index(sh.keys.others.len())];
        let kind = if sh.keys.get(key).conflict.data_type().is_some() {
            [Kind::Typed, Kind::Typed, Kind::Typed, Kind::Read][self.rng.index(4)]
        } else {
            [Kind::Register, Kind::Blind, Kind::Delete, Kind::Read][self.rng.index(4)]
        };
        (kind, key)
    }

    fn draw(&mut self, sh: &Shared) -> (Kind, KeyIx) {
        let mix = sh.knobs.mix;
        let shares = [
            (Kind::Cart, mix.cart),
            (Kind::Register, mix.register),
            (Kind::Delete, mix.delete),
            (Kind::Blind, mix.blind),
            (Kind::Read, mix.read),
            (Kind::Expiring, mix.expiring),
        ];
        let mut pick = self.rng.below(shares.iter().map(|(_, share)| share).sum());
        let mut kind = Kind::Read;
        for (candidate, share) in shares {
            if pick < share {
                kind = candidate;
                break;
            }
            pick -= share;
        }
        let hot = self.rng.per_mille(sh.knobs.hot);
        let number = if hot {
            0
        } else {
            self.rng.below(u64::from(sh.knobs.keys)) as usize
        };
        (kind, sh.keys.plain[number])
    }

    /// Sends the request that the operation stands at to some node.
    fn ask(&mut self, sh: &mut Shared) {
        let Some(running) = &mut self.running else { return };
        running.attempts += 1;
        self.op += 1;
        let near: Vec<NodeIx> = {
            let primaries = &sh.preference_of(running.key).0;
            self.nodes
                .iter()
                .copied()
                .filter(|node| primaries.contains(node) && sh.knobs.avoid != Some(*node))
                .collect()
        };
        let anywhere = self.rng.per_mille(400) && sh.knobs.avoid.is_none();
        let among = if near.is_empty() || anywhere {
            &self.nodes
        } else {
            &near
        };
        let node = among[self.rng.index(among.len())];
        if let Some(command) = &running.write {
            sh.ledger.write_mut(command.write).status = Status::Unknown;
        }
        let ask = match &running.write {
            Some(command) => Ask::Put(Box::new(command.clone())),
            None => Ask::Get {
                key: running.key,
                quorum: sh.knobs.quorum(),
                timeout_ms: sh.knobs.timeout_ms,
            },
        };
        let (client, op, now_us) = (self.me, self.op, sh.now_us);
        sh.trace.line(now_us, || {
            let what = running.write.as_ref().map_or("get".to_owned(), |put| {
                format!(
                    "put write {} {:?} context {:?}",
                    put.write, put.content, put.context
                )
            });
            format!("c{client} -> n{node} op {op} key {} {what}", running.key)
        });
        if let Some(at_us) = sh.net.send_client(now_us) {
            sh.queue.push(
                at_us,
                Event::FromClient {
                    client,
                    op,
                    node,
                    ask,
                },
            );
        }
        let until_us = now_us + sh.knobs.timeout_ms * 1000;
        sh.queue.push(until_us, Event::Client { client, op });
    }

    /// A read is answered.
    fn read(&mut self, state: Option<Rc<KeyState>>, sh: &mut Shared) {
        let Some(running) = &self.running else { return };
        if running.write.is_some() {
            return;
        }
        let (kind, key) = (running.kind, running.key);
        sh.stats.reads += 1;
        let (client, now_us) = (self.me, sh.now_us);
        sh.trace
            .line(now_us, || format!("c{client} reads key {key} {state:?}"));
        invariants::on_read(sh, key, state.as_deref(), &running.promised);
        let state = state.unwrap_or_default();
        let truth = sh.ledger.truly_seen(key, &state);
        let context = match sh.keys.get(key).conflict.data_type() {
            Some(data_type) => crdt::read(data_type, &state, 0)
                .ok()
                .flatten()
                .map_or_else(|| state.context_seen(), |read| read.context),
            None => state.context_seen(),
        };
        let nothing = state.siblings().values().all(|sibling| sibling.value().is_none());
        if kind == Kind::Read || (kind == Kind::Delete && nothing && self.rng.coin()) {
            self.end(true, sh);
        } else {
            self.write(Some(&state), context, truth, sh);
        }
    }

    /// Begins the put of the operation.
    fn write(&mut self, read: Option<&KeyState>, context: Seen, past: Seen, sh: &mut Shared) {
        let Some(running) = &mut self.running else { return };
        let number = sh.ledger.next();
        let nothing =
            read.is_none_or(|state| state.siblings().values().all(|sibling| sibling.value().is_none()));
        let operation = sh
            .keys
            .get(running.key)
            .conflict
            .data_type()
            .map(|data_type| operations::draw(&mut self.rng, data_type, number, read.is_some()));
        let value = match running.kind {
            Kind::Typed => None,
            Kind::Delete if !nothing => None,
            Kind::Cart => Some(cart(read, number)),
            _ => Some(one_tag(number)),
        };
        let expires_at_ms = (running.kind == Kind::Expiring)
            .then(|| crate::clock::Clock::new().wall_ms(sh.now_us) + self.rng.between(500, 5000));
        let op_id = self.rng.per_mille(800).then(|| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            id
        });
        sh.ledger.key_mut(running.key).loose += u32::from(running.kind == Kind::Blind);
        sh.ledger.begin(Write {
            key: running.key,
            value: value.clone(),
            operation: operation.clone(),
            past,
            dots: Vec::new(),
            status: Status::Unknown,
            applied: false,
            op_id,
            acked_us: 0,
            expires_at_ms,
        });
        running.attempts = 0;
        running.put_us = sh.now_us;
        running.write = Some(PutCommand {
            key: running.key,
            write: number,
            content: value.map_or(Content::Tombstone, Content::Value),
            operation,
            context,
            op_id,
            expires_at_ms,
            quorum: sh.knobs.quorum(),
            timeout_ms: sh.knobs.timeout_ms,
        });
        self.ask(sh);
    }

    /// A put is answered.
    fn written(&mut self, reply: &PutReply, sh: &mut Shared) {
        let Some(running) = &mut self.running else { return };
        let Some(command) = &running.write else { return };
        let (number, key) = (command.write, running.key);
        let (client, now_us) = (self.me, sh.now_us);
        sh.trace.line(now_us, || {
            format!("c{client} write {number}: {:?} {:?}", reply.dot, reply.outcome)
        });
        match (&reply.outcome, reply.dot) {
            (Some(outcome), Some(dot)) if outcome.state == WriteState::Applied => {
                invariants::on_ack(sh, number, dot, outcome, &reply.context);
                sh.stats.acked += 1;
                sh.stats.sloppy += u64::from(outcome.fallbacks_counted > 0);
                let write = sh.ledger.write_mut(number);
                write.status = Status::Acked;
                write.acked_us = now_us;
                if outcome.primaries >= sh.knobs.w {
                    promise(sh, key, dot);
                }
                self.end(true, sh);
            }
            _ => {
                if reply.not_applied && !running.unknown {
                    sh.ledger.write_mut(number).status = Status::NotApplied;
                }
                self.missed(!reply.not_applied, sh);
            }
        }
    }

    /// An attempt has failed, or is unanswered.
    fn missed(&mut self, unknown: bool, sh: &mut Shared) {
        let Some(running) = &mut self.running else { return };
        running.unknown |= unknown;
        if let Some(command) = &running.write
            && running.unknown
        {
            sh.ledger.write_mut(command.write).status = Status::Unknown;
        }
        let since_ms = (sh.now_us - running.begun_us) / 1000;
        if running.must_succeed && !self.stopped {
            if since_ms > LIVE_WITHIN_MS {
                let what = format!(
                    "client {} gets no answer for key {} ({:?}) since {since_ms} ms with a minority broken",
                    self.me, running.key, running.kind
                );
                sh.violated("I15", what);
            }
            self.ask(sh);
        } else if running.attempts < ATTEMPTS && self.rng.coin() && may_repeat(running) {
            self.ask(sh);
        } else {
            self.end(false, sh);
        }
    }

    fn end(&mut self, good: bool, sh: &mut Shared) {
        if let Some(running) = self.running.take()
            && let Some(command) = &running.write
        {
            sh.put_us.push(sh.now_us - running.put_us);
            let loose = (!good || running.unknown) && running.kind != Kind::Blind;
            sh.ledger.key_mut(command.key).loose += u32::from(loose);
        }
        self.op += 1;
        sh.stats.operations += 1;
        sh.stats.failed += u64::from(!good);
        let pause_us = 1000 + self.rng.exponential(sh.knobs.think_ms * 1000);
        let at_us = sh.now_us + pause_us;
        sh.queue.push(
            at_us,
            Event::Client {
                client: self.me,
                op: self.op,
            },
        );
    }
}

/// A write without an operation id is repeated, too: then it may count twice, and both are its names.
fn may_repeat(running: &Running) -> bool {
    running.attempts > 0
}

fn promise(sh: &mut Shared, key: KeyIx, dot: Dot) {
    sh.ledger.promise(key, dot, sh.knobs.w);
}

fn one_tag(number: u32) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// All tags that were read, and a new one.
fn cart(read: Option<&KeyState>, number: u32) -> Bytes {
    let mut tags: Vec<u32> = read
        .iter()
        .flat_map(|state| state.siblings().values())
        .filter_map(|sibling| sibling.value())
        .flat_map(|value| value.chunks_exact(4))
        .map(|tag| tag.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
        .collect();
    tags.sort_unstable();
    tags.dedup();
    if tags.len() >= TAGS_MAX {
        tags.clear();
    }
    tags.push(number);
    tags.iter()
        .flat_map(|tag| tag.to_be_bytes())
        .collect::<Vec<u8>>()
        .into()
}
