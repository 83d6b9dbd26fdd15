//! Loopback ports for servers that tests start.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the kernel takes ports for outgoing connections, so that a port that
/// is free now is not taken by somebody's client a moment later.
const FIRST: u16 = 12_000;
const LAST: u16 = 32_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// `n` ports of 127.0.0.1 that nobody listens on. Two calls in one process never give the same
/// port; test processes that run side by side start at different places.
///
/// # Panics
/// When so many ports are taken that none can be found.
#[must_use]
pub fn free(n: usize) -> Vec<u16> {
    let span = LAST - FIRST;
    let pid = u16::try_from(std::process::id() % u32::from(span)).expect("below span");
    let start = pid.wrapping_mul(97);
    let mut ports = Vec::with_capacity(n);
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(step) % span;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
            if ports.len() == n {
                return ports;
            }
        }
    }
    panic!("no {n} free ports between {FIRST} and {LAST}");
}
