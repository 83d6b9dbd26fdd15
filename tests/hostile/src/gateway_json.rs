//! Requests of the JSON gateway: any bytes, and JSON of the fields that requests have. Reading never
//! panics, on any route; what is read is a message that gRPC would take, and reads the same when it is
//! written again. A body of several requests is cut into the same ones in whatever pieces it arrives,
//! and not a byte of it is lost.

use std::fmt::Debug;

use bytes::Bytes;
use prost::Message;
use quorate_core::api::http::gateway::{self, Cutter, ROUTES};
use quorate_proto::etcdserverpb::{
    AlarmRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest, CompactionRequest,
    DeleteRangeRequest, LeaseGrantRequest, MemberAddRequest, PutRequest, RangeRequest, TxnRequest,
    WatchRequest,
};
use quorate_proto::v3electionpb::{CampaignRequest, ProclaimRequest};
use quorate_proto::v3lockpb::LockRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Input;

/// Fields of an object and items of a list at most.
const ITEMS_MAX: u8 = 4;
/// Levels of what is made here; raw input and repeated brackets go further.
const DEPTH_MAX: u8 = 30;
/// Brackets opened in a row at most: far beyond what the parser follows.
const BRACKETS_MAX: usize = 2_000;

/// One run.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (choice, route) = (input.byte(), input.byte());
    let body = match choice % 4 {
        0 => input.rest().to_vec(),
        1 => {
            let open: &[u8] = [&b"["[..], b"{\"a\":", b"{\"success\":[{\"request_txn\":"]
                [usize::from(choice / 4 % 3)];
            let mut body = open.repeat(input.below(BRACKETS_MAX));
            body.extend_from_slice(input.rest());
            body
        }
        _ => {
            let mut body = String::new();
            object(&mut input, &mut body, 1);
            body.into_bytes()
        }
    };
    let route = &ROUTES[usize::from(route) % ROUTES.len()];
    // What a route reads depends on its message alone: the messages below know theirs.
    drop(route.decode(&body));
    read(choice / 4, &body);
    cut_alike(&body, usize::from(choice / 4) + 1);
}

/// Cuts a body that arrives whole, and in pieces.
fn cut_alike(body: &[u8], piece_bytes: usize) {
    let whole = cut([body]);
    let lost = body
        .strip_prefix(&*whole.concat())
        .expect("the body itself");
    assert!(lost.iter().all(u8::is_ascii_whitespace), "lost: {lost:?}");
    assert_eq!(
        cut(body.chunks(piece_bytes)),
        whole,
        "{piece_bytes} bytes at a time"
    );
}

fn cut<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Bytes> {
    // More than any input here makes.
    let mut arrived = Cutter::new(1 << 20);
    let mut values = Vec::new();
    for piece in pieces {
        arrived.push(piece);
        while let Some(value) = arrived.take().expect("within the limit") {
            values.push(value);
        }
    }
    values.extend(arrived.rest());
    values
}

/// Reads a body as one of the messages.
fn read(choice: u8, body: &[u8]) {
    let all: &[fn(&[u8])] = &[
        reads::<RangeRequest>,
        reads::<PutRequest>,
        reads::<DeleteRangeRequest>,
        reads::<TxnRequest>,
        reads::<CompactionRequest>,
        reads::<WatchRequest>,
        reads::<LeaseGrantRequest>,
        reads::<MemberAddRequest>,
        reads::<AlarmRequest>,
        reads::<AuthUserAddRequest>,
        reads::<AuthRoleGrantPermissionRequest>,
        reads::<LockRequest>,
        reads::<CampaignRequest>,
        reads::<ProclaimRequest>,
    ];
    all[usize::from(choice) % all.len()](body);
}

fn reads<M>(body: &[u8])
where
    M: Message + Default + PartialEq + Serialize + DeserializeOwned + Debug,
{
    let Ok(message) = gateway::decode::<M>(body) else {
        return;
    };
    let wire = M::decode(&*message.encode_to_vec());
    let same = wire.is_ok_and(|wire| wire == message);
    assert!(same, "gRPC would not take {message:?}");
    let written = serde_json::to_vec(&message).expect("what was read can be written");
    let again = gateway::decode::<M>(&written);
    let same = again.is_ok_and(|again| again == message);
    assert!(same, "{message:?} reads otherwise when written");
}

/// Names of fields; most of them of several messages.
const FIELDS: [&str; 48] = [
    "key",
    "range_end",
    "rangeEnd",
    "value",
    "lease",
    "limit",
    "revision",
    "sort_order",
    "sortTarget",
    "serializable",
    "keys_only",
    "count_only",
    "min_mod_revision",
    "maxCreateRevision",
    "prev_kv",
    "prevKv",
    "ignore_value",
    "ignoreLease",
    "compare",
    "success",
    "failure",
    "request_range",
    "requestPut",
    "request_put",
    "request_delete_range",
    "request_txn",
    "requestTxn",
    "result",
    "target",
    "version",
    "create_revision",
    "mod_revision",
    "physical",
    "create_request",
    "cancel_request",
    "progress_request",
    "start_revision",
    "filters",
    "watch_id",
    "TTL",
    "ID",
    "name",
    "peerURLs",
    "action",
    "alarm",
    "options",
    "perm",
    "leader",
];

fn object(input: &mut Input<'_>, body: &mut String, depth: u8) {
    body.push('{');
    for item in 0..input.byte() % ITEMS_MAX {
        if item > 0 {
            body.push(',');
        }
        let name = usize::from(input.byte()) % (FIELDS.len() + 1);
        let name = FIELDS.get(name).copied().unwrap_or("unknown");
        body.push_str(&format!("\"{name}\":"));
        value(input, body, depth);
    }
    body.push('}');
}

fn value(input: &mut Input<'_>, body: &mut String, depth: u8) {
    match input.byte() % 16 {
        0..4 if depth < DEPTH_MAX => object(input, body, depth + 1),
        4..7 if depth < DEPTH_MAX => {
            body.push('[');
            for item in 0..input.byte() % ITEMS_MAX {
                if item > 0 {
                    body.push(',');
                }
                value(input, body, depth + 1);
            }
            body.push(']');
        }
        7 => body.push_str("null"),
        8 => body.push_str("true"),
        9 => body.push_str(&input.extreme().to_string()),
        10 => body.push_str(&format!("\"{}\"", input.extreme().cast_signed())),
        11 => body.push_str(&format!(
            "-{}.{}e{}",
            input.byte(),
            input.byte(),
            input.byte()
        )),
        12 => {
            let names = [
                "ASCEND", "DESCEND", "VALUE", "EQUAL", "NOSPACE", "NOPUT", "LEASE",
            ];
            let name = names[usize::from(input.byte()) % names.len()];
            body.push_str(&format!("\"{name}\""));
        }
        13 => body.push_str(&input.byte().to_string()),
        14 => body.push_str(&String::from_utf8_lossy(input.bytes(4))),
        _ => {
            let text = [
                "", "YQ==", "YQ", "Yg==", "AA==", "/w==", "_w", "?", "a\\u0000", "\\ud800",
            ];
            let text = text[usize::from(input.byte()) % text.len()];
            body.push_str(&format!("\"{text}\""));
        }
    }
}
