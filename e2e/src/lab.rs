//! A second DynamoCluster of six members in three zones, whose nodes have fault hooks: it may be hurt without hurting others.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, bail};
use dynamo_client::Client;
use dynamo_operator::crd::conditions;
use dynamo_proto::{
    admin as pb,
    fault::{SetRequest, fault_client::FaultClient},
};
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource as _, ResourceExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::Channel;

use crate::{
    cluster::Cluster,
    forward::{self, Forward},
    wait::{self, Look, seconds},
};

/// Image of its nodes, unless `DYNAMO_FAULTS_IMAGE` names one that the cluster can pull.
const IMAGE: &str = "dynamo-node:dev-faults";
/// Its members.
pub const MEMBERS: usize = 6;
/// Keys that are inspected at once.
const AT_ONCE: usize = 8;

/// The admin service of a member, while its forwarding lives.
pub type Admin = (Forward, pb::admin_client::AdminClient<Channel>);

/// The cluster, and how to hurt it.
pub struct Lab {
    /// Its Kubernetes, with its own name.
    pub cluster: Cluster,
}

/// How soon it does what others do in minutes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Seconds in which partitions are compared.
    pub anti_entropy: u32,
    /// Seconds between looks for tombstones.
    pub reaping: u32,
    /// Seconds that tombstones stay.
    pub grace: u32,
}

impl Lab {
    /// The lab of a Kubernetes, there or not.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            cluster: cluster.named("lab"),
        }
    }

    /// Makes it, and waits until it is Ready.
    ///
    /// # Errors
    /// If it is not within three minutes.
    pub async fn create(&self, pace: Pace) -> anyhow::Result<()> {
        let image = std::env::var("DYNAMO_FAULTS_IMAGE").unwrap_or_else(|_| IMAGE.into());
        let Pace {
            anti_entropy,
            reaping,
            grace,
        } = pace;
        let name = self.cluster.name;
        let manifest = format!(
            "{{apiVersion: dynamo.rs/v1alpha1, kind: DynamoCluster, metadata: {{name: {name}}}, spec: {{\
             members: {MEMBERS}, ring: {{partitions: 32}}, image: '{image}', \
             resources: {{requests: {{cpu: 50m, memory: 64Mi}}}}, \
             storage: {{size: 256Mi, whenDeleted: Delete}}, \
             hints: {{intervalSeconds: 1}}, antiEntropy: {{intervalSeconds: {anti_entropy}}}, \
             reaping: {{intervalSeconds: {reaping}, graceSeconds: {grace}}}}}}}"
        );
        let apply = ["-n", self.cluster.namespace, "apply", "-f", "-"];
        self.cluster
            .kubectl_with(&apply, Some(&manifest), seconds(30))
            .await?
            .ok()?;
        self.cluster.ready(seconds(180)).await
    }

    /// Takes it away, volumes included.
    ///
    /// # Errors
    /// If its pods are not gone within 90 s.
    pub async fn delete(&self) -> anyhow::Result<()> {
        let cluster = &self.cluster;
        let delete = [
            "-n",
            cluster.namespace,
            "delete",
            "dync",
            cluster.name,
            "--wait=false",
        ];
        cluster.kubectl(&delete).await?;
        wait::until("the lab is gone", seconds(90), || async {
            let left = cluster.members().await?.len();
            Ok(if left == 0 {
                Look::Done(())
            } else {
                Look::NotYet(format!("{left} pods"))
            })
        })
        .await
    }

    /// Every member and its zone.
    ///
    /// # Errors
    /// If the API server does not answer, or it has not all of them.
    pub async fn members(&self) -> anyhow::Result<BTreeMap<String, String>> {
        // A pod that was killed is not there for a moment.
        wait::until("the lab has all its pods", seconds(15), || async {
            let pods = self.cluster.members().await?;
            if pods.len() != MEMBERS {
                return Ok(Look::NotYet(format!("{} of {MEMBERS}", pods.len())));
            }
            let zone = |pod: &Pod| pod.labels().get("dynamo.rs/zone").cloned();
            let members: anyhow::Result<_> = pods
                .iter()
                .map(|pod| Ok((pod.name_any(), zone(pod).context("a pod has no zone")?)))
                .collect();
            members.map(Look::Done)
        })
        .await
    }

    /// The admin service of a member.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub async fn admin(&self, member: &str) -> anyhow::Result<Admin> {
        forward::admin(&self.cluster, member).await
    }

    /// The admin services of members.
    ///
    /// # Errors
    /// If one of them cannot be reached.
    pub async fn admins(
        &self,
        members: impl IntoIterator<Item = &String>,
    ) -> anyhow::Result<BTreeMap<String, Admin>> {
        let opened = members
            .into_iter()
            .map(|member| async move { anyhow::Ok((member.clone(), self.admin(member).await?)) });
        Ok(try_join_all(opened).await?.into_iter().collect())
    }

    /// A client that asks one member alone, which coordinates or forwards.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub async fn client(&self, member: &str) -> anyhow::Result<(Forward, Client)> {
        let forward = Forward::open(&self.cluster, member, 7700).await?;
        let builder = Client::builder().endpoint(format!("127.0.0.1:{}", forward.port));
        let client = builder
            .ring_aware(false)
            .deadline(seconds(5))
            .attempt_timeout(seconds(4))
            .connect()
            .await?;
        Ok((forward, client))
    }

    /// The fault hooks of a member.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub async fn faults(&self, member: &str) -> anyhow::Result<(Forward, FaultClient<Channel>)> {
        let (forward, channel) = forward::channel(&self.cluster, member, 7702).await?;
        Ok((forward, FaultClient::new(channel)))
    }

    /// Sets the faults of a member, instead of those it has.
    ///
    /// # Errors
    /// If it does not say that it did.
    pub async fn set_faults(&self, member: &str, faults: SetRequest) -> anyhow::Result<()> {
        let (_forward, mut client) = self.faults(member).await?;
        client
            .set(faults)
            .await
            .with_context(|| format!("{member} does not take faults"))?;
        Ok(())
    }

    /// Kills members and keeps them away, by k8s nodes that take no pods; what else runs on these goes on. Waits until the
    /// others know.
    ///
    /// # Errors
    /// If that does not happen within 30 s.
    pub async fn stop(&self, members: &[&str]) -> anyhow::Result<()> {
        self.schedulable(members, "cordon").await?;
        let result = self.kill_and_tell(members).await;
        if result.is_err() {
            self.schedulable(members, "uncordon").await?;
        }
        result
    }

    async fn kill_and_tell(&self, members: &[&str]) -> anyhow::Result<()> {
        self.kill(members).await?;
        let all = self.members().await?;
        let others = all.keys().filter(|member| !members.contains(&member.as_str()));
        let mut admins = self.admins(others).await?;
        for (other, (_, admin)) in &mut admins {
            let admin = &*admin;
            let what = format!("{other} knows who is away");
            wait::until(&what, seconds(30), || async move {
                let peers = admin.clone().peers(pb::PeersRequest {}).await?.into_inner().peers;
                let gone =
                    |peer: &&pb::PeerInfo| !peer.reachable && members.contains(&peer.member_id.as_str());
                let known = peers.iter().filter(gone).count();
                Ok(if known == members.len() {
                    Look::Done(())
                } else {
                    Look::NotYet(format!("{known} of {}", members.len()))
                })
            })
            .await?;
        }
        Ok(())
    }

    /// Deletes pods without any grace.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn kill(&self, members: &[&str]) -> anyhow::Result<()> {
        let mut args = vec!["-n", self.cluster.namespace, "delete", "pod", "--wait=false"];
        args.extend(["--grace-period=0", "--force"]);
        args.extend(members);
        self.cluster.kubectl(&args).await.map(drop)
    }

    /// Lets members come back that were stopped, and waits until all serve.
    ///
    /// # Errors
    /// If they do not within two minutes.
    pub async fn back(&self, members: &[&str]) -> anyhow::Result<()> {
        self.schedulable(members, "uncordon").await?;
        self.all_serve().await
    }

    /// Asks for another number of members, as `kubectl scale` does; waits for nothing.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn scale(&self, members: usize) -> anyhow::Result<()> {
        let Cluster { name, namespace, .. } = self.cluster;
        let (target, replicas) = (format!("dync/{name}"), format!("--replicas={members}"));
        let scale = ["-n", namespace, "scale", &target, &replicas];
        self.cluster.kubectl(&scale).await.map(drop)
    }

    /// Waits until there are so many members, and the DynamoCluster is Ready with its newest spec.
    ///
    /// # Errors
    /// If that is not so within `limit`.
    pub async fn has(&self, members: usize, limit: Duration) -> anyhow::Result<()> {
        let cluster = &self.cluster;
        wait::until(&format!("the lab has {members} members"), limit, || async {
            let (pods, now) = (cluster.members().await?.len(), cluster.dynamo_cluster().await?);
            let generation = now.meta().generation;
            let status = now.status.unwrap_or_default();
            let ready = conditions::find(&status.conditions, conditions::READY);
            let ready = ready.context("no condition Ready")?;
            let is_ready = ready.status == "True" && ready.observed_generation == generation;
            Ok(if pods == members && is_ready {
                Look::Done(())
            } else {
                Look::NotYet(format!("{pods} pods; {}: {}", ready.reason, ready.message))
            })
        })
        .await
    }

    /// Waits until every member says that it serves.
    ///
    /// # Errors
    /// If they do not within two minutes.
    pub async fn all_serve(&self) -> anyhow::Result<()> {
        wait::until("every member serves", seconds(120), || async {
            let pods = self.cluster.members().await?;
            let unready: Vec<String> = pods
                .iter()
                .filter(|pod| !is_ready(pod))
                .map(Pod::name_any)
                .collect();
            Ok(if unready.is_empty() && pods.len() == MEMBERS {
                Look::Done(())
            } else {
                Look::NotYet(format!("{} pods, not ready: {unready:?}", pods.len()))
            })
        })
        .await
    }

    /// Waits until nobody keeps a hint, and no store is suspect.
    ///
    /// # Errors
    /// If that is not so within a minute.
    pub async fn drained(&self) -> anyhow::Result<()> {
        let mut admins = self.admins(self.members().await?.keys()).await?;
        for (member, (_, admin)) in &mut admins {
            let admin = &*admin;
            let what = format!("{member} has no hints and a whole store");
            wait::until(&what, seconds(60), || async move {
                let status = admin.clone().status(pb::StatusRequest {}).await?.into_inner();
                Ok(if status.hints == 0 && status.partitions_suspect == 0 {
                    Look::Done(())
                } else {
                    let (hints, suspect) = (status.hints, status.partitions_suspect);
                    Look::NotYet(format!("{hints} hints, {suspect} partitions suspect"))
                })
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until all primaries of each key hold the same bytes: some, or none.
    ///
    /// # Errors
    /// With the keys that differ, if they still do after a minute.
    pub async fn equal(&self, bucket: &str, keys: &[String], present: bool) -> anyhow::Result<()> {
        let members = self.members().await?;
        let asked = members.keys().next().context("no member")?;
        let (_forward, admin) = self.admin(asked).await?;
        let mut left: BTreeSet<&String> = keys.iter().collect();
        let what = format!("all replicas of {} keys are equal", keys.len());
        let mut unequal = Vec::new();
        let deadline = tokio::time::Instant::now() + seconds(60);
        while !left.is_empty() {
            if tokio::time::Instant::now() > deadline {
                bail!(
                    "waited 60 s in vain until {what}; {} are not: {unequal:?}",
                    left.len()
                );
            }
            let looks = stream::iter(left.clone()).map(|key| {
                let admin = admin.clone();
                async move { anyhow::Ok((key, unequal_because(admin, bucket, key, present).await?)) }
            });
            let looks: Vec<_> = looks.buffer_unordered(AT_ONCE).try_collect().await?;
            unequal.clear();
            for (key, why) in looks {
                match why {
                    None => drop(left.remove(key)),
                    Some(why) => unequal.push(format!("{key}: {why}")),
                }
            }
            unequal.truncate(3);
        }
        Ok(())
    }

    /// Records that exchanges have moved since the start of a member's process: pulled and pushed.
    ///
    /// # Errors
    /// If its metrics cannot be read.
    pub async fn exchanged(&self, member: &str) -> anyhow::Result<u64> {
        let forward = Forward::open(&self.cluster, member, 9700).await?;
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", forward.port)).await?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            .await?;
        let mut text = String::new();
        tokio::time::timeout(seconds(10), stream.read_to_string(&mut text)).await??;
        let lines = text
            .lines()
            .filter(|line| line.starts_with("dynamo_exchange_keys"));
        Ok(lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum::<f64>() as u64)
    }

    /// Cordons or uncordons the k8s nodes of these members' zones.
    async fn schedulable(&self, members: &[&str], action: &str) -> anyhow::Result<()> {
        let zones = self.members().await?;
        let zones: BTreeSet<&String> = members.iter().filter_map(|member| zones.get(*member)).collect();
        for zone in zones {
            let selector = format!("--selector=topology.kubernetes.io/zone={zone}");
            self.cluster.kubectl(&[action, &selector]).await?;
        }
        Ok(())
    }
}

/// The primaries of a key, in order, and then the fallbacks.
///
/// # Errors
/// If the node does not answer.
pub async fn preference_list(
    admin: &Admin,
    bucket: &str,
    key: &str,
) -> anyhow::Result<Vec<pb::PreferenceEntry>> {
    let request = pb::PreferenceListRequest {
        bucket: bucket.into(),
        key: key.to_owned().into_bytes().into(),
    };
    Ok(admin
        .1
        .clone()
        .preference_list(request)
        .await?
        .into_inner()
        .entries)
}

/// The digest of a member's own copy of a key; `None`: it has none.
///
/// # Errors
/// If the node does not answer.
pub async fn copy(admin: &Admin, bucket: &str, key: &str) -> anyhow::Result<Option<u64>> {
    let request = pb::LocalGetRequest {
        bucket: bucket.into(),
        key: key.to_owned().into_bytes().into(),
    };
    let state = admin.1.clone().local_get(request).await?.into_inner().state;
    Ok(state.filter(|state| state.present).map(|state| state.digest))
}

/// Hints that a member keeps for another one.
///
/// # Errors
/// If the node does not answer.
pub async fn hints_for(admin: &Admin, owner: &str) -> anyhow::Result<u64> {
    let hints = admin.1.clone().hints(pb::HintsRequest {}).await?.into_inner();
    let of = hints.owners.iter().filter(|count| count.member_id == owner);
    Ok(of.map(|count| count.hints).sum())
}

/// Why the primaries of a key do not agree; `None`: they do.
async fn unequal_because(
    mut admin: pb::admin_client::AdminClient<Channel>,
    bucket: &str,
    key: &str,
    present: bool,
) -> anyhow::Result<Option<String>> {
    let request = pb::InspectRequest {
        bucket: bucket.into(),
        key: key.to_owned().into_bytes().into(),
    };
    let replicas = admin.inspect(request).await?.into_inner().replicas;
    let states: BTreeSet<_> = replicas
        .iter()
        .map(|replica| (replica.error.as_str(), replica.present, replica.digest))
        .collect();
    let agreed = replicas.len() == 3
        && states.len() == 1
        && states
            .iter()
            .all(|(error, there, _)| error.is_empty() && *there == present);
    Ok((!agreed).then(|| format!("{states:?}")))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}
