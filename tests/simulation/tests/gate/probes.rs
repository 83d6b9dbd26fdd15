//! Broken observers and verdicts.

use std::time::Duration;

use quorate_recipes::probe::{ProbeState, Verdict};
use quorate_recipes::{Error, Result, Session, from_json};
use quorate_simulation::Player;
use quorate_simulation::scenarios::{OPINIONS, Probe};
use serde_json::Value;

use super::broken::{Broken, World};
use super::mutants::is_found;

/// Writes over an opinion.
async fn say(player: &Player, session: &Session, number: u64, state: Option<&str>) -> Result<()> {
    let key = format!("{OPINIONS}{number}");
    let found = player.client().get(&key).await?;
    let found = found.ok_or(Error::Conflict)?.value;
    let mut value: Value = from_json(key.as_bytes(), &found)?;
    if let Some(state) = state {
        value["state"] = state.into();
    }
    let put = player
        .client()
        .txn()
        .put_leased(&key, value.to_string(), session);
    put.commit().await.map(drop).map_err(Error::from)
}

/// An observer that says what it has not seen.
struct Invented;

impl Broken for Invented {
    type Whole = Probe;

    const NAME: &'static str = "an observer that says what it has not seen";

    async fn step(observers: &Probe, player: &Player, session: &Session) -> Result<()> {
        let (number, _seen) = observers.observe(player, session).await?;
        say(player, session, number, Some("down")).await
    }
}

/// An opinion that stands when it was taken back.
struct Late;

impl Broken for Late {
    type Whole = Probe;

    const NAME: &'static str = "an opinion that is told to be withdrawn and is there";

    async fn step(observers: &Probe, player: &Player, session: &Session) -> Result<()> {
        let (number, seen) = observers.observe(player, session).await?;
        observers.is_over(player, number);
        tokio::time::sleep(Duration::from_millis(20)).await;
        say(player, session, number, None).await?;
        observers.withdraw(player, number, seen).await
    }
}

/// One is enough.
struct NoQuorum;

impl Broken for NoQuorum {
    type Whole = Probe;

    const NAME: &'static str = "a verdict of one";

    async fn attend(observers: &Probe, player: &Player) {
        observers.follow(player, 1, |_| {}).await;
    }
}

/// Who says down is heard first.
struct Gloomy;

impl Broken for Gloomy {
    type Whole = Probe;

    const NAME: &'static str = "a verdict of the few";

    async fn attend(observers: &Probe, player: &Player) {
        let gloomy = |verdict: &mut Verdict| {
            let mut opinions = verdict.opinions.iter();
            if opinions.any(|one| one.state == ProbeState::Down) {
                verdict.state = ProbeState::Down;
            }
        };
        observers.follow(player, 2, gloomy).await;
    }
}

/// A verdict that is not marked.
struct Fresh;

impl Broken for Fresh {
    type Whole = Probe;

    const NAME: &'static str = "verdicts without a mark";

    async fn attend(observers: &Probe, player: &Player) {
        let unmarked = |verdict: &mut Verdict| verdict.stale_since = None;
        observers.follow(player, 2, unmarked).await;
    }
}

/// Probe that have died are heard on.
struct Ghosts;

impl Broken for Ghosts {
    type Whole = Probe;

    const NAME: &'static str = "opinions of those who have gone";

    async fn attend(observers: &Probe, player: &Player) {
        let known =
            std::cell::RefCell::new(Verdict::clone(
                &*match player.client().liveness("db").await {
                    Ok(liveness) => liveness.verdict(),
                    Err(_) => return,
                },
            ));
        let ghosts = |verdict: &mut Verdict| {
            let mut known = known.borrow_mut();
            for one in &known.opinions {
                let name = &one.observer;
                if verdict.opinions.iter().all(|there| there.observer != *name) {
                    verdict.opinions.push(one.clone());
                }
            }
            *known = verdict.clone();
        };
        observers.follow(player, 2, ghosts).await;
    }
}

#[test]
fn an_invented_opinion_is_found() {
    is_found::<World<Invented>>("it says Down after");
}

#[test]
fn an_opinion_that_was_withdrawn_is_found() {
    is_found::<World<Late>>("after it was over");
}

#[test]
fn a_verdict_of_one_is_found() {
    is_found::<World<NoQuorum>>("say up");
}

#[test]
fn a_verdict_of_the_few_is_found() {
    is_found::<World<Gloomy>>("Down, and");
}

#[test]
fn an_old_verdict_without_a_mark_is_found() {
    is_found::<World<Fresh>>("and not stale");
}

#[test]
fn opinions_of_those_who_have_gone_are_found() {
    is_found::<World<Ghosts>>(", and not {");
}
