//! `quorate endpoint`: every endpoint asked for itself, at the same time.

use std::time::Duration;

use clap::{Args, Subcommand};
use quorate::core::clock;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{
    AlarmRequest, AlarmType, HashKvRequest, HashKvResponse, RangeRequest, StatusResponse,
};
use serde::Serialize;
use tonic::{Code, Status};

use super::client::{Client, Endpoint, Reached, within};
use super::failure::{Exit, Failure, Why, told};
use super::output::{self, Style, boxed, print_json, print_lines, size};
use super::views::{EtcdHash, EtcdStatus, alarm_name, id};
use super::{GlobalArgs, Session};

/// Flags of `quorate endpoint`.
#[derive(Debug, Args)]
pub(crate) struct EndpointArgs {
    #[command(subcommand)]
    command: EndpointCommand,
    #[command(flatten)]
    global: GlobalArgs,
}

#[derive(Debug, Subcommand)]
enum EndpointCommand {
    /// Version, size, role and log of each endpoint's member.
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Whether each endpoint answers a linearizable read, and how fast.
    Health {
        #[command(flatten)]
        which: Which,
    },
    /// A hash of each endpoint's keys: equal at one revision where all is well. Reads the whole
    /// store; the command timeout is 10 minutes unless given.
    #[command(name = "hashkv")]
    HashKv {
        #[command(flatten)]
        which: Which,
        /// At which revision; 0 is the current one
        #[arg(long, value_name = "REVISION", default_value_t = 0)]
        rev: i64,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// All members of the cluster, where they say that clients reach them
    #[arg(long)]
    cluster: bool,
}

/// Does what the command says.
///
/// # Errors
/// See [`Failure`]; what the other endpoints said is printed first.
pub(super) async fn run(args: EndpointArgs, outer: GlobalArgs) -> Result<(), Failure> {
    let Session { client, style } = args.global.resolve(outer)?;
    match args.command {
        EndpointCommand::Status { which } => {
            let asked = ask(&client, &which, async |reached| reached.status).await?;
            asked.print(style, statuses)?;
            asked.outcome(&client, "the status could not be told")
        }
        EndpointCommand::Health { which } => {
            let limit = client.command_timeout();
            let asked = ask(&client, &which, async |reached| {
                within(limit, health(&reached)).await
            });
            let asked = asked.await?;
            asked.print_health(style)?;
            asked.outcome(&client, "unhealthy")
        }
        EndpointCommand::HashKv { which, rev } => {
            let limit = client.long_command_timeout();
            let asked = ask(&client, &which, async |reached| {
                let mut client = MaintenanceClient::new(reached.channel);
                let hashed = client.hash_kv(HashKvRequest { revision: rev });
                Ok(within(limit, hashed).await?.into_inner())
            });
            let asked = asked.await?;
            asked.print(style, hashes)?;
            asked.outcome(&client, "the keys could not be hashed")
        }
    }
}

/// What the endpoints answered.
struct Asked<T> {
    answers: Vec<(Endpoint, Result<T, Why>)>,
    any_reached: bool,
}

/// Asks them all at once.
async fn ask<T>(
    client: &Client,
    which: &Which,
    call: impl AsyncFn(Reached) -> Result<T, Status>,
) -> Result<Asked<T>, Failure> {
    let endpoints = if which.cluster {
        client.advertised().await?
    } else {
        client.endpoints().to_vec()
    };
    let answers = endpoints.into_iter().map(async |endpoint| {
        let reached = match client.dial(&endpoint).await {
            Ok(reached) => reached,
            Err(why) => return (endpoint, Err(why), false),
        };
        let answer = call(reached).await;
        let answer = answer.map_err(|status| Why::new(endpoint.given(), told(&status)));
        (endpoint, answer, true)
    });
    let answers = futures::future::join_all(answers).await;
    Ok(Asked {
        any_reached: answers.iter().any(|(.., is_reached)| *is_reached),
        answers: answers
            .into_iter()
            .map(|(endpoint, answer, _)| (endpoint, answer))
            .collect(),
    })
}

/// A form for each style, of the answers that came; JSON as text, in the order of its fields.
struct Shown {
    header: &'static [&'static str],
    rows: Vec<Vec<String>>,
    etcd: String,
    own: String,
}

impl<T> Asked<T> {
    fn print(
        &self,
        style: Style,
        shown: impl Fn(&[(&str, &T)]) -> serde_json::Result<Shown>,
    ) -> Result<(), Failure> {
        let answers = self.answers.iter().filter_map(|(endpoint, answer)| {
            let answer = answer.as_ref().ok()?;
            Some((endpoint.given(), answer))
        });
        let answers: Vec<_> = answers.collect();
        let shown = shown(&answers);
        let shown = shown.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        match style {
            _ if answers.is_empty() => Ok(()),
            Style::Simple => print_lines(shown.rows.iter().map(|row| row.join(", "))),
            Style::Table => output::print(&boxed(shown.header, &shown.rows)),
            Style::EtcdJson => print_lines([shown.etcd]),
            Style::Json => print_lines([shown.own]),
        }
    }

    fn outcome(self, client: &Client, what: &str) -> Result<(), Failure> {
        let asked = self.answers.len();
        let why: Vec<_> = self
            .answers
            .into_iter()
            .filter_map(|(_, answer)| answer.err())
            .collect();
        match (why.len(), self.any_reached) {
            (0, _) => Ok(()),
            (_, false) => Err(client.unreachable(why)),
            (failed, true) => {
                let what = format!("{what}: {failed} of {asked} endpoints");
                Err(Failure::new(Exit::Failed, what).because(why))
            }
        }
    }
}

/// The shape of etcdctl's JSON about endpoints.
#[derive(Debug, Serialize)]
struct OfEndpoint<'a, T> {
    #[serde(rename = "Endpoint")]
    endpoint: &'a str,
    #[serde(flatten)]
    answer: T,
}

#[derive(Debug, Serialize)]
struct StatusOf {
    #[serde(rename = "Status")]
    status: EtcdStatus,
}

#[derive(Debug, Serialize)]
struct HashOf {
    #[serde(rename = "HashKV")]
    hash: EtcdHash,
}

fn statuses(answers: &[(&str, &StatusResponse)]) -> serde_json::Result<Shown> {
    let own_id = |status: &StatusResponse| status.header.as_ref().map_or(0, |own| own.member_id);
    let row = |(endpoint, status): &(&str, &StatusResponse)| {
        let own = own_id(status);
        vec![
            (*endpoint).to_owned(),
            id(own),
            status.version.clone(),
            size(status.db_size),
            (status.leader == own).to_string(),
            status.is_learner.to_string(),
            status.raft_term.to_string(),
            status.raft_index.to_string(),
            status.raft_applied_index.to_string(),
            status.errors.join(", "),
        ]
    };
    let own = |(endpoint, status): &(&str, &StatusResponse)| {
        let header = status.header.unwrap_or_default();
        serde_json::json!({
            "endpoint": endpoint,
            "cluster_id": id(header.cluster_id),
            "member_id": id(header.member_id),
            "version": status.version,
            "revision": header.revision,
            "db_bytes": status.db_size,
            "db_bytes_in_use": status.db_size_in_use,
            "quota_bytes": status.db_size_quota,
            "leader": (status.leader != 0).then(|| id(status.leader)),
            "is_leader": status.leader == header.member_id,
            "learner": status.is_learner,
            "term": status.raft_term,
            "committed_index": status.raft_index,
            "applied_index": status.raft_applied_index,
            "errors": status.errors,
        })
    };
    let etcd: Vec<_> = answers
        .iter()
        .map(|(endpoint, status)| OfEndpoint {
            endpoint,
            answer: StatusOf {
                status: EtcdStatus::from(*status),
            },
        })
        .collect();
    Ok(Shown {
        header: &[
            "ENDPOINT",
            "ID",
            "VERSION",
            "DB SIZE",
            "IS LEADER",
            "IS LEARNER",
            "RAFT TERM",
            "RAFT INDEX",
            "RAFT APPLIED INDEX",
            "ERRORS",
        ],
        rows: answers.iter().map(row).collect(),
        etcd: serde_json::to_string(&etcd)?,
        own: serde_json::Value::from_iter(answers.iter().map(own)).to_string(),
    })
}

fn hashes(answers: &[(&str, &HashKvResponse)]) -> serde_json::Result<Shown> {
    let row = |(endpoint, hashed): &(&str, &HashKvResponse)| {
        vec![(*endpoint).to_owned(), hashed.hash.to_string()]
    };
    let own = |(endpoint, hashed): &(&str, &HashKvResponse)| {
        let header = hashed.header.unwrap_or_default();
        // A server that does not tell at which revision has hashed at its current one.
        let revision = match hashed.hash_revision {
            0 => header.revision,
            revision => revision,
        };
        serde_json::json!({
            "endpoint": endpoint,
            "member_id": id(header.member_id),
            "hash": hashed.hash,
            "revision": revision,
            "compact_revision": hashed.compact_revision,
        })
    };
    let etcd: Vec<_> = answers
        .iter()
        .map(|(endpoint, hashed)| OfEndpoint {
            endpoint,
            answer: HashOf {
                hash: EtcdHash::from(*hashed),
            },
        })
        .collect();
    Ok(Shown {
        header: &["ENDPOINT", "HASH"],
        rows: answers.iter().map(row).collect(),
        etcd: serde_json::to_string(&etcd)?,
        own: serde_json::Value::from_iter(answers.iter().map(own)).to_string(),
    })
}

/// How long a linearizable read takes; an alarm of this member makes it unhealthy.
async fn health(reached: &Reached) -> Result<Duration, Status> {
    let began = clock::now();
    let request = RangeRequest {
        key: "health".into(),
        ..RangeRequest::default()
    };
    let read = KvClient::new(reached.channel.clone()).range(request).await;
    match read {
        // It was decided after the read was confirmed.
        Err(status) if Reason::from_status(&status) == Some(Reason::PermissionDenied) => {}
        read => drop(read?),
    }
    let took = began.elapsed();
    let list = AlarmRequest {
        action: AlarmAction::Get.into(),
        member_id: 0,
        alarm: AlarmType::None.into(),
    };
    let alarms = MaintenanceClient::new(reached.channel.clone())
        .alarm(list)
        .await?;
    let alarms: Vec<_> = alarms.get_ref().alarms.iter().map(alarm_name).collect();
    if !alarms.is_empty() {
        let told = format!("Active Alarm(s): {}", alarms.join(" "));
        return Err(Status::new(Code::FailedPrecondition, told));
    }
    Ok(took)
}

/// An endpoint's health, as etcdctl prints it.
#[derive(Debug, Serialize)]
struct EtcdHealth<'a> {
    endpoint: &'a str,
    health: bool,
    took: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl Asked<Duration> {
    fn print_health(&self, style: Style) -> Result<(), Failure> {
        let answers = || {
            self.answers.iter().map(|(endpoint, answer)| {
                let error = answer.as_ref().err().map(|why| why.text.as_str());
                let took = answer.as_ref().ok().copied();
                (endpoint.given(), took, error)
            })
        };
        match style {
            // Those that are not are told with the failure.
            Style::Simple => print_lines(answers().filter_map(|(endpoint, took, _)| {
                Some(format!(
                    "{endpoint} is healthy: successfully committed proposal: took = {:?}",
                    took?
                ))
            })),
            Style::Table => {
                let row = |(endpoint, took, error): (&str, Option<Duration>, Option<&str>)| {
                    vec![
                        endpoint.to_owned(),
                        took.is_some().to_string(),
                        took.map(|took| format!("{took:?}")).unwrap_or_default(),
                        error.unwrap_or_default().to_owned(),
                    ]
                };
                let rows: Vec<_> = answers().map(row).collect();
                output::print(&boxed(&["ENDPOINT", "HEALTH", "TOOK", "ERROR"], &rows))
            }
            Style::EtcdJson => {
                let health = |(endpoint, took, error): (_, Option<Duration>, _)| EtcdHealth {
                    endpoint,
                    health: took.is_some(),
                    took: took.map(|took| format!("{took:?}")).unwrap_or_default(),
                    error,
                };
                print_json(&answers().map(health).collect::<Vec<_>>())
            }
            Style::Json => {
                let health = |(endpoint, took, error): (_, Option<Duration>, _)| {
                    serde_json::json!({
                        "endpoint": endpoint,
                        "healthy": took.is_some(),
                        "took_seconds": took.map(|took| took.as_secs_f64()),
                        "error": error,
                    })
                };
                print_json(&answers().map(health).collect::<Vec<_>>())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::etcdserverpb::ResponseHeader;

    use super::*;

    #[test]
    fn a_status_is_told_as_etcdctl_tells_it() {
        let status = StatusResponse {
            header: Some(ResponseHeader {
                cluster_id: 0xc1,
                member_id: 0x8e9e,
                revision: 7,
                raft_term: 2,
            }),
            version: "3.4.23".to_owned(),
            db_size: 20_480,
            leader: 0x8e9e,
            raft_index: 8,
            raft_term: 2,
            raft_applied_index: 8,
            db_size_in_use: 12_288,
            ..StatusResponse::default()
        };
        let shown = statuses(&[("h:1", &status)]).unwrap();
        let line = shown.rows[0].join(", ");
        assert_eq!(line, "h:1, 8e9e, 3.4.23, 20 kB, true, false, 2, 8, 8, ");
        assert_eq!(shown.header.len(), shown.rows[0].len());
        assert_eq!(
            shown.etcd,
            r#"[{"Endpoint":"h:1","Status":{"header":{"cluster_id":193,"member_id":36510,"revision":7,"raft_term":2},"version":"3.4.23","dbSize":20480,"leader":36510,"raftIndex":8,"raftTerm":2,"raftAppliedIndex":8,"dbSizeInUse":12288}}]"#
        );
        let own: serde_json::Value = serde_json::from_str(&shown.own).unwrap();
        assert_eq!(own[0]["member_id"], "8e9e");
        assert_eq!(own[0]["is_leader"], true);
    }

    #[test]
    fn a_hash_tells_at_which_revision() {
        let hashed = HashKvResponse {
            header: Some(ResponseHeader {
                revision: 9,
                ..ResponseHeader::default()
            }),
            hash: 1_084_519_789,
            compact_revision: -1,
            hash_revision: 0,
        };
        let shown = hashes(&[("h:1", &hashed)]).unwrap();
        assert_eq!(shown.rows[0].join(", "), "h:1, 1084519789");
        let header = r#""header":{"revision":9}"#;
        assert_eq!(
            shown.etcd,
            format!(
                r#"[{{"Endpoint":"h:1","HashKV":{{{header},"hash":1084519789,"compact_revision":-1}}}}]"#
            )
        );
        let own: serde_json::Value = serde_json::from_str(&shown.own).unwrap();
        assert_eq!(own[0]["revision"], 9);
    }
}
