//! Where to send a request: to a replica of its key if the ring is known. Paper: §6.4.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use dynamo_core::{
    ring::{Member, Placement, Ring, RingParts},
    types::{ClusterId, KeyHash, MemberId, Zone},
};
use dynamo_proto::v1;

use crate::{
    attempts::Attempts,
    config::Settings,
    error::Error,
    nodes::{Node, Nodes},
};

/// Endpoints, ring and nodes together.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) nodes: Nodes,
    endpoints: Vec<Arc<Node>>,
    zone: Option<String>,
    routes: ArcSwapOption<Routes>,
}

/// A ring with its members' nodes.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) placement: Placement,
    /// By the ring's index; none while the address is unknown or cannot be used.
    pub(crate) members: Vec<Option<Arc<Node>>>,
    /// By the ring's index.
    pub(crate) in_own_zone: Vec<bool>,
}

/// Why a ring from a node is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingRefused {
    #[error("the ring cannot be read: {0}")]
    Invalid(String),
    #[error("the ring belongs to cluster {0}, this client speaks with another one")]
    Foreign(ClusterId),
}

impl Router {
    pub(crate) fn new(settings: Settings, endpoints: &[String], zone: Option<String>) -> Result<Self, Error> {
        let nodes = Nodes::new(settings);
        let endpoints = endpoints
            .iter()
            .map(|address| nodes.at(address))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            nodes,
            endpoints,
            zone,
            routes: ArcSwapOption::empty(),
        })
    }

    /// The epoch of the ring in use; 0 without one.
    pub(crate) fn epoch(&self) -> u64 {
        self.ring().map_or(0, |ring| ring.epoch())
    }

    /// The ring in use.
    pub(crate) fn ring(&self) -> Option<Arc<Ring>> {
        self.routes
            .load()
            .as_ref()
            .map(|routes| Arc::clone(routes.placement.ring()))
    }

    /// The ring in use with its members' nodes.
    pub(crate) fn routes(&self) -> Option<Arc<Routes>> {
        self.routes.load_full()
    }

    /// The epoch to name in `GetRing`, so that the reply may leave the ring out. 0 while something about the members'
    /// addresses is unknown or doubtful: these change without a new epoch.
    pub(crate) fn known_epoch(&self) -> u64 {
        match &*self.routes.load() {
            Some(routes) if routes.members.iter().all(Option::is_some) && !self.nodes.any_aside() => {
                routes.placement.ring().epoch()
            }
            _ => 0,
        }
    }

    /// Takes a ring if it is of the same cluster and not older; the same one may bring new addresses.
    pub(crate) fn adopt(&self, ring: v1::Ring) -> Result<(), RingRefused> {
        let addresses: Vec<String> = ring
            .members
            .iter()
            .map(|member| member.client_address.clone())
            .collect();
        let ring = Arc::new(decode(ring)?);
        if let Some(current) = self.ring() {
            if current.cluster_id() != ring.cluster_id() {
                return Err(RingRefused::Foreign(ring.cluster_id()));
            }
            if current.version() > ring.version() {
                return Ok(());
            }
        }
        self.nodes.name_cluster(ring.cluster_id());
        let members = addresses
            .iter()
            .map(|address| self.nodes.at(address).ok())
            .collect();
        let in_own_zone = ring
            .members()
            .iter()
            .map(|member| {
                self.zone
                    .as_deref()
                    .is_some_and(|zone| zone == member.zone.as_str())
            })
            .collect();
        let routes = Routes {
            placement: Placement::new(ring),
            members,
            in_own_zone,
        };
        let routes = Arc::new(routes);
        self.routes.store(Some(Arc::clone(&routes)));
        self.nodes
            .retain(|node| self.endpoints.iter().any(|endpoint| endpoint.id == node.id) || routes.has(node));
        Ok(())
    }

    /// The best node to ask next.
    ///
    /// Nodes put aside come last. Then those asked least often in this operation; among these the key's primaries: the
    /// preferred one, then those in the own zone, else in the list's order: one key has one usual coordinator, which
    /// keeps its versions' contexts small. Then the key's fallbacks in the order in which they stand in, or other members
    /// in random order if it is about no key; then the endpoints.
    pub(crate) fn pick(
        &self,
        hash: Option<KeyHash>,
        preferred: Option<&MemberId>,
        attempts: &Attempts,
        random: u64,
    ) -> Arc<Node> {
        let routes = self.routes.load();
        let primaries = match (&*routes, hash) {
            (Some(routes), Some(hash)) => routes.placement.primaries_of(hash),
            _ => &[],
        };
        let mut best = Best {
            attempts,
            found: None,
        };
        if let Some(routes) = &*routes {
            for (order, index) in primaries.iter().map(|index| usize::from(*index)).enumerate() {
                if let Some(node) = &routes.members[index] {
                    let class = if preferred == Some(&routes.placement.ring().members()[index].id) {
                        0
                    } else {
                        1 + u8::from(!routes.in_own_zone[index])
                    };
                    best.consider(node, class, order as u64);
                }
            }
        }
        if let Some((rank, node)) = best.found
            && !rank.aside
            && rank.asked == 0
        {
            return Arc::clone(node);
        }
        if let Some(routes) = &*routes {
            routes.consider_others(hash, &mut best, random);
        }
        for (index, node) in self.endpoints.iter().enumerate() {
            if !routes.as_ref().is_some_and(|routes| routes.has(node)) {
                best.consider(node, 5, scramble(index, random));
            }
        }
        // There is at least one endpoint, which is a candidate here or above.
        best.found
            .map_or_else(|| Arc::clone(&self.endpoints[0]), |(_, node)| Arc::clone(node))
    }
}

impl Routes {
    /// A member's node, if its address is known.
    pub(crate) fn node_of(&self, member: &MemberId) -> Option<&Arc<Node>> {
        let members = self.placement.ring().members();
        let index = members.iter().position(|other| other.id == *member)?;
        self.members[index].as_ref()
    }

    /// Members that are no primaries of the key.
    fn consider_others<'a>(&'a self, hash: Option<KeyHash>, best: &mut Best<'a>, random: u64) {
        if let Some(hash) = hash {
            let ring = self.placement.ring();
            let fallbacks = ring.preference_list(ring.partition_of(hash)).fallbacks;
            for (order, index) in fallbacks.into_iter().enumerate() {
                if let Some(node) = &self.members[index] {
                    best.consider(node, 3, order as u64);
                }
            }
            return;
        }
        for (index, node) in self.members.iter().enumerate() {
            if let Some(node) = node {
                let class = 3 + u8::from(!self.in_own_zone[index]);
                best.consider(node, class, scramble(index, random));
            }
        }
    }

    fn has(&self, node: &Node) -> bool {
        self.members.iter().flatten().any(|member| member.id == node.id)
    }
}

/// The best candidate so far.
struct Best<'a> {
    attempts: &'a Attempts,
    found: Option<(Rank, &'a Arc<Node>)>,
}

impl<'a> Best<'a> {
    fn consider(&mut self, node: &'a Arc<Node>, class: u8, order: u64) {
        let rank = Rank {
            aside: node.is_aside(),
            asked: self.attempts.asked(node.id),
            class,
            order,
        };
        if self.found.is_none_or(|(least, _)| rank < least) {
            self.found = Some((rank, node));
        }
    }
}

/// Smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    aside: bool,
    asked: u32,
    class: u8,
    order: u64,
}

/// A random order of indexes (the multiplier is that of splitmix64).
fn scramble(index: usize, random: u64) -> u64 {
    (random ^ index as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(17)
}

fn decode(ring: v1::Ring) -> Result<Ring, RingRefused> {
    let invalid = |error: &dyn std::fmt::Display| RingRefused::Invalid(error.to_string());
    let cluster_id = <[u8; 16]>::try_from(ring.cluster_id.as_ref()).map_err(|error| invalid(&error))?;
    let mut members = Vec::with_capacity(ring.members.len());
    for member in ring.members {
        members.push(Member {
            id: MemberId::new(member.member_id).map_err(|error| invalid(&error))?,
            zone: Zone::new(member.zone).map_err(|error| invalid(&error))?,
            weight: member.weight,
        });
    }
    let owners = ring.owners.iter().map(|owner| u16::try_from(*owner));
    let parts = RingParts {
        cluster_id: ClusterId(cluster_id),
        epoch: ring.epoch,
        factor: ring.factor,
        members,
        owners: owners
            .collect::<Result<_, _>>()
            .map_err(|error| invalid(&error))?,
    };
    let decoded = Ring::new(parts).map_err(|error| invalid(&error))?;
    if decoded.hash() != ring.hash {
        return Err(RingRefused::Invalid("its hash does not match".to_owned()));
    }
    Ok(decoded)
}
