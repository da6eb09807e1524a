//! Asks a policy what it answers, without a request.
//!
//! The kernel runs no program of the classifier's kind on request, so the policy's pinned program is attached to one that
//! runs when this thread renames itself (`ublk-bpf-ebpf/src/asker.rs`). It is the program that answers the device's
//! requests, with the same maps: a policy that counts requests counts the question too.

use std::ffi::CStr;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::maps::{Array, MapData};
use rustix::process::getpid;
use rustix::thread::{gettid, set_name};
use ublk_bpf_abi::{ANSWERED, ASKED, ASKER_GLOBAL, Decision, Question, Request, map};

use super::builtin::ASKER;
use super::causes::chain;
use super::error::PolicyError;
use super::loader::Loader;
use super::offsets::tracepoint;
use super::pin::pin_error;
use super::recorder::taken;
use super::swap::policy_function;
use crate::sys::bpf::load::{self, Hook};
use crate::sys::bpf::open_pinned;

/// The program in the object.
const PROGRAM: &str = "ask";
const WHAT: &str = "the program that asks the policy";
/// The tracepoint that setting a thread's name passes.
const TRACEPOINT: &str = "btf_trace_task_rename";

const WORDS: usize = size_of::<Question>() / size_of::<u64>();

/// Asks one policy, from the thread that made it. Nothing of it is pinned.
pub struct Asker<'a> {
    question: Array<MapData, [u64; WORDS]>,
    /// The policy's attachment, and the program's: while they are there.
    _links: [OwnedFd; 2],
    /// The name of the task that asks, which the policy sees.
    task: &'a CStr,
    /// The program knows this thread.
    _of_this_thread: PhantomData<*const ()>,
}

impl<'a> Asker<'a> {
    /// Asks the policy that is pinned at `policy`, under this task name of at most 15 bytes. The calling thread keeps the
    /// name.
    ///
    /// # Errors
    /// If the kernel refuses one of the attachments.
    pub fn of(policy: &Path, task: &'a CStr) -> Result<Self, PolicyError> {
        let policy = open_pinned(policy).map_err(|e| pin_error("opening", policy.to_owned(), e))?;
        let thread = u64::from(getpid().as_raw_nonzero().get().cast_unsigned()) << 32
            | u64::from(gettid().as_raw_nonzero().get().cast_unsigned());
        let mut loaded = Loader::default()
            .global(ASKER_GLOBAL, &thread)
            .load(ASKER, WHAT)?;
        let question = taken(&mut loaded, WHAT, map::QUESTION)?;
        let hook = Hook::Tracepoint(tracepoint(TRACEPOINT)?);
        let program = loaded.program(PROGRAM, hook)?;
        let place = Hook::Replace(program.as_fd(), policy_function(program.as_fd(), WHAT)?);
        let attach =
            |what: &OwnedFd, hook| load::attach(what.as_fd(), hook).map_err(|e| failed(&e.to_string()));
        let links = [attach(&policy, place)?, attach(&program, hook)?];
        // Policies that look at the task see this name from the first question on.
        set_name(task).map_err(|e| failed(&io::Error::from(e).to_string()))?;
        Ok(Self {
            question,
            _links: links,
            task,
            _of_this_thread: PhantomData,
        })
    }

    /// What the classifier would make of the policy's answer to this request.
    ///
    /// # Errors
    /// If the program did not run.
    pub fn ask(&mut self, request: &Request) -> Result<Decision, PolicyError> {
        let failed_access = |e: aya::maps::MapError| PolicyError::Access {
            map: map::QUESTION,
            detail: chain(&e),
        };
        self.question.set(0, asked(request), 0).map_err(failed_access)?;
        set_name(self.task).map_err(|e| failed(&io::Error::from(e).to_string()))?;
        let words = self.question.get(&0, 0).map_err(failed_access)?;
        answer([words[WORDS - 2], words[WORDS - 1]])
            .ok_or_else(|| failed("the kernel did not run it: try again"))
    }
}

/// A [`Question`] as words.
fn asked(request: &Request) -> [u64; WORDS] {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let place = u32::from(request.qid) | u32::from(request.tag) << 16;
    [
        request.sector,
        pair(request.nr_sectors, request.flags),
        pair(request.op, place),
        request.block,
        pair(request.heat, request.ioprio),
        ASKED,
        0,
    ]
}

/// The answer, from a [`Question`]'s last words.
fn answer([state, packed]: [u64; 2]) -> Option<Decision> {
    if state != ANSWERED {
        return None;
    }
    Decision::unpack(packed)
}

fn failed(detail: &str) -> PolicyError {
    PolicyError::Attach {
        what: WHAT.to_owned(),
        detail: detail.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use ublk_bpf_abi::Op;

    use super::*;

    #[test]
    fn a_question_has_the_layout_that_the_program_reads() {
        let request = Request {
            sector: 1,
            nr_sectors: 2,
            flags: 3,
            op: Op::Discard as u32,
            qid: 5,
            tag: 6,
            block: 7,
            heat: 8,
            ioprio: 9,
        };
        let bytes: Vec<u8> = asked(&request).into_iter().flat_map(u64::to_le_bytes).collect();
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        for (at, value) in [
            (offset_of!(Request, sector), 1),
            (offset_of!(Request, nr_sectors), 2),
            (offset_of!(Request, flags), 3),
            (offset_of!(Request, op), 3),
            (offset_of!(Request, qid), 5),
            (offset_of!(Request, tag), 6),
            (offset_of!(Request, block), 7),
            (offset_of!(Request, heat), 8),
            (offset_of!(Request, ioprio), 9),
            (offset_of!(Question, state), 1),
            (offset_of!(Question, answer), 0),
        ] {
            assert_eq!(u16_at(at), value, "at {at}");
        }
        assert_eq!(bytes.len(), size_of::<Question>());
    }

    #[test]
    fn an_answer_is_none_until_the_policy_has_run() {
        let hit = Decision::hit();
        assert_eq!(answer([ANSWERED, hit.pack()]), Some(hit));
        assert_eq!(answer([ASKED, hit.pack()]), None);
        assert_eq!(answer([ANSWERED, 9]), None);
    }
}
