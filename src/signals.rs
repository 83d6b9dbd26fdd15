//! Being asked to stop, by a signal or by the end of standard input.

use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

/// Completes at the first SIGINT or SIGTERM after this call. Needs a runtime.
///
/// # Errors
/// When the signals cannot be listened for.
pub(crate) fn asked_to_stop() -> impl Future<Output = anyhow::Result<()>> {
    // Listened for from here on, so that a signal during the start is not missed.
    let interrupt = signal(SignalKind::interrupt());
    let terminate = signal(SignalKind::terminate());
    async move {
        let (mut interrupt, mut terminate) = (interrupt?, terminate?);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    }
}

/// Completes when standard input ends: whoever started this program is gone, or wants it gone.
pub(crate) async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0; 512];
    while stdin.read(&mut ignored).await.is_ok_and(|n| n > 0) {}
}

/// Completes when asked to stop; `with_stdin`, also when standard input ends. Needs a runtime.
///
/// # Errors
/// When the signals cannot be listened for.
pub(crate) fn stop(with_stdin: bool) -> impl Future<Output = anyhow::Result<()>> {
    let asked = asked_to_stop();
    async move {
        tokio::select! {
            stopped = asked => stopped,
            () = stdin_closed(), if with_stdin => Ok(()),
        }
    }
}
