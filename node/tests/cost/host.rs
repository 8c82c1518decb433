//! This computer, but with writers that work where they are asked: a thread of its own would answer sooner or later, together
//! with other things or alone, and what that allocates would depend on it. Everything else is as users have it.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use dynamo_node::{
    Config, Host, Machine, Stores,
    storage::{
        Batch, Cached, Estimate, Health, KeyRange, Page, Run, ScanLimit, Space, Store, StoreCounters,
        StoreError,
    },
};
use tonic::transport::{Channel, Endpoint};

pub(crate) struct InLine;

impl Host for InLine {
    type Listener = <Machine as Host>::Listener;

    async fn listen(&self, address: SocketAddr) -> io::Result<Self::Listener> {
        Machine.listen(address).await
    }

    fn connect(&self, endpoint: Endpoint) -> Channel {
        Machine.connect(endpoint)
    }

    async fn open(&self, config: &Config) -> anyhow::Result<Stores> {
        let Stores { data, hints } = Machine.open(config).await?;
        Ok(Stores {
            data: Arc::new(InLineStore(data)),
            hints: Arc::new(InLineStore(hints)),
        })
    }
}

/// RocksDB, said to be one that never waits.
struct InLineStore(Arc<dyn Store>);

impl Store for InLineStore {
    fn blocks(&self) -> bool {
        false
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.get(space, key)
    }

    fn get_cached(&self, space: Space, key: &[u8]) -> Result<Cached, StoreError> {
        self.0.get_cached(space, key)
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        self.0.write(batch, sync)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.0.sync()
    }

    fn scan(&self, space: Space, range: KeyRange<'_>, limit: ScanLimit) -> Result<Page, StoreError> {
        self.0.scan(space, range, limit)
    }

    fn write_run(
        &self,
        records: &mut dyn Iterator<Item = (Bytes, Bytes)>,
    ) -> Result<Option<Run>, StoreError> {
        self.0.write_run(records)
    }

    fn take_in(&self, run: &Run) -> Result<Option<Vec<Bytes>>, StoreError> {
        self.0.take_in(run)
    }

    fn estimate(&self) -> Result<Estimate, StoreError> {
        self.0.estimate()
    }

    fn counters(&self) -> StoreCounters {
        self.0.counters()
    }

    fn health(&self) -> Result<Health, StoreError> {
        self.0.health()
    }

    fn sequence(&self) -> u64 {
        self.0.sequence()
    }
}
