//! Log collection: every line that an agent has taken, and not counted as dropped, is in the sink in the end, each
//! once and in order after lines that came again are left out by their numbers.
//!
//! Agents have no spool here: work on a disk ends when it ends, and so two runs of a seed would not be one world.
//! What goes to the disk and comes back from it is tested beside the recipe.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use quorate_recipes::collect::{
    Agent, AgentError, Chunk, CollectError, Collection, Collector, Overflow,
};
use quorate_recipes::keys::LeaseId;
use quorate_recipes::topic::Retention;
use quorate_recipes::{Error, Result, Session};

use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// How long a client collects in a step.
const WHILE: Duration = Duration::from_secs(2);

/// How long it may take in the calm until all that was taken is in the sink.
const WRITTEN_WITHIN: Duration = Duration::from_secs(120);

/// Batches that wait in an agent.
const WINDOW: usize = 3;

/// One run of an agent, as its owner knows it.
#[derive(Debug, Default)]
struct Run {
    source: String,
    /// Lines that were taken, in order.
    taken: Vec<String>,
    /// Lines that may have been dropped, after they had been taken.
    dropped: u64,
    /// It was stopped, and what it had in memory is lost.
    stopped: bool,
}

/// A line as it came to the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Where it comes from.
    pub source: String,
    /// Which run of its agent gathered it.
    pub run: String,
    /// Its number in that run.
    pub number: u64,
    /// The line.
    pub line: String,
    /// The fencing token of who wrote it.
    pub token: i64,
}

/// Clients that log and collect.
#[derive(Debug, Default)]
pub struct Collect {
    /// By the number that every line of a run begins with.
    runs: RefCell<BTreeMap<u64, Run>>,
    agents: RefCell<BTreeMap<usize, (u64, Rc<Agent>)>>,
    collectors: RefCell<BTreeMap<usize, (LeaseId, Collector)>>,
    sink: RefCell<Vec<Written>>,
}

/// The log collection of the worlds.
#[must_use]
pub fn collection_of(player: &Player) -> Collection {
    let retention = Retention::default().max_segments(1).until_consumed();
    let logs = player.client().log_collection("l").partitions(2);
    logs.retain(retention.look_every(Duration::from_millis(400)))
}

impl Collect {
    fn change<T>(&self, number: u64, change: impl FnOnce(&mut Run) -> T) -> T {
        let mut runs = self.runs.borrow_mut();
        change(runs.get_mut(&number).expect("a number is given once"))
    }

    /// The client's agent; a new run of it if there is none.
    async fn agent(&self, player: &Player) -> std::result::Result<(u64, Rc<Agent>), AgentError> {
        let known = self.agents.borrow().get(&player.index()).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let overflow = match player.index() % 2 {
            0 => Overflow::DropNewest,
            _ => Overflow::DropOldest,
        };
        let source = format!("host-{}", player.index());
        let agent = collection_of(player).agent(&source).batch_bytes(40);
        let agent = agent.window(WINDOW).overflow(overflow).await?;
        let mut runs = self.runs.borrow_mut();
        let number = u64::try_from(runs.len()).unwrap_or(u64::MAX);
        runs.insert(
            number,
            Run {
                source,
                ..Run::default()
            },
        );
        let agent = (number, Rc::new(agent));
        self.agents
            .borrow_mut()
            .insert(player.index(), agent.clone());
        Ok(agent)
    }

    fn take_agent(&self, player: &Player) -> Option<(u64, Agent)> {
        let (number, agent) = self.agents.borrow_mut().remove(&player.index())?;
        Some((number, Rc::into_inner(agent)?))
    }

    /// Logs some lines, and perhaps waits until they are published, closes the agent, or stops it. `is_taken` says
    /// which ones are taken, by what the agent says.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn log(&self, player: &Player, is_taken: impl Fn(bool) -> bool) -> Result<()> {
        let (number, agent) = self.agent(player).await.map_err(|error| failed(&error))?;
        for _ in 0..player.below(12) {
            let taken = self.change(number, |run| run.taken.len());
            let line = format!("{number} {taken} {}", player.below(1000));
            if is_taken(agent.log(line.clone())) {
                self.change(number, |run| run.taken.push(line));
            }
            if player.one_in(3) {
                player.pause(100).await;
            }
        }
        if player.one_in(4) {
            let flushed = tokio::time::timeout(WHILE, agent.flush()).await;
            flushed.unwrap_or(Ok(()))?;
        }
        drop(agent);
        match player.below(8) {
            0 => self.close(player).await,
            1 => {
                if let Some((number, agent)) = self.take_agent(player) {
                    player.note(format!("stops agent {number}"));
                    self.change(number, |run| run.stopped = true);
                    drop(agent);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Closes the client's agent, if there is one: all that it has is published then.
    async fn close(&self, player: &Player) -> Result<()> {
        let Some((number, agent)) = self.take_agent(player) else {
            return Ok(());
        };
        // When this is dropped in the middle the agent is stopped.
        self.change(number, |run| run.stopped = true);
        let stats = agent.close().await?;
        player.note(format!("agent {number} has done {stats:?}"));
        let taken = self.change(number, |run| u64::try_from(run.taken.len()).unwrap_or(0));
        if stats.accepted != taken || stats.published + stats.dropped < taken {
            return Err(Error::Invalid(format!("{taken} were taken, and {stats:?}")));
        }
        self.change(number, |run| {
            run.stopped = false;
            run.dropped = taken.saturating_sub(stats.published);
        });
        Ok(())
    }

    /// Writes a chunk.
    fn write(&self, chunk: &Chunk) {
        for (number, line) in (chunk.first..).zip(&chunk.lines) {
            self.writes(Written {
                source: chunk.source.clone(),
                run: chunk.run.clone(),
                number,
                line: line.clone(),
                token: chunk.token.revision.0,
            });
        }
    }

    /// Writes a line.
    pub fn writes(&self, line: Written) {
        self.sink.borrow_mut().push(line);
    }

    /// Collects for a while.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn collect(&self, player: &Player, session: &Session) -> Result<()> {
        let known = self.collectors.borrow_mut().remove(&player.index());
        let known = known.filter(|(lease, _)| *lease == session.lease());
        let mut collector = match known {
            Some((_, collector)) => collector,
            None => collection_of(player).collector(session, "c").await?,
        };
        let run = collector.run(async |chunk: &Chunk| {
            player.pause(200).await;
            if player.one_in(10) {
                return Err("the sink is full");
            }
            self.write(chunk);
            // It is written, and the collector may be dropped before that is noted.
            player.pause(100).await;
            Ok(())
        });
        match tokio::time::timeout(WHILE, run).await {
            Err(_) | Ok(Err(CollectError::Sink(_))) => {}
            Ok(Err(CollectError::Failed(error))) => return Err(error),
            Ok(Err(error)) => return Err(Error::Invalid(error.to_string())),
            Ok(Ok(never)) => match never {},
        }
        match player.below(5) {
            0 => drop(collector),
            1 => collector.leave().await?,
            _ => {
                let known = (session.lease(), collector);
                self.collectors.borrow_mut().insert(player.index(), known);
            }
        }
        Ok(())
    }

    /// All that was taken and not dropped is published, and written.
    ///
    /// # Errors
    /// What did not come.
    pub async fn drain(&self, players: &[Player]) -> Result<()> {
        for player in players {
            self.close(player).await?;
        }
        self.collectors.borrow_mut().clear();
        let session = players[0].client().session().await?;
        let logs = collection_of(&players[0]);
        let mut collector = logs.collector(&session, "c").await?;
        let run = collector.run(async |chunk: &Chunk| {
            self.write(chunk);
            Ok::<(), Infallible>(())
        });
        let all_is_done = async {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let status = logs.topic().status().await?;
                let Some(group) = status.groups.get("c") else {
                    continue;
                };
                if group.partitions.iter().all(|lag| lag.lag == Some(0)) {
                    return Ok(());
                }
            }
        };
        let done = tokio::time::timeout(WRITTEN_WITHIN, async {
            tokio::select! {
                biased;
                done = all_is_done => done,
                ended = run => Err(Error::Invalid(format!("collecting ended: {ended:?}"))),
            }
        });
        done.await
            .unwrap_or_else(|_| Err(Error::Invalid("not all is written".to_owned())))?;
        collector.leave().await?;
        session.close().await
    }

    /// Judges what came to the sink.
    fn judge(&self) -> std::result::Result<(), String> {
        let sink = self.sink.borrow();
        // What came again is left out by its number.
        let mut written: BTreeMap<(&str, &str), BTreeMap<u64, &str>> = BTreeMap::new();
        let mut tokens: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for one in &*sink {
            let of = (one.source.as_str(), one.run.as_str());
            let lines = written.entry(of).or_default();
            let token = tokens.entry(of).or_insert(0);
            if one.token < *token {
                // A sink that looks at tokens has refused it, and it comes again with a larger one.
                continue;
            }
            *token = one.token;
            let last = lines.last_key_value().map(|(last, _)| *last);
            match lines.get(&one.number) {
                Some(line) if *line != one.line => {
                    return Err(format!("{one:?}, which was {line:?} before"));
                }
                Some(_) => {}
                None if last.is_some_and(|last| last > one.number) => {
                    return Err(format!("{one:?} came behind {last:?}"));
                }
                None => drop(lines.insert(one.number, &one.line)),
            }
        }
        for ((source, run), lines) in &written {
            self.run(source, lines)
                .map_err(|broken| format!("run {run} of {source}: {broken}"))?;
        }
        self.nothing_is_missing(&written)
    }

    /// The lines of one run are lines that it has taken, in their order, each once.
    fn run(&self, source: &str, lines: &BTreeMap<u64, &str>) -> std::result::Result<(), String> {
        let runs = self.runs.borrow();
        for (number, line) in lines {
            let run = number_of(line).and_then(|run| runs.get(&run));
            let run = run.filter(|run| run.source == source);
            let place = usize::try_from(*number).unwrap_or(usize::MAX);
            if run.and_then(|run| run.taken.get(place)).map(String::as_str) != Some(line) {
                return Err(format!("{line:?} is number {number}, and was not taken so"));
            }
        }
        Ok(())
    }

    fn nothing_is_missing(
        &self,
        written: &BTreeMap<(&str, &str), BTreeMap<u64, &str>>,
    ) -> std::result::Result<(), String> {
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for line in written.values().flat_map(BTreeMap::values) {
            *counts
                .entry(number_of(line).unwrap_or(u64::MAX))
                .or_default() += 1;
        }
        for (number, run) in &*self.runs.borrow() {
            let taken = u64::try_from(run.taken.len()).unwrap_or(0);
            let came = counts.get(number).copied().unwrap_or(0);
            if !run.stopped && came + run.dropped < taken {
                let dropped = run.dropped;
                return Err(format!(
                    "of agent {number} came {came} of {taken}, and {dropped} were dropped"
                ));
            }
        }
        Ok(())
    }
}

/// The number of the run that a line is of.
fn number_of(line: &str) -> Option<u64> {
    line.split_once(' ')?.0.parse().ok()
}

fn failed(error: &AgentError) -> Error {
    Error::Invalid(error.to_string())
}

impl Scenario for Collect {
    const NAME: &'static str = "collect";

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        self.log(player, |taken| taken).await?;
        self.collect(player, session).await
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let drained = self.drain(players).await;
        drained.map_err(|error| error.to_string())
    }

    fn end(&self) {
        self.agents.borrow_mut().clear();
        self.collectors.borrow_mut().clear();
    }

    fn may_remain(&self, key: &str) -> bool {
        let rest = key.strip_prefix("quorate/topic/l/");
        rest.is_some_and(|rest| !rest.starts_with("share/") && !rest.starts_with("retainer/"))
            || key.starts_with("quorate/collect/l/")
    }

    fn check(&self, _history: &History) -> std::result::Result<(), String> {
        self.judge()
    }
}
