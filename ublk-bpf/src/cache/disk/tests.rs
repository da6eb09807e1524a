//! The format on a model of a device that loses power, and on files.

mod damage;
mod dirty;
mod model;
mod versions;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use model::{Disk, crashes};

use super::*;
use crate::backend::{Backend, Spec};

const BLOCK: u32 = 4096;
const DEVICE: u64 = 304 << 10;
const CAPACITY: u64 = (1 << 20) + 512;

fn layout() -> Layout {
    Layout::plan(DEVICE, BLOCK).unwrap()
}

/// What a start finds of a cache without dirty blocks.
fn open_on(disk: &Disk, layout: &Layout, identity: &Identity) -> Result<Opened, DiskError> {
    super::open_on(disk, layout, identity).map(clean)
}

fn open(file: &File, layout: &Layout, identity: &Identity) -> Result<Opened, DiskError> {
    super::open(file, layout, identity).map(clean)
}

fn clean(started: Started) -> Opened {
    assert!(started.dirty.is_empty() && started.log.is_none());
    started.opened
}

fn save_on(
    disk: &Disk,
    layout: &Layout,
    identity: &Identity,
    entries: impl Iterator<Item = SavedEntry>,
) -> Result<(), DiskError> {
    super::save_on(disk, layout, identity, None, entries)
}

/// A backing's folder, its path, and its identity.
fn backing() -> (TempDir, PathBuf, Identity) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("backing");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let identity = identity(&path);
    (folder, path, identity)
}

fn identity(path: &Path) -> Identity {
    Identity::of(&direct(path)).unwrap().with_exact_time_stamps()
}

/// Some slots in use.
fn entries(from: u64) -> Vec<SavedEntry> {
    (0..layout().slots)
        .step_by(3)
        .zip(from..)
        .map(|(slot, block)| SavedEntry {
            slot,
            block,
            priority: 3,
            heat: slot.to_le_bytes()[0],
            valid: if slot % 2 == 0 {
                u16::MAX
            } else {
                0x00f1 << (slot % 8)
            },
        })
        .collect()
}

fn blank() -> Disk {
    Disk::new(vec![0; usize::try_from(DEVICE).unwrap()])
}

/// A cache that was saved with these entries.
fn saved(identity: &Identity, entries: &[SavedEntry]) -> Vec<u8> {
    let disk = blank();
    assert_eq!(open_on(&disk, &layout(), identity).unwrap(), Opened::New);
    save_on(&disk, &layout(), identity, entries.iter().copied()).unwrap();
    disk.content()
}

fn refusal(result: Result<Opened, DiskError>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(
        !message.contains('\n') && message.contains("--cache-reset"),
        "{message}"
    );
    message
}

fn is_cold(opened: &Opened) -> bool {
    matches!(opened, Opened::Cold { .. })
}

#[test]
fn what_is_saved_is_found_once() {
    let (_folder, _, identity) = backing();
    let disk = Disk::new(saved(&identity, &entries(7)));
    assert_eq!(
        open_on(&disk, &layout(), &identity).unwrap(),
        Opened::Warm(entries(7))
    );
    assert!(is_cold(&open_on(&disk, &layout(), &identity).unwrap()));
    save_on(&disk, &layout(), &identity, entries(9).into_iter()).unwrap();
    // Again without a start in between: still the last one counts.
    save_on(&disk, &layout(), &identity, entries(8).into_iter()).unwrap();
    assert_eq!(
        open_on(&disk, &layout(), &identity).unwrap(),
        Opened::Warm(entries(8))
    );
}

#[test]
fn an_empty_and_a_full_cache_are_saved() {
    let (_folder, _, identity) = backing();
    let full: Vec<SavedEntry> = (0..layout().slots)
        .map(|slot| SavedEntry {
            slot,
            block: 255 - u64::from(slot),
            priority: 255,
            heat: 255,
            valid: u16::MAX,
        })
        .collect();
    for entries in [vec![], full] {
        let disk = Disk::new(saved(&identity, &entries));
        assert_eq!(
            open_on(&disk, &layout(), &identity).unwrap(),
            Opened::Warm(entries)
        );
    }
}

#[test]
fn a_crash_while_it_is_opened_leaves_it_as_warm_or_cold() {
    let (_folder, _, identity) = backing();
    let before = saved(&identity, &entries(7));
    let disk = Disk::new(before.clone());
    open_on(&disk, &layout(), &identity).unwrap();
    let log = disk.log.take();
    for content in crashes(&before, &log) {
        let opened = open_on(&Disk::new(content), &layout(), &identity).unwrap();
        assert!(
            is_cold(&opened) || opened == Opened::Warm(entries(7)),
            "{opened:?}"
        );
    }
    // Once it was opened no crash brings back what was saved before.
    assert!(is_cold(
        &open_on(&Disk::new(disk.content()), &layout(), &identity).unwrap()
    ));
}

#[test]
fn a_crash_while_it_is_saved_leaves_it_cold_or_warm_with_what_is_saved() {
    let (_folder, _, identity) = backing();
    // Opened warm, and opened cold.
    let warm = Disk::new(saved(&identity, &entries(7)));
    open_on(&warm, &layout(), &identity).unwrap();
    let cold = Disk::new(warm.content());
    open_on(&cold, &layout(), &identity).unwrap();
    for before in [warm.content(), cold.content()] {
        let disk = Disk::new(before.clone());
        save_on(&disk, &layout(), &identity, entries(9).into_iter()).unwrap();
        let log = disk.log.take();
        let (mut colds, mut warms) = (0, 0);
        for content in crashes(&before, &log) {
            match open_on(&Disk::new(content), &layout(), &identity).unwrap() {
                Opened::Cold { .. } => colds += 1,
                Opened::Warm(found) => {
                    assert_eq!(found, entries(9));
                    warms += 1;
                }
                Opened::New | Opened::Unproven { .. } => panic!("a cache is not new"),
            }
        }
        assert!(colds > 10 && warms > 10, "{colds} {warms}");
    }
}

#[test]
fn a_crash_while_a_clean_cache_is_saved_again_never_mixes_the_two() {
    let (_folder, _, identity) = backing();
    let before = saved(&identity, &entries(7));
    let disk = Disk::new(before.clone());
    save_on(&disk, &layout(), &identity, entries(9).into_iter()).unwrap();
    let log = disk.log.take();
    for content in crashes(&before, &log) {
        match open_on(&Disk::new(content), &layout(), &identity).unwrap() {
            Opened::Cold { .. } => {}
            Opened::Warm(found) => assert!(found == entries(7) || found == entries(9)),
            Opened::New | Opened::Unproven { .. } => panic!("a cache is not new"),
        }
    }
}

#[test]
fn a_crash_while_a_cache_is_made_never_makes_a_warm_one() {
    let (_folder, _, identity) = backing();
    let disk = blank();
    let before = disk.content();
    open_on(&disk, &layout(), &identity).unwrap();
    for content in crashes(&before, &disk.log.take()) {
        match open_on(&Disk::new(content), &layout(), &identity) {
            Ok(opened) => assert!(opened == Opened::New || is_cold(&opened)),
            // A torn copy of what was never there: nothing says that it is ours.
            Err(error) => assert!(matches!(error, DiskError::Superblock { .. } | DiskError::Foreign)),
        }
    }
}

#[test]
fn entries_out_of_order_are_not_saved() {
    let (_folder, _, identity) = backing();
    let disk = blank();
    open_on(&disk, &layout(), &identity).unwrap();
    let mut wrong = entries(7);
    wrong.swap(0, 1);
    let beyond = SavedEntry {
        slot: layout().slots,
        block: 0,
        priority: 0,
        heat: 0,
        valid: 1,
    };
    for entries in [wrong, vec![beyond]] {
        save_on(&disk, &layout(), &identity, entries.into_iter()).unwrap_err();
        assert!(is_cold(&open_on(&disk, &layout(), &identity).unwrap()));
    }
}

#[test]
fn another_layout_is_refused() {
    let (_folder, _, identity) = backing();
    let disk = Disk::new(saved(&identity, &entries(7)));
    let blocks = Layout::plan(DEVICE, 8192).unwrap();
    let message = refusal(open_on(&disk, &blocks, &identity));
    assert!(
        message.contains("have 4K, not 8K: run with --cache-block 4K"),
        "{message}"
    );
    let device = Layout::plan(2 * DEVICE, BLOCK).unwrap();
    let message = refusal(open_on(&disk, &device, &identity));
    assert!(
        message.contains("with 61 slots, and has room for 137"),
        "{message}"
    );
}

#[test]
fn another_or_a_changed_backing_is_refused_and_nothing_written() {
    let (folder, path, identity) = backing();
    let other = folder.path().join("other");
    File::create(&other).unwrap().set_len(1 << 20).unwrap();
    let content = saved(&identity, &entries(7));
    let refused = |now: &Identity| {
        let disk = Disk::new(content.clone());
        let message = refusal(open_on(&disk, &layout(), now));
        assert_eq!(disk.content(), content);
        message
    };
    assert!(refused(&self::identity(&other)).contains("made for another backing, a file of 1M"));
    std::thread::sleep(std::time::Duration::from_millis(20));
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[1], 0).unwrap();
    assert!(refused(&self::identity(&path)).contains("changed since the cache was saved"));
    file.set_len(2 << 20).unwrap();
    assert!(refused(&self::identity(&path)).contains("had 1048576 bytes"));
}

#[test]
fn a_crashed_cache_of_another_backing_is_not_taken() {
    let (folder, path, identity) = backing();
    let disk = Disk::new(saved(&identity, &entries(7)));
    open_on(&disk, &layout(), &identity).unwrap();
    let other = folder.path().join("other");
    File::create(&other).unwrap().set_len(1 << 20).unwrap();
    assert!(refusal(open_on(&disk, &layout(), &self::identity(&other))).contains("another backing"));
    // Changed content is what a crashed device's backing has.
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[1], 0)
        .unwrap();
    assert!(is_cold(
        &open_on(&disk, &layout(), &self::identity(&path)).unwrap()
    ));
}

#[test]
fn a_cache_of_memory_is_never_warm_and_never_in_the_way() {
    let (_folder, _, file) = backing();
    let backend = Backend::open(&Spec::Memory(1 << 20), false).unwrap();
    let memory = Identity::of(&backend).unwrap();
    let content = saved(&memory, &entries(7));
    for identity in [&memory, &Identity::of(&backend).unwrap(), &file] {
        assert_eq!(
            open_on(&Disk::new(content.clone()), &layout(), identity).unwrap(),
            Opened::Cold {
                reason: "cached memory, which is gone"
            }
        );
    }
    let message = refusal(open_on(&Disk::new(saved(&file, &entries(7))), &layout(), &memory));
    assert!(message.contains("this one is memory of 1M"), "{message}");
}

#[test]
fn a_cache_is_not_warm_where_nothing_proves_that_its_backing_is_as_it_was() {
    let (_folder, _, identity) = backing();
    let disk = Disk::new(saved(&identity, &entries(7)));
    // The same in every value, in another boot.
    let now = identity.clone().in_another_boot();
    let opened = open_on(&disk, &layout(), &now).unwrap();
    let Opened::Unproven {
        entries: found,
        reason,
    } = opened
    else {
        panic!("{opened:?}");
    };
    assert!(found == entries(7) && reason.contains("booted"), "{reason}");
    assert!(is_cold(&open_on(&disk, &layout(), &now).unwrap()));
}

/// The cache's file, opened as a device is: with direct I/O.
fn direct(path: &Path) -> Backend {
    Backend::open(&Spec::Path(path.to_owned()), false).unwrap()
}

#[test]
fn files_with_direct_io_and_memory_keep_a_cache() {
    let (folder, _, identity) = backing();
    let path = folder.path().join("cache");
    // Not whole pages.
    File::create(&path).unwrap().set_len(DEVICE + 512).unwrap();
    let memory = Backend::open(&Spec::Memory(DEVICE), false).unwrap();
    for backend in [&direct(&path), &memory] {
        let file = backend.file().unwrap();
        assert_eq!(open(file, &layout(), &identity).unwrap(), Opened::New);
        assert_eq!(inspect::inspect(file).unwrap().unwrap().in_use, None);
        save(file, &layout(), &identity, None, entries(7).into_iter()).unwrap();
        let found = inspect::inspect(file).unwrap().unwrap();
        assert_eq!((found.clean, found.in_use, found.damage), (true, Some(21), None));
        assert_eq!(
            open(file, &layout(), &identity).unwrap(),
            Opened::Warm(entries(7))
        );
    }
}

#[test]
fn a_reset_empties_whatever_was_there() {
    let (folder, path, identity) = backing();
    let cache = folder.path().join("cache");
    for content in [
        vec![0x5a; usize::try_from(DEVICE).unwrap()],
        saved(&identity, &entries(7)),
    ] {
        std::fs::write(&cache, content).unwrap();
        let backend = direct(&cache);
        let file = backend.file().unwrap();
        assert_eq!(reset(file, &layout(), &identity, Abandon::Nothing).unwrap(), 0);
        assert!(is_cold(&open(file, &layout(), &self::identity(&path)).unwrap()));
    }
}

#[test]
fn samples_find_a_slot_that_is_not_what_the_backing_has() {
    let (folder, path, _) = backing();
    let cache = folder.path().join("cache");
    File::create(&cache).unwrap().set_len(DEVICE).unwrap();
    // The last block of the backing has 512 bytes.
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(CAPACITY)
        .unwrap();
    let buffered = File::options().write(true).open(&cache).unwrap();
    let backing = File::options().read(true).write(true).open(&path).unwrap();
    let mut entries = entries(7);
    entries.last_mut().unwrap().block = CAPACITY / u64::from(BLOCK);
    for entry in &entries {
        let mut data = vec![entry.heat; BLOCK as usize];
        buffered
            .write_all_at(&data, layout().data_of(entry.slot))
            .unwrap();
        let at = entry.block * u64::from(BLOCK);
        data.truncate(usize::try_from((CAPACITY - at).min(BLOCK.into())).unwrap());
        backing.write_all_at(&data, at).unwrap();
    }
    buffered.sync_data().unwrap();
    let cache = direct(&cache);
    let check = |n| {
        sample_matches(
            cache.file().unwrap(),
            &backing,
            &layout(),
            &entries,
            &[],
            CAPACITY,
            n,
        )
    };
    for n in [0, 1, 5, 64] {
        check(n).unwrap();
    }
    backing.write_all_at(&[0xee], CAPACITY - 1).unwrap();
    let message = check(64).unwrap_err().to_string();
    assert!(message.contains("block 256 in slot 60"), "{message}");
}
