//! Server reflection: tells tools such as grpcurl which services there are and what they speak.

use quorate_proto::FILE_DESCRIPTOR_SET;
use tonic::service::RoutesBuilder;
use tonic_reflection::server::{Builder, Error};

/// Services that are there beside those of the API.
const STANDARD: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Adds reflection, in both versions that tools ask for, which lists these services.
///
/// # Errors
/// Descriptors that cannot be read: a fault of the build.
pub(crate) fn add_reflection<'a>(
    routes: &mut RoutesBuilder,
    services: impl IntoIterator<Item = &'a str>,
) -> Result<(), Error> {
    let names: Vec<&str> = services.into_iter().chain(STANDARD).collect();
    let builder = || {
        let builder = Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let named = names.iter().copied();
        named.fold(builder, Builder::with_service_name)
    };
    routes
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?);
    Ok(())
}
