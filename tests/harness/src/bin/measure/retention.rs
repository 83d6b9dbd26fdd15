//! What history takes on the disk under a steady load of overwrites: when it is never given up, and
//! when the server gives it up by itself, by age and by number.

use std::path::Path;
use std::time::Duration;

use quorate_proto::etcdserverpb::HashKvRequest;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::server::{Server, rest};
use crate::writers::Writers;

const WRITERS: usize = 16;
const KEYS: usize = 20_000;
const VALUE_BYTES: usize = 512;
/// Longer than the interval below.
const SECONDS: usize = 390;
/// How often servers look at the number of revisions.
const REVISION_LOOK_INTERVAL: Duration = Duration::from_secs(300);
const LOOKS: u32 = 6;

/// How history is given up, and the flags for that.
const WAYS: [(&str, &[&str]); 3] = [
    ("never", &[]),
    (
        "after 30 s",
        &[
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=30s",
        ],
    ),
    (
        "beyond 10000 revisions",
        &[
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=10000",
        ],
    ),
];

/// Measures; `seconds` is how long each way is looked at.
pub(crate) async fn measure(program: &Path, seconds: Option<usize>) -> anyhow::Result<()> {
    let length = Duration::from_secs(u64::try_from(seconds.unwrap_or(SECONDS))?);
    anyhow::ensure!(
        length > REVISION_LOOK_INTERVAL,
        "the number of revisions is looked at every {REVISION_LOOK_INTERVAL:?}"
    );
    let mut ways = Vec::new();
    for (name, arguments) in WAYS {
        let server = Server::start(program, arguments).await?;
        let writers = Writers::start(&server, WRITERS, "h/", KEYS, VALUE_BYTES).await?;
        let mut written = 0;
        for look in 1..=LOOKS {
            rest(length / LOOKS).await;
            written += writers.stretch().count();
            println!(
                "given up {name}: {:.0?}, {written} writes, data folder {} MiB",
                length / LOOKS * look,
                server.folder_mib()?
            );
        }
        let revision = writers.stop().await?;
        let kept = revision - compact_revision(&server).await?.max(0);
        println!("given up {name}: {kept} of {revision} revisions are kept");
        ways.push((name, revision, kept, server.folder_mib()?));
    }
    let [(_, _, _, all_mib), given_up @ ..] = &*ways else {
        unreachable!("there is a first way");
    };
    for (name, revision, kept, mib) in given_up {
        anyhow::ensure!(kept < revision, "nothing is given up {name}");
        anyhow::ensure!(
            mib < all_mib,
            "history given up {name} is still on the disk"
        );
    }
    Ok(())
}

async fn compact_revision(server: &Server) -> anyhow::Result<i64> {
    let mut client = MaintenanceClient::new(server.connect().await?);
    let answer = client.hash_kv(HashKvRequest::default()).await?;
    Ok(answer.into_inner().compact_revision)
}
