//! Bootstrap, join, gossip (§4.8). The gossip machine itself is tested over 32 members in the core.

use bytes::Bytes;
use dynamo_proto::{
    admin::{BootstrapRequest, JoinRequest, MembershipLogRequest, RingRequest},
    peer::replica_response::Response as Answer,
};
use tonic::Code;

use crate::harness::{CLUSTER, Cluster, Shape, get, put, until, values, why};

#[tokio::test(flavor = "multi_thread")]
async fn d9_d56_d57_all_nodes_come_to_one_ring_without_a_master() {
    let mut cluster = Cluster::start(Shape::new(5, 3)).await;
    // Whoever bootstrapped is nobody special afterwards.
    cluster.stop_node(0).await;
    let mut rings = Vec::new();
    let mut logs = Vec::new();
    for index in 1..5 {
        let ring = cluster
            .admin(index)
            .ring(RingRequest {})
            .await
            .unwrap()
            .into_inner()
            .ring
            .unwrap();
        rings.push((ring.epoch, ring.hash, ring.owners, ring.members.len()));
        logs.push(
            cluster
                .admin(index)
                .membership_log(MembershipLogRequest {})
                .await
                .unwrap()
                .into_inner(),
        );
    }
    assert!(
        rings.iter().all(|ring| *ring == rings[0]),
        "the same ring everywhere"
    );
    assert!(
        logs.iter().all(|log| *log == logs[0] && log.entries.len() == 1),
        "the same history everywhere"
    );
    for number in 0..20 {
        let key = format!("key-{number}");
        cluster
            .kv(1 + number % 4)
            .put(put(&key, "value", &Bytes::new()))
            .await
            .unwrap();
        assert_eq!(
            values(&cluster.kv(1).get(get(&key)).await.unwrap().into_inner()),
            ["value"]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k2_bootstrap_happens_once_and_is_idempotent() {
    let cluster = Cluster::unassigned(Shape::new(3, 3)).await;
    let request = cluster.bootstrap_request();
    let first = cluster
        .admin(0)
        .bootstrap(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(first.created);
    let again = cluster
        .admin(0)
        .bootstrap(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((again.created, again.ring_hash), (false, first.ring_hash));

    let other_members = BootstrapRequest {
        partitions: 32,
        ..request.clone()
    };
    let status = cluster.admin(0).bootstrap(other_members).await.unwrap_err();
    assert_eq!(why(&status), (Code::AlreadyExists, "ALREADY_BOOTSTRAPPED".into()));
    let other_cluster = BootstrapRequest {
        cluster_id: vec![1; 16].into(),
        ..request
    };
    let status = cluster.admin(0).bootstrap(other_cluster).await.unwrap_err();
    assert_eq!(why(&status), (Code::AlreadyExists, "ALREADY_BOOTSTRAPPED".into()));

    assert!(
        cluster
            .admin(1)
            .join(cluster.join_request(1))
            .await
            .unwrap()
            .into_inner()
            .joined
    );
    assert!(
        !cluster
            .admin(1)
            .join(cluster.join_request(1))
            .await
            .unwrap()
            .into_inner()
            .joined
    );
    let renamed = JoinRequest {
        member_id: "node-9".into(),
        ..cluster.join_request(1)
    };
    let status = cluster.admin(1).join(renamed).await.unwrap_err();
    assert_eq!(
        why(&status),
        (Code::FailedPrecondition, "ALREADY_ASSIGNED".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn k2_two_first_nodes_bootstrapped_at_once_are_one_ring() {
    let cluster = Cluster::unassigned(Shape::new(3, 3)).await;
    let request = cluster.bootstrap_request();
    let second = BootstrapRequest {
        member_id: Cluster::id(1),
        ..request.clone()
    };
    let (mut a, mut b) = (cluster.admin(0), cluster.admin(1));
    let (first, second) = tokio::join!(a.bootstrap(request), b.bootstrap(second));
    assert_eq!(
        first.unwrap().into_inner().ring_hash,
        second.unwrap().into_inner().ring_hash
    );
    cluster.join(2).await;
    cluster.all_valid().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bootstraps_are_refused_with_the_reason() {
    let cluster = Cluster::unassigned(Shape::new(3, 0)).await;
    let good = cluster.bootstrap_request();
    let mut twice = good.clone();
    twice.members[1].member_id = twice.members[0].member_id.clone();
    for (bad, part) in [
        (
            BootstrapRequest {
                cluster_id: Bytes::from_static(b"short"),
                ..good.clone()
            },
            "16",
        ),
        (
            BootstrapRequest {
                partitions: 100,
                ..good.clone()
            },
            "power of two",
        ),
        (
            BootstrapRequest {
                factor: 4,
                ..good.clone()
            },
            "4",
        ),
        (
            BootstrapRequest {
                factor: 8,
                ..good.clone()
            },
            "1..=7",
        ),
        (
            BootstrapRequest {
                member_id: "stranger".into(),
                ..good.clone()
            },
            "stranger",
        ),
        (twice, "node-0"),
    ] {
        let status = cluster.admin(0).bootstrap(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{}", status.message());
        assert!(
            status.message().contains(part),
            "{part:?} is missing in {:?}",
            status.message()
        );
    }
    assert!(
        cluster
            .admin(0)
            .bootstrap(good)
            .await
            .unwrap()
            .into_inner()
            .created,
        "nothing was changed"
    );
}

fn read_under(header: Option<dynamo_proto::peer::Header>) -> dynamo_proto::peer::ReplicaRequests {
    let read = dynamo_proto::peer::ReadRequest {
        key: "key".into(),
        ..dynamo_proto::peer::ReadRequest::default()
    };
    let request = dynamo_proto::peer::ReplicaRequest {
        id: 1,
        request: Some(dynamo_proto::peer::replica_request::Request::Read(read)),
    };
    dynamo_proto::peer::ReplicaRequests {
        header,
        requests: vec![request],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn m_a_node_of_another_cluster_is_refused() {
    let mut shape = Shape::new(1, 0).with_factor(1);
    let first = Cluster::start(shape.clone()).await;
    shape.nodes = 1;
    let second = Cluster::unassigned(shape).await;
    let mut request = second.join_request(0);
    request.cluster_id = vec![3; 16].into();
    request.seeds = vec![first.node(0).peer.to_string()];
    second.admin(0).join(request).await.unwrap();
    let mut peer =
        dynamo_proto::peer::peer_client::PeerClient::connect(format!("http://{}", first.node(0).peer))
            .await
            .unwrap();
    let header_of = |sender: &str, cluster: &[u8], recipient: &str| {
        Some(dynamo_proto::peer::Header {
            cluster_id: Bytes::copy_from_slice(cluster),
            member_id: sender.into(),
            ring_epoch: 1,
            recipient: recipient.into(),
            ..dynamo_proto::peer::Header::default()
        })
    };
    let header = |cluster: &[u8], recipient: &str| header_of("node-0", cluster, recipient);
    let messages = [
        header(&[3; 16], "node-0"),
        header(&CLUSTER, "node-5"),
        header(&CLUSTER, "node-0"),
        // A former member, or one that was never admitted.
        header_of("node-7", &CLUSTER, "node-0"),
    ]
    .map(read_under);
    let mut answers = peer
        .serve(futures::stream::iter(messages))
        .await
        .unwrap()
        .into_inner();
    let mut answered = Vec::new();
    while let Some(message) = answers.message().await.unwrap() {
        answered.extend(
            message
                .responses
                .into_iter()
                .map(|response| match response.response {
                    Some(Answer::Refusal(refusal)) => refusal.reason,
                    answer => format!("{answer:?}"),
                }),
        );
    }
    let absent = Answer::Read(dynamo_proto::peer::ReadResponse::default());
    let expected = [
        "FOREIGN_CLUSTER",
        "WRONG_RECIPIENT",
        &format!("{:?}", Some(absent)),
        "NOT_A_MEMBER",
    ];
    assert_eq!(answered, expected);
    // It has gossiped with its only seed by now, or does so within a second; it learns nothing from it.
    until("the foreign node has tried its seed", || async {
        second
            .status(0)
            .await
            .not_ready_reason
            .contains("waits for a ring")
    })
    .await;
    assert_eq!(
        first
            .admin(0)
            .peers(dynamo_proto::admin::PeersRequest {})
            .await
            .unwrap()
            .into_inner()
            .peers
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_of_protocol_are_settled_by_handshake() {
    let cluster = Cluster::start(Shape::new(1, 0).with_factor(1)).await;
    let mut peer =
        dynamo_proto::peer::peer_client::PeerClient::connect(format!("http://{}", cluster.node(0).peer))
            .await
            .unwrap();
    let hello = |min, max| dynamo_proto::peer::HandshakeRequest {
        header: Some(dynamo_proto::peer::Header {
            cluster_id: Bytes::copy_from_slice(&CLUSTER),
            member_id: "node-7".into(),
            recipient: "node-0".into(),
            ..dynamo_proto::peer::Header::default()
        }),
        protocol_version_min: min,
        protocol_version_max: max,
        state_format_version: 1,
        release: "9.9.9".into(),
    };
    let answer = peer.handshake(hello(1, 5)).await.unwrap().into_inner();
    assert_eq!((answer.protocol_version, answer.state_format_version), (1, 1));
    let status = peer.handshake(hello(2, 5)).await.unwrap_err();
    assert_eq!(
        why(&status),
        (Code::FailedPrecondition, "UNSUPPORTED_PROTOCOL".into())
    );
    assert!(status.message().contains("9.9.9"), "{}", status.message());
}
