//! What a disk with a volatile write cache holds: on its media, and in its cache, of which a power cut takes any part.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::torture::content::{SECTOR, mix};

/// A disk's media and its volatile cache.
#[derive(Debug)]
pub(super) struct Image {
    media: Vec<u8>,
    /// What was written to each sector and is not on the media for certain, the oldest first.
    cache: BTreeMap<u64, Vec<Cached>>,
    /// The requests whose client has no answer, and the sectors that must be on the media before it gets one.
    unanswered: HashMap<u64, Range<u64>>,
    next: u64,
    lie: Lie,
}

/// A sector in the cache; `None`: zeroes.
#[derive(Debug)]
struct Cached {
    request: u64,
    content: Option<Box<[u8; SECTOR]>>,
}

/// What a disk does wrong, to see whether that is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    #[default]
    None,
    /// A flush does nothing.
    NoFlush,
    /// A forced write stays in the cache.
    NoForce,
    /// Of what survives, half a sector may be old.
    Torn,
    /// What survives may come to the next sector.
    Misplaced,
}

/// Which parts of the cache survive a power cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loss {
    seed: u64,
    unit: Unit,
    /// In percent.
    survive: u64,
}

/// What survives or is lost as a whole.
#[derive(Clone, Copy, Debug)]
enum Unit {
    /// A request.
    Request,
    /// What a request wrote in 4 KiB.
    Page,
    /// A sector, in any of the states that it had.
    Sector,
}

/// Sectors that a power cut took, and those that the cache held.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    /// Sectors whose last content is lost.
    pub lost: u64,
    /// Sectors that were in the cache.
    pub cached: u64,
}

impl Lost {
    /// Adds what another disk has lost.
    pub fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.cached += other.cached;
    }
}

impl Image {
    pub(super) fn new(bytes: usize, lie: Lie) -> Self {
        Self {
            media: vec![0; bytes],
            cache: BTreeMap::new(),
            unanswered: HashMap::new(),
            next: 0,
            lie,
        }
    }

    /// Takes a write into the cache; gives the request's number, to say when it is [answered](Self::answered).
    pub(super) fn write(&mut self, offset: u64, content: &[u8], forced: bool) -> u64 {
        let sectors = content.chunks_exact(SECTOR).map(|sector| {
            let sector: &[u8; SECTOR] = sector.try_into().expect("a sector");
            Some(Box::new(*sector))
        });
        self.take(offset, sectors, forced)
    }

    /// The same with zeroes.
    pub(super) fn zero(&mut self, offset: u64, length: u64, forced: bool) -> u64 {
        let sectors = (0..length / SECTOR as u64).map(|_| None);
        self.take(offset, sectors, forced)
    }

    fn take(
        &mut self,
        offset: u64,
        contents: impl Iterator<Item = Option<Box<[u8; SECTOR]>>>,
        forced: bool,
    ) -> u64 {
        let request = self.next;
        self.next += 1;
        let first = offset / SECTOR as u64;
        let mut end = first;
        for content in contents {
            self.cache
                .entry(end)
                .or_default()
                .push(Cached { request, content });
            end += 1;
        }
        let forced = forced && self.lie != Lie::NoForce;
        self.unanswered
            .insert(request, first..if forced { end } else { first });
        request
    }

    /// The client gets the answer to this write now.
    pub(super) fn answered(&mut self, request: u64) {
        for sector in self.unanswered.remove(&request).unwrap_or(0..0) {
            let Some(cached) = self.cache.get_mut(&sector) else {
                continue;
            };
            // A flush or a later forced write may have brought it to the media.
            if let Some(last) = cached.iter().rposition(|one| one.request <= request) {
                settle(&mut self.media, sector, cached.drain(..=last));
            }
        }
    }

    /// Brings to the media what was answered; what was not may stay in the cache, and does.
    pub(super) fn flush(&mut self) {
        if self.lie == Lie::NoFlush {
            return;
        }
        self.cache.retain(|&sector, cached| {
            let is_answered = |one: &Cached| !self.unanswered.contains_key(&one.request);
            if let Some(last) = cached.iter().rposition(is_answered) {
                settle(&mut self.media, sector, cached.drain(..=last));
            }
            !cached.is_empty()
        });
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        let first = offset / SECTOR as u64;
        buffer.copy_from_slice(&self.media[index(offset)..][..buffer.len()]);
        for (sector, cached) in self.cache.range(first..first + (buffer.len() / SECTOR) as u64) {
            if let Some(last) = cached.last() {
                let at = index(sector - first) * SECTOR;
                copy(&mut buffer[at..at + SECTOR], last);
            }
        }
    }

    /// The power is cut: of the cache only a part gets to the media.
    pub(super) fn lose(&mut self, loss: Loss) -> Lost {
        let cache = std::mem::take(&mut self.cache);
        self.unanswered.clear();
        let mut lost = Lost::default();
        for (sector, cached) in cache {
            if cached.is_empty() {
                continue;
            }
            lost.cached += 1;
            let survivor = loss.survivor(sector, &cached);
            lost.lost += u64::from(survivor != Some(cached.len() - 1));
            if let Some(survivor) = survivor {
                self.survive(sector, &cached[survivor]);
            }
        }
        lost
    }

    fn survive(&mut self, sector: u64, survivor: &Cached) {
        let is_last = sector + 1 == (self.media.len() / SECTOR) as u64;
        let at = match self.lie {
            Lie::Misplaced if !is_last => sector + 1,
            _ => sector,
        };
        let media = &mut self.media[index(at) * SECTOR..][..SECTOR];
        let end: [u8; SECTOR / 2] = media[SECTOR / 2..].try_into().expect("half a sector");
        copy(media, survivor);
        if self.lie == Lie::Torn {
            media[SECTOR / 2..].copy_from_slice(&end);
        }
    }
}

impl Loss {
    /// A loss of a random kind.
    pub(super) fn of(seed: u64) -> Self {
        let unit = match mix(seed ^ 1) % 3 {
            0 => Unit::Request,
            1 => Unit::Page,
            _ => Unit::Sector,
        };
        let survive = [0, 10, 50, 90][index(mix(seed ^ 2) % 4)];
        Self { seed, unit, survive }
    }

    /// Which of these contents of a sector survives, if any.
    fn survivor(&self, sector: u64, cached: &[Cached]) -> Option<usize> {
        let survives = |name: u64| mix(self.seed ^ mix(name)) % 100 < self.survive;
        let part = |one: &Cached, place: u64| mix(one.request) ^ place;
        match self.unit {
            Unit::Request => cached.iter().rposition(|one| survives(part(one, 0))),
            Unit::Page => cached.iter().rposition(|one| survives(part(one, 1 + sector / 8))),
            Unit::Sector => {
                let any = mix(self.seed ^ mix(!sector)) % cached.len() as u64;
                survives(sector).then_some(index(any))
            }
        }
    }
}

/// Brings the last of these contents to the media.
fn settle(media: &mut [u8], sector: u64, contents: impl Iterator<Item = Cached>) {
    if let Some(last) = contents.last() {
        copy(&mut media[index(sector) * SECTOR..][..SECTOR], &last);
    }
}

fn copy(sector: &mut [u8], from: &Cached) {
    match &from.content {
        Some(content) => sector.copy_from_slice(&content[..]),
        None => sector.fill(0),
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("within memory")
}
