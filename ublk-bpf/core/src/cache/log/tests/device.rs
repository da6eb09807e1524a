//! A device with a volatile cache.

use std::convert::Infallible;

use crate::cache::log::{LOG_PAGE, LogLayout, Placed, ReadPages};

/// The power is off.
#[derive(Debug)]
pub(super) struct Crash;

pub(super) struct Device {
    bytes: Vec<u8>,
    /// Pages that were written and not flushed.
    pending: Vec<(usize, Vec<u8>)>,
    /// Steps until the power is lost, and what then chooses the pages that are there.
    power: Option<(usize, u64)>,
}

impl Device {
    /// Full of what looks random.
    pub(super) fn new(layout: &LogLayout) -> Self {
        let mut next = 1;
        Self {
            bytes: (0..layout.end())
                .map(|_| random(&mut next).to_le_bytes()[3])
                .collect(),
            pending: Vec::new(),
            power: None,
        }
    }

    /// Loses power in this step, counted from 0; `seed` chooses which unflushed pages are there then.
    pub(super) fn lose_power(&mut self, step: usize, seed: u64) {
        self.power = Some((step, seed));
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn write(&mut self, placed: Placed, buffer: &[u8]) -> Result<(), Crash> {
        assert!(placed.offset.is_multiple_of(LOG_PAGE as u64) && placed.length.is_multiple_of(LOG_PAGE));
        let at = usize::try_from(placed.offset).unwrap();
        let pages = buffer[..placed.length].chunks(LOG_PAGE);
        for (at, page) in (at..).step_by(LOG_PAGE).zip(pages) {
            self.pending.push((at, page.to_vec()));
        }
        self.step()
    }

    pub(super) fn flush(&mut self) -> Result<(), Crash> {
        self.step()?;
        for (at, page) in self.pending.drain(..) {
            self.bytes[at..at + LOG_PAGE].copy_from_slice(&page);
        }
        Ok(())
    }

    /// With FUA; here other writes become durable too, which a device may do at any time.
    pub(super) fn write_durably(&mut self, placed: Placed, buffer: &[u8]) -> Result<(), Crash> {
        self.write(placed, buffer)?;
        self.flush()
    }

    fn step(&mut self) -> Result<(), Crash> {
        match &mut self.power {
            Some((0, seed)) => {
                let mut seed = *seed | 1;
                for (at, page) in self.pending.drain(..) {
                    // Whole, in part or not at all; small seeds favour all or nothing.
                    let part = [LOG_PAGE, 0, LOG_PAGE, 0, 512, LOG_PAGE - 512];
                    let length = part[usize::try_from(random(&mut seed) >> 33).unwrap() % part.len()];
                    self.bytes[at..at + length].copy_from_slice(&page[..length]);
                }
                self.power = None;
                return Err(Crash);
            }
            Some((steps, _)) => *steps -= 1,
            None => {}
        }
        Ok(())
    }
}

fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state
}

impl ReadPages for Device {
    type Error = Infallible;

    fn page(&mut self, offset: u64) -> Result<&[u8], Infallible> {
        let at = usize::try_from(offset).unwrap();
        Ok(&self.bytes[at..at + LOG_PAGE])
    }
}
