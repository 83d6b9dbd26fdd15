//! `quorate snapshot save`: one member's data, streamed to a file. A file of that name is replaced, as
//! by etcdctl, but only once the new one is whole and on the disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use quorate::core::config::url_authority;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate::proto::etcdserverpb::{SnapshotRequest, SnapshotResponse};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;

/// How long the member may take to accept the connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How often a silent member is asked for a sign of life, and how long it may take to give one. It may
/// be silent for long while it gets ready to send.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_LIMIT: Duration = Duration::from_secs(20);
/// Length of the SHA-256 that the stream ends with.
const SHA256_BYTES: usize = 32;
/// Pieces received and not written yet.
const PIECES_WAITING: usize = 16;

/// Flags of `quorate snapshot save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The file; one that exists is replaced once the new one is complete
    file: PathBuf,

    /// The member to ask: exactly one, since members may differ by what they have not heard yet
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
}

/// Saves a snapshot.
///
/// # Errors
/// The member cannot be reached or does not send all of it, or the file cannot be written. A file of
/// that name is then as it was before.
pub(super) async fn run(args: SaveArgs) -> anyhow::Result<()> {
    let url = endpoint(&args.endpoints)?;
    let channel = Endpoint::from_shared(url.clone())?
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .with_context(|| format!("{url} does not answer"))?;
    let mut client = MaintenanceClient::new(channel);
    let asked = client.snapshot(SnapshotRequest {}).await;
    let mut pieces = asked.map_err(|status| refused(&url, &status))?.into_inner();

    let (sender, receiver) = mpsc::channel(PIECES_WAITING);
    let file = args.file.clone();
    let writing = tokio::task::spawn_blocking(move || write(&file, receiver));
    let mut version = String::new();
    let received = async {
        loop {
            match pieces.message().await {
                Ok(Some(piece)) => {
                    version.clone_from(&piece.version);
                    // Who writes has failed, and tells why.
                    if sender.send(Received::Piece(piece)).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(None) => {
                    drop(sender.send(Received::End).await);
                    return Ok(());
                }
                Err(status) => return Err(refused(&url, &status)),
            }
        }
    };
    let received = received.await;
    // Without an end, what was written is removed.
    drop(sender);
    let written = writing.await?;
    received?;
    written?;
    tell(&args.file, &version);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the command was called for")]
fn tell(file: &Path, version: &str) {
    println!("Snapshot saved at {}", file.display());
    if !version.is_empty() {
        println!("Server version {version}");
    }
}

fn refused(url: &str, status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{url}: {}", status.message())
}

/// The one endpoint, as a URL.
fn endpoint(endpoints: &[String]) -> anyhow::Result<String> {
    let [endpoint] = endpoints else {
        bail!(
            "--endpoints: {} members are named; a snapshot is of exactly one",
            endpoints.len()
        );
    };
    ensure!(
        !endpoint.starts_with("https://"),
        "--endpoints: {endpoint}: this version has no TLS yet"
    );
    let url = match endpoint.contains("://") {
        true => endpoint.clone(),
        false => format!("http://{endpoint}"),
    };
    ensure!(
        url_authority(&url).is_some(),
        "--endpoints: {endpoint:?} is not host:port or http://host:port"
    );
    Ok(url)
}

/// What came over the stream.
enum Received {
    Piece(SnapshotResponse),
    End,
}

/// Writes what comes beside the file, checks it, and puts it in the file's place. Blocks.
fn write(file: &Path, mut received: mpsc::Receiver<Received>) -> anyhow::Result<()> {
    let part = Part::beside(file)?;
    let mut check = Check::default();
    loop {
        match received.blocking_recv() {
            Some(Received::Piece(piece)) => {
                check.add(&piece)?;
                (&part.file)
                    .write_all(&piece.blob)
                    .with_context(|| format!("cannot write {}", part.path.display()))?;
            }
            Some(Received::End) => break,
            None => bail!("the snapshot ended early"),
        }
    }
    check.finish()?;
    part.take_place(file)
}

/// Whether the stream is whole: as long as announced, and ending with the SHA-256 of all before.
#[derive(Default)]
struct Check {
    digest: Sha256,
    /// The last bytes, which may be the checksum.
    tail: Vec<u8>,
    announced: Option<u64>,
    bytes: u64,
}

impl Check {
    fn add(&mut self, piece: &SnapshotResponse) -> anyhow::Result<()> {
        let length = piece.blob.len() as u64;
        let announced = *self
            .announced
            .get_or_insert(piece.remaining_bytes.saturating_add(length));
        self.bytes += length;
        ensure!(
            self.bytes <= announced.saturating_add(SHA256_BYTES as u64),
            "more came than the {announced} bytes that were announced"
        );
        self.tail.extend_from_slice(&piece.blob);
        let certain = self.tail.len().saturating_sub(SHA256_BYTES);
        self.digest.update(&self.tail[..certain]);
        self.tail.drain(..certain);
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        let announced = self.announced.unwrap_or_default();
        let body = self.bytes.saturating_sub(SHA256_BYTES as u64);
        ensure!(
            self.tail.len() == SHA256_BYTES && body == announced,
            "the snapshot ended early: {} of {announced} bytes and their checksum",
            self.bytes
        );
        ensure!(
            self.tail == *self.digest.finalize(),
            "the snapshot was damaged on its way: its SHA-256 is another one"
        );
        Ok(())
    }
}

/// `<file>.part`, locked; removed unless it takes the file's place.
struct Part {
    path: PathBuf,
    file: File,
    is_in_place: bool,
}

impl Part {
    fn beside(file: &Path) -> anyhow::Result<Self> {
        let mut name = file
            .file_name()
            .with_context(|| format!("{} is no name for a file", file.display()))?
            .to_owned();
        name.push(".part");
        let path = file.with_file_name(name);
        let cannot = || format!("cannot write {}", path.display());
        let part = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(cannot)?;
        match part.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{}: another snapshot is being saved to it", path.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(cannot);
            }
        }
        // What an earlier attempt left, which was killed.
        part.set_len(0).with_context(cannot)?;
        Ok(Self {
            file: part,
            is_in_place: false,
            path,
        })
    }

    fn take_place(mut self, file: &Path) -> anyhow::Result<()> {
        let cannot = || format!("cannot write {}", file.display());
        self.file.sync_all().with_context(cannot)?;
        std::fs::rename(&self.path, file).with_context(cannot)?;
        self.is_in_place = true;
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = File::open(folder).with_context(cannot)?;
        folder.sync_all().with_context(cannot)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_in_place {
            // Left where it is if it cannot be removed: the next attempt begins it anew.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(body: &[u8], piece_bytes: usize) -> Vec<SnapshotResponse> {
        let mut left = body.len() as u64;
        let mut pieces: Vec<_> = body
            .chunks(piece_bytes)
            .map(|blob| {
                left -= blob.len() as u64;
                SnapshotResponse {
                    remaining_bytes: left,
                    blob: blob.to_vec().into(),
                    ..SnapshotResponse::default()
                }
            })
            .collect();
        pieces.push(SnapshotResponse {
            blob: Sha256::digest(body).to_vec().into(),
            ..SnapshotResponse::default()
        });
        pieces
    }

    /// Writes pieces to a file that holds `before`; tells what it holds afterwards.
    fn saved(pieces: Vec<SnapshotResponse>, ends: bool) -> (anyhow::Result<()>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "before").unwrap();
        std::fs::write(folder.path().join("file.part"), "left over").unwrap();
        let (sender, receiver) = mpsc::channel(pieces.len() + 1);
        for piece in pieces {
            assert!(sender.try_send(Received::Piece(piece)).is_ok());
        }
        if ends {
            assert!(sender.try_send(Received::End).is_ok());
        }
        drop(sender);
        let written = write(&file, receiver);
        assert!(!folder.path().join("file.part").exists());
        (written, std::fs::read(&file).unwrap())
    }

    #[test]
    fn a_whole_snapshot_replaces_the_file() {
        for (length, piece_bytes) in [(1, 1), (100, 7), (5_000, 32), (5_000, 4_096), (64, 31)] {
            let body = vec![7; length];
            let (written, file) = saved(pieces(&body, piece_bytes), true);
            written.unwrap();
            assert_eq!(file.len(), length + SHA256_BYTES);
            assert_eq!(file[..length], body);
        }
    }

    #[test]
    fn anything_less_leaves_the_file_as_it_was() {
        let good = || pieces(&[7; 100], 9);
        let mut cases = vec![(good(), false), (Vec::new(), true)];
        for missing in 0..good().len() {
            let mut some = good();
            some.remove(missing);
            cases.push((some, true));
        }
        let mut flipped = good();
        flipped[3].blob = vec![8; 9].into();
        cases.push((flipped, true));
        let mut longer = good();
        longer.insert(1, longer[1].clone());
        cases.push((longer, true));
        let mut twice = good();
        twice.push(twice[twice.len() - 1].clone());
        cases.push((twice, true));
        for (n, (pieces, ends)) in cases.into_iter().enumerate() {
            let (written, file) = saved(pieces, ends);
            assert!(written.is_err(), "case {n}");
            assert_eq!(file, b"before", "case {n}");
        }
    }

    #[test]
    fn one_snapshot_is_saved_to_a_file_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let first = Part::beside(&file).unwrap();
        let second = Part::beside(&file).err().unwrap();
        assert!(second.to_string().contains("another snapshot"), "{second}");
        drop(first);
        assert!(Part::beside(&file).is_ok());
        assert!(Part::beside(Path::new("/")).is_err());
    }

    #[test]
    fn exactly_one_endpoint_is_asked() {
        let endpoint = |text: &str| {
            let endpoints: Vec<_> = text.split(',').map(str::to_owned).collect();
            endpoint(&endpoints).map_err(|error| error.to_string())
        };
        assert_eq!(endpoint("h:1").unwrap(), "http://h:1");
        assert_eq!(endpoint("http://h:1").unwrap(), "http://h:1");
        assert!(endpoint("h:1,i:1").unwrap_err().contains("exactly one"));
        assert!(endpoint("https://h:1").unwrap_err().contains("TLS"));
        assert!(endpoint("h").unwrap_err().contains("host:port"));
        assert!(endpoint("unix://h:1").unwrap_err().contains("host:port"));
    }
}
