//! The shared result: one is published at a time, whole, and every reader gets exactly that.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{try_join, try_join_all};
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::keys::Revision;
use quorate_recipes::store::Capabilities;
use quorate_recipes::{Error, OnceError, Result, Session};
use serde_json::Value;

use crate::gatherings::Wrong;
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that need the result, compute it, fail, read, and take it back.
#[derive(Debug)]
pub struct Once {
    computed: Cell<u64>,
    got: RefCell<Vec<Span>>,
    wrong: Wrong,
}

/// A result, and between which revisions somebody got it, or it was published.
#[derive(Debug)]
struct Span {
    result: String,
    from: Revision,
    to: Revision,
}

const PREFIX: &str = "quorate/once/o/";

/// Of a request, and more than what a result has: several pieces.
const REQUEST_BYTES_MAX: usize = 2_048;
const RESULT_BYTES: usize = 2_500;

impl Once {
    /// A result as there is no other.
    fn compute(&self, player: &Player) -> String {
        let number = self.computed.get() + 1;
        self.computed.set(number);
        player.note(format!("computed {number}"));
        format!("{number:0RESULT_BYTES$}")
    }

    /// Everybody waits for a result that there is not yet, and gets it.
    async fn wait_for_one(&self, players: &[Player]) -> Result<std::result::Result<(), String>> {
        let session = players[0].client().session().await?;
        let cell = players[0].client().once::<String>("o");
        while let Some(published) = cell.published().await? {
            cell.invalidate(published.revision).await?;
        }
        let init = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let init = || async { Ok::<_, Error>(self.compute(&players[0])) };
            match cell.get_or_try_init(&session, init).await {
                Ok(result) => Ok(result),
                Err(OnceError::Init(error) | OnceError::Failed(error)) => Err(error),
                Err(_) => Err(Error::Closed),
            }
        };
        let waits = players.iter().map(|player| async {
            let cell = player.client().once::<String>("o");
            cell.wait().await
        });
        let (result, all) = try_join(init, try_join_all(waits)).await?;
        session.close().await?;
        let same = all.iter().all(|one| *one == result);
        Ok(same
            .then_some(())
            .ok_or_else(|| "those who waited got something else".to_owned()))
    }
    async fn need(&self, player: &Player, session: &Session) -> Result<Option<Arc<String>>> {
        let cell = player.client().once::<String>("o");
        match player.below(6) {
            0 => return cell.get().await,
            1 => {
                let patience = Duration::from_millis(player.below(3_000));
                let waited = tokio::time::timeout(patience, cell.wait()).await;
                return waited.map_or(Ok(None), |waited| waited.map(Some));
            }
            _ => {}
        }
        let init = || async {
            player.pause(600).await;
            if player.one_in(6) {
                return Err(());
            }
            Ok(self.compute(player))
        };
        match cell.get_or_try_init(session, init).await {
            Ok(result) => Ok(Some(result)),
            Err(OnceError::Failed(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }
}

impl Scenario for Once {
    const NAME: &'static str = "once";

    fn new() -> Self {
        Self {
            computed: Cell::new(0),
            got: RefCell::default(),
            wrong: Wrong::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let from = player.revision();
        let noted = |error: &Error| self.wrong.note(error);
        let got = self.need(player, session).await.inspect_err(noted)?;
        if let Some(result) = got {
            let (result, to) = (String::clone(&result), player.revision());
            player.note(format!("has {}", result.trim_start_matches('0')));
            self.got.borrow_mut().push(Span { result, from, to });
        }
        if player.one_in(3) {
            let cell = player.client().once::<String>("o");
            if let Some(published) = cell.published().await.inspect_err(noted)? {
                cell.invalidate(published.revision).await?;
            }
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
        let waited = self.wait_for_one(players).await;
        waited.map_err(|error| format!("in the calm: {error}"))?
    }

    fn may_remain(&self, key: &str) -> bool {
        // A result, and what an attempt left that nobody has followed.
        let kept = ["manifest", "chunk/"];
        let name = key.strip_prefix(PREFIX);
        name.is_some_and(|name| kept.iter().any(|kept| name.starts_with(kept)))
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.wrong.check()?;
        let published = published(history)?;
        for got in &*self.got.borrow() {
            let there = published
                .iter()
                .any(|one| one.result == got.result && one.from <= got.to && got.from <= one.to);
            if !there {
                return Err(format!("{got:?} was not published then"));
            }
        }
        Ok(())
    }
}

/// What was published, from when to when, if it was whole all the time and one at a time.
fn published(history: &History) -> std::result::Result<Vec<Span>, String> {
    let mut live = BTreeMap::new();
    let mut all: Vec<Span> = Vec::new();
    // The attempt of what is published now.
    let mut current: Option<String> = None;
    for commit in &history.commits {
        let place = format!("at {}", commit.revision);
        let mut put = None;
        for change in &commit.changes {
            let key = key_of(change);
            let deleted = change.r#type() == EventType::Delete;
            if let Some(kv) = &change.kv {
                match deleted {
                    true => live.remove(&key),
                    false => live.insert(key.clone(), kv.value.clone()),
                };
                if key == format!("{PREFIX}manifest") && !deleted {
                    let json: Value = serde_json::from_slice(&kv.value)
                        .map_err(|error| format!("{place}: {error}"))?;
                    put = json["attempt"].as_str().map(str::to_owned);
                }
            }
            if key == format!("{PREFIX}manifest")
                && deleted
                && let (Some(_), Some(last)) = (current.take(), all.last_mut())
            {
                last.to = commit.revision;
            }
        }
        if let Some(attempt) = put {
            if current.replace(attempt).is_some() {
                return Err(format!("{place}: published over another one"));
            }
            all.push(Span {
                result: String::new(),
                from: commit.revision,
                to: Revision(i64::MAX),
            });
        }
        if let (Some(attempt), Some(last)) = (&current, all.last_mut()) {
            let chunks = format!("{PREFIX}chunk/{attempt}/");
            let pieces = live.range(chunks.clone()..);
            let pieces = pieces.take_while(|(key, _)| key.starts_with(&chunks));
            let pieces: Vec<&[u8]> = pieces.map(|(_, piece)| &piece[..]).collect();
            if pieces.len() < 2 {
                return Err(format!("{place}: {} pieces", pieces.len()));
            }
            let bytes = pieces.concat();
            let result = serde_json::from_slice(&bytes);
            last.result = result.map_err(|error| format!("{place}: torn: {error}"))?;
        }
    }
    Ok(all)
}
