//! Dirty blocks, which no crash and no start loses.

use super::*;
use crate::cache::log::{LOG_BUFFER, LOG_PAGE};

fn entry(slot: u32, block: u32, dirty: u16) -> LogEntry {
    LogEntry { slot, block, dirty }
}

fn some_dirty() -> Vec<LogEntry> {
    vec![entry(3, 8, 0x8001), entry(6, 9, 4), entry(7, 200, 0xffff)]
}

/// What a clean stop saves beside them.
fn residents() -> Vec<SavedEntry> {
    let mut entries = entries(7);
    for dirty in some_dirty() {
        let at = entries.binary_search_by_key(&dirty.slot, |entry| entry.slot);
        match at {
            Ok(at) => (entries[at].block, entries[at].valid) = (dirty.block.into(), dirty.dirty | 2),
            Err(at) => entries.insert(
                at,
                SavedEntry {
                    slot: 7,
                    block: 200,
                    priority: 0,
                    heat: 0,
                    valid: u16::MAX,
                },
            ),
        }
    }
    entries
}

fn commit(disk: &Disk, log: &mut Log, entries: &[LogEntry]) {
    let mut buffer = Aligned::new(LOG_BUFFER);
    let placed = log.append(entries, &mut buffer).unwrap();
    disk.write(&buffer[..placed.length], placed.offset).unwrap();
    disk.sync().unwrap();
}

/// A cache in use whose log says this.
fn dirtied(identity: &Identity) -> (Disk, Log) {
    let disk = blank();
    assert_eq!(open_on(&disk, &layout(), identity).unwrap(), Opened::New);
    let mut log = mark_dirty_on(&disk, &layout()).unwrap();
    commit(&disk, &mut log, &some_dirty());
    disk.log.take();
    (disk, log)
}

/// The same, stopped in good order.
fn saved_dirty(identity: &Identity) -> Disk {
    let (disk, log) = dirtied(identity);
    let entries = residents().into_iter();
    super::super::save_on(&disk, &layout(), identity, Some(&log), entries).unwrap();
    disk.log.take();
    disk
}

fn start(content: Vec<u8>, identity: &Identity) -> (Disk, Started) {
    let disk = Disk::new(content);
    let started = super::super::open_on(&disk, &layout(), identity).unwrap();
    (disk, started)
}

fn assert_dirty(content: Vec<u8>, identity: &Identity) -> Opened {
    let (_, started) = start(content, identity);
    assert_eq!(started.dirty, some_dirty());
    assert!(started.log.is_some());
    started.opened
}

#[test]
fn after_a_crash_only_what_is_dirty_is_left() {
    let (_folder, _, identity) = backing();
    let (disk, _) = dirtied(&identity);
    assert!(is_cold(&assert_dirty(disk.content(), &identity)));
}

#[test]
fn a_clean_stop_keeps_both() {
    let (_folder, _, identity) = backing();
    let opened = assert_dirty(saved_dirty(&identity).content(), &identity);
    assert_eq!(opened, Opened::Warm(residents()));
}

#[test]
fn no_crash_of_a_start_loses_what_is_dirty_nor_one_of_the_start_after() {
    let (_folder, _, identity) = backing();
    for before in [saved_dirty(&identity).content(), dirtied(&identity).0.content()] {
        let (disk, _) = start(before.clone(), &identity);
        for (nth, content) in crashes(&before, &disk.log.take()).into_iter().enumerate() {
            let (again, started) = start(content.clone(), &identity);
            assert_eq!(started.dirty, some_dirty());
            if nth % 16 == 0 {
                for content in crashes(&content, &again.log.take()) {
                    assert_dirty(content, &identity);
                }
            }
        }
    }
}

#[test]
fn no_crash_of_a_recovery_loses_what_is_dirty() {
    let (_folder, _, identity) = backing();
    let (disk, _) = dirtied(&identity);
    let before = disk.content();
    let (found, log) = resume_on(&disk, &layout()).unwrap().unwrap();
    assert_eq!(found, some_dirty());
    for content in crashes(&before, &disk.log.take()) {
        assert_dirty(content, &identity);
    }
    // It is another log now.
    assert!(in_use(&Copies::read(&disk).unwrap(), &layout(), Some(&log)).is_some());
}

#[test]
fn no_crash_of_a_stop_loses_what_is_dirty() {
    let (_folder, _, identity) = backing();
    let (disk, log) = dirtied(&identity);
    let before = disk.content();
    let entries = residents().into_iter();
    super::super::save_on(&disk, &layout(), &identity, Some(&log), entries).unwrap();
    for content in crashes(&before, &disk.log.take()) {
        let opened = assert_dirty(content, &identity);
        assert!(is_cold(&opened) || opened == Opened::Warm(residents()));
    }
}

#[test]
fn a_crash_of_a_commit_or_a_checkpoint_leaves_what_was_or_what_is_dirty() {
    let (_folder, _, identity) = backing();
    let (disk, mut log) = dirtied(&identity);
    let before = disk.content();
    commit(&disk, &mut log, &[entry(6, 9, 0), entry(9, 50, 1)]);
    let after = vec![entry(3, 8, 0x8001), entry(7, 200, 0xffff), entry(9, 50, 1)];
    for content in crashes(&before, &disk.log.take()) {
        let (_, started) = start(content, &identity);
        assert!(started.dirty == some_dirty() || started.dirty == after);
    }
    let before = disk.content();
    log::checkpoint(&disk, &mut log, &after).unwrap();
    for content in crashes(&before, &disk.log.take()) {
        assert_eq!(start(content, &identity).1.dirty, after);
    }
}

#[test]
fn an_end_makes_durable_what_no_commit_has() {
    let (_folder, _, identity) = backing();
    let (disk, _) = dirtied(&identity);
    let before = disk.content();
    // The last record says less of slot 3, and that slots are dirty which are clean by now.
    let after = vec![entry(3, 8, 0x8003), entry(9, 50, 1)];
    assert!(settle_on(&disk, &layout(), after.clone()).unwrap().is_some());
    for content in crashes(&before, &disk.log.take()) {
        let (_, started) = start(content, &identity);
        assert!(
            started.dirty == some_dirty() || started.dirty == after,
            "{:?}",
            started.dirty
        );
    }
    assert_eq!(start(disk.content(), &identity).1.dirty, after);
    let (found, _) = resume_on(&disk, &layout()).unwrap().unwrap();
    assert_eq!(found, after, "for the successor of a device that waits");
    assert!(settle_on(&disk, &layout(), Vec::new()).unwrap().is_none());
    assert!(start(disk.content(), &identity).1.dirty.is_empty());
}

#[test]
fn what_a_device_holds_can_be_seen_without_its_backing() {
    let (folder, _, identity) = backing();
    let path = folder.path().join("cache");
    let found = |content: Vec<u8>| {
        std::fs::write(&path, content).unwrap();
        held(&File::open(&path).unwrap()).unwrap()
    };
    assert_eq!(found(blank().content()), None);
    let clean = found(saved(&identity, &entries(1))).unwrap();
    assert!(!clean.may_be_dirty);
    let dirty = found(saved_dirty(&identity).content()).unwrap();
    assert!(dirty.may_be_dirty && dirty.cache_id != clean.cache_id);
}

#[test]
fn a_crash_while_the_mark_is_set_or_cleared_leaves_a_cache_with_nothing_dirty() {
    let (_folder, _, identity) = backing();
    let disk = blank();
    open_on(&disk, &layout(), &identity).unwrap();
    disk.log.take();
    let before = disk.content();
    let log = mark_dirty_on(&disk, &layout()).unwrap();
    let marked = disk.content();
    let marking = crashes(&before, &disk.log.take());
    clear_dirty_on(&disk, &layout(), &log).unwrap();
    for content in marking.into_iter().chain(crashes(&marked, &disk.log.take())) {
        let (_, started) = start(content, &identity);
        assert!(is_cold(&started.opened) && started.dirty.is_empty() && started.log.is_none());
    }
}

#[test]
fn a_mark_is_set_once_and_only_in_use() {
    let (_folder, _, identity) = backing();
    let (disk, log) = dirtied(&identity);
    assert!(matches!(
        mark_dirty_on(&disk, &layout()),
        Err(DiskError::Superseded)
    ));
    clear_dirty_on(&disk, &layout(), &log).unwrap();
    assert!(matches!(
        clear_dirty_on(&disk, &layout(), &log),
        Err(DiskError::Superseded)
    ));
    assert!(resume_on(&disk, &layout()).unwrap().is_none());
    let clean = Disk::new(saved(&identity, &entries(7)));
    assert!(matches!(
        mark_dirty_on(&clean, &layout()),
        Err(DiskError::Superseded)
    ));
}

/// Checks that a start is refused with these words, and writes nothing.
fn refused(content: Vec<u8>, identity: &Identity, words: &str) {
    let disk = Disk::new(content);
    let before = disk.content();
    let message = refusal(super::super::open_on(&disk, &layout(), identity).map(|started| started.opened));
    assert!(
        message.contains(words) && message.contains("--abandon-dirty"),
        "{message}"
    );
    assert!(disk.content() == before);
}

#[test]
fn another_or_a_changed_backing_is_refused_with_a_count() {
    let (folder, path, identity) = backing();
    let other = folder.path().join("other");
    File::create(&other).unwrap().set_len(1 << 20).unwrap();
    for content in [saved_dirty(&identity).content(), dirtied(&identity).0.content()] {
        let words =
            "holds 3 dirty blocks, which its backing has yet to get, and it was made for another backing";
        refused(content, &self::identity(&other), words);
    }
    let (clean, killed) = (saved_dirty(&identity).content(), dirtied(&identity).0.content());
    std::thread::sleep(std::time::Duration::from_millis(20));
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[1], 0)
        .unwrap();
    let changed = self::identity(&path);
    refused(clean, &changed, "changed since the cache was saved");
    // The server changed it itself before it died.
    assert_dirty(killed, &changed);
}

#[test]
fn a_reset_is_refused_unless_dirty_blocks_are_abandoned() {
    let (_folder, _, identity) = backing();
    let disk = saved_dirty(&identity);
    let before = disk.content();
    let message = reset_on(&disk, &layout(), &identity, Abandon::Nothing)
        .unwrap_err()
        .to_string();
    assert!(message.contains("holds 3 dirty blocks"), "{message}");
    assert!(disk.content() == before);
    assert_eq!(reset_on(&disk, &layout(), &identity, Abandon::Dirty).unwrap(), 3);
    assert!(is_cold(&open_on(&disk, &layout(), &identity).unwrap()));
}

#[test]
fn a_damaged_log_is_refused_and_a_damaged_list_of_blocks_is_not() {
    let (_folder, _, identity) = backing();
    let content = saved_dirty(&identity).content();
    let mut headless = content.clone();
    let heads = usize::try_from(layout().log().heads_offset).unwrap();
    headless[heads..heads + 2 * LOG_PAGE].fill(0);
    let disk = Disk::new(headless.clone());
    refused(
        headless,
        &identity,
        "the heads of the log at byte 12288: neither is one of this log",
    );
    assert!(matches!(
        reset_on(&disk, &layout(), &identity, Abandon::Nothing),
        Err(DiskError::Log(_))
    ));
    let mut listless = content;
    listless[8192] ^= 1;
    assert!(is_cold(&assert_dirty(listless, &identity)));
}

#[test]
fn a_list_of_blocks_that_contradicts_the_log_is_refused() {
    let (_folder, _, identity) = backing();
    let (disk, log) = dirtied(&identity);
    for change in [
        |entry: &mut SavedEntry| entry.block = 250,
        |entry: &mut SavedEntry| entry.valid = 2,
    ] {
        let disk = Disk::new(disk.content());
        let mut entries = residents();
        change(&mut entries[2]);
        super::super::save_on(&disk, &layout(), &identity, Some(&log), entries.into_iter()).unwrap();
        refused(disk.content(), &identity, "something else in slot 6");
    }
}

#[test]
fn dirty_blocks_of_memory_are_gone_with_it() {
    let (_folder, _, _) = backing();
    let memory = Identity::of(&Backend::open(&Spec::Memory(1 << 20), false).unwrap()).unwrap();
    let (disk, _) = dirtied(&memory);
    assert!(is_cold(&open_on(&disk, &layout(), &memory).unwrap()));
}

#[test]
fn samples_leave_dirty_regions_out() {
    let (folder, path, _) = backing();
    let cache = folder.path().join("cache");
    let mut content = vec![0; usize::try_from(DEVICE).unwrap()];
    let at = usize::try_from(layout().data_of(3)).unwrap();
    content[at + 256..at + 512].fill(1);
    std::fs::write(&cache, content).unwrap();
    let entries = [SavedEntry {
        slot: 3,
        block: 8,
        priority: 0,
        heat: 0,
        valid: u16::MAX,
    }];
    let (cache, backing) = (direct(&cache), File::open(&path).unwrap());
    let check = |dirty: &[LogEntry]| {
        sample_matches(
            cache.file().unwrap(),
            &backing,
            &layout(),
            &entries,
            dirty,
            1 << 20,
            9,
        )
    };
    check(&[entry(3, 8, 2)]).unwrap();
    check(&[entry(3, 8, 1)]).unwrap_err();
    check(&[]).unwrap_err();
}
