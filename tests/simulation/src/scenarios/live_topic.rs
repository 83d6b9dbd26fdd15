//! Live topics: what is published comes once, whoever listens hears all of it in order from then on, or is told
//! how much was missed, and that only when the store could not tell any more.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::topic::{LiveTopic as Handle, ReadError};
use quorate_recipes::{Result, Session};
use serde_json::Value;

use crate::effects::Effects;
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// The only key of the topic.
pub const LAST: &str = "quorate/live-topic/t/last";

/// What a listener was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// A message: its number, its revision, and how many came before it.
    Message(i64, i64, u64),
    /// So many were missed behind the one of this revision, and it goes on behind that one.
    Lagged {
        /// How many.
        skipped: Option<u64>,
        /// The revision of the last one before.
        from: i64,
        /// The revision behind which it goes on.
        to: i64,
    },
}

/// What one subscription was given, from its beginning.
#[derive(Debug, Clone)]
struct Listening {
    /// The store's revision when it was asked for.
    asked: i64,
    /// The store's revision when it was ready.
    ready: i64,
    heard: Vec<(Instant, Heard)>,
    /// It lasted to the end.
    lasts: bool,
}

/// Clients that publish numbers and listen.
#[derive(Debug, Default)]
pub struct LiveTopic {
    published: Effects<i64>,
    listening: RefCell<BTreeMap<usize, Vec<Listening>>>,
    /// The clients have done their last step.
    ended: Cell<bool>,
}

/// The topic of the worlds.
#[must_use]
pub fn live_topic_of(player: &Player) -> Handle<i64> {
    player.client().live_topic("t")
}

impl LiveTopic {
    /// Publishes a number that no other has. `publish` gives the revision.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn publish<F>(&self, player: &Player, publish: impl FnOnce(i64) -> F) -> Result<()>
    where
        F: Future<Output = Result<i64>>,
    {
        self.published.attempt(player, publish).await.map(drop)
    }

    /// Publishes as the dice say.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn publish_some(&self, player: &Player, session: &Session) -> Result<()> {
        for _ in 0..=player.below(4) {
            let topic = live_topic_of(player);
            let publish = |number| async move { Ok(topic.publish(session, &number).await?.0) };
            self.publish(player, publish).await?;
        }
        Ok(())
    }

    /// Notes that a client listens from now on, which it had asked for at this revision of the store.
    pub fn begins(&self, player: &Player, asked: i64) {
        let mut listening = self.listening.borrow_mut();
        let all = listening.entry(player.index()).or_default();
        if let Some(before) = all.last_mut() {
            before.lasts = false;
        }
        all.push(Listening {
            asked,
            ready: player.revision().0,
            heard: Vec::new(),
            lasts: true,
        });
    }

    /// Notes what a client was given.
    pub fn hears(&self, player: &Player, heard: Heard) {
        player.note(format!("{heard:?}"));
        let mut listening = self.listening.borrow_mut();
        let last = listening
            .get_mut(&player.index())
            .and_then(|all| all.last_mut());
        let last = last.expect("it listens");
        last.heard.push((SystemClock.now(), heard));
    }

    /// Listens for as long as the world lasts, at times slowly, at times anew. What `note` makes of what was
    /// given is noted.
    ///
    /// # Panics
    /// When listening ends.
    pub async fn listen(&self, player: &Player, mut note: impl FnMut(Heard) -> Vec<Heard>) {
        loop {
            let asked = player.revision().0;
            let messages = live_topic_of(player).subscribe().await;
            let mut messages = messages.expect("nothing is refused for good");
            self.begins(player, asked);
            loop {
                let heard = match messages.next().await {
                    Ok(message) => Heard::Message(
                        message.value,
                        message.position.revision().0,
                        message.offset.unwrap_or(u64::MAX),
                    ),
                    Err(ReadError::Lagged(lagged)) => Heard::Lagged {
                        skipped: lagged.skipped,
                        from: lagged.from.revision().0,
                        to: lagged.to.revision().0,
                    },
                    Err(error) => panic!("{error}"),
                };
                for heard in note(heard) {
                    self.hears(player, heard);
                }
                if !self.ended.get() {
                    if player.one_in(8) {
                        player.pause(6_000).await;
                    }
                    if player.one_in(40) {
                        break;
                    }
                }
            }
        }
    }
}

/// All that was published.
struct Log {
    /// Numbers and revisions.
    messages: Vec<(i64, i64)>,
    /// When each was.
    times: Vec<Instant>,
}

impl Log {
    fn of(history: &History) -> std::result::Result<Self, String> {
        let (mut messages, mut times) = (Vec::new(), Vec::new());
        for (commit, change) in history
            .changes()
            .filter(|(_, change)| key_of(change) == LAST)
        {
            times.push(commit.at);
            let kv = change.kv.as_ref();
            let value = kv.and_then(|kv| serde_json::from_slice::<Value>(&kv.value).ok());
            let number = value.and_then(|value| value["value"].as_i64());
            match number.filter(|_| change.r#type() == EventType::Put) {
                Some(number) => messages.push((number, commit.revision.0)),
                None => return Err(format!("no message at revision {}", commit.revision)),
            }
        }
        Ok(Self { messages, times })
    }

    /// How many were published up to a revision.
    fn until(&self, revision: i64) -> usize {
        self.messages.partition_point(|(_, at)| *at <= revision)
    }

    fn judge(&self, listening: &Listening, resyncs: &[Instant]) -> Result<(), String> {
        // Where it begins lies between when it was asked for and when it was ready.
        let (least, most) = (self.until(listening.asked), self.until(listening.ready));
        let mut next: Option<usize> = None;
        for (at, heard) in &listening.heard {
            let fits = |place: usize| match next {
                Some(next) => place == next,
                None => (least..=most).contains(&place),
            };
            let broken = |what: &str| {
                let range = next.map_or((least, most), |next| (next, next));
                Err(format!("{heard:?} {what}, and {range:?} was to come"))
            };
            match *heard {
                Heard::Message(number, revision, offset) => {
                    let place = usize::try_from(offset).unwrap_or(usize::MAX);
                    if self.messages.get(place) != Some(&(number, revision)) {
                        return broken("was not published so");
                    }
                    if !fits(place) {
                        return broken("comes in the wrong place");
                    }
                    next = Some(place + 1);
                }
                Heard::Lagged { skipped, from, to } => {
                    let place = self.until(from);
                    let skipped = skipped.and_then(|skipped| usize::try_from(skipped).ok());
                    let Some(skipped) = skipped.filter(|skipped| *skipped > 0) else {
                        return broken("tells of nothing");
                    };
                    if !fits(place) || self.until(to) != place + skipped {
                        return broken("is not what was missed");
                    }
                    // Of what was compacted it may have been without messages, and some came until it looked.
                    let since = place.checked_sub(1).map(|before| self.times[before]);
                    let since = |resync: &&Instant| since.is_none_or(|since| since <= **resync);
                    if !resyncs.iter().filter(since).any(|resync| resync <= at) {
                        return broken("was still there to be told");
                    }
                    next = Some(place + skipped);
                }
            }
        }
        let least = next.unwrap_or(most);
        match listening.lasts && least < self.messages.len() {
            true => Err(format!("{:?} never came", self.messages[least])),
            false => Ok(()),
        }
    }
}

impl Scenario for LiveTopic {
    const NAME: &'static str = "live_topic";

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        self.publish_some(player, session).await
    }

    async fn attend(&self, player: &Player) {
        self.listen(player, |heard| vec![heard]).await;
    }

    fn end(&self) {
        self.ended.set(true);
    }

    fn may_remain(&self, key: &str) -> bool {
        key == LAST
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        let log = Log::of(history)?;
        self.published.check(log.messages.iter().copied())?;
        for (player, listening) in &*self.listening.borrow() {
            for listening in listening {
                let judged = log.judge(listening, &history.losses.resyncs);
                judged.map_err(|broken| {
                    format!(
                        "player {player}, listening since {}: {broken}",
                        listening.ready
                    )
                })?;
            }
        }
        Ok(())
    }
}
