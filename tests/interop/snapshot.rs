//! The way out: `etcdctl snapshot save` from quorate, and a real etcd started from the file. It must
//! show every revision, event and lease as quorate does; and the file must hold what etcd's own holds
//! after the same history.
//!
//! Runs with the etcd in PATH, and with one of the 3.5 line if `QUORATE_ETCD_3_5` names its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::etcd::{self, Etcd};
use quorate_harness::eventually;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest, PutRequest,
    RangeRequest, RequestOp, ResponseHeader, WatchCreateRequest, WatchRequest,
};
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_proto::txn::{self, TxnBuilder};
use serde_json::Value;
use tonic::Code;
use tonic::transport::Channel;

pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Keys in the histories.
const KEYS: u64 = 40;
/// Ends a watch: written after everything that is compared.
const MARKER: &str = "~ the end";

/// A release of etcd with its tools.
pub(super) struct Release {
    pub(super) server: PathBuf,
    pub(super) ctl: PathBuf,
    /// What restores: `etcdutl` where there is one.
    pub(super) restorer: PathBuf,
    /// Items of bucket `meta` that it does not have and the 3.5 line, which quorate follows, has: the
    /// term and the raft membership.
    missing_items: u64,
    /// Whether it finds leases below 0 again: 3.5.1 does not, not even its own after a restart.
    pub(super) keeps_negative_leases: bool,
}

pub(super) fn releases() -> Vec<Release> {
    let mut found = Vec::new();
    if let Some(server) = etcd::installed() {
        found.push(Release {
            server,
            ctl: "etcdctl".into(),
            restorer: "etcdctl".into(),
            missing_items: 2,
            keeps_negative_leases: true,
        });
    }
    if let Some(folder) = std::env::var_os("QUORATE_ETCD_3_5").map(PathBuf::from) {
        found.push(Release {
            server: folder.join("etcd"),
            ctl: folder.join("etcdctl"),
            restorer: folder.join("etcdutl"),
            missing_items: 0,
            keeps_negative_leases: false,
        });
    }
    found
}

/// One step of a history.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Nothing, one or several changes as one transaction.
    Change(Vec<RequestOp>),
    Grant(i64),
}

/// A small generator: the same seed is the same history, on every server.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A random history. Its last change is a deletion.
pub(super) fn history(negative_leases: bool, seed: u64, steps: usize) -> Vec<Step> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut leases = vec![0];
    let mut history = Vec::new();
    for _ in 0..steps {
        if random.below(20) == 0 {
            let id = i64::try_from(random.below(1 << 40)).expect("below 2^40") + 1;
            let id = if negative_leases && random.below(2) == 0 {
                -id
            } else {
                id
            };
            leases.push(id);
            history.push(Step::Grant(id));
            continue;
        }
        let count = [1, 1, 1, 3, 6][usize::try_from(random.below(5)).expect("below 5")];
        let mut changes = BTreeMap::new();
        for _ in 0..count {
            let key = format!("key {:02}", random.below(KEYS));
            let lease = leases[usize::try_from(random.below(leases.len() as u64)).expect("fits")];
            let change = match random.below(4) {
                0 => txn::delete(key.clone()).into(),
                _ => {
                    let length =
                        [0, 10, 500, 9_000][usize::try_from(random.below(4)).expect("< 4")];
                    let value = format!("{}", random.below(10)).repeat(length);
                    RequestOp::from(PutRequest {
                        lease,
                        ..txn::put(key.clone(), value)
                    })
                }
            };
            changes.insert(key, change);
        }
        history.push(Step::Change(changes.into_values().collect()));
    }
    history.push(Step::Change(vec![txn::put("last", "of all").into()]));
    history.push(Step::Change(vec![txn::delete("last").into()]));
    history
}

/// The clients of one server.
pub(super) struct Clients {
    pub(super) kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    pub(super) watch: WatchClient<Channel>,
}

fn revision(header: Option<ResponseHeader>) -> anyhow::Result<i64> {
    Ok(header.context("no header")?.revision)
}

impl Clients {
    pub(super) async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let channel = Channel::from_shared(endpoint.to_owned())?.connect().await?;
        Ok(Self {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            watch: WatchClient::new(channel).max_decoding_message_size(usize::MAX),
        })
    }

    /// Takes a step, and tells the revision after it.
    pub(super) async fn take(&mut self, step: Step) -> anyhow::Result<i64> {
        match step {
            Step::Grant(id) => {
                let request = LeaseGrantRequest { ttl: 3_000, id };
                let answer = self.lease.lease_grant(request).await?.into_inner();
                revision(answer.header)
            }
            Step::Change(changes) => {
                let request = TxnBuilder::new().then_all(changes).build();
                revision(self.kv.txn(request).await?.into_inner().header)
            }
        }
    }

    pub(super) async fn compact(&mut self, revision: i64) -> anyhow::Result<()> {
        let request = CompactionRequest {
            revision,
            physical: true,
        };
        self.kv.compact(request).await?;
        Ok(())
    }

    /// Everything at a revision, and the revision of now.
    pub(super) async fn all_at(&mut self, at: i64) -> Result<(i64, Vec<KeyValue>), tonic::Status> {
        let request = RangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            revision: at,
            ..RangeRequest::default()
        };
        let answer = self.kv.range(request).await?.into_inner();
        Ok((answer.header.unwrap_or_default().revision, answer.kvs))
    }

    /// All events from a revision up to the marker, whose revision is told as well.
    pub(super) async fn events_from(&mut self, first: i64) -> anyhow::Result<(i64, Vec<Event>)> {
        let marked = self.kv.put(txn::put(MARKER, "")).await?.into_inner();
        let marked = revision(marked.header)?;
        let create = WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: first,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let requests = endless(request);
        let mut answers = self.watch.watch(requests).await?.into_inner();
        let mut events = Vec::new();
        let wait = async {
            while let Some(answer) = answers.message().await? {
                anyhow::ensure!(!answer.canceled, "cancelled: {answer:?}");
                for event in answer.events {
                    let kv = event.kv.as_ref().context("an event without a pair")?;
                    if kv.key == MARKER {
                        return Ok(());
                    }
                    events.push(event);
                }
            }
            anyhow::bail!("the watch ended")
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .context("no marker in time")??;
        Ok((marked, events))
    }

    /// Every lease by id: as granted, and its keys.
    pub(super) async fn leases(
        &mut self,
    ) -> anyhow::Result<BTreeMap<i64, (i64, Vec<bytes::Bytes>)>> {
        let listed = self
            .lease
            .lease_leases(LeaseLeasesRequest {})
            .await?
            .into_inner();
        let mut leases = BTreeMap::new();
        for lease in listed.leases {
            let request = LeaseTimeToLiveRequest {
                id: lease.id,
                keys: true,
            };
            let mut told = self.lease.lease_time_to_live(request).await?.into_inner();
            told.keys.sort();
            leases.insert(lease.id, (told.granted_ttl, told.keys));
        }
        Ok(leases)
    }
}

/// One request, and no end of the stream after it.
pub(super) fn endless(request: WatchRequest) -> impl futures::Stream<Item = WatchRequest> {
    use futures::StreamExt as _;
    futures::stream::iter([request]).chain(futures::stream::pending())
}

/// `etcdctl snapshot save`, and what `snapshot status` says of the file.
pub(super) fn saved(ctl: &Path, endpoint: &str, file: &Path) -> anyhow::Result<Value> {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(ctl);
        command.env("ETCDCTL_API", "3");
        command.args(["--endpoints", endpoint, "snapshot"]);
        let done = command.args(arguments).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        anyhow::ensure!(done.status.success(), "{command:?}: {said}");
        Ok(done.stdout)
    };
    let path = file.to_str().context("a path that is text")?;
    run(&["save", path])?;
    Ok(serde_json::from_slice(&run(&[
        "status", path, "-w", "json",
    ])?)?)
}

/// The restored server must show what quorate shows, from the compact revision on.
async fn compare(
    quorate: &mut Clients,
    restored: &mut Clients,
    compacted: i64,
) -> anyhow::Result<()> {
    let (now, _) = quorate.all_at(0).await?;
    for at in compacted..=now {
        let (expected, actual) = (quorate.all_at(at).await?, restored.all_at(at).await?);
        anyhow::ensure!(
            expected == actual,
            "at {at}: {expected:?}, restored {actual:?}"
        );
    }
    for (clients, name) in [(&mut *quorate, "quorate"), (&mut *restored, "restored")] {
        for (at, text) in [
            (
                compacted - 1,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                now + 1,
                "etcdserver: mvcc: required revision is a future revision",
            ),
        ] {
            let refused = clients
                .all_at(at)
                .await
                .err()
                .context("a revision too many")?;
            assert_eq!(
                (refused.code(), refused.message()),
                (Code::OutOfRange, text),
                "{name}"
            );
        }
    }
    let (expected, actual) = (quorate.leases().await?, restored.leases().await?);
    assert_eq!(expected, actual, "leases");
    let expected = quorate.events_from(compacted).await?;
    let actual = restored.events_from(compacted).await?;
    assert_eq!(expected.0, now + 1, "the marker's revision");
    assert_eq!(expected, actual, "events");
    anyhow::ensure!(
        !expected.1.is_empty(),
        "a history without events proves nothing"
    );
    Ok(())
}

/// One history: at which of its steps it is compacted, and whether that is one at which etcd's 3.4
/// line forgets what newer ones (and quorate) keep: a deletion at the compact revision itself.
struct History {
    seed: u64,
    steps: usize,
    compact_after: usize,
    ends_in_deletion: bool,
}

async fn leaves_for(release: &Release, history_of: &History) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let quorate = ProcessCluster::start(Path::new(env!("CARGO_BIN_EXE_quorate")), 1, &[]).await?;
    let etcd = Etcd::start(release.server.clone()).await?;
    let mut ours = Clients::connect(quorate.endpoint(0)).await?;
    let mut theirs = Clients::connect(etcd.endpoint()).await?;

    let negative_leases = release.keeps_negative_leases;
    let mut steps = history(negative_leases, history_of.seed, history_of.steps);
    if !history_of.ends_in_deletion {
        // Compact at a put: all releases keep the same then.
        let put = Step::Change(vec![txn::put("compacted", "here").into()]);
        steps.insert(history_of.compact_after, put);
    }
    let mut compacted = 0;
    for (i, step) in steps.into_iter().enumerate() {
        let (expected, actual) = (theirs.take(step.clone()).await?, ours.take(step).await?);
        anyhow::ensure!(expected == actual, "step {i}: {expected}, quorate {actual}");
        if i == history_of.compact_after {
            compacted = actual;
        }
    }
    if history_of.ends_in_deletion {
        compacted = ours.all_at(0).await?.0;
    }
    ours.compact(compacted).await?;
    theirs.compact(compacted).await?;

    let file = folder.path().join("quorate.db");
    let address = |url: &str| url.trim_start_matches("http://").to_owned();
    let told = saved(&release.ctl, &address(quorate.endpoint(0)), &file)?;
    if !history_of.ends_in_deletion {
        let items = told["totalKey"].as_u64().context("totalKey")? - release.missing_items;
        let expected = (told["revision"].clone(), Some(items));
        // A young etcd writes a few facts of its own a moment later, such as its cluster's version.
        let mut said = Value::Null;
        let alike = eventually("etcd's own snapshot holds the same", PATIENCE, || {
            let file = folder.path().join("etcd.db");
            said = saved(&release.ctl, &address(etcd.endpoint()), &file).unwrap_or_default();
            let alike = (said["revision"].clone(), said["totalKey"].as_u64()) == expected;
            async move { alike.then_some(()) }
        });
        alike.await.with_context(|| format!("quorate {told}"))?;
    }
    drop(etcd);

    let restored = Etcd::restored(release.server.clone(), &release.restorer, &file).await?;
    let mut restored = Clients::connect(restored.endpoint()).await?;
    compare(&mut ours, &mut restored, compacted).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_etcd_goes_on_from_a_snapshot_of_quorate() -> anyhow::Result<()> {
    let releases = releases();
    for release in &releases {
        for seed in [1, 2] {
            let context = format!("{}, seed {seed}", release.server.display());
            println!("{context}");
            let in_the_middle = History {
                seed,
                steps: 200,
                compact_after: 120,
                ends_in_deletion: false,
            };
            leaves_for(release, &in_the_middle).await.context(context)?;
        }
        let at_the_end = History {
            seed: 3,
            steps: 60,
            compact_after: 0,
            ends_in_deletion: true,
        };
        leaves_for(release, &at_the_end)
            .await
            .with_context(|| format!("{}, at the end", release.server.display()))?;
    }
    println!("{} releases of etcd go on", releases.len());
    Ok(())
}
