//! Configuration: a flag wins over its environment variable, which wins over the file, which wins over the default.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

mod background;

pub use background::Background;

/// A Dynamo storage node.
///
/// A node with an empty data directory waits for an administrator: Bootstrap (to the first node of a new cluster) or
/// Join (to every other) on its admin port. It then keeps its identity in the data directory.
#[derive(Debug, Default, Parser)]
#[command(name = "dynamo-node", version, after_help = EXAMPLES)]
pub struct Flags {
    /// YAML file with the same settings; unknown keys are refused.
    #[arg(long, env = "DYNAMO_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where everything durable lives [default: /var/lib/dynamo].
    #[arg(long, env = "DYNAMO_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// DNS name or IP address by which peers and clients reach this node [default: 127.0.0.1].
    #[arg(long, env = "DYNAMO_ADVERTISE_HOST", value_name = "HOST")]
    pub advertise_host: Option<String>,
    /// Address for clients (gRPC) [default: 0.0.0.0:7700].
    #[arg(long, env = "DYNAMO_CLIENT_LISTEN", value_name = "IP:PORT")]
    pub client_listen: Option<SocketAddr>,
    /// Address for peers (gRPC) [default: 0.0.0.0:7701].
    #[arg(long, env = "DYNAMO_PEER_LISTEN", value_name = "IP:PORT")]
    pub peer_listen: Option<SocketAddr>,
    /// Address for administrators (gRPC) [default: 0.0.0.0:7702].
    #[arg(long, env = "DYNAMO_ADMIN_LISTEN", value_name = "IP:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// Address for probes and metrics (HTTP) [default: 0.0.0.0:9700].
    #[arg(long, env = "DYNAMO_HTTP_LISTEN", value_name = "IP:PORT")]
    pub http_listen: Option<SocketAddr>,
    /// Peer address of a seed; may be given several times.
    #[arg(
        long = "seed",
        env = "DYNAMO_SEEDS",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub seeds: Vec<String>,
    /// R: replicas that must answer a get [default: a majority of N].
    #[arg(long, env = "DYNAMO_READ_QUORUM", value_name = "R")]
    pub read_quorum: Option<u32>,
    /// W: replicas that must accept a put [default: a majority of N].
    #[arg(long, env = "DYNAMO_WRITE_QUORUM", value_name = "W")]
    pub write_quorum: Option<u32>,
    /// When a write counts as accepted [default: every].
    #[arg(long, env = "DYNAMO_DURABILITY")]
    pub durability: Option<DurabilityMode>,
    /// Time between syncs with every `--durability` but `every`, in milliseconds, 1..=60000 [default: 1000].
    #[arg(long, env = "DYNAMO_DURABILITY_INTERVAL_MS", value_name = "MS")]
    pub durability_interval_ms: Option<u64>,
    /// Threads that serve requests, 1..=1024 [default: one for each processor that the process may use].
    #[arg(long, env = "DYNAMO_THREADS", value_name = "COUNT")]
    pub threads: Option<usize>,
    /// Form of the log on standard error [default: json].
    #[arg(long, env = "DYNAMO_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Log filter: a level, or `target=level,...` [default: info].
    #[arg(long, env = "DYNAMO_LOG_LEVEL", value_name = "FILTER")]
    pub log_level: Option<String>,
    /// Seconds that requests in flight get after SIGTERM, 0..=600 [default: 20].
    #[arg(long, env = "DYNAMO_SHUTDOWN_GRACE_S", value_name = "S")]
    pub shutdown_grace_s: Option<u64>,
    /// Prints the configuration in effect as YAML and exits.
    #[arg(long)]
    pub print_config: bool,
}

const EXAMPLES: &str = "\
Examples:
  A single node for a look around, then its first ring:
    dynamo-node --data-dir /tmp/dynamo --log-format text
    dynamoctl bootstrap --member-id node-1 --member node-1 --factor 1

  A node of a larger cluster:
    dynamo-node --data-dir /var/lib/dynamo --advertise-host n1.example.net --seed n2.example.net:7701

Ports: 7700 clients, 7701 peers, 7702 administrators, 9700 probes (/livez, /readyz) and /metrics.
Exit codes: 0 clean stop, 1 configuration or start error, 75 storage failure (start again).";

/// When a write counts as accepted by a replica. A write that asks for durable replicas (DW) gets them in every mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DurabilityMode {
    /// Synced to disk, many writes per sync: survives the loss of power on every node.
    Every,
    /// In the write-ahead log, synced on a timer: survives a killed process, may lose the last interval with the power.
    Interval,
    /// Synced on the node that coordinates it, as `interval` on the others: survives the loss of power on all nodes, unless
    /// that one node's disk is lost as well before the others' next sync.
    OneOfN,
    /// In memory, written to the log and synced on a timer: a killed process or the loss of power loses the last interval
    /// on that node; W nodes that fail within one interval lose acknowledged writes.
    Buffered,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// The configuration in effect; also the shape of the YAML file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where everything durable lives.
    pub data_dir: PathBuf,
    /// DNS name or IP address by which others reach this node.
    pub advertise_host: String,
    /// Addresses to listen on.
    pub listen: Listen,
    /// Peer addresses of seeds, at most 100.
    pub seeds: Vec<String>,
    /// Quorums of requests that name none.
    pub replication: Replication,
    /// When a write counts as accepted.
    pub durability: Durability,
    /// The disk.
    pub storage: Storage,
    /// What is kept for other nodes.
    pub hints: Hints,
    /// Work behind the foreground.
    pub background: Background,
    /// Bounds.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
    /// Seconds that requests in flight get at the end.
    pub shutdown_grace_s: u64,
}

/// Addresses to listen on; port 0 takes a free one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// gRPC for clients.
    pub client: SocketAddr,
    /// gRPC for peers.
    pub peer: SocketAddr,
    /// gRPC for administrators.
    pub admin: SocketAddr,
    /// HTTP for probes and metrics.
    pub http: SocketAddr,
}

/// Quorums of requests that name none; left out: a majority of N.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Replication {
    /// R, 1..=N.
    pub read_quorum: Option<u32>,
    /// W, 1..=N.
    pub write_quorum: Option<u32>,
}

/// When a write counts as accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Durability {
    /// The mode.
    pub mode: DurabilityMode,
    /// Milliseconds between syncs in every mode but `every`, 1..=60000: what may be lost.
    pub interval_ms: u64,
    /// Bytes that wait in memory at most in mode `buffered`, 64 KiB..=1 GiB; beyond, they are written to the log earlier.
    pub buffer_bytes_max: usize,
}

/// The disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Storage {
    /// Free bytes of the disk below which writes are refused with RESOURCE_EXHAUSTED, until there are more again; 0: never.
    /// Left out: 5 % of the disk; 64 MiB at least, but never more than a quarter of the disk; 1 GiB at most.
    pub free_bytes_min: Option<u64>,
}

/// What is kept for other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hints {
    /// Bytes of hints on this node, 0..=1 TiB; beyond, hints are declined and anti-entropy brings what they would have.
    /// 0: this node keeps none.
    pub bytes_max: u64,
}

/// Bounds; each has a range that [`Config::validate`] holds to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a value, 1..=16 MiB.
    pub value_bytes_max: usize,
    /// Open connections per port, 1..=100000.
    pub connections_max: usize,
    /// Client requests served at once at most, 1..=100000; more are refused with RESOURCE_EXHAUSTED. Fewer, but at least 64,
    /// while they take longer than a quarter of `peer_timeout_ms` in the mean.
    pub requests_in_flight_max: usize,
    /// Bytes of clients' requests that are taken in and not yet answered, 1 MiB..=1 TiB, and the same again of peers'; others wait in
    /// the network. Those below 64 KiB do not count, and one that is larger than all of it is taken in alone. Each takes
    /// several times its bytes while it is served.
    pub request_bytes_in_flight_max: usize,
    /// Milliseconds that a request may take when its client names no deadline, 1..=30000.
    pub request_timeout_ms: u64,
    /// Milliseconds that one call to a peer may take, 1..=30000.
    pub peer_timeout_ms: u64,
    /// Threads that serve requests, 1..=1024; the disk has its own. Left out: one for each processor that the process may use.
    pub threads: Option<usize>,
    /// Bytes of RocksDB's block cache, 1 MiB..=1 TiB; never more than a quarter of the memory that the process may use.
    pub block_cache_bytes: usize,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Form.
    pub format: LogFormat,
    /// Filter.
    pub level: String,
}

/// Keys are at most this long, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;
/// The longest deadline that a client's request gets, in milliseconds.
pub const REQUEST_TIMEOUT_MS_MAX: u64 = 30_000;
/// Siblings beyond which a put that would add one is refused.
pub const SIBLINGS_MAX: usize = 100;
/// Keys of one batch request.
pub const BATCH_KEYS_MAX: usize = 100;
/// Keys of one page of a listing.
pub const PAGE_KEYS_MAX: u32 = 1000;
/// Silence after which a connection is pinged, and time that the answer may take. A black hole (a cut link, a lost
/// connection-tracking entry) is noticed within their sum; without pings it never would be.
pub const KEEPALIVE: Duration = Duration::from_secs(1);

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/dynamo".into(),
            advertise_host: "127.0.0.1".into(),
            listen: Listen::default(),
            seeds: Vec::new(),
            replication: Replication::default(),
            durability: Durability::default(),
            storage: Storage::default(),
            hints: Hints::default(),
            background: Background::default(),
            limits: Limits::default(),
            log: Log::default(),
            shutdown_grace_s: 20,
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            client: any(7700),
            peer: any(7701),
            admin: any(7702),
            http: any(9700),
        }
    }
}

impl Default for Durability {
    fn default() -> Self {
        Self {
            mode: DurabilityMode::Every,
            interval_ms: 1000,
            buffer_bytes_max: 32 << 20,
        }
    }
}

impl Default for Hints {
    fn default() -> Self {
        Self { bytes_max: 1 << 30 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            value_bytes_max: 1 << 20,
            connections_max: 4096,
            requests_in_flight_max: 1024,
            request_bytes_in_flight_max: 32 << 20,
            request_timeout_ms: 2000,
            peer_timeout_ms: 500,
            threads: None,
            block_cache_bytes: 128 << 20,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Json,
            level: "info".into(),
        }
    }
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration file {path} is not valid: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why, with line and column.
        source: serde_yaml::Error,
    },
    /// Settings out of range, all of them.
    #[error("invalid configuration: {}", .0.join("; "))]
    Invalid(Vec<String>),
}

impl Config {
    /// Reads the file if one is named, lays the flags over it and checks the result.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, or a setting is out of range.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let mut config = match &flags.config {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                    path: path.clone(),
                    source,
                })?;
                serde_yaml::from_str(&text).map_err(|source| ConfigError::Parse {
                    path: path.clone(),
                    source,
                })?
            }
            None => Self::default(),
        };
        config.overlay(flags);
        config.validate()?;
        Ok(config)
    }

    fn overlay(&mut self, flags: &Flags) {
        fn set<T: Clone>(to: &mut T, from: Option<&T>) {
            if let Some(value) = from {
                to.clone_from(value);
            }
        }
        set(&mut self.data_dir, flags.data_dir.as_ref());
        set(&mut self.advertise_host, flags.advertise_host.as_ref());
        set(&mut self.listen.client, flags.client_listen.as_ref());
        set(&mut self.listen.peer, flags.peer_listen.as_ref());
        set(&mut self.listen.admin, flags.admin_listen.as_ref());
        set(&mut self.listen.http, flags.http_listen.as_ref());
        set(&mut self.durability.mode, flags.durability.as_ref());
        set(
            &mut self.durability.interval_ms,
            flags.durability_interval_ms.as_ref(),
        );
        set(&mut self.log.format, flags.log_format.as_ref());
        set(&mut self.log.level, flags.log_level.as_ref());
        set(&mut self.shutdown_grace_s, flags.shutdown_grace_s.as_ref());
        self.limits.threads = flags.threads.or(self.limits.threads);
        self.replication.read_quorum = flags.read_quorum.or(self.replication.read_quorum);
        self.replication.write_quorum = flags.write_quorum.or(self.replication.write_quorum);
        if !flags.seeds.is_empty() {
            self.seeds.clone_from(&flags.seeds);
        }
    }

    /// Checks every range and names every fault, not only the first.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        let mut range = |name: &str, value: u64, min: u64, max: u64| {
            if !(min..=max).contains(&value) {
                faults.push(format!("{name} is {value} but must be {min}..={max}"));
            }
        };
        range("durability.intervalMs", self.durability.interval_ms, 1, 60_000);
        range(
            "durability.bufferBytesMax",
            self.durability.buffer_bytes_max as u64,
            64 << 10,
            1 << 30,
        );
        range("hints.bytesMax", self.hints.bytes_max, 0, 1 << 40);
        self.background.check(&mut range);
        range(
            "limits.valueBytesMax",
            self.limits.value_bytes_max as u64,
            1,
            16 << 20,
        );
        range(
            "limits.connectionsMax",
            self.limits.connections_max as u64,
            1,
            100_000,
        );
        range(
            "limits.requestsInFlightMax",
            self.limits.requests_in_flight_max as u64,
            1,
            100_000,
        );
        range(
            "limits.requestBytesInFlightMax",
            self.limits.request_bytes_in_flight_max as u64,
            1 << 20,
            1 << 40,
        );
        range(
            "limits.requestTimeoutMs",
            self.limits.request_timeout_ms,
            1,
            REQUEST_TIMEOUT_MS_MAX,
        );
        range(
            "limits.peerTimeoutMs",
            self.limits.peer_timeout_ms,
            1,
            REQUEST_TIMEOUT_MS_MAX,
        );
        range(
            "limits.blockCacheBytes",
            self.limits.block_cache_bytes as u64,
            1 << 20,
            1 << 40,
        );
        range("limits.threads", self.limits.threads.unwrap_or(1) as u64, 1, 1024);
        range("shutdownGraceS", self.shutdown_grace_s, 0, 600);
        range("seeds (their number)", self.seeds.len() as u64, 0, 100);
        for (name, quorum) in [
            ("replication.readQuorum", self.replication.read_quorum),
            ("replication.writeQuorum", self.replication.write_quorum),
        ] {
            if let Some(value) = quorum {
                range(name, u64::from(value), 1, 7);
            }
        }
        if self.advertise_host.is_empty() || self.advertise_host.contains([':', '/', ' ']) {
            faults.push(format!(
                "advertiseHost is {:?} but must be a DNS name or an IPv4 address without a port",
                self.advertise_host
            ));
        }
        for seed in &self.seeds {
            let port = seed
                .rsplit_once(':')
                .and_then(|(host, port)| (!host.is_empty()).then_some(port));
            if port.and_then(|port| port.parse::<u16>().ok()).is_none() {
                faults.push(format!("seed {seed:?} must be HOST:PORT"));
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid(faults))
        }
    }

    /// A bound on one gRPC message from a client: a batch of many values has to be split.
    pub fn client_message_bytes_max(&self) -> usize {
        self.limits.value_bytes_max * 4 + (1 << 20)
    }

    /// A bound on one gRPC message between nodes or to a client. A record stays below [`Self::record_bytes_max`] unless
    /// several coordinators grow it at once, for which there is room.
    pub fn peer_message_bytes_max(&self) -> usize {
        self.record_bytes_max() * 4 + (1 << 20)
    }

    /// Bytes of a key's values beyond which a put that would add a sibling is refused: eight values of full size.
    pub fn record_bytes_max(&self) -> usize {
        self.limits.value_bytes_max * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Flags {
        Flags::parse_from(std::iter::once(&"dynamo-node").chain(args))
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.yaml");
        std::fs::write(
            &path,
            "listen: {client: 127.0.0.1:1}\nreplication: {readQuorum: 2}\nshutdownGraceS: 7\n",
        )
        .unwrap();
        let path = path.to_str().unwrap();
        let config = Config::load(&flags(&["--config", path, "--shutdown-grace-s", "8"])).unwrap();
        assert_eq!(config.listen.client.port(), 1);
        assert_eq!(config.listen.peer.port(), 7701);
        assert_eq!(config.replication.read_quorum, Some(2));
        assert_eq!(config.shutdown_grace_s, 8);
    }

    #[test]
    fn every_fault_is_named() {
        let config = Config {
            durability: Durability {
                interval_ms: 0,
                ..Durability::default()
            },
            advertise_host: "host:1".into(),
            seeds: vec!["nowhere".into()],
            ..Config::default()
        };
        let text = config.validate().unwrap_err().to_string();
        for part in [
            "durability.intervalMs is 0",
            "advertiseHost is \"host:1\"",
            "seed \"nowhere\"",
        ] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.yaml");
        std::fs::write(&path, "dataDri: /tmp\n").unwrap();
        let error = Config::load(&flags(&["--config", path.to_str().unwrap()]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`dataDri`") && error.contains("`dataDir`"),
            "{error}"
        );
    }

    #[test]
    fn the_printed_configuration_can_be_read_back() {
        let text = serde_yaml::to_string(&Config::default()).unwrap();
        assert_eq!(serde_yaml::from_str::<Config>(&text).unwrap(), Config::default());
    }
}
