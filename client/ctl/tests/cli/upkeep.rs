//! What people and scripts see of data types, buckets and the upkeep of replicas.

use crate::admin;
use crate::runner::{ask, command, has, run, run_with};
use crate::support::{self, Act, Cluster, FakeNode, Seen};

#[tokio::test]
async fn d53_d54_data_types_are_updated_and_shown() {
    let cluster = Cluster::start(3).await;
    run(&cluster, &["update", "counter", "page", "+2"]).await.good();
    run(&cluster, &["update", "counter", "page", "-5"]).await.good();
    run(&cluster, &["update", "counter", "page"]).await.good();
    let shown = run(&cluster, &["get", "page"]).await.good().text();
    assert!(has(&shown, "counter -2"), "{shown}");
    assert_eq!(run(&cluster, &["get", "page", "--raw"]).await.good().text(), "-2");
    let json = run(&cluster, &["get", "page", "-o", "json"]).await.good().json();
    assert_eq!(
        json["typed"],
        serde_json::json!({ "type": "counter", "value": -2 })
    );
    // A removal without a context reads first: the fake node refuses one without.
    run(&cluster, &["update", "set", "tags", "--add", "a", "--add", "b"])
        .await
        .good();
    let json = run(
        &cluster,
        &[
            "update", "set", "tags", "--add", "c", "--remove", "b", "-o", "json",
        ],
    )
    .await
    .good()
    .json();
    assert_eq!(
        (json["key"].as_str(), json["zones"].as_u64()),
        (Some("tags"), Some(2))
    );
    let updates: Vec<_> = cluster.nodes.iter().flat_map(FakeNode::seen).collect();
    let context = |wanted: &str| {
        updates.iter().any(
            |seen| matches!(seen, Seen::Update { key, context, .. } if key == "tags" && context == wanted),
        )
    };
    assert!(context("") && context("ctx:0"), "{updates:?}");
    let json = run(&cluster, &["get", "tags", "-o", "json"]).await.good().json();
    assert_eq!(
        json["typed"]["members"],
        serde_json::json!([{ "value": "a" }, { "value": "c" }])
    );
    let raw = run(&cluster, &["get", "tags", "--raw"]).await;
    assert!(raw.code == 1 && raw.stderr.contains("it is a set"), "{raw}");
    // Nothing can be removed from a key that never was; what is added counts.
    let absent = run(&cluster, &["update", "set", "none", "--remove", "a"]).await;
    assert_eq!(absent.code, 2, "{absent}");
    run(
        &cluster,
        &["update", "set", "none", "--add", "a", "--remove", "b"],
    )
    .await
    .good();
    run(&cluster, &["update", "flag", "dark", "enable"]).await.good();
    assert!(has(
        &run(&cluster, &["get", "dark"]).await.good().text(),
        "flag enabled"
    ));
    run(&cluster, &["update", "flag", "dark", "disable"]).await.good();
    assert_eq!(
        run(&cluster, &["get", "dark", "--raw"]).await.good().text(),
        "false"
    );
    run(&cluster, &["update", "register", "motto", "carpe diem"])
        .await
        .good();
    assert_eq!(
        run(&cluster, &["get", "motto", "--raw"]).await.good().text(),
        "carpe diem"
    );
    for arguments in [
        ["update", "map", "user", "visits", "--increment", "-3"].as_slice(),
        &["update", "map", "user", "tags", "--add", "x", "--add", "y"],
        &["update", "map", "user", "mail", "--enable"],
        &["update", "map", "user", "name", "--register", "Alice"],
        &["update", "map", "user", "gone", "--enable"],
        &["update", "map", "user", "gone", "--drop"],
    ] {
        run(&cluster, arguments).await.good();
    }
    let shown = run(&cluster, &["get", "user"]).await.good().text();
    for line in [
        "visits counter -3",
        "tags set x",
        "tags set y",
        "mail flag enabled",
        "name register Alice",
    ] {
        assert!(has(&shown, line), "{line} in {shown}");
    }
    assert!(!shown.contains("gone"), "{shown}");
    let json = run(&cluster, &["get", "user", "-o", "json"]).await.good().json();
    assert_eq!(
        json["typed"]["fields"][0],
        serde_json::json!({ "name": "visits", "type": "counter", "value": -3 })
    );
}

#[tokio::test]
async fn d53_an_update_is_repeated_with_its_op_id() {
    let cluster = Cluster::start(3).await;
    // Retries of one run repeat it, and a script can repeat it in another run.
    cluster.nodes[0].script([Act::ServeThen(support::partial(1))]);
    let endpoint = [cluster.nodes[0].address.clone()];
    let id = "00112233445566778899aabbccddeeff";
    for _ in 0..2 {
        let arguments = ["update", "counter", "page", "+2", "--op-id", id];
        run_with(command(&endpoint), &arguments, b"").await.good();
    }
    let ids = cluster.nodes[0].op_ids();
    assert!(
        ids.len() == 3 && ids.iter().all(|id| *id == ids[0] && id[1] == 0x11),
        "{ids:?}"
    );
    assert_eq!(run(&cluster, &["get", "page", "--raw"]).await.good().text(), "2");
}

#[tokio::test]
async fn d17_d35_put_takes_a_time_to_live_and_zones() {
    let cluster = Cluster::start(1).await;
    let arguments = [
        "put", "k", "v", "--ttl", "30s", "--zones", "2", "--pw", "1", "--dw", "1",
    ];
    run(&cluster, &arguments).await.good();
    let told = cluster.nodes[0].seen().into_iter();
    let told: Vec<_> = told
        .filter_map(|seen| match seen {
            Seen::Put { ttl_ms, zones, .. } => Some((ttl_ms, zones.is_some())),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(30_000, true)]);
}

#[tokio::test]
async fn d36_hints_of_one_node_and_of_all() {
    let admin = admin::start().await;
    let shown = ask(&admin, &["hints"]).await.good().text();
    assert!(
        has(&shown, "n2 12 2.0KiB") && shown.contains("1 declined"),
        "{shown}"
    );
    let all = ask(&admin, &["hints", "--all", "-o", "json"]).await;
    assert_eq!(all.code, 1, "one of the two cannot be asked: {all}");
    let json = all.json();
    assert_eq!(json["nodes"][0]["member_id"], "n1");
    assert_eq!(json["nodes"][0]["hints"][0]["hints"], 12);
    assert!(
        json["nodes"][1]["error"]
            .as_str()
            .unwrap()
            .contains("127.0.0.1:9"),
        "{json}"
    );
    let all = ask(&admin, &["hints", "--all"]).await.text();
    assert!(has(&all, "n1 n2 12") && has(&all, "n2: cannot reach"), "{all}");
    let status = ask(&admin, &["status", "-o", "json"]).await.good().json();
    let node = &status["nodes"][0];
    assert_eq!(
        (node["hints"].as_u64(), node["partitions_suspect"].as_u64()),
        (Some(12), Some(3))
    );
    let status = ask(&admin, &["status"]).await.good().text();
    assert!(
        status.contains("HINTS") && status.contains("SUSPECT") && has(&status, "12 3 0s"),
        "{status}"
    );
}

#[tokio::test]
async fn d38_exchanges_and_repair() {
    let admin = admin::start().await;
    let shown = ask(&admin, &["exchanges"]).await.good().text();
    assert!(has(&shown, "n2 3 1 3m"), "{shown}");
    let shown = ask(&admin, &["exchanges", "--partitions"]).await.good().text();
    assert!(has(&shown, "1 n2 never") && has(&shown, "0 n2 5s"), "{shown}");
    let json = ask(&admin, &["exchanges", "-o", "json"]).await.good().json();
    let exchanges = &json["nodes"][0]["exchanges"];
    assert_eq!(
        (exchanges[0]["age_ms"].as_u64(), exchanges[1]["age_ms"].as_u64()),
        (Some(5000), None)
    );
    // A key's partition, and a partition by number, whose owner may be known by the ring alone.
    let json = ask(&admin, &["repair", "cart", "-o", "json"]).await.good().json();
    assert_eq!(
        (json["partition"].as_u64(), json["asked"].as_str()),
        (Some(3), Some("n1"))
    );
    assert_eq!(
        (json["keys_pulled"].as_u64(), json["keys_pushed"].as_u64()),
        (Some(4), Some(5))
    );
    assert_eq!(
        ask(&admin, &["repair", "--key", "2", "-o", "json"])
            .await
            .good()
            .json()["partition"],
        3
    );
    let partly = ask(&admin, &["repair", "2"]).await;
    assert!(
        partly.code == 1 && partly.text().contains("n2: unreachable"),
        "{partly}"
    );
    let absent = ask(&admin, &["repair", "99"]).await;
    assert!(
        absent.code == 1 && absent.stderr.contains("0 to 7") && absent.stderr.contains("--key"),
        "{absent}"
    );
}

#[tokio::test]
async fn d66_tasks_are_paused_and_resumed() {
    let admin = admin::start().await;
    let shown = ask(&admin, &["tasks"]).await.good().text();
    assert!(
        has(&shown, "exchange runs 7") && shown.contains("2.5 ms"),
        "{shown}"
    );
    let json = ask(&admin, &["tasks", "pause", "exchange", "-o", "json"])
        .await
        .good()
        .json();
    assert_eq!(json["nodes"][0]["tasks"][1]["paused"], true);
    assert!(has(
        &ask(&admin, &["tasks"]).await.good().text(),
        "exchange paused"
    ));
    let shown = ask(&admin, &["tasks", "resume", "exchange"]).await.good().text();
    assert!(has(&shown, "exchange runs"), "{shown}");
    let unknown = ask(&admin, &["tasks", "pause", "sleep"]).await;
    assert!(
        unknown.code == 1 && unknown.stderr.contains("cannot pause \"sleep\""),
        "{unknown}"
    );
}

#[tokio::test]
async fn d48_buckets_are_set_piece_by_piece_and_listed() {
    let admin = admin::start().await;
    let arguments = [
        "bucket",
        "set",
        "sessions",
        "--conflict",
        "lww",
        "--ttl",
        "1h",
        "-n",
        "3",
        "-r",
        "2",
        "-w",
        "2",
    ];
    ask(&admin, &arguments).await.good();
    let json = ask(
        &admin,
        &[
            "bucket",
            "set",
            "sessions",
            "--read-repair",
            "blocking",
            "-o",
            "json",
        ],
    )
    .await
    .good()
    .json();
    let expected = serde_json::json!({
        "name": "sessions", "conflict": "lww", "read_repair": "blocking", "ttl_ms": 3_600_000, "replicas": 3,
        "read_quorum": 2, "write_quorum": 2, "version": 2,
    });
    assert_eq!(json, expected);
    ask(&admin, &["bucket", "set", "likes", "--conflict", "counter"])
        .await
        .good();
    let shown = ask(&admin, &["bucket", "list"]).await.good().text();
    assert!(has(&shown, "sessions lww blocking 1h 3 2 2 2"), "{shown}");
    assert!(has(&shown, "likes counter async - - - - 1"), "{shown}");
    let json = ask(&admin, &["bucket", "list", "-o", "json"]).await.good().json();
    assert_eq!(json["buckets"][0], expected);
}

#[tokio::test]
async fn d10_locate_lists_primaries_and_hints() {
    let admin = admin::start().await;
    let shown = ask(&admin, &["locate", "cart", "--ttl", "5"]).await.good().text();
    assert!(has(&shown, "n3 hint n2 00000000000000ab 1 no"), "{shown}");
    assert!(shown.contains("2 copies, 5 members asked"), "{shown}");
    let json = ask(&admin, &["locate", "cart", "-o", "json"]).await.good().json();
    assert_eq!(
        (json["copies"][0]["role"].as_str(), json["asked"].as_u64()),
        (Some("primary"), Some(3))
    );
}

#[tokio::test]
async fn completions_know_the_nested_commands() {
    let cluster = Cluster::start(1).await;
    let bash = run(&cluster, &["completion", "bash"]).await.good().text();
    for word in [
        "update__subcmd__counter",
        "bucket",
        "exchanges",
        "locate",
        "--read-repair",
    ] {
        assert!(
            bash.contains(word) || bash.contains(&word.replace("__subcmd", "")),
            "{word}"
        );
    }
}

#[tokio::test]
async fn a_loss_is_accepted_only_with_a_yes() {
    let admin = admin::start().await;
    let refused = ask(&admin, &["accept-loss"]).await;
    assert!(
        refused.code == 64 && refused.stderr.contains("--yes"),
        "{refused}"
    );
    let shown = ask(&admin, &["accept-loss", "--yes"]).await.good().text();
    assert!(shown.contains("1 partitions answer reads again"), "{shown}");
    let json = ask(&admin, &["accept-loss", "5", "--yes", "-o", "json"])
        .await
        .good()
        .json();
    assert_eq!(json["accepted"], serde_json::json!([]));
}

#[tokio::test]
async fn a_store_is_salvaged_only_with_a_yes_and_what_was_not_merged_is_told() {
    let admin = admin::start().await;
    let counted = ask(&admin, &["salvage", "set-aside-1"]).await.good().text();
    assert!(
        counted.contains("9 records can be read") && counted.contains("nothing was merged"),
        "{counted}"
    );
    let merged = ask(&admin, &["salvage", "set-aside-1", "--yes", "-o", "json"]).await;
    assert_eq!(merged.code, 1);
    let json = merged.json();
    assert_eq!((&json["merged"], &json["not_merged"]), (&8.into(), &1.into()));
    assert_eq!((&json["damaged"], &json["gaps"]), (&2.into(), &1.into()));
    let ended = ask(&admin, &["salvage", "set-aside-2", "--yes"]).await;
    assert!(
        ended.code != 0 && ended.stderr.contains("after 5 records"),
        "{ended}"
    );
    let unknown = ask(&admin, &["salvage", "nothing"]).await;
    assert!(
        unknown.code != 0 && unknown.stderr.contains("there are set-aside-1"),
        "{unknown}"
    );
}
