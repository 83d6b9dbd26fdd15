//! The process as the system sees it, under the names that Prometheus clients use in every language.
//! Read from `/proc`; where there is none these metrics are left out.

use std::{fmt, fs};

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{gauge, number};

/// The process at one moment.
#[derive(Debug)]
pub(super) struct Process {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: u64,
    max_fds: Option<u64>,
}

/// Looks at this process, off the runtime's threads.
pub(super) async fn look() -> Option<Process> {
    let look = || Process::read().ok().flatten();
    tokio::task::spawn_blocking(look).await.ok().flatten()
}

impl Process {
    fn read() -> std::io::Result<Option<Self>> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let system = fs::read_to_string("/proc/stat")?;
        let limits = fs::read_to_string("/proc/self/limits")?;
        // One of them is the one that lists them.
        let open_fds = fs::read_dir("/proc/self/fd")?.count().saturating_sub(1);
        let started = boot_seconds(&system);
        Ok(Self::parse(&stat, started).map(|process| Self {
            open_fds: number(open_fds),
            max_fds: max_fds(&limits),
            ..process
        }))
    }

    /// Reads `/proc/self/stat`: after the name in brackets, fields from the third on.
    fn parse(stat: &str, boot_seconds: Option<u64>) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<u64> = fields
            .split_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = rustix::param::clock_ticks_per_second();
        let pages = u64::try_from(rustix::param::page_size()).ok()?;
        Some(Self {
            cpu_seconds: seconds(field(14)? + field(15)?, ticks),
            start_seconds: seconds(boot_seconds? * ticks + field(22)?, ticks),
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * pages,
            open_fds: 0,
            max_fds: None,
        })
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let cpu = ConstCounter::new(self.cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            "Processor time used",
            None,
            cpu.metric_type(),
        )?)?;
        let start = ConstGauge::new(self.start_seconds);
        start.encode(encoder.encode_descriptor(
            "process_start_time_seconds",
            "When the process began, in seconds since 1970",
            None,
            start.metric_type(),
        )?)?;
        let figures = [
            (
                "process_resident_memory_bytes",
                "Memory in use",
                self.resident_bytes,
            ),
            (
                "process_virtual_memory_bytes",
                "Address space in use",
                self.virtual_bytes,
            ),
            ("process_open_fds", "Open file descriptors", self.open_fds),
        ];
        for (name, help, value) in figures {
            gauge(encoder, name, help, value)?;
        }
        match self.max_fds {
            Some(max) => gauge(encoder, "process_max_fds", "File descriptors allowed", max),
            None => Ok(()),
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "clock ticks of a process fit a float exactly"
)]
fn seconds(ticks: u64, per_second: u64) -> f64 {
    ticks as f64 / per_second as f64
}

/// When the system started, from `/proc/stat`.
fn boot_seconds(stat: &str) -> Option<u64> {
    let mut lines = stat.lines();
    lines.find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

/// The soft limit, from `/proc/self/limits`; none when there is no limit.
fn max_fds(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_the_right_ones() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 0 1 1 1 1 300 100 0 0 20 0 9 0 500 4096000 25 1";
        let process = Process::parse(stat, Some(1_000)).unwrap();
        let ticks = seconds(1, 1) / seconds(rustix::param::clock_ticks_per_second(), 1);
        assert!((process.cpu_seconds - 400.0 * ticks).abs() < 1e-6);
        assert!((process.start_seconds - 1_000.0 - 500.0 * ticks).abs() < 1e-6);
        assert_eq!(process.virtual_bytes, 4_096_000);
        let pages = u64::try_from(rustix::param::page_size()).unwrap();
        assert_eq!(process.resident_bytes, 25 * pages);
        assert_eq!(boot_seconds("cpu 1\nbtime 12\n"), Some(12));
        let limits = "Limit  Soft  Hard\nMax open files            1024      4096   files\n";
        assert_eq!(max_fds(limits), Some(1024));
    }
}
