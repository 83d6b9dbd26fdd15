//! A snapshot on its way in: whatever comes instead of the frames that were sent, the receiver does
//! not panic, and what it lets through is what was sent. (A sender that lies with every checksum right
//! is not told apart, and need not be: it must only not break the receiver.)

use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use quorate_core::storage::kv::{Direction, Kv, MemKv, View, WriteBatch};
use quorate_core::storage::snapshot::{Receiver, Sender, SnapshotError, Staged, Stores};

use crate::Input;

/// Frames, and a change of them, at most.
const STEPS_MAX: usize = 8;

/// Bytes of a frame before its body: kind, sequence, checksum.
const HEAD_BYTES: usize = 13;

type Pairs = Vec<(Bytes, Bytes)>;

/// One run.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 3 {
        0 => arbitrary(&mut input),
        1 => checksummed(&mut input),
        _ => damaged(&mut input),
    }
}

fn receiver(stores: &Stores) -> Receiver {
    stores.stage().expect("nothing else is being received")
}

fn pairs(view: &dyn View) -> Pairs {
    let all = view.range(Bound::Unbounded, Bound::Unbounded, Direction::Forward);
    all.collect::<Result<_, _>>().expect("memory does not fail")
}

/// Frames of any bytes.
fn arbitrary(input: &mut Input<'_>) {
    let stores = Stores::memory();
    let mut receiver = receiver(&stores);
    while !input.is_empty() {
        if receiver.receive(input.piece()).is_err() {
            return;
        }
    }
    // Only frames with right checksums come this far, and an end needs one.
    drop(receiver.finish(WriteBatch::new()));
}

fn frame(kind: u8, sequence: u64, body: &[u8]) -> Vec<u8> {
    let checksum = crc32c::crc32c(&[kind]);
    let checksum = crc32c::crc32c_append(checksum, &sequence.to_be_bytes());
    let checksum = crc32c::crc32c_append(checksum, body);
    let head: [&[u8]; 3] = [&[kind], &sequence.to_be_bytes(), &checksum.to_be_bytes()];
    [head.concat().as_slice(), body].concat()
}

/// Frames whose checksums are right, with any content.
fn checksummed(input: &mut Input<'_>) {
    let stores = Stores::memory();
    let mut receiver = receiver(&stores);
    let (mut sent, mut pairs_said, mut next) = (Vec::new(), 0, 0);
    while !input.is_empty() {
        let (kind, body) = (input.byte(), input.piece());
        let sequence = if kind >= 0x80 { input.extreme() } else { next };
        if receiver.receive(&frame(kind % 4, sequence, body)).is_err() {
            return;
        }
        next += 1;
        sent.extend_from_slice(body);
        pairs_said = u64::from(input.byte());
    }
    let mut end = pairs_said.to_be_bytes().to_vec();
    end.extend((sent.len() as u64).to_be_bytes());
    end.extend(crc32c::crc32c(&sent).to_be_bytes());
    if receiver.receive(&frame(2, next, &end)).is_err() {
        return;
    }
    let staged = receiver.finish(WriteBatch::new());
    let found = pairs(&*staged.expect("the end came").view());
    assert_eq!(found.len() as u64, pairs_said);
    assert_eq!(body_of(&found), sent, "what was sent is what is there");
}

fn body_of(pairs: &Pairs) -> Vec<u8> {
    let length = |bytes: &Bytes| u32::try_from(bytes.len()).expect("short").to_be_bytes();
    let mut body = Vec::new();
    for (key, value) in pairs {
        body.extend(length(key));
        body.extend(length(value));
        body.extend_from_slice(key);
        body.extend_from_slice(value);
    }
    body
}

/// A store, and its frames cut into more than one.
struct Sample {
    pairs: Pairs,
    frames: Vec<Vec<u8>>,
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let kv = MemKv::new();
        let mut batch = WriteBatch::new();
        for number in 0..12_u8 {
            batch.put(vec![1, number], vec![number; usize::from(number)]);
        }
        kv.commit(batch).expect("memory does not fail");
        let mut sender = Sender::new(kv.view());
        let mut whole = Vec::new();
        while let Some(frame) = sender.next_frame().expect("memory does not fail") {
            whole.push(frame);
        }
        // So small a store is one frame; a sender may cut anywhere.
        let (end, data) = whole.split_last().expect("an end at least");
        let bodies: Vec<u8> = data
            .iter()
            .flat_map(|frame| frame[HEAD_BYTES..].to_vec())
            .collect();
        let mut frames: Vec<_> = (0..)
            .zip(bodies.chunks(60))
            .map(|(sequence, body)| frame(1, sequence, body))
            .collect();
        frames.push(frame(2, frames.len() as u64, &end[HEAD_BYTES..]));
        Sample {
            pairs: pairs(&*kv.view()),
            frames,
        }
    })
}

/// The frames of a real snapshot, changed on their way.
fn damaged(input: &mut Input<'_>) {
    let Sample {
        pairs: sent,
        frames,
    } = sample();
    let mut frames = frames.clone();
    for _ in 0..STEPS_MAX {
        if input.is_empty() || frames.is_empty() {
            break;
        }
        damage(input, &mut frames);
    }
    let stores = Stores::memory();
    let received = receive(&stores, &frames);
    if let Ok(staged) = received {
        assert_eq!(
            pairs(&*staged.view()),
            *sent,
            "what is installed is what was sent"
        );
        let adopted = stores.adopt(staged).expect("memory does not fail");
        assert_eq!(pairs(&*adopted.view()), *sent);
    } else {
        drop(received);
        // Nothing of it stays in the way of the next one.
        let staged = receive(&stores, &sample().frames).expect("an unharmed snapshot");
        drop::<Arc<dyn Kv>>(stores.adopt(staged).expect("memory does not fail"));
    }
}

fn receive(stores: &Stores, frames: &[Vec<u8>]) -> Result<Staged, SnapshotError> {
    let mut receiver = stores.stage()?;
    for frame in frames {
        receiver.receive(frame)?;
    }
    receiver.finish(WriteBatch::new())
}

fn damage(input: &mut Input<'_>, frames: &mut Vec<Vec<u8>>) {
    let at = input.below(frames.len());
    let length = frames[at].len().max(1);
    match input.byte() % 8 {
        0 => drop(frames.remove(at)),
        1 => {
            let copy = frames[at].clone();
            frames.insert(input.below(frames.len() + 1), copy);
        }
        2 => {
            let other = input.below(frames.len());
            frames.swap(at, other);
        }
        3 => frames[at].truncate(input.below(length)),
        4 => {
            let position = input.below(length);
            let bit = 1 << (input.byte() % 8);
            if let Some(byte) = frames[at].get_mut(position) {
                *byte ^= bit;
            }
        }
        5 => {
            let position = input.below(length);
            let bytes = input.bytes(4);
            for (to, from) in frames[at].iter_mut().skip(position).zip(bytes) {
                *to = *from;
            }
        }
        6 => frames[at].extend_from_slice(input.bytes(4)),
        _ => frames.truncate(at),
    }
}
