//! A client that changes its buffer while it is written leaves the cache and the backing alike.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::thread::scope;

use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::{Backing, Device, backing::drop_caches, read, wait_until, write};

/// A cache block, which is also a write.
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 60;

/// Memory of a block that direct I/O can use.
#[repr(align(4096))]
struct Buffer([AtomicU8; BLOCK]);

impl Buffer {
    fn new() -> Box<Self> {
        Box::new(Self([const { AtomicU8::new(0) }; BLOCK]))
    }

    /// Writes it to a block of the file as it is then, and then, and then.
    fn write_to(&self, file: &impl AsRawFd, block: usize) {
        let offset = libc::off_t::try_from(block * BLOCK).expect("small");
        // SAFETY: the buffer has that many bytes, and lives longer than the call. Its bytes are atomic, so that others may
        // change them while the kernel reads them.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), self.0.as_ptr().cast(), BLOCK, offset) };
        assert_eq!(
            written,
            BLOCK.cast_signed(),
            "{}",
            std::io::Error::last_os_error()
        );
    }

    /// Changes every sector, over and over.
    fn flip(&self, is_over: &AtomicBool) {
        for round in (0..=u8::MAX).cycle() {
            if is_over.load(Relaxed) {
                break;
            }
            self.0
                .iter()
                .step_by(512)
                .for_each(|byte| byte.store(round, Relaxed));
        }
    }
}

/// The first blocks of a device or file, past the page cache.
fn content(path: &Path) -> Vec<u8> {
    drop_caches();
    let mut bytes = vec![0; BLOCKS * BLOCK];
    OpenOptions::new()
        .read(true)
        .open(path)
        .and_then(|file| file.read_exact_at(&mut bytes, 0))
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    bytes
}

#[test]
fn a_buffer_that_changes_while_it_is_written_leaves_cache_and_backing_alike() {
    // A loop device takes its time: the client goes on meanwhile.
    let backing = Backing::loop_device("flipped", 16);
    let cache = Backing::null_blk("cache", 16);
    let device = Device::on(
        &backing,
        &["--cache", cache.spec(), "--policy", "lru", "--cache-block", "64K"],
    );
    assert_eq!(read(device.sysfs("queue/stable_writes")), "1");
    wait_until("every block is cached", 4 * SOON, || {
        let before = device.counter("hits");
        content(device.path());
        device.counter("hits") - before >= BLOCKS as u64
    });

    let (buffer, is_over) = (Buffer::new(), AtomicBool::new(false));
    let direct = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(device.path())
        .expect("the device can be written");
    scope(|scope| {
        let flippers: [_; 2] = std::array::from_fn(|_| scope.spawn(|| buffer.flip(&is_over)));
        let writer = scope.spawn(|| (0..BLOCKS).for_each(|block| buffer.write_to(&direct, block)));
        let end = writer.join();
        is_over.store(true, Relaxed);
        flippers
            .into_iter()
            .for_each(|flipper| flipper.join().expect("it flips"));
        end.expect("every block is written");
    });
    assert!(
        device.counter("cache_writes") >= BLOCKS as u64,
        "{:#}",
        device.stats()
    );

    let before = device.counter("hits");
    let cached = content(device.path());
    assert!(
        device.counter("hits") - before >= BLOCKS as u64,
        "{:#}",
        device.stats()
    );
    // A device in use does not stop.
    drop(direct);
    device.stop();
    let backed = content(Path::new(backing.spec()));
    let differ = cached
        .chunks(BLOCK)
        .zip(backed.chunks(BLOCK))
        .filter(|(one, other)| one != other)
        .count();
    assert_eq!(differ, 0, "of {BLOCKS} blocks so many differ");
}

#[test]
fn pages_are_kept_stable_where_the_backing_asks_for_it_and_otherwise_not() {
    let backing = Backing::brd(16);
    let asks = Path::new("/sys/block/ram0/queue/stable_writes");
    for (wanted, mode) in [
        ("0", "write-around"),
        ("1", "write-around"),
        ("0", "write-through"),
    ] {
        write(asks, wanted);
        let device = Device::on(&backing, &["--cache", "mem:4M", "--cache-mode", mode]);
        let is_stable = wanted == "1" || mode == "write-through";
        assert_eq!(
            read(device.sysfs("queue/stable_writes")),
            if is_stable { "1" } else { "0" },
            "{wanted} {mode}"
        );
        device.stop();
    }
}
