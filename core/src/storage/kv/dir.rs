//! Which folder holds the store: `kv-<n>` beneath the data folder, named by the file `CURRENT`.
//!
//! A snapshot is installed into a fresh `kv-<n>`; renaming `CURRENT` is the moment it takes over.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::KvError;
use crate::failpoint;

const CURRENT: &str = "CURRENT";
const CURRENT_TEMPORARY: &str = "CURRENT.tmp";
const PREFIX: &str = "kv-";

/// Folder number `number`, whether it exists or not.
#[must_use]
pub fn dir_of(data_dir: &Path, number: u64) -> PathBuf {
    data_dir.join(format!("{PREFIX}{number}"))
}

/// The number in `CURRENT`; `None` if nothing was ever installed.
///
/// # Errors
///
/// [`KvError::Io`] if the file cannot be read, [`KvError::Corrupt`] if it names no folder.
pub fn current_number(data_dir: &Path) -> Result<Option<u64>, KvError> {
    let path = data_dir.join(CURRENT);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let name = str::from_utf8(&text)
        .ok()
        .and_then(|text| text.strip_suffix('\n'));
    match name.and_then(number_of) {
        Some(number) => Ok(Some(number)),
        None => Err(KvError::corrupt(format!(
            "{} names no kv-<n> folder",
            path.display()
        ))),
    }
}

/// The folder named by `CURRENT`; `None` if nothing was ever installed.
///
/// # Errors
///
/// As [`current_number`].
pub fn current_dir(data_dir: &Path) -> Result<Option<PathBuf>, KvError> {
    Ok(current_number(data_dir)?.map(|number| dir_of(data_dir, number)))
}

/// A number larger than that of any `kv-<n>` there is, for the next store to create.
///
/// # Errors
///
/// As [`current_number`], or the data folder cannot be listed.
pub fn next_number(data_dir: &Path) -> Result<u64, KvError> {
    let mut last = current_number(data_dir)?.unwrap_or(0);
    for (number, _) in folders(data_dir)? {
        last = last.max(number);
    }
    Ok(last + 1)
}

/// Makes `kv-<number>`, complete and synced by its engine, the current store. Returns after the
/// change is durable; a crash before that leaves the old one current.
///
/// # Errors
///
/// [`KvError::Io`] if the folder does not exist or a file cannot be written: which of the two
/// stores is current is then to be read again.
pub fn install(data_dir: &Path, number: u64) -> Result<(), KvError> {
    let folder = dir_of(data_dir, number);
    fs::metadata(&folder).map_err(failed("look at", &folder))?;
    let temporary = data_dir.join(CURRENT_TEMPORARY);
    let mut file = File::create(&temporary).map_err(failed("create", &temporary))?;
    let line = format!("{PREFIX}{number}\n");
    file.write_all(line.as_bytes())
        .map_err(failed("write", &temporary))?;
    file.sync_all().map_err(failed("sync", &temporary))?;
    failpoint::reach("install: pointer written");
    let current = data_dir.join(CURRENT);
    fs::rename(&temporary, &current).map_err(failed("rename to", &current))?;
    let parent = File::open(data_dir).map_err(failed("open", data_dir))?;
    parent.sync_all().map_err(failed("sync", data_dir))
}

/// Removes every `kv-<n>` but the current one, and leftovers of an interrupted install. Without a
/// `CURRENT` it removes no store. A removed store stays readable to those who have it open.
///
/// # Errors
///
/// [`KvError::Io`]; some may have been removed.
pub fn remove_stale(data_dir: &Path) -> Result<(), KvError> {
    let temporary = data_dir.join(CURRENT_TEMPORARY);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &temporary)(error));
        }
        _ => {}
    }
    let Some(current) = current_number(data_dir)? else {
        return Ok(());
    };
    for (number, folder) in folders(data_dir)? {
        if number != current {
            fs::remove_dir_all(&folder).map_err(failed("remove", &folder))?;
        }
    }
    Ok(())
}

/// All `kv-<n>` beneath the data folder, by number.
///
/// # Errors
///
/// [`KvError::Io`] if it cannot be listed.
pub fn folders(data_dir: &Path) -> Result<Vec<(u64, PathBuf)>, KvError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data_dir).map_err(failed("list", data_dir))? {
        let entry = entry.map_err(failed("list", data_dir))?;
        if let Some(number) = entry.file_name().to_str().and_then(number_of) {
            found.push((number, entry.path()));
        }
    }
    Ok(found)
}

/// `n` of exactly `kv-<n>`.
fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix(PREFIX)?.parse().ok()?;
    (name == format!("{PREFIX}{number}")).then_some(number)
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> KvError + use<'a> {
    move |source| KvError::Io {
        action,
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_switches_and_remove_stale_keeps_the_current_one() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path();
        assert_eq!(current_dir(data).unwrap(), None);
        assert_eq!(next_number(data).unwrap(), 1);
        assert!(install(data, 1).is_err(), "the folder does not exist yet");
        assert_eq!(current_dir(data).unwrap(), None);

        fs::create_dir(dir_of(data, 1)).unwrap();
        remove_stale(data).unwrap();
        assert!(dir_of(data, 1).exists(), "without CURRENT nothing is stale");
        install(data, 1).unwrap();
        assert_eq!(current_dir(data).unwrap(), Some(data.join("kv-1")));

        fs::create_dir(dir_of(data, 7)).unwrap();
        fs::create_dir(data.join("kv-x")).unwrap();
        assert_eq!(next_number(data).unwrap(), 8);
        install(data, 7).unwrap();
        fs::write(data.join("CURRENT.tmp"), "kv-").unwrap();
        assert_eq!(current_number(data).unwrap(), Some(7));
        remove_stale(data).unwrap();
        assert!(!dir_of(data, 1).exists() && dir_of(data, 7).exists());
        assert!(data.join("kv-x").exists() && !data.join("CURRENT.tmp").exists());
    }

    #[test]
    fn a_damaged_pointer_is_an_error_not_a_fresh_start() {
        let data = tempfile::tempdir().unwrap();
        for text in [
            "",
            "kv-",
            "kv-1",
            "kv-01\n",
            "kv-+1\n",
            "../x\n",
            "kv-1\nkv-2\n",
        ] {
            fs::write(data.path().join("CURRENT"), text).unwrap();
            assert!(current_dir(data.path()).is_err(), "{text:?}");
        }
    }
}
