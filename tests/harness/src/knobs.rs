//! How much a test does: little where it runs with all others, as much as a proof needs when the
//! environment says so.

use std::str::FromStr;

/// The number in the environment variable `name`, or `usual` where it is not set.
///
/// # Panics
/// When the variable is set and is no such number: a proof that silently did less would prove
/// nothing.
#[must_use]
pub fn number<T: FromStr>(name: &str, usual: T) -> T {
    match std::env::var(name) {
        Err(_) => usual,
        Ok(given) => given
            .parse()
            .unwrap_or_else(|_| panic!("{name}={given} is not a number")),
    }
}

/// Whether the environment variable `name` is set.
#[must_use]
pub fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some()
}
