//! Garage with its K2V interface: the nearest in meaning, with causality tokens, siblings and quorums. Its programs only: it is
//! under the AGPL.

use std::{fs, net::Ipv4Addr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use tokio::net::TcpStream;

use crate::{
    servers::child::{Child, Running, free_ports, host, install},
    system::{Durability, Servers, Shape},
    target::{
        self,
        garage::{BUCKET, Key, REGION},
    },
};

const START: Duration = Duration::from_mins(1);

/// Starts Garage, makes a cluster of its nodes, and in it a bucket and a key.
pub(crate) fn start(dir: &Path, shape: Shape) -> BoxFuture<'_, Result<Box<dyn Servers>>> {
    Box::pin(async move {
        let program = install("garage").await?.join("bin/garage");
        let [rpc_port, k2v_port] = free_ports(shape.nodes)?;
        let mut children = Vec::new();
        let mut configurations = Vec::new();
        for i in 0..shape.nodes {
            let (host, folder) = (host(i), dir.join(format!("garage{}", i + 1)));
            let configuration = folder.join("garage.toml");
            fs::create_dir_all(&folder)
                .and_then(|()| fs::write(&configuration, toml(host, &folder, [rpc_port, k2v_port], shape)))
                .with_context(|| format!("write {}", configuration.display()))?;
            let mut command = Command::new(&program);
            // It logs every request otherwise.
            command
                .arg("-c")
                .arg(&configuration)
                .arg("server")
                .env("RUST_LOG", "warn");
            let mut child = Child::spawn(&format!("Garage {}", i + 1), command, &folder.join("log"))?;
            child
                .until(START, || async move {
                    TcpStream::connect((host, rpc_port)).await.is_ok()
                })
                .await?;
            children.push(child);
            configurations.push(configuration);
        }
        let key = key();
        join(&program, &configurations, &key).await?;
        let hosts: Vec<String> = (0..shape.nodes)
            .map(|i| format!("{}:{k2v_port}", host(i)))
            .collect();
        for (child, host) in children.iter_mut().zip(&hosts) {
            child
                .until(START, || target::garage::serves(host.clone(), key.clone()))
                .await?;
        }
        let servers: Box<dyn Servers> = Box::new(Running {
            children,
            connect_to: None,
            connect: Box::new(move || {
                let (hosts, key) = (hosts.clone(), key.clone());
                Box::pin(async move { Ok(target::garage::connect(hosts, key)) })
            }),
            guarantee: guarantee(shape.durability).to_owned(),
        });
        Ok(servers)
    })
}

fn guarantee(durability: Durability) -> &'static str {
    if durability.is_synced() {
        "in the LMDB of a quorum of replicas, synced; siblings by causality token (a put is a get and a put), reads ask a quorum"
    } else {
        "in the LMDB of a quorum of replicas, not synced; siblings by causality token (a put is a get and a put), reads ask a quorum"
    }
}

/// No secret: of a cluster on loopback that lives as long as a measurement.
fn key() -> Key {
    Key {
        id: format!("GK{:024x}", 1),
        secret: format!("{:064x}", 1),
    }
}

fn toml(host: Ipv4Addr, folder: &Path, [rpc_port, k2v_port]: [u16; 2], shape: Shape) -> String {
    let folder = folder.display();
    let (factor, fsync) = (shape.nodes.min(3), shape.durability.is_synced());
    format!(
        r#"replication_factor = {factor}
metadata_dir = "{folder}/meta"
data_dir = "{folder}/data"
db_engine = "lmdb"
metadata_fsync = {fsync}
rpc_secret = "{:064x}"
rpc_bind_addr = "{host}:{rpc_port}"
rpc_public_addr = "{host}:{rpc_port}"
allow_world_readable_secrets = true

[s3_api]
s3_region = "{REGION}"

[k2v_api]
api_bind_addr = "{host}:{k2v_port}"
"#,
        1
    )
}

/// What an administrator would type.
async fn join(program: &Path, configurations: &[std::path::PathBuf], key: &Key) -> Result<()> {
    let first = configurations.first().context("no node")?;
    let mut names = Vec::new();
    for configuration in configurations {
        names.push(run(program, configuration, &["node", "id", "-q"]).await?);
    }
    for name in &names[1..] {
        run(program, first, &["node", "connect", name]).await?;
    }
    for name in &names {
        let id = name.split('@').next().unwrap_or_default();
        run(
            program,
            first,
            &["layout", "assign", "-z", "zone", "-c", "10GB", id],
        )
        .await?;
    }
    run(program, first, &["layout", "apply", "--version", "1"]).await?;
    run(program, first, &["key", "import", "--yes", &key.id, &key.secret]).await?;
    run(program, first, &["bucket", "create", BUCKET]).await?;
    run(
        program,
        first,
        &["bucket", "allow", "--read", "--write", BUCKET, "--key", &key.id],
    )
    .await?;
    Ok(())
}

async fn run(program: &Path, configuration: &Path, words: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new(program)
        .arg("-c")
        .arg(configuration)
        .args(words)
        .env("RUST_LOG", "warn")
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "garage {} failed: {}{}",
        words.join(" "),
        text,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml_of(durability: Durability) -> String {
        toml(
            host(2),
            Path::new("/data/3"),
            [3901, 3904],
            Shape::of_three(durability),
        )
    }

    #[test]
    fn a_node_has_addresses_and_folders_of_its_own_and_three_copies() {
        let toml = toml_of(Durability::Written);
        for line in [
            "replication_factor = 3",
            "metadata_dir = \"/data/3/meta\"",
            "rpc_public_addr = \"127.0.0.3:3901\"",
            "api_bind_addr = \"127.0.0.3:3904\"",
        ] {
            assert!(toml.lines().any(|found| found == line), "no {line} in {toml}");
        }
    }

    #[test]
    fn only_synced_writes_are_synced() {
        assert!(toml_of(Durability::Written).contains("metadata_fsync = false\n"));
        assert!(toml_of(Durability::Synced).contains("metadata_fsync = true\n"));
    }
}
