//! Full disks, disks that cannot be read (D67), and disks that stand still.

use bytes::Bytes;
use dynamo_proto::{
    admin::{CommitRequest, RingTarget, TargetMember, TransitionRequest, TransitionResponse},
    fault::{PeerFault, SetRequest},
    v1,
};
use tonic::Code;

use crate::{
    harness::{Cluster, Shape, count, get, put, until, until_ok, values, why},
    heal, set, towards,
};

fn full() -> SetRequest {
    SetRequest {
        disk_full: true,
        ..SetRequest::default()
    }
}

fn unreadable() -> SetRequest {
    SetRequest {
        fail_reads: true,
        ..SetRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d67_full_disks_refuse_writes_while_reads_go_on_and_recover_by_themselves() {
    let cluster = Cluster::start(Shape::quick(3, 0)).await;
    let all = v1::PutRequest {
        w: count(3),
        ..put("key", "value", &Bytes::new())
    };
    let context = cluster.accepted(0, all).await.context;
    // One full disk hurts nobody: the other two take the write.
    set(&cluster, 2, full()).await;
    until("node 2 refuses writes", || async {
        match cluster.kv(2).put(put("other", "value", &Bytes::new())).await {
            Ok(_) => false,
            Err(status) => {
                assert_eq!(why(&status), (Code::ResourceExhausted, "DISK_FULL".into()));
                true
            }
        }
    })
    .await;
    cluster.kv(0).put(put("key", "next", &context)).await.unwrap();
    assert_eq!(cluster.read(2, "key").await.unwrap(), ["next"]);
    for index in [0, 1] {
        set(&cluster, index, full()).await;
        until("it refuses writes", || async {
            let put = cluster.kv(index).put(put("other", "value", &Bytes::new())).await;
            put.is_err_and(|status| status.code() == Code::ResourceExhausted)
        })
        .await;
    }
    for index in 0..3 {
        assert_eq!(cluster.read(index, "key").await.unwrap(), ["next"]);
        assert_eq!(
            cluster.http(index, "/readyz").await.0,
            200,
            "a matter of alerts, not of probes"
        );
    }
    heal(&cluster).await;
    for index in 0..3 {
        until("writes are taken again", || async {
            cluster
                .kv(index)
                .put(put("other", "value", &Bytes::new()))
                .await
                .is_ok()
        })
        .await;
    }
    cluster.equal("", "key").await;
}

/// Who is asked and is no replica passes a write on to a primary that has room, not only to the first that lives.
#[tokio::test(flavor = "multi_thread")]
async fn d67_a_write_is_passed_on_past_a_primary_whose_disk_is_full() {
    let cluster = Cluster::start(Shape::quick(4, 0)).await;
    let key = cluster.key_with(|primaries, _| !primaries.contains(&3)).await;
    let (primaries, _) = cluster.placed(&key).await;
    let write = async |at: usize| cluster.kv(at).put(put(&key, "value", &Bytes::new())).await;
    for (index, primary) in primaries.iter().enumerate() {
        write(3).await.unwrap();
        set(&cluster, *primary, full()).await;
        until("it refuses writes", || async {
            let refused = write(*primary).await;
            refused.is_err_and(|status| status.code() == Code::ResourceExhausted)
        })
        .await;
        if index + 1 < primaries.len() {
            continue;
        }
        let status = write(3).await.unwrap_err();
        assert_eq!(why(&status), (Code::ResourceExhausted, "DISK_FULL".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_read_is_never_taken_for_none() {
    let cluster = Cluster::start(Shape::quick(3, 0)).await;
    let all = v1::PutRequest {
        w: count(3),
        ..put("key", "value", &Bytes::new())
    };
    cluster.kv(0).put(all).await.unwrap();
    set(&cluster, 1, unreadable()).await;
    for index in 0..3 {
        let found = cluster.kv(index).get(get("key")).await.unwrap().into_inner();
        assert_eq!(values(&found), ["value"], "two others can");
    }
    set(&cluster, 0, unreadable()).await;
    set(&cluster, 2, unreadable()).await;
    for index in 0..3 {
        for key in ["key", "nothing"] {
            let one = v1::GetRequest {
                r: count(1),
                ..get(key)
            };
            let status = cluster.kv(index).get(one).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
        }
    }
    heal(&cluster).await;
    assert_eq!(cluster.read(0, "key").await.unwrap(), ["value"]);
}

/// Who tells of a ring may be gone before it is on the disk of who is told; it is no news when it is told again.
#[tokio::test(flavor = "multi_thread")]
async fn a_ring_is_taken_up_whose_teller_did_not_wait_for_the_disk() {
    let cluster = Cluster::start(Shape::quick(4, 0)).await;
    // A first change: then all have heard of each other.
    commits(&cluster, 1).await;
    serve_by(&cluster, 2).await;
    // Only node 0 is heard, and by node 2 only.
    let deaf = PeerFault {
        drop_arrivals: true,
        ..PeerFault::default()
    };
    for index in [0, 1, 3] {
        set(&cluster, index, towards(0..4, &deaf)).await;
    }
    let held = SetRequest {
        hold_syncs: true,
        ..towards([1, 3], &deaf)
    };
    set(&cluster, 2, held).await;
    commits(&cluster, 2).await;
    // Each is begun when the one before was answered or given up; the last ones have nothing new to say.
    let exchanges = || cluster.metric(0, "dynamo_gossip_exchanges_total", "");
    let before = exchanges().await;
    until("node 0 has said all", || async { exchanges().await > before + 5 }).await;
    let waited_for = async || transition(&cluster, 2).await.waits_for.contains(&Cluster::id(2));
    assert!(waited_for().await);

    set(&cluster, 2, towards([1, 3], &deaf)).await;
    until("node 2 goes by what it was told", || async {
        !waited_for().await
    })
    .await;
    heal(&cluster).await;
    serve_by(&cluster, 3).await;
}

/// Proposes another ring than that of `epoch`.
async fn commits(cluster: &Cluster, epoch: u64) {
    let members = (0..4).map(|index| TargetMember {
        member_id: Cluster::id(index),
        zone: cluster.zone(index),
        weight: Shape::weight(index) + epoch as u32,
        ..TargetMember::default()
    });
    let target = RingTarget {
        members: members.collect(),
        ..RingTarget::default()
    };
    let commit = CommitRequest {
        target: Some(target),
        expected_epoch: epoch,
        expected_hash: 0,
    };
    until_ok("the change is committed", || async {
        cluster.admin(0).commit(commit.clone()).await
    })
    .await;
}

async fn transition(cluster: &Cluster, index: usize) -> TransitionResponse {
    let asked = cluster.admin(index).transition(TransitionRequest {}).await;
    asked.unwrap().into_inner()
}

/// Waits until all serve by that ring alone.
async fn serve_by(cluster: &Cluster, epoch: u64) {
    for index in 0..4 {
        until(&format!("node {index} serves by ring {epoch} alone"), || async {
            let at = transition(cluster, index).await;
            at.base_epoch == epoch && at.next_epoch == 0
        })
        .await;
    }
}
