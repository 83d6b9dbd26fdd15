//! Records of table `events`. The events of one log entry are stored together: most are written once,
//! read never and removed in order, so each pair of the store that is saved counts.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{decode_varint, encode_varint};

use super::record::read;
use super::{FORMAT, Revision, event_key};
use crate::storage::kv::KvError;

/// First byte of a record of several events. One that begins with [`FORMAT`] has a single event.
const SEVERAL: u8 = 2;

/// Events in one record: whoever wants one of them reads all.
const EVENTS_MAX: usize = 64;
/// Bytes in one record, unless a single event is larger.
const RECORD_BYTES_MAX: usize = 4 << 10;
/// What an event takes beside its key at most.
const EVENT_BYTES: usize = 64;

/// The key was deleted; otherwise put.
const DELETED: u64 = 1;
/// The revision of the replaced pair follows.
const REPLACED: u64 = 1 << 1;
/// The revision of the pair visible before the transaction is another one, and follows.
const PREVIOUS: u64 = 1 << 2;
/// No pair was visible before the transaction, although one was replaced.
const NO_PREVIOUS: u64 = 1 << 3;

/// An event as stored: what happened to which key. The pair a put made is in `keys` or `versions`
/// under the event's revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// Whether the key was deleted; otherwise put.
    pub deleted: bool,
    /// The user key.
    pub key: Bytes,
    /// Revision of the pair this event ended, if there was one.
    pub replaced: Option<Revision>,
    /// Revision of the pair visible before the event's whole transaction, if there was one. Differs
    /// from `replaced` only if the transaction changed the key twice.
    pub previous: Option<Revision>,
}

/// An event and when it was.
pub type StoredEvent = (Revision, EventRecord);

/// Stored keys and records of some events, which are in order and follow all that are stored. A
/// record's key has the revision of its first event.
pub fn encode_events(events: &[StoredEvent]) -> impl Iterator<Item = (Bytes, Bytes)> {
    let bytes = events
        .iter()
        .map(|(_, event)| EVENT_BYTES + event.key.len());
    let bytes = bytes.take(EVENTS_MAX).sum::<usize>().min(RECORD_BYTES_MAX);
    let (mut rest, mut scratch) = (events, Vec::with_capacity(1 + bytes));
    std::iter::from_fn(move || {
        let (first, _) = rest.first()?;
        let (mut record, mut last, mut count) = (std::mem::take(&mut scratch), *first, 0);
        record.clear();
        record.put_u8(SEVERAL);
        for (revision, event) in rest.iter().take(EVENTS_MAX) {
            let bytes = record.len() + EVENT_BYTES + event.key.len();
            if count > 0 && bytes > RECORD_BYTES_MAX {
                break;
            }
            encode_event(&mut record, last, *revision, event);
            (last, count) = (*revision, count + 1);
        }
        rest = &rest[count..];
        let stored = (event_key(*first), Bytes::copy_from_slice(&record));
        scratch = record;
        Some(stored)
    })
}

fn encode_event(record: &mut Vec<u8>, last: Revision, revision: Revision, event: &EventRecord) {
    let EventRecord {
        deleted,
        key,
        replaced,
        previous,
    } = event;
    let mut put = |number: i64| encode_varint(number.cast_unsigned(), record);
    let mut flags = if *deleted { DELETED } else { 0 };
    if replaced.is_some() {
        flags |= REPLACED;
    }
    if previous != replaced {
        flags |= if previous.is_some() {
            PREVIOUS
        } else {
            NO_PREVIOUS
        };
    }
    put(revision.main - last.main);
    put(revision.sub);
    put(flags.cast_signed());
    let before = previous.filter(|_| flags & PREVIOUS != 0);
    for Revision { main, sub } in [*replaced, before].into_iter().flatten() {
        put(main);
        put(sub);
    }
    encode_varint(key.len() as u64, record);
    record.put_slice(key);
}

/// The events of the record under the revision `first`, in order, at least one. Their keys share its
/// memory.
///
/// # Errors
///
/// [`KvError::Corrupt`].
pub fn decode_events(first: Revision, mut record: Bytes) -> Result<Vec<StoredEvent>, KvError> {
    let bad = |cause: String| KvError::corrupt(format!("events from {first}: {cause}"));
    match record.first() {
        Some(&FORMAT) => return Ok(vec![(first, decode_single(record)?)]),
        Some(&SEVERAL) => record.advance(1),
        Some(other) => return Err(bad(format!("unknown format {other}"))),
        None => return Err(bad("empty".to_owned())),
    }
    let mut events: Vec<StoredEvent> = Vec::new();
    while events.is_empty() || record.has_remaining() {
        let last = events.last().map(|(revision, _)| *revision);
        let event = decode_event(&mut record, last.unwrap_or(first)).map_err(bad)?;
        if last.map_or(event.0 != first, |last| event.0 <= last) {
            return Err(bad(format!("{} out of order", event.0)));
        }
        if events.len() == EVENTS_MAX {
            return Err(bad(format!("more than {EVENTS_MAX}")));
        }
        events.push(event);
    }
    Ok(events)
}

fn decode_event(record: &mut Bytes, last: Revision) -> Result<StoredEvent, String> {
    let main = number(record)?.checked_add(last.main);
    let main = main.ok_or("a revision beyond all")?;
    let sub = number(record)?;
    let flags = number(record)?.cast_unsigned();
    let both = PREVIOUS | NO_PREVIOUS;
    if flags > DELETED | REPLACED | both || flags & both == both {
        return Err(format!("unknown kind {flags}"));
    }
    let mut revision_if = |flag| -> Result<_, String> {
        let is_there = flags & flag != 0;
        let found = is_there.then(|| Ok(Revision::new(number(record)?, number(record)?)));
        found.transpose()
    };
    let replaced = revision_if(REPLACED)?;
    let previous = match revision_if(PREVIOUS)? {
        None if flags & NO_PREVIOUS == 0 => replaced,
        previous => previous,
    };
    let length = usize::try_from(number(record)?).unwrap_or(usize::MAX);
    if length > record.len() {
        return Err("too short for a key".to_owned());
    }
    let event = EventRecord {
        deleted: flags & DELETED != 0,
        key: record.split_to(length),
        replaced,
        previous,
    };
    Ok((Revision::new(main, sub), event))
}

fn number(record: &mut Bytes) -> Result<i64, String> {
    let number = decode_varint(record).map_err(|_| "too short")?;
    Ok(number.cast_signed())
}

/// Reads a record of the first format: one event, in which 0 stands for no revision.
fn decode_single(record: Bytes) -> Result<EventRecord, KvError> {
    let (
        [
            kind,
            replaced_main,
            replaced_sub,
            previous_main,
            previous_sub,
        ],
        key,
    ) = read(record, "event")?;
    let deleted = match kind {
        0 => false,
        1 => true,
        _ => return Err(KvError::corrupt(format!("event: unknown kind {kind}"))),
    };
    let some = |main, sub| (main != 0).then(|| Revision::new(main, sub));
    Ok(EventRecord {
        deleted,
        key,
        replaced: some(replaced_main, replaced_sub),
        previous: some(previous_main, previous_sub),
    })
}
