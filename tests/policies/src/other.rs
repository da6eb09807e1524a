//! A BPF object that is not a policy: a tracepoint program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use ublk_bpf_policy as _;

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "tracepoint/block/block_rq_issue")]
    extern "C" fn policy(context: *const u8) -> u32 {
        core::hint::black_box(context);
        0
    }

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 4] = *b"GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
