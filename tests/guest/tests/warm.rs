//! A cache across servers: cached data is still there after a stop or a crash, or is not used.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ublk_bpf_guest::cached::{Pair, all_hits, number, read_set, warm};
use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::torture::Report;
use ublk_bpf_guest::{Backing, Device, Torture, backing::drop_caches, run, wait_until};

/// Size of the devices, in MiB.
const MIB: u64 = 80;

#[test]
fn a_clean_stop_keeps_the_cache_warm() {
    let pair = Pair::files(MIB, 16);
    let (device, report) = warmed(&pair, &[]);
    device.stop();
    assert_clean(&pair);

    let device = pair.run(&[]);
    all_hits(&device);
    report.compare(device.path());
    device.stop();
    report.compare(pair.backing.spec());
    assert_clean(&pair);
}

#[test]
fn a_killed_server_leaves_the_cache_warm() {
    let pair = Pair::files(MIB, 16);
    let (device, report) = warmed(&pair, &["--recovery", "reissue"]);
    device.kill_server("waiting");
    device.recover();
    verified(&device);
    assert_eq!(number(&device.stats(), "cache", "differing"), 0);
    all_hits(&device);
    report.compare(device.path());
    // Blocks cached since then are correct too.
    let report = Torture::new(device.path()).operations(2_000).seed(42).run();
    device.stop();
    report.compare(pair.backing.spec());
}

/// One block of a thousand is changed while no server is there: too few for samples, and a read finds the change.
#[test]
fn a_killed_servers_cache_is_compared_with_its_backing_block_by_block() {
    let pair = Pair::files(MIB, 16);
    let (device, _) = warmed(&pair, &["--recovery", "reissue", "--cache-block", "4K"]);
    device.kill_server("waiting");
    let path = pair.backing.path().expect("a file has a path");
    let changes = [change_a_sector(path, 1_234_944), change_a_sector(path, 3_000_320)];
    device.recover();
    for _ in 0..2 {
        read_set(&device);
        changes
            .iter()
            .for_each(|change| change.assert_seen(device.path()));
        verified(&device);
    }
    let stats = device.stats();
    assert_eq!(number(&stats, "cache", "differing"), 2, "{stats:#}");
    assert!(number(&stats, "cache", "verified") > 1000, "{stats:#}");
    device.stop();
}

/// A RAM disk counts no writes, so that nothing tells that it was changed.
#[test]
fn a_disks_saved_cache_is_compared_with_it_block_by_block() {
    let pair = Pair {
        backing: Backing::brd(MIB),
        cache: Backing::file("cache", 16),
    };
    let (device, _) = warmed(&pair, &["--cache-block", "4K"]);
    device.stop();
    let change = change_a_sector(Path::new(pair.backing.spec()), 2_345_984);
    let device = pair.run(&["--cache-block", "4K"]);
    read_set(&device);
    change.assert_seen(device.path());
    verified(&device);
    change.assert_seen(device.path());
    let stats = device.stats();
    assert_eq!(number(&stats, "cache", "differing"), 1, "{stats:#}");
    warm(&device);
    device.stop();
}

#[test]
fn a_server_that_leaves_by_a_signal_leaves_the_cache_warm() {
    let pair = Pair::files(MIB, 16);
    let (device, report) = warmed(&pair, &["--recovery", "reissue"]);
    run("kill", &["-TERM", &device.server()]);
    wait_until("the device waits for a server", SOON, || {
        device.state() == "waiting"
    });
    device.recover();
    all_hits(&device);
    report.compare(device.path());
    device.stop();
    report.compare(pair.backing.spec());
    assert_clean(&pair);
}

#[test]
fn a_cache_is_refused_after_its_backing_changed() {
    let pair = Pair::files(MIB, 16);
    let (device, _) = warmed(&pair, &[]);
    device.stop();
    let block = [0x5a; 4096];
    let path = pair.backing.path().expect("a file has a path");
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.write_all_at(&block, 8192).and_then(|()| file.sync_all()))
        .expect("the backing is written to");
    let said = pair.refused(&[]);
    assert!(said.contains("--cache-reset"), "{said}");

    let device = pair.run(&["--cache-reset"]);
    assert_eq!(device.counter("hits"), 0);
    let mut found = [0; 4096];
    OpenOptions::new()
        .read(true)
        .open(device.path())
        .and_then(|file| file.read_exact_at(&mut found, 8192))
        .expect("the device is read");
    assert!(found == block, "the device serves stale data");
    warm(&device);
    device.stop();
    let device = pair.run(&[]);
    all_hits(&device);
    device.stop();
}

#[test]
fn a_cache_is_refused_for_another_backing() {
    let pair = Pair::files(MIB, 16);
    let (device, report) = warmed(&pair, &[]);
    device.stop();
    let other = Pair {
        backing: Backing::file("other", MIB),
        cache: pair.cache,
    };
    let said = other.refused(&[]);
    assert!(said.contains("--cache-reset"), "{said}");
    let device = other.run(&["--cache-reset"]);
    Torture::new(device.path()).operations(1_000).seed(43).run();
    device.stop();
    report.compare(pair.backing.spec());
}

/// A device with what a torture left on it, its set cached.
fn warmed(pair: &Pair, more: &[&str]) -> (Device, Report) {
    let device = pair.run(more);
    let report = Torture::new(device.path()).operations(2_000).seed(41).run();
    warm(&device);
    (device, report)
}

/// Waits until no block of an earlier server is left to be compared with the backing.
fn verified(device: &Device) {
    wait_until("every block is verified", 4 * SOON, || {
        device.show()["cache"]["unverified"] == 0
    });
}

/// A sector that was written beside the device.
struct Change {
    offset: u64,
    content: [u8; 512],
}

/// Inverts a sector of a backing.
fn change_a_sector(path: &Path, offset: u64) -> Change {
    let mut content = [0; 512];
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.and_then(|file| {
        file.read_exact_at(&mut content, offset)?;
        content.iter_mut().for_each(|byte| *byte = !*byte);
        file.write_all_at(&content, offset)?;
        file.sync_all()
    })
    .unwrap_or_else(|error| panic!("cannot change {}: {error}", path.display()));
    Change { offset, content }
}

impl Change {
    /// Panics unless a read of the device finds it.
    fn assert_seen(&self, device: &Path) {
        drop_caches();
        let mut found = [0; 512];
        OpenOptions::new()
            .read(true)
            .open(device)
            .and_then(|file| file.read_exact_at(&mut found, self.offset))
            .expect("the device is read");
        assert!(
            found == self.content,
            "byte {}: the device serves what was there before",
            self.offset
        );
    }
}

/// Asserts that the cache is marked clean.
fn assert_clean(pair: &Pair) {
    let said = run("ublk-bpf", &["cache", "inspect", pair.cache.spec()]);
    let denied = ["unclean", "not clean"].iter().any(|words| said.contains(words));
    assert!(said.contains("clean") && !denied, "{said}");
}
