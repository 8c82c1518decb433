//! Apache Cassandra: the nearest in topology, quorums and durability.

use std::{fs, net::Ipv4Addr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use tokio::net::TcpStream;

use crate::{
    servers::child::{Child, Running, free_ports, host, install},
    system::{Durability, Servers, Shape},
    target,
};

const TEMPLATE: &str = include_str!("../../peers/cassandra.yaml");
const LOGBACK: &str = include_str!("../../peers/logback.xml");
/// What a JVM of its own takes to join, on a machine that is busy.
const JOIN: Duration = Duration::from_mins(3);

/// What Cassandra's start says it lacks, one after the other, if a JVM 17 runs it without them.
const MODULES: [&str; 4] = [
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
];

/// The smallest heap with which it is not busy with collecting garbage at these sizes of data.
const HEAP: [&str; 4] = ["-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=300"];

/// Starts Cassandra, node by node as it wants it.
pub(crate) fn start(dir: &Path, shape: Shape) -> BoxFuture<'_, Result<Box<dyn Servers>>> {
    Box::pin(async move {
        let program = install("cassandra").await?;
        let [storage_port, cql_port] = free_ports(shape.nodes)?;
        let mut children = Vec::new();
        for i in 0..shape.nodes {
            let host = host(i);
            let folder = dir.join(format!("cassandra{}", i + 1));
            write_configuration(
                &folder,
                &yaml(host, &folder, [storage_port, cql_port], shape.durability),
            )?;
            let mut command = Command::new("java");
            command.args(arguments(&program, &folder));
            let mut child = Child::spawn(&format!("Cassandra {}", i + 1), command, &folder.join("log"))?;
            // It listens to clients once it has joined, and two must not join at once.
            child
                .until(JOIN, || async move {
                    TcpStream::connect((host, cql_port)).await.is_ok()
                })
                .await?;
            children.push(child);
        }
        let hosts: Vec<String> = (0..shape.nodes)
            .map(|i| format!("{}:{cql_port}", host(i)))
            .collect();
        // The first ones hear of the last one a little later than its clients do.
        let nodes = usize::from(shape.nodes);
        for (child, host) in children.iter_mut().zip(&hosts) {
            child
                .until(JOIN, || async {
                    target::cassandra::members(host.clone()).await == Some(nodes)
                })
                .await?;
        }
        let servers: Box<dyn Servers> = Box::new(Running {
            children,
            connect_to: Some(Box::new({
                let hosts = hosts.clone();
                move |number| Box::pin(target::cassandra::connect_to(hosts[number].clone()))
            })),
            connect: Box::new(move || Box::pin(target::cassandra::connect(hosts.clone()))),
            guarantee: guarantee(shape.durability).to_owned(),
        });
        Ok(servers)
    })
}

fn guarantee(durability: Durability) -> &'static str {
    if durability.is_synced() {
        "in the commit log of a quorum of replicas, synced to their disks; the last write wins, reads ask a quorum"
    } else {
        "in the mapped commit log of a quorum of replicas, synced every 10 s; the last write wins, reads ask a quorum"
    }
}

fn write_configuration(folder: &Path, yaml: &str) -> Result<()> {
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(folder.join("cassandra.yaml"), yaml))
        .and_then(|()| fs::write(folder.join("logback.xml"), LOGBACK))
        .with_context(|| format!("write Cassandra's configuration into {}", folder.display()))
}

fn yaml(host: Ipv4Addr, folder: &Path, [storage_port, cql_port]: [u16; 2], durability: Durability) -> String {
    // `batch` syncs as soon as the last sync has ended, for all who wait: group commit without a timer.
    let commitlog_sync = if durability.is_synced() {
        "commitlog_sync: batch"
    } else {
        "commitlog_sync: periodic\ncommitlog_sync_period: 10s"
    };
    TEMPLATE
        .replace("{host}", &host.to_string())
        .replace("{folder}", &folder.display().to_string())
        .replace("{storage_port}", &storage_port.to_string())
        .replace("{cql_port}", &cql_port.to_string())
        .replace("{commitlog_sync}", commitlog_sync)
}

fn arguments(program: &Path, folder: &Path) -> Vec<String> {
    let (lib, folder) = (program.join("lib"), folder.display());
    let mut arguments = vec![format!("-javaagent:{}", lib.join("jamm-0.4.0.jar").display())];
    arguments.extend(MODULES.iter().chain(&HEAP).map(ToString::to_string));
    arguments.extend([
        "-XX:+ExitOnOutOfMemoryError".to_owned(),
        format!("-Dlogback.configurationFile=file://{folder}/logback.xml"),
        format!("-Dcassandra.config=file://{folder}/cassandra.yaml"),
        format!("-Dcassandra.storagedir={folder}"),
        "-Dcassandra-foreground=yes".to_owned(),
        // Nodes that are known to be all there need not wait for others to be heard of.
        "-Dcassandra.ring_delay_ms=2000".to_owned(),
        "-Dcassandra.skip_wait_for_gossip_to_settle=0".to_owned(),
        "-cp".to_owned(),
        format!("{}/*", lib.display()),
        "org.apache.cassandra.service.CassandraDaemon".to_owned(),
    ]);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(durability: Durability) -> serde_yaml::Value {
        let text = yaml(host(1), Path::new("/data/2"), [7001, 9043], durability);
        assert!(!text.contains("\"{") && !text.contains(": {"), "{text}");
        serde_yaml::from_str(&text).unwrap()
    }

    #[test]
    fn a_node_listens_on_its_own_address_and_knows_the_first() {
        let yaml = parsed(Durability::Written);
        assert_eq!(yaml["listen_address"], "127.0.0.2");
        assert_eq!(yaml["rpc_address"], "127.0.0.2");
        assert_eq!(yaml["native_transport_port"], 9043);
        assert_eq!(
            yaml["seed_provider"][0]["parameters"][0]["seeds"],
            "127.0.0.1:7001"
        );
        assert_eq!(yaml["data_file_directories"][0], "/data/2/data");
    }

    #[test]
    fn the_commit_log_is_synced_as_often_as_the_comparison_wants() {
        assert_eq!(parsed(Durability::Written)["commitlog_sync"], "periodic");
        assert_eq!(parsed(Durability::Written)["commitlog_sync_period"], "10s");
        let synced = parsed(Durability::Synced);
        assert_eq!(synced["commitlog_sync"], "batch");
        assert!(synced.get("commitlog_sync_period").is_none());
    }

    #[test]
    fn the_jvm_is_given_modules_and_heap_before_the_class_that_it_runs() {
        let arguments = arguments(Path::new("/peers/cassandra"), Path::new("/data/1"));
        assert_eq!(arguments[0], "-javaagent:/peers/cassandra/lib/jamm-0.4.0.jar");
        assert!(arguments.contains(&"-Xmx1g".to_owned()));
        assert!(arguments.contains(&"-Dcassandra.config=file:///data/1/cassandra.yaml".to_owned()));
        assert_eq!(arguments[arguments.len() - 2], "/peers/cassandra/lib/*");
    }
}
