//! What the server of ublk-bpf and its replay of traces share: the cache as a state machine, without I/O or a clock, and
//! the format of traces.
//!
//! The server (`ublk-bpf`) carries out what [`cache`] asks for on real devices.

#![warn(clippy::print_stderr, clippy::print_stdout)] // they panic where nothing can be written

pub mod cache;
pub mod errno;
pub mod replay;
pub mod trace;
