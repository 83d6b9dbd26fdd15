//! The epoch of fencing tokens: a number that every restore of an older state raises. Kept in a key, as
//! a decimal number. Used by the recipes, which compare it, and by the state machine, which raises it.

/// The key it is kept in.
pub const EPOCH_KEY: &str = "quorate/epoch";

/// The epoch that a value of [`EPOCH_KEY`] stands for; an absent key is epoch 0.
///
/// # Errors
///
/// The value, as text, if it is no decimal number.
///
/// # Examples
///
/// ```
/// use quorate_proto::epoch;
///
/// assert_eq!(epoch::parse(None), Ok(0));
/// assert_eq!(epoch::parse(Some(b"17\n")), Ok(17));
/// assert!(epoch::parse(Some(b"-1")).is_err());
/// ```
pub fn parse(value: Option<&[u8]>) -> Result<u64, String> {
    let Some(value) = value else {
        return Ok(0);
    };
    let text = String::from_utf8_lossy(value);
    text.trim().parse().map_err(|_| text.into_owned())
}
