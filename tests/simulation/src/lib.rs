//! Recipes in simulated worlds. One seed is one world: a store in memory, a few clients with faulty
//! connections and clocks of their own, and a nemesis, all on one thread and in virtual time, so the
//! same seed is the same world each time. Clients use a recipe through a storm of faults; then it is
//! calm, and everything must come to an end in time and leave nothing behind. At last the history of
//! the store, revision by revision, is checked for what the recipe promises.
//!
//! `simulate --recipe mutex --seeds 10000` runs many; `simulate --recipe mutex --seed 17` shows one.
//!
//! # Adding a recipe
//!
//! One file in `scenarios/`, one line in its list:
//!
//! ```
//! use quorate_recipes::{Result, Session};
//! use quorate_simulation::{History, Player, Scenario, fenced::{Ledger, Line}};
//!
//! struct Mutex {
//!     ledger: Ledger, // what the clients were told about their fenced writes
//! }
//!
//! impl Scenario for Mutex {
//!     const NAME: &'static str = "mutex";
//!
//!     fn new() -> Self {
//!         Self { ledger: Ledger::default() }
//!     }
//!
//!     // One use of the recipe by one client, again and again. It may be dropped at any await: what a
//!     // checker needs is noted at once, and what a drop means is noted by a `Drop`. Random choices
//!     // come from the player. An error says that the client may go on, unless nothing
//!     // explains it (see `Scenario::may_meet`); a new session is opened when that one is lost.
//!     async fn step(&self, player: &Player, session: &Session) -> Result<()> {
//!         let guard = player.client().mutex("m").lock(session).await?;
//!         let held = self.ledger.granted(player, guard); // notes the drop
//!         self.ledger.put(player, &held, "data/value", "x").await?;
//!         player.pause(300).await;
//!         held.into_inner().release().await
//!     }
//!
//!     // Looks at every commit, in order, and at what the clients were told.
//!     fn check(&self, history: &History) -> std::result::Result<(), String> {
//!         self.ledger.check(history, &Line::under("quorate/lock/m/"))
//!     }
//! }
//!
//! let world = quorate_simulation::run::<Mutex>(17);
//! assert_eq!(world.broken, None);
//! assert!(world.operations >= 100);
//! ```
//!
//! What is not a hold has promises of its own: keep what clients were told in the scenario (it is on
//! one thread: a `RefCell` will do), and judge it against [`History::commits`]. A client that was told
//! "unknown" was told nothing; a client whose future was dropped neither.

pub mod effects;
pub mod faults;
pub mod fenced;
mod gatherings;
mod history;
mod nemesis;
mod panics;
mod player;
mod scenario;
pub mod scenarios;
pub mod sweep;
mod telling;
mod world;

pub use faults::Faults;
pub use history::{History, Log, Losses, key_of, number_of, state_at, value_of};
pub use player::Player;
pub use scenario::Scenario;
pub use world::{Outcome, run};
