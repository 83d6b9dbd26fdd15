//! [`MemFs`]: files in memory. For nodes without a data directory, for simulations, and for tests
//! that cut the power, fill the disk, fail or delay a sync, or damage a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{DirLock, File, Fs};

/// A file system in memory. Clones are the same file system.
///
/// One made by [`MemFs::new`] keeps each byte once and forgets everything when it is dropped. One
/// made by [`MemFs::crashable`] also remembers what was synced, so that
/// [`power_cut`](MemFs::power_cut) can tell what a disk might hold.
#[derive(Clone, Debug, Default)]
pub struct MemFs {
    disk: Arc<Mutex<Disk>>,
    wake: Arc<Condvar>,
}

/// The unit that a disk writes whole; a power cut tears a write at its multiples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// 512 bytes.
    Sector,
    /// 4096 bytes.
    Page,
}

impl Block {
    const fn bytes(self) -> usize {
        match self {
            Self::Sector => 512,
            Self::Page => 4096,
        }
    }
}

type Node = Arc<Mutex<Content>>;

#[derive(Debug, Default)]
struct Disk {
    crashable: bool,
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    unsynced_names: Vec<NameChange>,
    locked: BTreeSet<PathBuf>,
    capacity_bytes: Option<u64>,
    syncs: u64,
    failing_sync: Option<u64>,
    holds: usize,
    held: usize,
    on_change: Option<Hook>,
}

#[derive(Clone)]
struct Hook(Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Put(PathBuf, Node),
    Gone(PathBuf),
    Renamed(PathBuf, PathBuf, Node),
}

impl NameChange {
    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Put(path, _) | Self::Gone(path) | Self::Renamed(_, path, _)) = self;
        path.parent() == Some(dir)
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Self::Put(path, node) => {
                names.insert(path, node);
            }
            Self::Gone(path) => {
                names.remove(&path);
            }
            Self::Renamed(from, to, node) => {
                names.remove(&from);
                names.insert(to, node);
            }
        }
    }
}

/// A file's bytes, and on a crashable disk what is known to be durable.
#[derive(Debug, Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<ByteChange>,
    /// What a failed sync dropped: later syncs do not make it durable, yet it may be.
    dropped: Vec<ByteChange>,
}

#[derive(Debug)]
enum ByteChange {
    Write(usize, Vec<u8>),
    Len(usize),
}

impl ByteChange {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, written) => write(bytes, *offset, written),
            Self::Len(length) => bytes.resize(*length, 0),
        }
    }
}

fn write(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    if bytes.len() == offset {
        bytes.extend_from_slice(written);
        return;
    }
    let end = offset + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(written);
}

/// While it lives, syncs of file data block.
#[derive(Debug)]
pub struct SyncHold(MemFs);

impl SyncHold {
    /// Waits until at least one sync is blocked.
    pub fn wait_for_sync(&self) {
        let mut disk = self.0.lock();
        while disk.held == 0 {
            disk = self
                .0
                .wake
                .wait(disk)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for SyncHold {
    fn drop(&mut self) {
        self.0.lock().holds -= 1;
        self.0.wake.notify_all();
    }
}

impl MemFs {
    /// An empty file system that keeps nothing for power cuts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty file system that can be asked for its [`power_cut`](MemFs::power_cut) images. Takes
    /// more than twice the memory.
    #[must_use]
    pub fn crashable() -> Self {
        let fs = Self::default();
        fs.lock().crashable = true;
        fs
    }

    /// What a disk might hold if the power went now: all that was synced, and a subset, drawn from
    /// `seed`, of the unsynced changes; writes are torn at the multiples of `block`. Directory
    /// changes that were not synced survive or not each for itself. This file system goes on
    /// unharmed; the image is a crashable file system of its own, without locks and faults.
    ///
    /// # Panics
    ///
    /// On a file system made by [`MemFs::new`], which does not know.
    #[must_use]
    pub fn power_cut(&self, seed: u64, block: Block) -> Self {
        let disk = self.lock();
        assert!(disk.crashable, "power_cut on a MemFs that is not crashable");
        let mut dice = Dice::new(seed);
        let mut names = disk.durable_names.clone();
        for change in &disk.unsynced_names {
            if dice.keeps() {
                change.clone().apply(&mut names);
            }
        }
        let image = Self::crashable();
        {
            let mut after = image.lock();
            for (path, node) in names {
                let bytes = lock(&node).after_power_cut(&mut dice, block);
                let node = Arc::new(Mutex::new(Content {
                    current: bytes.clone(),
                    durable: bytes,
                    ..Content::default()
                }));
                after.names.insert(path.clone(), Arc::clone(&node));
                after.durable_names.insert(path, node);
            }
        }
        image
    }

    /// Limits the bytes of all files together; a write beyond it fails with `StorageFull`. `None`
    /// lifts the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity_bytes = bytes;
    }

    /// Lets the `nth` sync of file data from now fail with an I/O error (1: the next one). As on
    /// Linux, what it covered stays readable and is not written again by later syncs.
    pub fn fail_sync(&self, nth: u64) {
        let mut disk = self.lock();
        disk.failing_sync = Some(disk.syncs + nth);
    }

    /// Blocks syncs of file data until the answer is dropped.
    #[must_use]
    pub fn hold_syncs(&self) -> SyncHold {
        self.lock().holds += 1;
        SyncHold(self.clone())
    }

    /// How many syncs of file data were made.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Calls `hook` after every change, and every sync, of a file or directory, in the thread that
    /// made it. The hook may take [`power_cut`](MemFs::power_cut) images, but must not change files.
    pub fn on_change(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.lock().on_change = Some(Hook(Arc::new(hook)));
    }

    /// Changes a file's bytes on the medium behind everyone's back.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is no such file.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let node = self.node(path)?;
        let crashable = self.lock().crashable;
        let mut content = lock(&node);
        change(&mut content.current);
        if crashable {
            content.durable = content.current.clone();
            content.unsynced.clear();
            content.dropped.clear();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        let disk = self.lock();
        let node = disk.names.get(path).cloned();
        node.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, path.display().to_string()))
    }

    fn changed(&self) {
        let hook = self.lock().on_change.clone();
        if let Some(Hook(hook)) = hook {
            hook();
        }
    }

    fn change_names(&self, change: NameChange) {
        let mut disk = self.lock();
        change.clone().apply(&mut disk.names);
        if disk.crashable {
            disk.unsynced_names.push(change);
        }
        drop(disk);
        self.changed();
    }

    fn file(&self, node: Node) -> Arc<dyn File> {
        Arc::new(MemFile {
            fs: self.clone(),
            node,
        })
    }
}

fn lock(node: &Node) -> MutexGuard<'_, Content> {
    node.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Content {
    fn after_power_cut(&self, dice: &mut Dice, block: Block) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for change in self.dropped.iter().chain(&self.unsynced) {
            match change {
                ByteChange::Len(_) if dice.keeps() => change.apply(&mut bytes),
                ByteChange::Len(_) => {}
                ByteChange::Write(offset, written) => {
                    let mut from = 0;
                    while from < written.len() {
                        let room = block.bytes() - (offset + from) % block.bytes();
                        let to = written.len().min(from + room);
                        if dice.keeps() {
                            write(&mut bytes, offset + from, &written[from..to]);
                        }
                        from = to;
                    }
                }
            }
        }
        bytes
    }
}

impl Fs for MemFs {
    fn create(&self, path: &Path, _preallocate_bytes: u64) -> io::Result<Arc<dyn File>> {
        if self.lock().names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = Node::default();
        self.change_names(NameChange::Put(path.to_owned(), Arc::clone(&node)));
        Ok(self.file(node))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.node(path).map(|node| self.file(node))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.node(path)?;
        self.change_names(NameChange::Gone(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.node(from)?;
        self.change_names(NameChange::Renamed(from.to_owned(), to.to_owned(), node));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.lock();
        let inside = disk.names.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name()?.to_str());
        Ok(names.map(str::to_owned).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        let changes = std::mem::take(&mut disk.unsynced_names);
        for change in changes {
            if change.is_in(dir) {
                change.apply(&mut disk.durable_names);
            } else {
                disk.unsynced_names.push(change);
            }
        }
        drop(disk);
        self.changed();
        Ok(())
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>> {
        if !self.lock().locked.insert(dir.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock {
            fs: self.clone(),
            dir: dir.to_owned(),
        }))
    }
}

#[derive(Debug)]
struct MemLock {
    fs: MemFs,
    dir: PathBuf,
}

impl DirLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.fs.lock().locked.remove(&self.dir);
    }
}

#[derive(Debug)]
struct MemFile {
    fs: MemFs,
    node: Node,
}

impl MemFile {
    fn change(&self, change: ByteChange) {
        let crashable = self.fs.lock().crashable;
        let mut content = lock(&self.node);
        change.apply(&mut content.current);
        if crashable {
            content.unsynced.push(change);
        }
        drop(content);
        self.fs.changed();
    }

    /// Whether growing this file to `bytes` stays within the capacity.
    fn check_capacity(&self, bytes: usize) -> io::Result<()> {
        let (capacity, nodes) = {
            let disk = self.fs.lock();
            let Some(capacity) = disk.capacity_bytes else {
                return Ok(());
            };
            (capacity, disk.names.values().cloned().collect::<Vec<_>>())
        };
        let used: usize = nodes.iter().map(|node| lock(node).current.len()).sum();
        let growth = bytes.saturating_sub(lock(&self.node).current.len());
        if (used + growth) as u64 > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

/// Offsets in memory.
fn size(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl File for MemFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = size(offset)?;
        self.check_capacity(offset + bytes.len())?;
        if self.fs.lock().crashable {
            self.change(ByteChange::Write(offset, bytes.to_vec()));
        } else {
            write(&mut lock(&self.node).current, offset, bytes);
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let content = lock(&self.node);
        let from = size(offset)?.min(content.current.len());
        let length = buffer.len().min(content.current.len() - from);
        buffer[..length].copy_from_slice(&content.current[from..from + length]);
        Ok(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.fs.lock();
        disk.held += 1;
        self.fs.wake.notify_all();
        while disk.holds > 0 {
            let woken = self.fs.wake.wait(disk);
            disk = woken.unwrap_or_else(PoisonError::into_inner);
        }
        disk.held -= 1;
        disk.syncs += 1;
        let fails = disk.failing_sync == Some(disk.syncs);
        drop(disk);
        let mut content = lock(&self.node);
        let changes = std::mem::take(&mut content.unsynced);
        if fails {
            content.dropped.extend(changes);
            return Err(io::Error::other("simulated I/O error in sync"));
        }
        for change in changes {
            change.apply(&mut content.durable);
        }
        drop(content);
        self.fs.changed();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.node).current.len() as u64)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let bytes = size(bytes)?;
        self.check_capacity(bytes)?;
        self.change(ByteChange::Len(bytes));
        Ok(())
    }
}

/// Random decisions from a seed (splitmix64); how often it keeps something is drawn first.
#[derive(Debug)]
struct Dice {
    state: u64,
    keep_of_four: u64,
}

impl Dice {
    fn new(seed: u64) -> Self {
        let mut dice = Self {
            state: seed,
            keep_of_four: 0,
        };
        dice.keep_of_four = dice.next() % 5;
        dice
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn keeps(&mut self) -> bool {
        self.next() % 4 < self.keep_of_four
    }
}
