//! Reads that this client coordinates: the core's machine over `ReplicaGet`. Paper: §6.4, client-driven coordination.
//!
//! What cannot be decided here is handed over to a node, which can always tell: after a change of the ring or of the
//! bucket's rules, when too few replicas answer *this* client, or when the bucket wants it so. The machine's repairs are
//! not carried out: only nodes write to replicas, and they do it when they coordinate.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use dynamo_core::{
    coordinator::{
        Candidate, Candidates, FailureKind, GetCoordinator, GetEffect, GetEvent, GetOutcome, GetResult,
        ReadRepair, ReplicaFailure, ReplicaRead,
    },
    membership::Pace,
    quorum::{Quorum, QuorumOverrides, ReplicaCount},
    types::{KeyHash, MemberId},
    version::{self, KeyState, Sibling},
};
use dynamo_proto::v1;
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use crate::{
    call::{ATTEMPT_MIN, Operation, Shared},
    error::{Detail, Error, Outcome},
    hedge::Stopwatch,
    nodes::Node,
    routing::Routes,
    status::{Failed, Origin},
    types::{Context, Found, Info, ReadOptions, Value},
};

/// Why a node has to coordinate a read in the client's place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum HandOver {
    #[error("no ring is known")]
    NoRing,
    #[error("what holds for the bucket is not known")]
    RulesUnknown,
    #[error("only nodes coordinate reads of the bucket")]
    NodesOnly,
    #[error("the quorum is not possible")]
    Quorum,
    #[error("a replica uses a newer ring")]
    NewerRing,
    #[error("a replica knows newer rules of the bucket")]
    NewerRules,
    #[error("a replica refused the read with {0:?}")]
    Refused(Code),
    #[error("{got} of {needed} replicas answered")]
    TooFew { needed: u32, got: u32 },
}

/// A replica's answer on its way to the machine.
type Arrival = (MemberId, bool, Result<v1::ReplicaGetResponse, Failed>);

/// One read under way.
struct Read<'a> {
    shared: &'a Shared,
    routes: Arc<Routes>,
    request: &'a v1::GetRequest,
    hash: KeyHash,
    rules: v1::ReadRules,
    quorum: Quorum,
    until: Instant,
    wall_ms: u64,
}

/// What is told about a read besides its result.
#[derive(Default)]
struct Tally {
    asked: u32,
    fallbacks: u32,
    fastest: Option<MemberId>,
}

/// Reads a key from its replicas. `None`: a node has to coordinate the read.
pub(crate) async fn get(
    shared: &Shared,
    request: &v1::GetRequest,
    options: &ReadOptions,
    until: Instant,
) -> Option<Result<Found, Error>> {
    let result = match Read::new(shared, request, options, until).await {
        Ok(read) => read.run().await,
        Err(why) => Err(why),
    };
    shared.memory.coordinated(result.is_ok());
    if let Err(why) = &result {
        tracing::debug!(%why, "read is handed over to a node");
    }
    result.ok()
}

impl<'a> Read<'a> {
    async fn new(
        shared: &'a Shared,
        request: &'a v1::GetRequest,
        options: &ReadOptions,
        until: Instant,
    ) -> Result<Self, HandOver> {
        let hash = KeyHash::of(&request.bucket, &request.key);
        let rules = match shared.memory.rules(&request.bucket) {
            Some(rules) => rules,
            None => learn(shared, request, hash, until).await?,
        };
        if rules.nodes_only {
            return Err(HandOver::NodesOnly);
        }
        let routes = shared.router.routes().ok_or(HandOver::NoRing)?;
        let quorum = quorum(&rules, options)?;
        if quorum.n > routes.placement.ring().factor() {
            return Err(HandOver::Quorum);
        }
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Self {
            shared,
            routes,
            request,
            hash,
            rules,
            quorum,
            until,
            wall_ms: since_1970.unwrap_or_default().as_millis() as u64,
        })
    }

    /// Drives the machine to its reply. Requests still under way then are dropped.
    async fn run(&self) -> Result<Result<Found, Error>, HandOver> {
        let candidates = candidates(&self.routes, self.hash, self.quorum.n);
        let mut machine = GetCoordinator::new(self.quorum, ReadRepair::Off, candidates, self.wall_ms);
        let mut reads = FuturesUnordered::new();
        let mut effects = Vec::new();
        let mut tally = Tally::default();
        let late_at = Instant::now() + self.hold_back(&mut machine);
        machine.step(GetEvent::Start, &mut effects);
        loop {
            for effect in effects.drain(..) {
                match effect {
                    GetEffect::Read { member, fallback } => {
                        tally.asked += 1;
                        reads.push(self.ask(member, fallback));
                    }
                    GetEffect::Reply(outcome) => return self.reply(outcome, tally),
                    GetEffect::Repair { .. } | GetEffect::LeftOut { .. } => {}
                }
            }
            let event = tokio::select! {
                Some(arrival) = reads.next() => self.arrived(arrival, &mut tally)?,
                () = sleep_until(late_at), if machine.holds_back() => GetEvent::Late,
                () = sleep_until(self.until) => GetEvent::DeadlineReached,
            };
            machine.step(event, &mut effects);
        }
    }

    /// Asks no more primaries than are needed if these answer as fast as they usually do; returns how fast that is.
    fn hold_back(&self, machine: &mut GetCoordinator) -> Duration {
        if self.shared.memory.is_sample() {
            return Duration::ZERO;
        }
        let late_us = machine.hold_back(None, |member| {
            let usual = self.routes.node_of(member)?.latencies.hedge_after()?;
            let usual_us = usual.as_micros() as u64;
            Some(Pace {
                mean_us: usual_us,
                late_us: usual_us,
                is_late: false,
            })
        });
        Duration::from_micros(late_us.unwrap_or_default())
    }

    async fn ask(&self, member: MemberId, fallback: bool) -> Arrival {
        let Some(node) = self.routes.node_of(&member) else {
            let message = "its address is not known".to_owned();
            let failed = Failed::local(Origin::Connect, Code::Unavailable, message);
            return (member, fallback, Err(failed));
        };
        let message = replica_request(
            self.request,
            self.routes.placement.ring().epoch(),
            member.to_string(),
        );
        let usual = self.shared.settings.attempt_timeout;
        let limit = self.until.saturating_duration_since(Instant::now()).min(usual);
        let stub = self.shared.router.nodes.stub(node);
        let request = stub.replica_get(message, limit);
        // A replica that is given up for faster ones is to be known as slow.
        let watch = Stopwatch::start(node);
        let answer = self.shared.attempt(node, limit, usual, request).await;
        match &answer {
            Err(failed) if failed.origin != Origin::TimedOut => watch.forget(),
            _ => watch.stop(),
        }
        (member, fallback, answer)
    }

    fn arrived(&self, (member, fallback, answer): Arrival, tally: &mut Tally) -> Result<GetEvent, HandOver> {
        let result = match answer {
            Ok(reply) => self.answered(&member, fallback, reply)?,
            Err(failed) => {
                if failed.code == Code::FailedPrecondition {
                    // It may refuse because its ring is newer.
                    self.shared.refresh_soon();
                }
                Err(failure(&failed)?)
            }
        };
        if result.as_ref().is_ok_and(|read| !read.suspect) {
            tally.fallbacks += u32::from(fallback);
            if !fallback && tally.fastest.is_none() {
                self.shared.memory.answered_first(self.hash, member.clone());
                tally.fastest = Some(member.clone());
            }
        }
        Ok(GetEvent::ReplicaDone { member, result })
    }

    fn answered(
        &self,
        member: &MemberId,
        fallback: bool,
        reply: v1::ReplicaGetResponse,
    ) -> Result<Result<ReplicaRead, ReplicaFailure>, HandOver> {
        self.shared.notice(reply.ring_epoch);
        if reply.ring_epoch > self.routes.placement.ring().epoch() {
            return Err(HandOver::NewerRing);
        }
        if let Some(rules) = &reply.rules {
            self.shared.memory.learn(&self.request.bucket, rules);
            if rules.version > self.rules.version {
                return Err(HandOver::NewerRules);
            }
        }
        if !fallback && !reply.primary {
            // It uses an older ring, under which it does not hold the key: its word is no primary's.
            return Ok(Err(failed(FailureKind::StaleEpoch)));
        }
        let state = match reply.state.map(KeyState::decode).transpose() {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(%member, %error, "a replica's record cannot be read");
                return Ok(Err(failed(FailureKind::Storage)));
            }
        };
        Ok(Ok(ReplicaRead {
            state,
            suspect: reply.suspect,
        }))
    }

    fn reply(&self, outcome: GetOutcome, tally: Tally) -> Result<Result<Found, Error>, HandOver> {
        let acks = outcome.acks;
        match outcome.result {
            GetResult::Found(state) => Ok(self.found(&state, acks, tally)),
            GetResult::Absent(state) => Ok(Err(Error::NotFound {
                context: state.map_or_else(Context::none, |state| self.context(&state)),
            })),
            GetResult::Unavailable {
                needed,
                got,
                timed_out: late,
                ..
            } => {
                // The last requests to replicas end with the deadline itself.
                let left = self.until.saturating_duration_since(Instant::now());
                if late || left < ATTEMPT_MIN {
                    return Ok(Err(timed_out(needed, got, tally.asked)));
                }
                Err(HandOver::TooFew { needed, got })
            }
        }
    }

    fn found(&self, state: &KeyState, acks: u32, tally: Tally) -> Result<Found, Error> {
        let last_write_wins = self.rules.last_write_wins;
        let live = if last_write_wins {
            Vec::from_iter(state.lww_winner(self.wall_ms))
        } else {
            state.live(self.wall_ms)
        };
        let context = self.context(state);
        if live.is_empty() {
            // A delete was the last write.
            return Err(Error::NotFound { context });
        }
        let quorum = self.quorum;
        Ok(Found {
            versions: live
                .into_iter()
                .filter_map(|(_, sibling)| value(sibling))
                .collect(),
            typed: None,
            context,
            deleted_concurrently: !last_write_wins && state.has_tombstone(),
            info: Info {
                ring_epoch: self.routes.placement.ring().epoch(),
                coordinator: String::new(),
                hops: 0,
                acks,
                fallbacks_counted: tally.fallbacks.min(acks),
                fastest: tally.fastest.map(|member| member.to_string()).unwrap_or_default(),
                quorum: [
                    quorum.n,
                    quorum.r,
                    quorum.w,
                    quorum.pr,
                    quorum.pw,
                    quorum.dw,
                    quorum.zones,
                ],
            },
        })
    }

    /// Byte for byte what a node gives out for the same state.
    fn context(&self, state: &KeyState) -> Context {
        let seen = state.context_seen();
        let cluster = self.routes.placement.ring().cluster_id();
        Context::from_bytes(version::Context { seen }.encode(cluster, self.hash))
    }
}

/// Asks one replica what holds for the bucket's reads, once per bucket.
async fn learn(
    shared: &Shared,
    request: &v1::GetRequest,
    hash: KeyHash,
    until: Instant,
) -> Result<v1::ReadRules, HandOver> {
    // Half of the time: should nobody answer, the get itself has to find out why.
    let operation = Operation {
        hash: Some(hash),
        write: false,
        bytes: 0,
        deadline: until.saturating_duration_since(Instant::now()) / 2,
    };
    let message = replica_request(request, shared.router.epoch(), String::new());
    let reply = shared.call(operation, |stub, limit| stub.replica_get(message.clone(), limit));
    let rules = match Box::pin(reply).await {
        Ok(reply) => reply.rules,
        // A node of a release that does not know the call.
        Err(Error::Refused { .. }) => None,
        Err(_) => return Err(HandOver::RulesUnknown),
    };
    // Asked again after the next refresh of the ring.
    let rules = rules.unwrap_or_else(|| v1::ReadRules {
        nodes_only: true,
        ..v1::ReadRules::default()
    });
    shared.memory.learn(&request.bucket, &rules);
    Ok(rules)
}

fn replica_request(request: &v1::GetRequest, ring_epoch: u64, member_id: String) -> v1::ReplicaGetRequest {
    v1::ReplicaGetRequest {
        bucket: request.bucket.clone(),
        key: request.key.clone(),
        ring_epoch,
        member_id,
    }
}

/// The bucket's numbers with the request's own in their place.
fn quorum(rules: &v1::ReadRules, options: &ReadOptions) -> Result<Quorum, HandOver> {
    let told = rules.quorum.unwrap_or_default();
    let overrides = QuorumOverrides {
        r: options.r.map(crate::Replicas::count),
        pr: Some(
            options
                .pr
                .map_or(ReplicaCount::Count(told.pr), crate::Replicas::count),
        ),
        ..QuorumOverrides::default()
    };
    Quorum::new(told.replicas, told.r, told.w)
        .and_then(|quorum| quorum.with(&overrides))
        .map_err(|_| HandOver::Quorum)
}

/// Primaries of the own zone first, else in the list's order.
fn candidates(routes: &Routes, hash: KeyHash, n: u32) -> Candidates {
    let ring = routes.placement.ring();
    let mut list = ring.preference_list_for(ring.partition_of(hash), n);
    list.primaries.sort_by_key(|index| !routes.in_own_zone[*index]);
    let candidate = |index: usize| {
        let member = &ring.members()[index];
        let reachable = |node: &Arc<Node>| !node.is_aside();
        Candidate {
            member: member.id.clone(),
            zone: member.zone.clone(),
            reachable: routes.members[index].as_ref().is_some_and(reachable),
        }
    };
    Candidates {
        primaries: list.primaries.into_iter().map(candidate).collect(),
        fallbacks: list.fallbacks.into_iter().map(candidate).collect(),
        partners: Vec::new(),
    }
}

fn value(sibling: &Sibling) -> Option<Value> {
    Some(Value {
        value: Bytes::clone(sibling.value()?),
        written_at_ms: sibling.stamp.ms(),
        expires_at_ms: sibling.expires_at_ms,
    })
}

/// What a failed request says about the replica; a refusal is for a node to explain.
fn failure(failed: &Failed) -> Result<ReplicaFailure, HandOver> {
    let kind = match (failed.origin, failed.code) {
        (Origin::TimedOut, _) | (_, Code::DeadlineExceeded | Code::Cancelled) => FailureKind::TimedOut,
        (Origin::Connect | Origin::Transport, _) | (_, Code::Unavailable) => FailureKind::Unreachable,
        (_, Code::ResourceExhausted) => FailureKind::Overloaded,
        (_, Code::Internal | Code::DataLoss | Code::Unknown) => FailureKind::Storage,
        (_, code) => return Err(HandOver::Refused(code)),
    };
    Ok(ReplicaFailure {
        sent: failed.origin != Origin::Connect,
        kind,
    })
}

fn failed(kind: FailureKind) -> ReplicaFailure {
    ReplicaFailure { sent: true, kind }
}

fn timed_out(needed: u32, got: u32, asked: u32) -> Error {
    let detail = Detail {
        code: Code::DeadlineExceeded,
        reason: "READ_TIMED_OUT".to_owned(),
        message: format!("{got} of {needed} replicas answered in time"),
        node: "its replicas".to_owned(),
        attempts: asked,
    };
    Error::DeadlineExceeded {
        outcome: Outcome::NotApplied,
        detail: Box::new(detail),
    }
}

#[cfg(test)]
mod tests {
    use dynamo_core::{
        ring::{Member, Ring},
        types::{ClusterId, Zone},
    };

    use super::*;
    use crate::{config::Builder, routing::Router};

    /// Six members in the zones a, b, c, a, b, c.
    fn routes(zone: Option<&str>) -> (Router, Arc<Routes>) {
        let members = (0..6).map(|index| Member {
            id: MemberId::new(format!("n{index}")).unwrap(),
            zone: Zone::new(["a", "b", "c"][index % 3]).unwrap(),
            weight: 1,
        });
        let ring = Ring::bootstrap(ClusterId([7; 16]), members.collect(), 32, 3).unwrap();
        let members = ring
            .members()
            .iter()
            .enumerate()
            .map(|(index, member)| v1::RingMember {
                member_id: member.id.to_string(),
                zone: member.zone.to_string(),
                weight: 1,
                client_address: format!("127.0.0.1:{}", index + 1),
            });
        let wire = v1::Ring {
            cluster_id: Bytes::copy_from_slice(&ring.cluster_id().0),
            epoch: ring.epoch(),
            hash: ring.hash(),
            factor: ring.factor(),
            members: members.collect(),
            owners: ring.owners().iter().map(|owner| u32::from(*owner)).collect(),
        };
        let endpoints = ["127.0.0.1:1".to_owned()];
        let router = Router::new(Builder::default().settings, &endpoints, zone.map(str::to_owned)).unwrap();
        router.adopt(wire).unwrap();
        let routes = router.routes().unwrap();
        (router, routes)
    }

    #[tokio::test]
    async fn d11_primaries_of_the_own_zone_come_first_and_all_are_asked() {
        let ((_a, anywhere), (_b, in_b)) = (routes(None), routes(Some("b")));
        for hash in (0..64u64).map(|index| KeyHash(index << 58)) {
            let usual = candidates(&anywhere, hash, 3);
            let local = candidates(&in_b, hash, 3);
            assert_eq!(local.primaries[0].zone.as_str(), "b");
            let mut expected = usual.primaries.clone();
            expected.sort_by_key(|candidate| candidate.zone.as_str() != "b");
            assert_eq!((local.primaries, local.fallbacks), (expected, usual.fallbacks));
        }
    }

    #[tokio::test]
    async fn nodes_put_aside_are_not_reachable() {
        let (router, routes) = routes(None);
        let aside = MemberId::new("n4").unwrap();
        let node = routes.node_of(&aside).unwrap();
        router.nodes.failed(node, Instant::now(), "refused");
        let all = candidates(&routes, KeyHash(0), 3);
        let mut all = all.primaries.into_iter().chain(all.fallbacks);
        assert!(all.all(|candidate| candidate.reachable == (candidate.member != aside)));
    }

    #[test]
    fn a_refusal_is_no_failed_replica() {
        let told = |code| failure(&Failed::local(Origin::Node, code, String::new()));
        assert_eq!(
            told(Code::Unimplemented),
            Err(HandOver::Refused(Code::Unimplemented))
        );
        assert_eq!(
            told(Code::ResourceExhausted).unwrap().kind,
            FailureKind::Overloaded
        );
        let refused = Failed::local(Origin::Connect, Code::Unavailable, String::new());
        assert!(!failure(&refused).unwrap().sent);
    }
}
