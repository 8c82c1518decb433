//! Batches and listings.

use std::{collections::BTreeSet, time::Duration};

use crate::support::{self, Act, Cluster, Seen, partial};
use dynamo_client::{Builder, Client, Context, Error, ListOptions, PutEntry, ReadOptions, WriteOptions};
use futures::TryStreamExt as _;
use tonic::Status;

fn builder(cluster: &Cluster) -> Builder {
    Client::builder()
        .endpoints(cluster.addresses())
        .attempt_timeout(Duration::from_millis(200))
}

/// For tests in which no node is silent: a busy machine must not make one look so.
fn patient(cluster: &Cluster) -> Builder {
    builder(cluster)
        .attempt_timeout(Duration::from_secs(20))
        .deadline(Duration::from_mins(1))
}

fn entries(count: usize) -> Vec<PutEntry> {
    (0..count)
        .map(|index| PutEntry::new(format!("key-{index:04}"), format!("value-{index}")))
        .collect()
}

#[tokio::test]
async fn d13_each_key_has_its_own_result_in_order_and_fails_alone() {
    let cluster = Cluster::start(6).await;
    let client = patient(&cluster).connect().await.unwrap();
    let mut batch = entries(900);
    batch[450] = PutEntry::new("", "no key");
    batch[451].context = Context::from_bytes("damaged");
    let written = client.batch_put(batch, &WriteOptions::default()).await;
    assert_eq!(written.len(), 900);
    for (index, result) in written.iter().enumerate() {
        match index {
            450 | 451 => assert!(matches!(result, Err(Error::InvalidArgument { .. })), "{result:?}"),
            _ => assert_eq!(result.as_ref().unwrap().info.hops, 0),
        }
    }
    let mut keys: Vec<_> = entries(900).into_iter().map(|entry| entry.key).collect();
    keys.push("absent".into());
    let found = client.batch_get(&keys, &ReadOptions::default()).await;
    for (index, result) in found.iter().enumerate() {
        match index {
            450 | 451 | 900 => assert!(matches!(result, Err(Error::NotFound { .. })), "{result:?}"),
            _ => assert_eq!(
                result.as_ref().unwrap().single().unwrap(),
                &format!("value-{index}")
            ),
        }
    }
    let sizes = cluster
        .nodes
        .iter()
        .flat_map(support::FakeNode::seen)
        .filter_map(|seen| match seen {
            Seen::BatchGet(size) | Seen::BatchPut(size) => Some(size),
            _ => None,
        });
    assert!(sizes.into_iter().all(|size| size <= 100));
}

#[tokio::test]
async fn what_fails_is_retried_elsewhere_and_counts_once() {
    let cluster = Cluster::start(3).await;
    let client = builder(&cluster).connect().await.unwrap();
    cluster.nodes[0].script([Act::ServeThen(partial(1))]);
    cluster.nodes[1].script([Act::ServeAndHang]);
    let results = client.batch_put(entries(60), &WriteOptions::default()).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let data = cluster.state.data.lock().unwrap();
    assert_eq!((data.len(), data.values().map(Vec::len).max()), (60, Some(1)));
}

#[tokio::test]
async fn a_batch_ends_at_its_deadline() {
    let cluster = Cluster::start(3).await;
    let client = builder(&cluster).connect().await.unwrap();
    cluster.nodes.iter().for_each(|node| node.freeze(true));
    let begin = std::time::Instant::now();
    let options = ReadOptions {
        deadline: Some(Duration::from_millis(300)),
        ..ReadOptions::default()
    };
    let results = client.batch_get(["a", "b"], &options).await;
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert!(
        results
            .iter()
            .all(|result| matches!(result, Err(Error::DeadlineExceeded { .. })))
    );
}

#[tokio::test]
async fn an_answer_too_large_for_one_message_is_fetched_key_by_key() {
    let cluster = Cluster::start(3).await;
    let client = patient(&cluster)
        .message_bytes_max(1 << 20, 64 << 10)
        .connect()
        .await
        .unwrap();
    let batch: Vec<_> = (0..20)
        .map(|index| PutEntry::new(format!("k{index}"), vec![1; 30 << 10]))
        .collect();
    assert!(
        client
            .batch_put(batch, &WriteOptions::default())
            .await
            .iter()
            .all(Result::is_ok)
    );
    let keys: Vec<_> = (0..20).map(|index| format!("k{index}")).collect();
    let found = client.batch_get(&keys, &ReadOptions::default()).await;
    assert!(
        found
            .iter()
            .all(|result| result.as_ref().unwrap().single().unwrap().len() == 30 << 10)
    );
    // One key that is too large alone is an error of its own.
    for _ in 0..3 {
        client
            .put("k0", vec![2; 30 << 10], &Context::none())
            .await
            .unwrap();
    }
    let found = client.batch_get(&keys, &ReadOptions::default()).await;
    assert!(
        matches!(found[0], Err(Error::ResourceExhausted { .. })),
        "{:?}",
        found[0]
    );
    assert!(found[1..].iter().all(Result::is_ok));
}

#[tokio::test]
async fn d14_a_listing_goes_on_at_another_node_without_a_gap_or_a_repetition() {
    let cluster = Cluster::start(3).await;
    let client = patient(&cluster).connect().await.unwrap();
    client.batch_put(entries(250), &WriteOptions::default()).await;
    client.put("other", "v", &Context::none()).await.unwrap();
    for node in &cluster.nodes {
        node.script([Act::Fail(Status::unavailable("torn"))]);
    }
    let options = ListOptions {
        prefix: "key-".into(),
        page_size: 100,
        ..ListOptions::default()
    };
    let pages: Vec<_> = client.list_pages(options.clone()).try_collect().await.unwrap();
    let keys: Vec<_> = pages.iter().flat_map(|page| page.keys.clone()).collect();
    let expected: Vec<_> = entries(250).into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, expected);
    let tokens = cluster
        .nodes
        .iter()
        .flat_map(support::FakeNode::seen)
        .filter_map(|seen| match seen {
            Seen::ListKeys { token } => Some(token),
            _ => None,
        });
    assert_eq!(
        tokens.collect::<BTreeSet<_>>(),
        ["", "key-0099", "key-0199"].map(String::from).into()
    );
    // A limit, and going on by token.
    let limited = ListOptions {
        limit: 150,
        ..options.clone()
    };
    let pages: Vec<_> = client.list_pages(limited).try_collect().await.unwrap();
    assert_eq!(pages.iter().map(|page| page.keys.len()).sum::<usize>(), 150);
    let rest = ListOptions {
        page_token: "key-0199".into(),
        ..options
    };
    let pages: Vec<_> = client.list_pages(rest).try_collect().await.unwrap();
    assert_eq!(pages.iter().map(|page| page.keys.len()).sum::<usize>(), 50);
    let all: Vec<_> = client.list_keys("").try_collect().await.unwrap();
    assert_eq!(all.len(), 251);
    let none: Vec<_> = client.list_keys("zzz").try_collect().await.unwrap();
    assert!(none.is_empty());
}
