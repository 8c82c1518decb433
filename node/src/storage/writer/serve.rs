//! Who carries out what waits: a thread, which may wait for the disk; a task of the runtime that serves requests, as
//! long as nothing has to wait for it; or, if the store is in memory, whoever submits.
//!
//! A step from one thread to another costs about as much as the write itself. The task takes it neither on the way to
//! the writer nor back; it commits at once what has been submitted since its last turn, which is what one message from
//! another node, or many clients, have brought. See `docs/adr/0016-who-writes.md`.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    Shared,
    committer::{AtOnce, Committer, DueSync},
    queue::Taken,
};
use crate::storage::StoreError;

/// The committer, for whoever's turn it is.
pub(super) struct Seat {
    /// None: the writer has ended, or failed.
    committer: Mutex<Option<Committer>>,
    shared: Arc<Shared>,
}

impl Seat {
    pub(super) fn new(committer: Committer, shared: Arc<Shared>) -> Self {
        Self {
            committer: Mutex::new(Some(committer)),
            shared,
        }
    }

    /// Works with the committer. None: there is none, or it has failed at this work, and the writer with it.
    fn with<T>(&self, work: impl FnOnce(&mut Committer) -> Result<T, StoreError>) -> Option<T> {
        let _unwinding = Unwinding(self);
        let mut committer = self.committer.lock();
        match work(committer.as_mut()?) {
            Ok(value) => Some(value),
            Err(error) => {
                *committer = None;
                drop(committer);
                self.shared.fail(error);
                None
            }
        }
    }

    /// Makes a sync while others may write.
    fn sync(&self, due: DueSync) -> Option<()> {
        let _unwinding = Unwinding(self);
        let DueSync { store, covers } = due;
        let made = store.sync();
        drop(store);
        self.with(|committer| made.map(|()| committer.synced(covers)))
    }

    /// Lets go of the store, so that it may be opened again.
    fn end(&self, ended: oneshot::Sender<()>) {
        drop(self.committer.lock().take());
        let _ = ended.send(());
    }
}

/// A panic counts as a failure.
struct Unwinding<'a>(&'a Seat);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.committer.lock() = None;
            let (attempted, reason) = ("writing".to_owned(), "the writer panicked".to_owned());
            self.0.shared.fail(StoreError::Io { attempted, reason });
        }
    }
}

/// Runs until the queue is closed and empty, or the store fails.
pub(super) fn thread(seat: &Seat, ended: oneshot::Sender<()>) {
    if serve_on_thread(seat).is_some() {
        seat.end(ended);
    }
}

fn serve_on_thread(seat: &Seat) -> Option<()> {
    loop {
        let wait = seat.with(|committer| Ok(committer.wait()))?;
        let taken = seat.shared.queue.take(wait);
        let closed = matches!(taken, Taken::Closed);
        let due = seat.with(|committer| {
            committer.complete_left()?;
            if let Taken::Group(operations) = taken {
                committer.commit(operations)?;
            }
            Ok(committer.due_sync(closed))
        })?;
        if let Some(due) = due {
            seat.sync(due)?;
        }
        if closed {
            return Some(());
        }
    }
}

/// A task's place; when it is dropped, the thread is alone, also if the task has never run, or its runtime has ended.
pub(super) struct Task(pub(super) Arc<Seat>);

impl Task {
    /// Runs until the queue is closed, or the store fails.
    pub(super) async fn serve(self) {
        let Self(seat) = &self;
        let queue = &seat.shared.queue;
        while !queue.is_closed() {
            queue.submitted().await;
            while let Some(operations) = queue.take_at_once() {
                let result = seat.with(|committer| {
                    let synced = committer.wait().is_none();
                    let result = committer.commit_at_once(operations)?;
                    Ok((result, synced && committer.wait().is_some()))
                });
                match result {
                    // The thread is to sync in time what is unsynced for the first time.
                    Some((AtOnce::Done, first)) => queue.done(first),
                    Some((AtOnce::HandOver(operations), _)) => queue.hand_over(operations),
                    None => return,
                }
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.shared.queue.task_ended();
    }
}

/// A writer without a thread: whoever submits an operation carries it out.
pub(super) struct Here {
    pub(super) seat: Seat,
    pub(super) ended: Mutex<Option<oneshot::Sender<()>>>,
}

impl Here {
    /// Carries out all that waits.
    pub(super) fn serve(&self) {
        let queue = &self.seat.shared.queue;
        let closed = self.seat.with(|committer| {
            loop {
                match queue.take(Some(Duration::ZERO)) {
                    Taken::Group(operations) => committer.commit(operations)?,
                    Taken::Nothing => return committer.sync().map(|()| false),
                    Taken::Closed => return committer.sync().map(|()| true),
                }
            }
        });
        if closed == Some(true)
            && let Some(ended) = self.ended.lock().take()
        {
            self.seat.end(ended);
        }
    }
}
