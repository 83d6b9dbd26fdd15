//! `quorate member`: who is in the cluster, and changes of that.

use clap::{Args, Subcommand};
use quorate_proto::etcdserverpb::cluster_client::ClusterClient;
use quorate_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
    ResponseHeader,
};
use serde::Serialize;

use super::client::{Call, Client};
use super::failure::Failure;
use super::output::{Style, boxed, print_json, print_lines};
use super::views::{EtcdMembers, MemberView, id, state};
use super::{GlobalArgs, Session, member_id, output};

/// Flags of `quorate member`.
#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    #[command(subcommand)]
    command: MemberCommand,
    #[command(flatten)]
    global: GlobalArgs,
}

#[derive(Debug, Subcommand)]
enum MemberCommand {
    /// List the members, as the endpoint knows them.
    List,
    /// Add a member and print how to start it. It gets its vote once it has caught up.
    Add {
        /// The name it will have
        name: String,
        /// Where the other members will reach it
        #[arg(long, value_name = "URLS", value_delimiter = ',', required = true)]
        peer_urls: Vec<String>,
        /// It gets no vote until `quorate member promote`
        #[arg(long)]
        learner: bool,
    },
    /// Remove a member, for good: it stops, and its data folder is of no more use.
    Remove {
        /// Its id, in hex
        #[arg(value_parser = member_id)]
        id: u64,
    },
    /// Change where the other members reach a member.
    Update {
        /// Its id, in hex
        #[arg(value_parser = member_id)]
        id: u64,
        /// All of its peer URLs from now on
        #[arg(long, value_name = "URLS", value_delimiter = ',', required = true)]
        peer_urls: Vec<String>,
    },
    /// Give a learner its vote.
    Promote {
        /// Its id, in hex
        #[arg(value_parser = member_id)]
        id: u64,
    },
}

/// Does what the command says.
///
/// # Errors
/// See [`Failure`].
pub(super) async fn run(args: MemberArgs, outer: GlobalArgs) -> Result<(), Failure> {
    let Session { client, style } = args.global.resolve(outer)?;
    match args.command {
        MemberCommand::List => list(&client, style).await,
        MemberCommand::Add {
            name,
            peer_urls,
            learner,
        } => add(&client, style, &name, peer_urls, learner).await,
        MemberCommand::Remove { id } => {
            let request = MemberRemoveRequest { id };
            let what = "the member was not removed";
            let (answer, _) = client
                .call(what, Call::Write, async |channel| {
                    let mut client = ClusterClient::new(channel);
                    Ok(client.member_remove(request).await?.into_inner())
                })
                .await?;
            changed(
                style,
                id,
                "removed from",
                answer.header.as_ref(),
                &answer.members,
            )
        }
        MemberCommand::Update { id, peer_urls } => {
            let request = MemberUpdateRequest {
                id,
                peer_ur_ls: peer_urls,
            };
            let what = "the member was not changed";
            let (answer, _) = client
                .call(what, Call::Write, async |channel| {
                    let mut client = ClusterClient::new(channel);
                    Ok(client.member_update(request.clone()).await?.into_inner())
                })
                .await?;
            changed(
                style,
                id,
                "updated in",
                answer.header.as_ref(),
                &answer.members,
            )
        }
        MemberCommand::Promote { id } => {
            let request = MemberPromoteRequest { id };
            let what = "the member was not promoted";
            let (answer, _) = client
                .call(what, Call::Write, async |channel| {
                    let mut client = ClusterClient::new(channel);
                    Ok(client.member_promote(request).await?.into_inner())
                })
                .await?;
            changed(
                style,
                id,
                "promoted in",
                answer.header.as_ref(),
                &answer.members,
            )
        }
    }
}

/// The members, for people.
#[derive(Debug, Serialize)]
struct MembersView {
    cluster_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    member: Option<MemberView>,
    members: Vec<MemberView>,
    /// The command lines that start the member which was added, as arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    start: Vec<Vec<String>>,
}

impl MembersView {
    fn of(header: Option<&ResponseHeader>, member: Option<&Member>, members: &[Member]) -> Self {
        Self {
            cluster_id: id(cluster_id(header)),
            member: member.map(MemberView::from),
            members: members.iter().map(MemberView::from).collect(),
            start: Vec::new(),
        }
    }
}

fn cluster_id(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, |header| header.cluster_id)
}

async fn list(client: &Client, style: Style) -> Result<(), Failure> {
    let (list, _) = client.members().await?;
    let (header, members) = (list.header.as_ref(), &list.members);
    match style {
        Style::Simple => print_lines(members.iter().map(|member| row(member).join(", "))),
        Style::Table => output::print(&table(members)),
        Style::EtcdJson => print_json(&EtcdMembers::of(header, None, members)),
        Style::Json => print_json(&MembersView::of(header, None, members)),
    }
}

fn table(members: &[Member]) -> String {
    let header = [
        "ID",
        "STATUS",
        "NAME",
        "PEER ADDRS",
        "CLIENT ADDRS",
        "IS LEARNER",
    ];
    let rows: Vec<_> = members.iter().map(row).collect();
    boxed(&header, &rows)
}

fn row(member: &Member) -> Vec<String> {
    vec![
        id(member.id),
        state(member).to_owned(),
        member.name.clone(),
        member.peer_ur_ls.join(","),
        member.client_ur_ls.join(","),
        member.is_learner.to_string(),
    ]
}

/// Tells that a change was made.
fn changed(
    style: Style,
    member: u64,
    how: &str,
    header: Option<&ResponseHeader>,
    members: &[Member],
) -> Result<(), Failure> {
    match style {
        Style::Simple => {
            let cluster = cluster_id(header);
            print_lines([format!("Member {member:16x} {how} cluster {cluster:16x}")])
        }
        Style::Table => output::print(&table(members)),
        Style::EtcdJson => print_json(&EtcdMembers::of(header, None, members)),
        Style::Json => print_json(&MembersView::of(header, None, members)),
    }
}

async fn add(
    client: &Client,
    style: Style,
    name: &str,
    peer_urls: Vec<String>,
    is_learner: bool,
) -> Result<(), Failure> {
    let request = MemberAddRequest {
        peer_ur_ls: peer_urls,
        is_learner,
    };
    let (answer, reached) = client
        .call("the member was not added", Call::Write, async |channel| {
            let mut client = ClusterClient::new(channel);
            Ok(client.member_add(request.clone()).await?.into_inner())
        })
        .await?;
    let header = answer.header.as_ref();
    let added = answer.member.clone().unwrap_or_default();
    let start = Start::of(name, &added, &answer.members, reached.member_id());
    match style {
        Style::Simple => {
            let cluster = cluster_id(header);
            let told = format!("Member {:16x} added to cluster {cluster:16x}", added.id);
            print_lines([told, String::new()].into_iter().chain(start.lines()))
        }
        Style::Table => {
            output::print(&table(&answer.members))?;
            print_lines(std::iter::once(String::new()).chain(start.lines()))
        }
        Style::EtcdJson => print_json(&EtcdMembers::of(header, Some(&added), &answer.members)),
        Style::Json => print_json(&MembersView {
            start: start.commands(),
            ..MembersView::of(header, Some(&added), &answer.members)
        }),
    }
}

/// How to start a member that was added.
struct Start<'a> {
    name: &'a str,
    own: &'a [String],
    /// `name=url` of all members, itself first.
    initial: String,
    /// Where it can be let in.
    join: Option<&'a str>,
}

impl<'a> Start<'a> {
    /// `asked` is the member that has answered, and so lets others in.
    fn of(name: &'a str, added: &'a Member, members: &'a [Member], asked: Option<u64>) -> Self {
        let others = || members.iter().filter(|member| member.id != added.id);
        let listed = |name: &str, urls: &[String]| {
            let pairs = urls.iter().map(|url| format!("{name}={url}"));
            pairs.collect::<Vec<_>>()
        };
        let mut initial = listed(name, &added.peer_ur_ls);
        for member in others() {
            // One that has not started yet has no name; any will do.
            let name = match member.name.as_str() {
                "" => id(member.id),
                name => name.to_owned(),
            };
            initial.extend(listed(&name, &member.peer_ur_ls));
        }
        Self {
            name,
            own: &added.peer_ur_ls,
            initial: initial.join(","),
            join: others()
                .find(|member| Some(member.id) == asked)
                .and_then(|member| member.peer_ur_ls.first())
                .map(String::as_str),
        }
    }

    /// What etcdctl prints, and command lines.
    fn lines(&self) -> Vec<String> {
        let own = self.own.join(",");
        let mut lines = vec![
            format!("ETCD_NAME=\"{}\"", self.name),
            format!("ETCD_INITIAL_CLUSTER=\"{}\"", self.initial),
            format!("ETCD_INITIAL_ADVERTISE_PEER_URLS=\"{own}\""),
            "ETCD_INITIAL_CLUSTER_STATE=\"existing\"".to_owned(),
            String::new(),
            "Start it with an empty data folder and its own client URLs, by".to_owned(),
        ];
        let commands = self.commands();
        for (i, command) in commands.iter().enumerate() {
            if i > 0 {
                lines.push("or, shorter, by".to_owned());
            }
            let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
            lines.push(format!("  {}", words.join(" ")));
        }
        lines
    }

    /// The command lines, the shorter one last.
    fn commands(&self) -> Vec<Vec<String>> {
        let own = self.own.join(",");
        let words = |middle: &[&str]| {
            let words = [&["quorate", "server", "--name", self.name], middle].concat();
            let urls = [
                "--initial-advertise-peer-urls",
                &own,
                "--listen-peer-urls",
                &own,
            ];
            let words = words.into_iter().chain(urls);
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let listed = [
            "--initial-cluster",
            &self.initial,
            "--initial-cluster-state",
            "existing",
        ];
        let mut commands = vec![words(&listed)];
        commands.extend(self.join.map(|url| words(&["--join", url])));
        commands
    }
}

/// A word as a shell takes it for one.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=:/.,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str, url: &str) -> Member {
        Member {
            id,
            name: name.to_owned(),
            peer_ur_ls: vec![url.to_owned()],
            ..Member::default()
        }
    }

    #[test]
    fn a_new_member_is_told_how_to_start() {
        let added = member(3, "", "http://h3:2380");
        let members = [
            member(0xb, "", "http://h2:2380"),
            added.clone(),
            member(1, "n1", "http://h1:2380"),
        ];
        let lines = Start::of("n 3", &added, &members, Some(1)).lines();
        let initial = "n 3=http://h3:2380,b=http://h2:2380,n1=http://h1:2380";
        assert_eq!(
            lines,
            [
                "ETCD_NAME=\"n 3\"",
                &format!("ETCD_INITIAL_CLUSTER=\"{initial}\""),
                "ETCD_INITIAL_ADVERTISE_PEER_URLS=\"http://h3:2380\"",
                "ETCD_INITIAL_CLUSTER_STATE=\"existing\"",
                "",
                "Start it with an empty data folder and its own client URLs, by",
                &format!(
                    "  quorate server --name 'n 3' --initial-cluster '{initial}' \
                     --initial-cluster-state existing --initial-advertise-peer-urls \
                     http://h3:2380 --listen-peer-urls http://h3:2380"
                ),
                "or, shorter, by",
                "  quorate server --name 'n 3' --join http://h1:2380 \
                 --initial-advertise-peer-urls http://h3:2380 --listen-peer-urls http://h3:2380",
            ]
        );
    }

    #[test]
    fn words_are_quoted_where_a_shell_would_part_them() {
        assert_eq!(
            quoted("http://h:1,http://[::1]:2"),
            "'http://h:1,http://[::1]:2'"
        );
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("a=http://h:1"), "a=http://h:1");
    }

    #[test]
    fn a_member_that_never_ran_is_unstarted() {
        let row = row(&member(0x8e9e, "", "http://h:1"));
        assert_eq!(row, ["8e9e", "unstarted", "", "http://h:1", "", "false"]);
    }
}
