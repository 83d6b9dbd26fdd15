//! Balancing load over the instances of a service: which one takes the next call.
//!
//! ```no_run
//! # use quorate_recipes::{Client, balance::Policy};
//! # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let discovery = client.discover::<()>("api").await?;
//! let balancer = discovery.balancer(Policy::default());
//! let pick = balancer.pick()?;
//! match call(&pick.address).await {
//!     Ok(_) => pick.success(),
//!     Err(_) => pick.failure(),
//! }
//! # Ok(()) }
//! # async fn call(_: &str) -> Result<(), ()> { Ok(()) }
//! ```
//!
//! `policy` is what one chooses from, `balancer` picks, `table` is one view made ready for that, `chooser`
//! a policy at work on it: in turn (`stride`), drawn (`draw`, `latency`), by key (`hashed`, `sticky`), as
//! its user wants (`own`). `ejection` leaves failing instances alone, `subset` thins out large fleets.
//!
//! For gRPC clients `grpc` makes every call a pick. `tower` and `channel` hand the instances on to the
//! balancers of tower and tonic.

mod balancer;
mod call;
mod channel;
mod chooser;
mod connected;
mod draw;
mod ejection;
mod group;
mod grpc;
mod hashed;
mod incarnation;
mod latency;
mod own;
mod pick;
mod policy;
mod sticky;
mod stride;
mod subset;
mod table;
#[cfg(test)]
mod tests;
mod tower;

pub use balancer::{Balancer, BalancerBuilder, Load};
pub use ejection::Ejection;
pub use grpc::{BalanceKey, BalancedChannel};
pub use own::{Choice, Choices};
pub use pick::{NoInstance, Pick};
pub use policy::Policy;
