//! The gRPC calls of clients, by method and outcome.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::{counter, gauge};
use crate::api::grpc::Traffic;

pub(super) fn encode(encoder: &mut DescriptorEncoder, traffic: &Traffic) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "grpc_server_started",
        "Calls that have begun",
        None,
        MetricType::Counter,
    )?;
    for counted in traffic.methods() {
        let method = counted.method;
        let labels = [
            ("grpc_type", method.kind),
            ("grpc_service", method.service.as_str()),
            ("grpc_method", method.name.as_str()),
        ];
        ConstCounter::new(counted.started()).encode(family.encode_family(&labels)?)?;
    }
    let mut family = encoder.encode_descriptor(
        "grpc_server_handled",
        "Calls that have ended, by their code",
        None,
        MetricType::Counter,
    )?;
    for counted in traffic.methods() {
        let method = counted.method;
        for (code, count) in counted.handled() {
            let labels = [
                ("grpc_type", method.kind),
                ("grpc_service", method.service.as_str()),
                ("grpc_method", method.name.as_str()),
                ("grpc_code", code),
            ];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    gauge(
        encoder,
        "etcd_debugging_mvcc_watch_stream_total",
        "Watch streams that are open",
        traffic.under_way("/etcdserverpb.Watch/Watch"),
    )?;
    counter(
        encoder,
        "etcd_network_client_grpc_received_bytes",
        "Bytes of messages that came from clients",
        traffic.received_bytes(),
    )?;
    counter(
        encoder,
        "etcd_network_client_grpc_sent_bytes",
        "Bytes of messages that went to clients",
        traffic.sent_bytes(),
    )
}
