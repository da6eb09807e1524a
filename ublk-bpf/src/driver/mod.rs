//! Who carries out the machine's effects: [`uring`], on a real device. The tests drive the same machine over a model of one.

pub mod uring;
