//! Replays traces of requests: the state machine is [`ublk_bpf_core::replay`], with what runs a user's policy and draws
//! the results.

mod plot;
mod policy_crate;

pub use plot::{PlotError, plot};
pub use policy_crate::{PolicyCrate, PolicyCrateError};
pub use ublk_bpf_core::replay::*;
pub use ublk_bpf_policies::ALL as BUILTIN;

use crate::cache::evict::Algorithm;

/// The word for an algorithm on the command line.
#[must_use]
pub fn word(algorithm: Algorithm) -> String {
    let word = serde_json::to_value(algorithm).ok();
    let word = word.as_ref().and_then(serde_json::Value::as_str);
    word.unwrap_or_default().to_owned()
}
