//! `simulate`: runs the simulated worlds of a recipe from their seeds.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use quorate_recipes::clock::{Clock, SystemClock};
use quorate_simulation::scenarios::{self, Run};
use quorate_simulation::sweep::sweep;

/// Runs recipes in simulated worlds, each from one seed, and checks that they keep their promises.
#[derive(Debug, Parser)]
#[command(name = "simulate", max_term_width = 100)]
struct Options {
    /// The recipe; may be given several times. All of them, unless given
    #[arg(long)]
    recipe: Vec<String>,
    /// How many seeds of each recipe
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Runs this seed alone and prints what happened
    #[arg(long)]
    seed: Option<u64>,
    /// Threads, each with one world at a time
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> io::Result<ExitCode> {
    let options = Options::parse();
    let mut out = io::stdout().lock();
    let mut chosen: Vec<(&str, Run)> = Vec::new();
    for name in &options.recipe {
        match scenarios::named(name) {
            Some(run) => chosen.push((name, run)),
            None => {
                let known: Vec<_> = scenarios::ALL.iter().map(|(name, _)| *name).collect();
                writeln!(out, "no recipe {name}; there are {}", known.join(", "))?;
                return Ok(ExitCode::from(2));
            }
        }
    }
    if chosen.is_empty() {
        chosen.extend(scenarios::ALL);
    }
    let mut well = true;
    for (name, run) in chosen {
        well &= match options.seed {
            Some(seed) => replay(&mut out, name, run, seed)?,
            None => many(&mut out, name, run, &options)?,
        };
    }
    Ok(ExitCode::from(u8::from(!well)))
}

fn replay(out: &mut impl Write, name: &str, run: Run, seed: u64) -> io::Result<bool> {
    let outcome = run(seed);
    write!(out, "{}", outcome.log)?;
    let end = outcome.broken.as_deref().unwrap_or("nothing broke");
    writeln!(out, "recipe {name} seed {seed}: {end}")?;
    Ok(outcome.broken.is_none())
}

fn many(out: &mut impl Write, name: &str, run: Run, options: &Options) -> io::Result<bool> {
    let start = SystemClock.now();
    let last = options.from.saturating_add(options.seeds);
    let report = sweep(run, options.from..last, options.threads);
    let took = SystemClock.now().saturating_duration_since(start);
    write!(
        out,
        "recipe {name}: {} seeds, {} operations, {:.1} s;",
        report.worlds,
        report.operations,
        took.as_secs_f64()
    )?;
    for (kind, worlds, times) in &report.faults {
        write!(out, " {kind} {times} (in {worlds})")?;
    }
    writeln!(out)?;
    if let Some(outcome) = &report.broken {
        let what = outcome.broken.as_deref().unwrap_or_default();
        write!(out, "{}", outcome.log)?;
        writeln!(out, "recipe {name} seed {}: {what}", outcome.seed)?;
        return Ok(false);
    }
    let rare = report.rare();
    if !rare.is_empty() {
        writeln!(
            out,
            "recipe {name}: too rare to be tested: {}",
            rare.join(", ")
        )?;
    }
    Ok(rare.is_empty())
}
