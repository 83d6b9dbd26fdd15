//! Broken searches for circles of waits.

use std::collections::BTreeMap;

use quorate_recipes::Result;
use quorate_recipes::lock::Holder;
use quorate_simulation::Player;
use quorate_simulation::scenarios::{Circle, Deadlock, Finds, Found, Wait};

use super::mutants::is_found;

/// A search that reads one lock after the other, each as it is then: what it puts together never was.
struct NoSnapshot;

impl Finds for NoSnapshot {
    const NAME: &'static str = "circles of several moments";

    async fn look(player: &Player) -> Result<Vec<Circle>> {
        let mut waits: BTreeMap<Option<String>, (String, Holder, Holder)> = BTreeMap::new();
        for name in ["a", "b", "c"] {
            let lock = player.client().mutex(name);
            let mut line: Vec<Holder> = lock.holder().await?.into_iter().collect();
            let waiters = lock.waiters(10).await?;
            line.extend(waiters.into_iter().map(|waiter| waiter.contender));
            for pair in line.windows(2) {
                let (holder, waiter) = (pair[0].clone(), pair[1].clone());
                waits.insert(waiter.task.clone(), (name.to_owned(), waiter, holder));
            }
            player.pause(200).await;
        }
        let revision = player.revision();
        for start in waits.keys() {
            let (mut circle, mut task) = (Vec::new(), start);
            while let Some((name, waiter, holder)) = waits.get(task) {
                circle.push(Wait::of(name, waiter, holder));
                task = &holder.task;
                if task == start {
                    return Ok(vec![Circle {
                        waits: circle,
                        certain: true,
                        revision,
                    }]);
                }
                if circle.len() > waits.len() {
                    break;
                }
            }
        }
        Ok(Vec::new())
    }
}

#[test]
fn circles_that_never_stood_are_found() {
    is_found::<Deadlock<NoSnapshot>>("was not so");
}

/// A search that does not see circles of more than two.
struct OnlyPairs;

impl Finds for OnlyPairs {
    const NAME: &'static str = "circles of two only";

    async fn look(player: &Player) -> Result<Vec<Circle>> {
        let mut found = Found::look(player).await?;
        found.retain(|circle| circle.waits.len() <= 2);
        Ok(found)
    }
}

#[test]
fn circles_that_are_not_told_are_found() {
    is_found::<Deadlock<OnlyPairs>>("and was not told");
}
