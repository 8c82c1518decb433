//! What a client does when nodes fail, refuse or stay silent.

use std::time::{Duration, Instant};

use crate::support::{self, Act, Cluster, not_applied, partial, status};
use dynamo_client::{Builder, Client, Context, Error, Outcome, WriteOptions};
use tonic::{Code, Status};

const ATTEMPT: Duration = Duration::from_millis(200);

fn builder(cluster: &Cluster) -> Builder {
    Client::builder()
        .endpoints(cluster.addresses())
        .attempt_timeout(ATTEMPT)
}

/// For tests in which no node is silent: a busy machine must not make one look so.
async fn client(cluster: &Cluster) -> Client {
    let patient = builder(cluster)
        .attempt_timeout(Duration::from_secs(20))
        .deadline(Duration::from_mins(1));
    patient.connect().await.unwrap()
}

fn versions(cluster: &Cluster) -> usize {
    cluster.state.data.lock().unwrap().values().map(Vec::len).sum()
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_is_retried_elsewhere_with_its_op_id_and_counts_once() {
    let cluster = Cluster::start(3).await;
    let client = builder(&cluster)
        .deadline(Duration::from_secs(10))
        .connect()
        .await
        .unwrap();
    let key = cluster.key_at(0);
    let second = cluster.primaries(&key)[1];
    cluster.nodes[0].script([Act::ServeAndHang]);
    let written = client.put(&key, "v", &Context::none()).await.unwrap();
    assert_eq!(written.info.coordinator, format!("n{second}"));
    let ids = [cluster.nodes[0].op_ids(), cluster.nodes[second].op_ids()].concat();
    assert_eq!(ids.len(), 2);
    assert_eq!((ids[0].len(), &ids[0]), (16, &ids[1]));
    assert_eq!(versions(&cluster), 1);
    // Another put is another operation.
    client.put(&key, "w", &written.context).await.unwrap();
    assert!(!cluster.nodes[second].op_ids()[1..].contains(&ids[0]));
}

#[tokio::test]
async fn answers_that_no_node_can_better_are_not_retried() {
    let refusals = [
        (
            not_applied(Code::InvalidArgument, "INVALID_ARGUMENT"),
            "InvalidArgument",
        ),
        (
            not_applied(Code::ResourceExhausted, "TOO_MANY_SIBLINGS"),
            "ResourceExhausted",
        ),
        (status(Code::PermissionDenied, "NO_GRANT", Vec::new()), "Refused"),
        (Status::internal("no details"), "Refused"),
    ];
    for (refusal, name) in refusals {
        let cluster = Cluster::start(3).await;
        let client = client(&cluster).await;
        let key = cluster.key_at(1);
        cluster.nodes[1].script([Act::Fail(refusal)]);
        let error = client.put(&key, "v", &Context::none()).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(name), "{error:?}");
        assert_eq!(cluster.data_requests(), 1, "{error}");
    }
}

#[tokio::test]
async fn unavailable_overloaded_and_not_ready_nodes_are_left_for_another() {
    let failures = [
        not_applied(Code::Unavailable, "NOT_READY"),
        not_applied(Code::ResourceExhausted, "OVERLOADED"),
        partial(1),
        status(Code::DeadlineExceeded, "WRITE_TIMED_OUT", Vec::new()),
        Status::unavailable("no details"),
    ];
    for failure in failures {
        let cluster = Cluster::start(3).await;
        let client = client(&cluster).await;
        let key = cluster.key_at(0);
        cluster.nodes[0].script([Act::ServeThen(failure)]);
        client.put(&key, "v", &Context::none()).await.unwrap();
        assert_eq!((cluster.data_requests(), versions(&cluster)), (2, 1));
        assert_eq!(cluster.nodes[0].data_requests().len(), 1);
    }
}

#[tokio::test]
async fn the_deadline_holds_and_a_silent_write_is_unknown() {
    let cluster = Cluster::start(3).await;
    let client = builder(&cluster)
        .deadline(Duration::from_millis(700))
        .connect()
        .await
        .unwrap();
    cluster.nodes.iter().for_each(|node| node.freeze(true));
    let begin = Instant::now();
    let error = client.put("k", "v", &Context::none()).await.unwrap_err();
    let took = begin.elapsed();
    assert!(
        matches!(
            error,
            Error::DeadlineExceeded {
                outcome: Outcome::Unknown,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        took >= Duration::from_millis(690) && took < Duration::from_millis(1500),
        "{took:?}"
    );
    // A shorter one for one operation; a read changes nothing.
    let begin = Instant::now();
    let options = WriteOptions {
        deadline: Some(Duration::from_millis(50)),
        ..WriteOptions::default()
    };
    let error = client
        .put_with("k", "v", &Context::none(), &options)
        .await
        .unwrap_err();
    assert!(begin.elapsed() < Duration::from_millis(600));
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error:?}");
    let error = client.get("k").await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::DeadlineExceeded {
                outcome: Outcome::NotApplied,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_partial_write_is_reported_as_such() {
    let cluster = Cluster::start(3).await;
    let client = builder(&cluster)
        .deadline(Duration::from_millis(400))
        .connect()
        .await
        .unwrap();
    cluster.nodes[0].script([Act::Fail(partial(1))]);
    for node in &cluster.nodes {
        node.script((0..40).map(|_| Act::Fail(not_applied(Code::Unavailable, "QUORUM_NOT_MET"))));
    }
    let error = client
        .put(cluster.key_at(0), "v", &Context::none())
        .await
        .unwrap_err();
    let Error::Unavailable { outcome, detail } = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        outcome,
        Outcome::Partial {
            acks: 1,
            primaries: 1,
            durable: 1
        }
    );
    assert_eq!(
        (detail.code, detail.reason.as_str()),
        (Code::Unavailable, "QUORUM_NOT_MET")
    );
    assert!(detail.attempts > 3, "{detail:?}");
    // Where every node says that it did nothing, nothing was done.
    let error = client
        .put(cluster.key_at(1), "v", &Context::none())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unavailable {
                outcome: Outcome::NotApplied,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn nodes_that_cannot_be_reached_leave_a_write_undone() {
    let endpoints = [support::refused().await, support::refused().await];
    let client = Client::builder()
        .endpoints(endpoints.clone())
        .deadline(Duration::from_millis(300))
        .build()
        .unwrap();
    let error = client.put("k", "v", &Context::none()).await.unwrap_err();
    let Error::Unavailable { outcome, detail } = error else {
        panic!("{error:?}")
    };
    assert_eq!(outcome, Outcome::NotApplied);
    assert!(
        endpoints.contains(&detail.node) && detail.message.contains("refused"),
        "{detail}"
    );
}

#[tokio::test]
async fn d1_siblings_and_their_context() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    client.put("k", "v1", &Context::none()).await.unwrap();
    client.put("k", "v2", &Context::none()).await.unwrap();
    let found = client.get("k").await.unwrap();
    assert_eq!((found.versions.len(), found.single()), (2, None));
    client.put("k", "v3", &found.context).await.unwrap();
    let found = client.get("k").await.unwrap();
    assert_eq!(found.single().map(|value| &value[..]), Some(&b"v3"[..]));
    // D3: a delete with the context; the absent key's context goes with the next put.
    client.delete("k", &found.context).await.unwrap();
    let error = client.get("k").await.unwrap_err();
    let Error::NotFound { context } = error else {
        panic!("{error:?}")
    };
    assert!(!context.is_none());
    client.put("k", "v4", &context).await.unwrap();
    let found = client.get("k").await.unwrap();
    assert!(!found.deleted_concurrently);
    assert_eq!(found.versions.len(), 1);
    assert!(client.get("never").await.unwrap_err().is_not_found());
    client
        .delete_with("k", None, &WriteOptions::default())
        .await
        .unwrap();
    assert!(client.get("k").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn d2_a_damaged_context_is_refused_and_changes_nothing() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    client.put("k", "v", &Context::none()).await.unwrap();
    let error = client
        .put("k", "w", &Context::from_bytes("damaged"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }));
    assert_eq!(error.reason(), "INVALID_CONTEXT");
    assert_eq!(
        client.get("k").await.unwrap().single().map(|value| &value[..]),
        Some(&b"v"[..])
    );
}

#[tokio::test]
async fn d47_resolve_merges_siblings_and_begins_with_none() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    client
        .resolve("cart", |siblings| siblings.len().to_string())
        .await
        .unwrap();
    client.put("cart", "potato", &Context::none()).await.unwrap();
    client.put("cart", "onion", &Context::none()).await.unwrap();
    client
        .resolve("cart", |mut siblings| {
            siblings.sort();
            siblings.join(&b"+"[..])
        })
        .await
        .unwrap();
    let found = client.get("cart").await.unwrap();
    assert_eq!(
        found.single().map(|value| &value[..]),
        Some(&b"0+onion+potato"[..])
    );
}

#[tokio::test]
async fn d16_a_message_beyond_the_clients_limit_is_refused_here() {
    let cluster = Cluster::start(3).await;
    let client = builder(&cluster)
        .message_bytes_max(1000, 1 << 20)
        .connect()
        .await
        .unwrap();
    let error = client
        .put("k", vec![0; 1000], &Context::none())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
    client.put("k", vec![0; 900], &Context::none()).await.unwrap();
    assert_eq!(cluster.data_requests(), 1);
}
