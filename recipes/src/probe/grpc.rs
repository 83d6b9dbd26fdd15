//! The check by gRPC's health service.

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::check::{Answer, because};

pub(super) fn endpoint(uri: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(uri.to_owned());
    let endpoint = endpoint.map_err(|error| format!("{uri:?}: {}", because(&error)))?;
    match endpoint.uri().scheme_str() {
        Some("http") => Ok(endpoint),
        _ => Err(format!("{uri:?} is no http:// endpoint")),
    }
}

pub(super) async fn ask(uri: &str, service: &str) -> Answer {
    let channel = endpoint(uri)?.connect().await;
    let channel = channel.map_err(|error| because(&error))?;
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = HealthClient::new(channel).check(request).await;
    let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        status => Err(status.as_str_name().to_owned()),
    }
}
