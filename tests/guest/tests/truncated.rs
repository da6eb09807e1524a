//! Backings and caches that become smaller while they are served: what is gone fails, and is never made up.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ublk_bpf_guest::backing::drop_caches;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, refused};
use ublk_bpf_guest::{Backing, Device, run, wait_until};

const MIB: u64 = 1 << 20;

/// The device with direct I/O, so that each request is one of its.
fn direct(device: &Device) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(device.path())
        .unwrap_or_else(|e| panic!("{e}"))
}

/// A page for direct I/O, filled with this byte.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn read_at(file: &File, at: u64) -> Result<u8, Option<i32>> {
    let mut page = Page([0; 4096]);
    let found = file.read_exact_at(&mut page.0, at).map_err(|e| e.raw_os_error());
    found.map(|()| page.0[0])
}

fn write_at(file: &File, at: u64, byte: u8) -> Result<(), Option<i32>> {
    let page = Page([byte; 4096]);
    file.write_all_at(&page.0, at).map_err(|e| e.raw_os_error())
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{e}")).len()
}

/// A backing file at `path` is truncated under a device with each policy, in each way that there is.
fn truncated_under_a_device(path: &str) {
    const EIO: Result<(), Option<i32>> = Err(Some(libc::EIO));
    let path = Path::new(path);
    let ways: [(&str, &dyn Fn()); 3] = [
        ("truncate", &|| {
            drop(run("truncate", &["-s", "4M", &path.display().to_string()]));
        }),
        ("ftruncate", &|| {
            let file = OpenOptions::new().write(true).open(path);
            file.and_then(|file| file.set_len(4 * MIB))
                .unwrap_or_else(|e| panic!("{e}"));
        }),
        ("by the path", &|| {
            let path = std::ffi::CString::new(path.display().to_string()).unwrap_or_else(|e| panic!("{e}"));
            // SAFETY: a C string that lives over the call.
            assert_eq!(unsafe { libc::truncate(path.as_ptr(), 4 << 20) }, 0);
        }),
    ];
    for policy in ["passthrough", "/root/policies/slow.o"] {
        for (way, truncate) in ways {
            File::create(path)
                .and_then(|file| file.set_len(16 * MIB))
                .unwrap_or_else(|e| panic!("{e}"));
            let device = Device::run(&["--backing", &path.display().to_string(), "--policy", policy]);
            let file = direct(&device);
            for at in [0, 8 * MIB, 12 * MIB] {
                assert_eq!(write_at(&file, at, 0x5a), Ok(()));
            }
            truncate();
            // At once, and without a look at anything in between.
            assert_eq!(write_at(&file, 8 * MIB, 1), EIO, "{way}, {policy}");
            assert_eq!(size(path), 4 * MIB, "{way}, {policy}: the file was extended");
            assert_eq!(read_at(&file, 12 * MIB), Err(Some(libc::EIO)), "{way}, {policy}");
            for discard in [
                &["-o", "8388608", "-l", "65536"][..],
                &["-z", "-o", "8388608", "-l", "65536"],
            ] {
                let args = [discard, &[device.path_str()]].concat();
                let output = ublk_bpf_guest::try_run("blkdiscard", &args);
                assert!(!output.status.success(), "{way}, {policy}: blkdiscard {args:?}");
            }
            // What is left is served.
            assert_eq!(read_at(&file, 0), Ok(0x5a));
            assert_eq!(write_at(&file, 4 * MIB - 4096, 2), Ok(()));
            assert_eq!(read_at(&file, 4 * MIB - 4096), Ok(2));
            // What was lost does not come back as zeroes.
            OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|file| file.set_len(16 * MIB))
                .unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(read_at(&file, 8 * MIB), Err(Some(libc::EIO)), "{way}, {policy}");
            let log = format!("/run/ublk-bpf/ublkb{}.log", device.id());
            wait_until("the log tells of it", SOON, || {
                fs::read_to_string(&log)
                    .unwrap_or_default()
                    .contains("was truncated to 4194304 of 16777216 bytes")
            });
            drop(file);
            device.stop();
        }
    }
    fs::remove_file(path).unwrap_or_else(|e| panic!("{e}"));
    nothing_is_left();
}

#[test]
fn a_file_on_tmpfs_that_is_truncated_fails_beyond_its_end() {
    truncated_under_a_device("/tmp/truncated.img");
}

#[test]
fn a_file_on_ext4_that_is_truncated_fails_beyond_its_end() {
    let disk = Backing::file("truncated-fs", 64);
    run("mkfs.ext4", &["-q", "-F", disk.spec()]);
    fs::create_dir_all("/mnt/truncated").unwrap_or_else(|e| panic!("{e}"));
    run("mount", &["-o", "loop", disk.spec(), "/mnt/truncated"]);
    truncated_under_a_device("/mnt/truncated/backing");
    run("umount", &["/mnt/truncated"]);
}

#[test]
fn a_file_that_is_truncated_under_load_stays_so() {
    let path = Path::new("/tmp/loaded.img");
    for round in 0..8 {
        File::create(path)
            .and_then(|file| file.set_len(16 * MIB))
            .unwrap_or_else(|e| panic!("{e}"));
        let device = Device::run(&["--backing", "/tmp/loaded.img", "--queues", "2"]);
        let (over, file) = (AtomicBool::new(false), direct(&device));
        std::thread::scope(|scope| {
            for writer in 0..4_u64 {
                let (over, file) = (&over, &file);
                scope.spawn(move || {
                    let mut at = writer * MIB;
                    while !over.load(Ordering::Relaxed) {
                        // The last page among them: it gives the file its old length back.
                        at = (at + 5 * MIB + 4096) % (16 * MIB);
                        let _ = write_at(file, at, 1);
                        let _ = write_at(file, 16 * MIB - 4096, 1);
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(50 + 7 * round));
            run("truncate", &["-s", "4M", "/tmp/loaded.img"]);
            std::thread::sleep(std::time::Duration::from_millis(100));
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(size(path), 4 * MIB, "round {round}");
        assert_eq!(read_at(&file, 16 * MIB - 4096), Err(Some(libc::EIO)));
        assert_eq!(read_at(&file, 0).map(drop), Ok(()));
        drop(file);
        device.stop();
    }
    fs::remove_file(path).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_truncated_device_is_not_recovered_as_if_it_were_whole() {
    let backing = Backing::file("short", 16);
    let device = Device::on(&backing, &["--recovery", "reissue"]);
    run("truncate", &["-s", "4M", backing.spec()]);
    assert_eq!(write_at(&direct(&device), 8 * MIB, 1), Err(Some(libc::EIO)));
    device.kill_server("waiting");
    let said = refused(&["run", "--daemon", "--recover", &device.id()]);
    assert!(said.contains("4M") && said.contains("16M"), "{said}");
    device.stop();
    nothing_is_left();
}

#[test]
fn a_cache_file_that_is_truncated_is_left() {
    let (backing, cache) = (Backing::file("behind", 32), Backing::file("before", 8));
    let path = backing.path().unwrap_or_else(|| panic!("a file has a path"));
    let whole = vec![0x77; 4 << 20];
    fs::write(path, &whole)
        .and_then(|()| OpenOptions::new().write(true).open(path)?.set_len(32 * MIB))
        .unwrap_or_else(|e| panic!("{e}"));
    let device = Device::on(&backing, &["--cache", cache.spec(), "--policy", "lru"]);
    let file = direct(&device);
    let read_all = || (0..64).all(|block| read_at(&file, block << 16) == Ok(0x77));
    assert!(read_all());
    wait_until("the cache is filled", SOON, || {
        device.stats()["cache"]["promoted"].as_u64() >= Some(32)
    });
    run("truncate", &["-s", "1M", cache.spec()]);
    run("truncate", &["-s", "8M", cache.spec()]);
    // Not a zero of the hole that is there now.
    assert!(read_all());
    wait_until("the cache is left", SOON, || {
        device.show()["cache"]["detached"].is_object()
    });
    assert!(read_all());
    drop(file);
    device.stop();
    nothing_is_left();
}

#[test]
fn a_block_device_that_shrinks_fails_beyond_its_end() {
    let disk = Backing::null_blk("shrinking", 16);
    let mapper = ublk_bpf_guest::Mapper::linear("shrinking", disk.spec());
    let path = mapper.path().display().to_string();
    let device = Device::run(&["--backing", &path]);
    let file = direct(&device);
    assert_eq!(write_at(&file, 12 * MIB, 0x5a), Ok(()));
    mapper.shrink(8192);
    drop_caches();
    // What the kernel answers to a write beyond the end of a block device (blkdev_write_iter).
    assert_eq!(write_at(&file, 12 * MIB, 1), Err(Some(libc::ENOSPC)));
    assert_eq!(read_at(&file, 12 * MIB), Err(Some(libc::EIO)));
    assert_eq!(write_at(&file, 0, 1), Ok(()));
    drop(file);
    device.stop();
    nothing_is_left();
}
