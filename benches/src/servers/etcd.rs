//! etcd: what every Kubernetes cluster already has. A leader, Raft, and a log that all members agree on.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;

use crate::{
    servers::child::{Child, Running, free_ports, host, install},
    system::{Durability, Servers, Shape},
    target,
};

const START: Duration = Duration::from_mins(1);

/// Starts etcd, and waits until every member answers a linearizable read.
pub(crate) fn start(dir: &Path, shape: Shape) -> BoxFuture<'_, Result<Box<dyn Servers>>> {
    Box::pin(async move {
        let program = install("etcd").await?.join("bin/etcd");
        let [client_port, peer_port] = free_ports(shape.nodes)?;
        let mut children = Vec::new();
        for i in 0..shape.nodes {
            let folder = dir.join(format!("etcd{}", i + 1));
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            let mut command = Command::new(&program);
            command.args(arguments(i, shape, [client_port, peer_port], &folder));
            children.push(Child::spawn(
                &format!("etcd {}", i + 1),
                command,
                &folder.join("log"),
            )?);
        }
        let endpoints: Vec<String> = (0..shape.nodes).map(|i| url(i, client_port)).collect();
        for (child, endpoint) in children.iter_mut().zip(&endpoints) {
            child.until(START, || target::etcd::serves(endpoint)).await?;
        }
        let servers: Box<dyn Servers> = Box::new(Running {
            children,
            connect_to: None,
            connect: Box::new(move || Box::pin(target::etcd::connect(endpoints.clone()))),
            guarantee: guarantee(shape.durability).to_owned(),
        });
        Ok(servers)
    })
}

fn guarantee(durability: Durability) -> &'static str {
    if durability.is_synced() {
        "in the logs of a majority, synced to their disks; linearizable, all through the leader"
    } else {
        "in the logs of a majority, written and not synced; linearizable, all through the leader"
    }
}

fn url(i: u16, port: u16) -> String {
    format!("http://{}:{port}", host(i))
}

fn arguments(i: u16, shape: Shape, [client_port, peer_port]: [u16; 2], folder: &Path) -> Vec<String> {
    let (clients, peers) = (url(i, client_port), url(i, peer_port));
    let members: Vec<String> = (0..shape.nodes)
        .map(|i| format!("n{i}={}", url(i, peer_port)))
        .collect();
    let mut arguments = vec![
        format!("--name=n{i}"),
        format!("--data-dir={}", folder.join("data").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster={}", members.join(",")),
        "--logger=zap".to_owned(),
        "--log-level=warn".to_owned(),
        // It keeps all versions of a key until they are compacted; with its default of 2 GB a measurement would fill it.
        "--quota-backend-bytes=8589934592".to_owned(),
        "--auto-compaction-mode=revision".to_owned(),
        "--auto-compaction-retention=1000".to_owned(),
    ];
    if !shape.durability.is_synced() {
        arguments.push("--unsafe-no-fsync".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments_of(i: u16, durability: Durability) -> Vec<String> {
        arguments(i, Shape::of_three(durability), [2379, 2380], Path::new("/data"))
    }

    #[test]
    fn members_know_each_other_and_listen_on_their_own_addresses() {
        let second = arguments_of(1, Durability::Written);
        for expected in [
            "--name=n1",
            "--listen-client-urls=http://127.0.0.2:2379",
            "--listen-peer-urls=http://127.0.0.2:2380",
            "--initial-cluster=n0=http://127.0.0.1:2380,n1=http://127.0.0.2:2380,n2=http://127.0.0.3:2380",
        ] {
            assert!(
                second.iter().any(|found| found == expected),
                "no {expected} in {second:?}"
            );
        }
    }

    #[test]
    fn only_synced_writes_are_synced() {
        let unsynced = |durability| arguments_of(0, durability).contains(&"--unsafe-no-fsync".to_owned());
        assert!(unsynced(Durability::Written));
        assert!(!unsynced(Durability::Synced));
    }
}
