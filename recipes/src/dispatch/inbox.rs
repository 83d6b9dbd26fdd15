//! Where commands come in: an instance's own, and those of the services it works for.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate_proto::etcdserverpb::TxnRequest;
use serde::de::DeserializeOwned;

use super::command::{Command, Worker};
use super::job::Known;
use super::record::{HereRecord, JobRecord, Labels, Layout, Received, State, Target};
use super::retention::Retention;
use super::{Dispatcher, spread};
use crate::error::{Error, Result, TxnError};
use crate::keys::decode;
use crate::kit::{Claim, Claimed, Owned, fresh_key};
use crate::lock::ContenderRecord;
use crate::queue::{AckError, Consumer, Delivery, Nack};
use crate::session::Session;
use crate::store::ops;
use crate::tasks::Tasks;
use crate::value::{Json, Value};
use crate::wait;

/// Takes commands, for as long as it and its session live. Dropping it ends no command.
pub struct Inbox<C, R> {
    layout: Layout,
    session: Session,
    /// One for each target.
    consumers: Vec<(Target, Consumer<Received>)>,
    /// How many were taken: another target comes first each time.
    taken: AtomicUsize,
    max_attempts: u32,
    retention: Retention,
    /// What looks after casts.
    tasks: Tasks,
    /// Say that the instances are here.
    _here: Vec<Owned>,
    of: PhantomData<fn() -> (C, R)>,
}

impl<C, R> Drop for Inbox<C, R> {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

/// What is to be done with a job that was taken.
enum Verdict {
    /// It is to be done.
    Accept(Known),
    /// It ends so.
    End(Known, State),
    /// It has ended, and was left in the inbox.
    Leftover,
}

impl<C, R> Inbox<C, R> {
    pub(super) async fn open(
        of: &Dispatcher<C, R>,
        session: &Session,
        targets: Vec<Target>,
    ) -> Result<Self> {
        let layout = &of.layout;
        session.belongs_to(&layout.client)?;
        if targets.is_empty() {
            return Err(Error::Invalid("an inbox of nobody".to_owned()));
        }
        let mut consumers = Vec::with_capacity(targets.len());
        for target in &targets {
            let consumer = layout.queue(target).consumer(session).await?;
            consumers.push((target.clone(), consumer.with_unreadable()));
        }
        let mut open = Vec::new();
        for target in &targets {
            if let Target::Instance(name) = target {
                open.push(here(layout, session, name, &of.labels).await?);
            }
        }
        let tasks = Tasks::current();
        tasks.spawn("casts", spread::look_after(layout.clone()));
        Ok(Self {
            layout: layout.clone(),
            session: session.clone(),
            consumers,
            taken: AtomicUsize::new(0),
            max_attempts: of.max_attempts,
            retention: of.retention.clone(),
            tasks,
            _here: open,
            of: PhantomData,
        })
    }
}

/// Says that an instance is here, from when it takes what is sent to it.
async fn here(layout: &Layout, session: &Session, name: &str, labels: &Labels) -> Result<Owned> {
    let key = fresh_key(session, &layout.here().child(name));
    let record = HereRecord {
        contender: ContenderRecord::of(session, name),
        labels: labels.clone(),
    };
    let record = Value::from(Json(record)).into_bytes(&key)?;
    let claim = Claim::of(key, record);
    let claimed = session
        .actor()
        .run(|actor| async move { actor.claim(claim).await });
    match claimed.await? {
        Claimed::Made { owned, .. } => Ok(owned),
        // The key has a fresh nonce, and the claim no condition.
        Claimed::Refused { .. } => Err(Error::Conflict),
    }
}

impl<C, R> Inbox<C, R>
where
    C: DeserializeOwned + Send + 'static,
    R: Send + 'static,
{
    /// Takes the next command, and waits for one while there is none. Jobs that were cancelled, whose time is
    /// over, that were taken too often or cannot be read are ended on the way.
    ///
    /// # Errors
    /// [`Error::SessionLost`] at once when the session is lost; the store's final refusals. Trouble with the
    /// store is waited out.
    ///
    /// # Cancel safety
    /// No command is lost when the future is dropped: one that was on its way goes back, and may count as an
    /// attempt.
    pub async fn next(&self) -> Result<Command<C, R>> {
        loop {
            let first = self.taken.load(Ordering::Relaxed) % self.consumers.len();
            let (before, after) = self.consumers.split_at(first);
            let in_turn: Vec<_> = after.iter().chain(before).collect();
            let consumers: Vec<_> = in_turn.iter().map(|(_, consumer)| consumer).collect();
            let (of, delivery) = Consumer::pop_any(&consumers, false).await?;
            self.taken.fetch_add(1, Ordering::Relaxed);
            if let Some(command) = self.accept(&in_turn[of].0, delivery).await? {
                return Ok(command);
            }
        }
    }

    /// Takes a job on, unless it is not to be done any more.
    async fn accept(
        &self,
        target: &Target,
        delivery: Delivery<Received>,
    ) -> Result<Option<Command<C, R>>> {
        let Some(id) = decode(delivery.id().name()) else {
            return match delivery.nack(Nack::Dead("no job's name".to_owned())).await {
                Ok(()) | Err(Error::Fenced { .. }) => Ok(None),
                Err(error) => Err(error),
            };
        };
        loop {
            match self.judge(&id, target, &delivery).await? {
                Verdict::Leftover => {
                    settled(delivery.ack().await)?;
                    return Ok(None);
                }
                Verdict::End(known, state) => {
                    self.end(delivery, self.worker(&id, known), state).await?;
                    return Ok(None);
                }
                Verdict::Accept(known) => {
                    let mut worker = self.worker(&id, known);
                    let command: C = match command(delivery.value()) {
                        Ok(command) => command,
                        Err(why) => {
                            self.end(delivery, worker, unreadable(&why)).await?;
                            return Ok(None);
                        }
                    };
                    let state = State::Delivered {
                        attempt: delivery.attempt(),
                    };
                    let txn = delivery.txn();
                    match worker.advance(txn, state, true).await {
                        Ok(()) => return Ok(Some(Command::new(command, delivery, worker))),
                        // It was cancelled in between.
                        Err(TxnError::Conflict { .. }) => {}
                        Err(TxnError::Fenced { .. }) => return Ok(None),
                        Err(TxnError::Failed(error)) => return Err(error),
                    }
                }
            }
        }
    }

    /// Ends a job in passing.
    async fn end(&self, delivery: Delivery<Received>, worker: Worker, state: State) -> Result<()> {
        let ending = worker.ending(self.layout.client.txn(), state).await?;
        settled(worker.end(delivery, ending).await)
    }

    fn worker(&self, id: &str, known: Known) -> Worker {
        Worker {
            layout: self.layout.clone(),
            session: self.session.clone(),
            id: id.to_owned(),
            record: known.record,
            created: known.created,
            retention: self.retention.clone(),
        }
    }

    async fn judge(
        &self,
        id: &str,
        target: &Target,
        delivery: &Delivery<Received>,
    ) -> Result<Verdict> {
        let request = TxnRequest {
            success: [self.layout.job(id), self.layout.cancel(id)]
                .map(|key| ops::read(ops::get(key)))
                .into(),
            ..TxnRequest::default()
        };
        let (found, _) = wait::repeat(&self.layout.client, request).await?;
        let Some(kv) = ops::kvs(&found.responses, 0).first() else {
            return Ok(Verdict::Leftover);
        };
        let known = match Known::of(kv) {
            Ok(known) => known,
            // It has ended, whatever else its record says.
            Err(_) if kv.lease != 0 => return Ok(Verdict::Leftover),
            Err(error) => {
                tracing::warn!(job = id, %error, "an unreadable job fails");
                let since_ms = delivery.since_ms();
                let record = JobRecord::unknown(target.clone(), delivery.id(), since_ms);
                let known = Known::at(kv, record);
                return Ok(Verdict::End(known, unreadable(&error.to_string())));
            }
        };
        if known.record.state.is_end() || known.record.item(id) != *delivery.id() {
            return Ok(Verdict::Leftover);
        }
        if !ops::kvs(&found.responses, 1).is_empty() {
            return Ok(Verdict::End(known, State::Cancelled));
        }
        let now = self.layout.client.wall_millis();
        if known.record.due_ms().is_some_and(|due| due <= now) {
            return Ok(Verdict::End(known, State::Expired));
        }
        if delivery.attempt() > self.max_attempts {
            let why = format!("taken {} times without success", self.max_attempts);
            return Ok(Verdict::End(known, State::failed(&why)));
        }
        Ok(Verdict::Accept(known))
    }
}

/// The command that was sent.
fn command<C: DeserializeOwned>(received: &Received) -> std::result::Result<C, String> {
    let envelope = received.as_ref().map_err(String::clone)?;
    serde_json::from_str(envelope.command.get()).map_err(|error| error.to_string())
}

fn unreadable(why: &str) -> State {
    State::failed(&format!("it cannot be read: {why}"))
}

/// What the end of a job in passing came to: who has lost it by then has nothing to do with it any more.
fn settled<T>(ended: std::result::Result<T, AckError<Received>>) -> Result<()> {
    match ended {
        // Dropped, it goes back, and is looked at again.
        Ok(_) | Err(AckError::Fenced { .. } | AckError::Conflict { .. }) => Ok(()),
        Err(AckError::Refused { error, .. } | AckError::Failed(error)) => Err(error),
    }
}

impl<C, R> fmt::Debug for Inbox<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("dispatcher", &self.layout.prefix())
            .field("consumers", &self.consumers.len())
            .finish_non_exhaustive()
    }
}
