//! Targets on the file systems of the machine that runs the tests.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use tempfile::TempDir;

use super::*;

fn open(path: &Path, read_only: bool) -> Result<Backend, BackendError> {
    Backend::open(&Spec::Path(path.to_owned()), read_only)
}

fn refusal(path: &Path) -> String {
    let message = open(path, false).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn file_of(folder: &TempDir, bytes: u64) -> std::path::PathBuf {
    let path = folder.path().join("backing");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

fn data_ranges(backend: &Backend) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    backend.for_each_data_range(|range| found.push(range)).unwrap();
    found
}

#[test]
fn a_file_tells_its_size_and_promises_no_more_than_it_keeps() {
    let folder = TempDir::new().unwrap();
    let backend = open(&file_of(&folder, 1 << 20), false).unwrap();
    assert_eq!(backend.kind(), BackingKind::File);
    let facts = backend.facts();
    assert_eq!(facts.sectors, 2048);
    assert!(facts.volatile_cache && !facts.read_only);
    assert!(facts.logical_block.is_power_of_two() && facts.physical_block >= facts.logical_block);
    assert!(facts.memory_align.is_power_of_two() && (4..=4096).contains(&facts.memory_align));
}

#[test]
fn probing_leaves_a_file_as_it_was() {
    let folder = TempDir::new().unwrap();
    let path = file_of(&folder, 1 << 20);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[7; 4096], 8192)
        .unwrap();
    let before = fs::read(&path).unwrap();
    let stamps = |found: fs::Metadata| {
        [
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec(),
        ]
    };
    let stamped = stamps(fs::metadata(&path).unwrap());
    // Longer than the coarsest clock that a file system stamps with.
    std::thread::sleep(std::time::Duration::from_millis(20));
    drop(open(&path, false).unwrap());
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(stamps(fs::metadata(&path).unwrap()), stamped);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn holes_of_a_sparse_file_are_known() {
    let folder = TempDir::new().unwrap();
    let path = file_of(&folder, 1 << 20);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[7; 4096], 64 << 10).unwrap();
    file.write_all_at(&[7; 4096], 512 << 10).unwrap();
    let ranges = data_ranges(&open(&path, false).unwrap());
    let covered = |at: u64| ranges.iter().any(|range| range.contains(&at));
    assert!(covered(64 << 10) && covered((64 << 10) + 4095) && covered(512 << 10));
    assert!(!covered(0) && !covered(256 << 10) && !covered((1 << 20) - 1));
}

#[test]
fn what_cannot_serve_is_refused_in_one_line() {
    let folder = TempDir::new().unwrap();
    assert!(refusal(folder.path()).contains("is a directory"));
    assert!(refusal(Path::new("/dev/null")).contains("is a character device"));
    assert!(refusal(&folder.path().join("nothing")).contains("does not exist"));
    assert!(refusal(&file_of(&folder, 0)).contains("is empty"));
    let unaligned = refusal(&file_of(&folder, (1 << 20) + 1));
    assert!(
        unaligned.contains("1048577 bytes is not a multiple") && unaligned.contains("truncate -s 10"),
        "{unaligned}"
    );
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    // A proc file is a regular file that takes no O_DIRECT.
    assert!(refusal(Path::new("/proc/self/comm")).contains("O_DIRECT"));
}

#[test]
fn a_file_serves_one_writer_or_many_readers() {
    let folder = TempDir::new().unwrap();
    let path = file_of(&folder, 1 << 20);
    let writer = open(&path, false).unwrap();
    assert!(refusal(&path).contains("in use"));
    assert!(open(&path, true).unwrap_err().to_string().contains("in use"));
    drop(writer);
    let _readers = [open(&path, true).unwrap(), open(&path, true).unwrap()];
    assert!(refusal(&path).contains("in use"));
}

#[test]
fn a_file_without_a_write_bit_is_read_only() {
    let folder = TempDir::new().unwrap();
    let path = file_of(&folder, 1 << 20);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let facts = open(&path, false).unwrap().facts().clone();
    assert!(facts.read_only && facts.discard.is_none() && facts.write_zeroes.is_none());
}

#[test]
fn memory_is_empty_and_gives_space_back() {
    let backend = Backend::open(&Spec::Memory(1 << 20), false).unwrap();
    assert_eq!(backend.facts().sectors, 2048);
    assert!(!backend.facts().volatile_cache);
    assert_eq!(backend.facts().discard.unwrap().how, DiscardBy::PunchHole);
    assert_eq!(data_ranges(&backend), []);
    backend.file().unwrap().write_all_at(&[1], 5000).unwrap();
    assert!(data_ranges(&backend).into_iter().eq(std::iter::once(4096..8192)));
}

#[test]
fn memory_beyond_all_bounds_is_refused_or_harmless() {
    // It takes no pages until it is written, so a large size is fine.
    let backend = Backend::open(&Spec::Memory(1 << 50), false).unwrap();
    assert_eq!(backend.facts().sectors, 1 << 41);
}

#[test]
fn a_null_target_reads_as_zeroes_only_if_it_fills() {
    let open = |reads| {
        Backend::open(
            &Spec::Null {
                bytes: 1 << 20,
                reads,
            },
            false,
        )
        .unwrap()
    };
    assert_eq!(data_ranges(&open(NullReads::Zeroes)), []);
    assert!(
        data_ranges(&open(NullReads::Unfilled))
            .into_iter()
            .eq(std::iter::once(0..1 << 20))
    );
    assert!(open(NullReads::Zeroes).file().is_none());
}

#[test]
fn every_target_makes_parameters_that_the_kernel_takes() {
    let folder = TempDir::new().unwrap();
    for spec in [
        Spec::Path(file_of(&folder, 1 << 20)),
        Spec::Memory(1 << 20),
        Spec::Null {
            bytes: 512,
            reads: NullReads::Zeroes,
        },
    ] {
        for read_only in [false, true] {
            let backend = Backend::open(&spec, read_only).unwrap();
            let params = backend.facts().params(1 << 20);
            params.check(1 << 20).unwrap();
            assert_eq!(
                (params.read_only, params.discard.is_some() && read_only),
                (read_only, false)
            );
            assert_eq!(params.fua, params.volatile_cache);
        }
    }
}
