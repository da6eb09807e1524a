//! Whether the files of a device are truncated by others while it is served.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::Map;
use aya::programs::FExit;
use aya::{Btf, Ebpf, EbpfLoader};
use ublk_bpf_abi::{Member, WATCH_GLOBAL, WatchedFile, WatchedFiles};

use super::builtin::WATCH;
use super::error::{PolicyError, chain};
use super::load::{ebpf_error, program_error};
use super::offsets::KernelLayout;
use super::patch::patch;
use crate::queue::Ends;
use crate::sys::bpf::MapWords;

/// The program in the object, the kernel's function that it hangs on, and its map.
const PROGRAM: &str = "watch";
const FUNCTION: &str = "notify_change";
const ENDS: &str = "ends";

/// Where a file ends that nobody truncated.
const UNTOUCHED: u64 = u64::MAX;

/// Where a device's backing and cache file end by now. Lives in the device's process alone.
#[derive(Debug)]
pub struct Watch {
    ends: Memory,
    /// Attached as long as it is here.
    _program: Option<Ebpf>,
}

/// Where the ends are.
#[derive(Debug)]
enum Memory {
    /// In the map that the program writes.
    Map(MapWords),
    /// Nothing has to be watched, or nothing can.
    Own([AtomicU64; 2]),
}

impl Watch {
    /// Watches over the backing and the cache device, of which each is `None` if it is no regular file: nothing else can
    /// be truncated. If the kernel does not let a program do it, that is told, and [`look`](Self::look) is what is left.
    #[must_use]
    pub fn over(files: [Option<&File>; 2]) -> Self {
        let own = || Self {
            ends: Memory::Own([UNTOUCHED, UNTOUCHED].map(AtomicU64::new)),
            _program: None,
        };
        if files.iter().all(Option::is_none) {
            return own();
        }
        let watch = attach(files).unwrap_or_else(|error| {
            tracing::warn!(
                "a file that is truncated while it is served will be noticed after a moment, and not at once: {error}"
            );
            own()
        });
        watch.look(files);
        watch
    }

    /// Looks at the files' sizes: at first for what happened before there was a program, and now and then for what passes
    /// it by, such as `FALLOC_FL_COLLAPSE_RANGE` or another machine's `truncate` of a network file system's file.
    pub fn look(&self, files: [Option<&File>; 2]) {
        for (end, file) in self.words().iter().zip(files) {
            if let Some(found) = file.and_then(|file| file.metadata().ok()) {
                end.fetch_min(found.len(), Ordering::Relaxed);
            }
        }
    }

    /// The ends, for those that must keep to them.
    #[must_use]
    pub fn ends(&self) -> Ends<'_> {
        let [backing, cache] = self.words();
        Ends::new(backing, cache)
    }

    fn words(&self) -> &[AtomicU64; 2] {
        match &self.ends {
            Memory::Own(words) => words,
            // Mapped with this length.
            Memory::Map(map) => map.as_slice().first_chunk().unwrap_or(&NEVER),
        }
    }
}

static NEVER: [AtomicU64; 2] = [AtomicU64::new(UNTOUCHED), AtomicU64::new(UNTOUCHED)];

fn attach(files: [Option<&File>; 2]) -> Result<Watch, PolicyError> {
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
        ends: Memory::Map(map),
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
