//! Broken dispatchers.

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Error, Fenced as _, KeyRange, Result, Session};
use quorate_simulation::Player;
use quorate_simulation::scenarios::{Dispatch, job_done, ops as dispatcher};
use serde_json::{Value, json};

use super::broken::{Broken, World};
use super::mutants::is_found;

const PREFIX: &str = "quorate/dispatch/d";

/// A job's record as anybody can read it, and the key of its item.
async fn record(player: &Player, id: &str) -> Result<Option<(Value, String)>> {
    let found = player.client().get(format!("{PREFIX}/job/{id}")).await?;
    let Some(kv) = found else { return Ok(None) };
    let record: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
    let inbox = match (&record["target"]["instance"], &record["target"]["any"]) {
        (Value::String(name), _) => format!("inbox/{name}"),
        (_, Value::String(name)) => format!("service/{name}"),
        _ => return Ok(None),
    };
    let segment = record["segment"].as_u64().unwrap_or(0);
    Ok(Some((
        record,
        format!("{PREFIX}/{inbox}/segment/{segment:016x}/{id}"),
    )))
}

/// Ends a job in this state, whatever has become of it.
async fn end(
    player: &Player,
    id: &str,
    state: Value,
    also: Option<(String, String)>,
) -> Result<()> {
    let Some((mut record, item)) = record(player, id).await? else {
        return Ok(());
    };
    player.pause(6_000).await;
    record["state"] = state;
    let key = format!("{PREFIX}/job/{id}");
    let also = also.map(|(key, value)| ops::put(key, value.into(), None));
    let request = TxnRequest {
        compare: vec![Compare::present(&key).into()],
        success: [
            ops::put(&key, record.to_string().into(), None),
            ops::delete(KeyRange::one(&item)),
        ]
        .into_iter()
        .chain(also)
        .collect(),
        failure: Vec::new(),
    };
    match player.client().store().txn(request).await {
        Err(error) if !error.is_transient() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whoever had a command once ends its job.
struct NoClaimCompare;

impl Broken for NoClaimCompare {
    type Whole = Dispatch;

    const NAME: &'static str = "a reply that does not ask who has the command";

    async fn step(staff: &Dispatch, player: &Player, session: &Session) -> Result<()> {
        staff.send(player, session).await?;
        let Some(command) = staff.take(player, session).await? else {
            return Ok(());
        };
        let effect = job_done(*command.value(), command.job());
        let lease = command.fence().lease().to_string();
        let done = json!({ "done": command.value() });
        end(player, command.job(), done, Some((effect, lease))).await
    }
}

/// A job is cancelled that nobody had when somebody looked.
struct NoStateCompare;

impl Broken for NoStateCompare {
    type Whole = Dispatch;

    const NAME: &'static str = "a cancellation that does not ask how far the job is";

    async fn step(staff: &Dispatch, player: &Player, session: &Session) -> Result<()> {
        let job = staff.send(player, session).await?;
        let cancelling = end(player, job.id(), json!("cancelled"), None);
        let working = async {
            if let Some(mut command) = staff.take(player, session).await? {
                let lease = command.fence().lease().to_string();
                let number = *command.value();
                let done = job_done(number, command.job());
                let txn = player.client().txn().put(done, lease);
                command.reply_with(&number, txn).await?;
            }
            Ok::<_, Error>(())
        };
        let (cancelled, worked) = tokio::join!(cancelling, working);
        cancelled.and(worked)
    }
}

/// A copy of the whole command is sent without a lane.
struct SentTwice;

impl Broken for SentTwice {
    type Whole = Dispatch;

    const NAME: &'static str = "a command that is sent again under another id";

    async fn step(staff: &Dispatch, player: &Player, session: &Session) -> Result<()> {
        let job = staff.send(player, session).await?;
        let Some((_, item)) = record(player, job.id()).await? else {
            return Ok(());
        };
        let Some(kv) = player.client().get(&item).await? else {
            return Ok(());
        };
        let item: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
        let number = item["value"]["command"].as_i64().unwrap_or(0);
        let target = quorate_recipes::dispatch::Target::Any("s".to_owned());
        dispatcher(player).send(session, target, &number).await?;
        Ok(())
    }
}

/// Who is there is asked first, and the command is sent some time later.
struct OldRecipients;

impl Broken for OldRecipients {
    type Whole = Dispatch;

    const NAME: &'static str = "a command to all that were there before";

    async fn step(staff: &Dispatch, player: &Player, session: &Session) -> Result<()> {
        drop(staff.take(player, session).await?);
        let there = dispatcher(player).status().await?.instances;
        player.pause(4_000).await;
        let send = |number: i64| async move {
            let record = json!({
                "v": 1,
                "revision": player.revision().0,
                "times": { "since_ms": 0 },
                "command": number,
                "recipients": there,
            });
            let key = format!("{PREFIX}/cast/{}", -number);
            player.client().put(key, record.to_string()).await?;
            Ok(())
        };
        staff.cast(player, None, send).await
    }
}

#[test]
fn a_command_to_those_who_were_there_is_found() {
    is_found::<World<OldRecipients>>("cast");
}

#[test]
fn a_reply_by_one_who_lost_it_is_found() {
    is_found::<World<NoClaimCompare>>("job");
}

#[test]
fn a_cancellation_of_what_has_ended_is_found() {
    is_found::<World<NoStateCompare>>("and is cancelled then");
}

#[test]
fn a_command_sent_twice_is_found() {
    is_found::<World<SentTwice>>("took place twice");
}
