//! Cold starts: from the file while the store is out of reach, and from the store once it answers.

use std::path::Path;
use std::time::Duration;

use super::{World, quiet, until};
use crate::clock;
use crate::config::{Expect, Following, Source};
use crate::error::{Error, Result};
use crate::store::faulty::Outage;

async fn follow(world: &World, path: &Path) -> Result<Following<u32>> {
    let follow = world.config().follow().snapshot(path);
    let follow = follow.validate(|value| match value {
        13 => Err("unlucky".to_owned()),
        _ => Ok(()),
    });
    follow.await
}

/// Waits, in real time, until the file has this in it.
async fn saved(path: &Path, what: &str) {
    for _ in 0..2_000 {
        if std::fs::read_to_string(path).is_ok_and(|text| text.contains(what)) {
            return;
        }
        // Work on the disk takes real time, and virtual time stands still meanwhile.
        tokio::task::spawn_blocking(|| {
            std::sync::mpsc::channel::<()>()
                .1
                .recv_timeout(Duration::from_millis(2))
        })
        .await
        .unwrap()
        .unwrap_err();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what} is not saved");
}

#[tokio::test(start_paused = true)]
async fn starts_without_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let world = World::new().await;
    let (others, by) = (world.others(), &world.other_session);
    others.publish(by, &1, Expect::Any).await.unwrap();
    let mut following = follow(&world, &path).await.unwrap();
    let at = others.publish(by, &2, Expect::Any).await.unwrap();
    until(&mut following, 2).await;
    saved(&path, r#""value":2"#).await;
    // What is rejected is not saved.
    others.publish(by, &13, Expect::Any).await.unwrap();
    following
        .wait_for(|view| view.rejected.is_some())
        .await
        .unwrap();
    quiet().await;
    drop(following);
    for outage in [Outage::Refused, Outage::Silent] {
        world.faulty.disconnect(outage);
        let begun = clock::now();
        let mut following = follow(&world, &path).await.unwrap();
        assert_eq!(clock::now() - begun, Duration::from_secs(1));
        let view = following.borrow();
        assert_eq!(
            (view.source, view.value.as_deref()),
            (Source::Snapshot, Some(&2))
        );
        assert_eq!(
            (view.revision, view.parts["n"].version),
            (at.revision, Some(2))
        );
        let stale = following.wait_for(|view| view.stale_since.is_some()).await;
        assert_eq!(stale.unwrap().source, Source::Snapshot);
        world.faulty.reconnect();
        // What the store has cannot be used: the file's value stays, and is marked as that.
        let view = following.wait_for(|view| view.rejected.is_some()).await;
        let view = view.unwrap();
        assert_eq!(
            (view.source, view.value.as_deref()),
            (Source::Snapshot, Some(&2))
        );
    }
    world.faulty.disconnect(Outage::Refused);
    let mut following = follow(&world, &path).await.unwrap();
    assert_eq!(following.borrow().source, Source::Snapshot);
    others.rollback(by, 1, "", Expect::Any).await.unwrap();
    world.faulty.reconnect();
    until(&mut following, 1).await;
    saved(&path, r#""value":1"#).await;
    // The same publication in the file and in the store: confirmed.
    drop(following);
    quiet().await;
    let following = follow(&world, &path).await.unwrap();
    assert_eq!(following.borrow().source, Source::Store);
}

#[tokio::test(start_paused = true)]
async fn damaged_files_are_no_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let world = World::new().await;
    let (others, by) = (world.others(), &world.other_session);
    others.publish(by, &12, Expect::Any).await.unwrap();
    let mut following = follow(&world, &path).await.unwrap();
    saved(&path, r#""value":12"#).await;
    others.publish(by, &7, Expect::Any).await.unwrap();
    until(&mut following, 7).await;
    saved(&path, r#""value":7"#).await;
    drop(following);
    let whole = std::fs::read_to_string(&path).unwrap();
    let damages = [
        String::new(),
        whole[..whole.len() / 2].to_owned(),
        whole.replace(r#""value":7"#, r#""value":8"#),
    ];
    for damaged in damages {
        std::fs::write(&path, &damaged).unwrap();
        world.faulty.disconnect(Outage::Refused);
        let waiting = follow(&world, &path);
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(waited.is_err(), "{damaged}: {waited:?}");
        world.faulty.reconnect();
        let following = follow(&world, &path).await.unwrap();
        assert_eq!(following.borrow().value.as_deref(), Some(&7));
        // It is mended.
        saved(&path, r#""value":7"#).await;
    }
    // A value that its reader does not take any more.
    let text = world.other.config::<String>("app/n");
    let strict = world.config().follow().snapshot(&path);
    let strict = strict.validate(|_| Err("never".to_owned()));
    let strict = strict.await.unwrap();
    assert_eq!(strict.borrow().source, Source::Nothing);
    assert!(strict.borrow().rejected.is_some());
    drop((strict, text));
}

#[tokio::test(start_paused = true)]
async fn other_files_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passwd");
    std::fs::write(&path, "root:x:0:0\n").unwrap();
    let world = World::new().await;
    world
        .others()
        .publish(&world.other_session, &1, Expect::Any)
        .await
        .unwrap();
    let refused = follow(&world, &path).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "root:x:0:0\n");
    // Nor is the snapshot of another setting.
    let path = folder.path().join("snapshot");
    let following = follow(&world, &path).await.unwrap();
    saved(&path, r#""value":1"#).await;
    let group = world.client.config_group::<serde_json::Value>("app");
    let refused = group.follow().snapshot(&path).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    drop(following);
    // Where nothing can be written, it goes on without.
    let nowhere = folder.path().join("none/snapshot");
    let mut following = follow(&world, &nowhere).await.unwrap();
    quiet().await;
    std::fs::create_dir(folder.path().join("none")).unwrap();
    quiet().await;
    saved(&nowhere, r#""value":1"#).await;
    world
        .others()
        .publish(&world.other_session, &2, Expect::Any)
        .await
        .unwrap();
    until(&mut following, 2).await;
    saved(&nowhere, r#""value":2"#).await;
}
