//! change: plans a change of the ring, shows the plan, commits it, watches it.

mod target;

mod shown;

mod watch;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use dynamo_proto::admin::{
    CommitRequest, CommitResponse, PlanRequest, PlanResponse, RingRequest, RingTarget, TransitionRequest,
    TransitionResponse, admin_client::AdminClient,
};
use serde_json::json;

use self::target::Newest;
use crate::{
    cli::{
        Global,
        change::{Change, ChangeAction, ChangeCommit, ChangeStatus, Differences},
    },
    connect::Admin,
    failure::Failure,
    output::{self, Output},
};

const PLAN: &str = "cannot plan the change";
const COMMIT: &str = "cannot commit the change";
const AGAIN: &str = "plan again, look at it, and commit that";

/// A change, worked out by a node.
#[derive(Debug)]
struct Planned {
    target: RingTarget,
    plan: PlanResponse,
    /// The plan takes the place of a change that is under way.
    instead: bool,
    /// The command that commits it.
    next: String,
}

/// The exit code is 1 if a commit was declined, or if another change took its place.
pub(crate) async fn change(global: &Global, change: &Change, output: Output) -> Result<ExitCode, Failure> {
    match &change.action {
        ChangeAction::Plan(options) => {
            let admin = Admin::first(global).await?;
            let newest = newest(&admin, PLAN).await?;
            let planned = plan(global, &admin, &newest, &options.differences).await?;
            output.print(&shown::plan_json(&planned), |output| {
                shown::plan_text(&planned, true, output)
            })?;
            Ok(ExitCode::SUCCESS)
        }
        ChangeAction::Commit(options) => commit(global, options, output).await,
        ChangeAction::Status(options) => status(global, options, output).await,
    }
}

async fn transition(admin: &Admin, attempted: &str) -> Result<TransitionResponse, Failure> {
    let send = |mut stub: AdminClient<_>, request| async move { stub.transition(request).await };
    admin.call(attempted, TransitionRequest {}, send).await
}

async fn newest(admin: &Admin, attempted: &str) -> Result<Newest, Failure> {
    Ok(Newest::new(&transition(admin, attempted).await?))
}

async fn plan(
    global: &Global,
    admin: &Admin,
    newest: &Newest,
    differences: &Differences,
) -> Result<Planned, Failure> {
    let target = target_of(admin, newest, differences, PLAN).await?;
    let send = |mut stub: AdminClient<_>, request| async move { stub.plan(request).await };
    let request = PlanRequest {
        target: Some(target.clone()),
    };
    let plan = admin.call(PLAN, request, send).await;
    let plan = plan.map_err(|failure| {
        if failure.is_silent() {
            return failure;
        }
        failure.hint("`dynamoctl ring` shows the members with their zones and weights, `dynamoctl members` who has joined")
    })?;
    // Otherwise the target would undo what somebody else committed in between.
    if plan.expected_epoch != newest.epoch {
        return Err(Failure::new(
            PLAN,
            format!(
                "the ring changed in the meantime, from epoch {} to {}",
                newest.epoch, plan.expected_epoch
            ),
        )
        .hint("plan again"));
    }
    let next = shown::commit_command(global, differences, &plan);
    Ok(Planned {
        target,
        plan,
        instead: newest.under_way,
        next,
    })
}

async fn target_of(
    admin: &Admin,
    newest: &Newest,
    differences: &Differences,
    attempted: &str,
) -> Result<RingTarget, Failure> {
    let ring = if Newest::needs_ring(differences) {
        let send = |mut stub: AdminClient<_>, request| async move { stub.ring(request).await };
        admin.call(attempted, RingRequest {}, send).await?.ring
    } else {
        None
    };
    target::target(newest, ring.as_ref(), differences).map_err(|cause| {
        Failure::new(attempted, cause)
            .hint("`dynamoctl change status` shows the members of the newest ring and whether a change is under way")
    })
}

async fn commit(global: &Global, options: &ChangeCommit, output: Output) -> Result<ExitCode, Failure> {
    let expected = options.epoch.zip(options.hash);
    let asks = expected.is_none() && !options.yes;
    if asks && !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::new(
            COMMIT,
            "nobody can be asked whether to proceed: this is no terminal",
        )
        .hint("look at `dynamoctl change plan`, then pass the --epoch and --hash that it prints, or --yes"));
    }
    let admin = Admin::first(global).await?;
    let newest = newest(&admin, COMMIT).await?;
    let (reply, planned) = if let Some((epoch, hash)) = expected {
        (as_planned(&admin, &newest, options, epoch, hash).await?, None)
    } else {
        let planned = plan(global, &admin, &newest, &options.differences).await?;
        show(&planned, asks, output)?;
        if asks && !planned.plan.unchanged && !proceed().await? {
            output::note("nothing was changed");
            return Ok(ExitCode::FAILURE);
        }
        let request = CommitRequest {
            target: Some(planned.target.clone()),
            expected_epoch: planned.plan.expected_epoch,
            expected_hash: shown::planned_hash(&planned.plan),
        };
        (send(&admin, request).await?, Some(planned))
    };
    let mut json = json!({
        "epoch": reply.epoch, "hash": format!("{:016x}", reply.hash), "proposed": reply.proposed,
    });
    if let Some(planned) = &planned {
        json["plan"] = shown::plan_json(planned);
    }
    let told = shown::commit_text(&reply, options.wait);
    if !options.wait {
        output.print(&json, |_| told)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !output.is_json() {
        output::write(format!("{told}\n").as_bytes())?;
    }
    let last = watch::watch(global, admin, reply.epoch, output).await?;
    json["transition"] = shown::transition_json(&last);
    output.print(&json, |_| shown::transition_text(&last))?;
    Ok(
        if (last.base_epoch, last.base_hash) == (reply.epoch, reply.hash) {
            ExitCode::SUCCESS
        } else {
            output::note("another change took the place of this one");
            ExitCode::FAILURE
        },
    )
}

/// Before the question. JSON is one object, which has the plan too: there, a person who is asked sees it on standard error.
fn show(planned: &Planned, asks: bool, output: Output) -> Result<(), Failure> {
    let text = shown::plan_text(planned, false, output);
    if !output.is_json() {
        return output::write(format!("{text}\n").as_bytes());
    }
    if asks {
        output::note(&text);
    }
    Ok(())
}

/// Commits what an earlier plan showed. A commit that was done already is not an error, so that it can be repeated.
async fn as_planned(
    admin: &Admin,
    newest: &Newest,
    options: &ChangeCommit,
    epoch: u64,
    hash: u64,
) -> Result<CommitResponse, Failure> {
    if newest.epoch.checked_sub(1) == Some(epoch) && newest.hash == hash {
        return Ok(CommitResponse {
            epoch: newest.epoch,
            hash: newest.hash,
            proposed: false,
        });
    }
    if newest.epoch != epoch {
        let cause = format!(
            "the plan begins from epoch {epoch}, but the newest ring has epoch {}",
            newest.epoch
        );
        return Err(Failure::new(COMMIT, cause).hint(AGAIN));
    }
    let target = target_of(admin, newest, &options.differences, COMMIT).await?;
    let request = CommitRequest {
        target: Some(target),
        expected_epoch: epoch,
        expected_hash: hash,
    };
    send(admin, request).await
}

async fn send(admin: &Admin, request: CommitRequest) -> Result<CommitResponse, Failure> {
    let send = |mut stub: AdminClient<_>, request| async move { stub.commit(request).await };
    admin.call(COMMIT, request, send).await.map_err(|failure| {
        let hint = if failure.is_silent() {
            "the ring may be proposed all the same: `dynamoctl change status` shows it; a commit with the plan's --epoch and \
             --hash can be repeated"
        } else {
            "`dynamoctl change status` shows the newest ring and whether a change is under way"
        };
        failure.hint(hint)
    })
}

/// Whether a person at the terminal says yes.
async fn proceed() -> Result<bool, Failure> {
    let failed = |error: &io::Error| Failure::io("cannot ask whether to proceed", error);
    let _ = write!(io::stderr(), "Proceed? [y/N] ");
    let reading = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    let line = reading
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| failed(&error))?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

async fn status(global: &Global, options: &ChangeStatus, output: Output) -> Result<ExitCode, Failure> {
    let admin = Admin::first(global).await?;
    let last = if options.watch {
        watch::watch(global, admin, 0, output).await?
    } else {
        transition(&admin, watch::STATUS).await?
    };
    output.print(&shown::transition_json(&last), |_| shown::transition_text(&last))?;
    Ok(ExitCode::SUCCESS)
}
