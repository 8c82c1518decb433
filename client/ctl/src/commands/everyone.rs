//! One question to one node, or to every member.

use std::process::ExitCode;

use dynamo_proto::admin::{PeersRequest, PeersResponse};
use futures::{StreamExt as _, stream};
use serde_json::{Map, Value, json};

use crate::{cli::Global, connect::Admin, failure::Failure};

/// Nodes asked at once.
const NODES_ASKED_AT_ONCE: usize = 32;

/// What one node said.
#[derive(Debug)]
pub(super) struct Answer<T> {
    /// Empty where only an address was given.
    pub(super) member: String,
    pub(super) address: String,
    pub(super) said: Result<T, Failure>,
}

/// Asks the first node that can be reached, or with `all` every member that it knows, each at its own admin address.
pub(super) async fn ask<T, F>(
    global: &Global,
    all: bool,
    question: impl Fn(Admin) -> F,
) -> Result<Vec<Answer<T>>, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let admin = Admin::first(global).await?;
    let members = if all {
        peers(&admin).await?.peers
    } else {
        Vec::new()
    };
    if members.is_empty() {
        let address = admin.address.clone();
        let said = Ok(question(admin).await?);
        return Ok(vec![Answer {
            member: String::new(),
            address,
            said,
        }]);
    }
    let asked = members.into_iter().map(|peer| {
        let question = &question;
        async move {
            let said = match reach(global, &peer.admin_address).await {
                Ok(admin) => question(admin).await,
                Err(failure) => Err(failure),
            };
            Answer {
                member: peer.member_id,
                address: peer.admin_address,
                said,
            }
        }
    });
    let asked: Vec<_> = asked.collect();
    Ok(stream::iter(asked).buffered(NODES_ASKED_AT_ONCE).collect().await)
}

/// The members as one node sees them.
pub(super) async fn peers(admin: &Admin) -> Result<PeersResponse, Failure> {
    let send = |mut stub: dynamo_proto::admin::admin_client::AdminClient<_>, request| async move {
        stub.peers(request).await
    };
    admin.call("cannot list the members", PeersRequest {}, send).await
}

/// A member, by the admin address that it has announced.
pub(super) async fn reach(global: &Global, address: &str) -> Result<Admin, Failure> {
    if address.is_empty() {
        return Err(Failure::new(
            "cannot ask the member",
            "its admin address is not known yet",
        ));
    }
    Admin::at(address, global.timeout).await
}

/// 1 if a node could not be asked.
pub(super) fn code<T>(answers: &[Answer<T>]) -> ExitCode {
    if answers.iter().all(|answer| answer.said.is_ok()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl<T> Answer<T> {
    /// For a table.
    pub(super) fn name(&self) -> String {
        if self.member.is_empty() {
            self.address.clone()
        } else {
            self.member.clone()
        }
    }

    /// `told` with the node's name, or why there is nothing to tell.
    pub(super) fn json(&self, told: impl FnOnce(&T) -> Map<String, Value>) -> Value {
        let mut object = match &self.said {
            Ok(said) => told(said),
            Err(failure) => Map::from_iter([("error".to_owned(), failure.to_string().into())]),
        };
        object.insert("member_id".to_owned(), self.member.as_str().into());
        object.insert("admin_address".to_owned(), self.address.as_str().into());
        object.into()
    }

    /// Why the node said nothing, in a line.
    pub(super) fn why_not(&self) -> Option<String> {
        let failure = self.said.as_ref().err()?;
        Some(failure.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

/// `{"nodes": [...]}`.
pub(super) fn nodes_json<T>(answers: &[Answer<T>], told: impl Fn(&T) -> Map<String, Value>) -> Value {
    let nodes = answers.iter().map(|answer| answer.json(&told));
    json!({ "nodes": nodes.collect::<Vec<_>>() })
}

/// Lines under a table that name the nodes that said nothing.
pub(super) fn silent<T>(answers: &[Answer<T>]) -> String {
    let lines = answers
        .iter()
        .filter_map(|answer| Some(format!("\n{}: {}", answer.name(), answer.why_not()?)));
    lines.collect()
}
