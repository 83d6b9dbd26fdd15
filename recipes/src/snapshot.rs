//! Files that a follower starts from when the store is out of reach: what it knew last, with a checksum. A file
//! is replaced as a whole, by a rename, so that a crash leaves the old one or the new one. Under the
//! followers of settings and of services.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::value::V1;
use crate::wait::Backoff;

/// How long the store may take to answer before a follower starts from its file.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// Most bytes of a file; more are neither read nor written.
const BYTES_MAX: u64 = 64 << 20;

/// What is in a file.
pub(crate) trait Content: Serialize + DeserializeOwned + Send + 'static {
    /// What the file says that it is.
    const KIND: &'static str;
}

/// The first line of a file. The rest is the content.
#[derive(Serialize, Deserialize)]
struct Head {
    quorate: String,
    v: V1,
    sha256: String,
}

/// Why a file is not used.
#[derive(Debug, PartialEq)]
pub(crate) enum Unusable {
    /// It was a snapshot, or may have been one.
    Damaged(String),
    /// It is something else, and must not be written over.
    Foreign(String),
}

/// The file of one follower. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Snapshot<C> {
    path: Arc<PathBuf>,
    content: PhantomData<fn() -> C>,
}

impl<C: Content> Snapshot<C> {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path: Arc::new(path),
            content: PhantomData,
        }
    }

    /// Reads the file; `None` without one that can be used. `is_ours` says whose it is if it is another's.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the file is something else, or another's snapshot.
    pub(crate) async fn load(
        &self,
        is_ours: impl FnOnce(&C) -> std::result::Result<(), String>,
    ) -> Result<Option<C>> {
        let path = Arc::clone(&self.path);
        let read = blocking(move || read(&path).map(|content| parse(&content)));
        let shown = self.path.display();
        let parsed = match read.await {
            Ok(parsed) => parsed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                tracing::warn!(path = %shown, %error, "a snapshot cannot be read");
                return Ok(None);
            }
        };
        let ours = parsed.and_then(|content: C| match is_ours(&content) {
            Ok(()) => Ok(content),
            Err(whose) => Err(Unusable::Foreign(format!("that of {whose}"))),
        });
        match ours {
            Ok(content) => Ok(Some(content)),
            Err(Unusable::Damaged(why)) => {
                tracing::warn!(path = %shown, why, "a damaged snapshot is ignored");
                Ok(None)
            }
            Err(Unusable::Foreign(what)) => Err(Error::Invalid(format!(
                "{shown} is not the snapshot: {what}"
            ))),
        }
    }

    async fn save(&self, content: C) -> io::Result<()> {
        let path = Arc::clone(&self.path);
        blocking(move || write(&path, &content)).await
    }

    /// Writes what the views show, until there are no more, at most once in `pause`. `content` makes it of a
    /// view, with a mark by which it is known whether that has been written; `None`: not now. Trouble with the
    /// disk is told once and tried again.
    pub(crate) async fn keep<V, M: PartialEq>(
        self,
        client: Client,
        mut views: watch::Receiver<Arc<V>>,
        pause: Duration,
        content: impl Fn(&V, Option<&M>) -> Option<(M, C)>,
    ) {
        let mut saved = None;
        let mut again = Backoff::new(&client, Duration::from_secs(1), Duration::from_secs(30));
        let mut troubled = false;
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            if let Some((mark, content)) = content(&view, saved.as_ref()) {
                match self.save(content).await {
                    Ok(()) => {
                        saved = Some(mark);
                        troubled = false;
                        again.reset();
                        client.sleep(pause).await;
                    }
                    Err(error) if !troubled => {
                        let path = self.path.display();
                        tracing::warn!(%path, %error, "a snapshot cannot be written");
                        troubled = true;
                    }
                    Err(_) => {}
                }
            }
            let changed = tokio::select! {
                biased;
                changed = views.changed() => changed,
                () = again.pause(), if troubled => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

/// Work on the disk, on a thread that may wait for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // One byte more than there may be, to see that there are.
    let file = File::open(path)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut content)?;
    Ok(content)
}

/// What every file of a kind begins with.
fn magic<C: Content>() -> String {
    format!(r#"{{"quorate":"{}","#, C::KIND)
}

/// Reads the content of a file.
pub(crate) fn parse<C: Content>(content: &[u8]) -> std::result::Result<C, Unusable> {
    let magic = magic::<C>().into_bytes();
    // What a crash can leave of a file: nothing, a beginning, or room that was never written.
    let may_be_rest = magic.starts_with(content) || content.iter().all(|byte| *byte == 0);
    let damaged = |why: &dyn std::fmt::Display| Unusable::Damaged(why.to_string());
    if may_be_rest {
        return Err(damaged(&"cut off"));
    }
    if !content.starts_with(&magic) {
        return Err(Unusable::Foreign("another kind of file".to_owned()));
    }
    let line = content.iter().position(|byte| *byte == b'\n');
    let (head, body) = content.split_at(line.ok_or_else(|| damaged(&"cut off"))?);
    let body = &body[1..];
    let head: Head = serde_json::from_slice(head).map_err(|error| damaged(&error))?;
    if head.sha256 != checksum(body) {
        return Err(damaged(&"the checksum is another"));
    }
    serde_json::from_slice(body).map_err(|error| damaged(&error))
}

fn write<C: Content>(path: &Path, content: &C) -> io::Result<()> {
    let body = serde_json::to_vec(content)?;
    let head = Head {
        quorate: C::KIND.to_owned(),
        v: V1,
        sha256: checksum(&body),
    };
    let mut content = serde_json::to_vec(&head)?;
    content.push(b'\n');
    content.extend(body);
    if content.len() as u64 > BYTES_MAX {
        let bytes = content.len();
        return Err(io::Error::other(format!("{bytes} bytes are too many")));
    }
    let mut temporary: OsString = path.into();
    temporary.push(".tmp");
    let mut options = OpenOptions::new();
    // What is in the store may be secret: for the owner only.
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(&content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn checksum(body: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(body) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Notes(Vec<String>);

    impl Content for Notes {
        const KIND: &'static str = "notes";
    }

    fn is_damaged(content: &[u8]) -> bool {
        matches!(parse::<Notes>(content), Err(Unusable::Damaged(_)))
    }

    #[test]
    fn every_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let notes = Notes(vec!["a".to_owned(), "b".to_owned()]);
        write(&path, &notes).unwrap();
        write(&path, &notes).unwrap();
        let whole = read(&path).unwrap();
        assert!(whole.starts_with(br#"{"quorate":"notes","v":1,"#));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no rest");
        let mode = fs::metadata(path).unwrap();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
            0o600
        );
        assert_eq!(parse(&whole), Ok(notes));
        for end in 0..whole.len() {
            assert!(is_damaged(&whole[..end]), "{end}");
        }
        for place in 0..whole.len() {
            let mut other = whole.clone();
            other[place] ^= 0x10;
            assert!(parse::<Notes>(&other).is_err(), "{place}");
        }
        let mut longer = whole;
        longer.push(b' ');
        assert!(is_damaged(&longer));
        assert!(is_damaged(&[0; 99]));
    }

    #[test]
    fn other_files_are_not_taken_for_it() {
        for other in [
            "root:x:0:0",
            "{}",
            r#"{"quorate":1}"#,
            r#"{"quorate":"config snapshot","v":1}"#,
        ] {
            let parsed = parse::<Notes>(other.as_bytes());
            assert!(matches!(parsed, Err(Unusable::Foreign(_))), "{parsed:?}");
        }
    }
}
