//! Devices that grow with their backing while they are used.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::json;
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

fn byte_at(device: &Device, offset: u64) -> u8 {
    let mut byte = [0];
    let read = open(device.path()).read_exact_at(&mut byte, offset);
    read.unwrap_or_else(|e| panic!("{e}"));
    byte[0]
}

#[test]
fn a_file_system_grows_under_load_with_its_file() {
    let backing = Backing::file("grown", 64);
    let device = Device::on(&backing, &["--recovery", "reissue", "--policy", "sparse"]);
    let id = device.id();
    let job = Fio::verify(device.path())
        .arg("iodepth", "16")
        .arg("size", "32m")
        .arg("rate", "4m")
        .start();
    assert_eq!(
        run("ublk-bpf", &["resize", &id]),
        format!("ublkb{id} has 64M already\n")
    );
    // What another program wrote behind the end is data, whatever the policy thinks of holes.
    append(backing.spec(), 33, 0x5a);
    assert_eq!(
        run("ublk-bpf", &["resize", &id]),
        format!("ublkb{id} has grown from 64M to 97M\n")
    );
    assert_eq!(size(&device), 97 * MIB);
    assert_eq!(device.show()["size"], 97 * MIB);
    assert_eq!(device.show()["changed"], json!({"size": "64M"}));
    for offset in [64 * MIB, 64 * MIB + 4096, 97 * MIB - 1] {
        assert_eq!(byte_at(&device, offset), 0x5a, "{offset}");
    }
    Fio::verify(device.path())
        .arg("offset", "40m")
        .arg("size", "57m")
        .run();
    job.finish();

    // A part of what is there, on a file that is sparse now.
    run("truncate", &["-s", "256M", backing.spec()]);
    run("ublk-bpf", &["resize", &id, "128M"]);
    assert_eq!(size(&device), 128 * MIB);
    assert_eq!(byte_at(&device, 127 * MIB), 0);

    // The next server has the new size, and the policy with its maps.
    device.kill_server("waiting");
    run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
    assert_eq!(
        (size(&device), device.show()["size"].clone()),
        (128 * MIB, json!(128 * MIB))
    );
    assert_eq!(device.show()["policy"], "sparse");
    let log = read(format!("/run/ublk-bpf/ublkb{id}.log"));
    assert!(!log.contains("loading a new classifier"), "{log}");
    Fio::verify(device.path())
        .arg("offset", "100m")
        .arg("size", "28m")
        .run();

    run("mkfs.ext4", &["-q", device.path_str(), "64M"]);
    let folder = Path::new("/mnt/grown");
    fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{e}"));
    run("mount", &[device.path_str(), "/mnt/grown"]);
    fs::write(folder.join("file"), "kept").unwrap_or_else(|e| panic!("{e}"));
    run("ublk-bpf", &["resize", &id, "256M"]);
    run("resize2fs", &[device.path_str()]);
    let large = vec![0x33; 150 << 20];
    fs::write(folder.join("large"), &large).unwrap_or_else(|e| panic!("{e}"));
    run("umount", &["/mnt/grown"]);
    run("e2fsck", &["-fn", device.path_str()]);
    run("mount", &[device.path_str(), "/mnt/grown"]);
    assert_eq!(read(folder.join("file")), "kept");
    assert!(fs::read(folder.join("large")).unwrap_or_else(|e| panic!("{e}")) == large);
    run("umount", &["/mnt/grown"]);
    device.stop();
    nothing_is_left();
}

#[test]
fn a_loop_device_grows() {
    let file = Backing::file("under-loop", 16);
    let disk = run("losetup", &["--show", "--direct-io=on", "-f", file.spec()])
        .trim()
        .to_owned();
    let device = Device::run(&["--backing", &disk]);
    append(file.spec(), 16, 0x77);
    let id = device.id();
    assert_eq!(
        run("ublk-bpf", &["resize", &id]),
        format!("ublkb{id} has 16M already\n")
    );
    run("losetup", &["-c", &disk]);
    run("ublk-bpf", &["resize", &id]);
    assert_eq!(size(&device), 32 * MIB);
    assert_eq!(byte_at(&device, 20 * MIB), 0x77);
    Fio::verify(device.path()).run();
    device.stop();
    run("losetup", &["-d", &disk]);
    nothing_is_left();
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let backing = Backing::file("refused", 64);
    let device = Device::on(&backing, &[]);
    let id = device.id();
    for (size, words) in [
        ("32M", "has 64M and cannot shrink to 32M"),
        ("128M", "its backing"),
        ("67109000", "are not whole blocks"),
    ] {
        let said = refused(&["resize", &id, size]);
        assert!(said.contains(words), "{said}");
    }
    // Lost for good, even if the file is larger again.
    run("truncate", &["-s", "80M", backing.spec()]);
    run("truncate", &["-s", "72M", backing.spec()]);
    run("truncate", &["-s", "128M", backing.spec()]);
    let said = refused(&["resize", &id]);
    assert!(said.contains("was truncated to 75497472 bytes"), "{said}");
    assert_eq!(size(&device), 64 * MIB);
    assert_eq!(device.show()["changed"], json!({}));
    device.stop();

    let memory = Device::run(&["--backing", "mem:8M"]);
    let said = refused(&["resize", &memory.id(), "16M"]);
    assert!(said.contains("is on mem:8M: only a device on a file"), "{said}");
    memory.stop();
    let device = Device::on(&backing, &["--cache", "mem:16M"]);
    File::options()
        .write(true)
        .open(backing.spec())
        .and_then(|file| file.set_len(256 << 20))
        .unwrap_or_else(|e| panic!("{e}"));
    let said = refused(&["resize", &device.id()]);
    assert!(said.contains("whose index covers 128M and cannot grow"), "{said}");
    assert_eq!(size(&device), 128 * MIB);
    device.stop();
    nothing_is_left();
}
