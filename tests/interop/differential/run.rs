//! Runs a random sequence on two stores and compares every answer, and, whenever the sequence
//! comes to a point where that is well defined, all that every watcher was told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use quorate_harness::etcd;
use quorate_proto::etcdserverpb::RangeRequest;
use quorate_proto::mvccpb::Event;

use super::generate::Generator;
use super::known::Known;
use super::op::{Answer, Op};
use super::store::Store;
use super::streams::Told;
use super::world::{STREAMS, World};

/// Watchers are compared after so many operations at the latest.
const COMPARE_EVERY: usize = 200;

/// Operations shown before the one that differs.
const CONTEXT: usize = 3;

/// What was compared.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub operations: usize,
    /// Answers by kind of operation: replies and refusals.
    kinds: BTreeMap<String, (usize, usize)>,
    /// Different refusals seen.
    refusals: BTreeMap<String, usize>,
    /// What watchers were told.
    told: usize,
    revisions: i64,
    known: BTreeMap<&'static str, (&'static str, usize)>,
}

impl Compared {
    /// Adds another run's.
    pub(crate) fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.told += other.told;
        self.revisions += other.revisions;
        for (kind, (replies, refusals)) in other.kinds {
            let sum = self.kinds.entry(kind).or_default();
            sum.0 += replies;
            sum.1 += refusals;
        }
        for (refusal, count) in other.refusals {
            *self.refusals.entry(refusal).or_default() += count;
        }
        for (known, (reason, count)) in other.known {
            self.known.entry(known).or_insert((reason, 0)).1 += count;
        }
    }

    /// As text for people.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |words: String| writeln!(text, "{words}").expect("a string takes all");
        line(format!(
            "{} operations, {} revisions, {} things told to watchers",
            self.operations, self.revisions, self.told
        ));
        for (kind, (replies, refusals)) in &self.kinds {
            line(format!("  {kind}: {replies} answered, {refusals} refused"));
        }
        for (refusal, count) in &self.refusals {
            line(format!("  refused {count} times: {refusal}"));
        }
        for (known, (reason, count)) in &self.known {
            line(format!(
                "  known difference, {count} times: {known} ({reason})"
            ));
        }
        text
    }
}

/// Two stores, and what is known of them.
struct Run {
    version: String,
    etcd: Store,
    quorate: Store,
    world: World,
    compared: Compared,
    recent: Vec<Op>,
}

/// Runs `operations` random operations of `seed` on a fresh etcd and a fresh quorate.
///
/// # Errors
/// The first difference, with what led to it.
pub(crate) async fn run(binary: &Path, seed: u64, operations: usize) -> anyhow::Result<Compared> {
    let version = etcd::version(binary)?;
    let (etcd, quorate) = tokio::try_join!(
        Store::etcd(binary.to_owned(), &version, &[]),
        Store::quorate(&[])
    )?;
    let mut run = Run {
        version,
        etcd,
        quorate,
        world: World::new(),
        compared: Compared::default(),
        recent: Vec::new(),
    };
    for store in [&mut run.etcd, &mut run.quorate] {
        store.open_streams(STREAMS).await?;
    }
    let mut generator = Generator::new(seed);
    for n in 0..operations {
        let op = generator.next(&run.world);
        run.step(n, &op)
            .await
            .with_context(|| format!("seed {seed}, operation {n}, etcd {}", run.version))?;
    }
    run.compare_watchers()
        .await
        .with_context(|| format!("seed {seed}, at the end"))?;
    run.compared.operations = operations;
    run.compared.revisions = run.world.revision;
    Ok(run.compared)
}

impl Run {
    async fn step(&mut self, n: usize, op: &Op) -> anyhow::Result<()> {
        // What a watcher is told before these happen, or after, is only defined if it has been told
        // everything that came before.
        let cuts = match op {
            Op::Compact(_) | Op::WatchProgress { .. } => true,
            Op::WatchCancel { known, .. } => *known,
            _ => n.is_multiple_of(COMPARE_EVERY),
        };
        if cuts {
            self.compare_watchers()
                .await
                .with_context(|| self.context(op))?;
        }
        let (theirs, ours) = tokio::join!(self.etcd.answer(op), self.quorate.answer(op));
        let theirs = theirs.with_context(|| format!("etcd: {}", self.context(op)))?;
        let ours = ours.with_context(|| format!("quorate: {}", self.context(op)))?;
        self.count(op, &theirs);
        if theirs != ours {
            let known = Known::find(&self.version, op, &theirs, &ours);
            let Some(known) = known else {
                let context = self.context(op);
                let (their_part, our_part) = where_they_differ(&theirs, &ours);
                anyhow::bail!(
                    "etcd    {their_part}\nquorate {our_part}\nin whole:\n\
                     etcd    {theirs:?}\nquorate {ours:?}\n{context}"
                );
            };
            let met = self.compared.known.entry(known.name);
            met.or_insert((known.reason, 0)).1 += 1;
        }
        self.world.note(op, &theirs);
        self.recent.push(op.clone());
        Ok(())
    }

    fn context(&self, op: &Op) -> String {
        let World {
            revision,
            compacted,
            ..
        } = self.world;
        let mut text = format!("at revision {revision}, compacted at {compacted}: {op:?}\nbefore:");
        let from = self.recent.len().saturating_sub(CONTEXT);
        for op in &self.recent[from..] {
            write!(text, "\n  {op:?}").expect("a string takes all");
        }
        text
    }

    fn count(&mut self, op: &Op, answer: &Answer) {
        let name = format!("{op:?}");
        let name = name.split(['(', ' ']).next().unwrap_or_default().to_owned();
        let kind = self.compared.kinds.entry(name).or_default();
        match answer {
            Ok(_) => kind.0 += 1,
            Err(refusal) => {
                kind.1 += 1;
                let text = format!("{:?} {}", refusal.code, refusal.message);
                *self.compared.refusals.entry(text).or_default() += 1;
            }
        }
    }

    /// Waits until every watcher was told all that it is due, and compares that.
    async fn compare_watchers(&mut self) -> anyhow::Result<()> {
        let revision = Op::Range(RangeRequest {
            key: b"a".as_slice().into(),
            ..RangeRequest::default()
        });
        let (theirs, ours) =
            tokio::join!(self.etcd.answer(&revision), self.quorate.answer(&revision));
        let (theirs, ours) = (theirs?, ours?);
        anyhow::ensure!(
            theirs == ours,
            "a key differs: etcd {theirs:?}, quorate {ours:?}"
        );
        self.world.note(&revision, &ours);

        if self.world.behind() {
            let revision = self.world.revision;
            let (theirs, ours) = tokio::join!(
                self.etcd.everything_until(revision),
                self.quorate.everything_until(revision)
            );
            let (theirs, ours) = (theirs.context("etcd")?, ours.context("quorate")?);
            same("the watcher of everything", &theirs, &ours)?;
            let events = events(&ours);
            anyhow::ensure!(events.len() == ours.len(), "not only events: {ours:?}");
            self.world.happened(events);
        }
        let due: Vec<_> = (0..STREAMS).map(|stream| self.world.due(stream)).collect();
        let counts: Vec<BTreeMap<_, _>> = due
            .iter()
            .map(|due| due.iter().map(|(id, due)| (*id, due.count())).collect())
            .collect();
        let (theirs, ours) = tokio::join!(self.etcd.told(&counts), self.quorate.told(&counts));
        let (theirs, ours) = (theirs.context("etcd")?, ours.context("quorate")?);
        for (stream, (mut theirs, mut ours)) in theirs.into_iter().zip(ours).enumerate() {
            let mut ids: Vec<i64> = theirs.keys().chain(ours.keys()).copied().collect();
            ids.sort_unstable();
            ids.dedup();
            for id in ids {
                let (theirs, ours) = (
                    theirs.remove(&id).unwrap_or_default(),
                    ours.remove(&id).unwrap_or_default(),
                );
                let watcher = format!("watcher {id} of stream {stream}");
                same(&watcher, &theirs, &ours)?;
                self.compared.told += ours.len();
                let none = Default::default();
                let due = due[stream].get(&id).unwrap_or(&none);
                anyhow::ensure!(
                    without_previous(&events(&ours)) == without_previous(&due.events)
                        && ours.len() == due.count(),
                    "{watcher} was due {due:?}\nand told {ours:?}"
                );
            }
        }
        Ok(())
    }
}

fn events(told: &[Told]) -> Vec<Event> {
    let events = told.iter().filter_map(|told| match told {
        Told::Event(event) => Some(event.clone()),
        Told::Control(_) => None,
    });
    events.collect()
}

fn without_previous(events: &[Event]) -> Vec<Event> {
    let bare = |event: &Event| Event {
        prev_kv: None,
        ..event.clone()
    };
    events.iter().map(bare).collect()
}

/// Of two answers the part around the first difference, as far as a line shows it.
fn where_they_differ(one: &Answer, other: &Answer) -> (String, String) {
    const BEFORE: usize = 60;
    const SHOWN: usize = 240;
    let (one, other) = (format!("{one:?}"), format!("{other:?}"));
    let same = one.chars().zip(other.chars()).take_while(|(a, b)| a == b);
    let from = same.count().saturating_sub(BEFORE);
    let part = |text: &str| text.chars().skip(from).take(SHOWN).collect();
    (part(&one), part(&other))
}

/// Refuses lists that differ, and tells the first place.
fn same(what: &str, theirs: &[Told], ours: &[Told]) -> anyhow::Result<()> {
    let length = theirs.len().max(ours.len());
    for n in 0..length {
        let (theirs, ours) = (theirs.get(n), ours.get(n));
        anyhow::ensure!(
            theirs == ours,
            "{what} differs in thing {n} of {length}:\netcd    {theirs:?}\nquorate {ours:?}"
        );
    }
    Ok(())
}
