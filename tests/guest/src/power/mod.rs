//! Power cuts: a device on disks with volatile write caches, which lose any part of what was not flushed.
//!
//! [`VolatileDisk`] remembers the writes since the last flush. When the power of its [`Supply`] is cut, it answers
//! nothing more, or only errors, and comes back with any part of them: by requests, by pages of 4 KiB, or by sectors in
//! any order. [`Plug`] makes it a block device. [`Machine`] has two of them and a server, which is killed with the power;
//! what memory held is removed as by a boot. [`Client`] knows what each sector may hold afterwards.

mod client;
mod disk;
mod history;
mod image;
mod machine;
mod nbd;
mod supply;

use std::path::Path;

pub use client::{Client, Done, Fault, Until};
pub use disk::VolatileDisk;
pub use image::{Lie, Lost};
pub use machine::{Machine, forget_dirty_caches, milliseconds};
pub use nbd::Plug;
pub use supply::Supply;

use crate::torture::Disk;
use crate::torture::disk::Direct;

/// A block device, accessed with direct I/O.
pub fn block_device(path: &Path) -> impl Disk + 'static {
    Direct::open(path, true).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}

/// The number in an environment variable of the host (`UBLK_BPF_SEED`, `UBLK_BPF_ROUNDS`), or what it is without.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|e| panic!("{variable} is {text:?}, not a number: {e}"))
    })
}
