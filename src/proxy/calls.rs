//! Making a call at one endpoint after the other, as long as nothing can happen twice.

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use super::endpoints::{Pool, Server};
use super::fate::Fate;

/// Times that all endpoints are tried, when no connection can be made or a read is lost.
const ROUNDS_MAX: usize = 3;
/// Longest pause between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(200);

/// Whether a call may be made twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It changes nothing.
    Reads,
    /// It may change something.
    Writes,
}

/// Makes a call, at another endpoint when the first could not be reached or refused for reasons of its
/// own; a call that reads also when no answer came. The answer, or refusal, is passed on as it came.
///
/// # Errors
/// The last member's refusal; or, in etcd's words, that none could be reached or that the connection was
/// lost and the outcome is open.
///
/// # Cancel safety
/// Dropping the future gives up the call that is under way.
pub(super) async fn call<T, F, Fut>(pool: &Pool, effect: Effect, call: F) -> Result<T, Status>
where
    F: Fn(Arc<Server>) -> Fut,
    Fut: Future<Output = Result<T, Status>>,
{
    let (mut tried, mut rounds) = (Vec::new(), 1);
    loop {
        let server = pool.choose(&tried);
        let visit = server.visit();
        let status = match call(Arc::clone(&server)).await {
            Ok(answer) => {
                pool.succeeded(&server);
                return Ok(answer);
            }
            Err(status) => status,
        };
        drop(visit);
        let fate = Fate::of(&status);
        match fate.is_of_the_member(&status) {
            true => pool.failed(&server, &status),
            false if fate != Fate::Expired => pool.succeeded(&server),
            false => {}
        }
        let goes_on = match fate {
            Fate::NeverSent | Fate::NotThere => true,
            Fate::Unavailable | Fate::Lost => effect == Effect::Reads,
            Fate::Expired | Fate::Decided => false,
        };
        // Whoever has said no is not asked again: the client decides about that.
        let comes_back = matches!(fate, Fate::NeverSent | Fate::Lost);
        tried.push(server);
        let is_round = tried.len() >= pool.len();
        if !goes_on || (is_round && (!comes_back || rounds >= ROUNDS_MAX)) {
            return Err(fate.told(status));
        }
        if is_round {
            tried.clear();
            rounds += 1;
            tokio::time::sleep(pool.jittered(ROUND_PAUSE)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use quorate::proto::Reason;
    use tonic::ConnectError;

    use super::*;

    fn refused() -> Status {
        Status::from_error(Box::new(ConnectError(
            std::io::Error::other("connection refused").into(),
        )))
    }

    fn lost() -> Status {
        Status::from_error(Box::new(std::io::Error::other("reset")))
    }

    /// Calls at three endpoints, which answer in turn with these; returns the outcome and how many were
    /// used.
    async fn outcome(effect: Effect, answers: Vec<Option<Status>>) -> (Result<(), Status>, usize) {
        let urls = ["a:1", "b:1", "c:1"].map(ToString::to_string);
        let pool = Pool::new(&urls, 1).unwrap();
        let count = answers.len();
        let answers = Mutex::new(answers.into_iter());
        let outcome = call(&pool, effect, async |_| {
            let answer = answers.lock().unwrap().next().expect("no more calls");
            answer.map_or(Ok(()), Err)
        })
        .await;
        let left = answers.into_inner().unwrap().len();
        (outcome, count - left)
    }

    #[tokio::test]
    async fn a_write_is_made_again_only_when_it_was_never_sent() {
        let (outcome, used) = outcome(Effect::Writes, vec![Some(refused()), None]).await;
        assert!(outcome.is_ok() && used == 2);
    }

    #[tokio::test]
    async fn a_write_whose_outcome_is_open_is_told_so() {
        let (outcome, used) = outcome(Effect::Writes, vec![Some(lost()), None]).await;
        let reason = Reason::from_status(&outcome.unwrap_err());
        assert_eq!((reason, used), (Some(Reason::TimeoutConnectionLost), 1));
    }

    #[tokio::test]
    async fn a_write_that_timed_out_is_told_as_the_member_told_it() {
        let timeout = Reason::Timeout.into();
        let (outcome, used) = outcome(Effect::Writes, vec![Some(timeout), None]).await;
        let reason = Reason::from_status(&outcome.unwrap_err());
        assert_eq!((reason, used), (Some(Reason::Timeout), 1));
    }

    #[tokio::test]
    async fn a_read_goes_on_until_somebody_answers() {
        let answers = vec![Some(lost()), Some(Reason::Timeout.into()), None];
        let (outcome, used) = outcome(Effect::Reads, answers).await;
        assert!(outcome.is_ok() && used == 3);
    }

    #[tokio::test]
    async fn members_that_say_no_are_asked_once_each() {
        let no = || Some(Status::from(Reason::NoLeader));
        let (outcome, used) = outcome(Effect::Reads, vec![no(), no(), no(), None]).await;
        let reason = Reason::from_status(&outcome.unwrap_err());
        assert_eq!((reason, used), (Some(Reason::NoLeader), 3));
    }

    #[tokio::test]
    async fn unreachable_members_are_tried_a_few_times() {
        let answers = vec![Some(refused()); 3 * ROUNDS_MAX + 1];
        let (outcome, used) = outcome(Effect::Writes, answers).await;
        let reason = Reason::from_status(&outcome.unwrap_err());
        assert_eq!((reason, used), (Some(Reason::NoConnection), 3 * ROUNDS_MAX));
    }

    #[tokio::test]
    async fn a_decision_is_final() {
        let decided = Status::from(Reason::EmptyKey);
        let (outcome, used) = outcome(Effect::Reads, vec![Some(decided), None]).await;
        assert_eq!(outcome.unwrap_err().message(), Reason::EmptyKey.text());
        assert_eq!(used, 1);
    }
}
