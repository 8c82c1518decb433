//! hints, exchanges, repair, tasks: what nodes do in the background to keep replicas whole.

use std::{collections::BTreeMap, fmt::Write as _, process::ExitCode};

use dynamo_proto::admin::{
    AcceptLossRequest, ExchangeInfo, ExchangesRequest, ExchangesResponse, HintsRequest, HintsResponse,
    PauseTaskRequest, PreferenceListRequest, RepairRequest, RepairResponse, RingRequest, TasksRequest,
    TasksResponse, admin_client::AdminClient,
};
use serde_json::{Map, Value, json};

use crate::{
    cli::{
        Global, Key,
        admin::{AcceptLoss, Exchanges, Hints, Repair, TaskAction, Tasks},
    },
    commands::everyone::{self, Answer},
    connect::Admin,
    failure::Failure,
    output::{Columns, Output},
    values,
};

pub(crate) async fn hints(global: &Global, options: &Hints, output: Output) -> Result<ExitCode, Failure> {
    let question = |admin: Admin| async move {
        let send = |mut stub: AdminClient<_>, request| async move { stub.hints(request).await };
        admin.call("cannot count the hints", HintsRequest {}, send).await
    };
    let answers = everyone::ask(global, options.all, question).await?;
    let json = everyone::nodes_json(&answers, |hints: &HintsResponse| {
        let owners = hints.owners.iter();
        let owners = owners
            .map(|owner| json!({ "member_id": owner.member_id, "hints": owner.hints, "bytes": owner.bytes }));
        object([
            ("hints", owners.collect()),
            ("bytes", hints.bytes.into()),
            ("bytes_max", hints.bytes_max.into()),
            ("declined", hints.declined.into()),
        ])
    });
    output.print(&json, |output| hints_text(&answers, output))?;
    Ok(everyone::code(&answers))
}

fn hints_text(answers: &[Answer<HintsResponse>], output: Output) -> String {
    let mut columns = Columns::new(&["KEPT BY", "FOR", "HINTS", "BYTES"], &[2, 3]);
    let mut notes = String::new();
    for answer in answers {
        let Ok(hints) = &answer.said else { continue };
        for owner in &hints.owners {
            columns.row([
                answer.name(),
                owner.member_id.clone(),
                owner.hints.to_string(),
                values::size(owner.bytes),
            ]);
        }
        let room = format!(
            "{} of {}",
            values::size(hints.bytes),
            values::size(hints.bytes_max)
        );
        let _ = write!(
            notes,
            "\n{}: hints take {room}, {} declined for want of room",
            answer.name(),
            hints.declined
        );
    }
    output.table(&columns) + &notes + &everyone::silent(answers)
}

pub(crate) async fn exchanges(
    global: &Global,
    options: &Exchanges,
    output: Output,
) -> Result<ExitCode, Failure> {
    let question = |admin: Admin| async move {
        let send = |mut stub: AdminClient<_>, request| async move { stub.exchanges(request).await };
        let attempted = "cannot list the exchanges";
        admin.call(attempted, ExchangesRequest {}, send).await
    };
    let answers = everyone::ask(global, options.all, question).await?;
    let json = everyone::nodes_json(&answers, |said: &ExchangesResponse| {
        let exchanges = said.exchanges.iter();
        let exchanges = exchanges.map(|exchange| {
            json!({
                "partition": exchange.partition, "member_id": exchange.member_id, "age_ms": exchange.age_ms,
            })
        });
        object([("exchanges", exchanges.collect())])
    });
    output.print(&json, |output| {
        let table = if options.partitions {
            partitions_table(&answers)
        } else {
            peers_table(&answers)
        };
        output.table(&table) + &everyone::silent(&answers)
    })?;
    Ok(everyone::code(&answers))
}

fn partitions_table(answers: &[Answer<ExchangesResponse>]) -> Columns {
    let mut columns = Columns::new(&["MEMBER", "PARTITION", "WITH", "LAST"], &[1, 3]);
    for answer in answers {
        for exchange in answer.said.iter().flat_map(|said| &said.exchanges) {
            columns.row([
                answer.name(),
                exchange.partition.to_string(),
                exchange.member_id.clone(),
                exchange.age_ms.map_or_else(|| "never".to_owned(), age),
            ]);
        }
    }
    columns
}

/// A row for each pair of members.
fn peers_table(answers: &[Answer<ExchangesResponse>]) -> Columns {
    let header = ["MEMBER", "WITH", "PARTITIONS", "NEVER", "OLDEST"];
    let mut columns = Columns::new(&header, &[2, 3, 4]);
    for answer in answers {
        let mut peers: BTreeMap<&str, Vec<&ExchangeInfo>> = BTreeMap::new();
        for exchange in answer.said.iter().flat_map(|said| &said.exchanges) {
            peers.entry(&exchange.member_id).or_default().push(exchange);
        }
        for (peer, exchanges) in peers {
            let ages = || exchanges.iter().filter_map(|exchange| exchange.age_ms);
            columns.row([
                answer.name(),
                peer.to_owned(),
                exchanges.len().to_string(),
                (exchanges.len() - ages().count()).to_string(),
                ages().max().map(age).unwrap_or_default(),
            ]);
        }
    }
    columns
}

/// A time span for people.
fn age(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms}ms"),
        s @ 1..=119 => format!("{s}s"),
        s @ 120..=7199 => format!("{}m", s / 60),
        s @ 7200..=172_799 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

pub(crate) async fn repair(global: &Global, options: &Repair, output: Output) -> Result<ExitCode, Failure> {
    let admin = Admin::first(global).await?;
    let number = options.target.parse::<u32>().ok();
    let (partition, primaries) = match number.filter(|_| !options.key && !options.hex) {
        Some(partition) => (partition, vec![owner(&admin, partition).await?]),
        None => primaries(global, options, &admin).await?,
    };
    let peers = everyone::peers(&admin).await?.peers;
    let reachable = peers.iter().filter(|peer| peer.reachable);
    let addresses: BTreeMap<_, _> = reachable
        .map(|peer| (peer.member_id.as_str(), peer.admin_address.as_str()))
        .collect();
    // A partition's owner alone is known by number; if it cannot be reached, the asked node may be another primary.
    let found = primaries
        .iter()
        .find_map(|member| Some((member.as_str(), *addresses.get(member.as_str())?)));
    let (member, node) = match found {
        Some((member, address)) => (member, everyone::reach(global, address).await?),
        None => ("", admin),
    };
    let send = |mut stub: AdminClient<_>, request| async move { stub.repair(request).await };
    let attempted = format!("cannot repair partition {partition}");
    let reply: RepairResponse = node.call(attempted, RepairRequest { partition }, send).await?;
    let json = json!({
        "partition": partition, "asked": member, "admin_address": node.address, "exchanged": reply.exchanged,
        "failed": reply.failed, "keys_pulled": reply.keys_pulled, "keys_pushed": reply.keys_pushed,
    });
    output.print(&json, |_| {
        let mut text = format!(
            "partition {partition}: {} keys pulled and {} pushed by {}",
            reply.keys_pulled,
            reply.keys_pushed,
            if member.is_empty() { &node.address } else { member },
        );
        if !reply.exchanged.is_empty() {
            let _ = write!(text, "\nexchanged with {}", reply.exchanged.join(", "));
        }
        for failed in &reply.failed {
            let _ = write!(text, "\nnot exchanged: {failed}");
        }
        text
    })?;
    Ok(if reply.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub(crate) async fn accept_loss(
    global: &Global,
    options: &AcceptLoss,
    output: Output,
) -> Result<ExitCode, Failure> {
    let admin = Admin::first(global).await?;
    let request = AcceptLossRequest {
        partitions: options.partitions.clone(),
    };
    let send = |mut stub: AdminClient<_>, request| async move { stub.accept_loss(request).await };
    let reply = admin.call("cannot accept the loss", request, send).await?;
    let json = json!({ "admin_address": admin.address, "accepted": reply.accepted });
    output.print(&json, |_| match reply.accepted.len() {
        0 => "none of these partitions is suspect on this node".to_owned(),
        count => {
            format!("{count} partitions answer reads again; what was still missing in them counts as lost")
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The first primary of a partition is the owner of its token.
async fn owner(admin: &Admin, partition: u32) -> Result<String, Failure> {
    let send = |mut stub: AdminClient<_>, request| async move { stub.ring(request).await };
    let reply = admin.call("cannot read the ring", RingRequest {}, send).await?;
    let ring = reply.ring.unwrap_or_default();
    let owner = ring.owners.get(partition as usize);
    let member = owner.and_then(|owner| ring.members.get(*owner as usize));
    member.map(|member| member.member_id.clone()).ok_or_else(|| {
        Failure::new(
            format!("cannot repair partition {partition}"),
            format!(
                "the ring has the partitions 0 to {}",
                ring.owners.len().saturating_sub(1)
            ),
        )
        .hint("for a key that looks like a number, pass --key")
    })
}

async fn primaries(global: &Global, options: &Repair, admin: &Admin) -> Result<(u32, Vec<String>), Failure> {
    let key = Key {
        key: options.target.clone(),
        hex: options.hex,
    };
    let key = key.bytes()?;
    let attempted = format!("cannot find who holds {:?}", values::show(&key));
    let request = PreferenceListRequest {
        bucket: global.bucket.clone(),
        key,
    };
    let send = |mut stub: AdminClient<_>, request| async move { stub.preference_list(request).await };
    let list = admin.call(attempted, request, send).await?;
    let primaries = list
        .entries
        .into_iter()
        .filter(|entry| entry.primary && entry.reachable);
    Ok((list.partition, primaries.map(|entry| entry.member_id).collect()))
}

pub(crate) async fn tasks(global: &Global, options: &Tasks, output: Output) -> Result<ExitCode, Failure> {
    let change = match &options.action {
        None => None,
        Some(TaskAction::Pause { name }) => Some((name, true)),
        Some(TaskAction::Resume { name }) => Some((name, false)),
    };
    let question = |admin: Admin| async move {
        if let Some((name, paused)) = change {
            let request = PauseTaskRequest {
                name: name.clone(),
                paused,
            };
            let send = |mut stub: AdminClient<_>, request| async move { stub.pause_task(request).await };
            let what = if paused { "pause" } else { "resume" };
            admin
                .call(format!("cannot {what} {name:?}"), request, send)
                .await?;
        }
        let send = |mut stub: AdminClient<_>, request| async move { stub.tasks(request).await };
        admin.call("cannot list the tasks", TasksRequest {}, send).await
    };
    let answers = everyone::ask(global, options.all, question).await?;
    let json = everyone::nodes_json(&answers, tasks_json);
    output.print(&json, |output| tasks_text(&answers, output))?;
    Ok(everyone::code(&answers))
}

fn tasks_json(said: &TasksResponse) -> Map<String, Value> {
    let tasks = said.tasks.iter();
    let tasks =
        tasks.map(|task| json!({ "name": task.name, "paused": task.paused, "operations": task.operations }));
    object([
        ("tasks", tasks.collect()),
        ("foreground_p99_us", said.foreground_p99_us.into()),
        ("operations_per_s", said.operations_per_s.into()),
    ])
}

fn tasks_text(answers: &[Answer<TasksResponse>], output: Output) -> String {
    let mut columns = Columns::new(&["MEMBER", "TASK", "STATE", "OPERATIONS"], &[3]);
    let mut notes = String::new();
    for answer in answers {
        let Ok(said) = &answer.said else { continue };
        for task in &said.tasks {
            columns.row([
                answer.name(),
                task.name.clone(),
                if task.paused { "paused" } else { "runs" }.to_owned(),
                task.operations.to_string(),
            ]);
        }
        let _ = write!(
            notes,
            "\n{}: {} operations a second allowed, client requests' p99 {:.1} ms",
            answer.name(),
            said.operations_per_s,
            said.foreground_p99_us as f64 / 1000.0,
        );
    }
    output.table(&columns) + &notes + &everyone::silent(answers)
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let ages = [
            (5, "5ms"),
            (119_000, "119s"),
            (120_000, "2m"),
            (7_200_000, "2h"),
            (172_800_000, "2d"),
        ];
        for (ms, text) in ages {
            assert_eq!(age(ms), text);
        }
    }
}
