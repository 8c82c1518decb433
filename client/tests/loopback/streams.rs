//! Requests of one key to one node share a stream.

use crate::support::{self, Cluster, Seen};
use dynamo_client::{Client, Context};
use futures::future::join_all;

async fn client(cluster: &Cluster) -> Client {
    let builder = Client::builder().endpoints(cluster.addresses());
    builder.connect().await.unwrap()
}

fn puts(cluster: &Cluster) -> usize {
    let seen = cluster.nodes.iter().flat_map(support::FakeNode::seen);
    seen.filter(|seen| matches!(seen, Seen::Put { .. })).count()
}

#[tokio::test]
async fn many_requests_to_a_node_share_one_stream() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster).await;
    let keys: Vec<String> = (0..200).map(|key| format!("key-{key}")).collect();
    let put = |key: &String| {
        let (client, key) = (client.clone(), key.clone());
        async move { client.put(&key, key.clone(), &Context::none()).await }
    };
    for written in join_all(keys.iter().map(put)).await {
        written.unwrap();
    }
    for key in &keys {
        let found = client.get(key).await.unwrap();
        assert_eq!(found.values().next().unwrap(), key.as_bytes());
    }
    assert_eq!((cluster.nodes[0].streams(), puts(&cluster)), (1, 200));
}

#[tokio::test]
async fn a_large_value_has_a_call_of_its_own() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster).await;
    let value = vec![7; 100_000];
    client
        .put("large", value.clone(), &Context::none())
        .await
        .unwrap();
    assert_eq!((cluster.nodes[0].streams(), puts(&cluster)), (0, 1));
    let found = client.get("large").await.unwrap();
    assert_eq!(found.values().next().unwrap(), &value);
    assert_eq!(cluster.nodes[0].streams(), 1);
}

#[tokio::test]
async fn a_node_of_a_release_without_streams_is_called() {
    let cluster = Cluster::start(1).await;
    cluster.nodes[0].older();
    let client = client(&cluster).await;
    for round in 0..10 {
        let key = format!("key-{round}");
        client.put(&key, "value", &Context::none()).await.unwrap();
        client.get(&key).await.unwrap();
    }
    assert_eq!((cluster.nodes[0].streams(), puts(&cluster)), (1, 10));
}
