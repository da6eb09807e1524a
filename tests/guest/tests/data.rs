//! Every byte is correct: random I/O of every size over every kind of backing, with one queue and with four, at
//! several depths, verified by fio and then compared with the backing itself.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use ublk_bpf_guest::{Backing, Device, Fio, backing::drop_caches, read};

/// Queue counts and depths to test each backing with, and how much fio writes.
const SHAPES: [(u32, u32, &str); 8] = [
    (1, 1, "6m"),
    (1, 2, "8m"),
    (1, 128, "16m"),
    (1, 1024, "16m"),
    (4, 1, "8m"),
    (4, 2, "8m"),
    (4, 128, "16m"),
    (4, 1024, "16m"),
];

/// Size of the devices, in MiB.
const MIB: u64 = 64;

#[test]
fn file() {
    for shape in SHAPES {
        verify(&Backing::file("data", MIB), shape);
    }
}

#[test]
fn brd() {
    for shape in SHAPES {
        verify(&Backing::brd(MIB), shape);
    }
}

#[test]
fn loop_device() {
    for shape in SHAPES {
        verify(&Backing::loop_device("data", MIB), shape);
    }
}

#[test]
fn memory() {
    for shape in SHAPES {
        verify(&Backing::memory(&format!("{MIB}M")), shape);
    }
}

fn verify(backing: &Backing, (queues, depth, amount): (u32, u32, &str)) {
    eprintln!("{} with {queues} queues of depth {depth}", backing.spec());
    let (queues_text, depth_text) = (queues.to_string(), depth.to_string());
    let device = Device::on(backing, &["--queues", &queues_text, "--depth", &depth_text]);
    // Batch mode has no queue of depth 1: such a device gets the minimum depth.
    assert_eq!(read(device.sysfs("mq/0/nr_tags")), depth.max(2).to_string());
    assert_eq!(
        std::fs::read_dir(device.sysfs("mq")).expect("mq").count(),
        queues as usize
    );
    let done = Fio::verify(device.path())
        .arg("size", &format!("{MIB}m"))
        .arg("io_size", amount)
        .arg("iodepth", "32")
        .run();
    assert!(done.reads > 0 && done.writes > 0, "fio did nothing: {done:?}");
    assert_eq!(device.counter("failed"), 0);
    assert_eq!(device.counter("arrived"), device.counter("completed"));
    drop_caches();
    let through_device = checksum(device.path());
    device.stop();
    if let Some(path) = backing.path() {
        drop_caches();
        assert_eq!(
            through_device,
            checksum(path),
            "the backing differs from what the device showed"
        );
    }
}

/// Checksum of a whole device or file (FNV-1a over its 64-bit words).
fn checksum(path: &Path) -> u64 {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
    let mut buffer = vec![0; 1 << 20];
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    loop {
        let n = file
            .read(&mut buffer)
            .unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        if n == 0 {
            return sum;
        }
        for word in buffer[..n].chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().expect("a chunk of eight"));
            sum = (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
