//! `quorate bench`: puts a load on any etcd v3 servers, over gRPC, and says what they made of it.

mod args;
mod drive;
mod get;
mod keys;
mod lock;
mod put;
mod report;
mod schedule;
mod servers;
mod tally;
mod watch;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use quorate::core::clock;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tonic::transport::Channel;

use args::{Load, LoadArgs};
use drive::{Phase, drive};
use get::{GetArgs, Getter};
use keys::{KeyArgs, KeySpace};
use lock::LockArgs;
use put::Putter;
use report::{EndpointReport, Part, Quantiles, Report, Settings};
use schedule::Pace;
use servers::{Server, Spread};
use tally::Tally;
use watch::{Stamper, WatchArgs, Watchers};

/// Flags of `quorate bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Debug, Subcommand)]
enum Workload {
    /// Put random values to random keys below `quorate-bench/put/`
    Put {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// Get random keys below `quorate-bench/get/`, all of which are written beforehand
    Get {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        keys: KeyArgs,
        #[command(flatten)]
        get: GetArgs,
    },
    /// Take a queue-ordered lock and release it; a request is both
    Lock {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        lock: LockArgs,
    },
    /// Put to keys below `quorate-bench/watch/`, 100 a second unless --rate says otherwise, and see
    /// how long each watcher waits for each event
    Watch {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        keys: KeyArgs,
        #[command(flatten)]
        watch: WatchArgs,
    },
}

/// Measures, and prints the figures.
///
/// # Errors
/// For flags that contradict each other, endpoints that do not answer, and keys, watches or sessions
/// that cannot be prepared. Requests that fail are figures; they show in the exit code alone.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let (report, json) = match args.workload {
        Workload::Put { load, keys } => {
            let (load, space) = (load.load()?, keys.space("put")?);
            (Bench::begin(&load).await?.put(&space).await?, load.json)
        }
        Workload::Get { load, keys, get } => {
            let (load, space) = (load.load()?, keys.space("get")?);
            (
                Bench::begin(&load).await?.get(&space, &get).await?,
                load.json,
            )
        }
        Workload::Lock { load, lock } => {
            let load = load.load()?;
            (Bench::begin(&load).await?.lock(&lock).await?, load.json)
        }
        Workload::Watch { load, keys, watch } => {
            let (mut load, space) = (load.load()?, keys.space("watch")?);
            watch::check(&space)?;
            if load.pace == Pace::Closed {
                load.pace = args::pace(watch::RATE)?;
            }
            let json = load.json;
            (
                Bench::begin(&load).await?.watch(&space, &watch).await?,
                json,
            )
        }
    };
    let text = if json {
        format!("{}\n", serde_json::to_string(&report)?)
    } else {
        report.words()
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("the figures could not be printed")?;
    Ok(if report.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// A run: the servers, and where its figures go.
struct Bench<'a> {
    load: &'a Load,
    servers: Vec<Server>,
    spread: Spread,
    warmup: Arc<Tally>,
    measured: Arc<Tally>,
}

impl<'a> Bench<'a> {
    /// Looks whether all endpoints answer.
    async fn begin(load: &'a Load) -> anyhow::Result<Self> {
        let servers = servers::look(&load.endpoints).await?;
        // Different for every run on one store, also for two that begin together.
        let id = (clock::wall_millis() << 20) ^ (u64::from(std::process::id()) << 1);
        let tally = |id| Arc::new(Tally::new(id, load.endpoints.len()));
        Ok(Self {
            load,
            servers,
            spread: Spread::new(load.endpoints.len(), load.connections),
            warmup: tally(id),
            measured: tally(id | 1),
        })
    }

    async fn put(self, space: &KeySpace) -> anyhow::Result<Report> {
        let channels = servers::connect(&self.load.endpoints, self.spread).await?;
        let putters = self.putters(&channels, space);
        let (_, phase) = drive(putters, self.load, &self.warmup, &self.measured).await?;
        self.report("put", &phase, settings(space)).await
    }

    async fn get(self, space: &KeySpace, args: &GetArgs) -> anyhow::Result<Report> {
        let channels = servers::connect(&self.load.endpoints, self.spread).await?;
        let mut random = SmallRng::seed_from_u64(u64::MAX);
        space.fill(&channels, &mut random).await?;
        let getters = self.workers(&channels, |endpoint, channel, seed| {
            Getter::new(endpoint, channel, space.clone(), args.serializable, seed)
        });
        let (_, phase) = drive(getters, self.load, &self.warmup, &self.measured).await?;
        let settings = Settings {
            serializable: Some(args.serializable),
            ..settings(space)
        };
        self.report("get", &phase, settings).await
    }

    async fn lock(self, args: &LockArgs) -> anyhow::Result<Report> {
        let lockers = lock::lockers(self.load, self.spread, args, &self.measured).await?;
        let (lockers, phase) = drive(lockers, self.load, &self.warmup, &self.measured).await?;
        lock::close(lockers, &self.measured).await;
        let settings = Settings {
            lock_names: Some(args.names.unwrap_or(self.load.clients)),
            ..Settings::default()
        };
        self.report("lock", &phase, settings).await
    }

    async fn watch(self, space: &KeySpace, args: &WatchArgs) -> anyhow::Result<Report> {
        let channels = servers::connect(&self.load.endpoints, self.spread).await?;
        let origin = clock::now();
        let watchers = Watchers::open(args.watchers, space, &channels, origin, &self).await?;
        let stampers = self.putters(&channels, space);
        let stampers = stampers
            .into_iter()
            .map(|putter| Stamper::new(putter, origin));
        let stampers = stampers.collect();
        let (_, phase) = drive(stampers, self.load, &self.warmup, &self.measured).await?;
        watchers.finish(&self.measured, self.load.timeout).await?;
        let settings = Settings {
            watchers: Some(args.watchers),
            ..settings(space)
        };
        self.report("watch", &phase, settings).await
    }

    fn putters(&self, channels: &[Channel], space: &KeySpace) -> Vec<Putter> {
        self.workers(channels, |endpoint, channel, seed| {
            Putter::new(endpoint, channel, space.clone(), seed)
        })
    }

    /// The clients, each at its endpoint, on its connection, with a number of its own.
    fn workers<W>(&self, channels: &[Channel], make: impl Fn(usize, Channel, u64) -> W) -> Vec<W> {
        let workers = (0..self.load.clients).zip(0..).map(|(n, seed)| {
            let place = self.spread.place(n);
            make(place.endpoint, channels[place.connection].clone(), seed)
        });
        workers.collect()
    }

    async fn report(
        self,
        workload: &'static str,
        phase: &Phase,
        settings: Settings,
    ) -> anyhow::Result<Report> {
        // A server that is gone by now shows in the failures.
        let after = servers::look(&self.load.endpoints).await.ok();
        let figures = self.measured.snapshot();
        let parts = figures.parts.iter();
        let count = figures.latencies.count();
        let terms = |servers: &[Server]| servers.iter().map(|server| server.term).max();
        let shares = self.servers.iter().zip(&figures.by_endpoint);
        Ok(Report {
            workload,
            endpoints: shares
                .map(|(server, requests)| EndpointReport {
                    url: server.url.clone(),
                    version: server.version.clone(),
                    leads: server.leads,
                    requests: *requests,
                })
                .collect(),
            clients: self.load.clients,
            connections: self.load.connections,
            rate_per_second: match self.load.pace {
                Pace::Closed => None,
                Pace::Open { per_second } => Some(per_second),
            },
            warmup_seconds: self.load.warmup.as_secs_f64(),
            settings,
            elapsed_seconds: phase.took.as_secs_f64(),
            requests: count,
            failed: figures.failed,
            not_sent: phase.not_sent,
            throughput_per_second: report::rate(count, phase.took),
            latency_seconds: Quantiles::of(&figures.latencies),
            parts: parts
                .map(|(name, part)| (*name, Part::of(part, phase.took)))
                .collect(),
            errors: report::kinds(&figures.errors),
            store_errors: report::kinds(&figures.store_errors),
            revision: figures.revision,
            leader_changed: after.map(|after| terms(&after) != terms(&self.servers)),
        })
    }
}

fn settings(space: &KeySpace) -> Settings {
    Settings {
        keys: Some(space.keys),
        key_bytes: Some(space.key_bytes),
        value_bytes: Some(space.value_bytes),
        ..Settings::default()
    }
}
