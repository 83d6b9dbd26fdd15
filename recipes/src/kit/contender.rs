//! The one primitive under locks and elections: a contender is a key of one's own under a prefix,
//! bound to one's lease; its turn has come when all keys created before it are gone.

use std::time::Duration;

use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest};
use quorate_proto::mvccpb::KeyValue;

use super::Line;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, LeaseId, Revision};
use crate::lock::Hold;
use crate::session::{Claim, Claimed, Owned, Session};
use crate::store::ops::{self, Compare};
use crate::value::Value;
use crate::wait::{self, Backoff, Woken, deleted};

/// Keys in a line. Dropping it leaves the line, in the background.
#[derive(Debug)]
#[must_use = "a dropped contender leaves the line"]
pub struct Contender {
    // Dropped before the session, so that leaving comes before a session's end.
    owned: Owned,
    line: Line,
    standing: Option<Standing>,
    session: Session,
}

/// Where a contender stood at some revision.
#[derive(Debug, Clone)]
struct Standing {
    /// The last key created before the contender's, if there is one.
    ahead: Option<KeyValue>,
    /// What the line's hand-over key said.
    handover: Option<KeyValue>,
    seen: Revision,
}

impl Contender {
    /// Enters the line with a key `<prefix>/<lease>/<nonce>` of this value (several in a line of
    /// several).
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, the key is deleted as soon as it turns out to exist.
    pub async fn enter(
        session: &Session,
        line: impl Into<Line>,
        value: impl Into<Value>,
    ) -> Result<Self> {
        let line = line.into();
        let mut claim = fresh(session, &line, &value.into())?;
        claim.also = look(&line, None);
        match run(session, claim).await? {
            Claimed::Made {
                owned,
                revision,
                responses,
            } => Ok(Self {
                standing: responses.map(|found| Standing::of(&line, &owned, &found, revision)),
                owned,
                line,
                session: session.clone(),
            }),
            // The keys have a fresh nonce, and the claim no other condition.
            Claimed::Refused { .. } => Err(Error::Conflict),
        }
    }

    /// Enters the line only if nobody is in it for whom one would have to wait, and has its turn then.
    /// Writes nothing otherwise.
    ///
    /// # Errors
    /// As [`Contender::enter`], and [`Error::ForeignKey`] when it is one that stands in front, which may do
    /// so for ever.
    ///
    /// # Cancel safety
    /// As [`Contender::enter`].
    pub async fn try_enter(
        session: &Session,
        line: impl Into<Line>,
        value: impl Into<Value>,
    ) -> Result<Option<Hold>> {
        let entered = Self::try_enter_with(session, line.into(), value.into(), |_| {});
        entered.await.map(Result::ok)
    }

    /// As [`Contender::try_enter`], with more in the claim: what `add` adds to its conditions, to what
    /// is done with it, and to what is read when it is refused, which is returned then.
    pub(crate) async fn try_enter_with(
        session: &Session,
        line: Line,
        value: Value,
        add: impl FnOnce(&mut Claim),
    ) -> Result<Result<Hold, Vec<ResponseOp>>> {
        let mut claim = fresh(session, &line, &value)?;
        let behind = line.behind().iter();
        claim.when = behind.map(|space| Compare::empty(space.range())).collect();
        add(&mut claim);
        let fronts = line.behind().iter().map(|space| {
            let mut front = ops::oldest(space.range(), 1);
            front.keys_only = true;
            ops::read(front)
        });
        claim.otherwise.splice(0..0, fronts);
        Ok(match run(session, claim).await? {
            Claimed::Made { owned, .. } => Ok(hold(session.clone(), owned, &line)),
            Claimed::Refused { mut responses, .. } => {
                let rest = responses.split_off(line.behind().len());
                let fronts = (0..responses.len()).flat_map(|index| ops::kvs(&responses, index));
                for front in fronts {
                    if !line.is_contender(front) {
                        return Err(Error::ForeignKey(front.key.clone().into()));
                    }
                }
                Err(rest)
            }
        })
    }

    /// The contender's key; the first of several.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.owned.key()
    }

    /// The revision at which the key was created: its place in the line.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.owned.revision()
    }

    /// Writes a new value to the contender's key. See [`Owned::write`].
    ///
    /// # Errors
    /// As [`Owned::write`].
    pub async fn set_value(&self, value: impl Into<Value>) -> Result<Revision> {
        self.owned.write(value.into().into_bytes(self.key())?).await
    }

    /// Waits until every key created before is gone. One more transaction confirms it at a single
    /// revision, own key included, so there is no moment between having waited and holding.
    ///
    /// # Errors
    /// [`Error::SessionLost`] at once when the session is lost; [`Error::Removed`] when somebody
    /// deleted the key; [`Error::ForeignKey`]; the store's final refusals. Trouble with the store
    /// is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line.
    pub async fn wait_turn(mut self) -> Result<Hold> {
        let lost = self.session.lost();
        tokio::select! {
            biased;
            reason = lost => return Err(Error::SessionLost(reason)),
            turn = self.until_first() => turn?,
        }
        let Self {
            owned,
            line,
            session,
            ..
        } = self;
        Ok(hold(session, owned, &line))
    }

    /// Leaves the line and waits until the store has confirmed.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// Leaving goes on when the future is dropped.
    pub async fn leave(self) -> Result<()> {
        let Self { owned, session, .. } = self;
        let outcome = owned.release().await;
        drop(session);
        outcome.map(drop)
    }

    async fn until_first(&mut self) -> Result<()> {
        let client = self.session.client().clone();
        let mut pause = Backoff::new(&client, Duration::from_millis(20), Duration::from_secs(1));
        loop {
            let standing = match self.standing.take() {
                Some(standing) => standing,
                None => self.turn().await?,
            };
            let Some(ahead) = standing.ahead else {
                match standing.handover {
                    Some(named) if !self.may_pass(&named).await? => continue,
                    _ => return Ok(()),
                }
            };
            if !self.line.is_contender(&ahead) {
                return Err(Error::ForeignKey(ahead.key.into()));
            }
            let own = self.owned.keys().into_iter().map(|(key, _)| key);
            let own = own.map(|key| (key, self.session.lease()));
            let ahead = (Key::from(ahead.key), LeaseId(ahead.lease));
            let keys: Vec<(Key, LeaseId)> = own.chain([ahead]).collect();
            match deleted(&client, &keys, Revision(standing.seen.0 + 1)).await {
                Ok(Woken::Deleted(key)) if keys.last().is_some_and(|ahead| ahead.0 != key) => {
                    return Err(self.gone().await);
                }
                Ok(Woken::Deleted(_)) => pause.reset(),
                Ok(Woken::Interrupted) => pause.pause().await,
                Err(error) if error.is_transient() => pause.pause().await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where the contender stands now, provided that its keys still are its own.
    async fn turn(&self) -> Result<Standing> {
        let epoch = self.session.actor().epoch().compare();
        let request = TxnRequest {
            compare: self
                .is_there()
                .into_iter()
                .chain([epoch])
                .map(Into::into)
                .collect(),
            success: look(&self.line, Some(self.revision())),
            failure: Vec::new(),
        };
        let (answer, _) = self.session.actor().repeat(request).await?;
        if !answer.succeeded {
            return Err(self.gone().await);
        }
        let seen = Revision(answer.header.map_or(0, |header| header.revision));
        let found = &answer.responses;
        Ok(Standing::of(&self.line, &self.owned, found, seen))
    }

    /// Whether the contender, whose turn it is, may take it although another one is named in the
    /// hand-over key. If that one is alive, this one goes behind it.
    async fn may_pass(&mut self, named: &KeyValue) -> Result<bool> {
        let target = Key::from(named.value.clone());
        let at = Revision(named.mod_revision);
        let key = Key::from(named.key.clone());
        let is_named = |(own, _): &(Key, Revision)| *own == target;
        if !self.owned.keys().iter().any(is_named) && self.go_behind(&target, &key, at).await? {
            return Ok(false);
        }
        // It has served: it named this one, or one that has gone.
        let clear = TxnRequest {
            compare: vec![Compare::mod_revision(&key, at).into()],
            success: vec![ops::delete(KeyRange::one(&key))],
            failure: Vec::new(),
        };
        self.session.actor().repeat(clear).await?;
        Ok(true)
    }

    /// Exchanges the keys for new ones at the end of the line, as long as `target` is there and named
    /// at `at`. Returns whether it has.
    async fn go_behind(&mut self, target: &Key, handover: &Key, at: Revision) -> Result<bool> {
        let session = self.session.clone();
        let own = wait::read(session.client(), ops::get(self.key())).await?;
        let value = own.kvs.first().map(|kv| kv.value.clone());
        let value = value.unwrap_or_default();
        let mut claim = fresh(&session, &self.line, &value.into())?;
        claim.when = self.is_there();
        claim.when.push(Compare::present(target));
        claim.when.push(Compare::mod_revision(handover, at));
        let old = self.owned.keys().into_iter();
        claim.also = old
            .map(|(key, _)| ops::delete(KeyRange::one(key)))
            .collect();
        match run(&session, claim).await? {
            Claimed::Made { owned, .. } => {
                std::mem::replace(&mut self.owned, owned).disarm();
                Ok(true)
            }
            Claimed::Refused { .. } => {
                // Its own keys may be what is missing.
                self.turn().await?;
                Ok(false)
            }
        }
    }

    fn is_there(&self) -> Vec<Compare> {
        let lease = self.session.lease();
        let keys = self.owned.keys().into_iter();
        keys.flat_map(|(key, revision)| {
            [
                Compare::create_revision(&key, revision),
                Compare::lease(&key, lease),
            ]
        })
        .collect()
    }

    /// Why a key of the contender is gone.
    async fn gone(&self) -> Error {
        self.session.actor().why_gone(self.key()).await
    }
}

impl Standing {
    fn of(line: &Line, owned: &Owned, found: &[ResponseOp], seen: Revision) -> Self {
        let own = owned.keys();
        let is_own = |kv: &&KeyValue| own.iter().any(|(key, _)| kv.key == *key.as_bytes());
        let lines = line.behind().len();
        let others = (0..lines).flat_map(|index| ops::kvs(found, index));
        let ahead = others
            .filter(|kv| !is_own(kv))
            .max_by_key(|kv| kv.create_revision);
        Self {
            ahead: ahead.cloned(),
            handover: ops::kvs(found, lines).first().cloned(),
            seen,
        }
    }
}

/// The reads that tell where a contender stands: the newest keys there are, or those before it.
fn look(line: &Line, created: Option<Revision>) -> Vec<RequestOp> {
    let newest = line.behind().iter().map(|space| match created {
        // Its own is among them.
        None => ops::newest(space.range(), 2),
        Some(Revision(created)) => {
            let mut ahead = ops::newest(space.range(), 1);
            ahead.max_create_revision = created - 1;
            ahead
        }
    });
    newest
        .chain(line.handover().map(ops::get))
        .map(ops::read)
        .collect()
}

/// A claim of fresh keys in the line.
fn fresh(session: &Session, line: &Line, value: &Value) -> Result<Claim> {
    let keys = line.keys(session.lease(), &session.client().nonce());
    let mut claim = Claim::default();
    for key in keys {
        let value = value.clone().into_bytes(&key)?;
        claim = claim.and(key, value);
    }
    Ok(claim)
}

async fn run(session: &Session, claim: Claim) -> Result<Claimed> {
    session
        .actor()
        .run(|actor| async move { actor.claim(claim).await })
        .await
}

fn hold(session: Session, owned: Owned, line: &Line) -> Hold {
    Hold::new(session, owned, line.contenders().to_vec())
}
