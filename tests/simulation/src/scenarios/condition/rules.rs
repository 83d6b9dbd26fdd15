//! Conditions that worlds draw, and whether one holds by what a history says.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_recipes::condition::Condition as When;

use super::DELAY;
use crate::player::Player;

/// Draws a condition. Each of its terms is about a task of its own, so whatever it asks for can be so.
pub(super) fn draw(player: &Player) -> When {
    let mut tasks = 0;
    match player.below(3) {
        0 => term(player, &mut tasks),
        _ => {
            let parts = (0..2 + player.below(2)).map(|_| match player.one_in(3) {
                true => together(
                    player,
                    vec![term(player, &mut tasks), term(player, &mut tasks)],
                ),
                false => term(player, &mut tasks),
            });
            let parts = parts.collect();
            together(player, parts)
        }
    }
}

fn together(player: &Player, parts: Vec<When>) -> When {
    match player.one_in(2) {
        true => When::All(parts),
        false => When::Any(parts),
    }
}

fn term(player: &Player, tasks: &mut u32) -> When {
    let mut task = || {
        *tasks += 1;
        format!("x{tasks}")
    };
    match player.below(8) {
        0 => When::len(2 + usize::try_from(player.below(2)).unwrap_or(0)),
        1 => When::present(task()),
        2 => When::absent(task()),
        3 | 4 => When::left(task()),
        5 => When::done(task()),
        6 => When::started(),
        _ => When::After(DELAY),
    }
}

fn walk(when: &When, see: &mut impl FnMut(&When)) {
    see(when);
    if let When::All(parts) | When::Any(parts) = when {
        parts.iter().for_each(|part| walk(part, see));
    }
}

/// The tasks that a condition is about.
pub(super) fn names(when: &When) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    walk(when, &mut |term| {
        if let When::Present(id) | When::Absent(id) | When::Left(id) | When::Done(id) = term {
            names.insert(id.clone());
        }
    });
    names
}

/// Whether it asks for a start.
pub(super) fn asks_for_start(when: &When) -> bool {
    let mut asks = false;
    walk(when, &mut |term| asks |= *term == When::Started);
    asks
}

/// Whether it asks for a task to be done.
pub(super) fn asks_for_end(when: &When, task: &str) -> bool {
    let mut asks = false;
    walk(when, &mut |term| {
        asks |= matches!(term, When::Done(id) if id == task);
    });
    asks
}

/// What was so in an epoch when its gate opened.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) there: &'a BTreeSet<String>,
    /// Who was withdrawn, whether or not it joined again.
    pub(super) left: &'a BTreeSet<String>,
    /// Who was done since the gate before.
    pub(super) done: &'a BTreeSet<String>,
    pub(super) started: bool,
    /// How long ago the first one joined.
    pub(super) waited: Option<Duration>,
}

/// Whether a condition holds.
pub(super) fn holds(when: &When, facts: &Facts<'_>) -> bool {
    match when {
        When::Len(tasks) => facts.there.len() >= *tasks,
        When::Present(id) => facts.there.contains(id),
        When::Absent(id) => !facts.there.contains(id),
        When::Left(id) => facts.left.contains(id) && !facts.there.contains(id),
        When::Done(id) => facts.done.contains(id),
        When::Started => facts.started,
        When::After(delay) => facts.waited.is_some_and(|waited| waited >= *delay),
        When::All(parts) => parts.iter().all(|part| holds(part, facts)),
        When::Any(parts) => parts.iter().any(|part| holds(part, facts)),
        _ => false,
    }
}
