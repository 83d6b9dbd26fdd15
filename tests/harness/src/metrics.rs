//! What a server says at `/metrics`, and its plain HTTP routes in general.

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The sum of a metric over all its labels; 0 if there is none of the name.
///
/// # Errors
/// When the server does not answer, or with something else than metrics.
pub async fn metric(endpoint: &str, name: &str) -> anyhow::Result<f64> {
    let answer = get(endpoint, "/metrics").await?;
    let mut sum = 0.0;
    for line in answer.lines() {
        let Some((sample, value)) = line.rsplit_once(' ') else {
            continue;
        };
        if sample == name || sample.split('{').next() == Some(name) {
            sum += value.parse::<f64>().context(line.to_owned())?;
        }
    }
    Ok(sum)
}

/// The answer to a plain HTTP request, status line included.
///
/// # Errors
/// When there is none.
pub async fn get(endpoint: &str, path: &str) -> anyhow::Result<String> {
    let address = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
