//! Our own nodes: `dynamo-node` processes, as `dynamo-local` runs them.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use dynamo_local::{LocalRing, Running, Settings, Wanted, program};
use dynamo_proto::admin::{Bucket, SetBucketRequest, admin_client::AdminClient, bucket};
use futures::{FutureExt as _, future::BoxFuture};

pub(crate) mod change;

pub(crate) mod metrics;

use crate::{
    system::{Background, Conflict, Durability, Servers, Shape, Target},
    target,
};

/// Where the records are.
pub(crate) const BUCKET: &str = "kvbench";

struct Ours {
    ring: LocalRing,
    shape: Shape,
    guarantee: String,
}

pub(crate) fn start(dir: &Path, shape: Shape) -> BoxFuture<'_, Result<Box<dyn Servers>>> {
    async move {
        let durability = match shape.durability {
            Durability::Written => "interval",
            Durability::Synced => "every",
            Durability::OneOfN => "one-of-n",
            Durability::Buffered => "buffered",
        };
        let options = match shape.background {
            Background::Default => Vec::new(),
            Background::Free => vec!["--config".to_owned(), free_background(dir)?],
        };
        let settings = Settings {
            options,
            wanted: Wanted {
                nodes: Some(u32::from(shape.nodes)),
                ..Wanted::default()
            },
            durability: Some(durability.to_owned()),
            threads: shape.threads.map(usize::from),
            log_level: "warn".to_owned(),
            ..Settings::new(dir.join("ring"), program("dynamo-node", None)?)
        };
        let ring = LocalRing::start(settings)
            .await
            .context("cannot start our nodes")?;
        set_bucket(&ring, shape.conflict).await?;
        let guarantee = guarantee(&ring, shape);
        let ours: Box<dyn Servers> = Box::new(Ours {
            ring,
            shape,
            guarantee,
        });
        Ok(ours)
    }
    .boxed()
}

/// A configuration file for what no flag says.
fn free_background(dir: &Path) -> Result<String> {
    let path = dir.join("background.yaml");
    let text = "background:\n  operationsPerSMax: 1000000\n  p99TargetMs: 30000\n";
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.display().to_string())
}

fn guarantee(ring: &LocalRing, shape: Shape) -> String {
    let (factor, (r, w)) = (ring.layout().factor, ring.quorums());
    let durability = match shape.durability {
        Durability::Written => "in the logs, synced every second; survives kill -9",
        Durability::Synced => "synced, many writes per sync",
        Durability::OneOfN => "synced on the node that coordinates it, in the logs of others",
        Durability::Buffered => {
            "in memory, written and synced every second; a killed process loses that second"
        }
    };
    let conflict = match shape.conflict {
        Conflict::Lww => "the last write wins",
        Conflict::Siblings => "siblings are kept",
    };
    format!("N={factor} R={r} W={w}; {durability}; {conflict}")
}

/// Every node is told, so that none has to hear of it first.
async fn set_bucket(ring: &LocalRing, conflict: Conflict) -> Result<()> {
    let conflict = match conflict {
        Conflict::Lww => bucket::Conflict::Lww,
        Conflict::Siblings => bucket::Conflict::Siblings,
    };
    let mut policy = Bucket {
        name: BUCKET.to_owned(),
        ..Bucket::default()
    };
    policy.set_conflict(conflict);
    for node in ring.nodes() {
        let address = format!("http://{}", node.addresses().admin);
        let attempted = || format!("cannot set the bucket {BUCKET} on {}", node.member());
        let mut admin = AdminClient::connect(address).await.with_context(attempted)?;
        let bucket = Some(policy.clone());
        admin
            .set_bucket(SetBucketRequest { bucket })
            .await
            .with_context(attempted)?;
    }
    Ok(())
}

/// As the ring names its nodes.
pub(crate) fn member(number: usize) -> String {
    format!("node-{}", number + 1)
}

impl Servers for Ours {
    fn pids(&self) -> Vec<u32> {
        let pid = |node: &dynamo_local::Node| match node.running() {
            Running::Yes { pid } | Running::Paused { pid } => Some(pid),
            Running::No => None,
        };
        self.ring.nodes().iter().filter_map(pid).collect()
    }

    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Target>>> {
        target::ours::connect(self.ring.endpoints(), self.shape).boxed()
    }

    fn connect_to(&self, number: usize) -> BoxFuture<'_, Result<Arc<dyn Target>>> {
        async move {
            let node = self.ring.nodes().get(number).context("there is no such node")?;
            target::ours::connect_to(node.addresses().client.to_string(), self.shape).await
        }
        .boxed()
    }

    fn kill(&mut self, number: usize) -> BoxFuture<'_, Result<()>> {
        async move {
            self.ring
                .kill(&member(number))
                .await
                .context("cannot kill a node")
        }
        .boxed()
    }

    fn launch(&mut self, number: usize) -> Result<()> {
        self.ring
            .launch(&member(number))
            .context("cannot start a node again")
    }

    fn ring(&self) -> Option<&LocalRing> {
        Some(&self.ring)
    }

    fn guarantee(&self) -> &str {
        &self.guarantee
    }

    fn stop(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        async move { self.ring.stop("all").await.context("cannot stop our nodes") }.boxed()
    }
}
