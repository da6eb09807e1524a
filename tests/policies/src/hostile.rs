//! Policy `hostile`: random answers. It may cost time, but no data.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod answer {
    use ublk_bpf_policy as _;
    use ublk_bpf_policy::Request;
    use ublk_bpf_policy::bpf::helpers::generated::bpf_get_prandom_u32;

    /// Does not use the SDK's macro, whose function can only return valid decisions.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "freplace/policy")]
    extern "C" fn policy(request: *const Request) -> u64 {
        core::hint::black_box(request);
        // SAFETY: The helper takes no arguments and returns a number.
        let random = unsafe { u64::from(bpf_get_prandom_u32()) };
        // Any tenant, and a delay that lets a test end.
        let rest = (random & 0xff) << 48 | (random & 0x1f00) << 48;
        // Every second answer resembles a decision: any verdict, any reason, any hints.
        match random & 3 {
            0 => random >> 1 | (random & 0xffff) << 32,
            1 => random >> 1 & 0xff_07_07,
            _ => random >> 2 & 0xff_07_07 | rest,
        }
    }

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 4] = *b"GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
