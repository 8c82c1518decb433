//! What the API server refuses, with kubectl's eyes. The full table is in the operator's tests.

use anyhow::ensure;

use crate::{Suite, seconds, told};

/// Name, spec, and what the refusal must say.
const BAD: [(&str, &str, &str); 7] = [
    ("factor", "{replication: {factor: 8}}", "less than or equal to 7"),
    (
        "members",
        "{members: 2}",
        "members must be at least replication.factor",
    ),
    (
        "partitions",
        "{ring: {partitions: 100}}",
        "ring.partitions must be a power of two",
    ),
    (
        "quorum",
        "{replication: {readQuorum: 4}}",
        "replication.readQuorum must be 1 to replication.factor",
    ),
    (
        "size",
        "{storage: {size: 1Mi}}",
        "storage.size must be a quantity of at least 64Mi",
    ),
    ("unknown", "{replicas: 3}", "unknown field \"spec.replicas\""),
    (
        "9lives",
        "{members: 3}",
        "metadata.name must be 1 to 40 characters",
    ),
];

/// K29; and members cannot be changed yet, which the refusal says.
pub(crate) async fn k29_bad_specs_are_refused_with_help(suite: &Suite) -> anyhow::Result<()> {
    let cluster = &suite.cluster;
    for (name, spec, expected) in BAD {
        let manifest = format!(
            "{{apiVersion: dynamo.rs/v1alpha1, kind: DynamoCluster, metadata: {{name: {name}}}, spec: {spec}}}"
        );
        let args = ["-n", cluster.namespace, "create", "-f", "-"];
        let says = cluster
            .kubectl_with(&args, Some(&manifest), seconds(30))
            .await?
            .refused()?;
        ensure!(says.contains(expected), "{spec} is refused with: {says}");
    }
    let target = format!("dync/{}", cluster.name);
    let changes: [(&[&str], &str); 3] = [
        (
            &["patch", "--type=merge", "-p", r#"{"spec":{"members":2}}"#],
            "members must be at least replication.factor",
        ),
        (
            &["scale", "--replicas=2"],
            "members must be at least replication.factor",
        ),
        (
            &[
                "patch",
                "--type=merge",
                "-p",
                r#"{"spec":{"replication":{"factor":2}}}"#,
            ],
            "replication.factor is immutable",
        ),
    ];
    for (change, expected) in changes {
        let mut args = vec!["-n", cluster.namespace, change[0], &target];
        args.extend(&change[1..]);
        let says = cluster.kubectl_with(&args, None, seconds(30)).await?.refused()?;
        ensure!(says.contains(expected), "{change:?} is refused with: {says}");
    }
    told(&format!("{} refusals that help", BAD.len() + changes.len()));
    Ok(())
}
