//! Who this node is and whom it knows: the core's gossip view, kept on disk. Paper: §4.8.1.
//!
//! Assignments (bootstrap, join) are durable before they are answered. What gossip brings is used at once and persisted
//! behind it: after a crash it is heard again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use dynamo_core::{
    bucket::{BucketPolicy, Buckets},
    membership::{
        Announcer, Answer, Changes, Delta, Detector, Digest, Gossip, LogEntry, MemberEntry, Policy,
        RingVersion, SelfHistory, Target, View, Wanted,
    },
    ring::{Member, Ring},
    transition::{Local, Mark, ProposeRefused, Transition},
    types::{ClusterId, Incarnation, MemberId, Zone},
};
use dynamo_proto::peer::Header;
use parking_lot::Mutex;

use crate::{
    clock,
    durable::{self, Identity, Started},
    grpc::status::{Failure, Reason},
    peers::To,
    storage::{Batch, writer::Writer},
};

/// Where this node can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) peer: String,
    pub(crate) client: String,
    pub(crate) admin: String,
}

/// The node's identity and view.
pub(crate) struct Membership {
    addresses: Addresses,
    starts: u64,
    state: Mutex<State>,
    /// Held over a change and its way to the disk, so that the disk never goes back.
    change: tokio::sync::Mutex<()>,
}

struct State {
    incarnation: Incarnation,
    view: Viewed,
    /// The view's policies, read.
    buckets: Buckets,
    seeds: Vec<String>,
}

/// The view, and what is worked out of it.
#[derive(Default)]
struct Viewed {
    view: Option<View>,
    /// Asked for by every request to a peer.
    destinations: HashMap<MemberId, To>,
}

impl Viewed {
    fn as_ref(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// To change it.
    fn as_mut(&mut self) -> Option<&mut View> {
        self.destinations.clear();
        self.view.as_mut()
    }

    fn set(&mut self, view: View) {
        self.destinations.clear();
        self.view = Some(view);
    }
}

impl State {
    fn header(&self, recipient: &str) -> Option<Header> {
        let view = self.view.as_ref()?;
        Some(Header {
            cluster_id: Bytes::copy_from_slice(&view.cluster_id().0),
            member_id: view.me().member.as_str().to_owned(),
            incarnation: Some(dynamo_proto::peer::Incarnation {
                generation: self.incarnation.generation,
                id: self.incarnation.id,
            }),
            ring_epoch: view.ring().map_or(0, |ring| ring.epoch()),
            recipient: recipient.to_owned(),
            reads_epoch: view
                .transition()
                .and_then(Transition::read)
                .map_or(0, |ring| ring.epoch()),
            newest: view.transition().map(|transition| {
                let newest = transition.newest();
                dynamo_proto::peer::RingVersion {
                    epoch: newest.epoch,
                    hash: newest.hash,
                }
            }),
        })
    }

    /// Reads the view's policies again; one that cannot be read, of a later release say, is left out.
    fn read_policies(&mut self) {
        let mut buckets = Buckets::new();
        for (name, policy) in self.view.as_ref().into_iter().flat_map(View::policies) {
            match BucketPolicy::decode(policy.bytes.clone()) {
                Ok(policy) => buckets.insert(policy),
                Err(error) => tracing::warn!(bucket = name, %error, "the policy of a bucket cannot be read"),
            }
        }
        self.buckets = buckets;
    }
}

/// What came of a message of gossip.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// The base ring is another one, or there is news of what follows it.
    pub(crate) ring: bool,
    /// Peers remember this life of the member, which the disk does not, or more of it.
    pub(crate) exposed: Option<Incarnation>,
    /// Of whom there are news.
    pub(crate) members: Vec<MemberId>,
}

/// What bootstrap answers.
pub(crate) struct Bootstrapped {
    pub(crate) ring: Arc<Ring>,
    pub(crate) created: bool,
}

impl Membership {
    /// Takes up what the disk holds.
    ///
    /// # Errors
    /// If the kept view cannot be read.
    pub(crate) fn new(
        started: &Started,
        addresses: Addresses,
        configured: &[String],
    ) -> anyhow::Result<Self> {
        let mut seeds = configured.to_vec();
        if let Some(bytes) = &started.seeds {
            let kept = std::str::from_utf8(bytes)?
                .split(',')
                .filter(|seed| !seed.is_empty());
            seeds.extend(kept.map(ToOwned::to_owned));
        }
        let membership = Self {
            starts: started.starts,
            state: Mutex::new(State {
                incarnation: started.incarnation,
                view: Viewed::default(),
                buckets: Buckets::new(),
                seeds: unique(seeds),
            }),
            change: tokio::sync::Mutex::default(),
            addresses,
        };
        if let Some(identity) = &started.identity {
            let mut view = match &started.view {
                Some(bytes) => View::decode(bytes.clone())?,
                None => View::new(identity.cluster, membership.entry_of(identity), None),
            };
            let entry = membership.entry_of(identity);
            view.update_self(|me| {
                *me = MemberEntry {
                    version: me.version,
                    // Of this store, which is another one than the last statement was about if that was set aside.
                    synced: started.recovered,
                    ..entry
                }
            });
            let view = view.with_history(SelfHistory {
                previous: started
                    .previous
                    .filter(|previous| *previous != started.incarnation),
                since: started.since.clone(),
                recovered: started.recovered,
            });
            let mut view = view;
            if started.suspect.is_some() {
                // The store was set aside, or emptied: what was kept of the view may be older than what others were told.
                view.forget();
            }
            let mut state = membership.state.lock();
            state.view.set(view);
            state.read_policies();
            drop(state);
        }
        Ok(membership)
    }

    fn entry_of(&self, identity: &Identity) -> MemberEntry {
        MemberEntry {
            member: identity.member.clone(),
            incarnation: self.state.lock().incarnation,
            version: 1,
            peer_address: self.addresses.peer.clone(),
            client_address: self.addresses.client.clone(),
            admin_address: self.addresses.admin.clone(),
            zone: identity.zone.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            starts: self.starts,
            synced: 0,
        }
    }

    /// The base ring and this node's name, once it has both.
    pub(crate) fn ring(&self) -> Option<(MemberId, Arc<Ring>)> {
        let state = self.state.lock();
        let view = state.view.as_ref()?;
        Some((view.me().member.clone(), Arc::clone(view.ring()?)))
    }

    /// The base ring and what follows it.
    pub(crate) fn transition(&self) -> Option<Transition> {
        self.state.lock().view.as_ref()?.transition().cloned()
    }

    /// Proposes that a ring follows the base; on disk before it is told to anybody.
    ///
    /// # Errors
    /// As [`Transition::propose`]; FAILED_PRECONDITION.
    pub(crate) async fn propose(
        &self,
        writer: &Writer,
        ring: Arc<Ring>,
        dead: BTreeSet<MemberId>,
    ) -> Result<(), Failure> {
        let refused = |error: ProposeRefused| Failure::new(Reason::StalePlan, error.to_string());
        self.change_view(writer, |view| {
            view.propose(Arc::clone(&ring), dead.clone()).map_err(refused)
        })
        .await
    }

    /// Takes an administrator's word that members are gone for good, as [`Transition::declare_dead`] has it. True if that is news.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub(crate) async fn declare_dead(
        &self,
        writer: &Writer,
        dead: &BTreeSet<MemberId>,
    ) -> Result<bool, Failure> {
        self.change_view(writer, |view| Ok(view.declare_dead(dead))).await
    }

    /// Gives the mark that is due, if one is; on disk before it is told to anybody.
    pub(crate) async fn give_mark(&self, writer: &Writer, local: Local) -> Option<Mark> {
        let due = self.state.lock().view.as_ref()?.due(local)?;
        let given = self
            .change_view(writer, |view| {
                // News may have come in between.
                if view.due(local).as_ref() == Some(&due) {
                    view.give(due.clone());
                    Ok(true)
                } else {
                    Ok(false)
                }
            })
            .await;
        match given {
            Ok(given) => given.then_some(due),
            Err(error) => {
                tracing::warn!(step = ?due.step, error = error.message, "cannot keep a step of a change of the ring");
                None
            }
        }
    }

    /// False while a ring is to follow and this node, which lost its memory, has not heard from all members since.
    pub(crate) fn remembers(&self) -> bool {
        let state = self.state.lock();
        let transition = state.view.as_ref().and_then(View::transition);
        transition.is_none_or(|transition| transition.next().is_none() || transition.remembers())
    }

    /// See [`Transition::may_be_trusted`].
    pub(crate) fn may_be_trusted(&self, pulled: Option<RingVersion>) -> bool {
        let state = self.state.lock();
        let transition = state.view.as_ref().and_then(View::transition);
        transition.is_some_and(|transition| transition.may_be_trusted(pulled))
    }

    /// Whether this node's word counts that another one has lost nothing.
    pub(crate) fn vouches(&self) -> bool {
        self.state.lock().view.as_ref().is_some_and(View::vouches)
    }

    fn in_transition(&self) -> bool {
        let state = self.state.lock();
        let transition = state.view.as_ref().and_then(View::transition);
        transition.is_some_and(|transition| transition.next().is_some())
    }

    /// Whether what the next ring makes this node hold may be pulled now.
    pub(crate) fn may_sync(&self) -> bool {
        let state = self.state.lock();
        let transition = state.view.as_ref().and_then(View::transition);
        transition.is_some_and(Transition::may_sync)
    }

    /// A member has answered by gossip. True if this node, which had lost its memory, has now heard from everybody.
    pub(crate) fn heard_from(&self, member: &MemberId) -> bool {
        let mut state = self.state.lock();
        state.view.as_mut().is_some_and(|view| view.heard_from(member))
    }

    /// Makes a change of the view durable, then makes it. What gossip brings meanwhile stays.
    async fn change_view<T>(
        &self,
        writer: &Writer,
        change: impl Fn(&mut View) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let _change = self.change.lock().await;
        let no_ring = || Failure::new(Reason::NoRing, "this node belongs to no cluster yet");
        let mut kept = self.state.lock().view.as_ref().cloned().ok_or_else(no_ring)?;
        change(&mut kept)?;
        self.persist(writer, durable::view(&kept.encode())).await?;
        let mut state = self.state.lock();
        change(state.view.as_mut().ok_or_else(no_ring)?)
    }

    pub(crate) fn cluster_id(&self) -> Option<ClusterId> {
        self.state.lock().view.as_ref().map(View::cluster_id)
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.state.lock().incarnation
    }

    /// What this node says about itself; none while it is unassigned.
    pub(crate) fn me(&self) -> Option<MemberEntry> {
        self.state.lock().view.as_ref().map(|view| view.me().clone())
    }

    pub(crate) fn entry(&self, member: &MemberId) -> Option<MemberEntry> {
        self.state.lock().view.as_ref()?.get(member).cloned()
    }

    pub(crate) fn entries(&self) -> Vec<MemberEntry> {
        self.state
            .lock()
            .view
            .as_ref()
            .map(|view| view.members().cloned().collect())
            .unwrap_or_default()
    }

    pub(crate) fn log(&self) -> Vec<LogEntry> {
        self.state
            .lock()
            .view
            .as_ref()
            .map(|view| view.log().cloned().collect())
            .unwrap_or_default()
    }

    /// Why this node serves nothing yet.
    pub(crate) fn not_ready_reason(&self) -> &'static str {
        match self.state.lock().view.as_ref() {
            None => "unassigned: waits for Bootstrap or Join",
            Some(view) if view.ring().is_none() => {
                "joining: waits for a ring, which gossip with a seed brings"
            }
            Some(_) => "joining: the ring does not list this member, or its quorums do not fit",
        }
    }

    /// What goes into a message to `recipient`.
    pub(crate) fn header(&self, recipient: &str) -> Option<Header> {
        self.state.lock().header(recipient)
    }

    /// A member as a destination; none while its address is not known.
    pub(crate) fn to(&self, member: &MemberId) -> Option<To> {
        let mut state = self.state.lock();
        if let Some(to) = state.view.destinations.get(member) {
            return Some(to.clone());
        }
        let to = To {
            member: member.clone(),
            address: state.view.as_ref()?.get(member)?.peer_address.as_str().into(),
            header: Arc::new(state.header(member.as_str())?),
        };
        state.view.destinations.insert(member.clone(), to.clone());
        Some(to)
    }

    /// Mints the first ring of a cluster and makes this node one of its members.
    ///
    /// # Errors
    /// ALREADY_EXISTS if the node belongs to another cluster, or to this one with another first ring; INVALID_ARGUMENT if
    /// the members do not make a ring.
    pub(crate) async fn bootstrap(
        &self,
        writer: &Writer,
        ring: Ring,
        me: &Member,
        seeds: Vec<String>,
    ) -> Result<Bootstrapped, Failure> {
        let _change = self.change.lock().await;
        if let Some((known, current)) = self.cluster_id().map(|known| (known, self.ring())) {
            return match current {
                // The call again, perhaps after the answer was lost. A later ring of the same cluster is fine.
                Some((name, current)) if known == ring.cluster_id() && name == me.id => {
                    if current.epoch() == ring.epoch() && current.hash() != ring.hash() {
                        return Err(Failure::new(
                            Reason::AlreadyBootstrapped,
                            format!("cluster {known} was bootstrapped with other members or partitions"),
                        ));
                    }
                    Ok(Bootstrapped {
                        ring: current,
                        created: false,
                    })
                }
                None if known == ring.cluster_id() => {
                    let ring = Arc::new(ring);
                    self.take_up(writer, me, ring.cluster_id(), Some(Arc::clone(&ring)), seeds)
                        .await?;
                    Ok(Bootstrapped { ring, created: true })
                }
                _ => Err(Failure::new(
                    Reason::AlreadyBootstrapped,
                    format!("this node belongs to cluster {known}; give it an empty data directory first"),
                )),
            };
        }
        let ring = Arc::new(ring);
        self.take_up(writer, me, ring.cluster_id(), Some(Arc::clone(&ring)), seeds)
            .await?;
        Ok(Bootstrapped { ring, created: true })
    }

    /// Gives an unassigned node its identity; false if it has it already.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if it has another one.
    pub(crate) async fn join(
        &self,
        writer: &Writer,
        cluster: ClusterId,
        me: &Member,
        seeds: Vec<String>,
    ) -> Result<bool, Failure> {
        let _change = self.change.lock().await;
        if let Some(entry) = self.me() {
            let known = self.cluster_id();
            if known == Some(cluster) && entry.member == me.id && entry.zone == me.zone {
                return Ok(false);
            }
            let known = known.map(|known| known.to_string()).unwrap_or_default();
            return Err(Failure::new(
                Reason::AlreadyAssigned,
                format!(
                    "this node is member {} in zone {:?} of cluster {known}",
                    entry.member,
                    entry.zone.as_str()
                ),
            ));
        }
        self.take_up(writer, me, cluster, None, seeds).await?;
        Ok(true)
    }

    async fn take_up(
        &self,
        writer: &Writer,
        me: &Member,
        cluster: ClusterId,
        ring: Option<Arc<Ring>>,
        seeds: Vec<String>,
    ) -> Result<(), Failure> {
        let identity = Identity {
            cluster,
            member: me.id.clone(),
            zone: me.zone.clone(),
            weight: me.weight,
        };
        let view = View::new(cluster, self.entry_of(&identity), ring);
        let mut batch = durable::identity(&identity);
        batch.append(durable::view(&view.encode()));
        batch.append(durable::seeds(seeds.join(",").as_bytes()));
        self.persist(writer, batch).await?;
        let mut state = self.state.lock();
        state.view.set(view);
        let mut all = std::mem::take(&mut state.seeds);
        all.extend(seeds);
        state.seeds = unique(all);
        Ok(())
    }

    async fn persist(&self, writer: &Writer, batch: Batch) -> Result<(), Failure> {
        let written = writer.meta(batch, true).await;
        written
            .map(drop)
            .map_err(|error| Failure::new(Reason::Storage, format!("cannot store the membership: {error}")))
    }

    /// With whom to gossip now.
    pub(crate) fn gossip_target(&self, detector: &Detector) -> Option<GossipTarget> {
        let state = self.state.lock();
        let view = state.view.as_ref()?;
        match Gossip::new(state.seeds.len()).next_target(view, detector, clock::random_u64())? {
            Target::Member(member) => Some(GossipTarget::Member(member)),
            Target::Seed(index) => state.seeds.get(index).cloned().map(GossipTarget::Seed),
        }
    }

    pub(crate) fn digest(&self) -> Option<Digest> {
        self.state.lock().view.as_ref().map(View::digest)
    }

    /// Another life of this member that a peer remembers.
    pub(crate) fn exposed_by(&self, digest: &Digest) -> Option<Incarnation> {
        self.state.lock().view.as_ref()?.exposed_by(digest)
    }

    pub(crate) fn answer(&self, digest: &Digest) -> Option<Answer> {
        self.state.lock().view.as_ref().map(|view| view.answer(digest))
    }

    pub(crate) fn delta_for(&self, wanted: &Wanted) -> Option<Delta> {
        self.state.lock().view.as_ref().map(|view| view.delta_for(wanted))
    }

    /// Takes what gossip brought and keeps it.
    pub(crate) async fn merge(&self, writer: &Writer, delta: Delta) -> Merged {
        let changes = {
            let mut state = self.state.lock();
            let Some(view) = state.view.as_mut() else {
                return Merged::default();
            };
            let changes = view.merge(delta);
            if !changes.policies.is_empty() {
                state.read_policies();
            }
            changes
        };
        for refusal in &changes.refused {
            tracing::warn!(%refusal, "a part of a gossip message was refused");
        }
        if changes == Changes::default() {
            return Merged::default();
        }
        let _change = self.change.lock().await;
        self.keep(writer, changes.ring || self.in_transition()).await;
        Merged {
            ring: changes.ring,
            exposed: changes.self_superseded,
            members: changes.members,
        }
    }

    /// What holds for a bucket: its policy, or the default.
    pub(crate) fn bucket(&self, name: &str) -> BucketPolicy {
        self.state.lock().buckets.policy(name)
    }

    /// The policies of all buckets that have one.
    pub(crate) fn buckets(&self) -> Vec<BucketPolicy> {
        self.state.lock().buckets.iter().cloned().collect()
    }

    /// Takes an administrator's policy and keeps it; gossip brings it to the others.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is none, or changes what is fixed; FAILED_PRECONDITION without a ring.
    pub(crate) async fn set_bucket(
        &self,
        writer: &Writer,
        mut policy: BucketPolicy,
    ) -> Result<BucketPolicy, Failure> {
        let _change = self.change.lock().await;
        {
            let mut state = self.state.lock();
            let State { view, buckets, .. } = &mut *state;
            let Some(view) = view.as_mut() else {
                return Err(Failure::new(
                    Reason::NoRing,
                    "this node belongs to no cluster yet",
                ));
            };
            let known = buckets.policy(&policy.name);
            policy.version = known.version;
            if known != policy {
                policy.version += 1;
                let invalid = |error: &dyn std::fmt::Display| Failure::invalid(error.to_string());
                buckets.put(policy.clone()).map_err(|error| invalid(&error))?;
                let opaque = Policy {
                    version: policy.version,
                    bytes: policy.encode(),
                };
                let put = view.put_policy(&policy.name, opaque);
                put.map_err(|error| invalid(&error))?;
            }
        }
        let bytes = self.state.lock().view.as_ref().map(View::encode);
        self.persist(writer, durable::view(&bytes.unwrap_or_default()))
            .await?;
        Ok(policy)
    }

    /// Says how far this node's store is on its disk, now and then.
    pub(crate) async fn announce_synced(&self, writer: &Writer, announcer: &mut Announcer) {
        let announced = match self.state.lock().view.as_mut() {
            Some(view) => announcer.announce(view, writer.synced(), clock::monotonic_ms()),
            None => false,
        };
        if !announced {
            return;
        }
        let _change = self.change.lock().await;
        self.keep(writer, false).await;
    }

    /// While the ring changes, what was heard is synced before it is answered: of whose life this node knows, that member counts on.
    async fn keep(&self, writer: &Writer, sync: bool) {
        let bytes = self.state.lock().view.as_ref().map(View::encode);
        if let Some(bytes) = bytes
            && let Err(error) = writer.meta(durable::view(&bytes), sync).await
        {
            tracing::warn!(%error, "cannot keep the membership that gossip brought");
        }
    }

    /// Peers remember a later life of this member than the disk does: the volume was emptied. Its counters may have been
    /// given before, so it goes on as another incarnation.
    pub(crate) async fn supersede(&self, writer: &Writer, remembered: Incarnation) {
        let _change = self.change.lock().await;
        let current = self.incarnation();
        if current.generation > remembered.generation {
            // Another peer was faster.
            return;
        }
        let renewal = durable::supersede(current, remembered.generation, clock::random_u64());
        tracing::warn!(%current, %remembered, renewed = %renewal.incarnation, "peers remember another life of this member");
        if let Err(error) = writer.renew(&renewal).await {
            tracing::error!(%error, "cannot store the new incarnation");
            return;
        }
        let mut state = self.state.lock();
        state.incarnation = renewal.incarnation;
        if let Some(view) = state.view.as_mut() {
            view.update_self(|me| me.incarnation = renewal.incarnation);
            view.forget();
        }
    }
}

/// With whom to gossip.
#[derive(Debug, Clone)]
pub(crate) enum GossipTarget {
    /// A member whose address is known.
    Member(MemberId),
    /// An address, whoever answers there.
    Seed(String),
}

/// A zone's name from a request.
///
/// # Errors
/// INVALID_ARGUMENT with the rule.
pub(crate) fn member(id: &str, zone: &str, weight: u32) -> Result<Member, Failure> {
    let invalid = |error: dynamo_core::types::NameError| Failure::invalid(error.to_string());
    if weight > 100 {
        return Err(Failure::invalid(format!(
            "the weight of {id:?} is {weight} but must be 1..=100"
        )));
    }
    Ok(Member {
        id: MemberId::new(id).map_err(invalid)?,
        zone: Zone::new(zone).map_err(invalid)?,
        weight: weight.max(1),
    })
}

fn unique(seeds: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    seeds
        .into_iter()
        .filter(|seed| seen.insert(seed.clone()))
        .collect()
}
