//! A file system on the device: created, filled, checked, and intact when mounted from the backing itself.

use ublk_bpf_guest::{Backing, Device, Mount, backing::drop_caches, run};

#[test]
fn ext4_survives_the_device() {
    let backing = Backing::file("ext4", 256);
    for policy in ["passthrough", "drop-discard", "sparse"] {
        let device = Device::on(&backing, &["--policy", policy, "--queues", "2"]);
        run("mkfs.ext4", &["-q", "-F", device.path_str()]);
        let sums = fill(device.path_str());
        run("e2fsck", &["-f", "-n", device.path_str()]);
        assert_eq!(device.counter("failed"), 0);
        assert!(device.counter("arrived") > 0);
        device.stop();

        drop_caches();
        run("e2fsck", &["-f", "-n", backing.spec()]);
        let mounted = Mount::new(backing.spec(), &["-o", "loop,ro"]);
        assert_eq!(
            mounted.checksums(),
            sums,
            "policy {policy}: the backing holds other files"
        );
    }
}

#[test]
fn ext4_is_clean_on_every_kind_of_backing() {
    for backing in [
        Backing::brd(128),
        Backing::loop_device("ext4", 128),
        Backing::memory("128M"),
    ] {
        let device = Device::on(&backing, &[]);
        run("mkfs.ext4", &["-q", "-F", device.path_str()]);
        let sums = fill(device.path_str());
        run("e2fsck", &["-f", "-n", device.path_str()]);
        let mounted = Mount::new(device.path_str(), &["-o", "ro"]);
        assert_eq!(
            mounted.checksums(),
            sums,
            "{}: other files after a mount",
            backing.spec()
        );
        drop(mounted);
        let stats = device.stats();
        assert_eq!(stats["server"]["failed"], 0, "{}: {stats:#}", backing.spec());
        device.stop();
    }
}

/// Copies a tree onto a new file system, deletes a part of it, trims, and returns the remaining files.
fn fill(device: &str) -> String {
    let mounted = Mount::new(device, &["-o", "discard"]);
    for copy in 0..3 {
        run(
            "cp",
            &["-r", "/lib/modules", &mounted.file(&format!("tree{copy}"))],
        );
    }
    run("sync", &[]);
    run("rm", &["-r", &mounted.file("tree1")]);
    run("fstrim", &[mounted.at()]);
    drop_caches();
    mounted.checksums()
}
