//! Members, their shares, and kept keys, dropped everywhere.

use std::time::Duration;

use futures::StreamExt;
use quorate_recipes::membership::{Departure, MemberEvent};
use quorate_recipes::registry::{Checks, Instance};
use quorate_recipes::{Client, Error, KeptState, Probe, Session};

use super::{QUIET, Stopped, World, at_every_call};

dropped_everywhere! {
    membership, [], async |client: Client, session: Session, hold| {
        let membership = client.group::<u32>("x").join(&session, 1).await?;
        tokio::time::sleep(hold).await;
        membership.update(2).await?;
        membership.leave().await
    };
    partitions, [], async |client: Client, session: Session, hold| {
        let mut partitions = client.partitions("x", 3).join(&session).await?;
        let partition = partitions.next().await?;
        tokio::time::sleep(hold).await;
        partition.release().await?;
        partitions.leave().await
    };
    observation, [], async |client: Client, session: Session, hold| {
        let prober = client.probe(Probe::of(|| async { Ok::<_, String>(()) }).rise(1))?;
        let observe = session.observe("x", prober);
        let seen = observe.observer(session.lease().to_string()).await?;
        tokio::time::sleep(hold).await;
        seen.withdraw().await
    };
    checked_instance, [], async |_: Client, session: Session, hold| {
        let checks = Checks::new().add("x", Probe::of(|| async { Ok::<_, String>(()) }));
        let instance = Instance::builder("x").id(session.lease().to_string());
        let registration = session.register_checked(instance.build(), checks).await?;
        tokio::time::sleep(hold).await;
        registration.deregister().await
    };
    job, ["quorate/cron/x/last", "quorate/cron/x/run"],
        async |client: Client, session: Session, hold| {
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            let job = client.cron("x", "* * * * * *".parse()?);
            let running = job.run(&session, move |run| {
                let tell = tell.clone();
                async move {
                    tokio::time::sleep(hold).await;
                    // Nobody hears it who was dropped.
                    let _ = tell.send(run.slot());
                    Ok::<_, Error>(())
                }
            });
            let ended = tokio::select! {
                biased;
                ended = running => ended.map(drop),
                _ = told.recv() => Ok(()),
            };
            ended
        };
    kept_key, [], async |client: Client, session: Session, hold| {
        let kept = client.keep(format!("kept/{}", session.lease()), "a").await?;
        tokio::time::sleep(hold).await;
        kept.set("b").await?;
        kept.remove().await
    };
    kept_key_that_others_want, [], async |client: Client, session: Session, hold| {
        let value = format!("{} a", session.lease());
        let kept = client.keep("kept/x", value).yielding().await?;
        kept.wait_for(|state| state == KeptState::Kept).await;
        tokio::time::sleep(hold).await;
        kept.set(format!("{} b", session.lease())).await?;
        kept.remove().await
    };
    kept_key_that_is_taken_back, [], async |client: Client, session: Session, hold: Duration| {
        // Whoever was there before has it back, as long as both want it.
        let kept = client.keep("kept/x", session.lease().to_string()).await?;
        tokio::time::sleep(hold).await;
        kept.remove().await
    };
}

/// Whoever was seen to come is seen to leave, once and on purpose, with at most one change between.
#[tokio::test(start_paused = true)]
async fn what_others_see_of_a_member() {
    let mut seen = [0; 3];
    at_every_call(async |at| {
        let world = World::new().await;
        let members = world.other.0.group::<u32>("x").members().await.unwrap();
        let mut events = members.events().await.unwrap();
        let (client, session) = world.user.clone();
        let stays = async {
            let membership = client.group("x").join(&session, 1_u32).await?;
            membership.update(2).await?;
            membership.leave().await
        };
        let Stopped { held, finished } = world.stop(at, stays).await;
        let reached = held.is_reached();
        held.release();
        tokio::time::sleep(QUIET).await;
        let mut told = Vec::new();
        // What is to be told is told in no time; the timeout tells that there is no more.
        while let Ok(Some(event)) = tokio::time::timeout(QUIET, events.next()).await {
            told.push(match event.unwrap() {
                MemberEvent::Joined(member) => (0, **member.info.as_ref().unwrap()),
                MemberEvent::Updated { now, .. } => (1, **now.info.as_ref().unwrap()),
                MemberEvent::Left { member, departure } => {
                    assert_eq!(departure, Departure::Clean, "{at}");
                    (2, **member.info.as_ref().unwrap())
                }
                event => panic!("{at}: {event:?}"),
            });
        }
        let whole = [(0, 1), (1, 2), (2, 2)];
        match told.len() {
            0 | 3 if told[..] == whole[..told.len()] => {}
            2 if told == [(0, 1), (2, 1)] => {}
            _ => panic!("{at}: {told:?}"),
        }
        assert!(!finished || told.len() == 3, "{at}: {told:?}");
        seen[told.len() - usize::from(!told.is_empty())] += 1;
        reached
    })
    .await;
    assert!(seen[1..].iter().all(|times| *times > 0), "{seen:?}");
}
