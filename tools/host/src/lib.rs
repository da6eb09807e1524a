//! What the project's tools share on the machine they run on: they run programs, keep what was obtained in a cache
//! folder, obtain what is missing, and build the server with its BPF objects.

pub mod apt;
pub mod build;
pub mod cache;
pub mod command;
pub mod progress;
pub mod setup;
pub mod workspace;
