//! Buckets: policies that gossip spreads, "last write wins" (D48), and values of data types (D53, test C).

use bytes::Bytes;
use dynamo_proto::{
    admin::{self, ListBucketsRequest, SetBucketRequest, bucket::Conflict},
    v1::{self, typed_value::Value, update_request::Operation},
};
use tonic::Code;

use crate::harness::{Cluster, Shape, count, get, index_of, put, until, values};

fn bucket(name: &str, conflict: Conflict) -> admin::Bucket {
    admin::Bucket {
        name: name.into(),
        conflict: conflict.into(),
        ..admin::Bucket::default()
    }
}

fn update(bucket: &str, operation: Operation) -> v1::UpdateRequest {
    v1::UpdateRequest {
        bucket: bucket.into(),
        key: "key".into(),
        operation: Some(operation),
        ..v1::UpdateRequest::default()
    }
}

fn of(bucket: &str) -> v1::GetRequest {
    v1::GetRequest {
        bucket: bucket.into(),
        ..get("key")
    }
}

async fn typed(cluster: &Cluster, index: usize, bucket: &str) -> Value {
    let found = cluster.kv(index).get(of(bucket)).await.unwrap().into_inner();
    assert!(found.versions.is_empty());
    found.typed.unwrap().value.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_spread_survive_a_full_restart_and_keep_what_is_fixed() {
    let mut cluster = Cluster::start(Shape::quick(4, 0)).await;
    let mut policy = admin::Bucket {
        replicas: 2,
        read_quorum: 1,
        write_quorum: 2,
        ttl_ms: 60_000,
        read_repair: admin::bucket::ReadRepair::Async.into(),
        ..bucket("carts", Conflict::Lww)
    };
    cluster.set_bucket(policy.clone()).await;
    policy.read_quorum = 2;
    cluster.set_bucket(policy.clone()).await;
    let set = |policy: admin::Bucket| SetBucketRequest { bucket: Some(policy) };
    let other = admin::Bucket {
        conflict: Conflict::Set.into(),
        ..policy.clone()
    };
    let too_many = admin::Bucket {
        replicas: 4,
        ..policy.clone()
    };
    let no_quorum = admin::Bucket {
        write_quorum: 3,
        ..policy.clone()
    };
    for refused in [other, too_many, no_quorum] {
        let status = cluster.admin(3).set_bucket(set(refused)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    // A node that has heard of it only by gossip serves by it.
    let mut request = put("key", "value", &Bytes::new());
    request.bucket = "carts".into();
    let reply = cluster.accepted(3, request).await;
    let quorum = reply.info.unwrap().quorum.unwrap();
    assert_eq!((quorum.replicas, quorum.r, quorum.w), (2, 2, 2));
    let found = cluster.kv(2).get(of("carts")).await.unwrap().into_inner();
    assert!(found.versions[0].expires_at_ms > 0, "the bucket's time to live");

    for index in 0..4 {
        cluster.stop_node(index).await;
    }
    for index in 0..4 {
        cluster.start_node(index).await;
    }
    cluster.all_valid().await;
    for index in 0..4 {
        let known = cluster
            .admin(index)
            .list_buckets(ListBucketsRequest {})
            .await
            .unwrap()
            .into_inner()
            .buckets;
        policy.version = 2;
        assert_eq!(known, [policy.clone()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_with_fewer_replicas_than_the_ring_is_written_by_its_own_primaries() {
    let mut cluster = Cluster::start(Shape::quick(4, 0)).await;
    cluster
        .set_bucket(admin::Bucket {
            replicas: 1,
            ..bucket("single", Conflict::Siblings)
        })
        .await;
    let mut numbers = 0..;
    let (key, primaries) = loop {
        let key = format!("key-{}", numbers.next().unwrap());
        let (primaries, _) = cluster.preference_list_in("single", key.as_bytes()).await;
        let primaries: Vec<usize> = primaries.iter().map(|member| index_of(member)).collect();
        if primaries[0] != 0 {
            break (key, primaries);
        }
    };
    let single = |value: &str| v1::PutRequest {
        bucket: "single".into(),
        ..put(&key, value, &Bytes::new())
    };
    // The ring's second primary is none of this bucket's.
    let reply = cluster.accepted(primaries[1], single("value")).await;
    let info = reply.info.unwrap();
    assert_eq!((info.coordinator, info.hops), (Cluster::id(primaries[0]), 1));
    let outcome = reply.outcome.unwrap();
    assert_eq!((outcome.acks, outcome.primaries), (1, 1));
    // Without it the write is still taken.
    cluster.stop_node(primaries[0]).await;
    cluster.sees_down(primaries[1], primaries[0]).await;
    let outcome = cluster
        .accepted(primaries[1], single("another"))
        .await
        .outcome
        .unwrap();
    assert_eq!((outcome.acks, outcome.fallbacks_counted), (1, 1));
    cluster.start_node(primaries[0]).await;
    until("its primary has both", || async {
        cluster
            .local_in("single", primaries[0], &key)
            .await
            .versions
            .len()
            == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d48_the_last_write_wins_on_all_replicas_also_if_it_is_a_delete() {
    let cluster = Cluster::start(Shape::quick(3, 0)).await;
    cluster.set_bucket(bucket("passwords", Conflict::Lww)).await;
    let password = |value: &str, context: &Bytes| v1::PutRequest {
        bucket: "passwords".into(),
        w: count(3),
        ..put("key", value, context)
    };
    let first = cluster.accepted(0, password("first", &Bytes::new())).await;
    // Blind, at another node, and later.
    cluster
        .kv(1)
        .put(password("second", &Bytes::new()))
        .await
        .unwrap();
    for index in 0..3 {
        let found = cluster.kv(index).get(of("passwords")).await.unwrap().into_inner();
        assert_eq!(values(&found), ["second"]);
    }
    cluster.equal("passwords", "key").await;
    // It has seen the first one only.
    let delete = v1::DeleteRequest {
        bucket: "passwords".into(),
        key: "key".into(),
        context: first.context,
        w: count(3),
        ..v1::DeleteRequest::default()
    };
    cluster.kv(2).delete(delete).await.unwrap();
    for index in 0..3 {
        let status = cluster.kv(index).get(of("passwords")).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "the delete was last");
    }
    cluster.kv(0).put(password("third", &Bytes::new())).await.unwrap();
    for index in 0..3 {
        let found = cluster.kv(index).get(of("passwords")).await.unwrap().into_inner();
        assert_eq!(values(&found), ["third"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c_d53_each_increment_counts_once_at_whichever_coordinators_it_is_tried() {
    let mut cluster = Cluster::start(Shape::quick(3, 0)).await;
    cluster.set_bucket(bucket("counters", Conflict::Counter)).await;
    let add = |amount: i64, op: u8| v1::UpdateRequest {
        op_id: Bytes::copy_from_slice(&[op; 16]),
        ..update("counters", Operation::Increment(amount))
    };
    // Two clients with one context each: potato(2) and potato(1).
    cluster.kv(0).update(add(2, 1)).await.unwrap();
    cluster.kv(1).update(add(1, 2)).await.unwrap();
    assert_eq!(typed(&cluster, 2, "counters").await, Value::Counter(3));
    let mut sum = 3;
    for op in 3..40 {
        let amount = i64::from(op) - 20;
        sum += amount;
        // The answer was lost, and the client tries again: here, and elsewhere.
        for coordinator in [op, op, op + 1] {
            cluster
                .kv(usize::from(coordinator) % 3)
                .update(add(amount, op))
                .await
                .unwrap();
        }
    }
    assert_eq!(typed(&cluster, 0, "counters").await, Value::Counter(sum));
    // Replicas that miss some of it.
    for away in 0..3_usize {
        cluster.stop_node(away).await;
        let (one, another) = ((away + 1) % 3, (away + 2) % 3);
        cluster.kv(one).update(add(100, 100 + away as u8)).await.unwrap();
        cluster
            .kv(another)
            .update(add(100, 100 + away as u8))
            .await
            .unwrap();
        cluster
            .kv(another)
            .update(add(-1, 200 + away as u8))
            .await
            .unwrap();
        sum += 99;
        cluster.start_node(away).await;
        cluster.all_valid().await;
    }
    for index in 0..3 {
        assert_eq!(typed(&cluster, index, "counters").await, Value::Counter(sum));
    }
    cluster.equal("counters", "key").await;
    let plain = v1::PutRequest {
        bucket: "counters".into(),
        ..put("key", "5", &Bytes::new())
    };
    let status = cluster.kv(0).put(plain).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn c_d53_sets_and_maps_merge_what_was_added_and_lose_what_was_seen_and_removed() {
    use v1::field_update::Operation as Field;
    let mut cluster = Cluster::start(Shape::quick(3, 0)).await;
    cluster.set_bucket(bucket("sets", Conflict::Set)).await;
    cluster.set_bucket(bucket("maps", Conflict::Map)).await;
    let add = |member: &'static str| {
        Operation::Set(v1::SetUpdate {
            add: vec![Bytes::from_static(member.as_bytes())],
            ..v1::SetUpdate::default()
        })
    };
    let set = |members: &[&str]| {
        let members = members
            .iter()
            .map(|member| Bytes::copy_from_slice(member.as_bytes()));
        Value::Set(v1::SetValue {
            members: members.collect(),
        })
    };
    cluster.kv(0).update(update("sets", add("potato"))).await.unwrap();
    cluster.kv(1).update(update("sets", add("onion"))).await.unwrap();
    assert_eq!(typed(&cluster, 2, "sets").await, set(&["onion", "potato"]));
    let seen = cluster.kv(2).get(of("sets")).await.unwrap().into_inner().context;
    // One client removes the potato that it has seen, while another adds one.
    cluster.stop_node(2).await;
    cluster.kv(0).update(update("sets", add("potato"))).await.unwrap();
    let remove = |context: Bytes, member: &'static str| v1::UpdateRequest {
        context,
        ..update(
            "sets",
            Operation::Set(v1::SetUpdate {
                remove: vec![Bytes::from_static(member.as_bytes())],
                ..v1::SetUpdate::default()
            }),
        )
    };
    cluster
        .kv(1)
        .update(remove(seen.clone(), "potato"))
        .await
        .unwrap();
    cluster.kv(1).update(remove(seen, "onion")).await.unwrap();
    let status = cluster
        .kv(1)
        .update(remove(Bytes::new(), "onion"))
        .await
        .unwrap_err();
    assert_eq!(
        status.code(),
        Code::InvalidArgument,
        "a removal says what it has seen"
    );
    cluster.start_node(2).await;
    cluster.all_valid().await;
    for index in 0..3 {
        assert_eq!(
            typed(&cluster, index, "sets").await,
            set(&["potato"]),
            "adding wins"
        );
    }

    let field = |name: &'static str, operation: v1::field_update::Operation| v1::FieldUpdate {
        name: name.into(),
        operation: Some(operation),
    };
    let fields = |fields: Vec<v1::FieldUpdate>| update("maps", Operation::Map(v1::MapUpdate { fields }));
    cluster
        .kv(0)
        .update(fields(vec![
            field("visits", Field::Increment(2)),
            field("name", Field::Register("Ann".into())),
        ]))
        .await
        .unwrap();
    cluster
        .kv(1)
        .update(fields(vec![
            field("visits", Field::Increment(1)),
            field("member", Field::Flag(true)),
        ]))
        .await
        .unwrap();
    let Value::Map(map) = typed(&cluster, 2, "maps").await else {
        panic!("a map");
    };
    let named = |name: &str| {
        let found = map.fields.iter().find(|field| field.name == name.as_bytes());
        found.unwrap().value.clone().unwrap().value.unwrap()
    };
    assert_eq!(map.fields.len(), 3);
    assert_eq!(named("visits"), Value::Counter(3));
    assert_eq!(named("member"), Value::Flag(true));
    assert_eq!(
        named("name"),
        Value::Register(v1::RegisterValue { value: "Ann".into() })
    );
    let context = cluster.kv(2).get(of("maps")).await.unwrap().into_inner().context;
    let remove = v1::UpdateRequest {
        context,
        ..fields(vec![field("name", Field::Remove(true))])
    };
    cluster.kv(2).update(remove).await.unwrap();
    let Value::Map(map) = typed(&cluster, 0, "maps").await else {
        panic!("a map");
    };
    assert_eq!(map.fields.len(), 2);
    for bucket in ["sets", "maps"] {
        cluster.equal(bucket, "key").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d52_the_101st_blind_put_is_refused_and_one_that_resolves_is_not() {
    let mut cluster = Cluster::start(Shape::quick(3, 0)).await;
    for number in 0..100 {
        let all = v1::PutRequest {
            w: count(3),
            ..put("key", &format!("{number:03}"), &Bytes::new())
        };
        cluster.kv(0).put(all).await.unwrap();
    }
    let status = cluster
        .kv(1)
        .put(put("key", "one more", &Bytes::new()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    // What comes from replicas is never refused: one that missed everything gets all of it.
    cluster.stop_node(2).await;
    cluster.start_emptied(2).await;
    until("all siblings are there again", || async {
        cluster.local(2, "key").await.versions.len() == 100
    })
    .await;
    let found = cluster.kv(2).get(get("key")).await.unwrap().into_inner();
    assert_eq!(found.versions.len(), 100);
    cluster
        .kv(1)
        .put(put("key", "resolved", &found.context))
        .await
        .unwrap();
    assert_eq!(cluster.read(0, "key").await.unwrap(), ["resolved"]);
}
