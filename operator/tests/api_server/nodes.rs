//! Fake Dynamo nodes: what a node keeps is in its volume, known by the claim's UID, and outlives pods and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use dynamo_core::{
    ring::{Member, Placement, Ring},
    types::{ClusterId, MemberId, Zone},
};
use dynamo_operator::admin::{Admin, AdminError, NodeReport, NodeState};
use dynamo_proto::admin as pb;

use super::{faults::Faults, rings::Changes};

#[derive(Clone, Debug, Default)]
pub struct Volume {
    pub identity: Option<(ClusterId, String, String)>,
    pub ring: Option<Arc<Ring>>,
    pub hints: u64,
    pub data_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) volumes: BTreeMap<String, Volume>,
    /// Address of a running pod -> UID of its claim.
    running: BTreeMap<IpAddr, String>,
    cut_off: BTreeSet<IpAddr>,
    rings_minted: BTreeSet<(ClusterId, u64)>,
    bootstraps: u32,
    /// Changes of the ring that are under way, and what the test wants of them.
    pub(super) changes: Changes,
}

#[derive(Clone, Debug, Default)]
pub struct Nodes(pub(super) Arc<Mutex<State>>);

impl Nodes {
    pub fn start(&self, ip: IpAddr, claim_uid: &str) {
        let mut state = self.0.lock().unwrap();
        state.volumes.entry(claim_uid.into()).or_default();
        state.running.insert(ip, claim_uid.into());
    }

    pub fn stop(&self, ip: IpAddr) {
        self.0.lock().unwrap().running.remove(&ip);
    }

    /// A node that nobody reaches, though it runs.
    pub fn cut_off(&self, ip: IpAddr) {
        self.0.lock().unwrap().cut_off.insert(ip);
    }

    pub fn heal(&self) {
        self.0.lock().unwrap().cut_off.clear();
    }

    pub fn set_volume(&self, claim_uid: &str, volume: Volume) {
        self.0.lock().unwrap().volumes.insert(claim_uid.into(), volume);
    }

    pub fn volume(&self, claim_uid: &str) -> Option<Volume> {
        self.0.lock().unwrap().volumes.get(claim_uid).cloned()
    }

    pub fn valid(&self, ip: IpAddr) -> bool {
        self.report(ip)
            .is_ok_and(|report| report.state == NodeState::Valid)
    }

    pub fn rings_minted(&self) -> usize {
        self.0.lock().unwrap().rings_minted.len()
    }

    pub fn bootstraps(&self) -> u32 {
        self.0.lock().unwrap().bootstraps
    }

    fn report(&self, ip: IpAddr) -> Result<NodeReport, AdminError> {
        let mut state = self.0.lock().unwrap();
        state.gossip();
        let volume = state.volume(ip)?.clone();
        let ring = volume.ring.as_deref();
        let (cluster_id, member_id, zone) = match &volume.identity {
            Some((cluster, member, zone)) => (Some(*cluster), member.clone(), zone.clone()),
            None => (None, String::new(), String::new()),
        };
        let listed = ring.is_some_and(|ring| ring.members().iter().any(|m| m.id.as_str() == member_id));
        Ok(NodeReport {
            state: match (cluster_id, listed) {
                (None, _) => NodeState::Unassigned,
                (Some(_), false) => NodeState::Joining,
                (Some(_), true) => NodeState::Valid,
            },
            cluster_id,
            member_id,
            zone,
            ring_epoch: ring.map_or(0, Ring::epoch),
            ring_hash: ring.map_or(0, Ring::hash),
            release: "0.1.0".into(),
            not_ready_reason: if listed { String::new() } else { "no ring".into() },
            hints: volume.hints,
            partitions_suspect: 0,
            data_bytes: volume.data_bytes,
        })
    }
}

impl State {
    pub(super) fn volume(&mut self, ip: IpAddr) -> Result<&mut Volume, AdminError> {
        let silent = || AdminError::Silent {
            address: ip,
            why: "connection refused".into(),
        };
        if self.cut_off.contains(&ip) {
            return Err(silent());
        }
        let claim = self.running.get(&ip).ok_or_else(silent)?;
        self.volumes.get_mut(claim).ok_or_else(silent)
    }

    /// Nodes that run and know their cluster learn its newest ring from any other.
    fn gossip(&mut self) {
        let running: BTreeSet<String> = self.running.values().cloned().collect();
        let mut rings = BTreeMap::<ClusterId, Arc<Ring>>::new();
        for (_, volume) in self.volumes.iter().filter(|(uid, _)| running.contains(*uid)) {
            if let (Some((cluster, ..)), Some(ring)) = (&volume.identity, &volume.ring) {
                let newest = rings.entry(*cluster).or_insert_with(|| ring.clone());
                if ring.version() > newest.version() {
                    *newest = ring.clone();
                }
            }
        }
        for (_, volume) in self.volumes.iter_mut().filter(|(uid, _)| running.contains(*uid)) {
            if let Some((cluster, ..)) = &volume.identity {
                volume.ring = rings.get(cluster).cloned();
            }
        }
    }

    /// Members whose nodes run and can be reached.
    pub(super) fn reachable(&self) -> BTreeSet<String> {
        let up = self.running.iter().filter(|(ip, _)| !self.cut_off.contains(*ip));
        up.filter_map(|(_, uid)| Some(self.volumes.get(uid)?.identity.as_ref()?.1.clone()))
            .collect()
    }
}

/// The nodes as one operator reaches them: with it, its calls die.
#[derive(Clone)]
pub struct Reached {
    pub nodes: Nodes,
    pub faults: Faults,
}

impl Reached {
    pub(super) fn change<T>(
        &self,
        ip: IpAddr,
        what: &str,
        change: impl FnOnce(&mut State) -> Result<T, AdminError>,
    ) -> Result<T, AdminError> {
        let silent = || AdminError::Silent {
            address: ip,
            why: "the operator is dead".into(),
        };
        let dies_after = self.faults.write(format!("{what} {ip}")).map_err(|_| silent())?;
        let result = change(&mut self.nodes.0.lock().unwrap());
        if dies_after {
            self.faults.die();
            return Err(silent());
        }
        result
    }
}

pub(super) fn refused(ip: IpAddr, what: &'static str, why: &str) -> AdminError {
    AdminError::Refused {
        address: ip,
        what,
        why: why.into(),
    }
}

impl Admin for Reached {
    async fn status(&self, node: IpAddr) -> Result<NodeReport, AdminError> {
        // Others run between the calls of one operator.
        tokio::task::yield_now().await;
        self.nodes.report(node)
    }

    async fn ring(&self, node: IpAddr) -> Result<Arc<Placement>, AdminError> {
        let mut state = self.nodes.0.lock().unwrap();
        let ring = state.volume(node)?.ring.clone();
        let ring = ring.ok_or_else(|| refused(node, "Ring", "no ring"))?;
        let wire = dynamo_operator::ring::write(&ring);
        dynamo_operator::ring::read(wire).map_err(|e| AdminError::Bad {
            address: node,
            why: e.to_string(),
        })
    }

    async fn bootstrap(&self, node: IpAddr, request: pb::BootstrapRequest) -> Result<bool, AdminError> {
        tokio::task::yield_now().await;
        self.change(node, "bootstrap", |state| {
            state.bootstraps += 1;
            let volume = state.volume(node)?;
            let cluster = ClusterId(request.cluster_id.as_ref().try_into().unwrap());
            if let Some((found, ..)) = &volume.identity {
                return if *found == cluster {
                    Ok(false)
                } else {
                    Err(refused(node, "Bootstrap", "another cluster"))
                };
            }
            let members = request.members.iter().map(|member| Member {
                id: MemberId::new(member.member_id.clone()).unwrap(),
                zone: Zone::new(member.zone.clone()).unwrap(),
                weight: member.weight,
            });
            let ring =
                Ring::bootstrap(cluster, members.collect(), request.partitions, request.factor).unwrap();
            let own = request
                .members
                .iter()
                .find(|m| m.member_id == request.member_id)
                .unwrap();
            volume.identity = Some((cluster, own.member_id.clone(), own.zone.clone()));
            let minted = (cluster, ring.hash());
            volume.ring = Some(Arc::new(ring));
            state.rings_minted.insert(minted);
            Ok(true)
        })
    }

    async fn join(&self, node: IpAddr, request: pb::JoinRequest) -> Result<bool, AdminError> {
        tokio::task::yield_now().await;
        self.change(node, "join", |state| {
            let volume = state.volume(node)?;
            let cluster = ClusterId(request.cluster_id.as_ref().try_into().unwrap());
            let identity = (cluster, request.member_id.clone(), request.zone.clone());
            match &volume.identity {
                Some(found) if *found == identity => Ok(false),
                Some(_) => Err(refused(node, "Join", "another identity")),
                None => {
                    assert!(
                        !request.seeds.is_empty(),
                        "a node without seeds would never learn the ring"
                    );
                    volume.identity = Some(identity);
                    state.gossip();
                    Ok(true)
                }
            }
        })
    }

    async fn transition(&self, node: IpAddr) -> Result<pb::TransitionResponse, AdminError> {
        let mut state = self.nodes.0.lock().unwrap();
        let volume = state.volume(node)?.clone();
        Ok(state.told(&volume))
    }

    async fn plan(&self, node: IpAddr, target: pb::RingTarget) -> Result<pb::PlanResponse, AdminError> {
        let mut state = self.nodes.0.lock().unwrap();
        let base = state.volume(node)?.ring.clone();
        let base = base.ok_or_else(|| refused(node, "Plan", "no ring"))?;
        state
            .planned(&base, &target)
            .map_err(|why| refused(node, "Plan", &why))
    }

    async fn commit(
        &self,
        node: IpAddr,
        request: pb::CommitRequest,
    ) -> Result<pb::CommitResponse, AdminError> {
        tokio::task::yield_now().await;
        self.change(node, "commit", |state| {
            let volume = state.volume(node)?.clone();
            state
                .proposed(&volume, &request)
                .map_err(|why| refused(node, "Commit", &why))
        })
    }
}
