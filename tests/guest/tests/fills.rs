//! Fills by the miss: one read of the backing serves every read that waits for it and fills the cache, and every byte is
//! right, whatever a fill covers and whatever overtakes it.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde_json::Value;
use ublk_bpf_guest::aligned::Aligned;
use ublk_bpf_guest::cached::{Pair, number};
use ublk_bpf_guest::{Device, Fio, Torture, run};

const FILLING: &str = "/root/policies/filling.o";
const MIB: u64 = 80;
/// Bytes of a cache block.
const BLOCK: usize = 64 << 10;

/// What the map of the policy says.
#[derive(Clone, Copy)]
enum Extent {
    Block,
    Request,
    Around,
    /// Nothing is filled, and what is cached in part is hit.
    Nothing,
}

/// A device on both disks whose misses fill.
fn filling(pair: &Pair, options: &[&str]) -> Device {
    let device = pair.run(options);
    device.swap(FILLING);
    device
}

fn set(device: &Device, extent: Extent) {
    let map = format!("/sys/fs/bpf/ublk-bpf/ublkb{}/maps/extent", device.id());
    let value = (extent as u8).to_string();
    let key = [
        "map", "update", "pinned", &map, "key", "0", "0", "0", "0", "value",
    ];
    run("bpftool", &[&key[..], &[&value, "0", "0", "0"]].concat());
}

/// Reads that a disk has completed, and sectors of them.
fn disk_reads(disk: &str) -> (u64, u64) {
    let path = Path::new("/sys/block")
        .join(Path::new(disk).file_name().expect("a disk"))
        .join("stat");
    let stat = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let fields: Vec<u64> = stat
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    (fields[0], fields[2])
}

fn reads(device: &Device) -> Fio {
    Fio::new(device.path()).arg("rw", "randread").arg("bs", "4k")
}

/// What the server counted since `before`.
fn grown(before: &Value, after: &Value, part: &str, name: &str) -> u64 {
    number(after, part, name) - number(before, part, name)
}

#[test]
fn a_miss_and_its_fill_are_one_read_of_the_backing() {
    let pair = Pair::disks(MIB, 16);
    let device = filling(&pair, &[]);
    set(&device, Extent::Block);
    let (before, disk) = (device.stats(), disk_reads(pair.backing.spec()));
    let done = reads(&device).arg("size", "8m").arg("iodepth", "1").run();
    let (after, end) = (device.stats(), disk_reads(pair.backing.spec()));
    let server = |name| grown(&before, &after, "server", name);
    let (fills, passed) = (server("fills"), server("passthrough"));
    println!("{fills} fills, {passed} passed through, {} hits", server("hits"));
    assert!(fills > 64 && server("fills_overtaken") == 0, "{after:#}");
    assert_eq!(
        fills + server("hits") + passed,
        done.reads,
        "each read is one of these"
    );
    assert_eq!(server("filled"), fills, "nothing else was there to wait");
    // The mover reads what found no free slot.
    let promoted = grown(&before, &after, "cache", "promoted");
    assert!(
        (fills + passed..=fills + passed + promoted).contains(&(end.0 - disk.0)),
        "{after:#}"
    );
    assert_eq!(server("fill_bytes"), fills * BLOCK as u64);
    assert!(end.1 - disk.1 >= fills * BLOCK as u64 / 512);
}

#[test]
fn reads_of_one_block_share_one_read_of_the_backing() {
    let pair = Pair::disks(MIB, 16);
    let device = filling(&pair, &["--queues", "2"]);
    let before = device.stats();
    // Each job walks the same blocks, 16 reads a block.
    let done = Fio::new(device.path())
        .arg("rw", "read")
        .arg("bs", "4k")
        .arg("size", "8m")
        .arg("numjobs", "8")
        .arg("iodepth", "16")
        .run();
    let after = device.stats();
    let server = |name| grown(&before, &after, "server", name);
    println!("{} reads, {} fills: {after:#}", done.reads, server("fills"));
    assert!(
        server("fills") > 0 && server("filled") > 4 * server("fills"),
        "{after:#}"
    );
    assert!(
        server("fills") <= 128 + grown(&before, &after, "cache", "evicted"),
        "{after:#}"
    );
}

#[test]
fn every_byte_is_right_while_writes_overtake_fills() {
    for (mode, block, seed) in [("write-through", "64K", 51), ("write-around", "16K", 52)] {
        let pair = Pair::disks(MIB, 4);
        let options = ["--queues", "2", "--cache-mode", mode, "--cache-block", block];
        let device = filling(&pair, &options);
        let torture = |operations| Torture::new(device.path()).operations(operations);
        let report = torture(15_000).seed(seed).run();
        report.compare(pair.backing.spec());
        set(&device, Extent::Around);
        let report = torture(10_000).seed(seed + 10).run();
        report.compare(pair.backing.spec());
        set(&device, Extent::Request);
        let report = torture(10_000).seed(seed + 20).overlapping().run();
        report.compare(pair.backing.spec());
        let stats = device.stats();
        println!("{mode}: {stats:#}");
        for counter in ["fills", "filled", "hits"] {
            assert!(number(&stats, "server", counter) > 0, "no {counter}: {stats:#}");
        }
        assert_eq!(number(&stats, "server", "failed"), 0, "{stats:#}");
        assert_eq!(device.show()["cache"]["detached"], Value::Null);
        device.stop();
        report.compare(pair.backing.spec());
    }
}

#[test]
fn fio_verifies_what_is_filled() {
    let pair = Pair::disks(MIB, 8);
    let device = filling(&pair, &["--queues", "2"]);
    set(&device, Extent::Around);
    let job = Fio::verify(device.path()).arg("size", "32m").arg("numjobs", "2");
    job.arg("offset_increment", "32m").arg("iodepth", "8").run();
    assert!(device.counter("fills") > 0, "{:#}", device.stats());
    assert_eq!(device.counter("failed"), 0);
}

#[test]
fn a_block_that_is_cached_in_part_reads_as_the_backing() {
    let pair = Pair::disks(MIB, 16);
    let fill = Fio::new(Path::new(pair.backing.spec()))
        .arg("rw", "write")
        .arg("bs", "1m");
    fill.arg("size", "4m").arg("refill_buffers", "1").run();
    let device = filling(&pair, &[]);
    let compare = |what: &str| {
        let (device, backing) = (contents(device.path()), contents(Path::new(pair.backing.spec())));
        for (at, (found, should)) in device.chunks(512).zip(backing.chunks(512)).enumerate() {
            assert!(found == should, "{what}: sector {at} differs");
        }
    };
    set(&device, Extent::Request);
    reads(&device)
        .arg("size", "4m")
        .arg("number_ios", "256")
        .arg("norandommap", "1")
        .run();
    set(&device, Extent::Nothing);
    compare("hits of a part");
    assert!(device.counter("hits_split") > 0, "{:#}", device.stats());
    set(&device, Extent::Around);
    let before = device.stats();
    compare("fills of the rest");
    let after = device.stats();
    assert!(grown(&before, &after, "server", "fills") > 0, "{after:#}");
    let before = after;
    compare("whole hits");
    let after = device.stats();
    assert!(grown(&before, &after, "server", "hits") > 0, "{after:#}");
    assert_eq!(device.counter("failed"), 0);
}

/// The first 4 MiB, read in blocks.
fn contents(path: &Path) -> Vec<u8> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut memory = Aligned::new(BLOCK);
    let mut all = Vec::new();
    for offset in (0..4 << 20).step_by(BLOCK) {
        let block = memory.first(BLOCK);
        file.read_exact_at(block, offset).expect("it can be read");
        all.extend_from_slice(block);
    }
    all
}
