//! Keeps the endpoints in step with the cluster: asks for its members from time to time and after
//! failures, and each endpoint for what it is.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate::core::config::url_authority;
use quorate::proto::etcdserverpb::cluster_client::ClusterClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate::proto::etcdserverpb::{MemberListRequest, StatusRequest, StatusResponse};
use tonic::{Request, Status};

use super::calls::{self, Effect};
use super::endpoints::{Facts, Lane, Pool, Server};

/// Limit on asking for members, and on asking one endpoint.
const LIMIT: Duration = Duration::from_secs(3);
/// How soon after a failure the members are asked for, and how often at most.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How often they are asked for while not all of them have told their addresses.
const UNTIL_COMPLETE: Duration = Duration::from_secs(3);

/// Refreshes every `interval`, within half of it and all of it, and after failures; for ever.
pub(super) async fn run(pool: Pool, interval: Option<Duration>, mut seen: Seen) {
    loop {
        let next = async {
            match interval {
                Some(interval) if seen.is_complete => {
                    tokio::time::sleep(pool.jittered(interval)).await;
                }
                Some(interval) => {
                    let pause = interval.min(UNTIL_COMPLETE);
                    tokio::time::sleep(pool.jittered(pause)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = next => {}
            () = pool.some_failed() => tokio::time::sleep(AFTER_FAILURE).await,
        }
        once(&pool, &mut seen, interval.is_some()).await;
        // Whatever failed just now was looked at.
        pool.failures_are_known();
    }
}

/// What was seen before.
#[derive(Debug, Default)]
pub(super) struct Seen {
    cluster: Option<u64>,
    /// Whether all members had told their addresses.
    is_complete: bool,
}

/// Asks for the members, if they are to be `followed`, and all endpoints for what they are.
pub(super) async fn once(pool: &Pool, seen: &mut Seen, followed: bool) {
    if followed {
        seen.is_complete = false;
        match tokio::time::timeout(LIMIT, members(pool)).await {
            Ok(Ok((urls, is_complete))) => {
                seen.is_complete = is_complete;
                match pool.become_these(&urls) {
                    Ok(true) => tracing::info!(?urls, "the members have changed"),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%error, "a member cannot be used as an endpoint"),
                }
            }
            Ok(Err(status)) => tracing::debug!(%status, "the members could not be listed"),
            Err(_) => tracing::debug!("the members could not be listed in time"),
        }
    }
    look_at_all(pool, &mut seen.cluster).await;
}

/// Client URLs of all members that vote, and whether all of them have some: one that has not started has
/// none.
async fn members(pool: &Pool) -> Result<(Vec<String>, bool), Status> {
    let listed = calls::call(pool, Effect::Reads, async |server: Arc<Server>| {
        let mut client = ClusterClient::new(server.channel(Lane::Calls));
        let request = MemberListRequest {
            linearizable: false,
        };
        client.member_list(request).await
    });
    let members = listed.await?.into_inner().members;
    let voters = members.into_iter().filter(|member| !member.is_learner);
    let (mut urls, mut is_complete) = (Vec::new(), true);
    for voter in voters {
        is_complete &= !voter.client_ur_ls.is_empty();
        // Whatever else a member offers to its clients, such as a socket, is of no use here.
        let usable = voter.client_ur_ls.into_iter();
        urls.extend(usable.filter(|url| url_authority(url).is_some()));
    }
    Ok((urls, is_complete))
}

async fn look_at_all(pool: &Pool, cluster: &mut Option<u64>) {
    let servers = pool.all();
    let asked = servers.iter().map(async |server| {
        let answer = tokio::time::timeout(LIMIT, status(server)).await;
        (
            server,
            answer.unwrap_or_else(|_| Err(Status::unavailable("no answer in time"))),
        )
    });
    let mut answered = Vec::new();
    for (server, answer) in join_all(asked).await {
        match answer {
            Ok(status) => {
                pool.succeeded(server);
                answered.push((server, status));
            }
            Err(status) if super::fate::Fate::of(&status).is_of_the_member(&status) => {
                pool.failed(server, &status);
            }
            Err(status) => tracing::debug!(%status, endpoint = server.url(), "no status"),
        }
    }
    let of = |status: &StatusResponse| status.header.map_or(0, |header| header.cluster_id);
    let known = *cluster;
    if !answered.iter().any(|(_, status)| Some(of(status)) == known) {
        *cluster = answered.first().map(|(_, status)| of(status)).or(known);
    }
    for (server, status) in answered {
        let is_foreign = Some(of(&status)) != *cluster;
        if is_foreign && !server.facts().is_foreign {
            tracing::error!(
                endpoint = server.url(),
                "the endpoint belongs to another cluster and is not used"
            );
        }
        server.learn(Facts {
            is_learner: status.is_learner,
            orders_progress: orders_progress(&status.version),
            is_foreign,
        });
    }
}

async fn status(server: &Arc<Server>) -> Result<StatusResponse, Status> {
    let _visit = server.visit();
    let mut client = MaintenanceClient::new(server.channel(Lane::Calls));
    let answer = client
        .status(Request::new(StatusRequest::default()))
        .await?;
    Ok(answer.into_inner())
}

/// Whether an etcd of this version answers requests for progress after the events before them, and only
/// when all watches are in sync: from 3.4.25, 3.5.8 and 3.6 on.
fn orders_progress(version: &str) -> bool {
    let numbers = version.split(['.', '-', '+']).map(str::parse::<u64>);
    let numbers: Vec<u64> = numbers.map_while(Result::ok).collect();
    match numbers[..] {
        [3, 4, patch, ..] => patch >= 25,
        [3, 5, patch, ..] => patch >= 8,
        [3, minor, ..] => minor >= 6,
        [major, ..] => major > 3,
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_answer_progress_out_of_order_are_known() {
        let ordered = ["3.4.25", "3.5.8", "3.5.21-rc.0", "3.6.0", "3.7.0", "4.0.0"];
        assert!(ordered.iter().all(|version| orders_progress(version)));
        let not = ["3.4.23", "3.5.1", "3.5.7", "3.3.27", "2.3.8", "", "x"];
        assert!(not.iter().all(|version| !orders_progress(version)));
    }
}
