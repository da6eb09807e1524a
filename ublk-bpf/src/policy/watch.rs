//! Watches whether another process truncates the files of a device while the device is in use.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::Map;
use ublk_bpf_abi::{Member, WATCH_GLOBAL, WatchedFile, WatchedFiles};

use super::builtin::WATCH;
use super::error::PolicyError;
use super::loader::Loader;
use super::offsets::KernelLayout;
use super::patch::patch;
use crate::queue::Ends;
use crate::sys::bpf::MapWords;
use crate::sys::bpf::load::{self, Hook};

/// The object, for messages, its program, and its map.
const WHAT: &str = "the watch over files";
const PROGRAM: &str = "watch";
const ENDS: &str = "ends";

/// The end of a file that was never truncated.
const UNTOUCHED: u64 = u64::MAX;

/// The present ends of a device's backing and cache file. Not pinned: it ends with the device's process.
#[derive(Debug)]
pub struct Watch {
    ends: FileEnds,
    /// The program is attached until this is dropped.
    _link: Option<OwnedFd>,
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
            _link: None,
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

    /// The backing file has grown to `to` bytes at least, for a device of `size` bytes, whose requests may reach there from now
    /// on. Returns whether it has: not if another program has truncated it, even for a moment, below the device's end.
    pub fn grow(&self, file: &File, size: u64, to: u64) -> bool {
        let [end, _] = self.words();
        let before = end.load(Ordering::Relaxed);
        let has_grown = before >= to
            || (before >= size
                && end
                    .compare_exchange(before, to, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok());
        // A truncation that the program noted before is seen now.
        self.look([Some(file), None]);
        has_grown && end.load(Ordering::Relaxed) >= to
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
    let watched = WatchedBytes(WatchedFiles(
        files.map(|file| file.map_or_else(WatchedFile::default, of_file)),
    ));
    let mut loaded = Loader::default()
        .global(WATCH_GLOBAL, &watched)
        .load(&object, WHAT)?;
    let failed = |detail| PolicyError::Attach {
        what: WHAT.to_owned(),
        detail,
    };
    let map = match loaded.map_mut(ENDS) {
        Some(Map::Array(map)) => MapWords::map(map.fd().as_fd(), files.len()),
        _ => return Err(failed(format!("no map {ENDS}"))),
    };
    let map = map.map_err(|source| PolicyError::Map { map: ENDS, source })?;
    for word in map.as_slice() {
        word.store(UNTOUCHED, Ordering::Relaxed);
    }
    let function = layout.notify_change;
    let function = function.ok_or_else(|| failed("this kernel has no function notify_change".to_owned()))?;
    let hook = Hook::End(function);
    let program = loaded.program(PROGRAM, hook)?;
    let link = load::attach(program.as_fd(), hook).map_err(|e| failed(e.to_string()))?;
    Ok(Watch {
        ends: FileEnds::Map(map),
        _link: Some(link),
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

/// [`WatchedFiles`] as plain bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct WatchedBytes(WatchedFiles);

// SAFETY: `WatchedFiles` is `repr(C)` and consists of 64-bit integers alone.
unsafe impl aya::Pod for WatchedBytes {}
