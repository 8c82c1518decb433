//! Images: those of users have no fault hooks, those of fault tests do.

use anyhow::{Context as _, ensure};
use dynamo_e2e::{forward, lab::Lab};
use dynamo_proto::fault::{SetRequest, fault_client::FaultClient};

use crate::{Suite, seconds};

/// What names the service in a program that serves it.
const SERVICE: &str = "dynamo.fault.v1";

/// Neither the program nor a running node of a release knows the service; the other image has both.
pub(crate) async fn the_release_image_has_no_fault_hooks(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    for (image, expected) in [("dynamo-node:dev", false), ("dynamo-node:dev-faults", true)] {
        let script = format!(
            "id=$(docker create {image})\ntrap 'docker rm \"$id\" >/dev/null' EXIT\n\
             docker cp \"$id:/usr/local/bin/dynamo-node\" - | grep -acF {SERVICE} >/dev/null && echo yes || echo no"
        );
        let has = cluster.with_engine(&script, seconds(60)).await?;
        ensure!(
            (has.trim() == "yes") == expected,
            "{image} holds {SERVICE:?}: {has}"
        );
    }
    let lab = Lab::of(cluster);
    for (cluster, expected) in [(cluster, false), (&lab.cluster, true)] {
        let member = first_member(cluster).await?;
        let (_forward, channel) = forward::channel(cluster, &member, 7702).await?;
        let answer = FaultClient::new(channel).set(SetRequest::default()).await;
        match answer {
            Ok(_) => ensure!(expected, "{member} has fault hooks"),
            Err(status) => ensure!(
                !expected && status.code() == tonic::Code::Unimplemented,
                "{member}: {status}"
            ),
        }
    }
    Ok(())
}

async fn first_member(cluster: &dynamo_e2e::cluster::Cluster) -> anyhow::Result<String> {
    let pods = cluster.members().await?;
    let name = pods.into_iter().next().and_then(|pod| pod.metadata.name);
    name.with_context(|| format!("{} has no pods", cluster.name))
}
