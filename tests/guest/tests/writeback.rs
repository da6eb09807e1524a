//! Write-back: writes that end in the cache, and what becomes of them.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ublk_bpf_guest::aligned::Aligned;
use ublk_bpf_guest::cached::Pair;
use ublk_bpf_guest::direct::{BLOCK, first_block, open, write_first_block};
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, refused};
use ublk_bpf_guest::torture::Report;
use ublk_bpf_guest::{Backing, Device, Mapper, Torture, backing::drop_caches, read, run, wait_until};

/// Size of the devices, in MiB.
const MIB: u64 = 40;
const BACK: [&str; 2] = ["--cache-mode", "write-back"];
/// What is written and stays dirty.
const DIRTY: [u8; BLOCK] = [7; BLOCK];
/// Writes between two flushes: so many take less than a second even on a busy machine, and so many may not.
const FEW: u64 = 48;
const MANY: u64 = 1000;
/// How often something is tried until the mover did nothing beside it.
const MOST_TRIES: u64 = 5;
/// Where pairs with dirty blocks are on record.
const RECORDS: &str = "/var/lib/ublk-bpf";

#[test]
fn what_is_dirty_outlives_its_server() {
    let disks = Disks::new();
    let device = disks.run(&BACK);
    let report = Torture::new(device.path()).operations(2_000).seed(41).run();
    assert!(device.counter("absorbed") > 500, "{:#}", device.stats());
    let before = disks.dirty(&device);
    device.stop();
    assert_eq!(records(), 1);

    let device = disks.run(&BACK);
    assert!(first_block(device.path()) == DIRTY);
    device.stop();
    disks.backing.heal();
    let device = disks.run(&[]);
    assert!(first_block(device.path()) == DIRTY);
    wait_until("it is written back", 4 * SOON, || {
        first_block(&disks.backing.path()) == DIRTY
    });
    write_first_block(device.path(), &before);
    report.compare(device.path());
    device.stop();
    drop_caches();
    report.compare(disks.backing.path());
    let device = disks.run(&[]);
    device.stop();
    assert_eq!(records(), 0);
}

#[test]
fn a_killed_server_loses_nothing_that_is_dirty() {
    let pair = Pair::disks(MIB, 16);
    let (device, report) = tortured(&pair, &["--recovery", "reissue"]);
    for _ in 0..3 {
        device.kill_server("waiting");
        device.recover();
        report.compare(device.path());
    }
    let report = Torture::new(device.path()).operations(2_000).seed(43).run();
    device.kill_server("waiting");
    device.recover();
    report.compare(device.path());
    run("kill", &["-TERM", &device.server()]);
    wait_until("the device waits for a server", SOON, || {
        device.state() == "waiting"
    });
    device.recover();
    report.compare(device.path());
    device.stop();
    drained(&pair, &report);
}

#[test]
fn a_backing_is_not_served_without_its_dirty_cache() {
    let disks = Disks::new();
    let device = disks.run(&BACK);
    disks.dirty(&device);
    device.stop();
    let path = disks.backing.path();
    let alone = ["run", "--daemon", "--backing", path.to_str().expect("a name")];
    let said = refused(&alone);
    assert!(
        said.contains(disks.cache.spec()) && said.contains("--abandon-dirty"),
        "{said}"
    );
    for (option, word) in [("--cache-reset", "dirty"), ("--read-only", "read-only")] {
        let said = disks.refused(&[option]);
        assert!(said.contains(word), "{said}");
    }
    disks.backing.heal();

    // Given up, it must never come back.
    let device = Device::run(&[&alone[2..], &["--abandon-dirty"]].concat());
    assert!(first_block(device.path()) != DIRTY);
    let kept = [9; BLOCK];
    write_first_block(device.path(), &kept);
    device.stop();
    let said = disks.refused(&BACK);
    assert!(said.contains("abandoned"), "{said}");
    let device = disks.run(&[&BACK[..], &["--cache-reset", "--abandon-dirty"]].concat());
    assert!(first_block(device.path()) == kept);
    device.stop();
    assert_eq!(records(), 0);
}

#[test]
fn a_flush_costs_the_cache_device_a_flush_and_a_record() {
    let cached = Backing::null_blk("cached", MIB);
    let settings = [
        ("size", "96"),
        ("blocksize", "512"),
        ("cache_size", "1"),
        ("fua", "1"),
    ];
    let pair = Pair {
        backing: cached,
        cache: Backing::null_blk_with("cache", &settings),
    };
    forget();
    let device = Device::on(
        &pair.backing,
        &[
            "--cache",
            pair.cache.spec(),
            "--policy",
            "passthrough",
            BACK[0],
            BACK[1],
        ],
    );
    let file = open(device.path());
    let mut memory = Aligned::new(BLOCK);
    let block = &*memory.first(BLOCK);
    let cost = |what: &mut dyn FnMut()| {
        let before = [io(&pair.cache), io(&pair.backing)];
        what();
        let after = [io(&pair.cache), io(&pair.backing)];
        [0, 1].map(|at| [0, 1, 2].map(|of: usize| after[at][of] - before[at][of]))
    };
    let write = |at: u64| file.write_all_at(block, at).expect("a write");
    let flush = || file.sync_data().expect("a flush");
    flush();
    let cold = cost(&mut || {
        write(0);
        flush();
    });
    let none = [0; 3];
    // The data and a record; the flush.
    assert_eq!(cold, [[2, 16, 1], none], "a region that becomes dirty");
    let again = cost(&mut || {
        write(0);
        flush();
    });
    assert_eq!(again, [[1, 8, 1], none], "a region that is durably dirty");
    // Regions that are not dirty yet, from the first of these on.
    let fill = |first: u64, writes: u64| {
        cost(&mut || {
            (first..first + writes).for_each(|nth| write(nth * BLOCK as u64));
            flush();
        })
    };
    // The mover commits once a second, whatever the queue does.
    let mut few = (1..=MOST_TRIES).map(|attempt| fill(attempt * FEW, FEW));
    let few = few.find(|cost| cost[0][2] == 1);
    let few = few.map(|cost| (cost[0][0], cost[1]));
    assert_eq!(few, Some((FEW + 1, none)), "one record for all");
    let many = fill((MOST_TRIES + 1) * FEW, MANY);
    let [writes, _, flushes] = many[0];
    assert!(
        (MANY + 1..=MANY + flushes).contains(&writes) && flushes < MANY / 50 && many[1] == none,
        "a record for each flush at most: {many:?}"
    );
    drop(file);
    device.stop();
}

/// Two disks, of which the slow one can be made to fail, so that nothing is written back.
struct Disks {
    backing: Mapper,
    #[expect(dead_code, reason = "it is below the other")]
    below: Backing,
    cache: Backing,
}

impl Disks {
    fn new() -> Self {
        forget();
        let below = Backing::null_blk("cached", MIB);
        Self {
            backing: Mapper::linear("below", below.spec()),
            below,
            cache: Backing::null_blk("cache", 16),
        }
    }

    fn with(&self, more: &[&str], then: impl FnOnce(&[&str])) {
        let path = self.backing.path();
        let backing = path.to_str().expect("the name of a disk");
        let on = [
            "--backing",
            backing,
            "--cache",
            self.cache.spec(),
            "--policy",
            "lru",
        ];
        then(&[&on, more].concat());
    }

    fn run(&self, more: &[&str]) -> Device {
        let mut device = None;
        self.with(more, |options| device = Some(Device::run(options)));
        device.expect("it runs")
    }

    fn refused(&self, more: &[&str]) -> String {
        let mut said = String::new();
        self.with(more, |options| {
            said = refused(&[&["run", "--daemon"], options].concat());
        });
        said
    }

    /// Writes the first block, which stays dirty, and returns what it was.
    fn dirty(&self, device: &Device) -> [u8; BLOCK] {
        let before = first_block(device.path());
        let absorbed = device.counter("absorbed");
        wait_until("the block has a slot", SOON, || {
            write_first_block(device.path(), &before);
            device.counter("absorbed") > absorbed
        });
        self.backing.fail_writes();
        write_first_block(device.path(), &DIRTY);
        before
    }
}

/// A device with write-back, and what a torture left on it.
fn tortured(pair: &Pair, more: &[&str]) -> (Device, Report) {
    forget();
    let device = pair.run(&[&BACK[..], more].concat());
    let report = Torture::new(device.path()).operations(2_000).seed(41).run();
    report.compare(device.path());
    (device, report)
}

/// Serves the device without write-back until nothing is dirty: the backing has everything then, and nothing is on record.
fn drained(pair: &Pair, report: &Report) {
    let device = pair.run(&[]);
    report.compare(device.path());
    device.stop();
    let device = pair.run(&[]);
    device.stop();
    assert_eq!(records(), 0);
    drop_caches();
    report.compare(pair.backing.spec());
    nothing_is_left();
}

/// How many pairs with dirty blocks are on record.
fn records() -> usize {
    let names = fs::read_dir(RECORDS).into_iter().flatten().flatten();
    names
        .filter(|name| name.path().extension().is_some_and(|it| it == "toml"))
        .count()
}

/// Forgets what a failed test has left: its disks are gone, and new ones have their names.
fn forget() {
    let _ = fs::remove_dir_all(RECORDS);
}

/// Writes, sectors written, and flushes that a disk has completed.
fn io(disk: &Backing) -> [u64; 3] {
    let name = disk.spec().rsplit('/').next().unwrap_or_default();
    let stat = read(Path::new("/sys/block").join(name).join("stat"));
    let field = |at: usize| {
        stat.split_whitespace()
            .nth(at)
            .and_then(|field| field.parse().ok())
    };
    let [writes, sectors, flushes] =
        [4, 6, 15].map(|at| field(at).unwrap_or_else(|| panic!("no field {at} in {stat:?}")));
    // The kernel counts a flush as a write of nothing as well.
    [writes - flushes, sectors, flushes]
}
