//! What a client can be told, with its defaults and their reasons.

use std::time::Duration;

use dynamo_core::types::Zone;
use tonic::transport::Endpoint;

use crate::{client::Client, error::Error};

/// One operation with all its retries. A zone that drops packets costs one attempt; three more fit in.
const DEADLINE: Duration = Duration::from_secs(2);
/// One attempt: far above a healthy p99.9, and a quarter of the deadline.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);
/// Making a connection, so that a node that drops packets is not waited for longer than for an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// HTTP/2 pings, also on idle channels: without them a channel over a healed split never recovers. A dead connection
/// is closed after interval plus timeout, 3 s; requests do not wait for that, since a node that does not answer is put
/// aside at once. A shorter interval would only cost idle traffic: 17 bytes per node and interval.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Paper: §6.4, the client polls a random node every 10 seconds.
const RING_REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// Nodes that are put aside are asked again so often (as nodes do with each other).
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A second node for so many of a hundred reads, at most: enough for the one of twenty that takes unusually long.
const HEDGE_PERCENT: u32 = 5;
/// A batch of values, or a value of a cluster that allows more than 1 MiB.
const SEND_BYTES_MAX: usize = 16 << 20;
/// A key with many large siblings.
const RECEIVE_BYTES_MAX: usize = 64 << 20;
/// Open connections; beyond, the one used longest ago is closed.
const CHANNELS_MAX: usize = 1024;

/// Who merges the answers of a key's replicas when it is read. Paper: §6.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Coordination {
    /// A node: one of the key's replicas if the ring is known. The default: one message instead of N, it works behind
    /// a Service or a port-forward, and only nodes repair the replicas that a read finds stale (§5, read repair).
    #[default]
    Server,
    /// This client: it asks the key's replicas itself, which saves one trip between nodes. What it cannot decide (the
    /// ring has changed, too few replicas answer, the bucket does not allow it) it hands over to a node.
    ///
    /// Times to live are judged by this machine's clock. Batches and listings are always coordinated by nodes.
    Client,
}

/// Collects what a [`Client`] needs. Only endpoints are required.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(crate) endpoints: Vec<String>,
    pub(crate) zone: Option<String>,
    pub(crate) settings: Settings,
}

/// The numbers, with their defaults.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) deadline: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) keepalive_interval: Duration,
    pub(crate) keepalive_timeout: Duration,
    pub(crate) ring_refresh_interval: Duration,
    pub(crate) probe_interval: Duration,
    pub(crate) ring_aware: bool,
    pub(crate) coordination: Coordination,
    pub(crate) hedge_percent: u32,
    pub(crate) send_bytes_max: usize,
    pub(crate) receive_bytes_max: usize,
    pub(crate) channels_max: usize,
}

impl Default for Builder {
    fn default() -> Self {
        let settings = Settings {
            deadline: DEADLINE,
            attempt_timeout: ATTEMPT_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            ring_refresh_interval: RING_REFRESH_INTERVAL,
            probe_interval: PROBE_INTERVAL,
            ring_aware: true,
            coordination: Coordination::default(),
            hedge_percent: HEDGE_PERCENT,
            send_bytes_max: SEND_BYTES_MAX,
            receive_bytes_max: RECEIVE_BYTES_MAX,
            channels_max: CHANNELS_MAX,
        };
        Self {
            endpoints: Vec::new(),
            zone: None,
            settings,
        }
    }
}

impl Builder {
    /// Adds `host:port` (or `http://host:port`) of any node, or of a Service before the nodes.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Adds several endpoints.
    #[must_use]
    pub fn endpoints<T: Into<String>>(mut self, endpoints: impl IntoIterator<Item = T>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// The zone that this client runs in: replicas there are asked first.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// For one operation with all its retries (2 s). A batch is one operation; a listing has it per page.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// For one attempt (500 ms); never longer than what is left of the deadline.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.settings.attempt_timeout = timeout;
        self
    }

    /// For making a connection (500 ms).
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// HTTP/2 pings on every channel, also idle ones (every 2 s), and how long their answer may take (1 s).
    #[must_use]
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.settings.keepalive_interval = interval;
        self.settings.keepalive_timeout = timeout;
        self
    }

    /// How often the ring is asked for (10 s); a reply from a newer ring causes it at once.
    #[must_use]
    pub fn ring_refresh_interval(mut self, interval: Duration) -> Self {
        self.settings.ring_refresh_interval = interval;
        self
    }

    /// How often a node that was put aside is asked whether it answers again (1 s).
    #[must_use]
    pub fn probe_interval(mut self, interval: Duration) -> Self {
        self.settings.probe_interval = interval;
        self
    }

    /// Whether to keep the ring and send to replicas (true). Without, only the endpoints are used: right for single
    /// requests, and where the nodes' own addresses cannot be reached, as behind a port-forward.
    #[must_use]
    pub fn ring_aware(mut self, ring_aware: bool) -> Self {
        self.settings.ring_aware = ring_aware;
        self
    }

    /// Who coordinates reads (a node). Writes always go to a node of the key's preference list. Without a ring there is
    /// only [`Coordination::Server`].
    #[must_use]
    pub fn coordination(mut self, coordination: Coordination) -> Self {
        self.settings.coordination = coordination;
        self
    }

    /// For how many of a hundred reads a second node may be asked when the first takes longer than it usually does (5; 0
    /// for never; at most 100). The first answer counts.
    #[must_use]
    pub fn hedge_percent(mut self, percent: u32) -> Self {
        self.settings.hedge_percent = percent;
        self
    }

    /// Largest messages to send (16 MiB) and to receive (64 MiB).
    #[must_use]
    pub fn message_bytes_max(mut self, send: usize, receive: usize) -> Self {
        self.settings.send_bytes_max = send;
        self.settings.receive_bytes_max = receive;
        self
    }

    /// Open connections at most (1024), one per node.
    #[must_use]
    pub fn channels_max(mut self, channels_max: usize) -> Self {
        self.settings.channels_max = channels_max;
        self
    }

    /// Makes the client without asking any node. Needs a running tokio runtime.
    ///
    /// # Errors
    /// [`Error::Configuration`] for a missing or malformed endpoint, a bad zone, or a zero among the times and limits.
    pub fn build(self) -> Result<Client, Error> {
        self.check()?;
        Client::new(self)
    }

    /// Makes the client and fetches the ring, so that a wrong endpoint is noticed now.
    ///
    /// # Errors
    /// As [`Builder::build`]; [`Error::Unavailable`] or [`Error::DeadlineExceeded`] if no endpoint answers in time.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.build()?;
        client.refresh_ring().await?;
        Ok(client)
    }

    fn check(&self) -> Result<(), Error> {
        let invalid = |message: String| Err(Error::Configuration(message));
        if self.endpoints.is_empty() {
            return invalid("no endpoint is given: name host:port of at least one node".to_owned());
        }
        for endpoint in &self.endpoints {
            check_address(endpoint)?;
        }
        if let Some(zone) = &self.zone
            && let Err(error) = Zone::new(zone.clone())
        {
            return invalid(error.to_string());
        }
        let times = [
            ("deadline", self.settings.deadline),
            ("attempt timeout", self.settings.attempt_timeout),
            ("connect timeout", self.settings.connect_timeout),
            ("keepalive interval", self.settings.keepalive_interval),
            ("keepalive timeout", self.settings.keepalive_timeout),
            ("ring refresh interval", self.settings.ring_refresh_interval),
            ("probe interval", self.settings.probe_interval),
        ];
        match times.iter().find(|(_, time)| time.is_zero()) {
            Some((name, _)) => invalid(format!("the {name} is zero")),
            None if self.settings.hedge_percent > 100 => invalid(format!(
                "hedge_percent is {}, more than 100",
                self.settings.hedge_percent
            )),
            None if self.settings.channels_max == 0 => invalid("channels_max is zero".to_owned()),
            None if self.settings.coordination == Coordination::Client && !self.settings.ring_aware => {
                invalid("a client that coordinates reads needs the ring".to_owned())
            }
            None => Ok(()),
        }
    }
}

impl Settings {
    /// How every channel is set up.
    pub(crate) fn endpoint(&self, address: &str) -> Result<Endpoint, Error> {
        let uri = format!("http://{address}");
        let endpoint = Endpoint::from_shared(uri).map_err(|error| malformed(address, &error.to_string()))?;
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true))
    }
}

/// The `host:port` of an endpoint.
pub(crate) fn check_address(endpoint: &str) -> Result<&str, Error> {
    let address = endpoint
        .strip_prefix("http://")
        .unwrap_or(endpoint)
        .trim_end_matches('/');
    if address.contains("://") {
        return Err(malformed(endpoint, "only http:// is spoken"));
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(malformed(endpoint, "the port is missing, as in 127.0.0.1:7700"));
    };
    if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
        return Err(malformed(endpoint, "it is not host:port"));
    }
    Ok(address)
}

fn malformed(endpoint: &str, why: &str) -> Error {
    Error::Configuration(format!("endpoint {endpoint:?} cannot be used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:7700", "http://n1.example:7700/", "[::1]:7700"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "localhost",
            "localhost:",
            ":7700",
            "https://x:1",
            "a/b:1",
            "x:99999",
        ] {
            let error = check_address(bad).unwrap_err();
            assert!(matches!(error, Error::Configuration(_)), "{bad}");
        }
        assert_eq!(check_address("http://x:1/").unwrap(), "x:1");
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let refused = [
            Builder::default(),
            Builder::default().endpoint("x"),
            Builder::default().endpoint("x:1").zone("a b"),
            Builder::default().endpoint("x:1").deadline(Duration::ZERO),
            Builder::default().endpoint("x:1").channels_max(0),
            Builder::default().endpoint("x:1").hedge_percent(101),
            Builder::default()
                .endpoint("x:1")
                .ring_aware(false)
                .coordination(Coordination::Client),
        ];
        for builder in refused {
            assert!(matches!(builder.build(), Err(Error::Configuration(_))));
        }
    }
}
