//! The gRPC services that this program serves beside the core's: etcd's Lock and Election. They
//! queue like the recipes and like etcd's own clients, so all of them exclude each other.
//!
//! etcd passes the errors of these two services on without mapping them, so whatever the store says
//! comes with the code Unknown here, and clients match on the text.

mod election;
mod lock;
mod queue;

use quorate::core::api::http::gateway::Route;
use quorate::core::error::Error;
use quorate::core::node::Node;
use quorate::core::tasks::Tasks;
use quorate::proto::Reason;
use quorate::proto::limits::GRPC_OVERHEAD_BYTES;
use quorate::proto::v3electionpb::election_server::ElectionServer;
use quorate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use quorate::proto::v3lockpb::lock_server::LockServer;
use quorate::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::Status;
use tonic::codec::CompressionEncoding;
use tonic::service::RoutesBuilder;

use self::queue::Queues;

/// The JSON routes of these services.
#[rustfmt::skip]
pub(crate) const ROUTES: [Route; 7] = [
    Route::unary::<LockRequest, LockResponse>("/v3/lock/lock", "/v3lockpb.Lock/Lock"),
    Route::unary::<UnlockRequest, UnlockResponse>("/v3/lock/unlock", "/v3lockpb.Lock/Unlock"),
    Route::unary::<CampaignRequest, CampaignResponse>("/v3/election/campaign", "/v3electionpb.Election/Campaign"),
    Route::unary::<ProclaimRequest, ProclaimResponse>("/v3/election/proclaim", "/v3electionpb.Election/Proclaim"),
    Route::unary::<LeaderRequest, LeaderResponse>("/v3/election/leader", "/v3electionpb.Election/Leader"),
    Route::server_streaming::<LeaderRequest, LeaderResponse>("/v3/election/observe", "/v3electionpb.Election/Observe"),
    Route::unary::<ResignRequest, ResignResponse>("/v3/election/resign", "/v3electionpb.Election/Resign"),
];

/// Adds the services of `node` to `routes`. Calls that wait end when `serving` is cancelled; what
/// they leave behind is cleaned up by its tasks.
pub(crate) fn add(routes: &mut RoutesBuilder, node: &Node, serving: &Tasks) {
    let limit = node.limits().max_request_bytes + GRPC_OVERHEAD_BYTES;
    let queues = Queues::new(node.clone(), serving.clone());
    let lock = lock::Lock::new(queues.clone());
    let election = election::Election::new(queues);
    routes
        .add_service(
            LockServer::new(lock)
                .max_decoding_message_size(limit)
                .accept_compressed(CompressionEncoding::Gzip),
        )
        .add_service(
            ElectionServer::new(election)
                .max_decoding_message_size(limit)
                .accept_compressed(CompressionEncoding::Gzip),
        );
}

/// An error of the store in these services: its text alone, unless the member stops.
fn unmapped(error: Error) -> Status {
    let status = Status::from(error);
    if status.message() == Reason::Stopped.text() {
        return status;
    }
    Status::unknown(status.message())
}
