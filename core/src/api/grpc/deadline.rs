//! Calls with a deadline: gRPC's header `grpc-timeout`. A client keeps its deadlines by itself, as long
//! as it lives and is one of gRPC; here they end what nobody waits for any more. Around all services.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use tonic::Status;

use super::until::{refusal, until};
use crate::clock;

/// The header, as gRPC's protocol has it.
pub(crate) const HEADER: &str = "grpc-timeout";
/// Digits of a value at most.
const DIGITS_MAX: usize = 8;

/// Ends a call at its deadline.
pub(crate) async fn keep<N, F>(request: Request, next: N) -> Response
where
    N: FnOnce(Request) -> F,
    F: Future<Output = Response>,
{
    let timeout = match timeout(request.headers()) {
        Ok(Some(timeout)) => timeout,
        Ok(None) => return next(request).await,
        Err(status) => return refusal(status),
    };
    let deadline = clock::now() + timeout;
    match tokio::time::timeout_at(deadline, next(request)).await {
        Ok(response) => until(response, async move {
            tokio::time::sleep_until(deadline).await;
            exceeded()
        }),
        Err(_) => refusal(exceeded()),
    }
}

/// In the words of Go's contexts.
fn exceeded() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    match parsed(value) {
        Some(timeout) => Ok(Some(timeout)),
        None => {
            let told = String::from_utf8_lossy(value.as_bytes());
            Err(Status::invalid_argument(format!(
                "invalid grpc-timeout: {told}"
            )))
        }
    }
}

/// A number of a unit, as the protocol writes it.
fn parsed(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > DIGITS_MAX || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text| parsed(&HeaderValue::from_static(text));
        assert_eq!(
            read("99999999H"),
            Some(Duration::from_secs(359_999_996_400))
        );
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("500m"), Some(Duration::from_millis(500)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for text in ["", "m", "5", "100000000S", "+5S", "5s", "1.5S", "5\u{e9}"] {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            assert_eq!(parsed(&value), None, "{text:?}");
        }
    }
}
