//! The files of the demo: listing a folder, hashing, and the manifest's form. Used by the primary
//! (listing), the workers (hashing) and the final check, which does both in one plain pass.

use std::ffi::OsString;
use std::fs::{self, File, FileType};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// What marks a folder as a cache that can be made again (the Cache Directory Tagging convention);
/// cargo's `target` is one.
const CACHE_TAG: &str = "CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
const BUFFER_BYTES: usize = 128 * 1024;

/// The regular files below a folder, as paths relative to it.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// In byte order, so that every lister gives the same list. A folder that cannot be read stands
    /// for what is in it, with a slash at its end.
    pub(crate) files: Vec<PathBuf>,
    /// Those folders again, and why they cannot be read.
    pub(crate) unreadable: Vec<(PathBuf, io::ErrorKind)>,
    /// Folders left out because they are tagged as caches.
    pub(crate) caches: Vec<PathBuf>,
}

/// Lists the regular files below `root`. Symbolic links are not followed.
///
/// # Errors
/// When `root` itself cannot be read; the error names it.
pub(crate) fn list(root: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let whole = root.join(&folder);
        let entries = match entries(&whole) {
            Ok(entries) => entries,
            Err(error) if folder.as_os_str().is_empty() => {
                let text = format!("{}: {error}", whole.display());
                return Err(io::Error::new(error.kind(), text));
            }
            Err(error) => {
                let path = folder.join("");
                listing.files.push(path.clone());
                listing.unreadable.push((path, error.kind()));
                continue;
            }
        };
        for (name, kind) in entries {
            let path = folder.join(name);
            if kind.is_file() {
                listing.files.push(path);
            } else if kind.is_dir() {
                if is_cache(&root.join(&path)) {
                    listing.caches.push(path);
                } else {
                    folders.push(path);
                }
            }
        }
    }
    listing
        .files
        .sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    listing.caches.sort();
    listing.unreadable.sort();
    Ok(listing)
}

/// What is in a folder: all of it or an error.
fn entries(folder: &Path) -> io::Result<Vec<(OsString, FileType)>> {
    let entries = fs::read_dir(folder)?;
    entries
        .map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?))))
        .collect()
}

/// Marks `folder` as a cache, so that a listing of a folder around it leaves it out.
///
/// # Errors
/// When the tag cannot be written.
pub(crate) fn tag_as_cache(folder: &Path) -> io::Result<()> {
    fs::write(folder.join(CACHE_TAG), CACHE_SIGNATURE)
}

/// Whether there is anything in a folder besides the tag.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn holds_more_than_its_tag(folder: &Path) -> io::Result<bool> {
    Ok(entries(folder)?.iter().any(|(name, _)| name != CACHE_TAG))
}

fn is_cache(folder: &Path) -> bool {
    let mut start = [0; CACHE_SIGNATURE.len()];
    File::open(folder.join(CACHE_TAG)).is_ok_and(|mut tag| {
        tag.read_exact(&mut start).is_ok() && start.as_slice() == CACHE_SIGNATURE
    })
}

/// One line of the manifest, in the form of `sha256sum --zero`: the hash in hexadecimal, two spaces,
/// the path, a NUL. A file or folder that cannot be read says so in place of its hash.
pub(crate) fn manifest_line(root: &Path, path: &Path) -> Vec<u8> {
    let whole = root.join(path);
    let hash = if path.as_os_str().as_bytes().ends_with(b"/") {
        entries(&whole).map(|_| "readable again".to_owned())
    } else {
        hash(&whole)
    };
    let hash = hash.unwrap_or_else(|error| format!("unreadable ({:?})", error.kind()));
    let mut line = hash.into_bytes();
    line.extend_from_slice(b"  ");
    line.extend_from_slice(path.as_os_str().as_bytes());
    line.push(0);
    line
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; BUFFER_BYTES]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
            text
        })
}

/// Paths as one value: each followed by a NUL, which no path contains.
pub(crate) fn encode_paths(paths: &[PathBuf]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for path in paths {
        bytes.extend_from_slice(path.as_os_str().as_bytes());
        bytes.push(0);
    }
    bytes
}

/// The paths of a value made by [`encode_paths`].
pub(crate) fn decode_paths(bytes: &[u8]) -> Vec<PathBuf> {
    let paths = bytes
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty());
    paths
        .map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
        .collect()
}

/// The manifest as one plain pass over the files gives it, and how many files it lists.
///
/// # Errors
/// When `root` cannot be read.
pub(crate) fn plain_manifest(root: &Path) -> io::Result<(Vec<u8>, usize)> {
    let files = list(root)?.files;
    let manifest = files
        .iter()
        .flat_map(|path| manifest_line(root, path))
        .collect();
    Ok((manifest, files.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_in_byte_order_and_leaves_caches_and_links_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for dir in ["a", "a/b", "cache", "not-a-cache"] {
            fs::create_dir(root.join(dir)).unwrap();
        }
        for file in ["z", "a/b/1", "a.txt", "cache/x", "not-a-cache/y"] {
            fs::write(root.join(file), file).unwrap();
        }
        tag_as_cache(&root.join("cache")).unwrap();
        tag_as_cache(&root.join("a/b")).unwrap();
        assert!(holds_more_than_its_tag(&root.join("cache")).unwrap());
        fs::remove_file(root.join("a/b/1")).unwrap();
        assert!(!holds_more_than_its_tag(&root.join("a/b")).unwrap());
        fs::remove_file(root.join("a/b").join(CACHE_TAG)).unwrap();
        fs::write(root.join("a/b/1"), "1").unwrap();
        fs::write(root.join("not-a-cache").join(CACHE_TAG), "something else").unwrap();
        std::os::unix::fs::symlink(root.join("z"), root.join("link")).unwrap();

        let listing = list(root).unwrap();
        let files: Vec<_> = listing
            .files
            .iter()
            .map(|path| path.to_str().unwrap())
            .collect();
        assert_eq!(
            files,
            [
                "a.txt",
                "a/b/1",
                "not-a-cache/CACHEDIR.TAG",
                "not-a-cache/y",
                "z"
            ]
        );
        assert_eq!(listing.caches, [Path::new("cache")]);
        assert_eq!(decode_paths(&encode_paths(&listing.files)), listing.files);
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("no-folder");
        fs::write(&file, "").unwrap();
        let error = list(&file).unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }

    /// Also root cannot read a folder whose path is longer than the system takes. It is made by
    /// moving one long path below another.
    #[test]
    fn a_sub_folder_that_cannot_be_read_is_a_line_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let deep = |n| PathBuf::from(["d".repeat(250).as_str()].repeat(n).join("/"));
        fs::create_dir_all(root.join("a").join(deep(14))).unwrap();
        fs::create_dir_all(root.join("b").join(deep(14))).unwrap();
        fs::write(root.join("b").join(deep(14)).join("hidden"), "x").unwrap();
        fs::rename(root.join("b"), root.join("a").join(deep(14)).join("b")).unwrap();
        fs::write(root.join("seen"), "x").unwrap();

        let listing = list(root).unwrap();
        let [(path, kind)] = listing.unreadable.as_slice() else {
            panic!("{:?}", listing.unreadable);
        };
        assert_eq!(listing.files, [path.clone(), "seen".into()]);
        let text = path.to_str().unwrap();
        assert!(text.ends_with('/'), "{text}");
        let line = format!("unreadable ({kind:?})  {text}\0");
        assert_eq!(manifest_line(root, path), line.as_bytes());
        assert!(plain_manifest(root).unwrap().0.starts_with(line.as_bytes()));
        let sent = decode_paths(&encode_paths(&listing.files));
        assert_eq!(sent[0].as_os_str(), path.as_os_str(), "with its slash");
    }

    #[test]
    fn a_manifest_line_is_what_sha256sum_prints() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("abc"), "abc").unwrap();
        let line = manifest_line(folder.path(), Path::new("abc"));
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  abc\0";
        assert_eq!(line, expected.as_bytes());
        let missing = manifest_line(folder.path(), Path::new("gone"));
        assert_eq!(missing, b"unreadable (NotFound)  gone\0");
    }
}
