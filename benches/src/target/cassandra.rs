//! Cassandra over CQL: prepared statements, sent to a replica of their key.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use scylla::{
    client::{execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    policies::host_filter::{AllowListHostFilter, HostFilter},
    statement::{Consistency, prepared::PreparedStatement},
};

use crate::system::Target;

/// Longer than the server waits for its replicas.
const REQUEST: Duration = Duration::from_secs(15);

struct Cassandra {
    session: Session,
    insert: PreparedStatement,
    select: PreparedStatement,
}

pub(crate) async fn connect(hosts: Vec<String>) -> Result<Arc<dyn Target>> {
    let session = session(&hosts, None).await?;
    for statement in schema(hosts.len()) {
        session
            .query_unpaged(statement.as_str(), ())
            .await
            .with_context(|| format!("run {statement}"))?;
    }
    prepare(session).await
}

/// Of one node, once the others have made the table: none of them is asked, whatever the driver learns of them.
pub(crate) async fn connect_to(host: String) -> Result<Arc<dyn Target>> {
    let alone = AllowListHostFilter::new([&host]).with_context(|| format!("{host} is no address"))?;
    let session = session(&[host], Some(Arc::new(alone))).await?;
    prepare(session).await
}

async fn prepare(session: Session) -> Result<Arc<dyn Target>> {
    let insert = session
        .prepare("INSERT INTO kvbench.kv (key, value) VALUES (?, ?)")
        .await
        .context("prepare a put")?;
    let mut select = session
        .prepare("SELECT value FROM kvbench.kv WHERE key = ?")
        .await
        .context("prepare a get")?;
    // The server need not describe the same column again in each answer.
    select.set_use_cached_result_metadata(true);
    Ok(Arc::new(Cassandra {
        session,
        insert,
        select,
    }))
}

/// How many nodes a node knows, itself included; None if it does not answer.
pub(crate) async fn members(host: String) -> Option<usize> {
    let session = session(&[host], None).await.ok()?;
    Some(session.get_cluster_state().get_nodes_info().len())
}

async fn session(hosts: &[String], filter: Option<Arc<dyn HostFilter>>) -> Result<Session> {
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::Quorum)
        .request_timeout(Some(REQUEST))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(hosts)
        .default_execution_profile_handle(profile.into_handle());
    builder.config.host_filter = filter;
    builder
        .build()
        .await
        .with_context(|| format!("connect to Cassandra at {}", hosts.join(", ")))
}

/// Values are random bytes, so compressing them would be work for nothing.
fn schema(nodes: usize) -> [String; 2] {
    let factor = nodes.min(3);
    [
        format!(
            "CREATE KEYSPACE IF NOT EXISTS kvbench WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': {factor}}}"
        ),
        "CREATE TABLE IF NOT EXISTS kvbench.kv (key blob PRIMARY KEY, value blob) WITH compression = {'enabled': 'false'}"
            .to_owned(),
    ]
}

impl Target for Cassandra {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.session.execute_unpaged(&self.insert, (key, value)).await?;
            Ok(())
        })
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            let rows = self
                .session
                .execute_unpaged(&self.select, (key,))
                .await?
                .into_rows_result()?;
            Ok(rows.maybe_first_row::<(Bytes,)>()?.map(|(value,)| value))
        })
    }
}
