//! The ring changes under load (§4.9): members come, go and change their minds, and nothing is lost or stops.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dynamo_proto::{
    admin::{
        CommitRequest, PlanRequest, PlanResponse, RingTarget, TargetMember, TransitionRequest,
        TransitionResponse,
    },
    v1::{self, key_value_client::KeyValueClient},
};
use futures::future::join_all;
use tokio::{sync::Mutex, task::JoinHandle};
use tonic::{Code, transport::Channel};

use crate::harness::{Cluster, Shape, get, put, until, until_ok, values, why};

impl Cluster {
    fn target(&self, members: &[usize]) -> RingTarget {
        let member = |index: &usize| TargetMember {
            member_id: Self::id(*index),
            zone: self.zone(*index),
            weight: Shape::weight(*index),
            ..TargetMember::default()
        };
        RingTarget {
            members: members.iter().map(member).collect(),
            ..RingTarget::default()
        }
    }

    async fn plan(&self, at: usize, target: &RingTarget) -> PlanResponse {
        let target = Some(target.clone());
        self.admin(at)
            .plan(PlanRequest { target })
            .await
            .unwrap()
            .into_inner()
    }

    /// Plans and commits, as often as it takes: others may do so at the same time, and new members are heard of by gossip.
    async fn commit(&self, at: usize, target: &RingTarget) -> u64 {
        let target = Some(target.clone());
        until_ok("the change is committed", || async {
            let mut admin = self.admin(at);
            let target = target.clone();
            let planned = admin
                .plan(PlanRequest {
                    target: target.clone(),
                })
                .await?;
            let commit = CommitRequest {
                target,
                expected_epoch: planned.get_ref().expected_epoch,
                expected_hash: 0,
            };
            Ok(admin.commit(commit).await?.get_ref().epoch)
        })
        .await
    }

    async fn transition(&self, at: usize) -> TransitionResponse {
        self.admin(at)
            .transition(TransitionRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    /// Waits until all nodes that run serve by the ring of that epoch or know that they are not in it, and nobody has strays.
    async fn changed(&mut self, epoch: u64, members: &[usize]) {
        let cluster = Mutex::new(self);
        until(&format!("all serve by ring {epoch} alone"), || async {
            let mut cluster = cluster.lock().await;
            cluster.revive().await;
            for index in cluster.up() {
                let Some(at) = cluster.stands_at(index).await else {
                    return false;
                };
                let ready = cluster.status(index).await.not_ready_reason.is_empty();
                let settled = at.base_epoch == epoch && at.next_epoch == 0 && at.strays == 0;
                if !settled || ready != members.contains(&index) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Asks for these members until all serve by them alone: another ring may have won, which the node had not heard of.
    async fn becomes(&mut self, at: usize, members: &[usize]) {
        let wanted: Vec<String> = members.iter().map(|index| Self::id(*index)).collect();
        let cluster = Mutex::new(self);
        until(&format!("all serve by {wanted:?}"), || async {
            let mut cluster = cluster.lock().await;
            cluster.commit(at, &cluster.target(members)).await;
            cluster.revive().await;
            for index in cluster.up() {
                let settled = |at: TransitionResponse| at.next_epoch == 0 && at.base_members == wanted;
                if !cluster.stands_at(index).await.is_some_and(settled) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// None: it knows no ring yet.
    async fn stands_at(&self, index: usize) -> Option<TransitionResponse> {
        let asked = self.admin(index).transition(TransitionRequest {}).await;
        asked.ok().map(tonic::Response::into_inner)
    }
}

/// Clients that write and read all the time; every operation must succeed within the tries that a client has time for.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<BTreeMap<String, String>>>,
    readers: Vec<JoinHandle<usize>>,
}

const KEYS: usize = 40;

impl Load {
    /// Each writer has its own keys, and reads each value before it replaces it.
    fn start(clients: &[KeyValueClient<Channel>]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(parking_lot::Mutex::new(BTreeMap::new()));
        let writers = (0..3).map(|writer| {
            let (stop, clients) = (Arc::clone(&stop), clients.to_vec());
            let acknowledged = Arc::clone(&acknowledged);
            tokio::spawn(async move {
                let mut last = BTreeMap::new();
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("load-{writer}-{}", number % KEYS);
                    let value = format!("{number:08}");
                    // What a fallback took for a primary, reads may miss until its hint is delivered.
                    let before = acknowledged.lock().remove(&key);
                    let primaries_alone = replace(&clients, number, &key, &value, before.as_ref()).await;
                    if primaries_alone {
                        acknowledged.lock().insert(key.clone(), value.clone());
                    }
                    last.insert(key, value);
                    number += 1;
                }
                last
            })
        });
        let writers = writers.collect();
        let readers = (0..2).map(|reader| {
            let (stop, clients) = (Arc::clone(&stop), clients.to_vec());
            let acknowledged = Arc::clone(&acknowledged);
            tokio::spawn(async move {
                let mut number = reader;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let picked = {
                        let known = acknowledged.lock();
                        let count = known.len().max(1);
                        known
                            .iter()
                            .nth(number * 7 % count)
                            .map(|(key, value): (&String, &String)| (key.clone(), value.clone()))
                    };
                    let Some((key, value)) = picked else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    let found = read(&clients, number, &key).await;
                    assert!(
                        found.iter().any(|found| *found >= value),
                        "{key} is {found:?}, but {value} was acknowledged before"
                    );
                }
                number
            })
        });
        Self {
            readers: readers.collect(),
            stop,
            writers,
        }
    }

    /// The last value of every key.
    async fn end(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for writer in self.writers {
            all.append(&mut writer.await.unwrap());
        }
        for reader in self.readers {
            assert!(reader.await.unwrap() > 10, "hardly anything was read");
        }
        all
    }
}

async fn read(clients: &[KeyValueClient<Channel>], number: usize, key: &str) -> Vec<String> {
    for attempt in 0..TRIES {
        let mut client = clients[(number + attempt) % clients.len()].clone();
        match client.get(get(key)).await {
            Ok(found) => return values(&found.into_inner()),
            Err(status) if is_final(&status, attempt) => panic!("get {key}: {status:?}"),
            Err(_) => {}
        }
    }
    unreachable!()
}

/// Replaces what is there. True if primaries alone acknowledged it.
async fn replace(
    clients: &[KeyValueClient<Channel>],
    number: usize,
    key: &str,
    value: &str,
    last: Option<&String>,
) -> bool {
    for attempt in 0..TRIES {
        let mut client = clients[(number + attempt) % clients.len()].clone();
        let context = match client.get(get(key)).await {
            Ok(found) => {
                let found = found.into_inner();
                let read = values(&found);
                assert!(
                    last.is_none_or(|last| read.contains(last) || read.iter().any(|read| read == value)),
                    "{key} is {read:?}, but {last:?} was acknowledged"
                );
                found.context
            }
            Err(status) if status.code() == Code::NotFound && last.is_none() => Bytes::new(),
            Err(status) if is_final(&status, attempt) => {
                panic!("get {key} before a put, {last:?}: {status:?}")
            }
            Err(_) => continue,
        };
        match client.put(put(key, value, &context)).await {
            Ok(done) => {
                return done.into_inner().outcome.unwrap().fallbacks_counted == 0;
            }
            Err(status) if is_final(&status, attempt) => panic!("put {key}: {status:?}"),
            // Clients do not ask again at once.
            Err(_) => tokio::time::sleep(BACK_OFF).await,
        }
    }
    unreachable!()
}

/// As many as a client has time for.
const TRIES: usize = 20;
const BACK_OFF: Duration = Duration::from_millis(100);

/// A refusal that another node, or the same a moment later, need not give.
fn is_final(status: &tonic::Status, attempt: usize) -> bool {
    !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) || attempt + 1 == TRIES
}

async fn all_there(cluster: &Cluster, members: &[usize], expected: &BTreeMap<String, String>) {
    assert!(expected.len() > KEYS, "hardly anything was written");
    for (number, (key, value)) in expected.iter().enumerate() {
        let at = members[number % members.len()];
        let found = cluster.read(at, key).await;
        let newest = found.iter().flatten().max();
        assert_eq!(newest, Some(value), "{key} at {at}: {found:?}");
    }
}

/// Three members become six, and these the first three again, as fast as they can.
#[tokio::test(flavor = "multi_thread")]
async fn s_d24_members_come_and_go_under_load_and_nothing_is_lost() {
    let mut cluster = Cluster::start(Shape::quick(6, 3).with_first(3)).await;
    let clients: Vec<_> = (0..3).map(|index| cluster.kv(index)).collect();
    let load = Load::start(&clients);
    let all = [0, 1, 2, 3, 4, 5];
    let epoch = cluster.commit(0, &cluster.target(&all)).await;
    cluster.changed(epoch, &all).await;
    let moved: u32 = {
        let plan = cluster.plan(3, &cluster.target(&all[..3])).await;
        assert!(!plan.unchanged && plan.moves >= plan.moves_min, "{plan:?}");
        plan.moves
    };
    assert!(moved > 0);
    let epoch = cluster.commit(4, &cluster.target(&all[..3])).await;
    cluster.changed(epoch, &all[..3]).await;
    let expected = load.end().await;
    all_there(&cluster, &all[..3], &expected).await;
    cluster.equal_trees().await;
    assert_eq!(epoch, 3);
}

/// A new member takes partitions in as files; what is written there meanwhile, and what may go by itself, is none the worse for it.
#[tokio::test(flavor = "multi_thread")]
async fn d25_whole_partitions_move_as_files_under_load() {
    let shape = Shape {
        partitions: 8,
        ..Shape::quick(4, 0).with_first(3)
    };
    let mut cluster = Cluster::start(shape).await;
    let keys: Vec<String> = (0..3000).map(|number| format!("key-{number}")).collect();
    for some in keys.chunks(100) {
        join_all(
            some.iter()
                .map(|key| cluster.accepted(0, put(key, key, &Bytes::new()))),
        )
        .await;
    }
    let context = cluster
        .kv(0)
        .get(get(&keys[0]))
        .await
        .unwrap()
        .into_inner()
        .context;
    let delete = v1::DeleteRequest {
        key: keys[0].clone().into(),
        context,
        ..v1::DeleteRequest::default()
    };
    cluster.kv(0).delete(delete).await.unwrap();

    let clients: Vec<_> = (0..3).map(|index| cluster.kv(index)).collect();
    let load = Load::start(&clients);
    let epoch = cluster.commit(0, &cluster.target(&[0, 1, 2, 3])).await;
    cluster.changed(epoch, &[0, 1, 2, 3]).await;
    let expected = load.end().await;
    all_there(&cluster, &[0, 1, 2, 3], &expected).await;
    cluster.equal_trees().await;
    let pulled = |by| cluster.metric(3, "dynamo_pulled_bytes_total", by);
    let (run, exchange) = (pulled("by=\"run\"").await, pulled("by=\"exchange\"").await);
    assert!(
        run > exchange && run > 50_000,
        "{run} bytes by runs, {exchange} by exchanges"
    );

    for key in &keys[1..] {
        let (primaries, _) = cluster.placed(key).await;
        if primaries.contains(&3) {
            assert_eq!(cluster.local_values(3, key).await, [key.as_str()]);
        }
    }
    assert!(
        cluster
            .read(3, &keys[0])
            .await
            .is_none_or(|values| values.is_empty())
    );
}

/// What a member that stays does not hold any more is erased there, once its owners have it.
#[tokio::test(flavor = "multi_thread")]
async fn d25_freed_partitions_are_erased_and_only_those() {
    let mut cluster = Cluster::start(Shape::quick(4, 0).with_first(3)).await;
    let keys: Vec<String> = (0..60).map(|number| format!("key-{number}")).collect();
    for key in &keys {
        cluster.accepted(0, put(key, "value", &Bytes::new())).await;
    }
    let epoch = cluster.commit(0, &cluster.target(&[0, 1, 2, 3])).await;
    cluster.changed(epoch, &[0, 1, 2, 3]).await;
    let mut erased = 0;
    for key in &keys {
        let (primaries, others) = cluster.placed(key).await;
        for index in primaries {
            assert_eq!(
                cluster.local_values(index, key).await,
                ["value"],
                "{key} at {index}"
            );
        }
        for index in others {
            assert!(!cluster.present(index, key).await, "{key} at {index}");
            erased += usize::from(index != 3);
        }
    }
    assert!(erased > 0, "nothing was freed");
}

/// An administrator changes their mind, at another node each time, before the change is through.
#[tokio::test(flavor = "multi_thread")]
async fn k8_a_change_of_mind_at_any_moment_ends_in_the_last_word() {
    let mut cluster = Cluster::start(Shape::quick(5, 0).with_first(3)).await;
    let clients: Vec<_> = (0..3).map(|index| cluster.kv(index)).collect();
    let load = Load::start(&clients);
    let all = [0, 1, 2, 3, 4];
    for turn in 0..9 {
        let wanted = &all[..[5, 3, 4][turn % 3]];
        // Some are let through, others stopped on their way.
        if turn % 4 == 3 {
            cluster.becomes(turn % 3, wanted).await;
        } else {
            cluster.commit(turn % 3, &cluster.target(wanted)).await;
        }
    }
    cluster.becomes(0, &all).await;
    let expected = load.end().await;
    all_there(&cluster, &all, &expected).await;
    cluster.equal_trees().await;
}

/// Q is doubled: every key keeps its nodes, and nobody pulls anything.
#[tokio::test(flavor = "multi_thread")]
async fn d26_q_doubles_online_and_moves_nothing() {
    let mut cluster = Cluster::start(Shape::quick(4, 2)).await;
    let clients: Vec<_> = (0..4).map(|index| cluster.kv(index)).collect();
    let keys: Vec<String> = (0..40).map(|number| format!("key-{number}")).collect();
    let mut before = Vec::new();
    for key in &keys {
        before.push(cluster.preference_list(key.as_bytes()).await);
    }
    let load = Load::start(&clients);
    let target = RingTarget {
        partitions: 2 * cluster.shape.partitions,
        ..cluster.target(&[0, 1, 2, 3])
    };
    let plan = cluster.plan(1, &target).await;
    assert_eq!((plan.moves, plan.bytes), (0, 0), "{plan:?}");
    let epoch = cluster.commit(1, &target).await;
    assert_eq!(cluster.transition(1).await.pulls, 0);
    cluster.changed(epoch, &[0, 1, 2, 3]).await;
    cluster.shape.partitions *= 2;
    let expected = load.end().await;
    all_there(&cluster, &[0, 1, 2, 3], &expected).await;
    for (key, before) in keys.iter().zip(before) {
        assert_eq!(cluster.preference_list(key.as_bytes()).await, before, "{key}");
    }
    cluster.equal_trees().await;
}

/// Members are stopped and started again while the ring changes, one of them with an empty disk.
#[tokio::test(flavor = "multi_thread")]
async fn d25_a_change_goes_on_after_restarts_and_a_lost_disk() {
    let mut cluster = Cluster::start(Shape::quick(6, 3).with_first(4)).await;
    let mut expected = BTreeMap::new();
    for number in 0..200 {
        let (key, value) = (format!("key-{number}"), format!("{number}"));
        cluster
            .accepted(number % 4, put(&key, &value, &Bytes::new()))
            .await;
        expected.insert(key, value);
    }
    let all = [0, 1, 2, 3, 4, 5];
    let epoch = cluster.commit(0, &cluster.target(&all)).await;
    cluster.restart_node(5).await;
    cluster.stop_node(2).await;
    cluster.start_emptied(2).await;
    cluster.restart_node(1).await;
    cluster.changed(epoch, &all).await;
    all_there(&cluster, &all, &expected).await;
    cluster.equal_trees().await;
}

/// Who left and is listed again begins with an empty store.
#[tokio::test(flavor = "multi_thread")]
async fn k8_a_member_that_left_comes_back_with_nothing_of_then() {
    let mut cluster = Cluster::start(Shape::quick(4, 0)).await;
    let key = cluster.key_with(|primaries, _| primaries.contains(&3)).await;
    let done = cluster.accepted(0, put(&key, "old", &Bytes::new())).await;
    let epoch = cluster.commit(0, &cluster.target(&[0, 1, 2])).await;
    cluster.changed(epoch, &[0, 1, 2]).await;
    cluster.accepted(1, put(&key, "new", &done.context)).await;
    let wanted = cluster.target(&[0, 1, 2, 3]);
    let epoch = cluster.commit(0, &wanted).await;
    cluster.changed(epoch, &[0, 1, 2, 3]).await;
    for index in 0..4 {
        assert_eq!(cluster.read(index, &key).await, Some(vec!["new".to_owned()]));
    }
    assert_eq!(cluster.local_values(3, &key).await, ["new"]);
}

/// A plan is looked at before it is committed; what it begins from must not have changed.
#[tokio::test(flavor = "multi_thread")]
async fn d63_a_stale_plan_or_an_unknown_member_is_refused_and_nothing_changes() {
    let mut cluster = Cluster::start(Shape::quick(4, 0).with_first(3)).await;
    let target = cluster.target(&[0, 1, 2, 3]);
    let plan = cluster.plan(0, &target).await;
    assert_eq!((plan.expected_epoch, plan.zone_violations_after), (1, 0));
    let gets: Vec<_> = plan.members.iter().map(|member| member.gets).collect();
    assert_eq!(gets.iter().sum::<u32>(), plan.moves);
    assert_eq!(
        cluster.transition(0).await.next_epoch,
        0,
        "a plan changes nothing"
    );

    let commit = |target: RingTarget, expected_epoch, expected_hash| {
        let mut admin = cluster.admin(0);
        async move {
            let request = CommitRequest {
                target: Some(target),
                expected_epoch,
                expected_hash,
            };
            admin.commit(request).await
        }
    };
    let refused = commit(target.clone(), 7, 0).await.unwrap_err();
    assert_eq!(why(&refused), (Code::FailedPrecondition, "STALE_PLAN".into()));
    let refused = commit(target.clone(), 1, 7).await.unwrap_err();
    assert_eq!(why(&refused), (Code::FailedPrecondition, "STALE_PLAN".into()));
    let mut stranger = cluster.target(&[0, 1, 2, 3]);
    stranger.members[3].member_id = "nobody".to_owned();
    let refused = commit(stranger, 1, 0).await.unwrap_err();
    assert_eq!(why(&refused), (Code::FailedPrecondition, "STALE_PLAN".into()));
    let too_few = commit(cluster.target(&[0, 1]), 1, 0).await.unwrap_err();
    assert_eq!(why(&too_few), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
    assert_eq!(cluster.transition(0).await.next_epoch, 0);

    let hash = plan.ring.unwrap().hash;
    // A cluster that has just begun lets its members meet first.
    until("the plan is committed", || async {
        commit(target.clone(), 1, hash).await.is_ok()
    })
    .await;
    let done = cluster.transition(0).await;
    assert_eq!((done.next_epoch, done.next_hash), (2, hash));
    // The same once more is no other change.
    let again = commit(target, 1, 0).await.unwrap().into_inner();
    assert_eq!((again.hash, again.proposed), (hash, false));
    cluster.changed(2, &[0, 1, 2, 3]).await;
}

/// A member whose machine is gone for good is replaced by another one, which takes its tokens as they are.
#[tokio::test(flavor = "multi_thread")]
async fn d64_a_dead_member_is_replaced_and_only_its_partitions_move() {
    let mut cluster = Cluster::start(Shape::quick(5, 0).with_first(4)).await;
    let mut expected = BTreeMap::new();
    for number in 0..100 {
        let (key, value) = (format!("key-{number}"), format!("{number}"));
        cluster
            .accepted(number % 4, put(&key, &value, &Bytes::new()))
            .await;
        expected.insert(key, value);
    }
    cluster.stop_node(3).await;
    let mut target = cluster.target(&[0, 1, 2, 4]);
    target.members[3].replaces = Cluster::id(3);
    target.dead = vec![Cluster::id(3)];
    let plan = cluster.plan(0, &target).await;
    assert_eq!(plan.moves, plan.moves_min);
    let gets = |id: usize| {
        let of = plan
            .members
            .iter()
            .find(|member| member.member_id == Cluster::id(id));
        of.map(|member| member.gets)
    };
    assert_eq!((gets(0), gets(1), gets(2)), (Some(0), Some(0), Some(0)));
    assert_eq!(gets(4), Some(plan.moves));
    let epoch = cluster.commit(0, &target).await;
    cluster.changed(epoch, &[0, 1, 2, 4]).await;
    all_there(&cluster, &[0, 1, 2, 4], &expected).await;
    cluster.equal_trees().await;
}

/// No other member has exchanged a word with it, so that none can tell what it knew.
#[tokio::test(flavor = "multi_thread")]
async fn d64_a_member_that_dies_before_anybody_has_heard_from_it_is_replaced() {
    let mut cluster = Cluster::unassigned(Shape::quick(5, 0).with_first(4)).await;
    let bootstrap = cluster.bootstrap_request();
    cluster.stop_node(3).await;
    cluster.admin(0).bootstrap(bootstrap).await.unwrap();
    for index in [1, 2, 4] {
        cluster.join(index).await;
    }
    cluster.all_valid().await;
    let mut target = cluster.target(&[0, 1, 2, 4]);
    target.members[3].replaces = Cluster::id(3);
    target.dead = vec![Cluster::id(3)];
    let epoch = cluster.commit(0, &target).await;
    cluster.changed(epoch, &[0, 1, 2, 4]).await;
}

/// A member whose machine was moved to another zone, and then all members of a zone: the copies are spread over what is left.
#[tokio::test(flavor = "multi_thread")]
async fn d30_members_change_their_zones_and_a_zone_is_evacuated_under_load() {
    let mut cluster = Cluster::start(Shape::quick(6, 3)).await;
    let clients: Vec<_> = [1, 4, 5].map(|index| cluster.kv(index)).into();
    let load = Load::start(&clients);
    let moved = |index: usize, zone: &str| {
        let mut target = cluster.target(&[0, 1, 2, 3, 4, 5]);
        target.members[index].zone = zone.to_owned();
        target
    };
    let target = moved(2, &cluster.zone(0));
    let plan = cluster.plan(1, &target).await;
    assert!(plan.moves > 0 && plan.zone_violations_after == 0, "{plan:?}");
    let epoch = cluster.commit(1, &target).await;
    cluster.changed(epoch, &[0, 1, 2, 3, 4, 5]).await;
    let zone = cluster.zone(0);
    let left: Vec<usize> = (0..6)
        .filter(|index| *index != 2 && cluster.zone(*index) != zone)
        .collect();
    let mut target = cluster.target(&left);
    target.members.retain(|member| member.zone != zone);
    let plan = cluster.plan(1, &target).await;
    let ring = plan.ring.as_ref().unwrap();
    assert!(ring.members.iter().all(|member| member.zone != zone), "{plan:?}");
    let epoch = cluster.commit(1, &target).await;
    cluster.changed(epoch, &left).await;
    let expected = load.end().await;
    all_there(&cluster, &left, &expected).await;
    cluster.equal_trees().await;
}
