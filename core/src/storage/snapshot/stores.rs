//! [`Stores`]: which store a member uses, and where the next one is put together.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use super::{Receiver, SnapshotError};
use crate::storage::kv::{self, DiskOptions, FjallKv, Kv, KvError, MemKv};

/// The key-value stores of one member: the current one, and at most one that is being received.
/// Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Stores {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    place: Place,
    /// Whether a snapshot is being received, or waits to be installed.
    is_staging: AtomicBool,
}

#[derive(Debug)]
enum Place {
    Memory(Mutex<Option<Arc<dyn Kv>>>),
    Disk { dir: PathBuf, options: DiskOptions },
}

/// A complete store that is not in use yet. Dropped without being adopted, it is removed.
#[derive(Debug)]
pub struct Staged {
    /// Only taken when dropped.
    kv: Option<Arc<dyn Kv>>,
    number: Option<u64>,
    is_adopted: bool,
    stores: Arc<Inner>,
}

impl Stores {
    /// Stores in memory: they live as long as this value and its clones.
    #[must_use]
    pub fn memory() -> Self {
        Self::at(Place::Memory(Mutex::default()))
    }

    /// Stores in the folders `kv-<n>` of the data folder `dir`, which exists.
    #[must_use]
    pub fn disk(dir: &Path, options: DiskOptions) -> Self {
        let dir = dir.to_owned();
        Self::at(Place::Disk { dir, options })
    }

    fn at(place: Place) -> Self {
        let is_staging = AtomicBool::new(false);
        Self {
            inner: Arc::new(Inner { place, is_staging }),
        }
    }

    /// Opens the current store, or makes the first one. Leftovers of interrupted installs are
    /// removed. Blocks.
    ///
    /// # Errors
    ///
    /// [`KvError::Open`] if it does not hold together: the member cannot start with it.
    pub fn open(&self) -> Result<Arc<dyn Kv>, KvError> {
        match &self.inner.place {
            Place::Memory(current) => {
                let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
                let kv = current.get_or_insert_with(|| Arc::new(MemKv::new()));
                Ok(Arc::clone(kv))
            }
            Place::Disk { dir, options } => {
                if let Some(number) = kv::current_number(dir)? {
                    kv::remove_stale(dir)?;
                    let folder = kv::dir_of(dir, number);
                    return Ok(Arc::new(FjallKv::open(&folder, options)?));
                }
                // A store that never became current holds nothing that anybody was told of. One
                // that holds something was current once.
                for (_, folder) in kv::folders(dir)? {
                    FjallKv::expect_empty(&folder, options)?;
                }
                let number = kv::next_number(dir)?;
                let first = FjallKv::create(&kv::dir_of(dir, number), options)?;
                kv::install(dir, number)?;
                kv::remove_stale(dir)?;
                Ok(Arc::new(first))
            }
        }
    }

    /// An empty store for a snapshot that is about to come. Blocks.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Busy`] while another one is being received or waits to be adopted.
    pub fn stage(&self) -> Result<Receiver, SnapshotError> {
        if self.inner.is_staging.swap(true, Ordering::AcqRel) {
            return Err(SnapshotError::Busy);
        }
        // From here on dropping it ends the staging, whatever happens.
        let mut staged = Staged {
            kv: None,
            number: None,
            is_adopted: false,
            stores: Arc::clone(&self.inner),
        };
        staged.kv = Some(match &self.inner.place {
            Place::Memory(_) => Arc::new(MemKv::new()),
            Place::Disk { dir, options } => {
                let number = kv::next_number(dir)?;
                staged.number = Some(number);
                Arc::new(FjallKv::create(&kv::dir_of(dir, number), options)?)
            }
        });
        Ok(Receiver::new(staged))
    }

    /// Makes a staged store the current one, durably. Blocks. The files of the store before stay
    /// for those who still read it, until [`remove_stale`](Stores::remove_stale).
    ///
    /// # Errors
    ///
    /// A failure to write: which store is current is unknown then, and the member must stop.
    pub fn adopt(&self, mut staged: Staged) -> Result<Arc<dyn Kv>, KvError> {
        let kv = staged.kv();
        match &self.inner.place {
            Place::Memory(current) => {
                let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
                *current = Some(Arc::clone(&kv));
            }
            Place::Disk { dir, .. } => {
                // Kept on failure too: it may be current.
                staged.is_adopted = true;
                let number = staged.number.expect("a store on disk has a number");
                kv::install(dir, number)?;
            }
        }
        staged.is_adopted = true;
        Ok(kv)
    }

    /// Removes the files of stores that are no longer current, unless one is being received. Call
    /// it when nobody reads the old ones any more. Blocks.
    ///
    /// # Errors
    ///
    /// A file could not be removed.
    pub fn remove_stale(&self) -> Result<(), KvError> {
        let Place::Disk { dir, .. } = &self.inner.place else {
            return Ok(());
        };
        if self.inner.is_staging.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let removed = kv::remove_stale(dir);
        self.inner.is_staging.store(false, Ordering::Release);
        removed
    }
}

impl Staged {
    /// The store.
    pub(super) fn kv(&self) -> Arc<dyn Kv> {
        let kv = self.kv.as_ref().expect("only taken when dropped");
        Arc::clone(kv)
    }

    /// A view of what was received.
    #[must_use]
    pub fn view(&self) -> Arc<dyn kv::View> {
        self.kv().view()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let (kv, stores) = (self.kv.take(), Arc::clone(&self.stores));
        let unused = match &self.stores.place {
            Place::Disk { dir, .. } if !self.is_adopted => {
                self.number.map(|number| kv::dir_of(dir, number))
            }
            Place::Disk { .. } | Place::Memory(_) => None,
        };
        let is_unused = unused.is_some();
        let end = move || {
            drop(kv);
            if let Some(folder) = unused
                && let Err(error) = std::fs::remove_dir_all(&folder)
            {
                let folder = folder.display();
                tracing::warn!(%folder, %error, "an unused snapshot could not be removed");
            }
            stores.is_staging.store(false, Ordering::Release);
        };
        // An engine on disk that is closed waits for its threads, and no runtime can wait for that.
        match Handle::try_current() {
            Ok(runtime) if is_unused => drop(runtime.spawn_blocking(end)),
            Ok(_) | Err(_) => end(),
        }
    }
}
