//! A counter that must not lose an increment, whatever happens to who holds the lock. Each increment
//! is one transaction under the lock, with a mark `done/<worker>/<n>` by which an increment whose
//! answer was lost is told from one that never happened. Workers may be stopped and go on at any
//! moment: a write that comes too late is refused by the store.
//!
//! Run with `cargo run --example guarded_counter` for three workers on a node inside this process,
//! or with `-- --endpoints http://127.0.0.1:2379 --worker a --count 100 --lock counter` as one of
//! several processes. Prints one line of JSON a worker.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example shows what happens"
)]

use std::time::Duration;

use clap::Parser;
use quorate::core::node::Node;
use quorate::recipes::lock::MutexGuard;
use quorate::recipes::store::{embedded::Embedded, remote::Remote};
use quorate::recipes::{Client, Error, Fenced as _, Session, TxnError};
use serde::Serialize;

/// The key that is counted up.
const COUNTER: &str = "counter";

#[derive(Debug, Clone, Parser)]
struct Args {
    /// The store, as a comma-separated list of URLs; none: a node inside this process.
    #[arg(long, value_delimiter = ',')]
    endpoints: Vec<String>,
    /// This worker's name.
    #[arg(long, default_value = "w")]
    worker: String,
    /// How many increments.
    #[arg(long, default_value_t = 20)]
    count: u64,
    /// The lock's name.
    #[arg(long, default_value = COUNTER)]
    lock: String,
    /// The session's time to live, in seconds.
    #[arg(long, default_value_t = 5)]
    ttl: u64,
    /// How long to wait between reading and writing.
    #[arg(long, default_value_t = 0)]
    hold_ms: u64,
    /// Send a write also when this process knows that the lock is lost, so that it is the store
    /// that refuses it.
    #[arg(long)]
    send_always: bool,
}

/// What a worker counted.
#[derive(Debug, Default, Serialize)]
struct Counts {
    worker: String,
    /// Increments that the store acknowledged.
    acknowledged: u64,
    /// Late increments that were refused: the lock was lost.
    refused: u64,
    /// Increments without an answer ...
    unknown: u64,
    /// ... of which these had happened.
    unknown_applied: u64,
    /// Sessions opened.
    sessions: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if !args.endpoints.is_empty() {
        let client = Client::new(Remote::new(args.endpoints.clone())?);
        return work(client, args).await;
    }
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let workers = (1..=3).map(|n| {
        let worker = format!("{}{n}", args.worker);
        work(
            client.clone(),
            Args {
                worker,
                ..args.clone()
            },
        )
    });
    futures::future::try_join_all(workers).await?;
    println!(
        "the counter is at {} of {}",
        read(&client).await?,
        3 * args.count
    );
    node.shutdown().await;
    Ok(())
}

async fn work(client: Client, args: Args) -> anyhow::Result<()> {
    let mut counts = Counts {
        worker: args.worker.clone(),
        ..Counts::default()
    };
    let (mut session, mut guard) = (None, None);
    let mut n = 1;
    let mut unknown = false;
    while n <= args.count {
        // Holding the lock again means that nothing sent under the former hold can still happen.
        let held = match guard.take() {
            Some(held) => held,
            None => acquire(&client, &args, &mut session, &mut counts).await,
        };
        match increment(&client, &held, n, unknown, &args).await {
            Ok(Step::Written) => {
                counts.acknowledged += 1;
                (n, unknown) = (n + 1, false);
                // Give the others a turn.
                drop(held.release().await);
            }
            Ok(Step::WasThere) => {
                counts.unknown_applied += 1;
                (n, unknown) = (n + 1, false);
                guard = Some(held);
            }
            Ok(Step::NotTried) => {}
            Err(
                TxnError::Fenced { .. }
                | TxnError::Conflict { .. }
                | TxnError::Failed(Error::SessionLost(_)),
            ) => counts.refused += 1,
            Err(error) if error.is_ambiguous() => {
                counts.unknown += 1;
                unknown = true;
            }
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(Error::from(error).into()),
        }
    }
    println!("{}", serde_json::to_string(&counts)?);
    Ok(())
}

enum Step {
    Written,
    /// An earlier write of it, without an answer, had happened.
    WasThere,
    /// Nothing was sent.
    NotTried,
}

/// One increment under the lock.
async fn increment(
    client: &Client,
    guard: &MutexGuard,
    n: u64,
    unknown: bool,
    args: &Args,
) -> Result<Step, TxnError> {
    let mark = format!("done/{}/{n}", args.worker);
    let look = async {
        let there = unknown && client.get(&mark).await?.is_some();
        Ok::<_, Error>((there, read(client).await? + 1))
    };
    let next = match look.await {
        Ok((true, _)) => return Ok(Step::WasThere),
        Ok((false, next)) => next,
        // A read without an answer is no write.
        Err(Error::Store(error)) if error.is_transient() => return Ok(Step::NotTried),
        Err(error) => return Err(error.into()),
    };
    tokio::time::sleep(Duration::from_millis(args.hold_ms)).await;
    let write = if args.send_always {
        let fence = guard.fence().compares();
        fence
            .into_iter()
            .fold(client.txn(), |txn, compare| txn.when(compare))
    } else {
        guard.txn()
    };
    let token = guard.token().to_string();
    let write = write.put(COUNTER, next.to_string()).put(mark, token);
    write.commit().await?;
    Ok(Step::Written)
}

/// Holds the lock, under a new session if the old one is lost, however often the store has to be
/// asked. The new hold stands behind the old one, so it begins once that is gone.
async fn acquire(
    client: &Client,
    args: &Args,
    session: &mut Option<Session>,
    counts: &mut Counts,
) -> MutexGuard {
    loop {
        let live = session.take().filter(|session| session.check().is_ok());
        let taken = async {
            let session = match live {
                Some(session) => session,
                None => {
                    counts.sessions += 1;
                    let open = client.session().ttl(Duration::from_secs(args.ttl));
                    open.label(&args.worker).await?
                }
            };
            let guard = client.mutex(&args.lock).lock(&session).await?;
            Ok::<_, Error>((session, guard))
        };
        match taken.await {
            Ok((live, guard)) => {
                *session = Some(live);
                return guard;
            }
            Err(error) => {
                eprintln!("{}: {error}", args.worker);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn read(client: &Client) -> Result<u64, Error> {
    let counter = client.get(COUNTER).await?;
    let text = counter.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
    let number = text.unwrap_or_else(|| "0".to_owned()).parse();
    number.map_err(|_| Error::Invalid(format!("{COUNTER} does not hold a number")))
}
