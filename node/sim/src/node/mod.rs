//! The simulated shell of one node: it drives the core's machines as the real shell does, and decides nothing itself.
//!
//! [`Node`] is the machine: clock and disks, which outlive its processes. [`Process`] is what a crash takes. [`Live`]
//! is both together with the world, while an event is handled.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dynamo_core::admission::{Admission, Task};
use dynamo_core::coordinator::FailureKind::{TimedOut, Unreachable};
use dynamo_core::coordinator::{FailureKind, ReplicaFailure};
use dynamo_core::entropy::{Schedule, Trees};
use dynamo_core::membership::detector::Silence;
use dynamo_core::membership::{Detector, Gossip, RingVersion, View};
use dynamo_core::reap::QuietTable;
use dynamo_core::recovery::Recovery;
use dynamo_core::replica::Minter;
use dynamo_core::transition::{Strays, Sync, Transition};
use dynamo_core::types::{Incarnation, PartitionId};
use dynamo_core::version::{Hlc, KeyState};

use crate::buggify::Site;
use crate::clock::Clock;
use crate::disk::{Disk, DiskError, Place};
use crate::keys::KeyIx;
use crate::messages::{Body, CallId, Epochs, NodeIx, Reply, Request};
use crate::mistakes::Mistake;
use crate::shared::{Event, Shared, Timer};

pub mod background;
pub mod boot;
pub mod checks;
pub mod entropy;
pub mod reaping;
pub mod refetch;
pub mod release;
pub mod requests;
pub mod rings;
pub mod serve;
pub mod writer;

use entropy::RunningExchange;
use reaping::RunningReap;
use release::Found;
use requests::{Forward, GetRequest, PutRequest};
use rings::{Pending, Rings};
use writer::Writer;

/// What a call came to.
pub type CallResult = Result<Reply, ReplicaFailure>;
/// What is done with it.
pub type Then = Box<dyn FnOnce(&mut Live<'_>, CallResult)>;

/// One machine.
pub struct Node {
    /// Its number.
    pub me: NodeIx,
    /// Its clocks.
    pub clock: Clock,
    /// Records.
    pub disk: Disk,
    /// Hints.
    pub hints: Disk,
    /// None while it is down.
    pub process: Option<Process>,
    /// The machine has no power: nobody even says that nobody listens.
    pub dark: bool,
    /// Events wait until then.
    pub paused_until_us: u64,
    /// Which fault holds it down.
    pub down_by: Option<usize>,
    /// It has run before: an empty disk is not its first.
    pub known: bool,
    /// A disk fault took what is not all back yet.
    pub unwhole: bool,
}

/// What a crash takes.
pub struct Process {
    /// Tells processes apart.
    pub boot: u64,
    /// The life of the data.
    pub incarnation: Incarnation,
    /// Gives epochs.
    pub minter: Minter,
    /// Starts on this data.
    pub starts: u64,
    /// Who else there is.
    pub view: View,
    /// The rings that it works with; `None` before the first.
    pub rings: Option<Rings>,
    /// What of them is on its way to the disk.
    pub pending: Option<Pending>,
    /// Operations that the mark `known` waits for, with the newest ring when each began.
    pub under_way: BTreeMap<u64, RingVersion>,
    /// What the newest ring makes it pull.
    pub sync: Option<Sync>,
    /// Partitions that it is to give away.
    pub strays: Strays,
    /// What was found of them.
    pub found: BTreeMap<PartitionId, Found>,
    /// One of them is being erased.
    pub erasing: bool,
    /// Who has taken down which life of this node, and has said so.
    pub told: BTreeMap<NodeIx, Incarnation>,
    /// Whom it gossips with, having been told that its ring is retired.
    pub catching_up: BTreeSet<NodeIx>,
    /// It has not begun to serve yet.
    pub starting: bool,
    /// Who answers.
    pub detector: Detector,
    /// Whom to gossip with.
    pub gossip: Gossip,
    /// Stamps.
    pub hlc: Hlc,
    /// The writers of records and of hints.
    pub writers: [Writer; 2],
    /// Puts that it coordinates.
    pub puts: BTreeMap<u64, PutRequest>,
    /// Gets that it coordinates.
    pub gets: BTreeMap<u64, GetRequest>,
    /// Primaries that its gets did not ask, to be compared.
    pub left_out: BTreeSet<(NodeIx, KeyIx)>,
    /// Puts that it has passed on.
    pub forwards: BTreeMap<u64, Forward>,
    /// Calls under way.
    pub calls: BTreeMap<CallId, Call>,
    /// Merkle trees.
    pub trees: Trees,
    /// For a ring of so many partitions.
    pub trees_for: u32,
    /// What to exchange next.
    pub schedule: Schedule,
    /// Exchanges that it runs.
    pub exchanges: BTreeMap<u64, RunningExchange>,
    /// While its store is suspect.
    pub recovery: Option<Recovery>,
    /// When records were touched.
    pub quiet: QuietTable,
    /// The round of reaping that it runs.
    pub reap: Option<RunningReap>,
    /// What background work may do.
    pub admission: Option<Admission>,
    /// When a task of the present round is to ask for its turn again.
    pub wait_ms: Option<u64>,
    /// Hints under way.
    pub delivering: BTreeSet<(NodeIx, KeyIx)>,
    /// Unreadable records that are being fetched.
    pub refetching: BTreeSet<KeyIx>,
    /// The process must end; started again after so many milliseconds.
    pub exit: Option<Exit>,
    /// No peer had confirmed the store when the process started.
    pub fresh: bool,
    /// It may be an old copy: it was confirmed once, or goes on with the life that it last had.
    pub may_be_old: bool,
    /// It goes on with the life that its clean stop had left.
    pub life_kept: bool,
    /// A peer has had the chance to say that it remembers more of this member than its disk does.
    pub confirmed: bool,
    /// Rounds of gossip since then, answered or not.
    pub gossip_rounds: u64,
    /// When it started, by its own clock.
    pub started_ms: u64,
    /// What a disk fault took is back.
    pub whole_again: bool,
}

/// Why a process ends by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A sync has failed.
    SyncFailed,
    /// The disk was put back in time: what it holds is set aside, and the next process begins with nothing.
    SetAside,
    /// The ring does not list the node any more: what it holds is erased.
    Left,
}

/// A timer that is late is so by that.
const LATE_MS: u64 = 400;
/// A start waits at most so long for a peer's word before it answers reads,
const CONFIRM_MS_MAX: u64 = 3000;
/// once it has asked so often: a process that stood still has not waited.
const CONFIRM_ROUNDS_MIN: u64 = 3;

/// A call that waits for its answer.
pub struct Call {
    /// Whom.
    pub peer: NodeIx,
    started_ms: u64,
    /// A request of one record: its round trip says how far the peer is.
    small: bool,
    then: Then,
}

/// A node while an event is handled.
pub struct Live<'a> {
    /// Its number.
    pub me: NodeIx,
    /// Its clocks.
    pub clock: &'a Clock,
    /// Records.
    pub disk: &'a mut Disk,
    /// Hints.
    pub hints: &'a mut Disk,
    /// The process.
    pub p: &'a mut Process,
    /// The rest of the world.
    pub sh: &'a mut Shared,
}

impl Node {
    /// A machine with empty disks.
    pub fn new(me: NodeIx) -> Self {
        Self {
            me,
            clock: Clock::new(),
            disk: Disk::default(),
            hints: Disk::default(),
            process: None,
            dark: false,
            paused_until_us: 0,
            down_by: None,
            known: false,
            unwhole: false,
        }
    }

    /// The node with the world, if a process runs.
    pub fn live<'a>(&'a mut self, sh: &'a mut Shared) -> Option<Live<'a>> {
        Some(Live {
            me: self.me,
            clock: &self.clock,
            disk: &mut self.disk,
            hints: &mut self.hints,
            p: self.process.as_mut()?,
            sh,
        })
    }
}

impl Live<'_> {
    /// Monotonic milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.clock.monotonic_ms(self.sh.now_us)
    }

    /// Milliseconds since 1970 by this node's wall clock.
    pub fn wall_ms(&self) -> u64 {
        self.clock.wall_ms(self.sh.now_us)
    }

    /// Sets a timer.
    pub fn timer(&mut self, after_ms: u64, timer: Timer) {
        // Not gossip: a start waits for its peers' word for so long only.
        let background = matches!(timer, Timer::Hints | Timer::Entropy | Timer::Reap);
        let late = background && self.sh.buggify.fires(Site::LateTimer);
        let at_us = self
            .clock
            .after(self.sh.now_us, if late { after_ms + LATE_MS } else { after_ms });
        let (node, boot) = (self.me, self.p.boot);
        self.sh.queue.push(at_us, Event::Timer { node, boot, timer });
    }

    /// True once the node has a ring that lists it, be it one that is to follow.
    pub fn serving(&self) -> bool {
        let me = &self.sh.members[self.me];
        let rings = self.p.rings.as_ref();
        rings.is_some_and(|rings| rings.layouts.lists(me)) && self.p.exit.is_none()
    }

    /// The epoch of the base ring that it knows; 0: none.
    pub fn epoch(&self) -> u64 {
        self.epochs().0
    }

    /// Until a peer has had the chance to expose an old disk, or it is clear that none is there to ask.
    pub fn unconfirmed(&self) -> bool {
        !self.p.confirmed && !self.p.fresh && !self.waited()
    }

    /// A life that goes on may be that of an old copy, whose next names were given already: it gives none before a peer has
    /// had the chance to say so. The rings that a store which was set aside has left may be retired: it would acknowledge
    /// alone what nobody reads, so it waits for the same word.
    pub fn may_coordinate(&self) -> bool {
        let unheard = self.p.fresh && !self.p.confirmed && !self.waited();
        let outdated = unheard && self.p.recovery.is_some();
        self.serving() && !outdated && !(self.p.life_kept && self.unconfirmed())
    }

    /// No peer has compared the store since this start: it may yet be found to be an old copy, and be set aside.
    pub fn doubtful(&self) -> bool {
        self.p.may_be_old && !self.p.confirmed
    }

    /// Under whose name a hint is kept: a doubtful store keeps all under its own, for the others are set aside with it.
    pub fn hint_owner(&self, owner: NodeIx) -> NodeIx {
        if self.doubtful() { self.me } else { owner }
    }

    /// Long enough for a peer's word; a process that stood still has not waited.
    pub fn waited(&self) -> bool {
        self.now_ms() - self.p.started_ms > CONFIRM_MS_MAX && self.p.gossip_rounds >= CONFIRM_ROUNDS_MIN
    }

    /// True if what this node lacks of a partition of the base ring may have been acknowledged by it once.
    ///
    /// What only a ring to come gives to a suspect store is not here before all of it was pulled; and who may have forgotten
    /// that the base was retired has not pulled from its present owners.
    pub fn suspect(&self, partition: PartitionId) -> bool {
        if self.sh.knobs.mistake == Some(Mistake::EmptiedCountsInReads) {
            return false;
        }
        let Some(recovery) = &self.p.recovery else {
            return self.unconfirmed();
        };
        let forgetful = self.in_transition() && !self.remembers();
        self.unconfirmed() || forgetful || !recovery.answers_reads(partition)
    }

    /// As [`suspect`](Self::suspect), for those who would pull from here.
    pub fn suspect_source(&self, partition: PartitionId) -> bool {
        self.suspect(partition) && self.sh.knobs.mistake != Some(Mistake::SuspectsAreSources)
    }

    /// It knows of everything that an earlier life may have told others.
    pub fn remembers(&self) -> bool {
        let transition = self.p.view.transition();
        transition.is_some_and(Transition::remembers)
    }

    /// Whether a background task has its turn for so many operations; if not, its next round comes when it was told to.
    pub fn has_turn(&mut self, task: Task, operations: u64) -> bool {
        let now_ms = self.now_ms();
        let Some(admission) = &mut self.p.admission else {
            return true;
        };
        let Err(wait_ms) = admission.take(task, operations, 0, now_ms) else {
            return true;
        };
        self.p.wait_ms = Some(self.p.wait_ms.map_or(wait_ms, |other_ms| other_ms.min(wait_ms)));
        self.sh.stats.yielded += 1;
        false
    }

    /// Sets the timer of the next round: sooner than usual if somebody waits for his turn.
    pub fn next_round(&mut self, usual_ms: u64, timer: Timer) {
        let wait_ms = self.p.wait_ms.take().unwrap_or(usual_ms);
        self.timer(usual_ms.min(wait_ms), timer);
    }

    /// A client's request that may last so long ends before its deadline.
    pub fn foreground(&mut self, patience_ms: u64, ends_ms: u64) {
        let now_ms = self.now_ms();
        if let Some(admission) = &mut self.p.admission {
            let took_ms = (now_ms + patience_ms).saturating_sub(ends_ms);
            admission.sample(took_ms * 1000, now_ms);
        }
    }

    /// As [`suspect`](Self::suspect), for a read, and notes an answer that only the lack of anybody to ask explains.
    pub fn suspect_reader(&mut self, key: KeyIx) -> bool {
        let partition = self.partition_of(key);
        let suspect = partition.is_none_or(|partition| self.suspect(partition));
        // Of an old store that has ended twice more before any peer compared it, nobody remembers enough.
        let starts = self.sh.old[self.me];
        if !suspect && starts.is_some_and(|starts| starts > 2 || self.doubtful()) {
            self.sh.old_read_us = Some(self.sh.now_us);
        }
        suspect
    }

    /// Calls a peer; `then` gets the answer or, in time, the failure.
    pub fn call(
        &mut self,
        peer: NodeIx,
        timeout_ms: u64,
        request: Request,
        then: impl FnOnce(&mut Live<'_>, CallResult) + 'static,
    ) {
        self.call_by(peer, self.epochs(), timeout_ms, request, then);
    }

    /// The same for an operation that goes by the rings of these epochs.
    pub fn call_by(
        &mut self,
        peer: NodeIx,
        epochs: Epochs,
        timeout_ms: u64,
        request: Request,
        then: impl FnOnce(&mut Live<'_>, CallResult) + 'static,
    ) {
        let adaptive = !matches!(request, Request::Coordinate(_));
        // What is long on its way must be waited for, or it would be of no account.
        let patient = self.sh.knobs.uneven && matches!(request, Request::Write { .. });
        let timeout_ms = if adaptive && !patient {
            timeout_ms.min(self.p.detector.timeout_ms(&self.sh.members[peer]))
        } else {
            timeout_ms
        };
        let gossip = matches!(request, Request::Digest(_) | Request::Delta(_));
        let timeout_ms = if adaptive && !gossip && self.sh.buggify.fires(Site::EarlyTimeout) {
            timeout_ms / 8 + 1
        } else {
            timeout_ms
        };
        let call = self.sh.fresh();
        let started_ms = self.now_ms();
        let entry = Call {
            peer,
            started_ms,
            small: adaptive,
            then: Box::new(then),
        };
        self.p.calls.insert(call, entry);
        self.timer(timeout_ms, Timer::Call(call));
        let (me, incarnation) = (self.me, self.p.incarnation);
        let now_us = self.sh.now_us;
        self.sh
            .trace
            .line(now_us, || format!("n{me} -> n{peer} call {call} {request:?}"));
        let life = (incarnation, epochs);
        self.sh.send(me, life, peer, call, Body::Request(request));
    }

    /// An answer has come, or none in time.
    pub fn answered(&mut self, call: CallId, reply: Option<Reply>) {
        let Some(Call {
            peer,
            started_ms,
            small,
            then,
        }) = self.p.calls.remove(&call)
        else {
            return;
        };
        let now_ms = self.now_ms();
        let member = &self.sh.members[peer].clone();
        let failure = |sent, kind| ReplicaFailure { sent, kind };
        let result = match reply {
            None => Err(failure(true, TimedOut)),
            Some(Reply::Broken { sent }) => Err(failure(sent, Unreachable)),
            Some(Reply::NotServing) => Err(failure(false, Unreachable)),
            Some(Reply::Failed { sent, kind }) => {
                self.p.detector.succeeded(member, started_ms, now_ms);
                if kind == FailureKind::StaleEpoch {
                    self.catch_up(peer);
                }
                Err(failure(sent, kind))
            }
            Some(reply) => {
                self.p.detector.succeeded(member, started_ms, now_ms);
                Ok(reply)
            }
        };
        match result.as_ref().map_err(|failure| failure.kind) {
            Err(kind @ (TimedOut | Unreachable)) => {
                let silence = if kind == TimedOut {
                    Silence::TimedOut
                } else {
                    Silence::Refused
                };
                let times = (started_ms, now_ms);
                let reason = kind.as_str().to_owned();
                self.p.detector.failed(member, silence, times, reason);
            }
            Ok(_) if small => {
                self.p
                    .detector
                    .round_trip(member, (now_ms - started_ms) * 1000, now_ms);
            }
            _ => {}
        }
        then(self, result);
    }

    /// Answers a call.
    pub fn reply(&mut self, to: NodeIx, call: CallId, reply: Reply) {
        let (me, incarnation) = (self.me, self.p.incarnation);
        let now_us = self.sh.now_us;
        self.sh
            .trace
            .line(now_us, || format!("n{me} -> n{to} reply {call} {reply:?}"));
        let life = (incarnation, self.epochs());
        self.sh.send(me, life, to, call, Body::Reply(reply));
    }

    /// What this node has of a key: its record, and as a fallback its hints, too. An error is never "nothing".
    pub fn load(&mut self, key: KeyIx, with_hints: bool) -> Result<Option<Rc<KeyState>>, DiskError> {
        let state = match self.disk.state(Place::Data(key)) {
            Err(_) if self.sh.knobs.mistake == Some(Mistake::ReadErrorIsAbsent) => Ok(None),
            other => other,
        };
        if state == Err(DiskError::Corrupt) {
            self.refetch(key);
        }
        let mut state = state?;
        if with_hints {
            for owner in 0..self.sh.knobs.nodes {
                let Some(hint) = self.hints.state(Place::Hint(owner, key))? else {
                    continue;
                };
                state = Some(match state {
                    Some(state) => {
                        let mut merged = (*state).clone();
                        merged.merge(&hint);
                        Rc::new(merged)
                    }
                    None => hint,
                });
            }
        }
        Ok(state)
    }

    /// A state as it arrives at the other end: in some runs by way of its encoding.
    pub fn on_the_way(&mut self, state: Rc<KeyState>) -> Rc<KeyState> {
        if !self.sh.knobs.through_codec {
            return state;
        }
        match KeyState::decode(state.encode()) {
            Ok(decoded) if decoded == *state => Rc::new(decoded),
            Ok(_) => {
                self.sh
                    .violated("I13", "a state differs after encoding and decoding".to_owned());
                state
            }
            Err(error) => {
                self.sh
                    .violated("I13", format!("a state cannot be decoded: {error}"));
                state
            }
        }
    }

    /// A timer has come.
    pub fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Written(hints) => self.written(usize::from(hints)),
            Timer::Call(call) => self.answered(call, None),
            Timer::Deadline(request) => self.deadline(request),
            Timer::Late(request) => self.late(request),
            Timer::Compare => self.compare_round(),
            Timer::Gossip => self.gossip_round(),
            Timer::Probe => self.probe_round(),
            Timer::Hints => self.hints_round(),
            Timer::Entropy => self.entropy_round(),
            Timer::Reap => self.reap_round(),
            Timer::Sync => self.sync_round(),
            Timer::Repair => self.refetch_round(),
            Timer::ReapDeadline(round) => self.reap_deadline(round),
        }
    }
}
