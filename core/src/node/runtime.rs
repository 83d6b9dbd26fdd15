//! The thread a member's own tasks run on: consensus, its peers' connections, the clocks. They hand
//! each other small things many times for every write, which costs least on one thread; and whatever
//! the process does beside, a heartbeat never waits for it. Requests of clients run where they are
//! called. Used by `bootstrap`.

use std::future::Future;
use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinError;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::tasks;

/// How long disk work that is under way may hold up the end of the thread.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A thread with a runtime, until it is dropped.
#[derive(Debug)]
pub(super) struct OwnRuntime {
    handle: Handle,
    token: CancellationToken,
    end: DropGuard,
}

impl OwnRuntime {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refuses it.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, token) = (runtime.handle().clone(), CancellationToken::new());
        let (end, ended) = (token.clone().drop_guard(), token.clone());
        thread::Builder::new()
            .name("quorate-node".to_owned())
            .spawn(move || {
                runtime.block_on(ended.cancelled());
                runtime.shutdown_timeout(END_LIMIT);
            })?;
        Ok(Self { handle, token, end })
    }

    /// Runs `future` there; the tasks it starts stay there.
    ///
    /// # Errors
    /// It panicked.
    ///
    /// # Cancel safety
    /// Dropping the future does not end what runs; dropping this does.
    pub(super) async fn run<F>(&self, future: F) -> Result<F::Output, JoinError>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tasks::run_on(&self.handle, future).await
    }

    /// What ends the thread too when it is dropped.
    pub(super) fn hold(&self) -> DropGuard {
        self.token.clone().drop_guard()
    }

    /// Leaves the thread to those who hold it, and to the runtime this is called on: it ends with the
    /// first of them.
    pub(super) fn end_with_callers(self) {
        tasks::cancel_with_runtime(self.end.disarm());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Tells when it goes.
    struct Goes(mpsc::Sender<()>);

    impl Drop for Goes {
        fn drop(&mut self) {
            self.0.send(()).ok();
        }
    }

    /// A thread with something on it for ever, and what tells when it has gone.
    async fn busy() -> (OwnRuntime, mpsc::Receiver<()>) {
        let runtime = OwnRuntime::start().unwrap();
        let (sender, gone) = mpsc::channel();
        let goes = Goes(sender);
        let own = tasks::Tasks::new();
        let name = runtime.run(async move {
            own.spawn("for ever", async move {
                std::future::pending::<()>().await;
                drop(goes);
            });
            thread::current().name().map(str::to_owned)
        });
        assert_eq!(name.await.unwrap().as_deref(), Some("quorate-node"));
        (runtime, gone)
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn it_ends_with_what_holds_it() {
        let callers = Builder::new_current_thread().enable_all().build().unwrap();
        let (runtime, gone) = callers.block_on(busy());
        assert!(gone.try_recv().is_err());
        drop(runtime);
        assert_eq!(gone.recv_timeout(SOON), Ok(()));
        let held = callers.block_on(async {
            let (runtime, gone) = busy().await;
            let hold = runtime.hold();
            runtime.end_with_callers();
            (hold, gone)
        });
        assert!(held.1.try_recv().is_err());
        drop(held.0);
        assert_eq!(held.1.recv_timeout(SOON), Ok(()));
    }

    #[test]
    fn it_ends_with_the_runtime_of_who_started_it() {
        let callers = Builder::new_current_thread().enable_all().build().unwrap();
        let (_held, gone) = callers.block_on(async {
            let (runtime, gone) = busy().await;
            let hold = runtime.hold();
            runtime.end_with_callers();
            (hold, gone)
        });
        assert!(gone.try_recv().is_err());
        drop(callers);
        assert_eq!(gone.recv_timeout(SOON), Ok(()));
    }

    #[tokio::test]
    async fn a_panic_there_is_told_here() {
        let runtime = OwnRuntime::start().unwrap();
        let panicked = runtime.run(async { panic!("what it said") }).await;
        let text = panicked.map(|(): ()| ()).unwrap_err().to_string();
        assert!(text.contains("what it said"), "{text}");
        assert_eq!(runtime.run(async { 1 }).await.unwrap(), 1);
    }
}
