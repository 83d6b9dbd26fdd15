//! Queues: pushes, takes and ends of items, dropped everywhere.

use std::time::Duration;

use quorate_recipes::queue::{Delivery, Nack, Queue};
use quorate_recipes::{Client, Session};

use super::{Outcome, QUIET, World, at_every_call, in_time};

const DURABLE: [&str; 2] = ["quorate/queue/x/head", "quorate/queue/x/settings"];

/// How the queue of a world is used by all who are in it. In strict order the first to be taken is the first item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Strict,
}

impl Form {
    fn queue(self, client: &Client) -> Queue<u32> {
        match self {
            Self::Plain => queue(client),
            Self::Strict => queue(client).strict(),
        }
    }

    async fn take(
        self,
        client: &Client,
        session: &Session,
    ) -> Result<Delivery<u32>, quorate_recipes::Error> {
        let delivery = self.queue(client).consumer(session).await?.pop().await?;
        assert!(self == Self::Plain || *delivery.value() == 1);
        Ok(delivery)
    }
}

fn queue(client: &Client) -> Queue<u32> {
    client.queue("x").with_segment_items(2)
}

async fn take(client: &Client, session: &Session) -> Result<Delivery<u32>, quorate_recipes::Error> {
    Form::Plain.take(client, session).await
}

/// Does what there is in the queue, and counts how often each item was done.
async fn drain(client: &Client, session: &Session) -> Outcome {
    drain_of(Form::Plain, client, session).await
}

async fn drain_of(form: Form, client: &Client, session: &Session) -> Outcome {
    let consumer = form.queue(client).consumer(session).await?;
    loop {
        let status = form.queue(client).status().await?;
        if (status.items, status.delayed) == (0, 0) {
            return Ok(());
        }
        let popped = tokio::time::timeout(Duration::from_secs(5), consumer.pop()).await;
        if let Ok(delivery) = popped {
            let delivery = delivery?;
            let txn = client.txn().put(format!("done/{}", delivery.value()), "");
            delivery.ack_with(txn).await?;
        }
    }
}

/// Drops `work` at each of its calls, with items 1 to 3 in the queue, then has somebody else do what is left.
/// Each of those is done once, or put aside; so is one more if `work` pushes one, or not at all if it was
/// dropped. Those that are done are done in their order, if that is strict.
async fn dropped_everywhere(
    form: Form,
    work: impl AsyncFn(&Client, &Session) -> Outcome,
    pushes: bool,
    least_calls: usize,
) {
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = &world.other;
        form.queue(client)
            .push_all(session, &[1, 2, 3])
            .await
            .unwrap();
        let user = work(&world.user.0, &world.user.1);
        let stopped = world.stop(at, user).await;
        let (reached, finished) = (stopped.held.is_reached(), stopped.finished);
        stopped.held.release();
        in_time(at, "the other one", drain_of(form, client, session)).await;
        tokio::time::sleep(QUIET).await;
        in_time(at, "the other one", drain_of(form, client, session)).await;
        let dead = form.queue(client).dead_letters(9).await.unwrap();
        for letter in &dead {
            assert!(form.queue(client).discard(&letter.id).await.unwrap());
        }
        let mut ends = dead.len();
        let mut in_order = Vec::new();
        for number in 1..=9 {
            let done = client.get(format!("done/{number}")).await.unwrap();
            ends += usize::from(done.is_some());
            in_order.extend(done.iter().map(|done| done.mod_revision));
            // Once, or not at all.
            assert!(
                done.is_none_or(|done| done.version == 1),
                "{at}: item {number}"
            );
        }
        let may_overtake = form == Form::Plain;
        assert!(may_overtake || in_order.is_sorted(), "{at}: {in_order:?}");
        let expected = match (pushes, finished) {
            (false, _) => 3..=3,
            (true, false) => 3..=4,
            (true, true) => 4..=4,
        };
        assert!(expected.contains(&ends), "{at}: {ends}");
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&DURABLE), [""; 0], "{at}");
        reached
    })
    .await;
    assert!(visited >= 4 * least_calls, "{visited} calls only");
}

#[tokio::test(start_paused = true)]
async fn an_item_taken_and_done() {
    for form in [Form::Plain, Form::Strict] {
        let work = async |client: &Client, session: &Session| {
            let delivery = form.take(client, session).await?;
            let txn = client.txn().put(format!("done/{}", delivery.value()), "");
            delivery.ack_with(txn).await.map(drop).map_err(Into::into)
        };
        dropped_everywhere(form, work, false, 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_taken_and_given_back() {
    for form in [Form::Plain, Form::Strict] {
        for how in [
            Nack::Now,
            Nack::After(Duration::from_secs(1)),
            Nack::Dead("no".to_owned()),
        ] {
            let work = async |client: &Client, session: &Session| {
                form.take(client, session).await?.nack(how.clone()).await
            };
            dropped_everywhere(form, work, false, 6).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_pushed() {
    for form in [Form::Plain, Form::Strict] {
        let push = async |client: &Client, session: &Session| {
            form.queue(client).push(session, &4).await.map(drop)
        };
        dropped_everywhere(form, push, true, 2).await;
    }
    let unique = async |client: &Client, session: &Session| {
        let pushed = queue(client).push_unique(session, "four", &4).await;
        pushed.map(|id| assert!(id.is_some()))
    };
    dropped_everywhere(Form::Plain, unique, true, 2).await;
    let later = async |client: &Client, session: &Session| {
        let pause = Duration::from_millis(10);
        queue(client).push_after(session, pause, &4).await.map(drop)
    };
    dropped_everywhere(Form::Plain, later, true, 2).await;
}

/// Put aside, and put back by one who goes.
#[tokio::test(start_paused = true)]
async fn an_item_put_back() {
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = &world.other;
        queue(client).push(session, &1).await.unwrap();
        let delivery = take(client, session).await.unwrap();
        let id = delivery.id().clone();
        delivery.nack(Nack::Dead(String::new())).await.unwrap();
        let user = async {
            let back = queue(&world.user.0).redrive(&world.user.1, &id).await?;
            assert!(back.is_some());
            Ok(())
        };
        let stopped = world.stop(at, user).await;
        let reached = stopped.held.is_reached();
        stopped.held.release();
        tokio::time::sleep(QUIET).await;
        let status = queue(client).status().await.unwrap();
        assert_eq!(status.items + status.dead, 1, "{at}: at one place");
        reached
    })
    .await;
    assert!(visited >= 4 * 2, "{visited} calls only");
}

/// Dropped while it waits for room, too: nobody stands behind one who has gone.
#[tokio::test(start_paused = true)]
async fn an_item_pushed_when_there_is_room() {
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = &world.other;
        let limited = queue(client).bounded(1);
        limited.push(session, &1).await.unwrap();
        let user = async {
            let (client, session) = &world.user;
            queue(client).bounded(1).push(session, &4).await.map(drop)
        };
        let makes_room = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            take(client, session).await.unwrap().ack().await.unwrap();
            std::future::pending::<()>().await;
        };
        let stopped = tokio::select! {
            stopped = world.stop(at, user) => stopped,
            () = makes_room => unreachable!("it waits on"),
        };
        let reached = stopped.held.is_reached();
        stopped.held.release();
        in_time(at, "the other one", drain(client, session)).await;
        let next = async {
            limited.push(session, &5).await?;
            drain(client, session).await
        };
        in_time(at, "the next one", next).await;
        tokio::time::sleep(QUIET).await;
        in_time(at, "the next one", drain(client, session)).await;
        tokio::time::sleep(QUIET).await;
        let durable = [DURABLE[0], DURABLE[1], "quorate/queue/x/bound"];
        assert_eq!(world.left(&durable), [""; 0], "{at}");
        reached
    })
    .await;
    assert!(visited >= 4 * 5, "{visited} calls only");
}
