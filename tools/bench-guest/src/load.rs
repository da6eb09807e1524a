//! Reads that repeat: the same seed gives the same sequence.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use io_uring::{IoUring, opcode, types};

/// What a direct read's memory and place are aligned to.
const ALIGNMENT: usize = 4096;
/// A pause shorter than that is not worth a sleep.
const LEAST_PAUSE: Duration = Duration::from_millis(2);

/// Numbers that look random and are the same each time: Steele, Lea and Flood's SplitMix64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is at least 1.
    fn below(&mut self, limit: u64) -> u64 {
        // The limits here are far below 2^64, so that the rest is as good as even.
        self.next() % limit
    }

    /// At least 0 and less than 1.
    fn unit(&mut self) -> f64 {
        // 53 bits are what an f64 holds.
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let bits = (self.next() >> 11) as f64;
        bits / 9_007_199_254_740_992.0
    }
}

/// Which block is read how often: the one of rank r as 1 / r^theta, and the ranks lie all over the device.
#[derive(Clone)]
pub struct Zipf {
    /// The share of reads that go to this rank or a higher one.
    shares: Vec<f64>,
    /// The block of each rank.
    blocks: Vec<u32>,
    random: Random,
}

impl Zipf {
    /// A load on `blocks` blocks; which of them are hot, and in which order they are asked for, the seed says.
    pub fn new(blocks: u32, theta: f64, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut total = 0.0;
        let mut shares: Vec<f64> = (1..=blocks)
            .map(|rank| {
                total += f64::from(rank).powf(-theta);
                total
            })
            .collect();
        for share in &mut shares {
            *share /= total;
        }
        let mut order: Vec<u32> = (0..blocks).collect();
        shuffle(&mut order, &mut random);
        Self {
            shares,
            blocks: order,
            random,
        }
    }

    /// The next read's block, and a number for the place in it.
    pub fn next_read(&mut self) -> (u32, u64) {
        let at = self.random.unit();
        let rank = self.shares.partition_point(|share| *share <= at);
        let last = self.blocks.len() - 1;
        (self.blocks[rank.min(last)], self.random.next())
    }

    /// The part of the reads that goes to the `n` hottest blocks: what a cache of that many could hit at most.
    pub fn share_of_hottest(&self, n: usize) -> f64 {
        n.checked_sub(1).map_or(0.0, |last| self.shares[last])
    }
}

fn shuffle(order: &mut [u32], random: &mut Random) {
    for end in (1..order.len()).rev() {
        #[expect(clippy::cast_possible_truncation, reason = "below a length")]
        let other = random.below(end as u64 + 1) as usize;
        order.swap(end, other);
    }
}

/// Reads that are in flight at once: one at a time, a device with a server would mostly wait for being scheduled.
pub const DEPTH: usize = 32;

/// Reads in batches, past the page cache.
pub struct Reader {
    path: PathBuf,
    device: File,
    ring: IoUring,
    /// [`DEPTH`] parts of `most` bytes. Never given back: the kernel may write there until a read has completed.
    memory: &'static mut [u8],
    most: usize,
}

impl Reader {
    /// Opens a device for reads of at most `most` bytes, a multiple of 4096.
    pub fn open(path: &Path, most: usize) -> Result<Self> {
        let context = || format!("cannot open {}", path.display());
        let device = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .with_context(context)?;
        let memory = vec![0; most * DEPTH + ALIGNMENT].leak();
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Ok(Self {
            path: path.to_path_buf(),
            device,
            ring: IoUring::new(u32::try_from(DEPTH)?).with_context(context)?,
            memory: &mut memory[start..],
            most,
        })
    }

    /// Begins reads of `length` bytes at each of at most [`DEPTH`] offsets, in their order, and waits for all of them.
    /// Everything is a multiple of 4096.
    pub fn read(&mut self, offsets: &[u64], length: usize) -> Result<()> {
        let fd = types::Fd(self.device.as_raw_fd());
        let bytes = u32::try_from(length)?;
        ensure!(
            length <= self.most && offsets.len() <= DEPTH,
            "the reader is too small"
        );
        for (offset, part) in offsets.iter().zip(self.memory.chunks_mut(self.most)) {
            let entry = opcode::Read::new(fd, part.as_mut_ptr(), bytes)
                .offset(*offset)
                .build();
            // SAFETY: the part has `length` bytes or more, is no other read's and is never freed; the file is open
            // until the entry is submitted, below.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                bail!("the ring has no room for {DEPTH} reads");
            }
        }
        let mut waiting = offsets.len();
        while waiting > 0 {
            self.ring
                .submit_and_wait(waiting)
                .context("cannot wait for reads")?;
            for completion in self.ring.completion() {
                waiting -= 1;
                ensure!(
                    u32::try_from(completion.result()) == Ok(bytes),
                    "a read of {length} bytes of {} gave {}",
                    self.path.display(),
                    completion.result()
                );
            }
        }
        Ok(())
    }
}

/// Limits a load to this many reads a second on average.
pub struct Pace {
    since: Instant,
    reads: u32,
    each: Duration,
}

impl Pace {
    /// So many reads a second, from now on.
    pub fn new(per_second: u32) -> Self {
        Self {
            since: Instant::now(),
            reads: 0,
            each: Duration::from_secs(1) / per_second,
        }
    }

    /// Waits until the next read is due.
    pub fn wait(&mut self) {
        self.reads += 1;
        let early = (self.each * self.reads).saturating_sub(self.since.elapsed());
        if early > LEAST_PAUSE {
            std::thread::sleep(early);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: u32 = 1000;

    #[test]
    fn the_same_seed_gives_the_same_reads() {
        let reads = |seed| {
            let mut zipf = Zipf::new(BLOCKS, 0.99, seed);
            (0..1000).map(|_| zipf.next_read()).collect::<Vec<_>>()
        };
        assert_eq!(reads(7), reads(7));
        assert_ne!(reads(7), reads(8));
    }

    #[test]
    fn the_hottest_blocks_get_their_share() {
        let mut zipf = Zipf::new(BLOCKS, 0.99, 1);
        let hot: Vec<u32> = zipf.blocks[..100].to_vec();
        let hits = (0..20_000).filter(|_| hot.contains(&zipf.next_read().0)).count();
        let share = f64::from(u32::try_from(hits).expect("small")) / 20_000.0;
        assert!((share - zipf.share_of_hottest(100)).abs() < 0.02, "{share}");
        assert!((zipf.share_of_hottest(1000) - 1.0).abs() < 1e-9);
        assert!(zipf.share_of_hottest(0).abs() < 1e-9);
    }

    #[test]
    fn every_block_has_one_rank() {
        let mut blocks = Zipf::new(BLOCKS, 0.99, 3).blocks;
        assert!(blocks.windows(2).any(|pair| pair[0] > pair[1]), "not shuffled");
        blocks.sort_unstable();
        assert_eq!(blocks, (0..BLOCKS).collect::<Vec<_>>());
    }

    #[test]
    fn reads_are_aligned_and_whole() {
        let file = tempfile::NamedTempFile::new_in(".").expect("a temporary file");
        file.as_file().set_len(128 << 10).expect("sized");
        let mut reader = Reader::open(file.path(), 64 << 10).expect("opened");
        reader.read(&[0, 64 << 10], 64 << 10).expect("read");
        let error = reader.read(&[128 << 10], 4096).expect_err("past the end");
        assert!(error.to_string().ends_with("gave 0"), "{error:#}");
        assert!(reader.read(&[0; DEPTH + 1], 4096).is_err());
    }
}
