//! `quorate dev`: a node for trying out and for other programs' tests, gone when it ends.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use quorate::core::config::Limits;
use quorate::core::node::Node;
use quorate::core::server::Server;

use crate::{files, logging, server, services, signals};

/// Flags of `quorate dev`.
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// The port of 127.0.0.1 to listen on; 0 takes any that is free
    #[arg(long, default_value_t = 2379)]
    port: u16,

    /// Print one line of JSON with the endpoint, instead of words for people
    #[arg(long)]
    print_endpoint: bool,

    /// End when standard input does, so that a test's node ends with the test
    #[arg(long)]
    exit_with_stdin: bool,

    /// What is logged
    #[arg(long, value_name = "LEVEL", default_value = "warn",
          value_parser = ["error", "warn", "info", "debug", "trace"])]
    log_level: String,
}

/// Runs the node until it is asked to stop.
///
/// # Errors
/// When the port is taken.
pub(crate) async fn run(args: DevArgs) -> anyhow::Result<ExitCode> {
    logging::start(&args.log_level)?;
    let stop = signals::stop(args.exit_with_stdin);
    let listener = TcpListener::bind(("127.0.0.1", args.port)).with_context(|| {
        format!(
            "port {} of 127.0.0.1 cannot be used; another one: --port 0",
            args.port
        )
    })?;
    let url = format!("http://{}", listener.local_addr()?);
    let mut limits = Limits::default();
    files::fit(&mut limits);
    let node = Node::builder()
        .in_memory()
        .limits(limits)
        .name("dev")
        .advertise_client_urls([&url])
        .start()
        .await?;
    let server = Server::builder(node.clone())
        .services(services::add)
        .gateway(services::ROUTES)
        .listener(listener)
        .start()
        .await?;
    announce(&url, args.print_endpoint);
    Ok(server::serve(node, server, stop).await)
}

/// Says where the node is. Nobody may be reading: that is no reason to stop it.
fn announce(url: &str, for_programs: bool) {
    let text = if for_programs {
        serde_json::json!({ "endpoint": url }).to_string()
    } else {
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "quorate {version}  dev node, data in memory (lost on exit)\n\
             clients   {url}      etcdctl, any etcd v3 client\n\
             health    {url}/health\n\
             try       ETCDCTL_API=3 etcdctl --endpoints {url} put hello world\n          \
             Ctrl-C stops"
        )
    };
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        tracing::warn!(%error, "the endpoint could not be printed");
    }
}
