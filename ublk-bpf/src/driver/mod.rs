//! Who carries out the machine's effects: [`uring`] on a real device.

pub mod uring;
