//! `quorate move-leader`: planned changes of the leader, before a machine goes down for a while.

use clap::Args;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{Member, MoveLeaderRequest};
use serde::Serialize;

use super::client::{Client, Endpoint, Reached, within};
use super::failure::{Exit, Failure, Why};
use super::output::{Style, print_json, print_lines};
use super::views::id;
use super::{GlobalArgs, Session, member_id};

/// Flags of `quorate move-leader`.
#[derive(Debug, Args)]
pub(crate) struct MoveLeaderArgs {
    /// The id of the member that is to lead, in hex
    #[arg(value_name = "ID", value_parser = member_id)]
    to: u64,
    #[command(flatten)]
    global: GlobalArgs,
}

/// What was done, for people.
#[derive(Debug, Serialize)]
struct MovedView {
    from: String,
    to: String,
}

/// Finds the leader, through whichever endpoint, and has it hand over.
///
/// # Errors
/// See [`Failure`].
pub(super) async fn run(args: MoveLeaderArgs, outer: GlobalArgs) -> Result<(), Failure> {
    let Session { client, style } = args.global.resolve(outer)?;
    let leader = leader(&client).await?;
    let from = leader.member_id().unwrap_or_default();
    let mut asked = MaintenanceClient::new(leader.channel.clone());
    let request = MoveLeaderRequest { target_id: args.to };
    let answer = within(client.command_timeout(), asked.move_leader(request)).await;
    let refused = |status| {
        Failure::refused(
            "leadership was not handed over",
            leader.endpoint.given(),
            &status,
        )
    };
    answer.map_err(refused)?;
    let (from, to) = (id(from), id(args.to));
    match style {
        Style::Simple | Style::Table => {
            print_lines([format!("Leadership transferred from {from} to {to}")])
        }
        Style::EtcdJson | Style::Json => print_json(&MovedView { from, to }),
    }
}

fn leads(reached: &Reached) -> bool {
    let leader = reached.status.as_ref().map_or(0, |status| status.leader);
    leader != 0 && reached.member_id() == Some(leader)
}

/// A connection to the leader: one of the endpoints, or else where it says that clients reach it.
async fn leader(client: &Client) -> Result<Reached, Failure> {
    let dialled = client.dial_all(client.endpoints()).await;
    let (mut reached, mut why): (Vec<Reached>, Vec<Why>) = (Vec::new(), Vec::new());
    for dialled in dialled {
        match dialled {
            Ok(answer) => reached.push(answer),
            Err(unreachable) => why.push(unreachable),
        }
    }
    if reached.is_empty() {
        return Err(client.unreachable(why));
    }
    if let Some(leader) = reached.iter().position(leads) {
        return Ok(reached.swap_remove(leader));
    }
    let statuses = reached
        .iter()
        .filter_map(|reached| reached.status.as_ref().ok());
    let known = statuses.filter(|status| status.leader != 0);
    let Some(known) = known.max_by_key(|status| status.raft_term) else {
        let silent = reached.iter().map(|reached| {
            let text = match &reached.status {
                Ok(_) => "it knows no leader".to_owned(),
                Err(status) => super::failure::told(status),
            };
            Why::new(reached.endpoint.given(), text)
        });
        let failure = Failure::new(Exit::Unavailable, "there is no leader to hand over");
        return Err(failure.because(why).because(silent));
    };
    let (list, _) = client.members().await?;
    let member = list.members.iter().find(|member| member.id == known.leader);
    let urls = member.map(|member: &Member| member.client_ur_ls.clone());
    for url in urls.unwrap_or_default() {
        let dialled = match Endpoint::parse(&url) {
            Ok(endpoint) => client.dial(&endpoint).await,
            Err(unusable) => Err(unusable),
        };
        match dialled {
            Ok(leader) if leads(&leader) => return Ok(leader),
            Ok(other) => why.push(Why::new(
                other.endpoint.given(),
                "it does not lead any more",
            )),
            Err(unreachable) => why.push(unreachable),
        }
    }
    let what = format!("the leader, {}, cannot be reached", id(known.leader));
    let failure = Failure::new(Exit::Unavailable, what).because(why);
    Err(failure.hint("only the leader can hand over: name it with --endpoints"))
}
