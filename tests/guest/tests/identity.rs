//! Detection of a different or changed backing of a saved cache, on real file systems and devices.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use ublk_bpf::backend::fingerprint::{Difference, Identity};
use ublk_bpf::backend::{Backend, Spec};
use ublk_bpf::cache::disk::{self, Layout, Opened, SavedEntry};
use ublk_bpf_guest::backing::drop_caches;
use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::{Backing, Device, Mapper, run, wait_until, write};

fn identity(path: &Path) -> Identity {
    let spec = Spec::Path(path.to_owned());
    let target = Backend::open(&spec, false).unwrap_or_else(|error| panic!("{error}"));
    Identity::of(&target).expect("the target can be read")
}

/// Whether the backing at this path is proven to hold what it held.
fn is_proven(saved: &Identity, path: &Path) -> bool {
    let now = identity(path);
    assert_eq!(saved.compare(&now), Ok(()), "{saved}");
    saved.unproven(&now).is_none()
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
        let target = Backend::open(&Spec::Path(cache.spec().into()), false).unwrap();
        let opened = disk::open(target.file().unwrap(), &layout, &identity(path));
        (target, opened)
    };
    let entry = SavedEntry {
        slot: 9,
        block: 700,
        priority: 1,
        heat: 2,
        valid: 0x8001,
    };
    let (target, opened) = open();
    assert_eq!(opened.unwrap().opened, Opened::New);
    disk::save(
        target.file().unwrap(),
        &layout,
        &identity(path),
        None,
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
    assert_eq!(opened.unwrap().opened, Opened::Warm(vec![entry]));
    disk::save(
        target.file().unwrap(),
        &layout,
        &identity(path),
        None,
        std::iter::once(entry),
    )
    .unwrap();
    drop(target);
    write_sector(path);
    let message = open().1.unwrap_err().to_string();
    assert!(message.contains("the device was written to"), "{message}");
}

#[test]
fn a_disk_that_counts_everything_proves_itself_until_it_is_made_anew() {
    let disk = Backing::null_blk("counts", 64);
    let path = Path::new("/dev/counts");
    write_sector(path);
    let saved = identity(path);
    fs::read(path).unwrap();
    drop_caches();
    assert!(is_proven(&saved, path));
    write("/sys/block/counts/queue/iostats", "0");
    assert!(!is_proven(&saved, path));
    write("/sys/block/counts/queue/iostats", "1");
    assert!(is_proven(&saved, path));
    drop(disk);
    // The same name, size, counters and samples, and another content.
    let disk = Backing::null_blk("counts", 64);
    let at = (33 << 20) + 512;
    let file = File::options().write(true).open(disk.spec()).unwrap();
    file.write_all_at(&[0xa5; 512], at).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(!is_proven(&saved, path));
}

#[test]
fn a_partition_is_changed_through_its_whole_disk() {
    let disk = Backing::null_blk("parts", 96);
    let path = disk.path().unwrap();
    // Two partitions of 40 MiB, by the table that every kernel reads.
    let entry = |start: u32, sectors: u32| {
        let mut entry = [0; 16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
        entry
    };
    let mut table = [0; 512];
    table[446..462].copy_from_slice(&entry(2048, 40 << 11));
    table[462..478].copy_from_slice(&entry(2048 + (40 << 11), 40 << 11));
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&table, 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    run("blockdev", &["--rereadpt", disk.spec()]);
    let [one, two] = ["/dev/parts1", "/dev/parts2"].map(Path::new);
    wait_until("the partitions are there", SOON, || two.exists());
    let saved = identity(one);
    assert!(is_proven(&saved, one));
    // The other partition's writes are its own.
    write_sector(two);
    assert!(is_proven(&saved, one));
    // This one goes into the first partition, past it.
    write_sector(path);
    let noticed = saved.compare(&identity(one));
    assert!(
        matches!(noticed, Err(Difference::Changed(_))),
        "{saved}: {noticed:?}"
    );
}

#[test]
fn a_loop_device_proves_what_its_file_does() {
    let disk = Backing::loop_device("looped", 64);
    let path = disk.path().unwrap();
    let saved = identity(path);
    assert!(is_proven(&saved, path));
    // Attached again, to the same file.
    run("losetup", &["-d", disk.spec()]);
    run("losetup", &[disk.spec(), "/tmp/looped.img"]);
    assert!(is_proven(&saved, path));
    // Written past it.
    write_sector(Path::new("/tmp/looped.img"));
    let noticed = saved.compare(&identity(path));
    assert!(
        matches!(noticed, Err(Difference::Changed(_))),
        "{saved}: {noticed:?}"
    );
}

#[test]
fn devices_that_are_put_together_prove_nothing() {
    let below = Backing::loop_device("below", 64);
    let mapper = Mapper::linear("anew", below.spec());
    let path = mapper.path();
    let saved = identity(&path);
    assert!(!is_proven(&saved, &path));
    drop(mapper);
    let mapper = Mapper::linear("anew", below.spec());
    assert!(!is_proven(&saved, &mapper.path()));
    drop(mapper);
    let disk = Backing::brd(64);
    let saved = identity(Path::new(disk.spec()));
    assert!(!is_proven(&saved, Path::new(disk.spec())));
    drop(disk);
    let disk = Backing::brd(64);
    assert!(!is_proven(&saved, Path::new(disk.spec())));
}

#[test]
fn a_cache_does_not_serve_what_a_device_held_before_it_was_made_anew() {
    let below = [
        Backing::loop_device("before", 64),
        Backing::loop_device("after", 64),
    ];
    let cache = Backing::file("anew-cache", 16);
    write_sector(Path::new(below[1].spec()));
    let served = |below: &Backing| {
        let mapper = Mapper::linear("anew", below.spec());
        let path = mapper.path().display().to_string();
        let options = ["--backing", &path, "--cache", cache.spec(), "--policy", "lru"];
        let device = Device::run(&options);
        let read_sector = || {
            drop_caches();
            let mut found = [0; 512];
            File::open(device.path())
                .and_then(|file| file.read_exact_at(&mut found, (32 << 20) + 512))
                .expect("the device is read");
            found[0]
        };
        // The first read, before anything is compared, and reads that hit.
        let mut found = vec![read_sector()];
        wait_until("the sector is cached", SOON, || {
            found.push(read_sector());
            device.counter("hits") > 0
        });
        device.stop();
        drop(mapper);
        found.dedup();
        found
    };
    assert_eq!(served(&below[0]), [0]);
    assert_eq!(served(&below[1]), [0x5a]);
}
