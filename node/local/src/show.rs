//! What a person reads.

use std::{fmt::Display, io::Write as _, time::Duration};

use dynamo_local::{LocalRing, Running};

/// A line or more on standard output. That nobody reads it is no reason to stop a ring.
pub(crate) fn say(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// What goes on, on standard error.
pub(crate) fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "dynamo-local: {text}");
}

/// An error, on standard error.
pub(crate) fn complain(error: &dyn Display) {
    let _ = writeln!(std::io::stderr(), "dynamo-local: error: {error}");
}

/// What runs, and how to talk to it.
pub(crate) fn banner(ring: &LocalRing, took: Duration) -> String {
    let layout = ring.layout();
    let what = if ring.created() {
        "a new ring"
    } else {
        "the ring of last time"
    };
    let dir = ring.dir().display();
    let first = ring.nodes().first().map(dynamo_local::Node::addresses);
    let (client, http) = first
        .map(|addresses| (addresses.client.to_string(), addresses.http.to_string()))
        .unzip();
    let (client, http) = (client.unwrap_or_default(), http.unwrap_or_default());
    let programs = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.display().to_string()));
    let programs = programs.unwrap_or_default();
    let (endpoints, admins) = (ring.endpoints().join(","), admins(ring));
    let note = quorum_note(ring).map_or_else(String::new, |note| format!("\n{note}\n"));
    format!(
        "\n{layout}: {what}, ready after {:.1} s. Data and logs: {dir}\n\n{}\n\n\
         Talk to it from another terminal:\n\
         \x20 export PATH={programs}:$PATH\n\
         \x20 export DYNAMO_ENDPOINT={endpoints}\n\
         \x20 export DYNAMO_ADMIN={admins}\n\
         \x20 dynamoctl put cart milk\n\
         \x20 dynamoctl get cart\n\
         \x20 dynamoctl status --all\n\
         \x20 grpcurl -plaintext -d '{{\"key\":\"Y2FydA==\"}}' {client} dynamo.v1.KeyValue/Get\n\
         \x20 curl -s http://{http}/metrics\n{note}",
        took.as_secs_f32(),
        table(ring),
    )
}

/// The nodes in columns.
pub(crate) fn table(ring: &LocalRing) -> String {
    let header = ["MEMBER", "ZONE", "CLIENTS", "ADMIN", "HTTP", "PID", "LOG"].map(str::to_owned);
    let rows = ring.nodes().iter().map(|node| {
        let addresses = node.addresses();
        let pid = match node.running() {
            Running::Yes { pid } => pid.to_string(),
            Running::Paused { pid } => format!("{pid} paused"),
            Running::No => "down".to_owned(),
        };
        let log = node.log();
        let log = log.strip_prefix(ring.dir()).unwrap_or(&log).display().to_string();
        let [client, admin, http] =
            [addresses.client, addresses.admin, addresses.http].map(|address| address.to_string());
        [
            node.member().to_owned(),
            node.zone().to_owned(),
            client,
            admin,
            http,
            pid,
            log,
        ]
    });
    columns(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

/// Left-aligned columns, two spaces apart.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `host:port` of every admin port, with commas.
pub(crate) fn admins(ring: &LocalRing) -> String {
    ring.nodes()
        .iter()
        .map(|node| node.addresses().admin.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

/// What to expect of quorums that are unusual.
fn quorum_note(ring: &LocalRing) -> Option<String> {
    let (r, w) = ring.quorums();
    let factor = ring.layout().factor;
    (r + w <= factor).then(|| {
        format!("R={r} and W={w} do not overlap among N={factor} replicas: a get may miss the latest put (paper: §4.5).")
    })
}

pub(crate) fn prompt_hint() -> String {
    "A tour of what makes it a Dynamo: type `tour`. All commands: `help`. Ctrl-C stops the nodes; the data stay.\n".to_owned()
}

/// For those who have no prompt.
pub(crate) fn tour_by_hand() -> String {
    "A tour by hand (in a terminal there is a prompt here, whose `tour` does it; `make tour` does it unattended):
  dynamoctl put basket milk
  dynamoctl get basket                                          # the value, and a context: TOKEN
  dynamoctl put basket milk,bread --context TOKEN               # two who have seen the same ...
  dynamoctl put basket milk,eggs --context TOKEN
  dynamoctl get basket                                          # ... make siblings: both are kept
  dynamoctl put basket milk,bread,eggs --context NEWER_TOKEN    # resolved: the context covers both
  kill -9 PID...                                                # those of a zone, from the table above
  dynamoctl get basket                                          # reads and writes go on
Commands on standard input work as at the prompt: kill zone-a, start zone-a, status, quit, ...
Ctrl-C or SIGTERM stops the nodes; the data stay.
"
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["A", "LONG"], ["wide", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "A     LONG\nwide  x");
    }
}
