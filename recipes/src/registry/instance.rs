//! One instance of a service, as its owner describes it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::keys::{KeySpace, Name};

/// Whether an instance wants work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// It takes work.
    #[default]
    Up,
    /// It finishes what it has and takes no new work.
    Draining,
    /// It is there, but takes no work.
    Down,
    /// A status that this version does not know.
    #[serde(other)]
    Unknown,
}

/// One instance of a service. `M` is anything else that those who look for it should know.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Instance<M = ()> {
    pub(super) service: Name,
    pub(super) id: String,
    pub(super) replace: bool,
    /// Where it is reached, in whatever form its clients understand.
    pub address: String,
    /// Its share of the work, relative to the other instances. Default: 1.
    pub weight: u32,
    /// Whether it wants work.
    pub status: Status,
    /// Where it stands: a zone, a rack, a region, in whatever words its clients use. May be empty.
    pub zone: String,
    /// The version of what it runs. May be empty.
    pub version: String,
    /// What it can be selected by.
    pub tags: BTreeSet<String>,
    /// What else there is to know.
    pub meta: M,
}

impl Instance {
    /// Describes an instance of this service.
    #[must_use]
    pub fn builder(service: impl Into<Name>) -> InstanceBuilder<()> {
        InstanceBuilder(Instance {
            service: service.into(),
            id: String::new(),
            replace: false,
            address: String::new(),
            weight: 1,
            status: Status::Up,
            zone: String::new(),
            version: String::new(),
            tags: BTreeSet::new(),
            meta: (),
        })
    }
}

impl<M> Instance<M> {
    /// The service it belongs to.
    #[must_use]
    pub fn service(&self) -> &Name {
        &self.service
    }

    /// Its name among the instances of the service.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn space(&self) -> KeySpace {
        self.service.space(super::KIND)
    }
}

/// Builds an [`Instance`].
#[derive(Debug, Clone)]
pub struct InstanceBuilder<M>(Instance<M>);

impl<M> InstanceBuilder<M> {
    /// The instance's name, which no other living instance of the service may have. Default: a
    /// random one.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.0.id = id.into();
        self
    }

    /// Where it is reached. Go's gRPC resolver dials it as it is: `host:port`.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.0.address = address.into();
        self
    }

    /// Its share of the work, relative to the others. Default: 1.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.0.weight = weight;
        self
    }

    /// The status to begin with. Default: [`Status::Up`].
    #[must_use]
    pub fn status(mut self, status: Status) -> Self {
        self.0.status = status;
        self
    }

    /// Where it stands: a zone, a rack, a region, in whatever words its clients use. Default: empty.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.0.zone = zone.into();
        self
    }

    /// The version of what it runs. Default: empty.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.0.version = version.into();
        self
    }

    /// One more tag, which it can be selected by. Default: none.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.0.tags.insert(tag.into());
        self
    }

    /// What else there is to know, written as JSON. Default: nothing.
    #[must_use]
    pub fn meta<N>(self, meta: N) -> InstanceBuilder<N> {
        InstanceBuilder(Instance {
            service: self.0.service,
            id: self.0.id,
            replace: self.0.replace,
            address: self.0.address,
            weight: self.0.weight,
            status: self.0.status,
            zone: self.0.zone,
            version: self.0.version,
            tags: self.0.tags,
            meta,
        })
    }

    /// Takes the id over from an instance that has it, in one step, instead of failing. That one,
    /// if it lives, learns that it was replaced and ends. For a process that was restarted under
    /// its old id before the lease of its former life has run out.
    #[must_use]
    pub fn replace(mut self) -> Self {
        self.0.replace = true;
        self
    }

    /// The instance.
    #[must_use]
    pub fn build(self) -> Instance<M> {
        self.0
    }
}
