//! The binary as users run it, against a cluster in memory.

use crate::admin;
use std::{path::Path, process::Stdio};

use crate::runner::{Ran, command, run, run_with};
use crate::support::{self, Act, Cluster, not_applied, partial};
use serde_json::Value;
use tokio::process::Command;
use tonic::{Code, Status};

#[tokio::test]
async fn d1_put_get_siblings_resolve_delete() {
    let cluster = Cluster::start(3).await;
    run(&cluster, &["put", "cart", "potato"]).await.good();
    run(&cluster, &["put", "cart", "onion"]).await.good();
    let shown = run(&cluster, &["get", "cart"]).await.good().text();
    assert!(
        shown.contains("potato") && shown.contains("onion") && shown.contains("2 siblings"),
        "{shown}"
    );
    let token = shown
        .lines()
        .last()
        .unwrap()
        .strip_prefix("context: ")
        .unwrap()
        .to_owned();
    // --raw wants one value.
    let raw = run(&cluster, &["get", "cart", "--raw"]).await;
    assert_eq!((raw.code, raw.stdout.len()), (3, 0), "{raw}");
    run(&cluster, &["put", "cart", "both", "--context", &token])
        .await
        .good();
    assert_eq!(
        run(&cluster, &["get", "cart", "--raw"]).await.good().stdout,
        b"both"
    );
    let json = run(&cluster, &["get", "cart", "-o", "json"]).await.good().json();
    assert_eq!(json["versions"].as_array().unwrap().len(), 1);
    assert_eq!(
        (json["key"].as_str(), json["versions"][0]["value"].as_str()),
        (Some("cart"), Some("both"))
    );
    let token = json["context"].as_str().unwrap();
    run(&cluster, &["delete", "cart", "--context", token])
        .await
        .good();
    let absent = run(&cluster, &["get", "cart"]).await;
    assert_eq!(absent.code, 2, "{absent}");
    assert!(
        absent
            .stderr
            .contains("cannot get \"cart\": the key is not found"),
        "{absent}"
    );
    assert!(
        absent.stderr.contains("--context"),
        "the tombstone's context is offered: {absent}"
    );
    assert_eq!(run(&cluster, &["get", "never", "--raw"]).await.code, 2);
    run(&cluster, &["delete", "never", "--force"]).await.good();
}

#[tokio::test]
async fn binary_keys_and_values_from_files_and_standard_input() {
    let cluster = Cluster::start(3).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("value");
    let value: Vec<u8> = (0..=255).collect();
    std::fs::write(&file, &value).unwrap();
    let path = file.to_str().unwrap();
    run(&cluster, &["put", "--hex", "00ff", "--value-file", path])
        .await
        .good();
    assert_eq!(
        run(&cluster, &["get", "--hex", "00FF", "--raw"])
            .await
            .good()
            .stdout,
        value
    );
    let json = run(&cluster, &["get", "--hex", "00ff", "-o", "json"])
        .await
        .good()
        .json();
    assert_eq!(json["key_b64"], "AP8=");
    for arguments in [
        ["put", "piped", "-"].as_slice(),
        &["put", "piped2", "--value-file", "-"],
    ] {
        run_with(command(&cluster.addresses()), arguments, b"from\nstdin")
            .await
            .good();
        assert_eq!(
            run(&cluster, &["get", arguments[1], "--raw"]).await.good().stdout,
            b"from\nstdin"
        );
    }
    let missing = run(&cluster, &["put", "k", "--value-file", "/nonexistent/file"]).await;
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("/nonexistent/file"), "{missing}");
}

#[tokio::test]
async fn errors_say_what_was_attempted_and_what_to_do() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let failures = [
        (
            not_applied(Code::InvalidArgument, "INVALID_CONTEXT"),
            "get the key again",
        ),
        (
            not_applied(Code::ResourceExhausted, "TOO_MANY_SIBLINGS"),
            "put the result with --context",
        ),
        (Status::internal("broken"), "may be there"),
    ];
    for (failure, advice) in failures {
        node.script([Act::Fail(failure)]);
        let ran = run(&cluster, &["put", "k", "v"]).await;
        assert_eq!(ran.code, 1);
        assert!(
            ran.stderr.starts_with("error: cannot put \"k\": ") && ran.stderr.contains(advice),
            "{ran}"
        );
    }
    node.script((0..40).map(|_| Act::Fail(partial(1))));
    let ran = run(&cluster, &["put", "k", "v", "--timeout", "200ms", "-o", "json"]).await;
    let error: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(
        (error["outcome"].as_str(), error["reason"].as_str()),
        (Some("partial"), Some("QUORUM_NOT_MET"))
    );
    // Nobody there.
    let nobody = command(&[support::refused().await]);
    let ran = run_with(nobody, &["get", "k", "--timeout", "200ms"], b"").await;
    assert!(
        ran.code == 1 && ran.stderr.contains("refused") && ran.stderr.contains("--endpoint"),
        "{ran}"
    );
    let ran = run(&cluster, &["put", "k", "v", "--context", "!"]).await;
    assert!(
        ran.code == 1 && ran.stderr.contains("cannot read the context"),
        "{ran}"
    );
}

#[tokio::test]
async fn usage_errors_help_and_version() {
    let cluster = Cluster::start(1).await;
    for usage in [
        ["put"].as_slice(),
        &["nonsense"],
        &["get", "k", "--timeout", "soon"],
        &[],
    ] {
        let ran = run(&cluster, usage).await;
        assert_eq!((ran.code, ran.stdout.len()), (64, 0), "{ran}");
    }
    assert!(
        run(&cluster, &["--version"])
            .await
            .good()
            .text()
            .starts_with("dynamoctl 0.")
    );
    let help = run(&cluster, &["import", "--help"]).await.good().text();
    assert!(help.contains("Examples:") && help.contains("key_b64"), "{help}");
    let completion = run(&cluster, &["completion", "bash"]).await.good().text();
    assert!(completion.contains("preference-list") && completion.contains("dynamoctl"));
}

#[tokio::test]
async fn k31_as_a_kubectl_plugin() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = directory.path().join("kubectl-dynamo");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_dynamoctl"), &plugin).unwrap();
    let ran = run_with(Command::new(plugin), &["get", "--help"], b"")
        .await
        .good();
    assert!(ran.text().contains("Usage: kubectl dynamo get"), "{ran}");
}

fn ndjson(count: usize) -> String {
    (0..count).fold(String::new(), |text, index| {
        text + &format!("{{\"key\":\"key-{index:05}\",\"value\":\"value {index}\"}}\n")
    })
}

async fn import(cluster: &Cluster, file: &Path, text: &str, more: &[&str]) -> Ran {
    std::fs::write(file, text).unwrap();
    let arguments = [&["import", file.to_str().unwrap()], more].concat();
    run(cluster, &arguments).await
}

#[tokio::test]
async fn import_and_export_give_back_what_was_put() {
    let cluster = Cluster::start(3).await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let mut text = ndjson(1500);
    text.push_str("{\"key\":\"quoted \\\"k\\\"\",\"value\":\"a,b\\n\\\"c\\\"\"}\n");
    text.push_str("{\"key\":\"sibling\",\"value\":\"one\"}\n{\"key\":\"sibling\",\"value\":\"two\"}\n");
    text.push_str("{\"key_b64\":\"AP8=\",\"value_b64\":\"3q2+7w==\"}\n");
    let ran = import(&cluster, &file("in.ndjson"), &text, &["-o", "json"])
        .await
        .good();
    assert_eq!(ran.json()["stored"], 1504);
    // The same import again adds nothing.
    import(&cluster, &file("in.ndjson"), &text, &[]).await.good();
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let exported = run(&cluster, &["export"]).await.good();
    assert!(sorted(&exported.text()) == sorted(&text), "{exported}");
    assert!(
        exported.stderr.contains("1504 records of 1503 keys"),
        "{}",
        exported.stderr
    );
    // Through CSV into another bucket and back.
    let csv = file("out.csv");
    run(&cluster, &["export", csv.to_str().unwrap()]).await.good();
    run(
        &cluster,
        &[
            "import",
            csv.to_str().unwrap(),
            "--bucket",
            "copy",
            "--concurrency",
            "3",
        ],
    )
    .await
    .good();
    let copy = run(&cluster, &["export", "--bucket", "copy"]).await.good();
    assert!(copy.text() == exported.text(), "{copy}");
    let some = run(
        &cluster,
        &["export", "-", "--prefix", "key-0000", "--format", "csv"],
    )
    .await
    .good();
    assert_eq!(some.text().lines().count(), 11);
}

#[tokio::test]
async fn import_tells_the_lines_that_it_cannot_use() {
    let cluster = Cluster::start(3).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("in.ndjson");
    let text = format!(
        "{}not json\n{{\"key\":\"\",\"value\":\"v\"}}\n{{\"key\":\"last\",\"value\":\"v\"}}\n",
        ndjson(3)
    );
    let stopped = import(&cluster, &file, &text, &[]).await;
    assert_eq!(stopped.code, 1, "{stopped}");
    assert!(
        stopped.stderr.contains("line 4: ") && stopped.stderr.contains("--continue-on-error"),
        "{stopped}"
    );
    let all = import(&cluster, &file, &text, &["--continue-on-error", "-o", "json"]).await;
    assert_eq!(all.code, 1);
    let json = all.json();
    assert_eq!(
        (json["stored"].as_u64(), json["malformed"].as_u64()),
        (Some(4), Some(2)),
        "{all}"
    );
    assert!(all.stderr.contains("line 5: the key is empty"), "{all}");
    assert_eq!(run(&cluster, &["get", "last", "--raw"]).await.good().stdout, b"v");
    // A put that is refused is told with its line; the rest of the batch is stored.
    for node in &cluster.nodes {
        node.script([Act::Fail(not_applied(Code::PermissionDenied, "NO_GRANT"))]);
    }
    let refused = import(&cluster, &file, &ndjson(2), &["--route", "endpoint"]).await;
    assert!(
        refused.code == 1 && refused.stderr.contains("line 1: cannot put \"key-00000\""),
        "{refused}"
    );
    let unknown = import(&cluster, &directory.path().join("in.txt"), "", &[]).await;
    assert!(
        unknown.code == 1 && unknown.stderr.contains("--format"),
        "{unknown}"
    );
}

#[tokio::test]
async fn import_overwrite_supersedes_and_standard_input_is_read() {
    let cluster = Cluster::start(3).await;
    let line = |value: &str| format!("{{\"key\":\"k\",\"value\":\"{value}\"}}\n");
    for value in ["one", "two"] {
        let arguments = ["import", "-", "--format", "ndjson"];
        run_with(command(&cluster.addresses()), &arguments, line(value).as_bytes())
            .await
            .good();
    }
    assert_eq!(run(&cluster, &["get", "k", "--raw"]).await.code, 3);
    let arguments = ["import", "-", "--format", "ndjson", "--overwrite"];
    run_with(
        command(&cluster.addresses()),
        &arguments,
        line("three").as_bytes(),
    )
    .await
    .good();
    assert_eq!(
        run(&cluster, &["get", "k", "--raw"]).await.good().stdout,
        b"three"
    );
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let cluster = Cluster::start(3).await;
    let directory = tempfile::tempdir().unwrap();
    import(&cluster, &directory.path().join("in.ndjson"), &ndjson(5000), &[])
        .await
        .good();
    let mut child = command(&cluster.addresses())
        .arg("export")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[tokio::test]
async fn bench_lite_counts_what_it_did() {
    let cluster = Cluster::start(3).await;
    let arguments = [
        "bench-lite",
        "--operations",
        "500",
        "--tasks",
        "4",
        "--keys",
        "20",
        "-o",
        "json",
    ];
    let json = run(&cluster, &arguments).await.good().json();
    let counts: u64 = (0..2)
        .map(|index| json["operations"][index]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(counts, 500, "{json}");
    assert!(json["operations"][0]["p999_us"].as_u64().unwrap() > 0);
    assert_eq!(json["errors"].as_array().unwrap().len(), 0, "{json}");
    // Puts pass contexts on: no siblings grew.
    let found = run(&cluster, &["get", "bench-lite-0", "-o", "json"])
        .await
        .good()
        .json();
    assert_eq!(found["versions"].as_array().unwrap().len(), 1);
    let shown = run(
        &cluster,
        &["bench-lite", "--duration", "200ms", "--put-percent", "0"],
    )
    .await
    .good()
    .text();
    assert!(
        shown.contains("P99.9")
            && shown
                .lines()
                .any(|line| line.starts_with("put") && line.contains(" 0 "))
    );
}

#[tokio::test]
async fn k31_ring_members_preference_list_status_inspect() {
    let admin = admin::start().await;
    let run = |arguments: &'static [&'static str]| {
        let mut command = command(&["127.0.0.1:1".to_owned()]);
        command.env("DYNAMO_ADMIN", &admin);
        run_with(command, arguments, b"")
    };
    let ring = run(&["ring"]).await.good().text();
    assert_eq!(
        ring.lines().next(),
        Some("MEMBER ZONE WEIGHT TOKENS PARTITIONS ADDRESS"),
        "{ring}"
    );
    assert!(ring.contains("8 partitions, 2 replicas of every key"), "{ring}");
    let all = run(&["ring", "--partitions"]).await.good().text();
    assert!(all.contains("e000000000000000"), "{all}");
    let json = run(&["ring", "-o", "json"]).await.good().json();
    assert_eq!(
        (json["epoch"].as_u64(), json["partitions"].as_u64()),
        (Some(3), Some(8))
    );
    assert_eq!(json["members"][1]["tokens"], 4);
    let members = run(&["members"]).await.good().text();
    assert!(
        members
            .lines()
            .any(|line| line.starts_with("n2") && line.contains("refused")),
        "{members}"
    );
    let list = run(&["preference-list", "cart", "-o", "json"])
        .await
        .good()
        .json();
    assert_eq!(
        (
            list["entries"][0]["member_id"].as_str(),
            list["key_hash"].as_str().unwrap().len()
        ),
        (Some("n1"), 16)
    );
    let status = run(&["status"]).await.good().text();
    assert!(
        status
            .lines()
            .any(|line| line.starts_with("n1") && line.contains("valid")),
        "{status}"
    );
    // One of the two cannot be asked: told, and the exit code says so.
    let all = run(&["status", "--all", "-o", "json"]).await;
    assert_eq!(all.code, 1);
    let json = all.json();
    assert_eq!(
        (json["ready"].as_bool(), json["nodes"].as_array().unwrap().len()),
        (Some(false), 2)
    );
    let inspect = run(&["inspect", "cart"]).await.good().text();
    assert!(
        inspect.ends_with("replicas differ: a read shows the newest of what a quorum holds\n"),
        "{inspect}"
    );
}

#[tokio::test]
async fn bootstrap_and_join() {
    let admin = admin::start().await;
    let run = |arguments: &'static [&'static str]| {
        let mut command = command(&["127.0.0.1:1".to_owned()]);
        command.env("DYNAMO_ADMIN", &admin);
        run_with(command, arguments, b"")
    };
    let made = run(&[
        "bootstrap",
        "--member-id",
        "n1",
        "--member",
        "n1,zone=a",
        "--member",
        "n2,zone=b,peer=h:1",
        "--factor",
        "2",
    ])
    .await
    .good()
    .text();
    assert!(
        made.contains("created") && made.contains("join --cluster-id"),
        "{made}"
    );
    let stranger = run(&["bootstrap", "--member-id", "n3", "--member", "n1"]).await;
    assert!(
        stranger.code == 1 && stranger.stderr.contains("not among the members"),
        "{stranger}"
    );
    let id = "00112233-4455-6677-8899-aabbccddeeff";
    let json = run(&[
        "join",
        "--cluster-id",
        "00112233-4455-6677-8899-aabbccddeeff",
        "--member-id",
        "n2",
        "-o",
        "json",
    ])
    .await
    .good()
    .json();
    assert_eq!(
        (json["cluster_id"].as_str(), json["joined"].as_bool()),
        (Some(id), Some(true))
    );
    let refused = run(&[
        "join",
        "--cluster-id",
        "00112233-4455-6677-8899-aabbccddeeff",
        "--member-id",
        "other",
    ])
    .await;
    assert!(
        refused.code == 1 && refused.stderr.contains("FailedPrecondition"),
        "{refused}"
    );
    let mut nobody = command(&["127.0.0.1:1".to_owned()]);
    nobody.env("DYNAMO_ADMIN", support::refused().await);
    let ran = run_with(nobody, &["ring"], b"").await;
    assert!(ran.code == 1 && ran.stderr.contains("--admin"), "{ran}");
}
