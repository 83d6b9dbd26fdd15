//! Answers to requests for progress are not older than the requests.

use std::sync::Arc;

use quorate::proto::etcdserverpb::watch_request::RequestUnion;
use quorate::proto::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};

use super::model::LIMITS;
use super::{common, header};
use crate::proxy::watch::line::NO_WATCH;
use crate::proxy::watch::session::Session;
use crate::proxy::watch::trunk::Common;

fn request(union: RequestUnion) -> WatchRequest {
    WatchRequest {
        request_union: Some(union),
    }
}

fn create(start_revision: i64) -> WatchRequest {
    request(RequestUnion::CreateRequest(WatchCreateRequest {
        key: "a".into(),
        start_revision,
        ..Default::default()
    }))
}

fn progress() -> WatchRequest {
    request(RequestUnion::ProgressRequest(WatchProgressRequest {}))
}

fn answer(watch_id: i64, revision: i64) -> WatchResponse {
    WatchResponse {
        header: Some(header(revision)),
        watch_id,
        ..Default::default()
    }
}

fn created(watch_id: i64, revision: i64) -> WatchResponse {
    WatchResponse {
        created: true,
        ..answer(watch_id, revision)
    }
}

/// Requests for progress among what is sent.
fn asked(requests: impl Iterator<Item = WatchRequest>) -> usize {
    let unions = requests.filter_map(|request| request.request_union);
    unions
        .filter(|union| matches!(union, RequestUnion::ProgressRequest(_)))
        .count()
}

/// A session with one shared watcher.
fn sharing() -> (Arc<Common>, Session) {
    let common = common();
    let mut session = Session::new(1, Arc::clone(&common), LIMITS);
    session.ask(create(0));
    common.lock().open();
    assert_eq!(asked(std::iter::from_fn(|| common.lock().request())), 0);
    common.lock().hear(created(1, 4), true).unwrap();
    let told = session.take().unwrap().expect("an answer");
    assert!(told.created && told.header.unwrap().revision == 4);
    (common, session)
}

fn told(session: &mut Session) -> Option<i64> {
    let told = session.take().unwrap()?;
    assert_eq!(told.watch_id, NO_WATCH);
    Some(told.header.unwrap().revision)
}

#[test]
fn of_shared_watches() {
    let (common, mut session) = sharing();
    let sent = || asked(std::iter::from_fn(|| common.lock().request()));
    let hear = |revision| {
        common
            .lock()
            .hear(answer(NO_WATCH, revision), true)
            .unwrap()
    };
    session.ask(progress());
    assert_eq!(sent(), 1);
    session.ask(progress());
    assert_eq!(sent(), 0, "one is under way at a time");
    hear(5);
    assert_eq!(told(&mut session), None, "that was asked for before");
    assert_eq!(sent(), 1);
    hear(6);
    // On its way to the client when it asks again.
    session.ask(progress());
    assert_eq!(told(&mut session), None, "and so was that");
    assert_eq!(sent(), 1);
    hear(7);
    assert_eq!(told(&mut session), Some(7));
}

#[test]
fn of_a_watch_of_its_own() {
    let (common, mut session) = sharing();
    session.ask(create(2));
    session.reopen_line();
    let sent = |session: &mut Session| asked(std::iter::from_fn(|| session.line().request()));
    assert_eq!(sent(&mut session), 0);
    session.hear(created(1, 4), false).unwrap();
    assert!(session.take().unwrap().expect("an answer").created);
    session.ask_line();
    assert_eq!(sent(&mut session), 1);
    session.ask(progress());
    assert_eq!(sent(&mut session), 0, "one is under way at a time");
    assert_eq!(asked(std::iter::from_fn(|| common.lock().request())), 1);
    common.lock().hear(answer(NO_WATCH, 9), true).unwrap();
    session.hear(answer(NO_WATCH, 5), false).unwrap();
    assert_eq!(told(&mut session), None, "that was asked for before");
    assert_eq!(sent(&mut session), 1);
    session.hear(answer(NO_WATCH, 8), false).unwrap();
    assert_eq!(told(&mut session), Some(8), "the lower one");
}
