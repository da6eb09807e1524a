//! A disk in memory with a volatile write cache, on a power supply that may be cut.

use std::io;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use super::image::{Image, Lie, Loss, Lost};
use super::supply::{Power, Supply, lock};
use crate::torture::Disk;

/// A disk with a volatile write cache.
#[derive(Debug)]
pub struct VolatileDisk {
    bytes: u64,
    supply: Arc<Supply>,
    image: Mutex<Image>,
    broken: Mutex<Vec<Broken>>,
}

/// A part of a disk that fails.
#[derive(Clone, Debug)]
struct Broken {
    range: Range<u64>,
    reads: bool,
}

/// What a client asks of a disk. Offsets and lengths are in bytes, and multiples of 512.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Read(u64, &'a mut [u8]),
    Write(u64, &'a [u8], bool),
    Zero(u64, u64, bool),
    Flush,
}

/// Why a disk does not do what is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has no power, and answers nothing.
    Silent,
    /// It answers with an error.
    Failed,
}

impl VolatileDisk {
    /// A disk of `mib` MiB of zeroes.
    pub fn new(supply: &Arc<Supply>, mib: u64) -> Arc<Self> {
        Self::lying(supply, mib, Lie::None)
    }

    /// One that does something wrong.
    pub fn lying(supply: &Arc<Supply>, mib: u64, lie: Lie) -> Arc<Self> {
        let bytes = mib << 20;
        Arc::new(Self {
            bytes,
            supply: Arc::clone(supply),
            image: Mutex::new(Image::new(usize::try_from(bytes).expect("within memory"), lie)),
            broken: Mutex::default(),
        })
    }

    /// From now on all that touches this range of bytes fails; reads of it only if `reads` is set.
    pub fn break_range(&self, range: Range<u64>, reads: bool) {
        lock(&self.broken).push(Broken { range, reads });
    }

    /// From now on nothing fails.
    pub fn mend(&self) {
        lock(&self.broken).clear();
    }

    /// Loses a part of its cache after a power cut, and switches the power on again.
    pub fn cycle(&self, seed: u64) -> Lost {
        let lost = self.lose(seed);
        self.supply.restore();
        lost
    }

    /// From now on this connection to it ends with the power.
    pub(super) fn connect(&self, line: UnixStream) {
        self.supply.connect(line);
    }

    /// What a power cut takes of the cache, of a kind that the seed decides. Before the power is on again.
    pub(super) fn lose(&self, seed: u64) -> Lost {
        lock(&self.image).lose(Loss::of(seed))
    }

    /// Does what is asked; gives a number for what must be [answered](Self::answer).
    pub(super) fn take(&self, request: Request<'_>) -> Result<Option<u64>, Refusal> {
        // A write may come so far that parts of it survive the cut.
        let early = !matches!(request, Request::Write(offset, ..) if offset / 4096 % 2 == 0);
        if early {
            self.supply.count();
        }
        let taken = self.take_now(request);
        if !early {
            self.supply.count();
        }
        taken
    }

    fn take_now(&self, request: Request<'_>) -> Result<Option<u64>, Refusal> {
        let power = self.supply.power();
        allowed(*power)?;
        self.check(&request)?;
        let mut image = lock(&self.image);
        Ok(match request {
            Request::Read(offset, buffer) => {
                image.read(offset, buffer);
                None
            }
            Request::Write(offset, content, forced) => Some(image.write(offset, content, forced)),
            Request::Zero(offset, length, forced) => Some(image.zero(offset, length, forced)),
            Request::Flush => {
                image.flush();
                None
            }
        })
    }

    /// Gives the client its answer to what was taken, by `send`; it gets none if the power is off meanwhile.
    pub(super) fn answer<T>(
        &self,
        taken: Result<Option<u64>, Refusal>,
        send: impl FnOnce(Result<(), Refusal>) -> T,
    ) -> T {
        let power = self.supply.power();
        let result = allowed(*power).and(taken);
        if let Ok(Some(request)) = result {
            lock(&self.image).answered(request);
        }
        send(result.map(drop))
    }

    fn check(&self, request: &Request<'_>) -> Result<(), Refusal> {
        let (offset, length, reads) = match request {
            Request::Read(offset, buffer) => (*offset, buffer.len() as u64, true),
            Request::Write(offset, content, _) => (*offset, content.len() as u64, false),
            Request::Zero(offset, length, _) => (*offset, *length, false),
            Request::Flush => return Ok(()),
        };
        let end = offset.checked_add(length).filter(|end| *end <= self.bytes);
        let end = end.ok_or(Refusal::Failed)?;
        let broken = lock(&self.broken);
        let meets = |one: &Broken| one.range.start < end && offset < one.range.end && (one.reads || !reads);
        if broken.iter().any(meets) {
            return Err(Refusal::Failed);
        }
        Ok(())
    }

    fn perform(&self, request: Request<'_>) -> io::Result<()> {
        let taken = self.take(request);
        self.answer(taken, |result| result)
            .map_err(|_| io::Error::from_raw_os_error(libc::EIO))
    }
}

fn allowed(power: Power) -> Result<(), Refusal> {
    match power {
        Power::On => Ok(()),
        Power::Silent => Err(Refusal::Silent),
        Power::Fading => Err(Refusal::Failed),
    }
}

/// Without a kernel between the client and the disk.
impl Disk for Arc<VolatileDisk> {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.perform(Request::Read(offset, buffer))
    }

    fn write(&self, buffer: &[u8], offset: u64, forced: bool) -> io::Result<()> {
        self.perform(Request::Write(offset, buffer, forced))
    }

    fn zero(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        self.perform(Request::Zero(offset, length, false))
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.perform(Request::Zero(offset, length, false))
    }

    fn flush(&self) -> io::Result<()> {
        self.perform(Request::Flush)
    }
}
