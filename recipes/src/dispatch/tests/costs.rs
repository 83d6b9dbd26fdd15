//! What sending and taking cost.

use super::*;
use crate::store::Counting;

/// A dispatcher whose client counts what it asks.
struct Counted {
    counting: Counting<MemStore>,
    session: Session,
    ops: Ops,
}

impl Counted {
    async fn new() -> Self {
        let counting = Counting::new(MemStore::new());
        let client = Client::builder(counting.clone()).seed(1).build();
        let session = client.session().await.unwrap();
        let ops = client.dispatcher("ops");
        Self {
            counting,
            session,
            ops,
        }
    }

    /// The segment that is sent to in the inbox of "a".
    async fn segment(&self) -> u64 {
        let log = self.ops.layout.queue::<()>(&to("a")).log().clone();
        log.head(None).await.unwrap().segment
    }
}

#[tokio::test(start_paused = true)]
async fn sending_again_is_one_transaction() {
    let place = Counted::new().await;
    let send = |ops: Ops, target| {
        let session = &place.session;
        async move { ops.send(session, target, &1).await.unwrap() }
    };
    for target in [to("a"), any("web")] {
        send(place.ops.clone(), target).await;
    }
    let before = place.counting.counts();
    for target in [to("a"), any("web"), to("a")] {
        send(place.ops.clone().max_attempts(2), target).await;
    }
    let used = place.counting.counts() - before;
    assert_eq!((used.txn, used.range), (3, 0), "{used:?}");
}

/// Whose workers keep up: there is never more than one command.
#[tokio::test(start_paused = true)]
async fn an_inbox_that_is_kept_empty_goes_on_to_new_segments() {
    for casts in [false, true] {
        let place = Counted::new().await;
        let inbox = place.ops.inbox(&place.session, [to("a")]).await.unwrap();
        let (most, segments) = match casts {
            false => (300, 1..=1),
            // By chance, about one in 256.
            true => (1_500, 2..=12),
        };
        for n in 0..most {
            match casts {
                false => drop(place.ops.send(&place.session, to("a"), &n).await.unwrap()),
                true => {
                    let all = |_: &Recipient| true;
                    let ops = &place.ops;
                    let cast = ops.send_all(&place.session, all, &n, Sending::new());
                    assert_eq!(cast.await.unwrap().jobs().len(), 1);
                }
            }
            let mut command = soon(inbox.next()).await.unwrap();
            assert_eq!(*command.value(), n);
            command.reply(&n).await.unwrap();
        }
        let segment = place.segment().await;
        assert!(segments.contains(&segment), "casts: {casts}, {segment}");
    }
}

/// Nothing is claimed that is not handed out, and neither target waits for the other to be empty.
#[tokio::test(start_paused = true)]
async fn an_inbox_of_two_targets_claims_one_command_at_a_time() {
    let place = Counted::new().await;
    let targets = [to("a"), any("web")];
    for n in 0..10 {
        for (of, target) in (0..).zip(&targets) {
            let (session, value) = (&place.session, 2 * n + of);
            let sent = place.ops.send(session, target.clone(), &value);
            sent.await.unwrap();
        }
    }
    let inbox = place.ops.inbox(&place.session, targets).await.unwrap();
    let mut taken = Vec::new();
    let mut before = place.counting.counts();
    for n in 0..20 {
        let mut command = soon(inbox.next()).await.unwrap();
        taken.push(*command.value());
        command.reply(&1).await.unwrap();
        if n == 0 {
            before = place.counting.counts();
        }
    }
    let used = place.counting.counts() - before;
    // A claim, a look at the job, that it is delivered, and its end.
    assert_eq!((used.txn, used.range), (4 * 19, 0), "{used:?}");
    assert_eq!(taken, Vec::from_iter(0..20));
}
