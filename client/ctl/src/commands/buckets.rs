//! bucket and locate: what holds for keys, and where copies of one are.

use dynamo_proto::{
    admin::{
        Bucket as Policy, ListBucketsRequest, LocateRequest, LocateResponse, SetBucketRequest,
        admin_client::AdminClient,
        bucket::{Conflict as WireConflict, ReadRepair as WireReadRepair},
    },
    v1::located_copy::Role,
};
use serde_json::{Value, json};

use crate::{
    cli::{
        Global,
        admin::{Bucket, BucketAction, BucketSet, Conflict, Locate, ReadRepair, ttl_ms},
    },
    connect::Admin,
    failure::Failure,
    output::{Columns, Output},
    values,
};

pub(crate) async fn bucket(global: &Global, options: &Bucket, output: Output) -> Result<(), Failure> {
    let admin = Admin::first(global).await?;
    match &options.action {
        BucketAction::List => {
            let policies = list(&admin).await?;
            let json = json!({ "buckets": policies.iter().map(policy_json).collect::<Vec<_>>() });
            output.print(&json, |output| table(&policies, output))
        }
        BucketAction::Set(set) => {
            let policies = list(&admin).await?;
            let current = policies.into_iter().find(|policy| policy.name == set.name);
            let bucket = Some(change(current.unwrap_or_default(), set));
            let attempted = format!("cannot set the bucket {:?}", set.name);
            let send = |mut stub: AdminClient<_>, request| async move { stub.set_bucket(request).await };
            let reply = admin.call(attempted, SetBucketRequest { bucket }, send).await?;
            let policy = reply.bucket.unwrap_or_default();
            output.print(&policy_json(&policy), |output| {
                table(std::slice::from_ref(&policy), output)
            })
        }
    }
}

async fn list(admin: &Admin) -> Result<Vec<Policy>, Failure> {
    let send = |mut stub: AdminClient<_>, request| async move { stub.list_buckets(request).await };
    let attempted = "cannot list the buckets";
    let reply = admin.call(attempted, ListBucketsRequest {}, send).await?;
    Ok(reply.buckets)
}

/// What is left out stays.
fn change(mut policy: Policy, set: &BucketSet) -> Policy {
    policy.name.clone_from(&set.name);
    if let Some(conflict) = set.conflict {
        policy.set_conflict(match conflict {
            Conflict::Siblings => WireConflict::Siblings,
            Conflict::Lww => WireConflict::Lww,
            Conflict::Counter => WireConflict::Counter,
            Conflict::Set => WireConflict::Set,
            Conflict::Map => WireConflict::Map,
            Conflict::Flag => WireConflict::Flag,
            Conflict::Register => WireConflict::Register,
        });
    }
    if let Some(read_repair) = set.read_repair {
        policy.set_read_repair(match read_repair {
            ReadRepair::Async => WireReadRepair::Async,
            ReadRepair::Blocking => WireReadRepair::Blocking,
            ReadRepair::Off => WireReadRepair::Off,
        });
    }
    policy.ttl_ms = set.ttl.map_or(policy.ttl_ms, ttl_ms);
    policy.replicas = set.n.unwrap_or(policy.replicas);
    policy.read_quorum = set.r.unwrap_or(policy.read_quorum);
    policy.write_quorum = set.w.unwrap_or(policy.write_quorum);
    policy
}

fn conflict(policy: &Policy) -> &'static str {
    match policy.conflict() {
        WireConflict::Unspecified | WireConflict::Siblings => "siblings",
        WireConflict::Lww => "lww",
        WireConflict::Counter => "counter",
        WireConflict::Set => "set",
        WireConflict::Map => "map",
        WireConflict::Flag => "flag",
        WireConflict::Register => "register",
    }
}

fn read_repair(policy: &Policy) -> &'static str {
    match policy.read_repair() {
        WireReadRepair::Unspecified | WireReadRepair::Async => "async",
        WireReadRepair::Blocking => "blocking",
        WireReadRepair::Off => "off",
    }
}

fn policy_json(policy: &Policy) -> Value {
    json!({
        "name": policy.name, "conflict": conflict(policy), "read_repair": read_repair(policy),
        "ttl_ms": policy.ttl_ms, "replicas": policy.replicas, "read_quorum": policy.read_quorum,
        "write_quorum": policy.write_quorum, "version": policy.version,
    })
}

fn table(policies: &[Policy], output: Output) -> String {
    let header = [
        "BUCKET",
        "CONFLICT",
        "READ REPAIR",
        "TTL",
        "N",
        "R",
        "W",
        "VERSION",
    ];
    let mut columns = Columns::new(&header, &[3, 4, 5, 6, 7]);
    let number = |number: u32| {
        if number == 0 {
            String::new()
        } else {
            number.to_string()
        }
    };
    for policy in policies {
        columns.row([
            policy.name.clone(),
            conflict(policy).to_owned(),
            read_repair(policy).to_owned(),
            values::show_ttl(policy.ttl_ms),
            number(policy.replicas),
            number(policy.read_quorum),
            number(policy.write_quorum),
            policy.version.to_string(),
        ]);
    }
    output.table(&columns)
}

pub(crate) async fn locate(global: &Global, options: &Locate, output: Output) -> Result<(), Failure> {
    let key = options.key.bytes()?;
    let attempted = format!("cannot locate {:?}", values::show(&key));
    let request = LocateRequest {
        bucket: global.bucket.clone(),
        key,
        ttl: options.ttl,
    };
    let admin = Admin::first(global).await?;
    let send = |mut stub: AdminClient<_>, request| async move { stub.locate(request).await };
    let reply: LocateResponse = admin.call(attempted, request, send).await?;
    let role = |role: Role| match role {
        Role::Unspecified => "unknown",
        Role::Primary => "primary",
        Role::Hint => "hint",
        Role::Stray => "stray",
    };
    let copies = reply.copies.iter().map(|copy| {
        json!({
            "member_id": copy.member_id, "role": role(copy.role()), "hint_for": copy.hint_for,
            "digest": format!("{:016x}", copy.digest), "siblings": copy.siblings, "deleted": copy.deleted,
        })
    });
    let json = json!({ "asked": reply.asked, "copies": copies.collect::<Vec<_>>() });
    output.print(&json, |output| {
        let header = ["MEMBER", "ROLE", "FOR", "DIGEST", "SIBLINGS", "DELETED"];
        let mut columns = Columns::new(&header, &[4]);
        for copy in &reply.copies {
            columns.row([
                copy.member_id.clone(),
                role(copy.role()).to_owned(),
                copy.hint_for.clone(),
                format!("{:016x}", copy.digest),
                copy.siblings.to_string(),
                if copy.deleted { "yes" } else { "no" }.to_owned(),
            ]);
        }
        let (copies, asked) = (reply.copies.len(), reply.asked);
        format!(
            "{}\n{copies} copies, {asked} members asked",
            output.table(&columns)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::Ttl;

    #[test]
    fn what_is_not_given_stays() {
        let before = Policy {
            name: "b".to_owned(),
            conflict: WireConflict::Lww.into(),
            replicas: 3,
            ttl_ms: 60_000,
            version: 4,
            ..Policy::default()
        };
        let mut set = BucketSet {
            name: "b".to_owned(),
            conflict: None,
            read_repair: Some(ReadRepair::Blocking),
            ttl: None,
            n: None,
            r: Some(1),
            w: None,
        };
        let after = change(before.clone(), &set);
        let mut expected = before;
        expected.set_read_repair(WireReadRepair::Blocking);
        expected.read_quorum = 1;
        assert_eq!(after, expected);
        set.ttl = Some(Ttl(None));
        assert_eq!(change(after, &set).ttl_ms, 0);
    }
}
