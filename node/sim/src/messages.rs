//! What travels: requests between nodes and their replies, and what clients say. Values, not bytes; in one run of
//! sixteen every state goes through its encoding.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use dynamo_core::coordinator::{FailureKind, WriteOutcome};
use dynamo_core::crdt::Operation;
use dynamo_core::entropy::{KeyPage, PullResult, PushResult};
use dynamo_core::listing::Position;
use dynamo_core::membership::{Answer, Delta, Digest, RingVersion};
use dynamo_core::quorum::Quorum;
use dynamo_core::reap::{Opinion, Proposal, Refusal, Round};
use dynamo_core::types::{Incarnation, OpId, PartitionId};
use dynamo_core::version::{Content, Dot, KeyState, Seen};

use crate::keys::KeyIx;

/// A node's index; its member id is `n` and this number.
pub type NodeIx = usize;
/// Epochs of the sender's base ring and of the ring that it reads from, 0: none; and the newest ring that it knows of.
pub type Epochs = (u64, u64, Option<RingVersion>);
/// Names a call; never the same twice in a run.
pub type CallId = u64;

/// A put or a delete, as a client or a forwarding node hands it to a coordinator.
#[derive(Clone, Debug)]
pub struct PutCommand {
    /// Which key.
    pub key: KeyIx,
    /// The ledger's number of the write. No node looks at it.
    pub write: u32,
    /// The new value, or a tombstone.
    pub content: Content,
    /// In a bucket of a data type: what to do, in place of the content.
    pub operation: Option<Operation>,
    /// What the client has seen.
    pub context: Seen,
    /// For retries.
    pub op_id: Option<OpId>,
    /// When the value expires, by wall clocks.
    pub expires_at_ms: Option<u64>,
    /// The numbers in effect.
    pub quorum: Quorum,
    /// What is left of the client's patience.
    pub timeout_ms: u64,
}

/// How a put ended, for the client.
#[derive(Clone, Debug)]
pub struct PutReply {
    /// The coordinator's truth; `None`: not known.
    pub outcome: Option<WriteOutcome>,
    /// Nothing was sent or stored.
    pub not_applied: bool,
    /// The write's name, if it is applied.
    pub dot: Option<Dot>,
    /// The reply's context.
    pub context: Seen,
}

/// What records with long histories become, by position.
pub type Shortened = Rc<BTreeMap<Bytes, KeyState>>;

/// A request between nodes.
#[derive(Clone, Debug)]
pub enum Request {
    /// Read a record, at a fallback with its hints.
    Read {
        /// Which.
        key: KeyIx,
        /// It stands in for a primary.
        fallback: bool,
    },
    /// Merge a state.
    Write {
        /// Which key.
        key: KeyIx,
        /// What.
        state: Rc<KeyState>,
        /// Keep it as a hint for that member.
        hint_for: Option<NodeIx>,
        /// Answer when it is durable, in every mode.
        sync: bool,
    },
    /// Say which of these records differ, by their digests.
    Compare(Vec<(KeyIx, Option<u64>)>),
    /// Coordinate a write.
    Coordinate(Box<PutCommand>),
    /// Compare views.
    Digest(Box<Digest>),
    /// Take news.
    Delta(Box<Delta>),
    /// Say something.
    Probe,
    /// Hashes of a tree.
    Hashes {
        /// Whose.
        partition: PartitionId,
        /// 0 for the root.
        level: u32,
        /// Which.
        nodes: Vec<u32>,
    },
    /// A page of keys.
    Keys {
        /// Of which partition.
        partition: PartitionId,
        /// Of which leaves.
        leaves: Vec<u32>,
        /// Behind which position.
        after: Option<Position>,
        /// The asker is suspect and wants everything.
        recovery: bool,
    },
    /// Records, unless the asker's own state has it all.
    Pull {
        /// Of which partition.
        partition: PartitionId,
        /// Which, with the asker's state: on the wire, its hash and what is left of it without values.
        keys: Vec<(KeyIx, Option<Rc<KeyState>>)>,
    },
    /// Records to merge durably.
    Push(Vec<(KeyIx, Rc<KeyState>)>),
    /// The first question of a reaping.
    Agree(Round, PartitionId, Vec<Proposal>),
    /// The second.
    Clear(Round, PartitionId),
    /// The third.
    Prepare(Round, PartitionId, Vec<Proposal>),
    /// The removal.
    Commit(Round, PartitionId, Vec<Proposal>, Shortened),
}

/// What a record's owner has for a puller.
#[derive(Clone, Debug)]
pub enum Pulled {
    /// Its state.
    State(Rc<KeyState>),
    /// Nothing, or a reason why not.
    Without(PullResult),
}

/// A reply between nodes.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A record; `Err`: it cannot be read.
    Read {
        /// What is here.
        state: Option<Rc<KeyState>>,
        /// The store is suspect for this partition.
        suspect: bool,
    },
    /// A state is merged.
    Written {
        /// And synced.
        durable: bool,
    },
    /// The keys of the records that differ.
    Compared(Vec<KeyIx>),
    /// A forwarded write has ended.
    Put(Box<PutReply>),
    /// News and wishes.
    Gossip {
        /// Both.
        answer: Box<Answer>,
        /// The node itself began with nothing, or lost its memory: it cannot tell whether the receiver's store is whole.
        forgetful: bool,
        /// Its own store waits for a peer's word.
        unconfirmed: bool,
    },
    /// Done.
    Done,
    /// Of a tree.
    Hashes {
        /// In order.
        hashes: Vec<u64>,
        /// As above.
        suspect: bool,
    },
    /// Of a store.
    Keys {
        /// The page.
        page: KeyPage,
        /// As above.
        suspect: bool,
    },
    /// Of a store.
    Pulled {
        /// For the first of the keys.
        results: Vec<(KeyIx, Pulled)>,
        /// As above.
        suspect: bool,
    },
    /// Of a store.
    Pushed(Vec<PushResult>),
    /// Of a primary, to `Agree` and `Prepare`.
    Opinions(BTreeMap<Bytes, Opinion>),
    /// Of a member.
    Cleared(Result<(), Refusal>),
    /// Of a primary.
    Committed(BTreeSet<Bytes>),
    /// The tree is being rebuilt, or there is none.
    NotReady,
    /// The node serves nothing now, and has done nothing.
    NotServing,
    /// The node is alive and could not do it.
    Failed {
        /// It may have been done in part.
        sent: bool,
        /// Why.
        kind: FailureKind,
    },
    /// Said by the transport in the peer's place: nobody listens, or the connection broke.
    Broken {
        /// The request may have been carried out.
        sent: bool,
    },
}

/// A message between nodes on its way.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Who sent it.
    pub from: NodeIx,
    /// Which life of its data.
    pub incarnation: Incarnation,
    /// Of another cluster, if not 0.
    pub cluster: u8,
    /// Of the sender's rings.
    pub epochs: Epochs,
    /// To whom.
    pub to: NodeIx,
    /// Which call it belongs to.
    pub call: CallId,
    /// What it says.
    pub body: Body,
}

/// A request or a reply.
#[derive(Clone, Debug)]
pub enum Body {
    /// To be answered.
    Request(Request),
    /// The answer.
    Reply(Reply),
}

/// What a client asks a node.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Read a key.
    Get {
        /// Which.
        key: KeyIx,
        /// The numbers in effect.
        quorum: Quorum,
        /// How long the client waits.
        timeout_ms: u64,
    },
    /// Write a key.
    Put(Box<PutCommand>),
}

/// What a node answers a client.
#[derive(Clone, Debug)]
pub enum Told {
    /// A value, or siblings, or tombstones that say there is none.
    Found(Rc<KeyState>),
    /// There is nothing; with the tombstones that say so.
    Absent(Option<Rc<KeyState>>),
    /// Too few replicas.
    Unavailable,
    /// How a put ended.
    Put(Box<PutReply>),
    /// This node serves nothing now.
    NotServing,
}

impl Request {
    /// A few numbers that tell requests apart, for the chain.
    pub fn fingerprint(&self) -> [u64; 3] {
        let of =
            |state: &KeyState| (state.siblings().len() as u64) << 32 | state.seen().entries().len() as u64;
        match self {
            Self::Read { key, fallback } => [1, u64::from(*key), u64::from(*fallback)],
            Self::Write { key, state, .. } => [2, u64::from(*key), of(state)],
            Self::Coordinate(put) => [3, u64::from(put.key), u64::from(put.write)],
            Self::Digest(digest) => [4, digest.members.len() as u64, 0],
            Self::Delta(delta) => [5, delta.members.len() as u64, 0],
            Self::Probe => [6, 0, 0],
            Self::Hashes {
                partition,
                level,
                nodes,
            } => [
                7,
                u64::from(partition.0),
                u64::from(*level) << 32 | nodes.len() as u64,
            ],
            Self::Keys {
                partition, leaves, ..
            } => [8, u64::from(partition.0), leaves.len() as u64],
            Self::Pull { partition, keys } => [9, u64::from(partition.0), keys.len() as u64],
            Self::Push(keys) => [10, keys.len() as u64, 0],
            Self::Agree(round, partition, keys) => [11, round.id ^ u64::from(partition.0), keys.len() as u64],
            Self::Clear(round, partition) => [12, round.id, u64::from(partition.0)],
            Self::Prepare(round, partition, keys) => {
                [13, round.id ^ u64::from(partition.0), keys.len() as u64]
            }
            Self::Commit(round, partition, keys, _) => {
                [14, round.id ^ u64::from(partition.0), keys.len() as u64]
            }
            Self::Compare(keys) => [15, keys.len() as u64, 0],
        }
    }
}

impl Reply {
    /// As of requests.
    pub fn fingerprint(&self) -> [u64; 2] {
        match self {
            Self::Read { state, suspect } => {
                let siblings = state
                    .as_ref()
                    .map_or(0, |state| state.siblings().len() as u64 + 1);
                [21 + u64::from(*suspect), siblings]
            }
            Self::Written { durable } => [23, u64::from(*durable)],
            Self::Put(reply) => [24, reply.dot.map_or(0, |dot| dot.counter ^ dot.actor.incarnation)],
            Self::Gossip { answer, .. } => [25, answer.delta.members.len() as u64],
            Self::Done => [26, 0],
            Self::Hashes { hashes, .. } => [27, hashes.iter().fold(0, |sum, hash| sum ^ hash)],
            Self::Keys { page, .. } => [28, page.keys.len() as u64],
            Self::Pulled { results, .. } => [29, results.len() as u64],
            Self::Pushed(results) => [30, results.len() as u64],
            Self::Opinions(opinions) => [31, opinions.len() as u64],
            Self::Cleared(result) => [32, u64::from(result.is_ok())],
            Self::Committed(positions) => [33, positions.len() as u64],
            Self::NotReady => [34, 0],
            Self::NotServing => [35, 0],
            Self::Failed { kind, .. } => [36, *kind as u64],
            Self::Compared(keys) => [38, keys.len() as u64],
            Self::Broken { sent } => [37, u64::from(*sent)],
        }
    }
}
