//! Two devices with volatile caches, and operations on them that take time.

use std::rc::Rc;

use super::{LOG, SLOT_UNITS, UNIT, UNITS};
use crate::cache::log::{LOG_PAGE, LogLayout, ReadPages};

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Takes one of these out.
    pub(super) fn take<T>(&mut self, of: &mut Vec<T>) -> Option<T> {
        let len = of.len() as u64;
        (len > 0).then(|| of.swap_remove(self.below(len) as usize))
    }
}

/// What is in a place: a unit, or a page of the log.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Unit(u64),
    Page(Rc<[u8]>),
}

pub(super) const EMPTY: Content = Content::Unit(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Cache,
    Backing,
}

/// A place on one of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) Side, usize);

impl Place {
    pub(super) const fn at(side: Side, offset: u64) -> Self {
        let number = match side {
            Side::Cache if offset >= LOG => SLOT_UNITS + (offset - LOG) / LOG_PAGE as u64,
            _ => offset / UNIT,
        };
        Self(side, number as usize)
    }
}

/// A device with a volatile cache.
pub(super) struct Device {
    is_volatile: bool,
    durable: Vec<Content>,
    now: Vec<Content>,
    /// What was written since the last flush, with the number of the write.
    pending: Vec<(u64, usize, Content)>,
    writes: u64,
}

impl Device {
    fn new(places: usize, is_volatile: bool) -> Self {
        Self {
            is_volatile,
            durable: vec![EMPTY; places],
            now: vec![EMPTY; places],
            pending: Vec::new(),
            writes: 0,
        }
    }

    fn write(&mut self, at: usize, content: Content, is_durable: bool) {
        self.writes += 1;
        self.now[at] = content.clone();
        if is_durable || !self.is_volatile {
            self.pending.retain(|&(_, place, _)| place != at);
            self.durable[at] = content;
        } else {
            self.pending.push((self.writes, at, content));
        }
    }

    /// Makes durable what was written up to this write.
    fn flush(&mut self, until: u64) {
        let flushed = self.pending.partition_point(|&(number, ..)| number <= until);
        for (_, at, content) in self.pending.drain(..flushed) {
            self.durable[at] = content;
        }
    }

    /// Each place has what is durable, or any write since.
    pub(super) fn lose_power(&mut self, random: &mut Random) {
        for (_, at, content) in std::mem::take(&mut self.pending) {
            if random.one_in(2) {
                self.durable[at] = content;
            }
        }
        self.now.clone_from(&self.durable);
    }
}

pub(super) struct Devices {
    pub(super) cache: Device,
    pub(super) backing: Device,
}

impl Devices {
    pub(super) fn new(layout: &LogLayout, is_volatile: bool) -> Self {
        let pages = (layout.end() - LOG) / LOG_PAGE as u64;
        Self {
            cache: Device::new((SLOT_UNITS + pages) as usize, is_volatile),
            backing: Device::new(UNITS as usize, true),
        }
    }

    pub(super) const fn of(&mut self, side: Side) -> &mut Device {
        match side {
            Side::Cache => &mut self.cache,
            Side::Backing => &mut self.backing,
        }
    }

    pub(super) fn read(&self, Place(side, at): Place) -> Content {
        match side {
            Side::Cache => self.cache.now[at].clone(),
            Side::Backing => self.backing.now[at].clone(),
        }
    }

    pub(super) fn write(&mut self, Place(side, at): Place, content: Content, is_durable: bool) {
        self.of(side).write(at, content, is_durable);
    }

    /// Flushes what was written so far.
    pub(super) fn flush(&mut self, side: Side) {
        self.of(side).flush(u64::MAX);
    }
}

/// The log on the cache device.
pub(super) struct Pages<'d>(pub(super) &'d Devices, pub(super) Vec<u8>);

impl ReadPages for Pages<'_> {
    type Error = ();

    fn page(&mut self, offset: u64) -> Result<&[u8], ()> {
        self.1.clear();
        match self.0.read(Place::at(Side::Cache, offset)) {
            Content::Page(page) => self.1.extend_from_slice(&page),
            Content::Unit(_) => self.1.resize(LOG_PAGE, 0),
        }
        Ok(&self.1)
    }
}

enum Kind {
    Read,
    Write { is_durable: bool },
    Flush { side: Side, until: u64 },
}

/// An operation in flight. Place by place it happens, in any order, while others do; then it ends.
pub(super) struct Io {
    kind: Kind,
    /// What is left of it: which place, and for a read which of its places that is, or for a write what is written.
    left: Vec<(Place, usize, Content)>,
    /// What it has read.
    pub(super) read: Vec<Content>,
    /// It fails, because this device does.
    pub(super) fails: Option<Side>,
}

impl Io {
    pub(super) fn read(places: impl Iterator<Item = Place>) -> Self {
        let left: Vec<_> = (0..)
            .zip(places)
            .map(|(nth, place)| (place, nth, EMPTY))
            .collect();
        Self {
            kind: Kind::Read,
            read: vec![EMPTY; left.len()],
            left,
            fails: None,
        }
    }

    pub(super) fn write(writes: impl Iterator<Item = (Place, Content)>, is_durable: bool) -> Self {
        Self {
            kind: Kind::Write { is_durable },
            left: writes.map(|(place, content)| (place, 0, content)).collect(),
            read: Vec::new(),
            fails: None,
        }
    }

    /// Covers what was written before.
    pub(super) fn flush(devices: &mut Devices, side: Side) -> Self {
        Self {
            kind: Kind::Flush {
                side,
                until: devices.of(side).writes,
            },
            left: Vec::new(),
            read: Vec::new(),
            fails: None,
        }
    }

    /// A flush that is left out.
    pub(super) const fn nothing() -> Self {
        Self {
            kind: Kind::Read,
            left: Vec::new(),
            read: Vec::new(),
            fails: None,
        }
    }

    /// The devices that it is on.
    pub(super) fn is_on(&self, side: Side) -> bool {
        match self.kind {
            Kind::Flush { side: of, .. } => of == side,
            _ => self.left.iter().any(|&(Place(of, _), ..)| of == side),
        }
    }

    /// Something of it happens. Returns its end, or which device has failed it.
    pub(super) fn advance(&mut self, devices: &mut Devices, random: &mut Random) -> Option<Result<(), Side>> {
        let end = self.fails.map_or(Ok(()), Err);
        if end.is_err() && random.one_in(3) {
            return Some(end);
        }
        if let Kind::Flush { side, until } = self.kind {
            devices.of(side).flush(until);
            return Some(end);
        }
        let is_all = random.one_in(2);
        while let Some((place, nth, content)) = random.take(&mut self.left) {
            match self.kind {
                Kind::Write { is_durable } => devices.write(place, content, is_durable),
                _ => self.read[nth] = devices.read(place),
            }
            if !is_all {
                break;
            }
        }
        self.left.is_empty().then_some(end)
    }

    /// What a write leaves behind whose server has died: any of it happens still.
    pub(super) fn left_behind(self, random: &mut Random) -> Vec<Late> {
        let Kind::Write { is_durable } = self.kind else {
            return Vec::new();
        };
        let left = self.left.into_iter().filter(|_| random.one_in(2));
        left.map(|(place, _, content)| Late(place, content, is_durable))
            .collect()
    }
}

/// A part of a write of a server that has died.
pub(super) struct Late(Place, Content, bool);

impl Late {
    pub(super) fn happen(self, devices: &mut Devices) {
        devices.write(self.0, self.1, self.2);
    }
}
