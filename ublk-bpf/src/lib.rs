//! ublk-bpf: a ublk device whose every request is classified by an eBPF program before the server sees it.
//!
//! Where a request goes: [`driver`] fetches its tag from the kernel and takes the classifier's verdict,
//! [`queue`] decides what that means and drives the request to its commit, [`backend`] is where bytes are and
//! [`cache`] where some of them are twice.
//! [`control`] makes and unmakes devices, [`policy`] loads and replaces what classifies them, [`server`]
//! ties these together for one device, [`cli`] is the command line, [`log`] is what a server says.

#![warn(clippy::print_stderr, clippy::print_stdout)] // they panic where nothing can be written

pub mod backend;
pub mod cache;
pub mod cli;
pub mod control;
pub mod driver;
pub mod log;
pub mod observe;
pub mod path_text;
pub mod policy;
pub mod queue;
pub mod server;
pub mod sys;
