//! What differs between two manifests, and which of the files changed while the demo ran: a file
//! that somebody wrote to explains its difference, any other difference is a wrong result.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The most differences that are told.
const SHOWN_MAX: usize = 20;

/// A file's size, and when it and what is said of it were last changed (seconds, nanoseconds).
type Stamp = (u64, (i64, i64), (i64, i64));

/// The files as they were when the demo began.
#[derive(Debug)]
pub(crate) struct Before {
    root: PathBuf,
    /// In byte order of the paths; nothing for a file of which nothing could be learnt.
    files: Vec<(PathBuf, Option<Stamp>)>,
}

impl Before {
    /// Looks at `files`, which are below `root` and in byte order.
    pub(crate) fn look(root: &Path, files: &[PathBuf]) -> Self {
        let files = files
            .iter()
            .map(|path| (path.clone(), stamp(&root.join(path))));
        Self {
            root: root.to_owned(),
            files: files.collect(),
        }
    }

    /// The lines that only one of the manifests has, at most twenty, each with what became of its
    /// file since.
    pub(crate) fn differences(&self, manifest: &[u8], expected: &[u8]) -> Vec<String> {
        let (manifest, expected) = (lines(manifest), lines(expected));
        let only_workers = manifest.difference(&expected);
        let only_plain = expected.difference(&manifest);
        only_workers
            .map(|line| ("workers:   ", line))
            .chain(only_plain.map(|line| ("plain pass:", line)))
            .take(SHOWN_MAX)
            .map(|(mark, line)| {
                let text = String::from_utf8_lossy(line);
                format!("  {mark} {text}  ({})", self.since(path_of(line)))
            })
            .collect()
    }

    fn since(&self, path: &Path) -> &'static str {
        let bytes = path.as_os_str().as_bytes();
        let found = self
            .files
            .binary_search_by(|(path, _)| path.as_os_str().as_bytes().cmp(bytes));
        let Ok(found) = found else {
            return "was not there when the demo began";
        };
        match (self.files[found].1, stamp(&self.root.join(path))) {
            (Some(_), None) => "gone since the demo began",
            (then, now) if then != now => "changed while the demo ran",
            _ => "unchanged since the demo began",
        }
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let about = file.symlink_metadata().ok()?;
    Some((
        about.size(),
        (about.mtime(), about.mtime_nsec()),
        (about.ctime(), about.ctime_nsec()),
    ))
}

fn lines(manifest: &[u8]) -> BTreeSet<&[u8]> {
    let lines = manifest.split(|byte| *byte == 0);
    lines.filter(|line| !line.is_empty()).collect()
}

/// The path in a line of a manifest: what comes after the first two spaces.
fn path_of(line: &[u8]) -> &Path {
    let gap = line.windows(2).position(|pair| pair == b"  ");
    Path::new(OsStr::from_bytes(&line[gap.map_or(0, |at| at + 2)..]))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_difference_says_what_became_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let files = ["changed", "gone", "same  name"].map(PathBuf::from);
        for file in &files {
            fs::write(root.join(file), "x").unwrap();
        }
        let before = Before::look(root, &files);
        fs::write(root.join("changed"), "longer").unwrap();
        fs::remove_file(root.join("gone")).unwrap();
        fs::write(root.join("new"), "x").unwrap();

        let differences = before.differences(
            b"1  changed\x001  gone\x001  same  name\x001  equal\0",
            b"2  changed\x00unreadable (NotFound)  gone\x002  new\x001  equal\0",
        );
        assert_eq!(
            differences,
            [
                "  workers:    1  changed  (changed while the demo ran)",
                "  workers:    1  gone  (gone since the demo began)",
                "  workers:    1  same  name  (unchanged since the demo began)",
                "  plain pass: 2  changed  (changed while the demo ran)",
                "  plain pass: 2  new  (was not there when the demo began)",
                "  plain pass: unreadable (NotFound)  gone  (gone since the demo began)",
            ]
        );
    }
}
