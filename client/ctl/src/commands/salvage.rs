//! salvage: merges a store that was set aside, and shows how far it is.

use std::process::ExitCode;

use dynamo_proto::admin::{SalvageProgress, SalvageRequest, admin_client::AdminClient};
use serde_json::json;

use crate::{
    cli::{Global, admin::Salvage},
    connect::Admin,
    failure::Failure,
    output::Output,
};

const PROGRESS: &str = "{wide_bar} {percent} % {msg} {elapsed}";

pub(crate) async fn salvage(global: &Global, options: &Salvage, output: Output) -> Result<ExitCode, Failure> {
    let admin = Admin::first(global).await?;
    let attempted = format!("cannot salvage {}", options.store);
    let request = SalvageRequest {
        store: options.store.clone(),
        dry_run: !options.yes,
    };
    let send = |mut stub: AdminClient<_>, request| async move { stub.salvage(request).await };
    let mut reports = admin.call(attempted.clone(), request, send).await?;
    let bar = output.progress(Some(100), PROGRESS);
    let mut done = SalvageProgress::default();
    loop {
        match reports.message().await {
            Ok(Some(progress)) => {
                bar.set_position(progress.percent.into());
                bar.set_message(format!("{} records", progress.records));
                done = progress;
            }
            Ok(None) => break,
            Err(status) => return Err(Failure::admin(attempted, &status)),
        }
    }
    bar.finish_and_clear();
    if done.percent < 100 {
        let cause = format!("the node ended it after {} records", done.records);
        return Err(Failure::new(attempted, cause).hint("run it again: what was merged already does no harm"));
    }
    let left = if options.yes {
        done.records - done.merged
    } else {
        0
    };
    let json = json!({
        "admin_address": admin.address, "store": options.store, "dry_run": !options.yes, "records": done.records,
        "merged": done.merged, "not_merged": left, "damaged": done.damaged, "gaps": done.gaps,
    });
    output.print(&json, |_| text(options, &done, left))?;
    Ok(if left == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn text(options: &Salvage, done: &SalvageProgress, left: u64) -> String {
    let unreadable = match (done.damaged, done.gaps) {
        (0, 0) => String::new(),
        (damaged, gaps) => format!("; {damaged} records are damaged, and {gaps} places could not be read"),
    };
    let records = done.records;
    let store = &options.store;
    if !options.yes {
        return format!(
            "{store}: {records} records can be read{unreadable}\nnothing was merged: say --yes for that"
        );
    }
    let left = match left {
        0 => String::new(),
        left => format!(
            "\n{left} were not taken by all of their primaries: run it again once `dynamoctl members` shows all of them"
        ),
    };
    format!(
        "{store}: {} of {records} records were merged{unreadable}{left}",
        done.merged
    )
}
