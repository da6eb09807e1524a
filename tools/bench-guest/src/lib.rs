//! The part of the benchmark that runs in a guest: it makes devices, measures them, and prints what it found. The host
//! (`tools/bench`) boots the guest, compares, draws and writes.

pub mod busy;
pub mod compared;
pub mod counts;
pub mod discard;
pub mod fio;
pub mod guard;
mod histogram;
pub mod hits;
pub mod load;
pub mod modes;
pub mod native;
pub mod ours;
pub mod peers;
pub mod profile;
pub mod ratio;
pub mod scale;
pub mod sizes;
pub mod subject;
pub mod writeback;
