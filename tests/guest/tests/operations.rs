//! Discards, write-zeroes, flushes and forced writes reach the backing, verified on the backing itself.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use ublk_bpf_guest::{Backing, Device, Fio, read, run, write};

const MIB: u64 = 1 << 20;

#[test]
fn discard_makes_a_hole_in_the_file() {
    let backing = Backing::file("discard", 16);
    let device = Device::run(&["--backing", backing.spec()]);
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
        let device = Device::run(&["--backing", backing.spec()]);
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
    let disk = NullBlk::new();
    let device = Device::run(&["--backing", disk.path()]);
    assert_eq!(read(device.sysfs("queue/write_cache")), "write back");
    let flushes = disk.flushes();
    let file = open(device.path());
    for i in 0..20 {
        file.write_all_at(&[i; 4096], u64::from(i) * 4096).expect("write");
        file.sync_data().expect("flush");
    }
    drop(file);
    let after_fsync = disk.flushes();
    assert!(
        after_fsync >= flushes + 20,
        "20 fsyncs made {} flushes",
        after_fsync - flushes
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
    let forced = disk.flushes() - after_fsync;
    assert!(
        forced >= 100,
        "100 forced writes made {forced} flushes of the disk's cache"
    );
    device.stop();
}

#[test]
fn a_device_reports_its_backings_limits() {
    let disk = NullBlk::new();
    let device = Device::run(&["--backing", disk.path()]);
    assert_eq!(read(device.sysfs("size")), read(disk.sysfs("size")));
    assert_eq!(read(device.sysfs("queue/logical_block_size")), "4096");
    assert_eq!(
        read(device.sysfs("queue/rotational")),
        read(disk.sysfs("queue/rotational"))
    );
    device.stop();

    let memory = Device::run(&["--backing", "mem:8M"]);
    assert_eq!(read(memory.sysfs("size")), (8 * MIB / 512).to_string());
    assert_eq!(read(memory.sysfs("queue/write_cache")), "write through");
    assert_eq!(read(memory.sysfs("ro")), "0");
    memory.stop();

    let file = Backing::file("readonly", 8);
    let device = Device::run(&["--backing", file.spec(), "--read-only"]);
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

/// A memory-backed null_blk disk with 4 KiB blocks and a volatile cache.
struct NullBlk;

impl NullBlk {
    const CONFIG: &str = "/sys/kernel/config/nullb/cached";

    fn new() -> Self {
        run("modprobe", &["null_blk", "nr_devices=0"]);
        if !Path::new("/sys/kernel/config/nullb").exists() {
            run("mount", &["-t", "configfs", "none", "/sys/kernel/config"]);
        }
        std::fs::create_dir(Self::CONFIG).expect("cannot make a null_blk disk");
        for (name, value) in [
            ("size", "64"),
            ("blocksize", "4096"),
            ("memory_backed", "1"),
            ("cache_size", "8"),
            // A forced write makes the block layer flush the cache behind it, which can be counted.
            ("fua", "0"),
            ("discard", "1"),
            ("power", "1"),
        ] {
            write(Path::new(Self::CONFIG).join(name), value);
        }
        Self
    }

    #[expect(clippy::unused_self, reason = "there is a disk only while there is a value")]
    fn path(&self) -> &'static str {
        "/dev/cached"
    }

    #[expect(clippy::unused_self, reason = "there is a disk only while there is a value")]
    fn sysfs(&self, file: &str) -> String {
        format!("/sys/block/cached/{file}")
    }

    /// Flush requests that the disk completed: the 16th field of its `stat`.
    fn flushes(&self) -> u64 {
        read(self.sysfs("stat"))
            .split_whitespace()
            .nth(15)
            .and_then(|field| field.parse().ok())
            .expect("a disk's stat has 17 fields")
    }
}

impl Drop for NullBlk {
    fn drop(&mut self) {
        std::fs::remove_dir(Self::CONFIG).expect("cannot remove the null_blk disk");
        run("rmmod", &["null_blk"]);
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
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
