//! Steps at which a test ends the process, to see what the next start makes of what is on the disk.
//! Used by whatever replaces or removes files in several steps. Only in builds with debug assertions.

/// Ends the process here, at once and without cleaning up, if the environment says so:
/// `QUORATE_FAILPOINT=<name>`.
pub(crate) fn reach(name: &'static str) {
    #[cfg(debug_assertions)]
    if std::env::var_os("QUORATE_FAILPOINT").is_some_and(|wanted| wanted == name) {
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}
