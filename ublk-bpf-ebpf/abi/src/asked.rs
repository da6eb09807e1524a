//! How user space asks a policy what it answers.

use crate::Request;

/// The name of the asker's read-only global, the thread whose questions it answers: as `bpf_get_current_pid_tgid` has
/// it, with the process in the high half.
pub const ASKER_GLOBAL: &str = "ASKER";

/// [`Question::state`]: user space wants an answer.
pub const ASKED: u64 = 1;
/// [`Question::state`]: the policy has answered.
pub const ANSWERED: u64 = 2;

/// A request that no device has, and the policy's answer: [`map::QUESTION`](crate::map::QUESTION) has one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// What the policy is called with.
    pub request: Request,
    /// [`ASKED`], [`ANSWERED`], or 0.
    pub state: u64,
    /// A packed [`Decision`](crate::Decision), as the classifier would count it.
    pub answer: u64,
}
