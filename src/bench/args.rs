//! The flags that all workloads share, and what they mean together.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use tonic::transport::Endpoint;

use super::schedule::{End, Pace};

/// How long is measured unless told otherwise.
const DURATION: Duration = Duration::from_secs(10);
/// How long a measurement by time is preceded by the same load, unless told otherwise: connections
/// are made, caches filled, and the server's batches have found their size.
const WARMUP: Duration = Duration::from_secs(1);
/// Most connections unless told otherwise. Fewer, and the one task that serves an HTTP/2 connection on
/// either side becomes what is measured; one for each of hundreds of clients, and the bookkeeping of
/// sockets does.
const CONNECTIONS: usize = 16;
/// Most requests a second that can be asked for.
const RATE_MAX: f64 = 1_000_000.0;

/// Where the load goes, how much of it, and for how long.
#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// Client URLs, as http://host:port or host:port; the clients are spread over them evenly
    #[arg(
        long,
        env = "QUORATE_ENDPOINTS",
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379"
    )]
    endpoints: Vec<String>,

    /// How many clients; each sends one request at a time
    #[arg(long, value_name = "CLIENTS", default_value_t = 16,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    clients: usize,

    /// How many TCP connections the clients share [default: one for each client, at most 16]
    #[arg(long, value_name = "CONNECTIONS",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    connections: Option<usize>,

    /// How long requests are sent, such as 30s or 2m [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "total")]
    duration: Option<Duration>,

    /// How many requests are sent, however long it takes
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..))]
    total: Option<u64>,

    /// The same load beforehand, without being measured [default: 1s, none with --total]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    warmup: Option<Duration>,

    /// Send this many requests a second, at equal distances, whether the answers to earlier ones are
    /// there or not; latencies count from when a request was due [default: as fast as answered]
    #[arg(long, value_name = "PER-SECOND")]
    rate: Option<f64>,

    /// How long a request waits for its answer before it counts as failed
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10s")]
    timeout: Duration,

    /// Print one JSON object instead of words for people
    #[arg(long)]
    json: bool,
}

/// A load that can be put on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Load {
    /// URLs, all different.
    pub(super) endpoints: Vec<String>,
    pub(super) clients: usize,
    /// At least one for each endpoint that has a client; no more than clients.
    pub(super) connections: usize,
    pub(super) end: End,
    pub(super) warmup: Duration,
    pub(super) pace: Pace,
    pub(super) timeout: Duration,
    pub(super) json: bool,
}

impl LoadArgs {
    /// What the flags say together.
    ///
    /// # Errors
    /// For an endpoint that is none, and for figures that contradict each other.
    pub(super) fn load(&self) -> anyhow::Result<Load> {
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for given in &self.endpoints {
            let url = url(given)?;
            ensure!(
                !endpoints.contains(&url),
                "--endpoints names {given} twice: each gets the same share of the clients anyway"
            );
            endpoints.push(url);
        }
        let end = match (self.total, self.duration) {
            (Some(total), _) => End::Total(total),
            (None, duration) => End::After(duration.unwrap_or(DURATION)),
        };
        ensure!(
            end != End::After(Duration::ZERO),
            "--duration 0 measures nothing"
        );
        ensure!(!self.timeout.is_zero(), "--timeout 0 awaits no answer");
        let warmup = match end {
            End::After(_) => WARMUP,
            End::Total(_) => Duration::ZERO,
        };
        Ok(Load {
            connections: self.connections(endpoints.len())?,
            endpoints,
            clients: self.clients,
            end,
            warmup: self.warmup.unwrap_or(warmup),
            pace: self.rate.map_or(Ok(Pace::Closed), pace)?,
            timeout: self.timeout,
            json: self.json,
        })
    }

    fn connections(&self, endpoints: usize) -> anyhow::Result<usize> {
        let least = endpoints.min(self.clients);
        let Some(connections) = self.connections else {
            return Ok(CONNECTIONS.max(endpoints).min(self.clients));
        };
        ensure!(
            connections >= least,
            "--connections {connections} cannot reach {least} endpoints"
        );
        ensure!(
            connections <= self.clients,
            "--connections {connections} is more than one for each of the {} clients",
            self.clients
        );
        Ok(connections)
    }
}

/// Requests at equal distances, `rate` a second.
pub(super) fn pace(rate: f64) -> anyhow::Result<Pace> {
    ensure!(
        rate > 0.0 && rate <= RATE_MAX,
        "--rate {rate}: more than 0 and at most {RATE_MAX} requests a second"
    );
    Ok(Pace::Open { per_second: rate })
}

/// The URL of an endpoint.
fn url(given: &str) -> anyhow::Result<String> {
    let url = match given.split_once("://") {
        None => format!("http://{given}"),
        Some(("http", _)) => given.to_owned(),
        Some(("https", _)) => bail!("endpoint {given}: there is no TLS yet"),
        Some((scheme, _)) => bail!("endpoint {given}: the scheme {scheme} is not known"),
    };
    let endpoint = Endpoint::from_shared(url.clone())
        .with_context(|| format!("endpoint {given:?} is no host:port"))?;
    ensure!(
        endpoint.uri().port().is_some(),
        "endpoint {given:?} has no port"
    );
    Ok(url.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn load(line: &str) -> anyhow::Result<Load> {
        let line = Line::try_parse_from(["bench"].into_iter().chain(line.split_whitespace()))?;
        line.load.load()
    }

    fn refusal(line: &str) -> String {
        format!("{:#}", load(line).unwrap_err())
    }

    #[test]
    fn a_measurement_by_time_has_a_warm_up_and_one_by_number_has_none() {
        let timed = load("--duration 2m").unwrap();
        assert_eq!(timed.end, End::After(Duration::from_secs(120)));
        assert_eq!(timed.warmup, Duration::from_secs(1));
        let counted = load("--total 200").unwrap();
        assert_eq!(counted.end, End::Total(200));
        assert_eq!(counted.warmup, Duration::ZERO);
        let both = load("--total 200 --warmup 3s").unwrap();
        assert_eq!(both.warmup, Duration::from_secs(3));
        assert_eq!(load("").unwrap().end, End::After(Duration::from_secs(10)));
    }

    #[test]
    fn clients_share_a_bounded_number_of_connections() {
        let three = "--endpoints a:1,b:1,c:1";
        for (flags, connections) in [
            ("--clients 1", 1),
            ("--clients 4", 4),
            ("--clients 256", 16),
            ("--clients 256 --connections 3", 3),
            ("--clients 2 --connections 2", 2),
        ] {
            let load = load(&format!("{three} {flags}")).unwrap();
            assert_eq!(load.connections, connections, "{flags}");
        }
        let few = refusal(&format!("{three} --clients 8 --connections 2"));
        assert!(few.contains("cannot reach 3 endpoints"), "{few}");
        let many = refusal("--clients 8 --connections 9");
        assert!(many.contains("more than one for each"), "{many}");
    }

    #[test]
    fn endpoints_are_urls_and_all_different() {
        let urls = load("--endpoints localhost:1,http://b:2/").unwrap();
        assert_eq!(urls.endpoints, ["http://localhost:1", "http://b:2"]);
        assert!(refusal("--endpoints a:1,http://a:1").contains("twice"));
        assert!(refusal("--endpoints https://a:1").contains("no TLS"));
        assert!(refusal("--endpoints ftp://a:1").contains("ftp"));
        assert!(refusal("--endpoints a").contains("no port"));
        assert!(refusal("--endpoints a:b:c").contains("no host:port"));
        assert!(refusal("--endpoints a:1,,b:1").contains("no host:port"));
    }

    #[test]
    fn figures_that_mean_nothing_are_refused() {
        for (flags, said) in [
            ("--rate 0", "--rate 0"),
            ("--rate=-5", "--rate -5"),
            ("--rate NaN", "--rate NaN"),
            ("--rate inf", "--rate inf"),
            ("--duration 0s", "measures nothing"),
            ("--timeout 0s", "awaits no answer"),
            ("--duration 5s --total 5", "cannot be used with"),
            ("--total 0", "0 is not in"),
            ("--clients 0", "0 is not in"),
            ("--duration soon", "soon"),
        ] {
            let told = refusal(flags);
            assert!(told.contains(said), "{flags}: {told}");
        }
        let open = load("--rate 2.5").unwrap();
        assert_eq!(open.pace, Pace::Open { per_second: 2.5 });
    }
}
