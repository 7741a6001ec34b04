//! The dictionary's place on the file system: a sparse file of fixed size (or a block device) for each peer, locked so that
//! two processes never share it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outpost_config::ProgramStore;
use outpost_net::flow::StoreParts;
use outpost_net::store::{BLOCK, BlockDevice, DeviceError, Disk, MAGIC, is_other_format};

use crate::hub::Hub;

/// Memory for the dictionaries of both directions with a peer, if they are kept nowhere else.
const IN_MEMORY: usize = 256 << 20;
/// What they take on disk, if the configuration does not say.
const ON_DISK: u64 = 1 << 30;
/// Memory for the parts of them in use, if the configuration does not say.
const CACHE: u64 = 64 << 20;

/// A lock is tried so often, with so long between.
const LOCK_TRIES: u32 = 80;
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// How often it is seen whether there is something to write.
const TICK: Duration = Duration::from_secs(2);
/// While data flows it is written after so many ticks; at a pause at once.
const TICKS: u32 = 5;

/// A file, or a block device, as the engine wants it.
struct FileDevice {
    file: Arc<File>,
    size: u64,
}

fn failed(error: &io::Error) -> DeviceError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DeviceError::Full,
        _ => DeviceError::Failed,
    }
}

impl FileDevice {
    fn check(&self, offset: u64, len: usize) -> Result<(), DeviceError> {
        let end = offset.checked_add(len as u64);
        match end {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(DeviceError::OutOfRange),
        }
    }
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.check(offset, bytes.len())?;
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|error| failed(&error))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.check(offset, bytes.len())?;
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| failed(&error))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.file.sync_data().map_err(|error| failed(&error))
    }
}

/// Where one peer's dictionaries are kept.
pub struct Place {
    /// For the engine.
    pub parts: StoreParts,
    file: Option<Arc<File>>,
}

/// The place for the dictionaries with the peer called `name`, of `peers` peers in all; `owner` is what [`store_owner`] makes of
/// its keys.
///
/// # Errors
/// What is wrong with `[store]`, in words.
///
/// [`store_owner`]: outpost_net::flow::store_owner
pub async fn place(
    config: &ProgramStore,
    name: &str,
    owner: [u8; 32],
    peers: usize,
) -> Result<Place, String> {
    let bytes = |size: Option<outpost_config::ByteSize>| size.map(|size| size.bytes());
    let memory = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let Some(path) = &config.path else {
        let given = bytes(config.memory);
        let parts = StoreParts {
            memory: given.map_or(IN_MEMORY, memory),
            device: None,
        };
        return Ok(Place { parts, file: None });
    };
    let path = path_of(path, name, owner, peers);
    let size = bytes(config.size).unwrap_or(ON_DISK) / peers.max(1) as u64;
    if size < Disk::LEAST_BYTES {
        return Err(format!(
            "[store] size: {size} bytes for each peer are too few; give each at least {}M",
            Disk::LEAST_BYTES.div_ceil(1 << 20)
        ));
    }
    let words = |error: String| format!("[store] {}: {error}", path.display());
    let file = lock(&path).await.map_err(words)?;
    let device = prepare(file, size).map_err(words)?;
    let file = device.file.clone();
    let parts = StoreParts {
        memory: memory(bytes(config.memory).unwrap_or(CACHE.min(size))),
        device: Some(Rc::new(device)),
    };
    Ok(Place {
        parts,
        file: Some(file),
    })
}

/// The file of the peer called `name`: `path`, if that is its store already, or if it is the only peer; otherwise `path.name`. So
/// no peer loses its store when others come or go.
fn path_of(path: &str, name: &str, owner: [u8; 32], peers: usize) -> PathBuf {
    let named = PathBuf::from(format!("{path}.{name}"));
    let path = PathBuf::from(path);
    let is_own = owner_of(&path) == Some(owner);
    if is_own || (peers <= 1 && !named.exists()) {
        path
    } else {
        named
    }
}

/// Whose store a file is, if it is one.
fn owner_of(path: &Path) -> Option<[u8; 32]> {
    // What is neither a file nor a device might never be opened, and is refused later.
    let kind = std::fs::metadata(path).ok()?.file_type();
    if !(kind.is_file() || kind.is_block_device()) {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let size = file.seek(SeekFrom::End(0)).ok()?;
    let file = Arc::new(file);
    Disk::owner(&FileDevice { file, size })
}

/// Opens a file for this process alone. One that is just stopping, or a peer that is just being replaced, is waited for.
async fn lock(path: &Path) -> Result<File, String> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| advice(&error))?;
    let mut tries = 0;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => {
                tries += 1;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(String::from("another process uses it; give each its own"));
            }
            Err(TryLockError::Error(error)) => return Err(error.to_string()),
        }
    }
}

/// What is wrong with the file, and what would be right.
fn advice(error: &io::Error) -> String {
    let right = match error.kind() {
        io::ErrorKind::IsADirectory => "give the path of a file in it",
        io::ErrorKind::NotFound => "make the folder, or give a path in one that is there",
        io::ErrorKind::PermissionDenied => {
            "let this program's user write there, or give another path"
        }
        io::ErrorKind::FileTooLarge => {
            "size is more than this file system lets a file be: make it smaller"
        }
        _ => "give another path",
    };
    format!("{error}; {right}")
}

/// Makes a file or block device ready to hold `size` bytes.
fn prepare(mut file: File, size: u64) -> Result<FileDevice, String> {
    let words = |error: io::Error| error.to_string();
    let kind = file.metadata().map_err(words)?.file_type();
    if !(kind.is_file() || kind.is_block_device()) {
        return Err(String::from("this is neither a file nor a block device"));
    }
    let has = file.seek(SeekFrom::End(0)).map_err(words)?;
    if !is_ours(&file, has) {
        return Err(String::from(
            "this holds something that is no store, and is left as it is; give another path, or remove it",
        ));
    }
    // A store of a newer format is left alone, its size too; the engine says so.
    let size = if is_newer(&file) {
        has
    } else if kind.is_file() {
        if has != size {
            file.set_len(size).map_err(|error| advice(&error))?;
        }
        size
    } else {
        size.min(has)
    };
    Ok(FileDevice {
        file: Arc::new(file),
        size,
    })
}

/// Whether a file may be used: it is empty, blank, or begins as a store does.
fn is_ours(file: &File, size: u64) -> bool {
    let mut head = [0; 2 * BLOCK];
    let have = usize::try_from(size).unwrap_or(usize::MAX).min(head.len());
    let Some(head) = head.get_mut(..have) else {
        return false;
    };
    // What cannot be read now may be later: the engine copes with that.
    if file.read_exact_at(head, 0).is_err() {
        return true;
    }
    head.iter().all(|byte| *byte == 0) || head.chunks(BLOCK).any(|block| block.starts_with(&MAGIC))
}

/// Whether a file holds a store of a format that this version does not know.
fn is_newer(file: &File) -> bool {
    let mut head = [0; 2 * BLOCK];
    file.read_exact_at(&mut head, 0).is_ok() && is_other_format(&head)
}

impl Place {
    /// Says what was found, and has it written for as long as the peer is there: at pauses, and every ten seconds while data
    /// flows.
    pub fn keep(self, hub: &Rc<Hub>, opening: Duration) {
        let Some(file) = self.file else { return };
        let (statistics, memory) = {
            let session = hub.session.borrow();
            (session.store_statistics(), session.store_memory())
        };
        if statistics.store_capacity_bytes > 0 {
            log::info!(
                "{}: store: {} MiB in each direction, {:.1} MiB warm in {} ms; memory: index {:.1} MiB, parts in use {} MiB",
                hub.name,
                statistics.store_capacity_bytes >> 21,
                statistics.store_warm_bytes as f64 / f64::from(1 << 20),
                opening.as_millis(),
                memory.index as f64 / f64::from(1 << 20),
                memory.parts >> 20,
            );
        }
        let hub = Rc::downgrade(hub);
        tokio::task::spawn_local(async move {
            let (mut ticks, mut last) = (0, 0);
            loop {
                tokio::time::sleep(TICK).await;
                let Some(hub) = hub.upgrade() else { return };
                ticks += 1;
                let stored = {
                    let (_, sent, received) = hub.session.borrow().statistics();
                    sent.stored_bytes + received.stored_bytes
                };
                let paused = core::mem::replace(&mut last, stored) == stored;
                if (paused || ticks >= TICKS) && hub.session.borrow_mut().store_is_dirty() {
                    ticks = 0;
                    sync(&hub, file.clone()).await;
                }
            }
        });
    }
}

async fn sync(hub: &Hub, file: Arc<File>) {
    let ticket = hub.session.borrow_mut().sync_store();
    let flushed = tokio::task::spawn_blocking(move || file.sync_data()).await;
    let mut session = hub.session.borrow_mut();
    match flushed {
        Ok(Ok(())) => session.store_flushed(ticket),
        Ok(Err(error)) => session.store_flush_failed(failed(&error)),
        Err(_) => {}
    }
}
