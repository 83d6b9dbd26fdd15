//! etcd's gRPC services, one file each, and what they share.

mod auth;
mod cluster;
mod deadline;
mod health;
mod kv;
mod leader;
mod lease;
mod maintenance;
mod methods;
mod reflection;
mod traffic;
mod until;
mod watch;

pub use auth::Auth;
pub use cluster::Cluster;
pub use health::Health;
pub use kv::Kv;
pub use lease::Lease;
pub use maintenance::Maintenance;
pub use methods::{Method, methods};
pub use watch::Watch;

pub(crate) use deadline::{HEADER as TIMEOUT, keep as keep_deadline};
pub(crate) use leader::require as require_leader;
pub(crate) use reflection::add_reflection;
pub(crate) use traffic::Traffic;

use quorate_proto::etcdserverpb::auth_server::AuthServer;
use quorate_proto::etcdserverpb::cluster_server::ClusterServer;
use quorate_proto::etcdserverpb::kv_server::KvServer;
use quorate_proto::etcdserverpb::lease_server::LeaseServer;
use quorate_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use quorate_proto::etcdserverpb::watch_server::WatchServer;
use quorate_proto::limits::GRPC_OVERHEAD_BYTES;
use tonic::codec::CompressionEncoding;
use tonic::service::RoutesBuilder;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;

use crate::node::Node;
use crate::tasks::Tasks;

/// Adds all services of `node` to `routes`, with etcd's limits on message sizes. Calls that would
/// never end by themselves end when `serving` is cancelled.
pub fn add_services(routes: &mut RoutesBuilder, node: &Node, serving: &Tasks) {
    let limit = message_bytes_max(node);
    let node = || node.clone();
    let serving = || serving.clone();
    macro_rules! add {
        ($($server:ident($service:expr)),* $(,)?) => {$(
            routes.add_service(
                $server::new($service)
                    .max_decoding_message_size(limit)
                    .accept_compressed(CompressionEncoding::Gzip),
            );
        )*};
    }
    add!(
        KvServer(Kv::new(node())),
        WatchServer(Watch::new(node(), serving())),
        LeaseServer(Lease::new(node(), serving())),
        ClusterServer(Cluster::new(node())),
        MaintenanceServer(Maintenance::new(node(), serving())),
        AuthServer(Auth::new(node())),
    );
    let health = HealthServer::new(Health::new(node(), serving()));
    routes.add_service(health.accept_compressed(CompressionEncoding::Gzip));
}

/// The largest message of a client that is taken, in bytes.
pub(crate) fn message_bytes_max(node: &Node) -> usize {
    node.limits().max_request_bytes + GRPC_OVERHEAD_BYTES
}

/// The text of the gRPC library for a message above the decode limit; the numbers follow it.
const TOO_LARGE: &str = "Error, decoded message length too large: found ";

/// Tells a message above the decode limit in etcd's words; other statuses pass unchanged.
#[must_use]
pub fn in_etcds_words(status: Status) -> Status {
    let Some(rest) = status.message().strip_prefix(TOO_LARGE) else {
        return status;
    };
    let mut numbers = rest
        .split(|c: char| !c.is_ascii_digit())
        .filter(|word| !word.is_empty());
    let (Some(found), Some(limit)) = (numbers.next(), numbers.next()) else {
        return status;
    };
    let text = format!("grpc: received message larger than max ({found} vs. {limit})");
    Status::new(Code::ResourceExhausted, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_above_the_limit_is_refused_in_etcds_words() {
        let status = Status::out_of_range(format!(
            "{TOO_LARGE}2097163 bytes, the limit is: 2097152 bytes"
        ));
        let told = in_etcds_words(status);
        assert_eq!(told.code(), Code::ResourceExhausted);
        assert_eq!(
            told.message(),
            "grpc: received message larger than max (2097163 vs. 2097152)"
        );
        assert_eq!(
            in_etcds_words(Status::not_found("x")).code(),
            Code::NotFound
        );
    }
}
