//! Broken shared results.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, TxnRequest};
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::keys::{Key, KeyRange, KeySpace, Revision};
use quorate_recipes::kit::Contender;
use quorate_recipes::lock::{Fenced, Hold};
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Client, Json, OnceError, Result, Session};
use quorate_simulation::scenarios::Results;
use quorate_simulation::sweep::sweep;
use quorate_simulation::{History, Player, Scenario, run};

use super::mutants::{fresh, is_found};

/// A result that is published if there is none, whether or not it still is its candidate's turn: a copy
/// that comes when the result was taken back long ago publishes it again, without its pieces.
struct NoTurn(Results);

fn space() -> KeySpace {
    KeySpace::of("once", "o")
}

fn manifest_key() -> Key {
    space().key("manifest")
}

impl NoTurn {
    async fn compute(&self, player: &Player, hold: &Hold) -> Result<()> {
        let attempt = format!("{:016x}", player.below(u64::MAX));
        let chunk = space().child("chunk").child(&attempt).key("00000000");
        let begun = self.0.begin(player);
        player.pause(300).await;
        let result = self.0.compute(player, begun, Revision(0));
        let result = quorate_recipes::Value::from(Json(result)).into_bytes(&chunk)?;
        self.write(hold, vec![ops::put(&chunk, result, None)])
            .await?;
        let manifest = format!(r#"{{"v":1,"attempt":"{attempt}"}}"#);
        self.write(hold, vec![ops::put(manifest_key(), manifest.into(), None)])
            .await
    }

    /// Under the turn, and its fence is left out.
    async fn write(&self, hold: &Hold, success: Vec<RequestOp>) -> Result<()> {
        let request = TxnRequest {
            compare: vec![Compare::absent(manifest_key()).into()],
            success,
            failure: Vec::new(),
        };
        hold.session().actor().repeat(request).await.map(drop)
    }
}

/// Takes back what is published, its pieces with it unless they are to be left.
async fn take_back(player: &Player, session: &Session, pieces: bool) -> Result<()> {
    let Some(manifest) = player.client().get(manifest_key()).await? else {
        return Ok(());
    };
    let at = Revision(manifest.mod_revision);
    let mut success = vec![ops::delete(KeyRange::one(manifest_key()))];
    if pieces {
        success.push(ops::delete(space().child("chunk").range()));
    }
    let request = TxnRequest {
        compare: vec![Compare::mod_revision(manifest_key(), at).into()],
        success,
        failure: Vec::new(),
    };
    session.actor().repeat(request).await.map(drop)
}

impl Scenario for NoTurn {
    const NAME: &'static str = "publishing without comparing the turn";

    fn new() -> Self {
        Self(Results::of("o", None))
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let turns = space().child("turn");
        let candidate = Contender::enter(session, &turns, "").await?;
        let hold = candidate.wait_turn().await?;
        match player.client().get(manifest_key()).await? {
            Some(_) => {}
            None => hold.scope(self.compute(player, &hold)).await??,
        }
        hold.release().await?;
        if player.one_in(2) {
            take_back(player, session, true).await?;
        }
        Ok(())
    }

    fn may_remain(&self, key: &str) -> bool {
        let name = key.strip_prefix(self.0.prefix());
        name.is_some_and(|name| !name.starts_with("turn/"))
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn publishing_without_comparing_the_turn_is_found() {
    is_found::<NoTurn>("torn, of 0 pieces");
}

/// How a shared result is published.
trait Way: 'static {
    const NAME: &'static str;

    /// Whether the pieces are written before what says that they are a result, and in one go with it
    /// otherwise.
    const APART: bool;

    /// Whether pieces go with their result.
    const SWEPT: bool = true;

    /// Under what name the pieces are written, of a result that replaces that of a revision.
    fn attempt(player: &Player, base: Revision) -> String {
        let _ = base;
        fresh(player)
    }

    /// What every write compares.
    fn compares(hold: &Hold, base: Revision) -> Vec<Compare> {
        let mut compares = hold.fence().compares();
        compares.push(Compare::mod_revision(manifest_key(), base));
        compares
    }
}

/// A shared result in a few lines: under its candidate's turn, two pieces and then what says so.
struct Publisher<W>(Results, PhantomData<W>);

impl<W: Way> Publisher<W> {
    async fn compute(&self, player: &Player, hold: &Hold, base: Revision) -> Result<()> {
        let begun = self.0.begin(player);
        player.pause(600).await;
        let attempt = W::attempt(player, base);
        let result = self.0.compute(player, begun, base);
        let result = quorate_recipes::Value::from(Json(result)).into_bytes(&manifest_key())?;
        let pieces = [result.slice(..1_500), result.slice(1_500..)];
        let chunks = space().child("chunk").child(&attempt);
        let keys = ["00000000", "00000001"].map(|name| chunks.key(name));
        let manifest = format!(r#"{{"v":1,"attempt":"{attempt}"}}"#);
        let manifest = ops::put(manifest_key(), manifest.into(), None);
        let put = |(key, piece): (&Key, Bytes)| ops::put(key, piece, None);
        let compares = W::compares(hold, base);
        if !W::APART {
            // A copy that comes late does nothing.
            let first = Compare::absent(&keys[0]);
            let compares = compares.into_iter().chain([first]).collect();
            let mut success: Vec<RequestOp> = keys.iter().zip(pieces).map(put).collect();
            success.push(manifest);
            return write(hold, compares, success).await.map(drop);
        }
        for (key, piece) in keys.iter().zip(pieces) {
            let there = player.client().get(key).await?.is_some();
            if !there && !write(hold, compares.clone(), vec![put((key, piece))]).await? {
                return Ok(());
            }
            player.pause(600).await;
        }
        write(hold, compares, vec![manifest]).await.map(drop)
    }
}

async fn write(hold: &Hold, when: Vec<Compare>, success: Vec<RequestOp>) -> Result<bool> {
    let request = TxnRequest {
        compare: when.into_iter().map(Into::into).collect(),
        success,
        failure: Vec::new(),
    };
    let (answer, _) = hold.session().actor().repeat(request).await?;
    Ok(answer.succeeded)
}

impl<W: Way> Scenario for Publisher<W> {
    const NAME: &'static str = W::NAME;

    fn new() -> Self {
        Self(Results::of("o", None), PhantomData)
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let turns = space().child("turn");
        let candidate = Contender::enter(session, &turns, "").await?;
        let hold = candidate.wait_turn().await?;
        let published = player.client().get(manifest_key()).await?;
        let base = Revision(published.map_or(0, |kv| kv.mod_revision));
        if base == Revision(0) || player.one_in(2) {
            self.compute(player, &hold, base).await?;
        }
        hold.release().await?;
        if player.one_in(2) {
            take_back(player, session, W::SWEPT).await?;
        }
        Ok(())
    }

    fn may_remain(&self, key: &str) -> bool {
        let name = key.strip_prefix(self.0.prefix());
        name.is_some_and(|name| !name.starts_with("turn/"))
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

/// What is right about them all.
struct Sound;

impl Way for Sound {
    const NAME: &'static str = "a sound way of publishing";
    const APART: bool = true;
}

#[test]
fn a_sound_way_of_publishing_is_not_found() {
    let report = sweep(run::<Publisher<Sound>>, 0..50, 2);
    assert_eq!(report.broken.and_then(|outcome| outcome.broken), None);
}

/// A successor is published though what it replaces was taken back while it was computed.
struct TakenBack;

impl Way for TakenBack {
    const NAME: &'static str = "a successor of what was taken back";
    const APART: bool = false;

    fn compares(hold: &Hold, _: Revision) -> Vec<Compare> {
        hold.fence().compares()
    }
}

#[test]
fn a_successor_of_what_was_taken_back_is_found() {
    is_found::<Publisher<TakenBack>>("which was taken back at");
}

/// Nobody asks whether it still leads: whose turn is over publishes after others have.
struct NoLead;

impl Way for NoLead {
    const NAME: &'static str = "publishing without leading";
    const APART: bool = false;
    const SWEPT: bool = false;

    fn compares(_: &Hold, base: Revision) -> Vec<Compare> {
        vec![Compare::mod_revision(manifest_key(), base)]
    }
}

#[test]
fn publishing_without_leading_is_found() {
    is_found::<Publisher<NoLead>>("comes after what was published at");
}

/// Who comes after one that was interrupted takes the pieces that it finds for its own.
struct Adopts;

impl Way for Adopts {
    const NAME: &'static str = "pieces of another attempt";
    const APART: bool = true;

    fn attempt(_: &Player, base: Revision) -> String {
        base.to_string()
    }
}

#[test]
fn pieces_of_another_attempt_are_found() {
    is_found::<Publisher<Adopts>>("published what nobody has computed");
}

/// A failure that a client has heard of, and tells of for as long as it was to count without asking
/// whether it still does.
struct Remembered {
    told: Results,
    /// Of each client: until when, and what.
    known: RefCell<BTreeMap<usize, (Instant, String)>>,
}

const FAILURE_TTL: Duration = Duration::from_secs(3);

impl Scenario for Remembered {
    const NAME: &'static str = "a failure that is remembered";

    fn new() -> Self {
        Self {
            told: Results::of("o", None),
            known: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let (now, from) = (SystemClock.now(), player.revision());
        let known = self.known.borrow().get(&player.index()).cloned();
        if let Some((_, text)) = known.filter(|(until, _)| now < *until) {
            self.told.cached(player, from, &text);
            return Ok(());
        }
        let client: &Client = player.client();
        let cell = client.once::<String>("o").cache_failures(FAILURE_TTL);
        let init = || async {
            let begun = self.told.begin(player);
            player.pause(300).await;
            match player.one_in(2) {
                true => Err(format!("failure {}", self.told.number())),
                false => Ok(self.told.compute(player, begun, Revision(0))),
            }
        };
        match cell.get_or_try_init(session, init).await {
            Err(OnceError::Cached(failure)) => {
                self.told.cached(player, from, &failure.text);
                let until = SystemClock.now() + FAILURE_TTL;
                let mut known = self.known.borrow_mut();
                known.insert(player.index(), (until, failure.text.clone()));
            }
            Err(OnceError::Failed(error)) => return Err(error),
            _ => {}
        }
        if player.one_in(2) {
            cell.forget_failures().await?;
        }
        take_back(player, session, true).await
    }

    fn may_remain(&self, key: &str) -> bool {
        let name = key.strip_prefix(self.told.prefix());
        name.is_some_and(|name| !name.starts_with("turn/"))
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.told.check(history)
    }
}

#[test]
fn a_failure_that_is_told_after_it_was_forgotten_is_found() {
    is_found::<Remembered>("was not a failure then");
}
