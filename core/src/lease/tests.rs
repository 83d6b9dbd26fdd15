//! The lessor's promises, by hand-made instants.

use std::time::Duration;

use super::{Change, Lease, Lessor, Remaining, Renewal};
use crate::clock::{self, Instant};

const ELECTION: Duration = Duration::from_secs(1);
const CHECKPOINT: Duration = Duration::from_secs(300);

fn lease(id: i64, ttl: i64) -> Lease {
    Lease {
        id,
        granted_ttl_seconds: ttl,
        remaining_ttl_seconds: 0,
        granted_at: 0,
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A promoted lessor with these (id, ttl), and the instant of its promotion.
fn leading(leases: &[(i64, i64)]) -> (Lessor, Instant) {
    let lessor = Lessor::new(leases.iter().map(|&(id, ttl)| lease(id, ttl)));
    let start = clock::now();
    lessor.promote(start, ELECTION, CHECKPOINT);
    (lessor, start)
}

#[test]
fn leases_come_due_in_order_of_deadline_and_once() {
    let (lessor, start) = leading(&[(1, 30), (2, 10), (-3, 20)]);
    assert_eq!(lessor.next_deadline(start), Some(start + seconds(10)));
    assert!(lessor.due(start + seconds(9), 10).is_empty());
    assert_eq!(lessor.due(start + seconds(25), 1), [2]);
    assert_eq!(lessor.due(start + seconds(25), 10), [-3]);
    assert!(lessor.due(start + seconds(25), 10).is_empty());
    lessor.commit(&[Change::Ended(2), Change::Ended(-3)]);
    assert_eq!(lessor.ids(), [1]);
    assert_eq!(lessor.due(start + seconds(30), 10), [1]);
}

#[test]
fn a_renewal_counts_from_before_the_barrier_and_never_shortens() {
    let (lessor, start) = leading(&[(1, 10)]);
    assert_eq!(
        lessor.renew(1, start + seconds(5)),
        Renewal::Renewed { ttl_seconds: 10 }
    );
    let _ = lessor.renew(1, start + seconds(2));
    assert_eq!(
        lessor.remaining(1, start + seconds(6)),
        Remaining::Left(seconds(9))
    );
    assert!(lessor.due(start + seconds(14), 10).is_empty());
    assert_eq!(lessor.due(start + seconds(15), 10), [1]);
    assert_eq!(lessor.renew(9, start), Renewal::Gone);
}

#[test]
fn an_expiring_lease_answers_nothing_until_its_expiry_is_refused() {
    let (lessor, start) = leading(&[(1, 10)]);
    let late = start + seconds(11);
    assert_eq!(lessor.due(late, 10), [1]);
    assert_eq!(lessor.renew(1, late), Renewal::Undecided);
    let mut changes = lessor.changes();
    changes.mark_unchanged();
    lessor.expiry_settled(&[1], late + seconds(1));
    assert!(changes.has_changed().expect("the lessor lives"));
    assert!(lessor.due(late, 10).is_empty());
    assert_eq!(lessor.renew(1, late), Renewal::Renewed { ttl_seconds: 10 });
    assert!(lessor.due(late + seconds(9), 10).is_empty());
    assert_eq!(lessor.due(late + seconds(10), 10), [1]);
}

#[test]
fn a_refused_expiry_is_due_again_if_nobody_renews() {
    let (lessor, start) = leading(&[(1, 10)]);
    let late = start + seconds(11);
    assert_eq!(lessor.due(late, 10), [1]);
    lessor.expiry_settled(&[1], late + seconds(1));
    assert_eq!(lessor.next_deadline(late), Some(late + seconds(1)));
    assert_eq!(lessor.due(late + seconds(1), 10), [1]);
}

#[test]
fn a_lease_granted_while_leading_is_armed_at_the_next_look() {
    let (lessor, start) = leading(&[]);
    assert_eq!(lessor.next_deadline(start), None);
    lessor.commit(&[Change::Granted(lease(7, 10))]);
    assert_eq!(lessor.next_deadline(start), Some(start));
    assert!(lessor.due(start + seconds(3), 10).is_empty());
    assert_eq!(lessor.next_deadline(start), Some(start + seconds(13)));
    // Ended and granted again: the old deadline does not end the new lease.
    lessor.commit(&[Change::Ended(7), Change::Granted(lease(7, 100))]);
    assert!(lessor.due(start + seconds(13), 10).is_empty());
    assert_eq!(lessor.due(start + seconds(113), 10), [7]);
}

#[test]
fn a_new_leader_arms_to_the_remainder_but_at_least_an_election_timeout() {
    let lessor = Lessor::new([
        Lease {
            remaining_ttl_seconds: 40,
            ..lease(1, 1000)
        },
        lease(2, 10),
        lease(3, 1),
    ]);
    let start = clock::now();
    assert_eq!(lessor.remaining(1, start), Remaining::NotLeading);
    assert_eq!(lessor.renew(1, start), Renewal::NotLeading);
    assert!(lessor.due(start + seconds(99), 10).is_empty());
    lessor.promote(start, seconds(5), CHECKPOINT);
    let left = |id| lessor.remaining(id, start);
    assert_eq!(left(1), Remaining::Left(seconds(40)));
    assert_eq!(left(2), Remaining::Left(seconds(10)));
    assert_eq!(left(3), Remaining::Left(seconds(5)));
    assert_eq!(left(4), Remaining::Gone);
    lessor.demote();
    assert_eq!(lessor.remaining(1, start), Remaining::NotLeading);
    assert_eq!(lessor.next_deadline(start), None);
}

#[test]
fn a_checkpointed_lease_is_renewed_only_after_its_checkpoint_is_cleared() {
    let (lessor, start) = leading(&[(1, 1000), (2, 100)]);
    assert!(lessor.checkpoints_due(start + seconds(299), 10).is_empty());
    let at = start + seconds(300);
    assert_eq!(lessor.checkpoints_due(at, 10), [(1, 700)]);
    // Proposed, not applied: already no answer.
    assert_eq!(lessor.renew(1, at), Renewal::Undecided);
    let checkpoint = |remaining_ttl_seconds| Change::Checkpointed {
        id: 1,
        remaining_ttl_seconds,
    };
    lessor.commit(&[checkpoint(700)]);
    lessor.checkpoints_settled(&[1]);
    assert_eq!(lessor.renew(1, at), Renewal::Checkpointed);
    lessor.commit(&[checkpoint(0)]);
    assert_eq!(lessor.renew(1, at), Renewal::Renewed { ttl_seconds: 1000 });
    // The next one comes an interval later, counted from the renewed deadline.
    assert_eq!(lessor.checkpoints_due(at + seconds(300), 10), [(1, 700)]);
}

#[test]
fn checkpoints_survive_a_change_of_leader_as_the_lifetime() {
    let (lessor, start) = leading(&[(1, 1000)]);
    let at = start + seconds(300);
    let due = lessor.checkpoints_due(at, 10);
    lessor.commit(&[Change::Checkpointed {
        id: due[0].0,
        remaining_ttl_seconds: due[0].1,
    }]);
    lessor.demote();
    lessor.promote(at, ELECTION, CHECKPOINT);
    assert_eq!(lessor.due(at + seconds(700), 10), [1]);
}

#[test]
fn renewing_often_does_not_grow_the_schedule() {
    let (lessor, start) = leading(&[(1, 10)]);
    for second in 0..10_000 {
        let now = start + seconds(second);
        assert!(lessor.due(now, 10).is_empty());
        let _ = lessor.renew(1, now);
    }
    assert!(lessor.schedule_entries() <= 2);
    // Granting and ending long leases does not either.
    for _ in 0..10_000 {
        lessor.commit(&[Change::Granted(lease(2, 9_000_000_000))]);
        let _ = lessor.due(start, 10);
        lessor.commit(&[Change::Ended(2)]);
    }
    assert!(lessor.schedule_entries() < 5_000);
}

#[test]
fn a_reset_forgets_leadership_and_old_leases() {
    let (lessor, start) = leading(&[(1, 10)]);
    lessor.reset([lease(2, 10)]);
    assert!(!lessor.leads());
    assert_eq!(lessor.ids(), [2]);
    assert!(lessor.due(start + seconds(99), 10).is_empty());
}
