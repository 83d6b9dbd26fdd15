//! What makes a storm: one trouble after the other, until it is stopped.

use std::cell::RefCell;
use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::clock::{Clock, SystemClock};
use quorate_recipes::store::faulty::Outage;
use quorate_recipes::store::{MemStore, Store, ops};
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::faults::{Faults, Trouble};
use crate::history::{Log, Losses};
use crate::player::Player;

/// More compactions than come in one strike.
const COMPACTIONS_MAX: u32 = 20;

/// Makes trouble for the players of a world.
pub(crate) struct Nemesis<'a> {
    pub(crate) store: &'a MemStore,
    pub(crate) players: &'a [Player],
    pub(crate) log: &'a Log,
    pub(crate) faults: &'a RefCell<Faults>,
    /// What the store has lost by its doing.
    pub(crate) losses: &'a RefCell<Losses>,
    /// The longest time to live of the players' leases.
    pub(crate) ttl: Duration,
}

impl Nemesis<'_> {
    /// Goes on for ever. When it is dropped, what it has broken stays so; see [`Nemesis::heal`].
    pub(crate) async fn rage(&self, mut random: SmallRng) {
        loop {
            let pause = random.random_range(100..4000);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let player = &self.players[random.random_range(0..self.players.len())];
            match random.random_range(0..10) {
                0..2 => self.compact(player, &mut random).await,
                2..4 => self.lose_a_lease(&mut random),
                4..6 => self.stop_a_clock(player, &mut random).await,
                6..8 => self.change_leader(&mut random).await,
                _ => self.disconnect(player, &mut random).await,
            }
        }
    }

    /// Puts everything right.
    pub(crate) fn heal(&self) {
        for player in self.players {
            player.connection().reconnect();
            player.clock().go_on();
        }
    }

    fn strike(&self, trouble: Trouble, on: &str) {
        self.faults.borrow_mut().count(trouble);
        self.log.note(format!("nemesis: {trouble:?} {on}"));
    }

    /// All watches end, again and again, and each time what was is compacted: who comes back a moment
    /// later finds that what it missed cannot be told. One client perhaps was away for a while before, in
    /// which others wrote.
    async fn compact(&self, player: &Player, random: &mut SmallRng) {
        self.strike(Trouble::Resync, &format!("player {}", player.index()));
        if random.random() {
            player.connection().disconnect(outage(random));
            let length = random.random_range(100..2000);
            tokio::time::sleep(Duration::from_millis(length)).await;
        }
        for _ in 0..random.random_range(1..COMPACTIONS_MAX) {
            // The store is not the players' alone, and so what they have just read is old.
            let write = TxnRequest {
                success: vec![ops::put("elsewhere", "".into(), None)],
                ..Default::default()
            };
            let written = self.store.txn(write).await;
            written.expect("this store does not fail");
            self.losses.borrow_mut().resyncs.push(SystemClock.now());
            self.store.end_watches();
            // Refused when another strike has just done the same; the watches have ended anyway.
            drop(self.store.compact(self.store.revision()));
            player.connection().reconnect();
            let pause = random.random_range(5..150);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    fn lose_a_lease(&self, random: &mut SmallRng) {
        let leases = self.store.leases();
        if leases.is_empty() {
            return;
        }
        let lease = leases[random.random_range(0..leases.len())];
        self.strike(Trouble::LeaseLoss, &lease.to_string());
        self.losses.borrow_mut().leases.insert(lease);
        assert!(self.store.expire(lease), "it was just there");
    }

    async fn stop_a_clock(&self, player: &Player, random: &mut SmallRng) {
        self.strike(Trouble::StoppedClock, &format!("player {}", player.index()));
        player.clock().stop();
        let extra = random.random_range(100..3000);
        tokio::time::sleep(self.ttl + Duration::from_millis(extra)).await;
        player.clock().go_on();
    }

    async fn change_leader(&self, random: &mut SmallRng) {
        self.strike(Trouble::LeaderChange, "");
        for player in self.players {
            player.connection().disconnect(outage(random));
        }
        self.store.end_watches();
        let length = random.random_range(200..3000);
        tokio::time::sleep(Duration::from_millis(length)).await;
        self.store.rearm_leases();
        for player in self.players {
            player.connection().reconnect();
        }
    }

    async fn disconnect(&self, player: &Player, random: &mut SmallRng) {
        self.strike(
            Trouble::Disconnection,
            &format!("player {}", player.index()),
        );
        player.connection().disconnect(outage(random));
        let length = self.ttl.mul_f64(random.random_range(0.1..1.5));
        tokio::time::sleep(length).await;
        player.connection().reconnect();
    }
}

fn outage(random: &mut SmallRng) -> Outage {
    match random.random::<bool>() {
        true => Outage::Refused,
        false => Outage::Silent,
    }
}
