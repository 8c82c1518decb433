//! Read repair (test R) and anti-entropy (test A).

use std::{collections::BTreeSet, env, time::Instant};

use bytes::Bytes;
use dynamo_core::{entropy::record_hash, listing::Position, version::KeyState};
use dynamo_proto::{
    admin::{self, ExchangesRequest, RepairRequest, bucket},
    peer::{self, fetched::Result as Fetched, peer_client::PeerClient},
    v1,
};
use futures::{StreamExt as _, stream};
use tonic::Code;

use crate::harness::{CLUSTER, Cluster, Shape, apart, count, get, put, quick, until};

fn apart_shape(nodes: usize) -> Shape {
    Shape {
        configure: apart,
        ..Shape::new(nodes, 0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r_d37_one_quorum_read_brings_a_stale_primary_up_to_date_and_writes_to_nobody_else() {
    let mut cluster = Cluster::start(apart_shape(5)).await;
    let key = cluster.key_with(|primaries, _| primaries[0] != 0).await;
    let (primaries, fallbacks) = cluster.placed(&key).await;
    let old = cluster
        .accepted(primaries[1], put(&key, "old", &Bytes::new()))
        .await;
    until("the first primary has the old value", || async {
        cluster.local_values(primaries[0], &key).await == ["old"]
    })
    .await;
    cluster.stop_node(primaries[0]).await;
    cluster
        .kv(primaries[1])
        .put(put(&key, "new", &old.context))
        .await
        .unwrap();
    cluster.start_node(primaries[0]).await;
    cluster.all_valid().await;
    assert_eq!(
        cluster.local_values(primaries[0], &key).await,
        ["old"],
        "stale: no hints, no exchanges"
    );

    // The coordinator is no primary.
    assert_eq!(cluster.read(fallbacks[0], &key).await.unwrap(), ["new"]);
    until("the stale primary is current", || async {
        cluster.local_values(primaries[0], &key).await == ["new"]
    })
    .await;
    cluster.equal("", &key).await;
    for fallback in &fallbacks {
        assert!(
            !cluster.present(*fallback, &key).await,
            "only primaries are written"
        );
    }
    until("the repair is counted", || async {
        cluster.metrics("dynamo_read_repairs_total", "").await == 1
    })
    .await;
    cluster.read(fallbacks[0], &key).await.unwrap();
    assert_eq!(
        cluster.metrics("dynamo_read_repairs_total", "").await,
        1,
        "nothing is left to repair"
    );
}

/// A get that finds its own copy in memory asks no more primaries than it needs; the others are compared soon after.
#[tokio::test(flavor = "multi_thread")]
async fn r_d37_a_primary_that_a_get_did_not_ask_is_brought_up_to_date_as_well() {
    let mut cluster = Cluster::start(apart_shape(3)).await;
    let mut keys = Vec::new();
    for number in 0..200 {
        let key = format!("key-{number}");
        if cluster.placed(&key).await.0 == [0, 1, 2] {
            keys.push(key);
        }
    }
    assert!(keys.len() >= 10, "{} keys", keys.len());
    cluster.stop_node(2).await;
    for key in &keys {
        cluster.accepted(0, put(key, "value", &Bytes::new())).await;
        until("the second primary has it", || cluster.present(1, key)).await;
    }
    cluster.start_node(2).await;
    cluster.all_valid().await;

    let sent = || {
        cluster.metric(
            0,
            "dynamo_stream_message_entries_total",
            r#"direction="sent",from="nodes",kind="requests""#,
        )
    };
    let mut left_out = None;
    for key in &keys {
        // How fast the others are must be known of the last second; on a busy machine it may take another key.
        let before = sent().await;
        assert_eq!(cluster.read(0, key).await.unwrap(), ["value"]);
        if sent().await == before + 1 {
            left_out = Some(key);
            break;
        }
    }
    let key = left_out.expect("a get asks one other primary of two");
    until("who was not asked is current", || cluster.present(2, key)).await;
    cluster.equal("", key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r_with_blocking_read_repair_a_value_that_was_returned_once_is_returned_ever_after() {
    let mut cluster = Cluster::start(apart_shape(3)).await;
    let policy = |name: &str, read_repair: bucket::ReadRepair| admin::Bucket {
        name: name.into(),
        read_repair: read_repair.into(),
        ..admin::Bucket::default()
    };
    cluster
        .set_bucket(policy("blocking", bucket::ReadRepair::Blocking))
        .await;
    cluster.set_bucket(policy("off", bucket::ReadRepair::Off)).await;
    let buckets = ["blocking", "off"];
    for gone in [1, 2] {
        cluster.stop_node(gone).await;
    }
    for bucket in buckets {
        let request = v1::PutRequest {
            bucket: bucket.into(),
            ..put("key", "failed", &Bytes::new())
        };
        // The first may learn only now that the others are away; either way it fails. A second one stays here.
        let status = cluster.kv(0).put(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        let one = v1::PutRequest {
            w: count(1),
            ..request
        };
        cluster.kv(0).put(one).await.unwrap();
    }
    for back in [1, 2] {
        cluster.start_node(back).await;
    }
    cluster.all_valid().await;
    let holders = async |bucket: &str| {
        let mut holders = BTreeSet::new();
        for index in 0..3 {
            if !cluster.local_in(bucket, index, "key").await.versions.is_empty() {
                holders.insert(index);
            }
        }
        holders.len()
    };
    let request = |bucket: &str| v1::GetRequest {
        bucket: bucket.into(),
        ..get("key")
    };
    // Node 0 holds it alone, and coordinates: its own answer is among the two that a quorum needs.
    for (bucket, least) in [("blocking", 2), ("off", 1)] {
        assert_eq!(holders(bucket).await, 1);
        until("a quorum read returns it", || async {
            cluster.kv(0).get(request(bucket)).await.is_ok()
        })
        .await;
        let held = holders(bucket).await;
        assert!(
            held >= least && (bucket == "blocking" || held == 1),
            "{bucket}: {held}"
        );
    }
    // Whichever two answer now.
    for index in 0..3 {
        let found = cluster
            .kv(index)
            .get(request("blocking"))
            .await
            .unwrap()
            .into_inner();
        assert!(!found.versions.is_empty());
    }
}

/// Writes keys through one node, some batches at a time.
async fn load(cluster: &Cluster, at: usize, keys: std::ops::Range<usize>, value: &str) {
    let keys: Vec<usize> = keys.collect();
    let batches = keys.chunks(100).map(|chunk| {
        let requests = chunk
            .iter()
            .map(|number| put(&format!("key-{number}"), value, &Bytes::new()));
        let request = v1::BatchPutRequest {
            requests: requests.collect(),
        };
        let mut kv = cluster.kv(at);
        async move { kv.batch_put(request).await.unwrap().into_inner().results }
    });
    let results = stream::iter(batches)
        .buffer_unordered(4)
        .map(stream::iter)
        .flatten();
    results
        .for_each(|result| async move {
            assert!(
                matches!(result.result, Some(v1::put_result::Result::Response(_))),
                "{result:?}"
            );
        })
        .await;
}

/// Waits until every node has finished so many further exchanges of each partition with each co-replica.
async fn rounds(cluster: &Cluster, rounds: u64) {
    for index in cluster.up() {
        let finished = || cluster.metric(index, "dynamo_exchanges_total", "finished\"");
        let pairs = cluster.admin(index).exchanges(ExchangesRequest {}).await.unwrap();
        let enough = finished().await + rounds * pairs.into_inner().exchanges.len() as u64;
        until("exchanges go on", || async { finished().await >= enough }).await;
    }
}

/// `A_KEYS=1000000 A_DIVERGED=1000 DYNAMO_TEST_DEADLINE_S=600` measures what the default only shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_d38_d39_d54_diverged_replicas_become_equal_by_what_differs_and_equal_ones_ship_nothing() {
    let number = |name, default| env::var(name).map_or(default, |text| text.parse().unwrap());
    let (keys, diverged) = (number("A_KEYS", 3000), number("A_DIVERGED", 300));
    // Nothing but exchanges brings replicas together: no gets, no hints.
    let mut cluster = Cluster::start(Shape {
        configure: |config| {
            quick(config);
            config.hints.bytes_max = 0;
        },
        ..Shape::new(3, 0)
    })
    .await;
    load(&cluster, 0, 0..keys, "value").await;
    cluster.equal_trees().await;
    let shipped = "dynamo_exchange_keys_total";
    cluster.stop_node(2).await;
    load(&cluster, 0, 0..diverged, "another").await;
    let before = cluster.metrics(shipped, "").await;
    cluster.start_node(2).await;
    let began = Instant::now();
    cluster.equal_trees().await;
    println!(
        "{diverged} of {keys} were to be shipped; equal {:.1} s after the node's start",
        began.elapsed().as_secs_f64()
    );
    // An exchange is counted when it is over, a little after the trees are equal.
    let wanted = before + diverged as u64;
    until("all that differed has been counted", || async {
        cluster.metrics(shipped, "").await >= wanted
    })
    .await;
    for number in (0..keys).step_by(keys / 31) {
        let key = format!("key-{number}");
        let siblings = if number < diverged { 2 } else { 1 };
        assert_eq!(cluster.local_values(2, &key).await.len(), siblings);
        // The others may have to hear first where the returned node listens now.
        until("all replicas are seen to be equal", || async {
            cluster.digests("", &key).await.len() == 1
        })
        .await;
    }

    // D39: every pair, again and again; what is equal ships nothing.
    rounds(&cluster, 2).await;
    assert_eq!(cluster.metrics(shipped, "").await, wanted);
    for index in 0..3 {
        let exchanges = cluster.admin(index).exchanges(ExchangesRequest {}).await.unwrap();
        let exchanges = exchanges.into_inner().exchanges;
        assert_eq!(exchanges.len(), 2 * 16);
        assert!(exchanges.iter().all(|exchange| exchange.age_ms.is_some()));
    }

    // Trees are not kept: a node that starts makes them anew, and repairs nothing by that.
    cluster.restart_node(1).await;
    cluster.equal_trees().await;
    rounds(&cluster, 2).await;
    assert_eq!(
        cluster.metric(1, shipped, "").await,
        0,
        "a rebuilt tree causes no repairs"
    );
}

/// Another exchange may have made two records the same after their hashes were compared.
#[tokio::test(flavor = "multi_thread")]
async fn d38_a_record_that_has_become_the_same_meanwhile_is_not_sent() {
    let cluster = Cluster::start(apart_shape(3)).await;
    cluster.accepted(0, put("key", "value", &Bytes::new())).await;
    until("both have the value", || async {
        cluster.digests("", "key").await.len() == 1 && cluster.present(1, "key").await
    })
    .await;
    let mut peer = PeerClient::connect(format!("http://{}", cluster.node(1).peer))
        .await
        .unwrap();
    let position = Position::new("default", b"key").unwrap();
    let mut fetch = async |known: Option<Bytes>, known_hash| {
        let request = peer::FetchRequest {
            header: Some(peer::Header {
                cluster_id: Bytes::copy_from_slice(&CLUSTER),
                member_id: "node-0".into(),
                recipient: "node-1".into(),
                ring_epoch: 1,
                ..peer::Header::default()
            }),
            keys: vec![peer::FetchKey {
                position: position.as_bytes().clone(),
                known,
                known_hash,
            }],
        };
        let mut response = peer.fetch(request).await.unwrap().into_inner();
        response.fetched.pop().unwrap().result.unwrap()
    };
    let Fetched::State(state) = fetch(None, 0).await else {
        panic!("who has nothing is sent the record");
    };
    let hash = record_hash(position.as_bytes(), &state);
    let known = KeyState::decode(state.clone()).unwrap().without_values().encode();
    assert_eq!(fetch(Some(known.clone()), hash).await, Fetched::NoNews(true));
    // The same events and another value: one of the two is damaged, and a merge settles which.
    assert_eq!(fetch(Some(known), hash + 1).await, Fetched::State(state));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_has_a_partition_repaired_at_once() {
    let mut cluster = Cluster::start(apart_shape(3)).await;
    cluster.stop_node(2).await;
    cluster
        .kv(0)
        .put(put("key", "value", &Bytes::new()))
        .await
        .unwrap();
    cluster.start_node(2).await;
    cluster.all_valid().await;
    assert!(!cluster.present(2, "key").await);
    let list = admin::PreferenceListRequest {
        bucket: String::new(),
        key: "key".into(),
    };
    let partition = cluster
        .admin(0)
        .preference_list(list)
        .await
        .unwrap()
        .into_inner()
        .partition;
    until("node 2 repairs the partition", || async {
        let repaired = cluster
            .admin(2)
            .repair(RepairRequest { partition })
            .await
            .unwrap()
            .into_inner();
        // Right after a start the trees are still being made.
        repaired.failed.is_empty() && repaired.exchanged.len() == 2
    })
    .await;
    assert_eq!(cluster.local_values(2, "key").await, ["value"]);
    let status = cluster
        .admin(0)
        .repair(RepairRequest { partition: 16 })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}
