//! What a client does about a node that is slow and not dead.

use std::time::Duration;

use crate::support::{Act, Cluster};
use dynamo_client::{Client, Context};

/// Reads by which a client knows how long a node usually takes.
const READS: usize = 32;

/// A client that has read a key of n0 so often; only a second node can save it from one that is silent.
async fn client_after(reads: usize, cluster: &Cluster, hedge_percent: u32) -> (Client, String) {
    let client = Client::builder()
        .endpoints(cluster.addresses())
        .attempt_timeout(Duration::from_secs(20))
        .deadline(Duration::from_mins(1))
        .hedge_percent(hedge_percent)
        .connect()
        .await
        .unwrap();
    let key = cluster.key_at(0);
    client.put(&key, "v", &Context::none()).await.unwrap();
    for _ in 0..reads {
        client.get(&key).await.unwrap();
    }
    (client, key)
}

async fn client_that_knows_n0(cluster: &Cluster, hedge_percent: u32) -> (Client, String) {
    client_after(READS, cluster, hedge_percent).await
}

/// A pause of a node's process, for instance: what has been saved up is enough for them all.
#[tokio::test]
async fn d71_many_reads_of_a_node_that_stands_still_get_a_second_node_at_once() {
    const TOGETHER: usize = 40;
    let cluster = Cluster::start(3).await;
    let (client, key) = client_after(400, &cluster, 25).await;
    cluster.nodes[0].script((0..TOGETHER).map(|_| Act::Hang));
    let reads = (0..TOGETHER).map(|_| client.get(&key));
    // An attempt takes longer than that.
    let all = tokio::time::timeout(Duration::from_secs(10), futures::future::join_all(reads)).await;
    assert!(all.unwrap().into_iter().all(|read| read.is_ok()));
}

#[tokio::test]
async fn d71_a_read_that_takes_unusually_long_gets_a_second_node_and_the_first_is_not_put_aside() {
    let cluster = Cluster::start(3).await;
    let (client, key) = client_that_knows_n0(&cluster, 100).await;
    let second = cluster.primaries(&key)[1];
    cluster.nodes[0].script([Act::Hang]);
    let found = client.get(&key).await.unwrap();
    assert_eq!(found.info.coordinator, format!("n{second}"));
    assert!(client.stats().hedged >= 1);
    // It is asked first again.
    let before = cluster.nodes[0].data_requests().len();
    client.get(&key).await.unwrap();
    assert_eq!(cluster.nodes[0].data_requests().len(), before + 1);
}

#[tokio::test]
async fn without_a_budget_a_slow_node_is_waited_for() {
    let cluster = Cluster::start(3).await;
    let (client, key) = client_that_knows_n0(&cluster, 0).await;
    cluster.nodes[0].script([Act::Hang]);
    let read = client.get(&key);
    // Far longer than any read before it.
    let waited = tokio::time::timeout(Duration::from_millis(300), read).await;
    assert!(waited.is_err());
    assert_eq!(client.stats().hedged, 0);
}

#[tokio::test]
async fn writes_are_never_hedged() {
    let cluster = Cluster::start(3).await;
    let (client, key) = client_that_knows_n0(&cluster, 100).await;
    let hedged = client.stats().hedged;
    cluster.nodes[0].script([Act::Hang]);
    let context = Context::none();
    let put = client.put(&key, "w", &context);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), put)
            .await
            .is_err()
    );
    assert_eq!(client.stats().hedged, hedged);
}
