//! One store under comparison, a real etcd or quorate: does operations and gives answers in which
//! ids mean the same for every store.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::etcd::Etcd;
use quorate_proto::etcdserverpb::cluster_client::ClusterClient;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{
    AlarmRequest, DefragmentRequest, HashRequest, LeaseLeasesRequest, MemberListRequest,
    ResponseHeader, StatusRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest,
};
use quorate_proto::v3electionpb::election_client::ElectionClient;
use quorate_proto::v3lockpb::lock_client::LockClient;
use tonic::Response;
use tonic::transport::Channel;

use super::normalise::normalise;
use super::op::{Answer, CHOSEN_LEASES, OWN_MEMBER, Op, Refusal, Reply};
use super::parts::{Part, leases_of, parts_of, parts_of_event};
use super::streams::{KeepAlives, Told, WatchStream};

/// Answers may be as large as they like, as with etcd's own clients.
const ANSWER_BYTES_MAX: usize = usize::MAX;

/// Longer than the default, so that a busy machine changes no leader: a member alone has no other
/// to lose it to, but a lease of the shortest time to live lives on it.
const ELECTION_TIMEOUT: [&str; 2] = ["--election-timeout", "3000"];

/// A running server and its clients.
#[derive(Debug)]
pub(crate) struct Store {
    _server: Server,
    pub clients: Clients,
    keep_alives: KeepAlives,
    /// On which everything is watched from the first revision on.
    everything: WatchStream,
    streams: Vec<WatchStream>,
    ids: Ids,
    /// Whether it answers a request for progress in every case.
    always_tells_progress: bool,
}

#[derive(Debug)]
enum Server {
    Etcd { _process: Etcd },
    Quorate { _process: ProcessCluster },
}

/// The clients of one server, on one connection.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    pub kv: KvClient<Channel>,
    pub lease: LeaseClient<Channel>,
    pub watch: WatchClient<Channel>,
    pub maintenance: MaintenanceClient<Channel>,
    pub cluster: ClusterClient<Channel>,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
}

impl Clients {
    async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let channel = Channel::from_shared(endpoint.to_owned())?.connect().await?;
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let watch = WatchClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self {
            kv,
            watch,
            lease: LeaseClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel),
        })
    }
}

/// What this store's own ids mean.
#[derive(Debug, Default)]
struct Ids {
    cluster: u64,
    member: u64,
    /// Leases whose ids the server chose, in order of their grants.
    leases: Vec<i64>,
    meanings: HashMap<i64, i64>,
}

impl Ids {
    fn lease_to_send(&self, lease: &mut i64) {
        let nth = lease.checked_sub(CHOSEN_LEASES);
        let chosen = nth.and_then(|nth| usize::try_from(nth).ok());
        if let Some(id) = chosen.and_then(|nth| self.leases.get(nth)) {
            *lease = *id;
        }
    }

    fn granted(&mut self, id: i64) {
        let nth = i64::try_from(self.leases.len()).expect("few leases");
        self.leases.push(id);
        self.meanings.insert(id, CHOSEN_LEASES + nth);
    }

    /// Translates what came; an id that is not this store's stays as it is, and so differs.
    fn translate(&self, part: Part<'_>) {
        match part {
            Part::Header(header) => self.header(header),
            Part::Lease(lease) => *lease = self.meanings.get(lease).copied().unwrap_or(*lease),
        }
    }

    fn header(&self, header: &mut ResponseHeader) {
        if header.cluster_id == self.cluster {
            header.cluster_id = 1;
        }
        self.member(&mut header.member_id);
        header.raft_term = header.raft_term.min(1);
    }

    fn member(&self, id: &mut u64) {
        if *id == self.member {
            *id = OWN_MEMBER;
        }
    }
}

/// Whether a version of etcd answers every request for progress: 3.5.1 does, 3.5.30 does not.
fn always_tells_progress(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    let [major, minor, patch] = [(); 3].map(|()| numbers.next().unwrap_or(0_u32));
    (major, minor, patch) < (3, 5, 8)
}

impl Store {
    /// Starts a real etcd; `arguments` come last, and so count.
    pub(crate) async fn etcd(
        binary: PathBuf,
        version: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let always_tells_progress = always_tells_progress(version);
        let fast = ["--unsafe-no-fsync"];
        let arguments = [&ELECTION_TIMEOUT, arguments, &fast].concat();
        let etcd = Etcd::start_with(binary, &arguments).await?;
        let endpoint = etcd.endpoint().to_owned();
        let server = Server::Etcd { _process: etcd };
        Self::connect(server, &endpoint, always_tells_progress).await
    }

    /// Starts quorate; `arguments` replace the usual ones.
    pub(crate) async fn quorate(arguments: &[&str]) -> anyhow::Result<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_quorate"));
        let arguments = if arguments.is_empty() {
            &ELECTION_TIMEOUT
        } else {
            arguments
        };
        let cluster = ProcessCluster::start(program, 1, arguments).await?;
        let endpoint = cluster.endpoint(0).to_owned();
        let server = Server::Quorate { _process: cluster };
        Self::connect(server, &endpoint, false).await
    }

    async fn connect(
        server: Server,
        endpoint: &str,
        always_tells_progress: bool,
    ) -> anyhow::Result<Self> {
        let mut clients = Clients::connect(endpoint).await?;
        let status = clients.maintenance.status(StatusRequest::default()).await?;
        let header = status.into_inner().header.context("a header")?;
        Ok(Self {
            _server: server,
            keep_alives: KeepAlives::open(clients.lease.clone()),
            everything: WatchStream::open(clients.watch.clone()),
            clients,
            streams: Vec::new(),
            ids: Ids {
                cluster: header.cluster_id,
                member: header.member_id,
                ..Ids::default()
            },
            always_tells_progress,
        })
    }

    /// Opens watch streams, which operations name from 0 on, and one more on which everything is
    /// watched.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn open_streams(&mut self, streams: usize) -> anyhow::Result<()> {
        let everything = Bytes::from_static(b"\0");
        let request = WatchCreateRequest {
            key: everything.clone(),
            range_end: everything,
            start_revision: 1,
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        self.everything.ask(RequestUnion::CreateRequest(request))?;
        self.everything
            .control("created", |answer| answer.created)
            .await?;
        let open = || WatchStream::open(self.clients.watch.clone());
        self.streams.extend((0..streams).map(|_| open()));
        Ok(())
    }

    /// Does one operation. The answer is normalised.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub(crate) async fn answer(&mut self, op: &Op) -> anyhow::Result<Answer> {
        let mut to_send = op.clone();
        leases_of(&mut to_send, &mut |lease| self.ids.lease_to_send(lease));
        if let Op::Alarm(AlarmRequest { member_id, .. }) = &mut to_send
            && *member_id == OWN_MEMBER
        {
            *member_id = self.ids.member;
        }
        let mut answer = self.send(to_send).await?;
        if let (Op::LeaseGrant(request), Ok(Reply::LeaseGrant(granted))) = (op, &answer)
            && request.id == 0
        {
            anyhow::ensure!(granted.id > 0, "the server chose the lease {}", granted.id);
            self.ids.granted(granted.id);
        }
        if let Ok(reply) = &mut answer {
            parts_of(reply, &mut |part| self.ids.translate(part));
            self.members_in(reply);
        }
        normalise(op, &mut answer);
        Ok(answer)
    }

    /// Translates the ids of members outside headers.
    fn members_in(&self, reply: &mut Reply) {
        let own = self.ids.member;
        match reply {
            Reply::Alarm(answer) => {
                for alarm in &mut answer.alarms {
                    self.ids.member(&mut alarm.member_id);
                }
            }
            Reply::Status(answer) => {
                self.ids.member(&mut answer.leader);
                for error in &mut answer.errors {
                    *error = error.replace(&own.to_string(), &OWN_MEMBER.to_string());
                }
            }
            Reply::MemberList(answer) => {
                for member in &mut answer.members {
                    self.ids.member(&mut member.id);
                }
            }
            _ => {}
        }
    }

    async fn send(&mut self, op: Op) -> anyhow::Result<Answer> {
        macro_rules! call {
            ($client:ident . $method:ident ($request:expr) as $reply:ident) => {{
                let answer = self.clients.$client.$method($request).await;
                answer
                    .map(|answer| Reply::$reply(Response::into_inner(answer)))
                    .map_err(Refusal::from)
            }};
        }
        Ok(match op {
            Op::Range(request) => call!(kv.range(request) as Range),
            Op::Put(request) => call!(kv.put(request) as Put),
            Op::DeleteRange(request) => call!(kv.delete_range(request) as DeleteRange),
            Op::Txn(request) => call!(kv.txn(request) as Txn),
            Op::Compact(request) => call!(kv.compact(request) as Compact),
            Op::LeaseGrant(request) => call!(lease.lease_grant(request) as LeaseGrant),
            Op::LeaseRevoke(request) => call!(lease.lease_revoke(request) as LeaseRevoke),
            Op::LeaseTimeToLive(request) => {
                call!(lease.lease_time_to_live(request) as LeaseTimeToLive)
            }
            Op::LeaseLeases => call!(lease.lease_leases(LeaseLeasesRequest {}) as LeaseLeases),
            Op::LeaseKeepAlive(id) => {
                let answer = self.keep_alives.renew(id).await?;
                answer.map(Reply::LeaseKeepAlive).map_err(Refusal::from)
            }
            Op::WatchCreate { stream, request } => {
                self.watch_create(stream, request).await.map(Ok)?
            }
            Op::WatchCancel { stream, id, known } => {
                self.watch_cancel(stream, id, known).await.map(Ok)?
            }
            Op::WatchProgress { stream, in_sync } => {
                self.watch_progress(stream, in_sync).await.map(Ok)?
            }
            Op::Alarm(request) => call!(maintenance.alarm(request) as Alarm),
            Op::Status => call!(maintenance.status(StatusRequest::default()) as Status),
            Op::Hash => call!(maintenance.hash(HashRequest {}) as Hash),
            Op::HashKv(request) => call!(maintenance.hash_kv(request) as HashKv),
            Op::Defragment => call!(maintenance.defragment(DefragmentRequest {}) as Defragment),
            Op::MoveLeader(request) => call!(maintenance.move_leader(request) as MoveLeader),
            Op::Downgrade(request) => call!(maintenance.downgrade(request) as Downgrade),
            Op::MemberList { linearizable } => {
                call!(cluster.member_list(MemberListRequest { linearizable }) as MemberList)
            }
            Op::Lock(request) => call!(lock.lock(request) as Lock),
            Op::Unlock(request) => call!(lock.unlock(request) as Unlock),
            Op::Campaign(request) => call!(election.campaign(request) as Campaign),
            Op::Proclaim(request) => call!(election.proclaim(request) as Proclaim),
            Op::Resign(request) => call!(election.resign(request) as Resign),
            Op::Leader(request) => call!(election.leader(request) as Leader),
        })
    }

    async fn watch_create(
        &mut self,
        stream: usize,
        request: WatchCreateRequest,
    ) -> anyhow::Result<Reply> {
        let stream = &mut self.streams[stream];
        stream.ask(RequestUnion::CreateRequest(request))?;
        let created = stream.control("created", |answer| answer.created).await?;
        Ok(Reply::Watch(created))
    }

    async fn watch_cancel(&mut self, stream: usize, id: i64, known: bool) -> anyhow::Result<Reply> {
        let stream = &mut self.streams[stream];
        let request = WatchCancelRequest { watch_id: id };
        stream.ask(RequestUnion::CancelRequest(request))?;
        if !known {
            return Ok(Reply::Nothing);
        }
        let ended = |answer: &_| is_end_of(answer, id);
        Ok(Reply::Watch(stream.control("canceled", ended).await?))
    }

    async fn watch_progress(&mut self, stream: usize, in_sync: bool) -> anyhow::Result<Reply> {
        let stream = &mut self.streams[stream];
        stream.ask(RequestUnion::ProgressRequest(WatchProgressRequest {}))?;
        if !in_sync && !self.always_tells_progress {
            return Ok(Reply::Nothing);
        }
        let told = stream
            .control("progress", |answer| {
                answer.watch_id == -1 && !answer.created
            })
            .await?;
        Ok(Reply::Watch(told))
    }

    /// What the watcher of everything was told, once it was told of `revision`.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) async fn everything_until(&mut self, revision: i64) -> anyhow::Result<Vec<Told>> {
        self.everything.wait_for_revision(0, revision).await?;
        let mut told = self.everything.take().remove(&0).unwrap_or_default();
        for told in &mut told {
            self.ids.translate_told(told);
        }
        Ok(told)
    }

    /// Waits until on each stream each of its watchers was told so many things, and takes what
    /// they were told.
    ///
    /// # Errors
    /// When one is not told so many, or was told them in pieces that may not be.
    pub(crate) async fn told(
        &mut self,
        due: &[BTreeMap<i64, usize>],
    ) -> anyhow::Result<Vec<BTreeMap<i64, Vec<Told>>>> {
        let mut all = Vec::new();
        for (n, (stream, due)) in self.streams.iter_mut().zip(due).enumerate() {
            let context = || format!("watch stream {n}");
            stream.wait_for(due).await.with_context(context)?;
            let mut taken = stream.take();
            if let Some(torn) = stream.torn() {
                anyhow::bail!("watch stream {n}: {torn}");
            }
            for told in taken.values_mut().flatten() {
                self.ids.translate_told(told);
            }
            all.push(taken);
        }
        Ok(all)
    }
}

impl Ids {
    fn translate_told(&self, told: &mut Told) {
        match told {
            Told::Event(event) => parts_of_event(event, &mut |part| self.translate(part)),
            Told::Control(answer) => {
                if let Some(header) = &mut answer.header {
                    self.header(header);
                }
            }
        }
    }
}

fn is_end_of(answer: &quorate_proto::etcdserverpb::WatchResponse, id: i64) -> bool {
    answer.canceled && answer.watch_id == id && answer.compact_revision == 0
}
