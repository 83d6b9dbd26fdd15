//! Broken condition queues.

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::condition::Batch;
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Fenced as _, KeyRange, Result, Session};
use quorate_simulation::Player;
use quorate_simulation::scenarios::{Condition, ConditionKind as Kind, numbers, task_done};

use super::broken::{Broken, World};
use super::mutants::is_found;

const PREFIX: &str = "quorate/condition/b";

/// How far the queue is, as anybody can read it: the epoch that gathers, and how many do.
async fn gathering(crowd: &Condition, player: &Player, kind: Kind) -> Result<(u64, u64)> {
    let status = crowd.handle(player, kind).status().await?;
    Ok((status.epoch, status.gathering))
}

async fn send(player: &Player, request: TxnRequest) -> Result<()> {
    match player.client().store().txn(request).await {
        Err(error) if !error.is_transient() => Err(error.into()),
        _ => Ok(()),
    }
}

/// The gate is opened by the number that was counted, whatever has become of the epoch meanwhile.
struct NoHeadCompare;

impl Broken for NoHeadCompare {
    type Whole = Condition;

    const NAME: &'static str = "a gate that opens without a look at the head";

    async fn step(crowd: &Condition, player: &Player, session: &Session) -> Result<()> {
        crowd.join(player, session, Kind::Batch).await?;
        let (epoch, there) = gathering(crowd, player, Kind::Batch).await?;
        player.pause(300).await;
        if there == 0 {
            return Ok(());
        }
        let value = format!(r#"{{"v":1,"segment":{}}}"#, epoch + 1);
        let gate = r#"{"v":1,"reason":"","since_ms":0}"#;
        let request = TxnRequest {
            success: vec![
                ops::put(format!("{PREFIX}/head"), value.into(), None),
                ops::put(format!("{PREFIX}/gate/{epoch:016x}"), gate.into(), None),
            ],
            ..TxnRequest::default()
        };
        match there {
            3.. => send(player, request).await,
            _ => Ok(()),
        }
    }
}

/// A task is taken out without a word to those who have counted it.
struct SilentWithdrawal;

impl Broken for SilentWithdrawal {
    type Whole = Condition;

    const NAME: &'static str = "a withdrawal that those who count do not hear of";

    async fn step(crowd: &Condition, player: &Player, session: &Session) -> Result<()> {
        let (number, epoch) = crowd.join(player, session, Kind::Broadcast).await?;
        player.pause(50).await;
        let key = format!("quorate/condition/c/segment/{epoch:016x}/{number}");
        let mut head = ops::get("quorate/condition/c/head");
        head.keys_only = true;
        let found = player.client().store().range(head).await?;
        let at = found.kvs.first().map_or(0, |kv| kv.mod_revision);
        let status = crowd.handle(player, Kind::Broadcast).status().await?;
        if status.epoch != epoch {
            return Ok(());
        }
        let head = quorate_recipes::Revision(at);
        let request = TxnRequest {
            compare: vec![
                Compare::mod_revision("quorate/condition/c/head", head).into(),
                Compare::present(&key).into(),
            ],
            success: vec![ops::delete(KeyRange::one(&key))],
            failure: Vec::new(),
        };
        send(player, request).await
    }
}

/// A task joins the epoch that it knows of.
struct LateJoin;

impl Broken for LateJoin {
    type Whole = Condition;

    const NAME: &'static str = "a task that joins without a look at the head";

    async fn step(crowd: &Condition, player: &Player, session: &Session) -> Result<()> {
        crowd.join(player, session, Kind::Batch).await?;
        let (epoch, _) = gathering(crowd, player, Kind::Batch).await?;
        player.pause(300).await;
        let name = player.below(u64::MAX >> 2);
        let key = format!("{PREFIX}/segment/{epoch:016x}/{name}");
        let item = r#"{"v":1,"since_ms":0,"value":1}"#;
        player.client().put(key, item).await?;
        Ok(())
    }
}

/// A batch is done by whoever had it once.
struct NoClaimCompare;

impl NoClaimCompare {
    async fn end(player: &Player, batch: Batch<i64>) -> Result<()> {
        player.pause(9_000).await;
        let gate = format!("{PREFIX}/gate/{:016x}", batch.gate().epoch);
        let tasks = KeyRange::prefix(format!("{PREFIX}/segment/{:016x}/", batch.gate().epoch));
        let lease = batch.fence().lease().to_string();
        let done = numbers(&batch).into_iter();
        let done = done.map(|n| ops::put(task_done(Kind::Batch, n), lease.clone().into(), None));
        let gone = [tasks, KeyRange::one(&gate)].map(ops::delete);
        let request = TxnRequest {
            compare: vec![Compare::create_revision(&gate, batch.gate().revision).into()],
            success: gone.into_iter().chain(done).collect(),
            failure: Vec::new(),
        };
        send(player, request).await
    }
}

impl Broken for NoClaimCompare {
    type Whole = Condition;

    const NAME: &'static str = "a batch whose end does not ask who has it";

    async fn step(crowd: &Condition, player: &Player, session: &Session) -> Result<()> {
        crowd.join(player, session, Kind::Batch).await?;
        match crowd.take(player, session, Kind::Batch).await? {
            Some(batch) => Self::end(player, batch).await,
            None => Ok(()),
        }
    }
}

const RULED: &str = "quorate/condition/r";

/// A gate opens once somebody is there, whatever its condition is.
struct NoCondition;

impl Broken for NoCondition {
    type Whole = Condition;

    const NAME: &'static str = "a gate that opens without a look at its condition";

    async fn step(crowd: &Condition, player: &Player, session: &Session) -> Result<()> {
        let (number, epoch) = crowd.join(player, session, Kind::Ruled).await?;
        let head = format!("{RULED}/head");
        let found = player.client().get(&head).await?;
        let at = found.map_or(0, |kv| kv.mod_revision);
        if gathering(crowd, player, Kind::Ruled).await?.0 != epoch {
            return Ok(());
        }
        let task = format!("{RULED}/segment/{epoch:016x}/{number}");
        let value = format!(r#"{{"v":1,"segment":{}}}"#, epoch + 1);
        let gate = r#"{"v":1,"reason":"","since_ms":0}"#;
        let signals = KeyRange::prefix(format!("{RULED}/signal/{epoch:016x}/"));
        let request = TxnRequest {
            compare: vec![
                Compare::mod_revision(&head, quorate_recipes::Revision(at)).into(),
                Compare::present(task).into(),
            ],
            success: vec![
                ops::put(head, value.into(), None),
                ops::put(format!("{RULED}/gate/{epoch:016x}"), gate.into(), None),
                ops::delete(signals),
            ],
            failure: Vec::new(),
        };
        send(player, request).await
    }
}

/// A batch is done, and those who wait for one of its tasks do not hear of it.
struct SilentEnd;

impl Broken for SilentEnd {
    type Whole = Condition;

    const NAME: &'static str = "an end that does not say what is done";

    async fn step(crowd: &Condition, player: &Player, session: &Session) -> Result<()> {
        crowd.join(player, session, Kind::Ruled).await?;
        crowd.say(player, session).await?;
        let Some(batch) = crowd.take(player, session, Kind::Ruled).await? else {
            return Ok(());
        };
        let epoch = batch.gate().epoch;
        let claim = format!("{RULED}/claim/{epoch:016x}");
        let tasks = KeyRange::prefix(format!("{RULED}/segment/{epoch:016x}/"));
        let gate = KeyRange::one(format!("{RULED}/gate/{epoch:016x}"));
        let lease = batch.fence().lease();
        let done = numbers(&batch).into_iter();
        let done = done.map(|number| {
            let done = task_done(Kind::Ruled, number);
            ops::put(done, lease.to_string().into(), None)
        });
        let request = TxnRequest {
            compare: vec![Compare::lease(&claim, lease).into()],
            success: [tasks, gate]
                .map(ops::delete)
                .into_iter()
                .chain(done)
                .collect(),
            failure: Vec::new(),
        };
        send(player, request).await
    }
}

/// What is in a batch is looked up before its gate opens.
struct EarlyLook;

impl Broken for EarlyLook {
    type Whole = Condition;

    const NAME: &'static str = "a batch that is looked up before its gate opens";

    async fn step(crowd: &Condition, player: &Player, session: &Session) -> Result<()> {
        let (_, epoch) = crowd.join(player, session, Kind::Batch).await?;
        let tasks = format!("{PREFIX}/segment/{epoch:016x}/");
        let found = ops::range(KeyRange::prefix(&tasks));
        let found = player.client().store().range(found).await?.kvs;
        let id = |key: &[u8]| String::from_utf8_lossy(&key[tasks.len()..]).into_owned();
        let ids = found.iter().map(|kv| id(&kv.key)).collect();
        let queue = crowd.handle(player, Kind::Batch);
        let limit = std::time::Duration::from_secs(5);
        if let Ok(Ok(gate)) = tokio::time::timeout(limit, queue.opened(epoch)).await {
            crowd.has(Kind::Batch, epoch, gate.revision, ids);
        }
        Ok(())
    }
}

#[test]
fn a_gate_without_its_condition_is_found() {
    is_found::<World<NoCondition>>("opened when");
}

#[test]
fn an_end_that_does_not_say_so_is_found() {
    is_found::<World<SilentEnd>>("is not said to be done");
}

#[test]
fn a_batch_of_others_is_found() {
    is_found::<World<EarlyLook>>("batch");
}

#[test]
fn a_gate_without_its_head_is_found() {
    is_found::<World<NoHeadCompare>>("opened for head");
}

#[test]
fn a_gate_for_one_who_has_gone_is_found() {
    is_found::<World<SilentWithdrawal>>("opened when len(3)");
}

#[test]
fn a_task_that_joins_too_late_is_found() {
    is_found::<World<LateJoin>>("joined epoch");
}

#[test]
fn a_batch_ended_by_one_who_lost_it_is_found() {
    is_found::<World<NoClaimCompare>>("ended");
}
