//! Service registry and discovery. An instance of a service is a leased key; whoever looks for the
//! service keeps a view of all its instances. Values are in the JSON form of etcd's gRPC naming, so
//! a Go gRPC client with etcd's resolver finds the same instances.
//!
//! `instance` is what is registered, `registration` what its owner holds, `checks` look after it, `record` is
//! how it is written, `discovery` follows a service, `tracker` decides what a view shows, by who
//! `vanished` and what `farewells` there were, `snapshot` is a file to start from.

mod checks;
mod discovery;
mod farewells;
mod instance;
mod instances;
mod record;
mod registration;
mod snapshot;
#[cfg(test)]
mod tests;
mod tracker;
mod vanished;
mod view;

pub use checks::{Checks, Health};
pub use discovery::{Discover, Discovery};
pub use instance::{Instance, InstanceBuilder, Status};
pub use instances::{Instances, Iter};
pub(crate) use record::{Reading, read};
pub use registration::{Registration, RegistrationState};
pub use tracker::MassLoss;
pub use view::{Change, Endpoint, ServiceView};

pub use crate::departure::Departure;

/// The kind of key space that services live in.
pub(crate) const KIND: &str = "service";
