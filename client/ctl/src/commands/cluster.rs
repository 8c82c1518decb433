//! ring, members, preference-list, inspect: what the cluster is made of.

use std::fmt::Write as _;

use dynamo_proto::admin::{
    InspectRequest, InspectResponse, PreferenceListRequest, ReplicaState, RingRequest, RingResponse,
};
use serde_json::{Value, json};

use crate::{
    cli::{Global, Inspect, PreferenceList, Ring},
    commands::everyone::peers,
    connect::Admin,
    failure::Failure,
    output::{Columns, Output},
    values,
};

/// Width of the bars of `ring`, for the member with the largest share.
const BAR_CELLS: u32 = 20;

pub(crate) async fn ring(global: &Global, options: &Ring, output: Output) -> Result<(), Failure> {
    let admin = Admin::first(global).await?;
    let send = |mut stub: dynamo_proto::admin::admin_client::AdminClient<_>, request| async move {
        stub.ring(request).await
    };
    let reply: RingResponse = admin.call("cannot read the ring", RingRequest {}, send).await?;
    let json = ring_json(&reply);
    output.print(&json, |output| ring_text(&reply, options.partitions, output))
}

fn ring_json(reply: &RingResponse) -> Value {
    let ring = reply.ring.clone().unwrap_or_default();
    let members = ring.members.iter().map(|member| {
        let (tokens, partitions) = share(reply, &member.member_id);
        json!({
            "member_id": member.member_id, "zone": member.zone, "weight": member.weight,
            "client_address": member.client_address, "tokens": tokens, "partitions": partitions,
        })
    });
    json!({
        "cluster_id": values::show_cluster_id(&ring.cluster_id),
        "epoch": ring.epoch,
        "hash": format!("{:016x}", ring.hash),
        "factor": ring.factor,
        "partitions": ring.owners.len(),
        "members": members.collect::<Vec<_>>(),
        "owners": ring.owners,
    })
}

fn ring_text(reply: &RingResponse, list_partitions: bool, output: Output) -> String {
    let ring = reply.ring.clone().unwrap_or_default();
    let most = reply
        .shares
        .iter()
        .map(|share| share.tokens)
        .max()
        .unwrap_or(0)
        .max(1);
    let mut header = vec!["MEMBER", "ZONE", "WEIGHT", "TOKENS", "PARTITIONS", "ADDRESS"];
    if output.is_terminal() {
        header.push("SHARE");
    }
    let mut columns = Columns::new(&header, &[2, 3, 4]);
    for member in &ring.members {
        let (tokens, partitions) = share(reply, &member.member_id);
        let mut row = vec![
            member.member_id.clone(),
            member.zone.clone(),
            member.weight.to_string(),
            tokens.to_string(),
            partitions.to_string(),
            member.client_address.clone(),
        ];
        if output.is_terminal() {
            row.push("█".repeat((tokens * BAR_CELLS).div_ceil(most) as usize));
        }
        columns.row(row);
    }
    let mut text = output.table(&columns);
    let _ = write!(
        text,
        "\ncluster {}, ring epoch {} (hash {:016x}), {} partitions, {} replicas of every key",
        values::show_cluster_id(&ring.cluster_id),
        ring.epoch,
        ring.hash,
        ring.owners.len(),
        ring.factor,
    );
    if list_partitions {
        let mut columns = Columns::new(&["PARTITION", "FIRST HASH", "OWNER"], &[0]);
        let width = (u128::from(u64::MAX) + 1) / ring.owners.len().max(1) as u128;
        for (partition, owner) in ring.owners.iter().enumerate() {
            let name = ring
                .members
                .get(*owner as usize)
                .map(|member| member.member_id.clone());
            let first = format!("{:016x}", partition as u128 * width);
            columns.row([partition.to_string(), first, name.unwrap_or_default()]);
        }
        text = format!("{text}\n\n{}", output.table(&columns));
    }
    text
}

fn share(reply: &RingResponse, member: &str) -> (u32, u32) {
    let share = reply.shares.iter().find(|share| share.member_id == member);
    share.map_or((0, 0), |share| (share.tokens, share.partitions))
}

pub(crate) async fn members(global: &Global, output: Output) -> Result<(), Failure> {
    let admin = Admin::first(global).await?;
    let reply = peers(&admin).await?;
    let members = reply.peers.iter().map(|peer| {
        json!({
            "member_id": peer.member_id, "zone": peer.zone, "in_ring": peer.member, "reachable": peer.reachable,
            "client_address": peer.client_address, "peer_address": peer.peer_address,
            "admin_address": peer.admin_address, "release": peer.release,
            "incarnation_generation": peer.incarnation_generation,
            "incarnation_id": format!("{:016x}", peer.incarnation_id), "last_error": peer.last_error,
        })
    });
    let json = json!({ "seen_by": admin.address, "members": members.collect::<Vec<_>>() });
    output.print(&json, |output| {
        let header = [
            "MEMBER",
            "ZONE",
            "RING",
            "REACHABLE",
            "LIFE",
            "RELEASE",
            "CLIENT",
            "PEER",
            "ERROR",
        ];
        let mut columns = Columns::new(&header, &[4]);
        for peer in &reply.peers {
            columns.row([
                peer.member_id.clone(),
                peer.zone.clone(),
                yes(peer.member),
                yes(peer.reachable),
                peer.incarnation_generation.to_string(),
                peer.release.clone(),
                peer.client_address.clone(),
                peer.peer_address.clone(),
                peer.last_error.clone(),
            ]);
        }
        let note = format!("\nas the node at {} sees them", admin.address);
        output.table(&columns) + if output.is_terminal() { &note } else { "" }
    })
}

pub(crate) async fn preference_list(
    global: &Global,
    options: &PreferenceList,
    output: Output,
) -> Result<(), Failure> {
    let key = options.key.bytes()?;
    let admin = Admin::first(global).await?;
    let attempted = format!("cannot find who holds {:?}", values::show(&key));
    let request = PreferenceListRequest {
        bucket: global.bucket.clone(),
        key,
    };
    let send = |mut stub: dynamo_proto::admin::admin_client::AdminClient<_>, request| async move {
        stub.preference_list(request).await
    };
    let reply = admin.call(attempted, request, send).await?;
    let entries = reply.entries.iter().map(|entry| {
        json!({
            "member_id": entry.member_id, "zone": entry.zone, "primary": entry.primary, "reachable": entry.reachable,
        })
    });
    let json = json!({
        "key_hash": format!("{:016x}", reply.key_hash), "partition": reply.partition,
        "ring_epoch": reply.ring_epoch, "entries": entries.collect::<Vec<_>>(),
    });
    output.print(&json, |output| {
        let mut columns = Columns::new(&["MEMBER", "ZONE", "ROLE", "REACHABLE"], &[]);
        for entry in &reply.entries {
            let role = if entry.primary { "primary" } else { "fallback" };
            columns.row([
                entry.member_id.clone(),
                entry.zone.clone(),
                role.to_owned(),
                yes(entry.reachable),
            ]);
        }
        let (hash, partition, epoch) = (reply.key_hash, reply.partition, reply.ring_epoch);
        output.table(&columns) + &format!("\nkey hash {hash:016x}, partition {partition}, ring epoch {epoch}")
    })
}

pub(crate) async fn inspect(global: &Global, options: &Inspect, output: Output) -> Result<(), Failure> {
    let key = options.key.bytes()?;
    let admin = Admin::first(global).await?;
    let attempted = format!("cannot inspect {:?}", values::show(&key));
    let request = InspectRequest {
        bucket: global.bucket.clone(),
        key,
    };
    let send = |mut stub: dynamo_proto::admin::admin_client::AdminClient<_>, request| async move {
        stub.inspect(request).await
    };
    let reply: InspectResponse = admin.call(attempted, request, send).await?;
    let agree = agree(&reply.replicas);
    let json =
        json!({ "agree": agree, "replicas": reply.replicas.iter().map(replica_json).collect::<Vec<_>>() });
    output.print(&json, |output| {
        let mut columns = Columns::new(&["REPLICA", "STATE", "DIGEST", "SIBLINGS", "SEEN"], &[]);
        for replica in &reply.replicas {
            columns.row([
                replica.member_id.clone(),
                if !replica.error.is_empty() {
                    replica.error.clone()
                } else if replica.present {
                    "present".to_owned()
                } else {
                    "absent".to_owned()
                },
                if replica.present {
                    format!("{:016x}", replica.digest)
                } else {
                    String::new()
                },
                siblings_text(replica),
                seen_text(replica),
            ]);
        }
        let verdict = match agree {
            Some(true) => "all replicas agree",
            Some(false) => "replicas differ: a read shows the newest of what a quorum holds",
            None => "not all replicas could be read",
        };
        format!("{}\n{verdict}", output.table(&columns))
    })
}

/// Unknown while one of them could not be read.
fn agree(replicas: &[ReplicaState]) -> Option<bool> {
    let same = |pair: &[ReplicaState]| pair[0].present == pair[1].present && pair[0].digest == pair[1].digest;
    let readable = replicas.iter().all(|replica| replica.error.is_empty());
    readable.then(|| replicas.windows(2).all(same))
}

/// A dot as people compare them: the end of the incarnation, the epoch, the counter.
fn dot(incarnation: u64, epoch: u64, counter: u64) -> String {
    format!("{:08x}.{epoch}:{counter}", incarnation & 0xffff_ffff)
}

fn siblings_text(replica: &ReplicaState) -> String {
    let siblings = replica.siblings.iter().map(|sibling| {
        let dot = dot(sibling.incarnation_id, sibling.epoch, sibling.counter);
        if sibling.tombstone {
            format!("{dot} deleted")
        } else {
            format!("{dot} {} bytes", sibling.value_bytes)
        }
    });
    siblings.collect::<Vec<_>>().join(", ")
}

fn seen_text(replica: &ReplicaState) -> String {
    let seen = replica.seen.iter().map(|actor| {
        let mut text = dot(actor.incarnation_id, actor.epoch, actor.counter);
        for beyond in &actor.beyond {
            let _ = write!(text, "+{beyond}");
        }
        text
    });
    seen.collect::<Vec<_>>().join(", ")
}

fn replica_json(replica: &ReplicaState) -> Value {
    let seen = replica.seen.iter().map(|actor| {
        json!({
            "incarnation_id": format!("{:016x}", actor.incarnation_id), "epoch": actor.epoch,
            "counter": actor.counter, "beyond": actor.beyond,
        })
    });
    let siblings = replica.siblings.iter().map(|sibling| {
        json!({
            "incarnation_id": format!("{:016x}", sibling.incarnation_id), "epoch": sibling.epoch,
            "counter": sibling.counter, "tombstone": sibling.tombstone, "value_bytes": sibling.value_bytes,
            "written_at_ms": sibling.written_at_ms,
        })
    });
    json!({
        "member_id": replica.member_id, "error": replica.error, "present": replica.present,
        "digest": format!("{:016x}", replica.digest),
        "seen": seen.collect::<Vec<_>>(), "siblings": siblings.collect::<Vec<_>>(),
    })
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_agree_only_if_all_were_read() {
        let replica = |digest, error: &str| ReplicaState {
            digest,
            present: true,
            error: error.to_owned(),
            ..ReplicaState::default()
        };
        assert_eq!(agree(&[replica(1, ""), replica(1, "")]), Some(true));
        assert_eq!(agree(&[replica(1, ""), replica(2, "")]), Some(false));
        assert_eq!(agree(&[replica(1, ""), replica(1, "timed out")]), None);
        assert_eq!(
            agree(&[
                replica(1, ""),
                ReplicaState {
                    digest: 1,
                    ..ReplicaState::default()
                }
            ]),
            Some(false)
        );
    }
}
