//! Plans and transitions as people and programs see them.

use std::{fmt::Write as _, time::Duration};

use dynamo_proto::admin::{CommitResponse, MemberChange, PlanResponse, TransitionResponse};
use indicatif::HumanDuration;
use serde_json::{Value, json};

use super::Planned;
use crate::{
    cli::{Global, change::Differences},
    output::{Columns, Output},
    values,
};

/// Where nothing else is said, as the command line has it.
const ADMIN: &str = "127.0.0.1:7702";
/// Of those who are waited for; the rest are counted.
const NAMED_MAX: usize = 3;

/// The ring that a commit would propose.
pub(super) fn planned_hash(plan: &PlanResponse) -> u64 {
    plan.ring.as_ref().map_or(0, |ring| ring.hash)
}

/// What to type next, with the admin addresses unless it finds the same ones by itself.
pub(super) fn commit_command(global: &Global, differences: &Differences, plan: &PlanResponse) -> String {
    let admin = global.admin.join(",");
    let found = std::env::var("DYNAMO_ADMIN").unwrap_or_else(|_| ADMIN.to_owned());
    let admin = if admin == found {
        String::new()
    } else {
        format!(" --admin {admin}")
    };
    format!(
        "dynamoctl{admin} change commit {} --epoch {} --hash {:016x}",
        differences.arguments().join(" "),
        plan.expected_epoch,
        planned_hash(plan),
    )
}

pub(super) fn plan_json(planned: &Planned) -> Value {
    let plan = &planned.plan;
    let members = plan.members.iter().map(|member| {
        json!({
            "member_id": member.member_id, "zone": member.zone, "change": fate(planned, member),
            "weight_before": member.weight_before, "weight_after": member.weight_after,
            "tokens_before": member.tokens_before, "tokens_after": member.tokens_after,
            "partitions_before": member.partitions_before, "partitions_after": member.partitions_after,
            "gets": member.gets,
        })
    });
    json!({
        "expected_epoch": plan.expected_epoch, "expected_hash": format!("{:016x}", planned_hash(plan)),
        "unchanged": plan.unchanged, "instead": planned.instead, "members": members.collect::<Vec<_>>(),
        "partitions": plan.ring.as_ref().map(|ring| ring.owners.len()),
        "moves": plan.moves, "moves_min": plan.moves_min, "bytes": plan.bytes,
        "zone_violations_before": plan.zone_violations_before, "zone_violations_after": plan.zone_violations_after,
        "warnings": plan.warnings,
        "commit": (!plan.unchanged).then_some(&planned.next),
    })
}

/// With `next`, the command that commits it.
pub(super) fn plan_text(planned: &Planned, next: bool, output: Output) -> String {
    let plan = &planned.plan;
    let header = [
        "MEMBER",
        "ZONE",
        "WEIGHT",
        "TOKENS",
        "PARTITIONS",
        "GETS",
        "CHANGE",
    ];
    let mut columns = Columns::new(&header, &[2, 3, 4, 5]);
    for member in &plan.members {
        columns.row([
            member.member_id.clone(),
            member.zone.clone(),
            both(member.weight_before, member.weight_after),
            both(member.tokens_before, member.tokens_after),
            both(member.partitions_before, member.partitions_after),
            member.gets.to_string(),
            fate(planned, member),
        ]);
    }
    let mut text = output.table(&columns);
    if plan.unchanged {
        let epoch = plan.expected_epoch;
        let _ = write!(
            text,
            "\nthe newest ring (epoch {epoch}) is so already: a commit changes nothing"
        );
        return text;
    }
    let _ = write!(
        text,
        "\nmoves {} replica-partitions (minimum {}), about {}; zone violations {}; {} partitions",
        plan.moves,
        plan.moves_min,
        values::size(plan.bytes),
        both(plan.zone_violations_before, plan.zone_violations_after),
        plan.ring.as_ref().map_or(0, |ring| ring.owners.len()),
    );
    if planned.instead {
        let _ = write!(
            text,
            "\nwarning: it takes the place of the change to epoch {}, which is under way: what that one replaces or doubles \
             must be said again",
            plan.expected_epoch
        );
    }
    for warning in &plan.warnings {
        let _ = write!(text, "\nwarning: {warning}");
    }
    if next {
        let _ = write!(text, "\nnext: {}", planned.next);
    }
    text
}

/// What becomes of a member; empty if it stays as heavy as it is.
fn fate(planned: &Planned, member: &MemberChange) -> String {
    let mut listed = planned.target.members.iter();
    let listed = listed.find(|listed| listed.member_id == member.member_id);
    let dead = planned.target.dead.contains(&member.member_id);
    match (member.weight_before, member.weight_after) {
        (0, _) => match listed.map(|listed| listed.replaces.as_str()) {
            Some(old) if !old.is_empty() => format!("replaces {old}"),
            _ => "joins".to_owned(),
        },
        (_, 0) if dead => "dead".to_owned(),
        (_, 0) => "goes".to_owned(),
        (before, after) if before != after => "weighs".to_owned(),
        _ => String::new(),
    }
}

/// A number before and after in one word, so that columns can be counted when piped.
fn both(before: u32, after: u32) -> String {
    if before == after {
        after.to_string()
    } else {
        format!("{before}->{after}")
    }
}

pub(super) fn commit_text(reply: &CommitResponse, waits: bool) -> String {
    let ring = format!("the ring of epoch {} (hash {:016x})", reply.epoch, reply.hash);
    match (reply.proposed, waits) {
        (true, true) => format!("{ring} is proposed"),
        (true, false) => format!("{ring} is proposed\nnext: dynamoctl change status --watch"),
        (false, _) => format!("{ring} was there already"),
    }
}

pub(super) fn transition_json(said: &TransitionResponse) -> Value {
    let hash = |hash: u64| format!("{hash:016x}");
    let under_way = said.next_epoch != 0;
    let next = under_way.then(|| {
        json!({
            "epoch": said.next_epoch, "hash": hash(said.next_hash), "members": said.next_members, "dead": said.dead,
        })
    });
    json!({
        "under_way": under_way,
        "base": { "epoch": said.base_epoch, "hash": hash(said.base_hash), "members": said.base_members },
        "next": next,
        "step": under_way.then_some(&said.step), "waits_for": said.waits_for,
        "pulls": said.pulls, "pulled": said.pulled, "strays": said.strays,
        "remaining_ms": said.remaining_ms,
    })
}

/// How long this node still pulls, if it does and that can be told.
fn remaining(said: &TransitionResponse) -> String {
    let left = said.remaining_ms.filter(|left| *left > 0);
    left.map_or(String::new(), |left| {
        format!("; about {} left", HumanDuration(Duration::from_millis(left)))
    })
}

pub(super) fn transition_text(said: &TransitionResponse) -> String {
    let mut text = format!(
        "ring epoch {} (hash {:016x}), {} members",
        said.base_epoch,
        said.base_hash,
        said.base_members.len()
    );
    if said.next_epoch == 0 {
        text += ": no change is under way";
    } else {
        let _ = write!(
            text,
            "\nchanges to epoch {} (hash {:016x}), {} members{}",
            said.next_epoch,
            said.next_hash,
            said.next_members.len(),
            differ(said),
        );
        let _ = match said.step.as_str() {
            "" => write!(text, "\nwaits for nobody"),
            step => write!(text, "\nwaits for step {step} of {}", said.waits_for.join(", ")),
        };
        let _ = write!(
            text,
            "\nthis node has pulled {} of {} partitions{}",
            said.pulled,
            said.pulls,
            remaining(said)
        );
    }
    if said.strays > 0 {
        let _ = write!(
            text,
            "\nthis node hands {} partitions that are not its own to their owners",
            said.strays
        );
    }
    if !said.kept_members.is_empty() {
        let kept = said.kept_members.join(", ");
        let _ = write!(
            text,
            "\nnot let go before another ring serves, since this one lists the dead: {kept}"
        );
    }
    text
}

/// Who comes and who goes.
fn differ(said: &TransitionResponse) -> String {
    let lacks = |members: &[String], id: &String| !members.contains(id);
    let mut text = String::new();
    let mut list = |what: &str, ids: Vec<&String>| {
        if !ids.is_empty() {
            let ids: Vec<&str> = ids.into_iter().map(String::as_str).collect();
            let _ = write!(text, "; {what} {}", ids.join(", "));
        }
    };
    let comes = said.next_members.iter();
    list(
        "joins",
        comes.filter(|id| lacks(&said.base_members, id)).collect(),
    );
    let goes = said.base_members.iter();
    list("goes", goes.filter(|id| lacks(&said.next_members, id)).collect());
    list("dead", said.dead.iter().collect());
    text
}

/// In a line, for those who watch.
pub(super) fn step_line(said: &TransitionResponse) -> String {
    if said.next_epoch == 0 {
        return format!("epoch {}: the node has not heard of the change", said.base_epoch);
    }
    let epochs = format!("epoch {} -> {}", said.base_epoch, said.next_epoch);
    if said.step.is_empty() {
        return epochs;
    }
    let named = said
        .waits_for
        .iter()
        .take(NAMED_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    let more = match said.waits_for.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let strays = match said.strays {
        0 => String::new(),
        strays => format!(", {strays} strays"),
    };
    format!("{epochs}: step {} of {named}{more}{strays}", said.step)
}

#[cfg(test)]
mod tests {
    use dynamo_proto::{
        admin::{RingTarget, TargetMember},
        v1,
    };

    use super::*;

    fn member(id: &str, weight: (u32, u32), tokens: (u32, u32), gets: u32) -> MemberChange {
        MemberChange {
            member_id: id.to_owned(),
            zone: "a".to_owned(),
            weight_before: weight.0,
            weight_after: weight.1,
            tokens_before: tokens.0,
            tokens_after: tokens.1,
            partitions_before: tokens.0 * 3,
            partitions_after: tokens.1 * 3,
            gets,
        }
    }

    fn planned() -> Planned {
        let listed = |id: &str, replaces: &str| TargetMember {
            member_id: id.to_owned(),
            replaces: replaces.to_owned(),
            ..TargetMember::default()
        };
        Planned {
            target: RingTarget {
                members: vec![
                    listed("n1", ""),
                    listed("n4", "n2"),
                    listed("n5", ""),
                    listed("n6", ""),
                ],
                dead: vec!["n2".to_owned()],
                partitions: 0,
            },
            plan: PlanResponse {
                expected_epoch: 3,
                ring: Some(v1::Ring {
                    hash: 0xab,
                    owners: vec![0; 8],
                    ..v1::Ring::default()
                }),
                members: vec![
                    member("n1", (1, 1), (2, 2), 0),
                    member("n2", (1, 0), (2, 0), 0),
                    member("n3", (1, 0), (4, 0), 0),
                    member("n4", (0, 1), (0, 2), 6),
                    member("n5", (0, 1), (0, 2), 6),
                    member("n6", (1, 2), (0, 2), 6),
                ],
                moves: 18,
                moves_min: 12,
                bytes: 3 << 29,
                zone_violations_before: 0,
                zone_violations_after: 4,
                unchanged: false,
                warnings: vec!["n2 is declared dead: what only it held is lost".to_owned()],
            },
            instead: false,
            next: "dynamoctl change commit --remove n3".to_owned(),
        }
    }

    fn differences() -> Differences {
        Differences {
            remove: vec!["n3".to_owned()],
            ..Differences::default()
        }
    }

    #[test]
    fn a_plan_for_people() {
        let text = plan_text(&planned(), true, Output::piped());
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for line in [
            "MEMBER ZONE WEIGHT TOKENS PARTITIONS GETS CHANGE",
            "n1 a 1 2 6 0 -",
            "n2 a 1->0 2->0 6->0 0 dead",
            "n3 a 1->0 4->0 12->0 0 goes",
            "n4 a 0->1 0->2 0->6 6 replaces n2",
            "n5 a 0->1 0->2 0->6 6 joins",
            "n6 a 1->2 0->2 0->6 6 weighs",
            "moves 18 replica-partitions (minimum 12), about 1.5GiB; zone violations 0->4; 8 partitions",
            "warning: n2 is declared dead: what only it held is lost",
            "next: dynamoctl change commit --remove n3",
        ] {
            assert!(lines.iter().any(|shown| shown == line), "{line:?} in {text}");
        }
        assert!(!text.contains("takes the place"), "{text}");
    }

    #[test]
    fn a_plan_in_the_place_of_another_and_one_that_changes_nothing() {
        let mut planned = planned();
        planned.instead = true;
        let text = plan_text(&planned, false, Output::piped());
        assert!(
            text.contains("takes the place of the change to epoch 3"),
            "{text}"
        );
        assert!(!text.contains("next:"), "{text}");
        planned.plan.unchanged = true;
        let text = plan_text(&planned, true, Output::piped());
        assert!(text.contains("a commit changes nothing"), "{text}");
        assert!(!text.contains("next:") && !text.contains("moves"), "{text}");
        assert!(plan_json(&planned)["commit"].is_null());
    }

    #[test]
    fn a_plan_for_programs() {
        let json = plan_json(&planned());
        assert_eq!(json["expected_hash"], "00000000000000ab");
        assert_eq!(
            (&json["moves"], &json["bytes"]),
            (&18.into(), &(3_u64 << 29).into())
        );
        assert_eq!(json["members"][1]["change"], "dead");
        assert_eq!(json["members"][0]["change"], "");
        assert_eq!(json["commit"], "dynamoctl change commit --remove n3");
    }

    #[test]
    fn the_command_that_commits_names_the_node_and_the_plan() {
        use clap::Parser as _;
        let line = ["dynamoctl", "--admin", "h:1", "--admin", "h:2", "ring"];
        let global = crate::cli::Cli::try_parse_from(line).unwrap().global;
        assert_eq!(
            commit_command(&global, &differences(), &planned().plan),
            "dynamoctl --admin h:1,h:2 change commit --remove n3 --epoch 3 --hash 00000000000000ab"
        );
    }

    fn under_way() -> TransitionResponse {
        let names = |ids: &[&str]| ids.iter().map(ToString::to_string).collect();
        TransitionResponse {
            base_epoch: 3,
            base_hash: 9,
            base_members: names(&["n1", "n2"]),
            next_epoch: 4,
            next_hash: 10,
            next_members: names(&["n1", "n3"]),
            dead: names(&["n2"]),
            step: "synced".to_owned(),
            waits_for: names(&["n1", "n3", "n4", "n5", "n6"]),
            pulls: 4,
            pulled: 1,
            remaining_ms: Some(89_000),
            strays: 2,
            kept_members: names(&["n7", "n8"]),
        }
    }

    #[test]
    fn a_change_under_way() {
        assert_eq!(
            transition_text(&under_way()),
            "ring epoch 3 (hash 0000000000000009), 2 members\n\
             changes to epoch 4 (hash 000000000000000a), 2 members; joins n3; goes n2; dead n2\n\
             waits for step synced of n1, n3, n4, n5, n6\n\
             this node has pulled 1 of 4 partitions; about 89 seconds left\n\
             this node hands 2 partitions that are not its own to their owners\n\
             not let go before another ring serves, since this one lists the dead: n7, n8"
        );
        assert_eq!(
            step_line(&under_way()),
            "epoch 3 -> 4: step synced of n1, n3, n4 and 2 more, 2 strays"
        );
        let json = transition_json(&under_way());
        assert_eq!(
            (&json["next"]["epoch"], &json["step"]),
            (&4.into(), &"synced".into())
        );
    }

    #[test]
    fn no_change_under_way() {
        let said = TransitionResponse {
            base_epoch: 3,
            base_hash: 9,
            base_members: vec!["n1".to_owned()],
            ..TransitionResponse::default()
        };
        assert_eq!(
            transition_text(&said),
            "ring epoch 3 (hash 0000000000000009), 1 members: no change is under way"
        );
        let json = transition_json(&said);
        assert!(json["next"].is_null() && json["step"].is_null() && json["under_way"] == false);
    }
}
