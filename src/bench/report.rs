//! What a run found out, as one JSON object or as a few lines for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::tally::{Kinds, Latencies};

/// The figures of a run. Times are in seconds; a latency of something that did not happen is
/// `null`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) workload: &'static str,
    pub(super) endpoints: Vec<EndpointReport>,
    pub(super) clients: usize,
    pub(super) connections: usize,
    /// What was asked for; `null`: as fast as answered.
    pub(super) rate_per_second: Option<f64>,
    pub(super) warmup_seconds: f64,
    #[serde(flatten)]
    pub(super) settings: Settings,
    /// From the first request to the last answer.
    pub(super) elapsed_seconds: f64,
    /// Those that succeeded.
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// Due by the rate, and never sent because no client was free in time.
    pub(super) not_sent: u64,
    pub(super) throughput_per_second: f64,
    pub(super) latency_seconds: Option<Quantiles>,
    pub(super) parts: BTreeMap<&'static str, Part>,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) store_errors: BTreeMap<String, u64>,
    /// The highest revision that an answer named.
    pub(super) revision: i64,
    /// `null`: the servers no longer said.
    pub(super) leader_changed: Option<bool>,
}

/// What only some workloads have.
#[derive(Debug, Default, Serialize)]
pub(super) struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serializable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lock_names: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) watchers: Option<usize>,
}

/// A server and its share.
#[derive(Debug, Serialize)]
pub(super) struct EndpointReport {
    pub(super) url: String,
    pub(super) version: String,
    /// When the run began.
    pub(super) leads: bool,
    pub(super) requests: u64,
}

/// A part of the requests, or what came of them.
#[derive(Debug, Serialize)]
pub(super) struct Part {
    count: u64,
    per_second: f64,
    latency_seconds: Option<Quantiles>,
}

/// Latencies in seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Quantiles {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Quantiles {
    /// Those of `latencies`; `None` when there are none.
    pub(super) fn of(latencies: &Latencies) -> Option<Self> {
        let at = |part| latencies.quantile(part).as_secs_f64();
        (latencies.count() > 0).then(|| Self {
            mean: latencies.mean().as_secs_f64(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: latencies.max().as_secs_f64(),
        })
    }

    fn words(&self) -> String {
        let named = [
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99.9", self.p999),
            ("max", self.max),
        ];
        let words = named.map(|(name, seconds)| {
            let time = short(Duration::from_secs_f64(seconds));
            format!("{name} {time:<8}")
        });
        words.join("  ").trim_end().to_owned()
    }
}

impl Part {
    /// The part with these latencies, in a run that took `elapsed`.
    pub(super) fn of(latencies: &Latencies, elapsed: Duration) -> Self {
        Self {
            count: latencies.count(),
            per_second: rate(latencies.count(), elapsed),
            latency_seconds: Quantiles::of(latencies),
        }
    }
}

/// `count` a second over `elapsed`; 0 over no time.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn rate(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() {
        0.0
    } else {
        count as f64 / elapsed.as_secs_f64()
    }
}

/// As a JSON object.
pub(super) fn kinds(kinds: &Kinds) -> BTreeMap<String, u64> {
    let kinds = kinds.iter();
    kinds
        .map(|(kind, times)| (kind.to_owned(), times))
        .collect()
}

impl Report {
    /// Whether something failed, in the warm-up too.
    pub(super) fn failed(&self) -> bool {
        self.failed > 0 || !self.errors.is_empty() || !self.store_errors.is_empty()
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        let mut out = format!("{}  {}\n", self.workload, self.load());
        let longest = self.endpoints.iter().map(|end| end.url.len()).max();
        for end in &self.endpoints {
            let leads = if end.leads { "leads" } else { "" };
            let _ = writeln!(
                out,
                "  {:width$}  {}  {leads:5}  {:>10} requests",
                end.url,
                end.version,
                grouped(end.requests),
                width = longest.unwrap_or(0),
            );
        }
        let _ = writeln!(
            out,
            "requests   {} in {:.1} s, {:.1}/s",
            grouped(self.requests),
            self.elapsed_seconds,
            self.throughput_per_second
        );
        if let Some(latency) = &self.latency_seconds {
            let _ = writeln!(out, "latency    {}", latency.words());
        }
        for (name, part) in &self.parts {
            if let Some(latency) = &part.latency_seconds {
                let _ = write!(out, "{name:9}  {}", latency.words());
                if part.count != self.requests {
                    let (count, rate) = (grouped(part.count), part.per_second);
                    let _ = write!(out, "  {count} in all, {rate:.1}/s");
                }
                out.push('\n');
            }
        }
        let _ = writeln!(out, "failed     {}", grouped(self.failed));
        for (kind, times) in &self.errors {
            let _ = writeln!(out, "  {:>7}  {kind}", grouped(*times));
        }
        if !self.store_errors.is_empty() {
            out.push_str("store calls that failed and were repeated by the recipe\n");
        }
        for (kind, times) in &self.store_errors {
            let _ = writeln!(out, "  {:>7}  {kind}", grouped(*times));
        }
        if self.not_sent > 0 {
            let _ = writeln!(
                out,
                "note: {} requests that were due were never sent: with {} clients the servers do \
                 not keep up with this rate, and the latencies are those of the others",
                grouped(self.not_sent),
                self.clients
            );
        }
        if self.leader_changed == Some(true) {
            out.push_str("note: the leader changed during the run\n");
        }
        out
    }

    fn load(&self) -> String {
        let clients = counted(self.clients, "client");
        let connections = counted(self.connections, "connection");
        let mut words = vec![format!("{clients} on {connections}")];
        words.push(self.rate_per_second.map_or_else(
            || "as fast as answered".to_owned(),
            |rate| format!("{rate} requests a second"),
        ));
        let settings = &self.settings;
        if settings.serializable == Some(true) {
            words.push("serializable".into());
        }
        if let Some(keys) = settings.keys {
            words.push(format!("{} keys", grouped(keys)));
        }
        if let Some(bytes) = settings.value_bytes {
            words.push(format!("values of {bytes} bytes"));
        }
        if let Some(names) = settings.lock_names {
            words.push(counted(names, "lock"));
        }
        if let Some(watchers) = settings.watchers {
            words.push(counted(watchers, "watcher"));
        }
        words.join(", ")
    }
}

/// So many of them: `1 lock`, `2 locks`.
fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// A number with its thousands apart: `91,204`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time with three digits: `95 µs`, `1.23 ms`, `12.3 s`.
pub(super) fn short(time: Duration) -> String {
    let micros = time.as_micros();
    let (value, unit) = match micros {
        0..1_000 => return format!("{micros} µs"),
        1_000..1_000_000 => (time.as_secs_f64() * 1e3, "ms"),
        _ => (time.as_secs_f64(), "s"),
    };
    let places = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    let digits = format!("{value:.places$}");
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => &digits,
    };
    format!("{digits} {unit}")
}

#[cfg(test)]
mod tests {
    use quorate::core::clock;

    use super::super::tally::{Figures, Tally};
    use super::*;

    fn figures() -> Figures {
        let tally = Tally::new(1, 1);
        let from = clock::now();
        for n in 1..=1000 {
            tally.request(0, from, from + Duration::from_micros(n * 10), Ok(5));
        }
        tally.part("event", [Duration::from_millis(3); 4]);
        tally.request(0, from, from, Err("Unavailable: no leader".into()));
        tally.snapshot()
    }

    fn report(figures: &Figures) -> Report {
        let elapsed = Duration::from_secs(2);
        Report {
            workload: "put",
            endpoints: vec![EndpointReport {
                url: "http://127.0.0.1:2379".into(),
                version: "3.5.0".into(),
                leads: true,
                requests: 1000,
            }],
            clients: 4,
            connections: 2,
            rate_per_second: Some(500.0),
            warmup_seconds: 1.0,
            settings: Settings {
                keys: Some(10_000),
                value_bytes: Some(256),
                ..Settings::default()
            },
            elapsed_seconds: 2.0,
            requests: figures.latencies.count(),
            failed: figures.failed,
            not_sent: 7,
            throughput_per_second: rate(figures.latencies.count(), elapsed),
            latency_seconds: Quantiles::of(&figures.latencies),
            parts: BTreeMap::from([("event", Part::of(&figures.parts["event"], elapsed))]),
            errors: kinds(&figures.errors),
            store_errors: BTreeMap::new(),
            revision: figures.revision,
            leader_changed: Some(true),
        }
    }

    #[test]
    fn json_has_every_figure_in_seconds() {
        let json = serde_json::to_value(report(&figures())).unwrap();
        let at = |path: &str| json.pointer(path).and_then(serde_json::Value::as_f64);
        assert_eq!(at("/requests"), Some(1000.0));
        assert_eq!(at("/throughput_per_second"), Some(500.0));
        for (path, seconds) in [
            ("/latency_seconds/p50", 0.005),
            ("/latency_seconds/p90", 0.009),
            ("/latency_seconds/p99", 0.0099),
            ("/latency_seconds/p999", 0.00999),
            ("/latency_seconds/max", 0.01),
            ("/parts/event/latency_seconds/p50", 0.003),
            ("/parts/event/per_second", 2.0),
        ] {
            let found = at(path).unwrap();
            assert!((found / seconds - 1.0).abs() < 0.001, "{path}: {found}");
        }
        assert_eq!(json["errors"]["Unavailable: no leader"], 1);
        assert_eq!(json["endpoints"][0]["requests"], 1000);
        assert_eq!(json["keys"], 10_000);
        assert!(json.get("watchers").is_none());
    }

    #[test]
    fn people_read_the_percentiles_and_what_went_wrong() {
        let report = report(&figures());
        assert!(report.failed());
        let told = report.words();
        for line in [
            "put  4 clients on 2 connections, 500 requests a second, 10,000 keys, values of 256 bytes\n",
            "requests   1,000 in 2.0 s, 500.0/s\n",
            "latency    p50 5 ms      p90 9.01 ms   p99 9.9 ms    p99.9 9.99 ms   max 10 ms\n",
            "event      p50 3 ms",
            "4 in all, 2.0/s\n",
            "failed     1\n",
            "        1  Unavailable: no leader\n",
            "note: 7 requests that were due",
            "note: the leader changed",
        ] {
            assert!(told.contains(line), "{line:?} in\n{told}");
        }
    }

    #[test]
    fn a_run_without_any_answer_has_no_latency() {
        let tally = Tally::new(1, 1);
        let now = clock::now();
        tally.request(0, now, now, Err("x".into()));
        assert!(Quantiles::of(&tally.snapshot().latencies).is_none());
        assert_eq!(rate(5, Duration::ZERO).to_bits(), 0);
    }

    #[test]
    fn times_have_three_digits_and_numbers_their_thousands_apart() {
        for (micros, text) in [
            (0, "0 µs"),
            (950, "950 µs"),
            (1_234, "1.23 ms"),
            (12_340, "12.3 ms"),
            (100_000, "100 ms"),
            (10_000_000, "10 s"),
            (1_200_000, "1.2 s"),
        ] {
            assert_eq!(short(Duration::from_micros(micros)), text);
        }
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
