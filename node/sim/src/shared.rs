//! What all parts of a world share: time, the queue of events, the network, the ledger and the trace.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use dynamo_core::membership::RingVersion;
use dynamo_core::ring::{Placement, Ring};
use dynamo_core::types::{Incarnation, KeyHash, MemberId, PartitionId, Zone};

use crate::buggify::Buggify;
use crate::keys::{KeyIx, Keys};
use crate::knobs::Knobs;
use crate::ledger::Ledger;
use crate::messages::{Ask, Body, CallId, Envelope, Epochs, NodeIx, Reply, Request, Told};
use crate::network::Network;
use crate::queue::Queue;
use crate::rng::Rng;
use crate::trace::Trace;

/// Something that happens at a time.
pub enum Event {
    /// A message reaches a node.
    Arrive(Box<Envelope>),
    /// A timer of a process; of no account once the process is another.
    Timer {
        /// Whose.
        node: NodeIx,
        /// Which process.
        boot: u64,
        /// Which timer.
        timer: Timer,
    },
    /// A client's question reaches a node.
    FromClient {
        /// Who asks.
        client: usize,
        /// Which of its operations.
        op: u64,
        /// Whom.
        node: NodeIx,
        /// What.
        ask: Ask,
    },
    /// A node's answer reaches a client.
    ToClient {
        /// Whom.
        client: usize,
        /// Which of its operations.
        op: u64,
        /// What.
        told: Told,
    },
    /// A client's own clock: its next operation, or the end of its patience with one.
    Client {
        /// Whose.
        client: usize,
        /// Which of its operations.
        op: u64,
    },
    /// A fault of the plan begins.
    Fault(usize),
    /// A fault's time is over.
    Undo(usize),
    /// A node that has ended by itself starts again.
    Restart(NodeIx),
    /// The next phase of the run begins.
    Phase,
    /// An administrator sees whether the member of that fault has been declared dead.
    Declare(usize),
    /// Disks are copied, to be put back later.
    Copy,
}

/// A process's timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// A group is written: of the records (`false`) or the hints.
    Written(bool),
    /// A call's time is over.
    Call(CallId),
    /// A request's time is over.
    Deadline(u64),
    /// Replicas that a get has asked should have answered.
    Late(u64),
    /// Compare what gets have left out.
    Compare,
    /// Gossip with somebody.
    Gossip,
    /// Look for peers to probe.
    Probe,
    /// Deliver hints.
    Hints,
    /// Begin exchanges, build trees.
    Entropy,
    /// Begin a round of reaping.
    Reap,
    /// Sync what was only written.
    Sync,
    /// Look after records that cannot be read.
    Repair,
    /// A round of reaping has taken too long.
    ReapDeadline(u64),
}

/// A ring with the preference lists of all its partitions worked out; every node that knows the ring shares it.
#[derive(Debug)]
pub struct Lists {
    /// Whose.
    pub placement: Placement,
    /// By partition: primaries, fallbacks.
    lists: Vec<(Vec<NodeIx>, Vec<NodeIx>)>,
}

impl Lists {
    fn new(ring: &Arc<Ring>) -> Self {
        let placement = Placement::new(Arc::clone(ring));
        let nodes = |indexes: Vec<usize>| -> Vec<NodeIx> {
            let members = indexes.into_iter().map(|index| &ring.members()[index].id);
            members.map(number_of).collect()
        };
        let lists = (0..ring.partitions())
            .map(|partition| {
                let list = placement.preference_list(PartitionId(partition));
                (nodes(list.primaries), nodes(list.fallbacks))
            })
            .collect();
        Self { placement, lists }
    }

    /// Primaries and fallbacks of a key.
    pub fn of(&self, hash: KeyHash) -> &(Vec<NodeIx>, Vec<NodeIx>) {
        self.of_partition(self.placement.ring().partition_of(hash))
    }

    /// Primaries and fallbacks of a partition of this ring.
    pub fn of_partition(&self, partition: PartitionId) -> &(Vec<NodeIx>, Vec<NodeIx>) {
        &self.lists[partition.0 as usize]
    }
}

/// Ids are "n" and the index.
fn number_of(member: &MemberId) -> NodeIx {
    member.as_str()[1..].parse().unwrap_or(0)
}

/// A rule that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// `I1` to `I15`.
    pub invariant: &'static str,
    /// When it was noticed.
    pub at_us: u64,
    /// What was seen.
    pub what: String,
}

/// Counts of one run.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Operations that clients ended, well or not.
    pub operations: u64,
    /// Writes that were acknowledged.
    pub acked: u64,
    /// Writes with at least one hint among their acknowledgements.
    pub sloppy: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Operations that failed or timed out.
    pub failed: u64,
    /// Faults that took effect.
    pub faults: u64,
    /// Faults that would have destroyed the last copy of an acknowledged write.
    pub spared: u64,
    /// Hints that were kept.
    pub hints_kept: u64,
    /// Hints that were delivered.
    pub hints_delivered: u64,
    /// Hints that fallbacks declined.
    pub hints_declined: u64,
    /// Records that read repair sent.
    pub repairs: u64,
    /// Primaries that gets did not ask.
    pub left_out: u64,
    /// Gets that asked them after all, since others were late.
    pub hedged: u64,
    /// Exchanges that ended well.
    pub exchanges: u64,
    /// Records that exchanges moved.
    pub exchanged: u64,
    /// Partitions that became whole again.
    pub recovered: u64,
    /// Records removed for good.
    pub reaped: u64,
    /// Records whose history was shortened, on each replica.
    pub shortened: u64,
    /// Unreadable records that were fetched anew.
    pub refetched: u64,
    /// Writes that were refused since their key had too many siblings.
    pub capped: u64,
    /// Messages that were refused: of another cluster, for another member, from a former one.
    pub refused: u64,
    /// Rings that members were asked for and proposed.
    pub proposed: u64,
    /// Of these, rings that took the place of one that was to follow.
    pub changes_of_mind: u64,
    /// Rings that no member would propose, or that are none.
    pub not_proposed: u64,
    /// Rings that gave way to the next.
    pub transitions: u64,
    /// Partitions that were pulled for a ring to come.
    pub pulled: u64,
    /// Partitions whose data were given to their new owners and erased.
    pub released: u64,
    /// Members that left, and erased what they had.
    pub left: u64,
    /// Members whose machines were gone for good, and that were declared dead.
    pub dead: u64,
    /// Acknowledged writes that only they had.
    pub forfeited: u64,
    /// Writes that they acknowledged by themselves, having come back after all.
    pub dead_acks: u64,
    /// Requests of nodes that went by a ring that was retired.
    pub fenced: u64,
    /// Their keys, as bits; the first 64 only.
    pub capped_keys: u64,
    /// Turns that background work was not given.
    pub yielded: u64,
    /// Simulated milliseconds until all replicas were equal.
    pub quiet_after_ms: u64,
    /// Most writes that stood side by side in a record, on any node at any time.
    pub siblings_max: u64,
    /// Lives of stores that began.
    pub incarnations: u64,
    /// Reads that were not compared with what was acknowledged, for the sake of an answer with nobody there to ask.
    pub excused_reads: u64,
    /// Times that a disk forgot something: emptied, put back, damaged, or without power before a sync.
    pub amnesias: u64,
}

/// See the module.
pub struct Shared {
    /// Microseconds since the run began.
    pub now_us: u64,
    /// What is to come.
    pub queue: Queue<Event>,
    /// Between nodes.
    pub net: Network,
    /// What happened.
    pub trace: Trace,
    /// The truth.
    pub ledger: Ledger,
    /// What the run is like.
    pub knobs: Knobs,
    /// All keys.
    pub keys: Rc<Keys>,
    /// The first ring.
    pub ring: Arc<Ring>,
    /// The newest ring that any node has seen retire the one before: where everything belongs.
    pub serving: Rc<Lists>,
    /// All rings that some node has worked with.
    known_rings: BTreeMap<RingVersion, Rc<Lists>>,
    /// Of each ring that was proposed, the one that it follows: for the invariants.
    pub proposals: BTreeMap<RingVersion, RingVersion>,
    /// The ring before it, which has one more member; only with a ghost.
    pub former: Option<Arc<Ring>>,
    /// The base ring of each epoch, as its hash: for the invariants.
    pub rings: BTreeMap<u64, u64>,
    /// Rare paths.
    pub buggify: Buggify,
    /// Member ids by index; the ghost's comes last.
    pub members: Vec<MemberId>,
    /// Zones by index.
    pub zones: Vec<Zone>,
    /// The nodes' random numbers.
    pub rng: Rng,
    /// The disks'.
    pub rng_disk: Rng,
    /// Of writes that are long on their way.
    stragglers: Rng,
    /// What does not hold.
    pub violations: Vec<Violation>,
    /// Counts.
    pub stats: Stats,
    /// How long each put took that ended, well or not, in microseconds.
    pub put_us: Vec<u64>,
    /// Of nodes whose disk was put back in time, and not set aside since: how often they have started since then.
    pub old: Vec<Option<u32>>,
    /// Members that are gone for good, until they have come back after all and begun anew.
    pub buried: BTreeSet<NodeIx>,
    /// Until then a node hears and tells no news.
    pub deaf_until_us: Vec<u64>,
    /// When one of them last answered a read as if nothing were amiss, since nobody had been there to ask.
    pub old_read_us: Option<u64>,
    next: u64,
}

impl Shared {
    /// A shared state at the beginning of a run.
    pub fn new(knobs: Knobs, ring: Arc<Ring>) -> Self {
        let keys = Rc::new(Keys::new(knobs.keys, &knobs.others));
        let serving = Rc::new(Lists::new(&ring));
        let first = RingVersion::from(ring.as_ref());
        let (seed, nodes) = (knobs.seed, knobs.nodes);
        Self {
            now_us: 0,
            queue: Queue::new(Rng::new(seed, "order")),
            net: Network::new(
                knobs.nodes + usize::from(knobs.ghost),
                knobs.quality,
                Rng::new(seed, "network"),
            ),
            trace: Trace::default(),
            ledger: Ledger::new(knobs.keys as usize + knobs.others.len()),
            former: None,
            rings: BTreeMap::from([(ring.epoch(), ring.hash())]),
            buggify: Buggify::new(seed, knobs.buggify),
            members: knobs.members().map(|member| member.id).collect(),
            zones: knobs.members().map(|member| member.zone).collect(),
            knobs,
            keys,
            ring,
            known_rings: BTreeMap::from([(first, Rc::clone(&serving))]),
            serving,
            proposals: BTreeMap::new(),
            rng: Rng::new(seed, "nodes"),
            rng_disk: Rng::new(seed, "disk"),
            stragglers: Rng::new(seed, "stragglers"),
            violations: Vec::new(),
            stats: Stats::default(),
            put_us: Vec::new(),
            // A ghost has a place, too.
            old: vec![None; nodes + 1],
            buried: BTreeSet::new(),
            deaf_until_us: vec![0; nodes + 1],
            old_read_us: None,
            next: 0,
        }
    }

    /// Takes note of a ring before the present one, and of its member that is gone.
    pub fn know_former(&mut self, former: Option<Ring>) {
        let Some(former) = former else { return };
        self.rings.insert(former.epoch(), former.hash());
        let first = RingVersion::from(self.ring.as_ref());
        self.proposals.insert(first, RingVersion::from(&former));
        for member in former.members().iter().skip(self.members.len()) {
            self.members.push(member.id.clone());
            self.zones.push(member.zone.clone());
        }
        self.former = Some(Arc::new(former));
    }

    /// A number that was never given before.
    pub fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Notes that a rule does not hold.
    pub fn violated(&mut self, invariant: &'static str, what: String) {
        let at_us = self.now_us;
        self.trace
            .line(at_us, || format!("VIOLATION of {invariant}: {what}"));
        self.violations.push(Violation {
            invariant,
            at_us,
            what,
        });
    }

    /// A member's index.
    pub fn index_of(&self, member: &MemberId) -> NodeIx {
        number_of(member)
    }

    /// A ring's lists.
    pub fn lists(&mut self, ring: &Arc<Ring>) -> Rc<Lists> {
        let version = RingVersion::from(ring.as_ref());
        let known = self.known_rings.entry(version);
        Rc::clone(known.or_insert_with(|| Rc::new(Lists::new(ring))))
    }

    /// Of the ring that serves, and of all that anybody has taken up to follow it.
    pub fn rings_from_serving(&self) -> impl Iterator<Item = &Lists> + Clone {
        let serving = RingVersion::from(self.serving.placement.ring().as_ref());
        self.known_rings.range(serving..).map(|(_, lists)| lists.as_ref())
    }

    /// The preference list of a key by the ring that serves.
    pub fn preference_of(&self, key: KeyIx) -> &(Vec<NodeIx>, Vec<NodeIx>) {
        self.serving.of(self.keys.get(key).hash)
    }

    /// True if a node is a primary of the key.
    pub fn is_primary(&self, key: KeyIx, node: NodeIx) -> bool {
        self.preference_of(key).0.contains(&node)
    }

    /// Sends a request or a reply of a life that goes by rings of these epochs; the network decides what becomes of it.
    pub fn send(&mut self, from: NodeIx, life: (Incarnation, Epochs), to: NodeIx, call: CallId, body: Body) {
        let (incarnation, epochs) = life;
        let once = matches!(
            body,
            Body::Request(Request::Coordinate(_)) | Body::Reply(Reply::Broken { .. })
        );
        let mut arrivals = self.net.send(from, to, self.now_us, once);
        if self.knobs.uneven
            && matches!(body, Body::Request(Request::Write { .. }))
            && self.stragglers.index(8) == 0
        {
            let late_us = self.stragglers.below(self.knobs.call_timeout_ms * 1000);
            arrivals = arrivals.map(|at_us| at_us.map(|at_us| at_us + late_us));
        }
        let envelope = Envelope {
            from,
            incarnation,
            cluster: 0,
            epochs,
            to,
            call,
            body,
        };
        match arrivals {
            [Some(first), None] => self.queue.push(first, Event::Arrive(Box::new(envelope))),
            [Some(first), Some(second)] => {
                self.queue.push(first, Event::Arrive(Box::new(envelope.clone())));
                self.queue.push(second, Event::Arrive(Box::new(envelope)));
            }
            _ => {
                let now_us = self.now_us;
                self.trace
                    .line(now_us, || format!("n{from} -> n{to} lost call {call}"));
            }
        }
    }

    /// Answers a client.
    pub fn tell(&mut self, client: usize, op: u64, told: Told) {
        if let Some(at_us) = self.net.send_client(self.now_us) {
            self.queue.push(at_us, Event::ToClient { client, op, told });
        }
    }
}
