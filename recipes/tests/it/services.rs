//! Elections, the registry, progress, counters, latches and transactional memory on a real etcd server, on a node in this process and on a
//! cluster of three, and what only a real server can show: its stop, its compactions, its own programs.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use crate::bodies::{
    assign, balance, barriers, collections, conditions, config, counters, crons, deadlocks,
    dispatch, elections, inspections, latches, leased, lock_forms, membership, once, probes,
    progress, queues, rates, registry, rw_locks, semaphores, session, successions, topics,
    transactions,
};
use crate::support::etcd::Etcd;
use crate::support::{soon, until};
use futures::StreamExt;
use quorate_recipes::registry::{Departure, Instance, MassLoss, RegistrationState};
use quorate_recipes::store::faulty::{Fault, Faulty};
use quorate_recipes::{Client, Name};
use tokio::io::{AsyncBufReadExt, BufReader};

macro_rules! on_every_store {
    ($($module:ident :: $body:ident),* $(,)?) => {
        mod on_etcd {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $body() {
                    let Some(etcd) = Etcd::start().await else { return };
                    $module::$body(&etcd.client()).await;
                }
            )*
        }

        #[cfg(feature = "embedded")]
        mod on_a_node {
            use super::*;
            use quorate_core::node::Node;
            use quorate_recipes::store::embedded::Embedded;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $body() {
                    let node = Node::builder().in_memory().start().await.unwrap();
                    $module::$body(&Client::new(Embedded::new(node.clone()))).await;
                    node.shutdown().await;
                }
            )*
        }

        mod on_a_cluster {
            use super::*;
            use quorate_harness::target::Target;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $body() {
                    let cluster = Target::Cluster.start().await.unwrap();
                    let cluster = cluster.expect("needs nothing installed");
                    $module::$body(cluster.client()).await;
                    cluster.stop().await;
                }
            )*
        }
    };
}

on_every_store! {
    assign::shares_follow_the_members,
    assign::a_partition_is_never_taken_by_force,
    assign::losses_free_what_was_held,
    assign::dropped_members_give_everything_back,
    assign::foreign_keys_stop_one_partition_only,
    balance::calls_follow_the_service,
    balance::calls_go_by_their_keys,
    balance::tonics_channel_follows_the_service,
    balance::the_dead_are_left_alone,
    balance::unreachable_instances_cost_no_call,
    elections::one_leader_at_a_time,
    elections::takeover_after_loss,
    elections::deposed_leader_is_fenced,
    elections::no_phantom_leader,
    elections::observers_see_every_change,
    elections::dropped_campaigns_leave_nothing,
    successions::named_successors_come_next,
    successions::named_successors_may_go,
    successions::others_let_nobody_pass,
    successions::the_best_candidate_is_told,
    successions::leading_goes_on_after_a_loss,
    successions::leaders_are_asked_to_resign,
    rw_locks::readers_share_and_writers_do_not,
    rw_locks::downgrading_lets_no_writer_in,
    rw_locks::upgrading_never_waits,
    rw_locks::half_a_writer_is_fenced,
    semaphores::never_more_than_the_limit,
    semaphores::large_requests_do_not_starve,
    semaphores::limits_are_agreed,
    semaphores::permits_end_with_the_session,
    lock_forms::several_at_once_never_block_each_other,
    lock_forms::several_at_once_are_all_of_them,
    lock_forms::shared_guards_are_counted,
    lock_forms::combined_tasks_are_one_contender,
    lock_forms::delay_follows_a_loss,
    lock_forms::holders_are_asked_to_let_go,
    lock_forms::holders_of_all_kinds_are_asked,
    lock_forms::panics_leave_a_mark,
    deadlocks::circles_are_found_with_their_owners,
    deadlocks::sessions_without_tasks_are_only_possible,
    leased::kept_keys_stay_in_place,
    leased::kept_keys_yield_if_asked,
    leased::kept_keys_survive_lost_answers,
    leased::dropped_kept_keys_leave_nothing,
    membership::members_and_events,
    membership::silent_members_are_suspected,
    membership::leaves_and_losses_are_told_apart,
    membership::only_members_write,
    membership::memberships_survive_lost_answers,
    membership::dropped_joins_leave_nothing,
    config::publications_replace_what_they_expect,
    config::followers_show_what_is_published,
    config::gray_releases_select_by_rule,
    config::groups_are_never_torn,
    config::publications_survive_lost_answers,
    config::cold_starts_have_the_last_value,
    registry::views_and_events,
    registry::comes_back_as_it_was_last,
    registry::ids_are_taken_once,
    registry::dropped_registrations_leave_nothing,
    registry::go_writes_what_is_read,
    registry::starts_from_a_snapshot,
    probes::observers_agree,
    probes::opinions_are_written_on_change_only,
    probes::instances_check_themselves,
    crons::times_are_started_once,
    crons::starting_survives_lost_answers,
    crons::a_lost_runner_is_replaced,
    progress::from_start_to_end,
    progress::attempts_follow_one_another,
    progress::zombies_are_refused,
    progress::stalls_and_deaths,
    progress::trees_are_summed_up,
    progress::tasks_are_cancelled,
    progress::parts_of_jobs_are_cancelled,
    queues::items_are_done_once,
    queues::who_is_gone_ends_nothing,
    queues::orders_by_key_are_exact,
    queues::strict_order_is_exact,
    queues::items_come_back,
    queues::limits_hold,
    queues::urgent_items_come_first,
    inspections::everything_is_shown,
    inspections::work_is_shown,
    topics::readers_get_everything_in_order,
    topics::reading_survives_ended_watches,
    topics::groups_do_each_message_once,
    topics::who_has_gone_commits_nothing,
    topics::what_is_removed_is_told,
    topics::live_messages_are_heard,
    collections::lines_are_collected_once,
    collections::a_spool_outlives_store_and_agent,
    conditions::batches_are_exact,
    conditions::a_batch_goes_to_the_next_taker,
    conditions::gates_open_for_those_who_wait,
    conditions::fans_and_broadcasts,
    dispatch::jobs_end_once,
    dispatch::who_is_gone_replies_nothing,
    dispatch::jobs_are_cancelled_and_expire,
    dispatch::casts_reach_all_that_are_there,
    dispatch::casts_reach_as_many_as_there_are,
    counters::additions_are_exact,
    counters::numbers_are_set_and_compared,
    counters::additions_survive_lost_answers,
    counters::additions_of_a_lost_session,
    counters::dropped_additions_end_by_themselves,
    counters::folding_keeps_the_sum,
    counters::ids_are_unique,
    latches::opens_at_zero,
    latches::survives_lost_answers,
    transactions::transfers_keep_the_sum,
    transactions::skew_is_impossible,
    transactions::own_writes_are_read,
    transactions::limits_and_guards,
    transactions::commits_survive_lost_answers,
    transactions::runs_anywhere,
    barriers::holds_keep_it_closed_together,
    barriers::what_is_set_stays_until_lifted,
    barriers::late_copies_neither_close_nor_open,
    barriers::dead_watches_open_nothing,
    barriers::generations_follow_one_another,
    barriers::a_lost_member_breaks_its_generation,
    barriers::dropped_waits_withdraw,
    barriers::arriving_survives_lost_answers,
    barriers::they_enter_and_leave_together,
    barriers::the_number_of_parties_is_agreed,
    once::one_computes_and_all_get_it,
    once::the_next_one_computes,
    once::large_results_are_whole,
    once::damage_is_no_value,
    once::taken_back_and_computed_anew,
    once::publishing_survives_lost_answers,
    once::replaced_while_it_is_read,
    once::failures_count_for_a_while,
    once::attempts_have_a_limit,
    once::refreshing_survives_lost_answers,
    rates::no_window_has_too_many,
    rates::what_is_not_there_is_not_given,
    rates::the_rule_is_agreed,
    rates::grants_survive_lost_answers,
    rates::dropped_calls_use_nothing,
}

/// `etcdctl elect` and the election stand in the same line, and each sees the other lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elects_with_etcdctl() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let client = etcd.client();
    let session = session(&client).await;
    let election = client.election::<String>(Name::raw("jobs/leader"));
    let ours = election
        .campaign(&session, "ours".to_owned())
        .await
        .unwrap();
    // It sees us lead.
    let mut listen = etcd
        .ctl(&["elect", "-l", election.prefix()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut heard = BufReader::new(listen.stdout.take().unwrap()).lines();
    let mut hear = async || soon("etcdctl", heard.next_line()).await.unwrap().unwrap();
    assert_eq!(hear().await, ours.key().to_string());
    assert_eq!(hear().await, "\"ours\"");
    // It waits behind us, and leads once we resign.
    let mut theirs = etcd
        .ctl(&["elect", election.prefix(), "theirs"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("etcdctl in line", async || {
        election.candidates(9).await.unwrap().len() == 2
    })
    .await;
    let mut leaders = election.observe();
    let leader = soon("us", leaders.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(
        (leader.value.as_str(), leader.token),
        ("ours", ours.token())
    );
    ours.resign().await.unwrap();
    let leader = soon("etcdctl", leaders.next()).await.unwrap().unwrap();
    let leader = leader.unwrap();
    assert_eq!(leader.value, "theirs");
    assert_eq!(hear().await, leader.key.to_string());
    assert_eq!(hear().await, "theirs");
    // We wait behind it, and lead once it is interrupted.
    let waiting = tokio::spawn({
        let (election, session) = (election.clone(), session.clone());
        async move {
            election
                .campaign(&session, "again".to_owned())
                .await
                .unwrap()
        }
    });
    until("us in line", async || {
        election.candidates(9).await.unwrap().len() == 2
    })
    .await;
    assert!(!waiting.is_finished());
    let pid = theirs.id().unwrap().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(sent.unwrap().success());
    soon("etcdctl's end", theirs.wait()).await.unwrap();
    let again = soon("our turn", waiting).await.unwrap();
    let leader = soon("us again", leaders.next()).await.unwrap().unwrap();
    assert_eq!(leader.unwrap().token, again.token());
    listen.kill().await.unwrap();
}

/// An instance that another program wrote in etcd's naming form is discovered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovers_what_go_programs_register() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let client = etcd.client();
    let value = r#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}"#;
    let put = etcd.ctl(&["put", "svc/10.0.0.1:80", value]).output();
    assert!(put.await.unwrap().status.success());
    let session = session(&client).await;
    let instance = Instance::builder(Name::raw("svc"))
        .id("ours")
        .address("h:1");
    let ours = session.register(instance.build()).await.unwrap();
    let discovery = client.discover::<()>(Name::raw("svc")).await.unwrap();
    let view = discovery.view();
    let addresses: Vec<_> = view
        .up()
        .map(|e| (e.id.as_str(), e.address.as_str()))
        .collect();
    assert_eq!(addresses, [("10.0.0.1:80", "10.0.0.1:80"), ("ours", "h:1")]);
    assert_eq!(ours.key().to_string(), "svc/ours");
}

/// Changes that were missed and compacted away show as their net difference; views never go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_survives_compaction() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let client = etcd.client();
    let faulty = Faulty::new(Arc::clone(client.store()));
    let cut_off = Client::builder(faulty.clone()).build();
    let session = session(&client).await;
    let register = |id: &str| session.register(Instance::builder("c").id(id).build());
    let one = register("1").await.unwrap();
    let mut discovery = cut_off.discover::<()>("c").await.unwrap();
    let mut revisions = vec![discovery.view().revision];
    for round in 2..6 {
        let id = round.to_string();
        faulty.cut_watches();
        let next = register(&id).await.unwrap();
        drop(register("gone").await.unwrap().deregister().await);
        let last = client.put("else", "x").await.unwrap().to_string();
        let compacted = etcd.ctl(&["compaction", &last]).output().await.unwrap();
        assert!(compacted.status.success());
        let seen = discovery.wait_for(|view| view.instance(&id).is_some());
        revisions.push(soon("the new instance", seen).await.unwrap().revision);
        assert!(discovery.view().instance("gone").is_none());
        next.deregister().await.unwrap();
    }
    assert!(revisions.is_sorted(), "{revisions:?}");
    assert_eq!(one.state(), RegistrationState::Registered);
}

/// While the server is stopped the last view stays and says that it is stale; leases that ran out
/// meanwhile, many at once, are kept as suspects, and the living come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_outlive_a_stopped_server() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let client = etcd.client();
    let mut registrations = Vec::new();
    for id in ["a", "b", "c", "d"] {
        let session = session(&client).await;
        let instance = Instance::builder("stop").id(id).build();
        registrations.push(session.register(instance).await.unwrap());
    }
    let protection = MassLoss {
        grace: Duration::from_secs(60),
        ..MassLoss::default()
    };
    let discovery = client.discover::<()>("stop").mass_loss(protection);
    let mut discovery = discovery.await.unwrap();
    let mut events = discovery.events();
    let known = discovery.view();
    assert_eq!(known.instances.len(), 4);
    etcd.signal("STOP");
    let stale = discovery.wait_for(|view| view.stale_since.is_some());
    let stale = soon("staleness", stale).await.unwrap();
    assert_eq!(stale.instances, known.instances);
    // Every session is lost by its own clock before the server goes on.
    for registration in &registrations {
        until("the loss", async || {
            registration.state() == RegistrationState::Recovering
        })
        .await;
    }
    etcd.signal("CONT");
    let back = discovery.wait_for(|view| {
        let renewed = view.instances.iter().filter(|now| {
            let before = known.instance(&now.id).expect("no other ids");
            !now.is_suspect() && now.lease != before.lease
        });
        view.stale_since.is_none() && renewed.count() == 4
    });
    soon("all of them to be back", back).await.unwrap();
    // At no moment was anybody missing for good: whoever left came back.
    let last = session(&client).await;
    let last = last.register(Instance::builder("stop").id("last").build());
    let _last = last.await.unwrap();
    let mut there = std::collections::BTreeSet::new();
    while !there.contains("last") {
        use quorate_recipes::registry::Change;
        let event = soon("the one that came last", events.next()).await;
        match event.unwrap().unwrap() {
            Change::Joined(e) | Change::Suspected(e) => {
                there.insert(e.id.clone());
            }
            Change::Left {
                instance,
                departure,
            } => {
                assert_eq!(departure, Departure::Expired);
                there.remove(&instance.id);
            }
            _ => {}
        }
    }
    assert_eq!(there.len(), 5);
}

/// Lost, late and doubled answers: one report, one registration, and nothing rolled back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_change_nothing() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let faulty = Faulty::new(Arc::clone(etcd.client().store()));
    let client = Client::builder(faulty.clone()).build();
    let session = session(&client).await;
    let faults = || [Fault::Unanswered, Fault::Late, Fault::NotSent];
    faulty.plan("quorate/service/f/", faults());
    let instance = Instance::builder("f").id("w").weight(1).build();
    let registration = session.register(instance).await.unwrap();
    faulty.plan("quorate/service/f/", faults());
    for weight in 2..6 {
        registration.update(|w| w.weight = weight).await.unwrap();
        faulty.deliver().await;
        let view = client.discover::<()>("f").await.unwrap().view();
        assert_eq!(view.instance("w").unwrap().weight, weight);
    }
    faulty.plan("quorate/service/f/", faults());
    registration.deregister().await.unwrap();
    faulty.deliver().await;
    assert!(
        client
            .discover::<()>("f")
            .await
            .unwrap()
            .view()
            .instances
            .is_empty()
    );

    faulty.plan("quorate/progress/f/", faults());
    let reporter = session.reporter("f/a").total(9).start().await.unwrap();
    let monitor = client.monitor("f").await.unwrap();
    for done in 1..6 {
        faulty.plan("quorate/progress/f/", faults());
        reporter.inc(1);
        reporter.flush().await.unwrap();
        faulty.deliver().await;
        let mut monitor = monitor.clone();
        let seen = monitor.wait_for(|job| job.task("a").is_some_and(|task| task.done == done));
        soon("the report", seen).await.unwrap();
    }
    faulty.plan("quorate/progress/f/", faults());
    drop(reporter);
    let mut late = monitor.clone();
    let ended = late.wait_for(|job| !job.task("a").unwrap().state.is_active());
    soon("the end", ended).await.unwrap();
    faulty.deliver().await;
    let now = client.monitor("f").await.unwrap().snapshot();
    let task = now.task("a").unwrap();
    assert_eq!((task.done, task.attempt, task.lease), (5, 1, None));
}
