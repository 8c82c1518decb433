//! This node's place in the rings: what every request works with.

use std::sync::{Arc, OnceLock};

use dynamo_core::{
    bucket::BucketPolicy,
    membership::RingVersion,
    quorum::Quorum,
    ring::{Member, Placement},
    transition::Layouts,
    types::{ClusterId, KeyHash, MemberId, PartitionId},
};

use crate::{
    grpc::{gossip::ring_version_to_proto, status::Failure},
    peers::To,
    request::{Served, not_ready},
    storage::DataKey,
};

/// The rings in use, by some moment's knowledge.
pub(crate) struct Placed {
    layouts: Layouts,
    /// Of the base ring, by partition; worked out when one is first needed.
    fallbacks: Vec<OnceLock<Box<[u16]>>>,
    me: MemberId,
    /// Where this node stands in the base ring; `None` for one that is joining.
    me_index: Option<u16>,
    quorum: Quorum,
}

/// The nodes of one key, in preference order.
pub(crate) struct List<'a> {
    pub(crate) primaries: Vec<&'a Member>,
    /// Of rings that are to follow, with the index of the primary that each is paired with.
    pub(crate) partners: Vec<(usize, &'a Member)>,
    pub(crate) fallbacks: Box<dyn Iterator<Item = &'a Member> + 'a>,
}

impl Placed {
    pub(super) fn new(layouts: Layouts, me: MemberId, quorum: Quorum) -> Self {
        let ring = layouts.base().ring();
        let partitions = ring.partitions() as usize;
        Self {
            fallbacks: std::iter::repeat_with(OnceLock::new).take(partitions).collect(),
            me_index: ring.index_of(&me).map(|index| index as u16),
            me,
            quorum,
            layouts,
        }
    }

    pub(crate) fn layouts(&self) -> &Layouts {
        &self.layouts
    }

    /// The base ring's.
    pub(crate) fn placement(&self) -> &Placement {
        self.layouts.base()
    }

    /// That of the ring which reads go to.
    ///
    /// # Errors
    /// UNAVAILABLE while this node must not coordinate reads, since it lost its memory.
    pub(crate) fn reading(&self) -> Result<&Placement, Failure> {
        let waits = "it lost its disk while the ring changes, and has not heard from all members since";
        self.layouts.reading().ok_or_else(|| not_ready(waits))
    }

    /// The newest ring, by which operations are told apart.
    pub(crate) fn newest(&self) -> RingVersion {
        let newest = self.layouts.next().unwrap_or_else(|| self.placement());
        RingVersion::from(newest.ring().as_ref())
    }

    /// Whether the newest ring, which is to follow the base, has no part for this node.
    pub(crate) fn leaves(&self) -> bool {
        let next = self.layouts.next();
        next.is_some_and(|next| next.ring().index_of(&self.me).is_none())
    }

    /// A destination of what goes by these rings, also if there are newer ones by now.
    pub(crate) fn stamped(&self, mut to: To) -> To {
        let stamp = (
            self.placement().ring().epoch(),
            self.epoch(),
            Some(ring_version_to_proto(self.newest())),
        );
        let now = (to.header.ring_epoch, to.header.reads_epoch, to.header.newest);
        if now != stamp {
            let header = Arc::make_mut(&mut to.header);
            (header.ring_epoch, header.reads_epoch, header.newest) = stamp;
        }
        to
    }

    pub(crate) fn me(&self) -> &MemberId {
        &self.me
    }

    /// Whether the base ring lists this node.
    pub(crate) fn serves(&self) -> bool {
        self.me_index.is_some()
    }

    /// The quorum of requests in a bucket that name none.
    ///
    /// # Errors
    /// If the bucket's numbers do not fit this ring.
    pub(crate) fn quorum_of(&self, policy: &BucketPolicy) -> Result<Quorum, Failure> {
        policy.quorum(&self.quorum).map_err(|error| {
            Failure::invalid(format!(
                "the policy of bucket {:?} does not fit the ring: {error}",
                policy.name
            ))
        })
    }

    /// By the base ring.
    pub(crate) fn partition_of(&self, key: &DataKey) -> PartitionId {
        self.placement().ring().partition_of(key.hash())
    }

    /// By the ring that reads go to.
    ///
    /// # Errors
    /// As [`reading`](Self::reading).
    pub(crate) fn read_partition_of(&self, key: &DataKey) -> Result<PartitionId, Failure> {
        Ok(self.reading()?.ring().partition_of(key.hash()))
    }

    /// The members that hold a partition of the base ring, best first.
    pub(crate) fn primaries_of(&self, partition: PartitionId) -> impl Iterator<Item = &MemberId> {
        let members = self.placement().ring().members();
        let primaries = self.placement().primaries(partition).iter();
        primaries.map(|index| &members[usize::from(*index)].id)
    }

    /// The partitions whose first primary this node is.
    pub(crate) fn first_of(&self) -> impl Iterator<Item = PartitionId> {
        let first = |partition: &PartitionId| {
            let first = self.placement().primaries(*partition).first();
            first.is_some() && first == self.me_index.as_ref()
        };
        (0..self.placement().ring().partitions())
            .map(PartitionId)
            .filter(first)
    }

    /// Whom a get of a partition asks.
    ///
    /// # Errors
    /// As [`reading`](Self::reading).
    pub(crate) fn read_list(
        &self,
        partition: PartitionId,
        replicas: Option<u32>,
    ) -> Result<List<'_>, Failure> {
        let reading = self.reading()?;
        let (primaries, rest) = first(reading, partition, replicas);
        let fallbacks: Box<dyn Iterator<Item = &Member>> = if std::ptr::eq(reading, self.placement()) {
            Box::new(self.fallbacks(partition))
        } else {
            let list = reading.preference_list(partition).fallbacks;
            let members = reading.ring().members();
            Box::new(list.into_iter().map(|index| &members[index]))
        };
        Ok(List {
            primaries,
            partners: Vec::new(),
            fallbacks: Box::new(rest.into_iter().chain(fallbacks)),
        })
    }

    /// Whom a write goes to.
    pub(crate) fn write_list(&self, key: &DataKey, replicas: Option<u32>) -> List<'_> {
        let partition = self.partition_of(key);
        let (primaries, rest) = first(self.placement(), partition, replicas);
        let fallbacks = rest.into_iter().chain(self.fallbacks(partition));
        if !self.layouts.in_transition() {
            return List {
                primaries,
                partners: Vec::new(),
                fallbacks: Box::new(fallbacks),
            };
        }
        let partners = self.partners(key.hash(), &primaries);
        let fallbacks = fallbacks.chain(self.new_members(key.hash()));
        // Who leaves gets no hints any more, so that it can get rid of those that it has.
        let stays = |member: &&Member| {
            let next = self.layouts.next();
            next.is_none_or(|next| next.ring().index_of(&member.id).is_some())
        };
        List {
            primaries,
            partners,
            fallbacks: Box::new(fallbacks.filter(stays)),
        }
    }

    fn partners(&self, hash: KeyHash, primaries: &[&Member]) -> Vec<(usize, &Member)> {
        let slots = self.layouts.slots(hash, primaries.len() as u32);
        let known = |id: &MemberId| {
            let mut followers = self.layouts.followers();
            followers.find_map(|placement| {
                let ring = placement.ring();
                ring.index_of(id).map(|index| &ring.members()[index])
            })
        };
        let mut partners = Vec::new();
        for (index, slot) in slots.iter().enumerate() {
            let others = slot
                .members
                .iter()
                .filter(|id| primaries.get(index).is_none_or(|primary| primary.id != **id));
            partners.extend(others.filter_map(known).map(|member| (index, member)));
        }
        partners
    }

    /// Members of the next ring that are none of the base ring; another one first for each key.
    fn new_members(&self, hash: KeyHash) -> impl Iterator<Item = &Member> {
        let members = self.layouts.next().map_or(&[][..], |next| next.ring().members());
        let first = hash.0.checked_rem(members.len() as u64).unwrap_or_default() as usize;
        let (before, from) = members.split_at(first);
        let all = from.iter().chain(before);
        all.filter(|member| self.placement().ring().index_of(&member.id).is_none())
    }

    /// Of the base ring.
    fn fallbacks(&self, partition: PartitionId) -> impl Iterator<Item = &Member> {
        let list = self.fallbacks.get(partition.0 as usize).map_or(&[][..], |cell| {
            cell.get_or_init(|| {
                let list = self.placement().preference_list(partition);
                list.fallbacks.into_iter().map(|index| index as u16).collect()
            })
        });
        let members = self.placement().ring().members();
        list.iter().map(|index| &members[usize::from(*index)])
    }

    pub(crate) fn cluster_id(&self) -> ClusterId {
        self.placement().ring().cluster_id()
    }

    /// Whether this node is one of the key's primaries, by any ring that is written to.
    pub(crate) fn is_primary(&self, key: &DataKey) -> bool {
        let index = self.me_index;
        index.is_some_and(|index| self.placement().primaries_of(key.hash()).contains(&index))
            || (self.layouts.in_transition() && self.layouts.holds(key.hash(), &self.me))
    }

    /// Whether this node is a primary of a partition of the base ring, by that ring.
    pub(crate) fn holds(&self, partition: PartitionId) -> bool {
        self.me_index
            .is_some_and(|index| self.placement().holds(partition, index.into()))
    }

    /// Whether this node is a primary of a partition of the base ring, by any ring that is written to.
    pub(crate) fn has_a_part_in(&self, partition: PartitionId) -> bool {
        self.layouts.holds_partition(partition, &self.me)
    }

    /// The epoch that clients are told: of the ring that reads go to.
    pub(crate) fn epoch(&self) -> u64 {
        let reading = self.layouts.reading().unwrap_or_else(|| self.placement());
        reading.ring().epoch()
    }

    pub(crate) fn served(&self, quorum: &Quorum, acks: u32) -> Served {
        Served {
            ring_epoch: self.epoch(),
            coordinator: self.me.clone(),
            acks,
            fallbacks_counted: 0,
            fastest: None,
            quorum: *quorum,
        }
    }
}

/// The first nodes of a partition, as many as a bucket has replicas, and its other primaries.
fn first(
    placement: &Placement,
    partition: PartitionId,
    replicas: Option<u32>,
) -> (Vec<&Member>, Vec<&Member>) {
    let members = placement.ring().members();
    let primaries = placement.primaries(partition);
    let n = replicas.map_or(primaries.len(), |n| primaries.len().min(n as usize));
    let of = |indexes: &[u16]| {
        indexes
            .iter()
            .map(|index| &members[usize::from(*index)])
            .collect()
    };
    let (primaries, rest) = primaries.split_at(n);
    (of(primaries), of(rest))
}
