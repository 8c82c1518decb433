use super::*;

fn policy(name: &str, version: u64) -> BucketPolicy {
    BucketPolicy {
        version,
        ..BucketPolicy::unset(name)
    }
}

fn full() -> BucketPolicy {
    BucketPolicy {
        name: "carts-2".into(),
        version: 7,
        n: Some(5),
        r: Some(2),
        w: Some(4),
        conflict: Conflict::Map,
        ttl_ms: Some(86_400_000),
        read_repair: ReadRepair::Blocking,
    }
}

fn buckets(policies: &[BucketPolicy]) -> Buckets {
    let mut buckets = Buckets::new();
    for policy in policies {
        let name = policy.name.clone();
        buckets.policies.insert(name, policy.clone());
    }
    buckets
}

#[test]
fn policies_are_read_as_they_were_written() {
    for policy in [policy("a", 1), full()] {
        assert_eq!(BucketPolicy::decode(policy.encode()), Ok(policy));
    }
    let all = buckets(&[policy("a", 1), full()]);
    assert_eq!(Buckets::decode(all.encode()), Ok(all.clone()));
    assert_eq!(Buckets::decode(Buckets::new().encode()), Ok(Buckets::new()));
}

#[test]
fn what_no_encoder_writes_is_refused() {
    let framed = |body: &[u8]| {
        let mut out = Vec::new();
        seal_frame(&mut out, FORMAT_VERSION, |out| out.extend_from_slice(body));
        Bytes::from(out)
    };
    let good = [1, b'a', 1, 0, 0, 0, 0, 0, 1];
    assert!(BucketPolicy::decode(framed(&good)).is_ok());
    let with = |index: usize, byte: u8| {
        let mut body = good;
        body[index] = byte;
        BucketPolicy::decode(framed(&body))
    };
    let invalid = |what| Err(DecodeError::Invalid(what));
    assert_eq!(with(1, b'A'), invalid("bucket policy"));
    assert_eq!(with(1, 0xff), invalid("bucket name"));
    assert_eq!(with(2, 0), invalid("bucket policy"), "version 0 is no version");
    assert_eq!(with(3, 65), invalid("bucket policy"), "n");
    assert_eq!(with(6, 7), invalid("conflict policy"));
    assert_eq!(with(8, 3), invalid("read repair"));
    let [a, b] = [policy("a", 1), policy("b", 1)].map(|policy| {
        let mut out = Vec::new();
        put_policy(&mut out, &policy);
        out
    });
    let two = |first: &[u8], second: &[u8]| Buckets::decode(framed(&[&[2], first, second].concat()));
    assert!(two(&a, &b).is_ok());
    assert_eq!(two(&b, &a), Err(DecodeError::Invalid("order of buckets")));
    assert_eq!(two(&a, &a), Err(DecodeError::Invalid("order of buckets")));
}

#[test]
fn each_field_has_its_rule() {
    assert_eq!(full().check(), Ok(()));
    for (name, good) in [("", false), ("a-0", true), ("A", false), ("a.b", false)] {
        assert_eq!(policy(name, 1).check().is_ok(), good, "{name}");
    }
    assert!(policy(&"x".repeat(64), 1).check().is_err());
    assert_eq!(policy("a", 0).check(), Err(PolicyError::Version(0)));
    for ttl_ms in [0, TTL_MS_MAX + 1] {
        let ttl = BucketPolicy {
            ttl_ms: Some(ttl_ms),
            ..full()
        };
        assert_eq!(ttl.check(), Err(PolicyError::Ttl(ttl_ms)));
    }
    let w = BucketPolicy { w: Some(6), ..full() };
    assert!(matches!(w.check(), Err(PolicyError::Quorum(error)) if error.field == "w"));
}

/// D31: the bucket's numbers stand in the place of the cluster's.
#[test]
fn a_bucket_s_numbers_replace_the_cluster_s() {
    let configured = Quorum::new(3, 1, 3).unwrap();
    let numbers = |policy: BucketPolicy| {
        policy
            .quorum(&configured)
            .map(|quorum| (quorum.n, quorum.r, quorum.w))
            .map_err(|error| error.field)
    };
    assert_eq!(numbers(policy("a", 1)), Ok((3, 1, 3)));
    assert_eq!(numbers(full()), Ok((5, 2, 4)));
    let n = |n, r| BucketPolicy {
        n: Some(n),
        r,
        ..policy("a", 1)
    };
    assert_eq!(numbers(n(5, None)), Ok((5, 3, 3)));
    assert_eq!(numbers(n(3, Some(2))), Ok((3, 2, 3)));
    let r = BucketPolicy {
        r: Some(4),
        ..policy("a", 1)
    };
    assert_eq!(numbers(r), Err("r"));
}

#[test]
fn a_change_is_one_version_ahead_and_never_of_the_conflict_policy() {
    let mut all = Buckets::new();
    assert_eq!(all.policy("a"), BucketPolicy::unset("a"));
    assert!(matches!(
        all.put(policy("a", 2)),
        Err(PolicyError::Outdated { found: 0, .. })
    ));
    all.put(policy("a", 1)).unwrap();
    all.put(policy("a", 1)).unwrap();
    let changed = BucketPolicy {
        ttl_ms: Some(5),
        ..policy("a", 2)
    };
    all.put(changed.clone()).unwrap();
    assert!(matches!(
        all.put(policy("a", 2)),
        Err(PolicyError::Outdated { found: 2, .. })
    ));
    let counter = BucketPolicy {
        conflict: Conflict::Counter,
        ..policy("a", 3)
    };
    assert!(matches!(
        all.put(counter),
        Err(PolicyError::ConflictIsFixed { .. })
    ));
    assert_eq!(all.get("a"), Some(&changed));
}

#[test]
fn there_are_a_thousand_buckets_at_most() {
    let mut all = Buckets::new();
    for index in 0..BUCKETS_MAX {
        all.put(policy(&format!("b{index}"), 1)).unwrap();
    }
    assert_eq!(all.put(policy("more", 1)), Err(PolicyError::TooMany));
    all.put(policy("b7", 2)).unwrap();
    assert_eq!(Buckets::decode(all.encode()), Ok(all));
}

/// K27: every order of news gives the same policies, and equal ones have equal digests.
#[test]
fn merging_is_idempotent_commutative_and_associative() {
    let variants = |name: &str| {
        let ttl = BucketPolicy {
            ttl_ms: Some(5),
            ..policy(name, 1)
        };
        [policy(name, 1), ttl, policy(name, 2)]
    };
    let (a, b) = (variants("a"), variants("b"));
    let mut all = vec![Buckets::new()];
    for one in &a {
        all.push(buckets(std::slice::from_ref(one)));
        all.extend(b.iter().map(|other| buckets(&[one.clone(), other.clone()])));
    }
    let merged = |x: &Buckets, y: &Buckets| {
        let mut merged = x.clone();
        assert_eq!(merged.merge(y), merged != *x);
        merged
    };
    for x in &all {
        assert_eq!(merged(x, x), *x);
        for y in &all {
            assert_eq!(merged(x, y), merged(y, x));
            assert_eq!(x.digest() == y.digest(), x == y);
            for z in &all {
                assert_eq!(merged(&merged(x, y), z), merged(x, &merged(y, z)));
            }
        }
    }
}
