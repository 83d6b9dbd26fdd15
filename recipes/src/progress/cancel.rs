//! Asking for the end of tasks, and hearing that it is asked for. A request is a key of its own, which goes with
//! the end of the task: what is asked of a task that nobody works on waits for its next attempt.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;

use super::overall::lies_below;
use super::record::{
    Part, Record, TaskName, Written, cancel_key, job_space, owner_key, record_key,
};
use super::writer::Shared;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, Revision};
use crate::session::Actor;
use crate::store::ops::{self, Compare};
use crate::wait;

/// Most tasks of a job that are asked to end at a time.
const AT_ONCE: usize = 16;

impl Client {
    /// Asks for the end of a task: `client.cancel_task("import/part-1").await`. Whoever works on it is
    /// [told](super::Reporter::cancelled), and may end it otherwise; while nobody does, the request
    /// waits for the next attempt, the first one included. It goes with the end of the task.
    ///
    /// Returns whether the task had not ended: one that is done, has failed or was cancelled, and that
    /// nobody has begun again, is asked nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name without a job or a task; the store's final refusals. Trouble with
    /// the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, it may still be asked for.
    pub async fn cancel_task(&self, task: impl Into<TaskName>) -> Result<bool> {
        let name = task.into();
        name.check()?;
        // Most often wrong, which costs nothing: the answer says what there is.
        ask(self, &name, Standing::default()).await
    }

    /// Asks for the end of all tasks of a job that have not ended, or of those that lie
    /// [below](super::JobView::below) a node of their tree: `client.cancel_tasks("import")`, or
    /// `"import/eu"`. Returns how many were asked. Tasks that nobody has begun are not among them, nor
    /// are those that are begun meanwhile.
    ///
    /// # Errors
    /// [`Error::Invalid`] without a job; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, some may be asked, and others not.
    pub async fn cancel_tasks(&self, below: impl Into<TaskName>) -> Result<usize> {
        let TaskName { job, task: node } = below.into();
        if job.is_empty() {
            return Err(Error::Invalid("tasks of no job".to_owned()));
        }
        let standing = standing(self, &job).await?;
        let begun = standing.into_iter().filter(|(task, standing)| {
            lies_below(task, &node) && standing.is_begun() && !standing.has_ended()
        });
        let asked = begun.map(|(task, standing)| {
            let name = TaskName::new(&*job, task);
            async move { ask(self, &name, standing).await }
        });
        let asked = stream::iter(asked).buffer_unordered(AT_ONCE);
        let asked: Vec<bool> = asked.try_collect().await?;
        Ok(asked.into_iter().filter(|asked| *asked).count())
    }
}

/// What there is of a task.
#[derive(Debug, Default)]
struct Standing {
    state: Option<Written>,
    /// When its record was written last; 0: there is none.
    written: Revision,
    /// When whoever works on it began.
    owned: Option<Revision>,
    cancelling: bool,
}

impl Standing {
    fn take(&mut self, part: &Part, kv: &KeyValue) {
        match part {
            Part::Record(_) => {
                let record = serde_json::from_slice::<Record>(&kv.value);
                self.state = record.ok().map(|record| record.state);
                self.written = Revision(kv.mod_revision);
            }
            Part::Owner(_) => self.owned = Some(Revision(kv.create_revision)),
            Part::Cancel(_) => self.cancelling = true,
        }
    }

    fn is_begun(&self) -> bool {
        self.written != Revision(0) || self.owned.is_some()
    }

    /// Whether it has ended. Whoever works on it goes with its end; one who is there has begun it again.
    fn has_ended(&self) -> bool {
        self.owned.is_none() && self.state.is_some_and(Written::is_end)
    }

    /// The conditions that it has not ended since: the same attempt goes on, or nobody has begun the next.
    fn goes_on(&self, name: &TaskName) -> Vec<Compare> {
        match self.owned {
            Some(begun) => vec![Compare::create_revision(owner_key(name), begun)],
            None => vec![
                Compare::absent(owner_key(name)),
                Compare::mod_revision(record_key(name), self.written),
            ],
        }
    }
}

/// What there is of the tasks of a job.
async fn standing(client: &Client, job: &str) -> Result<BTreeMap<String, Standing>> {
    let space = job_space(job);
    let (_, kvs) = wait::list(client, space.range()).await?;
    let mut tasks: BTreeMap<String, Standing> = BTreeMap::new();
    for kv in &kvs {
        if let Some(part) = Part::of(&space, &kv.key) {
            let task = tasks.entry(part.task().to_owned()).or_default();
            task.take(&part, kv);
        }
    }
    Ok(tasks)
}

/// Asks for the end of a task that stands so, or else as it turns out to stand.
async fn ask(client: &Client, name: &TaskName, mut standing: Standing) -> Result<bool> {
    let space = job_space(&name.job);
    let keys = [record_key(name), owner_key(name), cancel_key(name)];
    let mut perhaps = false;
    loop {
        if standing.has_ended() {
            return Ok(perhaps && standing.state == Some(Written::Cancelled));
        }
        if standing.cancelling {
            return Ok(true);
        }
        let request = TxnRequest {
            compare: standing.goes_on(name).into_iter().map(Into::into).collect(),
            success: vec![ops::put(cancel_key(name), Bytes::new(), None)],
            failure: keys.each_ref().map(|key| ops::read(ops::get(key))).into(),
        };
        let (answer, repeated) = wait::repeat(client, request).await?;
        if answer.succeeded {
            return Ok(true);
        }
        // A copy whose answer was lost may have been applied, and the task have ended by it.
        perhaps |= repeated;
        standing = Standing::default();
        for index in 0..keys.len() {
            for kv in ops::kvs(&answer.responses, index) {
                if let Some(part) = Part::of(&space, &kv.key) {
                    standing.take(&part, kv);
                }
            }
        }
    }
}

/// Waits for a request, for as long as the attempt goes on, and notes it.
pub(super) async fn listen(actor: Actor, shared: Arc<Shared>, key: Key) {
    let mut progress = shared.progress.subscribe();
    let over = progress.wait_for(|progress| progress.cancelling || progress.ended.is_some());
    tokio::select! {
        biased;
        _ = over => {}
        _ = actor.lost() => {}
        there = wait::until_there(actor.client(), &key) => match there {
            Ok(()) => shared.progress.send_modify(|progress| progress.cancelling = true),
            Err(error) => tracing::warn!(%key, %error, "nobody will be told to stop"),
        },
    }
}
