//! Discards, write-zeroes, flushes and forced writes reach the backing, verified on the backing itself.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use ublk_bpf_guest::{Backing, Device, Fio, open, read, run};

const MIB: u64 = 1 << 20;

#[test]
fn discard_makes_a_hole_in_the_file() {
    let backing = Backing::file("discard", 16);
    let device = Device::on(&backing, &[]);
    fill(device.path(), 8 * MIB, 0xa5);
    let path = backing.path().expect("a file");
    let before = allocated(path);
    assert!(before >= 8 * MIB, "only {before} bytes are allocated");
    run(
        "blkdiscard",
        &["-f", "-o", "1048576", "-l", "4194304", device.path_str()],
    );
    assert!(
        allocated(path) <= before - 4 * MIB,
        "{} bytes are still allocated",
        allocated(path)
    );
    assert_content(
        device.path(),
        &[(0, MIB, 0xa5), (MIB, 4 * MIB, 0), (5 * MIB, 3 * MIB, 0xa5)],
    );
    device.stop();
    assert_content(
        path,
        &[(0, MIB, 0xa5), (MIB, 4 * MIB, 0), (5 * MIB, 3 * MIB, 0xa5)],
    );
}

#[test]
fn write_zeroes_reaches_every_backing() {
    for backing in [
        Backing::file("zeroes", 16),
        Backing::brd(16),
        Backing::loop_device("zeroes-loop", 16),
    ] {
        let device = Device::on(&backing, &[]);
        fill(device.path(), 8 * MIB, 0x5a);
        run(
            "blkdiscard",
            &["-f", "-z", "-o", "524288", "-l", "3145728", device.path_str()],
        );
        device.stop();
        let path = backing.path().expect("a path");
        assert_content(
            path,
            &[
                (0, MIB / 2, 0x5a),
                (MIB / 2, 3 * MIB, 0),
                (MIB * 7 / 2, MIB * 9 / 2, 0x5a),
            ],
        );
    }
}

#[test]
fn flush_and_forced_writes_reach_a_disk_with_a_volatile_cache() {
    let disk = cached_disk();
    let device = Device::on(&disk, &[]);
    assert_eq!(read(device.sysfs("queue/write_cache")), "write back");
    let at_first = flushes();
    let file = open(device.path());
    for i in 0..20 {
        file.write_all_at(&[i; 4096], u64::from(i) * 4096).expect("write");
        file.sync_data().expect("flush");
    }
    drop(file);
    let after_fsync = flushes();
    assert!(
        after_fsync >= at_first + 20,
        "20 fsyncs made {} flushes",
        after_fsync - at_first
    );

    // O_DSYNC with O_DIRECT is a forced write where the device has FUA, else a write and a flush.
    assert_eq!(read(device.sysfs("queue/fua")), "1");
    let done = Fio::new(device.path())
        .arg("rw", "write")
        .arg("bs", "4k")
        .arg("size", "400k")
        .arg("sync", "dsync")
        .run();
    assert_eq!(done.writes, 100);
    let forced = flushes() - after_fsync;
    assert!(
        forced >= 100,
        "100 forced writes made {forced} flushes of the disk's cache"
    );
    device.stop();
}

#[test]
fn a_device_reports_its_backings_limits() {
    let disk = cached_disk();
    let device = Device::on(&disk, &[]);
    assert_eq!(read(device.sysfs("size")), attribute("size"));
    assert_eq!(read(device.sysfs("queue/logical_block_size")), "4096");
    assert_eq!(
        read(device.sysfs("queue/rotational")),
        attribute("queue/rotational")
    );
    device.stop();

    let memory = Device::run(&["--backing", "mem:8M"]);
    assert_eq!(read(memory.sysfs("size")), (8 * MIB / 512).to_string());
    assert_eq!(read(memory.sysfs("queue/write_cache")), "write through");
    assert_eq!(read(memory.sysfs("ro")), "0");
    memory.stop();

    let file = Backing::file("readonly", 8);
    let device = Device::on(&file, &["--read-only"]);
    assert_eq!(read(device.sysfs("ro")), "1");
    assert!(
        OpenOptions::new()
            .write(true)
            .open(device.path())
            .and_then(|f| f.write_all_at(&[1], 0))
            .is_err()
    );
    device.stop();
}

/// A disk with 4 KiB blocks and a volatile cache.
fn cached_disk() -> Backing {
    let settings = [
        ("size", "64"),
        ("blocksize", "4096"),
        ("cache_size", "8"),
        // A forced write makes the block layer flush the cache behind it, which can be counted.
        ("fua", "0"),
        ("discard", "1"),
    ];
    Backing::null_blk_with("cached", &settings)
}

/// An attribute of that disk.
fn attribute(name: &str) -> String {
    read(format!("/sys/block/cached/{name}"))
}

/// Flush requests that it completed: the 16th field of its `stat`.
fn flushes() -> u64 {
    let stat = attribute("stat");
    let field = stat.split_whitespace().nth(15);
    field
        .and_then(|field| field.parse().ok())
        .expect("a disk's stat has 17 fields")
}

fn fill(path: &Path, length: u64, byte: u8) {
    let mut file = open(path);
    let chunk = vec![byte; usize::try_from(MIB).expect("a MiB fits")];
    for _ in 0..length / MIB {
        file.write_all(&chunk).expect("write");
    }
    file.sync_all().expect("sync");
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).expect("stat").blocks() * 512
}

/// Asserts the content of ranges (offset, length), without earlier readers' page cache.
fn assert_content(path: &Path, ranges: &[(u64, u64, u8)]) {
    ublk_bpf_guest::backing::drop_caches();
    let mut file = OpenOptions::new()
        .read(true)
        .open(path)
        .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
    for &(offset, length, byte) in ranges {
        let mut content = vec![0; usize::try_from(length).expect("a range fits")];
        file.seek(SeekFrom::Start(offset)).expect("seek");
        file.read_exact(&mut content).expect("read");
        let wrong = content.iter().position(|&b| b != byte);
        assert_eq!(
            wrong,
            None,
            "{}: not {byte:#x} everywhere in {offset}+{length}",
            path.display()
        );
    }
}
