//! The cluster commands: what operators ask a running cluster, quorate's or etcd's, from outside. Words,
//! flags and output are etcdctl's where it has the command.
//!
//! [`client`] finds an endpoint that answers, [`output`] prints in the form asked for, [`failure`] says
//! what went wrong; each group of commands has a file of its own.

mod client;
mod failure;
mod output;

mod views;

mod alarm;
mod defrag;
mod endpoint;
mod leader;
mod member;
mod status;

use std::process::ExitCode;

use clap::{ArgMatches, Args, Command as Parser, FromArgMatches, Subcommand};

use client::{Client, ConnectArgs};
use failure::Failure;
use output::{OutputArgs, Style};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show how the cluster is: its leader, and each member's role, lag and size.
    Status(status::StatusArgs),
    /// List, add, remove and change the members of the cluster.
    Member(member::MemberArgs),
    /// Ask each endpoint how it is.
    Endpoint(endpoint::EndpointArgs),
    /// Hand leadership to another member.
    MoveLeader(leader::MoveLeaderArgs),
    /// List alarms, or lift them once their cause is gone.
    Alarm(alarm::AlarmArgs),
    /// Give space of removed data back to the file system.
    Defrag(defrag::DefragArgs),
}

/// What every one of them takes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct GlobalArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl GlobalArgs {
    /// Whether any of them was given.
    pub(crate) fn any(&self) -> bool {
        self.connect.any() || self.output.any()
    }

    fn resolve(self, outer: Self) -> Result<Session, Failure> {
        Ok(Session {
            client: self.connect.or(outer.connect).client()?,
            style: self.output.or(outer.output).style()?,
        })
    }
}

/// The same flags before the command, where etcdctl's users may write them.
#[derive(Debug, Clone, Default)]
pub(crate) struct OuterArgs(pub(crate) GlobalArgs);

impl Args for OuterArgs {
    fn augment_args(command: Parser) -> Parser {
        let flags = GlobalArgs::augment_args(Parser::new("flags"));
        // Not handed down: servers have no use for them, and each cluster command has its own.
        command.args(flags.get_arguments().map(|flag| flag.clone().global(false)))
    }

    fn augment_args_for_update(command: Parser) -> Parser {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OuterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        GlobalArgs::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

/// What a command works with.
#[derive(Debug)]
struct Session {
    client: Client,
    style: Style,
}

/// Does what the command says and tells how that went.
pub(crate) async fn run(command: Command, outer: OuterArgs) -> ExitCode {
    let done = match command {
        Command::Status(args) => status::run(args, outer.0).await,
        Command::Member(args) => member::run(args, outer.0).await,
        Command::Endpoint(args) => endpoint::run(args, outer.0).await,
        Command::MoveLeader(args) => leader::run(args, outer.0).await,
        Command::Alarm(args) => alarm::run(args, outer.0).await,
        Command::Defrag(args) => defrag::run(args, outer.0).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.print(),
    }
}

/// A member's id as it is written on the command line: in hex, as everything prints it.
fn member_id(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map_err(|_| "a member's id is a number in hex; see `quorate member list`".to_owned())
}

/// What the environment says for a flag: `QUORATE_<NAME>`, or else `ETCDCTL_<NAME>`.
fn environment(name: &str) -> Option<String> {
    let variable = |prefix: &str| std::env::var(format!("{prefix}_{name}")).ok();
    let said = variable("QUORATE").or_else(|| variable("ETCDCTL"));
    said.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hex() {
        assert_eq!(member_id("8e9e05c52164694d"), Ok(0x8e9e_05c5_2164_694d));
        assert_eq!(member_id("0xff"), Ok(255));
        assert!(member_id("zz").is_err() && member_id("").is_err());
    }
}
