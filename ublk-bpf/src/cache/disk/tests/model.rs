//! A device that loses power.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use crate::cache::disk::storage::Storage;

/// A device in memory that writes down what is done to it.
pub(super) struct Disk {
    content: RefCell<Vec<u8>>,
    pub(super) log: RefCell<Vec<Op>>,
}

#[derive(Clone)]
pub(super) enum Op {
    Write(usize, Vec<u8>),
    Sync,
}

impl Disk {
    pub(super) fn new(content: Vec<u8>) -> Self {
        Self {
            content: RefCell::new(content),
            log: RefCell::default(),
        }
    }

    pub(super) fn content(&self) -> Vec<u8> {
        self.content.borrow().clone()
    }
}

impl Storage for Disk {
    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        into.copy_from_slice(&self.content.borrow()[at..][..into.len()]);
        Ok(())
    }

    fn write(&self, from: &[u8], at: u64) -> io::Result<()> {
        assert!(at.is_multiple_of(4096) && from.len().is_multiple_of(4096));
        assert!(from.as_ptr().addr().is_multiple_of(4096));
        let write = Op::Write(usize::try_from(at).unwrap(), from.to_vec());
        apply(&mut self.content.borrow_mut(), &write, 0..from.len());
        self.log.borrow_mut().push(write);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.log.borrow_mut().push(Op::Sync);
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.content.borrow().len() as u64)
    }
}

/// Puts a part of what was written in its place.
fn apply(content: &mut [u8], op: &Op, part: Range<usize>) {
    if let Op::Write(at, bytes) = op {
        content[at + part.start..at + part.end].copy_from_slice(&bytes[part]);
    }
}

/// Every content that a crash can leave of a device that had `before` and got `log`: cut anywhere; of the writes since
/// the last sync any are done and any not, and one of them, or each, is done in part.
pub(super) fn crashes(before: &[u8], log: &[Op]) -> Vec<Vec<u8>> {
    let mut left = Vec::new();
    for cut in 0..=log.len() {
        let (durable, pending) = at_last_sync(before, &log[..cut]);
        for done in 0..1_u32 << pending.len() {
            let mut content = durable.clone();
            for (_, op) in pending.iter().enumerate().filter(|(at, _)| done >> at & 1 == 1) {
                apply(&mut content, op, 0..len(op));
            }
            for at in TEARS {
                left.push(torn(&content, pending, |len| 0..at.min(len)));
                left.push(torn(&content, pending, |len| at.min(len)..len));
                for op in pending.chunks(1) {
                    left.push(torn(&content, op, |len| 0..at.min(len)));
                    left.push(torn(&content, op, |len| at.min(len)..len));
                }
            }
            left.push(content);
        }
    }
    left
}

/// Where a write is cut in two: within values of the superblock, at sectors, and at the last byte.
const TEARS: [usize; 8] = [1, 13, 44, 100, 512, 1024, 4000, 4095];

/// What is durable, and what has yet to become so.
fn at_last_sync<'a>(before: &[u8], log: &'a [Op]) -> (Vec<u8>, &'a [Op]) {
    let synced = log.iter().rposition(|op| matches!(op, Op::Sync)).unwrap_or(0);
    let mut durable = before.to_vec();
    for op in &log[..synced] {
        apply(&mut durable, op, 0..len(op));
    }
    (durable, &log[synced..])
}

/// The content with a part of each of these writes.
fn torn(content: &[u8], ops: &[Op], part: impl Fn(usize) -> Range<usize>) -> Vec<u8> {
    let mut torn = content.to_vec();
    for op in ops {
        apply(&mut torn, op, part(len(op)));
    }
    torn
}

fn len(op: &Op) -> usize {
    match op {
        Op::Write(_, bytes) => bytes.len(),
        Op::Sync => 0,
    }
}
