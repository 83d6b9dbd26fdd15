//! The shared result: one is published at a time, whole, and every reader gets exactly that; a newer one
//! replaces the one it is meant to; failures count for a while, and so many may begin.

mod results;

use std::sync::Arc;
use std::time::Duration;

use futures::future::{try_join, try_join_all};
use quorate_recipes::keys::Revision;
use quorate_recipes::once::Published;
use quorate_recipes::store::Capabilities;
use quorate_recipes::{Error, OnceCell, OnceError, Result, Session};

pub use self::results::Results;
use crate::gatherings::Wrong;
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that need a result, compute it, replace it, fail, read, and take it back.
#[derive(Debug)]
pub struct Once {
    /// Of a name whose handles have no options, and of one whose failures are cached and counted.
    names: [Results; 2],
    wrong: Wrong,
}

/// Of a request: a result has several pieces.
const REQUEST_BYTES_MAX: usize = 2_048;

const NAMES: [&str; 2] = ["o", "f"];

/// Computations that may begin in a row.
const ATTEMPTS_MAX: u32 = 2;

/// How long a failure counts.
const FAILURE_TTL: Duration = Duration::from_secs(3);

type Got = std::result::Result<Arc<String>, OnceError<String>>;

fn cell(player: &Player, index: usize) -> OnceCell<String> {
    let cell = player.client().once(NAMES[index]);
    match index {
        0 => cell,
        _ => cell.cache_failures(FAILURE_TTL).max_attempts(ATTEMPTS_MAX),
    }
}

impl Once {
    /// Takes a while and fails now and then.
    async fn init(
        &self,
        player: &Player,
        index: usize,
        stale: Revision,
    ) -> std::result::Result<String, String> {
        let begun = self.names[index].begin(player);
        player.pause(600).await;
        if player.one_in(4) {
            return Err(format!("failure {}", self.names[index].number()));
        }
        Ok(self.names[index].compute(player, begun, stale))
    }

    /// Gets a result, the first or a newer one, or waits for one.
    async fn need(&self, player: &Player, session: &Session, index: usize) -> Got {
        let cell = cell(player, index);
        let published = match player.below(8) {
            0 => return self.read(cell.get().await?),
            1 => {
                let patience = Duration::from_millis(player.below(3_000));
                let waited = tokio::time::timeout(patience, cell.wait()).await;
                return self.read(waited.ok().transpose()?);
            }
            2..5 => cell.published().await?,
            _ => None,
        };
        let Some(Published { revision, .. }) = published else {
            let init = || self.init(player, index, Revision(0));
            return cell.get_or_try_init(session, init).await;
        };
        if player.one_in(4) {
            let patience = Duration::from_millis(player.below(3_000));
            let changed = tokio::time::timeout(patience, cell.changed(revision)).await;
            let changed = changed.ok().transpose()?;
            if let Some((published, _)) = &changed
                && published.revision == revision
            {
                return Err(Error::Invalid("what did not change".to_owned()).into());
            }
            return self.read(changed.map(|(_, value)| value));
        }
        let init = || self.init(player, index, revision);
        match cell.refresh(session, revision, init).await {
            // Somebody took the old one back.
            Err(OnceError::Failed(Error::Conflict)) => self.read(None),
            refreshed => refreshed,
        }
    }

    /// What was read, if there was anything.
    fn read(&self, value: Option<Arc<String>>) -> Got {
        Ok(value.unwrap_or_default())
    }

    /// Everybody waits for a result that there is not yet, and gets it; then for the next one.
    async fn wait_for_two(&self, players: &[Player], index: usize) -> Result<()> {
        let session = players[0].client().session().await?;
        let own = cell(&players[0], index);
        own.forget_failures().await?;
        while let Some(published) = own.published().await? {
            own.invalidate(published.revision).await?;
        }
        let mut stale = Revision(0);
        for _ in 0..2 {
            let init = async {
                tokio::time::sleep(FAILURE_TTL).await;
                let init = || async {
                    let begun = self.names[index].begin(&players[0]);
                    Ok(self.names[index].compute(&players[0], begun, stale))
                };
                let got: Got = match stale {
                    Revision(0) => own.get_or_try_init(&session, init).await,
                    stale => own.refresh(&session, stale, init).await,
                };
                got.map_err(|error| Error::Invalid(error.to_string()))
            };
            let waits = players.iter().map(|player| async {
                let cell = cell(player, index);
                cell.changed(stale).await
            });
            let (result, all) = try_join(init, try_join_all(waits)).await?;
            if !all.iter().all(|(_, one)| *one == result) {
                return Err(Error::Invalid("somebody got something else".to_owned()));
            }
            stale = all[0].0.revision;
        }
        session.close().await
    }
}

impl Scenario for Once {
    const NAME: &'static str = "once";

    fn new() -> Self {
        Self {
            names: [
                Results::of(NAMES[0], None),
                Results::of(NAMES[1], Some(ATTEMPTS_MAX)),
            ],
            wrong: Wrong::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let index = usize::from(player.one_in(2));
        let (from, told) = (player.revision(), &self.names[index]);
        match self.need(player, session, index).await {
            Ok(result) if result.is_empty() => {}
            Ok(result) => told.got(player, from, &result),
            Err(OnceError::Cached(failure)) => told.cached(player, from, &failure.text),
            Err(OnceError::Exhausted { attempts, .. }) => {
                told.exhausted(player, from, attempts);
                if player.one_in(2) {
                    cell(player, index).forget_failures().await?;
                }
            }
            Err(OnceError::Failed(error)) => {
                self.wrong.note(&error);
                return Err(error);
            }
            Err(_) => {}
        }
        if player.one_in(4) {
            let cell = cell(player, index);
            let noted = |error: &Error| self.wrong.note(error);
            if let Some(published) = cell.published().await.inspect_err(noted)? {
                cell.invalidate(published.revision).await?;
            }
        }
        if player.one_in(20) {
            cell(player, index).forget_failures().await?;
        }
        Ok(())
    }

    fn capabilities() -> Capabilities {
        Capabilities {
            max_request_bytes: REQUEST_BYTES_MAX,
            ..Capabilities::default()
        }
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        for index in [0, 1] {
            let waited = self.wait_for_two(players, index).await;
            waited.map_err(|error| format!("in the calm: {error}"))?;
        }
        Ok(())
    }

    fn may_remain(&self, key: &str) -> bool {
        // A result, and what an attempt left that nobody has followed.
        let kept = ["manifest", "chunk/", "attempts"];
        let of = |name: &Results| {
            let name = key.strip_prefix(name.prefix());
            name.is_some_and(|name| kept.iter().any(|kept| name.starts_with(kept)))
        };
        self.names.iter().any(of)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.wrong.check()?;
        self.names.iter().try_for_each(|name| name.check(history))
    }
}
