//! Elections, dropped everywhere.

use std::time::Duration;

use quorate_recipes::election::Succession;
use quorate_recipes::{Client, Error, Session};

use super::{QUIET, Stopped, World, at_every_call, everywhere, in_time, joined};

dropped_everywhere! {
    leader, [], async |client: Client, session: Session, hold| {
        let election = client.election("x").with_priority(3);
        let leadership = election.campaign(&session, 1_u32).await?;
        tokio::time::sleep(hold).await;
        leadership.proclaim(2).await?;
        leadership.resign().await
    };
    leader_in_a_loop, [], async |client: Client, _session, hold| {
        let election = client.election("x");
        let led = election.run(client.session(), 1_u32, |leadership| async move {
            tokio::time::sleep(hold).await;
            leadership.put("x", "led").await.map(drop).map_err(Error::from)
        });
        led.await?
    };
    request_to_resign, [], async |client: Client, session: Session, hold| {
        let election = client.election("x");
        let leadership = election.campaign(&session, 1_u32).await?;
        let request = election.request_resignation(&session, "why").await?;
        tokio::time::sleep(hold).await;
        leadership.resign().await?;
        if let Some(request) = request {
            request.granted().await?;
        }
        Ok(())
    };
    request_to_another_to_resign, [], async |client: Client, session: Session, hold: Duration| {
        let election = client.election("x");
        if hold.is_zero() {
            if let Some(request) = election.request_resignation(&session, "why").await? {
                request.granted().await?;
            }
            return election.campaign(&session, 2_u32).await?.resign().await;
        }
        let leadership = election.campaign(&session, 1_u32).await?;
        tokio::time::sleep(hold).await;
        leadership.resign().await
    };
}
/// Where a leader names its successor; the name stays until somebody leads.
const HANDOVER: &str = "quorate/election-meta/x/handover";

/// A leader that hands over, dropped everywhere: the line goes on, and nobody is named for ever.
#[tokio::test(start_paused = true)]
async fn handing_over() {
    everywhere(
        &[HANDOVER],
        async |client: Client, session: Session, hold| {
            let election = client.election::<u32>("x");
            let leadership = election.campaign(&session, 1).await?;
            tokio::time::sleep(hold).await;
            // A candidate of the same session, which leads after it.
            let (second, third) = (session.clone(), session.clone());
            let waits = tokio::join!(
                async { election.campaign(&second, 2).await?.resign().await },
                async { election.campaign(&third, 3).await?.resign().await },
                async {
                    let candidates = loop {
                        let candidates = election.candidates(9).await?;
                        if candidates.len() >= 3 {
                            break candidates;
                        }
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    };
                    match leadership.hand_over(&candidates[2]).await? {
                        Succession::Gone(leadership) => leadership.resign().await,
                        _ => Ok(()),
                    }
                }
            );
            waits.0.and(waits.1).and(waits.2)
        },
    )
    .await;
}

/// A leader hands over to the last of two candidates of somebody else: whatever became of it, both of
/// them lead in their time, and nobody who comes later is held up.
#[tokio::test(start_paused = true)]
async fn handing_over_to_somebody_else() {
    let mut passed_over = [0, 0];
    at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = world.user.clone();
        let election = client.election::<u32>("x");
        let leadership = election.campaign(&session, 1).await.unwrap();
        let candidate = |number| {
            let (client, session) = world.other.clone();
            async move {
                let election = client.election("x");
                let leadership = election.campaign(&session, number).await?;
                let token = leadership.token();
                leadership.resign().await?;
                Ok::<_, Error>(token)
            }
        };
        let second = tokio::spawn(candidate(2));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let third = tokio::spawn(candidate(3));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let candidates = election.candidates(9).await.unwrap();
        let hand_over = async {
            match leadership.hand_over(&candidates[2]).await? {
                Succession::Named => Ok(()),
                given_back => panic!("{at}: {given_back:?}"),
            }
        };
        let Stopped { held, finished } = world.stop(at, hand_over).await;
        let reached = held.is_reached();
        held.release();
        let second = in_time(at, "the second", joined(second)).await;
        let third = in_time(at, "the third", joined(third)).await;
        // The second one stands anew behind the third if that was named.
        let named = second > third;
        assert!(named || !finished, "{at}: it was not named");
        passed_over[usize::from(named)] += 1;
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&[HANDOVER]), [""; 0], "{at}");
        in_time(at, "the next one", candidate(4)).await;
        reached
    })
    .await;
    assert!(
        passed_over.iter().all(|times| *times > 0),
        "{passed_over:?}"
    );
}
