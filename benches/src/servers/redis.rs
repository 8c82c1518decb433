//! Redis: one primary, to which all go, and replicas that follow it.

use std::{fs, net::Ipv4Addr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;

use crate::{
    servers::child::{Child, Running, free_ports, host, install},
    system::{Durability, RedisWait, Servers, Shape},
    target,
};

const START: Duration = Duration::from_mins(1);

/// Starts Redis, and waits until all replicas follow.
pub(crate) fn start(dir: &Path, shape: Shape) -> BoxFuture<'_, Result<Box<dyn Servers>>> {
    Box::pin(async move {
        let program = install("redis").await?.join("bin/redis-server");
        let [port] = free_ports(shape.nodes)?;
        let mut children = Vec::new();
        for i in 0..shape.nodes {
            let folder = dir.join(format!("redis{}", i + 1));
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            let mut command = Command::new(&program);
            command.args(arguments(host(i), port, &folder, shape.durability));
            children.push(Child::spawn(
                &format!("Redis {}", i + 1),
                command,
                &folder.join("log"),
            )?);
        }
        let primary = format!("redis://{}:{port}", host(0));
        let replicas = usize::from(shape.nodes.saturating_sub(1));
        for child in &mut children {
            child
                .until(START, || async {
                    target::redis::followers(&primary)
                        .await
                        .is_ok_and(|found| found == replicas)
                })
                .await?;
        }
        // With the primary, a majority.
        let acknowledgements = shape.nodes / 2;
        let servers: Box<dyn Servers> = Box::new(Running {
            children,
            connect_to: None,
            connect: Box::new(move || {
                Box::pin(target::redis::connect(
                    primary.clone(),
                    acknowledgements,
                    shape.redis_wait,
                ))
            }),
            guarantee: guarantee(shape, acknowledgements),
        });
        Ok(servers)
    })
}

fn guarantee(shape: Shape, acknowledgements: u16) -> String {
    let log = if shape.durability.is_synced() {
        "in the primary's log, synced to its disk"
    } else {
        "in the primary's log, synced every second"
    };
    let wait = match shape.redis_wait {
        RedisWait::Each => "each SET with a WAIT of its own",
        RedisWait::Shared => "SETs that come together with one WAIT",
    };
    format!(
        "{log}, and in the memory of {acknowledgements} of {} replicas, {wait}; lost if the primary is, and another replica follows it; \
         reads ask the primary alone",
        shape.nodes.saturating_sub(1)
    )
}

fn arguments(host: Ipv4Addr, port: u16, folder: &Path, durability: Durability) -> Vec<String> {
    let sync = if durability.is_synced() {
        "always"
    } else {
        "everysec"
    };
    let (host, port, folder) = (host.to_string(), port.to_string(), folder.display().to_string());
    let mut arguments = vec!["--bind", &host, "--port", &port, "--dir", &folder];
    arguments.extend(["--appendonly", "yes", "--appendfsync", sync, "--save", ""]);
    // Rewriting the log is done by processes of its own, which the measurement would not see: in Redis's favour, it is left out.
    arguments.extend(["--auto-aof-rewrite-percentage", "0"]);
    arguments.extend(["--repl-diskless-sync-delay", "0"]);
    let primary = crate::servers::child::host(0).to_string();
    if host != primary {
        arguments.extend(["--replicaof", &primary, &port]);
    }
    arguments.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(i: u16, durability: Durability) -> String {
        arguments(host(i), 7777, Path::new("/data"), durability).join(" ")
    }

    #[test]
    fn the_first_is_the_primary_and_the_others_follow_it() {
        assert!(!line(0, Durability::Written).contains("--replicaof"));
        for i in [1, 2] {
            assert!(line(i, Durability::Written).ends_with("--replicaof 127.0.0.1 7777"));
        }
    }

    #[test]
    fn the_log_is_synced_as_often_as_the_comparison_wants() {
        assert!(line(0, Durability::Written).contains("--appendonly yes --appendfsync everysec "));
        assert!(line(0, Durability::Synced).contains("--appendonly yes --appendfsync always "));
    }
}
