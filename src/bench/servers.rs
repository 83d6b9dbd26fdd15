//! The servers that are measured: who they are, the connections to them, and which client uses
//! which.

use std::error::Error;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::future::{join_all, try_join_all};
use quorate::proto::etcdserverpb::StatusRequest;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};

/// How long connecting to a server may take, and asking who it is.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// A server, by its own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) url: String,
    pub(super) version: String,
    /// Whether it leads its cluster.
    pub(super) leads: bool,
    pub(super) term: u64,
}

/// Asks each of `urls` who it is.
///
/// # Errors
/// When one does not answer; all that do not are named.
pub(super) async fn look(urls: &[String]) -> anyhow::Result<Vec<Server>> {
    let answers = join_all(urls.iter().map(|url| async move {
        match tokio::time::timeout(CONNECT_LIMIT, ask(url)).await {
            Ok(answer) => answer.map_err(|error| innermost(&*error)),
            Err(_) => Err(format!("no answer within {CONNECT_LIMIT:?}")),
        }
    }))
    .await;
    let silent: Vec<_> = urls
        .iter()
        .zip(&answers)
        .filter_map(|(url, answer)| Some(format!("\n  {url}  {}", answer.as_ref().err()?)))
        .collect();
    if !silent.is_empty() {
        bail!(
            "{} of {} endpoints cannot be used{}\n  \
             hint: start a node with `quorate dev`, or set --endpoints or QUORATE_ENDPOINTS",
            silent.len(),
            urls.len(),
            silent.concat()
        );
    }
    Ok(answers.into_iter().flatten().collect())
}

async fn ask(url: &str) -> Result<Server, Box<dyn Error + Send + Sync>> {
    let channel = endpoint(url)?.connect().await?;
    let status = MaintenanceClient::new(channel)
        .status(StatusRequest::default())
        .await?
        .into_inner();
    let own = status.header.map(|header| header.member_id);
    Ok(Server {
        url: url.to_owned(),
        version: status.version,
        leads: own == Some(status.leader),
        term: status.raft_term,
    })
}

/// What was at the bottom of an error.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    match error.downcast_ref::<tonic::Status>() {
        Some(status) => super::tally::kind(status),
        None => error.to_string(),
    }
}

fn endpoint(url: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true))
}

/// Which client uses which connection to which endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    endpoints: usize,
    connections: usize,
}

/// One client's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) endpoint: usize,
    pub(super) connection: usize,
}

impl Spread {
    /// Of clients over `endpoints`, at least one connection to each that has a client.
    pub(super) fn new(endpoints: usize, connections: usize) -> Self {
        Self {
            endpoints,
            connections,
        }
    }

    /// The endpoint that a connection leads to.
    pub(super) fn endpoint_of(self, connection: usize) -> usize {
        connection % self.endpoints
    }

    /// The place of client `n`: endpoints in turn, and the connections to each in turn.
    pub(super) fn place(self, client: usize) -> Place {
        let endpoint = client % self.endpoints;
        let spare = usize::from(endpoint < self.connections % self.endpoints);
        let own = self.connections / self.endpoints + spare;
        let nth = (client / self.endpoints) % own.max(1);
        Place {
            endpoint,
            connection: endpoint + nth * self.endpoints,
        }
    }
}

/// Makes the connections of `spread` to `urls`.
///
/// # Errors
/// When a server takes none.
pub(super) async fn connect(urls: &[String], spread: Spread) -> anyhow::Result<Vec<Channel>> {
    let connections = (0..spread.connections).map(|connection| async move {
        let url = &urls[spread.endpoint_of(connection)];
        let made = endpoint(url)?.connect().await;
        made.with_context(|| format!("connect to {url}"))
    });
    try_join_all(connections).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// How many clients each endpoint and each connection has.
    fn shares(endpoints: usize, connections: usize, clients: usize) -> (Vec<usize>, Vec<usize>) {
        let spread = Spread::new(endpoints, connections);
        let (mut ends, mut conns) = (BTreeMap::new(), BTreeMap::new());
        for client in 0..clients {
            let place = spread.place(client);
            assert!(place.connection < connections);
            assert_eq!(spread.endpoint_of(place.connection), place.endpoint);
            *ends.entry(place.endpoint).or_default() += 1;
            *conns.entry(place.connection).or_default() += 1;
        }
        (ends.into_values().collect(), conns.into_values().collect())
    }

    #[test]
    fn endpoints_share_the_clients_evenly_however_many_connections_there_are() {
        let (ends, conns) = shares(3, 16, 64);
        assert_eq!(ends, [22, 21, 21]);
        assert_eq!(conns.len(), 16);
        assert!(
            conns.iter().all(|clients| (3..=5).contains(clients)),
            "{conns:?}"
        );
        assert_eq!(shares(3, 3, 7).0, [3, 2, 2]);
        assert_eq!(shares(3, 4, 4), (vec![2, 1, 1], vec![1, 1, 1, 1]));
        assert_eq!(shares(3, 1, 1), (vec![1], vec![1]));
        assert_eq!(shares(1, 5, 10).1, [2, 2, 2, 2, 2]);
    }
}
