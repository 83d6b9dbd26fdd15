//! `quorate server`: one member as a process of its own.

use std::process::ExitCode;

use anyhow::Context as _;
use quorate::core::config::Data;
use quorate::core::node::{Node, NodeBuilder};
use quorate::core::server::Server;
use quorate_proto::Reason;
use tracing::{error, info};

use crate::cli::ServerArgs;
use crate::{files, logging, services, signals};

/// Runs a member until it is asked to stop or cannot go on.
///
/// # Errors
/// A configuration, data folder or address that cannot be used.
pub(crate) async fn run(args: ServerArgs) -> anyhow::Result<ExitCode> {
    logging::start(args.log_level())?;
    let mut config = args.config()?;
    files::fit(&mut config.limits);
    if let Data::Folder(folder) = &config.data {
        info!(name = config.name, data_dir = %folder.display(), "starting");
    }
    let stop = signals::stop(args.exit_with_stdin());
    let node = NodeBuilder::from_config(config)
        .start()
        .await
        .context("the member cannot start")?;
    let mut server = Server::builder(node.clone())
        .services(services::add)
        .gateway(services::ROUTES)
        .access(args.access());
    for url in args.listen_client_urls() {
        server = server.listen(url);
    }
    let server = server.start().await.context("cannot listen for clients");
    let server = match server {
        Ok(server) => server,
        Err(error) => {
            node.shutdown().await;
            return Err(error);
        }
    };
    for address in server.local_addrs() {
        info!(%address, "serving clients");
    }
    Ok(serve(node, server, stop).await)
}

/// Waits for a reason to stop, then stops the faces before the member.
pub(crate) async fn serve(
    node: Node,
    server: Server,
    stop: impl Future<Output = anyhow::Result<()>>,
) -> ExitCode {
    let code = tokio::select! {
        stopped = stop => match stopped {
            Ok(()) => {
                info!("stopping");
                ExitCode::SUCCESS
            }
            Err(cause) => {
                error!(%cause, "stopping");
                ExitCode::FAILURE
            }
        },
        cause = node.failed() => match cause.reason() {
            Reason::MemberRemoved => {
                info!("stopping: removed from the cluster");
                ExitCode::SUCCESS
            }
            _ => {
                error!(%cause, "the member cannot go on");
                ExitCode::FAILURE
            }
        }
    };
    server.stop().await;
    node.shutdown().await;
    code
}
