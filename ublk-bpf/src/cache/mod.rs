//! The read cache on a second, fast device.

pub mod disk;
