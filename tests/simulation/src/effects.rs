//! Effects with a number of their own, each of which must take place exactly once if it was
//! acknowledged, and at most once if not. Under counters, adders and transactions.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;

use quorate_recipes::watch::View;
use quorate_recipes::{Error, KeyRange, Result};

use crate::player::Player;

/// What a client was told about an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<T> {
    /// Nothing: it was dropped, or its outcome is unknown.
    Open,
    /// It took place, with this result.
    Done(T),
    /// It certainly did not take place.
    Not,
}

impl<T: Copy> Told<T> {
    /// What a client knows by this outcome.
    #[must_use]
    pub fn of(outcome: &Result<T>) -> Self {
        match outcome {
            Ok(value) => Self::Done(*value),
            Err(error) if error.is_ambiguous() => Self::Open,
            Err(_) => Self::Not,
        }
    }
}

/// The effects of all clients.
#[derive(Debug)]
pub struct Effects<T> {
    last: Cell<i64>,
    told: RefCell<BTreeMap<i64, Told<T>>>,
}

impl<T> Default for Effects<T> {
    fn default() -> Self {
        Self {
            last: Cell::new(0),
            told: RefCell::default(),
        }
    }
}

impl<T: Copy + std::fmt::Debug> Effects<T> {
    /// Has an effect done with a number that no other has, from 1 on, and notes how that ended.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn attempt<F>(&self, player: &Player, effect: impl FnOnce(i64) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.last.set(self.last.get() + 1);
        let number = self.last.get();
        player.note(format!("effect {number}"));
        self.told.borrow_mut().insert(number, Told::Open);
        let outcome = effect(number).await;
        let told = Told::of(&outcome);
        player.note(format!("effect {number}: {told:?}"));
        self.told.borrow_mut().insert(number, told);
        outcome
    }

    /// Judges what took place: each effect's number with its result, in order.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, happened: impl IntoIterator<Item = (i64, T)>) -> Result<(), String>
    where
        T: PartialEq,
    {
        let mut told = self.told.borrow().clone();
        for (number, result) in happened {
            match told.remove(&number) {
                None => {
                    return Err(format!(
                        "effect {number} took place twice, or never was asked for"
                    ));
                }
                Some(Told::Not) => {
                    return Err(format!("effect {number} took place, and was refused"));
                }
                Some(Told::Done(known)) if known != result => {
                    return Err(format!(
                        "effect {number} gave {result:?}, and {known:?} was told"
                    ));
                }
                Some(_) => {}
            }
        }
        let done = told.iter().find(|(_, told)| matches!(told, Told::Done(_)));
        match done {
            Some((number, _)) => Err(format!(
                "effect {number} was acknowledged and never took place"
            )),
            None => Ok(()),
        }
    }
}

/// Follows the keys below a prefix for as long as the world lasts.
///
/// # Panics
/// When following ends.
pub async fn follow(player: &Player, prefix: &str, mut see: impl FnMut(&View)) {
    let range = KeyRange::prefix(prefix);
    let mirror = player.client().mirror(range).await;
    let mut mirror = mirror.expect("nothing is refused for good");
    see(&mirror.view());
    loop {
        let view = mirror.changed().await;
        see(&view.expect("a mirror goes on"));
    }
}

/// The error of an operation that is not one of the recipe's promises: none, if the store was in
/// trouble.
///
/// # Errors
/// Any other.
pub fn unless_trouble(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(Error::Store(error)) if error.is_transient() => Ok(()),
        outcome => outcome,
    }
}
