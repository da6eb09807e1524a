//! Watches whether another process truncates the files of a device while the device is in use.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::Map;
use aya::programs::FExit;
use aya::{Btf, Ebpf, EbpfLoader};
use ublk_bpf_abi::{Member, WATCH_GLOBAL, WatchedFile, WatchedFiles};

use super::builtin::WATCH;
use super::causes::chain;
use super::error::PolicyError;
use super::load::{ebpf_error, program_error};
use super::offsets::KernelLayout;
use super::patch::patch;
use crate::queue::Ends;
use crate::sys::bpf::MapWords;

/// The program in the object, the kernel function that it is attached to, and its map.
const PROGRAM: &str = "watch";
const FUNCTION: &str = "notify_change";
const ENDS: &str = "ends";

/// The end of a file that was never truncated.
const UNTOUCHED: u64 = u64::MAX;

/// The present ends of a device's backing and cache file. Not pinned: it ends with the device's process.
#[derive(Debug)]
pub struct Watch {
    ends: FileEnds,
    /// Attached until it is dropped.
    _program: Option<Ebpf>,
}

/// The memory that holds the ends.
#[derive(Debug)]
enum FileEnds {
    /// In the map that the program writes.
    Map(MapWords),
    /// No file to watch, or the program could not be attached.
    Own([AtomicU64; 2]),
}

impl Watch {
    /// Watches the backing and the cache device; `None` for one that is not a regular file, which cannot be truncated.
    /// If the program cannot be attached, this logs a warning, and only [`look`](Self::look) updates the ends.
    #[must_use]
    pub fn over(files: [Option<&File>; 2]) -> Self {
        let own = || Self {
            ends: FileEnds::Own([UNTOUCHED, UNTOUCHED].map(AtomicU64::new)),
            _program: None,
        };
        if files.iter().all(Option::is_none) {
            return own();
        }
        let watch = attach(files).unwrap_or_else(|error| {
            tracing::warn!(
                "the truncation of a backing or cache file is detected with a delay, not at once: {error}"
            );
            own()
        });
        watch.look(files);
        watch
    }

    /// Reads the files' sizes: first for changes before the program was attached, and periodically for changes that it
    /// does not see, such as `FALLOC_FL_COLLAPSE_RANGE`, or a truncation by another client of a network file system.
    pub fn look(&self, files: [Option<&File>; 2]) {
        for (end, file) in self.words().iter().zip(files) {
            if let Some(found) = file.and_then(|file| file.metadata().ok()) {
                end.fetch_min(found.len(), Ordering::Relaxed);
            }
        }
    }

    /// The ends, for the queues to check.
    #[must_use]
    pub fn ends(&self) -> Ends<'_> {
        let [backing, cache] = self.words();
        Ends::new(backing, cache)
    }

    fn words(&self) -> &[AtomicU64; 2] {
        match &self.ends {
            FileEnds::Own(words) => words,
            // Mapped with this length.
            FileEnds::Map(map) => map.as_slice().first_chunk().unwrap_or(&NEVER),
        }
    }
}

static NEVER: [AtomicU64; 2] = [AtomicU64::new(UNTOUCHED), AtomicU64::new(UNTOUCHED)];

pub(super) fn attach(files: [Option<&File>; 2]) -> Result<Watch, PolicyError> {
    let layout = KernelLayout::of_running_kernel()?;
    let object = patch(WATCH, &Member::ALL[Member::CLASSIFIED..], &layout.offsets)?;
    let what = || "the watch over files".to_owned();
    let watched = WatchedBytes(WatchedFiles(
        files.map(|file| file.map_or_else(WatchedFile::default, of_file)),
    ));
    let mut ebpf = EbpfLoader::new()
        .override_global(WATCH_GLOBAL, &watched, true)
        .load(&object)
        .map_err(|error| ebpf_error("the watch over files", error))?;
    let failed = |detail| PolicyError::Attach { what: what(), detail };
    let map = match ebpf.map(ENDS) {
        Some(Map::Array(map)) => MapWords::map(map.fd().as_fd(), files.len()),
        _ => return Err(failed(format!("no map {ENDS}"))),
    };
    let map = map.map_err(|source| PolicyError::Map { map: ENDS, source })?;
    for word in map.as_slice() {
        word.store(UNTOUCHED, Ordering::Relaxed);
    }
    let btf = Btf::from_sys_fs().map_err(|e| failed(chain(&e)))?;
    let program = ebpf
        .program_mut(PROGRAM)
        .ok_or_else(|| failed(format!("no program {PROGRAM}")))?;
    let program: &mut FExit = program.try_into().map_err(|e| failed(chain(&e)))?;
    program
        .load(FUNCTION, &btf)
        .map_err(|e| program_error("the watch over files", e))?;
    program.attach().map_err(|e| failed(chain(&e)))?;
    Ok(Watch {
        ends: FileEnds::Map(map),
        _program: Some(ebpf),
    })
}

/// The file as the kernel knows it.
fn of_file(file: &File) -> WatchedFile {
    let Ok(found) = file.metadata() else {
        return WatchedFile::default();
    };
    let device = found.dev();
    WatchedFile {
        inode: found.ino(),
        // `MKDEV` of `include/linux/kdev_t.h`.
        device: u64::from(libc::major(device)) << 20 | u64::from(libc::minor(device)),
    }
}

/// [`WatchedFiles`] as the bytes that aya puts in the object's global.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct WatchedBytes(WatchedFiles);

// SAFETY: `WatchedFiles` is `repr(C)` and consists of 64-bit integers alone.
unsafe impl aya::Pod for WatchedBytes {}
