//! The kernel's interfaces, and nearly all of this crate's `unsafe`.
//!
//! Each module wraps one interface in safe functions with owned values. Decisions are made elsewhere.

pub(crate) mod aligned;
pub mod bpf;
pub mod command;
pub(crate) mod file;
pub mod fork;
pub(crate) mod helper;
pub(crate) mod loop_device;
pub mod memory;
pub mod mmap;
pub mod mounts;
pub mod process;
pub(crate) mod socket;
pub mod trust;
pub mod uapi;
