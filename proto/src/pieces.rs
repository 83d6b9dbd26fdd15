//! Watch answers in pieces, for clients that take them that way; used by whoever answers watches.

use prost::Message;

use crate::etcdserverpb::WatchResponse;

impl WatchResponse {
    /// Cuts an answer above `limit` bytes into several, all but the last marked; one event is never cut.
    #[must_use]
    pub fn into_pieces(self, limit: usize) -> Vec<Self> {
        if self.events.len() < 2 || self.encoded_len() < limit {
            return vec![self];
        }
        let WatchResponse { events, .. } = self;
        let head = WatchResponse {
            events: Vec::new(),
            fragment: true,
            ..self
        };
        let head_bytes = head.encoded_len();
        let (mut pieces, mut piece, mut bytes) = (Vec::new(), head.clone(), head_bytes);
        for event in events {
            // Tag and length of a repeated field take at most 6 bytes here.
            let event_bytes = event.encoded_len() + 6;
            if !piece.events.is_empty() && bytes + event_bytes >= limit {
                pieces.push(std::mem::replace(&mut piece, head.clone()));
                bytes = head_bytes;
            }
            bytes += event_bytes;
            piece.events.push(event);
        }
        pieces.push(WatchResponse {
            fragment: false,
            ..piece
        });
        pieces
    }
}

#[cfg(test)]
mod tests {
    use crate::mvccpb::{Event, KeyValue};

    use super::*;

    #[test]
    fn a_large_answer_is_cut_between_events_and_only_the_last_piece_is_not_marked() {
        let event = |byte: u8| Event {
            kv: Some(KeyValue {
                value: vec![byte; 100].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = WatchResponse {
            watch_id: 7,
            events: (0..10).map(event).collect(),
            ..Default::default()
        };
        let pieces = answer.clone().into_pieces(350);
        assert!(pieces.len() > 3);
        let marks: Vec<bool> = pieces.iter().map(|piece| piece.fragment).collect();
        assert!(!marks[marks.len() - 1] && marks[..marks.len() - 1].iter().all(|&mark| mark));
        assert!(
            pieces
                .iter()
                .all(|piece| piece.encoded_len() < 350 && piece.watch_id == 7)
        );
        let joined: Vec<Event> = pieces.into_iter().flat_map(|piece| piece.events).collect();
        assert_eq!(joined, answer.events);
        assert_eq!(answer.clone().into_pieces(1_000_000), [answer]);
    }
}
