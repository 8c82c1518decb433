//! What a node runs on: sockets and stores. [`Machine`] is the one under this process; tests may have a simulated one.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::serve::{Listener, ListenerExt as _, TapIo};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint};

use crate::{
    config::{Config, DurabilityMode},
    storage::{
        RocksStore, Store,
        buffered::BufferedStore,
        rocks::RocksOptions,
        set_aside::{self, Part},
    },
};

/// RocksDB's block cache for hints, which are mostly read once, in order.
const HINT_CACHE_BYTES: usize = 4 << 20;
/// The least that any cache or buffer of the data gets, however small the memory is.
const CACHE_BYTES_MIN: usize = 8 << 20;
/// RocksDB's write buffers for hints.
const HINT_BUFFER_BYTES: usize = 8 << 20;

/// Where sockets and stores come from.
pub trait Host: Send + Sync + 'static {
    /// A listening socket.
    type Listener: Listener<Addr = SocketAddr>;

    /// Listens on an address.
    fn listen(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Listener>> + Send;

    /// A channel that connects when it is first used, and again whenever it has to.
    fn connect(&self, endpoint: Endpoint) -> Channel;

    /// Opens what the node keeps.
    fn open(&self, config: &Config) -> impl Future<Output = anyhow::Result<Stores>> + Send;
}

/// What a node keeps: its own data, and hints for others.
pub struct Stores {
    /// Records of which it is a primary.
    pub data: Arc<dyn Store>,
    /// Records that it keeps for others.
    pub hints: Arc<dyn Store>,
}

/// The computer that this process runs on.
pub struct Machine;

impl Host for Machine {
    type Listener = TapIo<TcpListener, fn(&mut TcpStream)>;

    async fn listen(&self, address: SocketAddr) -> io::Result<Self::Listener> {
        let listener = TcpListener::bind(address).await?;
        Ok(listener.tap_io(without_delay as fn(&mut TcpStream)))
    }

    fn connect(&self, endpoint: Endpoint) -> Channel {
        endpoint.connect_lazy()
    }

    async fn open(&self, config: &Config) -> anyhow::Result<Stores> {
        let config = config.clone();
        tokio::task::spawn_blocking(move || open(&config)).await?
    }
}

/// Small messages must not wait for the acknowledgement of earlier ones.
fn without_delay(stream: &mut TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
}

/// So many bytes, but never more than that part of the memory that the process may use.
fn within_memory(bytes: usize, max: Option<u64>, part: u64) -> usize {
    let share = max.map_or(usize::MAX, |max| {
        usize::try_from(max / part).unwrap_or(usize::MAX)
    });
    bytes.min(share.max(CACHE_BYTES_MIN))
}

/// What the process's control group may use, as a container's limit; none without one.
fn memory_max() -> Option<u64> {
    let files = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let text = files.iter().find_map(|file| std::fs::read_to_string(file).ok())?;
    text.trim().parse().ok()
}

fn open(config: &Config) -> anyhow::Result<Stores> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot create the data directory {}", config.data_dir.display()))?;
    Ok(Stores {
        data: open_part(config, Part::Data)?,
        hints: open_part(config, Part::Hints)?,
    })
}

fn open_part(config: &Config, part: Part) -> anyhow::Result<Arc<dyn Store>> {
    let options = match part {
        Part::Data => RocksOptions {
            block_cache_bytes: within_memory(config.limits.block_cache_bytes, memory_max(), 4),
            write_buffer_bytes: within_memory(RocksOptions::default().write_buffer_bytes, memory_max(), 8),
            ..RocksOptions::default()
        },
        Part::Hints => RocksOptions {
            block_cache_bytes: HINT_CACHE_BYTES,
            write_buffer_bytes: HINT_BUFFER_BYTES,
            ..RocksOptions::default()
        },
    };
    let (store, aside) = set_aside::open(&config.data_dir, part, options)?;
    if let Some(aside) = aside {
        tracing::error!(
            ?part,
            path = %aside.path.display(),
            because = aside.because,
            carried = ?aside.carried,
            "the store was set aside; going on with an empty one"
        );
    }
    Ok(buffered(store, config))
}

fn buffered(store: RocksStore, config: &Config) -> Arc<dyn Store> {
    match config.durability.mode {
        DurabilityMode::Buffered => Arc::new(BufferedStore::new(store, config.durability.buffer_bytes_max)),
        _ => Arc::new(store),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_leave_room_in_a_small_memory() {
        let (mib, wanted) = (1 << 20, 128 << 20);
        assert_eq!(within_memory(wanted, None, 4), wanted);
        assert_eq!(within_memory(wanted, Some(1 << 30), 4), wanted);
        assert_eq!(within_memory(wanted, Some(256 << 20), 4), 64 * mib);
        assert_eq!(within_memory(wanted, Some(16 << 20), 4), 8 * mib);
    }
}
