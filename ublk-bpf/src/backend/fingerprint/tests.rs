use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use zerocopy::IntoBytes;

use super::samples::{END, sampled_ranges};
use super::*;
use crate::backend::Spec;

fn identity(path: &Path) -> Identity {
    let backend = Backend::open(&Spec::Path(path.to_owned()), false).unwrap();
    Identity::of(&backend).unwrap()
}

fn file_in(folder: &TempDir, name: &str) -> std::path::PathBuf {
    let path = folder.path().join(name);
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path
}

/// Longer than the coarsest clock that a file system stamps with.
fn tick() {
    std::thread::sleep(Duration::from_millis(20));
}

fn block() -> BlockIdentity {
    BlockIdentity {
        bytes: 1 << 30,
        name: Name::new("serial number 7"),
        boot: [1; 16],
        disk_sequence: 12,
        counted: Counters {
            written: 100,
            discarded: 0,
        },
        beside: Counters::default(),
        counts_all: true,
        file: None,
        samples: 9,
    }
}

fn differs(saved: &BlockIdentity, now: BlockIdentity, words: &str) {
    let difference = Identity::Block(saved.clone())
        .compare(&Identity::Block(now))
        .unwrap_err()
        .to_string();
    assert!(difference.contains(words), "{difference}");
}

#[test]
fn an_untouched_file_is_the_same_however_often_it_is_opened_and_read() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "backing");
    let saved = identity(&path);
    tick();
    fs::read(&path).unwrap();
    assert_eq!(saved.compare(&identity(&path)), Ok(()));
}

#[test]
fn a_changed_file_is_noticed_even_with_its_modification_time_set_back() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "backing");
    let saved = identity(&path);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    tick();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[1], 5000).unwrap();
    assert!(matches!(
        saved.compare(&identity(&path)),
        Err(Difference::Changed(_))
    ));
    file.set_modified(modified).unwrap();
    assert_eq!(
        saved.compare(&identity(&path)),
        Err(Difference::Changed("its status-change time is another"))
    );
    assert_eq!(saved.same_backing(&identity(&path)), Ok(()));
    file.set_len(2 << 20).unwrap();
    let resized = Difference::Resized {
        saved: 1 << 20,
        now: 2 << 20,
    };
    assert_eq!(saved.compare(&identity(&path)), Err(resized));
}

#[test]
fn another_file_of_the_same_name_is_noticed() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "backing");
    let saved = identity(&path);
    fs::rename(file_in(&folder, "other"), &path).unwrap();
    let difference = saved.compare(&identity(&path)).unwrap_err().to_string();
    assert!(
        difference.contains("another backing, a file of 1M"),
        "{difference}"
    );
}

#[test]
fn memory_never_matches() {
    let backend = Backend::open(&Spec::Memory(1 << 20), false).unwrap();
    let [one, two] = [(); 2].map(|()| Identity::of(&backend).unwrap());
    assert_ne!(one, two);
    assert_eq!(one.compare(&one), Err(Difference::Gone));
    let folder = TempDir::new().unwrap();
    let file = identity(&file_in(&folder, "backing"));
    assert!(matches!(file.compare(&one), Err(Difference::Another { .. })));
}

#[test]
fn a_block_device_is_compared_by_name_size_counters_and_content() {
    let saved = block();
    let now = |change: fn(&mut BlockIdentity)| {
        let mut now = block();
        change(&mut now);
        now
    };
    let same = |now| Identity::Block(block()).compare(&Identity::Block(now));
    assert_eq!(same(block()), Ok(()));
    differs(
        &saved,
        now(|d| d.name = Name::new("serial number 8")),
        "serial number 8",
    );
    differs(&saved, now(|d| d.bytes *= 2), "2147483648");
    differs(&saved, now(|d| d.counted.written = 108), "written to");
    differs(&saved, now(|d| d.counted.discarded = 8), "written to");
    differs(&saved, now(|d| d.samples = 8), "samples");
    differs(
        &saved,
        now(|d| d.beside.written = 8),
        "its whole disk was written to",
    );
    // Counters start again with every boot and every disk, and mean nothing then.
    for other in [
        now(|d| (d.boot, d.counted.written) = ([2; 16], 0)),
        now(|d| (d.disk_sequence, d.counted.written) = (13, 0)),
    ] {
        assert_eq!(same(other), Ok(()));
    }
    let unknown = |mut of: BlockIdentity, written| {
        (of.boot, of.counted.written) = ([0; 16], written);
        Identity::Block(of)
    };
    assert_eq!(unknown(block(), 1).compare(&unknown(block(), 2)), Ok(()));
}

#[test]
fn equal_numbers_prove_nothing_where_they_start_again() {
    let proven = |change: fn(&mut BlockIdentity)| {
        let mut now = block();
        change(&mut now);
        let (saved, now) = (Identity::Block(block()), Identity::Block(now));
        assert_eq!(saved.compare(&now), Ok(()));
        assert_eq!(saved.unproven(&now).is_none(), now.unproven(&saved).is_none());
        saved.unproven(&now).is_none()
    };
    assert!(proven(|_| {}));
    assert!(!proven(|d| d.boot = [2; 16]));
    assert!(!proven(|d| d.boot = [0; 16]));
    assert!(!proven(|d| d.disk_sequence = 13));
    assert!(!proven(|d| d.disk_sequence = 0));
    assert!(!proven(|d| d.counts_all = false));
    let mut old = block();
    (old.disk_sequence, old.counts_all) = (0, false);
    assert!(
        Identity::Block(old.clone())
            .unproven(&Identity::Block(old))
            .is_some()
    );
}

#[test]
fn a_loop_device_is_as_its_file_is() {
    let file = FileIdentity {
        bytes: 0,
        inode: 9,
        file_system: [3; 16],
        modified: Stamp {
            seconds: 1,
            nanoseconds: 2,
        },
        changed: Stamp {
            seconds: 3,
            nanoseconds: 4,
        },
        boot: [1; 16],
        exact: true,
    };
    let on = |file: Option<FileIdentity>, disk_sequence| BlockIdentity {
        file,
        disk_sequence,
        counts_all: false,
        ..block()
    };
    let saved = Identity::Block(on(Some(file.clone()), 12));
    // Attached again, it is another disk with the same content.
    let again = Identity::Block(on(Some(file.clone()), 13));
    assert_eq!((saved.compare(&again), saved.unproven(&again)), (Ok(()), None));
    let lost = Identity::Block(on(None, 12));
    assert!(saved.unproven(&lost).is_some() && lost.unproven(&saved).is_some());
    let mut written = file.clone();
    written.changed.nanoseconds += 1;
    differs(
        &on(Some(file.clone()), 12),
        on(Some(written), 12),
        "status-change",
    );
    let mut other = file.clone();
    other.inode += 1;
    differs(&on(Some(file), 12), on(Some(other), 13), "another file");
}

#[test]
fn a_file_proves_itself_within_a_boot_by_exact_time_stamps() {
    let folder = TempDir::new().unwrap();
    let exact = identity(&file_in(&folder, "backing")).with_exact_time_stamps();
    assert_eq!(exact.unproven(&exact), None);
    assert!(exact.unproven(&exact.clone().in_another_boot()).is_some());
    let Identity::File(mut coarse) = exact.clone() else {
        panic!("a file was wanted");
    };
    coarse.exact = false;
    let coarse = Identity::File(coarse);
    assert!(exact.unproven(&coarse).is_some() && coarse.unproven(&exact).is_some());
}

#[test]
fn an_identity_of_an_older_program_is_read_and_proves_nothing() {
    let folder = TempDir::new().unwrap();
    let file = identity(&file_in(&folder, "backing"));
    for (identity, boot) in [(file, 72..88), (Identity::Block(block()), 0..0)] {
        let mut saved = SavedIdentity::new(&identity);
        // Fields that it did not know were zero: a file's boot, and everything after the name.
        let bytes = saved.as_mut_bytes();
        bytes[boot].fill(0);
        bytes[220..].fill(0);
        let old = saved.parse().unwrap();
        assert_eq!(old.compare(&identity), Ok(()));
        assert!(old.unproven(&identity).is_some());
    }
}

#[test]
fn samples_cover_both_ends_and_stay_within() {
    for bytes in [
        512,
        4096,
        64 << 10,
        (64 << 10) + 512,
        128 << 10,
        (128 << 10) + 512,
        1 << 20,
        1 << 30,
        (1 << 40) + 1536,
        1 << 60,
    ] {
        let ranges = sampled_ranges(bytes);
        let end = |&(at, len): &(u64, usize)| at + len as u64;
        assert_eq!(ranges[0].0, 0);
        assert_eq!(ranges.iter().map(end).max(), Some(bytes));
        assert!(ranges.iter().all(|range| range.0.is_multiple_of(512)));
        if bytes >= 1 << 30 {
            assert_eq!(ranges.len(), 66);
            // None is read twice: between the ends they ascend.
            assert!(ranges[2..].windows(2).all(|two| end(&two[0]) <= two[1].0));
            assert!(ranges[2].0 >= END && end(&ranges[65]) <= bytes - END);
        }
    }
}

#[test]
fn a_changed_sample_changes_the_checksum() {
    let file = tempfile::tempfile().unwrap();
    let bytes = 1 << 30;
    file.set_len(bytes).unwrap();
    let mut sums = vec![samples(&file, bytes).unwrap()];
    for (at, len) in sampled_ranges(bytes).into_iter().step_by(13) {
        file.write_all_at(&[1], at + len as u64 - 1).unwrap();
        sums.push(samples(&file, bytes).unwrap());
    }
    assert!(sums.windows(2).all(|two| two[0] != two[1]), "{sums:?}");
}

#[test]
fn identities_are_read_as_they_were_saved_and_nothing_else_is() {
    let folder = TempDir::new().unwrap();
    let memory = Backend::open(&Spec::Memory(1 << 20), false).unwrap();
    for identity in [
        identity(&file_in(&folder, "backing")),
        Identity::Block(block()),
        Identity::of(&memory).unwrap(),
    ] {
        let saved = SavedIdentity::new(&identity);
        assert_eq!(saved.as_bytes().len(), 256);
        assert_eq!(saved.parse(), Some(identity.clone()));
        for at in 0..256 {
            let mut bytes = saved;
            bytes.as_mut_bytes()[at] ^= 0xff;
            assert_ne!(bytes.parse(), Some(identity.clone()), "byte {at}");
        }
        let mut odd = saved;
        odd.kind = 9;
        assert_eq!(odd.parse(), None);
        odd = saved;
        odd.bytes = 513.into();
        assert_eq!(odd.parse(), None);
    }
}

#[test]
fn names_fit_and_are_printable() {
    assert_eq!(Name::new("a\nb").0, "a?b");
    let [one, two] = ["x", "y"].map(|end| Name::new(&format!("{}{end}", "ü".repeat(100))));
    assert!(one != two && one.0.len() <= Name::LEN);
    assert_eq!(Name::parse(one.0.as_bytes()), Some(one));
    assert_eq!(Name::parse(b"a\x1b"), None);
    assert_eq!(Name::parse(b"\xff"), None);
}
