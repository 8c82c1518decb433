//! Updates of data types, the choices of a put, and resolution under concurrency. Paper: §4.4.

use std::time::Duration;

use crate::support::{self, Act, Cluster, Seen, not_applied};
use dynamo_client::{Client, Context, Error, MapUpdate, Replicas, Typed, WriteOptions};
use tonic::Code;

async fn client(cluster: &Cluster) -> Client {
    Client::builder()
        .endpoints(cluster.addresses())
        .attempt_timeout(Duration::from_millis(300))
        .deadline(Duration::from_mins(1))
        .connect()
        .await
        .unwrap()
}

async fn typed(client: &Client, bucket: &str, key: &str) -> Typed {
    client.with_bucket(bucket).get(key).await.unwrap().typed.unwrap()
}

fn siblings(cluster: &Cluster) -> usize {
    cluster.state.data.lock().unwrap().values().map(Vec::len).sum()
}

#[tokio::test]
async fn d53_an_increment_whose_answer_is_lost_is_retried_with_its_op_id_and_counts_once() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    for node in &cluster.nodes {
        node.script([Act::ServeAndHang]);
    }
    let written = client.update("likes", "page").increment(2).await.unwrap();
    assert_eq!((written.acks, written.zones), (2, 2));
    let ids: Vec<_> = cluster.nodes.iter().flat_map(support::FakeNode::op_ids).collect();
    assert!(
        ids.len() == 4 && ids.iter().all(|id| *id == ids[0] && id.len() == 16),
        "{ids:?}"
    );
    client.update("likes", "page").increment(-1).await.unwrap();
    assert_eq!(typed(&client, "likes", "page").await, Typed::Counter(1));
    // A caller that repeats one by itself.
    let options = WriteOptions {
        op_id: Some([9; 16]),
        ..WriteOptions::default()
    };
    for _ in 0..3 {
        client
            .update("likes", "page")
            .options(options)
            .increment(10)
            .await
            .unwrap();
    }
    assert_eq!(typed(&client, "likes", "page").await.counter(), Some(11));
}

#[tokio::test]
async fn d54_sets_flags_registers_and_maps() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    client.update("tags", "k").add(["new", "hot"]).await.unwrap();
    let error = client.update("tags", "k").remove(["hot"]).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
    assert_eq!(error.reason(), "CONTEXT_REQUIRED");
    let found = client.with_bucket("tags").get("k").await.unwrap();
    assert!(found.versions.is_empty());
    let update = client.update("tags", "k").context(&found.context);
    update.set(["old"], ["hot"]).await.unwrap();
    assert_eq!(typed(&client, "tags", "k").await.set().unwrap(), ["new", "old"]);
    client.update("flags", "k").enable().await.unwrap();
    assert_eq!(typed(&client, "flags", "k").await.flag(), Some(true));
    client
        .update("flags", "k")
        .context(&found.context)
        .disable()
        .await
        .unwrap();
    assert_eq!(typed(&client, "flags", "k").await.flag(), Some(false));
    client.update("words", "k").register("carpe diem").await.unwrap();
    assert_eq!(
        typed(&client, "words", "k").await.register().unwrap(),
        "carpe diem"
    );
    let none: [&str; 0] = [];
    let update = MapUpdate::new()
        .increment("visits", 3)
        .set("tags", ["a"], none)
        .flag("mail", true)
        .register("name", "Alice");
    client.update("users", "k").map(update).await.unwrap();
    let map = typed(&client, "users", "k").await;
    assert_eq!(map.field("visits"), Some(&Typed::Counter(3)));
    assert_eq!(map.field("tags").and_then(Typed::set), Some(&["a".into()][..]));
    assert_eq!(map.field("mail"), Some(&Typed::Flag(true)));
    assert_eq!(map.field("name"), Some(&Typed::Register("Alice".into())));
    let update = client.update("users", "k").context(&found.context);
    update.map(MapUpdate::new().remove("visits")).await.unwrap();
    assert_eq!(typed(&client, "users", "k").await.field("visits"), None);
}

#[tokio::test]
async fn d17_d35_a_put_carries_its_time_to_live_and_zones() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    let options = WriteOptions {
        ttl: Some(Duration::from_secs(30)),
        zones: Some(Replicas::Count(2)),
        ..WriteOptions::default()
    };
    let key = cluster.key_at(0);
    client
        .put_with(&key, "v", &Context::none(), &options)
        .await
        .unwrap();
    // Less than a millisecond is not "never".
    let options = WriteOptions {
        ttl: Some(Duration::from_nanos(1)),
        ..WriteOptions::default()
    };
    client
        .put_with(&key, "v", &Context::none(), &options)
        .await
        .unwrap();
    client.put(&key, "v", &Context::none()).await.unwrap();
    let seen = cluster.nodes[0].seen().into_iter();
    let told: Vec<_> = seen
        .filter_map(|seen| match seen {
            Seen::Put { ttl_ms, zones, .. } => Some((ttl_ms, zones.is_some())),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(30_000, true), (1, false), (0, false)]);
}

fn union(siblings: &[bytes::Bytes]) -> String {
    let text = siblings
        .iter()
        .map(|value| String::from_utf8_lossy(value).into_owned());
    let mut items: Vec<String> = text
        .flat_map(|text| text.split('+').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    items.sort();
    items.dedup();
    items.join("+")
}

#[tokio::test]
async fn d47_a_writer_in_between_is_resolved_too() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    let key = cluster.key_at(0);
    client.put(&key, "potato", &Context::none()).await.unwrap();
    client.put(&key, "onion", &Context::none()).await.unwrap();
    // Gets take a turn of the script as well: get, put, get, put.
    cluster.nodes[0].script([
        Act::PutFirst("not for a get".into()),
        Act::PutFirst("carrot".into()),
        Act::PutFirst("not for a get".into()),
        Act::PutFirst("leek".into()),
    ]);
    let mut rounds = Vec::new();
    client
        .resolve(&key, |siblings| {
            rounds.push(siblings.len());
            union(&siblings)
        })
        .await
        .unwrap();
    assert_eq!(rounds, [2, 2, 2]);
    let found = client.get(&key).await.unwrap();
    assert_eq!(found.single().unwrap(), "carrot+leek+onion+potato");
}

#[tokio::test]
async fn d47_many_who_resolve_one_key_lose_nothing_and_end() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    let all = (0..6).map(|index| {
        let client = client.clone();
        async move {
            let item = format!("item-{index}");
            client
                .resolve("cart", |mut siblings| {
                    siblings.push(item.clone().into());
                    union(&siblings)
                })
                .await
        }
    });
    futures::future::try_join_all(all).await.unwrap();
    client.resolve("cart", |siblings| union(&siblings)).await.unwrap();
    let found = client.get("cart").await.unwrap();
    let expected: Vec<_> = (0..6).map(|index| format!("item-{index}")).collect();
    assert_eq!(found.single().unwrap(), &expected.join("+"));
    assert_eq!(siblings(&cluster), 1);
}

#[tokio::test]
async fn d52_a_full_key_is_read_again_and_resolved() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    let key = cluster.key_at(1);
    client.put(&key, "a", &Context::none()).await.unwrap();
    cluster.nodes[1].script([
        Act::PutFirst("not for a get".into()),
        Act::Fail(not_applied(Code::ResourceExhausted, "TOO_MANY_SIBLINGS")),
    ]);
    let mut rounds = 0;
    client
        .resolve(&key, |siblings| {
            rounds += 1;
            union(&siblings)
        })
        .await
        .unwrap();
    assert_eq!(rounds, 2);
}
