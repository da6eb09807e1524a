//! Detection of a different or changed backing of a saved cache, on real file systems and devices.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use ublk_bpf::cache::disk::{self, Layout, Opened, SavedEntry};
use ublk_bpf::target::fingerprint::{Difference, Identity};
use ublk_bpf::target::{Spec, Target};
use ublk_bpf_guest::backing::drop_caches;
use ublk_bpf_guest::{Backing, run};

fn identity(path: &Path) -> Identity {
    let spec = Spec::Path(path.to_owned());
    let target = Target::open(&spec, false).unwrap_or_else(|error| panic!("{error}"));
    Identity::of(&target).expect("the target can be read")
}

/// Writes one sector that is not sampled, bypassing the file system if there is one.
fn write_sector(path: &Path) {
    let file = File::options().write(true).open(path).expect("it is there");
    file.write_all_at(&[0x5a; 512], (32 << 20) + 512)
        .expect("it can be written");
    file.sync_all().expect("it can be written");
}

#[test]
fn a_device_keeps_its_identity_until_it_is_written() {
    for backing in [Backing::brd(128), Backing::loop_device("identity", 128)] {
        let path = backing.path().unwrap();
        let saved = identity(path);
        fs::read(path).unwrap();
        drop_caches();
        assert_eq!(saved.compare(&identity(path)), Ok(()), "{saved}");
        // brd does not count I/O, so a change of a sector that is not sampled goes unnoticed.
        if backing.spec() != "/dev/ram0" {
            write_sector(path);
            let noticed = saved.compare(&identity(path));
            assert!(
                matches!(noticed, Err(Difference::Changed(_))),
                "{saved}: {noticed:?}"
            );
        }
        let saved = identity(path);
        run("mkfs.ext4", &["-q", "-F", backing.spec()]);
        assert!(saved.compare(&identity(path)).is_err(), "{saved}");
    }
}

#[test]
fn devices_of_the_same_size_have_different_identities() {
    let (one, two) = (Backing::loop_device("one", 64), Backing::loop_device("two", 64));
    let difference = identity(one.path().unwrap())
        .compare(&identity(two.path().unwrap()))
        .unwrap_err()
        .to_string();
    assert!(
        difference.contains("/tmp/one.img") && difference.contains("/tmp/two.img"),
        "{difference}"
    );
}

#[test]
fn a_file_on_ext4_keeps_its_identity_over_a_mount_until_it_is_written() {
    let disk = Backing::file("fs", 128);
    run("mkfs.ext4", &["-q", "-F", disk.spec()]);
    let at = Path::new("/tmp/identity");
    fs::create_dir_all(at).unwrap();
    let mounted = |work: &dyn Fn(&Path) -> Identity| {
        run("mount", &["-o", "loop", disk.spec(), "/tmp/identity"]);
        let found = work(&at.join("backing"));
        run("umount", &["/tmp/identity"]);
        found
    };
    let saved = mounted(&|path| {
        File::create(path).unwrap().set_len(64 << 20).unwrap();
        run("sync", &[]);
        identity(path)
    });
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(saved.compare(&mounted(&identity)), Ok(()), "{saved}");
    assert!(saved.to_string().contains("of file system "), "{saved}");
    let written = mounted(&|path| {
        write_sector(path);
        identity(path)
    });
    assert!(matches!(saved.compare(&written), Err(Difference::Changed(_))));
    fs::remove_dir(at).unwrap();
}

#[test]
fn a_block_device_keeps_a_cache() {
    let (cache, backing) = (
        Backing::loop_device("cache", 64),
        Backing::loop_device("cached", 128),
    );
    let path = backing.path().unwrap();
    let layout = Layout::plan(64 << 20, 64 << 10).unwrap();
    let open = || {
        let target = Target::open(&Spec::Path(cache.spec().into()), false).unwrap();
        let opened = disk::open(target.file().unwrap(), &layout, &identity(path));
        (target, opened)
    };
    let entry = SavedEntry {
        slot: 9,
        block: 700,
        priority: 1,
        heat: 2,
    };
    let (target, opened) = open();
    assert_eq!(opened.unwrap(), Opened::New);
    disk::save(
        target.file().unwrap(),
        &layout,
        &identity(path),
        std::iter::once(entry),
    )
    .unwrap();
    drop(target);
    let told = run("ublk-bpf", &["cache", "inspect", cache.spec()]);
    assert!(
        told.contains("clean") && told.contains("a block device of 128M (loop device on /tmp/cached.img)"),
        "{told}"
    );
    drop_caches();
    let (target, opened) = open();
    assert_eq!(opened.unwrap(), Opened::Warm(vec![entry]));
    disk::save(
        target.file().unwrap(),
        &layout,
        &identity(path),
        std::iter::once(entry),
    )
    .unwrap();
    drop(target);
    write_sector(path);
    let message = open().1.unwrap_err().to_string();
    assert!(message.contains("the device was written to"), "{message}");
}
