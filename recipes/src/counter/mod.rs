//! Numbers shared by many processes. [`AtomicCounter`] is one number whose every change is seen by
//! all; [`Adder`] is a sum that many add to at once without getting in one another's way; [`IdBlocks`]
//! gives out numbers that nobody else gets.

mod adder;
mod atomic;
mod ids;
#[cfg(test)]
mod tests;

pub use adder::Adder;
pub use atomic::AtomicCounter;
pub use ids::IdBlocks;

use crate::error::{Error, Result};
use crate::keys::Key;

/// Reads a decimal number; absent is 0.
fn parse<T>(key: &Key, value: Option<&bytes::Bytes>) -> Result<T>
where
    T: std::str::FromStr + Default,
{
    let Some(value) = value else {
        return Ok(T::default());
    };
    let text = std::str::from_utf8(value).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| Error::Codec {
        key: key.clone(),
        reason: format!("not a decimal number: {:?}", String::from_utf8_lossy(value)),
    })
}

/// A sum that must fit.
fn sum(key: &Key, number: i64, delta: i64) -> Result<i64> {
    number
        .checked_add(delta)
        .ok_or_else(|| Error::Invalid(format!("{key}: {number} and {delta} overflow 64 bits")))
}
