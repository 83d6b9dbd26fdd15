//! `quorate defrag`: space of removed data back to the file system, one member after the other.

use std::time::Duration;

use clap::Args;
use quorate::core::clock;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{DefragmentRequest, StatusRequest};
use serde::Serialize;

use super::client::{Client, Endpoint, within};
use super::failure::{Exit, Failure, Why, told};
use super::output::{self, Style, boxed, print_json, print_lines, size};
use super::{GlobalArgs, Session};

/// Flags of `quorate defrag`. The command timeout is for each member, 10 minutes unless given: the
/// work grows with the store.
#[derive(Debug, Args)]
pub(crate) struct DefragArgs {
    /// All members of the cluster, where they say that clients reach them
    #[arg(long)]
    cluster: bool,
    #[command(flatten)]
    global: GlobalArgs,
}

/// What one member did.
#[derive(Debug, Serialize)]
struct Defragmented {
    endpoint: String,
    took_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    db_bytes_before: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    db_bytes_after: Option<i64>,
}

/// Goes from endpoint to endpoint, on to the next when one fails.
///
/// # Errors
/// See [`Failure`]; those that were done are printed first.
pub(super) async fn run(args: DefragArgs, outer: GlobalArgs) -> Result<(), Failure> {
    let Session { client, style } = args.global.resolve(outer)?;
    let endpoints = if args.cluster {
        client.advertised().await?
    } else {
        client.endpoints().to_vec()
    };
    let (mut done, mut why, mut any_reached) = (Vec::new(), Vec::new(), false);
    for endpoint in &endpoints {
        match defragment(&client, endpoint, &mut any_reached).await {
            Ok(defragmented) => {
                if style == Style::Simple {
                    let endpoint = &defragmented.endpoint;
                    print_lines([format!("Finished defragmenting etcd member[{endpoint}]")])?;
                }
                done.push(defragmented);
            }
            Err(failed) => why.push(failed),
        }
    }
    match style {
        Style::Simple => {}
        Style::Table => output::print(&table(&done))?,
        Style::EtcdJson | Style::Json => print_json(&done)?,
    }
    match (why.len(), any_reached) {
        (0, _) => Ok(()),
        (_, false) => Err(client.unreachable(why)),
        (failed, true) => {
            let what = format!("not defragmented: {failed} of {} members", endpoints.len());
            Err(Failure::new(Exit::Failed, what).because(why))
        }
    }
}

async fn defragment(
    client: &Client,
    endpoint: &Endpoint,
    any_reached: &mut bool,
) -> Result<Defragmented, Why> {
    let reached = client.dial(endpoint).await?;
    *any_reached = true;
    let began = clock::now();
    let mut asked = MaintenanceClient::new(reached.channel);
    let answer = asked.defragment(DefragmentRequest::default());
    let answer = within(client.long_command_timeout(), answer).await;
    answer.map_err(|status| Why::new(endpoint.given(), told(&status)))?;
    let took = began.elapsed();
    // Done is done, whether the size can be told or not.
    let after = asked.status(StatusRequest::default());
    let after = within(Duration::from_secs(2), after).await.ok();
    Ok(Defragmented {
        endpoint: endpoint.given().to_owned(),
        took_seconds: took.as_secs_f64(),
        db_bytes_before: reached.status.ok().map(|status| status.db_size),
        db_bytes_after: after.map(|status| status.get_ref().db_size),
    })
}

fn table(done: &[Defragmented]) -> String {
    let header = ["ENDPOINT", "TOOK", "DB SIZE BEFORE", "DB SIZE AFTER"];
    let told = |bytes: Option<i64>| bytes.map(size).unwrap_or_default();
    let row = |done: &Defragmented| {
        vec![
            done.endpoint.clone(),
            format!("{:.1} s", done.took_seconds),
            told(done.db_bytes_before),
            told(done.db_bytes_after),
        ]
    };
    let rows: Vec<_> = done.iter().map(row).collect();
    boxed(&header, &rows)
}
