//! What goes wrong on the way of a job: lost watches and answers, what is too large, what cannot be read.

use super::*;
use crate::store::faulty::{Calls, Stage};

/// The watch was cut, and its past compacted; the listing that follows finds the job as it was.
#[tokio::test(start_paused = true)]
async fn a_listing_without_news_is_no_end() {
    let place = Place::new().await;
    let job = place.send(to("a")).await;
    let mut states = job.states().boxed();
    soon(states.next()).await.unwrap().unwrap();
    let held = place.faulty.hold(1, Calls::Read, Stage::NotSent);
    place.faulty.cut_watches();
    let mut next = states.next();
    tokio::select! {
        biased;
        told = &mut next => panic!("{told:?}"),
        () = held.reached() => {}
    }
    for _ in 0..2 {
        place.client.put("other", "").await.unwrap();
    }
    place.store.compact(place.store.revision()).unwrap();
    held.release();
    no_news(&mut next).await;
    assert!(job.cancel().await.unwrap());
    let told = soon(next).await.unwrap().unwrap();
    assert_eq!(told, JobState::Ended(Ended::Cancelled));
    // There is none.
    let mut none = place.ops().job("x").states().boxed();
    let told = soon(none.next()).await.unwrap();
    assert!(matches!(told, Err(Error::Removed(_))), "{told:?}");
}
