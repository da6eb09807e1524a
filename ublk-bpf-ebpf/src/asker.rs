//! The asker: calls a policy for a request that no device has, so that a command can say what the policy would answer.
//!
//! A policy runs only inside a program of the classifier's kind, and the kernel runs no such program on request. The
//! asker is one that is attached to the tracepoint `task_rename`, which the thread that asks passes when it sets its own
//! name. The policy's pinned program is attached to it as it is to the classifier, so it answers with its own maps.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(linkage))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod answer;

#[cfg(target_arch = "bpf")]
mod ask {
    use aya_ebpf::{
        Global,
        btf_maps::Array,
        helpers::bpf_get_current_pid_tgid,
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use ublk_bpf_abi::{ANSWERED, ASKED, Question};
    // Brings the panic handler.
    use ublk_bpf_policy as _;

    use crate::answer::{checked, policy};

    /// The thread that asks.
    #[unsafe(no_mangle)]
    static ASKER: Global<u64> = Global::new(0);

    #[btf_map(name = "question")]
    static QUESTION: Array<Question, 1> = Array::new();

    /// The licence that the kernel reads.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[btf_tracepoint(function = "task_rename")]
    fn ask(_: BtfTracePointContext) -> i32 {
        if bpf_get_current_pid_tgid() == ASKER.load()
            && let Some(question) = QUESTION.get_ptr_mut(0)
        {
            answer(question);
        }
        0
    }

    #[inline(always)]
    fn answer(question: *mut Question) {
        // SAFETY: the map's only entry. The thread that asks writes it, and is in this call.
        let question = unsafe { &mut *question };
        if question.state == ASKED {
            // The classifier's requests are on its stack, too.
            let request = question.request;
            question.answer = checked(policy(&request));
            question.state = ANSWERED;
        }
    }
}
