//! status: what nodes are and how they are.

use std::process::ExitCode;

use dynamo_proto::admin::{StatusRequest, StatusResponse, admin_client::AdminClient, status_response::State};
use serde_json::{Map, Value, json};

use crate::{
    cli::{Global, Status},
    commands::everyone::{self, Answer},
    connect::Admin,
    failure::Failure,
    output::{Columns, Output},
    values,
};

/// The exit code is 1 if a node could not be asked or is not ready.
pub(crate) async fn status(global: &Global, options: &Status, output: Output) -> Result<ExitCode, Failure> {
    let question = |admin: Admin| async move {
        let send = |mut stub: AdminClient<_>, request| async move { stub.status(request).await };
        admin.call("cannot read the status", StatusRequest {}, send).await
    };
    let mut answers = everyone::ask(global, options.all, question).await?;
    for answer in &mut answers {
        if let Ok(status) = &answer.said {
            answer.member.clone_from(&status.member_id);
        }
    }
    let ready = |answer: &Answer<StatusResponse>| {
        answer
            .said
            .as_ref()
            .is_ok_and(|status| status.state() == State::Valid)
    };
    let all_ready = answers.iter().all(ready);
    let nodes = answers.iter().map(|answer| answer.json(status_json));
    let json = json!({ "ready": all_ready, "nodes": nodes.collect::<Vec<_>>() });
    output.print(&json, |output| status_text(&answers, output))?;
    Ok(if all_ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn state(status: &StatusResponse) -> &'static str {
    match status.state() {
        State::Unspecified => "unknown",
        State::Unassigned => "unassigned",
        State::Joining => "joining",
        State::Valid => "valid",
        State::Draining => "draining",
    }
}

fn status_json(status: &StatusResponse) -> Map<String, Value> {
    let object = json!({
        "state": state(status), "zone": status.zone,
        "cluster_id": values::show_cluster_id(&status.cluster_id),
        "incarnation_generation": status.incarnation_generation,
        "incarnation_id": format!("{:016x}", status.incarnation_id),
        "ring_epoch": status.ring_epoch, "ring_hash": format!("{:016x}", status.ring_hash),
        "tokens": status.tokens, "partitions": status.partitions, "release": status.release,
        "uptime_s": status.uptime_s, "keys_estimate": status.keys_estimate, "data_bytes": status.data_bytes,
        "hints": status.hints, "partitions_suspect": status.partitions_suspect,
        "confirming": status.confirming,
        "peers_down": status.peers_down, "not_ready_reason": status.not_ready_reason,
    });
    match object {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn status_text(answers: &[Answer<StatusResponse>], output: Output) -> String {
    let header = [
        "MEMBER",
        "STATE",
        "ZONE",
        "EPOCH",
        "TOKENS",
        "PARTITIONS",
        "KEYS",
        "DATA",
        "HINTS",
        "SUSPECT",
        "UPTIME",
        "PEERS DOWN",
        "NOTE",
    ];
    let mut columns = Columns::new(&header, &[3, 4, 5, 6, 7, 8, 9, 10]);
    for answer in answers {
        let Ok(status) = &answer.said else {
            let mut row = vec![answer.name(), "unreachable".to_owned()];
            row.extend(vec![String::new(); header.len() - 3]);
            row.push(answer.why_not().unwrap_or_default());
            columns.row(row);
            continue;
        };
        columns.row([
            answer.name(),
            state(status).to_owned(),
            status.zone.clone(),
            status.ring_epoch.to_string(),
            status.tokens.to_string(),
            status.partitions.to_string(),
            status.keys_estimate.to_string(),
            values::size(status.data_bytes),
            status.hints.to_string(),
            status.partitions_suspect.to_string(),
            format!("{}s", status.uptime_s),
            status.peers_down.join(","),
            status.not_ready_reason.clone(),
        ]);
    }
    output.table(&columns)
}
