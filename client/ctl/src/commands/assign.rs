//! bootstrap and join: what an administrator does where no operator does it.

use bytes::Bytes;
use dynamo_proto::admin::{BootstrapRequest, JoinRequest, Member};
use serde_json::json;

use crate::{
    cli::{Bootstrap, Global, Join},
    connect::Admin,
    failure::Failure,
    output::Output,
    values::{ClusterIdArg, show_cluster_id},
};

pub(crate) async fn bootstrap(global: &Global, options: &Bootstrap, output: Output) -> Result<(), Failure> {
    if !options.member.iter().any(|member| member.id == options.member_id) {
        return Err(Failure::new(
            "cannot bootstrap",
            format!(
                "the asked node is to be {:?}, which is not among the members",
                options.member_id
            ),
        )
        .hint("repeat --member for every member, the asked node's included"));
    }
    let ClusterIdArg(cluster_id) = options.cluster_id.unwrap_or_else(|| ClusterIdArg(rand::random()));
    let members = options.member.iter().map(|member| Member {
        member_id: member.id.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
        peer_address: member.peer.clone(),
    });
    let request = BootstrapRequest {
        cluster_id: Bytes::copy_from_slice(&cluster_id),
        member_id: options.member_id.clone(),
        members: members.collect(),
        partitions: options.partitions,
        factor: options.factor,
    };
    let admin = Admin::first(global).await?;
    let send = |mut stub: dynamo_proto::admin::admin_client::AdminClient<_>, request| async move {
        stub.bootstrap(request).await
    };
    let reply = admin.call("cannot bootstrap the cluster", request, send).await?;
    let id = show_cluster_id(&cluster_id);
    let json = json!({
        "cluster_id": id, "ring_epoch": reply.ring_epoch, "ring_hash": format!("{:016x}", reply.ring_hash),
        "created": reply.created,
    });
    output.print(&json, |_| {
        let what = if reply.created { "created" } else { "was there already" };
        format!(
            "cluster {id}: the ring of epoch {} {what}\nnext: ask each other node, at its admin port, to join: \
             dynamoctl --admin HOST:7702 join --cluster-id {id} --member-id ID --zone ZONE --seed HOST:7701",
            reply.ring_epoch,
        )
    })
}

pub(crate) async fn join(global: &Global, options: &Join, output: Output) -> Result<(), Failure> {
    let ClusterIdArg(cluster_id) = options.cluster_id;
    let request = JoinRequest {
        cluster_id: Bytes::copy_from_slice(&cluster_id),
        member_id: options.member_id.clone(),
        zone: options.zone.clone(),
        weight: options.weight,
        seeds: options.seed.clone(),
    };
    let admin = Admin::first(global).await?;
    let send = |mut stub: dynamo_proto::admin::admin_client::AdminClient<_>, request| async move {
        stub.join(request).await
    };
    let attempted = format!("cannot join as {:?}", options.member_id);
    let reply = admin.call(attempted, request, send).await?;
    let json = json!({
        "cluster_id": show_cluster_id(&cluster_id), "member_id": options.member_id, "joined": reply.joined,
    });
    output.print(&json, |_| {
        let what = if reply.joined { "is now" } else { "was already" };
        format!(
            "the node at {} {what} member {}",
            admin.address, options.member_id
        )
    })
}
