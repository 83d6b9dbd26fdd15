//! The file that a follower starts from when the store is out of reach: the last good value, with a
//! checksum. It is replaced as a whole, by a rename, so that a crash leaves the old one or the new one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::view::{Part, Source, View};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::value::V1;
use crate::wait::Backoff;

/// What every snapshot begins with.
const MAGIC: &str = r#"{"quorate":"config snapshot","#;

/// Most bytes of a snapshot; more are neither read nor written.
const BYTES_MAX: u64 = 64 << 20;

/// Whose snapshot it is: a namespace, and a key unless it is of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
}

/// The first line of the file. The rest is the body.
#[derive(Serialize, Deserialize)]
struct Head {
    quorate: String,
    v: V1,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Body {
    #[serde(flatten)]
    owner: Owner,
    parts: BTreeMap<String, Part>,
    value: Json,
}

/// What a snapshot has.
#[derive(Debug, PartialEq)]
pub(super) struct Saved {
    pub(super) parts: BTreeMap<String, Part>,
    pub(super) value: Json,
}

/// Why a file is not used.
#[derive(Debug, PartialEq)]
enum Unusable {
    /// It was a snapshot, or may have been one.
    Damaged(String),
    /// It is something else, and must not be written over.
    Foreign(String),
}

/// The file of one follower. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    path: Arc<PathBuf>,
    owner: Owner,
}

impl Snapshot {
    pub(super) fn new(path: PathBuf, owner: Owner) -> Self {
        let path = Arc::new(path);
        Self { path, owner }
    }

    /// Reads the file; `None` without one that can be used.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the file is something else, or the snapshot of another setting.
    pub(super) async fn load(&self) -> Result<Option<Saved>> {
        let path = Arc::clone(&self.path);
        let content = blocking(move || read(&path)).await;
        let shown = self.path.display();
        let content = match content {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                tracing::warn!(path = %shown, %error, "a snapshot cannot be read");
                return Ok(None);
            }
        };
        match parse(&content, &self.owner) {
            Ok(saved) => Ok(Some(saved)),
            Err(Unusable::Damaged(why)) => {
                tracing::warn!(path = %shown, why, "a damaged snapshot is ignored");
                Ok(None)
            }
            Err(Unusable::Foreign(what)) => Err(Error::Invalid(format!(
                "{shown} is not the snapshot: {what}"
            ))),
        }
    }

    async fn save(&self, parts: BTreeMap<String, Part>, value: Json) -> io::Result<()> {
        let body = Body {
            owner: self.owner.clone(),
            parts,
            value,
        };
        let path = Arc::clone(&self.path);
        blocking(move || write(&path, &body)).await
    }

    /// Writes what the views show, until there are no more. Trouble with the disk is told once and tried
    /// again.
    pub(super) async fn keep<T: Send + Sync + 'static>(
        self,
        client: Client,
        mut views: watch::Receiver<Arc<View<T>>>,
    ) {
        let mut saved = None;
        let mut pause = Backoff::new(&client, Duration::from_secs(1), Duration::from_secs(30));
        let mut troubled = false;
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            let wanted = (view.source == Source::Store).then(|| Arc::clone(&view.parts));
            let due = wanted.is_some() && wanted != saved;
            if due {
                let (parts, value) = ((*view.parts).clone(), (*view.raw).clone());
                match self.save(parts, value).await {
                    Ok(()) => {
                        saved = wanted;
                        troubled = false;
                        pause.reset();
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
                () = pause.pause(), if troubled => Ok(()),
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

fn parse(content: &[u8], owner: &Owner) -> std::result::Result<Saved, Unusable> {
    let magic = MAGIC.as_bytes();
    // What a crash can leave of a file: nothing, a beginning, or room that was never written.
    let may_be_rest = magic.starts_with(content) || content.iter().all(|byte| *byte == 0);
    let damaged = |why: &dyn std::fmt::Display| Unusable::Damaged(why.to_string());
    if may_be_rest {
        return Err(damaged(&"cut off"));
    }
    if !content.starts_with(magic) {
        return Err(Unusable::Foreign("another kind of file".to_owned()));
    }
    let line = content.iter().position(|byte| *byte == b'\n');
    let (head, body) = content.split_at(line.ok_or_else(|| damaged(&"cut off"))?);
    let body = &body[1..];
    let head: Head = serde_json::from_slice(head).map_err(|error| damaged(&error))?;
    if head.sha256 != checksum(body) {
        return Err(damaged(&"the checksum is another"));
    }
    let body: Body = serde_json::from_slice(body).map_err(|error| damaged(&error))?;
    if body.owner != *owner {
        let Owner { namespace, key } = body.owner;
        let key = key.map_or_else(|| "the group".to_owned(), |key| format!("key {key}"));
        return Err(Unusable::Foreign(format!("that of {key} in {namespace}")));
    }
    Ok(Saved {
        parts: body.parts,
        value: body.value,
    })
}

fn write(path: &Path, body: &Body) -> io::Result<()> {
    let body = serde_json::to_vec(body)?;
    let head = Head {
        quorate: "config snapshot".to_owned(),
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
    // Settings may be secret: for the owner only.
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

    fn owner(key: Option<&str>) -> Owner {
        Owner {
            namespace: "shop".to_owned(),
            key: key.map(str::to_owned),
        }
    }

    fn content(folder: &Path) -> (PathBuf, Vec<u8>) {
        let path = folder.join("snapshot");
        let body = Body {
            owner: owner(Some("limits")),
            parts: BTreeMap::new(),
            value: serde_json::json!({ "rps": 5 }),
        };
        write(&path, &body).unwrap();
        let content = read(&path).unwrap();
        assert!(content.starts_with(MAGIC.as_bytes()));
        (path, content)
    }

    #[test]
    fn every_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (path, whole) = content(folder.path());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no rest");
        let mode = fs::metadata(path).unwrap();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
            0o600
        );
        let owner = owner(Some("limits"));
        assert_eq!(parse(&whole, &owner).unwrap().value["rps"], 5);
        for end in 0..whole.len() {
            let cut = parse(&whole[..end], &owner);
            assert!(matches!(cut, Err(Unusable::Damaged(_))), "{end}: {cut:?}");
        }
        for place in 0..whole.len() {
            let mut other = whole.clone();
            other[place] ^= 0x10;
            assert!(parse(&other, &owner).is_err(), "{place}");
        }
        let mut longer = whole;
        longer.push(b' ');
        assert!(matches!(parse(&longer, &owner), Err(Unusable::Damaged(_))));
        assert!(matches!(parse(&[0; 99], &owner), Err(Unusable::Damaged(_))));
    }

    #[test]
    fn other_files_are_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let (_, whole) = content(folder.path());
        for other in [owner(None), owner(Some("prices"))] {
            let parsed = parse(&whole, &other);
            assert!(matches!(parsed, Err(Unusable::Foreign(_))), "{parsed:?}");
        }
        for other in ["root:x:0:0", "{}", r#"{"quorate":1}"#] {
            let parsed = parse(other.as_bytes(), &owner(None));
            assert!(matches!(parsed, Err(Unusable::Foreign(_))), "{parsed:?}");
        }
    }
}
