//! The administrators' view of what goes on behind the foreground: hints, exchanges, tasks, buckets.

use std::sync::Arc;

use dynamo_core::{
    admission::Task,
    bucket::{BucketPolicy, Conflict, ReadRepair},
    entropy::Mode,
    types::{MemberId, PartitionId},
};
use dynamo_proto::{
    admin::{
        AcceptLossResponse, Bucket, ExchangeInfo, ExchangesResponse, HintCount, HintsResponse, LocateRequest,
        LocateResponse, MerkleRootResponse, RepairResponse, TaskInfo, TasksResponse, bucket,
    },
    peer,
};

use super::{
    convert, locate,
    status::{Failure, Reason},
};
use crate::{
    background::{exchange, recovery},
    clock,
    node::{Node, Placed},
};

/// Hops of a search that names none.
const TTL_DEFAULT: u32 = 3;
/// How long a search may take, in milliseconds.
const LOCATE_TIMEOUT_MS: u32 = 2000;

pub(super) fn hints(node: &Node) -> HintsResponse {
    let owners = node.hints().owners();
    let bytes = owners.values().map(|count| count.bytes).sum();
    let owners = owners.into_iter().map(|(owner, count)| HintCount {
        member_id: owner.to_string(),
        hints: count.records,
        bytes: count.bytes,
    });
    HintsResponse {
        owners: owners.collect(),
        bytes,
        bytes_max: node.config().hints.bytes_max,
        declined: node.hints().counters().budget_spent,
    }
}

pub(super) fn merkle_root(
    node: &Node,
    placed: &Placed,
    partition: u32,
) -> Result<MerkleRootResponse, Failure> {
    let partition = partition_of(placed, partition)?;
    if !placed.holds(partition) {
        return Err(Failure::invalid(format!(
            "{} is no primary of partition {}",
            placed.me(),
            partition.0
        )));
    }
    let tree = node.tree(partition);
    Ok(MerkleRootResponse {
        root: tree.as_ref().map_or(0, dynamo_core::entropy::Tree::root),
        rebuilding: tree.is_none(),
    })
}

pub(super) fn exchanges(node: &Node) -> ExchangesResponse {
    let now_ms = clock::monotonic_ms();
    let exchanges = node.background().with_schedule(|schedule| {
        let info = |(member, partition, last_ms): (&MemberId, PartitionId, Option<u64>)| ExchangeInfo {
            partition: partition.0,
            member_id: member.to_string(),
            age_ms: last_ms.map(|last_ms| now_ms - last_ms),
        };
        schedule.pairs().map(info).collect()
    });
    ExchangesResponse { exchanges }
}

/// Exchanges a partition with all its other primaries, one after the other.
pub(super) async fn repair(
    node: &Arc<Node>,
    placed: &Placed,
    partition: u32,
) -> Result<RepairResponse, Failure> {
    let partition = partition_of(placed, partition)?;
    if !placed.holds(partition) {
        return Err(Failure::invalid(format!(
            "{} is no primary of partition {}; ask one of its primaries",
            placed.me(),
            partition.0
        )));
    }
    let mode = if node.is_suspect(partition) {
        Mode::PullOnly
    } else {
        Mode::Both
    };
    let mut response = RepairResponse::default();
    for member in placed
        .primaries_of(partition)
        .filter(|member| *member != placed.me())
    {
        match exchange::run(node, Task::Exchange, partition, member, mode).await {
            Some(report) => {
                response.keys_pulled += report.keys_pulled;
                response.keys_pushed += report.keys_pushed;
                if report.finished {
                    response.exchanged.push(member.to_string());
                } else {
                    response
                        .failed
                        .push(format!("{member}: it did not answer, its tree is being made, or another exchange of the partition is under way there"));
                }
            }
            None => response.failed.push(format!(
                "{member}: this node's own tree is being made, or its address is unknown"
            )),
        }
    }
    Ok(response)
}

/// Takes an administrator's word that what is still missing is gone for good.
pub(super) async fn accept_loss(node: &Arc<Node>, partitions: Vec<u32>) -> AcceptLossResponse {
    let accepted: Vec<u32> = node
        .recovery(|recovery| {
            let asked = if partitions.is_empty() {
                recovery.open().map(|partition| partition.0).collect()
            } else {
                partitions
            };
            let accept = |partition: &u32| recovery.accept_loss(PartitionId(*partition));
            asked.into_iter().filter(accept).collect()
        })
        .unwrap_or_default();
    if !accepted.is_empty() {
        tracing::error!(
            partitions = accepted.len(),
            "an administrator accepts that acknowledged writes may be lost"
        );
        recovery::keep(node).await;
    }
    AcceptLossResponse { accepted }
}

pub(super) fn tasks(node: &Node) -> TasksResponse {
    let (foreground_p99_us, operations_per_s) = node.background().pace();
    let tasks = node.background().tasks().into_iter().map(|status| TaskInfo {
        name: status.task.name().to_owned(),
        paused: status.paused,
        operations: status.operations,
    });
    TasksResponse {
        tasks: tasks.collect(),
        foreground_p99_us,
        operations_per_s,
    }
}

pub(super) fn pause_task(node: &Node, name: &str, paused: bool) -> Result<(), Failure> {
    let names: Vec<&str> = Task::ALL.iter().map(|task| task.name()).collect();
    let task = Task::named(name).ok_or_else(|| {
        Failure::invalid(format!(
            "there is no task {name:?}; there are {}",
            names.join(", ")
        ))
    })?;
    node.background().pause(task, paused);
    tracing::info!(task = name, paused, "background task");
    Ok(())
}

pub(super) async fn set_bucket(node: &Node, placed: &Placed, asked: Bucket) -> Result<Bucket, Failure> {
    let policy = policy_from_proto(&asked)?;
    placed.quorum_of(&policy)?;
    let factor = placed.placement().ring().factor();
    if policy.n.is_some_and(|n| n > factor) {
        return Err(Failure::invalid(format!(
            "replicas may be {factor} at most, the ring's factor"
        )));
    }
    let set = node.membership().set_bucket(node.writer(), policy).await?;
    tracing::info!(bucket = set.name, version = set.version, "bucket set");
    Ok(policy_to_proto(&set))
}

pub(super) fn list_buckets(node: &Node) -> Vec<Bucket> {
    node.membership().buckets().iter().map(policy_to_proto).collect()
}

pub(super) async fn search(node: &Arc<Node>, request: LocateRequest) -> Result<LocateResponse, Failure> {
    let mut request_id = clock::random_u64().to_be_bytes().to_vec();
    request_id.extend_from_slice(&clock::random_u64().to_be_bytes());
    let question = peer::LocateRequest {
        header: None,
        request_id: request_id.into(),
        bucket: request.bucket,
        key: request.key,
        ttl: if request.ttl == 0 {
            TTL_DEFAULT
        } else {
            request.ttl
        },
        timeout_ms: LOCATE_TIMEOUT_MS,
    };
    let found = locate::flood(node, question, None).await?;
    Ok(LocateResponse {
        copies: found.copies,
        asked: found.asked,
    })
}

fn partition_of(placed: &Placed, partition: u32) -> Result<PartitionId, Failure> {
    let partitions = placed.placement().ring().partitions();
    if partition < partitions {
        return Ok(PartitionId(partition));
    }
    Err(Failure::new(
        Reason::InvalidArgument,
        format!("partition is {partition} but must be 0..={}", partitions - 1),
    ))
}

fn policy_from_proto(asked: &Bucket) -> Result<BucketPolicy, Failure> {
    let some = |number: u32| (number > 0).then_some(number);
    let conflict = match bucket::Conflict::try_from(asked.conflict).unwrap_or_default() {
        bucket::Conflict::Unspecified | bucket::Conflict::Siblings => Conflict::Siblings,
        bucket::Conflict::Lww => Conflict::Lww,
        bucket::Conflict::Counter => Conflict::Counter,
        bucket::Conflict::Set => Conflict::Set,
        bucket::Conflict::Map => Conflict::Map,
        bucket::Conflict::Flag => Conflict::Flag,
        bucket::Conflict::Register => Conflict::Register,
    };
    let read_repair = match bucket::ReadRepair::try_from(asked.read_repair).unwrap_or_default() {
        bucket::ReadRepair::Unspecified | bucket::ReadRepair::Async => ReadRepair::Async,
        bucket::ReadRepair::Blocking => ReadRepair::Blocking,
        bucket::ReadRepair::Off => ReadRepair::Off,
    };
    Ok(BucketPolicy {
        name: convert::bucket_name(&asked.name)?.to_owned(),
        version: 0,
        n: some(asked.replicas),
        r: some(asked.read_quorum),
        w: some(asked.write_quorum),
        conflict,
        ttl_ms: (asked.ttl_ms > 0).then_some(asked.ttl_ms),
        read_repair,
    })
}

fn policy_to_proto(policy: &BucketPolicy) -> Bucket {
    let conflict = match policy.conflict {
        Conflict::Siblings => bucket::Conflict::Siblings,
        Conflict::Lww => bucket::Conflict::Lww,
        Conflict::Counter => bucket::Conflict::Counter,
        Conflict::Set => bucket::Conflict::Set,
        Conflict::Map => bucket::Conflict::Map,
        Conflict::Flag => bucket::Conflict::Flag,
        Conflict::Register => bucket::Conflict::Register,
    };
    let read_repair = match policy.read_repair {
        ReadRepair::Async => bucket::ReadRepair::Async,
        ReadRepair::Blocking => bucket::ReadRepair::Blocking,
        ReadRepair::Off => bucket::ReadRepair::Off,
    };
    Bucket {
        name: policy.name.clone(),
        conflict: conflict.into(),
        replicas: policy.n.unwrap_or(0),
        read_quorum: policy.r.unwrap_or(0),
        write_quorum: policy.w.unwrap_or(0),
        ttl_ms: policy.ttl_ms.unwrap_or(0),
        read_repair: read_repair.into(),
        version: policy.version,
    }
}
