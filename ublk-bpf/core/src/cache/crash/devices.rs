//! Devices with volatile caches.

use std::collections::HashMap;
use std::rc::Rc;

use super::LOG;
use crate::cache::log::{LOG_PAGE, ReadPages};

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
}

/// A unit's content, or a page of the log.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Unit(u64),
    Page(Rc<[u8]>),
}

/// A device with a volatile cache, by byte offset.
#[derive(Default)]
pub(super) struct Device {
    pub(super) durable: HashMap<u64, Content>,
    pub(super) pending: Vec<(u64, Content)>,
}

impl Device {
    pub(super) fn read(&self, at: u64) -> Content {
        let pending = self.pending.iter().rev().find(|(place, _)| *place == at);
        let found = pending
            .map(|(_, content)| content)
            .or_else(|| self.durable.get(&at));
        found.cloned().unwrap_or(Content::Unit(0))
    }

    pub(super) fn write(&mut self, at: u64, content: Content, is_durable: bool) {
        if is_durable {
            self.pending.retain(|(place, _)| *place != at);
            self.durable.insert(at, content);
        } else {
            self.pending.push((at, content));
        }
    }

    /// Makes the first `count` pending writes durable.
    pub(super) fn flush(&mut self) {
        for (at, content) in self.pending.drain(..) {
            self.durable.insert(at, content);
        }
    }

    /// Each place has what is durable, or any write since.
    pub(super) fn lose_power(&mut self, random: &mut Random) {
        for (at, content) in std::mem::take(&mut self.pending) {
            if random.one_in(2) {
                self.durable.insert(at, content);
            }
        }
    }
}

pub(super) struct Pages<'d>(pub(super) &'d Device, pub(super) Vec<u8>);

impl ReadPages for Pages<'_> {
    type Error = ();

    fn page(&mut self, offset: u64) -> Result<&[u8], ()> {
        self.1 = match self.0.read(LOG + offset) {
            Content::Page(page) => page.to_vec(),
            Content::Unit(_) => vec![0; LOG_PAGE],
        };
        Ok(&self.1)
    }
}
