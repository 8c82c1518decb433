//! status: what nodes are and how they are.

use std::process::ExitCode;

use dynamo_proto::admin::{StatusRequest, StatusResponse, status_response::State};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::{
    cli::{Global, Status},
    commands::cluster::peers,
    connect::Admin,
    failure::Failure,
    output::{Columns, Output},
    values,
};

/// Nodes asked at once by `status --all`.
const NODES_ASKED_AT_ONCE: usize = 32;

/// A node's address and what it said.
type Answer = (String, String, Result<StatusResponse, Failure>);

/// The exit code is 1 if a node could not be asked or is not ready.
pub(crate) async fn status(global: &Global, options: &Status, output: Output) -> Result<ExitCode, Failure> {
    let answers = if options.all {
        all_answers(global).await?
    } else {
        vec![one_answer(global).await?]
    };
    let ready = |answer: &Answer| {
        answer
            .2
            .as_ref()
            .is_ok_and(|status| status.state() == State::Valid)
    };
    let all_ready = answers.iter().all(ready);
    let nodes = answers.iter().map(|(member, address, answer)| match answer {
        Ok(status) => status_json(address, status),
        Err(failure) => {
            json!({ "member_id": member, "admin_address": address, "error": failure.to_string() })
        }
    });
    let json = json!({ "ready": all_ready, "nodes": nodes.collect::<Vec<_>>() });
    output.print(&json, |output| status_text(&answers, output))?;
    Ok(if all_ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn ask(admin: &Admin) -> Result<StatusResponse, Failure> {
    let send = |mut stub: dynamo_proto::admin::admin_client::AdminClient<_>, request| async move {
        stub.status(request).await
    };
    admin.call("cannot read the status", StatusRequest {}, send).await
}

async fn one_answer(global: &Global) -> Result<Answer, Failure> {
    let admin = Admin::first(global).await?;
    let status = ask(&admin).await?;
    Ok((status.member_id.clone(), admin.address, Ok(status)))
}

async fn all_answers(global: &Global) -> Result<Vec<Answer>, Failure> {
    let admin = Admin::first(global).await?;
    let peers = peers(&admin).await?.peers;
    if peers.is_empty() {
        return Ok(vec![one_answer(global).await?]);
    }
    let asked = peers.into_iter().map(|peer| async move {
        let answer = if peer.admin_address.is_empty() {
            Err(Failure::new(
                "cannot read the status",
                "the member's admin address is not known yet",
            ))
        } else {
            match Admin::at(&peer.admin_address, global.timeout).await {
                Ok(admin) => ask(&admin).await,
                Err(failure) => Err(failure),
            }
        };
        (peer.member_id, peer.admin_address, answer)
    });
    let asked: Vec<_> = asked.collect();
    Ok(stream::iter(asked).buffered(NODES_ASKED_AT_ONCE).collect().await)
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

fn status_json(address: &str, status: &StatusResponse) -> Value {
    json!({
        "member_id": status.member_id, "admin_address": address, "state": state(status), "zone": status.zone,
        "cluster_id": values::show_cluster_id(&status.cluster_id),
        "incarnation_generation": status.incarnation_generation,
        "incarnation_id": format!("{:016x}", status.incarnation_id),
        "ring_epoch": status.ring_epoch, "ring_hash": format!("{:016x}", status.ring_hash),
        "tokens": status.tokens, "partitions": status.partitions, "release": status.release,
        "uptime_s": status.uptime_s, "keys_estimate": status.keys_estimate, "data_bytes": status.data_bytes,
        "peers_down": status.peers_down, "not_ready_reason": status.not_ready_reason,
    })
}

fn status_text(answers: &[Answer], output: Output) -> String {
    let header = [
        "MEMBER",
        "STATE",
        "ZONE",
        "EPOCH",
        "TOKENS",
        "PARTITIONS",
        "KEYS",
        "DATA",
        "UPTIME",
        "PEERS DOWN",
        "NOTE",
    ];
    let mut columns = Columns::new(&header, &[3, 4, 5, 6, 7, 8]);
    for (member, address, answer) in answers {
        let name = if member.is_empty() { address } else { member };
        match answer {
            Ok(status) => columns.row([
                name.clone(),
                state(status).to_owned(),
                status.zone.clone(),
                status.ring_epoch.to_string(),
                status.tokens.to_string(),
                status.partitions.to_string(),
                status.keys_estimate.to_string(),
                size(status.data_bytes),
                format!("{}s", status.uptime_s),
                status.peers_down.join(","),
                status.not_ready_reason.clone(),
            ]),
            Err(failure) => {
                let mut row = vec![name.clone(), "unreachable".to_owned()];
                row.extend(vec![String::new(); header.len() - 3]);
                row.push(failure.to_string().lines().next().unwrap_or_default().to_owned());
                columns.row(row);
            }
        }
    }
    output.table(&columns)
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(4);
    if unit == 0 {
        format!("{bytes}B")
    } else {
        format!(
            "{:.1}{}",
            bytes as f64 / 1024f64.powf(f64::from(unit)),
            units[unit as usize]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let sizes = [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (3 << 19, "1.5MiB"),
            (u64::MAX, "16777216.0TiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
    }
}
