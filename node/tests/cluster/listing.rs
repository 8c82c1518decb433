//! ListKeys (D14).

use std::collections::BTreeSet;

use bytes::Bytes;
use dynamo_proto::v1;
use tonic::Code;

use crate::harness::{Cluster, Shape, count, put};

async fn list(
    cluster: &Cluster,
    request: v1::ListKeysRequest,
) -> (Vec<v1::ListKeysResponse>, Option<tonic::Status>) {
    let mut stream = cluster.kv(0).list_keys(request).await.unwrap().into_inner();
    let mut pages = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(page)) => pages.push(page),
            Ok(None) => return (pages, None),
            Err(status) => return (pages, Some(status)),
        }
    }
}

fn keys(pages: &[v1::ListKeysResponse]) -> Vec<Bytes> {
    pages.iter().flat_map(|page| page.keys.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn d14_every_live_key_once_no_tombstone_by_prefix_and_bucket_and_page() {
    let mut cluster = Cluster::start(Shape::new(4, 2)).await;
    let mut kv = cluster.kv(0);
    let mut wanted = BTreeSet::new();
    for number in 0..500 {
        let key = format!("a-{number}");
        let context = kv
            .put(put(&key, "value", &Bytes::new()))
            .await
            .unwrap()
            .into_inner()
            .context;
        if number % 5 == 0 {
            // W=1 leaves the tombstone on one replica for a moment; the others must not bring the key back.
            let delete = v1::DeleteRequest {
                key: key.clone().into(),
                context,
                w: count(2),
                ..v1::DeleteRequest::default()
            };
            kv.delete(delete).await.unwrap();
        } else {
            wanted.insert(Bytes::from(key));
        }
        kv.put(put(&format!("b-{number}"), "value", &Bytes::new()))
            .await
            .unwrap();
        kv.put(v1::PutRequest {
            bucket: "second".into(),
            ..put(&format!("a-{number}"), "value", &Bytes::new())
        })
        .await
        .unwrap();
    }
    let request = v1::ListKeysRequest {
        prefix: "a-".into(),
        page_size: 64,
        ..v1::ListKeysRequest::default()
    };
    let (pages, end) = list(&cluster, request.clone()).await;
    assert!(end.is_none());
    let listed = keys(&pages);
    assert_eq!(listed.len(), wanted.len(), "each key once");
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), wanted);
    let (last, full) = pages.split_last().unwrap();
    assert!(
        full.iter()
            .all(|page| page.keys.len() == 64 && !page.next_page_token.is_empty())
    );
    assert!(last.next_page_token.is_empty(), "the listing is complete");

    // Going on from any page gives the rest; a limit ends it with a token.
    let token = pages[2].next_page_token.clone();
    let (rest, _) = list(
        &cluster,
        v1::ListKeysRequest {
            page_token: token,
            ..request.clone()
        },
    )
    .await;
    assert_eq!(keys(&rest), listed[3 * 64..]);
    let (some, _) = list(
        &cluster,
        v1::ListKeysRequest {
            limit: 100,
            ..request.clone()
        },
    )
    .await;
    assert_eq!(keys(&some), listed[..100]);
    let token = some.last().unwrap().next_page_token.clone();
    let (rest, _) = list(
        &cluster,
        v1::ListKeysRequest {
            page_token: token,
            ..request.clone()
        },
    )
    .await;
    assert_eq!(keys(&rest), listed[100..]);

    let (all, _) = list(
        &cluster,
        v1::ListKeysRequest {
            bucket: "second".into(),
            ..v1::ListKeysRequest::default()
        },
    )
    .await;
    assert_eq!(keys(&all).len(), 500);

    // One of four nodes down: still complete, from the others.
    cluster.stop_node(3).await;
    let (pages, end) = list(&cluster, request).await;
    assert!(end.is_none(), "{end:?}");
    assert_eq!(keys(&pages).into_iter().collect::<BTreeSet<_>>(), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_cannot_be_complete_says_so() {
    let mut cluster = Cluster::start(Shape::new(3, 0)).await;
    cluster
        .kv(0)
        .put(put("key", "value", &Bytes::new()))
        .await
        .unwrap();
    cluster.stop_node(1).await;
    cluster.stop_node(2).await;
    let (_, end) = list(&cluster, v1::ListKeysRequest::default()).await;
    assert_eq!(end.unwrap().code(), Code::Unavailable);
    let bad = v1::ListKeysRequest {
        page_token: Bytes::from_static(b"nonsense"),
        ..v1::ListKeysRequest::default()
    };
    assert_eq!(
        cluster.kv(0).list_keys(bad).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}
