//! How an instance is written: the JSON of etcd's gRPC naming, `{"Op":0,"Addr":..,"Metadata":..}`,
//! with what is ours inside `Metadata`.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::checks::Health;
use super::instance::{Instance, Status};
use super::view::Endpoint;
use crate::error::Result;
use crate::keys::{Key, KeySpace, LeaseId, Revision, decode};
use crate::value::{Json, Value};

/// The whole value. `Op` is 0 for an address that is there.
#[derive(Debug, Serialize, Deserialize)]
struct Update<T> {
    #[serde(rename = "Op", default)]
    op: u8,
    #[serde(rename = "Addr", default)]
    addr: String,
    #[serde(rename = "Metadata", default)]
    metadata: T,
}

/// `Metadata` as we write it.
#[derive(Debug, Serialize, Deserialize)]
struct Ours<M> {
    /// The version of this record; also the mark by which it is known as ours.
    quorate: u32,
    #[serde(default)]
    status: Status,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    tags: BTreeSet<String>,
    /// What its own checks have found, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    health: Option<Health>,
    /// Different for every registration, so that it knows its own key again.
    nonce: String,
    /// Written just before a clean leave, so that it is told from a crash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
    meta: M,
}

fn one() -> u32 {
    1
}

/// The value for `key`; with `left`, its last one before a clean leave.
pub(super) fn write<M: Serialize>(
    key: &Key,
    instance: &Instance<M>,
    health: Option<&Health>,
    nonce: &str,
    left: bool,
) -> Result<Bytes> {
    let update = Update {
        op: 0,
        addr: instance.address.clone(),
        metadata: Ours {
            quorate: 1,
            status: instance.status,
            weight: instance.weight,
            zone: instance.zone.clone(),
            version: instance.version.clone(),
            tags: instance.tags.clone(),
            health: health.cloned(),
            nonce: nonce.to_owned(),
            left,
            meta: &instance.meta,
        },
    };
    Value::from(Json(&update)).into_bytes(key)
}

/// Whether a value was written by the registration with this nonce.
pub(super) fn is_of(value: &[u8], nonce: &str) -> bool {
    let update: Option<Update<serde_json::Value>> = serde_json::from_slice(value).ok();
    let found = update.as_ref().and_then(|u| u.metadata.get("nonce"));
    found.and_then(serde_json::Value::as_str) == Some(nonce)
}

/// What a key of a service says.
pub(crate) enum Reading<M> {
    /// An instance is there.
    There(Endpoint<M>),
    /// The instance is about to leave.
    Leaving,
    /// Not an instance's value.
    Unreadable(String),
}

/// Reads a key of a service. Instances of other programs have status up, weight 1, and their whole
/// metadata as meta, if it fits.
pub(crate) fn read<M: DeserializeOwned>(space: &KeySpace, kv: &KeyValue) -> Reading<M> {
    let Some(suffix) = space.suffix(&kv.key) else {
        return Reading::Unreadable("not a key of the service".to_owned());
    };
    let update: Update<serde_json::Value> = match serde_json::from_slice(&kv.value) {
        Ok(update) => update,
        Err(error) => return Reading::Unreadable(error.to_string()),
    };
    let id = decode(suffix).unwrap_or_else(|| suffix.to_owned());
    let mut endpoint = Endpoint {
        id,
        address: update.addr,
        status: Status::Up,
        weight: 1,
        zone: String::new(),
        version: String::new(),
        tags: BTreeSet::new(),
        health: None,
        meta: None,
        created: Revision(kv.create_revision),
        modified: Revision(kv.mod_revision),
        lease: LeaseId(kv.lease),
        suspect_since: None,
    };
    if update.metadata.get("quorate").is_none() {
        endpoint.meta = serde_json::from_value(update.metadata).ok().map(Arc::new);
        return Reading::There(endpoint);
    }
    let ours: Ours<serde_json::Value> = match serde_json::from_value(update.metadata) {
        Ok(ours) => ours,
        Err(error) => return Reading::Unreadable(error.to_string()),
    };
    if ours.left {
        return Reading::Leaving;
    }
    endpoint.status = ours.status;
    endpoint.weight = ours.weight;
    endpoint.zone = ours.zone;
    endpoint.version = ours.version;
    endpoint.tags = ours.tags;
    endpoint.health = ours.health;
    endpoint.meta = serde_json::from_value(ours.meta).ok().map(Arc::new);
    Reading::There(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(value: impl Into<Bytes>) -> KeyValue {
        KeyValue {
            key: "svc/a%2Fb".into(),
            value: value.into(),
            create_revision: 3,
            mod_revision: 5,
            ..Default::default()
        }
    }

    fn read_back<M: DeserializeOwned>(value: impl Into<Bytes>) -> Endpoint<M> {
        match read(&KeySpace::raw("svc"), &kv(value)) {
            Reading::There(endpoint) => endpoint,
            Reading::Leaving => panic!("leaving"),
            Reading::Unreadable(why) => panic!("{why}"),
        }
    }

    #[test]
    fn an_instance_is_read_back_and_has_the_form_that_go_reads() {
        let instance = Instance::builder("svc").address("h:1").weight(3);
        let instance = instance.zone("eu-1").version("2.1").tag("gpu").tag("big");
        let instance = instance.meta(vec![1, 2]).status(Status::Draining).build();
        let value = write(&"svc/x".into(), &instance, None, "n1", false).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&value).unwrap();
        assert_eq!((&json["Op"], &json["Addr"]), (&0.into(), &"h:1".into()));
        assert!(is_of(&value, "n1") && !is_of(&value, "n2"));
        let endpoint: Endpoint<Vec<u8>> = read_back(value.clone());
        assert_eq!((endpoint.id.as_str(), endpoint.weight), ("a/b", 3));
        assert_eq!(endpoint.status, Status::Draining);
        let said = (endpoint.zone.as_str(), endpoint.version.as_str());
        assert_eq!(said, ("eu-1", "2.1"));
        assert!(endpoint.tags.iter().eq(["big", "gpu"]));
        assert_eq!(endpoint.meta, Some(Arc::new(vec![1, 2])));
        // Meta of another type does not hide the instance.
        assert_eq!(read_back::<String>(value).meta, None);
        let last = write(&"svc/x".into(), &instance, None, "n1", true).unwrap();
        assert!(matches!(
            read::<()>(&KeySpace::raw("svc"), &kv(last)),
            Reading::Leaving
        ));
    }

    #[test]
    fn instances_of_other_programs_are_read() {
        let endpoint: Endpoint<String> =
            read_back(r#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":"zone-a"}"#);
        assert_eq!(endpoint.address, "10.0.0.1:80");
        assert_eq!(endpoint.meta, Some(Arc::new("zone-a".to_owned())));
        assert_eq!((endpoint.status, endpoint.weight), (Status::Up, 1));
        assert!(endpoint.zone.is_empty() && endpoint.tags.is_empty());
        let plain: Endpoint<()> = read_back(r#"{"Addr":"10.0.0.1:80"}"#);
        assert_eq!(plain.address, "10.0.0.1:80");
        let broken = read::<()>(&KeySpace::raw("svc"), &kv("10.0.0.1:80"));
        assert!(matches!(broken, Reading::Unreadable(_)));
    }
}
