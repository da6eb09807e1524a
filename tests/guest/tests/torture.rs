//! The torture of `ublk_bpf_guest::torture`: devices without a cache pass it, and disks that lie do not.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::thread::yield_now;

use ublk_bpf_guest::torture::Disk;
use ublk_bpf_guest::{Backing, Device, FileSystem, Mapper, Torture};

/// Size of the devices, in MiB.
const MIB: u64 = 64;

#[test]
fn every_byte_is_correct_on_every_backing() {
    for backing in [
        Backing::file("torture", MIB),
        Backing::brd(MIB),
        Backing::loop_device("torture-loop", MIB),
        Backing::memory("64M"),
    ] {
        let device = Device::on(&backing, &["--queues", "2"]);
        let report = Torture::new(device.path()).operations(4_000).seed(11).run();
        eprintln!("{}: {:?}", backing.spec(), report.done);
        assert_eq!(device.counter("failed"), 0);
        device.stop();
        if let Some(path) = backing.path() {
            report.compare(path);
        }
    }
}

#[test]
fn reads_during_writes_see_whole_current_sectors() {
    // On this disk a sector is read and written whole, as on real ones: brd and files in memory may tear one.
    let backing = Backing::null_blk("whole", MIB);
    let device = Device::on(&backing, &["--queues", "2"]);
    let report = Torture::new(device.path())
        .operations(8_000)
        .seed(12)
        .overlapping()
        .run();
    eprintln!("{:?}", report.done);
    assert_eq!(device.counter("failed"), 0);
    device.stop();
    report.compare(backing.spec());
}

#[test]
fn files_on_file_systems_are_correct() {
    for system in [FileSystem::Ext4, FileSystem::Xfs] {
        let backing = Backing::file("torture-files", 320);
        let device = Device::on(&backing, &["--queues", "2"]);
        system.make(device.path_str());
        let mounted = system.mount(device.path_str(), "rw");
        let file = mounted.make_file("tortured", 32);
        let report = Torture::on_file(&file).operations(5_000).seed(13).run();
        eprintln!("{system:?}: {:?}", report.done);
        drop(mounted);
        system.check(device.path_str());
        device.stop();
        let mounted = system.mount(backing.spec(), "loop,ro");
        report.compare(mounted.file("tortured"));
    }
}

#[test]
fn a_failing_disk_is_detected() {
    let disk = Backing::brd(16);
    let mapper = Mapper::linear("failing", disk.spec());
    let torture = || Torture::new(mapper.path()).operations(500);
    torture().run();
    for fail in [Mapper::fail, Mapper::fail_writes] {
        fail(&mapper);
        let fault = torture().find().err().map(|fault| fault.to_string());
        assert!(
            fault.as_ref().is_some_and(|said| said.contains("os error 5")),
            "{fault:?}"
        );
        mapper.heal();
        torture().run();
    }
}

/// How a disk occasionally lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// A write is dropped.
    Dropped,
    /// A write goes to the next sector.
    Misplaced,
    /// A write loses its last sector.
    Short,
    /// A write leaves half a sector as it was.
    Torn,
    /// One byte of a read is wrong.
    Flipped,
    /// A read returns stale data.
    Stale,
    /// A range is not zeroed.
    NotZeroed,
    /// A discard extends into the next sector.
    WideDiscard,
    /// Discarded sectors read as zeroes once, and not the next time.
    Undecided,
}

/// A disk in memory, and a copy with the previous content of each sector.
struct Liar {
    lie: Lie,
    /// Operations of the kind in question.
    asked: AtomicU64,
    now: Mutex<Memory>,
}

struct Memory {
    bytes: Vec<u8>,
    before: Vec<u8>,
    discarded: Vec<bool>,
}

impl Liar {
    const BYTES: usize = 4 << 20;
    /// Lies about one in this many operations.
    const RARE: u64 = 5;

    fn new(lie: Lie) -> Self {
        Self {
            lie,
            asked: AtomicU64::new(0),
            now: Mutex::new(Memory {
                bytes: vec![0; Self::BYTES],
                before: vec![0; Self::BYTES],
                discarded: vec![false; Self::BYTES / 512],
            }),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.now.lock().expect("no thread panicked")
    }

    /// Whether to lie now, if the lie is one of these.
    fn lies(&self, lies: &[Lie]) -> bool {
        lies.contains(&self.lie) && (self.asked.fetch_add(1, Relaxed) + 1).is_multiple_of(Self::RARE)
    }
}

impl Memory {
    fn put(&mut self, buffer: &[u8], start: usize) {
        let range = start..start + buffer.len();
        self.before[range.clone()].copy_from_slice(&self.bytes[range.clone()]);
        self.bytes[range].copy_from_slice(buffer);
        self.discarded[start / 512..(start + buffer.len()) / 512].fill(false);
    }
}

impl Disk for Liar {
    fn size(&self) -> u64 {
        Self::BYTES as u64
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let memory = self.memory();
        let start = index(offset);
        let range = start..start + buffer.len();
        let stale = memory.before[range.clone()] != memory.bytes[range.clone()] && self.lies(&[Lie::Stale]);
        let from = if stale { &memory.before } else { &memory.bytes };
        buffer.copy_from_slice(&from[range]);
        if self.lies(&[Lie::Flipped]) {
            buffer[buffer.len() - 1] ^= 0x10;
        }
        if self.lie == Lie::Undecided && self.asked.fetch_add(1, Relaxed).is_multiple_of(2) {
            for (sector, _) in buffer
                .chunks_exact_mut(512)
                .zip(&memory.discarded[start / 512..])
                .filter(|(_, discarded)| **discarded)
            {
                sector.fill(0);
            }
        }
        Ok(())
    }

    fn write(&self, buffer: &[u8], offset: u64, _: bool) -> io::Result<()> {
        let mut memory = self.memory();
        let start = index(offset);
        let is_first_content = buffer.len() == 1 << 20;
        let lies = !is_first_content && self.lies(&[Lie::Dropped, Lie::Misplaced, Lie::Short, Lie::Torn]);
        let half = buffer.len() - 256;
        match self.lie {
            _ if !lies => memory.put(buffer, start),
            Lie::Misplaced => memory.put(buffer, (start + 512).min(Self::BYTES - buffer.len())),
            Lie::Short => memory.put(&buffer[..buffer.len() - 512], start),
            Lie::Torn => memory.bytes[start..start + half].copy_from_slice(&buffer[..half]),
            _ => {}
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        if !self.lies(&[Lie::NotZeroed]) {
            let zeroes = vec![0; index(length)];
            self.memory().put(&zeroes, index(offset));
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let (start, length) = (index(offset), index(length));
        let mut memory = self.memory();
        if self.lie == Lie::Undecided {
            memory.discarded[start / 512..(start + length) / 512].fill(true);
            return Ok(());
        }
        let wide = usize::from(self.lies(&[Lie::WideDiscard])) * 512;
        let zeroes = vec![0; (length + wide).min(Self::BYTES - start)];
        memory.put(&zeroes, start);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("within memory")
}

#[test]
fn an_honest_disk_passes() {
    for overlapping in [false, true] {
        let torture = Torture::on(Liar::new(Lie::None)).operations(5_000);
        let torture = if overlapping {
            torture.overlapping()
        } else {
            torture
        };
        let done = torture.run().done;
        let all = done.reads + done.writes + done.zeroes + done.discards + done.flushes;
        assert_eq!(all, 5_000);
        assert!(
            done.zeroes > 50 && done.discards > 50 && done.flushes > 50,
            "{done:?}"
        );
    }
}

#[test]
fn a_lying_disk_is_detected() {
    for lie in [
        Lie::Dropped,
        Lie::Misplaced,
        Lie::Short,
        Lie::Torn,
        Lie::Flipped,
        Lie::Stale,
        Lie::NotZeroed,
        Lie::WideDiscard,
        Lie::Undecided,
    ] {
        for overlapping in [false, true] {
            let torture = Torture::on(Liar::new(lie)).operations(5_000).seed(3);
            let torture = if overlapping {
                torture.overlapping()
            } else {
                torture
            };
            let fault = torture.find().err();
            let fault = fault.unwrap_or_else(|| panic!("{lie:?} was not found, overlapping {overlapping}"));
            let said = fault.to_string();
            eprintln!("{lie:?}: {said}");
            assert!(said.contains("the first wrong byte is"), "{lie:?}: {said}");
        }
    }
}

/// A disk in memory with a read cache in blocks, whose fills may race with writes.
struct Cache {
    backing: Mutex<Vec<u8>>,
    blocks: Mutex<HashMap<usize, Block>>,
    /// Whether a fill that raced with a write is discarded.
    careful: bool,
}

#[derive(Default)]
struct Block {
    content: Option<Vec<u8>>,
    /// Changed by every write.
    generation: u64,
}

impl Cache {
    const BYTES: usize = 4 << 20;
    const BLOCK: usize = 64 << 10;

    fn new(careful: bool) -> Self {
        Self {
            backing: Mutex::new(vec![0; Self::BYTES]),
            blocks: Mutex::default(),
            careful,
        }
    }

    fn backing(&self) -> MutexGuard<'_, Vec<u8>> {
        self.backing.lock().expect("no thread panicked")
    }

    fn block<T>(&self, block: usize, act: impl FnOnce(&mut Block) -> T) -> T {
        act(self
            .blocks
            .lock()
            .expect("no thread panicked")
            .entry(block)
            .or_default())
    }

    fn fill(&self, block: usize) {
        let generation = self.block(block, |block| block.generation);
        let content = self.backing()[block * Self::BLOCK..][..Self::BLOCK].to_vec();
        // A write to the block can happen here.
        yield_now();
        self.block(block, |block| {
            if block.generation == generation || !self.careful {
                block.content = Some(content);
            }
        });
    }

    fn change(&self, offset: u64, length: usize, act: impl FnOnce(&mut [u8])) {
        let start = index(offset);
        let blocks = start / Self::BLOCK..=(start + length - 1) / Self::BLOCK;
        act(&mut self.backing()[start..][..length]);
        for block in blocks {
            self.block(block, |block| {
                block.content = None;
                block.generation += 1;
            });
        }
    }
}

impl Disk for Cache {
    fn size(&self) -> u64 {
        Self::BYTES as u64
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut start = index(offset);
        let mut left = buffer;
        while !left.is_empty() {
            let (block, skip) = (start / Self::BLOCK, start % Self::BLOCK);
            let length = left.len().min(Self::BLOCK - skip);
            let (piece, rest) = left.split_at_mut(length);
            let hit = self.block(block, |block| {
                let content = block.content.as_ref()?;
                piece.copy_from_slice(&content[skip..][..length]);
                Some(())
            });
            if hit.is_none() {
                piece.copy_from_slice(&self.backing()[start..][..length]);
                self.fill(block);
            }
            (start, left) = (start + length, rest);
        }
        Ok(())
    }

    fn write(&self, buffer: &[u8], offset: u64, _: bool) -> io::Result<()> {
        self.change(offset, buffer.len(), |range| range.copy_from_slice(buffer));
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        self.change(offset, index(length), |range| range.fill(0));
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_cache_with_racing_fills_is_detected() {
    for overlapping in [false, true] {
        let torture = |careful| {
            let torture = Torture::on(Cache::new(careful)).operations(20_000).seed(5);
            if overlapping {
                torture.overlapping()
            } else {
                torture
            }
        };
        torture(true).run();
        let fault = torture(false).find().err();
        let fault = fault.unwrap_or_else(|| panic!("the race was not found, overlapping {overlapping}"));
        eprintln!("{fault}");
    }
}
