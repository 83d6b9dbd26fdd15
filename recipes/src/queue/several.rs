//! Taking from several queues. Under priorities, and inboxes with more than one target.

use futures::FutureExt;
use futures::future::select_all;
use serde::de::DeserializeOwned;

use super::consumer::{Consumer, sooner};
use super::delivery::Delivery;
use super::window::Turn;
use crate::error::{Error, Result};

impl<T: DeserializeOwned + Send + 'static> Consumer<T> {
    /// Takes the next item of any of these, at least one and all of one session, and waits while there is none.
    /// Looks for it from the first on, and if that is `exact`, takes it of the first that has one, although it
    /// would be somebody else's turn there. Returns of which it is.
    ///
    /// # Errors
    /// As [`Consumer::pop`].
    ///
    /// # Cancel safety
    /// As [`Consumer::pop`].
    pub(crate) async fn pop_any(consumers: &[&Self], exact: bool) -> Result<(usize, Delivery<T>)> {
        tokio::select! {
            biased;
            reason = consumers[0].session().lost() => Err(Error::SessionLost(reason)),
            taken = Self::pop_any_while_live(consumers, exact) => taken,
        }
    }

    async fn pop_any_while_live(consumers: &[&Self], exact: bool) -> Result<(usize, Delivery<T>)> {
        let client = consumers[0].session().client();
        let mut news: Vec<_> = consumers.iter().map(|consumer| consumer.news()).collect();
        let mut wants: Vec<_> = consumers.iter().map(|consumer| consumer.want()).collect();
        loop {
            for news in &mut news {
                news.borrow_and_update().check()?;
            }
            let mut until = None;
            // Whatever is before the last that has something is tried for first.
            let last = consumers.iter().rposition(|consumer| consumer.has_some());
            let last = last.filter(|_| exact);
            for ((of, consumer), want) in consumers.iter().enumerate().zip(&mut wants) {
                let turn = match last.is_some_and(|last| of < last) {
                    true => Turn::Anybody,
                    false => Turn::Ranked,
                };
                match consumer.take_free(turn, want).await? {
                    Ok(delivery) => return Ok((of, delivery)),
                    Err(waits) => until = sooner(until, waits.until),
                }
            }
            let any = select_all(news.iter_mut().map(|news| news.changed().boxed()));
            match until {
                Some(until) => drop(client.before(until, any).await),
                None => drop(any.await),
            }
        }
    }
}
