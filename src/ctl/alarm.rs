//! `quorate alarm`: what stands in the way of writes until a person has seen to it.

use clap::{Args, Subcommand};
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmResponse, AlarmType};
use serde::Serialize;

use super::client::{Call, Client};
use super::failure::Failure;
use super::output::{self, Style, boxed, print_json, print_lines};
use super::views::{AlarmView, EtcdAlarms, alarm_name, id};
use super::{GlobalArgs, Session};

/// Flags of `quorate alarm`.
#[derive(Debug, Args)]
pub(crate) struct AlarmArgs {
    #[command(subcommand)]
    command: AlarmCommand,
    #[command(flatten)]
    global: GlobalArgs,
}

#[derive(Debug, Subcommand)]
enum AlarmCommand {
    /// List the alarms that stand.
    List,
    /// Lift all alarms, and print them. One whose cause is still there is raised again.
    Disarm,
}

/// Does what the command says.
///
/// # Errors
/// See [`Failure`].
pub(super) async fn run(args: AlarmArgs, outer: GlobalArgs) -> Result<(), Failure> {
    let Session { client, style } = args.global.resolve(outer)?;
    let list = request(AlarmAction::Get, 0, AlarmType::None);
    let standing = ask(&client, "the alarms could not be listed", Call::Read, list).await?;
    let answer = match args.command {
        AlarmCommand::List => standing,
        AlarmCommand::Disarm => {
            let mut lifted = AlarmResponse::default();
            for alarm in &standing.alarms {
                let lift = request(AlarmAction::Deactivate, alarm.member_id, alarm.alarm());
                let what = "an alarm was not lifted";
                let answer = ask(&client, what, Call::Write, lift).await?;
                lifted.alarms.extend(answer.alarms);
            }
            lifted
        }
    };
    let alarms = &answer.alarms;
    match style {
        Style::Simple => print_lines(alarms.iter().map(line)),
        Style::Table => {
            let row = |alarm: &AlarmMember| vec![id(alarm.member_id), alarm_name(alarm).to_owned()];
            let rows: Vec<_> = alarms.iter().map(row).collect();
            output::print(&boxed(&["MEMBER ID", "ALARM"], &rows))
        }
        Style::EtcdJson => print_json(&EtcdAlarms::from(&answer)),
        Style::Json => print_json(&AlarmsView {
            alarms: alarms.iter().map(AlarmView::from).collect(),
        }),
    }
}

#[derive(Debug, Serialize)]
struct AlarmsView {
    alarms: Vec<AlarmView>,
}

fn request(action: AlarmAction, member_id: u64, alarm: AlarmType) -> AlarmRequest {
    AlarmRequest {
        action: action.into(),
        member_id,
        alarm: alarm.into(),
    }
}

async fn ask(
    client: &Client,
    what: &str,
    kind: Call,
    request: AlarmRequest,
) -> Result<AlarmResponse, Failure> {
    let (answer, _) = client
        .call(what, kind, async |channel| {
            let mut client = MaintenanceClient::new(channel);
            Ok(client.alarm(request).await?.into_inner())
        })
        .await?;
    Ok(answer)
}

/// An alarm as etcdctl prints it: with the id in decimal, and a space at the end.
fn line(alarm: &AlarmMember) -> String {
    format!("memberID:{} alarm:{} ", alarm.member_id, alarm_name(alarm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_told_as_etcdctl_tells_it() {
        let alarm = AlarmMember {
            member_id: 17,
            alarm: AlarmType::Nospace.into(),
        };
        assert_eq!(line(&alarm), "memberID:17 alarm:NOSPACE ");
    }
}
