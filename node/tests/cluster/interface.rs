//! The client interface: what every call does when all is well.

use bytes::Bytes;
use dynamo_proto::v1;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::harness::{Cluster, Shape, detail, get, put, values, why};

#[tokio::test(flavor = "multi_thread")]
async fn d1_two_blind_puts_are_siblings_and_a_put_with_their_context_replaces_both() {
    let cluster = Cluster::start(Shape::new(3, 3)).await;
    let mut kv = cluster.kv(0);
    let none = Bytes::new();
    kv.put(put("cart", "potato", &none)).await.unwrap();
    kv.put(put("cart", "onion", &none)).await.unwrap();
    let both = kv.get(get("cart")).await.unwrap().into_inner();
    assert_eq!(values(&both), ["onion", "potato"]);
    kv.put(put("cart", "potato, onion", &both.context)).await.unwrap();
    let one = cluster.kv(2).get(get("cart")).await.unwrap().into_inner();
    assert_eq!(values(&one), ["potato, onion"]);
}

/// A client whose address for a member is another's now is told so, and nothing is read or written.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_cluster_or_member_is_refused() {
    let cluster = Cluster::start(Shape::new(3, 0)).await;
    let mut kv = cluster.kv(0);
    let ring = kv.get_ring(v1::GetRingRequest::default()).await.unwrap();
    let mine = uuid::Uuid::from_slice(&ring.into_inner().ring.unwrap().cluster_id).unwrap();
    let named = |cluster: uuid::Uuid| {
        let mut request = tonic::Request::new(put("key", "value", &Bytes::new()));
        let cluster = cluster.to_string().try_into().unwrap();
        request
            .metadata_mut()
            .insert(dynamo_proto::CLUSTER_METADATA, cluster);
        request
    };
    let status = kv.put(named(uuid::Uuid::nil())).await.unwrap_err();
    assert_eq!(why(&status), (Code::FailedPrecondition, "FOREIGN_CLUSTER".into()));
    let status = kv.get(get("key")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    kv.put(named(mine)).await.unwrap();

    let replica = |member: &str| v1::ReplicaGetRequest {
        key: "key".into(),
        member_id: member.to_owned(),
        ..v1::ReplicaGetRequest::default()
    };
    let status = kv.replica_get(replica(&Cluster::id(1))).await.unwrap_err();
    assert_eq!(why(&status), (Code::FailedPrecondition, "WRONG_RECIPIENT".into()));
    for member in [String::new(), Cluster::id(0)] {
        kv.replica_get(replica(&member)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_a_damaged_or_foreign_context_is_refused_and_changes_nothing() {
    let cluster = Cluster::start(Shape::new(3, 0)).await;
    let mut kv = cluster.kv(0);
    let context = kv
        .put(put("key", "value", &Bytes::new()))
        .await
        .unwrap()
        .into_inner()
        .context;
    let foreign = kv
        .put(put("other", "value", &Bytes::new()))
        .await
        .unwrap()
        .into_inner()
        .context;

    let mut bad = vec![foreign, context.slice(..context.len() - 1), context.slice(1..)];
    for bit in 0..context.len() * 8 {
        let mut bytes = context.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bad.push(bytes.into());
    }
    for context in bad {
        let status = kv.put(put("key", "never", &context)).await.unwrap_err();
        assert_eq!(why(&status), (Code::InvalidArgument, "INVALID_CONTEXT".into()));
        let outcome: v1::WriteOutcome = detail(&status, "dynamo.v1.WriteOutcome").unwrap();
        assert_eq!(outcome.state(), v1::write_outcome::State::NotApplied);
        let delete = v1::DeleteRequest {
            key: "key".into(),
            context,
            ..v1::DeleteRequest::default()
        };
        assert_eq!(why(&kv.delete(delete).await.unwrap_err()).1, "INVALID_CONTEXT");
    }
    assert_eq!(values(&kv.get(get("key")).await.unwrap().into_inner()), ["value"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d3_a_delete_needs_a_context_and_leaves_what_it_has_not_seen() {
    let cluster = Cluster::start(Shape::new(3, 0)).await;
    let mut kv = cluster.kv(1);
    let seen = kv
        .put(put("key", "seen", &Bytes::new()))
        .await
        .unwrap()
        .into_inner()
        .context;
    let delete = |context: &Bytes, force| v1::DeleteRequest {
        key: "key".into(),
        context: context.clone(),
        force,
        ..v1::DeleteRequest::default()
    };
    let status = kv.delete(delete(&Bytes::new(), false)).await.unwrap_err();
    assert_eq!(why(&status), (Code::InvalidArgument, "CONTEXT_REQUIRED".into()));

    kv.put(put("key", "concurrent", &Bytes::new())).await.unwrap();
    kv.delete(delete(&seen, false)).await.unwrap();
    let left = kv.get(get("key")).await.unwrap().into_inner();
    assert_eq!(values(&left), ["concurrent"]);
    assert!(left.deleted_concurrently);

    kv.delete(delete(&Bytes::new(), true)).await.unwrap();
    let status = kv.get(get("key")).await.unwrap_err();
    assert_eq!(why(&status), (Code::NotFound, "KEY_NOT_FOUND".into()));
    let tombstone: v1::NotFound = detail(&status, "dynamo.v1.NotFound").unwrap();
    kv.put(put("key", "again", &tombstone.context)).await.unwrap();
    let again = kv.get(get("key")).await.unwrap().into_inner();
    assert_eq!(values(&again), ["again"]);
    assert!(
        !again.deleted_concurrently,
        "the new value has seen the tombstones"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_never_was_is_not_found_without_a_context() {
    let cluster = Cluster::start(Shape::new(3, 0)).await;
    let status = cluster.kv(0).get(get("nothing")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let not_found: v1::NotFound = detail(&status, "dynamo.v1.NotFound").unwrap();
    assert!(not_found.context.is_empty());
    let forced = v1::DeleteRequest {
        key: "nothing".into(),
        force: true,
        ..v1::DeleteRequest::default()
    };
    assert_eq!(
        cluster.kv(0).delete(forced).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn d4_d13_values_are_opaque_bytes_and_batches_fail_key_by_key() {
    let cluster = Cluster::start(Shape::new(3, 3)).await;
    let mut kv = cluster.kv(0);
    let all_bytes: Vec<u8> = (0..=255).collect();
    let mut requests: Vec<v1::PutRequest> = (0..100)
        .map(|i| put(&format!("k{i}"), "", &Bytes::new()))
        .collect();
    for request in &mut requests {
        request.value = all_bytes.clone().into();
    }
    requests[50].context = Bytes::from_static(b"not a context");
    let results = kv
        .batch_put(v1::BatchPutRequest { requests })
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(results.len(), 100);
    for (index, result) in results.into_iter().enumerate() {
        match result.result.unwrap() {
            v1::put_result::Result::Response(_) => assert_ne!(index, 50),
            v1::put_result::Result::Error(error) => {
                assert_eq!((index, error.reason.as_str()), (50, "INVALID_CONTEXT"));
                assert_eq!(
                    error.outcome.unwrap().state(),
                    v1::write_outcome::State::NotApplied
                );
            }
        }
    }
    let requests = (0..100).map(|i| get(&format!("k{i}"))).collect();
    let results = kv
        .batch_get(v1::BatchGetRequest { requests })
        .await
        .unwrap()
        .into_inner()
        .results;
    for (index, result) in results.into_iter().enumerate() {
        match result.result.unwrap() {
            v1::get_result::Result::Response(response) => assert_eq!(response.versions[0].value, all_bytes),
            v1::get_result::Result::Error(error) => {
                assert_eq!((index, error.code), (50, i32::from(Code::NotFound)));
                assert!(error.not_found.is_some());
            }
        }
    }
    let requests = (0..101).map(|i| get(&format!("k{i}"))).collect();
    let status = kv.batch_get(v1::BatchGetRequest { requests }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_d6_d7_every_node_serves_every_key_with_one_hop_at_most() {
    let cluster = Cluster::start(Shape::new(6, 3)).await;
    for number in 0..60 {
        let key = format!("key-{number}");
        let receiver = number % 6;
        let (primaries, fallbacks) = cluster.preference_list(key.as_bytes()).await;
        assert_eq!((primaries.len(), fallbacks.len()), (3, 3));
        let mut kv = cluster.kv(receiver);
        let info = kv
            .put(put(&key, "value", &Bytes::new()))
            .await
            .unwrap()
            .into_inner()
            .info
            .unwrap();
        assert!(
            primaries.contains(&info.coordinator),
            "{} is no primary of {key}",
            info.coordinator
        );
        let local = primaries.contains(&Cluster::id(receiver));
        assert_eq!(info.hops, u32::from(!local));
        let read = kv.get(get(&key)).await.unwrap().into_inner();
        let info = read.info.unwrap();
        assert_eq!((info.coordinator, info.hops), (Cluster::id(receiver), 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_port_offers_health_and_reflection() {
    let cluster = Cluster::unassigned(Shape::new(3, 0)).await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", cluster.node(0).client))
        .unwrap()
        .connect_lazy();
    let mut health = HealthClient::new(channel.clone());
    let mut serving = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        health
            .check(request)
            .await
            .map(|answer| answer.into_inner().status())
    };
    assert_eq!(
        serving("").await.unwrap(),
        ServingStatus::Serving,
        "the process lives"
    );
    assert_ne!(
        serving("dynamo.v1.KeyValue").await.unwrap(),
        ServingStatus::Serving,
        "unassigned nodes do not serve"
    );
    assert_eq!(
        why(&cluster.kv(0).get(get("key")).await.unwrap_err()).1,
        "NOT_READY"
    );
    cluster.assign().await;
    cluster.all_valid().await;
    crate::harness::until("the client service is reported as serving", || {
        let mut health = HealthClient::new(channel.clone());
        async move {
            let request = HealthCheckRequest {
                service: "dynamo.v1.KeyValue".to_owned(),
            };
            health.check(request).await.unwrap().into_inner().status() == ServingStatus::Serving
        }
    })
    .await;

    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(services)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list of services");
    };
    assert!(
        services
            .service
            .iter()
            .any(|service| service.name == "dynamo.v1.KeyValue")
    );
}
