//! What the kernel's interfaces look like, and nearly all of this crate's `unsafe`.
//!
//! Each module turns one interface into a safe one with owned values; what is decided with it is elsewhere.

pub(crate) mod aligned;
pub mod bpf;
pub mod command;
pub(crate) mod file;
pub mod fork;
pub(crate) mod loop_device;
pub mod memory;
pub mod mmap;
pub mod mounts;
pub mod process;
pub mod trust;
pub mod uapi;
