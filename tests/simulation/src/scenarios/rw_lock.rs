//! The read-write lock: writers count alone, readers mark together, and either becomes the other.

use std::collections::BTreeMap;

use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::lock::Upgraded;
use quorate_recipes::{Result, Session};

use crate::fenced::{Ledger, Order};
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that read and write, upgrade and downgrade.
#[derive(Debug)]
pub struct RwLock {
    ledger: Ledger,
}

impl RwLock {
    async fn read(&self, player: &Player, session: &Session) -> Result<()> {
        let lock = player.client().rw_lock("r");
        let guard = match player.one_in(4) {
            true => match lock.try_read(session).await? {
                Some(guard) => guard,
                None => return Ok(()),
            },
            false => lock.read(session).await?,
        };
        let held = self.ledger.granted(player, guard);
        self.ledger.put(player, &held, "data/read", "").await?;
        player.pause(300).await;
        self.ledger.put(player, &held, "data/read", "").await?;
        if player.one_in(2) {
            return held.into_inner().release().await;
        }
        match held.into_inner().try_upgrade().await? {
            Upgraded::Read(guard) => guard.release().await,
            Upgraded::Write(guard) => {
                let held = self.ledger.granted(player, guard);
                self.ledger.increment(player, &held, "data/count").await?;
                match player.one_in(2) {
                    true => held.into_inner().release().await,
                    false => held.into_inner().downgrade().await?.release().await,
                }
            }
        }
    }

    async fn write(&self, player: &Player, session: &Session) -> Result<()> {
        let lock = player.client().rw_lock("r");
        let guard = match player.one_in(4) {
            true => match lock.try_write(session).await? {
                Some(guard) => guard,
                None => return Ok(()),
            },
            false => lock.write(session).await?,
        };
        let held = self.ledger.granted(player, guard);
        self.ledger.increment(player, &held, "data/count").await?;
        if player.one_in(2) {
            return held.into_inner().release().await;
        }
        let guard = held.into_inner().downgrade().await?;
        let held = self.ledger.granted(player, guard);
        player.pause(300).await;
        self.ledger.put(player, &held, "data/read", "").await?;
        held.into_inner().release().await
    }
}

impl Scenario for RwLock {
    const NAME: &'static str = "rw_lock";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        match player.one_in(3) {
            true => self.write(player, session).await,
            false => self.read(player, session).await,
        }
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.ledger.check_by(history, &mut Sides::of("r"))
    }
}

/// Who may write under a read-write lock: at `data/read` readers that no writer stands before, elsewhere
/// the writer that is first.
#[derive(Debug)]
pub struct Sides {
    read: String,
    write: String,
    /// The names of the keys by create revision.
    readers: BTreeMap<i64, String>,
    writers: BTreeMap<i64, String>,
}

impl Sides {
    /// Of the lock of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self {
            read: format!("quorate/rwlock/{name}/read/"),
            write: format!("quorate/rwlock/{name}/write/"),
            readers: BTreeMap::new(),
            writers: BTreeMap::new(),
        }
    }
}

impl Order for Sides {
    fn take(&mut self, change: &Event) {
        let key = key_of(change);
        let (side, name) = match (key.strip_prefix(&self.read), key.strip_prefix(&self.write)) {
            (Some(name), _) => (&mut self.readers, name),
            (_, Some(name)) => (&mut self.writers, name),
            _ => return,
        };
        match (change.r#type(), &change.kv, &change.prev_kv) {
            (EventType::Put, Some(kv), _) => side.insert(kv.create_revision, name.to_owned()),
            (EventType::Delete, _, Some(kv)) => side.remove(&kv.create_revision),
            _ => None,
        };
    }

    /// A writer that becomes a reader gives its writer's key up, so that one is not looked at.
    fn has(&self, key: &str) -> bool {
        key.starts_with(&self.read)
    }

    fn allows(&mut self, key: &str, token: i64) -> std::result::Result<(), String> {
        if key == "data/read" {
            // One whose upgrade was given up may have left a writer's key, without the reader's.
            let whole = |name: &String| self.readers.values().any(|reader| reader == name);
            let mut before = self.writers.range(..token);
            let before = before.find(|(_, name)| whole(name));
            return match (self.readers.contains_key(&token), before) {
                (true, None) => Ok(()),
                (there, before) => Err(format!(
                    "accepted under reader {token}, there: {there}, writer before it: {before:?}"
                )),
            };
        }
        let own = self.writers.get(&token);
        let first = self.readers.first_key_value().map(|(_, name)| name);
        if own.is_none() || own != first {
            return Err(format!(
                "accepted under writer {token}, {own:?}; first was {first:?}"
            ));
        }
        Ok(())
    }
}
