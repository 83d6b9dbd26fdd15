//! Cuts a request body into the JSON values that follow each other in it, as they arrive: what the
//! streaming calls take for their requests. Holds one value at a time, of bounded size.

use axum::body::BodyDataStream;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tonic::Status;

/// How large a request may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    /// Bytes of it as a gRPC message; the services check that.
    pub(super) message: usize,
}

impl Limit {
    /// Bytes of JSON that are read at all: base64 adds a third, and spelling something.
    fn text(self) -> usize {
        self.message.saturating_mul(2)
    }

    /// Whether so many bytes of JSON are not too many.
    ///
    /// # Errors
    /// They are, in the words of etcd's gRPC library.
    pub(super) fn check(self, found: usize) -> Result<(), Status> {
        let max = self.message;
        if found <= self.text() {
            return Ok(());
        }
        let text = format!("grpc: received message larger than max ({found} vs. {max})");
        Err(Status::resource_exhausted(text))
    }
}

/// Where the scan of the value at the front stands.
#[derive(Debug, Default)]
struct Scan {
    /// Bytes looked at.
    at: usize,
    /// Open brackets. A counter, so that no nesting costs anything.
    depth: usize,
    in_string: bool,
    after_backslash: bool,
}

/// Cuts what arrives in pieces into JSON values. Only brackets and strings are looked at: a value may
/// be malformed otherwise.
#[derive(Debug)]
pub struct Cutter {
    /// What has arrived and was not handed out; begins with a value or is empty.
    held: BytesMut,
    scan: Scan,
    limit: Limit,
}

impl Cutter {
    /// Nothing has arrived yet. `message_bytes_max` is how large a request may be as a message.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        let message = message_bytes_max;
        Self::with(Limit { message })
    }

    fn with(limit: Limit) -> Self {
        Self {
            held: BytesMut::new(),
            scan: Scan::default(),
            limit,
        }
    }

    /// Takes in what came next.
    pub fn push(&mut self, piece: &[u8]) {
        self.held.extend_from_slice(piece);
    }

    /// The next value, if it is there whole; space before it belongs to it.
    ///
    /// # Errors
    /// `ResourceExhausted`: what is there of it is too large already.
    pub fn take(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(length) = self.scan.end(&self.held) {
            self.scan = Scan::default();
            return Ok(Some(self.held.split_to(length).freeze()));
        }
        self.limit.check(self.held.len())?;
        Ok(None)
    }

    /// What is there of a value, once nothing comes any more; `None` if that is only space.
    pub fn rest(&mut self) -> Option<Bytes> {
        self.scan = Scan::default();
        let rest = self.held.split().freeze();
        (!rest.iter().all(u8::is_ascii_whitespace)).then_some(rest)
    }
}

/// The JSON values of a body, one after the other.
#[derive(Debug)]
pub(super) struct Values {
    body: BodyDataStream,
    arrived: Cutter,
    ended: bool,
}

impl Values {
    pub(super) fn new(body: BodyDataStream, limit: Limit) -> Self {
        Self {
            body,
            arrived: Cutter::with(limit),
            ended: false,
        }
    }

    /// The next value as it came, perhaps malformed; `None` at the end of the body.
    ///
    /// # Errors
    /// A value that is too large, or a connection that broke. There is nothing to read after that.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(value) = self.arrived.take()? {
                return Ok(Some(value));
            }
            if self.ended {
                return Ok(self.arrived.rest());
            }
            match self.body.next().await {
                Some(Ok(piece)) => self.arrived.push(&piece),
                Some(Err(error)) => return Err(cut_off(&error)),
                None => self.ended = true,
            }
        }
    }

    /// Takes what is left of the body for nothing.
    ///
    /// # Errors
    /// A connection that broke.
    pub(super) async fn skip_all(&mut self) -> Result<(), Status> {
        while let Some(piece) = self.body.next().await {
            piece.map_err(|error| cut_off(&error))?;
        }
        Ok(())
    }
}

/// Why a body did not come whole.
pub(super) fn cut_off(error: &axum::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

impl Scan {
    /// The length of the value at the front of `held`, once it is there whole.
    fn end(&mut self, held: &[u8]) -> Option<usize> {
        while let Some(&byte) = held.get(self.at) {
            self.at += 1;
            if self.in_string {
                let escaped = std::mem::replace(&mut self.after_backslash, false);
                match byte {
                    _ if escaped => {}
                    b'\\' => self.after_backslash = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                if !self.in_string && self.depth == 0 {
                    return Some(self.at);
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(self.at);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    async fn values(pieces: &[&'static str], max: usize) -> Vec<Result<String, String>> {
        let pieces: Vec<_> = pieces
            .iter()
            .copied()
            .map(Ok::<_, std::io::Error>)
            .collect();
        let body = Body::from_stream(futures::stream::iter(pieces));
        let mut values = Values::new(body.into_data_stream(), Limit { message: max });
        let mut seen = Vec::new();
        loop {
            match values.next().await {
                Ok(Some(value)) => seen.push(Ok(String::from_utf8_lossy(&value).into_owned())),
                Ok(None) => return seen,
                Err(status) => {
                    seen.push(Err(status.message().to_owned()));
                    return seen;
                }
            }
        }
    }

    fn ok(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }

    #[tokio::test]
    async fn values_are_cut_wherever_the_pieces_are() {
        let whole = r#"{"a":"}\"{"} {"b":[{},"]"]}{}"#;
        let expected = [ok(r#"{"a":"}\"{"}"#), ok(r#" {"b":[{},"]"]}"#), ok("{}")];
        assert_eq!(values(&[whole], 100).await, expected);
        for at in 0..whole.len() {
            let (head, tail) = whole.split_at(at);
            assert_eq!(values(&[head, tail], 100).await, expected, "cut at {at}");
        }
    }

    #[tokio::test]
    async fn what_is_no_value_is_handed_on_at_the_end() {
        assert_eq!(values(&["", " \n"], 100).await, []);
        assert_eq!(values(&["{}  ", "xx"], 100).await, [ok("{}"), ok("  xx")]);
        assert_eq!(values(&["{\"a\":"], 100).await, [ok("{\"a\":")]);
    }

    #[tokio::test]
    async fn a_value_above_the_limit_is_refused() {
        let refused = Err("grpc: received message larger than max (9 vs. 4)".to_owned());
        assert_eq!(values(&["{}", "{\"aaaaaaa"], 4).await, [ok("{}"), refused]);
    }
}
