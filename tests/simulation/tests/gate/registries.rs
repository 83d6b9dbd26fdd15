//! Broken registries: instances that are written by those who should not, and observers that tell too much or
//! too little.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_recipes::registry::{MassLoss, ServiceView};
use quorate_recipes::{Error, Result, Session, from_json};
use quorate_simulation::Player;
use quorate_simulation::scenarios::{Held, INSTANCES, Registry, Said, protection};
use serde_json::Value;

use super::broken::{Broken, World};
use super::mutants::is_found;

/// An instance of this client's own.
async fn own(service: &Registry, player: &Player, session: &Session) -> Result<(String, Held)> {
    let id = format!("own-{}", player.index());
    let held = service.register(player, session, &id, true).await?;
    Ok((format!("{INSTANCES}{id}"), held))
}

async fn found(player: &Player, key: &str) -> Result<Bytes> {
    let found = player.client().get(key).await?;
    found.map(|kv| kv.value).ok_or(Error::Conflict)
}

async fn put(player: &Player, session: &Session, key: &str, value: Bytes) -> Result<()> {
    let txn = player.client().txn();
    let put = txn.put_leased(key, value, session);
    put.commit().await.map(drop).map_err(Error::from)
}

/// An instance leaves by deleting its key: nobody can tell that from a crash.
struct NoFarewell;

impl Broken for NoFarewell {
    type Whole = Registry;

    const NAME: &'static str = "an instance that leaves without a word";

    async fn step(service: &Registry, player: &Player, session: &Session) -> Result<()> {
        let (key, _held) = own(service, player, session).await?;
        player.client().delete(&key).await?;
        Ok(())
    }
}

/// An instance is written whoever has its id.
struct NoCompare;

impl Broken for NoCompare {
    type Whole = Registry;

    const NAME: &'static str = "a registration that does not ask who has the id";

    async fn step(service: &Registry, player: &Player, session: &Session) -> Result<()> {
        let (key, _held) = own(service, player, session).await?;
        let id = key.strip_prefix(INSTANCES).unwrap();
        let number = service.begin(player, id, false);
        let value = written(&key, &found(player, &key).await?, |value| {
            value["Addr"] = format!("{number}:0").into();
            value["Metadata"]["status"] = "up".into();
            value["Metadata"]["meta"] = vec![number, 0].into();
        })?;
        put(player, session, &key, value).await
    }
}

fn written(key: &str, value: &Bytes, change: impl FnOnce(&mut Value)) -> Result<Bytes> {
    let mut value: Value = from_json(key.as_bytes(), value)?;
    change(&mut value);
    Ok(value.to_string().into())
}

/// What was there when a session was lost is put back, and not what is wanted since.
struct Older;

impl Broken for Older {
    type Whole = Registry;

    const NAME: &'static str = "an instance put back as it was";

    async fn step(service: &Registry, player: &Player, session: &Session) -> Result<()> {
        let (key, held) = own(service, player, session).await?;
        let old = found(player, &key).await?;
        service.update(player, &held, true).await?;
        put(player, session, &key, old).await
    }
}

/// A deregistration that does not wait for what is on its way.
struct Late;

impl Broken for Late {
    type Whole = Registry;

    const NAME: &'static str = "an instance that is written after it has gone";

    async fn step(service: &Registry, player: &Player, session: &Session) -> Result<()> {
        let (key, held) = own(service, player, session).await?;
        let last = found(player, &key).await?;
        service.deregister(player, held).await?;
        player.pause(20).await;
        put(player, session, &key, last).await
    }
}

/// An instance that is told to be gone while it leaves yet.
struct Early;

impl Broken for Early {
    type Whole = Registry;

    const NAME: &'static str = "an instance that is told to be gone and is there";

    async fn step(service: &Registry, player: &Player, session: &Session) -> Result<()> {
        let (_, held) = own(service, player, session).await?;
        service.is_over(player, held.number());
        player.pause(300).await;
        service.deregister(player, held).await
    }
}

/// Views that do not say that they are old.
struct Fresh;

impl Broken for Fresh {
    type Whole = Registry;

    const NAME: &'static str = "views without a mark";

    async fn attend(service: &Registry, player: &Player) {
        let protection = protection(player);
        let unmarked = |view: &mut ServiceView<Said>| view.stale_since = None;
        service
            .observe(player, protection, protection, unmarked)
            .await;
    }
}

/// Views that show who is there, and not since when.
struct Torn;

impl Broken for Torn {
    type Whole = Registry;

    const NAME: &'static str = "views with the revision of others";

    async fn attend(service: &Registry, player: &Player) {
        let protection = protection(player);
        let mut before: Option<Arc<ServiceView<Said>>> = None;
        let late = |view: &mut ServiceView<Said>| {
            let now = Arc::new(view.clone());
            if let Some(before) = before.replace(now) {
                view.instances = before.instances.clone();
            }
        };
        service.observe(player, protection, protection, late).await;
    }
}

/// Views that go back.
struct Back;

impl Broken for Back {
    type Whole = Registry;

    const NAME: &'static str = "views that go back";

    async fn attend(service: &Registry, player: &Player) {
        let protection = protection(player);
        let mut first: Option<ServiceView<Said>> = None;
        let back = |view: &mut ServiceView<Said>| {
            let first = first.get_or_insert_with(|| view.clone());
            if player.one_in(20) {
                *view = first.clone();
            }
        };
        service.observe(player, protection, protection, back).await;
    }
}

const SMALL: MassLoss = mass_loss(2, 0.3, 5);

const fn mass_loss(at_least: usize, more_than: f64, grace_seconds: u64) -> MassLoss {
    MassLoss {
        at_least,
        more_than,
        grace: Duration::from_secs(grace_seconds),
    }
}

/// Whoever vanishes is kept, alone as well.
struct KeptAlone;

impl Broken for KeptAlone {
    type Whole = Registry;

    const NAME: &'static str = "single losses that are kept";

    async fn attend(service: &Registry, player: &Player) {
        let one = mass_loss(1, 0.0, 5);
        let many = mass_loss(8, 0.3, 5);
        service.observe(player, one, many, |_| {}).await;
    }
}

/// Whoever vanishes is kept for longer than was asked for.
struct KeptLong;

impl Broken for KeptLong {
    type Whole = Registry;

    const NAME: &'static str = "losses that are kept for long";

    async fn attend(service: &Registry, player: &Player) {
        let long = mass_loss(2, 0.3, 9);
        service.observe(player, long, SMALL, |_| {}).await;
    }
}

/// Nobody is kept.
struct KeptNot;

impl Broken for KeptNot {
    type Whole = Registry;

    const NAME: &'static str = "many losses that are believed at once";

    async fn attend(service: &Registry, player: &Player) {
        let none = mass_loss(2, 0.3, 0);
        service.observe(player, none, SMALL, |_| {}).await;
    }
}

#[test]
fn an_instance_that_leaves_without_a_word_is_found() {
    is_found::<World<NoFarewell>>("without a word");
}

#[test]
fn a_registration_over_another_is_found() {
    is_found::<World<NoCompare>>("written over");
}

#[test]
fn an_instance_put_back_as_it_was_is_found() {
    is_found::<World<Older>>("rolled back");
}

#[test]
fn an_instance_that_is_there_again_is_found() {
    is_found::<World<Late>>("there again after it was over");
}

#[test]
fn an_instance_that_is_still_there_is_found() {
    is_found::<World<Early>>("it was over");
}

#[test]
fn an_old_view_without_a_mark_is_found() {
    is_found::<World<Fresh>>("and not stale");
}

#[test]
fn a_view_of_another_revision_is_found() {
    is_found::<World<Torn>>(", and not {");
}

#[test]
fn a_view_that_goes_back_is_found() {
    is_found::<World<Back>>("it comes after view");
}

#[test]
fn a_suspect_alone_is_found() {
    is_found::<World<KeptAlone>>("so few went");
}

#[test]
fn a_suspect_for_too_long_is_found() {
    is_found::<World<KeptLong>>("suspected for too long");
}

#[test]
fn a_mass_loss_that_is_believed_is_found() {
    is_found::<World<KeptNot>>("and is not kept");
}
