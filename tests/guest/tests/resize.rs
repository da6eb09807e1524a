//! Devices that grow with their backing while they are used.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::json;
use ublk_bpf_guest::fio::Running;
use ublk_bpf_guest::leftover::{nothing_is_left, refused};
use ublk_bpf_guest::{Backing, Device, Fio, open, read, run};

const MIB: u64 = 1 << 20;

/// Makes a file larger, with this byte in all that is new.
fn append(path: &str, mib: usize, byte: u8) {
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap_or_else(|e| panic!("{e}"));
    let end = file.metadata().unwrap_or_else(|e| panic!("{e}")).len();
    let written = file
        .write_all_at(&vec![byte; mib << 20], end)
        .and_then(|()| file.sync_all());
    written.unwrap_or_else(|e| panic!("{e}"));
}

/// The size of the disk, as the kernel has it.
fn size(device: &Device) -> u64 {
    read(device.sysfs("size")).parse::<u64>().unwrap_or_default() * 512
}

fn byte_at(path: &Path, offset: u64) -> u8 {
    let mut byte = [0];
    let read = open(path).read_exact_at(&mut byte, offset);
    read.unwrap_or_else(|e| panic!("{e}"));
    byte[0]
}

/// Writes and verifies the first half of a device for some seconds.
fn load(device: &Device) -> Running {
    Fio::verify(device.path())
        .arg("iodepth", "16")
        .arg("size", "32m")
        .arg("rate", "4m")
        .start()
}

#[test]
fn a_file_system_grows_under_load_with_its_block_device() {
    let file = Backing::file("under-loop", 64);
    let disk = run("losetup", &["--show", "--direct-io=on", "-f", file.spec()])
        .trim()
        .to_owned();
    let device = Device::run(&["--backing", &disk, "--recovery", "reissue", "--policy", "sparse"]);
    let id = device.id();
    let job = load(&device);
    append(file.spec(), 33, 0x5a);
    assert_eq!(
        run("ublk-bpf", &["resize", &id]),
        format!("ublkb{id} has 64M already\n")
    );
    run("losetup", &["-c", &disk]);
    assert_eq!(
        run("ublk-bpf", &["resize", &id]),
        format!("ublkb{id} has grown from 64M to 97M\n")
    );
    assert_eq!(
        (size(&device), device.show()["size"].clone()),
        (97 * MIB, json!(97 * MIB))
    );
    assert_eq!(device.show()["changed"], json!({"size": "64M"}));
    for offset in [64 * MIB, 64 * MIB + 4096, 97 * MIB - 1] {
        assert_eq!(byte_at(device.path(), offset), 0x5a, "{offset}");
    }
    Fio::verify(device.path())
        .arg("offset", "40m")
        .arg("size", "57m")
        .run();
    job.finish();

    // The next server has the new size, and the policy with its maps.
    device.kill_server("waiting");
    run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
    assert_eq!(
        (size(&device), device.show()["size"].clone()),
        (97 * MIB, json!(97 * MIB))
    );
    assert_eq!(device.show()["policy"], "sparse");
    let log = read(format!("/run/ublk-bpf/ublkb{id}.log"));
    assert!(!log.contains("loading a new classifier"), "{log}");

    run("mkfs.ext4", &["-q", device.path_str(), "64M"]);
    fs::create_dir_all("/mnt/grown").unwrap_or_else(|e| panic!("{e}"));
    run("mount", &[device.path_str(), "/mnt/grown"]);
    fs::write("/mnt/grown/file", "kept").unwrap_or_else(|e| panic!("{e}"));
    run("truncate", &["-s", "256M", file.spec()]);
    run("losetup", &["-c", &disk]);
    run("ublk-bpf", &["resize", &id, "192M"]);
    run("resize2fs", &[device.path_str()]);
    let large = vec![0x33; 100 << 20];
    fs::write("/mnt/grown/large", &large).unwrap_or_else(|e| panic!("{e}"));
    run("umount", &["/mnt/grown"]);
    run("e2fsck", &["-fn", device.path_str()]);
    run("mount", &[device.path_str(), "/mnt/grown"]);
    assert_eq!(read("/mnt/grown/file"), "kept");
    assert!(fs::read("/mnt/grown/large").unwrap_or_else(|e| panic!("{e}")) == large);
    run("umount", &["/mnt/grown"]);
    for (wanted, words) in [
        ("64M", "has 192M and cannot shrink to 64M"),
        ("512M", "its backing"),
    ] {
        let said = refused(&["resize", &id, wanted]);
        assert!(said.contains(words), "{said}");
    }
    device.stop();
    run("losetup", &["-d", &disk]);
    nothing_is_left();
}

#[test]
fn a_device_on_a_file_grows_with_it_and_not_past_a_truncation() {
    let file = Backing::file("grown", 64);
    let device = Device::run(&["--backing", file.spec(), "--recovery", "reissue", "--queues", "2"]);
    let id = device.id();
    let job = load(&device);
    for (mib, byte, from, to) in [(33, 0x5a, "64M", "97M"), (31, 0x77, "97M", "128M")] {
        append(file.spec(), mib, byte);
        assert_eq!(
            run("ublk-bpf", &["resize", &id]),
            format!("ublkb{id} has grown from {from} to {to}\n")
        );
    }
    for (offset, byte) in [
        (64 * MIB, 0x5a),
        (97 * MIB - 1, 0x5a),
        (97 * MIB, 0x77),
        (128 * MIB - 1, 0x77),
    ] {
        assert_eq!(byte_at(device.path(), offset), byte, "{offset}");
    }
    Fio::verify(device.path())
        .arg("offset", "40m")
        .arg("size", "88m")
        .run();
    job.finish();
    device.kill_server("waiting");
    device.recover();
    assert_eq!(size(&device), 128 * MIB);
    let in_file = byte_at(Path::new(file.spec()), 127 * MIB);
    assert_eq!(byte_at(device.path(), 127 * MIB), in_file);

    // Larger again, but not what it was: it stays lost, and the device does not grow.
    run("truncate", &["-s", "96M", file.spec()]);
    run("truncate", &["-s", "256M", file.spec()]);
    let said = refused(&["resize", &id]);
    assert!(said.contains("was truncated by another program"), "{said}");
    assert_eq!(size(&device), 128 * MIB);
    let beyond = open(device.path()).read_exact_at(&mut [0; 512], 100 * MIB);
    assert!(beyond.is_err(), "what was lost reads as something");
    device.stop();
    nothing_is_left();
}

#[test]
fn what_cannot_grow_is_refused_and_stays_as_it_is() {
    let backing = Backing::file("refused", 64);
    for (options, words) in [
        (
            &["--backing", "mem:8M"][..],
            "is on mem:8M: only a device on a block device or a file",
        ),
        (&["--backing", backing.spec()], "make that larger first"),
        (
            &["--backing", backing.spec(), "--cache", "mem:16M"],
            "whose index covers 64M and cannot grow",
        ),
    ] {
        let device = Device::run(options);
        let before = size(&device);
        let said = refused(&["resize", &device.id(), "128M"]);
        assert!(said.contains(words), "{said}");
        assert_eq!(
            (size(&device), device.show()["changed"].clone()),
            (before, json!({}))
        );
        device.stop();
    }
    nothing_is_left();
}
