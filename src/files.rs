//! How many files this process may have open, and how many of them connections may take.

use quorate::core::config::Limits;
use tracing::{info, warn};

/// Left for the log, the state, peers and this program's own needs.
const RESERVED: usize = 512;
/// Assumed where the system does not say; the smallest that is usual.
const USUAL: usize = 1_024;

/// Raises the limit on open files as far as this process may, and bounds the client connections in
/// `limits` by it: a member that cannot open its own files any more has to end.
pub(crate) fn fit(limits: &mut Limits) {
    let open_max = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(max) => usize::try_from(max).unwrap_or(usize::MAX),
        Err(error) => {
            warn!(%error, "the limit on open files is not known, taking {USUAL}");
            USUAL
        }
    };
    let connections = limits.max_connections.min(for_connections(open_max));
    if connections < limits.max_connections {
        info!(
            open_max,
            connections, "the limit on open files bounds client connections"
        );
    }
    limits.max_connections = connections;
}

/// All but the reserve; where that leaves little, a quarter.
fn for_connections(open_max: usize) -> usize {
    open_max.saturating_sub(RESERVED).max(open_max / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_files() {
        assert_eq!(for_connections(65_536), 65_024);
        assert_eq!(for_connections(1_024), 512);
        assert_eq!(for_connections(256), 64);
    }

    #[test]
    fn limits_are_only_ever_lowered() {
        let mut limits = Limits {
            max_connections: 3,
            ..Limits::default()
        };
        fit(&mut limits);
        assert_eq!(limits.max_connections, 3);
    }
}
