//! What people and scripts see of a change of the ring.

use crate::admin;
use crate::runner::{ask, has};

#[tokio::test]
async fn a_plan_names_the_command_that_commits_it_and_that_can_be_repeated() {
    let admin = admin::start().await;
    let shown = ask(&admin, &["change", "plan", "--add", "n3:c", "--dead", "n2"])
        .await
        .good()
        .text();
    for line in [
        "n1 - 1 4->3 8->5 0 -",
        "n2 - 1->0 4->0 8->0 0 dead",
        "n3 - 0->1 0->3 0->5 5 joins",
        "moves 5 replica-partitions (minimum 4), about 2.0KiB; zone violations 0; 8 partitions",
        "warning: n2 is declared dead",
    ] {
        assert!(has(&shown, line), "{line} in {shown}");
    }
    let next = shown.lines().last().unwrap();
    assert_eq!(
        next,
        "next: dynamoctl change commit --add n3:c --dead n2 --epoch 3 --hash 00000000000000ab"
    );
    let arguments: Vec<&str> = next.split(' ').skip(2).collect();
    let committed = ask(&admin, &arguments).await.good().text();
    assert!(
        committed.starts_with("the ring of epoch 4 (hash 00000000000000ab) is proposed"),
        "{committed}"
    );
    // Whoever lost the answer says it again.
    let again = ask(&admin, &arguments).await.good().text();
    assert!(again.contains("was there already"), "{again}");
    let status = ask(&admin, &["change", "status"]).await.good().text();
    for line in [
        "changes to epoch 4 (hash 00000000000000ab), 2 members; joins n3; goes n2; dead n2",
        "waits for step synced of n2",
        "this node has pulled 2 of 4 partitions",
    ] {
        assert!(has(&status, line), "{line} in {status}");
    }
}

#[tokio::test]
async fn a_commit_wants_a_yes_or_a_plan() {
    let admin = admin::start().await;
    let refused = ask(&admin, &["change", "commit", "--add", "n3"]).await;
    assert!(
        refused.code == 1 && refused.stderr.contains("no terminal") && refused.stderr.contains("--yes"),
        "{refused}"
    );
    let stale = ask(
        &admin,
        &["change", "commit", "--add", "n3", "--epoch", "2", "--hash", "ab"],
    )
    .await;
    assert!(
        stale.code == 1
            && stale
                .stderr
                .contains("begins from epoch 2, but the newest ring has epoch 3")
            && stale.stderr.contains("plan again"),
        "{stale}"
    );
    let other = ask(
        &admin,
        &["change", "commit", "--add", "n3", "--epoch", "3", "--hash", "ac"],
    )
    .await;
    assert!(
        other.code == 1 && other.stderr.contains("another ring by now"),
        "{other}"
    );
    let json = ask(&admin, &["change", "status", "-o", "json"])
        .await
        .good()
        .json();
    assert_eq!(json["under_way"], false, "{json}");
    let shown = ask(&admin, &["change", "commit", "--add", "n3", "--yes"])
        .await
        .good()
        .text();
    assert!(
        has(&shown, "n3 - 0->1") && has(&shown, "is proposed") && has(&shown, "change status --watch"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_commit_waits_until_all_members_read_from_the_ring() {
    let admin = admin::start().await;
    let ran = ask(
        &admin,
        &["change", "commit", "--add", "n3", "--yes", "--wait", "-o", "json"],
    )
    .await
    .good();
    let json = ran.json();
    assert_eq!((&json["epoch"], &json["proposed"]), (&4.into(), &true.into()));
    assert_eq!(json["plan"]["members"][2]["change"], "joins");
    assert_eq!(json["transition"]["under_way"], false);
    assert_eq!(
        json["transition"]["base"]["members"],
        serde_json::json!(["n1", "n2", "n3"])
    );
}

#[tokio::test]
async fn a_watch_ends_when_no_change_is_under_way() {
    let admin = admin::start().await;
    let none = ask(&admin, &["change", "status", "--watch"]).await.good().text();
    assert!(
        has(&none, "ring epoch 3") && has(&none, "no change is under way"),
        "{none}"
    );
    ask(&admin, &["change", "commit", "--remove", "n2", "--yes"])
        .await
        .good();
    let watched = ask(&admin, &["change", "status", "--watch"]).await.good();
    assert!(
        watched.stderr.contains("epoch 3 -> 4: step synced of n2"),
        "{watched}"
    );
    let text = watched.text();
    assert!(
        has(
            &text,
            "ring epoch 4 (hash 00000000000000ab), 1 members: no change is under way"
        ),
        "{text}"
    );
}

#[tokio::test]
async fn what_cannot_be_planned_says_why_and_what_to_do() {
    let admin = admin::start().await;
    let unknown = ask(&admin, &["change", "plan", "--remove", "n7"]).await;
    assert!(
        unknown.code == 1
            && unknown.stderr.contains("cannot plan the change: n7 is no member")
            && unknown.stderr.contains("dynamoctl change status"),
        "{unknown}"
    );
    let absent = ask(&admin, &["change", "plan", "--add", "n9"]).await;
    assert!(
        absent.code == 1
            && absent.stderr.contains("n9 has not joined")
            && absent.stderr.contains("dynamoctl members"),
        "{absent}"
    );
    for wrong in [
        ["change", "plan"].as_slice(),
        &["change", "plan", "--add", "N3"],
        &["change"],
        &["change", "plan", "--double-partitions", "--add", "n3"],
    ] {
        assert_eq!(ask(&admin, wrong).await.code, 64, "{wrong:?}");
    }
}

#[tokio::test]
async fn weights_and_partitions_are_taken_from_the_ring() {
    let admin = admin::start().await;
    let json = ask(&admin, &["change", "plan", "--double-partitions", "-o", "json"])
        .await
        .good()
        .json();
    assert_eq!(
        (&json["partitions"], &json["unchanged"]),
        (&16.into(), &false.into())
    );
    let json = ask(&admin, &["change", "plan", "--replace", "n2=n3", "-o", "json"])
        .await
        .good()
        .json();
    assert_eq!(json["members"][2]["change"], "replaces n2");
    assert_eq!(json["members"][2]["weight_after"], 1);
    let same = ask(&admin, &["change", "plan", "--members", "n1,n2"])
        .await
        .good()
        .text();
    assert!(
        has(&same, "a commit changes nothing") && !same.contains("next:"),
        "{same}"
    );
}
