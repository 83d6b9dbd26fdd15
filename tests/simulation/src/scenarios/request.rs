//! Requests to release: a holder hears of each that is made of it, once and of no other, and none is left
//! behind.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_recipes::{Result, Session};

use crate::fenced::{Ledger, Line};
use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// How long a holder waits to be asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// Clients that hold a lock until they are asked for it, and clients that ask.
#[derive(Debug)]
pub struct Request {
    ledger: Ledger,
    /// The reasons given, and the token of the holder that was asked; 0: it is not known who was.
    asked: RefCell<BTreeMap<String, i64>>,
    /// What each holder heard.
    heard: RefCell<BTreeSet<(i64, String)>>,
    broken: RefCell<Option<String>>,
}

impl Request {
    async fn hold(&self, player: &Player, session: &Session) -> Result<()> {
        let guard = player.client().mutex("m").lock(session).await?;
        let held = self.ledger.granted(player, guard);
        self.ledger.increment(player, &held, "data/count").await?;
        for _ in 0..=player.below(2) {
            let requested = tokio::time::timeout(PATIENCE, held.release_requested());
            let Ok(requested) = requested.await else {
                break;
            };
            let (token, reason) = (held.token().revision.0, requested?.reason);
            player.note(format!("{token} is asked to release: {reason}"));
            if !self.heard.borrow_mut().insert((token, reason.clone())) {
                let broken = format!("{token} was told twice: {reason}");
                self.broken.borrow_mut().get_or_insert(broken);
            }
        }
        match player.one_in(3) {
            true => Ok(()),
            false => held.into_inner().release().await,
        }
    }

    async fn ask(&self, player: &Player, session: &Session) -> Result<()> {
        let reason = {
            let mut asked = self.asked.borrow_mut();
            let reason = format!("reason {}", asked.len());
            asked.insert(reason.clone(), 0);
            reason
        };
        let lock = player.client().mutex("m");
        let Some(request) = lock.request_release(session, reason.as_str()).await? else {
            return Ok(());
        };
        let token = request.holder().revision.0;
        self.asked.borrow_mut().insert(reason, token);
        if player.one_in(3) {
            return Ok(());
        }
        tokio::select! {
            biased;
            granted = request.granted() => granted?,
            _ = session.lost() => return Ok(()),
        }
        player.note(format!("{token} has let go"));
        Ok(())
    }
}

impl Scenario for Request {
    const NAME: &'static str = "request";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            asked: RefCell::default(),
            heard: RefCell::default(),
            broken: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        match player.one_in(2) {
            true => self.hold(player, session).await,
            false => self.ask(player, session).await,
        }
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(broken) = &*self.broken.borrow() {
            return Err(broken.clone());
        }
        let asked = self.asked.borrow();
        for (token, reason) in &*self.heard.borrow() {
            match asked.get(reason) {
                Some(0) => {}
                Some(of) if of == token => {}
                of => return Err(format!("{token} heard {reason:?}, which was for {of:?}")),
            }
        }
        self.ledger.check(history, &Line::under("quorate/lock/m/"))
    }
}
