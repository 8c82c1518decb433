//! What administrators see and do: searches (D10), background tasks (D66), the history of rings (D59); and what the modes of
//! durability promise (D42).

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use dynamo_node::config::DurabilityMode;
use dynamo_proto::{
    admin::{LocateRequest, MembershipLogRequest, PauseTaskRequest, TasksRequest},
    v1::{self, located_copy::Role},
};
use tonic::Code;

use crate::harness::{Cluster, Shape, count, put, quick, until};

#[tokio::test(flavor = "multi_thread")]
async fn d10_a_search_finds_every_copy_and_asks_nobody_twice() {
    let mut cluster = Cluster::start(Shape::quick(6, 0)).await;
    let key = cluster.key_with(|primaries, _| primaries[0] != 0).await;
    let (primaries, fallbacks) = cluster.placed(&key).await;
    cluster.stop_node(primaries[0]).await;
    let all = v1::PutRequest {
        w: count(3),
        ..put(&key, "value", &Bytes::new())
    };
    cluster.kv(primaries[1]).put(all).await.unwrap();
    for index in cluster.up() {
        cluster.sees_down(index, primaries[0]).await;
    }
    let locate = |ttl| LocateRequest {
        bucket: String::new(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        ttl,
    };
    // Three are asked by each: four hops reach all of five.
    let found = cluster
        .admin(fallbacks[2])
        .locate(locate(4))
        .await
        .unwrap()
        .into_inner();
    let role = |copy: &v1::LocatedCopy| (copy.member_id.clone(), copy.role(), copy.hint_for.clone());
    let copies: BTreeSet<_> = found
        .copies
        .iter()
        .map(|copy| format!("{:?}", role(copy)))
        .collect();
    let expected = [
        (Cluster::id(primaries[1]), Role::Primary, String::new()),
        (Cluster::id(primaries[2]), Role::Primary, String::new()),
        (Cluster::id(fallbacks[0]), Role::Hint, Cluster::id(primaries[0])),
    ];
    assert_eq!(copies, expected.iter().map(|copy| format!("{copy:?}")).collect());
    assert_eq!(found.copies.len(), 3, "each once");
    assert_eq!(found.asked, 5, "each once");
    let digests: BTreeSet<_> = found.copies.iter().map(|copy| copy.digest).collect();
    assert_eq!(digests.len(), 1);
    let near = cluster
        .admin(fallbacks[2])
        .locate(locate(1))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(near.asked, 4, "itself and three others");
    let status = cluster.admin(0).locate(locate(17)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn d66_a_task_that_is_paused_does_nothing_until_it_goes_on() {
    let cluster = Cluster::start(Shape::quick(3, 0)).await;
    let exchanges = async || {
        let tasks = cluster
            .admin(0)
            .tasks(TasksRequest {})
            .await
            .unwrap()
            .into_inner()
            .tasks;
        let task = tasks.into_iter().find(|task| task.name == "exchange").unwrap();
        (task.paused, task.operations)
    };
    until("exchanges run", || async { exchanges().await.1 > 0 }).await;
    cluster.pause(0, "exchange", true).await;
    // What had its turn goes on to its next one; then they stand still for several intervals.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let mut last = exchanges().await;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = exchanges().await;
        if now == last {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "they go on");
        last = now;
    }
    assert!(last.0);
    cluster.pause(0, "exchange", false).await;
    until("they go on", || async { exchanges().await.1 > last.1 }).await;
    let request = PauseTaskRequest {
        name: "everything".into(),
        paused: true,
    };
    let status = cluster.admin(0).pause_task(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("hints"),
        "it names those there are: {status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn d59_every_node_tells_the_same_history_of_rings_also_after_a_full_restart() {
    let mut cluster = Cluster::start(Shape::quick(4, 2)).await;
    let mut histories = Vec::new();
    for _ in 0..2 {
        for index in 0..4 {
            let log = cluster
                .admin(index)
                .membership_log(MembershipLogRequest {})
                .await
                .unwrap()
                .into_inner();
            assert!(!log.entries.is_empty());
            histories.push(log);
        }
        for index in 0..4 {
            cluster.stop_node(index).await;
        }
        for index in 0..4 {
            cluster.start_node(index).await;
        }
        cluster.all_valid().await;
    }
    assert!(histories.iter().all(|log| *log == histories[0]));
}

async fn in_mode(configure: fn(&mut dynamo_node::Config)) -> Cluster {
    Cluster::start(Shape {
        configure,
        ..Shape::new(3, 0)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn d42_buffered_writes_are_read_before_they_are_on_a_disk_and_dw_puts_them_there() {
    let mut cluster = in_mode(|config| {
        quick(config);
        config.durability.mode = DurabilityMode::Buffered;
        config.durability.interval_ms = 60_000;
    })
    .await;
    let syncs = cluster.metrics("dynamo_writer_syncs", "").await;
    let reply = cluster.accepted(0, put("key", "value", &Bytes::new())).await;
    let outcome = reply.outcome.unwrap();
    assert!(outcome.acks >= 2 && outcome.durable == 0, "{outcome:?}");
    for index in 0..3 {
        assert_eq!(cluster.read(index, "key").await.unwrap(), ["value"]);
    }
    assert_eq!(
        cluster.metrics("dynamo_writer_syncs", "").await,
        syncs,
        "nothing was synced for it"
    );
    let durable = v1::PutRequest {
        dw: count(1),
        ..put("key", "next", &reply.context)
    };
    let outcome = cluster.accepted(1, durable).await.outcome.unwrap();
    assert!(outcome.durable >= 1, "{outcome:?}");
    // A clean stop writes what waits.
    for index in 0..3 {
        cluster.stop_node(index).await;
    }
    for index in 0..3 {
        cluster.start_node(index).await;
    }
    cluster.all_valid().await;
    assert_eq!(cluster.read(2, "key").await.unwrap(), ["next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d42_with_one_of_n_each_write_is_soon_on_one_disk() {
    let cluster = in_mode(|config| {
        quick(config);
        config.durability.mode = DurabilityMode::OneOfN;
        config.durability.interval_ms = 60_000;
    })
    .await;
    // The disk is not waited for (§5), but it comes soon, on one of them at least.
    for number in 0..20 {
        let syncs = cluster.metrics("dynamo_writer_syncs", "").await;
        let request = put(&format!("key-{number}"), "value", &Bytes::new());
        cluster.kv(number % 3).put(request).await.unwrap();
        until("one node syncs it", || async {
            cluster.metrics("dynamo_writer_syncs", "").await > syncs
        })
        .await;
    }
}
