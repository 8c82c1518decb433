//! A port of a pod on this machine.

use std::{process::Stdio, time::Duration};

use anyhow::Context as _;
use dynamo_proto::admin::admin_client::AdminClient;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
};
use tonic::transport::{Channel, Endpoint};

use crate::cluster::Cluster;

/// A forwarding that ends with this value.
pub struct Forward {
    /// The port on loopback.
    pub port: u16,
    _child: Child,
    // kubectl writes a line for every connection, and would end by a closed pipe.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Forward {
    /// Forwards a free port of this machine to a port of a pod.
    ///
    /// # Errors
    /// If kubectl does not do so within 15 s.
    pub async fn open(cluster: &Cluster, pod: &str, port: u16) -> anyhow::Result<Self> {
        let (target, ports) = (format!("pod/{pod}"), format!(":{port}"));
        let mut child = cluster
            .kubectl_process(&[
                "-n",
                cluster.namespace,
                "port-forward",
                "--address=127.0.0.1",
                &target,
                &ports,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("kubectl has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(Duration::from_secs(15), lines.next_line())
            .await
            .with_context(|| format!("kubectl did not forward a port to {pod} within 15 s"))??
            .with_context(|| format!("kubectl could not forward a port to {pod}"))?;
        // "Forwarding from 127.0.0.1:36789 -> 7702"
        let local = line.split_whitespace().find_map(|word| {
            let (_, port) = word.rsplit_once(':')?;
            port.parse().ok()
        });
        let port = local.with_context(|| format!("kubectl says {line:?}, and no port"))?;
        Ok(Self {
            port,
            _child: child,
            _stdout: lines,
        })
    }
}

/// The admin service of a member; works while the returned forwarding lives.
///
/// # Errors
/// If it cannot be reached.
pub async fn admin(cluster: &Cluster, pod: &str) -> anyhow::Result<(Forward, AdminClient<Channel>)> {
    let (forward, channel) = channel(cluster, pod, 7702).await?;
    Ok((forward, AdminClient::new(channel)))
}

/// A connection to a port of a pod that speaks gRPC; works while the returned forwarding lives.
///
/// # Errors
/// If it cannot be reached.
pub async fn channel(cluster: &Cluster, pod: &str, port: u16) -> anyhow::Result<(Forward, Channel)> {
    let forward = Forward::open(cluster, pod, port).await?;
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", forward.port))?;
    let channel = endpoint
        .timeout(Duration::from_secs(10))
        .connect_timeout(Duration::from_secs(5))
        .connect()
        .await?;
    Ok((forward, channel))
}
