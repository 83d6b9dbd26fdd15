//! `quorate status`: the cluster in one line, and each member in a row.
//!
//! Everything is read off the members themselves, without asking the cluster to agree on anything, so
//! that it says most when things are at their worst.

use std::cmp::Reverse;
use std::time::Duration;

use clap::Args;
use quorate_proto::etcdserverpb::{Member, StatusResponse};
use serde::Serialize;

use super::client::{Client, Endpoint, Reached};
use super::failure::{Exit, Failure, Why, told};
use super::output::{self, Style, boxed, columns, grouped, millis, print_json, size};
use super::views::{AlarmView, id};
use super::{GlobalArgs, Session};

/// Flags of `quorate status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    global: GlobalArgs,
}

/// Prints how the cluster is.
///
/// # Errors
/// See [`Failure`]; a cluster without a quorum is one, after it was printed.
pub(super) async fn run(args: StatusArgs, outer: GlobalArgs) -> Result<(), Failure> {
    let Session { client, style } = args.global.resolve(outer)?;
    let (list, _) = client.members().await?;
    let seen = list.members.iter().map(|member| look(&client, member));
    let seen = futures::future::join_all(seen).await;
    let cluster_id = list.header.map_or(0, |header| header.cluster_id);
    let view = ClusterView::of(cluster_id, &list.members, &seen);
    match style {
        Style::Simple => output::print(&view.text(false))?,
        Style::Table => output::print(&view.text(true))?,
        Style::EtcdJson | Style::Json => print_json(&view)?,
    }
    if view.quorum {
        return Ok(());
    }
    let why = view.members.iter().filter_map(|member| {
        let error = member.error.as_deref()?;
        Some(Why::new(member.address.clone(), error))
    });
    let failure = Failure::new(Exit::Unavailable, "the cluster has no quorum").because(why);
    Err(failure.hint("a majority of the members has to run and to reach each other"))
}

/// A member as it was reached, or why it was not.
type Seen = Result<Reached, Why>;

/// Dials a member at its client URLs in turn.
async fn look(client: &Client, member: &Member) -> Seen {
    let mut seen = Err(Why::new("", "it has not started"));
    for url in &member.client_ur_ls {
        seen = match Endpoint::parse(url) {
            Ok(endpoint) => client.dial(&endpoint).await,
            Err(why) => Err(why),
        };
        match &seen {
            Ok(reached) if reached.member_id().is_some_and(|own| own != member.id) => {
                seen = Err(Why::new(url, "another member answers there"));
            }
            Ok(_) => break,
            Err(_) => {}
        }
    }
    seen
}

/// The cluster, for people.
#[derive(Debug, Serialize)]
struct ClusterView {
    cluster_id: String,
    /// Whether a member that answers knows a leader.
    quorum: bool,
    leader: Option<LeaderView>,
    term: u64,
    revision: i64,
    alarms: Vec<AlarmView>,
    members: Vec<MemberRow>,
}

#[derive(Debug, Serialize)]
struct LeaderView {
    id: String,
    name: String,
}

#[derive(Debug, Serialize)]
struct MemberRow {
    name: String,
    id: String,
    /// Where it was reached, or should have been.
    address: String,
    role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<u64>,
    /// Entries known to be committed that it has not applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    db_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    Leader,
    Follower,
    Learner,
    Unstarted,
    Unreachable,
}

impl Role {
    fn told(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Learner => "learner",
            Self::Unstarted => "not started",
            Self::Unreachable => "unreachable",
        }
    }
}

impl ClusterView {
    fn of(cluster_id: u64, members: &[Member], seen: &[Seen]) -> Self {
        let statuses = seen
            .iter()
            .flatten()
            .filter_map(|reached| reached.status.as_ref().ok());
        let statuses: Vec<&StatusResponse> = statuses.collect();
        let knowing = statuses.iter().filter(|status| status.leader != 0);
        let latest = knowing.max_by_key(|status| status.raft_term);
        let leader = latest.map(|status| status.leader);
        let committed = statuses.iter().map(|status| status.raft_index).max();
        let of_header = |status: &&StatusResponse| status.header.as_ref().map_or(0, |h| h.revision);
        let mut rows: Vec<_> = members
            .iter()
            .zip(seen)
            .map(|(member, seen)| MemberRow::of(member, seen, leader, committed.unwrap_or(0)))
            .collect();
        rows.sort_by(|a, b| {
            (a.name.is_empty(), &a.name, &a.id).cmp(&(b.name.is_empty(), &b.name, &b.id))
        });
        let name = |id: u64| {
            let found = members.iter().find(|member| member.id == id);
            found.map(|member| member.name.clone()).unwrap_or_default()
        };
        Self {
            cluster_id: id(cluster_id),
            quorum: leader.is_some(),
            leader: leader.map(|leader| LeaderView {
                id: id(leader),
                name: name(leader),
            }),
            term: statuses
                .iter()
                .map(|status| status.raft_term)
                .max()
                .unwrap_or(0),
            revision: statuses.iter().map(of_header).max().unwrap_or(0),
            alarms: alarms(&statuses),
            members: rows,
        }
    }

    fn text(&self, in_box: bool) -> String {
        let count = match self.members.len() {
            1 => "1 member".to_owned(),
            count => format!("{count} members"),
        };
        let quorum = match &self.leader {
            Some(leader) => {
                let name = if leader.name.is_empty() {
                    &leader.id
                } else {
                    &leader.name
                };
                format!("quorum ok, leader {name} (term {})", self.term)
            }
            None => format!("NO QUORUM (term {})", self.term),
        };
        let alarms = match self.alarms.as_slice() {
            [] => "no alarms".to_owned(),
            alarms => {
                let told = |alarm: &AlarmView| {
                    format!("{} on {}", alarm.alarm, self.name_of(&alarm.member))
                };
                let told: Vec<_> = alarms.iter().map(told).collect();
                format!("ALARM {}", told.join(", "))
            }
        };
        let revision = grouped(u64::try_from(self.revision).unwrap_or(0));
        let mut text = format!(
            "cluster {}  {count}, {quorum}, revision {revision}, {alarms}\n",
            self.cluster_id
        );
        let header = [
            "NAME", "ID", "ADDRESS", "ROLE", "APPLIED", "LAG", "DB", "RTT",
        ];
        let rows: Vec<_> = self.members.iter().map(MemberRow::cells).collect();
        text += &if in_box {
            boxed(&header, &rows)
        } else {
            columns(&header, &[4, 5, 6, 7], &rows)
        };
        // Without a quorum they are told with the failure.
        for member in self.members.iter().filter(|_| self.quorum) {
            if let (Some(error), Role::Unreachable) = (&member.error, member.role) {
                text += &format!("{} at {}: {error}\n", member.told_name(), member.address);
            }
        }
        text
    }

    fn name_of<'a>(&'a self, id: &'a str) -> &'a str {
        let member = self.members.iter().find(|member| member.id == id);
        member.map_or(id, MemberRow::told_name)
    }
}

impl MemberRow {
    fn of(member: &Member, seen: &Seen, leader: Option<u64>, committed: u64) -> Self {
        let (reached, error) = match seen {
            Ok(reached) => (Some(reached), None),
            Err(why) => (None, Some(why.text.clone())),
        };
        let status = reached.and_then(|reached| reached.status.as_ref().ok());
        let refused = reached
            .and_then(|reached| reached.status.as_ref().err())
            .map(told);
        let role = match status {
            Some(_) if leader == Some(member.id) => Role::Leader,
            Some(status) if status.is_learner || member.is_learner => Role::Learner,
            Some(_) => Role::Follower,
            None if member.client_ur_ls.is_empty() => Role::Unstarted,
            None => Role::Unreachable,
        };
        let advertised = member.client_ur_ls.first().or(member.peer_ur_ls.first());
        let address = match seen {
            Ok(reached) => reached.endpoint.given().to_owned(),
            Err(_) => advertised.cloned().unwrap_or_default(),
        };
        let rtt = reached.map(|reached| reached.round_trip);
        Self {
            name: member.name.clone(),
            id: id(member.id),
            address,
            role,
            applied: status.map(|status| status.raft_applied_index),
            lag: status.map(|status| committed.saturating_sub(status.raft_applied_index)),
            db_bytes: status.map(|status| status.db_size),
            rtt_seconds: rtt.map(|rtt| rtt.as_secs_f64()),
            error: error.or(refused),
        }
    }

    fn told_name(&self) -> &str {
        if self.name.is_empty() {
            &self.id
        } else {
            &self.name
        }
    }

    fn cells(&self) -> Vec<String> {
        let or_nothing = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let name = if self.name.is_empty() {
            "-"
        } else {
            &self.name
        };
        let rtt = self.rtt_seconds.map(Duration::from_secs_f64);
        vec![
            name.to_owned(),
            self.id.clone(),
            self.address.clone(),
            self.role.told().to_owned(),
            or_nothing(self.applied.map(grouped)),
            or_nothing(self.lag.map(grouped)),
            or_nothing(self.db_bytes.map(size)),
            or_nothing(rtt.map(millis)),
        ]
    }
}

/// The alarms that the members tell of with their status, which needs no quorum. etcd's words are
/// `memberID:17 alarm:NOSPACE `.
fn alarms(statuses: &[&StatusResponse]) -> Vec<AlarmView> {
    let mut known: Vec<&&StatusResponse> = statuses.iter().collect();
    known.sort_by_key(|status| Reverse(status.raft_applied_index));
    // Whoever has applied the most knows best which of them were lifted.
    let latest = known.first().map(|status| status.errors.as_slice());
    let alarms = latest.unwrap_or_default().iter().filter_map(|text| {
        let (member, alarm) = text
            .trim()
            .strip_prefix("memberID:")?
            .split_once(" alarm:")?;
        Some(AlarmView {
            member: id(member.parse().ok()?),
            alarm: alarm.to_owned(),
        })
    });
    let mut alarms: Vec<_> = alarms.collect();
    alarms.sort();
    alarms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, id: &str, role: Role) -> MemberRow {
        let is_up = role != Role::Unreachable && role != Role::Unstarted;
        MemberRow {
            name: name.to_owned(),
            id: id.to_owned(),
            address: format!("http://{id}:2379"),
            role,
            applied: is_up.then_some(18_402),
            lag: is_up.then_some(0),
            db_bytes: is_up.then_some(1_200_000),
            rtt_seconds: is_up.then_some(0.000_31),
            error: (!is_up).then(|| "connection refused".to_owned()),
        }
    }

    fn view(members: Vec<MemberRow>, leader: Option<(&str, &str)>) -> ClusterView {
        ClusterView {
            cluster_id: "cdf8".to_owned(),
            quorum: leader.is_some(),
            leader: leader.map(|(id, name)| LeaderView {
                id: id.to_owned(),
                name: name.to_owned(),
            }),
            term: 4,
            revision: 91_204,
            alarms: Vec::new(),
            members,
        }
    }

    #[test]
    fn a_healthy_cluster_in_one_line_and_a_row_for_each_member() {
        let members = vec![
            row("n1", "a1", Role::Follower),
            row("n2", "b2", Role::Leader),
        ];
        let told = "\
cluster cdf8  2 members, quorum ok, leader n2 (term 4), revision 91,204, no alarms
NAME  ID  ADDRESS         ROLE      APPLIED  LAG      DB     RTT
n1    a1  http://a1:2379  follower   18,402    0  1.2 MB  0.3 ms
n2    b2  http://b2:2379  leader     18,402    0  1.2 MB  0.3 ms
";
        assert_eq!(view(members, Some(("b2", "n2"))).text(false), told);
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let members = vec![
            row("n1", "a1", Role::Leader),
            row("n2", "b2", Role::Unreachable),
            row("", "c3", Role::Unstarted),
        ];
        let mut view = view(members, Some(("a1", "n1")));
        view.alarms.push(AlarmView {
            member: "a1".to_owned(),
            alarm: "NOSPACE".to_owned(),
        });
        let text = view.text(false);
        for part in [
            "3 members, quorum ok, leader n1 (term 4), revision 91,204, ALARM NOSPACE on n1\n",
            "n2    b2  http://b2:2379  unreachable        -    -       -       -\n",
            "-     c3  http://c3:2379  not started        -    -       -       -\n",
            "\nn2 at http://b2:2379: connection refused\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        view.leader = None;
        view.quorum = false;
        assert!(view.text(false).contains("NO QUORUM (term 4)"));
        assert!(view.text(true).contains("+------+"));
    }

    #[test]
    fn the_cluster_is_what_its_members_say_together() {
        let members: Vec<_> = (1..=3)
            .map(|id| Member {
                id,
                name: format!("n{id}"),
                client_ur_ls: vec![format!("http://h{id}:1")],
                ..Member::default()
            })
            .collect();
        let unreachable = |url: &str| Err(Why::new(url, "connection refused"));
        let seen = [
            unreachable("http://h1:1"),
            unreachable("http://h2:1"),
            unreachable("http://h3:1"),
        ];
        let view = ClusterView::of(0xc1, &members, &seen);
        assert!(!view.quorum && view.leader.is_none());
        assert!(view.members.iter().all(|row| row.role == Role::Unreachable));
        assert_eq!(view.members[2].address, "http://h3:1");
    }

    #[test]
    fn alarms_are_read_from_the_one_who_knows_most() {
        let status = |applied, errors: &[&str]| StatusResponse {
            raft_applied_index: applied,
            errors: errors.iter().map(|&error| error.to_owned()).collect(),
            ..StatusResponse::default()
        };
        let (behind, ahead) = (
            status(3, &["memberID:17 alarm:NOSPACE "]),
            status(9, &["etcdserver: no leader", "memberID:18 alarm:CORRUPT "]),
        );
        let found = alarms(&[&behind, &ahead]);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].member.as_str(), found[0].alarm.as_str()),
            ("12", "CORRUPT")
        );
    }
}
