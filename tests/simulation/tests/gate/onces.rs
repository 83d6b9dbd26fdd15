//! Broken shared results.

use quorate_proto::etcdserverpb::{RequestOp, TxnRequest};
use quorate_recipes::keys::{Key, KeyRange, KeySpace, Revision};
use quorate_recipes::kit::Contender;
use quorate_recipes::lock::Hold;
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Json, Result, Session};
use quorate_simulation::scenarios::Results;
use quorate_simulation::{History, Player, Scenario};

use super::mutants::is_found;

/// A result that is published if there is none, whether or not it still is its candidate's turn: a copy
/// that comes when the result was taken back long ago publishes it again, without its pieces.
struct NoTurn(Results);

fn space() -> KeySpace {
    KeySpace::of("once", "o")
}

fn manifest_key() -> Key {
    space().key("manifest")
}

impl NoTurn {
    async fn compute(&self, player: &Player, hold: &Hold) -> Result<()> {
        let attempt = format!("{:016x}", player.below(u64::MAX));
        let chunk = space().child("chunk").child(&attempt).key("00000000");
        player.pause(300).await;
        let result = self.0.compute(player, Revision(0));
        let result = quorate_recipes::Value::from(Json(result)).into_bytes(&chunk)?;
        self.write(hold, vec![ops::put(&chunk, result, None)])
            .await?;
        let manifest = format!(r#"{{"v":1,"attempt":"{attempt}"}}"#);
        self.write(hold, vec![ops::put(manifest_key(), manifest.into(), None)])
            .await
    }

    /// Under the turn, and its fence is left out.
    async fn write(&self, hold: &Hold, success: Vec<RequestOp>) -> Result<()> {
        let request = TxnRequest {
            compare: vec![Compare::absent(manifest_key()).into()],
            success,
            failure: Vec::new(),
        };
        hold.session().actor().repeat(request).await.map(drop)
    }

    async fn take_back(&self, player: &Player, session: &Session) -> Result<()> {
        let Some(manifest) = player.client().get(manifest_key()).await? else {
            return Ok(());
        };
        let at = Revision(manifest.mod_revision);
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(manifest_key(), at).into()],
            success: vec![
                ops::delete(KeyRange::one(manifest_key())),
                ops::delete(space().child("chunk").range()),
            ],
            failure: Vec::new(),
        };
        session.actor().repeat(request).await.map(drop)
    }
}

impl Scenario for NoTurn {
    const NAME: &'static str = "publishing without comparing the turn";

    fn new() -> Self {
        Self(Results::of("o", None))
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let turns = space().child("turn");
        let candidate = Contender::enter(session, &turns, "").await?;
        let hold = candidate.wait_turn().await?;
        match player.client().get(manifest_key()).await? {
            Some(_) => {}
            None => hold.scope(self.compute(player, &hold)).await??,
        }
        hold.release().await?;
        if player.one_in(2) {
            self.take_back(player, session).await?;
        }
        Ok(())
    }

    fn may_remain(&self, key: &str) -> bool {
        let name = key.strip_prefix(self.0.prefix());
        name.is_some_and(|name| !name.starts_with("turn/"))
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn publishing_without_comparing_the_turn_is_found() {
    is_found::<NoTurn>("torn, of 0 pieces");
}
