//! The methods of the API by their gRPC paths, read from its descriptors. Used to check the gateway's
//! routes, to name what is counted, and by whoever passes calls on.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;
use prost_types::FileDescriptorSet;
use quorate_proto::FILE_DESCRIPTOR_SET;

/// One method of a gRPC service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Method {
    /// Package and service.
    pub service: String,
    /// Name within the service.
    pub name: String,
    /// `unary`, or which sides stream, in the words of etcd's metrics.
    pub kind: &'static str,
}

static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    let files = [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let files = files.into_iter().flat_map(|encoded| {
        let set = FileDescriptorSet::decode(encoded);
        set.expect("the build compiled these descriptors").file
    });
    files.flat_map(in_file).collect()
});

/// All methods of the API by path, `/package.Service/Method`, those of members among each other and of
/// gRPC's health service included.
#[must_use]
pub fn methods() -> &'static HashMap<String, Method> {
    &METHODS
}

fn in_file(file: prost_types::FileDescriptorProto) -> Vec<(String, Method)> {
    let package = file.package().to_owned();
    let services = file.service.into_iter();
    let methods = services.flat_map(|service| {
        let service_name = format!("{package}.{}", service.name());
        service.method.into_iter().map(move |method| {
            let kind = match (method.client_streaming(), method.server_streaming()) {
                (false, false) => "unary",
                (true, false) => "client_stream",
                (false, true) => "server_stream",
                (true, true) => "bidi_stream",
            };
            let found = Method {
                service: service_name.clone(),
                name: method.name().to_owned(),
                kind,
            };
            (format!("/{service_name}/{}", method.name()), found)
        })
    });
    methods.collect()
}
