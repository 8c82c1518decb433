//! Reads that the client coordinates itself, and where its writes go afterwards. Paper: §5, §6.4.

use std::time::Duration;

use crate::support::{self, Act, Cluster, Seen as Request, eventually, rules, status};
use bytes::Bytes;
use dynamo_client::{Builder, Client, Context, Coordination, Error, ReadOptions, Replicas};
use dynamo_core::{
    types::{ClusterId, KeyHash},
    version::{self, Actor, Content, Dot, KeyState, Seen, Sibling, Stamp},
};
use dynamo_proto::v1;
use tonic::Code;

const ALL: ReadOptions = ReadOptions {
    r: Some(Replicas::All),
    pr: None,
    deadline: None,
};

fn builder(cluster: &Cluster) -> Builder {
    Client::builder()
        .endpoints(cluster.addresses())
        .coordination(Coordination::Client)
        .attempt_timeout(Duration::from_secs(20))
        .deadline(Duration::from_mins(1))
}

/// A client that knows the rules of the default bucket, so that its next reads need no other request.
async fn client(cluster: &Cluster) -> Client {
    let client = builder(cluster).connect().await.unwrap();
    assert!(client.get("unrelated").await.unwrap_err().is_not_found());
    client
}

/// One write by the node of this number, which has seen nothing.
fn write(node: u64, value: &str) -> KeyState {
    sibling(
        node,
        Content::Value(Bytes::copy_from_slice(value.as_bytes())),
        None,
    )
}

fn sibling(node: u64, content: Content, expires_at_ms: Option<u64>) -> KeyState {
    let actor = Actor {
        incarnation: node,
        epoch: 1,
    };
    let sibling = Sibling {
        stamp: Stamp::from_ms(1_700_000_000_000 + node),
        expires_at_ms,
        op_id: None,
        content,
    };
    KeyState::from_write(&Seen::new(), Dot { actor, counter: 1 }, sibling)
}

fn merged(states: &[&KeyState]) -> KeyState {
    let mut merged = states[0].clone();
    for state in &states[1..] {
        merged.merge(state);
    }
    merged
}

/// Gives every primary of the key this state.
fn hold_everywhere(cluster: &Cluster, key: &str, state: &KeyState) {
    for node in cluster.primaries(key) {
        cluster.nodes[node].hold(key, state);
    }
}

fn values(found: &dynamo_client::Found) -> Vec<String> {
    let mut values: Vec<_> = found
        .values()
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .collect();
    values.sort();
    values
}

/// How often nodes have seen this request, all together.
fn times_seen(cluster: &Cluster, request: &Request) -> usize {
    let all = cluster.nodes.iter().flat_map(support::FakeNode::seen);
    all.filter(|seen| seen == request).count()
}

/// Gets of this key that nodes were asked to coordinate.
fn handed_over(cluster: &Cluster, key: &str) -> usize {
    times_seen(cluster, &Request::Get(key.to_owned()))
}

#[tokio::test]
async fn d6_d8_replicas_are_merged_here_and_the_context_is_what_a_node_gives() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    let (first, second) = (write(1, "potato"), write(2, "onion"));
    let both = merged(&[&first, &second]);
    cluster.nodes[0].hold("cart", &first);
    cluster.nodes[1].hold("cart", &second);
    cluster.nodes[2].hold("cart", &both);
    let found = client.get_with("cart", &ALL).await.unwrap();
    assert_eq!(values(&found), ["onion", "potato"]);
    let context = version::Context {
        seen: both.context_seen(),
    };
    let expected = context.encode(ClusterId([7; 16]), KeyHash::of("default", b"cart"));
    assert_eq!(found.context.as_bytes(), &expected);
    assert_eq!((found.info.coordinator.as_str(), found.info.hops), ("", 0));
    assert_eq!((found.info.acks, found.info.quorum), (3, [3, 3, 2, 0, 0, 0, 0]));
    assert_eq!(found.versions[0].written_at_ms, 1_700_000_000_001);
    for node in &cluster.nodes {
        let asked = node.seen().into_iter();
        assert_eq!(
            asked
                .filter(|seen| *seen == Request::ReplicaGet("cart".to_owned()))
                .count(),
            1
        );
    }
    assert_eq!(handed_over(&cluster, "cart"), 0);
    let stats = client.stats();
    assert_eq!((stats.coordinated, stats.handed_over), (2, 0));
}

#[tokio::test]
async fn d8_no_request_is_forwarded_while_the_ring_is_current() {
    let cluster = Cluster::start(6).await;
    let client = client(&cluster).await;
    for index in 0..200 {
        let key = format!("key-{index}");
        hold_everywhere(&cluster, &key, &write(1, "v"));
        let found = client.get(&key).await.unwrap();
        let written = client.put(&key, "w", &Context::none()).await.unwrap();
        assert_eq!((found.info.hops, written.info.hops), (0, 0), "{key}");
    }
    let stats = client.stats();
    assert_eq!((stats.served, stats.forwarded), (200, 0), "{stats:?}");
    assert_eq!((stats.coordinated, stats.handed_over), (201, 0), "{stats:?}");
}

#[tokio::test]
async fn d11_the_next_write_goes_to_the_replica_that_answered_first() {
    let cluster = Cluster::start(6).await;
    *cluster.state.rules.lock().unwrap() = Some(rules(3, 1, 3));
    let client = client(&cluster).await;
    let key = cluster.key_at(0);
    hold_everywhere(&cluster, &key, &write(1, "v"));
    let [first, second, third] = cluster.primaries(&key)[..] else {
        panic!("three primaries")
    };
    for silent in [first, second] {
        cluster.nodes[silent].script_replica([Act::Hang]);
    }
    let found = client.get(&key).await.unwrap();
    assert_eq!(found.info.fastest, format!("n{third}"));
    let written = client.put(&key, "w", &found.context).await;
    // The fake node does not know contexts of the core; where it was sent is what matters.
    assert!(written.is_err());
    assert!(
        cluster.nodes[third]
            .seen()
            .iter()
            .any(|seen| matches!(seen, Request::Put { .. }))
    );
    let written = client.put(&key, "w", &Context::none()).await.unwrap();
    assert_eq!(written.info.coordinator, format!("n{third}"));
    // Keys that were not read go to their first primary.
    let other = cluster.key_at(1);
    let written = client.put(&other, "w", &Context::none()).await.unwrap();
    assert_eq!(written.info.coordinator, "n1");
    let stats = client.stats();
    assert_eq!(
        (stats.writes_after_read, stats.writes_at_fastest),
        (1, 1),
        "{stats:?}"
    );
}

#[tokio::test]
async fn d11_a_coordinating_node_tells_who_answered_first() {
    let cluster = Cluster::start(6).await;
    let builder = builder(&cluster).coordination(Coordination::Server);
    let client = builder.connect().await.unwrap();
    let key = cluster.key_at(2);
    let second = cluster.primaries(&key)[1];
    client.put(&key, "v", &Context::none()).await.unwrap();
    *cluster.state.fastest.lock().unwrap() = format!("n{second}");
    let found = client.get(&key).await.unwrap();
    assert_eq!(found.info.coordinator, "n2");
    let written = client.put(&key, "w", &found.context).await.unwrap();
    assert_eq!(written.info.coordinator, format!("n{second}"));
    // Somebody who is no primary (any more) is not preferred.
    let stranger = (0..6)
        .find(|node| !cluster.primaries(&key).contains(node))
        .unwrap();
    *cluster.state.fastest.lock().unwrap() = format!("n{stranger}");
    client.get(&key).await.unwrap();
    let written = client.put(&key, "x", &written.context).await.unwrap();
    assert_eq!(written.info.coordinator, "n2");
}

#[tokio::test]
async fn a_suspect_replica_is_merged_but_does_not_count() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    cluster.nodes[0].hold("k", &write(1, "a"));
    cluster.nodes[1].hold("k", &write(2, "b"));
    cluster.nodes[2].hold("k", &write(3, "c"));
    cluster.nodes[1].suspect(true);
    let found = client.get("k").await.unwrap();
    assert!(found.info.acks == 2 && found.info.fastest != "n1", "{found:?}");
    let values = values(&found);
    assert!(
        values.contains(&"a".to_owned()) && values.contains(&"c".to_owned()),
        "{values:?}"
    );
    assert_eq!(handed_over(&cluster, "k"), 0);
    // With two of three suspect there is no quorum here; nor is there at the nodes, which say so.
    cluster.nodes[2].suspect(true);
    let short = ReadOptions {
        deadline: Some(Duration::from_millis(300)),
        ..ReadOptions::default()
    };
    for node in &cluster.nodes {
        node.script((0..40).map(|_| Act::Fail(status(Code::Unavailable, "QUORUM_NOT_MET", Vec::new()))));
    }
    let error = client.get_with("k", &short).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(error.reason(), "QUORUM_NOT_MET");
    assert!(handed_over(&cluster, "k") > 0);
}

#[tokio::test]
async fn d32_a_fallback_is_read_for_a_primary_that_is_gone() {
    let cluster = Cluster::start(4).await;
    let key = cluster.key_at(0);
    let primaries = cluster.primaries(&key);
    let mut addresses = cluster.addresses();
    addresses[primaries[2]] = support::refused().await;
    cluster.set_ring(&Cluster::ring_of(4), &addresses);
    let client = client(&cluster).await;
    let fallback = (0..4).find(|node| !primaries.contains(node)).unwrap();
    let (old, new) = (write(1, "old"), write(2, "new"));
    for node in &primaries[..2] {
        cluster.nodes[*node].hold(&key, &old);
    }
    cluster.nodes[fallback].hold(&key, &new);
    let found = client.get_with(&key, &ALL).await.unwrap();
    assert_eq!(values(&found), ["new", "old"]);
    assert_eq!((found.info.acks, found.info.fallbacks_counted), (3, 1));
    assert_eq!(handed_over(&cluster, &key), 0);
}

/// Knows how reads of the bucket are coordinated, and refreshes its ring only if it is told to.
async fn stale_client(cluster: &Cluster) -> Client {
    let client = builder(cluster)
        .ring_refresh_interval(Duration::from_hours(1))
        .connect()
        .await
        .unwrap();
    client.put("k", "by the nodes", &Context::none()).await.unwrap();
    assert!(client.get("unrelated").await.unwrap_err().is_not_found());
    client
}

#[tokio::test]
async fn d8_a_stale_client_still_succeeds_and_refreshes_its_ring() {
    let cluster = Cluster::start(4).await;
    cluster.set_ring(&Cluster::ring_of(3), &cluster.addresses()[..3]);
    let client = stale_client(&cluster).await;
    let four = support::with_epoch(&Cluster::ring_of(4), 2);
    cluster.set_ring(&four, &cluster.addresses());
    let found = client.get("k").await.unwrap();
    assert_eq!(
        (values(&found), handed_over(&cluster, "k")),
        (vec!["by the nodes".to_owned()], 1)
    );
    eventually("the new ring", || client.ring().unwrap().epoch() == 2).await;
    hold_everywhere(&cluster, "k", &write(1, "by the client"));
    let found = client.get("k").await.unwrap();
    assert_eq!(values(&found), ["by the client"]);
    assert_eq!((found.info.ring_epoch, handed_over(&cluster, "k")), (2, 1));
}

#[tokio::test]
async fn a_node_that_is_behind_does_not_speak_as_a_primary() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    hold_everywhere(&cluster, "k", &write(1, "v"));
    cluster.nodes[0].behind(true);
    let found = client.get("k").await.unwrap();
    assert_eq!((found.info.acks, handed_over(&cluster, "k")), (2, 0));
    assert_ne!(found.info.fastest, "n0");
    // All three are needed, and only two speak as primaries.
    client.get_with("k", &ALL).await.ok();
    assert_eq!(handed_over(&cluster, "k"), 1);
}

#[tokio::test]
async fn a_replica_that_refuses_the_clients_ring_has_it_refreshed() {
    let cluster = Cluster::start(3).await;
    let client = stale_client(&cluster).await;
    let rings = || {
        let all = cluster.nodes.iter().flat_map(support::FakeNode::seen);
        all.filter(|seen| matches!(seen, Request::GetRing { .. })).count()
    };
    // One by `connect`, one by the background when it begins.
    eventually("the first refreshes", || rings() == 2).await;
    let five = support::with_epoch(&Cluster::ring_of(3), 5);
    cluster.set_ring(&five, &cluster.addresses());
    cluster
        .state
        .shown_epoch
        .store(0, std::sync::atomic::Ordering::SeqCst);
    for node in &cluster.nodes {
        node.script_replica([Act::Fail(status(
            Code::FailedPrecondition,
            "STALE_EPOCH",
            Vec::new(),
        ))]);
    }
    let found = client.get("k").await.unwrap();
    assert_eq!(values(&found), ["by the nodes"]);
    eventually("the new ring", || client.ring().unwrap().epoch() == 5).await;
}

#[tokio::test]
async fn absent_keys_deletes_and_expired_values_are_not_found() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    let Err(Error::NotFound { context }) = client.get("never").await else {
        panic!("absent")
    };
    assert!(context.is_none());
    let tombstone = sibling(1, Content::Tombstone, None);
    let expired = sibling(1, Content::Value("v".into()), Some(1_700_000_000_000));
    for (key, state) in [("deleted", tombstone), ("expired", expired)] {
        hold_everywhere(&cluster, key, &state);
        let Err(Error::NotFound { context }) = client.get(key).await else {
            panic!("{key}")
        };
        let seen = state.context_seen();
        let expected = version::Context { seen };
        let expected = expected.encode(ClusterId([7; 16]), KeyHash::of("default", key.as_bytes()));
        assert_eq!(context.as_bytes(), &expected, "{key}");
    }
    let living = sibling(1, Content::Value("v".into()), Some(u64::MAX));
    hold_everywhere(&cluster, "living", &living);
    let found = client.get("living").await.unwrap();
    assert_eq!(found.versions[0].expires_at_ms, Some(u64::MAX));
}

#[tokio::test]
async fn d48_the_rules_of_a_bucket_are_followed_and_changes_noticed() {
    let cluster = Cluster::start(3).await;
    let lww = v1::ReadRules {
        last_write_wins: true,
        version: 1,
        ..rules(3, 2, 2)
    };
    *cluster.state.rules.lock().unwrap() = Some(lww);
    let client = client(&cluster).await;
    let (older, newer) = (write(1, "older"), write(2, "newer"));
    hold_everywhere(&cluster, "k", &merged(&[&older, &newer]));
    assert_eq!(values(&client.get("k").await.unwrap()), ["newer"]);
    let deleted = merged(&[&older, &sibling(3, Content::Tombstone, None)]);
    hold_everywhere(&cluster, "gone", &deleted);
    assert!(client.get("gone").await.unwrap_err().is_not_found());
    // A newer version, by which only nodes may coordinate: this read is handed over, and those after it at once.
    *cluster.state.rules.lock().unwrap() = Some(v1::ReadRules {
        nodes_only: true,
        version: 2,
        ..lww
    });
    let asked = |key: &str| {
        let mut all = cluster.nodes.iter().flat_map(support::FakeNode::seen);
        all.any(|seen| seen == Request::ReplicaGet(key.to_owned()))
    };
    assert!(asked("k"));
    for expected in 1..=2 {
        client.get("k").await.ok();
        assert_eq!(handed_over(&cluster, "k"), expected);
    }
    client.get("other").await.ok();
    assert!(!asked("other"));
    // After a refresh of the ring it is asked again.
    *cluster.state.rules.lock().unwrap() = Some(v1::ReadRules { version: 3, ..lww });
    client.refresh_ring().await.unwrap();
    assert_eq!(values(&client.get("k").await.unwrap()), ["newer"]);
}

#[tokio::test]
async fn nodes_that_do_not_tell_their_rules_coordinate_themselves() {
    let cluster = Cluster::start(3).await;
    *cluster.state.rules.lock().unwrap() = None;
    let client = builder(&cluster).connect().await.unwrap();
    client.put("k", "v", &Context::none()).await.unwrap();
    assert_eq!(values(&client.get("k").await.unwrap()), ["v"]);
    assert_eq!((client.stats().coordinated, client.stats().handed_over), (0, 1));
}

#[tokio::test]
async fn silent_replicas_end_a_read_at_its_deadline() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    for node in &cluster.nodes[..2] {
        node.script_replica([Act::Hang]);
    }
    let options = ReadOptions {
        deadline: Some(Duration::from_millis(200)),
        ..ReadOptions::default()
    };
    let error = client.get_with("k", &options).await.unwrap_err();
    let Error::DeadlineExceeded { detail, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(detail.reason, "READ_TIMED_OUT");
    assert!(detail.message.contains("1 of 2"), "{detail}");
}

#[tokio::test]
async fn an_impossible_quorum_is_left_to_a_node_to_refuse() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    let options = ReadOptions {
        r: Some(Replicas::Count(9)),
        ..ReadOptions::default()
    };
    for node in &cluster.nodes {
        node.script([Act::Fail(status(
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
            Vec::new(),
        ))]);
    }
    let error = client.get_with("k", &options).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
}

/// A read asks R replicas once it is known how long they take, and another one when it has waited longer than that, or one failed.
#[tokio::test]
async fn d71_a_read_asks_no_more_replicas_than_it_needs_unless_one_is_late_or_fails() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    hold_everywhere(&cluster, "cart", &write(1, "potato"));
    for _ in 0..200 {
        assert_eq!(values(&client.get("cart").await.unwrap()), ["potato"]);
    }
    // The first reads ask all three, and on a busy machine some answers are late.
    let asked = times_seen(&cluster, &Request::ReplicaGet("cart".to_owned()));
    assert!((400..=580).contains(&asked), "{asked} reads of replicas");

    // Neither one that hangs nor one that refuses keeps a read from its second answer.
    let first = cluster.primaries("cart")[0];
    let refusal = status(Code::Internal, "STORAGE", Vec::new());
    for act in [Act::Hang, Act::Fail(refusal)] {
        cluster.nodes[first].script_replica([act]);
        assert_eq!(values(&client.get("cart").await.unwrap()), ["potato"]);
    }
    assert_eq!(handed_over(&cluster, "cart"), 0);
}

/// A replica that keeps reads waiting is asked last before long, though none of these reads waited for its answer.
#[tokio::test]
async fn d71_a_replica_that_is_given_up_again_and_again_is_asked_last() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster).await;
    hold_everywhere(&cluster, "cart", &write(1, "potato"));
    for _ in 0..100 {
        client.get("cart").await.unwrap();
    }
    let asked = |node: &support::FakeNode| {
        let read = Request::ReplicaGet("cart".to_owned());
        node.seen().iter().filter(|seen| **seen == read).count()
    };
    let favourite = cluster.nodes.iter().max_by_key(|node| asked(node)).unwrap();
    let before = asked(favourite);
    favourite.script_replica((0..400).map(|_| Act::Hang));
    for _ in 0..400 {
        assert_eq!(values(&client.get("cart").await.unwrap()), ["potato"]);
    }
    let in_vain = asked(favourite) - before;
    assert!(in_vain < 200, "{in_vain} of 400 reads ask the replica that hangs");
}
