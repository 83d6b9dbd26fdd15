//! etcd's Election service.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use quorate::proto::etcdserverpb::{RequestOp, ResponseHeader, TxnRequest, TxnResponse};
use quorate::proto::mvccpb::KeyValue;
use quorate::proto::v3electionpb::election_server;
use quorate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use quorate::recipes::store::{Embedded, ops, ops::Compare};
use quorate::recipes::watch::Watcher;
use quorate::recipes::{Client, KeyRange, LeaseId, Revision};
use tonic::{Request, Response, Status};

use super::queue::{Queues, candidates};

// etcd's texts.
const NO_LEADER_KEY: &str = "\"leader\" field must be provided";
const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";

/// etcd's Election service, for one member.
#[derive(Debug)]
pub(super) struct Election {
    queues: Queues,
}

impl Election {
    pub(super) fn new(queues: Queues) -> Self {
        Self { queues }
    }

    async fn win(&self, request: CampaignRequest) -> Result<CampaignResponse, Status> {
        let CampaignRequest { name, lease, value } = request;
        let lease = self.queues.lease(lease).await?;
        let contender = self.queues.enter(&name, lease, value.clone()).await?;
        let place = contender.place();
        if place.found.as_ref().is_some_and(|kv| kv.value != value) {
            let op = ops::put(place.key.clone(), value, Some(lease));
            self.if_created(&place.key, place.created, op, NOT_LEADER)
                .await?;
        }
        let turn = self.queues.until_stopped(contender.wait_turn()).await?;
        let place = contender.stay();
        // Its key may have gone while it waited: then it must not be told that it leads.
        turn.ok_or_else(|| Status::unknown(NOT_LEADER))?;
        Ok(CampaignResponse {
            header: Some(place.header),
            leader: Some(LeaderKey {
                name,
                key: place.key,
                rev: place.created,
                lease: lease.0,
            }),
        })
    }

    /// Does `op` if `key` is the one created at this revision, or refuses with `otherwise`.
    async fn if_created(
        &self,
        key: &Bytes,
        created: i64,
        op: RequestOp,
        otherwise: &str,
    ) -> Result<Option<ResponseHeader>, Status> {
        let answer = self.when_created(key, created, op).await?;
        if !answer.succeeded {
            return Err(Status::unknown(otherwise));
        }
        Ok(answer.header)
    }

    async fn when_created(
        &self,
        key: &Bytes,
        created: i64,
        op: RequestOp,
    ) -> Result<TxnResponse, Status> {
        let compare = Compare::create_revision(key.clone(), Revision(created));
        let request = TxnRequest {
            compare: vec![compare.into()],
            success: vec![op],
            failure: Vec::new(),
        };
        self.queues.txn(request).await
    }
}

fn leader_key(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    leader.ok_or_else(|| Status::unknown(NO_LEADER_KEY))
}

/// Follows who leads, and what the leader proclaims; silent while nobody does.
struct Observer {
    queues: Queues,
    watcher: Watcher,
    /// The create and mod revision last told.
    told: Option<(i64, i64)>,
}

impl Observer {
    async fn next(&mut self) -> Result<LeaderResponse, Status> {
        loop {
            let batch = self.watcher.next().await;
            let batch = batch.map_err(|error| Status::unknown(error.to_string()))?;
            let order = |kv: &&KeyValue| (kv.create_revision, kv.key.clone());
            let Some(first) = self.watcher.known().values().min_by_key(order) else {
                continue;
            };
            let mark = (first.create_revision, first.mod_revision);
            if self.told == Some(mark) {
                continue;
            }
            self.told = Some(mark);
            let header = ResponseHeader {
                revision: batch.revision.0,
                ..self.queues.node().header()
            };
            return Ok(LeaderResponse {
                header: Some(header),
                kv: Some(first.clone()),
            });
        }
    }
}

#[tonic::async_trait]
impl election_server::Election for Election {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        self.win(request.into_inner()).await.map(Response::new)
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader_key(leader)?;
        let lease: LeaseId = self.queues.lease(leader.lease).await?;
        let op = ops::put(leader.key.clone(), value, Some(lease));
        let header = self
            .if_created(&leader.key, leader.rev, op, NOT_LEADER)
            .await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let name = request.into_inner().name;
        let (header, first) = self.queues.range(ops::oldest(candidates(&name), 1)).await?;
        let kv = first.ok_or_else(|| Status::unknown(NO_LEADER))?;
        Ok(Response::new(LeaderResponse {
            header: Some(header),
            kv: Some(kv),
        }))
    }

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let name = request.into_inner().name;
        let client = Client::new(Embedded::new(self.queues.node().clone()));
        let observer = Observer {
            queues: self.queues.clone(),
            watcher: client.watch(candidates(&name)),
            told: None,
        };
        let leaders = futures::stream::unfold(Some(observer), |observer| async move {
            let mut observer = observer?;
            let queues = observer.queues.clone();
            let told = queues.until_stopped(observer.next()).await;
            let goes_on = told.is_ok().then_some(observer);
            Some((told, goes_on))
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    /// Resigning what is not held any more changes nothing, as on etcd.
    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let leader = leader_key(request.into_inner().leader)?;
        let op = ops::delete(KeyRange::one(leader.key.clone()));
        let answer = self.when_created(&leader.key, leader.rev, op).await?;
        Ok(Response::new(ResignResponse {
            header: answer.header,
        }))
    }
}
