//! The Rust crate `etcd-client`, one case a use of it; `tests/interop/clients/run` starts it.
//!
//! ```text
//! etcd-client-cases URL URL,URL,URL [ONLY]
//! ```
//! The first URL is a single server, the others are a cluster of three; ONLY is a part of a case's
//! name.

mod keys;
mod leases;
mod server;
mod turns;
mod watches;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use etcd_client::{Client, ConnectOptions};

/// No case waits longer than for a lease of a few seconds to expire.
const LIMIT: Duration = Duration::from_secs(60);

type Case = (
    &'static str,
    fn(Servers) -> Pin<Box<dyn Future<Output = anyhow::Result<()>>>>,
);

/// Makes the list of a module's cases: a name and an `async fn(Servers) -> anyhow::Result<()>` each.
macro_rules! cases {
    ($($name:literal => $run:ident),* $(,)?) => {
        pub(crate) const CASES: &[crate::Case] = &[$(($name, |servers| Box::pin($run(servers)))),*];
    };
}
pub(crate) use cases;

/// What the cases are run on.
#[derive(Clone)]
pub(crate) struct Servers {
    endpoint: String,
    cluster: Vec<String>,
}

impl Servers {
    /// A client of the single server.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        connect(std::slice::from_ref(&self.endpoint)).await
    }

    /// The client URLs of the cluster.
    pub(crate) fn cluster(&self) -> &[String] {
        &self.cluster
    }
}

/// A client of all of these, as its users have one: it asks for a leader.
pub(crate) async fn connect(endpoints: &[String]) -> anyhow::Result<Client> {
    let options = ConnectOptions::new().with_require_leader(true);
    Ok(Client::connect(endpoints, Some(options)).await?)
}

/// The gRPC code and the text of an answer that must be a refusal.
pub(crate) fn refusal<T>(answer: Result<T, etcd_client::Error>) -> anyhow::Result<String> {
    match answer {
        Err(etcd_client::Error::GRpcStatus(status)) => {
            Ok(format!("{:?}: {}", status.code(), status.message()))
        }
        Err(other) => Err(other).context("not a refusal"),
        Ok(_) => bail!("it was not refused"),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let servers = Servers {
        endpoint: arguments.next().context("which server?")?,
        cluster: arguments
            .next()
            .context("which cluster?")?
            .split(',')
            .map(str::to_owned)
            .collect(),
    };
    let only = arguments.next().unwrap_or_default();
    let all = [
        keys::CASES,
        watches::CASES,
        leases::CASES,
        turns::CASES,
        server::CASES,
    ]
    .concat();
    let (mut passed, mut failed) = (0, 0);
    for (name, run) in all {
        if !name.contains(&only) {
            continue;
        }
        let began = Instant::now();
        let ended = tokio::time::timeout(LIMIT, run(servers.clone())).await;
        match ended.unwrap_or_else(|_| bail!("not done after {LIMIT:?}")) {
            Ok(()) => {
                passed += 1;
                println!("passed    {name} ({:.1} s)", began.elapsed().as_secs_f64());
            }
            Err(error) => {
                failed += 1;
                println!(
                    "FAILED    {name}: {}",
                    format!("{error:#}").replace('\n', " ")
                );
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
