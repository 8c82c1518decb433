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

use crate::{
    faults::{Dead, Fate, Faults},
    rings::{self, Changes},
};

/// What a node keeps.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Cluster, member and zone.
    pub identity: Option<(ClusterId, String, String)>,
    /// The ring that serves, as far as it knows.
    pub ring: Option<Arc<Ring>>,
    /// Kept for others.
    pub hints: u64,
    /// Live data.
    pub data_bytes: u64,
}

#[derive(Clone, Debug, Default)]
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

/// All nodes of a world; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Nodes(pub(super) Arc<Mutex<State>>);

impl Nodes {
    /// A pod runs with this claim.
    pub fn start(&self, ip: IpAddr, claim_uid: &str) {
        let mut state = self.0.lock().unwrap();
        state.volumes.entry(claim_uid.into()).or_default();
        state.running.insert(ip, claim_uid.into());
    }

    /// It runs no more.
    pub fn stop(&self, ip: IpAddr) {
        self.0.lock().unwrap().running.remove(&ip);
    }

    /// A node that nobody reaches, though it runs.
    pub fn cut_off(&self, ip: IpAddr) {
        self.0.lock().unwrap().cut_off.insert(ip);
    }

    /// Everybody is reached again.
    pub fn heal(&self) {
        self.0.lock().unwrap().cut_off.clear();
    }

    /// Puts something else on a volume.
    pub fn set_volume(&self, claim_uid: &str, volume: Volume) {
        self.0.lock().unwrap().volumes.insert(claim_uid.into(), volume);
    }

    /// What is on a volume.
    pub fn volume(&self, claim_uid: &str) -> Option<Volume> {
        self.0.lock().unwrap().volumes.get(claim_uid).cloned()
    }

    /// It serves.
    pub fn valid(&self, ip: IpAddr) -> bool {
        let report = self.0.lock().unwrap().report(ip);
        report.is_ok_and(|report| report.state == NodeState::Valid)
    }

    /// First rings, of all clusters.
    pub fn rings_minted(&self) -> usize {
        self.0.lock().unwrap().rings_minted.len()
    }

    /// How often one was asked for.
    pub fn bootstraps(&self) -> u32 {
        self.0.lock().unwrap().bootstraps
    }

    /// Another set of nodes that keep the same, and go their own way from here.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }
}

impl State {
    fn report(&mut self, ip: IpAddr) -> Result<NodeReport, AdminError> {
        self.gossip();
        let volume = self.volume(ip)?.clone();
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

    fn bootstrap(&mut self, node: IpAddr, request: &pb::BootstrapRequest) -> Result<bool, AdminError> {
        self.bootstraps += 1;
        let volume = self.volume(node)?;
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
        let ring = Ring::bootstrap(cluster, members.collect(), request.partitions, request.factor).unwrap();
        let mut members = request.members.iter();
        let own = members.find(|m| m.member_id == request.member_id).unwrap();
        volume.identity = Some((cluster, own.member_id.clone(), own.zone.clone()));
        let minted = (cluster, ring.hash());
        volume.ring = Some(Arc::new(ring));
        self.rings_minted.insert(minted);
        Ok(true)
    }

    fn join(&mut self, node: IpAddr, request: &pb::JoinRequest) -> Result<bool, AdminError> {
        let volume = self.volume(node)?;
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
                self.gossip();
                Ok(true)
            }
        }
    }
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
    /// Who is asked.
    pub nodes: Nodes,
    /// What becomes of it.
    pub faults: Faults,
}

impl Reached {
    /// A call, whose answer may be lost, of an operator that may die before or after it.
    pub(super) async fn call<T>(
        &self,
        ip: IpAddr,
        what: &str,
        writes: bool,
        call: impl FnOnce(&mut State) -> Result<T, AdminError>,
    ) -> Result<T, AdminError> {
        // Others run between the calls of one operator.
        tokio::task::yield_now().await;
        let silent = |why: &str| AdminError::Silent {
            address: ip,
            why: why.into(),
        };
        let fate = self.faults.fate(format!("{what} {ip}"), writes);
        let fate = fate.map_err(|Dead| silent("the operator is dead"))?;
        if let Fate::Refused(_) = fate {
            return Err(silent("nothing arrived"));
        }
        let result = call(&mut self.nodes.0.lock().unwrap());
        match fate {
            Fate::DiesAfter => {
                self.faults.die();
                Err(silent("the operator is dead"))
            }
            Fate::AnswerLost => Err(silent("no answer arrived")),
            _ => result,
        }
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
        self.call(node, "status", false, |state| state.report(node)).await
    }

    async fn ring(&self, node: IpAddr) -> Result<Arc<Placement>, AdminError> {
        let ring = |state: &mut State| {
            let ring = state.volume(node)?.ring.clone();
            ring.ok_or_else(|| refused(node, "Ring", "no ring"))
        };
        let ring = self.call(node, "ring", false, ring).await?;
        rings::read(&ring).map_err(|why| AdminError::Bad { address: node, why })
    }

    async fn bootstrap(&self, node: IpAddr, request: pb::BootstrapRequest) -> Result<bool, AdminError> {
        let bootstrap = |state: &mut State| state.bootstrap(node, &request);
        self.call(node, "bootstrap", true, bootstrap).await
    }

    async fn join(&self, node: IpAddr, request: pb::JoinRequest) -> Result<bool, AdminError> {
        self.call(node, "join", true, |state| state.join(node, &request))
            .await
    }

    async fn transition(&self, node: IpAddr) -> Result<pb::TransitionResponse, AdminError> {
        let told = |state: &mut State| {
            let volume = state.volume(node)?.clone();
            Ok(state.told(&volume))
        };
        self.call(node, "transition", false, told).await
    }

    async fn plan(&self, node: IpAddr, target: pb::RingTarget) -> Result<pb::PlanResponse, AdminError> {
        let plan = |state: &mut State| {
            let base = state.volume(node)?.ring.clone();
            let base = base.ok_or_else(|| refused(node, "Plan", "no ring"))?;
            let planned = state.planned(&base, &target);
            planned.map_err(|why| refused(node, "Plan", &why))
        };
        self.call(node, "plan", false, plan).await
    }

    async fn commit(
        &self,
        node: IpAddr,
        request: pb::CommitRequest,
    ) -> Result<pb::CommitResponse, AdminError> {
        let commit = |state: &mut State| {
            let volume = state.volume(node)?.clone();
            let proposed = state.proposed(&volume, &request);
            proposed.map_err(|why| refused(node, "Commit", &why))
        };
        self.call(node, "commit", true, commit).await
    }
}
