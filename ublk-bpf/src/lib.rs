//! ublk-bpf: a ublk device whose every request is classified by an eBPF program before the server sees it.
//!
//! Where a request goes: [`driver`] fetches its tag from the kernel and takes the classifier's verdict,
//! [`queue`] decides what that means and drives the request to its commit, [`backend`] is where bytes are and
//! [`cache`] where some of them are twice.
//! [`control`] adds and deletes devices, [`policy`] loads and replaces what classifies requests, [`server`] ties these
//! together in one process, [`registry`] is what other commands know of it, [`cli`] is the command line, [`metrics`]
//! is what Prometheus reads of it, [`log`] writes its messages.

#![warn(clippy::print_stderr, clippy::print_stdout)] // they panic where nothing can be written

pub mod backend;
pub mod cache;
pub mod check;
pub mod cli;
pub mod control;
pub mod driver;
pub mod log;
pub mod metrics;
pub mod observe;
pub mod path_text;
pub mod policy;
pub mod queue;
pub mod registry;
pub mod replay;
pub mod server;
pub mod sys;

pub use ublk_bpf_core::{errno, trace};
