//! Who carries out the machine's effects: [`uring`] on a real device, [`sim`] on a model of one.

pub mod sim;
pub mod uring;
