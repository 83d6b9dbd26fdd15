//! Broken groups: members that leave in the wrong way, and observers that say so.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::keys::Revision;
use quorate_recipes::membership::{Departure, MemberEvent, MemberView};
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Group, KeyRange, LeaseId, Result, Session};
use quorate_simulation::{History, Player, Scenario, scenarios};

use super::mutants::is_found;

const SPACE: &str = "quorate/member/g/";

/// A member that leaves by deleting its key: nobody can tell that from a crash.
struct NoFarewell(scenarios::Membership);

impl Scenario for NoFarewell {
    const NAME: &'static str = "a member that leaves without a word";

    fn new() -> Self {
        Self(Scenario::new())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let group: Group<u64> = player.client().group("g");
        let membership = group.join(session, 0).await?;
        player.pause(500).await;
        let key = format!("{SPACE}{}", membership.id());
        player.client().delete(&key).await?;
        Ok(())
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn a_member_that_leaves_without_a_word_is_found() {
    is_found::<NoFarewell>("without a word");
}

/// A group in which a member that was not heard of for a while is said to have left.
struct SaidToLeave(scenarios::Membership);

impl Scenario for SaidToLeave {
    const NAME: &'static str = "a silent member that is said to leave";

    fn new() -> Self {
        Self(Scenario::new())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        if player.one_in(2) {
            return self.0.step(player, session).await;
        }
        let members = ops::oldest(KeyRange::prefix(SPACE), 1);
        let oldest = player.client().store().range(members).await?.kvs;
        if let Some(kv) = oldest.into_iter().next() {
            let farewell = Bytes::from_static(br#"{"v":1,"left":true}"#);
            let unheard = Compare::mod_revision(kv.key.clone(), Revision(kv.mod_revision));
            let request = TxnRequest {
                compare: vec![unheard.into()],
                success: vec![ops::put(kv.key, farewell, Some(LeaseId(kv.lease)))],
                ..Default::default()
            };
            player.client().store().txn(request).await?;
        }
        Ok(())
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn a_silent_member_that_is_said_to_leave_is_found() {
    is_found::<SaidToLeave>("unasked");
}

/// Observers that compare views: they see who is gone, and take all of them to have gone in one way.
struct Differences<const CLEAN: bool>(scenarios::Membership);

async fn observe(
    told: &scenarios::Membership,
    player: &Player,
    departure: Departure,
) -> Result<()> {
    let group: Group<u64> = player.client().group("g");
    let mut members = group.members().await?;
    let mut before: Arc<MemberView<u64>> = members.view();
    for member in &before.members {
        told.hears(player, &MemberEvent::Joined(Arc::clone(member)));
    }
    told.begins(player);
    loop {
        told.sees(player, &before);
        let now = members.changed().await?;
        for member in &before.members {
            if now.member(&member.id).is_none() {
                let member = Arc::clone(member);
                told.hears(player, &MemberEvent::Left { member, departure });
            }
        }
        for member in &now.members {
            let now = Arc::clone(member);
            match before.member(&now.id) {
                None => told.hears(player, &MemberEvent::Joined(now)),
                Some(before) if before.modified == now.modified => {}
                Some(before) => {
                    let before = Arc::clone(before);
                    told.hears(player, &MemberEvent::Updated { before, now });
                }
            }
        }
        before = now;
    }
}

impl<const CLEAN: bool> Scenario for Differences<CLEAN> {
    const NAME: &'static str = "departures from the difference of views";

    fn new() -> Self {
        Self(Scenario::new())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        self.0.step(player, session).await
    }

    async fn attend(&self, player: &Player) {
        let departure = match CLEAN {
            true => Departure::Clean,
            false => Departure::Expired,
        };
        if let Err(error) = observe(&self.0, player, departure).await {
            panic!("an observer failed: {error}");
        }
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn a_clean_leave_that_is_told_as_an_expiry_is_found() {
    is_found::<Differences<false>>("Expired), and it went Some(Clean)");
}

#[test]
fn an_expiry_that_is_told_as_a_clean_leave_is_found() {
    is_found::<Differences<true>>("Clean), and it went Some(Expired)");
}
