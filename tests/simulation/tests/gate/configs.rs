//! Broken settings.

use quorate_proto::etcdserverpb::RequestOp;
use quorate_recipes::config::Expect;
use quorate_recipes::keys::{KeyRange, Revision};
use quorate_recipes::kit::{Effect, Effected};
use quorate_recipes::store::ops;
use quorate_recipes::{Error, Result, Session};
use quorate_simulation::scenarios::Config;
use quorate_simulation::{History, Player, Scenario};

use super::mutants::is_found;

/// The key and its history, as they are written.
fn puts(namespace: &str, key: &str, version: u64, number: i64) -> Vec<RequestOp> {
    let by = r#"{"host":"h","pid":1}"#;
    let record = format!(r#"{{"v":1,"version":{version},"value":{number},"by":{by},"at_ms":0}}"#);
    let prefix = format!("quorate/config/{namespace}");
    let entry = |version: u64| format!("{prefix}/history/{key}/{version:016x}");
    let value = format!("{prefix}/live/{key}/value");
    let put = |key| ops::put(key, record.clone().into(), None);
    let old = KeyRange {
        start: entry(0).into(),
        // Four are kept.
        end: entry(version.saturating_sub(3)).into(),
    };
    vec![put(value), put(entry(version)), ops::delete(old)]
}

async fn write(session: &Session, then: Vec<RequestOp>) -> Result<Revision> {
    let effect = Effect {
        then,
        ..Effect::default()
    };
    match session.actor().apply(effect).await? {
        Effected::Applied { revision, .. } => Ok(revision),
        Effected::Refused { .. } => Err(Error::Conflict),
    }
}

/// Looks at what is there, and publishes if that is what was expected: somebody else may have been faster.
struct NoCompare(Config);

impl Scenario for NoCompare {
    const NAME: &'static str = "a publication that compares nothing";

    fn new() -> Self {
        Self(Config::new())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let publish = |number, expect| async move {
            let now = player.client().config::<i64>("app/n").get().await?;
            let (at, version) = now.map_or((Revision(0), 0), |now| (now.revision, now.version));
            let admitted = match expect {
                Expect::Revision(revision) => revision == at,
                Expect::Absent => at == Revision(0),
                Expect::Any => true,
            };
            if !admitted {
                return Err(Error::Conflict);
            }
            let at = write(session, puts("app", "n", version + 1, number)).await?;
            Ok((at.0, version + 1))
        };
        self.0.publish(player, publish).await
    }

    fn may_remain(&self, key: &str) -> bool {
        self.0.may_remain(key)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn a_publication_that_compares_nothing_is_found() {
    is_found::<NoCompare>("replaced what was published at");
}

/// Publishes the keys of a group one after the other. Followers, which see that, tell.
struct KeyByKey(Config);

impl Scenario for KeyByKey {
    const NAME: &'static str = "a group published key by key";

    fn new() -> Self {
        Self(Config::new())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let publish = |number| async move {
            write(session, puts("pair", "a", 1, number)).await?;
            let at = write(session, puts("pair", "b", 1, number)).await?;
            Ok(at.0)
        };
        self.0.publish_pair(player, publish).await
    }

    async fn attend(&self, player: &Player) {
        self.0.attend(player).await;
    }

    fn may_remain(&self, key: &str) -> bool {
        self.0.may_remain(key)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn a_group_published_key_by_key_is_found() {
    is_found::<KeyByKey>("torn");
}
