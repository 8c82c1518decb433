//! The loop: observe (I/O) -> validate -> build -> plan -> apply (I/O) -> status.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    runtime::{
        controller::Action,
        events::{Event, Recorder},
        reflector::ObjectRef,
    },
};

use crate::{
    admin::Admin,
    crd::{DynamoCluster, conditions::shortened},
    telemetry::Metrics,
};

pub mod layout;
pub mod members;
pub mod names;
pub mod rings;

pub mod observe;
mod volumes;

pub mod validate;

pub mod build;

pub mod change;

pub mod plan;

pub mod apply;

pub mod status;

#[cfg(test)]
mod tests;

/// What every pass needs.
pub struct Context<A> {
    /// The API server.
    pub client: Client,
    /// The nodes.
    pub admin: A,
    /// What clusters get that say nothing.
    pub defaults: validate::Defaults,
    /// Where events go.
    pub recorder: Recorder,
    /// What is counted.
    pub metrics: Metrics,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Failures in a row, for longer and longer pauses.
    pub failures: Mutex<HashMap<ObjectRef<DynamoCluster>, u32>>,
}

/// Why a pass failed, by the step that did.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The DynamoCluster itself cannot be read.
    #[error("cannot read the DynamoCluster: {0}")]
    Read(Box<kube::Error>),
    /// See there.
    #[error(transparent)]
    Observe(#[from] observe::ObserveError),
    /// See there.
    #[error(transparent)]
    Build(#[from] build::BuildError),
    /// See there.
    #[error(transparent)]
    Apply(#[from] apply::ApplyError),
}

impl ReconcileError {
    /// The step, for a metric's label.
    pub fn step(&self) -> &'static str {
        match self {
            Self::Read(_) | Self::Observe(_) => "observe",
            Self::Build(_) => "build",
            Self::Apply(_) => "apply",
        }
    }
}

/// How soon to look again while a step was taken, while waiting, while all is well, and while a person is needed.
const AFTER_STEP: Duration = Duration::from_secs(1);
const WHILE_WAITING: Duration = Duration::from_secs(2);
const WHILE_STEADY: Duration = Duration::from_secs(10);
const WHILE_STALLED: Duration = Duration::from_secs(20);
/// However long passes have failed, they succeed again soon after the cause is gone.
const WHILE_FAILING_MAX: Duration = Duration::from_secs(30);

/// One pass over one cluster.
///
/// # Errors
/// If the API server or a node refused something; the status then says so where it could be written.
pub async fn reconcile<A: Admin>(
    cached: Arc<DynamoCluster>,
    context: Arc<Context<A>>,
) -> Result<Action, ReconcileError> {
    let begun = Instant::now();
    let result = pass(&cached, &context).await;
    context
        .metrics
        .reconciled(begun.elapsed(), result.as_ref().err().map(ReconcileError::step));
    if result.is_ok() {
        let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&ObjectRef::from_obj(&*cached));
    }
    result
}

/// What follows a failed pass: another one, later and later, at most every half minute.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that Controller::run asks for"
)]
pub fn on_error<A: Admin>(
    cluster: Arc<DynamoCluster>,
    error: &ReconcileError,
    context: Arc<Context<A>>,
) -> Action {
    let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let count = failures.entry(ObjectRef::from_obj(&*cluster)).or_insert(0);
    *count = count.saturating_add(1);
    let pause = Duration::from_secs(1 << (*count).min(5)).min(WHILE_FAILING_MAX);
    tracing::warn!(
        cluster = cluster.name_any(),
        namespace = cluster.namespace(),
        step = error.step(),
        %error,
        retry_after_s = pause.as_secs(),
        "a pass failed"
    );
    Action::requeue(pause)
}

async fn pass<A: Admin>(cached: &DynamoCluster, context: &Context<A>) -> Result<Action, ReconcileError> {
    // The cache may be minutes behind: what is decided is decided upon the live object, or not at all.
    let Some(source) = live(cached, context).await? else {
        return Ok(Action::await_change());
    };
    let mut observed = observe::observe(&context.client, &context.admin, &source).await?;
    observed.at = (context.now)();
    let cluster = match validate::validate(&source, &observed, &context.defaults) {
        Ok(cluster) => cluster,
        Err(error) => {
            let status = status::invalid(&source, &error, (context.now)());
            apply::patch_status(&context.client, &source, &status).await?;
            publish(context, &source, status::notes(&source, &status, &[])).await;
            return Ok(Action::requeue(WHILE_STALLED));
        }
    };
    observed.preview = preview(context, &cluster, &observed).await;
    let desired = build::build(&cluster)?;
    let plan = plan::plan(&cluster, &desired, &observed, &source);
    let work = apply::Work {
        source: &source,
        cluster: &cluster,
        observed: &observed,
        plan: &plan,
    };
    let (done, error) = apply::apply(&context.client, &context.admin, work, desired).await;
    let preview = observed.preview.as_ref().and_then(|told| told.as_ref().ok());
    let status = status::status(&source, &cluster, &plan, preview, error.as_ref(), (context.now)());
    let notes = status::notes(&source, &status, &done);
    apply::patch_status(&context.client, &source, &status).await?;
    publish(context, &source, notes).await;
    match error {
        Some(error) => Err(error.into()),
        None if !done.is_empty() => Ok(Action::requeue(AFTER_STEP)),
        None => Ok(Action::requeue(match plan.stance {
            plan::Stance::Progressing(..) => WHILE_WAITING,
            plan::Stance::Steady => WHILE_STEADY,
            plan::Stance::Stalled(..) | plan::Stance::Paused => WHILE_STALLED,
        })),
    }
}

/// What the change that is wanted would come to, if one is.
async fn preview<A: Admin>(
    context: &Context<A>,
    cluster: &validate::ValidatedCluster,
    observed: &observe::Observed,
) -> Option<Result<observe::Preview, String>> {
    if cluster.spec.paused || !cluster.founded {
        return None;
    }
    let members = members::members(cluster, observed);
    let ring = plan::ring_of(cluster, observed);
    match change::change(cluster, observed, &members, ring.as_deref()) {
        change::Change::Ask(target) => {
            Some(observe::preview(&context.admin, &plan::proposers(&members), &target).await)
        }
        _ => None,
    }
}

/// The object as the API server has it now; `None` if it is gone, another one of the same name, or being deleted.
async fn live<A: Admin>(
    cached: &DynamoCluster,
    context: &Context<A>,
) -> Result<Option<DynamoCluster>, ReconcileError> {
    let api =
        Api::<DynamoCluster>::namespaced(context.client.clone(), &cached.namespace().unwrap_or_default());
    let live = api.get_opt(&cached.name_any()).await;
    let live = live.map_err(|error| ReconcileError::Read(Box::new(error)))?;
    Ok(live.filter(|live| live.uid() == cached.uid() && live.metadata.deletion_timestamp.is_none()))
}

/// Events are news, not state: one that cannot be written is logged and never told again.
async fn publish<A: Admin>(context: &Context<A>, source: &DynamoCluster, notes: Vec<status::Note>) {
    for note in notes {
        tracing::info!(
            cluster = source.name_any(),
            namespace = source.namespace(),
            reason = note.reason,
            message = note.message,
            "event"
        );
        let event = Event {
            type_: note.type_,
            reason: note.reason.into(),
            note: Some(shortened(note.message, 1000)),
            action: "Reconcile".into(),
            secondary: None,
        };
        if let Err(error) = context.recorder.publish(&event, &source.object_ref(&())).await {
            tracing::warn!(%error, "cannot write an event");
        }
    }
}
