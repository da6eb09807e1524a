//! The backing device, with a volatile cache that a power failure loses.

use super::pattern::Writer;
use super::rng::Rng;

/// Sectors, each with what it holds now and what a power failure may leave it with.
#[derive(Debug)]
pub(super) struct Disk {
    now: Vec<Writer>,
    /// What the media hold for certain.
    stable: Vec<Writer>,
    /// Completed but not yet durable, oldest first, each with its number in the order of all writes.
    unstable: Vec<Vec<(u64, Writer)>>,
    /// Writes so far.
    writes: u64,
    volatile_cache: bool,
}

impl Disk {
    pub(super) fn new(content: Vec<Writer>, volatile_cache: bool) -> Self {
        let unstable = vec![Vec::new(); content.len()];
        Self {
            stable: content.clone(),
            now: content,
            unstable,
            writes: 0,
            volatile_cache,
        }
    }

    pub(super) fn read(&self, sector: usize) -> Writer {
        self.now[sector]
    }

    pub(super) fn sectors(&self) -> usize {
        self.now.len()
    }

    pub(super) fn write(&mut self, sector: usize, writer: Writer, durable: bool) {
        self.now[sector] = writer;
        self.writes += 1;
        if durable || !self.volatile_cache {
            self.stable[sector] = writer;
            self.unstable[sector].clear();
        } else {
            self.unstable[sector].push((self.writes, writer));
        }
    }

    /// What a flush that is issued now has to make durable.
    pub(super) const fn writes(&self) -> u64 {
        self.writes
    }

    /// A flush that was issued after `writes` writes has completed. It does no more than it must.
    pub(super) fn flush(&mut self, writes: u64) {
        for (unstable, stable) in self.unstable.iter_mut().zip(&mut self.stable) {
            if let Some(last) = unstable.iter().rposition(|&(number, _)| number <= writes) {
                *stable = unstable[last].1;
                unstable.drain(..=last);
            }
        }
    }

    /// The power fails: of each sector some version remains that was there since it was last made durable.
    pub(super) fn power_cut(&mut self, rng: &mut Rng) {
        for ((now, stable), unstable) in self.now.iter_mut().zip(&mut self.stable).zip(&mut self.unstable) {
            let survivor = rng.index(unstable.len() + 1);
            if survivor > 0 {
                *stable = unstable[survivor - 1].1;
            }
            *now = *stable;
            unstable.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_survives_and_what_came_later_may_not() {
        let mut lost = 0;
        for seed in 0..100 {
            let mut disk = Disk::new(vec![0; 2], true);
            disk.write(0, 1, false);
            let issued = disk.writes();
            disk.write(0, 2, false);
            disk.write(1, 3, true);
            disk.flush(issued);
            disk.power_cut(&mut Rng::new(seed));
            assert_eq!(disk.read(1), 3);
            assert!([1, 2].contains(&disk.read(0)));
            lost += u32::from(disk.read(0) == 1);
        }
        assert!((1..100).contains(&lost));
    }
}
