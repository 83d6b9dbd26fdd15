//! The state as consensus drives it: applies, pins, persists and installs, one after the other on
//! one thread of their own. Used by `state_machine`, which turns openraft's calls into jobs.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use openraft::storage::ApplyResponder;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::apply::{Committed, State};
use crate::error::Error;
use crate::failpoint;
use crate::raft::codec;
use crate::raft::log::Log;
use crate::raft::pending::Pending;
use crate::raft::snapshot::{SnapshotData, copy, meta_of};
use crate::raft::types::{SnapshotMeta, TypeConfig};
use crate::storage::kv::{Kv, KvError, View};
use crate::storage::snapshot::{SnapshotError, Stores};
use crate::storage::wal::{EntryId, WriterMode};
use crate::watch::Hub;
use quorate_proto::Reason;

/// Jobs that wait for the thread. openraft gives one at a time, its snapshot builder and the
/// retention task one more each.
const JOBS_MAX: usize = 16;

/// How far this member has applied the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedPoint {
    /// The last entry applied; `None` if none ever was.
    pub id: Option<EntryId>,
    /// The main revision after it.
    pub revision: i64,
}

impl AppliedPoint {
    /// Whether the entry at `index` is applied.
    #[must_use]
    pub fn covers(&self, index: u64) -> bool {
        self.id.is_some_and(|id| id.index >= index)
    }

    fn of(state: &State) -> Self {
        Self {
            id: state.applied().0,
            revision: state.reader().revision(),
        }
    }
}

/// Where the first failure that ends this member is told.
pub(super) type Failure = watch::Sender<Option<Arc<Error>>>;

/// What the thread needs.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) state: State,
    pub(super) stores: Stores,
    pub(super) hub: Hub,
    pub(super) pending: Arc<Pending>,
    pub(super) log: Log,
    pub(super) failure: Failure,
}

/// The other end of the thread. Cheap to clone; the thread ends with the last clone.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    jobs: Jobs,
    applied: watch::Receiver<AppliedPoint>,
    installing: Arc<AtomicBool>,
}

#[derive(Debug, Clone)]
enum Jobs {
    Thread(mpsc::Sender<Job>),
    /// `None` once stopped.
    Caller(Arc<Mutex<Option<Worker>>>),
}

/// One job for the thread. Only the last one gives no worker back: the thread ends.
type Job = Box<dyn FnOnce(Worker) -> Option<Worker> + Send>;

/// What openraft waits for beside the state: to be told when an entry is applied.
pub(super) type Responders = Vec<ApplyResponder<TypeConfig>>;

impl Machine {
    /// Starts the thread; in [`WriterMode::Caller`] jobs run where they are given instead.
    ///
    /// # Errors
    ///
    /// The system refuses a thread.
    pub(super) fn start(parts: Parts, mode: WriterMode) -> io::Result<Self> {
        let point = AppliedPoint::of(&parts.state);
        let (published, applied) = watch::channel(point);
        let worker = Worker {
            parts,
            published,
            pinned: None,
            installing: Arc::default(),
        };
        let installing = Arc::clone(&worker.installing);
        let jobs = match mode {
            WriterMode::Caller => Jobs::Caller(Arc::new(Mutex::new(Some(worker)))),
            WriterMode::Thread => {
                let (sender, mut receiver) = mpsc::channel::<Job>(JOBS_MAX);
                thread::Builder::new()
                    .name("quorate-state".to_owned())
                    .spawn(move || {
                        let mut worker = Some(worker);
                        while let Some(ready) = worker.take()
                            && let Some(job) = receiver.blocking_recv()
                        {
                            worker = job(ready);
                        }
                    })?;
                Jobs::Thread(sender)
            }
        };
        Ok(Self {
            jobs,
            applied,
            installing,
        })
    }

    /// How far the log is applied.
    pub(super) fn applied(&self) -> watch::Receiver<AppliedPoint> {
        self.applied.clone()
    }

    /// Whether the state is being replaced by a snapshot.
    pub(super) fn is_installing(&self) -> bool {
        self.installing.load(Ordering::Relaxed)
    }

    /// Runs `job` on the thread and waits for what it gives. Once given, it runs even if nobody
    /// waits any more.
    pub(super) async fn run<T, F>(&self, job: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Worker) -> io::Result<T> + Send + 'static,
    {
        match &self.jobs {
            Jobs::Caller(worker) => {
                let mut worker = worker.lock().map_err(|_| stopped())?;
                job(worker.as_mut().ok_or_else(stopped)?)
            }
            Jobs::Thread(sender) => {
                let (done, result) = oneshot::channel();
                let job: Job = Box::new(move |mut worker| {
                    drop(done.send(job(&mut worker)));
                    Some(worker)
                });
                sender.send(job).await.map_err(|_| stopped())?;
                result.await.map_err(|_| stopped())?
            }
        }
    }

    /// Makes the state durable, then lets go of it and its store. Later jobs are refused.
    pub(super) async fn stop(&self) -> io::Result<()> {
        let end = |worker: Worker| worker.persist();
        match &self.jobs {
            Jobs::Caller(worker) => {
                let worker = worker.lock().map_err(|_| stopped())?.take();
                worker.map_or(Ok(()), end)
            }
            Jobs::Thread(sender) => {
                let (done, result) = oneshot::channel();
                let job: Job = Box::new(move |worker| {
                    drop(done.send(end(worker)));
                    None
                });
                match sender.send(job).await {
                    Ok(()) => result.await.map_err(|_| stopped())?,
                    Err(_) => Ok(()),
                }
            }
        }
    }
}

fn stopped() -> io::Error {
    io::Error::other("the state's thread has stopped")
}

/// The state and what surrounds it, on its thread.
#[derive(Debug)]
pub(super) struct Worker {
    parts: Parts,
    published: watch::Sender<AppliedPoint>,
    /// What was last given to be sent, so that a retry gets the same.
    pinned: Option<Pinned>,
    installing: Arc<AtomicBool>,
}

#[derive(Debug, Clone)]
pub(super) struct Pinned {
    pub(super) meta: SnapshotMeta,
    pub(super) view: Arc<dyn View>,
    /// Told to whoever it is sent to, who may have a part of it from before.
    pub(super) name: Uuid,
}

impl Worker {
    /// Applies a batch whose entries are all synced, then tells: watchers first, so that nobody
    /// hears an answer before its event is on its way.
    pub(super) fn apply(
        &mut self,
        entries: Vec<Committed>,
        responders: Responders,
    ) -> io::Result<()> {
        let own = self.parts.pending.boot();
        let applied = self.parts.state.apply(entries, own);
        let mut applied = applied.map_err(|error| self.fail(&error))?;
        self.parts
            .hub
            .publish(std::mem::take(&mut applied.publication));
        // Whoever hears an answer finds it applied.
        self.published.send_replace(AppliedPoint {
            id: Some(applied.last),
            revision: applied.revision,
        });
        self.parts.pending.applied(&mut applied);
        for responder in responders {
            responder.send(());
        }
        Ok(())
    }

    /// What is applied, and the membership then.
    pub(super) fn meta(&self) -> io::Result<Option<SnapshotMeta>> {
        let view = self.parts.state.kv().view();
        meta_of(&*view).map_err(|error| self.fail(&error))
    }

    /// A view of the state as it is now, perhaps of nothing, and the engine, to be persisted
    /// elsewhere.
    pub(super) fn view(&self) -> io::Result<(Pinned, Arc<dyn Kv>)> {
        let kv = self.parts.state.kv();
        let view = kv.view();
        let meta = meta_of(&*view).map_err(|error| self.fail(&error))?;
        let meta = meta.unwrap_or_default();
        let name = Uuid::new_v4();
        Ok((Pinned { meta, view, name }, kv))
    }

    /// Makes all that is applied durable.
    pub(super) fn persist(&self) -> io::Result<()> {
        let persisted = self.parts.state.kv().persist();
        persisted.map_err(|error| self.fail(&error))
    }

    /// A view to send, the same as last time while the log still continues it.
    pub(super) fn pin(&mut self) -> io::Result<Option<Pinned>> {
        let purged = self.parts.log.ends().purged;
        let is_behind = |pinned: &Pinned| {
            let last = pinned.meta.last_log_id.map(|id| id.index);
            purged.map(|id| id.index) > last
        };
        if self.pinned.as_ref().is_none_or(is_behind) {
            let (pinned, _) = self.view()?;
            self.pinned = pinned.meta.last_log_id.is_some().then_some(pinned);
        }
        Ok(self.pinned.clone())
    }

    /// Lets go of the view to send if nobody is sending it, so that it does not hold back the
    /// store's housekeeping.
    pub(super) fn unpin(&mut self) {
        if let Some(pinned) = &self.pinned
            && Arc::strong_count(&pinned.view) == 1
        {
            self.pinned = None;
        }
    }

    /// Replaces the state. What was pinned before stays readable to those who have it.
    pub(super) fn install(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        self.installing.store(true, Ordering::Relaxed);
        let replaced = self.replace(meta, data);
        self.installing.store(false, Ordering::Relaxed);
        replaced
    }

    fn replace(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        let Some(last) = meta.last_log_id.map(|id| codec::entry_id(&id)) else {
            return Err(io::Error::other("a snapshot of nothing"));
        };
        let staged = match data {
            SnapshotData::Staged(staged) => Ok(staged),
            SnapshotData::Pinned(view, _) => copy(&self.parts.stores, meta, view),
        };
        let staged = staged.map_err(|error| match error {
            SnapshotError::Kv(error) => self.fail(&error),
            error => io::Error::other(error),
        })?;
        failpoint::reach("install: staged");
        let installed = self.parts.stores.adopt(staged).and_then(|kv| {
            failpoint::reach("install: adopted");
            self.parts.state.install(kv)
        });
        installed.map_err(|error| self.fail(&error))?;
        self.pinned = None;
        let reader = self.parts.state.reader();
        self.parts
            .hub
            .reset(reader.revision(), reader.compact_revision());
        self.parts.pending.installed(last);
        self.published
            .send_replace(AppliedPoint::of(&self.parts.state));
        tracing::info!(%last, "installed a snapshot");
        failpoint::reach("install: installed");
        Ok(())
    }

    /// Notes that this member cannot go on.
    fn fail(&self, error: &KvError) -> io::Error {
        report(
            &self.parts.failure,
            Error::with_detail(Reason::StorageFailed, error.to_string()),
        );
        io::Error::other(error.clone())
    }
}

/// Tells the first failure; later ones follow from it.
pub(super) fn report(failure: &Failure, error: Error) {
    failure.send_if_modified(|first| {
        if first.is_some() {
            return false;
        }
        tracing::error!(%error, "this member cannot go on");
        *first = Some(Arc::new(error));
        true
    });
}
