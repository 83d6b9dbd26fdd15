//! Requests out of JSON and answers into it, by the rules of etcd's gateway: bytes are base64, 64-bit
//! integers are strings (read as numbers too), enums are names (read as numbers too), fields have
//! their names in the `.proto` files (read in camelCase too), unknown fields are ignored and default
//! values left out.
//!
//! Nesting is bounded: the parser gives up below 128 levels, and what it skips it skips without
//! recursion, so no body can exhaust the stack. So is the number of values, since one that takes two
//! bytes of text takes hundreds in memory.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Deserializer, Value};
use tonic::Status;

/// Values in a request at most, fields and items counted: far beyond what the limit of operations in
/// a transaction lets through, and some tens of MiB in memory.
const VALUES_MAX: usize = 64 * 1024;

/// Reads a request from the first JSON value of a body; what follows it is ignored, and an empty
/// body is an empty request, both as on etcd.
///
/// # Errors
/// `InvalidArgument` when the value is not JSON, is nested too deeply, or does not fit the message;
/// `ResourceExhausted` when it is made of too many values.
pub fn decode<Q: DeserializeOwned + Default>(body: &[u8]) -> Result<Q, Status> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Q::default());
    }
    check_values(body)?;
    // By way of a tree, in which the last of several equal names counts, as on etcd.
    let mut value = Value::deserialize(&mut Deserializer::from_slice(body))
        .map_err(|error| malformed(&error, body))?;
    drop_nulls(&mut value);
    if value.is_null() {
        return Ok(Q::default());
    }
    Q::deserialize(value).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Refuses what would take much more memory than its text, before any of it is read.
fn check_values(body: &[u8]) -> Result<(), Status> {
    let (mut values, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            // Each value that is not the first one follows one of these.
            b'[' | b'{' | b',' | b':' if !in_string => values += 1,
            _ => {}
        }
    }
    if values <= VALUES_MAX {
        return Ok(());
    }
    let text = format!("a request of more than {VALUES_MAX} JSON values");
    Err(Status::resource_exhausted(text))
}

/// A field that is null is a field that is not given.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Why a body is no JSON; the commonest cases in etcd's words.
fn malformed(error: &serde_json::Error, body: &[u8]) -> Status {
    if error.is_eof() {
        return Status::invalid_argument("unexpected EOF");
    }
    let text = error.to_string();
    if text.starts_with("expected value") || text.starts_with("expected ident") {
        let line = body
            .split(|&byte| byte == b'\n')
            .nth(error.line().saturating_sub(1));
        let at = error.column().saturating_sub(1);
        if let Some(byte) = line
            .and_then(|line| line.get(at))
            .filter(|b| b.is_ascii_graphic())
        {
            let found = char::from(*byte);
            let text = format!("invalid character '{found}' looking for beginning of value");
            return Status::invalid_argument(text);
        }
    }
    Status::invalid_argument(text)
}

/// An answer as JSON.
pub(super) fn encode(answer: &impl Serialize) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(answer).map_err(|error| unwritable(&error))
}

/// One answer of a stream as a line of JSON.
pub(super) fn line(answer: &impl Serialize) -> Result<Vec<u8>, Status> {
    let mut line = b"{\"result\":".to_vec();
    serde_json::to_writer(&mut line, answer).map_err(|error| unwritable(&error))?;
    line.extend_from_slice(b"}\n");
    Ok(line)
}

fn unwritable(error: &serde_json::Error) -> Status {
    Status::internal(format!("an answer cannot be written as JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use quorate_proto::etcdserverpb::range_request::SortOrder;
    use quorate_proto::etcdserverpb::{RangeRequest, TxnRequest};
    use tonic::Code;

    use super::*;

    fn range(body: &str) -> Result<RangeRequest, Status> {
        decode(body.as_bytes())
    }

    #[test]
    fn both_spellings_numbers_and_names_are_read() {
        let expected = RangeRequest {
            key: "foo".into(),
            range_end: "fop".into(),
            limit: 5,
            sort_order: SortOrder::Descend.into(),
            ..Default::default()
        };
        for body in [
            r#"{"key":"Zm9v","range_end":"Zm9w","limit":"5","sort_order":"DESCEND"}"#,
            r#"{"key":"Zm9v","rangeEnd":"Zm9w","limit":5,"sortOrder":2}"#,
            r#"{"key":"YQ==","key":"Zm9v","rangeEnd":"Zm9w","limit":5,"sortOrder":2,"x":{"y":[1]}}"#,
            r#"{"key":"Zm9v","rangeEnd":"Zm9w","limit":5,"sortOrder":2,"revision":null} and more"#,
        ] {
            assert_eq!(range(body).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn nothing_is_an_empty_request() {
        for body in ["", " \n", "null", "{}"] {
            assert_eq!(range(body).unwrap(), RangeRequest::default(), "{body:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for body in [
            "x",
            "[]",
            "5",
            r#"{"key":5}"#,
            r#"{"key":"?"}"#,
            r#"{"limit":"x"}"#,
            r#"{"limit":1.5}"#,
            r#"{"serializable":"true"}"#,
            r#"{"sort_order":"UPWARD"}"#,
            r#"{"key":"#,
        ] {
            let status = range(body).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{body}");
        }
        assert_eq!(range(r#"{"key":"#).unwrap_err().message(), "unexpected EOF");
    }

    #[test]
    fn many_small_values_are_refused_before_they_take_memory() {
        let many = |count| format!(r#"{{"x":[{}]}}"#, vec![r#"{"":0}"#; count].join(","));
        range(&many(20_000)).unwrap();
        let status = range(&many(30_000)).unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        // What is within a string is no value.
        let text = ",:[{".repeat(VALUES_MAX);
        range(&format!(r#"{{"x":"\\\"{text}"}}"#)).unwrap();
    }

    #[test]
    fn nesting_is_refused_not_followed() {
        const LEVELS: usize = 10_000;
        let txns = r#"{"success":[{"request_txn":"#.repeat(LEVELS);
        let status = decode::<TxnRequest>(txns.as_bytes()).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let closed = format!("{txns}{{}}{}", "}]}".repeat(LEVELS));
        decode::<TxnRequest>(closed.as_bytes()).unwrap_err();
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let unknown = format!(
                r#"{{"unknown":{}1{}}}"#,
                open.repeat(LEVELS),
                close.repeat(LEVELS)
            );
            range(&unknown).unwrap_err();
        }
    }
}
