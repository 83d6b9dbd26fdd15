//! A hundred worlds of each recipe, the proof that a seed is one world, and the proof that the checkers
//! find what is broken.

#![allow(clippy::unwrap_used, reason = "tests stop at what they did not expect")]

mod broken;
mod circles;
mod collects;
mod conditions;
mod configs;
mod counts;
mod crons;
mod dispatches;
mod gathered;
mod kept;
mod lives;
mod members;
mod mutants;
mod onces;
mod permits;
mod probes;
mod progresses;
mod queues;
mod registries;
mod restored;
mod taken_over;
mod topics;
mod waits;

use quorate_simulation::scenarios::{self, Run};
use quorate_simulation::sweep::sweep;

fn gate(run: Run) {
    let report = sweep(run, 0..100, 2);
    if let Some(outcome) = report.broken {
        let what = outcome.broken.unwrap();
        panic!("{}\nseed {}: {what}", outcome.log, outcome.seed);
    }
    assert_eq!(report.rare(), [""; 0], "{report:?}");
    let compacted = report.faults.iter();
    let compacted = compacted.filter(|(kind, ..)| *kind == "compacted watch");
    assert!(compacted.map(|(.., times)| times).sum::<u64>() > 0);
    assert!(report.operations >= 100 * 100);
}

macro_rules! gates {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                gate(scenarios::named(stringify!($name)).unwrap());
            }
        )*

        #[test]
        fn every_recipe_has_its_gate() {
            let names: Vec<_> = scenarios::ALL.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

gates! {
    mutex,
    exclusive,
    election,
    rw_lock,
    semaphore,
    multi_lock,
    deadlock,
    combined,
    shared,
    request,
    delayed,
    handover,
    selector,
    counter,
    adder,
    ids,
    latch,
    stm,
    once,
    barrier,
    double_barrier,
    cyclic_barrier,
    rate,
    membership,
    assign,
    leased,
    config,
    queue,
    strict_queue,
    ordered_queue,
    bounded_queue,
    cron,
    topic,
    condition,
    dispatch,
    registry,
    live_topic,
    probe,
    progress,
    collect,
}

#[test]
fn a_seed_is_one_world() {
    for (name, run) in scenarios::ALL {
        let (one, other) = (run(0), run(0));
        let lines = one.log.lines().zip(other.log.lines());
        let differ = lines.enumerate().find(|(_, (one, other))| one != other);
        assert_eq!(differ, None, "{name}");
        assert_eq!(one.log, other.log, "{name}");
        assert_eq!(one.faults, other.faults, "{name}");
        let (second, third) = (run(1), run(2));
        assert_ne!(one.log, second.log, "{name}");
        assert_ne!(second.log, third.log, "{name}");
    }
}
