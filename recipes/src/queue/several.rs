//! Taking from several queues of which none comes first. Under inboxes with more than one target.

use futures::FutureExt;
use futures::future::select_all;
use serde::de::DeserializeOwned;

use super::consumer::{Consumer, sooner};
use super::delivery::Delivery;
use super::window::Turn;
use crate::error::{Error, Result};

impl<T: DeserializeOwned + Send + 'static> Consumer<T> {
    /// Takes the next item of any of these, at least one and all of one session, and waits while there is none.
    /// Looks for it from the one at `first` on. Returns of which it is.
    ///
    /// # Errors
    /// As [`Consumer::pop`].
    ///
    /// # Cancel safety
    /// As [`Consumer::pop`].
    pub(crate) async fn pop_any(consumers: &[&Self], first: usize) -> Result<(usize, Delivery<T>)> {
        tokio::select! {
            biased;
            reason = consumers[0].session().lost() => Err(Error::SessionLost(reason)),
            taken = Self::pop_any_while_live(consumers, first) => taken,
        }
    }

    async fn pop_any_while_live(consumers: &[&Self], first: usize) -> Result<(usize, Delivery<T>)> {
        let client = consumers[0].session().client();
        let mut news: Vec<_> = consumers.iter().map(|consumer| consumer.news()).collect();
        loop {
            for news in &mut news {
                news.borrow_and_update().check()?;
            }
            let mut until = None;
            for of in (0..consumers.len()).map(|n| (first + n) % consumers.len()) {
                match consumers[of].take_free(Turn::Ranked).await? {
                    Ok(delivery) => return Ok((of, delivery)),
                    Err(later) => until = sooner(until, later),
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
