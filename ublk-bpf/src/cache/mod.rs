//! The cache: its state machine is [`ublk_bpf_core::cache`]; its format on the cache device is [`disk`].

pub mod disk;

pub use ublk_bpf_core::cache::*;
